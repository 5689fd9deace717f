"""Lens, direct attribution and ablated text: exact algebra on tiny models."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kit.models.activations import capture
from kit.models.bridge import runtime
from kit.sae import Dictionary, Site, ablated_text, direct_attribution, logit_lens, long_tokens
from tests import tiny


@pytest.fixture(params=["gpt2", "neox", "llama", "gemma2"])
def each(request: pytest.FixtureRequest, tiny_model: Any) -> Any:
    return tiny_model(request.param)


def one_latent(read: torch.Tensor, site: Site, bias: float = 0.0) -> Dictionary:
    """A ReLU latent that reads along a direction, and one beside it that never fires."""
    from sae_lens import StandardSAE, StandardSAEConfig

    sae = StandardSAE(StandardSAEConfig(d_in=len(read), d_sae=2, apply_b_dec_to_input=False))
    sae.W_enc.data = torch.stack([read, torch.zeros_like(read)], dim=1)
    sae.W_dec.data = torch.stack([read, torch.ones_like(read)])
    sae.b_enc.data = torch.tensor([bias, -1.0])
    sae.b_dec.data.zero_()
    return Dictionary(sae, site, "one")


# --- lens ----------------------------------------------------------------------------------------


def test_the_lens_is_the_last_direct_step(each: Any) -> None:
    d = torch.randn(48, generator=torch.Generator().manual_seed(1))
    lens = logit_lens(each, d, 300, mads=float("inf"))
    got = dict(lens.top)
    assert [v for _, v in lens.top] == sorted(got.values(), reverse=True)
    assert lens.bottom == lens.top[::-1] and lens.dropped == []
    # a stream that is large along d (and has no mean, which some norms take out) gives logits that
    # grow along the lens
    state = runtime(each)
    norm = state.decoder.get_submodule(each.adapter.component_mapping["ln_final"].name)
    stream = d - d.mean() if isinstance(norm, torch.nn.LayerNorm) else d
    with torch.no_grad():
        zero = norm(torch.zeros(1, 48))
        logits = state.decoder.get_output_embeddings()(norm(100 * stream[None]) - zero)[0]
    bias = state.decoder.get_output_embeddings().bias
    logits = logits - bias if bias is not None else logits
    want = torch.tensor([got[i] for i in range(300)])
    if isinstance(norm, torch.nn.LayerNorm):  # the lens keeps d's mean, the norm takes it out
        mean = logit_lens(each, torch.full((48,), float(d.mean())), 300, mads=float("inf"))
        want = want - torch.tensor([dict(mean.top)[i] for i in range(300)])
    assert float(torch.corrcoef(torch.stack([logits, want]))[0, 1]) > 0.9999


def test_long_unembeddings_are_left_out_and_named(llama: Any) -> None:
    head = runtime(llama).decoder.get_output_embeddings().weight
    d = torch.ones(48)
    before = head[5].clone()
    try:
        with torch.no_grad():
            head[5] = 50.0
        assert 5 in long_tokens(llama)
        lens = logit_lens(llama, d, 5)
        assert 5 in lens.dropped and 5 not in dict(lens.top)
        assert logit_lens(llama, d, 5, mads=float("inf")).top[0][0] == 5
    finally:
        with torch.no_grad():
            head[5] = before
    with pytest.raises(ValueError, match="mads=0"):
        long_tokens(llama, 0)
    with pytest.raises(ValueError, match=r"direction has shape \[47\]"):
        logit_lens(llama, d[:47])


def test_direct_attributions_of_the_pieces_add_up(each: Any) -> None:
    tokens = tiny.prompt(each)
    last = each.cfg.n_layers - 1
    stream = capture(each, tokens, [(last, "resid")])[last, "resid"][0, -1]
    rng = torch.Generator().manual_seed(2)
    pieces = torch.randn(3, 48, generator=rng)
    pieces = torch.cat([pieces, (stream - pieces.sum(0))[None]])
    got = direct_attribution(each, pieces, stream, [7, 11]).sum(0)
    logits = runtime(each).decoder(input_ids=tokens, use_cache=False).logits[0, -1]
    state = runtime(each)
    norm = state.decoder.get_submodule(each.adapter.component_mapping["ln_final"].name)
    head = state.decoder.get_output_embeddings()
    with torch.no_grad():
        constant = head(norm(torch.zeros(1, 48)))[0]  # the norm's bias and the head's
    if each.cfg.model_name and getattr(each.original_model.config, "final_logit_softcapping", None):
        cap = each.original_model.config.final_logit_softcapping
        logits = cap * torch.atanh(logits / cap)
    assert torch.allclose(got, (logits - constant)[[7, 11]], atol=2e-3)


# --- ablated text --------------------------------------------------------------------------------


def test_removals_in_one_batch_equal_the_loop(each: Any) -> None:
    tokens = tiny.prompt(each, 9)[0]
    read = torch.randn(48, generator=torch.Generator().manual_seed(3))
    latent = one_latent(read, Site(2), bias=100.0)
    got = ablated_text(latent, each, tokens, 0, pairs=True)

    def value(keep: list[int]) -> float:
        return float(latent.read(each, tokens[keep])[-1, 0])

    whole = list(range(9))
    assert got.value == pytest.approx(value(whole), abs=1e-3) and got.removed == whole[1:-1]
    for i in got.removed:
        want = value([k for k in whole if k != i]) - got.value
        assert float(got.change[i]) == pytest.approx(want, abs=2e-3)
    assert float(got.change[0]) == float(got.change[-1]) == 0
    assert len(got.pairs) == 21
    for (i, j), both in list(got.pairs.items())[::5]:
        want = value([k for k in whole if k not in (i, j)]) - got.value
        assert both == pytest.approx(want, abs=2e-3)


def test_the_window_reaches_so_far_back(llama: Any) -> None:
    latent = one_latent(torch.ones(48), Site(1), bias=100.0)
    got = ablated_text(latent, llama, tiny.prompt(llama, 12)[0], 0, window=4)
    assert got.removed == [7, 8, 9, 10] and got.pairs == {}


def test_either_of_two_words_is_seen_by_pairs_only(monkeypatch: pytest.MonkeyPatch, llama: Any) -> None:
    """A latent that fires while token 7 or token 8 is still there."""
    latent = one_latent(torch.ones(48), Site(1))

    def last(_d: Any, _m: Any, rows: torch.Tensor, _latent: int) -> torch.Tensor:
        return ((rows == 7) | (rows == 8)).any(1).float()

    monkeypatch.setattr("kit.sae.ablation._last", last)
    monkeypatch.setattr(
        "kit.sae.ablation._differentiated",  # on the whole text it reads 1
        lambda *_: (torch.full((1, 48), 1 / 48), torch.zeros(6)),
    )
    tokens = torch.tensor([0, 20, 7, 21, 8, 22])
    got = ablated_text(latent, llama, tokens, 0, pairs=True)
    assert float(got.change.abs().max()) < 1e-5, "single removals see nothing"
    assert got.either()[0] == (2, 4, pytest.approx(1.0, abs=1e-5))
    assert all(extra < 1e-5 for *_, extra in got.either()[1:])


def test_gradients_against_finite_differences(each: Any) -> None:
    tokens = tiny.prompt(each, 7)[0]
    read = torch.randn(48, generator=torch.Generator().manual_seed(4))
    latent = one_latent(read, Site(2), bias=-1e4)  # it does not fire, and has a gradient all the same
    got = ablated_text(latent, each, tokens, 0).gradient
    state = runtime(each)
    embedded = state.decoder.get_input_embeddings()(tokens[None]).detach()
    for i in (1, 4):

        def score(scale: float, i: int = i) -> float:
            x = embedded.clone()
            x[0, i] *= scale
            kept: list[torch.Tensor] = []
            handle = state.block(2).register_forward_hook(
                lambda _m, _a, out: kept.append(out[0] if isinstance(out, tuple) else out)
            )
            state.decoder(inputs_embeds=x, use_cache=False)
            handle.remove()
            return float(latent.before(kept[0][0, -1:])[0, 0])

        slope = (score(1.01) - score(0.99)) / 0.02
        assert float(got[i]) == pytest.approx(slope, rel=0.05, abs=0.5)


def test_agreement_of_a_latent_that_reads_linearly(llama: Any) -> None:
    tokens = tiny.prompt(llama, 8)[0]
    read = torch.randn(48, generator=torch.Generator().manual_seed(5))
    got = ablated_text(one_latent(read, Site(1), 100.0), llama, tokens, 0)
    cost, slope = -got.change[got.removed], got.gradient[got.removed]
    assert got.agreement == pytest.approx(float(torch.corrcoef(torch.stack([cost, slope]))[0, 1]))
    few = ablated_text(one_latent(read, Site(1), 100.0), llama, tokens[:3], 0)
    assert few.agreement != few.agreement, "NaN: two numbers always agree"


def test_what_cannot_be_ablated_is_named(llama: Any) -> None:
    latent = one_latent(torch.ones(48), Site(1))
    with pytest.raises(ValueError, match="tokens has 2 tokens"):
        ablated_text(latent, llama, torch.tensor([0, 5]), 0)
    with pytest.raises(ValueError, match="latent=2: 'one' has 0 to 1"):
        ablated_text(latent, llama, torch.tensor([0, 5, 6]), 2)
