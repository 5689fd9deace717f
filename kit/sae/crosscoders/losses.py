"""The losses of crosscoders, on sae-lens's trainers: two models' rows, each with its own norm.

An activation is both models' side by side, and so is a decoder row. What makes a latent sparse is
its activation times the *sum* of its two rows' norms: with the norm of the whole row it would cost
nothing to spread over both models, and no latent would be exclusive to one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sae_lens.saes.standard_sae import StandardTrainingSAE
from torch import Tensor

from kit.sae.sparse import SparseBatchTopK, largest


def norms(rows: Tensor) -> Tensor:
    """Sum of the norms of the two halves of rows ``[latents, 2 * d_model]``."""
    return rows.unflatten(-1, (2, -1)).norm(dim=-1).sum(-1)


def paired_error(difference: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Squared errors ``[n, 2 * d_model]`` of what was made and what was given, and on top of their
    sum ``difference`` times the squared error of the second model less the first."""

    def error(made: Tensor, given: Tensor) -> Tensor:
        off = made - given
        first, second = off.chunk(2, dim=-1)
        apart = (second - first).square() * (difference / 2)
        return off.square() + torch.cat([apart, apart], dim=-1)

    return error


class PairedBatchTopK(SparseBatchTopK):
    """BatchTopK that selects by activation times the sum of both norms (Minder et al. 2025).

    Attributes:
        dedicated: the first so many latents belong to one model alone, and are selected among
            themselves: one norm stands against two, and they would never be chosen.
        dedicated_k: how many of them fire on a token, mean; they are part of ``k``.
    """

    dedicated, dedicated_k = 0, 0.0

    def __init__(self, cfg: Any, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        self.register_buffer("dedicated_threshold", torch.tensor(0.0, dtype=torch.double))

    def _select(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        if not self.dedicated:
            return super()._select(pre)
        n, own = len(pre), self.dedicated
        parts = (
            largest(pre[:, :own], int(self.dedicated_k * n), float(self.dedicated_threshold)),
            largest(pre[:, own:], int((self.cfg.k - self.dedicated_k) * n), float(self.topk_threshold)),
        )
        row = torch.cat([parts[0][0], parts[1][0]])
        order = row.argsort(stable=True)
        return row[order], torch.cat([parts[0][1], parts[1][1] + own])[order]

    def thresholds(self) -> Tensor:
        """What a latent must exceed to fire when nothing is trained, ``[latents]``."""
        found = self.topk_threshold.float().repeat(len(self.W_dec))
        found[: self.dedicated] = self.dedicated_threshold
        return found

    @torch.no_grad()
    def update_topk_threshold(self, acts_topk: Tensor) -> None:
        """Two running thresholds: dedicated latents compete among themselves alone."""
        super().update_topk_threshold(acts_topk[:, self.dedicated :])
        own = acts_topk[:, : self.dedicated]
        if bool((own > 0).any()):
            rate = self.cfg.topk_threshold_lr
            self.dedicated_threshold.lerp_(own[own > 0].min().double(), rate)

    def _norm(self) -> Tensor:
        return norms(self.W_dec)

    def calculate_aux_loss(
        self, step_input: Any, feature_acts: Tensor, hidden_pre: Tensor, sae_out: Tensor
    ) -> dict[str, Tensor]:
        """The loss of dead latents, with activations times the sum of both rows' norms."""
        # sae-lens divides by the norm of the whole row again
        scale = self.W_dec.norm(dim=-1) / self._norm()
        return super().calculate_aux_loss(step_input, feature_acts, hidden_pre * scale, sae_out)


class PairedStandard(StandardTrainingSAE):
    """ReLU with the L1 penalty ``sum_i f_i (|d_i first| + |d_i second|)`` (Lindsey et al. 2024)."""

    def thresholds(self) -> Tensor:
        """As of :class:`PairedBatchTopK`."""
        return torch.zeros_like(self.b_enc)

    def calculate_aux_loss(
        self, step_input: Any, feature_acts: Tensor, hidden_pre: Tensor, sae_out: Tensor
    ) -> dict[str, Tensor]:
        """L1 of activations times the sum of both rows' norms."""
        cost = (feature_acts * norms(self.W_dec)).sum(-1).mean()
        return {"l1_loss": step_input.coefficients["l1"] * cost}
