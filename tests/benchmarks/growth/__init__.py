"""``python -m tests.benchmarks.growth [NAME...] [--quick]``: cost against what grows.

For each name a table ``results/NAME.csv``, a picture ``results/NAME.png`` and, for each line in it,
its slope in words: the exponent of a power of n fitted to the upper half of the sizes, beside the
exponent that the arithmetic has. Exit status 1 if a line is steeper than that by more than 0.25.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.growth import corpora, searches, steering
from tests.benchmarks.growth.curves import Curve, draw, write

CURVES = {**steering.CURVES, **searches.CURVES, **corpora.CURVES}
OUT = Path(__file__).parents[1] / "results"


def told(model: Any, names: Sequence[str], quick: bool) -> list[tuple[bool, str]]:
    """Whether each curve is as flat as it should be, and its slope in words."""
    OUT.mkdir(exist_ok=True)
    found = []
    for name in names:
        start = time.perf_counter()
        curves: list[Curve] = CURVES[name](model, quick)
        write(OUT / f"{name}.csv", curves)
        draw(OUT / f"{name}.png", curves)
        for curve in curves:
            found.append((curve.held, f"{name + ':':<14}{curve}"))
            print(found[-1][1], flush=True)
        print(f"{'':<14}({time.perf_counter() - start:.0f} s)", flush=True)
    return found


def main() -> int:
    import kit

    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.growth", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CURVES)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="without the largest sizes")
    args = parser.parse_args()
    for name in args.names:
        if name not in CURVES:
            parser.error(f"NAME={name}: use {', '.join(CURVES)}")
    found = told(kit.load_model(), args.names or tuple(CURVES), args.quick)
    print(f"pictures and tables in {OUT}")
    return 0 if all(held for held, _ in found) else 1
