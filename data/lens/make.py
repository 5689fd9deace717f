"""Fit the shipped Jacobian lens again.

    python data/lens/make.py TEXTS WORK

TEXTS as for data/saes/make.py; of 41 texts the last is held out, which the lens's figures are of.
WORK is a folder where what is done is kept: a run that was stopped goes on from there. A text takes
the time of 576 backward passes over its 128 tokens, more than a minute on two cores.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import kit
from kit.models.tokens import pack

HERE = Path(__file__).parent
FILE = HERE / "smollm2-135m-instruct.safetensors"
TEXTS, CONTEXT, BATCH = 64, 128, 16


def main(source: str, work: str) -> None:
    """Fit on rows of text that were drawn at random, and write the file."""
    model = kit.load_model(dtype="bfloat16")
    rows = pack(model, kit.data.split(kit.data.corpus(source))[0], CONTEXT)
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:TEXTS]
    lens = kit.lens.fit(model, list(rows[drawn]), tokens=CONTEXT, batch=BATCH, folder=work, name=Path(source).name)
    if lens.metadata["texts"] < TEXTS:
        raise SystemExit(f"stopped after {lens.metadata['texts']} texts: the same command goes on from there")
    print(f"{lens.save(FILE)}: halves agree to {min(lens.agreement.values()):.3f} or better")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
