"""The shipped lens is the embedded model's, and reads what it is about to say."""

from __future__ import annotations

from typing import Any

import pytest

import kit
from kit.lens import Lens
from kit.widgets import LensView
from tests import tiny


@pytest.fixture(scope="module")
def lens(smol: Any) -> Lens:
    return kit.data.lens(smol)


def test_all_layers_of_many_texts_whose_halves_agree(lens: Lens) -> None:
    assert lens.layers == list(range(29))
    assert lens.metadata["texts"] >= 60 and lens.metadata["tokens"] == 128
    assert min(lens.agreement.values()) > 0.5 and lens.agreement[28] > 0.95


@pytest.mark.parametrize(("country", "capital"), [("France", " Paris"), ("Italy", " Rome"), ("Japan", " Tokyo")])
def test_an_answer_is_read_before_the_logit_lens_reads_it(lens: Lens, country: str, capital: str) -> None:
    tokens = kit.text_tokens(lens.model, f"The capital of {country} is")
    found = lens.read(tokens, [20, 22], trace=[capital])
    ranks, plain = found.ranks[capital][:, -1], found.plain_ranks[capital][:, -1]
    assert (ranks < 1000).all() and (10 * ranks < plain).all()


@pytest.mark.parametrize("layer", [10, 14, 22])
def test_what_is_written_is_read(lens: Lens, layer: int) -> None:
    for word in (" ocean", " music", " food"):
        found = lens.words(lens.direction(word, layer))
        assert found.lens[0][0] == word and found.readable


def test_chance_is_seldom_readable(lens: Lens) -> None:
    rows = kit.directions.random_units(60, lens.model.cfg.d_model, seed=5)
    assert sum(found.readable for found in lens.name(rows, 14)) <= 9  # 3 of 60 are to be expected


def test_a_view_takes_it_unasked(lens: Lens) -> None:
    view = LensView(lens.model, kit.text_tokens(lens.model, "The capital of France is"))
    assert view.reading.layers == lens.layers and view.lens.model is lens.model


def test_another_model_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=r"is the lens of model \w+, this one is \w+; fit it again here"):
        kit.data.lens(tiny.load(tmp_path, "llama"))
