"""Loading a model: where from, in which dtype, on which device, with which adapter."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kit.models import lora, weights
from kit.models.activations import residual_scale
from kit.models.bridge import register
from kit.models.fast_linear import same_weights

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def model_dtype() -> str:
    """Name of the dtype in which this machine runs the embedded model."""
    return str(choose_dtype(_auto_device())[0]).removeprefix("torch.")


_PRELOADED: list[TransformerBridge] = []


def load_model(
    name: str = weights.EMBEDDED,
    *,
    dtype: str | torch.dtype = "auto",
    device: str = "auto",
    device_map: str | dict[str, Any] | None = None,
    adapter: str | Path | None = None,
    untrained: int | None = None,
) -> TransformerBridge:
    """Load a causal language model as a ``TransformerBridge``, ready to steer.

    Args:
        name: the embedded model (fetched and converted on first use), a local folder in the
            transformers format, or a hub id (``"gpt2"``, ``"Qwen/Qwen2.5-0.5B-Instruct"``, ...).
        dtype: ``"auto"`` (see :func:`choose_dtype`), a torch dtype or its name.
        device: ``"auto"`` (CUDA when there is one, else CPU) or a torch device.
        device_map: ``"auto"``, or a module-to-device mapping: transformers and accelerate then
            spread the blocks over several GPUs; ``device`` must stay ``"auto"``. Everything of the
            kit follows: a vector goes to where the activation is that it meets.
        adapter: a folder with a LoRA adapter (:mod:`kit.models.lora`), merged into the weights.
            With one, ``dtype="auto"`` means float32, on every device: in bfloat16 most of a small
            change would round to nothing.
        untrained: a seed; weights are then drawn anew, as before training: the control for what is
            said to have been learnt (Heap et al. 2025, arXiv:2501.17727).

    Returns:
        The bridge with raw weights (no folding, no second copy), gradients off, in eval mode.

    Raises:
        OSError: the model is not here and cannot be fetched; the text names what is available.
        ImportError: a ``device_map`` without accelerate.
        ValueError: an unknown dtype; ``device`` together with ``device_map``; a ``device_map`` that
            leaves blocks on the disk, or on the CPU beside GPUs; ``untrained`` together with a
            ``device_map``; an adapter together with a dtype other than float32 or with
            ``untrained``, or one that does not fit.
    """
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    plain = (name, device, device_map, adapter, untrained) == (weights.EMBEDDED, "auto", *[None] * 3)
    if plain and _PRELOADED and (dtype == "auto" or _as_dtype(dtype) == _PRELOADED[0].cfg.dtype):
        return _PRELOADED.pop()
    if device_map is not None and device != "auto":
        raise ValueError(f"device={device!r} and device_map={device_map!r}: give one of the two")
    weights.check_device_map(device_map)
    if device_map is not None and untrained is not None:
        raise ValueError(
            f"untrained={untrained!r} with device_map={device_map!r}: new weights are "
            "drawn on one device; give device instead"
        )
    if adapter is not None and untrained is not None:
        raise ValueError(f"untrained={untrained!r} with an adapter, which fits trained weights only")
    where = torch.device(_auto_device() if device == "auto" else device)
    auto = torch.float32 if adapter is not None else choose_dtype(where)[0]
    kind = auto if dtype == "auto" else _as_dtype(dtype)
    if adapter is not None and kind != torch.float32:
        raise ValueError(
            f"dtype={dtype!r} with an adapter: it is merged in float32 only, since a coarser dtype "
            "rounds small changes away; use dtype='float32' or leave it at 'auto'"
        )
    source = weights.locate(name, str(kind).removeprefix("torch."))
    options: dict[str, Any] = {"dtype": kind} | ({"device_map": device_map} if device_map else {})
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # half a second of work; bars would be saved into notebooks
    try:
        hf = weights.from_hub_or_disk(AutoModelForCausalLM.from_pretrained, source, **options)
        tokenizer = weights.from_hub_or_disk(AutoTokenizer.from_pretrained, source)
    finally:
        if bars:
            logging.enable_progress_bar()
    weights.check_placement(hf, device_map)
    if untrained is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(untrained)
            hf = AutoModelForCausalLM.from_config(hf.config, dtype=kind)
    hf = hf.eval().requires_grad_(False)
    if adapter is not None:
        lora.merge(hf, adapter)
    if device_map is None:
        hf = hf.to(where)
    # dispatched modules carry forwards bound to the original, which a copy would keep calling
    decoder = None if device_map else same_weights(hf)
    boot_device = None if device_map else where
    bridge = TransformerBridge.boot_transformers(name, hf_model=hf, tokenizer=tokenizer, device=boot_device, dtype=kind)
    bridge.original_model.requires_grad_(False)  # also what the bridge splits or adds
    register(bridge, decoder)
    return bridge


def preload() -> None:
    """Load the embedded model now for the first plain :func:`load_model` of this process, or of
    each process that is forked from it (``kit lab --warm``)."""
    model = load_model()
    residual_scale(model, 0)  # measured once per model
    _PRELOADED.append(model)


def _auto_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _as_dtype(dtype: str | torch.dtype, name: str = "dtype") -> torch.dtype:
    kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if kind not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        auto = "'auto', " if name == "dtype" else ""
        raise ValueError(f"{name}={dtype!r}: use {auto}'float32', 'bfloat16' or 'float16'")
    return kind


def choose_dtype(device: torch.device | str) -> tuple[torch.dtype, str]:
    """The dtype that ``"auto"`` means on a device, and why. KIT_DTYPE in the environment names one
    for every device, so that mixed machines give the same numbers.

    Raises:
        ValueError: KIT_DTYPE names no dtype.
    """
    if wanted := os.environ.get("KIT_DTYPE"):
        return _as_dtype(wanted, "KIT_DTYPE"), "KIT_DTYPE asks for it"
    if torch.device(device).type == "cuda":
        return torch.bfloat16, "a GPU computes in bfloat16"
    try:
        has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    except (AttributeError, RuntimeError):
        has_bf16 = False
    if has_bf16:
        return torch.bfloat16, "this CPU has bfloat16 instructions (AVX512-BF16 or AMX)"
    return torch.float32, "this CPU has no bfloat16 instructions"
