"""The course's few figures: maps, curves with control bands, dots by group, sets of directions.

Each function returns a closed matplotlib figure, which Jupyter shows once, as the value of a cell.
Colours are told apart by colour-blind readers (Okabe-Ito lines, viridis, blue-red for signs), and
every figure says the same without colour: numbers in cells, markers on lines, names on axes.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from kit.calibration import Radius

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
        _write(axis, image, row, column, f"{grid[row, column]:.{decimals}f}", 8)
    axis.set_xticks(range(len(mean.columns)), [f"{c:+g}" for c in mean.columns])
    axis.set_yticks(range(len(mean.index)), [str(layer) for layer in mean.index])


def _write(axis: Axes, image: Any, row: int, column: int, text: str, size: int) -> None:
    """A number in a cell of a map, in the ink that its colour lets one read."""
    red, green, blue, _ = image.cmap(image.norm(image.get_array()[row, column]))
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
    axis.text(column, row, text, ha="center", va="center", fontsize=size,
              color="white" if dark else "black")  # fmt: skip


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


def calibration(radius: Radius) -> Figure:
    """Non-linear over linear part of the change against the radius, and the radius chosen.

    Args:
        radius: what :func:`kit.calibration.radius` returned. The line is the root mean square over
            its random directions, the shade reaches from the smallest to the largest of them, and
            the axis on top shows the radius as a coefficient (residual scales).

    Raises:
        ValueError: a radius that was given rather than calibrated, which has no curve.
    """
    import matplotlib.pyplot as plt
    import numpy as np

    if not radius.curve:
        raise ValueError(f"radius={radius.value:g} was not calibrated, so it has no curve: "
                         "give what kit.dct.calibrate returned")  # fmt: skip
    at = np.array([r for r, _, _ in radius.curve])
    mean = np.array([ratio for _, ratio, _ in radius.curve])
    each = np.array([directions for _, _, directions in radius.curve])
    figure, axis = plt.subplots(figsize=(7, 3.8), dpi=_DPI, layout="constrained")
    plt.close(figure)
    axis.fill_between(at, each.min(1), each.max(1), color=_SHADES[0], alpha=0.6, linewidth=0,
                      label=f"range of {each.shape[1]} random directions")  # fmt: skip
    axis.plot(at, mean, color=_COLOURS[0], marker="o", markersize=4, label="their root mean square")
    axis.axvline(radius.value, color="black", linestyle="--", linewidth=1)
    axis.axhline(radius.ratio, color="black", linestyle=":", linewidth=1)
    axis.plot([radius.value], [radius.ratio], "*", color=_COLOURS[1], markersize=13, zorder=5,
              label=f"chosen: R = {radius.value:.3g}, coefficient {radius.coefficient:.2g}, "
                    f"ratio {radius.ratio:.2g}")  # fmt: skip
    axis.set_xscale("log")
    axis.set_yscale("log")
    per_unit = radius.coefficient / radius.value
    top = axis.secondary_xaxis("top", functions=(lambda r: r * per_unit, lambda c: c / per_unit))
    top.set_xlabel("coefficient (residual scales)")
    for one, values in ((axis.xaxis, at), (top.xaxis, at), (axis.yaxis, each)):
        _plain_ticks(one, values.max() / values.min())
    axis.legend(fontsize=8, frameon=False, loc="upper left")
    _finish(axis, "radius (activation units)", "non-linear / linear part", "")
    return figure


def _plain_ticks(axis: Any, times: float) -> None:
    """Ticks of a logarithmic axis as people say them; ``times`` is its end over its start."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)) if times > 10 else MaxNLocator(6))
    axis.set_major_formatter(FuncFormatter(lambda x, _pos: f"{x:g}"))
    axis.set_minor_locator(NullLocator())


def history(
    histories: Mapping[str, Any] | Sequence[float] | Any,
    *,
    ylabel: str = "objective",
    title: str = "",
) -> Figure:
    """The objective after each iteration, a line for each run.

    Args:
        histories: objectives by name of the run, or one run's. A run is a sequence of numbers, or
            a fit with a ``history`` (:class:`kit.factors.DCT`, say); runs may differ in length.

    Raises:
        ValueError: no run, or one without an iteration.
    """
    import matplotlib.pyplot as plt

    runs = dict(histories) if isinstance(histories, Mapping) else {"": histories}
    found = {name: [float(y) for y in getattr(run, "history", run)] for name, run in runs.items()}
    if not found or not all(found.values()):
        raise ValueError(f"histories={list(runs)}: give runs with at least one iteration each")
    figure, axis = plt.subplots(figsize=(7, 3.5), dpi=_DPI, layout="constrained")
    plt.close(figure)
    for i, (name, y) in enumerate(found.items()):
        axis.plot(range(1, len(y) + 1), y, color=_COLOURS[i % len(_COLOURS)], linewidth=1.5,
                  marker=_MARKERS[i % len(_MARKERS)], markersize=4, label=name)  # fmt: skip
    axis.xaxis.get_major_locator().set_params(integer=True)
    if any(found):
        axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    _finish(axis, "iteration", ylabel, title)
    return figure


def spectrum(
    values: Mapping[str, Any] | Any,
    control: Any = None,
    *,
    ylabel: str = "alpha",
    title: str = "",
) -> Figure:
    """Values by rank (alpha, singular values, norms of change), beside what random ones reach.

    Args:
        values: numbers, sorted here, largest first; or several sets by name.
        control: the same of random directions: ``[n]`` numbers, drawn as a level band (smallest to
            largest) with their median, or ``[runs, n]``, whose sorted runs make a band by rank.

    Raises:
        ValueError: no values, or values that are not finite numbers.
    """
    import matplotlib.pyplot as plt
    import numpy as np

    sets = dict(values) if isinstance(values, Mapping) else {"": values}
    found = {name: np.sort(_array(y, "values", 1))[::-1] for name, y in sets.items()}
    if not found:
        raise ValueError("values={}: give at least one set of numbers")
    figure, axis = plt.subplots(figsize=(7, 3.5), dpi=_DPI, layout="constrained")
    plt.close(figure)
    if control is not None:
        runs = _array(control, "control", np.ndim(_host(control)))
        name, shade = "random directions", {"color": _SHADES[0], "alpha": 0.6, "linewidth": 0}
        if runs.ndim == 1:
            axis.axhspan(runs.min(), runs.max(), label=name, **shade)
            axis.axhline(np.median(runs), color="black", linestyle="--", linewidth=1,
                         label="their median")  # fmt: skip
        else:
            runs = -np.sort(-runs, axis=1)
            axis.fill_between(np.arange(1, runs.shape[1] + 1), runs.min(0), runs.max(0),
                              label=name, **shade)  # fmt: skip
    for i, (name, y) in enumerate(found.items()):
        axis.plot(np.arange(1, len(y) + 1), y, color=_COLOURS[i % len(_COLOURS)], linewidth=1.2,
                  marker=_MARKERS[i % len(_MARKERS)], markersize=3.5, label=name)  # fmt: skip
    axis.set_xlim(0, 1 + max(len(y) for y in found.values()))
    if any(found) or control is not None:
        axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    _finish(axis, "rank", ylabel, title)
    return figure


def cosines(
    V: Any, labels: Sequence[str] | None = None, *, signed: bool = False, title: str = ""
) -> Figure:
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
    import matplotlib.pyplot as plt
    import numpy as np

    V = [getattr(v, "direction", v) for v in V] if isinstance(V, list | tuple) else V
    rows = _array([_host(v) for v in V] if isinstance(V, list) else V, "V", 2)
    m, d = rows.shape
    if labels is not None and len(labels) != m:
        raise ValueError(f"{len(labels)} labels for {m} directions: give one for each")
    size = np.linalg.norm(rows, axis=1, keepdims=True)
    if m < 2 or not size.all():
        raise ValueError(f"V holds {m} directions, {int((size == 0).sum())} of them zero: give at "
                         "least two, none of them zero")  # fmt: skip
    full = (rows / size) @ (rows / size).T
    grid = full if signed else abs(full)
    off = np.triu(abs(full), 1)
    i, j = np.unravel_index(off.argmax(), off.shape)
    names = [str(n) for n in labels] if labels is not None else [str(n) for n in range(m)]
    side = min(6.4, 2.6 + 0.28 * m)
    figure, axis = plt.subplots(figsize=(side + 0.9, side), dpi=_DPI, layout="constrained")
    plt.close(figure)
    colours = {"cmap": "RdBu_r", "vmin": -1} if signed else {"cmap": "viridis", "vmin": 0}
    image = axis.imshow(grid, vmax=1, **colours)
    figure.colorbar(image, ax=axis, label="cosine" if signed else "|cosine|", shrink=0.8)
    if m <= 12:
        for row, column in np.ndindex(m, m):
            _write(axis, image, row, column, f"{round(grid[row, column], 2) + 0.0:.2f}", 7)
    else:
        y, x = np.nonzero((abs(full) >= 0.5) & ~np.eye(m, dtype=bool))
        axis.plot(x, y, "o", color="white", markeredgecolor="black", markersize=3, linestyle="")
    shown = range(0, m, 1 if m <= 32 and labels is not None or m <= 16 else max(1, m // 8))
    axis.set_xticks(shown, [names[n] for n in shown], rotation=90 if labels is not None else 0,
                    fontsize=8)  # fmt: skip
    axis.set_yticks(shown, [names[n] for n in shown], fontsize=8)
    axis.set_xlabel(f"mean |cosine| {off.sum() * 2 / (m * (m - 1)):.3f} (random directions "
                    f"{np.sqrt(2 / (np.pi * d)):.3f}),\nlargest {off[i, j]:.2f}: {names[i]} and "
                    f"{names[j]}", fontsize=9)  # fmt: skip
    axis.set_title(title, fontsize=10)
    return figure


def _host(values: Any) -> Any:
    """Tensors of any device as arrays; everything else as it is."""
    return values.detach().cpu().float().numpy() if hasattr(values, "detach") else values


def _array(values: Any, name: str, dimensions: int) -> np.ndarray:
    import numpy as np

    found = np.asarray(_host(values), dtype=float)
    if found.ndim != dimensions or not 1 <= found.ndim <= 2 or not found.size:
        shape = {1: "[n]", 2: "[n, m]"}.get(dimensions, "[n] or [n, m]")
        raise ValueError(f"{name} has shape {list(found.shape)}: give numbers {shape}")
    if not np.isfinite(found).all():
        raise ValueError(f"{name} holds NaN or infinity: leave out what was not measured")
    return found


def _finish(axis: Axes, xlabel: str, ylabel: str, title: str) -> None:
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    axis.set_title(title, fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
