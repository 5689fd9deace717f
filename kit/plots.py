"""The course's few figures: layer x coefficient maps, curves with control bands, dots by group.

Each function returns a closed matplotlib figure, which Jupyter shows once, as the value of a cell.
Colours are told apart by colour-blind readers (Okabe-Ito lines, viridis, blue-red for signs), and
every figure says the same without colour: numbers in cells, markers on lines, names on axes.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = "os^Dv*"
_SHADES = ("#BBBBBB", "#E6C98C")  # of the bands
_SIGNED = ("effect",)
_LABELS = {
    "effect": "effect (nats)",
    "kl": "cost: KL (nats a token)",
    "perplexity": "perplexity, unsteered model",
    "distinct_2": "distinct token pairs",
}
_DPI = 90


def heat_map(
    table: pd.DataFrame | Mapping[str, pd.DataFrame],
    values: Sequence[str] = ("effect", "kl"),
    *,
    title: str = "",
) -> Figure:
    """Layer x coefficient maps of a :func:`kit.sweep` table, the mean over its prompts.

    Args:
        table: one table, or several by name (a vector and its control): a row of panels for each,
            with the colours of a column shared, so that rows can be compared by eye.
        values: columns of the table, a panel each. ``"effect"`` has a sign: its colours are
            symmetric about zero.
        title: of the whole figure; say the finding.

    Raises:
        ValueError: no table, an empty one, or one that lacks a column.
    """
    import matplotlib.pyplot as plt

    tables = dict(table) if isinstance(table, Mapping) else {"": table}
    if not tables or isinstance(values, str) or not values:
        raise ValueError(f"tables {list(tables)}, values={values!r}: give at least one of each")
    for name, one in tables.items():
        lacking = [c for c in ("layer", "coefficient", *values) if c not in one.columns]
        if lacking or not len(one):
            raise ValueError(f"table {name!r} has {len(one)} rows and lacks {lacking}: give what "
                             "kit.sweep returned")  # fmt: skip
    size = (3.3 * len(values), 0.8 + 1.7 * len(tables))
    figure, axes = plt.subplots(len(tables), len(values), figsize=size, dpi=_DPI, squeeze=False,
                                layout="constrained")  # fmt: skip
    for column, value in enumerate(values):
        means = {
            name: one.pivot_table(index="layer", columns="coefficient", values=value,
                                  aggfunc="mean").sort_index(ascending=False)
            for name, one in tables.items()
        }  # fmt: skip
        low = min(float(m.min().min()) for m in means.values())
        high = max(float(m.max().max()) for m in means.values())
        if value in _SIGNED:
            high = max(abs(low), abs(high)) or 1.0
            low = -high
        for row, (name, mean) in enumerate(means.items()):
            axis = axes[row, column]
            _cells(axis, mean, value, low, high)
            axis.set_title(" · ".join(filter(None, (name, _LABELS.get(value, value)))), fontsize=9)
            axis.set_ylabel("layer" if column == 0 else "")
            axis.tick_params(labelleft=column == 0)  # the rows of a table are the same
            axis.set_xlabel("coefficient (residual scales)" if row == len(tables) - 1 else "")
    figure.suptitle(title, fontsize=10)
    plt.close(figure)
    return figure


def _cells(axis: Axes, mean: pd.DataFrame, value: str, low: float, high: float) -> None:
    grid = mean.to_numpy()
    colours = "RdBu_r" if value in _SIGNED else "viridis"
    image = axis.imshow(grid, cmap=colours, vmin=low, vmax=high, aspect="auto")
    decimals = 1 if value in _SIGNED else 2
    for row, column in zip(*(~mean.isna().to_numpy()).nonzero(), strict=True):
        red, green, blue, _ = image.cmap(image.norm(grid[row, column]))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        axis.text(column, row, f"{grid[row, column]:.{decimals}f}", ha="center", va="center",
                  fontsize=8, color="white" if dark else "black")  # fmt: skip
    axis.set_xticks(range(len(mean.columns)), [f"{c:+g}" for c in mean.columns])
    axis.set_yticks(range(len(mean.index)), [str(layer) for layer in mean.index])


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
    import matplotlib.pyplot as plt
    import numpy as np

    x = list(x)
    figure, axis = plt.subplots(figsize=(7, 3.5), dpi=_DPI, layout="constrained")
    plt.close(figure)
    for i, (name, runs) in enumerate((bands or {}).items()):
        grid = np.array(runs, dtype=float)
        if grid.ndim != 2 or grid.shape[1] != len(x):
            raise ValueError(f"band {name!r} has shape {list(grid.shape)}: give [runs, {len(x)}]")
        axis.fill_between(x, grid.min(0), grid.max(0), color=_SHADES[i % len(_SHADES)], alpha=0.6,
                          label=name, linewidth=0)  # fmt: skip
    if chance is not None:
        axis.axhline(chance, color="black", linestyle="--", linewidth=1)
    for i, (name, y) in enumerate(lines.items()):
        if len(y) != len(x):
            raise ValueError(f"line {name!r} has {len(y)} values for {len(x)} of x")
        axis.plot(x, list(y), color=_COLOURS[i % len(_COLOURS)], marker=_MARKERS[i % len(_MARKERS)],
                  markersize=4, linewidth=1.5, label=name)  # fmt: skip
    axis.set_ylim(ylim)
    if lines or bands:
        axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    _finish(axis, xlabel, ylabel, title)
    return figure


def spread(
    groups: Mapping[str, Sequence[float]], *, xlabel: str = "", title: str = "", zero: float = 0.0
) -> Figure:
    """One dot a value, a row for each group, and a bar at the group's mean.

    For effects on single probes, or for controls, where a mean alone would hide the scatter.

    Args:
        groups: values by name, in the order to show from the top.
        zero: where the vertical line stands.

    Raises:
        ValueError: no group, or an empty one.
    """
    import matplotlib.pyplot as plt
    import numpy as np

    found: dict[str, Any] = {name: np.array(y, dtype=float) for name, y in groups.items()}
    if not found or not all(y.size for y in found.values()):
        raise ValueError(f"groups={list(groups)}: give at least one value in each of them")
    height = 1.0 + 0.27 * len(found)
    figure, axis = plt.subplots(figsize=(7, height), dpi=_DPI, layout="constrained")
    plt.close(figure)
    rng = np.random.default_rng(0)  # dots step aside, always in the same way
    axis.axvline(zero, color="black", linestyle="--", linewidth=1)
    for row, y in enumerate(found.values()):
        aside = rng.uniform(-0.22, 0.22, y.size)
        axis.plot(y, row + aside, ".", color=_COLOURS[0], alpha=0.5, markersize=5, zorder=2)
        axis.plot([y.mean()] * 2, [row - 0.36, row + 0.36], color=_COLOURS[1], linewidth=3)
    axis.set_yticks(range(len(found)), list(found))
    axis.set_ylim(len(found) - 0.4, -0.6)
    _finish(axis, xlabel, "", title)
    return figure


def _finish(axis: Axes, xlabel: str, ylabel: str, title: str) -> None:
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    axis.set_title(title, fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
