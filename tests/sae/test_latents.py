"""Latents of any kind: neurons, directions, transcoders; and a prompt read through them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import kit
from kit.base.directions import random_units
from kit.models.activations import capture
from kit.models.bridge import runtime
from kit.sae import (
    Dictionary,
    Directions,
    FeatureStore,
    Latents,
    Neurons,
    Site,
    ablated_text,
    evaluate,
    importance,
    load,
    page,
    pages,
    read_prompt,
)
from tests import tiny


@pytest.fixture(params=["gpt2", "neox", "llama"])
def each(request: pytest.FixtureRequest, tiny_model: Any) -> Any:
    return tiny_model(request.param)


def tokens(model: Any, rows: int = 12, n: int = 16) -> torch.Tensor:
    return torch.cat([tiny.prompt(model, n, s) for s in range(rows)])


def transcoder(model: Any, layer: int = 1) -> Dictionary:
    from sae_lens.saes.transcoder import Transcoder, TranscoderConfig

    torch.manual_seed(0)
    d = model.cfg.d_model
    sae = Transcoder(TranscoderConfig(d_in=d, d_out=d, d_sae=40, apply_b_dec_to_input=False))
    return Dictionary(sae, Site(layer, "mlp_in"), "transcoder")


def kinds(model: Any) -> list[Latents]:
    vectors = [
        kit.SteeringVector(row, 1, f"v{i}", "given") for i, row in enumerate(random_units(5, model.cfg.d_model, 1))
    ]
    return [Neurons(model, 1), Directions(vectors, model, tokens(model)), transcoder(model)]


# --- where they read -----------------------------------------------------------------------------


def test_neurons_times_their_rows_are_the_mlp_s_output(each: Any) -> None:
    latents, ids = Neurons(each, 1), tokens(each, 2)
    kept = capture(each, ids, [(1, "neurons"), (1, "mlp_out")])
    found = kept[1, "neurons"] @ latents.rows
    bias = getattr(latents.site.module(each), "bias", None)
    assert torch.allclose(found + (0 if bias is None else bias), kept[1, "mlp_out"], atol=1e-4)
    fired = latents.encode(kept[1, "neurons"])
    assert torch.equal(fired, kept[1, "neurons"].clamp(min=0))
    some = Neurons(each, 1, threshold=0.1).encode(kept[1, "neurons"])
    assert torch.equal(some > 0, kept[1, "neurons"] > 0.1) and bool((some > 0).any())


def test_what_the_mlp_gets_makes_what_it_gives(each: Any) -> None:
    kept = capture(each, tokens(each, 2), [(1, "mlp_in"), (1, "mlp_out")])
    again = runtime(each).part(1, "mlp")(kept[1, "mlp_in"])
    assert torch.allclose(again, kept[1, "mlp_out"], atol=1e-5)


@pytest.mark.parametrize("kind", ["resid", "mlp_in", "neurons", "mlp_out"])
def test_a_site_s_hook_name_is_its_own(kind: Any) -> None:
    assert Site.of(Site(3, kind).hook_name) == Site(3, kind)


# --- what they do --------------------------------------------------------------------------------


def test_directions_fire_on_the_given_share_of_tokens(each: Any) -> None:
    ids = tokens(each, 40)
    vectors = [
        kit.SteeringVector(row, 2, f"v{i}", "given") for i, row in enumerate(random_units(4, each.cfg.d_model, 2))
    ]
    latents = Directions(vectors, each, ids, density=0.1)
    x = capture(each, ids, [(2, "resid")])[2, "resid"][:, 1:]
    share = (latents.encode(x) > 0).flatten(0, 1).float().mean(0)
    assert share.tolist() == pytest.approx([0.1] * 4, abs=0.02)
    along = (x - x.flatten(0, 1).median(0).values) @ latents.rows.T
    assert torch.allclose(latents.encode(x)[along == along.max()], along.max(), atol=1e-4)
    with pytest.raises(ValueError, match=r"layers \[1, 2\]"):
        Directions([vectors[0], vectors[1].at(1)], each, ids)
    with pytest.raises(ValueError, match="density=2"):
        Directions(vectors, each, ids, density=2)


def test_every_kind_has_a_store_a_page_ablated_text_and_a_vector(each: Any) -> None:
    ids = tokens(each)
    for latents in kinds(each):
        store = FeatureStore.build(latents, each, ids)
        kept = capture(each, ids, [latents.site.place])[latents.site.place]
        values = latents.encode(kept)
        values[:, 0] = 0
        assert store.maxima().tolist() == pytest.approx(values.amax((0, 1)).tolist(), abs=1e-5)
        best = int(store.maxima().argmax())
        assert f"#{best}" in page(store, each, best)
        found = ablated_text(latents, each, store.top(best)[0].tokens, best)
        assert len(found.change) == len(found.tokens) and bool(found.gradient.isfinite().all())
        vector = latents.vector(best)
        assert vector.layer == latents.site.layer and vector.norm > 0
        row = torch.nn.functional.normalize(latents.rows[best], dim=0)
        assert torch.allclose(vector.direction, row, atol=1e-5)
        assert importance(latents, each, ids[:2], [best]).isfinite().all()


def test_only_an_sae_stands_in_for_its_site(llama: Any) -> None:
    with pytest.raises(ValueError, match="writes elsewhere"):
        evaluate(transcoder(llama), llama, tokens(llama, 2))


def test_a_transcoder_is_loaded_from_its_folder(llama: Any, tmp_path: Path) -> None:
    mine = transcoder(llama)
    mine.save(tmp_path)
    again = load(tmp_path, model=llama)
    assert again.site == Site(1, "mlp_in") and type(again.sae).__name__ == "Transcoder"
    x = capture(llama, tokens(llama, 1), [again.site.place])[again.site.place]
    assert torch.allclose(again.encode(x), mine.encode(x), atol=1e-5)


# --- a prompt ------------------------------------------------------------------------------------


@pytest.fixture
def store(llama: Any) -> FeatureStore:
    return FeatureStore.build(transcoder(llama), llama, tokens(llama, 30))


def test_attribution_is_what_an_infinitesimal_latent_adds(llama: Any, store: FeatureStore) -> None:
    text = tiny.SENTENCES[0]
    words = [llama.tokenizer.decode([i]) for i in (5, 9)]
    found = read_prompt(store, llama, text, answers=(words[0], words[1]))
    ids, rows = found.answers, store.dictionary.rows
    assert ids is not None and found.attribution is not None

    def difference(latent: int, at: int, size: float) -> float:
        from kit.models.hook_points import replaced

        def add(x: torch.Tensor) -> torch.Tensor:
            x = x.clone()
            x[:, at] += size * rows[latent]
            return x

        with replaced(llama, Site(1), add):
            logits = runtime(llama).decoder(kit.text_tokens(llama, text)).logits[0, -1]
        return float(logits[ids[0]] - logits[ids[1]])

    assert found.difference == pytest.approx(difference(0, 0, 0.0), abs=1e-4)
    for r in found.ranked("attribution", n=3).itertuples():
        step = (difference(r.latent, r.position, 1e-2) - difference(r.latent, r.position, -1e-2)) / 2e-2
        assert r.attribution == pytest.approx(step * r.activation, rel=0.05, abs=1e-4)


def test_rankings_by_activation_and_by_quantile(llama: Any, store: FeatureStore) -> None:
    found = read_prompt(store, llama, tiny.SENTENCES[1])
    values = store.dictionary.read(llama, tiny.SENTENCES[1])
    top = found.ranked("activation", n=1).iloc[0]
    assert top.activation == pytest.approx(float(values[1:].max()))
    at = int(top.position)
    line = found.ranked("quantile", at, n=40)
    assert len(line) == int((values[at] > 0).sum()) and bool((line["quantile"].diff()[1:] <= 0).all())
    for r in line.itertuples():
        seen = store.entries(int(r.latent))[1]
        share = float((seen < r.activation).float().mean()) if len(seen) else 0.0
        assert r.quantile == pytest.approx(share, abs=1e-3)
    shown = pages.prompt(found, pages.words(llama))
    assert shown.count("<tr>") == len(found.tokens) and f"#{int(top.latent)} " in shown


def test_a_prompt_names_what_is_wrong(llama: Any, store: FeatureStore) -> None:
    found = read_prompt(store, llama, tiny.SENTENCES[1])
    with pytest.raises(ValueError, match="by='attribution': read the prompt with answers"):
        found.ranked("attribution")
    with pytest.raises(ValueError, match="by='size'"):
        found.ranked("size")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="position=99"):
        found.ranked(position=99)
    word = llama.tokenizer.decode([5])
    with pytest.raises(ValueError, match="both start with the same token"):
        read_prompt(store, llama, "a b", answers=(word, word))
    with pytest.raises(ValueError, match="answers="):
        read_prompt(store, llama, "a b", answers=("x", ""))
