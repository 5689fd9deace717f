"""How long a vector to train: where the model's answer stops being linear."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from kit.derivatives import Map
from kit.directions import random_units

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Radius:
    """The calibrated norm of a vector, and the curve that it was read from.

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
        from kit import plots

        return plots.calibration(self)


def radius(
    piece: Map,
    ratio: float = 0.5,
    *,
    n_directions: int = 30,
    seed: int = 0,
    bracket: tuple[float, float] = (0.002, 8.0),
    tolerance: float = 0.01,
) -> Radius:
    """The norm R at which the change's non-linear part is ``ratio`` times its linear part.

    Root of ``sqrt(mean_v |delta(R v) - R J v|^2 / |R J v|^2)`` over random unit v (the published
    code's calibration of Deep Causal Transcoding, Mack 2024; the post states it without the
    denominator).

    Args:
        ratio: what to reach.
        n_directions: how many random directions.
        bracket: where to look, in units of the residual scale at the source layer.
        tolerance: relative error of the ratio at which to stop.

    Raises:
        ValueError: a ratio or bracket that makes no sense, or no root within the bracket; the text
            says which ratios were met.
    """
    if not 0 < ratio < math.inf:
        raise ValueError(f"ratio={ratio!r}: give a positive number")
    if not 0 < bracket[0] < bracket[1] < math.inf:
        raise ValueError(f"bracket={bracket!r}: give two rising positive numbers")
    if not isinstance(n_directions, int) or n_directions < 1:
        raise ValueError(f"n_directions={n_directions!r}: give a whole number from 1 on")
    v = random_units(n_directions, piece.d_model, seed).to(piece.origin)
    linear = piece.jvp(v)
    size = linear.norm(dim=-1)
    if not bool((size > 0).all()):
        raise ValueError("the slice does not answer to some random directions: J v = 0")
    unit_length = piece.unit
    curve: dict[float, tuple[float, list[float]]] = {}

    def measure(r: float) -> float:
        if r in curve:
            return curve[r][0]
        each = (piece.delta(r * v) - r * linear).norm(dim=-1) / (r * size)
        curve[r] = (float(each.square().mean().sqrt()), each.tolist())
        return curve[r][0]

    low, high = (b * unit_length for b in bracket)
    a, b = low, min(max(0.1 * unit_length, low), high)
    if measure(b) < ratio:
        while measure(b) < ratio:
            if b >= high:
                raise ValueError(_no_root(ratio, bracket, curve, unit_length))
            a, b = b, min(2 * b, high)
    else:
        a = b
        while measure(a) > ratio:
            if a <= low:
                raise ValueError(_no_root(ratio, bracket, curve, unit_length))
            a, b = max(a / 2, low), a
    found = b
    for _ in range(20):  # regula falsi on logarithms, kept off the ends: a power law in one step
        found = a if curve[a][0] == ratio else b
        at = [math.log(curve[r][0] / ratio) for r in (a, b)]
        share = min(max(at[0] / (at[0] - at[1]), 0.05), 0.95) if at[0] != at[1] else 0.5
        found = math.exp(math.log(a) + share * (math.log(b) - math.log(a)))
        value = measure(found)
        if abs(value - ratio) <= tolerance * ratio:
            break
        a, b = (found, b) if value < ratio else (a, found)
    points = [(r, *curve[r]) for r in sorted(curve)]
    return Radius(found, found / unit_length, curve[found][0], points)


def _no_root(ratio: float, bracket: Any, curve: dict[float, Any], unit_length: float) -> str:
    met = [value for value, _ in curve.values()]
    return (
        f"ratio={ratio}: within bracket={bracket} residual scales (of {unit_length:.3g}) the ratio "
        f"runs from {min(met):.3g} to {max(met):.3g}; choose a ratio between, or widen the bracket"
    )


def resolve(piece: Map, radius_or_auto: float | str | Radius) -> Radius:
    """A radius as the fits take it: ``"auto"`` calibrates, a number is activation units.

    Raises:
        ValueError: anything but ``"auto"`` or a positive finite number.
    """
    if isinstance(radius_or_auto, Radius):
        return radius_or_auto
    if isinstance(radius_or_auto, str) and radius_or_auto == "auto":
        return radius(piece)
    r = radius_or_auto
    if isinstance(r, bool) or not isinstance(r, int | float) or not 0 < r < math.inf:
        raise ValueError(
            f"radius={r!r}: give 'auto' or a positive norm in activation units (the residual scale "
            f"here is {piece.unit:.4g})"
        )
    return Radius(float(r), float(r) / piece.unit, math.nan, [])
