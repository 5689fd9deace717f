"""Searches on several locked prompts: which prompts, what is climbed, and the records of a curve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from course.studies import elicitation, recovery
from course.studies.elicitation import Setting
from course.studies.several import AddedBand, AddedSlice, prompts_of
from kit.base.directions import random_units
from kit.data import organisms
from kit.search import cpe
from kit.search.layer_slice import LayerSlice
from kit.search.rank_one_map import RankOneMap
from tests import tiny
from tests.course.test_elicitation import named


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts are items and wordings themselves: no model is needed."""
    monkeypatch.setattr(organisms, "prompt", lambda _model, item, wording=0: (item.subject, wording))


def test_fewer_prompts_are_the_first_of_more_and_differ(asked: None) -> None:
    items = organisms.items("withholding", "vector")
    of = {n: prompts_of(None, "withholding", 3, n) for n in (1, 2, 8)}  # type: ignore[arg-type]
    assert of[1] == [(items[3].subject, 0)], "as a search on one prompt had it before there were several"
    assert of[8][:2] == of[2] and of[2][:1] == of[1]
    assert len({subject for subject, _ in of[8]}) == 8
    assert [wording for _, wording in of[8]] == [0, 1, 2, 3] * 2
    other = prompts_of(None, "withholding", 4, 8)  # type: ignore[arg-type]
    assert {s for s, _ in other} != {s for s, _ in of[8]}
    with pytest.raises(ValueError, match="prompts=11: withholding has 10 vector items"):
        prompts_of(None, "withholding", 0, 11)  # type: ignore[arg-type]


def test_a_setting_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="prompts=0: give at least 1"):
        Setting(prompts=0)
    with pytest.raises(ValueError, match="pooling='sum': use 'mean', 'norms', 'separate', 'wide'"):
        Setting(pooling="sum")  # type: ignore[arg-type]


def test_separate_searches_are_taken_in_turn(asked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def search(_model: Any, _name: str, _arm: str, _seed: int, s: Setting, prompts: Any) -> list[str]:
        return [f"{'+'.join(subject for subject, _ in prompts)} {i}" for i in range(s.n)]

    monkeypatch.setattr(elicitation, "_search", search)
    a, b = (subject for subject, _ in prompts_of(None, "withholding", 0, 2))  # type: ignore[arg-type]
    find = lambda pooling: elicitation.candidates(
        None,  # type: ignore[arg-type]
        "withholding",
        "cpe",
        0,
        Setting(n=2, prompts=2, pooling=pooling),
    )
    assert find("separate") == [f"{a} 0", f"{b} 0", f"{a} 1", f"{b} 1"]
    assert find("wide") == [f"{a} {i}" for i in range(4)]
    assert find("mean") == find("norms") == [f"{a}+{b} 0", f"{a}+{b} 1"]


def two(model: Any) -> list[torch.Tensor]:
    return [tiny.prompt(model, 9, 1), tiny.prompt(model, 6, 2)]


def test_added_norms_of_a_slice_have_the_gradient_of_the_mean_norm(llama: Any) -> None:
    piece = AddedSlice(llama, two(llama), 0, 2)
    thetas = random_units(3, piece.d_model, 1)
    each = [LayerSlice(llama, prompt, 0, 2) for prompt in two(llama)]
    leaf = thetas.clone().requires_grad_()
    with torch.enable_grad():
        goal = sum(one.change(leaf).norm(dim=-1) for one in each) / 2
        (want,) = torch.autograd.grad(goal.sum(), leaf)  # type: ignore[union-attr]
    values, grads = piece.vjp(thetas, None)
    torch.testing.assert_close(grads, want)
    torch.testing.assert_close(values, piece.delta(thetas))
    plain = LayerSlice(llama, two(llama), 0, 2)
    assert not torch.allclose(grads, plain.vjp(thetas, None)[1], rtol=1e-2), "or the prompts are no test"
    outputs = random_units(3, piece.d_model, 2)
    torch.testing.assert_close(piece.vjp(thetas, outputs)[1], plain.vjp(thetas, outputs)[1])


def test_added_norms_of_factors_have_the_gradient_of_the_mean_norm(llama: Any) -> None:
    band = AddedBand(llama, two(llama), (1, 2), 3)
    phi = band.random(3, 1)
    each = [RankOneMap(llama, prompt, (1, 2), 3) for prompt in two(llama)]
    leaf = phi.clone().requires_grad_()
    with torch.enable_grad():
        goal = sum(one.change(leaf, 2.0).norm(dim=-1) for one in each) / 2
        (want,) = torch.autograd.grad(goal.sum(), leaf)  # type: ignore[union-attr]
    values, grads = band.gradient(phi, random_units(3, band.d_model, 2), 2.0)
    torch.testing.assert_close(grads, want)
    torch.testing.assert_close(values, band.delta(phi, 2.0))
    found = cpe.fit_band(band, n_factors=3, iterations=2, radius=2.0)
    assert len(found.factors) == 3 and found.band is band


def test_all_candidates_are_asked_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def ask(_model: Any, _item: Any, _index: int, vectors: Any, rows: Any) -> list[bool]:
        asked.append([v.name for v in vectors])
        assert len(rows) == len(vectors)
        return [v.name == "6" for v in vectors]

    monkeypatch.setattr(elicitation, "ask", ask)
    monkeypatch.setattr(elicitation, "_TOGETHER", 3)
    monkeypatch.setattr(elicitation, "_ROUNDS", ((4, 1), (2, 1)))
    choices = elicitation.choose(None, "withholding", named(7))  # type: ignore[arg-type]
    assert asked == [["0", "1", "2"], ["3", "4", "5"], ["6"], ["0", "6"]]
    assert [(c.asked, c.right) for c in choices] == [(2, 0), *[(1, 0)] * 5, (2, 2)]


def record(arm: str, seed: int, n: int = 64, **several: Any) -> dict[str, Any]:
    if arm == "baseline":
        return {"organism": "withholding", "arm": arm, "seed": 0, "locked": [0] * 4, "unlocked": [1] * 4}
    right = [1] * several.get("prompts", 1) + [0] * 4
    pick = {"rank": 0, "coefficient": 1.0, "right": right[:4], "kl": 0.1, "perplexity": 9.0}
    picks = {"best of 1": pick, f"best of {n}": pick}
    return {"organism": "withholding", "arm": arm, "seed": seed, **several, "n": n, "picks": picks, "half_right": 1}


def test_a_curve_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done: list[Any] = []

    def measured(_model: Any, _name: str, arm: str, seed: int, setting: Setting) -> dict[str, Any]:
        if len(done) == fuse:
            raise KeyboardInterrupt
        done.append((arm, setting.prompts, setting.pooling))
        several = {} if setting.prompts == 1 else {"prompts": setting.prompts, "pooling": setting.pooling}
        return record(arm, seed, **several)

    monkeypatch.setattr(organisms, "load", lambda name: name)
    monkeypatch.setattr(elicitation, "baseline", lambda _m, _n: record("baseline", 0))
    monkeypatch.setattr(elicitation, "measure", measured)
    monkeypatch.setattr(recovery, "CURVE", (1, 2))
    monkeypatch.setattr(recovery, "_OF_CURVE", ("cpe",))
    path = tmp_path / "r.json"
    command = ["withholding", "--curve", "--seeds", "1", "--out", str(path)]
    fuse = 2
    with pytest.raises(KeyboardInterrupt):
        recovery.main(command)
    assert done == [("cpe", 1, "mean"), ("cpe", 2, "mean")]
    assert [r["arm"] for r in json.loads(path.read_text())] == ["baseline", "cpe", "cpe"]
    done.clear()
    fuse = 9
    recovery.main(command)
    assert done == [("cpe", 2, "norms"), ("cpe", 2, "separate"), ("cpe", 2, "wide")]
    table = recovery.curve(recovery.read(path))
    assert table.pooling.tolist() == ["one", "mean", "norms", "separate", "wide"]
    assert table.recovered.tolist() == pytest.approx([0.25, 0.5, 0.5, 0.5, 0.5])
    plain = recovery.table(recovery.read(path))
    assert plain[plain.arm == "cpe"].seeds.tolist() == [1, 1], "searches on several prompts stay out"
    done.clear()
    recovery.main([*command[:3], "2", *command[4:], "--prompts", "2", "--poolings", "separate"])
    assert done == [("cpe", 2, "separate")], "one point of the curve, of the second draw"
