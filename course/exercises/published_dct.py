"""Deep Causal Transcoding as its first public code has it: for section 6 of notebook 06.

That code (github.com/amack315/melbo-dct-post, ``src/dct.py`` at commit c0b76b7) computes something
else than its text in three places: ``svd-columns`` (lines 230 and 231), ``no-second-derivative``
(lines 296 to 312), ``qr-signs`` (line 461). One step differs without being wrong: ``stale-u`` (line
471). Each is kept here behind a name, so that its cost can be shown:
``kit.dct.fit_map(piece, steps=Published(["qr-signs"]))``.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from kit.base.directions import orthogonal, random_units, unit
from kit.search.dct import Step, Steps, pulled
from kit.search.maps import Map

SLIPS = {
    "qr-signs": "QR may turn v into -v between two exponential iterations",
    "svd-columns": "columns of V^T are taken for right singular vectors",
    "no-second-derivative": "quadratic: J v is differentiated along v, on which J does not depend",
    "stale-u": "exponential: gradients are taken along the u of the iteration before (no mistake, "
    "but slower: with the newest u they climb the mean of |delta(R v)| itself)",
}


class Published(Steps):
    """:class:`kit.search.dct.Steps` with some of what the published code does otherwise.

    The result keeps the last iteration's U, as published, which belongs to the V before.

    Raises:
        ValueError: a name that is no key of :data:`SLIPS`.
    """

    def __init__(self, slips: Collection[str]) -> None:
        """Args: ``slips``, keys of :data:`SLIPS`."""
        if isinstance(slips, str) or any(s not in SLIPS for s in slips):
            raise ValueError(f"slips={slips!r}: give a list of {', '.join(map(repr, SLIPS))}")
        self.slips = frozenset(slips)

    def orthogonalised(self, V: Tensor) -> Tensor:
        return orthogonal(V, "qr-signs" not in self.slips)

    def exponential(self, piece: Map, V: Tensor, U: Tensor, r: float) -> Step:
        if "stale-u" not in self.slips:
            return super().exponential(piece, V, U, r)
        changes, grads = piece.vjp(r * V, U)
        return Step(unit(grads), unit(changes), r * grads.norm(dim=-1), float((changes * U).sum(-1).mean()))

    def quadratic(self, piece: Map, V: Tensor, U: Tensor, r: float) -> Step:
        if "no-second-derivative" not in self.slips:
            return super().quadratic(piece, V, U, r)
        outs, grads = piece.jvp(V), pulled(piece, U)
        return Step(unit(grads), unit(outs), grads.norm(dim=-1), float((outs * U).sum(-1).mean()))

    def singular(
        self, piece: Map, J: Tensor | None, m: int, projections: int, r: float, seed: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        if "svd-columns" not in self.slips:
            return super().singular(piece, J, m, projections, r, seed)
        if J is None:
            J = pulled(piece, random_units(projections, piece.d_model, seed).to(piece.origin))
            V = torch.linalg.svd(J)[2][:, :m].T.contiguous()
            U = unit(piece.delta(r * V))
        else:
            U, _, Vh = torch.linalg.svd(J)
            V, U = Vh[:, :m].T.contiguous(), U[:, :m].T.contiguous()
        return V, U, (piece.jvp(V) * U).sum(-1)

    def last_outputs(self, U: Tensor) -> Tensor | None:
        return U
