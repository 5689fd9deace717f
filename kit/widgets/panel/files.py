"""Vectors and factors as files of the panel: a name from the vector, never over another file."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from kit.base.files import header
from kit.base.scratch import keep_new, scratch
from kit.steering.intervention import Intervention
from kit.steering.rank_one import Factor
from kit.steering.vectors import SteeringVector

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def save(vector: Intervention, folder: str | Path = ".") -> Path:
    """Write ``<name>.safetensors``, with a number when that file exists.

    Raises:
        TypeError: it is neither vector nor factor; OSError: the folder cannot be written.
    """
    if not isinstance(vector, SteeringVector | Factor):
        raise TypeError(f"{vector.name!r} is a {type(vector).__name__}: only vectors and factors are saved")
    stem = re.sub(r"[^\w.+@-]+", "-", vector.name)[:80].encode()[:120].decode(errors="ignore")
    sign = "-" if vector.name.startswith(("-", "−")) else ""
    stem = sign + (stem.strip("-.") or "vector")
    with scratch(Path(folder) / f"{stem}.safetensors") as part:
        return keep_new(vector.save(part / "it"), Path(folder), stem, ".safetensors")


def load(path: str, model: TransformerBridge) -> SteeringVector | Factor:
    """Read a vector or a factor of this kit, or a control vector (``.gguf``) of one layer.

    Raises:
        ValueError: no path, or a file that holds something else; FileNotFoundError: no file.
    """
    if not path.strip():
        raise ValueError("give the path of a .safetensors or .gguf file")
    file = Path(path.strip()).expanduser()
    if file.suffix == ".gguf":
        return SteeringVector.from_gguf(file, model)
    return read(file)


def read(file: Path) -> SteeringVector | Factor:
    """Whichever of the two a ``.safetensors`` file holds; errors as theirs."""
    kind: type[SteeringVector | Factor] = SteeringVector
    # what is missing or damaged is for the vector's own loader to explain
    with suppress(OSError, ValueError):
        kind = Factor if "reads" in header(file) else SteeringVector
    return kind.load(file)
