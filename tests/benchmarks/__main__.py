"""``python -m tests.benchmarks [--quick] [--reference PATH]``: the table of ratios, and growth.

Machines are shared and noisy, so each figure is a ratio of two things run in turn, pair by pair,
and the median of the pairs is printed with its spread. Exit status 1 if a "must" is missed.
"""

from __future__ import annotations

import argparse
import sys

import torch

import kit
from kit.base import threads
from tests.benchmarks import between, busy, dictionaries, growth, lens, ratios, reruns, start, token, unlabelled


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer pairs, no growth curves")
    parser.add_argument("--reference", help="a checkout of melbo-dct-post, to compare with")
    parser.add_argument(
        "--reference-python",
        metavar="PYTHON",
        help="the interpreter that runs it, best one with transformers 4.46.3 (default: this one)",
    )
    args = parser.parse_args()
    if args.reference_python and not args.reference:
        parser.error(
            f"--reference-python {args.reference_python} without --reference: add "
            "--reference PATH, a checkout of melbo-dct-post"
        )
    model = kit.load_model(dtype="float32")
    found = {name: threads.kept().get(name, "not measured: run `kit fetch`") for name in ("products", "waiting")}
    print(f"{threads.cores()} cores, torch {torch.__version__}, {found}\n")
    one = token.measure(model)
    rows = [start.figure(pairs=3 if args.quick else 7), token.figure(one)]
    rows += ratios.table(model, pairs=3 if args.quick else 7)
    rows.append(ratios.halves(model, pairs=3 if args.quick else 7))
    rows += ratios.libraries(model, busy.iteration(model), pairs=3 if args.quick else 7)
    rows += unlabelled.table(
        model, seeds=1 if args.quick else 3, reference=args.reference, python=args.reference_python or sys.executable
    )
    rows += dictionaries.table(model, pairs=3 if args.quick else 7)
    rows += between.table(model, pairs=3 if args.quick else 7)
    rows += lens.table(model, pairs=3 if args.quick else 7)
    rows += busy.table(model, pairs=3 if args.quick else 7)
    rows += reruns.table()
    wide = max(len(row.what) for row in rows) + 2
    print(f"{'what':<{wide}}{'must':>10}{'aim':>10}{'median':>10}{'quiet':>10}{'busy':>10}   spread")
    for row in rows:
        word = "ok" if row.held else "MISSED"
        numbers = f"{row.must:>10}{row.aim:>10}{row.shown:>10}{row.quiet:>10}{row.busy:>10}   {row.spread}"
        print(f"{row.what:<{wide}}{numbers}  {word}")
    print("\nwhere the time of a token goes, one row on one thread\n\n" + token.table(one))
    print("\nof a ladder of nine\n\n" + token.table(token.measure(model, rows=9)))
    held = [row.held for row in rows]
    if not args.quick:
        print("\nhow cost grows")
        held += [flat for flat, _ in growth.told(model, tuple(growth.CURVES), quick=False)]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
