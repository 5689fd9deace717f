"""Adapters: written and read back, merged at load, and nothing else changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import kit
from kit.models import lora
from tests import tiny

NAMES = {
    "llama": "model.layers.1.self_attn.o_proj",
    "gpt2": "transformer.h.1.attn.c_proj",
    "neox": "gpt_neox.layers.1.attention.dense",
}


# what PEFT 0.21 and older have beside plain LoRA: another base, other sums, or at other times
CHANGING: dict[str, Any] = {
    "alora_invocation_tokens": [5, 6],
    "alpha_pattern": {"q": 4},
    "arrow_config": {"top_k": 2},
    "corda_config": {"corda_method": "ipm"},
    "ensure_weight_tying": True,
    "kasa_config": {"beta": 1e-4},
    "layer_replication": [[0, 2], [1, 4]],
    "loftq_config": {"loftq_bits": 4},
    "lora_bias": True,
    "lora_ga_config": {"direction": "ArB2r"},
    "megatron_config": {"tensor_model_parallel_size": 2},
    "monteclora_config": {"num_samples": 4},
    "target_parameters": ["experts.down_proj"],
    "trainable_token_indices": [4],
    "use_bdlora": {"nblocks": 2},
    "use_dora": True,
    "use_qalora": True,
    "velora_config": {"num_groups": 2},
    "an_option_of_tomorrow": 3,
}


def make(folder: Path, *names: str, rank: int = 3, **options: Any) -> Path:
    rng = torch.Generator().manual_seed(0)
    pairs = {name: (torch.randn(rank, 48, generator=rng), torch.randn(48, rank, generator=rng)) for name in names}
    return lora.write(folder, pairs, base="tiny", **options)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    a, b = torch.randn(2, 5), torch.randn(7, 2)
    lora.write(tmp_path / "new" / "x", {"model.layers.0.q": (a, b)}, base="m", scale=0.3)
    found = lora.read(tmp_path / "new" / "x")
    assert found.base == "m"
    torch.testing.assert_close(found.delta("model.layers.0.q"), 0.3 * b @ a)
    config = json.loads((tmp_path / "new" / "x" / lora.CONFIG).read_text())
    assert config["peft_type"] == "LORA" and config["r"] == 2
    keys = set(load_file(tmp_path / "new" / "x" / lora.WEIGHTS))
    stem = "base_model.model.model.layers.0.q.lora_"
    assert keys == {f"{stem}A.weight", f"{stem}B.weight"}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "neox"])
def test_merging_changes_the_adapted_matrix_and_nothing_else(kind: str, tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "base", kind)
    before = (base / "model.safetensors").read_bytes()
    folder = make(tmp_path / "lora", NAMES[kind], scale=0.5)
    model = kit.load_model(str(base), adapter=folder)
    plain = kit.load_model(str(base), dtype="float32")
    delta = lora.read(folder).delta(NAMES[kind])
    state, old = (dict(kit.models.runtime(m).decoder.named_parameters()) for m in (model, plain))
    for name, weight in state.items():
        change = delta if name == f"{NAMES[kind]}.weight" else torch.zeros(())
        change = change.T if kind == "gpt2" and change.dim() else change
        torch.testing.assert_close(weight, old[name] + change, rtol=0, atol=1e-6)
    assert (base / "model.safetensors").read_bytes() == before
    assert kit.fingerprint(model) != kit.fingerprint(plain)
    tokens = tiny.prompt(model)
    assert not torch.allclose(model(tokens), plain(tokens))
    torch.testing.assert_close(kit.generation.logits(model, tokens), model(tokens))


def test_a_merged_model_computes_with_b_a_x(tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "base", "llama")
    folder = make(tmp_path / "lora", NAMES["llama"], scale=0.5)
    model = kit.load_model(str(base), adapter=folder)
    plain = kit.load_model(str(base), dtype="float32")
    a, b = lora.read(folder).factors[NAMES["llama"]]
    mixer = kit.models.runtime(plain).projection(1, "attn_out")
    hook = mixer.register_forward_hook(lambda _m, x, out: out + 0.5 * (x[0] @ a.T) @ b.T)
    tokens = tiny.prompt(model)
    with torch.no_grad():
        expected = kit.models.runtime(plain).decoder(tokens).logits
    hook.remove()
    torch.testing.assert_close(model(tokens), expected, rtol=1e-4, atol=1e-4)


def test_only_float32_is_merged(tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "base", "llama")
    folder = make(tmp_path / "lora", NAMES["llama"])
    with pytest.raises(ValueError, match=r"dtype='bfloat16' with an adapter.*float32"):
        kit.load_model(str(base), adapter=folder, dtype="bfloat16")
    assert kit.load_model(str(base), adapter=folder).cfg.dtype == torch.float32
    layer = torch.nn.Module()
    layer.model = torch.nn.Linear(48, 48, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"dtype=torch.bfloat16"):
        lora.merge(layer, make(tmp_path / "other", "model"))


def test_a_model_of_another_shape_is_refused_and_left_alone(tmp_path: Path) -> None:
    layers = torch.nn.Module()
    layers.one, layers.two = torch.nn.Linear(48, 48), torch.nn.Linear(48, 50)
    before = layers.one.weight.clone()
    with pytest.raises(ValueError, match=r"'two' as \[48, 48\], which here has \[50, 48\]"):
        lora.merge(layers, make(tmp_path / "a", "one", "two"))
    assert torch.equal(layers.one.weight, before)
    with pytest.raises(ValueError, match=r"no matrix 'three'; its base is 'tiny'"):
        lora.merge(layers, make(tmp_path / "b", "three"))


def test_nothing_is_written_into_the_old_storage(tmp_path: Path) -> None:
    layers = torch.nn.Module()
    layers.one = torch.nn.Linear(48, 48).requires_grad_(False)
    old = layers.one.weight
    before = old.clone()
    assert lora.merge(layers, make(tmp_path, "one")) == ["one"]
    assert torch.equal(old, before) and not torch.equal(layers.one.weight, before)
    assert not layers.one.weight.requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3', not LORA"),
        ({"use_dora": True}, "use_dora=True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias='all'"),
        *(
            ({"init_lora_weights": start}, f"init_lora_weights='{start}': it belongs to a base that was changed")
            for start in ("pissa", "pissa_niter_16", "olora", "OLoRA", "corda", "loftq", "lora_ga", "something new")
        ),
        *(({option: value}, f"{option}=.*: not supported") for option, value in CHANGING.items()),
    ],
)
def test_other_kinds_of_adapters_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    make(tmp_path, "one")
    config = json.loads((tmp_path / lora.CONFIG).read_text()) | change
    (tmp_path / lora.CONFIG).write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        lora.read(tmp_path)


@pytest.mark.parametrize("start", [True, False, None, "gaussian", "eva", "orthogonal", "mica"])
def test_starts_that_leave_the_base_alone_are_read(start: Any, tmp_path: Path) -> None:
    """As PEFT writes it: every option stands in the file, those that are off as null or empty."""
    make(tmp_path, "one")
    off = {name: type(value)() if isinstance(value, dict | bool) else None for name, value in CHANGING.items()}
    plain = {"r": 3, "megatron_core": "megatron.core", "qalora_group_size": 16, "peft_version": "0.21.2"}
    plain |= {"rank_pattern": {"two": 8}, "layers_to_transform": [0], "lora_dropout": 0.1, "revision": "main"}
    config = json.loads((tmp_path / lora.CONFIG).read_text()) | off | plain | {"init_lora_weights": start}
    (tmp_path / lora.CONFIG).write_text(json.dumps(config))
    assert list(lora.read(tmp_path).factors) == ["one"]


def test_rank_stabilised_adapters_scale_by_the_root(tmp_path: Path) -> None:
    make(tmp_path, "one", rank=4)
    config = json.loads((tmp_path / lora.CONFIG).read_text())
    config |= {"use_rslora": True, "lora_alpha": 6}
    (tmp_path / lora.CONFIG).write_text(json.dumps(config))
    assert lora.read(tmp_path).scales["one"] == 3.0


def test_broken_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"holds no adapter_config.json"):
        lora.read(tmp_path / "nowhere")
    make(tmp_path, "one")
    tensors = load_file(tmp_path / lora.WEIGHTS)
    stem = "base_model.model.one.lora_"
    cases = [
        ({f"{stem}A.weight": tensors[f"{stem}A.weight"]}, "'one' has lora_A alone"),
        (tensors | {"base_model.model.head.weight": torch.zeros(2, 2)}, "is no LoRA factor"),
        (tensors | {f"{stem}B.weight": torch.full((48, 3), float("nan"))}, "not finite"),
        (tensors | {f"{stem}B.weight": torch.zeros(48, 2)}, r"A \[3, 48\] and B \[48, 2\]"),
    ]
    for content, message in cases:
        save_file(content, tmp_path / lora.WEIGHTS)
        with pytest.raises(ValueError, match=message):
            lora.read(tmp_path)
    (tmp_path / lora.WEIGHTS).write_bytes(b"cut")
    with pytest.raises(OSError, match="cannot be read"):
        lora.read(tmp_path)


def test_factors_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    a, b = torch.ones(2, 4), torch.ones(4, 2)
    for factors, options, message in [
        ({}, {}, "at least one"),
        ({"x": (a, b[:, :1])}, {}, r"A \[2, 4\] and B \[4, 1\] of 'x'"),
        ({"x": (a, b), "y": (a[:1], b[:, :1])}, {}, r"ranks \[1, 2\]"),
        ({"x": (a, b)}, {"scale": float("inf")}, "scale=inf"),
        ({"x": (a * 1e6, b)}, {"dtype": torch.float16}, "A of 'x' is not finite in torch.float16"),
    ]:
        with pytest.raises(ValueError, match=message):
            lora.write(tmp_path / "z", factors, base="m", **options)
    assert not (tmp_path / "z").exists()
