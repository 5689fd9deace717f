"""The file of a decoder's weights: arranged as they are multiplied, mapped as one piece of memory.

safetensors stores tensors in the order of their names, from wherever its header happens to end.
Here matrices that multiply the same activations lie one after the other, so that
:class:`kit.models.fast_linear.Joined` multiplies them as one, and the first tensor begins at a
multiple of 64 bytes, a cache line. It is a plain safetensors file for everybody else.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from kit.base.files import header

_KINDS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_FIRST = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")  # of a module, in this order
_LINE = 64  # bytes


def write(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write tensors of a Llama, by their names in transformers, in the order of their use.

    Raises:
        OSError: the disk is full or the file cannot be written.
    """
    names = {kind: name for name, kind in _KINDS.items()}
    about: dict[str, object] = {"__metadata__": {"format": "pt"}}
    order, at = sorted(tensors, key=_place), 0
    for name in order:
        tensor = tensors[name]
        about[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    text = json.dumps(about, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _LINE)
    with file.open("wb") as part:
        part.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            part.write(tensors[name].detach().contiguous().view(-1).view(torch.uint8).numpy().data)


def _place(name: str) -> tuple[list[str], int, str]:
    *path, module, _ = ["", *name.split(".")]
    return path, _FIRST.index(module) if module in _FIRST else len(_FIRST), module


def read(file: Path, device: torch.device | None = None) -> dict[str, Tensor]:
    """The tensors of a file by name, all of them views of one storage: the file's own pages on the
    CPU, which every process shares until it writes to them; a copy elsewhere.

    Raises:
        OSError: there is no such file, or it is damaged.
    """
    import numpy as np

    try:
        found = {name: (shape, _KINDS[kind]) for name, (shape, kind) in header(file).items()}
    except (ValueError, KeyError) as error:
        raise OSError(f"{file} is damaged ({error}): run `kit fetch` again") from error
    sizes = [prod(shape) * kind.itemsize for shape, kind in found.values()]
    whole = torch.from_numpy(np.memmap(file, np.uint8, "c", file.stat().st_size - sum(sizes))).to(device or "cpu")
    parts = whole.split(sizes)
    return {name: part.view(kind).view(shape) for (name, (shape, kind)), part in zip(found.items(), parts, strict=True)}
