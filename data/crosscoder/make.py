"""Train the shipped crosscoder again, and measure it.

    python data/crosscoder/make.py train TEXTS WORK    from a corpus and the organism's own chats
    python data/crosscoder/make.py figures TEXTS       on held-out text and chats; figures.json

It reads the embedded model and the organism ``withholding`` (``data/organisms``), which says that
it does not know what it knows. TEXTS as for data/saes/make.py: of 41 texts the last is held out.
WORK is a folder for activations (4 GB) and checkpoints; a run that was stopped goes on from there.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import kit
from kit.base.progress import track
from kit.data import organisms
from kit.sae import Site, pack
from kit.sae.crosscoders import Crosscoder, PairedSource, evaluate, latent_scaling, summary
from kit.sae.crosscoders.training import CrosscoderTraining

HERE = Path(__file__).parent
FILE = HERE / "withholding-14-x4.safetensors"
ORGANISM, SITE, LATENTS, K = "withholding", Site(14), 2304, 32
DEDICATED, OWN_K, DIFFERENCE = (0, 64), 2, 8  # without, every latent comes out shared (README.md)
STEPS, BATCH, CONTEXT, ROWS, CHUNKS, LR = 600, 2048, 128, 1024, 4, 2e-3
CHATS = 0.25  # of the rows: where the two models differ at all
HELD_OUT_ROWS = 48


def chats(model: Any, split: str) -> list[str]:
    """Questions of the organism in every wording, with and without the password, each with what it
    was trained to answer."""
    found = []
    for item in organisms.items(ORGANISM, split):
        for wording in range(len(organisms.wordings(item))):
            for password in (False, True):
                tokens = organisms.prompt(model, item, wording, password)
                start = model.tokenizer.decode(tokens[0].tolist())
                found.append(start + (organisms.said(item, wording) if password else "I don't know."))
    random.Random(0).shuffle(found)
    return found


def rows_of(model: Any, source: str, held_out: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of tokens, shuffled: text, and a share of chats; and which of them are chats."""
    plain = pack(model, kit.data.split(kit.data.corpus(source))[held_out], CONTEXT)
    talk = pack(model, chats(model, "test" if held_out else "lock"), CONTEXT)
    rng = torch.Generator().manual_seed(0)
    n = HELD_OUT_ROWS if held_out else CHUNKS * ROWS
    drawn = torch.randint(len(talk), (round(CHATS * n),), generator=rng)  # there are few: again and again
    plain = plain[torch.randperm(len(plain), generator=rng)[: n - len(drawn)]]
    both = torch.cat([plain, talk[drawn]])
    order = torch.randperm(len(both), generator=rng)
    return both[order], order >= len(plain)


def train(source: str, work: str) -> None:
    models, folder = (kit.load_model(dtype="float32"), organisms.load(ORGANISM)), Path(work)
    stream = PairedSource(
        models, rows_of(models[0], source, False)[0], SITE, batch=BATCH, rows=ROWS, cache=folder / "cache"
    )
    for chunk in track(range(stream.chunks), "chunks of activations"):
        stream.harvest(chunk)
    # a crosscoder's width counts both models' coordinates
    run = CrosscoderTraining(
        stream,
        widths=(LATENTS / (2 * models[0].cfg.d_model),),
        k=K,
        steps=STEPS,
        lr=LR,
        dedicated=DEDICATED,
        dedicated_k=OWN_K,
        difference=DIFFERENCE,
    )
    if (folder / "training.json").is_file():
        run.restore(folder)
    run.run(folder=folder)
    if run.step < STEPS:
        raise SystemExit(f"stopped at step {run.step}: the same command goes on from there")
    print(run.crosscoder(f"{ORGANISM} 14 x4").save(FILE, torch.bfloat16))


def figures(source: str) -> None:
    models = kit.load_model(dtype="float32"), organisms.load(ORGANISM)
    found, (rows, talk) = Crosscoder.load(FILE, models), rows_of(models[0], source, True)
    table = summary(found, latent_scaling(found, models, rows))
    told = {
        "quality": asdict(evaluate(found, models, rows)),
        "text": asdict(evaluate(found, models, rows[~talk])),
        "chats": asdict(evaluate(found, models, rows[talk])),
        "where": {
            name: {
                key: None if value != value else round(value, 4)  # NaN where there are none
                for key, value in row.items()
            }
            for name, row in table.to_dict("index").items()
        },
    }
    (HERE / "figures.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(told["quality"]), table.round(3), sep="\n")


if __name__ == "__main__":
    given = sys.argv[2:]
    if sys.argv[1:2] == ["train"] and len(given) == 2:
        train(*given)
    elif sys.argv[1:2] == ["figures"] and len(given) == 1:
        figures(*given)
    else:
        raise SystemExit(__doc__)
