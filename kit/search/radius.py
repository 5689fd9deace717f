"""How long a vector to train: where the model's answer stops being linear."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from kit import plots
from kit.base.checks import check_counts, check_positive, is_number
from kit.base.directions import random_units
from kit.search.maps import Map
from kit.steering.dose import Dose

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Radius:
    """The norm at which vectors act: where the map stops being linear, and the curve that says so.

    Attributes:
        value: the radius in activation units.
        coefficient: the same in units of :func:`kit.residual_scale` at the source layer.
        ratio: non-linear over linear part at ``value``, as measured.
        curve: (radius, ratio, ratio of each direction) of every radius tried, in order.
    """

    value: float
    coefficient: float
    ratio: float
    curve: list[tuple[float, float, list[float]]]

    def __float__(self) -> float:
        return self.value

    def plot(self) -> Figure:
        """The curve, with the spread over the random directions."""
        return plots.linear_radius(self)


def dose(coefficient: float, radius: Radius | float | None = None) -> dict[str, Any]:
    """What the metadata of a vector say about how strongly to steer with it; every search that
    leaves a vector writes it here.

    Args:
        coefficient: what to steer with.
        radius: the norm that the vector was found at, if it has one; the panel then shades the
            coefficients of either sign up to it.
    """
    if radius is None:
        return Dose(coefficient).metadata()
    ratio = radius.ratio if isinstance(radius, Radius) else 0.5
    target = None if math.isnan(ratio) else ratio  # None: given, not measured
    found = Dose(coefficient, -coefficient, coefficient, "radius", target)
    return {"radius": float(radius), **found.metadata()}


def linear_radius(
    piece: Map,
    ratio: float = 0.5,
    *,
    n_directions: int = 30,
    seed: int = 0,
    bracket: tuple[float, float] = (0.002, 8.0),
    tolerance: float = 0.01,
) -> Radius:
    """The norm R at which the change's non-linear part is ``ratio`` times its linear part.

    Root of ``sqrt(mean_v |delta(R v) - R J v|^2 / |R J v|^2)`` over random unit v (what the
    published code of Deep Causal Transcoding takes, Mack 2024; the post states it without the
    denominator).

    Args:
        ratio: what to reach.
        n_directions: how many random directions.
        bracket: where to look, in units of the residual scale at the source layer.
        tolerance: relative error of the ratio at which to stop.

    Raises:
        ValueError: a ratio, bracket or tolerance that makes no sense, a map that does not answer to
            first order or not with finite numbers, or no root within the bracket; the text says
            which ratios were met.
    """
    check_counts(n_directions=n_directions)
    v = random_units(n_directions, piece.d_model, seed).to(piece.origin)
    return radius_of(lambda r: piece.delta(r * v), piece.jvp(v), piece.unit, ratio, bracket, tolerance)


def radius_of(
    change: Callable[[float], Tensor],
    linear: Tensor,
    scale: float,
    ratio: float,
    bracket: tuple[float, float],
    tolerance: float = 0.01,
) -> Radius:
    """The radius of :func:`linear_radius`, of n paths away from 0.

    Args:
        change: from a radius to how far each path has gone there, ``[n, d]``.
        linear: its derivative at 0, ``[n, d]``.
        scale: the radius that counts as coefficient 1.

    Raises:
        ValueError: as :func:`linear_radius`.
    """
    check_positive(ratio=ratio)
    if not 0 < bracket[0] < bracket[1] < math.inf:
        raise ValueError(f"bracket={bracket!r}: give two rising positive numbers")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance={tolerance!r}: give a relative error between 0 and 1")
    size = linear.norm(dim=-1)
    if not bool(size.isfinite().all()):
        raise ValueError("the derivative at 0 is not finite: the linear part J v holds NaN or infinity")
    if not bool((size > 0).all()):
        raise ValueError(
            "J v = 0 for some random direction v: without a linear part there is no "
            "ratio to it; give the radius as a number"
        )
    curve: dict[float, tuple[float, list[float]]] = {}

    def measure(r: float) -> float:
        if r not in curve:
            each = (change(r) - r * linear).norm(dim=-1) / (r * size)
            mean = float(each.square().mean().sqrt())
            if not math.isfinite(mean):
                raise ValueError(
                    f"the change at radius {r:.4g} ({r / scale:.3g} residual scales) "
                    f"is not finite; lower the end of bracket={bracket}"
                )
            curve[r] = (mean, each.tolist())
        return curve[r][0]

    low, high = (end * scale for end in bracket)
    a = b = min(max(0.1 * scale, low), high)
    while measure(b) < ratio:
        if b >= high:
            raise ValueError(_no_root(ratio, bracket, curve, scale))
        a, b = b, min(2 * b, high)
    while measure(a) > ratio:
        if a <= low:
            raise ValueError(_no_root(ratio, bracket, curve, scale))
        a, b = max(a / 2, low), a
    for _ in range(30):  # regula falsi on logarithms, kept off the ends: a power law in one step
        found = min((a, b), key=lambda r: abs(curve[r][0] - ratio))
        if abs(curve[found][0] - ratio) <= tolerance * ratio:
            break
        at_a, at_b = (math.log(max(curve[r][0], 1e-30) / ratio) for r in (a, b))
        share = min(max(at_a / (at_a - at_b), 0.1), 0.9)
        middle = math.exp(math.log(a) + share * (math.log(b) - math.log(a)))
        a, b = (middle, b) if measure(middle) < ratio else (a, middle)
    else:
        raise ValueError(
            f"ratio={ratio}: it jumps from {curve[a][0]:.3g} to {curve[b][0]:.3g} at radius "
            f"{a:.6g}, so tolerance={tolerance} cannot be met; raise the tolerance"
        )
    points = [(r, *curve[r]) for r in sorted(curve)]
    return Radius(found, found / scale, curve[found][0], points)


def _no_root(
    ratio: float, bracket: tuple[float, float], curve: Mapping[float, tuple[float, list[float]]], scale: float
) -> str:
    met = [value for value, _ in curve.values()]
    return (
        f"ratio={ratio}: within bracket={bracket} residual scales (of {scale:.3g}) the ratio that "
        f"was met runs from {min(met):.3g} to {max(met):.3g}; choose a ratio between, or widen the "
        "bracket (a linear map stays near 0)"
    )


def resolve(piece: Map, radius_or_auto: float | str | Radius) -> Radius:
    """A radius as the fits take it: ``"auto"`` is :func:`linear_radius`, a number activation units.

    Raises:
        ValueError: anything but ``"auto"`` or a positive finite number.
    """
    if isinstance(radius_or_auto, Radius):
        return radius_or_auto
    if isinstance(radius_or_auto, str) and radius_or_auto == "auto":
        return linear_radius(piece)
    r = radius_or_auto
    if not is_number(r) or not r > 0:
        raise ValueError(
            f"radius={r!r}: give 'auto' or a positive norm in activation units (the residual scale "
            f"here is {piece.unit:.4g})"
        )
    return Radius(float(r), float(r) / piece.unit, math.nan, [])
