"""The browser without a browser: what its controls and methods do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kit.sae import FeatureStore, Latent
from kit.widgets import FeatureBrowser, SteeringPanel
from tests import tiny
from tests.sae.test_feature_store import dictionary, model, store, tokens


@pytest.fixture
def browser(model: Any, store: FeatureStore) -> Any:
    made = FeatureBrowser(store, model, like=torch.ones(48))
    yield made
    made.close()


def test_it_opens_the_strongest_latent(browser: Any, store: FeatureStore) -> None:
    best = int(store.maxima().argmax())
    assert browser.latent == best == browser.list.value == browser.number.value
    assert f"#{best}" in browser.frozen_html and browser.has_run
    assert 7 not in browser.listed, "dead latents are not listed"


def test_the_list_is_sorted_by_what_one_chooses(browser: Any, store: FeatureStore) -> None:
    browser.sort.value = "density"
    assert browser.listed[0] == int(store.density().argmax())
    values = store.density()[browser.listed]
    assert bool((values.diff() <= 0).all())
    browser.sort_by("similarity to the given vector")
    rows = store.dictionary.rows
    cosine = torch.cosine_similarity(rows, torch.ones(1, 48), dim=-1)
    assert cosine[browser.listed[0]] == cosine[store.density() > 0].max()
    with pytest.raises(ValueError, match="key='colour'"):
        browser.sort_by("colour")


def test_list_and_number_open_a_page(browser: Any) -> None:
    other = browser.listed[3]
    browser.list.value = other
    assert browser.latent == other and f"#{other}" in browser._page.value
    browser.number.value = browser.listed[1]
    assert browser.latent == browser.listed[1] == browser.list.value
    browser.number.value = 7
    assert "never fires" in browser.frozen_html


def test_my_own_text_ranks_and_shades(browser: Any, store: FeatureStore) -> None:
    browser.text.value = tiny.SENTENCES[1]
    browser.read.click()
    latents = store.dictionary.read(browser._lm, tiny.SENTENCES[1])[1:].amax(0)
    share = latents / store.maxima().clamp(min=1e-6)
    assert browser.latent == int(share.argmax()) == browser.listed[0]
    assert "on your text" in browser.frozen_html and browser.sort.value.startswith("how strongly")
    browser.text.value = ""
    browser.read.click()
    assert "no token" in browser._message.value, "an error is told, not raised"


def test_ablated_text_of_the_strongest_example_and_of_mine(browser: Any) -> None:
    browser.ablate.click()
    assert "lost when the word is taken out" in browser.frozen_html
    browser.try_text(tiny.SENTENCES[2])
    browser.ablate.click()
    assert "gradient x activation" in browser.frozen_html
    browser.text.value = ""
    browser.show(7)
    browser.ablate.click()
    assert "never fires on the corpus" in browser._message.value


def test_an_example_at_the_start_of_a_row_is_passed_over(browser: Any, monkeypatch: Any) -> None:
    i = browser.latent
    where, value = browser.store.entries(i)
    late = int((where % 20).argmax())
    first = browser.store.example(i, int(where[late]) // 20 * 20 + 1)
    found = browser.store.example(i, int(where[late]))
    assert found.first + found.at >= 2
    monkeypatch.setattr(browser.store, "top", lambda _i, _n: [first, found])
    browser.show_ablated()
    assert f"(activation {float(value[late]):.2f})" in browser.frozen_html


def test_a_latent_goes_to_the_panel_once(model: Any, store: FeatureStore) -> None:
    panel = SteeringPanel(model, [], "The kettle", max_new_tokens=4, chat=False)
    browser = FeatureBrowser(store, model, panel=panel)
    try:
        for _ in range(2):
            name = browser.to_panel()
            panel.run(timeout=60)
        (row,) = panel.vector_rows
        assert isinstance(row.vector, Latent) and row.vector.name == name
        assert row.vector.top == pytest.approx(float(store.maxima()[browser.latent]))
        assert len(panel.rows) == 2 and panel.rows[1].coefficients == (1.0,)
        browser.show(7)
        browser.steer.click()
        assert "never fires on the corpus, so it has no unit" in browser._message.value
    finally:
        browser.close()
        panel.close()


def test_without_a_panel_steering_says_so(browser: Any) -> None:
    assert browser.steer.disabled
    with pytest.raises(ValueError, match="panel=None"):
        browser.to_panel()
    with pytest.raises(ValueError, match=r"like has shape \[3\]"):
        FeatureBrowser(browser.store, browser._lm, like=torch.ones(3))
    with pytest.raises(ValueError, match=r"figures\['odd'\] has shape \[3\]"):
        FeatureBrowser(browser.store, browser._lm, figures={"odd": torch.ones(3)})


def test_figures_of_one_s_own_sort_the_list(browser: Any) -> None:
    mine = torch.rand(len(browser.store), generator=torch.Generator().manual_seed(0))
    mine[3] = float("nan")  # unknown comes last
    made = FeatureBrowser(browser.store, browser._lm, figures={"relative norm": mine})
    made.sort_by("relative norm")
    fires = browser.store.density() > 0
    order = mine.nan_to_num(-1).argsort(descending=True)
    assert made.listed == order[fires[order]].tolist()
