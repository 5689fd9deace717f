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
        arithmetic: the exponent that the work has by counting: 0 flat, 1 in proportion, or the
            :func:`exponent` of counted operations.
        costs: of each size n, in ``unit`` (seconds or bytes).
    """

    what: str
    grows: str
    arithmetic: float
    costs: dict[int, float]
    unit: str = "s"

    @property
    def slope(self) -> float:
        return exponent(self.costs)

    @property
    def held(self) -> bool:
        return self.slope <= self.arithmetic + STEEPER

    def __str__(self) -> str:
        low, high = min(self.costs), max(self.costs)
        ends = f"{_shown(self.costs[low], self.unit)} at {low:,}, {_shown(self.costs[high], self.unit)} at {high:,}"
        said = f"{self.what} ~ n^{self.slope:.2f} in {self.grows}, arithmetic says {self.arithmetic:.3g} ({ends})"
        return said + ("" if self.held else "  STEEPER")


def exponent(costs: dict[int, float]) -> float:
    """Of the power of n that fits the upper half of the sizes: small ones are all overhead."""
    upper = sorted(costs)[(len(costs) - 1) // 2 :]
    return float(np.polyfit(np.log(upper), np.log([max(costs[n], 1e-9) for n in upper]), 1)[0])


def _shown(cost: float, unit: str) -> str:
    if unit == "bytes":
        return f"{cost / 1e6:,.0f} MB"
    return f"{1000 * cost:.3g} ms" if cost < 1 else f"{cost:.3g} s"


def best(job: Callable[[int], Any], sizes: Sequence[int], times: int = 2) -> dict[int, float]:
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
    from matplotlib.ticker import LogLocator

    units = list(dict.fromkeys(c.unit for c in curves))
    figure, axes = plt.subplots(1, len(units), figsize=(5.6 * len(units), 4.8), dpi=110, squeeze=False)
    for axis, unit in zip(axes[0], units, strict=True):
        for i, curve in enumerate(c for c in curves if c.unit == unit):
            n, y = zip(*sorted(curve.costs.items()), strict=True)
            y = [cost / 1e6 for cost in y] if unit == "bytes" else y
            said = f"{curve.what}: n^{curve.slope:.2f} (arithmetic n^{curve.arithmetic:.3g})"
            axis.plot(n, y, marker="o", color=f"C{i}", label=said)
            middle = (len(n) - 1) // 2
            straight = [y[middle] * (m / n[middle]) ** curve.arithmetic for m in n[middle:]]
            axis.plot(n[middle:], straight, "--", color=f"C{i}", alpha=0.6)
        axis.set(xscale="log", yscale="log", xlabel=curves[0].grows, ylabel="MB" if unit == "bytes" else "seconds")
        low, high = axis.get_ylim()
        axis.set_ylim(min(low, high / 30), high)  # a flat line should look flat
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set_xticks(n, [f"{m:,}" for m in n], rotation=45)
        axis.minorticks_off()
        axis.grid(alpha=0.2)
        axis.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    figure.tight_layout()
    figure.savefig(file)
    plt.close(figure)
