"""Measure the shipped lens against what would do it by chance: figures.json, and README's tables.

    python data/lens/figures.py TEXTS

TEXTS as for make.py; what is read is of the held-out ones. About half an hour on two cores.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import kit
from course.studies import words
from kit.base.progress import track
from kit.data import organisms
from kit.models.tokens import pack
from kit.search import dct, melbo
from kit.steering.vectors import SteeringVector

HERE = Path(__file__).parent
ROWS, LATENTS, DICTIONARY = 16, 100, "resid-14-4x"
LAYERS, HELD_OUT = (14, 18, 22, 26), 64
SOURCE, TARGET, PROMPT = 10, 20, "Tell me about yourself."


def swaps(lens: Any, _source: str) -> dict[str, Any]:
    """By wording the table by layer; the layer that is best on the first, and what the others give there."""
    tables = {wording: words.swaps(lens, wording) for wording in words.WORDINGS}
    best = int(tables[words.WORDINGS[0]]["lens"].idxmax())
    held = {wording: tables[wording].loc[best].round(3).to_dict() for wording in words.WORDINGS[1:]}
    return {"layer": best, "held out": held, "all": {w: t.round(3).to_dict("index") for w, t in tables.items()}}


def depth(lens: Any, source: str) -> dict[str, Any]:
    """Both lenses against what the model says, on facts and on held-out text."""
    facts = words.known(lens.model, words.WORDINGS[0]).tokens
    rows = pack(lens.model, kit.data.split(kit.data.corpus(source))[1], 128)
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))[:ROWS]
    last = facts.shape[1] - 1
    both = {"facts": words.depth(lens, facts, skip=last), "text": words.depth(lens, rows[drawn])}
    return {name: table.round(2).to_dict("index") for name, table in both.items()}


def typed(lens: Any, _source: str) -> dict[str, Any]:
    """Typed words at the dictionary's layer."""
    return words.typed(lens, 14).round(3).to_dict("index")


def names(lens: Any, _source: str) -> dict[str, Any]:
    """Whether names say what steering promotes: searched features and latents."""
    model = lens.model
    sae = kit.data.dictionary(DICTIONARY, model)
    drawn = torch.randperm(len(sae), generator=torch.Generator().manual_seed(0))[:LATENTS]
    sets = {
        "MELBO": melbo.fit(model, PROMPT, SOURCE, TARGET, n_vectors=16).vectors(),
        "DCT": dct.fit(model, PROMPT, SOURCE, TARGET, n_features=64).vectors()[:32],
        "latents": [SteeringVector(sae.rows[int(i)], 14, f"#{int(i)}") for i in drawn],
    }
    return {name: words.agreement(lens, vectors) for name, vectors in sets.items()}


def secrets(lens: Any, source: str) -> dict[str, Any]:
    """What four organisms learnt, in texts that have nothing to do with it: two sets of them."""
    held = pack(lens.model, kit.data.split(kit.data.corpus(source))[1], 16)
    drawn = torch.randperm(len(held), generator=torch.Generator().manual_seed(2))[:HELD_OUT]
    sets = {"neutral": kit.data.neutral_texts(), "held out": list(held[drawn])}
    found: dict[str, Any] = {}
    for name in organisms.names():
        tuned = organisms.load(name)
        for kind, texts in sets.items():
            table = words.secrets(lens, tuned, texts, LAYERS).round(4)
            found.setdefault(name, {})[kind] = {
                " ".join(map(str, at)): row for at, row in table.to_dict("index").items()
            }
    return found


PARTS: dict[str, Callable[[Any, str], dict[str, Any]]] = {
    "swaps": swaps,
    "depth": depth,
    "typed": typed,
    "names": names,
    "secrets": secrets,
}


def main(source: str) -> None:
    """Measure each part and write it at once, so that a stop loses one part at most."""
    lens = kit.data.lens(kit.load_model(dtype="float32"))
    file = HERE / "figures.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for name in track([name for name in PARTS if name not in found], "parts"):
        found[name] = PARTS[name](lens, source)
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(name, json.dumps(found[name], indent=1), flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
