"""What the figures share: a panel, colours and markers of lines, checks of input, last touches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "os^Dv*"
SHADES = ("#BBBBBB", "#E6C98C")  # of bands
BAND: dict[str, Any] = {"color": SHADES[0], "alpha": 0.6, "linewidth": 0}
DPI = 90


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
    """Lines ``(x, y)`` by name, told apart by colour and by marker."""
    axis.set_prop_cycle(color=COLOURS, marker=list(MARKERS))
    for name, (x, y) in lines.items():
        axis.plot(x, y, linewidth=width, markersize=size, label=name)


def finish(axis: Axes, xlabel: str, ylabel: str, title: str, *, legend_inside: bool = False) -> None:
    """Labels, a small title, no frame above and to the right, and what has a name in a legend."""
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    axis.set_title(title, fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    if axis.get_legend_handles_labels()[1]:
        where = {"loc": "upper left"} if legend_inside else {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
        axis.legend(fontsize=8, frameon=False, **where)
