"""Eleven failures that published steering code had in silence, each with a test that catches it.

Every test runs the kit and then, where it can, the same thing with the defect put back in: the
defect must be seen. The catalogue is ours, from reading the issue threads and sources of the
libraries; names are left out, since most have been mended since.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import kit
from kit.models import activations, positions
from kit.models.bridge import runtime
from kit.search import contrast
from kit.steering import context, generation, intervention
from tests import tiny

N = 6
C = 1.1


def ladder(model: Any, v: Any, where: Any = "all", rungs: Any = (C,), **how: Any) -> Any:
    runtime(model).forget("prompt")
    return kit.generate(model, tiny.prompt(model), v, list(rungs), positions=where, max_new_tokens=N, **how)


def brute(model: Any, v: Any, where: Any = "all", c: float = C) -> list[int]:
    with kit.steer(model, {v: c}, where):
        return tiny.greedy(model, tiny.prompt(model), N)[0]


def defect(patch: pytest.MonkeyPatch, wrong: Callable[..., Tensor]) -> None:
    """Put another idea of token positions into everything that steers."""
    patch.setattr(intervention, "select", wrong)
    patch.setattr("kit.steering.decoder.select", wrong)


def test_1_a_mask_built_on_the_slice_that_the_cache_passes(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steer from token k on, cached: each decode step is a slice of length one whose own
    position is 0, so a mask built on it steers the prompt's tail and no generated token."""
    v, where = tiny.vector(model, 1), slice(4, None)
    run = ladder(model, v, where)
    entry = run.receipt.entries[0]
    assert entry.prompt_steered == [8] and entry.decode_steered == [N - 1]
    assert run.rows[0].tokens == brute(model, v, where)

    def relative_to_the_slice(p: Any, index: Tensor, prompt: Any) -> Tensor:
        return positions.select(p, torch.arange(index.shape[-1]), prompt)

    defect(monkeypatch, relative_to_the_slice)
    broken = ladder(model, v, where)
    assert broken.receipt.entries[0].decode_steered == [0]
    assert broken.rows[0].tokens != run.rows[0].tokens


def test_2_an_option_that_always_raises(model: Any) -> None:
    """A documented way to name tokens by index failed its own check on every call, so nobody
    can have used it. Every form of position runs here, and steers the tokens that it names."""
    v, tokens = tiny.vector(model, 1), tiny.prompt(model)
    before = tiny.stream_after(model, 1, tokens)
    forms: list[tuple[Any, list[int]]] = [
        ("all", list(range(12))),
        ("prompt", list(range(12))),
        ("last_prompt", [11]),
        ("generated", [11]),
        (3, [3]),
        (-2, [10]),
        (slice(2, 5), [2, 3, 4]),
        (slice(-3, -1), [9, 10]),
        (torch.arange(12) == 7, [7]),
        ((torch.arange(12) == 6)[None], [6]),
    ]
    for form, expected in forms:
        with kit.steer(model, {v: C}, form) as receipt:
            moved = (tiny.stream_after(model, 1, tokens) != before).any(-1)[0]
        assert moved.nonzero()[:, 0].tolist() == expected
        assert receipt.entries[0].prompt_steered == [len(expected)]
        assert ladder(model, v, form).receipt.entries[0].prompt_steered == [len(expected)]


def test_3_only_the_prompt_pass_is_steered(model: Any) -> None:
    """An edit written into a generate call acted once, on the prompt, although its documentation
    said every step. Steering everything and steering the prompt must be two things."""
    v = tiny.vector(model, 1)
    every, prompt = ladder(model, v, "all"), ladder(model, v, "prompt")
    assert every.receipt.entries[0].decode_steered == [N - 1]
    assert prompt.receipt.entries[0].decode_steered == [0]
    assert every.rows[0].tokens == brute(model, v, "all")
    assert prompt.rows[0].tokens == brute(model, v, "prompt")
    assert every.rows[0].tokens[0] == prompt.rows[0].tokens[0]
    assert every.rows[0].tokens != prompt.rows[0].tokens


def test_4_the_first_generated_token_comes_from_the_last_prompt_token(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "Steer the answer only" that begins after the prompt leaves the answer's first token
    unsteered, because the last prompt token has already decided it."""
    v, tokens = tiny.vector(model, 1), tiny.prompt(model)
    plain, steered = generation.logits(model, tokens, v, [None, C], positions="generated", keep=1)

    def by_hand(t: Tensor, hook: Any) -> Tensor:
        t = t.clone()
        t[:, -1] += C * kit.residual_scale(model, 1) * v.direction
        return t

    with model.hooks(fwd_hooks=[("blocks.1.hook_out", by_hand)]):
        expected = model(tokens)[0, -1]
    assert torch.allclose(steered, expected, atol=1e-3)
    assert not torch.allclose(steered, plain, atol=0.1)
    assert ladder(model, v, "generated").receipt.entries[0].prompt_steered == [1]

    def starts_too_late(p: Any, index: Tensor, prompt: Any) -> Tensor:
        return index >= prompt

    defect(monkeypatch, starts_too_late)
    broken = generation.logits(model, tokens, v, [C], positions="generated", keep=1)
    assert torch.allclose(broken[0], plain, atol=1e-3)


def test_5_added_twice_changed_in_place_or_of_the_wrong_length(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four accidents with the arithmetic: two hooks that add one vector; an addition that writes
    into the vector or the activation; a direction taken as unit that was not; a flag for its
    length that nothing read. And a hook that sits where it cannot change the output."""
    source = torch.randn(48, generator=torch.Generator().manual_seed(3)) * 37
    kept, tokens = source.clone(), tiny.prompt(model)
    v = kit.SteeringVector(source, 1, "long")
    direction, plain = v.direction.clone(), model(tokens)
    before = tiny.stream_after(model, 1, tokens)
    unit = kit.residual_scale(model, 1)
    for _ in range(2):  # the second time as the first: nothing was written into
        with kit.steer(model, {v: C}):
            once = tiny.stream_after(model, 1, tokens) - before
        assert torch.allclose(once, (C * unit * kept / kept.norm()).expand_as(once), atol=1e-4)
        ladder(model, v)
    assert torch.equal(source, kept) and torch.equal(v.direction, direction)
    assert torch.equal(model(tokens), plain)
    # the length is read: twice the vector at c is the vector at 2c, and not the vector at c
    one, two, double = (generation.logits(model, tokens, u, [c])[0] for u, c in ((v, C), (v, 2 * C), (2 * v, C)))
    assert torch.allclose(double, two, atol=1e-3) and not torch.allclose(double, one, atol=0.1)
    # the hook sits where it matters, at every layer and site
    for thing in (*(v.at(layer) for layer in range(4)), *(tiny.HeadShift([i]) for i in range(4))):
        change = generation.logits(model, tokens, thing, [None, C], keep=1)
        assert float((change[0] - change[1]).abs().max()) > 0.05

    real = intervention.Session.steer

    def twice(self: Any, edit: Any, activation: Tensor, given: Tensor | None) -> Tensor:
        return real(self, edit, real(self, edit, activation, given), given)

    monkeypatch.setattr(intervention.Session, "steer", twice)
    with kit.steer(model, {v: C}):
        broken = tiny.stream_after(model, 1, tokens) - before
    assert not torch.allclose(broken, once, atol=0.1)


def test_6_only_row_0_of_the_batch_is_steered(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head intervention that wrote to ``[0, -1]``: other rows were evaluated unsteered, and
    every metric of the "steered" model equalled the baseline's to the last digit. Another had
    the sizes of one model's heads written into it."""
    for thing in (tiny.vector(model, 1), tiny.HeadShift([1, 2], scale=20.0)):
        run = ladder(model, thing, rungs=[None, C, C, -C], measure=True)
        assert run.rows[1].tokens == run.rows[2].tokens != run.rows[0].tokens
        assert run.rows[3].tokens != run.rows[0].tokens
        # a KL of exactly zero is said of the unsteered row, and of no other
        assert [row.kl > 0.01 for row in run.rows] == [False, True, True, True]
        tokens = torch.cat([tiny.prompt(model, seed=s) for s in range(3)])
        plain = model(tokens)[:, -1]
        with kit.steer(model, {thing: C}):
            assert ((model(tokens)[:, -1] - plain).abs().amax(-1) > 0.05).all()
    assert thing.parts(model)[0].direction.numel() == model.cfg.n_heads * model.cfg.d_head

    real = intervention.Session.steer

    def first_row(self: Any, edit: Any, activation: Tensor, given: Tensor | None) -> Tensor:
        return torch.cat([real(self, edit, activation, given)[:1], activation[1:]])

    monkeypatch.setattr(intervention.Session, "steer", first_row)
    broken = ladder(model, thing, rungs=[C, C, None])
    assert broken.rows[1].tokens == broken.rows[2].tokens != broken.rows[0].tokens


@pytest.mark.parametrize("where", ["all", "prompt", "generated", slice(-3, None), 2], ids=str)
def test_7_the_cache_changes_the_text(model: Any, where: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A demonstration gave one steered text with the KV cache and another without it."""
    v, tokens = tiny.vector(model, 1), tiny.prompt(model)
    texts = []
    for cache in (True, False):
        with kit.steer(model, {v: C}, where):
            texts.append(
                model.generate(
                    tokens,
                    max_new_tokens=N,
                    do_sample=False,
                    stop_at_eos=False,
                    verbose=False,
                    use_past_kv_cache=cache,
                    return_type="tokens",
                    prepend_bos=False,
                )[0, 12:].tolist()
            )
    assert texts[0] == texts[1] == ladder(model, v, where).rows[0].tokens
    if where == slice(-3, None):  # without a cache the end of the text moves: ``h[:, -3:]``

        def at_the_end(p: Any, index: Tensor, prompt: Any) -> Tensor:
            return torch.arange(index.shape[-1]) >= index.shape[-1] - 3

        def moved() -> list[int]:
            longer = torch.cat([tokens, tokens[:, :1]], dim=1)
            with kit.steer(model, {v: C}, where):
                model(tokens)
                after = tiny.stream_after(model, 1, longer)
            changed = (after != tiny.stream_after(model, 1, longer)).any(-1)
            return changed[0].nonzero()[:, 0].tolist()

        assert moved() == [9, 10, 11, 12]
        defect(monkeypatch, at_the_end)
        assert moved() == [10, 11, 12]


def test_8_principal_component_of_the_wrong_centring(llama: Any) -> None:
    """ "PCA with centring" that centred over the whole set where pairs were meant found the
    topic, the largest thing that the texts differ in, rather than the contrast."""
    rng = torch.Generator().manual_seed(0)
    concept, topic = torch.eye(48)[0], torch.eye(48)[1]
    topics = torch.randn(40, 1, generator=rng) * 20 * topic
    noise = torch.randn(2, 40, 48, generator=rng) * 0.05
    positive, negative = topics + concept + noise[0], topics - concept + noise[1]
    found = contrast.pca(positive, negative)
    assert float(found @ concept) > 0.99  # and it points from negative to positive

    both = torch.cat([positive, negative])
    centred = both - both.mean(0)
    of_the_set = torch.linalg.svd(centred, full_matrices=False).Vh[0]
    assert abs(float(of_the_set @ topic)) > 0.99
    # centring the differences themselves takes the contrast away and leaves noise
    d = positive - negative
    of_differences = torch.linalg.svd(d - d.mean(0), full_matrices=False).Vh[0]
    assert abs(float(of_differences @ concept)) < 0.9

    texts = [f"{word} {n}" for n in range(8) for word in ("boat",)]
    others = [f"{word} {n}" for n in range(8) for word in ("door",)]
    v = contrast.fit(llama, texts, others, 2, method="pca")
    up, down = (activations.residuals(llama, t, [2])[:, 0] for t in (texts, others))
    top = torch.linalg.svd(up - down, full_matrices=False).Vh[0]
    assert abs(float(v.direction @ top)) == pytest.approx(1, abs=1e-4)
    assert float(v.direction @ (up - down).mean(0)) > 0


def test_9_numbers_one_token_away_from_their_token(model: Any) -> None:
    """A heat map that read the activation after its token: every colour sat one token off and
    the last was always zero. A token's measures here are those of the pass that chose it."""
    v, tokens = tiny.vector(model, 1), tiny.prompt(model)
    row = ladder(model, v, measure=True).rows[0]
    text = torch.cat([tokens, torch.tensor([row.tokens])], dim=1)
    log_p = model(text)[0].double().log_softmax(-1)
    own = [-float(log_p[11 + i, t]) for i, t in enumerate(row.tokens)]
    assert [m.nll for m in row.measures] == pytest.approx(own, abs=2e-3)
    assert len(row.measures) == len(row.pieces) == len(row.tokens)
    shifted = [-float(log_p[12 + i, t]) for i, t in enumerate(row.tokens)]
    assert own != pytest.approx(shifted, abs=0.1) and row.measures[-1].nll > 0
    # what activations.residuals calls token i is token i, BOS or not
    texts = ["The kettle hummed", "A small boat"]
    for i in (0, 2, -1, "last"):
        found = activations.residuals(model, texts, [1], read=i)[:, 0]
        for each, got in zip(texts, found, strict=True):
            ids = kit.text_tokens(model, each)
            at = -1 if i == "last" else i
            assert torch.allclose(got, tiny.stream_after(model, 1, ids)[0, at], atol=1e-3)
            assert not torch.allclose(got, tiny.stream_after(model, 1, ids)[0, 1], atol=1e-2)


def test_10_state_that_outlives_its_run(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts and conditions kept on a class: the second run depended on the first, and a batch
    on its first row. Nothing of a run here is left for the next."""
    v, w = tiny.vector(model, 1), tiny.vector(model, 2, 9)
    short, long = tiny.prompt(model, 5, seed=1), tiny.prompt(model, 12)
    fresh = [
        (r.rows[0].tokens, str(r.receipt))
        for r in (
            kit.generate(model, t, u, [C], positions="last_prompt", max_new_tokens=N)
            for t, u in ((short, v), (long, w), (short, w))
        )
    ]
    again = [
        (r.rows[0].tokens, str(r.receipt))
        for r in (
            kit.generate(model, t, u, [C], positions="last_prompt", max_new_tokens=N)
            for t, u in ((short, v), (long, w), (short, w))
        )
    ]
    assert fresh == again
    # in one block too: the second prompt's last token is its own, not the first's
    plain = [tiny.stream_after(model, 1, t) for t in (short, long)]

    def moved() -> list[list[int]]:
        with kit.steer(model, {v: C}, "last_prompt"):
            after = [tiny.stream_after(model, 1, t) for t in (short, long)]
        return [(a != p).any(-1)[0].nonzero()[:, 0].tolist() for a, p in zip(after, plain, strict=True)]

    assert moved() == [[4], [11]]
    real = context._Tracker.__call__

    def remembers(self: Any, *args: Any) -> None:
        if self.prompt:
            self.prompt_length = self.prompt
        real(self, *args)

    monkeypatch.setattr(context._Tracker, "__call__", remembers)
    assert moved() == [[4], [4]]


def test_11_results_that_cannot_be_had_again(model: Any, tmp_path: Any) -> None:
    """Published numbers that nobody could reproduce, for want of a layer convention, a unit or
    a seed; and a best score on one metric for text that had stopped being text. A file and a
    seed give the same tokens in another process's model, and cost is shown beside effect."""
    v = tiny.vector(model, 2, norm=1.3, metadata={"read": "last"})
    loaded = kit.SteeringVector.load(v.save(tmp_path / "v.safetensors"))
    other = kit.load_model(model.cfg.kit_folder, dtype="float32")
    tokens = tiny.prompt(model)
    how: dict[str, Any] = {"max_new_tokens": N, "temperature": 0.9, "seed": 5, "measure": True}
    one = kit.generate(model, tokens, v, [0.7], **how).rows[0]
    two = kit.generate(other, tokens, loaded, [0.7], **how).rows[0]
    assert one.tokens == two.tokens and one.kl == two.kl and str(one.receipt) == str(two.receipt)
    # each ingredient matters: without it the numbers are others
    for changed in (loaded.at(1), loaded * 2, -loaded):
        assert kit.generate(other, tokens, changed, [0.7], **how).rows[0].kl != one.kl
    assert kit.generate(other, tokens, loaded, [0.7], **(how | {"seed": 6})).rows[0].tokens != one.tokens
    # a dose that breaks the text is seen in the same row that shows its effect
    mild, broken = kit.generate(model, tokens, v, [0.1, 50.0], max_new_tokens=20, measure=True).rows
    assert broken.kl > 5 * mild.kl
    assert broken.perplexity > mild.perplexity and broken.distinct_2 < mild.distinct_2


# --- reading the model as it is, where it is steered ----------------------------------------------


def test_what_reads_the_clean_model_says_so_inside_a_block(smol: Any) -> None:
    v = kit.SteeringVector(torch.randn(smol.cfg.d_model), 10, "a push")
    clean = kit.activations.residuals(smol, ["A text."], [12])
    with kit.steer(smol, {v: 0.5}):
        with pytest.raises(RuntimeError, match="inside kit.steer with a push: .* without it"):
            kit.activations.residuals(smol, ["A text."], [12])
        kit.residual_scale(smol, 10)  # the unit is the clean model's
        kit.generate(smol, "Hi.", v, [0.1], max_new_tokens=1)  # runs through the bridge, steered
    with kit.steer(smol, {}):  # steers nothing
        assert torch.equal(kit.activations.residuals(smol, ["A text."], [12]), clean)
    assert torch.equal(kit.activations.residuals(smol, ["A text."], [12]), clean)
