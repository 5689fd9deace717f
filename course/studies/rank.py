"""Rank directions that come from elsewhere, an SAE's decoder rows say, by what they change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from kit.base.checks import check_counts
from kit.base.directions import random_units, unit
from kit.base.progress import track
from kit.search.features import vector
from kit.search.layer_slice import slice_behind
from kit.search.maps import Map, passes
from kit.search.radius import Radius, resolve
from kit.search.statistics import broken
from kit.steering.vectors import SteeringVector

if TYPE_CHECKING:
    import pandas as pd

_CHUNK = 256


@dataclass(frozen=True)
class Candidates:
    """Candidate directions, best first.

    Attributes:
        table: indexed by the row of W; ``linear``, ``|J (R w)|``, and ``change``, ``|delta(R w)|``
            (NaN where it was not measured), activation units, for w at norm 1;
            ``times_random``, the ranked one of the two over its median for random directions.
        directions: all the unit directions ``[n, d]``, in the order of W.
        rank_correlation: Spearman's, of linear and change, on the rows drawn for it (see
            :func:`rank_directions`), or on all where all were measured.
        random: ``linear`` and ``change`` of random directions of the same norm.
        by: what ranks.
    """

    piece: Map = field(repr=False)
    radius: Radius = field(repr=False)
    table: pd.DataFrame = field(repr=False)
    directions: Tensor = field(repr=False)
    rank_correlation: float
    random: pd.DataFrame = field(repr=False)
    by: str

    def top(self, n: int) -> Tensor:
        """The n best directions ``[n, d]``, unit rows: what to search the span of."""
        return self.directions[self.table.index[:n].tolist()]

    def vectors(self, n: int, names: Sequence[str] | None = None) -> list[SteeringVector]:
        """The n best as steering vectors at the slice's source layer.

        Args:
            names: of every row of W (tokens, SAE latents).

        Raises:
            ValueError: the map was not made of a model.
        """
        piece = slice_behind(self.piece)
        found = []
        for i in self.table.index[:n].tolist():
            name = f"candidate {i}" if names is None else str(names[i])
            found.append(vector(piece, self.directions[i], self.radius, name, "candidate", {"row": i}))
        return found


@torch.no_grad()
def rank_directions(
    piece: Map,
    W: Tensor,
    radius: float | str | Radius = "auto",
    by: Literal["linear", "change"] = "linear",
    *,
    verify: int = 64,
    n_random: int = 64,
    seed: int = 0,
) -> Candidates:
    """Rank candidate directions by how much they change downstream.

    Args:
        W: ``[n, d]``, one direction a row, put at norm 1 first.
        radius: the norm at which they act, activation units, or ``"auto"``.
        by: ``"linear"``, ``|J w|``, which ranks as ``|J w|^2`` does (equation 7 of Mack,
            Panickssery and Turner, 2026): d_model passes whatever n is, the Jacobian times W;
            or ``"change"``, the true ``|delta(R w)|``: a pass a row.
        verify: by ``"linear"``, true changes are measured of this many best rows, and of as many
            drawn at random, on which the rank correlation stands (the best alone would hide how
            well the whole is ranked).
        n_random: random directions to compare with.

    Raises:
        ValueError: W of another width, with zero rows or not finite; another name or number.
    """
    import pandas as pd

    if by not in ("linear", "change"):
        raise ValueError(f"by={by!r}: use 'linear' or 'change'")
    check_counts(2, verify=verify)
    check_counts(n_random=n_random)
    W = unit(_checked(W, piece).to(piece.origin))
    norm = resolve(piece, radius)
    r = norm.value
    control = random_units(n_random, piece.d_model, seed).to(W)
    if len(W) > piece.d_model:  # by all axes once, instead of one by one
        eye = torch.eye(piece.d_model).to(W)
        image = torch.cat([piece.jvp(eye[at]) for at in _chunks(len(eye), "axes")])  # J^T, [d_in, d_out]
        slope = torch.cat([(W[at] @ image).norm(dim=-1) for at in _chunks(len(W), "rows")])
    else:
        slope = torch.cat([piece.jvp(W[at]).norm(dim=-1) for at in _chunks(len(W), "rows")])
    linear = r * slope
    rng = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(W), generator=rng)[: len(W) if by == "change" else verify]
    best = linear.argsort(descending=True)[:verify].cpu()
    measured = torch.cat([drawn, best]).unique()
    change = torch.full((len(W),), torch.nan).to(W)
    for at in _chunks(len(measured), "directions"):
        change[measured[at]] = piece.delta(r * W[measured[at]]).norm(dim=-1)
    random = pd.DataFrame(
        {
            "linear": r * piece.jvp(control).norm(dim=-1).cpu().numpy(),
            "change": piece.delta(r * control).norm(dim=-1).cpu().numpy(),
        }
    )
    table = pd.DataFrame({"linear": linear.cpu().numpy(), "change": change.cpu().numpy()})
    table["times_random"] = table[by] / random[by].median()
    sample = table.iloc[drawn.tolist()]
    correlation = float(sample["linear"].rank().corr(sample["change"].rank()))
    table.index.name = "row"
    table = table.sort_values(by, ascending=False, kind="stable")
    return Candidates(piece, norm, table, W, correlation, random, by)


def _checked(W: Tensor, piece: Map) -> Tensor:
    W = torch.as_tensor(W).detach().float()
    if W.dim() != 2 or W.shape[1] != piece.d_model or len(W) < 2:
        raise ValueError(f"W has shape {list(W.shape)}: give [n, {piece.d_model}], n of 2 or more")
    bad = broken(W)
    if bad:
        raise ValueError(f"rows {bad[:8]} of W ({len(bad)} in all) are zero or not finite: leave them out")
    return W


def _chunks(n: int, what: str) -> Iterable[slice]:
    found = passes(n, _CHUNK)
    return track(found, f"chunks of {what}") if len(found) > 1 else found
