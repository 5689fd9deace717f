"""A curve: what a job costs at several sizes, and how steep that is."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.ratios import seconds

STEEPER = 0.25  # than the arithmetic: more than noise and caches make


@dataclass(frozen=True)
class Curve:
    """Costs against sizes.

    Attributes:
        what: the quantity, in words; grows: what n counts.
        arithmetic: the exponent that the work has by counting: 0 flat, 1 in proportion.
        costs: of each size n, in ``unit`` (seconds or bytes).
    """

    what: str
    grows: str
    arithmetic: float
    costs: dict[int, float]
    unit: str = "s"

    @property
    def slope(self) -> float:
        """Exponent of a power of n that fits the upper half of the sizes: small ones are all
        overhead."""
        upper = sorted(self.costs)[(len(self.costs) - 1) // 2 :]
        x, y = np.log(upper), np.log([max(self.costs[n], 1e-9) for n in upper])
        return float(np.polyfit(x, y, 1)[0])

    @property
    def held(self) -> bool:
        return self.slope <= self.arithmetic + STEEPER

    def __str__(self) -> str:
        low, high = min(self.costs), max(self.costs)
        ends = f"{_shown(self.costs[low], self.unit)} at {low:,}, {_shown(self.costs[high], self.unit)} at {high:,}"
        said = f"{self.what} ~ n^{self.slope:.2f} in {self.grows}, arithmetic says {self.arithmetic:g} ({ends})"
        return said + ("" if self.held else "  STEEPER")


def _shown(cost: float, unit: str) -> str:
    if unit == "bytes":
        return f"{cost / 1e6:,.0f} MB"
    return f"{1000 * cost:.3g} ms" if cost < 1 else f"{cost:.3g} s"


def best(job: Callable[[int], Any], sizes: Sequence[int], times: int = 3) -> dict[int, float]:
    """The least seconds of ``job(n)`` at each size, all sizes in turn: of a busy machine the quiet
    moments."""
    found = dict.fromkeys(sizes, math.inf)
    for _ in range(times):
        for n in sizes:
            found[n] = min(found[n], seconds(lambda n=n: job(n)))
    return found


def write(file: Path, curves: Sequence[Curve]) -> None:
    with file.open("w", newline="") as out:
        rows = [(c.what, c.grows, n, cost, c.unit) for c in curves for n, cost in c.costs.items()]
        csv.writer(out).writerows([("what", "grows", "n", "cost", "unit"), *rows])


def draw(file: Path, curves: Sequence[Curve]) -> None:
    """Each unit its own panel, both axes logarithmic; dashed, what the arithmetic would make of the
    middle size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    units = list(dict.fromkeys(c.unit for c in curves))
    figure, axes = plt.subplots(1, len(units), figsize=(5.6 * len(units), 4.2), dpi=110, squeeze=False)
    for axis, unit in zip(axes[0], units, strict=True):
        for i, curve in enumerate(c for c in curves if c.unit == unit):
            n, y = zip(*sorted(curve.costs.items()), strict=True)
            y = [cost / 1e6 for cost in y] if unit == "bytes" else y
            axis.plot(n, y, marker="o", color=f"C{i}", label=f"{curve.what}: n^{curve.slope:.2f}")
            middle = (len(n) - 1) // 2
            straight = [y[middle] * (m / n[middle]) ** curve.arithmetic for m in n[middle:]]
            axis.plot(n[middle:], straight, "--", color=f"C{i}", alpha=0.6, label=f"arithmetic: n^{curve.arithmetic:g}")
        axis.set(xscale="log", yscale="log", xlabel=curves[0].grows, ylabel="MB" if unit == "bytes" else "seconds")
        low, high = axis.get_ylim()
        if high < 10 * low:  # a flat line should look flat
            axis.set_ylim(low / 3, high * 3)
        axis.set_xticks(n, [f"{m:,}" for m in n], rotation=45)
        axis.minorticks_off()
        axis.grid(alpha=0.2)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file)
    plt.close(figure)
