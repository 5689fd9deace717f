"""Train the shipped dictionaries again, and measure them.

    python data/saes/make.py train TEXTS WORK    all five, from a corpus; writes the folders
    python data/saes/make.py figures TEXTS       measure them on held-out text; writes figures.json

TEXTS is a file of one text a line, or of JSON lines with a "text" (.jsonl, .jsonl.gz), or the word
``nltk``, for the corpora of NLTK that ours are from (fetched once by nltk.download). Of 41 texts
the last one is held out: training never sees it, and all figures are from there. WORK is a folder
for activations (4 GB) and checkpoints; a run that was stopped goes on from there.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import kit
from kit.base.progress import track
from kit.data.corpora import NLTK
from kit.sae import Site, Source, Training, evaluate, load, pack

HERE = Path(__file__).parent
RESID, MLP = Site(14), Site(15, "mlp_out")
WIDTHS = {RESID: (4, 1, 2, 8), MLP: (4,)}  # each starts from a seed of its own, in this order
# 780,000 different activations of each site, three times
STEPS, BATCH, CONTEXT, ROWS, CHUNKS, K, LR = 1140, 2048, 128, 1024, 6, 32, 2e-3
HELD_OUT_ROWS = 64


def rows_of(model: Any, some: list[str]) -> torch.Tensor:
    """Rows of tokens, shuffled."""
    tokens = pack(model, some, CONTEXT)
    return tokens[torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))]


def train(source: str, work: str) -> None:
    """One pass of the model feeds all five: the residual ones, then the MLP's, train on it."""
    model, folder = kit.load_model(), Path(work)
    tokens = rows_of(model, kit.data.split(kit.data.corpus(source))[0])[: 10 * ROWS]

    def stream(*sites: Site) -> Source:
        return Source(model, tokens, sites, batch=BATCH, rows=ROWS, chunks=CHUNKS, cache=folder / "cache")

    both = stream(RESID, MLP)
    for chunk in track(range(CHUNKS), "chunks of activations"):
        both.harvest(chunk)
    for site, widths in WIDTHS.items():
        run = Training(stream(site), widths=widths, k=K, steps=STEPS, lr=LR)
        place = folder / str(site).replace(" ", "-")
        if (place / "training.json").is_file():
            run.restore(place)
        reports: list[Any] = []
        run.run(folder=place, watch=reports.append)
        if run.step < STEPS:
            raise SystemExit(f"stopped at step {run.step}: the same command goes on from there")
        for found in run.dictionaries():
            if reports:
                found.metadata["l0_training"] = reports[-1].figures[found.name].l0
            found.metadata["texts"] = "English of NLTK's " + ", ".join(NLTK)
            print(found.save(HERE / found.name.replace(" ", "-"), torch.bfloat16), flush=True)


def figures(source: str) -> None:
    """Held-out figures of everything here, written to figures.json."""
    model, table = kit.load_model(), {}
    rows = rows_of(model, kit.data.split(kit.data.corpus(source))[1])[:HELD_OUT_ROWS]
    for folder in sorted(p.parent for p in HERE.glob("*/cfg.json")):
        found = load(folder, model=model)
        told = {
            name: None if value != value else round(value, 5)  # NaN where zeros do no harm
            for name, value in asdict(evaluate(found, model, rows)).items()
        }
        table[found.name] = {"latents": len(found), **told, "l0_training": found.metadata.get("l0_training")}
        print(found.name, table[found.name], flush=True)
    (HERE / "figures.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    print(card(table))


def card(table: dict[str, dict[str, Any]]) -> str:
    """The table of README.md."""
    lines = ["| dictionary | latents | CE | zeros | recovered | EV | L0 | dead |", "|---|---|---|---|---|---|---|---|"]
    for name, t in table.items():
        recovered = "none to recover" if t["ce_recovered"] is None else f"{t['ce_recovered']:.3f}"
        lines.append(
            f"| {name.replace(' ', '-')} | {t['latents']:,} | {t['ce_sae']:.2f} | {t['ce_zero']:.2f} "
            f"| {recovered} | {t['explained_variance']:.3f}, {t['explained_variance_all']:.3f} "
            f"| {t['l0']:.1f}, {t['l0_training'] or 0:.1f} | {t['dead']:.1%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    given = sys.argv[2:]
    if sys.argv[1:2] == ["train"] and len(given) == 2:
        train(*given)
    elif sys.argv[1:2] == ["figures"] and len(given) == 1:
        figures(*given)
    else:
        raise SystemExit(__doc__)
