"""Loading: the same numbers as plain transformers, the same storage, clear refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import kit
from kit.base import threads
from kit.base.shipped import neutral_texts
from kit.models import load, weights
from kit.models.bridge import runtime
from kit.models.load import choose_dtype
from tests import tiny


def storages(module: Any) -> dict[int, int]:
    """Size in bytes of each different piece of memory that holds parameters."""
    return {s.data_ptr(): s.nbytes() for p in module.parameters() for s in [p.untyped_storage()]}


@pytest.fixture(params=["gpt2", "neox", "llama", "gemma2"])
def any_model(request: pytest.FixtureRequest, tiny_model: Any) -> Any:
    return tiny_model(request.param)


def test_the_bridge_computes_what_transformers_computes(any_model: Any) -> None:
    plain = AutoModelForCausalLM.from_pretrained(any_model.cfg.kit_folder, dtype=torch.float32)
    tokens = tiny.prompt(any_model, 40)
    with torch.no_grad():
        expected = plain(input_ids=tokens).logits
        assert torch.allclose(any_model(tokens), expected, atol=2e-4, rtol=1e-4)
        decoder = runtime(any_model).decoder(input_ids=tokens).logits
        assert torch.allclose(decoder, expected, atol=2e-4, rtol=1e-4)
    assert expected.std() > 0.1  # else the comparison says nothing


def test_no_weight_is_copied(any_model: Any) -> None:
    plain = AutoModelForCausalLM.from_pretrained(any_model.cfg.kit_folder, dtype=torch.float32)
    state = runtime(any_model)
    assert state.shares_weights and state.decoder is not any_model.original_model
    decoder, bridge = storages(state.decoder), storages(any_model.original_model)
    assert set(decoder) <= set(bridge)
    assert sum(decoder.values()) == sum(storages(plain).values())


def test_a_weight_changed_in_the_decoder_changes_the_bridge(tmp_path: Path) -> None:
    model = tiny.load(tmp_path, "llama")
    tokens = tiny.prompt(model)
    before = model(tokens)
    with torch.no_grad():
        runtime(model).block(1).mlp.down_proj.weight.mul_(2)
    assert not torch.allclose(before, model(tokens), atol=1e-3)
    with torch.no_grad():
        assert torch.allclose(runtime(model).decoder(tokens).logits, model(tokens), atol=2e-4)


def test_gradients_are_off_and_the_model_is_in_eval_mode(any_model: Any) -> None:
    assert not any(p.requires_grad for p in any_model.original_model.parameters())
    assert not any(p.requires_grad for p in runtime(any_model).decoder.parameters())
    assert not any_model.original_model.training and not runtime(any_model).decoder.training


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_dtype(llama: Any, dtype: Any) -> None:
    model = kit.load_model(llama.cfg.kit_folder, dtype=dtype)
    kind = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    for module in (model.original_model, runtime(model).decoder):
        assert {p.dtype for p in module.parameters()} == {kind}
    assert model(tiny.prompt(model)).dtype == kind
    assert len(kit.generate(model, tiny.prompt(model), max_new_tokens=2).rows[0].tokens) == 2


def test_dtype_auto_follows_the_cpu(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KIT_DTYPE", raising=False)
    monkeypatch.setattr(threads, "kept", dict)  # not what the probe found of this machine
    for yes, kind in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda yes=yes: yes)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        chosen, reason = choose_dtype("cpu")
        assert chosen == kind and "bfloat16" in reason
        for share in (0.9, 1.3):  # what the probe found of this machine
            monkeypatch.setattr(threads, "kept", lambda share=share: {"bfloat16": share})
            assert choose_dtype("cpu")[0] == (torch.float32 if share > 1 else kind)
        monkeypatch.setattr(threads, "kept", dict)
        model = kit.load_model(llama.cfg.kit_folder, device="cpu")
        assert next(runtime(model).decoder.parameters()).dtype == kind
    assert choose_dtype("cuda")[0] == torch.bfloat16


def test_the_environment_may_name_the_dtype(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("float32", "bfloat16"):
        monkeypatch.setenv("KIT_DTYPE", name)
        assert choose_dtype("cuda") == (getattr(torch, name), "KIT_DTYPE asks for it")
        model = kit.load_model(llama.cfg.kit_folder)
        assert next(runtime(model).decoder.parameters()).dtype == getattr(torch, name)
    monkeypatch.setenv("KIT_DTYPE", "float31")
    with pytest.raises(ValueError, match="KIT_DTYPE='float31': use 'float32', 'bfloat16' or"):
        kit.load_model(llama.cfg.kit_folder)


def test_a_preloaded_model_is_taken_once_and_only_where_it_is_what_was_asked_for(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready: Any = SimpleNamespace(cfg=SimpleNamespace(dtype=torch.float32))
    monkeypatch.setattr(load, "_PRELOADED", kept := [ready])
    for other in ({"dtype": "bfloat16"}, {"device": "cpu"}, {"name": llama.cfg.kit_folder}):
        assert kit.load_model(**other) is not ready
    assert kept == [ready]
    assert kit.load_model(dtype="float32") is ready and kept == []
    kept.append(ready)
    assert kit.load_model() is ready and kept == []


@pytest.mark.parametrize("dtype", ["float31", "int8", torch.int64, 32, "nn"])
def test_an_unknown_dtype_is_refused(llama: Any, dtype: Any) -> None:
    with pytest.raises(ValueError, match=r"dtype=.*bfloat16"):
        kit.load_model(llama.cfg.kit_folder, dtype=dtype)


def test_device_and_device_map_exclude_each_other(llama: Any) -> None:
    with pytest.raises(ValueError, match="give one of the two"):
        kit.load_model(llama.cfg.kit_folder, device="cpu", device_map="auto")


def test_device_map_is_passed_through(llama: Any) -> None:
    model = kit.load_model(llama.cfg.kit_folder, dtype="float32", device_map={"": "cpu"})
    assert not runtime(model).shares_weights
    v = tiny.vector(llama, 1)
    tokens = tiny.prompt(model)
    options: dict[str, Any] = {"coefficients": [None, 0.5], "max_new_tokens": 6}
    mapped = kit.generate(model, tokens, v, **options)
    assert [r.tokens for r in mapped.rows] == [r.tokens for r in kit.generate(llama, tokens, v, **options).rows]


def test_a_bridge_booted_elsewhere_works_too(model: Any) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    folder = model.cfg.kit_folder
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    words = AutoTokenizer.from_pretrained(folder)
    other = TransformerBridge.boot_transformers("x", hf_model=hf, tokenizer=words, device="cpu")
    assert kit.fingerprint(other) == kit.fingerprint(model)
    v, tokens = tiny.vector(model, 1), tiny.prompt(model)
    options: dict[str, Any] = {"coefficients": [None, 0.5], "max_new_tokens": 6, "measure": True}
    here, there = (kit.generate(m, tokens, v, **options) for m in (model, other))
    assert [r.tokens for r in here.rows] == [r.tokens for r in there.rows]
    assert str(here.receipt) == str(there.receipt)
    kit.assert_clean(other)


def test_a_hub_id_that_is_not_here_names_what_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kit.weights._hub_models", lambda: ["somebody/cached-model"])
    with pytest.raises(OSError, match="not on this machine") as caught:
        kit.load_model("nobody/no-such-model")
    text = str(caught.value)
    assert "nobody/no-such-model" in text
    assert "smollm2-135m-instruct" in text and "somebody/cached-model" in text


def test_a_cached_hub_id_loads_offline(llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--me--small" / "snapshots" / ("0" * 40)
    shutil.copytree(llama.cfg.kit_folder, snapshot)
    (tmp_path / "models--me--small" / "refs").mkdir()
    (tmp_path / "models--me--small" / "refs" / "main").write_text("0" * 40)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = kit.load_model("me/small", dtype="float32")
    assert kit.fingerprint(model) == kit.fingerprint(llama)


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "~/none-such", "a/b/c"])
def test_a_path_without_a_folder(name: str) -> None:
    with pytest.raises(OSError, match="no such folder"):
        kit.load_model(name)


def test_a_folder_without_config(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(OSError, match=r"config\.json"):
        kit.load_model(str(tmp_path))


def test_a_folder_whose_weights_are_missing(llama: Any, tmp_path: Path) -> None:
    shutil.copytree(llama.cfg.kit_folder, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(OSError, match="does not load"):
        kit.load_model(str(tmp_path / "m"))


def test_an_untrained_copy_has_fresh_weights_of_its_seed(any_model: Any) -> None:
    folder = str(any_model.cfg.kit_folder)
    one, again, other = (kit.load_model(folder, untrained=seed) for seed in (0, 0, 1))
    tokens = tiny.prompt(any_model, 20)
    assert torch.equal(one(tokens), again(tokens))
    assert not torch.allclose(one(tokens), other(tokens), atol=1e-3)
    assert len({kit.models.fingerprint(m) for m in (any_model, one, other)}) == 3
    with pytest.raises(ValueError, match="untrained=0 with an adapter"):
        kit.load_model(folder, untrained=0, adapter=folder)


def test_two_models_have_two_fingerprints(llama: Any, tmp_path: Path, tiny_model: Any) -> None:
    other = tiny.load(tmp_path, "llama", seed=99)
    marks = [kit.fingerprint(m) for m in (llama, other, tiny_model("gpt2"), tiny_model("neox"))]
    assert len(set(marks)) == 4
    assert all(len(m) == 16 and int(m, 16) >= 0 for m in marks)


def test_a_fine_tuned_model_has_another_fingerprint(llama: Any, tmp_path: Path) -> None:
    hf = AutoModelForCausalLM.from_pretrained(llama.cfg.kit_folder)
    with torch.no_grad():
        hf.model.layers[2].mlp.down_proj.weight.mul_(1.1)
    hf.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(llama.cfg.kit_folder).save_pretrained(tmp_path)
    tuned = kit.load_model(str(tmp_path), dtype="float32")
    assert kit.fingerprint(tuned) != kit.fingerprint(llama)


def test_a_fingerprint_outlives_rounding(model: Any) -> None:
    half = kit.load_model(model.cfg.kit_folder, dtype="bfloat16")
    assert kit.fingerprint(half) == kit.fingerprint(model)


def test_the_scale_is_the_median_norm_beyond_position_0(model: Any) -> None:
    again = kit.load_model(model.cfg.kit_folder, dtype="float32")
    names = [f"blocks.{layer}.hook_out" for layer in range(4)]
    norms: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for text in neutral_texts()[:6]:
        _, cache = model.run_with_cache(kit.text_tokens(model, text), names_filter=names)
        for name in names:
            norms[name].append(cache[name][0, 1:].norm(dim=-1))
    for layer, name in enumerate(names):
        first = kit.residual_scale(again, layer)
        assert first == pytest.approx(float(torch.cat(norms[name]).median()), rel=1e-4)
        assert kit.residual_scale(again, layer) == first
        assert kit.residual_scale(model, layer) == pytest.approx(first, rel=1e-6)


def test_the_scale_ignores_a_huge_first_position(tmp_path: Path) -> None:
    """With a BOS embedding a thousand times the others the scale stays what it was."""
    folder = tiny.save(tmp_path, "llama")
    plain = kit.load_model(str(folder), dtype="float32")
    loud = kit.load_model(str(folder), dtype="float32")
    with torch.no_grad():
        runtime(loud).decoder.get_input_embeddings().weight[0] *= 1000
    text = kit.text_tokens(loud, neutral_texts()[0])
    stream = tiny.stream_after(loud, 1, text).norm(dim=-1)[0]
    assert stream[0] > 50 * stream[1:].median()
    assert stream.mean() > 1.2 * kit.residual_scale(loud, 1)
    # the others attend to position 0, so the scales agree roughly, not exactly
    assert kit.residual_scale(loud, 1) == pytest.approx(kit.residual_scale(plain, 1), rel=0.2)


@pytest.mark.parametrize("layer", [-1, 4, 1.0, True, "1", None])
def test_a_layer_that_is_none(llama: Any, layer: Any) -> None:
    with pytest.raises(ValueError, match="layers 0 to 3"):
        kit.residual_scale(llama, layer)


def test_text_has_exactly_one_bos(model: Any) -> None:
    bos = model.tokenizer.bos_token_id
    wants = AutoTokenizer.from_pretrained(model.cfg.kit_folder)("The kettle hummed").input_ids.count(bos)
    for text in ("The kettle hummed", "<bos>The kettle hummed"):
        ids = kit.text_tokens(model, text)
        assert ids.shape[0] == 1 and ids.dtype == torch.long
        assert ids[0].tolist().count(bos) == max(wants, text.count("<bos>"))
    assert model.tokenizer.decode(ids[0, 1:]) == "The kettle hummed"
    assert {"gpt2": 0, "llama": 1}.get(model.original_model.config.model_type, wants) == wants


def test_the_tokenizer_that_adds_a_bos_itself_adds_no_second(llama: Any) -> None:
    assert llama.tokenizer("The boat").input_ids[0] == 0  # it does add one
    assert kit.text_tokens(llama, "The boat")[0].tolist().count(0) == 1


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_chat_has_exactly_one_bos(chat: Any, system: str | None) -> None:
    ids = kit.chat_tokens(chat, "Where is the boat?", system)
    assert ids.shape[0] == 1 and ids.dtype == torch.long
    assert ids[0].tolist().count(chat.tokenizer.bos_token_id) == 1 and ids[0, 0] == 0
    text = chat.tokenizer.decode(ids[0])
    assert text.endswith("user: Where is the boat?<eos>model: ")
    assert ("Be brief." in text) == (system is not None)


def test_a_string_prompt_goes_through_the_template(chat: Any) -> None:
    asked = kit.generate(chat, "Where is the boat?", max_new_tokens=5)
    tokens = kit.chat_tokens(chat, "Where is the boat?")
    assert asked.rows[0].tokens == kit.generate(chat, tokens, max_new_tokens=5).rows[0].tokens
    assert asked.receipt.prompt_positions == tokens.shape[1]


def test_no_template_is_an_error_that_says_what_to_do(llama: Any) -> None:
    with pytest.raises(ValueError, match="text_tokens"):
        kit.chat_tokens(llama, "Hello")


@pytest.mark.parametrize("nothing", ["", " \n"])
def test_an_empty_message(chat: Any, nothing: str) -> None:
    with pytest.raises(ValueError, match="empty"):
        kit.chat_tokens(chat, nothing)
    with pytest.raises(ValueError, match="no token"):
        kit.text_tokens(chat, "")


def test_the_embedded_model(smol: Any) -> None:
    tokens = kit.chat_tokens(smol, "Name a colour.")
    assert tokens[0].tolist().count(1) == 3  # <|im_start|> is the BOS: once for each message
    assert tokens[0, 0] == 1 and tokens[0, 1] != 1
    assert smol.cfg.n_layers == 30 and runtime(smol).shares_weights
    assert 50 < kit.residual_scale(smol, 14) < 400  # not the 25,000 of its first position
    with torch.no_grad():
        bridge, decoder = smol(tokens), runtime(smol).decoder(input_ids=tokens).logits
    assert torch.equal(bridge[0, -1].argmax(), decoder[0, -1].argmax())
    for block in runtime(smol).decoder.model.layers:  # its file holds them side by side
        assert len(block.self_attn.joined._whole) == 960 and len(block.mlp.joined._whole) == 3072
    record = json.loads((weights.cached("bfloat16") / "kit.json").read_text())
    assert record["gguf_sha256"] == weights.GGUF_SHA256


def test_kept_facts_go_when_a_weight_changes_in_place(llama: Any) -> None:
    mark, scale = kit.fingerprint(llama), kit.residual_scale(llama, 1)
    weight = runtime(llama).decoder.get_input_embeddings().weight
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.mul_(3)
        assert kit.fingerprint(llama) != mark
        assert kit.residual_scale(llama, 1) != scale
    finally:
        with torch.no_grad():
            weight.copy_(before)
    assert kit.fingerprint(llama) == mark and kit.residual_scale(llama, 1) == pytest.approx(scale)
