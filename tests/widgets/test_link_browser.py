"""LinkBrowser: opens, walks, freezes, and says what does not fit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from kit.sae import FeatureStore, Site
from kit.sae.links import links
from kit.widgets import LinkBrowser
from tests.sae.test_links import dictionary, rows


@pytest.fixture
def made(llama: Any) -> LinkBrowser:
    a, b, ids = dictionary(llama, Site(1), 0), dictionary(llama, Site(2, "mlp_out"), 1), rows(llama, 6)
    found = links(a, b, llama, ids, method="ablation")
    stores = [FeatureStore.build(d, llama, ids) for d in (a, b)]
    return LinkBrowser(found, *stores, llama, n=5)


def test_it_opens_at_the_strongest_link(made: LinkBrowser) -> None:
    best = made.links.top(1)
    assert (made.side, made.latent) == ("target", int(best["target"].iloc[0]))
    assert made.others[0] == (int(best["source"].iloc[0]), pytest.approx(best["share"].iloc[0]))
    assert all(f">{share:+.1%}</text>" in made._svg() for _, share in made.others), "numbers on the live edges"
    assert len(made.others) == 5 and made._svg().count("<path") == 5


def test_a_click_walks_to_the_other_end(made: LinkBrowser) -> None:
    there = made.others[2][0]
    made.buttons[2].click()
    assert (made.side, made.latent) == ("source", there)
    assert (made.which.value, made.number.value) == ("source", there)
    share = made.links.share[there]
    assert made.others[0][0] == int(share.abs().argmax())
    back = made.others[0][0]
    made.buttons[0].click()
    assert (made.side, made.latent) == ("target", back)
    best = made.others[0][0]
    made.which.value = "source"
    assert (made.side, made.latent) == ("source", best)
    made.which.value = "target"
    made.number.value = 7
    assert (made.side, made.latent) == ("target", 7)


def test_a_number_that_is_none_is_said(made: LinkBrowser) -> None:
    before = made.latent
    made.number.value = 999
    assert "latent=999" in made._message.value and made.latent == before
    with pytest.raises(ValueError, match="side='middle'"):
        made.show("middle", 0)  # type: ignore[arg-type]


def test_it_stays_readable_without_a_kernel(made: LinkBrowser) -> None:
    html = made.frozen_html
    assert f"#{made.latent}" in html and "<svg" in html and "<script" not in html
    assert all(f"#{i}" in html for i, _ in made.others)


def test_latents_that_never_fire_have_a_page(made: LinkBrowser, llama: Any) -> None:
    store = made._stores["source"]
    dead = (store.density() == 0).nonzero()[:, 0].tolist()
    store.start, store.where, store.value = (torch.zeros(len(store) + 1).long(), store.where[:0], store.value[:0])
    made.show("source", dead[0] if dead else 0)
    assert "never fires" in made._centre.value


def test_stores_of_other_dictionaries(made: LinkBrowser, llama: Any) -> None:
    with pytest.raises(ValueError, match=r"sources is a store of 'd1': the links are of 'd0'"):
        LinkBrowser(made.links, made._stores["target"], made._stores["source"], llama)
    store = made._stores["source"]
    anew = copy.deepcopy(store)
    assert LinkBrowser(made.links, anew, made._stores["target"], llama).links is made.links
    anew.dictionary.sae.W_enc.data *= 2
    with pytest.raises(ValueError, match=r"sources is a store of 'd0': the links are of 'd0' with other weights"):
        LinkBrowser(made.links, anew, made._stores["target"], llama)
