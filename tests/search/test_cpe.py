"""CPE: its gradients, what it finds where the answer is known, and factors as interventions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import kit
from kit.base.directions import random_units, repel, unit
from kit.models.bridge import runtime
from kit.search import cpe
from kit.search.rank_one_map import RankOneMap
from kit.steering.rank_one import Factor, export
from tests import tiny

KINDS = ("gpt2", "neox", "llama", "gemma2")


@pytest.fixture(params=KINDS)
def any_model(request: pytest.FixtureRequest, tiny_model: Any) -> Any:
    return tiny_model(request.param)


def prompts(model: Any) -> list[torch.Tensor]:
    return [tiny.prompt(model, 9, 1), tiny.prompt(model, 6, 2)]


def fitted(model: Any, **options: Any) -> cpe.CPE:
    settings = {"n_factors": 5, "iterations": 2, "radius": 2.0} | options
    return cpe.fit(model, prompts(model), (1, 2), 3, **settings)


def factor(model: Any, seed: int = 0, layers: tuple[int, ...] = (1, 2), radius: float = 4.0) -> Factor:
    rng = torch.Generator().manual_seed(seed)
    heads = model.cfg.n_heads * model.cfg.d_head
    reads = torch.randn(len(layers), heads, generator=rng)
    writes = torch.randn(len(layers), model.cfg.d_model, generator=rng)
    return Factor(reads, writes, layers, radius, f"f{seed}", kit.fingerprint(model))


def test_the_change_is_that_of_changed_weights(any_model: Any) -> None:
    """Against the matrices themselves, changed by hand, on the whole model; padding included."""
    band = RankOneMap(any_model, prompts(any_model), (1, 2), 3)
    phi = band.random(3, 4)
    found = band.delta(phi, 2.5)
    reads, writes = band.split(phi)
    state, expected = runtime(any_model), []
    for k in range(3):
        mixers = [state.projection(layer, "attn_out") for layer in (1, 2)]
        before = [mixer.weight.detach().clone() for mixer in mixers]
        plain = [tiny.stream_after(any_model, 3, p)[0, -3:].mean(0) for p in prompts(any_model)]
        try:
            for i, mixer in enumerate(mixers):
                change = 2.5 * torch.outer(writes[k, i], reads[k, i])
                turned = type(mixer).__name__ == "Conv1D"  # GPT-2 keeps [in, out]
                with torch.no_grad():
                    mixer.weight += change.T if turned else change
            moved = [tiny.stream_after(any_model, 3, p)[0, -3:].mean(0) for p in prompts(any_model)]
        finally:
            for mixer, weight in zip(mixers, before, strict=True):
                with torch.no_grad():
                    mixer.weight.copy_(weight)
        expected.append(torch.stack(moved).mean(0) - torch.stack(plain).mean(0))
    assert torch.allclose(found, torch.stack(expected), atol=2e-4)


def test_gradients_against_finite_differences(any_model: Any) -> None:
    model = kit.load_model(any_model.cfg.kit_folder, dtype="float64")
    band = RankOneMap(model, prompts(model), (1, 2), 3)
    phi, step = band.random(2, 1), 2e-3  # changes come out in float32
    U = random_units(2, band.d_model, 3)
    _, grads = band.gradient(phi, U, 1.5)
    for seed in range(3):
        along = band.random(2, 10 + seed)
        ends = [(band.delta(phi + s * step * along, 1.5) * U).sum(-1) for s in (1, -1)]
        assert torch.allclose((ends[0] - ends[1]) / (2 * step), (grads * along).sum((1, 2)), rtol=2e-3, atol=2e-3)
    ends = [band.delta(phi, s * step) for s in (1, -1)]
    assert torch.allclose((ends[0] - ends[1]) / (2 * step), band.slope(phi), rtol=2e-3, atol=2e-3)


def test_chunks_do_not_matter(llama: Any) -> None:
    band = RankOneMap(llama, prompts(llama), (1, 2), 3)
    phi, U = band.random(7), unit(torch.randn(7, band.d_model))
    whole = band.gradient(phi, U, 2.0), band.logits(phi, 2.0)
    band.piece.step = 2
    cut = band.gradient(phi, U, 2.0), band.logits(phi, 2.0)
    for a, b in zip((*whole[0], whole[1]), (*cut[0], cut[1]), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_two_iterations_by_hand(llama: Any) -> None:
    found = fitted(llama, iterations=2, temperature=0.7, repel_steps=3, seed=6)
    band, history = RankOneMap(llama, prompts(llama), (1, 2), 3), []
    U = random_units(5, band.d_model, 6 + 1_000_003)
    phi = unit(band.gradient(band.random(5, 6), U, 2.0)[1])
    for _ in range(2):
        changes, grads = band.gradient(phi, U, 2.0)
        history.append(float((changes * U).sum(-1).mean()))
        phi = repel(unit(grads), grads.flatten(1).norm(dim=-1), 3, 0.7)
        U = unit(changes)
    assert found.history == pytest.approx(history, rel=1e-3)
    changes = band.delta(phi, 2.0)
    order = changes.norm(dim=-1).argsort(descending=True)
    assert torch.allclose(found.phi, phi[order], atol=1e-4)
    assert torch.allclose(found.changes, changes[order], atol=1e-3)
    assert torch.allclose(found.phi.norm(dim=-1), torch.ones(5, 4), atol=1e-5)


@pytest.fixture
def linear_model(tmp_path: Path) -> Any:
    """Nothing after layer 1's attention but the residual stream: the best factor has a formula."""
    model = tiny.load(tmp_path, "llama", seed=3)
    state = runtime(model)
    with torch.no_grad():
        for layer in (1, 2):
            state.block(layer).mlp.down_proj.weight.zero_()
        state.projection(2, "attn_out").weight.zero_()
    return model


def test_finds_the_best_factor_of_a_linear_stretch(linear_model: Any) -> None:
    """delta = R mean(z . a) b, so the best a is along the mean z, and |delta| = R |mean z|."""
    tokens = tiny.prompt(linear_model, 9, 1)
    seen: list[torch.Tensor] = []
    handle = (
        runtime(linear_model)
        .projection(1, "attn_out")
        .register_forward_pre_hook(lambda _m, args: seen.append(args[0].detach()))
    )
    try:
        runtime(linear_model).decoder(input_ids=tokens)
    finally:
        handle.remove()
    z = seen[0][0, -3:].mean(0)
    found = cpe.fit(linear_model, tokens, [1], 2, n_factors=1, iterations=3, radius=0.8)
    best = found.factors[0]
    assert abs(float(best.reads[0] @ unit(z))) > 0.9999
    assert abs(float(best.writes[0] @ found.U[0])) > 0.9999
    assert float(found.changes[0].norm()) == pytest.approx(0.8 * float(z.norm()), rel=1e-4)
    assert found.history[-1] == pytest.approx(0.8 * float(z.norm()), rel=1e-4)


def test_finds_planted_writes(tmp_path: Path) -> None:
    """An MLP with four strong neurons, each of its own input: factors write into each of them,
    to turn it on or off."""
    model = tiny.load(tmp_path, "gpt2", seed=8)
    state, d = runtime(model), 48
    mlp = state.block(1).mlp
    basis = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(2))).Q.T
    basis = unit(basis - basis.mean(1, keepdim=True))  # the norm takes the mean away
    planted, outs = basis[:4], basis[4:8]
    with torch.no_grad():
        state.block(1).ln_2.weight.fill_(1.0)
        state.block(1).ln_2.bias.zero_()
        for part in (mlp.c_fc, mlp.c_proj):
            part.weight.zero_()
            part.bias.zero_()
        mlp.c_fc.weight[:, :4], mlp.c_proj.weight[:4] = 2 * planted.T, 20 * outs
        mlp.c_fc.bias[:4] = -2.0  # quiet until something is written along it
        for part in (state.block(2).mlp.c_proj, state.projection(2, "attn_out")):
            part.weight.zero_()
            part.bias.zero_()
    found = cpe.fit(model, tiny.prompt(model, 9, 1), [1], 2, n_factors=24, iterations=20, radius=15.0)
    writes = torch.stack([f.writes[0] for f in found.factors])
    assert (writes @ planted.T).abs().max(0).values.min() > 0.55
    assert (found.U @ outs.T).abs().max(0).values.min() > 0.85
    random = RankOneMap(model, tiny.prompt(model, 9, 1), [1], 2)
    writes, U = random.random(24, 5)[:, 1], unit(random.delta(random.random(24, 5), 15.0))
    assert (writes @ planted.T).abs().max(0).values.min() < 0.4
    assert (U @ outs.T).abs().max(0).values.min() < 0.6


def test_changes_far_more_than_random_factors(llama: Any) -> None:
    found = fitted(llama, n_factors=6, iterations=6)
    assert found.history[-1] > found.history[0]
    table = found.table(n_random=12)
    assert list(table.index) == list(range(6)) and table.index.name == "factor"
    assert (table["times_random"] > 2).all() and table["times_same_reads"].median() > 1
    assert table["change"].is_monotonic_decreasing and table["p"].between(0, 1).all()
    assert table["p"].iloc[0] == pytest.approx(1 / 13)


def test_more_factors_than_dimensions(llama: Any) -> None:
    found = cpe.fit(llama, tiny.prompt(llama, 7), [2], 3, n_factors=110, iterations=1)
    assert len(found) == 110 and found.phi.isfinite().all()
    sizes = found.scores()
    assert (sizes[:-1] >= sizes[1:]).all()


def test_reproducible_and_seeded(llama: Any) -> None:
    a, b, c = fitted(llama, seed=1), fitted(llama, seed=1), fitted(llama, seed=2)
    assert torch.equal(a.phi, b.phi) and a.history == b.history
    assert not torch.allclose(a.phi, c.phi)


def test_scores(llama: Any) -> None:
    found = fitted(llama, n_factors=3)
    tokens = prompts(llama)
    target = torch.zeros(llama.cfg.d_vocab)
    target[[5, 9]] = torch.tensor([1.0, -1.0])
    logit, kl = [], []
    for one in found.factors:
        each = []
        for p in tokens:
            plain = llama(p)[0, -1]
            with kit.steer(llama, {one: 1.0}):
                moved = llama(p)[0, -1]
            each.append(
                (
                    float((moved - plain) @ target),
                    float(
                        torch.nn.functional.kl_div(
                            plain.log_softmax(-1), moved.log_softmax(-1), log_target=True, reduction="sum"
                        )
                    ),
                )
            )
        logit.append(sum(e[0] for e in each) / 2)
        kl.append(sum(e[1] for e in each) / 2)
    assert found.scores(target).tolist() == pytest.approx(logit, abs=1e-3)
    assert found.scores("kl").tolist() == pytest.approx(kl, rel=1e-3, abs=1e-4)
    assert found.ranking("kl") == sorted(range(3), key=lambda i: -kl[i])
    along = found.scores(found.U[1])
    assert float(along[1]) == pytest.approx(float(found.scores("change")[1]), rel=1e-5)


def test_steering_is_the_trained_change(any_model: Any) -> None:
    """Trained and applied at the same place: the residual stream after the target agrees."""
    found = fitted(any_model, n_factors=2)
    for one, change in zip(found.factors, found.changes, strict=True):
        moved = []
        for p in prompts(any_model):
            plain = tiny.stream_after(any_model, 3, p)
            with kit.steer(any_model, {one: 1.0}) as receipt:
                moved.append((tiny.stream_after(any_model, 3, p) - plain)[0, -3:].mean(0))
        assert torch.allclose(torch.stack(moved).mean(0), change, atol=2e-4)
        assert receipt.entries[0].layers == [1, 2]
        assert receipt.entries[0].prompt_steered == [6]


def test_generates_on_both_paths(any_model: Any) -> None:
    """A ladder of coefficients; a bystander's hook sends the loop through the bridge."""
    one, other = factor(any_model, 0), factor(any_model, 1, (0, 3))
    tokens = tiny.prompt(any_model, 8)
    rows = [None, (1.0, None), (-2.0, None), (0.5, 1.5), (0.0, 0.0)]
    fast = kit.generate(any_model, tokens, [one, other], rows, max_new_tokens=5)
    point = any_model.hook_dict["blocks.0.hook_out"]
    point.add_hook(lambda tensor, hook: tensor)
    try:
        slow = kit.generate(any_model, tokens, [one, other], rows, max_new_tokens=5)
    finally:
        any_model.reset_hooks()
    assert [r.tokens for r in fast.rows] == [r.tokens for r in slow.rows]
    assert fast.rows[0].tokens == fast.rows[4].tokens != fast.rows[2].tokens
    for i, (a, b) in enumerate([(0.0, 0.0), (1.0, 0.0), (-2.0, 0.0), (0.5, 1.5)]):
        with kit.steer(any_model, {one: a, other: b}):
            assert tiny.greedy(any_model, tokens, 5) == [fast.rows[i].tokens]
    text = str(fast.rows[1].receipt)
    assert "f0 · layers 1, 2 · add · 8/8 prompt positions · 4/4 decode steps" in text


def test_only_adds(llama: Any) -> None:
    for op in ("ablate", "clamp"):
        with pytest.raises(ValueError, match=f"op='{op}'.*only be added"):
            kit.generate(llama, tiny.prompt(llama), factor(llama), op=op)


def test_belongs_to_its_model(llama: Any, tiny_model: Any) -> None:
    with pytest.raises(ValueError, match="was made on model"):
        kit.generate(tiny_model("neox"), tiny.prompt(llama), factor(llama))


def test_random_controls(llama: Any) -> None:
    one = factor(llama)
    control, sharp = one.random(3), one.random(3, same_reads=True)
    for made in (control, sharp):
        assert made.layers == one.layers and made.radius == one.radius
        assert made.name == "random 3" and made.fingerprint == one.fingerprint
        assert torch.allclose(made.writes.norm(dim=-1), torch.ones(2))
        assert not torch.allclose(made.writes, one.writes)
    assert torch.equal(sharp.reads, one.reads) and not torch.allclose(control.reads, one.reads)
    assert torch.equal(control.reads, one.random(3).reads)
    assert not torch.allclose(control.reads, one.random(4).reads)


def test_file_holds_every_bit(llama: Any, tmp_path: Path) -> None:
    for i, one in enumerate(fitted(llama).factors):
        copy = Factor.load(one.save(tmp_path / f"{i}.safetensors"))
        assert torch.equal(copy.reads, one.reads) and torch.equal(copy.writes, one.writes)
        assert (copy.layers, copy.radius, copy.name) == (one.layers, one.radius, one.name)
        assert copy.fingerprint == one.fingerprint and copy.metadata == dict(one.metadata)


def test_files_of_something_else(llama: Any, tmp_path: Path) -> None:
    vector = tiny.vector(llama, 1).save(tmp_path / "v.safetensors")
    with pytest.raises(ValueError, match="no factor of this kit"):
        Factor.load(vector)
    with pytest.raises(ValueError, match="no steering vector"):
        kit.SteeringVector.load(factor(llama).save(tmp_path / "f.safetensors"))
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(ValueError, match="damaged"):
        Factor.load(tmp_path / "junk")
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        Factor.load(tmp_path / "none")


def test_adapter_computes_what_steering_does(any_model: Any, tmp_path: Path) -> None:
    factors = [factor(any_model, 0), factor(any_model, 1, (0, 2), 2.0)]
    folder = export(tmp_path / "adapter", any_model, factors, [1.0, -0.7])
    adapted = kit.load_model(any_model.cfg.kit_folder, adapter=folder)
    tokens = tiny.prompt(any_model)
    with kit.steer(any_model, dict(zip(factors, [1.0, -0.7], strict=True))):
        steered = any_model(tokens)
    assert torch.allclose(adapted(tokens), steered, atol=2e-4)
    assert not torch.allclose(any_model(tokens), steered, atol=1e-1)


def test_adapter_of_a_fit(llama: Any, tmp_path: Path) -> None:
    from kit.models import lora

    found = fitted(llama, n_factors=3)
    adapter = lora.read(found.export(tmp_path / "a", [2, 0], 0.5, base="tiny"))
    assert adapter.base == "tiny" and {len(a) for a, _ in adapter.factors.values()} == {2}
    name = f"{runtime(llama).blocks}.1.{runtime(llama).projection_path('attn_out')}"
    expected = sum(torch.outer(f.writes[0], f.reads[0]) for f in (found.factors[0], found.factors[2]))
    assert torch.allclose(adapter.delta(name), 0.5 * 2.0 * expected, atol=1e-6)


@pytest.mark.parametrize(
    "factors, coefficients, named",
    [
        ([], 1.0, "0 factors"),
        ([0, 1], [1.0], "1 coefficients for 2 factors"),
        ([0], [float("nan")], "."),
        ([0, 0], 1.0, "twice"),
    ],
)
def test_export_names_what_is_wrong(
    llama: Any, tmp_path: Path, factors: list[int], coefficients: Any, named: str
) -> None:
    made = [factor(llama, 0), factor(llama, 1)]
    with pytest.raises(ValueError, match=named):
        export(tmp_path / "a", llama, [made[i] for i in factors], coefficients)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "change, named",
    [
        ({"source_layers": []}, "at least one layer"),
        ({"source_layers": [1, 1]}, "each once"),
        ({"source_layers": [0, 1]}, "layer 0 has no block"),
        ({"source_layers": [9]}, "layer=9"),
        ({"source_layers": [1, 3]}, "above the whole band"),
        ({"target_layer": 7}, "layer=7"),
        ({"n_factors": 0}, "n_factors=0"),
        ({"iterations": 1.5}, "iterations=1.5"),
        ({"repel_steps": -1}, "repel_steps=-1"),
        ({"temperature": 0}, "temperature=0"),
        ({"radius": -1}, "radius=-1"),
        ({"radius": "large"}, "radius='large'"),
        ({"radius": float("nan")}, "radius=nan"),
        ({"prompts": []}, "at least one prompt"),
        ({"read": slice(-30, None)}, "shorter than the read-out window"),
    ],
)
def test_fit_names_what_is_wrong(llama: Any, change: dict[str, Any], named: str) -> None:
    good = {"prompts": prompts(llama), "source_layers": [1, 2], "target_layer": 3, "n_factors": 2}
    with pytest.raises(ValueError, match=named):
        cpe.fit(llama, **(good | change))


@pytest.mark.parametrize(
    "change, named",
    [
        ({"layers": (2, 1)}, "rising"),
        ({"layers": (1,)}, r"give \[1, width\]"),
        ({"radius": 0.0}, "radius=0.0"),
        ({"reads": torch.zeros(2, 48)}, "zero or not finite"),
        ({"writes": torch.full((2, 48), torch.nan)}, "zero or not finite"),
        ({"reads": torch.ones(48)}, "has shape"),
    ],
)
def test_factor_names_what_is_wrong(change: dict[str, Any], named: str) -> None:
    good = {"reads": torch.ones(2, 48), "writes": torch.ones(2, 48), "layers": (1, 2), "radius": 1.0, "name": "f"}
    with pytest.raises(ValueError, match=named):
        Factor(**(good | change))


def test_linear_radius_hits_its_ratio(llama: Any) -> None:
    found = cpe.linear_radius(llama, prompts(llama), (1, 2), 3, 0.3, n_factors=6)
    assert found.ratio == pytest.approx(0.3, rel=0.02) and found.coefficient == found.value
    band = RankOneMap(llama, prompts(llama), (1, 2), 3)
    aims = random_units(6, band.d_model, 0)
    phi = unit(band.gradient(band.random(6, 0), aims, 0.01)[1])
    small = (band.delta(phi, 0.01) - band.delta(phi, -0.01)) / 0.02
    linear = found.value * small
    each = (band.delta(phi, found.value) - linear).norm(dim=-1) / linear.norm(dim=-1)
    assert float(each.square().mean().sqrt()) == pytest.approx(0.3, rel=0.05)
    auto = fitted(llama, radius="auto", n_factors=2, iterations=1)
    assert auto.radius == pytest.approx(float(RankOneMap(llama, prompts(llama), (1, 2), 3).linear_radius()))
    assert auto.factors[0].radius == auto.radius


def test_interrupt_keeps_the_last_whole_iteration(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = RankOneMap.gradient
    calls: list[int] = []

    def stopped(self: RankOneMap, *args: Any) -> Any:
        calls.append(1)
        if len(calls) > limit:
            raise KeyboardInterrupt
        return whole(self, *args)

    monkeypatch.setattr(RankOneMap, "gradient", stopped)
    limit = 3  # the start and two iterations
    found = fitted(llama, iterations=9)
    monkeypatch.undo()
    assert found.history == fitted(llama, iterations=2).history
    assert torch.equal(found.phi, fitted(llama, iterations=2).phi)
    monkeypatch.setattr(RankOneMap, "gradient", stopped)
    calls.clear()
    limit = 1
    with pytest.raises(KeyboardInterrupt, match="before the first iteration"):
        fitted(llama)


def test_hooks_come_off_when_a_pass_fails(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    band = RankOneMap(llama, prompts(llama), (1, 2), 3)

    def fail(_stream: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(band.piece, "replay", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        band.delta(band.random(2), 1.0)
    kit.assert_clean(llama)


def test_a_gradient_that_is_not_finite_is_named(llama: Any) -> None:
    with pytest.raises(ValueError, match="not finite; lower the radius"):
        fitted(llama, radius=1e38)


def test_on_the_panel(llama: Any) -> None:
    from kit.widgets import SteeringPanel

    one = fitted(llama, n_factors=1).factors[0]
    panel = SteeringPanel(llama, one, "a small boat", coefficients=1.0, max_new_tokens=3)
    try:
        panel.controls.random.value = True
        panel.run(timeout=60)
        assert "cpe 0 · layers 1, 2 · add" in str(panel.receipt)
        assert "random for cpe 0 · layers 1, 2 · add" in str(panel.receipt)
    finally:
        panel.close()
