"""Statistics on sets of directions, on sets whose numbers are known on paper."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("pandas")

from course.studies import multiplicity
from course.studies.multiplicity import Sides, compare, match, sign_flip, stability, summary
from kit.base.directions import orthogonal, random_units, unit
from kit.search import dct, statistics
from kit.search.maps import Map

EYE = torch.eye(12)


def tight(m: int, d: int, seed: int, spread: float) -> Tensor:
    """m unit directions about one axis; the smaller the spread, the more alike."""
    return unit(torch.eye(d)[0] + spread * random_units(m, d, seed))


# --- one set ----------------------------------------------------------------------------------


def test_mean_cosine_of_known_sets() -> None:
    assert statistics.mean_cosine(EYE[:5]) == pytest.approx(0)
    assert statistics.mean_cosine(torch.stack([EYE[0], -3 * EYE[0]])) == pytest.approx(1)
    right_and_half = torch.stack([EYE[0], EYE[1], EYE[0] + EYE[1]])
    assert statistics.mean_cosine(right_and_half) == pytest.approx(2 / 3 * math.sqrt(0.5))


@pytest.mark.parametrize(("d", "value"), [(2, 2 / math.pi), (3, 0.5)])
def test_expected_cosine_of_circle_and_sphere(d: int, value: float) -> None:
    assert statistics.expected_cosine(d) == pytest.approx(value)


def test_expected_cosine_is_what_random_directions_show() -> None:
    measured = statistics.mean_cosine(random_units(400, 100))
    assert statistics.expected_cosine(100) == pytest.approx(measured, rel=0.02)
    assert statistics.expected_cosine(10_000) == pytest.approx(math.sqrt(2e-4 / math.pi), rel=1e-3)


def test_orthogonal_directions_count_in_full() -> None:
    rows = orthogonal(random_units(7, 12))
    assert statistics.effective_rank(rows) == pytest.approx(7)
    assert statistics.participation_ratio(rows) == pytest.approx(7)
    assert statistics.condition(rows) == pytest.approx(1)


def test_a_lost_direction_is_told_by_the_rank_and_not_by_an_endless_condition() -> None:
    rows = torch.stack([EYE[0], EYE[0], EYE[1]])  # singular values sqrt(2), 1, 0
    assert statistics.condition(rows) == pytest.approx(math.sqrt(2))
    assert statistics.participation_ratio(rows) == pytest.approx(9 / 5)
    p = torch.tensor([math.sqrt(2), 1]) / (math.sqrt(2) + 1)
    assert statistics.effective_rank(rows) == pytest.approx(float((-(p * p.log()).sum()).exp()))
    assert summary(rows).loc["directions", ["m", "rank"]].tolist() == [3, 2]


def test_copies_add_nothing_to_the_ranks() -> None:
    rows = EYE[:4].repeat(3, 1)
    assert statistics.effective_rank(rows) == pytest.approx(4)
    assert statistics.participation_ratio(rows) == pytest.approx(4)


def test_lengths_signs_order_and_rotation_do_not_matter() -> None:
    rows = random_units(6, 12, 1)
    other = (rows * torch.tensor([2.0, -1, 0.1, -7, 3, 1])[:, None])[[5, 2, 0, 1, 4, 3]]
    other = other @ orthogonal(random_units(12, 12, 2))
    assert statistics.measures(other) == pytest.approx(statistics.measures(rows), rel=1e-4)


def test_measures_are_the_four_functions() -> None:
    rows = random_units(6, 12, 1)
    assert statistics.measures(rows) == pytest.approx(
        {name: getattr(statistics, name)(rows) for name in statistics.STATISTICS}
    )


def test_summary_sets_random_beside_found() -> None:
    table = summary({"alike": tight(16, 32, 0, 0.5), "random": random_units(16, 32, 9)})
    assert table.index.tolist() == ["alike", "random"]
    alike, random = table.loc["alike"], table.loc["random"]
    assert alike["mean_cosine"] > 0.5 > alike["random_cosine_high"]
    assert alike["effective_rank"] < 0.8 * alike["random_effective_rank"]
    assert random["random_cosine_low"] - 0.02 < random["mean_cosine"]
    assert random["mean_cosine"] < random["random_cosine_high"] + 0.02
    assert random["random_cosine_low"] < random["expected_cosine"] < random["random_cosine_high"]
    assert random["random_effective_rank"] == pytest.approx(random["effective_rank"], rel=0.05)


@pytest.mark.parametrize("rows", [EYE[:1], EYE[0], torch.zeros(0, 4)])
def test_no_statistics_of_too_few(rows: Tensor) -> None:
    with pytest.raises(ValueError, match=r"directions has shape .*give \[m, d\]"):
        summary(rows)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_rows_without_direction_are_named(value: float) -> None:
    rows = torch.eye(4)
    rows[2] = value
    with pytest.raises(ValueError, match=r"rows \[2\] of directions are zero or not finite"):
        statistics.mean_cosine(rows)


# --- two sets ---------------------------------------------------------------------------------


def test_match_undoes_a_shuffle_and_signs() -> None:
    a, order = random_units(9, 30), torch.randperm(9, generator=torch.Generator().manual_seed(1))
    b = torch.empty_like(a)
    b[order] = a * torch.tensor([1.0, -1] * 4 + [1])[:, None]
    partners, cosines = match(a, b)
    assert partners == order.tolist()
    assert cosines == pytest.approx(torch.ones(9))
    _, signed = match(a, b, signed=True)
    assert float(signed.max()) == pytest.approx(1)
    assert float(signed.mean()) < 0.8  # those that were turned round are not the same


def test_match_is_best_in_sum_not_greedy() -> None:
    a, b = (
        torch.tensor([[math.cos(math.radians(t)), math.sin(math.radians(t))] for t in angles])
        for angles in ((0, 30), (20, 80))
    )
    assert match(a, b)[0] == [0, 1]  # greedy gives b_0 to a_1, the closest pair
    cosines = a @ b.T
    assert float(cosines[1, 0]) == float(cosines.max())


def test_match_into_a_larger_set_and_not_into_a_smaller() -> None:
    a = random_units(6, 20)
    assert match(a[[4, 1]], a)[0] == [4, 1]
    with pytest.raises(ValueError, match="as many rows in b"):
        match(a, a[:2])
    with pytest.raises(ValueError, match="equal widths"):
        match(a, random_units(6, 10))


def test_the_same_features_in_another_order_are_stable() -> None:
    a = Sides(random_units(8, 40, 0), random_units(8, 40, 1))
    turned = Sides(*(t[torch.arange(8).flip(0)] for t in a[:2]))
    row = stability([a, turned]).iloc[0]
    for name in ("input", "effect", "effect_of_input_match", "input_of_effect_match"):
        assert row[name] == pytest.approx(1), name
    assert row["input_random"] < 0.5
    assert abs(row["effect_unmatched"]) < 0.3
    assert math.isnan(row["effect_random"])  # nothing to draw it from


def test_other_inputs_with_the_same_effect_show_as_multiplicity() -> None:
    effects = 5 * random_units(8, 40, 1)
    fits = [Sides(random_units(8, 40, 10 + i), effects, effects.roll(i, 0)) for i in range(3)]
    table = stability(fits, control=random_units(8, 40, 3))
    assert table[["first", "second"]].to_numpy().tolist() == [[0, 1], [0, 2], [1, 2]]
    assert (table["effect"] > 0.999).all()
    assert (table["effect_random"] < 0.6).all()
    assert (table["input"] - table["input_random"]).abs().max() < 0.1  # no better than chance
    assert (table["input_of_effect_match"] < 0.3).all()


def test_crosswise_columns_are_of_the_other_matching() -> None:
    V, U = random_units(8, 40, 0), random_units(8, 40, 1)
    turn = torch.arange(8).roll(3)  # inputs come back in one order, effects in another
    row = stability([Sides(V, EYE[:8], U), Sides(V[turn], EYE[:8], U)]).iloc[0]
    assert row["input"] == pytest.approx(1)
    assert row["effect"] == pytest.approx(1)
    assert row["effect_of_input_match"] == pytest.approx(float((U * U[turn.argsort()]).sum(-1).mean()))
    assert row["input_of_effect_match"] == pytest.approx(float((V * V[turn]).sum(-1).abs().mean()), abs=1e-6)


def test_stability_wants_two_of_one_size() -> None:
    a, b = (Sides(random_units(m, 10), random_units(m, 10)) for m in (3, 4))
    for fits in ([a], [a, b]):
        with pytest.raises(ValueError, match="give two or more of one size"):
            stability(fits)


def squeeze(d: int = 24) -> Map:
    """A linear map that hardly tells its inputs apart: one large singular value."""
    stretch = torch.full((d,), 0.05)
    stretch[0] = 1
    return Map(lambda theta: theta * stretch, d)


def test_fits_of_a_map_bring_their_own_baseline_of_effects() -> None:
    bend = Map(lambda theta: squeeze().change(theta) + theta.square(), 24)
    piece = bend  # where twice the norm is not twice the change
    fits = [dct.fit_map(piece, method="linear", n_features=4, radius=3.0, seed=s) for s in (0, 1)]
    row = stability(fits).iloc[0]
    assert row["input"] == pytest.approx(1, abs=1e-4)
    control = piece.delta(3 * random_units(4, 24, 77))
    assert row["effect_random"] == pytest.approx(float(match(fits[0].changes, control, signed=True)[1].mean()))


# --- inputs against outputs -------------------------------------------------------------------


def test_sign_flip_is_exact() -> None:
    assert sign_flip(torch.arange(1.0, 11)) == 2 / 2**10
    assert sign_flip([1.0, -1.0]) == 1
    assert sign_flip([0.0, 0.0, 0.0]) == 1
    gap = torch.tensor([0.3, -0.1, 0.5, 0.2, 0.4])
    patterns = itertools.product((-1, 1), repeat=5)
    sums = [abs(sum(s * g for s, g in zip(p, gap.tolist(), strict=True))) for p in patterns]
    reached = sum(s >= float(gap.sum()) - 1e-6 for s in sums)
    assert sign_flip(gap) == reached / 32 == 4 / 32
    assert sign_flip(-gap) == sign_flip(gap)


def test_sign_flip_of_many_is_drawn() -> None:
    gap = torch.randn(17, generator=torch.Generator().manual_seed(0)) + 0.4
    drawn = sign_flip(gap)
    assert drawn == sign_flip(gap)
    assert drawn == pytest.approx(sign_flip(gap, seed=1), abs=0.01)
    assert 0 < drawn < 1
    assert sign_flip(torch.ones(40)) == 1 / 100_001


@pytest.mark.parametrize("gap", [[], [1.0, float("nan")]])
def test_sign_flip_wants_numbers(gap: list[float]) -> None:
    with pytest.raises(ValueError, match="give at least one, all finite"):
        sign_flip(gap)


def made(n: int, v_spread: float, u_spread: float, m: int = 8) -> list[Sides]:
    return [Sides(tight(m, 30, i, v_spread), tight(m, 30, 100 + i, u_spread)) for i in range(n)]


def test_compare_finds_the_side_that_crowds() -> None:
    found = compare(made(10, 0.5, 2.0))
    row = found.tests.loc["mean_cosine"]
    assert row["V"] > row["U"]
    assert row["p"] == 2 / 2**10
    assert row["above"] == 1
    assert row["low"] > 0
    assert row["effect"] > 2
    assert found.tests.loc["effective_rank", "difference"] < 0
    assert found.tests.loc["condition", "difference"] > 0
    assert len(found.table) == 10
    assert found.table.loc[3, "V mean_cosine"] == pytest.approx(statistics.mean_cosine(tight(8, 30, 3, 0.5)))


def test_compare_finds_nothing_where_there_is_nothing() -> None:
    row = compare(made(12, 1.0, 1.0)).tests.loc["mean_cosine"]
    assert row["p"] > 0.05
    assert row["low"] < 0 < row["high"]


def test_compare_turns_round_with_its_sides() -> None:
    fits = made(8, 0.8, 1.0)
    here, there = (compare(f).tests for f in (fits, [Sides(f.U, f.V) for f in fits]))
    assert here["difference"].tolist() == pytest.approx((-there["difference"]).tolist())
    assert here["p"].tolist() == pytest.approx(there["p"].tolist())


def test_compare_keeps_what_it_is_told_to_keep() -> None:
    fits = made(7, 0.5, 2.0)
    chosen = iter([[0], [], [0, 1], [1, 2, 3], [5, 6], [2, 7], [0, 4]])
    found = compare(fits, keep=lambda _fit: next(chosen))
    assert found.skipped == 2
    assert found.table["m"].tolist() == [2, 3, 2, 2, 2]
    assert found.table.loc[0, "U mean_cosine"] == pytest.approx(statistics.mean_cosine(fits[2].U[[0, 1]]))
    with pytest.raises(ValueError, match=r"0 hold two directions or more \(7 do not\)"):
        compare(fits, keep=lambda _fit: [3])
    with pytest.raises(ValueError, match="fewer than 5"):
        compare(fits[:4])


def test_comparison_draws_every_fit() -> None:
    pytest.importorskip("matplotlib")
    figure = compare(made(6, 0.5, 2.0)).plot("effective_rank")
    axis = figure.axes[0]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["inputs V", "outputs U"]
    assert axis.get_title() == "6 fits, paired p = 0.031"
    assert "effective rank" in axis.get_xlabel()


def test_controls_show_what_the_map_does_to_random_inputs() -> None:
    fit = dct.fit_map(squeeze(), method="linear", n_features=8, radius=2.0)
    control = multiplicity.controls(fit)
    assert control.V.shape == control.U.shape == (8, 24)
    assert statistics.mean_cosine(control.V) < 0.3
    assert statistics.mean_cosine(control.U) > 0.7
    assert control.changes is not None
    torch.testing.assert_close(control.changes, fit.piece.delta(2 * control.V))


def test_same_token_is_the_largest_group_that_left_the_models_own(monkeypatch: pytest.MonkeyPatch) -> None:
    fit: Any = SimpleNamespace(thetas=EYE[:6], piece=None)

    def after(said: list[int]) -> list[int]:
        """The group, where the model says these tokens with each feature, and 4 without."""

        def logits(thetas: Tensor | None) -> Tensor:
            return torch.eye(6)[[4] if thetas is None else said][:, None]

        monkeypatch.setattr(multiplicity, "slice_behind", lambda _piece: SimpleNamespace(logits=logits))
        return multiplicity.same_token(fit)

    assert after([4, 2, 4, 1, 4, 1]) == [3, 5]
    assert after([4] * 6) == []


def test_seeds_of_a_model_go_through_all_of_it(llama: Any) -> None:
    fits = [
        dct.fit(llama, torch.arange(6), 0, 1, n_features=4, iterations=1, radius=2.0, orthogonalise=None, seed=s)
        for s in range(5)
    ]
    found = compare(fits)
    assert found.tests["p"].between(1 / 16, 1).all()
    table = stability(fits)
    assert len(table) == 10
    assert table["effect_random"].notna().all()
    group = multiplicity.same_token(fits[0])
    said = fits[0].piece.logits(fits[0].thetas)[:, 0].argmax(-1)
    assert len(set(said[group].tolist())) <= 1
