"""Vector files as the panel handles them: a name from the vector, never over another file."""
from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from kit.vectors import SteeringVector

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def save(vector: SteeringVector, folder: str | Path = ".") -> Path:
    """Write ``<name>.safetensors``, with a number when that file exists.

    Raises:
        TypeError: it is no steering vector; OSError: the folder cannot be written.
    """
    if not isinstance(vector, SteeringVector):
        raise TypeError(f"{vector.name!r} is a {type(vector).__name__}: only vectors are saved")
    stem = re.sub(r"[^\w.+@-]+", "-", vector.name).strip("-.")[:80] or "vector"
    path, n = Path(folder) / f"{stem}.safetensors", 1
    while path.exists():
        n += 1
        path = Path(folder) / f"{stem}-{n}.safetensors"
    return vector.save(path)


def load(path: str, model: TransformerBridge) -> SteeringVector:
    """Read a vector of this kit, or a control vector (``.gguf``) of one layer.

    Raises:
        ValueError: no path, or a file that holds something else; FileNotFoundError: no file.
    """
    if not path.strip():
        raise ValueError("give the path of a .safetensors or .gguf file")
    file = Path(path.strip()).expanduser()
    if file.suffix == ".gguf":
        return SteeringVector.from_gguf(file, model)
    return SteeringVector.load(file)
