"""``python -m tests.faults [--rounds N] [--only PART ...] [--seed N]``: the counts of the threats.

Exit status 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
runpy.run_path(str(Path(__file__).parents[1] / "offline" / "sitecustomize.py"))

import torch

import kit
from tests.faults import Row, table


def markup(folder: Path, rounds: int, seed: int) -> list[Row]:
    """Hostile text in everything that becomes HTML."""
    from tests.faults import markup as hostile
    from tests.faults.subjects import make

    return hostile.run(make(folder / "models"))


def read(folder: Path, rounds: int, seed: int) -> list[Row]:
    """Malicious files, and names that become paths."""
    from tests.faults import files
    from tests.faults.subjects import make

    return files.run(make(folder / "models"), folder / "files", rounds, seed)


def network(folder: Path, rounds: int, seed: int) -> list[Row]:
    """Dead proxies and captive portals."""
    from tests.faults import network as dead

    return dead.run(folder)


def app(folder: Path, rounds: int, seed: int) -> list[Row]:
    """A visitor of the Voila app who wants more than the app."""
    from tests.faults import app as visited

    return [visited.run(folder)]


def kills(folder: Path, rounds: int, seed: int) -> list[Row]:
    """Jobs that are killed, and fits that are stopped."""
    from kit import sae as saes
    from kit.sae.crosscoders.model import Crosscoder
    from tests.faults import kills as killing
    from tests.faults.jobs import jobs, notebook_job
    from tests.faults.subjects import make, trained

    subjects = make(folder / "models")

    def build() -> None:  # in a child: it computes gradients
        found, _, crosscoder = trained(subjects)
        found.save(folder / "sae")
        crosscoder.save(folder / "cc.safetensors")

    if status := killing.child(build):
        raise RuntimeError(f"the subjects could not be made: {status}")
    parts = saes.load(folder / "sae"), Crosscoder.load(folder / "cc.safetensors")
    for model in subjects.pair:
        kit.residual_scale(model, 1)
    rows = killing.run(jobs(subjects, *parts), folder / "jobs", 8 * rounds or 4, seed)
    rows += killing.run([notebook_job()], folder / "jobs", 4 * rounds or 2, seed)
    model, tokens = subjects.model, torch.tensor([[0, 9, 8, 7, 30, 31, 40, 50]])
    fits: dict[str, Any] = {
        "MELBO": lambda: kit.melbo.fit(model, tokens, 0, 2, 3, radius=4.0, steps=60),
        "DCT": lambda: kit.dct.fit(model, tokens, 0, 2, n_features=4, iterations=12, radius=4.0),
        "CPE": lambda: kit.cpe.fit(model, tokens, (1, 2), 3, n_factors=4, iterations=12),
    }
    before = kit.generate(model, tokens, max_new_tokens=4).rows[0].tokens

    def sound(found: Any) -> str:
        if left := kit.hooks_left(model):
            return f"hooks left: {left}"
        if kit.generate(model, tokens, max_new_tokens=4).rows[0].tokens != before:
            return "the model says something else"
        if found is None:
            return ""
        rows = next(getattr(found, n) for n in ("thetas", "V", "phi") if hasattr(found, n))
        return "" if bool(torch.as_tensor(rows).isfinite().all()) else "a vector is not finite"

    return [*rows, killing.interrupted(fits, sound, 4 * rounds or 2, seed)]


PARTS = {"markup": markup, "files": read, "app": app, "network": network, "kills": kills}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="0 is what the tests run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", nargs="+", default=list(PARTS), choices=PARTS, metavar="PART", help=f"some of {', '.join(PARTS)}"
    )
    parser.add_argument("--json", action="store_true", help="for the tests")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for part in args.only:
        with tempfile.TemporaryDirectory() as scratch:
            rows += PARTS[part](Path(scratch), args.rounds, args.seed)
    sys.stdout.write(json.dumps([asdict(r) for r in rows]) if args.json else table(rows) + "\n")
    return 1 if any(row.losses for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
