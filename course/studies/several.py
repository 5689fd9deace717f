"""Searches on several locked prompts: which prompts, and objectives that add up norms."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kit.base.directions import unit
from kit.data import organisms
from kit.search.layer_slice import LayerSlice
from kit.search.rank_one_map import RankOneMap

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def prompts_of(model: TransformerBridge, name: str, seed: int = 0, n: int = 1) -> list[Tensor]:
    """The n locked prompts of a search: vector items in an order of the seed, in the trained
    wordings in turn. Fewer are the first of more, and the first is the item of the seed's number.

    Raises:
        ValueError: the organism has fewer vector items.
    """
    items = organisms.items(name, "vector")
    if n > len(items):
        raise ValueError(f"prompts={n}: {name} has {len(items)} vector items")
    first = seed % len(items)
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed)).tolist()
    order = [first, *(i for i in order if i != first)]
    wordings = organisms.TRAINED
    return [organisms.prompt(model, items[i], wordings[k % len(wordings)]) for k, i in enumerate(order[:n])]


class AddedSlice(LayerSlice):
    """A slice whose searches climb the mean over prompts of the change's norm, not the norm of the
    mean: the gradient of what :func:`kit.search.dct.fit_map` climbs is added up over prompts."""

    def vjp(self, thetas: Tensor, outputs: Tensor | None) -> tuple[Tensor, Tensor]:
        """As of any map; without ``outputs`` the mean change, and the gradient of the mean norm."""
        if outputs is not None:
            return super().vjp(thetas, outputs)
        parts = [LayerSlice.vjp(self.part(slice(i, i + 1)), thetas, None) for i in range(self.n_prompts)]
        values, grads = zip(*parts, strict=True)
        return sum(values[1:], values[0]), sum(grads[1:], grads[0])


class AddedBand(RankOneMap):
    """The same for factors: the gradient of the mean norm, whatever the output directions."""

    def gradient(self, phi: Tensor, outputs: Tensor, radius: float) -> tuple[Tensor, Tensor]:
        """The mean changes, and the gradient of the mean over prompts of the change's norm."""
        values, grads = torch.zeros_like(outputs), torch.zeros_like(phi)
        for i in range(self.piece.n_prompts):
            one = copy.copy(self)
            one.piece = self.piece.part(slice(i, i + 1))
            value, grad = RankOneMap.gradient(one, phi, unit(one.delta(phi, radius)), radius)
            values, grads = values + value, grads + grad
        return values, grads
