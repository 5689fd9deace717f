"""Effects and costs against slow computations of the same numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import kit
from kit.steering import sweep as evaluation
from kit.steering.sweep import calibrate, preference, sweep
from tests import tiny


def log_p(model: Any, prompt: torch.Tensor, text: str) -> float:
    """log p of a continuation, token by token through the bridge."""
    ids = model.tokenizer(text, add_special_tokens=False).input_ids
    tokens, total = prompt, 0.0
    for token in ids:
        total += float(model(tokens)[0, -1].log_softmax(-1)[token])
        tokens = torch.cat([tokens, torch.tensor([[token]])], dim=1)
    return total


@pytest.mark.parametrize("positions", ["all", "prompt", "last_prompt", "generated"])
def test_preference_is_a_difference_of_log_probabilities(model: Any, positions: str) -> None:
    prompt = tiny.prompt(model)
    vector = tiny.vector(model, 1)
    up, down = " warm bread and rope", " late"
    found = preference(model, prompt, up, down, vector, [None, 0.7], positions=positions)
    assert found[0] == pytest.approx(log_p(model, prompt, up) - log_p(model, prompt, down), abs=1e-3)
    with kit.steer(model, {vector: 0.7}, positions, prompt_length=prompt.shape[1]):
        steered = log_p(model, prompt, up) - log_p(model, prompt, down)
    assert found[1] == pytest.approx(steered, abs=1e-3)
    assert abs(found[1] - found[0]) > 0.01


def test_sweep_is_tidy_and_measured_against_no_steering(llama: Any) -> None:
    vector = tiny.vector(llama, 1)
    prompts = [tiny.prompt(llama, 8), tiny.prompt(llama, 10, seed=1)]
    table = sweep(
        llama,
        vector,
        prompts,
        layers=[1, 2],
        coefficients=[0.0, 0.5],
        targets=[(" warm", " late"), (" rope", " door")],
        max_new_tokens=5,
    )
    assert len(table) == 2 * 2 * 2
    assert set(map(tuple, table[["layer", "coefficient", "prompt"]].values.tolist())) == {
        (la, c, p) for la in (1, 2) for c in (0.0, 0.5) for p in (0, 1)
    }
    zero = table[table.coefficient == 0]
    assert zero.effect.abs().max() < 1e-4 and zero.kl.abs().max() < 1e-4
    row = table[(table.layer == 2) & (table.coefficient == 0.5) & (table.prompt == 1)].iloc[0]
    plain, shifted = preference(llama, prompts[1], " rope", " door", vector.at(2), [None, 0.5])
    assert row.effect == pytest.approx(shifted - plain, abs=1e-4)
    run = kit.generate(llama, prompts[1], vector.at(2), [0.5], max_new_tokens=5, measure=True)
    assert row.text == run.texts[0] and row.kl == pytest.approx(run.rows[0].kl, abs=1e-4)
    assert not table.attrs["interrupted"]


def test_sweep_takes_a_judge_and_a_vector_for_each_layer(llama: Any) -> None:
    asked = []

    def at(layer: int) -> Any:
        asked.append(layer)
        return tiny.vector(llama, layer, seed=layer)

    table = sweep(
        llama,
        at,
        [tiny.prompt(llama)],
        layers=[0, 3],
        coefficients=[0.9],
        judge=lambda text: len(text),
        max_new_tokens=4,
    )
    plain = kit.generate(llama, tiny.prompt(llama), max_new_tokens=4).texts[0]
    assert asked == [0, 3]
    assert table.effect.tolist() == [len(text) - len(plain) for text in table.text]


def test_interrupted_sweep_keeps_what_is_finished(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def generate(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return kit.generate(*args, **options)

    monkeypatch.setattr(evaluation, "generate", generate)
    table = sweep(
        llama,
        tiny.vector(llama, 1),
        [tiny.prompt(llama)],
        layers=[0, 1, 2, 3],
        coefficients=[0.5],
        targets=(" warm", " late"),
        max_new_tokens=2,
    )
    assert table.layer.tolist() == [0, 1] and table.attrs["interrupted"]


@pytest.mark.parametrize(
    "change, named",
    [
        ({"targets": None}, "give targets"),
        ({"judge": len}, "give targets"),
        ({"prompts": []}, "prompts="),
        ({"prompts": "a text"}, "prompts="),
        ({"layers": [7]}, "layer=7"),
        ({"targets": [(" a", " b")] * 3}, "3 pairs for 1 prompts"),
        ({"vector": {1: None}, "layers": None}, "layers=None"),
    ],
)
def test_sweep_names_what_is_wrong(llama: Any, change: dict[str, Any], named: str) -> None:
    good = {"vector": tiny.vector(llama, 1), "prompts": ["a boat"], "targets": (" a", " b")}
    with pytest.raises(ValueError, match=named):
        sweep(llama, **(good | change))


def test_calibrate_finds_the_kl_it_was_asked_for(llama: Any) -> None:
    """The KL at both ends, measured again by full passes through the bridge."""
    vector, target = tiny.vector(llama, 1), 0.2
    prompts = [tiny.prompt(llama, 8), tiny.prompt(llama, 11, seed=1)]
    found = calibrate(llama, vector, target, prompts=prompts, max_new_tokens=6)
    assert found.low < 0 < found.high
    for c in (found.low, found.high):
        costs = []
        for prompt in prompts:
            answer = kit.generate(llama, prompt, max_new_tokens=6).rows[0].tokens
            text = torch.cat([prompt, torch.tensor([answer])], dim=1)
            plain = llama(text)[0, prompt.shape[1] - 1 :].log_softmax(-1)
            with kit.steer(llama, {vector: c}):
                moved = llama(text)[0, prompt.shape[1] - 1 :].log_softmax(-1)
            costs.append(float((moved.exp() * (moved - plain)).sum(-1).mean()))
        assert sum(costs) / len(costs) == pytest.approx(target, rel=0.06)
    assert [c for c, _ in found.curve] == sorted(c for c, _ in found.curve)


def test_a_second_vector_is_calibrated_on_the_answers_of_the_first(llama: Any, monkeypatch: Any) -> None:
    """Unless the model has changed since."""
    asked: list[Any] = []
    real = evaluation.generate
    monkeypatch.setattr(evaluation, "generate", lambda *a, **k: asked.append(a) or real(*a, **k))

    def run(seed: int) -> Any:
        return calibrate(llama, tiny.vector(llama, 1, seed=seed), 0.02, prompts=["a boat"], max_new_tokens=6)

    with kit.steer(llama, {tiny.vector(llama, 0): 4.0}):
        steered = run(0)  # on answers of that model, which are nobody else's
    asked.clear()
    first, _ = run(0), run(1)
    assert steered.curve != first.curve
    assert len(asked) == 1 and run(0).curve == first.curve
    gain = llama.original_model.model.norm.weight
    with torch.no_grad():
        gain.mul_(1.0)
    run(0)
    assert len(asked) == 2


@pytest.mark.parametrize("target", [0, -1, math.nan, math.inf])
def test_calibrate_refuses_a_target_that_is_none(llama: Any, target: float) -> None:
    with pytest.raises(ValueError, match="target_kl="):
        calibrate(llama, tiny.vector(llama, 1), target)


def test_calibrate_says_when_the_target_is_out_of_reach(llama: Any) -> None:
    with pytest.raises(ValueError, match="lower the target or raise max_coefficient"):
        calibrate(llama, tiny.vector(llama, 1), 50, prompts=["a boat"], max_coefficient=0.01)
