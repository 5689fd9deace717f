"""kit.layer_slice: a stretch of a model alone gives the numbers of the whole model, and its slopes."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

import kit
from kit.base.directions import random_units
from kit.models.bridge import runtime
from kit.search.layer_slice import LayerSlice
from kit.steering import generation
from tests import tiny

SOURCE, TARGET, D = 0, 2, 48
LENGTHS = (9, 5, 12)
KINDS = ("gpt2", "neox", "llama", "gemma2")


def prompts(model: Any, lengths: tuple[int, ...] = LENGTHS) -> list[Tensor]:
    return [tiny.prompt(model, n, seed=n) for n in lengths]


def directions(k: int = 3, seed: int = 0, norm: float = 4.0) -> Tensor:
    return norm * random_units(k, D, seed)


def as_vector(model: Any, theta: Tensor) -> tuple[Any, float]:
    """A steering vector and the coefficient at which it adds theta."""
    vector = kit.SteeringVector(theta, SOURCE, "v", fingerprint=kit.fingerprint(model))
    return vector, float(theta.norm()) / kit.residual_scale(model, SOURCE)


def steered_stream(model: Any, tokens: Tensor, theta: Tensor, positions: Any = "all") -> Tensor:
    """The whole model's residual stream after TARGET, steered by the kit's one hook."""
    vector, coefficient = as_vector(model, theta)
    with kit.steer(model, {vector: coefficient}, positions):
        return tiny.stream_after(model, TARGET, tokens)[0]


@pytest.fixture(params=KINDS)
def anyone(request: pytest.FixtureRequest, tiny_model: Any) -> Any:
    return tiny_model(request.param)


# Exact against the full model.


@pytest.mark.parametrize(
    ("read", "positions"), [(slice(-3, None), "all"), (-1, slice(1, None)), ("all", -2), (slice(1, 4), "last_prompt")]
)
def test_the_slice_is_the_full_model(anyone: Any, read: Any, positions: Any) -> None:
    rows, thetas = prompts(anyone), directions()
    piece = LayerSlice(anyone, rows, SOURCE, TARGET, read=read, positions=positions)
    found = piece.shift(thetas)
    means = []
    for theta, shifted in zip(thetas, found, strict=True):
        each = []
        for i, tokens in enumerate(rows):
            n = tokens.shape[1]
            true = steered_stream(anyone, tokens, theta, positions)
            true = true - tiny.stream_after(anyone, TARGET, tokens)[0]
            torch.testing.assert_close(shifted[i, :n], true, rtol=1e-4, atol=2e-5)
            where = [read] if isinstance(read, int) else slice(None) if read == "all" else read
            each.append(true[where].mean(0))
        means.append(torch.stack(each).mean(0))
    torch.testing.assert_close(piece.delta(thetas), torch.stack(means), rtol=1e-4, atol=2e-5)


def test_prompts_of_different_length_are_as_if_alone(anyone: Any) -> None:
    rows, thetas = prompts(anyone), directions()
    together = LayerSlice(anyone, rows, SOURCE, TARGET)
    alone = [LayerSlice(anyone, row, SOURCE, TARGET) for row in rows]
    torch.testing.assert_close(
        together.delta(thetas), torch.stack([p.delta(thetas) for p in alone]).mean(0), rtol=1e-4, atol=1e-5
    )
    out = directions(seed=9)
    torch.testing.assert_close(
        together.vjp(thetas, out)[1], torch.stack([p.vjp(thetas, out)[1] for p in alone]).mean(0), rtol=1e-4, atol=1e-5
    )
    assert together.n_prompts == 3
    assert together.lengths.tolist() == list(LENGTHS)
    assert float(together.weights.sum()) == pytest.approx(1)


def test_adjacent_and_last_blocks(anyone: Any) -> None:
    row, theta = tiny.prompt(anyone), directions(1)
    last = LayerSlice(anyone, row, 0, 3)
    steps = LayerSlice(anyone, row, 0, 1)
    assert last.replay(steps.replay(steps.before)).shape == last.after.shape  # more blocks, fine
    assert steps.after.equal(LayerSlice(anyone, row, 1, 3).before)
    torch.testing.assert_close(last.replay(last.before), last.after, rtol=1e-5, atol=1e-5)
    assert float(last.delta(0 * theta).abs().max()) < 1e-4


@pytest.mark.parametrize("positions", ["all", slice(2, 5)])
def test_logits_and_kl_are_the_decode_loops(anyone: Any, positions: Any) -> None:
    rows, thetas = prompts(anyone), directions()
    piece = LayerSlice(anyone, rows, SOURCE, TARGET, positions=positions)
    piece.step = 2  # two passes
    found, plain = piece.logits(thetas), piece.logits(None)
    assert found.shape == (3, 3, anyone.cfg.d_vocab)
    kl = torch.zeros(3)
    for i, tokens in enumerate(rows):
        expected = generation.logits(anyone, tokens)[0, -1]
        torch.testing.assert_close(plain[0, i], expected, rtol=1e-4, atol=1e-4)
        for j, theta in enumerate(thetas):
            vector, c = as_vector(anyone, theta)
            steered = generation.logits(anyone, tokens, vector, [c], positions=positions)[0, -1]
            torch.testing.assert_close(found[j, i], steered, rtol=1e-4, atol=1e-4)
            p, q = (x.double().log_softmax(-1) for x in (steered, expected))
            kl[j] += float((p.exp() * (p - q)).sum()) / len(rows)
    torch.testing.assert_close(piece.kl(thetas), kl, rtol=1e-3, atol=1e-5)


def test_a_chat_prompt_goes_through_the_template(chat: Any) -> None:
    text = "Tell me a story"
    piece = LayerSlice(chat, [text, "And now?"], 1, 2)
    tokens = kit.chat_tokens(chat, text)
    assert piece.tokens[0, : tokens.shape[1]].equal(tokens[0])
    assert LayerSlice(chat, text, 1, 2).n_prompts == 1


def test_tokens_may_come_as_a_row_a_batch_or_a_list(llama: Any) -> None:
    row, thetas = tiny.prompt(llama), directions()
    expected = LayerSlice(llama, row, SOURCE, TARGET).delta(thetas)
    for same in (row[0], [row], [row[0]], torch.cat([row, row])):
        found = LayerSlice(llama, same, SOURCE, TARGET).delta(thetas)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# Derivatives.


def numeric_slopes(piece: LayerSlice, theta: Tensor, along: Tensor, h: float = 0.02) -> Tensor:
    """Central differences, better by one step of Richardson's."""

    def slope(h: float) -> Tensor:
        return (piece.delta(theta + h * along) - piece.delta(theta - h * along)) / (2 * h)

    return (4 * slope(h) - slope(2 * h)) / 3


def test_slopes_match_finite_differences_and_each_other(anyone: Any) -> None:
    piece = LayerSlice(anyone, prompts(anyone), SOURCE, TARGET)
    v, u = random_units(3, D, 1), random_units(3, D, 2)
    forward = piece.jvp(v)
    torch.testing.assert_close(forward, numeric_slopes(piece, 0 * v, v), rtol=0.01, atol=3e-3)
    values, back = piece.vjp(0 * v, u)
    assert float(values.abs().max()) < 1e-4
    torch.testing.assert_close((back * v).sum(-1), (forward * u).sum(-1), rtol=1e-3, atol=1e-4)
    thetas = directions()
    values, back = piece.vjp(thetas, u)
    torch.testing.assert_close(values, piece.delta(thetas), rtol=1e-4, atol=1e-4)
    slopes = (numeric_slopes(piece, thetas, v) * u).sum(-1)
    torch.testing.assert_close((back * v).sum(-1), slopes, rtol=0.02, atol=3e-3)
    away = piece.jvp(v[:1], thetas[0])
    torch.testing.assert_close((back[:1] * v[:1]).sum(-1), (away * u[:1]).sum(-1), rtol=1e-3, atol=1e-4)


def test_the_jacobian_is_the_average_over_prompts(anyone: Any) -> None:
    rows = prompts(anyone)
    piece = LayerSlice(anyone, rows, SOURCE, TARGET)
    J = piece.jacobian()
    alone = [LayerSlice(anyone, row, SOURCE, TARGET) for row in rows]
    eye, zeros = torch.eye(D), torch.zeros(D, D)
    exact = torch.stack([p.vjp(zeros, eye)[1] for p in alone]).mean(0)  # by reverse mode
    torch.testing.assert_close(J, exact, rtol=1e-3, atol=1e-4)
    theta = directions(1)[0]
    away = piece.vjp(theta.expand(D, D), eye)[1]
    torch.testing.assert_close(piece.jacobian(theta), away, rtol=1e-3, atol=1e-4)


def test_second_derivatives_are_the_explicit_hessians(anyone: Any) -> None:
    # torch's own layer norm gets them wrong by a tenth in forward mode, and says nothing
    piece = LayerSlice(anyone, prompts(anyone, (4, 6)), 1, 2)
    u, v = random_units(2, D, 1), random_units(2, D, 2)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        hessians = [
            torch.autograd.functional.hessian(lambda t, u=out: piece.change(t[None])[0] @ u, torch.zeros(D))
            for out in u
        ]
    expected = torch.stack([h @ along for h, along in zip(hessians, v, strict=True)])
    torch.testing.assert_close(piece.second(v, u), expected, rtol=1e-3, atol=1e-4)
    twice = torch.stack([h @ along @ along for h, along in zip(hessians, v, strict=True)])
    torch.testing.assert_close((piece.second(v) * u).sum(-1), twice, rtol=1e-3, atol=1e-4)


def test_the_gradient_of_an_objective_on_every_position(llama: Any) -> None:
    piece = LayerSlice(llama, prompts(llama), SOURCE, TARGET)
    thetas = directions()

    def objective(shift: Tensor, *_: Any) -> Tensor:  # as MELBO's: norms at the positions that are read
        return (shift.square().sum(-1) * piece.weights).sum((-1, -2))

    scores, grads = piece.gradient(thetas, objective)
    for theta, score, grad in zip(thetas, scores, grads, strict=True):
        leaf = theta.clone().requires_grad_()
        alone = objective(piece.shift(leaf[None]))[0]
        alone.backward()
        assert float(score) == pytest.approx(alone.item(), rel=1e-4)
        torch.testing.assert_close(grad, leaf.grad, rtol=1e-3, atol=1e-4)


def test_passes_cut_the_rows_and_change_nothing(llama: Any) -> None:
    piece = LayerSlice(llama, prompts(llama), SOURCE, TARGET)
    thetas, u = directions(5), directions(5, seed=3)
    calls = []
    whole = [
        piece.delta(thetas),
        *piece.vjp(thetas, u),
        piece.jvp(u),
        piece.second(u, thetas),
        *piece.gradient(thetas, lambda s, *_: s.square().sum((-1, -2, -3))),
    ]
    piece.step = 2
    change = piece.change
    piece.change = lambda rows: calls.append(len(rows)) or change(rows)  # type: ignore[method-assign]
    cut = [
        piece.delta(thetas),
        *piece.vjp(thetas, u),
        piece.jvp(u),
        piece.second(u, thetas),
        *piece.gradient(thetas, lambda s, *_: s.square().sum((-1, -2, -3))),
    ]
    assert calls[:6] == [2, 2, 1, 2, 2, 1]
    for a, b in zip(whole, cut, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_the_width_of_a_pass_follows_the_prompts(llama: Any) -> None:
    one = LayerSlice(llama, tiny.prompt(llama, 10), SOURCE, TARGET)
    many = LayerSlice(llama, prompts(llama, (10,) * 4), SOURCE, TARGET)
    assert one.step > many.step >= 1
    assert one.step * one.tokens.numel() <= 2048  # what it holds for the backward pass is bounded


def test_a_model_in_bfloat16_gives_float32_directions(tmp_path: Any) -> None:
    model = kit.load_model(str(tiny.save(tmp_path, "llama")), dtype="bfloat16")
    piece = LayerSlice(model, tiny.prompt(model), SOURCE, TARGET)
    exact = LayerSlice(kit.load_model(str(tmp_path), dtype="float32"), tiny.prompt(model), SOURCE, TARGET)
    thetas, u = directions(), directions(seed=1)
    for found, near in (
        (piece.delta(thetas), exact.delta(thetas)),
        (piece.jvp(u), exact.jvp(u)),
        (piece.vjp(thetas, u)[1], exact.vjp(thetas, u)[1]),
    ):
        assert found.dtype == torch.float32
        assert float((found - near).norm() / near.norm()) < 0.1
    assert piece.logits(thetas).dtype == torch.float32


# Nothing is left behind, and nobody is disturbed.


def test_nothing_is_left_on_the_model(anyone: Any) -> None:
    modules = list(runtime(anyone).decoder.modules())

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)

    before, row = hooks(), tiny.prompt(anyone)
    expected = generation.logits(anyone, row, keep=1)
    piece = LayerSlice(anyone, row, SOURCE, TARGET)
    piece.vjp(directions(), directions())
    piece.logits(directions())
    runtime(anyone).block(1).forward, saved = None, runtime(anyone).block(1).forward
    try:
        with pytest.raises(TypeError):
            LayerSlice(anyone, row, SOURCE, TARGET)
        with pytest.raises(TypeError):
            piece.logits(directions())
    finally:
        runtime(anyone).block(1).forward = saved
    assert hooks() == before
    assert all(p.grad is None and not p.requires_grad for p in anyone.parameters())
    assert generation.logits(anyone, row, keep=1).equal(expected)


def free(lock: Any) -> bool:
    """Whether another thread could take the lock."""
    got = []

    def take() -> None:
        got.append(lock.acquire(blocking=False))
        if got[0]:
            lock.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return got[0]


def test_the_lock_is_held_over_each_pass_and_freed_by_an_error(llama: Any) -> None:
    piece = LayerSlice(llama, tiny.prompt(llama), SOURCE, TARGET)
    lock, thetas, seen = runtime(llama).lock, directions(), []
    replay = piece.replay

    def watched(stream: Tensor) -> Tensor:
        seen.append(free(lock))
        return replay(stream)

    piece.replay = watched  # type: ignore[method-assign]
    piece.delta(thetas)
    piece.vjp(thetas, thetas)
    piece.jvp(thetas)
    piece.second(thetas)
    piece.gradient(thetas, lambda s, *_: s.square().sum((-1, -2, -3)))
    assert seen == [False] * 5
    assert free(lock)

    def stop(_stream: Tensor) -> Tensor:
        raise KeyboardInterrupt

    piece.replay = stop  # type: ignore[method-assign]
    kept = []  # a notebook keeps the last traceback, and with it every frame
    for run in (
        piece.delta,
        piece.jvp,
        lambda t: piece.vjp(t, t),
        piece.kl,
        lambda t: piece.gradient(t, lambda s, *_: s.sum()),
    ):
        try:
            run(thetas)
        except KeyboardInterrupt as error:
            kept.append(error)
    assert len(kept) == 4  # all but kl, which runs the whole model
    assert free(lock)


def test_a_generation_in_another_thread_does_not_reach_the_slice(llama: Any) -> None:
    row, thetas = tiny.prompt(llama), directions()
    piece = LayerSlice(llama, row, SOURCE, TARGET)
    expected, vector = piece.delta(thetas), tiny.vector(llama, 1)
    stop = threading.Event()

    def generate() -> None:
        while not stop.is_set():
            kit.generate(llama, row, vector, [50.0], max_new_tokens=4)

    thread = threading.Thread(target=generate)
    thread.start()
    try:
        for _ in range(30):
            torch.testing.assert_close(piece.delta(thetas), expected, rtol=1e-4, atol=1e-5)
    finally:
        stop.set()
        thread.join()


# Bad input.


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"source": 2, "target": 2}, r"source=2, target=2.*below"),
        ({"source": 3, "target": 1}, r"source=3, target=1.*below"),
        ({"target": 4}, r"layer=4.*0 to 3"),
        ({"source": -1}, r"layer=-1.*0 to 3"),
        ({"source": 0.5}, r"layer=0\.5"),
        ({"prompts": []}, r"prompts=\[\].*at least one"),
        ({"prompts": torch.zeros(0, 5, dtype=torch.long)}, "at least one"),
        ({"prompts": "  "}, "prompt='': the prompt is empty"),
        ({"prompts": torch.zeros(2, 2, 5, dtype=torch.long)}, r"give tokens \[n\]"),
        ({"prompts": torch.zeros(0, dtype=torch.long)}, r"give tokens \[n\]"),
        ({"prompts": torch.zeros(5)}, r"give tokens \[n\]"),
        ({"prompts": [3]}, r"prompts\[0\] is a int, 3: give a string"),
        ({"prompts": torch.tensor([[0, 5, 6, 7, 8], [0, 5, 6, 2, 2]])}, "row 1 seems to be padded"),
        ({"prompts": torch.tensor([[2, 0, 6, 7, 8], [0, 5, 6, 7, 2]])}, "row 0 seems to be padded"),
        ({"prompts": torch.tensor([0, 5])}, r"prompt 0 has 2 tokens, shorter than the read-out"),
        ({"read": slice(-7, -3)}, r"prompt 0 has 6 tokens, shorter"),
        ({"read": -7}, r"read=-7: prompt 0 has 6"),
        ({"read": slice(6, None)}, r"prompt 0 has 6 tokens"),
        ({"read": torch.zeros(6, dtype=torch.bool)}, "shorter than the read-out"),
        ({"read": "end"}, r"^read='end': use 'all'"),
        ({"positions": "start"}, r"^positions='start': use 'all'"),
    ],
)
def test_what_makes_no_sense_is_refused(llama: Any, change: dict[str, Any], said: str) -> None:
    good = {"prompts": torch.tensor([0, 5, 6, 7, 8, 9]), "source": 0, "target": 2}
    with pytest.raises(ValueError, match=said):
        LayerSlice(llama, **(good | change))


def test_one_short_prompt_of_many_is_named(llama: Any) -> None:
    with pytest.raises(ValueError, match="prompt 1 has 3 tokens"):
        LayerSlice(llama, prompts(llama, (8, 3)), 0, 1, read=slice(-4, None))


def test_directions_of_another_width_are_refused(llama: Any) -> None:
    piece = LayerSlice(llama, tiny.prompt(llama), 0, 1)
    for wrong in (torch.ones(D), torch.ones(2, D + 1), torch.ones(0, D)):
        with pytest.raises(ValueError, match=r"give \[k, 48\]"):
            piece.delta(wrong)
    with pytest.raises(ValueError, match="2 output directions for 3 thetas"):
        piece.vjp(torch.ones(3, D), torch.ones(2, D))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_broken_model_is_named(tmp_path: Any, bad: float) -> None:
    model = tiny.load(tmp_path, "llama")
    weight = runtime(model).block(1).mlp.down_proj.weight
    with torch.no_grad():
        weight[3, 4] = bad
    with pytest.raises(ValueError, match="after block 2 holds NaN or infinity"):
        LayerSlice(model, tiny.prompt(model), 0, 2)
    with pytest.raises(ValueError, match="after block 1 holds NaN or infinity"):
        LayerSlice(model, tiny.prompt(model), 1, 2)


def test_what_is_no_bridge_is_refused() -> None:
    with pytest.raises((TypeError, AttributeError)):
        LayerSlice(torch.nn.Linear(2, 2), "hello", 0, 1)  # type: ignore[arg-type]
