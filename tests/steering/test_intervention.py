"""kit.steer: exact algebra on the residual stream, one position language, honest receipts."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import DynamicCache

import kit
from kit.models.bridge import runtime
from kit.steering.intervention import Session, select
from tests import tiny

LAYER = 1


def specification(positions: Any, n: int, prompt: int) -> list[bool]:
    """The position language said slowly: for each of n tokens, is it meant?"""
    meant = []
    for p in range(n):
        if isinstance(positions, list):
            meant.append(p < len(positions) and positions[p])
        elif isinstance(positions, int):
            meant.append(p == (positions if positions >= 0 else prompt + positions))
        elif isinstance(positions, slice):
            first = positions.start or 0
            first = first if first >= 0 else max(prompt + first, 0)
            stop = n if positions.stop is None else positions.stop
            stop = stop if stop >= 0 else prompt + stop
            meant.append(p in range(first, stop, positions.step or 1))
        else:
            meant.append(
                {"all": True, "prompt": p < prompt, "last_prompt": p == prompt - 1, "generated": p >= prompt - 1}[
                    positions
                ]
            )
    return meant


ends = st.one_of(st.none(), st.integers(-9, 14))
language = st.one_of(
    st.sampled_from(["all", "prompt", "last_prompt", "generated"]),
    st.integers(-9, 14),
    st.builds(slice, ends, ends, st.one_of(st.none(), st.integers(1, 4))),
    st.lists(st.booleans(), min_size=1, max_size=12),
)


@given(language, st.integers(1, 10), st.integers(0, 5), st.data())
@settings(deadline=None, max_examples=300)
def test_select_is_its_specification(positions: Any, prompt: int, extra: int, data: st.DataObject) -> None:
    n = prompt + extra
    expected = specification(positions, n, prompt)
    said = torch.tensor(positions) if isinstance(positions, list) else positions
    assert select(said, torch.arange(n), prompt).tolist() == expected
    # a cache lets only a part through: the answer is that part of the whole answer
    cut = data.draw(st.integers(0, n - 1))
    assert select(said, torch.arange(cut, n), prompt).tolist() == expected[cut:]
    # in a left-padded row padding is never meant and everything else moves along
    pads = data.draw(st.integers(1, 3))
    index = torch.cat([torch.full((pads,), -1), torch.arange(n)])[None]
    rows = select(said, index.expand(2, -1), torch.tensor([[prompt], [prompt]]))
    assert rows.tolist() == [[False] * pads + expected] * 2


@given(language, st.lists(st.integers(1, 8), min_size=2, max_size=4))
@settings(deadline=None, max_examples=60)
def test_select_knows_each_rows_own_prompt(positions: Any, prompts: list[int]) -> None:
    said = torch.tensor(positions) if isinstance(positions, list) else positions
    found = select(said, torch.arange(10).expand(len(prompts), -1), torch.tensor(prompts)[:, None])
    assert found.tolist() == [specification(positions, 10, p) for p in prompts]


def test_a_mask_with_rows() -> None:
    mask = torch.tensor([[True, False, False], [False, True, True]])
    expected = [[True, False, False, False], [False, True, True, False]]
    assert select(mask, torch.arange(4), 3).tolist() == expected
    assert select(mask, torch.arange(4).expand(2, -1), 3).tolist() == expected
    assert select(mask[:1], torch.arange(4).expand(2, -1), 3).tolist() == [expected[0]] * 2
    with pytest.raises(ValueError, match="2 rows for a batch of 3"):
        select(mask, torch.arange(4).expand(3, -1), 3)


@pytest.mark.parametrize(
    "positions",
    [
        "last",
        "All",
        "",
        None,
        1.0,
        True,
        slice(None, None, 0),
        slice(None, None, -1),
        torch.ones(3),
        torch.ones(2, 2, 2, dtype=torch.bool),
        torch.tensor(True),
        [1, 2],
        (0, 1),
    ],
)
def test_positions_outside_the_language(llama: Any, positions: Any) -> None:
    v = tiny.vector(llama, LAYER)
    with pytest.raises(ValueError, match=r"(?s)positions=.*last_prompt"):
        with kit.steer(llama, {v: 1.0}, positions=positions):
            raise AssertionError("the block ran")
    with pytest.raises(ValueError, match=r"(?s)positions=.*last_prompt"):
        kit.stream(llama, tiny.prompt(llama), v, positions=positions)


def change(before: Tensor, v: Any, model: Any, c: float, op: str) -> Tensor:
    """The three operations, written from their definitions in float64."""
    h, d = before.double(), v.direction.double()
    step = c * v.norm * kit.residual_scale(model, v.layer)
    along = h @ d
    if op == "add":
        return h + step * d
    if op == "ablate":
        return h - c * along[..., None] * d
    return h + (step - along)[..., None] * d


@pytest.mark.parametrize("op", ["add", "ablate", "clamp"])
@pytest.mark.parametrize("layer", [0, 3])
def test_the_algebra_of_each_op(model: Any, op: str, layer: int) -> None:
    v, tokens = tiny.vector(model, layer, norm=1.7), tiny.prompt(model)
    before = tiny.stream_after(model, layer, tokens)
    for c in (0.8, -0.5, 1.0, 0.0):
        with kit.steer(model, {v: c}, op=op):  # type: ignore[arg-type]
            after = tiny.stream_after(model, layer, tokens)
        assert torch.allclose(after.double(), change(before, v, model, c, op), atol=1e-4)
    if op == "ablate":
        with kit.steer(model, {v: 1.0}, op=op):
            assert (tiny.stream_after(model, layer, tokens) @ v.direction).abs().max() < 1e-4
    if op == "clamp":
        with kit.steer(model, {v: 0.5}, op=op):
            along = tiny.stream_after(model, layer, tokens) @ v.direction
        expected = 0.5 * 1.7 * kit.residual_scale(model, layer)
        assert torch.allclose(along, torch.full_like(along, expected), atol=1e-3)


POSITIONS: list[Any] = [
    "all",
    "prompt",
    "last_prompt",
    "generated",
    0,
    5,
    -1,
    -3,
    slice(2, 5),
    slice(-4, -1),
    slice(1, None, 3),
    torch.arange(12) % 3 == 0,
]


@pytest.mark.parametrize("positions", POSITIONS, ids=str)
def test_only_the_chosen_positions_change(model: Any, positions: Any) -> None:
    v, tokens = tiny.vector(model, LAYER), tiny.prompt(model)
    before = tiny.stream_after(model, LAYER, tokens)
    with kit.steer(model, {v: 0.7}, positions) as receipt:
        after = tiny.stream_after(model, LAYER, tokens)
    said = positions.tolist() if isinstance(positions, Tensor) else positions
    meant = torch.tensor(specification(said, 12, 12))
    step = 0.7 * kit.residual_scale(model, LAYER) * v.direction
    assert torch.allclose(after[0, meant], before[0, meant] + step, atol=1e-4)
    assert torch.equal(after[0, ~meant], before[0, ~meant])
    entry = receipt.entries[0]
    assert entry.prompt_steered == [int(meant.sum())] and entry.decode_steered == [0]
    assert (receipt.prompt_positions, receipt.decode_steps) == (12, 0)
    ratios = step.norm() / before[0, meant].norm(dim=-1)
    assert entry.ratios[0] == pytest.approx(ratios.tolist(), rel=1e-4)
    assert f"{int(meant.sum())}/12 prompt positions" in str(receipt)


def test_several_vectors_and_layers_at_once(model: Any) -> None:
    a, b, c = tiny.vector(model, 1, 1), tiny.vector(model, 1, 2), tiny.vector(model, 3, 3)
    tokens = tiny.prompt(model)
    before = tiny.stream_after(model, 1, tokens)
    with kit.steer(model, {a: 0.5, b: -0.3, c: 0.9}) as receipt:
        one = tiny.stream_after(model, 1, tokens)
        three = tiny.stream_after(model, 3, tokens)
    unit = kit.residual_scale(model, 1)
    expected = before + unit * (0.5 * a.direction - 0.3 * b.direction)
    assert torch.allclose(one, expected, atol=1e-4)
    with kit.steer(model, {a: 0.5, b: -0.3}):
        lower = tiny.stream_after(model, 3, tokens)
    assert torch.allclose(three, lower + 0.9 * kit.residual_scale(model, 3) * c.direction, atol=1e-4)
    assert [e.layers for e in receipt.entries] == [[1], [1], [3]]
    assert len(str(receipt).splitlines()) == 3


def test_a_coefficient_for_each_row(model: Any) -> None:
    v, w = tiny.vector(model, 1, 1), tiny.vector(model, 2, 2)
    tokens = torch.cat([tiny.prompt(model, seed=s) for s in range(3)])
    before = tiny.stream_after(model, 1, tokens)
    rows = [0.5, 0.0, -1.2]
    with kit.steer(model, {v: rows}) as receipt:
        after = tiny.stream_after(model, 1, tokens)
    unit = kit.residual_scale(model, 1)
    expected = before + torch.tensor(rows)[:, None, None] * unit * v.direction
    assert torch.allclose(after, expected, atol=1e-4)
    assert torch.equal(after[1], before[1])
    assert receipt.entries[0].prompt_steered == [12] * 3
    for i, c in enumerate(rows):
        with kit.steer(model, {v: c, w: 0.3}):
            alone = model(tokens[i : i + 1])
        with kit.steer(model, {v: torch.tensor(rows), w: 0.3}):
            assert torch.allclose(model(tokens)[i], alone[0], atol=1e-3)


@pytest.mark.parametrize("rows", [[0.1, 0.2], [0.1] * 4])
def test_the_wrong_number_of_rows(llama: Any, rows: list[float]) -> None:
    tokens = torch.cat([tiny.prompt(llama)] * 3)
    with pytest.raises(ValueError, match=rf"{len(rows)} rows, the batch has 3"):
        with kit.steer(llama, {tiny.vector(llama, 1): rows}):
            llama(tokens)
    kit.assert_clean(llama)


def test_a_mask_for_each_row(model: Any) -> None:
    v = tiny.vector(model, LAYER)
    tokens = torch.cat([tiny.prompt(model, 6, seed=s) for s in range(2)])
    mask = torch.tensor([[True, False, True, False, False, True], [False] * 5 + [True]])
    before = tiny.stream_after(model, LAYER, tokens)
    with kit.steer(model, {v: 0.7}, mask) as receipt:
        after = tiny.stream_after(model, LAYER, tokens)
    moved = (after != before).any(-1)
    assert torch.equal(moved, mask)
    assert receipt.entries[0].prompt_steered == [3, 1]
    with pytest.raises(ValueError, match="2 rows for a batch of 3"):
        with kit.steer(model, {v: 0.7}, mask):
            model(torch.cat([tokens, tokens[:1]]))


# --- decoding -------------------------------------------------------------------------------


def bridge_tokens(model: Any, tokens: Tensor, n: int, *, cache: bool, **options: Any) -> Tensor:
    out = model.generate(
        tokens,
        max_new_tokens=n,
        do_sample=False,
        stop_at_eos=False,
        verbose=False,
        use_past_kv_cache=cache,
        return_type="tokens",
        prepend_bos=False,
        **options,
    )
    return out[:, tokens.shape[1] :]


@pytest.mark.parametrize("positions", POSITIONS, ids=str)
def test_with_and_without_a_cache(model: Any, positions: Any) -> None:
    """Same tokens, same receipt; and the receipt's counts are the specification's."""
    v, tokens = tiny.vector(model, LAYER), tiny.prompt(model)
    found = []
    for cache in (True, False):
        with kit.steer(model, {v: 0.6}, positions) as receipt:
            found.append((bridge_tokens(model, tokens, 7, cache=cache), receipt))
    (cached, one), (uncached, two) = found
    assert torch.equal(cached, uncached)
    with kit.steer(model, {v: 0.6}, positions):
        assert tiny.greedy(model, tokens, 7) == cached.tolist()
    said = positions.tolist() if isinstance(positions, Tensor) else positions
    meant = specification(said, 12 + 6, 12)  # the seventh token is never fed
    for receipt in (one, two):
        assert (receipt.prompt_positions, receipt.decode_steps) == (12, 6)
        assert receipt.entries[0].prompt_steered == [sum(meant[:12])]
        assert receipt.entries[0].decode_steered == [sum(meant[12:])]
    assert one.entries[0].ratios[0] == pytest.approx(two.entries[0].ratios[0], rel=1e-3)
    assert str(one) == str(two)


def test_steering_changes_the_text(model: Any) -> None:
    v, tokens = tiny.vector(model, LAYER), tiny.prompt(model)
    plain = bridge_tokens(model, tokens, 8, cache=True)
    for positions in ("all", "prompt", "generated"):
        with kit.steer(model, {v: 1.0}, positions):
            assert not torch.equal(bridge_tokens(model, tokens, 8, cache=True), plain)
    assert torch.equal(bridge_tokens(model, tokens, 8, cache=True), plain)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("positions", ["all", "prompt", "last_prompt", "generated", 2, -2, slice(-3, None)], ids=str)
def test_a_left_padded_batch(model: Any, positions: Any, cache: bool) -> None:
    """Each row is steered as if it were alone: pads never, its own last prompt token always."""
    v = tiny.vector(model, LAYER)
    texts = [tiny.prompt(model, n, seed=n)[0] for n in (9, 5, 12)]
    mask = torch.tensor([[0] * (12 - len(t)) + [1] * len(t) for t in texts])
    batch = torch.stack([torch.cat([torch.full((12 - len(t),), model.tokenizer.pad_token_id), t]) for t in texts])
    with kit.steer(model, {v: [0.6, 0.9, -0.6]}, positions) as receipt:
        rows = bridge_tokens(model, batch, 5, cache=cache, attention_mask=mask)
    for i, (text, c) in enumerate(zip(texts, (0.6, 0.9, -0.6), strict=True)):
        with kit.steer(model, {v: c}, positions) as alone:
            assert bridge_tokens(model, text[None], 5, cache=True)[0].tolist() == rows[i].tolist()
        entry, own = receipt.entries[0], alone.entries[0]
        assert entry.prompt_steered[i] == own.prompt_steered[0]
        assert entry.decode_steered[i] == own.decode_steered[0]
        assert entry.ratios[i] == pytest.approx(own.ratios[0], rel=1e-3)


def test_padding_is_left_alone(model: Any) -> None:
    v = tiny.vector(model, LAYER)
    mask = torch.tensor([[0, 0, 0] + [1] * 9, [1] * 12])
    tokens = torch.cat([tiny.prompt(model), tiny.prompt(model, seed=1)])
    before = tiny.stream_after(model, LAYER, tokens, attention_mask=mask)
    for positions, moved in (("all", mask.bool()), ("last_prompt", torch.arange(12) == 11)):
        with kit.steer(model, {v: 0.7}, positions):
            after = tiny.stream_after(model, LAYER, tokens, attention_mask=mask)
        assert torch.equal((after != before).any(-1), moved.expand(2, -1))


def test_right_padding_with_a_mask(model: Any) -> None:
    """The last prompt token of a row is its last real one, wherever the pads stand."""
    v = tiny.vector(model, LAYER)
    mask = torch.tensor([[1] * 7 + [0] * 5, [1] * 12])
    tokens = torch.cat([tiny.prompt(model), tiny.prompt(model, seed=1)])
    before = tiny.stream_after(model, LAYER, tokens, attention_mask=mask)
    with kit.steer(model, {v: 0.7}, "last_prompt"):
        after = tiny.stream_after(model, LAYER, tokens, attention_mask=mask)
    assert (after != before).any(-1).nonzero().tolist() == [[0, 6], [1, 11]]


def test_two_prompts_in_one_block_are_two_prompts(model: Any) -> None:
    v = tiny.vector(model, LAYER)
    short, long = tiny.prompt(model, 6), tiny.prompt(model, 11, seed=1)
    with kit.steer(model, {v: 0.7}, "last_prompt"):
        inside = [tiny.stream_after(model, LAYER, t) for t in (short, long, short)]
        bridge_tokens(model, short, 3, cache=True)
        # after a cached decode even a prompt that is one token longer starts anew
        longer = torch.cat([short, long[:, :1]], dim=1)
        inside.append(tiny.stream_after(model, LAYER, longer))
        # and after a pass that was given an empty cache
        model.original_model(input_ids=short, past_key_values=DynamicCache())
        assert torch.equal(tiny.stream_after(model, LAYER, longer), inside[-1])
    for tokens, after in zip((short, long, short, longer), inside, strict=True):
        moved = (after != tiny.stream_after(model, LAYER, tokens)).any(-1)
        assert moved.nonzero().tolist() in ([[0, tokens.shape[1] - 1]], [])
    assert (inside[0] != tiny.stream_after(model, LAYER, short)).any()


def test_prompt_length_says_where_the_prompt_ends(model: Any) -> None:
    v, tokens = tiny.vector(model, LAYER), tiny.prompt(model)
    before = tiny.stream_after(model, LAYER, tokens)
    for positions, expected in (
        ("prompt", range(8)),
        ("last_prompt", [7]),
        ("generated", range(7, 12)),
        (-2, [6]),
        (slice(-1, None), range(7, 12)),
    ):
        with kit.steer(model, {v: 0.7}, positions, prompt_length=8) as receipt:
            after = tiny.stream_after(model, LAYER, tokens)
        moved = (after != before).any(-1)[0].nonzero()[:, 0].tolist()
        assert moved == list(expected)
        assert (receipt.prompt_positions, receipt.decode_steps) == (8, 4)


def test_steering_that_starts_on_a_filled_cache(model: Any) -> None:
    """The first pass continues an unsteered prefix: positions count from the text's beginning."""
    v, tokens = tiny.vector(model, LAYER), tiny.prompt(model)
    for options, positions, expected in (
        ({}, "last_prompt", [11]),
        ({}, 9, [9]),
        ({}, "all", [8, 9, 10, 11]),
        ({"prompt_length": 10}, "generated", [9, 10, 11]),
    ):
        cache = model.original_model(input_ids=tokens[:, :8], use_cache=True).past_key_values
        seen: list[Tensor] = []
        with kit.steer(model, {v: 0.7}, positions, **options):
            with model.hooks(fwd_hooks=[(f"blocks.{LAYER}.hook_out", lambda t, hook: seen.append(t.clone()))]):
                model.original_model(input_ids=tokens[:, 8:], past_key_values=cache)
        plain = tiny.stream_after(model, LAYER, tokens)[:, 8:]
        moved = (seen[0] - plain).norm(dim=-1)[0] > 0.1
        assert (moved.nonzero()[:, 0] + 8).tolist() == expected


# --- living with the bridge's own tools -----------------------------------------------------


def test_run_with_cache_sees_the_steered_stream_and_leaves_it_steered(model: Any) -> None:
    v, tokens = tiny.vector(model, LAYER), tiny.prompt(model)
    plain = model(tokens)
    with kit.steer(model, {v: 0.7}):
        steered = model(tokens)
        logits, cache = model.run_with_cache(tokens)
        again = model(tokens)
    assert torch.equal(steered, logits) and torch.equal(steered, again)
    assert not torch.allclose(plain, steered, atol=1e-2)
    before = tiny.stream_after(model, LAYER, tokens)
    step = 0.7 * kit.residual_scale(model, LAYER) * v.direction
    assert torch.allclose(cache[f"blocks.{LAYER}.hook_out"], before + step, atol=1e-4)
    assert torch.equal(model(tokens), plain)


def test_reset_hooks_inside_does_not_unsteer(model: Any) -> None:
    v, tokens = tiny.vector(model, LAYER), tiny.prompt(model)
    with kit.steer(model, {v: 0.7}):
        steered = model(tokens)
        model.reset_hooks()
        assert torch.equal(model(tokens), steered)
        with model.hooks(fwd_hooks=[("blocks.2.hook_out", lambda t, hook: t * 0)]):
            assert not torch.equal(model(tokens), steered)
        assert torch.equal(model(tokens), steered)
    kit.assert_clean(model)


def test_even_a_reset_of_permanent_hooks_ends_in_a_clean_model(llama: Any) -> None:
    with kit.steer(llama, {tiny.vector(llama, LAYER): 0.7}):
        llama.reset_hooks(including_permanent=True)
    kit.assert_clean(llama)


def test_nested_blocks_add_up(model: Any) -> None:
    a, b, tokens = tiny.vector(model, 1, 1), tiny.vector(model, 1, 2), tiny.prompt(model)
    with kit.steer(model, {a: 0.5, b: 0.8}):
        both = model(tokens)
    with kit.steer(model, {a: 0.5}) as outer:
        one = model(tokens)
        with kit.steer(model, {b: 0.8}) as inner:
            assert torch.allclose(model(tokens), both, atol=1e-3)
        assert torch.equal(model(tokens), one)
    assert outer.entries[0].prompt_steered == [36] and inner.entries[0].prompt_steered == [12]
    with kit.steer(model, {a: 0.5}), kit.steer(model, {a: 0.5}):
        twice = tiny.stream_after(model, 1, tokens)
    with kit.steer(model, {a: 1.0}):
        assert torch.allclose(tiny.stream_after(model, 1, tokens), twice, atol=1e-4)


def test_an_exception_inside_leaves_no_hook(model: Any) -> None:
    v, tokens = tiny.vector(model, LAYER), tiny.prompt(model)
    plain = model(tokens)
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error):
            with kit.steer(model, {v: 0.7}):
                assert kit.hooks_left(model) == [f"blocks.{LAYER}.hook_out"]
                model(tokens)
                raise error
        kit.assert_clean(model)
        assert torch.equal(model(tokens), plain)


def test_hooks_left_names_a_hook_of_the_users(model: Any) -> None:
    assert kit.hooks_left(model) == []
    model.add_hook("blocks.2.hook_out", lambda t, hook: t)
    with pytest.raises(AssertionError, match=r"blocks\.2\.hook_out"):
        kit.assert_clean(model)
    model.reset_hooks()
    handle = runtime(model).block(1).register_forward_hook(lambda *a: None)
    assert any(name.startswith("decoder:") for name in kit.hooks_left(model))
    handle.remove()
    kit.assert_clean(model)


def test_heads_are_steered_too(model: Any) -> None:
    heads, tokens = tiny.HeadShift([1, 2]), tiny.prompt(model)
    parts = heads.parts(model)

    def z(layer: int) -> Tensor:
        name = f"blocks.{layer}.attn.hook_z"
        _, cache = model.run_with_cache(tokens, names_filter=[name])
        return cache[name].flatten(2)

    before = z(1)
    with kit.steer(model, {heads: 0.5}, "last_prompt") as receipt:
        after, logits = z(1), model(tokens)
    expected = before.clone()
    expected[:, -1] += 0.5 * parts[0].scale * parts[0].direction
    assert torch.allclose(after, expected, atol=1e-4)
    assert not torch.allclose(logits, model(tokens), atol=1e-3)
    assert receipt.entries[0].layers == [1, 2]
    assert receipt.entries[0].prompt_steered == [2]  # one position in each of two passes


# --- gradients ------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["add", "ablate", "clamp"])
def test_gradients_flow_through_steering(model: Any, op: Any) -> None:
    """Through the bridge, to an embedding, and as a finite difference says."""
    v, tokens = tiny.vector(model, LAYER), tiny.prompt(model)
    embed = runtime(model).decoder.get_input_embeddings()
    x = embed(tokens).clone().requires_grad_()

    def loss(x: Tensor) -> Tensor:
        return model(x)[0, -1].log_softmax(-1)[7]

    with kit.steer(model, {v: 0.7}, op=op):
        loss(x).backward()
        assert x.grad is not None and x.grad.isfinite().all() and x.grad.norm() > 0
        step = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)) * 2e-3
        with torch.no_grad():
            difference = float(loss(x + step) - loss(x - step)) / 2
    assert difference == pytest.approx(float((x.grad * step).sum()), rel=0.1, abs=2e-4)
    steered, x.grad = x.grad.clone(), None
    loss(x).backward()
    assert not torch.allclose(steered, x.grad, atol=1e-5)


def test_ablation_lets_no_gradient_through_along_the_direction(model: Any) -> None:
    v, tokens = tiny.vector(model, 3), tiny.prompt(model)
    kept: list[Tensor] = []

    def keep(t: Tensor, hook: Any) -> None:
        t.retain_grad()
        kept.append(t)

    x = runtime(model).decoder.get_input_embeddings()(tokens).clone().requires_grad_()
    point = "blocks.3.hook_out"
    with model.hooks(fwd_hooks=[(point, keep)]), kit.steer(model, {v: 1.0}, op="ablate"):
        model(x)[0, -1, 7].backward()
    assert kept[0].grad.norm() > 0
    assert float((kept[0].grad @ v.direction).abs().max()) < 1e-4


# --- refusals, before anything runs ---------------------------------------------------------


@pytest.mark.parametrize(
    ("coefficient", "message"),
    [
        (math.nan, "give a number"),
        (math.inf, "infinite"),
        (-math.inf, "infinite"),
        ([0.1, math.nan], "give a number"),
        ([], "give a number"),
        ("much", "give a number"),
        (None, "give a number"),
        ([[0.1]], "give a number"),
        ({}, "give a number"),
    ],
)
def test_coefficients_that_make_no_sense(llama: Any, coefficient: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"coefficient=.*{message}"):
        with kit.steer(llama, {tiny.vector(llama, 1): coefficient}):
            raise AssertionError("the block ran")
    kit.assert_clean(llama)


@pytest.mark.parametrize("op", ["Add", "multiply", "", None])
def test_an_unknown_op(llama: Any, op: Any) -> None:
    with pytest.raises(ValueError, match=r"op=.*'add', 'ablate', 'clamp'"):
        with kit.steer(llama, {tiny.vector(llama, 1): 1.0}, op=op):
            raise AssertionError("the block ran")


def test_a_layer_or_width_that_the_model_lacks(llama: Any) -> None:
    v = kit.SteeringVector(torch.ones(48), 4, "deep")
    with pytest.raises(ValueError, match=r"layer=4.*layers 0 to 3"):
        with kit.steer(llama, {v: 1.0}):
            raise AssertionError("the block ran")
    for width in (47, 49, 96):
        v = kit.SteeringVector(torch.ones(width), 1, "wide")
        with pytest.raises(ValueError, match=rf"'wide' has width {width}.*48"):
            with kit.steer(llama, {v: 1.0}):
                raise AssertionError("the block ran")


def test_a_site_that_is_none(llama: Any) -> None:
    from kit.steering.intervention import Part

    class Odd:
        name, fingerprint = "odd", None

        def parts(self, _model: Any) -> Sequence[Any]:
            return [Part(1, "mlp_in", torch.ones(48), 1.0)]  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="site=.mlp_in."):
        with kit.steer(llama, {Odd(): 1.0}):
            raise AssertionError("the block ran")
    kit.assert_clean(llama)


def test_a_model_that_is_no_bridge(llama: Any) -> None:
    v = tiny.vector(llama, 1)
    for thing in (runtime(llama).decoder, None, "gpt2", torch.nn.Linear(2, 2)):
        with pytest.raises(TypeError, match=r"kit\.load_model"):
            with kit.steer(thing, {v: 1.0}):  # type: ignore[arg-type]
                raise AssertionError("the block ran")


def test_the_block_holds_the_models_lock(llama: Any) -> None:
    done: list[bool] = []
    lock = runtime(llama).lock

    def other() -> None:
        done.append(lock.acquire(timeout=0.05))
        if done[-1]:
            lock.release()

    def attempt() -> bool:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(5)
        return done[-1]

    with kit.steer(llama, {tiny.vector(llama, 1): 1.0}):
        assert not attempt()
    assert attempt()


def test_bfloat16_adds_in_its_own_precision(llama: Any) -> None:
    half = kit.load_model(llama.cfg.kit_folder, dtype="bfloat16")
    v, tokens = tiny.vector(llama, LAYER), tiny.prompt(llama)
    before = tiny.stream_after(half, LAYER, tokens)
    with kit.steer(half, {v: 0.7}):
        after = tiny.stream_after(half, LAYER, tokens)
    assert after.dtype == torch.bfloat16
    step = 0.7 * kit.residual_scale(half, LAYER) * v.direction
    assert torch.allclose((after - before).float(), step.expand_as(after), atol=0.15)
    assert v.direction.dtype == torch.float32


def test_a_session_shares_blocks_below_the_first_it_touches(llama: Any) -> None:
    for things, expected in (
        ([tiny.vector(llama, 0)], 1),
        ([tiny.vector(llama, 3)], 4),
        ([tiny.HeadShift([2])], 2),
        ([tiny.HeadShift([0])], 0),
        ([tiny.vector(llama, 2), tiny.vector(llama, 1)], 2),
        ([], 4),
    ):
        session = Session(llama, things, [(1.0,) * len(things)], "all", "add")
        assert session.untouched_blocks == expected


def test_an_unknown_op_is_refused_without_vectors_too(llama: Any) -> None:
    with pytest.raises(ValueError, match="op='subtract': use 'add', 'ablate', 'clamp'"):
        kit.generate(llama, tiny.prompt(llama), op="subtract", max_new_tokens=1)  # type: ignore[arg-type]
