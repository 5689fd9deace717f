"""The decode loop against the slowest possible one, in every shape a ladder can take."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import kit
from kit.models.bridge import runtime
from kit.steering import generation
from kit.steering.results import Row, label
from kit.steering.sampling import Pieces
from tests import tiny
from tests.steering.test_intervention import POSITIONS, specification

N = 6
RUNGS: list[Any] = [None, -0.8, 0.0, 1.1]


def tokens_of(run: kit.Generation) -> list[list[int]]:
    return [row.tokens for row in run.rows]


def brute(model: Any, tokens: Tensor, given: dict[Any, float], n: int = N, **how: Any) -> list[int]:
    """The whole text again for every token, through the bridge, in a kit.steer block."""
    with kit.steer(model, given, **how):
        row = tiny.greedy(model, tokens, n)[0]
    end = model.tokenizer.eos_token_id
    return row[: row.index(end)] if end in row else row


@pytest.fixture(params=["gpt2", "neox", "llama", "gemma2"])
def any_model(request: pytest.FixtureRequest, tiny_model: Any) -> Any:
    """Also the architecture whose cache cannot be forked."""
    return tiny_model(request.param)


def test_unsteered_is_argmax(any_model: Any) -> None:
    tokens = tiny.prompt(any_model)
    run = kit.generate(any_model, tokens, max_new_tokens=N)
    assert tokens_of(run) == tiny.greedy(any_model, tokens, N)
    assert f"nothing steered · 12 prompt positions · {N - 1} decode steps" in str(run.receipt)
    assert tokens_of(kit.generate(any_model, tokens[0], max_new_tokens=N)) == tokens_of(run)


@pytest.mark.parametrize("positions", POSITIONS, ids=str)
def test_each_rung_is_its_single_run_and_the_brute_force(any_model: Any, positions: Any) -> None:
    v, tokens = tiny.vector(any_model, 1), tiny.prompt(any_model)
    how: dict[str, Any] = {"positions": positions, "max_new_tokens": N}
    ladder = kit.generate(any_model, tokens, v, RUNGS, **how)
    measured = kit.generate(any_model, tokens, v, RUNGS, measure=True, **how)
    assert tokens_of(measured) == tokens_of(ladder)
    said = positions.tolist() if isinstance(positions, Tensor) else positions
    meant = specification(said, 12 + N - 1, 12)
    for c, row, shadowed in zip(RUNGS, ladder.rows, measured.rows, strict=True):
        alone = kit.generate(any_model, tokens, v, [c], **how)
        assert row.tokens == alone.rows[0].tokens, c
        assert str(row.receipt) == str(alone.receipt) == str(shadowed.receipt)
        assert row.tokens == brute(any_model, tokens, {v: c or 0.0}, positions=positions), c
        entry = row.receipt.entries[0]
        expected = [0, 0] if c is None else [sum(meant[:12]), sum(meant[12:])]
        assert [*entry.prompt_steered, *entry.decode_steered] == expected
        assert (row.receipt.prompt_positions, row.receipt.decode_steps) == (12, N - 1)
    assert ladder.rows[0].tokens == ladder.rows[2].tokens
    if positions in ("all", "prompt", "generated"):
        assert len(set(map(str, tokens_of(ladder)))) > 2  # the rungs do differ
    kit.assert_clean(any_model)


@pytest.mark.parametrize("op", ["add", "ablate", "clamp"])
@pytest.mark.parametrize("layer", [0, 2, 3])
def test_each_layer_and_op(any_model: Any, layer: int, op: Any) -> None:
    """The first block, the last one, and one between: rows fork right after it."""
    v, tokens = tiny.vector(any_model, layer), tiny.prompt(any_model)
    rungs = [None, 0.6, 1.0]
    for positions in ("all", slice(-3, None)):
        ladder = kit.generate(any_model, tokens, v, rungs, positions=positions, op=op, max_new_tokens=N)
        for c, row in zip(rungs, ladder.rows, strict=True):
            given = {} if c is None else {v: c}
            assert row.tokens == brute(any_model, tokens, given, positions=positions, op=op)


@pytest.mark.parametrize("layers", [[0], [1, 2], [3]])
def test_heads_in_a_ladder(any_model: Any, layers: list[int]) -> None:
    """Parts at the "z" site act inside their block: rows fork before it."""
    heads, tokens = tiny.HeadShift(layers), tiny.prompt(any_model)
    v = tiny.vector(any_model, 1)
    rungs = [None, -1.0, 0.0, 1.0]
    for positions in ("all", "last_prompt"):
        ladder = kit.generate(any_model, tokens, heads, rungs, positions=positions, max_new_tokens=N)
        for c, row in zip(rungs, ladder.rows, strict=True):
            assert row.tokens == brute(any_model, tokens, {heads: c or 0.0}, positions=positions)
    mixed = kit.generate(any_model, tokens, [heads, v], [[1.0, 0.5], [0.0, 0.5]], max_new_tokens=N)
    assert mixed.rows[0].tokens == brute(any_model, tokens, {heads: 1.0, v: 0.5})
    assert mixed.rows[1].tokens == brute(any_model, tokens, {v: 0.5})
    assert [len(e.layers) for e in mixed.receipt.entries] == [len(layers), 1]


def test_several_vectors_with_a_number_each(model: Any) -> None:
    a, b = tiny.vector(model, 1, 1), tiny.vector(model, 3, 2)
    tokens = tiny.prompt(model)
    rungs = [[0.5, 0.0], [0.0, -0.9], [0.5, -0.9], None, 0.7]
    ladder = kit.generate(model, tokens, [a, b], rungs, max_new_tokens=N)
    for (x, y), row in zip([(0.5, 0), (0, -0.9), (0.5, -0.9), (0, 0), (0.7, 0.7)], ladder.rows, strict=True):
        assert row.tokens == brute(model, tokens, {a: x, b: y})
    assert ladder.rows[4].coefficients == (0.7, 0.7) and ladder.rows[3].coefficients is None
    assert ladder.names == [a.name, b.name]


def test_a_mask_for_each_rung(model: Any) -> None:
    v, tokens = tiny.vector(model, 1), tiny.prompt(model, 6)
    mask = torch.tensor([[False] * 5 + [True], [True] * 6, [False, True] * 3])
    for measure in (False, True):
        ladder = kit.generate(model, tokens, v, [1.1, None, -0.8], positions=mask, max_new_tokens=N, measure=measure)
        for i, (c, row) in enumerate(zip((1.1, 0.0, -0.8), ladder.rows, strict=True)):
            assert row.tokens == brute(model, tokens, {v: c}, positions=mask[i])
        assert [r.receipt.entries[0].prompt_steered for r in ladder.rows] == [[1], [0], [3]]
    with pytest.raises(ValueError, match="mask of 3 rows for a ladder of 2"):
        kit.stream(model, tokens, v, [0.1, 0.2], positions=mask)


def test_numbers_of_torch_and_numpy(llama: Any) -> None:
    v, tokens = tiny.vector(llama, 1), tiny.prompt(llama)
    expected = tokens_of(kit.generate(llama, tokens, v, [-1.0, 0.0, 1.0], max_new_tokens=4))
    for rungs in (
        torch.linspace(-1, 1, 3),
        np.linspace(-1, 1, 3),
        list(torch.linspace(-1, 1, 3)),
        np.float32([-1, 0, 1]),
        [np.float32(-1), 0, [torch.tensor(1.0)]],
        (-1, 0, 1),
    ):
        assert tokens_of(kit.generate(llama, tokens, v, rungs, max_new_tokens=4)) == expected
    one = kit.generate(llama, tokens, v, 1.0, max_new_tokens=4)
    assert tokens_of(one) == expected[2:] == tokens_of(kit.generate(llama, tokens, v, max_new_tokens=4))


def test_one_vector_twice_is_refused(llama: Any) -> None:
    """Not silently steered once."""
    v = tiny.vector(llama, 1)
    with pytest.raises(ValueError, match="twice"):
        kit.stream(llama, tiny.prompt(llama), [v, v], [[0.1, 0.2]])


# --- reuse ----------------------------------------------------------------------------------


def test_a_second_run_with_the_same_prompt_is_the_first(any_model: Any) -> None:
    v, w = tiny.vector(any_model, 1), tiny.vector(any_model, 3, 4)
    tokens, other = tiny.prompt(any_model, 14), tiny.prompt(any_model, 14, seed=3)

    def runs(*, reuse: bool) -> list[Any]:
        found = []
        for t, u, p in (
            (tokens, v, "all"),
            (tokens, w, "generated"),
            (other, v, -3),
            (tokens, v, slice(-5, None)),
            (tokens, v, "last_prompt"),
        ):
            if not reuse:
                runtime(any_model).forget("prompt")
            run = kit.generate(any_model, t, u, RUNGS, positions=p, max_new_tokens=N)
            found.append(tokens_of(run))
        return found

    first = runs(reuse=False)
    assert runs(reuse=True) == first == runs(reuse=True)


def test_reuse_saves_work_and_the_receipt_still_counts_it(llama: Any) -> None:
    v, tokens = tiny.vector(llama, 1), tiny.prompt(llama, 40)
    with fed(llama) as widths:
        for _ in range(2):
            run = kit.generate(llama, tokens, v, [None, 0.5], positions="generated", max_new_tokens=3)
            assert run.receipt.prompt_positions == 40
            assert run.rows[1].receipt.entries[0].prompt_steered == [1]
    assert widths[:2] == [40, 1] and widths[4:] == [1, 1, 1]  # the second time: no prompt


@contextmanager
def fed(model: Any) -> Iterator[list[int]]:
    """How many tokens each forward pass of the decoder is given; sets no hook."""
    decoder, widths = runtime(model).decoder, []
    real = decoder.forward

    def forward(*args: Any, **options: Any) -> Any:
        widths.append(options["input_ids"].shape[1])
        return real(*args, **options)

    decoder.forward = forward
    try:
        yield widths
    finally:
        del decoder.forward


def test_the_kept_prompt_is_never_written_to(llama: Any) -> None:
    tokens = tiny.prompt(llama)
    kit.generate(llama, tokens, max_new_tokens=2)
    kept = runtime(llama).known("prompt")
    before = [(k.clone(), v.clone()) for k, v in kept.pairs]
    kit.generate(llama, tokens, tiny.vector(llama, 0), RUNGS, positions=-2, max_new_tokens=N)
    for (k, v), (k0, v0) in zip(kept.pairs, before, strict=True):
        assert torch.equal(k, k0) and torch.equal(v, v0) and k.shape[2] == 12


# --- the steered positions, watched from outside --------------------------------------------


@contextmanager
def watched(model: Any, layer: int) -> Iterator[list[Tensor]]:
    """Which positions change between a block's own output and the next one's input.

    Replaces ``forward`` rather than setting hooks, so that it stands outside the machinery."""
    state = runtime(model)
    below, above = state.block(layer), state.block(layer + 1)
    real, later = below.forward, above.forward
    kept: list[Tensor] = []
    moved: list[Tensor] = []

    def out(*args: Any, **options: Any) -> Any:
        found = real(*args, **options)
        kept[:] = [found[0] if isinstance(found, tuple) else found]
        return found

    def into(hidden: Tensor, *args: Any, **options: Any) -> Any:
        moved.append((hidden != kept[0]).any(-1))
        return later(hidden, *args, **options)

    below.forward, above.forward = out, into
    try:
        yield moved
    finally:
        del below.forward, above.forward


@pytest.mark.parametrize("positions", POSITIONS, ids=str)
def test_the_receipt_is_true(any_model: Any, positions: Any) -> None:
    v, tokens = tiny.vector(any_model, 1), tiny.prompt(any_model)
    runtime(any_model).forget("prompt")
    with watched(any_model, 1) as moved:
        run = kit.generate(any_model, tokens, v, [0.7, -1.1], positions=positions, max_new_tokens=N)
    kit.assert_clean(any_model)
    prompt, steps = moved[: -(N - 1)], moved[-(N - 1) :]
    assert len(prompt) in (1, 2)  # the unsteered prefix, and the rows from where they differ
    for i, row in enumerate(run.rows):
        entry = row.receipt.entries[0]
        wide = [m for m in prompt if len(m) == 2]
        assert entry.prompt_steered == [sum(int(m[i].sum()) for m in wide)]
        assert entry.decode_steered == [sum(int(m[i].sum()) for m in steps)]


def test_the_receipts_sizes_are_true(llama: Any) -> None:
    v, tokens = tiny.vector(llama, 2, norm=1.4), tiny.prompt(llama)
    run = kit.generate(llama, tokens, v, [0.5], positions="prompt", max_new_tokens=2)
    plain = tiny.stream_after(llama, 2, tokens)[0].norm(dim=-1)
    expected = 0.5 * 1.4 * kit.residual_scale(llama, 2) / plain
    assert run.receipt.entries[0].ratios[0] == pytest.approx(expected.tolist(), rel=1e-4)
    assert f"|cv|/|h| = {float(expected.sort().values[6]):.2f}" in str(run.receipt)


# --- with other hooks -----------------------------------------------------------------------


def test_a_hook_of_the_users_acts_and_is_named(any_model: Any) -> None:
    tokens = tiny.prompt(any_model)
    shift = torch.randn(48, generator=torch.Generator().manual_seed(1)) * 20

    def hook(t: Tensor, hook: Any) -> Tensor:
        return t + shift

    plain = tokens_of(kit.generate(any_model, tokens, max_new_tokens=N))
    with any_model.hooks(fwd_hooks=[("blocks.2.hook_out", hook)]):
        run = kit.generate(any_model, tokens, max_new_tokens=N)
        assert tokens_of(run) == tiny.greedy(any_model, tokens, N)
        ladder = kit.generate(any_model, tokens, tiny.vector(any_model, 1), [None, 0.7], max_new_tokens=N)
    assert tokens_of(run) != plain
    assert ladder.rows[0].tokens == run.rows[0].tokens
    assert "also hooked: blocks.2.hook_out" in str(run.receipt)
    after = kit.generate(any_model, tokens, max_new_tokens=N)
    assert tokens_of(after) == plain and "also hooked" not in str(after.receipt)


def test_inside_kit_steer_both_act(any_model: Any) -> None:
    a, b = tiny.vector(any_model, 1, 1), tiny.vector(any_model, 2, 2)
    tokens = tiny.prompt(any_model)
    for positions in ("all", "generated", "last_prompt"):
        both = kit.generate(any_model, tokens, [a, b], [[0.6, 0.0], [0.6, 0.9]], positions=positions, max_new_tokens=N)
        with kit.steer(any_model, {a: 0.6}, positions) as outer:
            inside = kit.generate(any_model, tokens, b, [0.0, 0.9], positions=positions, max_new_tokens=N)
        assert tokens_of(inside) == tokens_of(both)
        own = both.rows[0].receipt.entries[0]
        assert outer.entries[0].prompt_steered == own.prompt_steered * 2
        assert outer.entries[0].decode_steered == own.decode_steered * 2
    kit.assert_clean(any_model)


# --- stopping -------------------------------------------------------------------------------


@pytest.fixture
def passes(llama: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts forward passes of the decoder."""
    count: list[int] = []
    real = generation.Decoder.step

    def step(self: Any, *args: Any, **options: Any) -> Any:
        count.append(1)
        return real(self, *args, **options)

    monkeypatch.setattr(generation.Decoder, "step", step)
    return count


def test_a_stop_event_ends_it_within_one_token(llama: Any, passes: list[int]) -> None:
    stop = threading.Event()
    run = kit.stream(llama, tiny.prompt(llama), tiny.vector(llama, 1), RUNGS, max_new_tokens=50, stop_event=stop)
    for step in run:
        if step.index == 2:
            stop.set()
    assert len(passes) == 3 and all(len(row.tokens) == 3 for row in run.rows)
    assert kit.hooks_left(llama) == []
    stopped = kit.generate(llama, tiny.prompt(llama), stop_event=stop)
    assert stopped.rows[0].tokens == [] and len(passes) == 3


def test_a_stop_from_another_thread(llama: Any) -> None:
    stop = threading.Event()
    found: list[kit.Generation] = []
    work = threading.Thread(
        target=lambda: found.append(
            kit.generate(llama, tiny.prompt(llama), tiny.vector(llama, 1), max_new_tokens=240, stop_event=stop)
        )
    )
    work.start()
    time.sleep(0.15)
    stop.set()
    work.join(10)
    assert not work.is_alive() and len(found[0].rows[0].tokens) < 240
    assert kit.hooks_left(llama) == []


def test_nothing_runs_before_the_first_step(llama: Any, passes: list[int]) -> None:
    run = kit.stream(llama, tiny.prompt(llama))
    assert not passes
    assert next(run).index == 0 and len(passes) == 1


def free(model: Any) -> bool:
    """Whether another thread can have the model's lock at once."""
    got: list[bool] = []

    def attempt() -> None:
        got.append(runtime(model).lock.acquire(blocking=False))
        if got[0]:
            runtime(model).lock.release()

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join(5)
    return got[0]


@pytest.mark.parametrize("end", ["forget", "close", "raise"])
def test_an_abandoned_stream_leaves_nothing(llama: Any, end: str) -> None:
    run = kit.stream(llama, tiny.prompt(llama), tiny.vector(llama, 1), RUNGS, measure=True)
    if end == "raise":
        with pytest.raises(ZeroDivisionError):
            for step in run:
                1 / (1 - step.index)
    else:
        next(run)
        next(run)
        # even before it ends: hooks and lock are held only while a pass runs
        assert free(llama) and kit.hooks_left(llama) == []
        if end == "close":
            run.steps.close()  # type: ignore[attr-defined]
    del run
    gc.collect()
    assert free(llama) and kit.hooks_left(llama) == []


def test_two_streams_take_turns(llama: Any) -> None:
    a, b = tiny.vector(llama, 1, 1), tiny.vector(llama, 2, 2)
    tokens, other = tiny.prompt(llama), tiny.prompt(llama, 9, seed=5)
    alone = [tokens_of(kit.generate(llama, t, v, [None, 0.8], max_new_tokens=N)) for t, v in ((tokens, a), (other, b))]
    one = kit.stream(llama, tokens, a, [None, 0.8], max_new_tokens=N)
    two = kit.stream(llama, other, b, [None, 0.8], max_new_tokens=N)
    for _ in zip(one, two, strict=True):
        pass
    assert [[r.tokens for r in s.rows] for s in (one, two)] == alone


def test_threads_do_not_disturb_each_other(llama: Any) -> None:
    vectors = [tiny.vector(llama, i % 4, i) for i in range(4)]
    tokens = tiny.prompt(llama)
    alone = [tokens_of(kit.generate(llama, tokens, v, [0.9], max_new_tokens=N)) for v in vectors]
    found: dict[int, Any] = {}

    def work(i: int) -> None:
        for _ in range(3):
            found[i] = tokens_of(kit.generate(llama, tokens, vectors[i], [0.9], max_new_tokens=N))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[i] for i in range(4)] == alone


# --- sampling -------------------------------------------------------------------------------


def test_sampling_is_seeded_row_by_row(model: Any) -> None:
    v, tokens = tiny.vector(model, 1), tiny.prompt(model)
    how: dict[str, Any] = {"temperature": 0.8, "max_new_tokens": 12}
    first = tokens_of(kit.generate(model, tokens, v, RUNGS, seed=3, **how))
    assert tokens_of(kit.generate(model, tokens, v, RUNGS, seed=3, **how)) == first
    assert tokens_of(kit.generate(model, tokens, v, RUNGS, seed=4, **how)) != first
    for c, row in zip(RUNGS, first, strict=True):  # whatever else is in the ladder
        assert tokens_of(kit.generate(model, tokens, v, [c], seed=3, **how)) == [row]
    pair = tokens_of(kit.generate(model, tokens, v, [1.1, None], seed=3, measure=True, **how))
    assert pair == [first[3], first[0]]
    assert first[0] == first[2]
    torch.manual_seed(0)
    state = torch.get_rng_state()
    kit.generate(model, tokens, v, seed=3, **how)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is not touched


def test_sampling_follows_the_probabilities(llama: Any) -> None:
    tokens = tiny.prompt(llama)
    p = (llama(tokens)[0, -1].float() / 1.5).softmax(-1)
    drawn = [kit.generate(llama, tokens, max_new_tokens=1, temperature=1.5, seed=s).rows[0].tokens for s in range(200)]
    counts = torch.zeros(300)
    for row in drawn:
        for token in row:
            counts[token] += 1
    top = p.topk(3).indices
    error = (p[top] * (1 - p[top]) / 200).sqrt()
    assert ((counts[top] / 200 - p[top]).abs() < 4.5 * error).all()
    assert len({tuple(r) for r in drawn}) > 5


# --- measures -------------------------------------------------------------------------------


def test_measures_are_those_of_full_forward_passes(any_model: Any) -> None:
    """KL and surprise of each token, computed again from whole texts in float64."""
    v, tokens = tiny.vector(any_model, 1), tiny.prompt(any_model)
    rungs = [None, 0.0, 0.4, -0.9]
    for positions in ("all", "last_prompt", slice(-4, None)):
        run = kit.generate(any_model, tokens, v, rungs, positions=positions, max_new_tokens=N, measure=True)
        for c, row in zip(rungs, run.rows, strict=True):
            text = torch.cat([tokens, torch.tensor([row.tokens])], dim=1)[:, :-1]
            before = any_model(text)[0, 11:].double().log_softmax(-1)
            with kit.steer(any_model, {v: c or 0.0}, positions, prompt_length=12):
                after = any_model(text)[0, 11:].double().log_softmax(-1)
            kl = (after.exp() * (after - before)).sum(-1)
            nll = -before[torch.arange(N), torch.tensor(row.tokens)]
            assert [m.kl for m in row.measures] == pytest.approx(kl.tolist(), abs=1e-3)
            assert [m.nll for m in row.measures] == pytest.approx(nll.tolist(), abs=2e-3)
            assert row.kl == pytest.approx(float(kl.mean()), abs=1e-3)
            assert row.perplexity == pytest.approx(float(nll.mean().exp()), rel=5e-3)
            for m, b, a in zip(row.measures, before, after, strict=True):
                for shown, log_p in ((m.before, b), (m.after, a)):
                    top = log_p.exp().topk(5)
                    assert [q for _, q in shown] == pytest.approx(top.values.tolist(), abs=1e-3)
                    assert shown[0][0] == any_model.tokenizer.decode([int(top.indices[0])])
        assert run.rows[2].kl > 0.01 and run.rows[0].kl == 0
        assert run.rows[1].kl == pytest.approx(0, abs=1e-6)


def test_without_measure_there_is_none(llama: Any) -> None:
    steps = list(kit.stream(llama, tiny.prompt(llama), tiny.vector(llama, 1), max_new_tokens=2))
    assert [s.measures for s in steps] == [[None], [None]]
    row = kit.generate(llama, tiny.prompt(llama), max_new_tokens=2).rows[0]
    assert row.kl is None and row.perplexity is None


def test_logits_of_a_text(model: Any) -> None:
    v, tokens = tiny.vector(model, 1), tiny.prompt(model)
    rungs = [None, 0.0, 0.8]
    for positions, prompt_length in (("all", None), ("generated", 8), (-2, 8)):
        found = generation.logits(model, tokens, v, rungs, positions=positions, prompt_length=prompt_length)
        for c, rows in zip(rungs, found, strict=True):
            with kit.steer(model, {v: c or 0.0}, positions, prompt_length=prompt_length):
                assert torch.allclose(rows, model(tokens)[0], atol=1e-3)
        last = generation.logits(model, tokens, v, rungs, positions=positions, prompt_length=prompt_length, keep=1)
        assert torch.allclose(last, found[:, -1], atol=1e-3)
        three = generation.logits(model, tokens, v, rungs, positions=positions, prompt_length=prompt_length, keep=3)
        assert torch.allclose(three, found[:, -3:], atol=1e-3)
    v = tiny.vector(model, 3)  # forking after the last block
    found = generation.logits(model, tokens, v, rungs)
    assert found.shape[:2] == (3, 12) and torch.equal(found[0], found[1])


# --- where a row ends, and text -------------------------------------------------------------


@pytest.fixture
def ends_at(llama: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    def set_to(token: Any) -> None:
        monkeypatch.setattr(llama.original_model.generation_config, "eos_token_id", token)

    return set_to


def test_a_row_ends_at_its_end_token_and_the_others_go_on(llama: Any, ends_at: Any) -> None:
    v, rungs = tiny.vector(llama, 1), [None, 0.5, 1.1]
    for seed in range(50):  # a prompt after which the rows end at different times
        tokens = tiny.prompt(llama, seed=seed)
        free_run = tokens_of(kit.generate(llama, tokens, v, rungs, max_new_tokens=12))
        end = free_run[0][3]
        cut = [r[: r.index(end)] if end in r else r for r in free_run]
        if len(cut[0]) == 3 and max(map(len, cut)) == 12:
            break
    assert len(cut[0]) == 3 and max(map(len, cut)) == 12
    for token in (end, [1, end]):
        ends_at(token)
        run = kit.stream(llama, tokens, v, rungs, max_new_tokens=12, measure=True)
        steps = list(run)
        assert [r.tokens for r in run.rows] == cut
        assert [s.done[0] for s in steps] == [False] * 3 + [True] * 9
        assert all(s.pieces[0] == "" for s in steps[3:])
        for row in run.rows:
            assert len(row.tokens) == len(row.pieces) == len(row.measures)
        for c, row in zip(rungs, run.rows, strict=True):  # receipts too end with their row
            alone = kit.generate(llama, tokens, v, [c], max_new_tokens=12, measure=True)
            assert row.tokens == alone.rows[0].tokens
            assert str(row.receipt) == str(alone.rows[0].receipt)
    single = kit.stream(llama, tokens, max_new_tokens=12)
    assert len(list(single)) == 4  # the end token's step is the last


def test_pieces_are_the_text(any_model: Any) -> None:
    words = any_model.tokenizer
    for seed in range(2):
        run = kit.stream(
            any_model,
            tiny.prompt(any_model, seed=seed),
            tiny.vector(any_model, 1),
            RUNGS,
            max_new_tokens=25,
            temperature=2.0,
            seed=seed,
        )
        shown = [""] * len(RUNGS)
        for step in run:
            shown = [a + b for a, b in zip(shown, step.pieces, strict=True)]
        for row, text in zip(run.rows, shown, strict=True):
            assert row.text == text
            # an unfinished character at the very end is held back, nothing else
            whole = words.decode(row.tokens)
            assert whole.startswith(text) and set(whole[len(text) :]) <= {"\ufffd"}


@pytest.mark.parametrize("text", ["naïve 🙂 kettle", "🇸🇪👩‍👩‍👧", "日本語 text", "a\ufffdb", "é"])
def test_characters_of_several_tokens_come_whole(llama: Any, text: str) -> None:
    ids = llama.tokenizer(text, add_special_tokens=False).input_ids
    assert len(ids) > len(text) - 1
    pieces = Pieces(llama.tokenizer)
    shown = [pieces.add(token) for token in ids]
    assert "".join(shown) == text == llama.tokenizer.decode(ids)
    assert all("\ufffd" not in piece for piece in shown) or "\ufffd" in text
    assert shown.count("") > 0 or text.isascii()


def test_distinct_2() -> None:
    from kit.steering.results import Receipt

    for tokens, expected in (([5] * 11, 0.1), ([1, 2, 3, 4], 1.0), ([1, 2, 1, 2, 1], 0.5), ([], 1.0), ([3], 1.0)):
        assert Row(None, Receipt(), tokens=tokens).distinct_2 == expected


def test_labels() -> None:
    assert label(None) == "unsteered"
    assert label((0.3, 0.3)) == "+0.30, +0.30"
    assert label((0.3, -0.1)) == "+0.30, -0.10"


# --- the embedded model ---------------------------------------------------------------------


def test_a_ladder_on_the_embedded_model(smol: Any) -> None:
    """The real thing in its own precision: single runs, and what steering does to it."""
    v = kit.SteeringVector(torch.randn(576, generator=torch.Generator().manual_seed(1)), 14, "r")
    tokens = kit.chat_tokens(smol, "Name a colour.")
    rungs = [None, 0.0, 0.6]
    ladder = kit.generate(smol, tokens, v, rungs, max_new_tokens=8, measure=True)
    assert ladder.rows[0].tokens == ladder.rows[1].tokens
    single = kit.generate(smol, tokens, v, [0.6], max_new_tokens=8)
    if smol.cfg.dtype == torch.float32:  # elsewhere a batch may round to another token
        assert single.rows[0].tokens == ladder.rows[2].tokens
    assert ladder.rows[2].kl > 0.01
    assert f"{tokens.shape[1]}/{tokens.shape[1]} prompt positions" in str(ladder.rows[2].receipt)
    kit.assert_clean(smol)


def test_a_prompt_is_run_again_when_a_weight_was_changed(model: Any) -> None:
    """What is kept of the last prompt belongs to the weights that it was run with."""
    ids = tiny.prompt(model, 12)
    before = kit.generate(model, ids, max_new_tokens=3, measure=True)
    weight = runtime(model).port(1, "neurons")[0].weight
    kept = weight.clone()
    with torch.no_grad():
        weight.mul_(-3)
    try:
        after = kit.generate(model, ids, max_new_tokens=3)
        fresh = model(ids)[0, -1].argmax()
        assert after.rows[0].tokens[0] == int(fresh)
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    again = kit.generate(model, ids, max_new_tokens=3)
    assert again.texts == before.texts


def test_a_mapping_in_the_place_of_vectors_is_named(tiny_model: Any) -> None:
    model = tiny_model("llama")
    vector = tiny.vector(model, 1)
    for vectors, coefficient in (({vector: 0.5}, None), ([vector, {vector: 1}], [[0.5, 1.0]])):
        with pytest.raises(ValueError, match="vectors holds a dict: give interventions"):
            kit.generate(model, "The kettle", vectors, coefficient, max_new_tokens=1)
    with pytest.raises(ValueError, match="vectors holds a dict"):
        kit.widgets.SteeringPanel(model, {vector: 0.5}, "The kettle", chat=False)
