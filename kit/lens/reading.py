"""What a lens reads: of a prompt, a grid of words; of a direction, a list of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd

READABLE = 0.05  # p from which on a reading is no better than chance


@dataclass(frozen=True, eq=False)
class Reading:
    """What a model is about to say at every token of a prompt, layer by layer.

    Attributes:
        pieces: the prompt's tokens; ``layers``: as asked for.
        ids, p: by the Jacobian lens ``[layers, pos, k]``, likeliest first; ``plain_ids``,
            ``plain_p``: by the logit lens.
        final_ids, final_p: ``[pos, k]``, what the model says in the end.
        ranks, plain_ranks: of each traced word its rank ``[layers, pos]``, 0 is the first.
    """

    pieces: list[str]
    layers: list[int]
    ids: Tensor = field(repr=False)
    p: Tensor = field(repr=False)
    plain_ids: Tensor = field(repr=False)
    plain_p: Tensor = field(repr=False)
    final_ids: Tensor = field(repr=False)
    final_p: Tensor = field(repr=False)
    ranks: Mapping[str, Tensor] = field(repr=False)
    plain_ranks: Mapping[str, Tensor] = field(repr=False)
    spell: Callable[[Sequence[int]], list[str]] = field(repr=False)

    def words(self, position: int, layer: int, *, plain: bool = False) -> list[tuple[str, float]]:
        """Words and probabilities at one token and layer.

        Args:
            position: of the token, from 0; negative from the end.
            plain: by the logit lens.

        Raises:
            ValueError: a layer that was not read; IndexError: no such token.
        """
        if layer not in self.layers:
            raise ValueError(f"layer={layer!r}: read were {', '.join(map(str, self.layers))}")
        at = self.layers.index(layer)
        ids, p = (self.plain_ids, self.plain_p) if plain else (self.ids, self.p)
        return list(zip(self.spell(ids[at, position].tolist()), p[at, position].tolist(), strict=True))

    def table(self, *, plain: bool = False) -> pd.DataFrame:
        """The likeliest word by layer (rows) and token (columns); the last row is what is said."""
        import pandas as pd

        ids = self.plain_ids if plain else self.ids
        rows = [self.spell(row[:, 0].tolist()) for row in (*ids, self.final_ids)]
        columns = [f"{i} {piece!r}" for i, piece in enumerate(self.pieces)]
        return pd.DataFrame(rows, index=[*map(str, self.layers), "said"], columns=columns).rename_axis("layer")


@dataclass(frozen=True)
class Words:
    """What a direction says.

    Attributes:
        lens: words and scores by the Jacobian lens, highest first; ``plain``: by the logit lens. A
            score is a logit in standard deviations over the vocabulary. ``ids``, ``plain_ids``:
            which tokens they are.
        peak: the mean score of the first; ``p``: the share of random directions, itself among them,
            that peak at least as high.
    """

    lens: list[tuple[str, float]]
    plain: list[tuple[str, float]]
    peak: float
    p: float
    ids: list[int] = field(repr=False)
    plain_ids: list[int] = field(repr=False)

    @property
    def readable(self) -> bool:
        """Whether chance rarely reads so well; no proof that the direction *is* its words."""
        return self.p < READABLE

    def __str__(self) -> str:
        said = ", ".join(repr(word)[1:-1] for word, _ in self.lens)
        return f"reads as {said} (peak {self.peak:.1f}, p = {self.p:.3f})"


def ranks_of(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """Ranks ``[pos, tokens]`` of tokens in logits ``[pos, d_vocab]``, 0 the highest."""
    if not tokens:
        return torch.zeros(len(logits), 0, dtype=torch.long)
    return torch.stack([(logits > logits[:, t, None]).sum(-1) for t in tokens], dim=-1).cpu()
