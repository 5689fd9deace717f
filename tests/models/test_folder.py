"""A model's folder that somebody made: looked at before anything is built from it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import kit
from kit.models import folder
from tests import tiny


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def good(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture
def told(good: Path) -> Any:
    """The config of the folder; whatever a test writes there, it is put back."""
    before = (good / "config.json").read_text()
    yield json.loads(before)
    (good / "config.json").write_text(before)


def names(told: dict[str, Any], what: str) -> str:
    return {"layers": {"gpt2": "n_layer"}, "width": {"gpt2": "n_embd"}}[what].get(
        told["model_type"], {"layers": "num_hidden_layers", "width": "hidden_size"}[what]
    )


@pytest.mark.parametrize("value", [10**6, 10**12, 54, -1])
def test_more_layers_than_the_weights_have(good: Path, told: Any, value: int) -> None:
    folder.check(good)
    name = names(told, "layers")
    (good / "config.json").write_text(json.dumps(told | {name: value}))
    with pytest.raises(ValueError, match=rf"{name}=.*and the weights beside it are \d\d tensors"):
        kit.load_model(str(good), dtype="float32")


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 10**9},
        {"num_labels": 10**9},
        {"head_dim": 10**6},
        {"num_attention_heads": 10**8},
        {"num_local_experts": 10**6},
        {"n_routed_experts": 10**6},
        {"text_config": {"num_hidden_layers": 10**6}},
        {"vision_config": {"num_hidden_layers": 10**6}},
        {"attention_types": [[["global"], 10**9]]},
        {"intermediate_size": [96, 10**9]},
        {"moe_intermediate_size": -5},
    ],
    ids=str,
)
def test_other_numbers_that_build_a_giant(good: Path, told: Any, changes: Any) -> None:
    (good / "config.json").write_text(json.dumps(told | changes))
    with pytest.raises(ValueError, match="give the config that belongs to them"):
        folder.check(good)


def test_numbers_that_build_nothing_may_be_large(good: Path, told: Any) -> None:
    free = {"max_position_embeddings": 10**7, "eos_token_id": [10**6], "rope_theta": 10**9, "sliding_window": 10**6}
    (good / "config.json").write_text(json.dumps(told | free))
    folder.check(good)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "more.safetensors", "old.bin"])
@pytest.mark.parametrize("what", ["pipe", "device"])
def test_a_pipe_or_device_in_the_folder_is_not_opened(tmp_path: Path, good: Path, name: str, what: str) -> None:
    for file in good.iterdir():
        if file.name != name:
            (tmp_path / file.name).symlink_to(file)  # links to ordinary files, as the hub's cache has them
    folder.check(tmp_path)
    os.mkfifo(tmp_path / name) if what == "pipe" else (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(OSError, match=r"ordinary file|holds no config\.json"):
        kit.load_model(str(tmp_path), dtype="float32")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_named(good: Path, tmp_path: Path, value: float) -> None:
    for file in good.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(good / "model.safetensors")
    name = sorted(weights)[5]
    weights[name].view(-1)[3] = value
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=rf"{name.rpartition('.')[2]} holds NaN or infinity"):
        kit.load_model(str(tmp_path), dtype="float32")


def test_every_float_dtype_is_looked_at() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        layer = torch.nn.Linear(3, 3).to(dtype)
        folder.check_finite(layer, "it")
        layer.bias.data[2] = torch.nan
        with pytest.raises(ValueError, match="its weight bias holds NaN"):
            folder.check_finite(layer, "it")
