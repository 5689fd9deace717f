"""Maps: layers by coefficients, and the cosines of a set of directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kit.plots.style import DPI, array, host, panel, themed

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIGNED = ("effect",)
_LABELS = {
    "effect": "effect (nats)",
    "kl": "cost: KL (nats a token)",
    "perplexity": "perplexity, unsteered model",
    "distinct_2": "distinct token pairs",
}


@themed
def heat_map(
    table: pd.DataFrame | Mapping[str, pd.DataFrame], values: Sequence[str] = ("effect", "kl"), *, title: str = ""
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
            raise ValueError(f"table {name!r} has {len(one)} rows and lacks {lacking}: give what kit.sweep returned")
    size = (3.3 * len(values), 0.8 + 1.7 * len(tables))
    figure, axes = plt.subplots(len(tables), len(values), figsize=size, dpi=DPI, squeeze=False, layout="constrained")
    for column, value in enumerate(values):
        means = {
            name: one.pivot_table(index="layer", columns="coefficient", values=value, aggfunc="mean").sort_index(
                ascending=False
            )
            for name, one in tables.items()
        }
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
        _write(axis, image, row, column, f"{grid[row, column]:.{decimals}f}", 8)
    axis.set_xticks(range(len(mean.columns)), [f"{c:+g}" for c in mean.columns])
    axis.set_yticks(range(len(mean.index)), [str(layer) for layer in mean.index])


def _write(axis: Axes, image: Any, row: int, column: int, text: str, size: int) -> None:
    """A number in a cell of a map, in the ink that its colour lets one read."""
    red, green, blue, _ = image.cmap(image.norm(image.get_array()[row, column]))
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
    axis.text(column, row, text, ha="center", va="center", fontsize=size, color="white" if dark else "black")


@themed
def cosines(V: Any, labels: Sequence[str] | None = None, *, signed: bool = False, title: str = "") -> Figure:
    """Cosines between directions: what is alike, beside what random directions would show.

    Args:
        V: rows ``[m, d]`` (any length but zero), or steering vectors.
        labels: a name for each; default their numbers.
        signed: the cosine itself rather than its size.

    The line below gives the mean and the largest |cosine| off the diagonal and the mean that
    random directions of this width have, ``sqrt(2 / (pi d))``. Up to 12 directions each cell holds
    its number; beyond, a dot marks |cosine| from 0.5 on.

    Raises:
        ValueError: fewer than two directions, one of zero length, or not a label for each.
    """
    import numpy as np

    V = [getattr(v, "direction", v) for v in V] if isinstance(V, list | tuple) else V
    rows = array([host(v) for v in V] if isinstance(V, list) else V, "V", 2)
    m, d = rows.shape
    if labels is not None and len(labels) != m:
        raise ValueError(f"{len(labels)} labels for {m} directions: give one for each")
    size = np.linalg.norm(rows, axis=1, keepdims=True)
    if m < 2 or not size.all():
        raise ValueError(
            f"V holds {m} directions, {int((size == 0).sum())} of them zero: give at least two, none of them zero"
        )
    full = (rows / size) @ (rows / size).T
    grid = full if signed else abs(full)
    off = np.triu(abs(full), 1)
    i, j = np.unravel_index(off.argmax(), off.shape)
    names = [str(n) for n in labels] if labels is not None else [str(n) for n in range(m)]
    side = min(6.4, 2.6 + 0.28 * m)
    figure, axis = panel(side + 0.9, side)
    image = axis.imshow(grid, vmin=-1 if signed else 0, vmax=1, cmap="RdBu_r" if signed else "viridis")
    figure.colorbar(image, ax=axis, label="cosine" if signed else "|cosine|", shrink=0.8)
    if m <= 12:
        for row, column in np.ndindex(m, m):
            _write(axis, image, row, column, f"{round(grid[row, column], 2) + 0.0:.2f}", 7)
    else:
        y, x = np.nonzero((abs(full) >= 0.5) & ~np.eye(m, dtype=bool))
        axis.plot(x, y, "o", color="white", markeredgecolor="black", markersize=3, linestyle="")
    shown = range(0, m, 1 if m <= 32 and labels is not None or m <= 16 else max(1, m // 8))
    axis.set_xticks(shown, [names[n] for n in shown], rotation=90 if labels is not None else 0, fontsize=8)
    axis.set_yticks(shown, [names[n] for n in shown], fontsize=8)
    axis.set_xlabel(
        f"mean |cosine| {off.sum() * 2 / (m * (m - 1)):.3f} (random directions "
        f"{np.sqrt(2 / (np.pi * d)):.3f}),\nlargest {off[i, j]:.2f}: {names[i]} and "
        f"{names[j]}",
        fontsize=9,
    )
    axis.set_title(title, fontsize=10)
    return figure
