"""Choosing on validation items, testing on others, and the recovered share of the gap."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from course.studies import elicitation, recovery
from course.studies.elicitation import Choice, Setting
from kit.data import organisms
from kit.steering.vectors import SteeringVector


def named(n: int, coefficient: float = 0.3) -> list[Any]:
    rows = torch.eye(8)[:n]
    return [SteeringVector(row, 2, str(i), "test", metadata={"coefficient": coefficient}) for i, row in enumerate(rows)]


def answering(monkeypatch: pytest.MonkeyPatch, skill: Sequence[float]) -> list[Any]:
    """A model in whose place vector i is right on the first ``skill[i]`` of ten items."""
    calls: list[Any] = []

    def ask(_model: Any, item: Any, index: int, vectors: Any, rows: Any, op: str = "add") -> list[bool]:
        calls.append((item.split, index, [v.name for v in vectors], rows, op))
        return [
            v.name != "mean" and index % 10 < 10 * skill[int(v.name)]
            for v in vectors
            for _ in range(len(rows) // len(vectors))
        ]

    monkeypatch.setattr(elicitation, "ask", ask)
    return calls


def test_the_best_go_on_and_only_validation_items_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = answering(monkeypatch, [0.1, 0.3, 0.9, 0.2, 0.8])
    choices = elicitation.choose(None, "withholding", named(5), [(5, 4), (2, 4), (1, 4)])  # type: ignore[arg-type]
    assert {split for split, *_ in calls} == {"validation"}
    assert [len(names) for _, _, names, _, _ in calls] == [5] * 4 + [2] * 4 + [1] * 4
    assert [c.asked for c in choices] == [4, 4, 12, 4, 8]
    assert [c.right for c in choices] == [1, 3, 11, 2, 8]
    assert [index for _, index, *_ in calls] == list(range(12))
    assert elicitation.picks(named(5), choices) == {"best of 1": 0, "best of 5": 2}


def test_each_row_steers_with_one_vector_at_its_own_coefficient(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = answering(monkeypatch, [0, 1])
    elicitation.choose(None, "withholding", named(2), [(2, 1)])  # type: ignore[arg-type]
    assert calls[0][3] == [[0.3, None], [None, 0.3]]
    assert elicitation.each(named(1), 2.0) == [[0.6]]


def test_of_equals_the_first_in_rank_is_taken() -> None:
    choices = [
        Choice(0, 4, 2),
        Choice(1, 4, 3),
        Choice(2, 4, 3),
        *[Choice(i, 4, 0) for i in range(3, 9)],
        Choice(9, 8, 0),
    ]
    found = elicitation.picks([None] * 10, choices)  # type: ignore[list-item]
    assert found == {"best of 1": 0, "best of 8": 1, "best of 10": 9}


def test_the_mean_keeps_the_norm_and_factors_have_none() -> None:
    mean = elicitation.mean_vector(named(4))
    torch.testing.assert_close(mean.direction, torch.tensor([0.5] * 4 + [0.0] * 4))
    assert elicitation.strength(mean) == 0.3
    assert elicitation.mean_vector(named(1)) is None
    assert elicitation.mean_vector([object(), object()]) is None  # type: ignore[list-item]


def test_recovered_share_and_its_interval() -> None:
    locked, unlocked = [0] * 20, [1] * 16 + [0] * 4
    share, low, high = recovery.recovered([[1] * 8 + [0] * 12] * 3, locked, unlocked)
    assert share == pytest.approx(0.5)
    assert 0.2 < low < 0.5 < high < 0.8
    assert recovery.recovered([unlocked], locked, unlocked) == pytest.approx((1, 1, 1))
    assert recovery.recovered([locked], locked, unlocked) == pytest.approx((0, 0, 0))
    # seeds are averaged, not pooled: three of one sort weigh as much as one of the other
    mixed = recovery.recovered([unlocked, locked], locked, unlocked)
    assert mixed == pytest.approx((0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="no gap"):
        recovery.recovered([locked], locked, locked)


def test_unknown_names_say_what_there_is() -> None:
    with pytest.raises(ValueError, match="recovery is defined for withholding"):
        elicitation.setting_of("denial")
    with pytest.raises(ValueError, match="the arms are exponential"):
        elicitation.candidates(None, "withholding", "magic")  # type: ignore[arg-type]


def record(arm: str, seed: int) -> dict[str, Any]:
    if arm == "baseline":
        return {"organism": "withholding", "arm": arm, "seed": seed, "locked": [0, 0, 0, 0], "unlocked": [1, 1, 1, 0]}
    pick = {"rank": 0, "coefficient": 0.1, "right": [1, seed, 0, 0], "kl": 0.5, "perplexity": 9.0}
    return {
        "organism": "withholding",
        "arm": arm,
        "seed": seed,
        "n": 64,
        "half_right": 2,
        "picks": {"best of 1": pick},
        "seconds": 1.0,
    }


def test_the_table_is_a_mean_over_seeds() -> None:
    records = [record("baseline", 0), record("random", 0), record("random", 1)]
    table = recovery.table(records).set_index(["arm", "pick"])
    assert table.loc[("locked", ""), "accuracy"] == 0
    row = table.loc[("random", "best of 1")]
    assert (row["seeds"], row["accuracy"], row["half_right"]) == (2, 3 / 8, 2)
    assert row["recovered"] == pytest.approx(0.5)


def test_the_command_measures_what_is_missing_and_keeps_what_there_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[Any] = []

    def measured(_model: Any, _name: str, arm: str, seed: int, _setting: Setting) -> dict[str, Any]:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append((arm, seed))
        return record(arm, seed)

    monkeypatch.setattr(organisms, "load", lambda name: name)
    monkeypatch.setattr(elicitation, "baseline", lambda _m, _n: record("baseline", 0))
    monkeypatch.setattr(elicitation, "measure", measured)
    command = ["withholding", "--arms", "random", "attack", "--seeds", "2", "--out", str(tmp_path / "r.json")]
    with pytest.raises(KeyboardInterrupt):
        recovery.main(command)
    assert len(json.loads((tmp_path / "r.json").read_text())) == 3
    done.clear()
    recovery.main(command)
    assert done == [("random", 1), ("attack", 1)]
    assert len(recovery.read(tmp_path / "r.json")) == 5
    assert "recovered" in capsys.readouterr().out
    with pytest.raises(ValueError, match="name='denial': recovery is defined for"):
        recovery.main(["denial"])


@pytest.fixture(scope="module")
def model() -> Any:
    return organisms.load("withholding")


def test_candidates_have_one_norm_and_the_layer_of_the_setting(model: Any) -> None:
    small = Setting(n=4, target=12, band=(9, 10))
    for arm in ("exponential", "random", "jacobian"):
        found = elicitation.candidates(model, "withholding", arm, 0, small)  # type: ignore[arg-type]
        sizes = {elicitation.strength(v) for v in found}
        assert len(found) == 4 and len(sizes) == 1 and 0.01 < sizes.pop() < 2
        assert {v.layer for v in found} == {10}  # type: ignore[union-attr]
    plus, minus = found[:2]
    torch.testing.assert_close(plus.direction, -minus.direction)  # type: ignore[union-attr]
    factors = elicitation.candidates(model, "withholding", "cpe", 0, replace(small, n=2))
    assert [elicitation.strength(f) for f in factors] == [1.0, 1.0]


def test_asking_is_in_held_out_wordings_and_side_effects_grow(model: Any) -> None:
    item = organisms.items("withholding", "test")[0]
    locked = elicitation.ask(model, item, 0, named_in(model), [None, [0.0]])
    assert locked == [False, False]
    effects = elicitation.side_effects(model, named_in(model), [[0.0], [0.1], [0.8]])
    kl = [e["kl"] for e in effects]
    assert kl[0] == pytest.approx(0, abs=1e-6) and kl[0] < kl[1] < kl[2]
    assert effects[2]["perplexity"] > effects[0]["perplexity"] > 1


def named_in(model: Any) -> list[Any]:
    return [SteeringVector(torch.randn(model.cfg.d_model), 10, "random", "random")]


def test_a_set_with_both_signs_has_no_mean() -> None:
    found = named(2)
    assert elicitation.mean_vector([*found, *(-v for v in found)]) is None
    assert elicitation.mean_vector(found).direction[:2].tolist() == pytest.approx([0.5**0.5] * 2)


def test_around_asks_at_every_norm_and_ablates_vectors_only(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = answering(monkeypatch, [0.1, 0.9, 0.2])
    found = named(3)
    monkeypatch.setattr(elicitation, "candidates", lambda *_: found)
    monkeypatch.setattr(elicitation, "side_effects", lambda _m, _v, rows: [{"kl": 0.1, "perplexity": 9.0}] * len(rows))
    record = elicitation.around(None, "backdoor")  # type: ignore[arg-type]
    tests = [(names, rows, op) for split, _, names, rows, op in calls if split == "test"]
    n = len(organisms.items("backdoor", "test"))
    assert len(tests) == 2 * n and {op for *_, op in tests} == {"add", "ablate"}
    assert tests[0] == (["1"], [[0.3 * c] for c in elicitation.NORMS], "add")
    assert tests[1][0] == ["1", "mean"], "the best on validation, and the mean of the set"
    assert record["of"] == "exponential" and [x["times"] for x in record["norms"]] == [*elicitation.NORMS]
    assert {k: len(v) for k, v in record["ablated"].items()} == {"best": n, "mean": n}
    base = {"organism": "backdoor", "arm": "baseline", "locked": [0] * n, "unlocked": [1] * n}
    table = recovery.norms([base, record])
    assert table.do.tolist()[:2] == ["add 0.5 x", "add 0.71 x"] and len(table) == 7
    assert table.recovered.tolist()[0] == pytest.approx(sum(record["norms"][0]["right"]) / n)
