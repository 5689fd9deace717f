"""kit.optimise on small models: what it promotes, suppresses, spends and refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import kit
from kit.search import optimise
from kit.search.layer_slice import steered_logits
from tests import tiny

LAYER = 1


def fit(model: Any, targets: Any = " rain", **options: Any) -> kit.SteeringVector:
    prompts = options.pop("prompts", tiny.prompt(model))
    options = {"steps": 30, "radius": 1.0, "rate": 0.1} | options
    return optimise.fit(model, prompts, targets, LAYER, **options)


def theta(model: Any, vector: kit.SteeringVector) -> torch.Tensor:
    c = vector.metadata["coefficient"]
    return c * kit.residual_scale(model, LAYER) * vector.direction[None]


def probability(model: Any, text: str, at: torch.Tensor, prompt: Any = None) -> float:
    """Of the whole continuation, one token at a time."""
    tokens = tiny.prompt(model) if prompt is None else prompt
    total = 0.0
    for token in model.tokenizer(text, add_special_tokens=False).input_ids:
        with torch.no_grad():
            total += float(steered_logits(model, tokens, LAYER, at)[0, -1].log_softmax(-1)[token])
        tokens = torch.cat([tokens, torch.tensor([[token]])], dim=1)
    return math.exp(total)


def plain(model: Any) -> torch.Tensor:
    return torch.zeros(1, model.cfg.d_model)


def test_a_target_becomes_likely(model: Any) -> None:
    vector = fit(model)
    after = probability(model, " rain", theta(model, vector))
    assert after > 10 * probability(model, " rain", plain(model))
    assert after == pytest.approx(vector.metadata["probabilities"][0], rel=1e-3)
    assert vector.layer == LAYER and vector.norm == 1.0


def test_what_is_to_be_avoided_becomes_rare(llama: Any) -> None:
    tokens = tiny.prompt(llama)
    first = steered_logits(llama, tokens, LAYER, plain(llama))[0, -1].argmax()
    text = llama.tokenizer.decode([int(first)])
    if llama.tokenizer(text, add_special_tokens=False).input_ids != [int(first)]:
        pytest.skip("the likeliest token has no text of its own")
    vector = fit(llama, None, avoid=text)
    before = probability(llama, text, plain(llama))
    assert probability(llama, text, theta(llama, vector)) < before / 2


def test_the_radius_is_never_left(llama: Any) -> None:
    vector = fit(llama, radius=0.2, rate=1.0)
    assert vector.metadata["coefficient"] <= 0.2 * (1 + 1e-5)


def test_a_price_on_the_norm_makes_a_shorter_vector(llama: Any) -> None:
    free, priced = fit(llama), fit(llama, penalty="norm", weight=20.0)
    assert priced.metadata["coefficient"] < 0.8 * free.metadata["coefficient"]


def test_a_price_on_the_damage_lowers_it(llama: Any) -> None:
    def damage(vector: kit.SteeringVector) -> float:
        with torch.no_grad():
            cost = optimise._Cost(llama, LAYER, "kl", 1.0, kit.residual_scale(llama, LAYER))
            return float(cost(theta(llama, vector)))

    free, priced = fit(llama), fit(llama, penalty="kl", weight=5.0)
    assert damage(priced) < damage(free)


def test_the_slope_is_that_of_finite_differences(llama: Any) -> None:
    prompt = tiny.prompt(llama)
    scale = kit.residual_scale(llama, LAYER)
    for sign, penalty in ((1, "norm"), (-1, "kl")):
        example = optimise._Example(llama, prompt, " rain", sign, "all")
        cost = optimise._Cost(llama, LAYER, penalty, 1.0, scale)
        at = tiny.vector(llama, LAYER).direction[None] * 0.5 * scale
        at.requires_grad_()
        along = torch.nn.functional.normalize(torch.randn(at.shape, generator=torch.Generator().manual_seed(2)), dim=-1)
        (example.loss(LAYER, at) + cost(at)).backward()
        slope = float((at.grad * along).sum())
        h = 0.01 * scale
        with torch.no_grad():
            up, down = (float(example.loss(LAYER, at + s * h * along) + cost(at + s * h * along)) for s in (1, -1))
        assert slope == pytest.approx((up - down) / (2 * h), rel=0.05, abs=2e-4)


def test_a_continuation_is_predicted_from_what_precedes_it(llama: Any) -> None:
    prompt = tiny.prompt(llama)
    at = 0.3 * kit.residual_scale(llama, LAYER) * tiny.vector(llama, LAYER).direction[None]
    example = optimise._Example(llama, prompt, " rain ran", 1, "all")
    n = len(example.target)
    assert n > 1 and example.tokens.shape[1] == prompt.shape[1] + n - 1
    with torch.no_grad():
        got = math.exp(float(example.log_p(LAYER, at)))
    assert got == pytest.approx(probability(llama, " rain ran", at), rel=1e-3)


@pytest.mark.parametrize(
    ("positions", "start", "stop"),
    [("all", 0, None), ("prompt", 0, 12), ("last_prompt", 11, 12), ("generated", 11, None)],
)
def test_positions_mean_what_they_mean_elsewhere(llama: Any, positions: str, start: int, stop: int | None) -> None:
    example = optimise._Example(llama, tiny.prompt(llama), " rain ran", 1, positions)
    want = torch.zeros(example.tokens.shape[1], dtype=torch.bool)
    want[start:stop] = True
    assert torch.equal(example.where, want)


def test_several_prompts_have_targets_of_their_own(llama: Any) -> None:
    prompts = [tiny.prompt(llama, n, n) for n in (12, 7)]
    vector = fit(llama, [" rain", None], avoid=[None, " the"], prompts=prompts)
    assert len(vector.metadata["probabilities"]) == 2


def test_an_interrupt_keeps_the_best_so_far(llama: Any, monkeypatch: Any) -> None:
    whole, calls = optimise._Example.loss, []

    def stops(self: Any, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return whole(self, *args)

    monkeypatch.setattr(optimise._Example, "loss", stops)
    about = fit(llama).metadata
    assert about["interrupted"] and about["steps"] == 5 and math.isfinite(about["loss"])
    calls.clear()
    calls.extend([1] * 5)
    with pytest.raises(KeyboardInterrupt, match="before the first step"):
        fit(llama)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"targets": None}, "targets=None and avoid=None"),
        ({"targets": ["a", "b"]}, "targets holds 2 continuations for 1 prompts"),
        ({"avoid": ["a", "b"]}, "avoid holds 2"),
        ({"targets": ""}, "target '' holds no token"),
        ({"prompts": []}, r"prompts=\[\]"),
        ({"penalty": "l2"}, "penalty='l2': use 'norm', 'kl' or None"),
        ({"radius": 0}, "radius=0"),
        ({"weight": -1.0}, r"weight=-1\.0"),
        ({"rate": math.inf}, "rate=inf"),
        ({"steps": 0}, "steps=0"),
        ({"positions": slice(90, None)}, "nothing of a prompt"),
    ],
)
def test_what_makes_no_sense_is_refused(llama: Any, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fit(llama, **change)


def test_a_layer_that_is_not_there(llama: Any) -> None:
    with pytest.raises(ValueError, match="layer=9"):
        optimise.fit(llama, tiny.prompt(llama), " rain", 9)
