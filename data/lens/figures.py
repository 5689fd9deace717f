"""Measure the shipped lens against what would do it by chance: figures.json, and README's tables.

    python data/lens/figures.py TEXTS      measure what is not in figures.json yet
    python data/lens/figures.py tables     print the tables

TEXTS as for make.py; what is read is of the held-out ones. About an hour on one core.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
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
DEPTHS = (2, 6, 10, 14, 18, 22, 26, 28)
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


def silent(lens: Any, _source: str) -> dict[str, Any]:
    """Swaps where the prompt names neither country."""
    few = kit.lens.Lens(lens.model, {layer: lens.matrix(layer) for layer in DEPTHS})
    return words.silent(few).round(3).to_dict("index")


PARTS: dict[str, Callable[[Any, str], dict[str, Any]]] = {
    "swaps": swaps,
    "depth": depth,
    "typed": typed,
    "names": names,
    "secrets": secrets,
    "silent": silent,
}


def tables(found: dict[str, Any]) -> str:
    """README's tables."""
    best = found["swaps"]["layer"]
    by_wording = found["swaps"]["all"]
    arms = ("difference", "lens", "x1", "x2", "logit lens", "input", "others", "random")
    told = [f"| {layer} | {wording} | {cells(by_wording[wording][str(layer)], arms)} |" for layer, wording in (
        *((layer, words.WORDINGS[0]) for layer in sorted({2, 6, 10, 14, 18, 22, 23, best})),
        *((best, wording) for wording in words.WORDINGS[1:]),
    )]  # fmt: skip
    parts = [table(("layer", "wording", *arms), told)]
    arms = tuple(
        f"{where} x{n}, {by}" for where in ("place", "end") for n in (1, 2) for by in ("lens", "logit", "random")
    )
    parts.append(table(("layer", *arms), [f"| {n} | {cells(found['silent'][str(n)], arms)} |" for n in DEPTHS]))
    ends = ("KL, lens", "KL, logit lens", "rank, lens", "rank, logit lens")
    both = found["depth"]
    told = [f"| {n} | {cells(both['facts'][n], ends)} | {cells(both['text'][n], ends)} |" for n in map(str, DEPTHS)]
    parts.append(table(("layer", *(f"{kind}: {end}" for kind in ("facts", "text") for end in ends)), told))
    arms = ("lens", "logit lens", "mean difference", "random", "instruction", "instruction's KL", "lens at that KL")
    parts.append(table(("typed", *arms), [f"| {word} | {cells(row, arms)} |" for word, row in found["typed"].items()]))
    arms = ("lens", "logit lens", "shuffled")
    parts.append(
        table(("words of", *arms), [f"| {name} | {cells(row, arms)} |" for name, row in found["names"].items()])
    )
    told = []
    for name, kinds in found["secrets"].items():
        own = {n: kinds["neutral"][f"{n} {name} lens"]["median rank"] for n in LAYERS}
        at = min(own, key=own.__getitem__)
        for about in found["secrets"]:
            row = [kinds["held out"][f"{at} {about} {by}"] for by in ("lens", "logit lens")]
            medians = " | ".join(cells(each, ("median rank",)) for each in row)
            ps = cells(row[0], ("p, random", "p, halves"), 3)
            told.append(f"| {name} | {at} | {about}'s | {medians} | {ps} |")
    heads = ("organism", "layer", "words", "median rank, lens", "logit lens", "p, random", "p, halves")
    return "\n\n".join([*parts, table(heads, told)])


def table(heads: Sequence[str], rows: list[str]) -> str:
    """A Markdown table."""
    return "\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *rows])


def cells(row: dict[str, float], names: Sequence[str], digits: int = 2) -> str:
    """Some numbers of a row."""
    return " | ".join(f"{row[name]:,.0f}" if "rank" in name else f"{row[name]:.{digits}f}" for name in names)


def main(source: str) -> None:
    """Measure each part and write it at once, so that a stop loses one part at most."""
    file = HERE / "figures.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if source == "tables":
        print(tables(found))
        return
    lens = kit.data.lens(kit.load_model(dtype="float32"))
    for name in track([name for name in PARTS if name not in found], "parts"):
        found[name] = PARTS[name](lens, source)
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(name, json.dumps(found[name], indent=1), flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
