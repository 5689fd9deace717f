"""Do the outputs of a search crowd more or less than its inputs, and do two fits find the same?

Vectors found without labels come in crowds: many nearly orthogonal inputs that do the same thing.
Here is the test of that, on several fits, beside random directions; and the matching of fits.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from kit import plots
from kit.base.directions import random_units, unit
from kit.search.features import Features
from kit.search.layer_slice import slice_behind
from kit.search.statistics import (
    STATISTICS,
    checked,
    effective_rank,
    expected_cosine,
    mean_cosine,
    measures,
    singular_values,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class Sides(NamedTuple):
    """Input and output directions of a set that no fit holds, and what the inputs change."""

    V: Tensor
    U: Tensor
    changes: Tensor | None = None


Fit = Features | Sides


def summary(
    directions: Tensor | Mapping[str, Tensor], name: str = "directions", *, n_random: int = 20, seed: int = 0
) -> pd.DataFrame:
    """The statistics of one set of directions, or of several by name, with random baselines.

    Args:
        directions: ``[m, d]`` or a mapping to such.
        n_random: random sets of the same m and d to compare with.

    Returns:
        A row a set: ``m``, ``d``, ``rank`` (numerical), :data:`STATISTICS`; ``expected_cosine`` of
        random directions by formula; ``random_cosine_low`` and ``_high``, the range of the sampled
        random sets, and ``random_effective_rank``, their mean.

    Raises:
        ValueError: fewer than two rows, rows that are zero or not finite.
    """
    import pandas as pd

    sets = directions if isinstance(directions, Mapping) else {name: directions}
    rows = {}
    for label, group in sets.items():
        m, d = group.shape[0], group.shape[-1]
        found = measures(group)
        drawn = [random_units(m, d, seed + i) for i in range(n_random)]
        cosines = [mean_cosine(r) for r in drawn]
        rows[label] = {
            "m": m,
            "d": d,
            "rank": len(singular_values(group)),
            **found,
            "expected_cosine": expected_cosine(d),
            "random_cosine_low": min(cosines),
            "random_cosine_high": max(cosines),
            "random_effective_rank": sum(map(effective_rank, drawn)) / n_random,
        }
    return pd.DataFrame.from_dict(rows, orient="index").astype({"m": int, "d": int, "rank": int})


@dataclass(frozen=True)
class Comparison:
    """Input directions against output directions over several fits.

    Attributes:
        table: a row a fit, a column for each statistic and side (``"V mean_cosine"``), and ``m``.
        tests: a row a statistic: the means of both sides, ``difference`` (V - U) with a bootstrap
            95% interval ``low``, ``high``, ``effect`` (mean over standard deviation of the
            differences), ``above`` (share of fits with V above U), ``p`` (two-sided, exact).
        skipped: how many fits held fewer than the two directions that a pair needs.
    """

    table: pd.DataFrame
    tests: pd.DataFrame
    skipped: int = 0

    def plot(self, statistic: str = "mean_cosine", title: str = "") -> Figure:
        """One dot a fit for each side."""
        sides = {"inputs V": self.table[f"V {statistic}"], "outputs U": self.table[f"U {statistic}"]}
        p = self.tests.loc[statistic, "p"]
        return plots.spread(
            {name: side.tolist() for name, side in sides.items()},
            xlabel=statistic.replace("_", " "),
            title=title or f"{len(self.table)} fits, paired p = {p:.2g}",
        )


def compare(fits: Iterable[Fit], *, keep: Callable[[Fit], Sequence[int]] | None = None, seed: int = 0) -> Comparison:
    """Is there less multiplicity in output than in input directions? A paired test over fits.

    The question is fair only where nothing forces V apart, that is for ``orthogonalise=None``: QR
    and soft orthogonalisation spread V before each iteration, so that the test finds this as well.
    A map that squeezes its inputs pulls even random ones together: look at :func:`controls` too.

    Args:
        fits: five or more; the unit of the test. Several seeds of one prompt speak for the method
            on that prompt, one fit for each of several prompts for prompts.
        keep: features of a fit to compare, say those that lead to one behaviour
            (:func:`same_token`). A fit that is left with fewer than two is skipped.
        seed: of the bootstrap interval.

    Raises:
        ValueError: fewer than five fits left.
    """
    import pandas as pd

    rows, skipped = [], 0
    for fit in fits:
        chosen = list(range(len(fit.V))) if keep is None else list(keep(fit))
        if len(chosen) < 2:
            skipped += 1
            continue
        sides = {"V": measures(fit.V[chosen]), "U": measures(fit.U[chosen])}
        rows.append(
            {"m": len(chosen)}
            | {f"{side} {name}": value for side, all_ in sides.items() for name, value in all_.items()}
        )
    if len(rows) < 5:
        raise ValueError(
            f"fits: {len(rows)} hold two directions or more ({skipped} do not); a paired "
            "test says nothing on fewer than 5"
        )
    table = pd.DataFrame(rows)
    tests = {}
    for name in STATISTICS:
        v, u = (torch.tensor(table[f"{side} {name}"].tolist()).double() for side in "VU")
        gap = v - u
        low, high = _interval(gap, seed)
        sd = float(gap.std())
        tests[name] = {
            "V": float(v.mean()),
            "U": float(u.mean()),
            "difference": float(gap.mean()),
            "low": low,
            "high": high,
            "effect": float(gap.mean()) / sd if sd else math.nan,
            "above": float((gap > 0).double().mean()),
            "p": sign_flip(gap, seed=seed),
        }
    return Comparison(table, pd.DataFrame.from_dict(tests, orient="index"), skipped)


def controls(fit: Features, seed: int = 0) -> Sides:
    """What the map alone does to diversity: V, random input directions pulled back from nothing,
    and U, their outputs at the fit's radius; as many as the fit has features.

    A fit's outputs say something about its features only where they differ from these.
    """
    m, d = fit.V.shape
    V = random_units(m, d, seed).to(fit.V)
    changes = fit.piece.delta(fit.radius.value * V)
    return Sides(V, unit(changes), changes)


def same_token(fit: Features) -> list[int]:
    """The largest group of features after which the model says one and the same next token, other
    than its own, on the first prompt; empty if no feature changes it."""
    piece = slice_behind(fit.piece)
    plain = int(piece.logits(None)[0, 0].argmax())
    said = piece.logits(fit.thetas)[:, 0].argmax(-1).tolist()
    counts = Counter(token for token in said if token != plain)
    if not counts:
        return []
    token = counts.most_common(1)[0][0]
    return [i for i, t in enumerate(said) if t == token]


def sign_flip(differences: Tensor | Iterable[float], *, n: int = 100_000, seed: int = 0) -> float:
    """Two-sided p-value of the mean of paired differences, by flipping signs.

    Exact up to 16 differences (all ``2^n`` patterns), else by n random patterns, the observed one
    counted. The smallest it can say is ``2^(1-n)``: 0.002 for 10 pairs.
    """
    gap = torch.tensor([float(x) for x in differences], dtype=torch.float64)
    if not len(gap) or not bool(gap.isfinite().all()):
        raise ValueError(f"differences={gap.tolist()[:8]}: give at least one, all finite")
    k = len(gap)
    if k <= 16:
        bits = torch.arange(2**k)[:, None] >> torch.arange(k)
        sums = ((bits & 1) * 2 - 1).double() @ gap
        seen = 0
    else:
        rng = torch.Generator().manual_seed(seed)
        flips = torch.randint(0, 2, (n, k), generator=rng).double() * 2 - 1
        sums, seen = flips @ gap, 1
    reached = sums.abs() >= gap.sum().abs() * (1 - 1e-9)
    return (int(reached.sum()) + seen) / (len(sums) + seen)


def _interval(gap: Tensor, seed: int, n: int = 10_000) -> tuple[float, float]:
    rng = torch.Generator().manual_seed(seed)
    means = gap[torch.randint(0, len(gap), (n, len(gap)), generator=rng)].mean(-1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    return low, high


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
        raise ValueError(f"a {list(a.shape)} and b {list(b.shape)}: give equal widths, and at least as many rows in b")
    cosines = checked(a) @ checked(b).T
    cosines = cosines if signed else cosines.abs()
    rows, partners = linear_sum_assignment(cosines.numpy(), maximize=True)
    return partners.tolist(), cosines[rows, partners]


def stability(fits: Sequence[Fit], *, control: Tensor | None = None) -> pd.DataFrame:
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
    if control is None and isinstance(fits[0], Features):
        control = controls(fits[0], 77).changes
    rows = []
    for i, j in combinations(range(len(fits)), 2):
        by_input, cosines = match(fits[i].V, fits[j].V)
        by_effect, effect = match(effects[i], effects[j], signed=True)
        rows.append(
            {
                "first": i,
                "second": j,
                "input": cosines.mean(),
                "effect": effect.mean(),
                "effect_of_input_match": _paired(effects[i], effects[j][by_input]).mean(),
                "input_of_effect_match": _paired(fits[i].V, fits[j].V[by_effect]).abs().mean(),
                "input_random": match(fits[i].V, random_units(m, d, 1000 * i + j))[1].mean(),
                "effect_random": math.nan if control is None else match(effects[i], control, signed=True)[1].mean(),
                "effect_unmatched": (checked(effects[i]) @ checked(effects[j]).T).mean(),
            }
        )
    table = pd.DataFrame(rows).astype(float)
    return table.astype({"first": int, "second": int})


def _effects(fit: Fit) -> Tensor:
    return fit.U if fit.changes is None else fit.changes


def _paired(a: Tensor, b: Tensor) -> Tensor:
    return (checked(a) * checked(b)).sum(-1)
