"""Hooks come off, and be it that somebody presses the stop button at the worst of moments."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from kit.base.progress import to_the_end
from kit.models.activations import capture
from kit.models.hook_points import Hooks, hooks_left, replaced
from kit.models.sites import Site
from kit.steering.generation import generate
from kit.steering.vectors import SteeringVector

_HOLDS = ("hook_points.py", "progress.py", "hooks.py", "contextlib.py")


@pytest.fixture(autouse=True)
def stop_button() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def stopped(work: Callable[[], Any], at: int) -> bool:
    """Run it and press the button at one of its lines, of the code that puts hooks on and takes
    them off; whether it has so many."""
    left = [at]

    def step(frame: Any, event: str, _arg: Any) -> Any:
        if not frame.f_code.co_filename.endswith(_HOLDS):
            return None if event == "call" and frame.f_code.co_filename.startswith(torch.__path__[0]) else step
        left[0] -= 1
        if left[0] == 0:
            sys.settrace(None)
            press()
        return step

    before = sys.gettrace()
    sys.settrace(step)
    try:
        work()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return left[0] <= 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # pressed while __del__ ran
@pytest.mark.parametrize("step", [1, 29], ids=["a layer", "a model"])
def test_a_stop_at_any_line_leaves_no_hook(llama: Any, step: int) -> None:
    """Every line where that costs nothing, every 29th of what the kit does to a model."""
    tokens, layer = torch.arange(1, 5)[None], torch.nn.Linear(2, 2)
    vector = SteeringVector(torch.ones(llama.cfg.d_model), 1, "v")
    generate(llama, "a b", vector, [0.0, 1.0], max_new_tokens=2)  # what is measured once is measured

    def on_a_layer() -> None:
        with Hooks() as hooks:
            hooks.put(lambda: layer.register_forward_hook(lambda *_: None))
            hooks.put(lambda: layer.register_forward_pre_hook(lambda *_: None))
            layer(torch.ones(2))

    def on_a_model() -> None:
        capture(llama, tokens, [(0, "resid"), (1, "attn_out"), (1, "z")])
        with replaced(llama, Site(1, "mlp_out"), lambda x: x * 2):
            capture(llama, tokens, [(1, "resid")])
        generate(llama, "a b", vector, [0.0, 1.0], max_new_tokens=2)

    at = 1
    while stopped(on_a_layer if step == 1 else on_a_model, at):
        left = hooks_left(llama) + [*layer._forward_hooks, *layer._forward_pre_hooks]
        assert left == [], f"pressed at line {at}"
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, f"pressed at line {at}"
        at += step
    assert at > 50 * step  # so many lines there were


@pytest.mark.parametrize("when", ["on", "off"])
def test_a_stop_waits_until_a_hook_is_noted(when: str) -> None:
    layer, out = torch.nn.Linear(2, 2), []

    def put() -> Callable[[], None]:
        handle = layer.register_forward_hook(lambda *_: None)
        if when == "on":
            press()

        def off() -> None:
            if when == "off":
                press()
            handle.remove()
            out.append(when)

        return off

    with pytest.raises(KeyboardInterrupt), Hooks() as hooks:
        hooks.put(put)
        hooks.put(put)
    assert not layer._forward_hooks and out in ([when], [when, when])


def test_a_stop_waits_for_the_outermost_block_that_is_not_to_be_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), to_the_end():
        with to_the_end():
            press()
        done.append("inner")
        done.append("outer")
    assert done == ["inner", "outer"]
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(signal, "getsignal", lambda _number: None)  # a program that Python is a part of
    with to_the_end():
        assert signal.signal(signal.SIGINT, before) is before
    monkeypatch.undo()
    with pytest.raises(KeyboardInterrupt), to_the_end():
        press()
        press()  # the second comes at once
        done.append("never")
    assert done == ["inner", "outer"]
