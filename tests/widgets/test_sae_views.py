"""PromptView and MatchBrowser without a browser: what their controls and methods do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import kit
from kit.sae import Dictionary, FeatureStore, Neighbours, mcs, read_prompt
from kit.widgets import FeatureBrowser, MatchBrowser, PromptView
from tests import tiny
from tests.sae.test_feature_store import dictionary, model, store, tokens

TEXT = tiny.SENTENCES[1]


@pytest.fixture
def view(model: Any, store: FeatureStore) -> Any:
    made = PromptView(store, model, TEXT)
    yield made
    made.close()


def answers(model: Any) -> tuple[str, str]:
    return model.tokenizer.decode([5]), model.tokenizer.decode([9])


def test_it_reads_the_text_and_lists_its_latents(view: Any, model: Any, store: FeatureStore) -> None:
    found = read_prompt(store, model, TEXT).ranked(n=40)
    assert [i for _, i in view.list.options] == found.latent.tolist()
    assert view.list.value is None and view.latent is None, "no page opens by itself"
    n = kit.text_tokens(model, TEXT).shape[1]
    assert view.frozen_html.count("<tr>") == n == len(view.token.options) - 1


def test_rankings_tokens_and_answers(view: Any, model: Any, store: FeatureStore) -> None:
    view.by.value = "attribution"
    assert "read the prompt with answers" in view._message.value
    view.by.value = "quantile"
    assert view._message.value == ""
    assert view.token.label == "all tokens", "a blank menu says nothing"
    view.token.value = 3
    want = view.reading.ranked("quantile", 3, 40).latent.tolist()
    assert [i for _, i in view.list.options] == want
    view.first.value, view.second.value = answers(model)
    view.by.value = "attribution"
    assert view.reading.answers == (5, 9) and "logit(" in view.frozen_html
    view.second.value = view.first.value
    assert "same token" in view._message.value


def test_a_pick_opens_the_latent_here_or_in_the_browser(view: Any, model: Any, store: FeatureStore) -> None:
    pick = view.list.options[1][1]
    view.list.value = pick
    assert view.latent == pick and f"#{pick}" in view._page.value
    browser = FeatureBrowser(store, model)
    other = PromptView(store, model, TEXT, browser=browser)
    other.list.value = pick
    assert browser.latent == pick and not other._page.value
    other.close()
    browser.close()


def test_a_leading_space_of_an_answer_is_seen(view: Any, model: Any) -> None:
    text = next(t for i in range(3, 300) if (t := model.tokenizer.decode([i])).startswith(" ") and t.strip())
    made = PromptView(view.store, model, TEXT, answers=(text, answers(model)[1]))
    assert made.first.value == f"·{text[1:]}" and f"<code>·{text[1:]}</code>" in made.frozen_html
    assert made.reading.answers[0] == model.tokenizer(text, add_special_tokens=False).input_ids[0]
    made.first.value = text
    assert made.first.value == f"·{text[1:]}" and not made._message.value
    made.close()


def test_pills_open_their_latent(view: Any) -> None:
    pick = view.list.options[1][1]
    assert f'data-latent="{pick}"' in view._table.value and "kit-picks" in view._dom_classes
    view._eyes.picked = f"{pick} 1"
    assert view.latent == view.list.value == pick and f"#{pick}" in view._page.value


def test_texts_are_escaped_and_empty_ones_named(view: Any) -> None:
    view.text.value = "<script>alert(1)</script>"
    assert "<script" not in view.frozen_html
    view.text.value = " "
    assert "text is empty" in view._message.value
    with pytest.raises(ValueError, match="text is empty"):
        view.run()


# --- two dictionaries ----------------------------------------------------------------------------


@pytest.fixture
def second(model: Any, store: FeatureStore) -> FeatureStore:
    """The same latents in another order, a few of them turned round."""
    import copy

    sae = copy.deepcopy(store.dictionary.sae)
    order = torch.randperm(len(store), generator=torch.Generator().manual_seed(5))
    for name in ("W_enc", "b_enc", "W_dec"):
        weight = getattr(sae, name)
        weight.data = weight.data[:, order] if name == "W_enc" else weight.data[order]
    if hasattr(sae, "threshold"):
        sae.threshold.data = sae.threshold.data[order]
    sae.W_dec.data[:3] *= -1
    other = Dictionary(sae, store.dictionary.site, "other", store.dictionary.fingerprint)
    return FeatureStore.build(other, model, store.tokens.long())


def test_matches_stand_side_by_side(model: Any, store: FeatureStore, second: FeatureStore) -> None:
    view = MatchBrowser(store, second, model)
    match = mcs(store.dictionary, second.dictionary)
    assert view.match.mean == match.mean and view.latent == view.listed[0]
    assert f"#{view.latent}<" in view._left.value
    assert f"other #{int(match.nearest[view.latent])}<" in view._right.value
    view.order.value = "farthest"
    alive = [i for i in range(len(store)) if store.density()[i] > 0]
    assert view.listed[0] == min(alive, key=lambda i: float(match.cosine[i]))
    view.order.value = "most frequent"
    assert view.listed[0] == int(store.density().argmax())
    view.list.value = view.listed[2]
    assert view.latent == view.listed[2] and f"{float(match.cosine[view.latent]):+.3f}" in view.frozen_html
    with pytest.raises(ValueError, match="latent=9999"):
        view.show(9999)
    view.close()


def test_a_page_names_the_nearest_latents(model: Any, store: FeatureStore, second: FeatureStore) -> None:
    browser = FeatureBrowser(store, model, others=[second.dictionary])
    near = Neighbours(store.dictionary, model, [second.dictionary])
    ((_, index, cosine),) = near.elsewhere(browser.latent)
    assert f"other #{index} ({cosine:+.2f})" in browser.frozen_html
    browser.sort_by("effect on the next token")
    said = store.maxima() * near.loudness
    assert browser.listed[0] == int(said.argmax())
    browser.close()
