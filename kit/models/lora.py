"""LoRA adapters in the format of the PEFT library: read, merged into a model at load, written.

A folder holds ``adapter_config.json`` and ``adapter_model.safetensors``. For a matrix W
``[out, in]`` of the module ``model.layers.0.mlp.up_proj`` the file has two tensors,
``base_model.model.model.layers.0.mlp.up_proj.lora_A.weight`` ``[r, in]`` and ``...lora_B.weight``
``[out, r]``, and the adapted model computes with W + (lora_alpha / r) B A (Hu et al. 2021,
"LoRA", section 4.1). PEFT itself is not needed, and opens what is written here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from kit.base.files import header_at_most, read_json
from kit.base.scratch import as_umask, locked, scratch

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
# options of PEFT that change nothing of W + scale * B A; every other one must be empty
_PLAIN = frozenset(
    "auto_mapping base_model_name_or_path bias eva_config exclude_modules fan_in_fan_out inference_mode "
    "init_lora_weights layers_pattern layers_to_transform lora_alpha lora_dropout megatron_core parent_library "
    "peft_type peft_version qalora_group_size r rank_pattern revision runtime_config target_modules task_type "
    "use_rslora".split()
)
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")  # others take a part out of W


@dataclass(frozen=True)
class Adapter:
    """What a folder holds: for each module's name A ``[r, in]`` and B ``[out, r]``, float32."""

    factors: dict[str, tuple[Tensor, Tensor]]
    scales: dict[str, float]
    base: str

    def delta(self, module: str) -> Tensor:
        """What is added to a module's matrix, ``[out, in]`` float32."""
        a, b = self.factors[module]
        return self.scales[module] * (b @ a)


def read(path: str | Path) -> Adapter:
    """Read an adapter folder.

    Raises:
        OSError: one of its two files is missing or cannot be read.
        ValueError: it holds something other than plain LoRA factors: another kind of adapter, an
            option that changes the base, what is computed or when, or that the kit does not know, a
            factor without its partner, factors that do not fit together, or a number that is not
            finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(path)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise OSError(f"adapter={str(path)!r}: this folder holds no {name}")
    try:
        config = read_json(folder / CONFIG)
        header_at_most(folder / WEIGHTS)
        tensors = load_file(folder / WEIGHTS)
    except (ValueError, SafetensorError) as error:
        raise OSError(f"adapter={str(path)!r} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"adapter={str(path)!r}: {CONFIG} holds no JSON object")
    if config.get("peft_type") != "LORA":
        raise ValueError(f"adapter={str(path)!r}: peft_type={config.get('peft_type')!r}, not LORA")
    for option, value in config.items():
        if value and option not in _PLAIN:
            raise ValueError(f"adapter={str(path)!r}: {option}={value!r:.80}: not supported")
    start = config.get("init_lora_weights")
    if start not in _STARTS:
        raise ValueError(
            f"adapter={str(path)!r}: init_lora_weights={start!r:.40}: it belongs to a base that was changed when its "
            "training began; save it as plain LoRA (path_initial_model_for_weight_conversion in PEFT)"
        )
    if config.get("bias", "none") != "none":
        raise ValueError(f"adapter={str(path)!r}: bias={config['bias']!r}; only 'none' is plain")
    factors = _pairs(str(path), tensors)
    root = math.sqrt if config.get("use_rslora") else float
    alpha = config.get("lora_alpha")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not abs(alpha) < 1e9:
        raise ValueError(f"adapter={str(path)!r}: lora_alpha={alpha!r:.40}: expected a number")
    scales = {module: alpha / root(len(a)) for module, (a, _) in factors.items()}
    return Adapter(factors, scales, str(config.get("base_model_name_or_path")))


def _pairs(path: str, tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    sides: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, mark, side = key.removesuffix(".weight").rpartition(".lora_")
        if not mark or side not in ("A", "B") or not name.startswith(_PREFIX) or tensor.dim() != 2:
            raise ValueError(f"adapter={path!r}: {key!r} {list(tensor.shape)} is no LoRA factor")
        if not tensor.isfinite().all():
            raise ValueError(f"adapter={path!r}: {key!r} holds a number that is not finite")
        sides.setdefault(name.removeprefix(_PREFIX), {})[side] = tensor.float()
    if not sides:
        raise ValueError(f"adapter={path!r}: it holds no factors")
    for module, found in sides.items():
        if len(found) < 2:
            raise ValueError(f"adapter={path!r}: {module!r} has lora_{min(found)} alone")
        _check_rank(f"adapter={path!r}", module, found["A"], found["B"])
    return {module: (found["A"], found["B"]) for module, found in sides.items()}


def _check_rank(what: str, module: str, a: Tensor, b: Tensor) -> None:
    if a.dim() != 2 or b.dim() != 2 or len(a) != b.shape[1] or not len(a):
        raise ValueError(
            f"{what}: A {list(a.shape)} and B {list(b.shape)} of {module!r}: give [r, in] and [out, r] with r from 1 on"
        )


def merge(model: nn.Module, path: str | Path) -> list[str]:
    """Add an adapter to the matrices of a plain ``transformers`` model.

    Each adapted matrix is replaced by a new one; nothing is written into the old storage, which
    may be the weight file itself, mapped into memory and shared by every process that uses it.

    Args:
        model: in float32. A bfloat16 matrix has eight bits of precision, so most of a small
            change would round to nothing, and what was tested would not be what is run.
        path: an adapter folder.

    Returns:
        The names of the adapted modules.

    Raises:
        OSError, ValueError: as :func:`read`; or the adapter was made for another model: it names a
            module that this one lacks or whose matrix has another shape. Checked before anything
            is changed.
    """
    from transformers.pytorch_utils import Conv1D

    adapter = read(path)
    what = f"adapter={str(path)!r}"
    modules = dict(model.named_modules())
    merged: dict[str, Tensor] = {}
    for name, (a, b) in adapter.factors.items():
        weight = getattr(modules.get(name), "weight", None)
        if not isinstance(weight, Tensor) or weight.dim() != 2:
            raise ValueError(f"{what}: this model has no matrix {name!r}; its base is {adapter.base!r}")
        if weight.dtype != torch.float32:
            raise ValueError(
                f"dtype={weight.dtype}: an adapter is merged in float32 only, since a "
                "coarser dtype rounds small changes away; use dtype='float32'"
            )
        # GPT-2 keeps its matrices as [in, out]
        turned = isinstance(modules[name], Conv1D)
        shape = [a.shape[1], len(b)] if turned else [len(b), a.shape[1]]
        if list(weight.shape) != shape:
            raise ValueError(
                f"{what}: it changes {name!r} as {shape}, which here has "
                f"{list(weight.shape)}; its base is {adapter.base!r}"
            )
        delta = adapter.delta(name).to(weight.device)
        merged[name] = weight.detach() + (delta.T if turned else delta)
    for name, weight in merged.items():
        wanted = modules[name].weight.requires_grad
        modules[name].weight = nn.Parameter(weight, requires_grad=wanted)
    return sorted(merged)


def write(
    path: str | Path,
    factors: Mapping[str, tuple[Tensor, Tensor]],
    *,
    base: str,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
    fan_in_fan_out: bool = False,
) -> Path:
    """Write an adapter folder that this module and PEFT read.

    Args:
        path: the folder; made if it is not there, its two files replaced if it is.
        factors: module name (``"model.layers.7.self_attn.o_proj"``) -> A ``[r, in]``, B
            ``[out, r]``; the same r for all, which zero rows and columns can fill up.
        base: name of the model that is adapted.
        scale: the adapted matrix is W + scale * B A.
        dtype: what the factors are stored in.
        fan_in_fan_out: the matrices are kept as ``[in, out]`` (GPT-2).

    Returns:
        The folder.

    Raises:
        ValueError: no factors, factors that do not fit together, several ranks, or a scale or
            factor that is not finite in ``dtype``.
        OSError: the folder cannot be written.
    """
    from safetensors.torch import save_file

    if not factors:
        raise ValueError("factors={}: give at least one module")
    if not math.isfinite(scale):
        raise ValueError(f"scale={scale}: give a finite number")
    tensors: dict[str, Tensor] = {}
    for module, (a, b) in factors.items():
        _check_rank("factors", module, a, b)
        for side, tensor in (("A", a), ("B", b)):
            stored = tensor.detach().to("cpu", dtype).contiguous().clone()
            if not stored.isfinite().all():
                raise ValueError(f"factors: {side} of {module!r} is not finite in {dtype}")
            tensors[f"{_PREFIX}{module}.lora_{side}.weight"] = stored
    ranks = {len(a) for a, _ in factors.values()}
    if len(ranks) > 1:
        raise ValueError(f"factors have ranks {sorted(ranks)}: give all the same, filled with zeros")
    rank = ranks.pop()
    config = {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": fan_in_fan_out,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": scale * rank,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted(factors),
        "task_type": "CAUSAL_LM",
    }
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / CONFIG), scratch(folder / CONFIG) as part:
        save_file(tensors, part / WEIGHTS, metadata={"format": "pt"})
        text = json.dumps(config, indent=1) + "\n"
        (part / CONFIG).write_text(text, encoding="utf-8")
        as_umask(part)
        (folder / CONFIG).unlink(missing_ok=True)  # never new weights under an old config
        for name in (WEIGHTS, CONFIG):
            (part / name).replace(folder / name)
    return folder
