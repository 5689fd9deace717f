"""Links between dictionaries: exact where the model is linear, and held against true ablation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import kit
from kit.models.bridge import runtime
from kit.sae import Dictionary, Site
from kit.sae import links as attribution
from kit.sae.links import Between, ablated, agreement, explained, links, weight_links
from tests import tiny


def rows(model: Any, n: int = 4, width: int = 16) -> torch.Tensor:
    return torch.cat([tiny.prompt(model, width, s) for s in range(n)])


def dictionary(model: Any, site: Site, seed: int, n: int = 40, bias: float = 0.0) -> Dictionary:
    """ReLU latents of random rows; a large bias makes all of them fire."""
    from sae_lens import StandardSAE, StandardSAEConfig

    torch.manual_seed(seed)
    d = model.cfg.d_model
    sae = StandardSAE(StandardSAEConfig(d_in=d, d_sae=n, apply_b_dec_to_input=False))
    sae.W_dec.data, sae.W_enc.data = 0.3 * torch.randn(n, d), 0.3 * torch.randn(d, n)
    sae.b_enc.data = torch.full((n,), bias)
    return Dictionary(sae, site, f"d{seed}")


TARGETS = [(1, Site(2, "mlp_out")), (0, Site(2)), (1, Site(3, "mlp_in")), (0, Site(1, "neurons"))]


@pytest.fixture
def linear(tmp_path: Path) -> Any:
    """A Llama whose attention and MLPs write nothing: its stream is what was embedded."""
    model = tiny.load(tmp_path, "llama")
    for layer in range(model.cfg.n_layers):
        for module in (runtime(model).projection(layer, "attn_out"), runtime(model).port(layer, "neurons")[0]):
            module.weight.data.zero_()
    return model


# --- what lies between ---------------------------------------------------------------------------


@pytest.mark.parametrize(("layer", "site"), TARGETS)
def test_the_replay_is_the_model(model: Any, layer: int, site: Site) -> None:
    between, ids = Between(model, layer, site), rows(model)
    (seen,) = between.read(ids, Site(layer, "mlp_out"))
    plain = kit.activations.capture(model, ids, [site.place, (layer, "mlp_out")])
    assert torch.equal(between.target, plain[site.place])
    assert torch.equal(seen, plain[layer, "mlp_out"])
    stream, target = between.stream.flatten(0, 1), between.target.flatten(0, 1)
    at = torch.tensor([3, 40, 17, 3])
    torch.testing.assert_close(between(stream[at], at), target[at].float())
    whole, there = between.stream, between.target
    between.read(ids[:1])
    torch.testing.assert_close(between.live(whole), there)  # what one row gave to the blocks fits all


def test_attention_is_held_and_given_back(llama: Any) -> None:
    modules = list(runtime(llama).decoder.modules())
    between = Between(llama, 0, Site(2))
    between.read(rows(llama))
    at = torch.arange(64)
    stream = between.stream.flatten(0, 1)
    moved = stream.clone()
    moved[5] += 10  # no other token may see it
    change = (between(moved, at) - between(stream, at)).norm(dim=-1)
    assert float(change[5]) > 1 and not bool(change[at != 5].any())
    logits = llama(rows(llama))
    assert list(runtime(llama).decoder.modules()) == modules
    assert torch.equal(logits, llama(rows(llama)))


def test_targets_that_are_no_later(llama: Any) -> None:
    with pytest.raises(ValueError, match=r"target mlp_out 2 does not lie after layer 2"):
        Between(llama, 2, Site(2, "mlp_out"))


# --- links ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", attribution.METHODS)
def test_all_methods_are_the_truth_where_the_model_is_linear(linear: Any, method: Any) -> None:
    source = dictionary(linear, Site(0), 0)
    target = dictionary(linear, Site(2), 1, bias=100.0)  # all fire, so that no kink is met
    ids = rows(linear)
    found = links(source, target, linear, ids, method=method)
    truth = ablated(source, target, linear, ids, range(len(source)))
    torch.testing.assert_close(found.score, truth, rtol=2e-3, atol=5e-3)
    fires = source.encode(Between(linear, 0, Site(1)).read(ids, Site(0))[0])[:, 1:] > 0
    exact = (source.rows @ target.sae.W_enc.detach())[7]
    mean = found.score[7] / exact
    assert float(mean.std() / mean.mean()) < 5e-3, "activation x (row . encoder), for every target"
    assert found.fired.tolist() == fires.flatten(0, 1).sum(0).tolist()


def test_scores_are_means_over_the_source_s_firings(model: Any) -> None:
    source, target = dictionary(model, Site(1), 0), dictionary(model, Site(2, "mlp_out"), 1)
    ids = rows(model, 2)
    found = links(source, target, model, ids, method="ablation")
    between = Between(model, 1, target.site)
    (x,) = between.read(ids, source.site)
    f = source.encode(x).flatten(0, 1)
    f[[0, 16]] = 0
    g = target.encode(between.target).flatten(0, 1)
    stream = between.stream.flatten(0, 1)
    for i in (0, 11, 39):
        at = f[:, i].nonzero()[:, 0]
        if not len(at):
            continue
        left = target.encode(between(stream[at] - f[at, i, None] * source.rows[i], at))
        torch.testing.assert_close(found.score[i], (g[at] - left).mean(0), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.total, g[[i for i in range(32) if i % 16]].sum(0))


@pytest.mark.parametrize(("layer", "site"), TARGETS[:3])
def test_integrated_gradients_add_up_to_the_ablation(model: Any, layer: int, site: Site) -> None:
    source, target = dictionary(model, Site(layer), 0), dictionary(model, site, 1, bias=100.0)
    ids = rows(model, 2)
    true = links(source, target, model, ids, method="ablation").score
    plain = links(source, target, model, ids).score
    path = links(source, target, model, ids, method="integrated", steps=48).score
    error = (path - true).norm() / true.norm()
    assert float(error) < 0.02 < float((plain - true).norm() / true.norm())


def test_maxima_raise_the_source(llama: Any) -> None:
    source = dictionary(llama, Site(1), 0)
    target, ids = dictionary(llama, Site(2, "mlp_out"), 1), rows(llama, 2)
    between = Between(llama, 1, target.site)
    (x,) = between.read(ids, source.site)
    f = source.encode(x).flatten(0, 1)
    f[[0, 16]] = 0
    top = f.amax(0)
    found = links(source, target, llama, ids, method="ablation", at="maximum", maxima=top)
    stream, i = between.stream.flatten(0, 1), int(top.argmax())
    at = f[:, i].nonzero()[:, 0]
    without = stream[at] - f[at, i, None] * source.rows[i]
    high = target.encode(between(without + top[i] * source.rows[i], at))
    low = target.encode(between(without, at))
    torch.testing.assert_close(found.score[i], (high - low).mean(0), rtol=1e-3, atol=1e-4)


def test_an_interrupt_keeps_whole_rows(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = dictionary(llama, Site(1), 0), dictionary(llama, Site(2), 1)
    ids = rows(llama)
    seen: list[int] = []
    plain = attribution._effect

    def stops(*args: Any, **options: Any) -> Any:
        seen.append(1)
        if len(seen) == 3:  # each row takes one pass
            raise KeyboardInterrupt
        return plain(*args, **options)

    monkeypatch.setattr(attribution, "_effect", stops)
    found = links(source, target, llama, ids)
    monkeypatch.setattr(attribution, "_effect", plain)
    torch.testing.assert_close(found.score, links(source, target, llama, ids[:2]).score)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "guess"}, r"method='guess': use 'gradient'"),
        ({"at": "top"}, r"at='top'"),
        ({"at": "maximum"}, r"maxima has shape None: .*\[40\]"),
        ({"steps": 0}, r"steps=0"),
        ({"at": "maximum", "maxima": torch.ones(3)}, r"maxima has shape \[3\]"),
    ],
)
def test_bad_arguments(llama: Any, options: Any, message: str) -> None:
    source, target = dictionary(llama, Site(1), 0), dictionary(llama, Site(2), 1)
    with pytest.raises(ValueError, match=message):
        links(source, target, llama, rows(llama), **options)


def test_top_links_of_one_latent(llama: Any) -> None:
    source, target = dictionary(llama, Site(1), 0), dictionary(llama, Site(2), 1)
    found = links(source, target, llama, rows(llama))
    table = found.top(5, target=3, by="score", least=0)
    best = found.score[:, 3].abs().argsort(descending=True)[:5]
    assert table["source"].tolist() == best.tolist() and set(table["target"]) == {3}
    assert table["score"].tolist() == found.score[best, 3].tolist()
    share = float(found.score[best[0], 3] * found.fired[best[0]] / found.total[3])
    assert table["share"].tolist()[0] == pytest.approx(share)
    assert set(found.top(4, source=2, least=0)["source"]) <= {2}
    assert not len(found.top(5, least=10**6))
    with pytest.raises(ValueError, match="by='size'"):
        found.top(by="size")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="latent=40"):
        found.top(target=40)


# --- the truth, and what is left of it -----------------------------------------------------------


def test_ablated_runs_the_whole_model(llama: Any) -> None:
    source, target = dictionary(llama, Site(1), 0), dictionary(llama, Site(3), 1)
    ids = rows(llama)
    plain = kit.activations.capture(llama, ids, [(1, "resid"), (3, "resid")])
    f = source.encode(plain[1, "resid"])
    f[:, 0] = 0
    i = int(f.amax((0, 1)).argmax())
    seen: list[Any] = []
    with torch.no_grad():
        hook = ("blocks.1.hook_out", lambda x, hook: x - f[..., i, None] * source.rows[i])
        keep = ("blocks.3.hook_out", lambda x, hook: seen.append(x))
        llama.run_with_hooks(ids, fwd_hooks=[hook, keep])
    change = target.encode(plain[3, "resid"]) - target.encode(seen[0])
    on = f[..., i] > 0
    torch.testing.assert_close(ablated(source, target, llama, ids, [i])[0], change[on].mean(0), rtol=1e-3, atol=1e-4)


def test_the_path_adds_up_to_the_ablated_pre_activation(tiny_model: Any) -> None:
    """In a model whose MLP runs beside its attention nothing is held that would move."""
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig

    model = tiny_model("neox")
    source, plain = dictionary(model, Site(1), 0), dictionary(model, Site(2, "mlp_out"), 1)
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=48, d_sae=40, apply_b_dec_to_input=False))
    sae.load_state_dict({**plain.sae.state_dict(), "threshold": torch.full((40,), 0.2)})
    target, ids, every = Dictionary(sae, plain.site, "jumps"), rows(model, 6), range(len(source))
    path = links(source, target, model, ids, method="integrated", steps=48).score
    smooth = ablated(source, target, model, ids, every, of="pre-activation")
    assert float((path - smooth).norm() / smooth.norm()) < 0.02
    jumps = ablated(source, target, model, ids, every)  # it falls from the threshold at once
    assert float((path - jumps).norm() / jumps.norm()) > 0.1
    exact = links(source, target, model, ids, method="ablation").score
    torch.testing.assert_close(exact, jumps, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="of='all'"):
        ablated(source, target, model, ids, [0], of="all")  # type: ignore[arg-type]


def test_agreement_is_a_rank_correlation_of_the_large_pairs() -> None:
    truth = torch.zeros(50, 50)
    truth[:2] = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    assert agreement(truth**3, truth, 60) == pytest.approx(1)
    assert agreement(-truth, truth, 60) == pytest.approx(-1)
    assert abs(agreement(torch.rand(50, 50), truth, 100)) < 0.4
    with pytest.raises(ValueError, match="the same pairs"):
        agreement(truth, truth[:3])


def test_weights_alone_are_exact_for_a_linear_mlp(tiny_model: Any) -> None:
    model = tiny_model("gpt2")
    source, target = dictionary(model, Site(1), 0), dictionary(model, Site(2, "mlp_out"), 1)
    into, out, gain = runtime(model).mlp_matrices(2)
    block = runtime(model).block(2)
    assert torch.equal(gain, block.ln_2.weight) and into.shape == (48, 192)
    x = torch.randn(5, 48)
    torch.testing.assert_close(block.mlp.c_fc(x), x @ into + block.mlp.c_fc.bias)
    torch.testing.assert_close(block.mlp.c_proj(x @ into), x @ into @ out + block.mlp.c_proj.bias)
    hidden = (source.rows[4] * gain) @ into
    expected = (hidden @ out) @ target.sae.W_enc.detach()
    torch.testing.assert_close(weight_links(source, target, model)[4], expected)
    with pytest.raises(ValueError, match="what a later MLP puts out"):
        weight_links(source, dictionary(model, Site(2), 1), model)


def test_a_pruned_graph_explains_less_and_all_of_it_everything(llama: Any) -> None:
    source, target = dictionary(llama, Site(1), 0), dictionary(llama, Site(2, "mlp_out"), 1)
    ids = rows(llama)
    found = links(source, target, llama, ids, method="ablation")
    chosen = found.total.argsort(descending=True)[:8].tolist()
    table = explained(found, llama, ids, chosen, keep=(0, 0.1, 1.0))
    assert table["explained"].iloc[2] == pytest.approx(1, abs=1e-4)
    assert table["edges"].tolist() == [0, round(0.1 * int((found.fired > 0).sum())), int((found.fired > 0).sum())]
    assert table["explained"].iloc[0] == table["random"].iloc[0]
    few = links(source, target, llama, ids[:1], method="ablation")  # some never fire on one row
    assert explained(few, llama, ids, chosen, keep=(1.0,))["explained"].iloc[0] == pytest.approx(1)
    with pytest.raises(ValueError, match="shares from 0 to 1"):
        explained(found, llama, ids, chosen, keep=(2,))
