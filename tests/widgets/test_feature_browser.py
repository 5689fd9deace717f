"""The browser without a browser: what its controls and methods do."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from kit.sae import FeatureStore, Latent
from kit.sae.about import overlap
from kit.widgets import FeatureBrowser, SteeringPanel
from kit.widgets.latents.labels import Labels
from tests import tiny
from tests.sae.test_feature_store import dictionary, model, store, tokens


@pytest.fixture
def browser(model: Any, store: FeatureStore) -> Any:
    made = FeatureBrowser(store, model, like=torch.ones(48), labels=None)
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


def test_the_list_marks_the_open_latent_or_none_and_says_what_each_fires_on(browser: Any, store: FeatureStore) -> None:
    browser.show(7)
    assert browser.list.value is None, "a dead latent is not listed, so no other may look open"
    browser.sort_by("density")
    assert browser.list.value is None
    browser.show(browser.listed[4])
    assert browser.list.value == browser.latent
    i = browser.listed[4]
    line = dict((i, line) for line, i in browser.list.options)[i]
    top = store.by_token(i, 3, least=1)["token"].tolist()
    assert all(repr(browser._lm.tokenizer.decode([t])) in line for t in top) and f"#{i}" in line


def test_latents_that_fire_on_a_token_are_found(browser: Any, store: FeatureStore) -> None:
    words = [browser._lm.tokenizer.decode([t]) for t in store.tokens.unique().tolist()]
    token = max((t for t in words if t.strip().isalpha()), key=len)
    browser.find.value = token.strip().upper()
    same = [t for t in store.tokens.unique().tolist() if words_like(browser, t) == token.strip().casefold()]
    values = overlap(store, same)
    assert browser.listed[0] == browser.latent == int(values.argmax()) and repr(token) in browser.sort.value
    assert all(values[i] > 0 for i in browser.listed)
    browser.find.value = "qqqq"
    assert "no token of the corpus reads so" in browser._message.value


def words_like(browser: Any, token: int) -> str:
    return browser._lm.tokenizer.decode([token]).strip().casefold()


def test_labels_and_lists_are_kept_for_the_dictionary(model: Any, store: FeatureStore, tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    one, other = (FeatureBrowser(store, model, labels=path) for _ in range(2))
    assert not path.exists(), "written at the first label"
    a, b = one.listed[:2]
    one.name.value = "  <b>commas</b> "
    assert "<b>commas" not in one.frozen_html and "&lt;b&gt;commas" in one.frozen_html
    assert "“<b>commas</b>”" in one.list.options[0][0]
    one.mark.value = True
    other.show(b)
    other.group.value = "doubtful"
    other.mark.value = True  # the first browser's entries stay in the file
    again = FeatureBrowser(store, model, labels=path)
    assert again.labels.of == {a: "<b>commas</b>"} and again.labels.lists == {"starred": [a], "doubtful": [b]}
    assert again.name.value == "<b>commas</b>" and again.mark.value
    again.sort_by("my list: doubtful")
    assert again.listed == [b]
    again.show(b)
    assert not again.mark.value and again.name.value == ""
    again.show(a)
    again.name.value = ""
    again.mark.value = False
    assert FeatureBrowser(store, model, labels=path).labels.lists == {"doubtful": [b]}
    anew = copy.deepcopy(store.dictionary)
    anew.sae.W_enc.data *= 2
    theirs = Labels(anew, path)
    assert not theirs.of and not theirs.lists, "another dictionary's latents are others"
    path.write_text("{}")
    with pytest.raises(ValueError, match="is no file of labels"):
        FeatureBrowser(store, model, labels=path)
    one.name.value = "lost?"
    assert "not kept" in one._message.value and "is no file of labels" in one._message.value


def test_effects_are_shown_on_the_strongest_examples(browser: Any, store: FeatureStore) -> None:
    assert "with it" not in browser.frozen_html
    browser.weigh.click()
    assert browser._message.value == "" and "→" in browser.frozen_html and "no fair sample" in browser.frozen_html
    i = browser.latent
    browser.show(browser.listed[1])
    assert "no fair sample" not in browser.frozen_html
    browser.show(i)
    assert "no fair sample" in browser.frozen_html, "they are kept"


def test_a_click_on_a_latent_of_the_page_opens_it(browser: Any) -> None:
    other = browser.listed[2]
    browser._eyes.picked = f"{other} 1"
    assert browser.latent == other
    browser._eyes.picked = "99999 2"
    assert "latent=99999" in browser._message.value and browser.latent == other


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
