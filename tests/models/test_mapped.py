"""The file of a decoder's weights: a plain safetensors file, in an order of its own, mapped whole."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kit.models import mapped

_NAMES = [
    "model.embed_tokens",
    *(f"model.layers.{i}.self_attn.{part}_proj" for i in (0, 10, 2) for part in "kovq"),
    *(f"model.layers.{i}.mlp.{part}_proj" for i in (0, 10, 2) for part in ("down", "up", "gate")),
    "model.norm",
]


def weights(kind: torch.dtype) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.randn(3 + i, 5).to(kind) for i, name in enumerate(_NAMES)}


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_written_is_read(tmp_path: Path, kind: torch.dtype) -> None:
    file, given = tmp_path / "model.safetensors", weights(kind)
    given["model.norm.weight"] = given["model.norm.weight"].t()  # not as it lies in memory
    mapped.write(given, file)
    for found in (mapped.read(file), load_file(file)):
        assert found.keys() == given.keys()
        assert all(torch.equal(found[name], given[name]) and found[name].dtype == kind for name in given)


def test_a_file_in_the_order_of_names_is_read_too(tmp_path: Path) -> None:
    file, given = tmp_path / "model.safetensors", weights(torch.float32)
    save_file(given, file, metadata={"format": "pt"})
    found = mapped.read(file)
    assert all(torch.equal(found[name], given[name]) for name in given)


def test_what_is_multiplied_together_lies_together(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    for letters in range(1, 9):  # headers of several lengths
        mapped.write({**weights(torch.float32), letters * "x": torch.ones(1)}, file)
        (length,) = struct.unpack("<Q", file.read_bytes()[:8])
        assert (8 + length) % 64 == 0
    found = mapped.read(file)
    assert len({tensor.untyped_storage().data_ptr() for tensor in found.values()}) == 1
    for i in (0, 2, 10):
        for module, names in (("self_attn", "q k v o"), ("mlp", "gate up down")):
            row = [found[f"model.layers.{i}.{module}.{name}_proj.weight"] for name in names.split()]
            assert all(a.data_ptr() + a.nbytes == b.data_ptr() for a, b in zip(row, row[1:], strict=False))


def test_a_write_to_a_tensor_does_not_reach_the_file(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    mapped.write(weights(torch.float32), file)
    before = file.read_bytes()
    mapped.read(file)["model.norm.weight"].zero_()
    assert file.read_bytes() == before and mapped.read(file)["model.norm.weight"].any()


def test_a_damaged_file_says_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError, match="model.safetensors"):
        mapped.read(file)
    mapped.write(weights(torch.float32), file)
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(OSError, match="damaged .* run `kit fetch` again"):
        mapped.read(file)
    save_file({"steps": torch.arange(3)}, file)
    with pytest.raises(OSError, match="damaged"):
        mapped.read(file)
