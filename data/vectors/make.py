"""Make the shipped vectors again: ``python data/vectors/make.py [names]`` (two cores: ten minutes).

For each contrast set: the mean difference at a few layers, calibrated to a KL of 0.5 nats a token;
the layer whose effect on half of the probes is largest at that dose; its effect on the other half,
beside five random vectors at the same coefficient. The table in README.md is what this prints.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import kit
from kit.models import weights
from kit.steering.sweep import preference

LAYERS = (10, 14, 18)
TARGET_KL = 0.5
CONTROLS = 5


def effects(model, vectors, coefficient, probes):
    """Mean log-probability shift on the probes for each vector alone at a coefficient."""
    n = len(vectors)
    rungs = [None, *[[coefficient * (i == j) for j in range(n)] for i in range(n)]]
    total = [0.0] * n
    for probe in probes:
        start = kit.text_tokens(model, probe["prompt"])
        shift = preference(model, start, probe["positive"], probe["negative"], vectors, rungs)
        total = [t + s - shift[0] for t, s in zip(total, shift[1:], strict=True)]
    return [t / len(probes) for t in total]


def main() -> None:
    model = kit.load_model(dtype="float32")
    print("| vector | layer | AUROC | near range | effect | random |\n|---|---|---|---|---|---|")
    for name in sys.argv[1:] or kit.data.contrast_names():
        data = kit.data.contrast(name)
        positive, negative = zip(*data["pairs"], strict=True)
        choose, report = data["probes"][::2], data["probes"][1::2]
        best = None
        for layer in LAYERS:
            vector = kit.contrast.fit(model, positive, negative, layer, name=name)
            found = kit.calibrate(model, vector, TARGET_KL)
            effect = effects(model, [vector], found.high, choose)[0]
            if best is None or effect > best[0]:
                best = (effect, vector, found)
        _, vector, found = best
        controls = [vector.random(seed) for seed in range(CONTROLS)]
        own, *others = effects(model, [vector, *controls], found.high, report)
        calibration = {"target_kl": TARGET_KL, "low": round(found.low, 3), "high": round(found.high, 3)}
        about = {
            **vector.metadata,
            "contrast": name,
            "calibration": calibration,
            "effect": round(own, 3),
            "effect_of_random": [round(x, 3) for x in others],
            "made_by": "data/vectors/make.py",
            "model": weights.EMBEDDED,
        }
        if own > max(others):  # what does not beat chance is reported, not shipped
            replace(vector, metadata=about).save(Path(__file__).parent / f"{name}.safetensors")
        print(
            f"| {name} | {vector.layer} | {vector.metadata['auroc']:.2f} | "
            f"{found.low:+.2f} to {found.high:+.2f} | {own:+.2f} | "
            f"{min(others):+.2f} to {max(others):+.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
