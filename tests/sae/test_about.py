"""What a page says beyond the store, against dense activations and plain runs of the model."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from kit.models.logit_lens import direction_logits, long_tokens
from kit.models.tokens import text_tokens
from kit.sae import CorpusLens, FeatureStore, about, pages
from tests.sae.test_feature_store import busiest, dense, dictionary, model, store, tokens


def test_correlations_are_those_of_the_dense_activations(
    store: FeatureStore, dense: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(about, "_LOOK", 97)  # pieces that end within a latent
    i = busiest(store)
    found = about.correlated(store, i, 6)
    r = torch.corrcoef(dense[:, 1:].flatten(0, 1).T.double()).nan_to_num(0)[i]
    r[i] = 0
    best = r.clamp(min=0).topk(6)
    assert found["r"].tolist() == pytest.approx(best.values.tolist(), abs=1e-4)
    assert r[found["latent"].tolist()].tolist() == pytest.approx(best.values.tolist(), abs=1e-4)


def test_overlap_is_both_over_either(store: FeatureStore, dense: torch.Tensor, tokens: torch.Tensor) -> None:
    some = tokens[:, 1:].unique()[5:8].tolist()
    here = torch.isin(tokens, torch.tensor(some))
    here[:, 0] = False
    fires = dense > 0
    both = (fires & here[..., None]).sum((0, 1))
    either = (fires | here[..., None]).sum((0, 1))
    assert torch.allclose(about.overlap(store, some), both / either.clamp(min=1))


def test_an_effect_is_the_difference_of_two_runs(model: Any, store: FeatureStore) -> None:
    i = busiest(store)
    e = store.top(i, 3)[1]
    found = about.effect(store, model, i, e)
    row = store.tokens[e.row].long()
    values = store.whole(i, e).values
    with torch.no_grad():
        plain = model(row[None]).log_softmax(-1)[0]

        def change(x: torch.Tensor, hook: Any) -> torch.Tensor:
            return x - values[:, None] * store.dictionary.rows[i]

        with model.hooks(fwd_hooks=[("blocks.1.hook_out", change)]):
            without = model(row[None]).log_softmax(-1)[0]
    n = len(e.tokens)
    for at in range(n):
        place = e.first + at
        if place + 1 < len(row):
            want = plain[place, row[place + 1]] - without[place, row[place + 1]]
            assert float(found.loss[at]) == pytest.approx(float(want), abs=1e-4)
        else:
            assert found.loss[at].isnan()
        for token, low, high in found.raised[at]:
            assert (low, high) == pytest.approx(
                (float(without[place, token].exp()), float(plain[place, token].exp())), abs=1e-5
            )
    assert max(abs(x) for x in found.loss.nan_to_num(0).tolist()) > 1e-3


def test_a_page_shows_the_whole_of_it(model: Any, store: FeatureStore) -> None:
    i = busiest(store)
    effects = [about.effect(store, model, i, e) for e in store.top(i, 8)]
    bare, html = pages.page(store, model, i), pages.page(store, model, i, label="mine <", effects=effects)
    for axis in ("activation", "tokens (√)", "logit, direct path"):
        assert re.search(rf">{re.escape(axis)}</(span|div)>", bare), "axes have titles"
    assert "correlated with" in bare and f'<span data-latent="{about.correlated(store, i, 1)["latent"][0]}">' in bare
    assert "without the latent" not in bare and "without the latent, the loss on the next token" in html
    assert "mine &lt;" in html and "no fair sample" in html


def test_the_logit_histogram_counts_every_token(model: Any, store: FeatureStore) -> None:
    row = store.dictionary.rows[3]
    lens = pages.logits(model, row)
    counted = sum(int(part.split('"')[0].rpartition(": ")[2]) for part in lens.split('<span title="')[1:])
    assert counted == model.cfg.d_vocab
    want = model.W_U.T.float() @ (row * model.ln_final.w.float()) if hasattr(model, "W_U") else None
    if want is not None:
        assert torch.allclose(direction_logits(model, row[None])[0], want, atol=1e-3)


def test_the_lens_of_the_corpus_stands_before_the_plain_one(model: Any, store: FeatureStore) -> None:
    html, best = pages.page(store, model, 3), CorpusLens(store, model).read(3, 1).top[0][1]
    first, plain = html.split("plain logit lens")
    assert f"{best:+.2f}" in first and "z-scores" in first and "promotes" in first and "promotes" in plain
    few = FeatureStore.build(store.dictionary, model, torch.arange(3, 43).reshape(2, 20))
    assert "plain logit lens" not in pages.page(few, model, 3), "no token is there three times"


def test_a_line_break_breaks_no_example() -> None:
    assert pages.shaded(["a", "\n", "b"], [0.0, 1.0, 0.0], 1.0, breaks=False).count("\n") == 0
    assert "⏎\n" in pages.shaded(["\n"], [1.0], 1.0)
