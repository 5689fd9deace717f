"""GGUF control vectors: the file format that llama.cpp and repeng share.

llama.cpp adds ``direction.{n}`` to the residual stream at the end of block n (counted from 0) and
has no ``direction.0`` (``common_control_vector_load``, ``llama_adapter_cvec``); repeng numbers its
layers the same way. So the kit's ``layer`` is the file's number, and layer 0 cannot be exported.
The file holds activations: exports are multiplied by the residual scale, so that
``--control-vector-scaled file.gguf:0.5`` means the kit's coefficient 0.5
(``tests/benchmarks/llama_cpp.py`` compares the two; older versions take ``file.gguf 0.5``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kit.base.files import junk, read_bytes, whole

_ARCHITECTURE = "controlvector"
_MOST = 2**28  # bytes of a file: 1024 layers of width 65,536
_MOST_TENSORS, _MOST_FIELDS, _MOST_TEXT = 1024, 256, 2**16
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # of GGUF's numbers
_TEXT, _LIST = 8, 9


def write(path: str | Path, steps: Mapping[int, Tensor], model_hint: str) -> Path:
    """Write what is added after some blocks as one control vector, then read the file back.

    Args:
        steps: block index -> ``[d_model]``, float32, in activation units.
        model_hint: the architecture's name, as llama.cpp's files have it.

    Raises:
        ValueError: no steps, or one after block 0; OSError: the file does not read back.
    """
    from gguf import GGUFWriter

    if not steps:
        raise ValueError("steps={}: give at least one layer")
    if 0 in steps:
        raise ValueError(
            f"steps={sorted(steps)}: layer 0 cannot be exported, since llama.cpp's control vectors start at layer 1"
        )
    with whole(path) as part:
        writer = GGUFWriter(str(part), _ARCHITECTURE)
        writer.add_string(f"{_ARCHITECTURE}.model_hint", model_hint)
        writer.add_uint32(f"{_ARCHITECTURE}.layer_count", len(steps))
        for layer, step in steps.items():
            writer.add_tensor(f"direction.{layer}", step.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        again = read(part)
        if again.keys() != steps.keys() or not all(map(torch.equal, again.values(), steps.values())):
            raise OSError(f"{path} does not read back as it was written")
    return Path(path)


def read(path: str | Path) -> dict[int, Tensor]:
    """The steps of a control vector of llama.cpp or repeng: block index -> ``[width]``, float32.

    Raises:
        FileNotFoundError: no such file; ValueError: not a GGUF control vector, or a damaged one.
    """
    from gguf import GGUFReader

    raw = read_bytes(path, _MOST)
    try:
        with np.errstate(over="ignore"), junk("its header"):
            _check_header(raw)
            reader = GGUFReader(str(path))
            kind = reader.fields["general.architecture"].contents()
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is damaged or no GGUF file: {error}") from error
    if kind != _ARCHITECTURE:
        raise ValueError(f"{path} holds a {kind!r} model, not a {_ARCHITECTURE!r}")
    steps = {}
    for tensor in reader.tensors:
        word, _, number = tensor.name.partition(".")
        if word != "direction" or not number.isdecimal() or len(number) > 4:
            raise ValueError(f"{path} has a tensor {tensor.name!r}; expected direction.<layer>")
        steps[int(number)] = torch.tensor(tensor.data, dtype=torch.float32)
    return steps


def _check_header(content: bytes) -> None:
    """Walk over a GGUF header in steps, since the reader visits every number of a list one by one.

    Raises:
        ValueError: no GGUF header, more tensors, fields or text than a control vector has, or an
            end within the header.
    """
    version = content[4:8]
    order: Any = "big" if version[:2] == b"\0\0" else "little"
    at = 8

    def number(size: int) -> int:
        nonlocal at
        if at + size > len(content):
            raise ValueError("it ends within its header")
        at += size
        return int.from_bytes(content[at - size : at], order)

    def skip(size: int) -> None:
        if size > _MOST_TEXT:
            raise ValueError(f"a field of {size} bytes")
        number(size)

    if content[:4] != b"GGUF" or len(version) < 4:
        raise ValueError("it does not begin as a GGUF file does")
    tensors, fields = number(8), number(8)
    if tensors > _MOST_TENSORS or fields > _MOST_FIELDS:
        raise ValueError(f"{tensors} tensors and {fields} fields; at most {_MOST_TENSORS} and {_MOST_FIELDS} are read")
    for _ in range(fields):
        skip(number(8))
        kind, count = number(4), 1
        if kind == _LIST:
            kind, count = number(4), number(8)
            if count > _MOST_TEXT or kind == _LIST:
                raise ValueError(f"a list of {count} values of kind {kind}")
        if kind == _TEXT:
            for _ in range(count):
                skip(number(8))
        elif kind in _SIZES:
            skip(count * _SIZES[kind])
        else:
            raise ValueError(f"a value of kind {kind}")
