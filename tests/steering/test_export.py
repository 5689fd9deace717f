"""Out to serving: baked-in vectors give the steered model's logits in plain transformers."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig, Qwen2Config

import kit
from kit.steering.export import export_bias
from tests import tiny

SIZES = {
    "vocab_size": 300,
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


def saved(folder: Path, config: Any) -> Any:
    """A random model of any config, with a tokenizer, loaded by the kit."""
    words = tiny.tokenizer(adds_bos=True)
    config.vocab_size = len(words)
    torch.manual_seed(3)
    made = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if name.endswith("bias"):
                weight.normal_(0, 0.1)
    made.save_pretrained(folder)
    words.save_pretrained(folder)
    return kit.load_model(str(folder), dtype="float32")


def served(folder: Path, tokens: torch.Tensor, **options: Any) -> torch.Tensor:
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(folder, **options)
        return plain(tokens).logits.float()


def steered(model: Any, tokens: torch.Tensor, doses: Any) -> torch.Tensor:
    with torch.no_grad(), kit.steer(model, doses, positions="all"):
        return model(tokens).float()


def doses_of(model: Any) -> dict[Any, float]:
    """Two vectors after the first block, one after a later one, one after the last."""
    return {
        tiny.vector(model, 0): 0.4,
        tiny.vector(model, 0, 1): -0.7,
        tiny.vector(model, 2, 2, norm=1.5): 0.5,
        tiny.vector(model, 3, 3): 0.3,
    }


def same_logits(folder: Path, model: Any) -> None:
    doses, tokens = doses_of(model), tiny.prompt(model, 20)
    want, found = steered(model, tokens, doses), served(export_bias(folder, model, doses), tokens)
    assert (want - model(tokens)).abs().max() > 0.5  # the vectors do something
    assert torch.allclose(found, want, atol=2e-5 * float(want.abs().max()))


def test_plain_transformers_gives_the_steered_logits(model: Any, tmp_path: Path) -> None:
    same_logits(tmp_path / "out", model)


@pytest.mark.parametrize("kind", ["qwen2", "mistral", "tied"])
def test_models_without_the_switch_are_written_as_llama(kind: str, tmp_path: Path) -> None:
    config = {
        "qwen2": lambda: Qwen2Config(**SIZES, tie_word_embeddings=False),
        "mistral": lambda: MistralConfig(**SIZES, sliding_window=None, head_dim=12),
        "tied": lambda: Qwen2Config(**SIZES, tie_word_embeddings=True),
    }[kind]()
    model = saved(tmp_path / "base", config)
    same_logits(tmp_path / "out", model)
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert told["architectures"] == ["LlamaForCausalLM"] and told["mlp_bias"] is True
    assert told["attention_bias"] is (kind != "mistral")
    assert told["tie_word_embeddings"] is (kind == "tied")


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
ROPES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # kind, what is set, what 4 reads
    "gpt2": ("gpt2", {}, {}),
    "llama": ("llama", {"rope_theta": 1e5, "rope_type": "default"}, {"rope_theta": 1e5}),
    "llama 3": ("llama", {"rope_theta": 5e5, "rope_type": "llama3"} | LLAMA3, {"rope_theta": 5e5}),
    "linear": ("llama", {"rope_theta": 2e4, "rope_type": "linear", "factor": 4.0}, {"rope_theta": 2e4}),
    "neox": (
        "neox",
        {"rope_theta": 5e4, "rope_type": "default", "partial_rotary_factor": 0.5},
        {"rotary_emb_base": 5e4, "rotary_pct": 0.5},
    ),
}
BY_4 = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, __version__
assert __version__.startswith("4."), __version__
model, words = (kind.from_pretrained(sys.argv[1]) for kind in (AutoModelForCausalLM, AutoTokenizer))
tokens, want, text, ids = torch.load(sys.argv[2])
with torch.no_grad():
    off = (model(tokens).logits - want).abs().max() / want.abs().max()
assert off < 2e-5, f"logits are off by {off:.2g}"
assert words(text).input_ids == ids
"""


@pytest.mark.parametrize("case", ROPES)
def test_transformers_4_reads_the_same_model(case: str, tmp_path: Path) -> None:
    """It reads no rope_parameters, and takes its own default for what it does not find.

    KIT_TRANSFORMERS_4 names an interpreter that has it (4.57.6 was tried), to run it there too."""
    kind, rope, wanted = ROPES[case]
    more = {"rope_parameters": rope} if rope else {}
    model = tiny.load(tmp_path / "base", kind, chat=True, **more)
    v, tokens = tiny.vector(model, 1), tiny.prompt(model, 40)
    want = steered(model, tokens, {v: 0.5})
    folder = export_bias(tmp_path / "out", model, {v: 0.5})
    assert torch.allclose(served(folder, tokens), want, atol=2e-5 * float(want.abs().max()))  # in 5
    told = json.loads((folder / "config.json").read_text())
    scaling = rope if rope.get("rope_type", "default") != "default" else None
    assert {name: told.get(name) for name in wanted} == wanted and told.get("rope_scaling") == scaling
    assert told.get("rope_parameters", {}) == rope
    assert json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    if python := os.environ.get("KIT_TRANSFORMERS_4"):
        ids = model.tokenizer("A small boat").input_ids
        torch.save((tokens, want, "A small boat", ids), tmp_path / "want.pt")
        alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [python, "-c", BY_4, str(folder), str(tmp_path / "want.pt")]
        subprocess.run(command, check=True, env=alone, timeout=300)


def test_special_tokens_are_named_as_both_majors_do(tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "base", "llama")
    words = AutoTokenizer.from_pretrained(base)
    words.add_special_tokens({"additional_special_tokens": ["<bos>", "<pad>"]})
    words.save_pretrained(base)
    model = kit.load_model(str(base), dtype="float32")
    told = json.loads(
        (
            export_bias(tmp_path / "out", model, {tiny.vector(model, 1): np.float32(0.5)}) / "tokenizer_config.json"
        ).read_text()
    )
    assert told["additional_special_tokens"] == ["<bos>", "<pad>"]  # 4 wants a mapping under the other name
    assert not isinstance(told.get("extra_special_tokens"), list)
    assert set(AutoTokenizer.from_pretrained(tmp_path / "out").all_special_tokens) == {"<bos>", "<eos>", "<pad>"}


def test_only_the_named_bias_is_not_zero(llama: Any, tmp_path: Path) -> None:
    v = tiny.vector(llama, 2)
    folder = export_bias(tmp_path / "out", llama, {v: -0.5})
    with safe_open(folder / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    step = -0.5 * kit.residual_scale(llama, 2) * v.direction
    assert torch.allclose(tensors.pop("model.layers.2.mlp.down_proj.bias"), step)
    biases = [name for name in tensors if name.endswith("bias")]
    assert len(biases) == 4 * 3 - 1 and not any(tensors[name].any() for name in biases)
    base = AutoModelForCausalLM.from_pretrained(llama.cfg.kit_folder).state_dict()
    assert all(torch.equal(tensors[name], weight) for name, weight in base.items())


def test_the_folder_is_whole_and_says_what_is_in_it(llama: Any, tmp_path: Path) -> None:
    v = tiny.vector(llama, 1)
    object.__setattr__(v, "name", "a|b <script>\n# x")
    folder = export_bias(tmp_path / "deep" / "out", llama, {v: 0.25})
    assert {path.name for path in folder.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "README.md",
        "tokenizer.json",
    }
    assert not [p for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pkl")]
    assert [p.name for p in folder.parent.iterdir()] == ["out"]  # nothing temporary is left
    card = (folder / "README.md").read_text()
    assert r"| a\|b \<script\> \# x | +0.25 | 1 |" in card and kit.fingerprint(llama) in card
    assert AutoTokenizer.from_pretrained(folder)("kettle").input_ids == llama.tokenizer("kettle").input_ids
    with pytest.raises(FileExistsError, match="there already"):
        export_bias(folder, llama, {v: 0.25})


def test_a_failed_write_leaves_nothing(llama: Any, tmp_path: Path, monkeypatch: Any) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(type(llama.tokenizer), "save_pretrained", full)
    with pytest.raises(OSError, match="No space"):
        export_bias(tmp_path / "out", llama, {tiny.vector(llama, 1): 0.25})
    assert not list(tmp_path.iterdir())


def test_bfloat16_keeps_the_step(llama: Any, tmp_path: Path) -> None:
    v, tokens = tiny.vector(llama, 1), tiny.prompt(llama, 20)
    folder = export_bias(tmp_path / "out", llama, {v: 0.4}, dtype="bfloat16")
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    want = steered(llama, tokens, {v: 0.4})
    off = (served(folder, tokens, dtype=torch.float32) - want).abs().mean()
    # all weights have eight bits here; to be compared with what the step does
    assert off < 0.1 * (llama(tokens) - want).abs().mean()


def test_a_step_that_would_be_rounded_away_is_refused(tiny_model: Any, tmp_path: Path) -> None:
    model = tiny_model("gpt2")  # in eight bits its biases of 0.1 swallow so small a step
    small = {tiny.vector(model, 1): 1e-5}
    with pytest.raises(ValueError, match=r"dtype='bfloat16' would change the step at layer 1 by"):
        export_bias(tmp_path / "out", model, small, dtype="bfloat16")
    with pytest.raises(ValueError, match=r"dtype='float16' would change"):  # it is infinite there
        export_bias(tmp_path / "out", model, {tiny.vector(model, 1): 1e6}, dtype="float16")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_baked_in_is_refused(llama: Any, gemma: Any, tmp_path: Path) -> None:
    v, out = tiny.vector(llama, 1), tmp_path / "out"
    sliding = saved(
        tmp_path / "base", Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=0)
    )
    cases = [
        (llama, {}, "give at least one vector"),
        (llama, {v: float("nan")}, "coefficient=nan of 'v0@1': give one finite number"),
        (llama, {v: [0.1, 0.2]}, "give one finite number"),
        (llama, {v: 0.0}, "add up to nothing"),
        (llama, {tiny.HeadShift([1]): 1.0}, "acts at 'z', which no bias does"),
        (gemma, {tiny.vector(gemma, 1): 1.0}, "model_type='gemma2'.*llama, and qwen2 and mistral"),
        (sliding, {tiny.vector(sliding, 1): 1.0}, "model_type='qwen2' with a sliding window"),
        (sliding, {v: 1.0}, "was made on model"),
    ]
    for model, doses, said in cases:
        with pytest.raises(ValueError, match=said):
            export_bias(out, model, doses)
    with pytest.raises(ValueError, match="dtype='int8': use 'float32'"):
        export_bias(out, llama, {v: 0.1}, dtype="int8")
    assert not out.exists()
