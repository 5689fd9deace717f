"""Figures of a search: its radius, its iterations, the strength of what it found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kit.plots.style import BAND, COLOURS, INK, array, draw, finish, host, panel, themed

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@themed
def linear_radius(radius: Any) -> Figure:
    """Non-linear over linear part of the change against the radius, and the radius chosen.

    Args:
        radius: what :func:`kit.search.radius.linear_radius` returned. The line is the root mean
            square over its random directions, the shade reaches from the smallest to the largest
            of them, and the axis on top shows the radius as a coefficient (residual scales).

    Raises:
        ValueError: a radius that was given rather than measured, which has no curve.
    """
    import numpy as np

    if not radius.curve:
        raise ValueError(
            f"radius={radius.value:g} was not measured, so it has no curve: give what kit.dct.linear_radius returned"
        )
    at, mean, each = (np.array(column) for column in zip(*radius.curve, strict=True))  # each: [radii, directions]
    figure, axis = panel(7, 3.8)
    label = f"range of {each.shape[1]} random directions"
    axis.fill_between(at, each.min(1), each.max(1), label=label, **BAND)
    axis.plot(at, mean, color=COLOURS[0], marker="o", markersize=4, label="their root mean square")
    axis.axvline(radius.value, color=INK, linestyle="--", linewidth=1)
    axis.axhline(radius.ratio, color=INK, linestyle=":", linewidth=1)
    label = f"chosen: R = {radius.value:.3g}, coefficient {radius.coefficient:.2g}, ratio {radius.ratio:.2g}"
    axis.plot([radius.value], [radius.ratio], "*", color=COLOURS[1], markersize=13, zorder=5, label=label)
    axis.set_xscale("log")
    axis.set_yscale("log")
    per_unit = radius.coefficient / radius.value
    scale: Any = (lambda r: r * per_unit), (lambda c: c / per_unit)
    top = axis.secondary_xaxis("top", functions=scale)
    top.set_xlabel("coefficient (residual scales)")
    for one, values in ((axis.xaxis, at), (top.xaxis, at), (axis.yaxis, each)):
        _plain_ticks(one, values.max() / values.min())
    finish(axis, "radius (activation units)", "non-linear / linear part", "", legend_inside=True)
    return figure


def _plain_ticks(axis: Any, times: float) -> None:
    """Ticks of a logarithmic axis as people say them; ``times`` is its end over its start."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)) if times > 10 else MaxNLocator(6))
    axis.set_major_formatter(FuncFormatter(lambda x, _pos: f"{x:g}"))
    axis.set_minor_locator(NullLocator())


@themed
def history(
    histories: Mapping[str, Any] | Sequence[float] | Any, *, ylabel: str = "objective", title: str = ""
) -> Figure:
    """The objective after each iteration, a line for each run.

    Args:
        histories: objectives by name of the run, or one run's. A run is a sequence of numbers, or
            a fit with a ``history`` (:class:`kit.search.features.DCT`, say); runs may differ in
            length.

    Raises:
        ValueError: no run, or one without an iteration.
    """
    runs = dict(histories) if isinstance(histories, Mapping) else {"": histories}
    found = {name: [float(y) for y in getattr(run, "history", run)] for name, run in runs.items()}
    if not found or not all(found.values()):
        raise ValueError(f"histories={list(runs)}: give runs with at least one iteration each")
    figure, axis = panel()
    draw(axis, {name: (range(1, len(y) + 1), y) for name, y in found.items()})
    axis.locator_params(axis="x", integer=True)
    finish(axis, "iteration", ylabel, title)
    return figure


@themed
def spectrum(values: Mapping[str, Any] | Any, control: Any = None, *, ylabel: str = "alpha", title: str = "") -> Figure:
    """Values by rank (alpha, singular values, norms of change), beside what random ones reach.

    Args:
        values: numbers, sorted here, largest first; or several sets by name.
        control: the same of random directions: ``[n]`` numbers, drawn as a level band (smallest to
            largest) with their median, or ``[runs, n]``, whose sorted runs make a band by rank.

    Raises:
        ValueError: no values, or values that are not finite numbers.
    """
    import numpy as np

    sets = dict(values) if isinstance(values, Mapping) else {"": values}
    found = {name: np.sort(array(y, "values", 1))[::-1] for name, y in sets.items()}
    if not found:
        raise ValueError("values={}: give at least one set of numbers")
    figure, axis = panel()
    if control is not None:
        runs = array(control, "control", np.ndim(host(control)))
        name = "random directions"
        if runs.ndim == 1:
            axis.axhspan(runs.min(), runs.max(), label=name, **BAND)
            axis.axhline(np.median(runs), color=INK, linestyle="--", linewidth=1, label="their median")
        else:
            runs = -np.sort(-runs, axis=1)
            axis.fill_between(np.arange(1, runs.shape[1] + 1), runs.min(0), runs.max(0), label=name, **BAND)
    draw(axis, {name: (np.arange(1, len(y) + 1), y) for name, y in found.items()}, width=1.2, size=3.5)
    axis.set_xlim(0, 1 + max(len(y) for y in found.values()))
    finish(axis, "rank", ylabel, title)
    return figure
