"""LensView: cells and words that can be clicked, words that go onto the panel, a frozen state."""

from __future__ import annotations

import codecs
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import kit
from kit.base.html import spaced
from kit.lens import Lens, markup
from kit.sae import FeatureStore, Site
from kit.sae.links import links
from kit.widgets import LensView, SteeringPanel
from kit.widgets.lens import view as module
from kit.widgets.panel.word_field import WordField
from tests import tiny
from tests.sae.test_links import dictionary, rows

TEXT = "The kettle hummed while rain ran down."


@pytest.fixture(scope="module")
def lens(tmp_path_factory: pytest.TempPathFactory) -> Lens:
    model = tiny.load(tmp_path_factory.mktemp("model"), "llama", chat=True)
    rng = torch.Generator().manual_seed(0)
    width = model.cfg.d_model
    return Lens(model, {at: torch.eye(width) + 0.2 * torch.randn(width, width, generator=rng) for at in (0, 2)})


def test_every_token_and_layer_has_a_cell_with_its_words(lens: Lens) -> None:
    view = LensView(lens.model, TEXT, lens, trace=(" the",))
    cells = re.findall(r'data-layer="(\d)" data-position="(\d+)"', view.grid.html)
    pieces = view.reading.pieces
    assert {*cells} == {(str(layer), str(at)) for layer in (0, 2) for at in range(len(pieces))}
    assert [layer for layer, _ in cells][:: len(pieces)] == ["2", "0"]  # the model ends on top
    corner = re.search(r'<th style="([^"]*)">layer</th>', view.grid.html)
    assert corner is not None and "z-index:2" in corner[1], "else the head's cells slide over it"
    assert "border-collapse:separate" in view.grid.html, "collapsed borders stay behind a sticky cell"
    title = re.search(r'data-layer="0" data-position="3"[^>]*title="([^"]*)"', view.grid.html)
    assert title is not None
    for part in ("layer 0, token 3", "Jacobian lens:", "logit lens:", "rank of &#x27; the&#x27;:"):
        assert part in title[1]
    view.close()


def test_a_click_opens_a_cell(lens: Lens) -> None:
    view = LensView(lens.model, TEXT, lens)
    assert view.chosen == (2, len(view.reading.pieces) - 1)
    view.grid.clicked = ["cell", 0, 3, 1]
    assert view.chosen == (0, 3) and "layer 0" in view.words.html
    word, p = view.reading.words(3, 0)[0]
    assert spaced(word) in view.words.html and f"{p:.2f}" in view.words.html
    view.which.value = "logit lens"
    plain, _ = view.reading.words(3, 0, plain=True)[0]
    cell = re.search(r'data-layer="0" data-position="3"[^>]*>(.*?)</td>', view.grid.html)
    assert cell is not None and cell[1] == spaced(plain)
    assert "outline:2px" in view.grid.html
    with pytest.raises(ValueError, match="layer=1: read were 0, 2"):
        view.show(1, 0)
    view.close()


def test_a_word_goes_onto_the_panel(lens: Lens) -> None:
    panel = SteeringPanel(lens.model, [], TEXT, max_new_tokens=2)
    view = LensView(lens.model, TEXT, lens, panel=panel, coefficient=0.2)
    marks = re.findall(r'data-mark="(kit-word-2-\d+)"', view.words.html)
    assert len(marks) == 16 and f'href="data:,{marks[0]}" draggable="true"' in view.words.html
    view.words.clicked = ["word", marks[0], 1]
    (row,) = panel.vector_rows
    token = int(marks[0].rsplit("-", 1)[1])
    want = lens.direction(lens.words_of([token])[0], 2)
    assert torch.equal(row.vector.direction, want.direction) and row.vector.layer == 2
    assert row.coefficient == pytest.approx(0.2) and "on the panel" in view._message.value
    panel.stop()
    panel.controller.wait(60)
    view.close()
    panel.close()


def test_without_a_panel_a_word_says_where_it_would_go(lens: Lens) -> None:
    view = LensView(lens.model, TEXT, lens)
    assert "data-mark" not in view.words.html
    view.words.clicked = ["word", "kit-word-2-5", 1]
    assert "panel=panel" in view._message.value
    with pytest.raises(ValueError, match="panel=None: give LensView the panel"):
        view.to_panel(" the", 0)
    view.close()


def test_another_text_is_read(lens: Lens) -> None:
    view = LensView(lens.model, TEXT, lens)
    before = view.reading
    view.text.value = "Twelve old clocks"
    assert view.reading is not before and "layer 2" in view.words.html
    view.text.value = " "
    assert "text is empty" in view._message.value
    view.close()


def test_the_filter_hides_and_says_so(lens: Lens, monkeypatch: pytest.MonkeyPatch) -> None:
    view = LensView(lens.model, TEXT, lens)
    bad = view.reading.words(3, 0)[0][0]
    monkeypatch.setattr(module, "is_vulgar", lambda word: word == bad)
    assert "hidden by a list" not in view.frozen_html
    view.filter.value = True
    cell = re.search(r'data-layer="0" data-position="3"[^>]*title="([^"]*)"[^>]*>(.*?)</td>', view.grid.html)
    assert cell is not None and "–" in cell[2] and repr(bad) not in cell[1]
    assert "hidden by a list" in view.frozen_html and codecs.decode("fuvg", "rot13") not in view.frozen_html
    view.close()


def test_a_frozen_view_has_its_words_and_no_script(lens: Lens) -> None:
    view = LensView(lens.model, TEXT, lens)
    frozen = view.frozen_html
    assert "<script" not in frozen and 'data-layer="2"' in frozen and "data-mark" not in frozen
    assert all(spaced(piece) in frozen for piece in view.reading.pieces)
    view.close()


def test_what_a_model_says_is_escaped(lens: Lens) -> None:
    read = lens.read(kit.text_tokens(lens.model, TEXT), k=2)
    object.__setattr__(read, "spell", lambda ids: ["<b>\"'"] * len(ids))
    made: Any = markup.grid(read)
    assert "<b>" not in made and "&lt;b&gt;" in made


def test_a_lens_of_another_model_is_refused(lens: Lens, tmp_path: Path) -> None:
    other = tiny.load(tmp_path, "llama", seed=3)
    with pytest.raises(ValueError, match="lens: it is of another model"):
        LensView(other, TEXT, lens)


def test_a_typed_word_becomes_a_slider(lens: Lens) -> None:
    panel = SteeringPanel(lens.model, [], TEXT, max_new_tokens=2, lens=lens)
    panel.take_words(lens)  # once is enough
    (field,) = (child for child in panel.children if isinstance(child, WordField))
    assert field.layer.options == (0, 2)
    field.layer.value = 0
    field.text.value = "the"
    assert panel.vector_rows == ()  # not while it is typed
    field.text._handle_custom_msg({"event": "submit"}, [])
    (row,) = panel.vector_rows
    assert torch.equal(row.vector.direction, lens.direction(" the", 0).direction)
    assert row.coefficient == pytest.approx(0.15) and field.text.value == ""
    field.text.value = "the > and"
    field.add.click()
    want = lens.direction(" and", 0).direction - lens.direction(" the", 0).direction
    torch.testing.assert_close(panel.vector_rows[1].vector.direction, want / want.norm())
    assert panel.vector_rows[1].vector.name == "the > and @0"
    field.text.value = "data:,kit-word-2-40"  # as a browser drops it
    assert panel.vector_rows[2].vector.layer == 2 and field.text.value == ""
    for wrong, says in {"kettle drum": "tokens", "a > b > c": "two with &gt; between", " > x": "give a word"}.items():
        field.text.value = wrong
        field.add.click()
        assert says in panel._message.value and len(panel.vector_rows) == 3
    panel.stop()
    panel.controller.wait(60)
    panel.close()


def test_a_panel_of_another_model_takes_no_words(lens: Lens, tmp_path: Path) -> None:
    other = tiny.load(tmp_path, "llama", seed=4)
    with pytest.raises(ValueError, match="lens: it is of another model than the panel's"):
        SteeringPanel(other, [], TEXT, lens=lens)


# --- what a direction reads as, wherever it has no name -------------------------------------------


def identity(model: Any) -> Lens:
    return Lens(model, {at: torch.eye(model.cfg.d_model) for at in range(model.cfg.n_layers - 1)})


def test_a_gallerys_cards_say_what_they_read_as(lens: Lens, llama: Any) -> None:
    word, other = lens.direction(" the", 0), kit.SteeringVector(torch.randn(lens.model.cfg.d_model), 1, "no lens here")
    gallery = kit.widgets.FeatureGallery(lens.model, [word, other], "Hi.", max_new_tokens=2, lens=lens)
    gallery.run(timeout=60)
    first, second = (card.body.value for card in gallery._cards[:2])
    assert "reads as" in first and spaced(lens.words(word).lens[0][0]) in first
    assert "reads as" not in second and "reads as" in gallery.frozen_html
    with pytest.raises(ValueError, match="lens: it is of another model"):
        kit.widgets.FeatureGallery(llama, [], lens=lens)
    gallery.close()


def test_pages_of_latents_and_links_say_it(llama: Any) -> None:
    a, b, ids = dictionary(llama, Site(1), 0), dictionary(llama, Site(2, "mlp_out"), 1), rows(llama, 6)
    stores, lens = [FeatureStore.build(d, llama, ids) for d in (a, b)], identity(llama)
    browser = kit.widgets.FeatureBrowser(stores[0], llama, labels=None, lens=lens, more=lambda _i: "<p>more</p>")
    said = markup.reads_as(lens.words(a.rows[browser.latent], 1))
    assert f"{said}<p>more</p>" in browser.frozen_html
    walk = kit.widgets.LinkBrowser(links(a, b, llama, ids, method="ablation"), *stores, llama, lens=lens)
    assert markup.reads_as(lens.words(b.rows[walk.latent], 2)) in walk.frozen_html
    browser.close()
    walk.close()


def test_a_reading_that_chance_gives_is_grey_and_says_so(lens: Lens) -> None:
    found = lens.words(lens.direction(" the", 0))
    sure, unsure = (markup.reads_as(replace(found, p=p)) for p in (0.005, 0.2))
    assert "no better than chance" in unsure and "no better" not in sure
    assert "opacity:0.55" in unsure and "opacity:0.9" in sure
