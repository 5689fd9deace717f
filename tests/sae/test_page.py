"""The page of a latent: escaped, complete, and the same without colour, script or network."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from kit.base.html import INK, SAFE
from kit.sae import FeatureStore, ablated_text, page, pages
from tests import tiny
from tests.sae import test_feature_store as shared
from tests.sae.test_feature_store import busiest

model, dictionary, tokens, store = shared.model, shared.dictionary, shared.tokens, shared.store  # fixtures


def test_a_page_shows_the_whole_range(model: Any, store: FeatureStore) -> None:
    i = busiest(store)
    html = page(store, model, i)
    assert f"#{i}" in html and f"{float(store.density()[i]):.3%}" in html
    for title in ("strongest", "over its whole range", "promotes", "suppresses", "activations"):
        assert title in html
    assert html.count("<details") == len(store.top(i, 8)) + html.count("plain logit lens")
    assert "<script" not in html and "http" not in html and "url(" not in html
    assert html.count("<div") == html.count("</div>")


def test_a_dead_latent_says_so(model: Any, store: FeatureStore) -> None:
    assert "never fires" in page(store, model, 7)
    with pytest.raises(ValueError, match="latent=96"):
        page(store, model, 96)


def test_text_is_escaped_and_odd_text_survives() -> None:
    texts = ["<script>alert(1)</script>", "&amp;", "👋🏽", "שלום", "a\nb", '"']
    html = pages.shaded(texts, [1.0, -1.0, 0.5, 0.2, 0.0, 0.01], 1.0)
    assert "<script>" not in html and "&lt;script&gt;" in html and "&amp;amp;" in html
    assert "👋🏽" in html and "שלום" in html and "a⏎\nb" in html
    assert html.count("<span") == 4, "what hardly fires is plain"
    assert pages.shaded(["x"], [0.0], 0.0) == "x"


def test_shades_follow_the_values() -> None:
    html = pages.shaded(["a", "b", "c"], [1.0, 0.5, -1.0], 1.0)
    alphas = [float(a) for a in re.findall(r"background:rgba\([\d,]+,([\d.]+)\)", html)]
    lines = [int(n) for n in re.findall(r"border-bottom:(\d)px", html)]
    assert alphas == [0.6, 0.3, 0.6] and lines == [3, 2, 3]
    assert html.count(SAFE) == 4 and html.count(INK) == 2


def test_the_histogram_has_a_bar_a_bin() -> None:
    html = pages.histogram(torch.tensor([4, 0, 1]), torch.tensor([-2.0, -1.0, 2.0, 3.0]))
    heights = [float(h) for h in re.findall(r"flex:1;height:([\d.]+)px", html)]
    assert heights == [62.0, 0.0, 31.0] and "2 to 3: 1" in html
    assert html.count(f"rgb({INK})") == 1 and html.count(f"rgb({SAFE})") == 2
    assert pages.histogram(torch.zeros(2), torch.tensor([0.0, 0.5, 1.0])).count("height:0.0px") == 2


def test_a_page_shows_its_figures_where_a_notebook_is_not_trusted(model: Any, store: FeatureStore) -> None:
    """JupyterLab then takes SVG out and leaves its words; a page has none."""
    assert "<svg" not in pages.page(store, model, busiest(store))


def test_ablated_text_beside_its_gradient(model: Any, store: FeatureStore) -> None:
    i = busiest(store)
    e = store.top(i, 1)[0]
    ids = e.tokens[: e.at + 1]
    found = ablated_text(store.dictionary, model, ids, i, pairs=True)
    html = pages.ablation(found, pages.words(model))
    assert "lost when the word is taken out" in html and "gradient x activation" in html
    assert ("correlation of the two" in html) == (found.agreement == found.agreement)
    assert tiny.SENTENCES and "<script" not in html
