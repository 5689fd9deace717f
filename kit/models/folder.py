"""A model's folder, looked at before anything is built from it, and the weights that it gave."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.base.files import header, must_exist, read_json, size_at_most

if TYPE_CHECKING:
    from torch import nn

_MOST_TEXT = 2**28  # bytes of a model's config, tokenizer or template
# names of a config's numbers: of modules, each of which has weights, and of sides of the weights
_LAYERS = re.compile(r"(n|num)_(\w+_)?(layers?|blocks?)|attention_types")
_EXPERTS = re.compile(r"(n|num)_(\w+_)?experts?")
_SIDES = re.compile(
    r"n_embd|n_inner|d_\w+|num_labels|\w*_heads?|\w*(hidden|intermediate|ffn|head|vocab|embed)\w*_(size|dim)"
)


def check(folder: Path) -> None:
    """Refuse a folder with a pipe or device for a file, or whose config speaks of a model far
    larger than its weights: transformers would take hours, or all memory, to build that.

    Raises:
        OSError: a file is no ordinary one; ValueError: a file is too long or damaged, or names the
            number.
    """
    for file in folder.iterdir():
        if file.suffix in (".json", ".jinja", ".txt", ".model"):
            size_at_most(file, _MOST_TEXT)
        elif file.suffix in (".safetensors", ".bin", ".pt", ".gguf"):
            must_exist(file)
    shapes = [shape for file in folder.glob("*.safetensors") for shape, _ in header(file).values()]
    if not shapes or not (folder / "config.json").is_file():
        return
    n, widest = len(shapes), max((n for shape in shapes for n in shape), default=0)
    bounds = ((_LAYERS, n), (_EXPERTS, max(n, widest)), (_SIDES, max(64 * widest, 2**16)))
    for name, value in _numbers(read_json(folder / "config.json")):
        if any(kind.fullmatch(name) and not 0 <= value <= most for kind, most in bounds):
            raise ValueError(
                f"{folder / 'config.json'}: {name}={value:.6g}, and the weights beside it are {n} tensors, "
                f"the widest of {widest} rows: give the config that belongs to them"
            )


def _numbers(config: Any) -> Iterator[tuple[str, int]]:
    """Every whole number in a config, and the name that it stands under."""
    left = [("", config)]
    while left:
        name, value = left.pop()
        if isinstance(value, dict):
            left += value.items()
        elif isinstance(value, list):
            left += [(name, each) for each in value]
        elif isinstance(value, int) and not isinstance(value, bool):
            yield name, value


def check_finite(model: nn.Module, name: str) -> None:
    """Refuse weights that are no numbers, with which every text would be the same nonsense.

    Raises:
        ValueError: names the first weight that holds NaN or infinity.
    """
    import torch

    for weight, tensor in model.named_parameters():
        if tensor.dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16) and tensor.numel():
            if not all(bool(end.isfinite()) for end in tensor.detach().aminmax()):  # no mask as large as itself
                raise ValueError(f"name={name!r}: its weight {weight} holds NaN or infinity: the file is damaged")
