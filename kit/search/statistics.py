"""How many directions are there really? Statistics on sets of directions.

Each stands beside its value for random directions.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kit.base.directions import unit

if TYPE_CHECKING:
    pass

STATISTICS = ("mean_cosine", "effective_rank", "participation_ratio", "condition")


def mean_cosine(directions: Tensor) -> float:
    """Mean ``|cosine|`` over the pairs of rows of ``[m, d]``; 0 orthogonal, 1 all on one line."""
    rows = checked(directions)
    m = len(rows)
    return float(((rows @ rows.T).abs().sum() - m) / (m * (m - 1)))


def expected_cosine(d: int) -> float:
    """E ``|cosine|`` of two independent uniform directions in d dimensions, about
    ``sqrt(2 / (pi d))``; exactly ``Gamma(d/2) / (sqrt(pi) Gamma((d+1)/2))``."""
    return math.exp(math.lgamma(d / 2) - math.lgamma((d + 1) / 2)) / math.sqrt(math.pi)


def singular_values(directions: Tensor) -> Tensor:
    """Singular values of the unit rows of ``[m, d]``, falling, those that are not zero.

    Zero is below ``1e-5`` of the largest: soft orthogonalisation always loses a direction, and
    float32 leaves dust there.
    """
    rows = checked(directions)
    s = torch.linalg.svdvals(rows)
    return s[s > 1e-5 * s[0]]


def basis(rows: Tensor) -> Tensor:
    """Orthonormal rows with the span of ``rows [m, d]``, without those that float32 cannot tell
    from zero."""
    _, s, vh = torch.linalg.svd(rows, full_matrices=False)
    return vh[s > 1e-5 * s[0]]


def effective_rank(directions: Tensor) -> float:
    """``exp`` of the entropy of the singular values over their sum (Roy and Vetterli, 2007)."""
    return spectrum_rank(singular_values(directions))


def participation_ratio(directions: Tensor) -> float:
    """``(sum s^2)^2 / sum s^4`` of the singular values: how many axes share the variance."""
    return participation(singular_values(directions))


def condition(directions: Tensor) -> float:
    """Largest over smallest *non-zero* singular value. The number of zeros is m minus the rank that
    :func:`summary` shows, and a set that lost a direction outright is not called well spread."""
    s = singular_values(directions)
    return float(s[0] / s[-1])


def spectrum_rank(s: Tensor) -> float:
    """:func:`effective_rank` of given singular values ``[n]``, none negative, not all zero."""
    p = s[s > 0] / s.sum()
    return float(torch.exp(-(p * p.log()).sum()))


def participation(s: Tensor) -> float:
    """:func:`participation_ratio` of given singular values ``[n]``."""
    return float(s.square().sum() ** 2 / s.pow(4).sum())


def checked(directions: Tensor) -> Tensor:
    """Unit rows ``[m, d]``, float64 on the CPU, of a set that has statistics.

    Raises:
        ValueError: fewer than two rows, rows that are zero or not finite.
    """
    rows = torch.as_tensor(directions).detach().double().cpu()
    if rows.dim() != 2 or len(rows) < 2 or rows.shape[1] < 2:
        raise ValueError(f"directions has shape {list(rows.shape)}: give [m, d] with m and d >= 2")
    bad = broken(rows)
    if bad:
        raise ValueError(f"rows {bad[:8]} of directions are zero or not finite: leave them out")
    return unit(rows)


def broken(rows: Tensor) -> list[int]:
    """Which of ``rows [m, d]`` are zero or not finite."""
    norms = rows.norm(dim=-1)
    return (~(norms.isfinite() & (norms > 0))).nonzero()[:, 0].tolist()


def measures(directions: Tensor) -> dict[str, float]:
    """All of :data:`STATISTICS` for one set ``[m, d]``."""
    rows, s = checked(directions), singular_values(directions)
    values = (mean_cosine(rows), spectrum_rank(s), participation(s), float(s[0] / s[-1]))
    return dict(zip(STATISTICS, values, strict=True))
