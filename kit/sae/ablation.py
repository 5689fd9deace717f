"""Which earlier words a latent needs: ablated text, and gradient x activation beside it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kit.models.activations import Enough
from kit.models.bridge import runtime
from kit.models.hook_points import replaced
from kit.models.sites import Site
from kit.models.tokens import prompt_tokens
from kit.sae.latents import Latents

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_ROWS = 64  # texts a pass


@dataclass(frozen=True, eq=False)
class Ablation:
    """A latent on a text, and on the text with words missing.

    Attributes:
        tokens: ``[n]``, up to the token that the latent was read on.
        value: its activation there.
        removed: the positions that were removed, one at a time: all but the first and the last,
            within the window.
        change: ``[n]``, activation without the token less activation with it; 0 elsewhere.
        pairs: for pairs of positions ``(i, j)``: the change without both.
        gradient: ``[n]``, gradient x activation: what each token's embedding adds to the latent's
            pre-activation, to first order.
    """

    tokens: Tensor
    value: float
    removed: list[int]
    change: Tensor
    pairs: dict[tuple[int, int], float]
    gradient: Tensor

    @property
    def agreement(self) -> float:
        """Correlation of what removing a token costs with its gradient x activation, over the
        tokens that were removed; NaN where there are fewer than three."""
        if len(self.removed) < 3:
            return float("nan")
        cost, slope = -self.change[self.removed], self.gradient[self.removed]
        return float(torch.corrcoef(torch.stack([cost, slope]))[0, 1])

    def either(self, n: int = 3) -> list[tuple[int, int, float]]:
        """Pairs that matter together more than one by one: "A or B", which single removals miss.

        Returns:
            Up to n of ``(i, j, extra)``, extra being how much more the activation falls without
            both than by the two single falls added.
        """
        found = [(i, j, float(self.change[i] + self.change[j]) - both) for (i, j), both in self.pairs.items()]
        return sorted((f for f in found if f[2] > 0), key=lambda f: -f[2])[:n]


def ablated_text(
    dictionary: Latents, model: TransformerBridge, tokens: Tensor, latent: int, *, window: int = 40, pairs: bool = False
) -> Ablation:
    """Remove each earlier token in turn and read the latent on the last one again.

    Logan Riggs's "ablated text" (2023), all removals in one batch. The token is taken out, not
    masked, so later ones move up by a position.

    Args:
        tokens: ``[n]``; the latent is read on the last of them.
        window: how far back tokens are removed. The first token (an attention sink) stays.
        pairs: remove every pair too: ``window * (window - 1) / 2`` further texts.

    Raises:
        ValueError: no such latent, fewer than three tokens, or as :meth:`Latents.check`.
    """
    dictionary.check(model)
    dictionary.check_latent(latent)
    tokens = prompt_tokens(model, tokens, any_end=True)[0]
    n = len(tokens)
    if n < 3:
        raise ValueError(f"tokens has {n} tokens: give 3 or more, so that one can be removed")
    single = list(range(max(1, n - 1 - window), n - 1))
    couples = [(i, j) for a, i in enumerate(single) for j in single[a + 1 :]] if pairs else []
    last, gradient = _differentiated(dictionary, model, tokens, latent)
    value = dictionary.encode(last)[0, latent].cpu()
    change = torch.zeros(n)
    change[single] = _without(dictionary, model, tokens, [(i,) for i in single], latent) - value
    both = _without(dictionary, model, tokens, couples, latent) - value
    found = dict(zip(couples, both.tolist(), strict=True))
    return Ablation(tokens.cpu(), float(value), single, change, found, gradient)


def _differentiated(
    dictionary: Latents, model: TransformerBridge, tokens: Tensor, latent: int
) -> tuple[Tensor, Tensor]:
    """The activation that the latent reads on the last token, ``[1, width]``, and gradient x
    activation of every token ``[n]``, from one pass that ends there."""
    found = [_last_differentiable(reader, dictionary.site, tokens[None]) for reader in dictionary.readers(model)]
    read, embedded = zip(*found, strict=True)
    last = torch.cat([x.to(read[0].device) for x in read], dim=-1)
    with torch.enable_grad():
        slopes = torch.autograd.grad(dictionary.before(last)[0, latent], embedded)
    parts = [(g * e.detach()).float().sum(-1)[0].cpu() for g, e in zip(slopes, embedded, strict=True)]
    return last.detach(), torch.stack(parts).sum(0)


def _last_differentiable(model: TransformerBridge, site: Site, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """What the site holds on the last of ``[1, n]`` tokens, ``[1, width]``, and the embeddings that
    it is a function of, ``[1, n, d_model]``."""
    state, kept = runtime(model), []

    def keep(x: Tensor) -> Tensor:
        kept.append(x[0, -1:])
        raise Enough

    with state.lock, torch.enable_grad():
        decoder: Any = state.decoder
        embedded = decoder.get_input_embeddings()(tokens.to(model.cfg.device)).detach().requires_grad_()
        with suppress(Enough), replaced(model, site, keep):
            state.clean(inputs_embeds=embedded, use_cache=False)
    return kept[0], embedded


def _without(
    dictionary: Latents, model: TransformerBridge, tokens: Tensor, gone: Sequence[tuple[int, ...]], latent: int
) -> Tensor:
    if not gone:
        return torch.zeros(0)
    keep = torch.ones(len(gone), len(tokens), dtype=torch.bool)
    for row, places in enumerate(gone):
        keep[row, list(places)] = False
    # [texts, n] less the gone: [texts, n - len(places)]
    rows = tokens.expand(len(gone), -1)[keep.to(tokens.device)].reshape(len(gone), -1)
    return torch.cat([_last(dictionary, model, part, latent) for part in rows.split(_ROWS)])


def _last(dictionary: Latents, model: TransformerBridge, rows: Tensor, latent: int) -> Tensor:
    return dictionary.encode(dictionary.activations(model, rows)[:, -1])[:, latent].cpu()
