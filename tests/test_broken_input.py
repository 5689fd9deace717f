"""What people really pass: empty, too long, absurd, misspelt, interrupted."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import kit
from kit.models import activations
from kit.models.bridge import runtime
from tests import tiny


@pytest.mark.parametrize(
    "bad",
    [pd.NA, 1j, np.complex64(1), torch.tensor(1j), [1j], [pd.NA], torch.tensor([1j, 2]), "0.5", [None, pd.NA]],
    ids=repr,
)
def test_coefficients_that_are_no_numbers(llama: Any, bad: Any) -> None:
    v = tiny.vector(llama, 1)
    for rows in (bad, [bad]):
        with pytest.raises(ValueError, match=r"coefficients has a row|coefficient.*: give"):
            kit.generate(llama, "a boat", v, rows, max_new_tokens=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="coefficient=.*: give a number"):
            with kit.steer(llama, {v: bad}):
                raise AssertionError("the block ran")


def test_coefficients_of_numpy_are_numbers(llama: Any) -> None:
    v, half = tiny.vector(llama, 1), [0.5]
    right = kit.generate(llama, "a boat", v, half, measure=True, max_new_tokens=3).rows[0]
    for some in (
        np.float32(0.5),
        [np.float32(0.5)],
        np.array([0.5]),
        torch.tensor(0.5),
        pd.Series([0.5]),
        [[np.float64(0.5)]],
    ):
        found = kit.generate(llama, "a boat", v, some, measure=True, max_new_tokens=3).rows[0]
        assert (found.tokens, found.kl, found.coefficients) == (right.tokens, right.kl, (0.5,))


def test_a_dtype_that_no_model_runs_in_is_refused(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in ("float8_e4m3fn", torch.float8_e5m2, torch.int8, "complex64", "nonsense"):
        with pytest.raises(ValueError, match=r"dtype=.*: use 'auto', 'float32', 'bfloat16' or 'float16'"):
            kit.load_model(llama.cfg.kit_folder, dtype=dtype)
    monkeypatch.setenv("KIT_DTYPE", "float8_e4m3fn")
    with pytest.raises(ValueError, match="KIT_DTYPE='float8_e4m3fn': use 'float32'"):
        kit.load_model(llama.cfg.kit_folder)


@pytest.mark.parametrize("op", ["add", "ablate", "clamp"])
def test_a_float64_model_is_steered_as_a_float32_one(llama: Any, op: Any) -> None:
    fine = kit.load_model(llama.cfg.kit_folder, dtype="float64")
    v, heads, tokens = tiny.vector(llama, 1), tiny.HeadShift([2]), tiny.prompt(llama)
    found = []
    for model in (llama, fine):
        with kit.steer(model, {v: 0.5, heads: 0.3}, op=op) as receipt:
            logits = model(tokens)
        run = kit.generate(model, tokens, [v, heads], [None, 0.5, -0.5], op=op, measure=True, max_new_tokens=4)
        found.append((logits.double(), [row.tokens for row in run.rows], run.rows[1].kl, receipt.entries[0].ratios[0]))
    (a, texts, kl, ratios), (b, same, fine_kl, fine_ratios) = found
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert texts == same and kl == pytest.approx(fine_kl, rel=1e-3) and ratios == pytest.approx(fine_ratios, rel=1e-3)


def well(model: Any) -> list[int]:
    """A plain generation, to see that nothing is left of what went wrong."""
    kit.assert_clean(model)
    return kit.generate(model, tiny.prompt(model), max_new_tokens=4).rows[0].tokens


@pytest.mark.parametrize("prompt", ["", "  \n", torch.zeros(0).long(), torch.zeros(1, 0).long()])
def test_an_empty_prompt(llama: Any, prompt: Any) -> None:
    with pytest.raises(ValueError, match=r"prompt"):
        kit.generate(llama, prompt)


@pytest.mark.parametrize(
    "prompt",
    [
        None,
        5,
        [1, 2, 3],
        ["two", "prompts"],
        b"bytes",
        torch.zeros(2, 4).long(),
        torch.zeros(1, 2, 3).long(),
        torch.zeros(1, 4),
        torch.tensor(3),
    ],
    ids=str,
)
def test_what_is_no_prompt(llama: Any, prompt: Any) -> None:
    with pytest.raises(ValueError, match=r"prompt is .*give"):
        kit.generate(llama, prompt)


def test_token_ids_outside_the_vocabulary(llama: Any) -> None:
    for bad in (-1, 300, 10**9):
        with pytest.raises(ValueError, match="outside 0 to 299"):
            kit.generate(llama, torch.tensor([[0, 5, bad]]))
    assert kit.generate(llama, torch.tensor([[0, 5, 299]]), max_new_tokens=1)


def test_the_context_is_a_limit(model: Any) -> None:
    v = tiny.vector(model, 1)
    full = tiny.prompt(model, tiny.CONTEXT)
    with pytest.raises(ValueError, match=r"prompt has 257 tokens.*context is 256"):
        kit.generate(model, torch.cat([full, full[:, :1]], dim=1))
    with pytest.raises(ValueError, match=r"prompt of 250 tokens and max_new_tokens=7 exceed"):
        kit.generate(model, full[:, :250], v, max_new_tokens=7)
    for long in (full[:, :250], full[:, :255]):
        run = kit.generate(model, long, v, [None, 0.5], max_new_tokens=256 - long.shape[1])
        assert run.receipt.prompt_positions == long.shape[1]
    with pytest.raises(ValueError, match="exceed"):
        kit.generate(model, full)


@pytest.mark.parametrize("n", [0, -1, 1.5, None, "10"])
def test_a_number_of_tokens_that_is_none(llama: Any, n: Any) -> None:
    with pytest.raises(ValueError, match="max_new_tokens"):
        kit.generate(llama, tiny.prompt(llama), max_new_tokens=n)


@pytest.mark.parametrize("temperature", [-0.1, math.nan, math.inf])
def test_a_temperature_that_is_none(llama: Any, temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        kit.generate(llama, tiny.prompt(llama), temperature=temperature)


@pytest.mark.parametrize("op", ["add", "clamp", "ablate"])
@pytest.mark.parametrize("c", [1e9, -1e9, 1e30])
def test_an_absurd_coefficient_breaks_the_text_and_nothing_else(model: Any, c: float, op: Any) -> None:
    before = well(model)
    v = tiny.vector(model, 1)
    run = kit.generate(model, tiny.prompt(model), v, [None, c], op=op, max_new_tokens=4, measure=True)
    assert run.rows[0].tokens == before and len(run.rows[1].tokens) <= 4
    assert run.rows[1].kl > 0 and math.isfinite(run.rows[1].perplexity)
    kit.generate(model, tiny.prompt(model), v, [c], op=op, max_new_tokens=4, temperature=1.0)
    with kit.steer(model, {v: c}, op=op):
        model(tiny.prompt(model))
    str(run.receipt)
    assert well(model) == before


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_an_absurd_coefficient_in_half_precision(llama: Any, dtype: str) -> None:
    half = kit.load_model(llama.cfg.kit_folder, dtype=dtype)
    before = well(half)
    v = dataclasses.replace(tiny.vector(llama, 1), fingerprint=None)
    for temperature in (0.0, 1.0):
        run = kit.generate(
            half, tiny.prompt(half), v, [None, 1e9, -1e9], max_new_tokens=4, temperature=temperature, measure=True
        )
        assert len(run.rows) == 3
        str(run.receipt)
    assert well(half) == before


@pytest.mark.parametrize(
    "coefficients",
    [
        [math.nan],
        [math.inf],
        [-math.inf],
        [[0.1, 0.2]],
        [[]],
        [],
        "high",
        ["high"],
        [[math.nan]],
        [{}],
        [True, None, "x"],
    ],
    ids=str,
)
def test_coefficients_that_make_no_sense(llama: Any, coefficients: Any) -> None:
    with pytest.raises(ValueError, match="coefficients"):
        kit.stream(llama, tiny.prompt(llama), tiny.vector(llama, 1), coefficients)
    kit.assert_clean(llama)


def test_coefficients_without_vectors(llama: Any) -> None:
    with pytest.raises(ValueError, match="for 0 vectors"):
        kit.stream(llama, tiny.prompt(llama), (), [0.5])
    both = kit.generate(llama, tiny.prompt(llama), (), [None, None], max_new_tokens=2)
    assert len(both.rows) == 2 and both.rows[0].tokens == both.rows[1].tokens


def test_misspelt_words(llama: Any) -> None:
    v, tokens = tiny.vector(llama, 1), tiny.prompt(llama)
    with pytest.raises(ValueError, match=r"positions='lastprompt'.*'last_prompt'"):
        kit.stream(llama, tokens, v, positions="lastprompt")
    with pytest.raises(ValueError, match=r"op='substract'.*'add'"):
        kit.stream(llama, tokens, v, op="substract")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"site='residual'.*'resid'"):
        activations.residuals(llama, ["text"], [1], site="residual")
    with pytest.raises(ValueError, match=r"read='first'.*'last'"):
        activations.residuals(llama, ["text"], [1], read="first")
    with pytest.raises(TypeError):
        kit.stream(llama, tokens, v, position="all")  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=r"contrast sets are .*happy-sad"):
        kit.data.contrast("happysad")


def test_vectors_that_do_not_fit(llama: Any) -> None:
    tokens = tiny.prompt(llama)
    for layer in (4, 99):
        with pytest.raises(ValueError, match="layers 0 to 3"):
            kit.stream(llama, tokens, kit.SteeringVector(torch.ones(48), layer, "v"))
    with pytest.raises(ValueError, match=r"'v' has width 32.*48"):
        kit.stream(llama, tokens, kit.SteeringVector(torch.ones(32), 1, "v"))
    with pytest.raises(ValueError, match="NaN"):
        kit.SteeringVector(torch.full((48,), math.nan), 1, "v")
    with pytest.raises(ValueError, match="NaN"):
        kit.SteeringVector(tiny.vector(llama, 1).direction * math.nan, 1, "v")


@pytest.mark.parametrize("texts", [[], "one text", [""]])
def test_no_texts_to_read(llama: Any, texts: Any) -> None:
    with pytest.raises(ValueError, match="text"):
        activations.residuals(llama, texts, [1])


def test_a_token_that_no_text_has(llama: Any) -> None:
    with pytest.raises(ValueError, match="none is read"):
        activations.residuals(llama, ["The boat"], [1], read=99)
    kit.assert_clean(llama)


def test_a_model_that_is_no_bridge(llama: Any) -> None:
    for thing in (runtime(llama).decoder, llama.tokenizer, None, "smollm2-135m-instruct"):
        for call in (
            lambda thing=thing: kit.generate(thing, "Hello"),
            lambda thing=thing: kit.fingerprint(thing),
            lambda thing=thing: kit.hooks_left(thing),
        ):
            with pytest.raises(TypeError, match=r"TransformerBridge.*kit\.load_model"):
                call()


@pytest.mark.parametrize("how", ["decoder", "bridge", "in a steer block"])
@pytest.mark.parametrize("at", [1, 3])
def test_an_interrupt_in_the_middle(llama: Any, how: str, at: int) -> None:
    """The kernel's stop button raises wherever Python happens to be: here, inside a block."""
    v, tokens = tiny.vector(llama, 1), tiny.prompt(llama)
    before = well(llama)
    runtime(llama).forget("prompt")
    tree = runtime(llama).decoder if how == "decoder" else llama.original_model
    block = tree.get_submodule("model.layers.2")
    block = getattr(block, "_original_component", block)  # what a bridge wraps
    real, count = block.forward, []

    def forward(*args: Any, **options: Any) -> Any:
        count.append(1)
        if len(count) == at:
            raise KeyboardInterrupt
        return real(*args, **options)

    kept = block.__dict__.get("forward")
    block.forward = forward
    try:
        with pytest.raises(KeyboardInterrupt):
            if how == "decoder":
                kit.generate(llama, tokens, v, [None, 0.5], measure=True)
            elif how == "bridge":
                with kit.steer(llama, {v: 0.5}):
                    tiny.greedy(llama, tokens, 5)
            else:
                with kit.steer(llama, {v: 0.5}):
                    kit.generate(llama, tokens, v, [None, 0.5])
    finally:
        del block.forward
        if kept is not None:
            block.forward = kept
    assert len(count) == at and kit.hooks_left(llama) == []
    assert well(llama) == before
    assert (
        kit.generate(llama, tokens, v, [0.5], max_new_tokens=4).rows[0].tokens
        == kit.generate(llama, tokens, v, [None, 0.5], max_new_tokens=4).rows[1].tokens
    )


def test_an_error_while_measuring_norms_leaves_nothing(llama: Any, tmp_path: Any) -> None:
    model = kit.load_model(llama.cfg.kit_folder, dtype="float32")
    block = runtime(model).block(3)

    def forward(*args: Any, **options: Any) -> Any:
        raise MemoryError

    block.forward = forward
    with pytest.raises(MemoryError):
        kit.residual_scale(model, 1)
    del block.forward
    kit.assert_clean(model)
    assert kit.residual_scale(model, 1) == pytest.approx(kit.residual_scale(llama, 1))


def test_padding_without_a_mask_is_refused_where_it_would_steer_the_wrong_token(llama: Any) -> None:
    """TransformerLens right-pads a list of strings and passes no mask: the ends are unknown."""
    texts = ["a boat", "a boat crossed the bay at noon"]
    vector = tiny.vector(llama, 1)
    with pytest.raises(ValueError, match="some rows end in padding"):
        with kit.steer(llama, {vector: 1.0}, "last_prompt"):
            llama(texts)
    assert kit.hooks_left(llama) == []
    with kit.steer(llama, {vector: 1.0}, "last_prompt") as receipt:
        llama(texts, padding_side="left")
    assert receipt.entries[0].prompt_steered[0] == 1
