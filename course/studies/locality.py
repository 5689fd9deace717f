"""Local or global? How far from its prompt and its radius a description of a slice holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from kit import plots
from kit.base.checks import check_counts
from kit.base.directions import random_units, unit
from kit.search.features import DCT
from kit.search.maps import Map

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

TRAINING = "training prompts"
Along = Literal["features", "mixtures", "random"]


def hold(
    fits: DCT | Mapping[str, DCT],
    radii: Sequence[float],
    others: Mapping[str, Map] | None = None,
    *,
    along: Along | Tensor = "features",
    n: int = 32,
    seed: int = 0,
) -> pd.DataFrame:
    """Errors of what features predict, against what a vector really changes.

    Args:
        fits: descriptions by name, all of the same map; a single one is called by its method.
        radii: norms of the vectors, activation units.
        others: the same stretch on other prompts (slices), by name: how far the descriptions hold
            off the prompts that they were fitted on.
        along: the vectors' directions: ``"features"``, the first n of each description's own;
            ``"mixtures"``, random ones within the span of its features; ``"random"``, of the whole
            space; or a tensor ``[k, d]``.
        n: how many directions.

    Returns:
        Columns ``description``, ``prompts``, ``radius``, ``coefficient`` (residual scales),
        ``error``: the median over directions of ``|predicted - true| / |true|``; ``low`` and
        ``high``, its quartiles; ``best_scale``, the median error left if each prediction's length
        were mended; ``cosine``, the mean cosine of prediction and truth; ``size``, the median
        ``|true|``. Predicting no change at all has the error 1. On other prompts a further
        description, ``"true change on training prompts (name)"``, is what a perfect description of
        the training prompts would get.

    Raises:
        ValueError: radii that are not positive, no fits, fits of different maps, or an unknown
            ``along``.
    """
    import pandas as pd

    named = {fits.method: fits} if isinstance(fits, DCT) else dict(fits)
    piece = _check(named, radii, along, n)
    places: dict[str, Map] = {TRAINING: piece, **(others or {})}
    rows = []
    for name, fit in named.items():
        directions = _directions(fit, along, n, seed)
        for r in radii:
            home = piece.delta(r * directions)
            for place, slice_ in places.items():
                true = home if slice_ is piece else slice_.delta(r * directions)
                guesses = {name: fit.predict(r * directions)}
                if slice_ is not piece:
                    guesses[f"true change on training prompts ({name})"] = home
                for what, guess in guesses.items():
                    rows.append(
                        {
                            "description": what,
                            "prompts": place,
                            "radius": float(r),
                            "coefficient": r / piece.unit,
                            **_errors(guess, true),
                        }
                    )
    return pd.DataFrame(rows)


def _check(named: Mapping[str, DCT], radii: Sequence[float], along: object, n: int) -> Map:
    if not named or any(fit.piece is not next(iter(named.values())).piece for fit in named.values()):
        raise ValueError(f"fits={list(named)}: give one or more descriptions of one and the same map")
    if not len(radii) or not all(0 < r < math.inf for r in radii):
        raise ValueError(f"radii={list(radii)!r}: give positive norms in activation units")
    if not isinstance(along, Tensor) and along not in ("features", "mixtures", "random"):
        raise ValueError(f"along={along!r}: use 'features', 'mixtures', 'random' or a tensor [k, d]")
    check_counts(n=n)
    return next(iter(named.values())).piece


def _directions(fit: DCT, along: Along | Tensor, n: int, seed: int) -> Tensor:
    if isinstance(along, Tensor):
        return unit(along.to(fit.V))
    if along == "features":
        return fit.V[:n]
    if along == "random":
        return random_units(n, fit.V.shape[1], seed).to(fit.V)
    # not by a basis of the span: for orthogonal features it is arbitrary, and with it the draw
    return unit(random_units(n, len(fit.V), seed).to(fit.V) @ fit.V)  # [n, features] @ [features, d]


def _errors(guess: Tensor, true: Tensor) -> dict[str, float]:
    size = true.norm(dim=-1)
    error = (guess - true).norm(dim=-1) / size
    cosine = torch.nn.functional.cosine_similarity(guess, true, dim=-1)
    low, mid, high = error.quantile(torch.tensor([0.25, 0.5, 0.75]).to(error)).tolist()
    best = (1 - cosine.clamp(min=0).square()).clamp(min=0).sqrt()
    return {
        "error": mid,
        "low": low,
        "high": high,
        "cosine": float(cosine.mean()),
        "best_scale": float(best.median()),
        "size": float(size.median()),
    }


def plot(table: pd.DataFrame, prompts: str = TRAINING, title: str = "") -> Figure:
    """Error against radius for the descriptions on one set of prompts; the dashed line at 1 is the
    prediction that nothing changes."""
    chosen = table[table["prompts"] == prompts]
    if not len(chosen):
        raise ValueError(f"prompts={prompts!r}: the table has {sorted(set(table['prompts']))}")
    lines = {name: part["error"].tolist() for name, part in chosen.groupby("description", sort=False)}
    radii = chosen["radius"].drop_duplicates().tolist()
    return plots.curves(
        radii, lines, chance=1.0, ylim=(0, 2), xlabel="radius (activation units)", ylabel="relative error", title=title
    )
