"""A model any way it comes: from a file with every weight, or from memory, left as it was."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration

import kit
from kit.models import given
from kit.steering.generation import logits
from tests import tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.save(tmp_path / "model", "llama")


def plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def rewrite(folder: Path, change: Any) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


# --- files --------------------------------------------------------------------------------------


def test_weights_under_other_names_are_not_drawn_at_random(folder: Path) -> None:
    rewrite(folder, lambda state: {f"_orig_mod.{name}": weight for name, weight in state.items()})
    with pytest.raises(ValueError, match=r"39 weights are missing .*lm_head\.weight.* and 35 more.*torch\.compile"):
        kit.load_model(str(folder), dtype="float32")


@pytest.mark.parametrize(
    "name", ["model.layers.2.mlp.up_proj.weight", "model.norm.weight", "model.embed_tokens.weight"]
)
def test_one_missing_weight_is_named(folder: Path, name: str) -> None:
    rewrite(folder, lambda state: {key: weight for key, weight in state.items() if key != name})
    with pytest.raises(ValueError, match=rf"1 weights are missing .*{name}"):
        kit.load_model(str(folder), dtype="float32")


def test_a_weight_that_belongs_nowhere_is_named(folder: Path) -> None:
    rewrite(folder, lambda state: state | {"model.layers.0.mlp.up_proj.bias": torch.ones(96)})
    with pytest.raises(ValueError, match=r"1 weights of the file belong to no part.*up_proj\.bias"):
        kit.load_model(str(folder), dtype="float32")


def test_an_adapter_beside_a_model_is_not_followed_to_its_base(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "gpt2"}))
    with pytest.raises(ValueError, match="holds an adapter .*adapter=folder"):
        kit.load_model(str(folder), dtype="float32")


def test_adapter_weights_inside_a_model_file_are_told(folder: Path) -> None:
    name = "model.layers.0.mlp.up_proj.lora_A.default.weight"
    rewrite(folder, lambda state: state | {name: torch.ones(2, 48)})
    with pytest.raises(ValueError, match="merge_and_unload"):
        kit.load_model(str(folder), dtype="float32")


def test_tied_weights_are_not_missing(tmp_path: Path) -> None:
    tiny.save(tmp_path, "llama", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert kit.load_model(str(tmp_path), dtype="float32").cfg.n_layers == 4


# --- multimodal ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def multimodal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gemma3")
    words = tiny.tokenizer()
    text = {
        "vocab_size": len(words), "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 12, "intermediate_size": 96, "max_position_embeddings": 256,
        "initializer_range": 0.2, "query_pre_attn_scalar": 12,
    }  # fmt: skip
    vision = {
        "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 16, "patch_size": 8,
    }  # fmt: skip
    torch.manual_seed(0)
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=5)
    Gemma3ForConditionalGeneration(config).to(torch.float32).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def test_a_multimodal_model_reads_text_as_transformers_does_and_installs_nothing(
    multimodal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    monkeypatch.setattr(subprocess, "check_call", lambda *a, **k: started.append(a))
    model = kit.load_model(str(multimodal), dtype="float32")
    tokens = tiny.prompt(model)
    whole = Gemma3ForConditionalGeneration.from_pretrained(multimodal, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = whole(input_ids=tokens).logits
    assert torch.allclose(model(tokens), expected, atol=1e-4)
    assert torch.allclose(logits(model, tokens), expected, atol=1e-4)
    assert expected.std() > 0.1 and not started
    assert kit.generate(model, tokens, tiny.vector(model, 1), [None, 0.5], max_new_tokens=3).rows


@pytest.mark.parametrize(
    "command",
    [["pip", "install", "x"], ["uv", "pip", "install"], [sys.executable, "-m", "pip", "list"], ["/usr/bin/conda", "x"]],
)
def test_no_package_manager_starts_while_a_model_loads(command: list[str]) -> None:
    with given.no_installs(), pytest.raises(PermissionError, match="not started while a model loads"):
        subprocess.run(command, check=False, capture_output=True)
    with given.no_installs():
        assert subprocess.run([sys.executable, "-c", "print(1)"], capture_output=True, text=True, check=True).stdout


# --- memory -------------------------------------------------------------------------------------


def same_as(model: Any, reference: Any) -> None:
    tokens = tiny.prompt(model)
    with torch.no_grad():
        expected = reference(input_ids=tokens).logits
        assert torch.allclose(model(tokens), expected, atol=1e-4)
    assert torch.allclose(logits(model, tokens), expected, atol=1e-4)


def test_a_model_in_memory_is_shared_and_stays_as_it_is(folder: Path) -> None:
    hf = plain(folder)
    names = [(name, type(module)) for name, module in hf.named_modules()]
    model = kit.load_model(hf, tokenizer=str(folder))
    same_as(model, hf)
    assert [(name, type(module)) for name, module in hf.named_modules()] == names
    assert all(weight.requires_grad for weight in hf.parameters())
    mine = {weight.data_ptr() for weight in hf.parameters()}
    assert {weight.data_ptr() for weight in kit.models.runtime(model).decoder.parameters()} == mine
    assert kit.fingerprint(model) == kit.fingerprint(kit.load_model(str(folder), dtype="float32"))
    before = kit.residual_scale(model, 2)
    with torch.no_grad():
        hf.model.layers[1].mlp.down_proj.weight.mul_(3)  # a step of training
    same_as(model, hf)
    assert abs(kit.residual_scale(model, 2) / before - 1) > 0.05


def test_a_model_left_in_training_mode_runs_in_eval_mode_and_says_so(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path, "gpt2")
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_pdrop=0.5, resid_pdrop=0.5)
    hf.train()
    hf.gradient_checkpointing_enable()
    with pytest.warns(UserWarning, match="training mode"):
        model = kit.load_model(hf, tokenizer=tiny.tokenizer())
    assert hf.training
    same_as(model, hf.eval())


def test_a_model_put_into_training_mode_later_is_refused(folder: Path) -> None:
    model = kit.load_model(str(folder), dtype="float32")
    v = tiny.vector(model, 1)
    model.train()
    for use in (
        lambda: kit.generate(model, tiny.prompt(model), v),
        lambda: kit.residual_scale(model, 1),
        lambda: kit.steer(model, {v: 1.0}).__enter__(),
    ):
        with pytest.raises(ValueError, match=r"training mode.*model\.eval\(\)"):
            use()
    model.eval()
    assert kit.generate(model, tiny.prompt(model), v, max_new_tokens=2).rows


def test_compiled_models(folder: Path) -> None:
    hf = plain(folder)
    same_as(kit.load_model(torch.compile(hf), tokenizer=str(folder)), hf)
    inside = plain(folder)
    inside.model.layers[1] = torch.compile(inside.model.layers[1])
    same_as(kit.load_model(inside, tokenizer=str(folder)), hf)
    place = plain(folder)
    place.compile()
    same_as(kit.load_model(place, tokenizer=str(folder)), hf)


def adapted(folder: Path, **options: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    base = plain(folder)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "up_proj"], **options)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.2)
    return model


def test_a_peft_model_is_merged_into_a_copy(folder: Path) -> None:
    peft = adapted(folder)
    with torch.no_grad():
        before = peft(input_ids=torch.arange(3, 12)[None]).logits
    model = kit.load_model(peft, tokenizer=str(folder))
    same_as(model, peft)
    with torch.no_grad():
        assert torch.equal(peft(input_ids=torch.arange(3, 12)[None]).logits, before)
        assert not torch.allclose(plain(folder)(input_ids=torch.arange(3, 12)[None]).logits, before, atol=1e-2)


def test_a_prompt_tuned_model_is_refused(folder: Path) -> None:
    from peft import PromptTuningConfig, get_peft_model

    peft = get_peft_model(plain(folder), PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match="PROMPT_TUNING"):
        kit.load_model(peft, tokenizer=str(folder))


def test_an_adapter_that_acts_on_some_tokens_only_is_refused(folder: Path) -> None:
    peft = adapted(folder, alora_invocation_tokens=[7, 8], task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match=r"PEFT model \(.*LORA.*\)"):
        kit.load_model(peft, tokenizer=str(folder))


def test_adapters_put_into_a_plain_model_are_refused(folder: Path) -> None:
    from peft import LoraConfig

    hf = plain(folder)
    hf.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="adapters inside"):
        kit.load_model(hf, tokenizer=str(folder))


@pytest.mark.parametrize("thing", [nn.Linear(2, 2), 7, None, {"name": "gpt2"}], ids=["layer", "int", "none", "dict"])
def test_what_is_no_language_model_is_refused(thing: Any) -> None:
    with pytest.raises(TypeError, match=f"name is a {type(thing).__name__}"):
        kit.load_model(thing, tokenizer=tiny.tokenizer())


def test_a_headless_model_a_bridge_and_no_tokenizer_are_refused(folder: Path) -> None:
    hf = plain(folder)
    with pytest.raises(TypeError, match="name is a LlamaModel"):
        kit.load_model(hf.model, tokenizer=str(folder))
    with pytest.raises(ValueError, match="tokenizer=None"):
        kit.load_model(hf)
    with pytest.raises(TypeError, match="tokenizer is a int"):
        kit.load_model(hf, tokenizer=3)
    with pytest.raises(TypeError, match="TransformerBridge"):
        kit.load_model(kit.load_model(str(folder), dtype="float32"), tokenizer=str(folder))
    with pytest.raises(ValueError, match="in memory"):
        kit.load_model(hf, tokenizer=str(folder), untrained=1)


def test_another_dtype_is_a_copy(folder: Path) -> None:
    hf = plain(folder)
    model = kit.load_model(hf, tokenizer=str(folder), dtype="bfloat16")
    assert model.cfg.dtype == torch.bfloat16 and hf.dtype == torch.float32
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kit.generate(model, tiny.prompt(model), max_new_tokens=2).rows


# --- two paths ----------------------------------------------------------------------------------


def test_a_bridge_that_computes_another_model_is_refused_and_the_decode_loop_goes_on(folder: Path) -> None:
    model = kit.load_model(str(folder), dtype="float32")
    v, tokens = tiny.vector(model, 1), tiny.prompt(model)
    right = logits(model, tokens, v, [0.5])
    attention = model.blocks[2].attn
    # what reaches attention through the bridge, and only there, is turned round
    hook = attention.register_forward_hook(lambda _m, _i, out: (-out[0], *out[1:]))
    with (
        pytest.raises(ValueError, match=r"LlamaForCausalLM.*logits differ by .*kit\.generate"),
        kit.steer(model, {v: 0.5}),
    ):
        pass
    assert torch.equal(logits(model, tokens, v, [0.5]), right)
    table = kit.check(model, v, tokens)
    assert [row.ok for row in table.rows if "one model" in row.what] == [False]
    hook.remove()
    assert [row.ok for row in kit.check(model, v, tokens).rows if "one model" in row.what] == [True]


def test_a_wrong_attention_is_replaced_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import CohereConfig

    words = tiny.tokenizer()
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(
        CohereConfig(
            vocab_size=len(words), hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
            initializer_range=0.2, max_position_embeddings=64,
        )
    ).save_pretrained(tmp_path)  # fmt: skip
    words.save_pretrained(tmp_path)
    model = kit.load_model(str(tmp_path), dtype="float32")
    assert "CohereForCausalLM: TransformerLens's attention computes another model" in capsys.readouterr().err
    same_as(model, plain(tmp_path))
    seen = []
    model.run_with_hooks(tiny.prompt(model), fwd_hooks=[("blocks.1.attn.hook_z", lambda z, hook: seen.append(z.shape))])
    assert seen  # its projections are hooked as before


# --- what is no causal language model -----------------------------------------------------------


def refused(folder: Path, config: Any, auto: Any, match: str) -> None:
    torch.manual_seed(0)
    auto.from_config(config).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    with pytest.raises(ValueError, match=match):
        kit.load_model(str(folder), dtype="float32")


def test_a_model_that_reads_ahead_or_has_an_encoder_is_refused(tmp_path: Path) -> None:
    from transformers import AutoModelForMaskedLM, AutoModelForSeq2SeqLM, BertConfig, T5Config

    sizes = {"vocab_size": 300, "num_layers": 2, "num_heads": 4, "d_model": 48, "d_ff": 96, "d_kv": 12}
    t5 = T5Config(**sizes, decoder_start_token_id=0)
    refused(tmp_path / "t5", t5, AutoModelForSeq2SeqLM, "T5Config: the kit steers causal")
    bert = BertConfig(
        vocab_size=300, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
        initializer_range=0.2,
    )  # fmt: skip
    refused(tmp_path / "bert", bert, AutoModelForMaskedLM, "BertLMHeadModel reads ahead")


def test_a_classifier_lacks_its_unembedding(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    refused(tmp_path / "other", plain(folder).config, AutoModelForSequenceClassification, r"missing .*lm_head\.weight")


def test_weights_that_transformer_lens_rewrites_are_still_one_model(folder: Path) -> None:
    model = kit.load_model(str(folder), dtype="float32")
    model.enable_compatibility_mode()  # folds norms, centres the unembedding
    assert kit.check(model, tiny.vector(model, 1), tiny.prompt(model)).rows[0].ok


def test_weights_that_are_not_finite_are_refused_in_memory_too(folder: Path) -> None:
    hf = plain(folder)
    with torch.no_grad():
        hf.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    with pytest.raises(ValueError, match=r"up_proj"):
        kit.load_model(hf, tokenizer=str(folder))
