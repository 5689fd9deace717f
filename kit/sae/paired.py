"""Two models read together: the same tokens, both activations side by side."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from kit.activations import side_by_side
from kit.models import fingerprint
from kit.sae.site import Site
from kit.sae.source import Batch, Source

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Pair: TypeAlias = "tuple[TransformerBridge, TransformerBridge]"


def check_pair(models: Pair) -> None:
    """Refuse two models that no crosscoder can read together.

    Raises:
        ValueError: other tokenizers, widths or depths; or one model twice.
    """
    if len(models) != 2:
        raise ValueError(f"models has {len(models)} entries: give two, the first and the second")
    a, b = models
    for what, said in (("n_layers", "depths"), ("d_model", "widths")):
        mine, other = getattr(a.cfg, what), getattr(b.cfg, what)
        if mine != other:
            raise ValueError(f"models differ in their {said} ({what} {mine} and {other}): give a "
                             "model and one that was tuned from it")  # fmt: skip
    if a.tokenizer.get_vocab() != b.tokenizer.get_vocab():
        raise ValueError("models have different tokenizers, so that one text is not the same tokens: "
                         "give a model and one that was tuned from it")  # fmt: skip
    if fingerprint(a) == fingerprint(b):
        raise ValueError("models have the same weights: give the tuned model as the second")


class PairedSource(Source):
    """Batches ``{site: [batch, 2 * d_model]}``: both models' activations on the same tokens, side
    by side, each scaled to a mean norm of sqrt(d_model).

    Chunks, shuffling, sinks and the cache are those of :class:`kit.sae.Source`; a token that is a
    sink in either model is left out of both.

    Attributes:
        models: the two; ``model`` is the first of them.
        factors: ``[2]``, what each model's activations are multiplied with.
    """

    def __init__(
        self, models: Pair, texts: Sequence[str] | Tensor, site: Site, **settings: Any
    ) -> None:
        """
        Args:
            settings: as for :class:`kit.sae.Source`.

        Raises:
            ValueError: as :func:`check_pair` and :class:`kit.sae.Source`.
        """
        check_pair(models)
        self.models = models
        self.factors: Tensor | None = None
        super().__init__(models[0], texts, [site], **settings)

    @property
    def fingerprint(self) -> str:
        return " ".join(map(fingerprint, self.models))

    def _run(self, tokens: Tensor) -> Batch:
        (site,) = self.sites
        return {site: side_by_side(self.models, tokens, site.place)}

    def _usual(self, site: Site, some: Tensor) -> Tensor:
        halves = some.chunk(2, dim=-1)
        return super()._usual(site, halves[0]) & super()._usual(site, halves[1])

    def harvest(self, number: int) -> tuple[Batch, Tensor]:
        found, row = super().harvest(number)
        ((site, both),) = found.items()
        halves = both.unflatten(-1, (2, -1))
        if self.factors is None:
            self.factors = halves.shape[-1] ** 0.5 / halves.norm(dim=-1).mean(0)
        return {site: (halves * self.factors[:, None]).flatten(-2)}, row

    def state_dict(self) -> dict[str, Any]:
        factors = None if self.factors is None else self.factors.tolist()
        return {**super().state_dict(), "factors": factors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.factors = None if state["factors"] is None else torch.tensor(state["factors"])
