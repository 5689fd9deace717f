"""Differences between models, read in words: a planted one is found, and chance is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import kit
from kit.lens import Lens, difference
from kit.models.bridge import runtime
from tests import tiny

TEXTS = [*tiny.SENTENCES, *(f"{text} {text}" for text in tiny.SENTENCES)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Lens]:
    """A base, and a copy whose block 1 adds the direction of one word to every token."""
    folder = tmp_path_factory.mktemp("pair")
    base, tuned = (tiny.load(folder / name, "llama") for name in ("base", "tuned"))
    lens = Lens(base, {1: torch.eye(base.cfg.d_model), 2: torch.eye(base.cfg.d_model)})
    step = 2.0 * lens.direction(" the", 1).direction
    runtime(tuned).block(1).register_forward_hook(
        lambda _m, _i, out: (out[0] + step, *out[1:]) if isinstance(out, tuple) else out + step
    )
    return tuned, base, lens


def test_what_was_planted_is_read(pair: tuple[Any, Any, Lens]) -> None:
    tuned, base, lens = pair
    found = difference(tuned, base, TEXTS, lens, [1])
    own = lens.direction(" the", 1).direction
    torch.testing.assert_close(found.directions[1], 2.0 * own, atol=1e-4, rtol=1e-4)
    assert found.count == len(TEXTS) * 5 and found.halves[1].shape == (20, base.cfg.d_model)
    ranks = found.ranks([" the"], 1)
    assert ranks.words == {" the": 0} and ranks.median == 0
    assert ranks.p_random < 0.05 and ranks.p_halves < 0.1
    assert found.words(1, k=3).readable


def test_words_that_were_not_planted_have_ranks_of_chance(pair: tuple[Any, Any, Lens]) -> None:
    tuned, base, lens = pair
    found = difference(tuned, base, TEXTS, lens, [1])
    letters = [chr(c) for c in range(ord("a"), ord("z"))]
    ranks = found.ranks(letters, 1)
    assert 0.02 < ranks.p_random < 0.98 and len(ranks.words) == len(letters)
    plain = found.ranks(letters, 1, plain=True)
    assert plain.words == ranks.words  # this lens is the identity


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"texts": TEXTS[:3]}, "texts: 3 given; give at least four"),
        ({"layers": [0]}, "layer=0: this lens has layers 1, 2"),
        ({"tokens": 0}, "tokens=0: give a whole number from 1 on"),
        ({"base": "tuned"}, "lens: it is of another model; give that of the base"),
    ],
)
def test_what_does_not_fit_is_refused(pair: tuple[Any, Any, Lens], change: dict[str, Any], says: str) -> None:
    tuned, base, lens = pair
    given: dict[str, Any] = {"model": tuned, "base": base, "texts": TEXTS, "lens": lens, **change}
    given["base"] = tuned if given["base"] == "tuned" else given["base"]
    with pytest.raises(ValueError, match=says):
        difference(**given)
    with pytest.raises(ValueError, match="compared were 1"):
        difference(tuned, base, TEXTS, lens, [1]).ranks([" the"], 2)


def test_another_width_is_refused(pair: tuple[Any, Any, Lens], tmp_path: Path) -> None:
    _, base, lens = pair
    wide = tiny.load(tmp_path, "llama", hidden_size=64)
    with pytest.raises(ValueError, match="not one tuned from the other"):
        difference(wide, base, TEXTS, lens)
    assert kit.lens.difference is difference
