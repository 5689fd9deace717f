"""The losses of crosscoders, on sae-lens's trainers: two models' rows, each with its own norm.

An activation is both models' side by side, and so is a decoder row. What makes a latent sparse is
its activation times the *sum* of its two rows' norms: with the norm of the whole row it would cost
nothing to spread over both models, and no latent would be exclusive to one.
"""
from __future__ import annotations

from typing import Any

from sae_lens.saes.standard_sae import StandardTrainingSAE
from torch import Tensor

from kit.sae.sparse import SparseBatchTopK


def norms(rows: Tensor) -> Tensor:
    """Sum of the norms of the two halves of rows ``[latents, 2 * d_model]``."""
    return rows.unflatten(-1, (2, -1)).norm(dim=-1).sum(-1)


class PairedBatchTopK(SparseBatchTopK):
    """BatchTopK that selects by activation times the sum of both norms (Minder et al. 2025)."""

    def _norm(self) -> Tensor:
        return norms(self.W_dec)

    def calculate_aux_loss(
        self, step_input: Any, feature_acts: Tensor, hidden_pre: Tensor, sae_out: Tensor
    ) -> dict[str, Tensor]:
        # sae-lens divides by the norm of the whole row again
        scale = self.W_dec.norm(dim=-1) / self._norm()
        return super().calculate_aux_loss(step_input, feature_acts, hidden_pre * scale, sae_out)


class PairedStandard(StandardTrainingSAE):
    """ReLU with the L1 penalty ``sum_i f_i (|d_i first| + |d_i second|)`` (Lindsey et al. 2024)."""

    def calculate_aux_loss(
        self, step_input: Any, feature_acts: Tensor, hidden_pre: Tensor, sae_out: Tensor
    ) -> dict[str, Tensor]:
        cost = (feature_acts * norms(self.W_dec)).sum(-1).mean()
        return {"l1_loss": step_input.coefficients["l1"] * cost}
