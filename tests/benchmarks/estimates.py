"""``python -m tests.benchmarks.estimates``: estimates beside the jobs that they were made for.

Each job of moderate size is estimated, then run, on the embedded model. Printed are the estimate,
its range, the truth and their ratio. Exit status 1 if the truth lies outside a range.

``--tokens 5e6`` compares memory and disk instead, for a harvest, a training and a store of so many
tokens through a tiny model, and says what the embedded model would take for ten times as many.
Exit status 1 if more than 1.5 times the estimate was taken.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import kit
from kit import sae
from kit.cli import estimates
from kit.cli.timing import Estimate, duration
from kit.search import dct, melbo

_PROMPTS = ("How do you feel today?", "Tell me about your work.", "What is the sea like?")


def jobs(model: Any, folder: Path) -> list[tuple[Callable[[], Estimate], Callable[[], Any]]]:
    """Pairs of an estimate and the job itself."""
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.cfg.d_vocab, (128, 128), generator=rng).to(model.cfg.device)
    source = sae.Source(model, tokens, [sae.Site(14)], batch=1024, rows=64, cache=folder)
    vector = kit.data.vector("happy-sad")
    sweep: dict[str, Any] = {"layers": [14, 18, 22], "targets": (" good", " bad")}
    training: dict[str, Any] = {"widths": (1, 4), "rows": 64, "batch": 1024}
    texts = kit.data.neutral_texts() * 20
    return [
        (lambda: estimates.filling(source), source.fill),
        (
            lambda: estimates.sae_training(model, 14, tokens=15_000, **training),
            lambda: sae.train(model, texts, 14, tokens=15_000, **training),
        ),
        (
            lambda: estimates.melbo(model, _PROMPTS, 7, 17, 8, steps=10),
            lambda: melbo.fit(model, _PROMPTS, 7, 17, 8, steps=10),
        ),
        (
            lambda: estimates.dct(model, _PROMPTS, 7, 17, n_features=32, iterations=4),
            lambda: dct.fit(model, _PROMPTS, 7, 17, n_features=32, iterations=4),
        ),
        (
            lambda: estimates.sweep(model, vector, _PROMPTS, **sweep),
            lambda: kit.sweep(model, vector, _PROMPTS, **sweep),
        ),
    ]


def corpus(n: int) -> int:
    """Estimates of memory and disk beside what jobs of n tokens took; the exit status."""
    from tests.benchmarks.growth import corpora

    missed = 0
    print(f"{n:,} tokens, a tiny model; MB estimated and taken")
    for job in filter(lambda job: job.said, corpora.corpus(n)):
        pairs = {"memory": (job.said["memory"], job.added), "disk": (job.said["disk"], job.disk)}
        outside = any(taken > 1.5 * max(told, 2**24) for told, taken in pairs.values())
        missed += outside
        shown = ", ".join(f"{what} {told / 1e6:,.0f} and {taken / 1e6:,.0f}" for what, (told, taken) in pairs.items())
        print(f"{job.what}: {shown} ({job.kept / 1e6:,.0f} kept)" + ("  OUTSIDE" if outside else ""), flush=True)
    model, large = kit.load_model(), 10 * n
    rows = torch.randint(model.cfg.d_vocab, (16, 128), generator=torch.Generator().manual_seed(0))
    random = corpora.dictionary(model, rows, 14, 4 * model.cfg.d_model, 32)
    print(f"the embedded model, {large:,} tokens:")
    print(estimates.harvest(model, large, 14))
    print(estimates.sae_training(model, 14, tokens=large, widths=(4,), cached=True))
    print(estimates.store(random, model, rows.repeat(large // rows.numel(), 1), "store"))
    return 1 if missed else 0


def main() -> int:
    if sys.argv[1:2] == ["--tokens"]:
        return corpus(int(float(sys.argv[2])))
    model = kit.load_model()
    dtype = next(model.parameters()).dtype
    print(f"{torch.get_num_threads()} threads, {dtype}, torch {torch.__version__}")
    print(f"{'estimate':>12}{'from':>14}{'to':>14}{'truth':>14}{'ratio':>8}{'probe':>10}  what")
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        for estimate, job in jobs(model, Path(folder)):
            found = estimate()
            start = time.perf_counter()
            job()
            truth = time.perf_counter() - start
            inside = found.low <= truth <= found.high
            missed += not inside
            print(
                f"{duration(found.seconds):>12}{duration(found.low):>14}"
                f"{duration(found.high):>14}{duration(truth):>14}{truth / found.seconds:>8.2f}"
                f"{duration(found.probe_seconds):>10}  {found.what}" + ("" if inside else "  OUTSIDE"),
                flush=True,
            )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
