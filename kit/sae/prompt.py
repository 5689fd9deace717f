"""One text, all latents: which fire on each token, how unusually, and what they do to an answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from kit.models.bridge import runtime
from kit.models.hook_points import replaced
from kit.models.sites import Site
from kit.models.tokens import one_text
from kit.sae.latents import Latents
from kit.sae.store import FeatureStore
from kit.sae.tables import strongest, table

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

By = Literal["activation", "quantile", "attribution"]
RANKINGS = ("activation", "quantile", "attribution")


@dataclass(frozen=True, eq=False)
class Reading:
    """What latents did on a text; see :func:`read_prompt`.

    Attributes:
        tokens: ``[n]``.
        activation: ``[n, latents]``; 0 at the first token, an attention sink.
        quantile: ``[n, latents]``, share of the latent's firings on the store's corpus that are
            weaker; 0 where it does not fire.
        attribution: ``[n, latents]``, gradient x activation on the answers' logit difference; None
            where none was asked for.
        answers: the two tokens of that difference.
        difference: the logit difference itself.
    """

    tokens: Tensor
    activation: Tensor
    quantile: Tensor
    attribution: Tensor | None = None
    answers: tuple[int, int] | None = None
    difference: float = float("nan")

    def ranked(self, by: By = "activation", position: int | None = None, n: int = 10) -> pd.DataFrame:
        """Latents that fire, by one of three figures.

        Args:
            by: ``"attribution"`` ranks by size, whichever answer it favours.
            position: of one token; None takes each latent where it counts most.

        Returns:
            Columns ``latent, position, activation, quantile`` and, where there are answers,
            ``attribution``.

        Raises:
            ValueError: an unknown ranking, an attribution without answers, no such position.
        """
        if by not in RANKINGS:
            raise ValueError(f"by={by!r}: use {', '.join(map(repr, RANKINGS))}")
        if by == "attribution" and self.attribution is None:
            raise ValueError("by='attribution': read the prompt with answers=(...), two tokens")
        if position is not None and not 0 <= position < len(self.tokens):
            raise ValueError(f"position={position!r}: this text has tokens 0 to {len(self.tokens) - 1}")
        score = getattr(self, by).abs() * (self.activation > 0)
        if position is None:
            best, at = score.max(0)
        else:
            best, at = score[position], torch.full((score.shape[1],), position)
        which = strongest(best, n)
        where = at[which]
        figures = {"activation": self.activation, "quantile": self.quantile, "attribution": self.attribution}
        told = {name: x[where, which] for name, x in figures.items() if x is not None}
        return table(latent=which, position=where, **told)


def read_prompt(
    store: FeatureStore, model: TransformerBridge, text: str | Tensor, *, answers: tuple[str, str] | None = None
) -> Reading:
    """Read all of a store's latents on a text.

    Args:
        text: or tokens ``[n]``.
        answers: two continuations, of which the first tokens are compared: attribution is then
            how much each latent, at each token, adds to ``logit(first) - logit(second)`` at the
            end, to first order.

    Raises:
        ValueError: answers that start with the same token, or as :meth:`Latents.check`.
    """
    latents = store.dictionary
    tokens = one_text(model, text)[None]
    values = store.read(model, tokens)
    quantile = torch.zeros_like(values)
    for i in values.amax(0).nonzero()[:, 0].tolist():
        seen = store.entries(i)[1].float().sort().values
        fired = values[:, i] > 0
        rank = torch.searchsorted(seen, values[fired, i].contiguous()) / max(len(seen), 1)
        quantile[fired, i] = rank.clamp(min=1e-6)  # it fires, however weakly
    if answers is None:
        return Reading(tokens[0].cpu(), values, quantile)
    ids = _first_tokens(model, answers)
    slope, difference = _slope(model, latents, tokens, ids)
    attribution = values * (slope @ latents.rows.T.to(slope)).cpu()
    return Reading(tokens[0].cpu(), values, quantile, attribution, ids, difference)


def _first_tokens(model: TransformerBridge, answers: tuple[str, str]) -> tuple[int, int]:
    if isinstance(answers, str) or len(answers) != 2 or not all(answers):
        raise ValueError(f"answers={answers!r}: give two texts, as (' yes', ' no')")
    first, second = (model.tokenizer(a, add_special_tokens=False).input_ids[0] for a in answers)
    if first == second:
        raise ValueError(f"answers={answers!r}: both start with the same token; give two that differ")
    return first, second


def _slope(model: TransformerBridge, latents: Latents, tokens: Tensor, ids: tuple[int, int]) -> tuple[Tensor, float]:
    """Gradient of the last token's logit difference in the stream after the latents' layer,
    ``[n, d_model]``, and the difference."""
    state, kept = runtime(model), []

    def leaf(x: Tensor) -> Tensor:
        kept.append(x.detach().requires_grad_())
        return kept[0]

    with state.lock, torch.enable_grad(), replaced(model, Site(latents.site.layer), leaf):
        logits = state.clean(input_ids=tokens, use_cache=False, logits_to_keep=1).logits[0, -1]
        difference = logits[ids[0]] - logits[ids[1]]
        (grad,) = torch.autograd.grad(difference.float(), kept[0])
    return grad[0].float(), float(difference.detach())
