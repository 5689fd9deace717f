"""What training changed, read in words: activation differences between a model and its base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kit.base.checks import check_counts
from kit.base.directions import random_units
from kit.lens.lens import Lens
from kit.lens.reading import Words, ranks_of
from kit.models.activations import residuals
from kit.models.logit_lens import direction_logits
from kit.models.tokens import Text

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_SPLITS, _CONTROLS = 20, 200


@dataclass(frozen=True)
class Ranks:
    """Where a list of words stands in what a direction says.

    Attributes:
        words: the ranks, 0 is the first of the vocabulary; ``median`` of them.
        p_random: the share of random directions, itself among them, whose median is at least as
            good; ``p_halves``: of differences between halves of the base's own texts.
    """

    words: Mapping[str, int]
    median: float
    p_random: float
    p_halves: float


@dataclass(frozen=True, eq=False)
class Difference:
    """Mean differences by layer, and what they are held against.

    Attributes:
        lens: of the base.
        directions: by layer ``[d_model]``, activation units.
        halves: by layer ``[splits, d_model]``: the base's mean on one half of the texts less that
            on the other, for random halves.
        count: how many token positions the means are of.
    """

    lens: Lens = field(repr=False)
    directions: Mapping[int, Tensor] = field(repr=False)
    halves: Mapping[int, Tensor] = field(repr=False)
    count: int

    def words(self, layer: int, k: int = 10) -> Words:
        """What the difference after a layer says; see :meth:`Lens.words`."""
        return self.lens.words(self._at(layer), layer, k)

    def ranks(self, words: Sequence[str], layer: int, *, plain: bool = False) -> Ranks:
        """How early a list of words comes, by median rank: decide on the list before you look.

        Args:
            words: single tokens.
            plain: by the logit lens.

        Raises:
            ValueError: no words, one of several tokens, or a layer that is not here.
        """
        if not words:
            raise ValueError("words=[]: give at least one")
        rows = torch.cat([self._at(layer)[None], self.halves[layer], random_units(_CONTROLS, len(self._at(layer)))])
        matrix = torch.eye(rows.shape[1]) if plain else self.lens.matrix(layer)
        asked = [self.lens.token(word) for word in words]
        parts = (rows @ matrix.T).split(32)
        ranks = torch.cat([ranks_of(direction_logits(self.lens.model, part), asked) for part in parts])
        # [1 + splits + random, words]
        medians = ranks.float().quantile(0.5, dim=-1)
        own, halves, chance = medians.split([1, len(self.halves[layer]), _CONTROLS])

        def p(others: Tensor) -> float:
            return (1 + int((others <= own).sum())) / (1 + len(others))

        return Ranks(dict(zip(words, ranks[0].tolist(), strict=True)), float(own), p(chance), p(halves))

    def _at(self, layer: int) -> Tensor:
        if layer not in self.directions:
            raise ValueError(f"layer={layer!r}: compared were {', '.join(map(str, self.directions))}")
        return self.directions[layer]


def difference(
    model: TransformerBridge,
    base: TransformerBridge,
    texts: Sequence[Text],
    lens: Lens,
    layers: Sequence[int] | None = None,
    *,
    tokens: int = 5,
) -> Difference:
    """What a tuned model does otherwise than its base on texts that have nothing to do with its
    training, at their first tokens: what it was trained for shows there (Minder et al. 2025,
    arXiv:2510.13900).

    Args:
        texts: unrelated to what the model may have learnt, at least four; the first token of each
            does not count.
        lens: of the base.
        layers: of the lens; None for all of them.
        tokens: how many of each text count.

    Raises:
        ValueError: fewer than four texts, one that is too short, models of different widths, or a
            lens of another model than the base.
    """
    check_counts(tokens=tokens)
    if lens.model is not base:
        raise ValueError("lens: it is of another model; give that of the base")
    if model.cfg.d_model != base.cfg.d_model or model.cfg.n_layers != base.cfg.n_layers:
        raise ValueError(
            f"model has {model.cfg.n_layers} layers of width {model.cfg.d_model}, base "
            f"{base.cfg.n_layers} of {base.cfg.d_model}: they are not one tuned from the other"
        )
    if len(texts) < 4:
        raise ValueError(f"texts: {len(texts)} given; give at least four, so that there are halves")
    layers = lens.layers if layers is None else list(layers)
    for layer in layers:
        lens.matrix(layer)
    read = slice(1, 1 + tokens)
    tuned, plain = (residuals(m, texts, layers, read).unflatten(0, (len(texts), -1)) for m in (model, base))
    own, rng = plain.mean(1), torch.Generator().manual_seed(0)  # [texts, layers, d_model]
    halves = []
    for _ in range(_SPLITS):
        order = torch.randperm(len(texts), generator=rng)
        first, second = order[: len(texts) // 2], order[len(texts) // 2 :]
        halves.append(own[first].mean(0) - own[second].mean(0))
    shift, split = (tuned - plain).mean((0, 1)), torch.stack(halves)  # [layers, d], [splits, layers, d]
    return Difference(
        lens,
        dict(zip(layers, shift, strict=True)),
        {layer: split[:, at] for at, layer in enumerate(layers)},
        len(texts) * tuned.shape[1],
    )
