"""kit.check passes on sound machinery and names each fault that is planted in it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import kit
from kit.steering import check, decoder
from kit.steering.intervention import Session
from tests import tiny


def failed(result: Any) -> list[str]:
    return [row.what for row in result.rows if not row.ok]


def run(model: Any, **options: Any) -> Any:
    return kit.check(model, tiny.vector(model, 1), tiny.prompt(model), coefficient=0.5, **options)


def test_machinery_is_sound_on_every_architecture(model: Any) -> None:
    assert [what for what in failed(run(model)) if "random" not in what] == []


def test_names_a_coefficient_zero_that_does_something(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    steer = Session.steer
    monkeypatch.setattr(Session, "steer", lambda s, e, a, g: steer(s, e, a, g) + 1e-3)
    assert "coefficient 0 equals no steering, exactly" in failed(run(llama))


def test_names_decode_steps_that_are_not_steered(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The defect of a mask built on the cache's slice: the prompt is steered, the rest is not."""
    steer = Session.steer

    def prompt_only(session: Any, edit: Any, activation: Any, given: Any) -> Any:
        return activation if activation.shape[1] == 1 else steer(session, edit, activation, given)

    monkeypatch.setattr(Session, "steer", prompt_only)
    assert "cached decoding equals uncached" in failed(run(llama))


def test_names_rows_that_are_not_steered(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    steer = Session.steer

    def first_row_only(session: Any, edit: Any, activation: Any, given: Any) -> Any:
        changed = steer(session, edit, activation, given)
        return torch.cat([changed[:1], activation[1:]]) if len(activation) > 1 else changed

    monkeypatch.setattr(Session, "steer", first_row_only)
    assert "each row of a ladder equals its single run" in failed(run(llama))


def test_names_a_hook_that_is_left(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    point = llama.hook_dict["blocks.0.hook_out"]
    forward = decoder.Decoder._forward

    def leaky(self: Any, *args: Any) -> Any:
        if not point.has_hooks():
            point.add_hook(lambda tensor, hook: None)
        return forward(self, *args)

    monkeypatch.setattr(decoder.Decoder, "_forward", leaky)
    try:
        assert "hooks are back to what they were" in failed(run(llama))
    finally:
        point.remove_hooks()


def test_names_a_vector_that_does_nothing(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "steer", lambda session, edit, activation, given: activation)
    assert "the vector changes the output" in failed(run(llama))


def test_random_control_uses_the_claim(llama: Any) -> None:
    """A direction made for the claim beats random ones; its negation does not."""
    probe = {"prompt": "the old boat", "positive": " warm", "negative": " late"}
    up, down = (llama.tokenizer(probe[k]).input_ids[1:] for k in ("positive", "negative"))
    readout = llama.original_model.lm_head.weight
    made = kit.SteeringVector(readout[up].sum(0) - readout[down].sum(0), 3, "made")
    good = kit.check(llama, made, claim=[probe], coefficient=1.0)
    bad = kit.check(llama, -made, claim=[probe], coefficient=1.0)
    assert [row.ok for row in good.rows if "random" in row.what] == [True]
    assert [row.ok for row in bad.rows if "random" in row.what] == [False]
    assert "FAIL" in str(bad) and not bad and bad.passed is False


def test_check_shows_in_a_notebook(llama: Any) -> None:
    html = check.CheckResult([check.CheckRow("<b>", False, "&")])._repr_html_()
    assert "&lt;b&gt;" in html and "<b>&" not in html
