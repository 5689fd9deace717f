"""What the figures share: the theme, a panel, colours of lines, checks of input, last touches.

The theme is a style sheet of matplotlib's, ``jupyter.mplstyle`` beside this file: figures without a
ground, in a grey that reads on a light page and on a dark one. Every figure of the kit has it;
``plt.style.use("kit.plots.jupyter")`` gives it to all others of a notebook.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

THEME, INK = "kit.plots.jupyter", "#7A7A7A"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "os^Dv*"
SHADES = ("#888888", "#E69F00")  # of bands
BAND: dict[str, Any] = {"color": SHADES[0], "alpha": 0.35, "linewidth": 0}
DPI = 90


def themed(make: Callable[..., Figure]) -> Callable[..., Figure]:
    """Make a figure under the theme, whatever style the notebook has."""

    @wraps(make)
    def made(*args: Any, **kwargs: Any) -> Figure:
        import matplotlib.pyplot as plt

        with plt.style.context(THEME):
            figure = make(*args, **kwargs)
            axis: Any
            for axis in [each for one in figure.axes for each in (one, *one.child_axes)]:
                for name in "xy":  # ticks that are made when it is drawn ask then for their colour
                    colours = {k: plt.rcParams[f"{name}tick.{k}"] for k in ("color", "labelcolor")}
                    axis.tick_params(name, which="both", **colours)
        return figure

    return made


def host(values: Any) -> Any:
    """Tensors of any device as arrays; everything else as it is."""
    return values.detach().cpu().float().numpy() if hasattr(values, "detach") else values


def array(values: Any, name: str, dimensions: int) -> np.ndarray:
    """Finite numbers of a figure as an array.

    Raises:
        ValueError: another number of dimensions, nothing in it, or a value that is not finite.
    """
    import numpy as np

    found = np.asarray(host(values), dtype=float)
    if found.ndim != dimensions or not 1 <= found.ndim <= 2 or not found.size:
        shape = {1: "[n]", 2: "[n, m]"}.get(dimensions, "[n] or [n, m]")
        raise ValueError(f"{name} has shape {list(found.shape)}: give numbers {shape}")
    if not np.isfinite(found).all():
        raise ValueError(f"{name} holds NaN or infinity: leave out what was not measured")
    return found


def panel(width: float = 7, height: float = 3.5) -> tuple[Figure, Axes]:
    """A figure of one panel, inches; closed, so that Jupyter shows it once."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(width, height), dpi=DPI, layout="constrained")
    plt.close(figure)
    return figure, axis


def draw(axis: Axes, lines: Mapping[str, tuple[Any, Any]], *, width: float = 1.5, size: float = 4) -> None:
    """Lines ``(x, y)`` by name, told apart by colour and marker; the second six are dashed."""
    axis.set_prop_cycle(color=COLOURS, marker=list(MARKERS))
    for i, (name, (x, y)) in enumerate(lines.items()):
        dash = ("-", "--", ":")[i // len(COLOURS) % 3]
        axis.plot(x, y, linestyle=dash, linewidth=width, markersize=size, label=name)


def finish(axis: Axes, xlabel: str, ylabel: str, title: str, *, legend_inside: bool = False) -> None:
    """Labels, a small title, no frame above and to the right, and what has a name in a legend."""
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    axis.set_title(title, fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    if axis.get_legend_handles_labels()[1]:
        where = {"loc": "upper left"} if legend_inside else {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
        axis.legend(fontsize=8, frameon=False, **where)
