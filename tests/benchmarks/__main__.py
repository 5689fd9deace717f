"""``python -m tests.benchmarks [--quick] [--reference PATH]``: the table of ratios, then how cost grows.

Machines are shared and noisy, so each figure is a ratio of two things run in turn, pair by pair,
and the median of the pairs is printed with its spread. Exit status 1 if a "must" is missed.
"""
from __future__ import annotations

import argparse
import sys

import torch

import kit
from tests.benchmarks import growth, ratios, unlabelled


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer pairs, no growth curves")
    parser.add_argument("--reference", help="a checkout of melbo-dct-post, to compare with")
    args = parser.parse_args()
    model = kit.load_model()
    dtype = next(model.parameters()).dtype
    print(f"{torch.get_num_threads()} threads, {dtype}, torch {torch.__version__}\n")
    rows = ratios.table(model, pairs=3 if args.quick else 7)
    rows += unlabelled.table(model, seeds=1 if args.quick else 3, reference=args.reference)
    print(f"{'what':<62}{'must':>10}{'aim':>10}{'median':>10}   spread")
    for row in rows:
        word = "ok" if row.held else "MISSED"
        print(f"{row.what:<62}{row.must:>10}{row.aim:>10}{row.shown:>10}   {row.spread}  {word}")
    print("\n" + ratios.physical_limit(model))
    if not args.quick:
        print("\nhow cost grows: " + growth.run(model))
    return 0 if all(row.held for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
