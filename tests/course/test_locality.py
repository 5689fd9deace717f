"""How far descriptions of a map hold: on maps known on paper, and on a small model."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("pandas")

from course.studies import locality
from course.studies.locality import TRAINING, hold
from kit.base.directions import orthogonal, random_units
from kit.search import dct
from kit.search.features import DCT
from kit.search.jacobians import overlap
from kit.search.layer_slice import LayerSlice
from kit.search.maps import Map
from kit.search.radius import Radius

EYE = torch.eye(12)
PROMPT = torch.arange(7)


# --- local or global --------------------------------------------------------------------------


def known(method: str, piece: Map, V: Tensor, U: Tensor, alpha: Tensor, radius: float = 1.0) -> DCT:
    norm = Radius(radius, radius, math.nan, [])
    return DCT(piece, method, V, U, alpha, piece.delta(radius * V), norm)


def planted() -> tuple[Map, Map, DCT, DCT]:
    """A map with exponential factors, itself at half strength, its description and its tangent."""
    V, U = orthogonal(random_units(6, 12, 0)), orthogonal(random_units(6, 12, 1))
    alpha = torch.linspace(2, 1, 6)
    piece, other = (Map(lambda theta, c=c: c * ((theta @ V.T).expm1() * alpha) @ U, 12) for c in (1.0, 0.5))
    return (piece, other, known("exponential", piece, V, U, alpha), known("linear", piece, V, U, alpha))


@pytest.mark.parametrize("along", ["features", "mixtures", "random"])
def test_a_true_description_holds_everywhere_and_a_tangent_only_nearby(along: Any) -> None:
    _, _, exact, tangent = planted()
    if along == "mixtures":  # that they stay within the span is all that they are for
        inside = locality._directions(exact, along, 9, 0)
        assert inside.norm(dim=-1).tolist() == pytest.approx([1] * 9, rel=1e-4)
        assert overlap(inside, exact.V) == pytest.approx(1)
        nudged = known("linear", exact.piece, exact.V + 1e-6 * random_units(6, 12, 5), exact.U, exact.alpha)
        assert (locality._directions(nudged, along, 9, 0) - inside).abs().max() < 1e-4, "the last digits draw others"
        skewed = known("linear", exact.piece, exact.V + exact.V[0], exact.U, exact.alpha)
        inside = locality._directions(skewed, along, 9, 0)
        assert inside.norm(dim=-1).tolist() == pytest.approx([1] * 9, rel=1e-4)
    table = hold({"exponential": exact, "linear": tangent}, [0.01, 0.5, 2.0], along=along)
    by = table.set_index(["description", "radius"])["error"]
    assert by["exponential"].max() < 1e-4
    assert by["linear"].is_monotonic_increasing
    assert by["linear", 0.01] < 0.01
    assert by["linear", 2.0] > 0.3
    if along == "features":
        assert by["linear", 2.0] == pytest.approx(1 - 2 / math.expm1(2), rel=1e-4)
    assert set(table["prompts"]) == {TRAINING}
    assert (table["coefficient"] == table["radius"]).all()  # a plain map has no other unit


def test_predicting_nothing_has_the_error_one() -> None:
    piece, _, exact, _ = planted()
    nothing = known("linear", piece, exact.V, exact.U, torch.zeros(6))
    assert hold(nothing, [0.5, 1.0])["error"].tolist() == pytest.approx([1, 1])


def test_off_the_prompt_the_best_possible_stands_beside() -> None:
    piece, other, exact, _ = planted()
    table = hold(exact, [1.0], {"half": other}).set_index(["description", "prompts"])
    assert table.loc[("exponential", TRAINING), "error"] == pytest.approx(0, abs=1e-4)
    off = table.loc[("exponential", "half")]
    assert off["error"] == pytest.approx(1, rel=1e-4)  # |2x - x| / |x|
    assert off["best_scale"] == pytest.approx(0, abs=2e-3)
    assert off["cosine"] == pytest.approx(1)
    best = table.loc[("true change on training prompts (exponential)", "half")]
    assert best["error"] == pytest.approx(1, rel=1e-4)
    assert best["size"] == pytest.approx(off["size"])
    assert TRAINING not in table.loc["true change on training prompts (exponential)"].index
    assert piece.d_model == 12


def test_the_best_scale_leaves_the_sine_of_the_angle() -> None:
    piece, _, exact, _ = planted()
    side = known("exponential", piece, exact.V, (exact.U + exact.U.roll(1, 0)) / 2**0.5, exact.alpha)
    row = hold(side, [1.0]).iloc[0]
    assert row["cosine"] == pytest.approx(0.5**0.5, rel=1e-4)  # 45 degrees
    assert row["best_scale"] == pytest.approx(0.5**0.5, rel=1e-4)


def test_given_directions_are_taken_at_the_radius() -> None:
    piece, _, exact, _ = planted()
    W = 7 * random_units(3, 12, 8)
    size = hold(exact, [2.0], along=W)["size"].iloc[0]
    assert size == pytest.approx(float(piece.delta(2 * W / 7).norm(dim=-1).median()))


def test_the_tangent_of_a_model_holds_nearby(llama: Any) -> None:
    piece = LayerSlice(llama, PROMPT, 0, 2)
    whole = dct.fit_map(piece, method="linear", n_features=piece.d_model, radius=1.0)
    others = {"other": LayerSlice(llama, torch.arange(20, 29), 0, 2)}
    small, large = 0.01 * piece.unit, 3 * piece.unit
    table = hold(whole, [small, large], others, along="random", n=6)
    by = table.set_index(["description", "prompts", "radius"])["error"]
    assert by["linear", TRAINING, small] < 0.05
    assert by["linear", TRAINING, large] > 3 * by["linear", TRAINING, small]
    assert by["linear", "other", small] > 3 * by["linear", TRAINING, small]
    assert table["coefficient"].max() == pytest.approx(3)
    pytest.importorskip("matplotlib")
    axis = locality.plot(table, "other").axes[0]
    assert len(axis.get_lines()) == 3  # the dashed line and two descriptions
    with pytest.raises(ValueError, match="prompts='none': the table has"):
        locality.plot(table, "none")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radii": [1.0, -1.0]}, "radii=.*give positive norms"),
        ({"radii": []}, "radii="),
        ({"along": "V"}, "along='V': use 'features'"),
        ({"n": 0}, "n=0"),
        ({"fits": {}}, "give one or more descriptions"),
        ({"fits": {"a": planted()[2], "b": planted()[2]}}, "of one and the same map"),
    ],
)
def test_hold_says_what_it_lacks(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hold(**{"fits": planted()[2], "radii": [1.0], **options})
