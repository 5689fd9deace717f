"""Figures of any numbers: lines beside what controls reach, dots by group, shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kit.plots.style import BAND, COLOURS, INK, SHADES, draw, finish, panel, themed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@themed
def curves(
    x: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    *,
    bands: Mapping[str, Sequence[Sequence[float]]] | None = None,
    chance: float | None = None,
    ylim: tuple[float, float] | None = None,
    xlabel: str = "",
    ylabel: str = "",
    title: str = "",
) -> Figure:
    """Lines over a shared x, beside the range that controls reach.

    Args:
        lines: y values ``[x]`` by name.
        bands: control runs ``[runs, x]`` by name; the shade reaches from the smallest to the
            largest run at each x.
        chance: a dashed horizontal line.
        ylim: the range of y; give it where a small difference should look small.

    Raises:
        ValueError: a line or run that is not as long as x.
    """
    import numpy as np

    x = list(x)
    figure, axis = panel()
    for i, (name, runs) in enumerate((bands or {}).items()):
        grid = np.array(runs, dtype=float)
        if grid.ndim != 2 or grid.shape[1] != len(x):
            raise ValueError(f"band {name!r} has shape {list(grid.shape)}: give [runs, {len(x)}]")
        look = BAND | {"color": SHADES[i % len(SHADES)]}
        axis.fill_between(x, grid.min(0), grid.max(0), label=name, **look)
    if chance is not None:
        axis.axhline(chance, color=INK, linestyle="--", linewidth=1)
    for name, y in lines.items():
        if len(y) != len(x):
            raise ValueError(f"line {name!r} has {len(y)} values for {len(x)} of x")
    draw(axis, {name: (x, list(y)) for name, y in lines.items()})
    axis.set_ylim(ylim)
    finish(axis, xlabel, ylabel, title)
    return figure


@themed
def spread(groups: Mapping[str, Sequence[float]], *, xlabel: str = "", title: str = "", zero: float = 0.0) -> Figure:
    """One dot a value, a row for each group, and a bar at the group's mean.

    For effects on single probes, or for controls, where a mean alone would hide the scatter.

    Args:
        groups: values by name, in the order to show from the top.
        zero: where the vertical line stands.

    Raises:
        ValueError: no group, or an empty one.
    """
    import numpy as np

    found: dict[str, Any] = {name: np.array(y, dtype=float) for name, y in groups.items()}
    if not found or not all(y.size for y in found.values()):
        raise ValueError(f"groups={list(groups)}: give at least one value in each of them")
    figure, axis = _rows_of(list(found), zero)
    rng = np.random.default_rng(0)  # dots step aside, always in the same way
    for row, y in enumerate(found.values()):
        aside = rng.uniform(-0.22, 0.22, y.size)
        axis.plot(y, row + aside, ".", color=COLOURS[0], alpha=0.7, markersize=5, zorder=2)
        axis.plot([y.mean()] * 2, [row - 0.36, row + 0.36], color=COLOURS[1], linewidth=3)
    finish(axis, xlabel, "", title)
    return figure


@themed
def intervals(rows: Mapping[str, Sequence[float]], *, xlabel: str = "", title: str = "", zero: float = 0.0) -> Figure:
    """A dot and its interval, a row each.

    Args:
        rows: ``(value, low, high)`` by name, in the order to show from the top.
        zero: where the vertical line stands.

    Raises:
        ValueError: no row, or one that is not a value between its bounds.
    """
    if not rows:
        raise ValueError("rows is empty: give at least one name with (value, low, high)")
    for name, row in rows.items():
        if len(row) != 3 or not row[1] <= row[0] <= row[2]:
            raise ValueError(f"row {name!r} is {list(row)}: give (value, low, high), in order")
    figure, axis = _rows_of(list(rows), zero)
    for y, (value, low, high) in enumerate(rows.values()):
        axis.plot([low, high], [y, y], color=COLOURS[0], linewidth=2, alpha=0.6, zorder=2)
        axis.plot([value], [y], "o", color=COLOURS[1], markersize=6, zorder=3)
    finish(axis, xlabel, "", title)
    return figure


def _rows_of(names: list[str], zero: float) -> tuple[Figure, Axes]:
    """A panel with a row for each name, from the top, and a vertical line."""
    figure, axis = panel(7, 1.0 + 0.27 * len(names))
    axis.axvline(zero, color=INK, linestyle="--", linewidth=1)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    return figure, axis
