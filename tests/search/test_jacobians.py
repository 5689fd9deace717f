"""Jacobians: on maps known on paper, and exact."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

pytest.importorskip("pandas")

import kit
from kit.base.directions import random_units
from kit.search.jacobians import jacobians, overlap
from kit.search.layer_slice import LayerSlice
from kit.search.statistics import spectrum_rank

EYE = torch.eye(12)
PROMPT = torch.arange(7)


# --- spans ------------------------------------------------------------------------------------


def test_overlap_is_of_spans_not_of_rows() -> None:
    plane = torch.stack([EYE[0] + EYE[1], EYE[0] - 0.3 * EYE[1], 2 * EYE[0]])  # three rows, a plane
    assert overlap(plane, EYE[:2]) == pytest.approx(1)
    assert overlap(plane, EYE[:6]) == pytest.approx(1)  # contained
    assert overlap(EYE[:6], plane) == pytest.approx(1)
    assert overlap(plane, EYE[2:5]) == pytest.approx(0)
    assert overlap(plane, EYE[1:3]) == pytest.approx(0.5)


def test_overlap_by_chance() -> None:
    found = [overlap(random_units(8, 64, 2 * i), random_units(16, 64, 2 * i + 1)) for i in range(30)]
    assert sum(found) / 30 == pytest.approx(16 / 64, abs=0.02)


# --- Jacobians --------------------------------------------------------------------------------


def test_next_layer_spectra_are_those_of_the_exact_jacobian(llama: Any) -> None:
    family = jacobians(llama, PROMPT, [0, 1])
    assert family.exact
    for layer in (0, 1):
        J = LayerSlice(llama, PROMPT, layer, layer + 1).jacobian()
        s = torch.linalg.svdvals(J)
        torch.testing.assert_close(family.spectrum(layer), s, rtol=1e-4, atol=1e-4)
        assert family.random[layer] == pytest.approx(float(J.norm()) / math.sqrt(len(J)), rel=1e-4)
        right = family.leading(layer, 5)
        torch.testing.assert_close((right @ J.T).norm(dim=-1), s[:5], rtol=1e-3, atol=1e-4)
        left = family.leading(layer, 5, "output")
        torch.testing.assert_close((left @ J).norm(dim=-1), s[:5], rtol=1e-3, atol=1e-4)
        row = family.table().loc[layer]
        assert row["target"] == layer + 1
        assert row["top"] == pytest.approx(float(s[0]), rel=1e-4)
        assert row["energy"] == pytest.approx(1, abs=1e-4)
        assert row["effective_rank"] == pytest.approx(spectrum_rank(s), rel=1e-3)


def test_random_projections_find_the_head_of_the_spectrum(llama: Any) -> None:
    last = llama.cfg.n_layers - 1
    head = jacobians(llama, PROMPT, [0], "last", n=8)
    assert not head.exact
    whole = jacobians(llama, PROMPT, [0], "last", exact=True)
    assert head.table().loc[0, "target"] == last
    torch.testing.assert_close(head.spectrum(0), whole.spectrum(0)[:8], rtol=0.05, atol=0.01)
    assert overlap(head.leading(0, 4), whole.leading(0, 4)) > 0.9
    assert head.random[0] == pytest.approx(whole.random[0], rel=0.25)  # 32 random directions
    share = float(whole.spectrum(0)[:8].square().sum() / whole.spectrum(0).square().sum())
    assert head.table().loc[0, "energy"] == pytest.approx(share, rel=0.5)
    assert 0 < head.table().loc[0, "energy"] < 1


def test_overlaps_among_layers_and_with_other_directions(llama: Any) -> None:
    family = jacobians(llama, PROMPT, [0, 1])
    inside = family.overlaps(4)
    assert inside.index.tolist() == inside.columns.tolist() == [0, 1]
    assert inside.loc[0, 0] == pytest.approx(1)
    assert inside.loc[0, 1] == pytest.approx(inside.loc[1, 0])
    on = family.overlaps(4, "output", "input").loc[0, 1]
    assert on == pytest.approx(overlap(family.leading(0, 4, "output"), family.leading(1, 4)))
    mine = family.leading(1, 4)
    assert family.overlaps(4, other=mine).loc[1, "directions"] == pytest.approx(1)
    assert family.overlaps(4, other=family).equals(inside)


def test_singular_vectors_steer_at_their_layer(llama: Any) -> None:
    vectors = jacobians(llama, PROMPT, [1], coefficient=0.3).parts[1].vectors(2)
    assert [v.layer for v in vectors] == [1, 1]
    assert vectors[0].metadata["coefficient"] == pytest.approx(0.3)
    with kit.steer(llama, {vectors[0]: 0.3}) as receipt:
        llama(PROMPT[None])
    assert "layer 1" in str(receipt)


def test_the_spectra_as_a_picture(llama: Any) -> None:
    pytest.importorskip("matplotlib")
    family = jacobians(llama, PROMPT, [0, 1])
    lines = family.plot().axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["0 to 1", "1 to 2"]
    assert lines[0].get_ydata()[0] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "first"}, "to='first': use 'next', 'last' or a layer"),
        ({"layers": []}, "layers is empty"),
        ({"layers": [1], "to": 1}, "the source layer must lie below"),
        ({"layers": [99]}, "99"),
    ],
)
def test_jacobians_of_nothing(llama: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        jacobians(llama, PROMPT, **{"layers": [0], **options})


def test_questions_that_a_family_cannot_answer(llama: Any) -> None:
    family = jacobians(llama, PROMPT, [0])
    for ask, message in (
        (lambda: family.spectrum(1), r"layer=1: these Jacobians start after \[0\]"),
        (lambda: family.leading(0, 1), "k=1: there are"),
        (lambda: family.leading(0, 999), "k=999: there are"),
        (lambda: family.leading(0, 3, "left"), "side='left'"),
    ):
        with pytest.raises(ValueError, match=message):
            ask()
