"""Are they the same features again? Two fits that differ by their seed, matched to one another."""
from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from torch import Tensor

from kit.directions import random_units
from kit.multiplicity import Sides, checked

if TYPE_CHECKING:
    import pandas as pd

    from kit.factors import DCT


def match(a: Tensor, b: Tensor, *, signed: bool = False) -> tuple[list[int], Tensor]:
    """One-to-one partners in b ``[n, d]`` of the rows of a ``[m, d]``, m <= n, best in sum.

    Args:
        signed: compare cosines, else their absolute values.

    Returns:
        The partner's row for each row of a, and the cosines ``[m]`` (absolute unless signed).

    Raises:
        ValueError: widths that differ, or fewer rows in b than in a.
    """
    from scipy.optimize import linear_sum_assignment

    if a.shape[-1] != b.shape[-1] or len(a) > len(b):
        raise ValueError(f"a {list(a.shape)} and b {list(b.shape)}: give equal widths, and at least "
                         "as many rows in b")  # fmt: skip
    cosines = checked(a) @ checked(b).T
    cosines = cosines if signed else cosines.abs()
    rows, partners = linear_sum_assignment(cosines.numpy(), maximize=True)
    return partners.tolist(), cosines[rows, partners]


def stability(fits: Sequence[DCT | Sides], *, control: Tensor | None = None) -> pd.DataFrame:
    """How far fits that differ by their seed find the same features.

    Features of every two fits are matched twice: by ``|cosine|`` of their input directions, and by
    the cosine of what they change downstream (``changes``). Matching picks the best of many, so a
    baseline goes through the same matching.

    Args:
        fits: two or more with equally many features; the ones that lack ``changes`` are matched
            by their U.
        control: ``[m, d]``, changes made by random directions of the same norm: the baseline of
            effects, since a map squeezes even random inputs into few outputs. None: random
            directions run through the first fit's own map where it has one.

    Returns:
        A row for each two fits: ``input`` and ``effect``, the mean matched cosines; crosswise
        ``effect_of_input_match`` and ``input_of_effect_match``; baselines ``input_random``
        (uniform directions matched to the first fit), ``effect_random`` (controls matched to it),
        and ``effect_unmatched`` (features paired by chance).
    """
    import pandas as pd

    if len(fits) < 2 or len({f.V.shape for f in fits}) > 1:
        raise ValueError(f"fits: give two or more of one size, not {[list(f.V.shape) for f in fits]}")
    effects = [_effects(f) for f in fits]
    m, d = fits[0].V.shape
    if control is None and hasattr(fits[0], "piece"):
        fit = fits[0]
        control = fit.piece.delta(fit.radius.value * random_units(m, d, 77).to(fit.V))
    rows = []
    for i, j in combinations(range(len(fits)), 2):
        by_input, cosines = match(fits[i].V, fits[j].V)
        by_effect, effect = match(effects[i], effects[j], signed=True)
        rows.append({
            "first": i, "second": j,
            "input": cosines.mean(), "effect": effect.mean(),
            "effect_of_input_match": _paired(effects[i], effects[j][by_input]).mean(),
            "input_of_effect_match": _paired(fits[i].V, fits[j].V[by_effect]).abs().mean(),
            "input_random": match(fits[i].V, random_units(m, d, 1000 * i + j))[1].mean(),
            "effect_random": math.nan if control is None
            else match(effects[i], control, signed=True)[1].mean(),
            "effect_unmatched": (checked(effects[i]) @ checked(effects[j]).T).mean(),
        })  # fmt: skip
    table = pd.DataFrame(rows).astype(float)
    return table.astype({"first": int, "second": int})


def _effects(fit: DCT | Sides) -> Tensor:
    return fit.U if fit.changes is None else fit.changes


def _paired(a: Tensor, b: Tensor) -> Tensor:
    return (checked(a) * checked(b)).sum(-1)
