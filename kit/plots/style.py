"""What the figures share: colours, markers, checks of their input, the last touches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "os^Dv*"
SHADES = ("#BBBBBB", "#E6C98C")  # of bands
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


def finish(axis: Axes, xlabel: str, ylabel: str, title: str) -> None:
    """Labels, a small title, and no frame above and to the right."""
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    axis.set_title(title, fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
