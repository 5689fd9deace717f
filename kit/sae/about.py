"""More about a latent than its store says at once: which are correlated with it, which fire on a
token, and what taking it out does to the model's predictions on an example."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kit.base.threads import fitted
from kit.models.bridge import runtime
from kit.models.hook_points import replaced
from kit.models.sites import Site
from kit.sae.store import Example, FeatureStore
from kit.sae.tables import strongest, table

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

_LOOK = 2**22  # entries that are looked at together


def _entries(store: FeatureStore) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Piece by piece: of which latent each entry is, where it is, its activation."""
    for at in range(0, len(store.where), _LOOK):
        count, piece = store.start.clamp(at, at + _LOOK).diff(), slice(at, at + _LOOK)
        which = torch.arange(len(store)).repeat_interleave(count)
        yield which, store.where[piece].long(), store.value[piece].float()


def correlated(store: FeatureStore, latent: int, n: int = 5) -> pd.DataFrame:
    """Latents whose activations rise and fall with this one's, over all tokens of the corpus.

    Returns:
        Columns ``latent`` and ``r`` (Pearson's correlation), highest first.

    Raises:
        ValueError: no such latent.
    """
    where, value = store.entries(latent)
    mine = torch.zeros(store.tokens.numel())
    mine[where] = value.float()
    sums = torch.zeros(3, len(store), dtype=torch.float64)  # of x, of x squared, of x times mine
    for which, at, x in _entries(store):
        for total, part in zip(sums, (x, x.square(), x * mine[at]), strict=True):
            total.index_add_(0, which, part.double())
    mean, square, product = sums / store.n_tokens
    spread = (square - mean.square()).clamp(min=0).sqrt()
    r = (product - mean * mean[latent]) / (spread * spread[latent]).clamp(min=1e-12)
    r[latent] = 0.0
    best = strongest(r.float().clamp(min=0), n)
    return table(latent=best, r=r[best])


def overlap(store: FeatureStore, tokens: Sequence[int]) -> Tensor:
    """How well "it fires" and "the token is one of these" agree, for each latent: ``[latents]``,
    tokens of the corpus with both over those with either (Jaccard), 0 to 1."""
    here = torch.isin(store.tokens, torch.tensor(list(tokens), dtype=store.tokens.dtype))
    here[:, 0] = False  # where nothing counts as firing
    here = here.flatten()
    both = torch.zeros(len(store))
    for which, at, _ in _entries(store):
        both.index_add_(0, which, here[at].float())
    return both / (store.start.diff() + int(here.sum()) - both).clamp(min=1)


@dataclass(frozen=True, eq=False)
class Effect:
    """What a latent does to the predictions after each token of an example.

    Attributes:
        loss: ``[n]``, by how much -log p of the token that follows rises without the latent, nats;
            NaN where the row of text ends.
        raised: for each token, the next tokens that the latent makes likelier, most first: ``(id,
            probability without it, with it)``.
    """

    loss: Tensor
    raised: list[list[tuple[int, float, float]]]


@torch.no_grad()
def effect(store: FeatureStore, model: TransformerBridge, latent: int, e: Example, n: int = 3) -> Effect:
    """Run an example's row with and without the latent, whose part (activation times row) is taken
    from the stream after its layer at every token of the row.

    Costs one pass of two rows, up to the end of the example.

    Args:
        n: how many raised tokens.

    Raises:
        ValueError: as :meth:`kit.sae.Latents.check`, or no such latent.
    """
    dictionary, state = store.dictionary, runtime(model)
    dictionary.check(model)
    whole, k = store.whole(latent, e), len(e.tokens)
    end = e.first + k
    part = torch.zeros(2, end, 1)  # of the row as it is, and of the one without
    part[1, :, 0] = whole.values[:end]
    taken = part * dictionary.rows[latent]
    tokens = whole.tokens[None, :end].expand(2, -1).to(model.cfg.device)
    with state.lock, fitted(2 * end), replaced(model, Site(dictionary.site.layer), lambda x: x - taken.to(x)):
        logits = state.clean(input_ids=tokens, use_cache=False, logits_to_keep=k).logits
    log_p = logits.float().log_softmax(-1).cpu()  # [2, k, d_vocab]
    following = whole.tokens[e.first + 1 : end + 1]
    loss = torch.full((k,), torch.nan)
    given = log_p[:, : len(following)].gather(-1, following.expand(2, -1)[..., None])[..., 0]
    loss[: len(following)] = given[0] - given[1]
    p = log_p.exp()
    best = (p[0] - p[1]).topk(n).indices  # [k, n]
    raised = [
        [(i, float(p[1, at, i]), float(p[0, at, i])) for i in ids if p[0, at, i] > p[1, at, i] + 5e-4]
        for at, ids in enumerate(best.tolist())
    ]
    return Effect(loss, raised)
