"""The lens against other latents: brute force over all of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import kit
from kit.sae import CorpusLens, Directions, FeatureStore, logit_lens
from tests.sae import test_feature_store as shared

model, dictionary, tokens, store = shared.model, shared.dictionary, shared.tokens, shared.store  # fixtures


def test_it_is_the_logit_scored_over_latents(model: Any, store: FeatureStore) -> None:
    found = CorpusLens(store, model, least=3)
    rows = torch.nn.functional.normalize(store.dictionary.rows, dim=-1)
    vocabulary = model.cfg.d_vocab
    logits = torch.zeros(len(rows), vocabulary)
    for i, row in enumerate(rows):
        for token, value in logit_lens(model, row, vocabulary, mads=float("inf")).top:
            logits[i, token] = value
    odds = logits - logits.mean(-1, keepdim=True)  # what raises every token raises none
    score = (odds - odds.mean(0)) / odds.std(0, correction=0)
    seen = torch.bincount(store.tokens.flatten(), minlength=vocabulary) >= 3
    assert found.tokens.tolist() == seen.nonzero()[:, 0].tolist() and 0 < len(found.tokens) < vocabulary
    for latent in (0, 5):
        told = found.read(latent, 4)
        want = score[latent].masked_fill(~seen, -torch.inf).topk(4)
        assert [i for i, _ in told.top] == want.indices.tolist()
        assert [z for _, z in told.top] == pytest.approx(want.values.tolist(), abs=1e-3)
        low = score[latent].masked_fill(~seen, torch.inf).topk(4, largest=False)
        assert [i for i, _ in told.bottom] == low.indices.tolist() and told.dropped == []


def test_what_every_latent_says_counts_for_nothing(model: Any, tokens: torch.Tensor) -> None:
    """A direction that all rows share heads the plain lens of each, and none of these."""
    rng = torch.Generator().manual_seed(0)
    shared_by_all = 5 * torch.randn(model.cfg.d_model, generator=rng)
    rows = shared_by_all + torch.randn(20, model.cfg.d_model, generator=rng)
    some = Directions([kit.SteeringVector(row, 1, str(i)) for i, row in enumerate(rows)], model, tokens[:4])
    store = FeatureStore.build(some, model, tokens[:4])
    found = CorpusLens(store, model, least=1)
    plain = [logit_lens(model, row, 1).top[0][0] for row in rows]
    scored = [found.read(i, 1).top[0][0] for i in range(len(rows))]
    assert len(set(plain)) < len(set(scored))
    assert len(found.mean) == len(found.tokens) == len(found.spread)


def test_what_it_refuses(model: Any, store: FeatureStore) -> None:
    with pytest.raises(ValueError, match=r"least=0"):
        CorpusLens(store, model, least=0)
    with pytest.raises(ValueError, match=r"least=100000: the corpus's most frequent token occurs \d+ times"):
        CorpusLens(store, model, least=100_000)
    with pytest.raises(ValueError, match="latent=96"):
        CorpusLens(store, model).read(96)
