"""A transformers model, from a folder, the hub or memory, with every weight that it needs."""

from __future__ import annotations

import copy
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kit.models.paths import difference, sample_logits
from kit.models.weights import from_hub_or_disk

_MANAGERS = {"pip", "pip3", "uv", "conda", "mamba", "micromamba", "apt", "apt-get", "ensurepip", "easy_install"}
_watching: ContextVar[bool] = ContextVar("watching", default=False)
_STARTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn"}


def stored(source: str, dtype: torch.dtype, device_map: str | dict[str, Any] | None = None) -> nn.Module:
    """A causal language model of a folder or hub id; of a multimodal one the part that reads text.

    Raises:
        OSError: it cannot be read.
        ValueError: weights are missing (transformers would draw them at random), some belong to no
            part of it, or it is no language model.
    """
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    folder = Path(source)
    if (folder / "adapter_config.json").is_file():  # transformers would go after its base on the hub
        raise ValueError(
            f"name={source!r} holds an adapter (adapter_config.json) beside a model: load its base, "
            "kit.load_model(base, adapter=folder)"
        )
    config = from_hub_or_disk(AutoConfig.from_pretrained, source)
    text = config.get_text_config(decoder=True)
    causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    if config.is_encoder_decoder or not (causal or type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING):
        raise ValueError(f"name={source!r} is a {type(config).__name__}: the kit steers causal language models")
    auto: Any = AutoModelForCausalLM if causal else AutoModelForImageTextToText
    options: dict[str, Any] = {"dtype": dtype} | ({"device_map": device_map} if device_map else {})
    hf, told = from_hub_or_disk(auto.from_pretrained, source, output_loading_info=True, **options)
    if text is not config and type(hf.config) is type(text):  # it left the other parts aside, as Llama 4's does
        told = {**told, "unexpected_keys": ()}
    _check_keys(source, told)
    return hf if text is config else _text_part(hf, text)


def _check_keys(source: str, told: Mapping[str, Any]) -> None:
    missing, more = sorted(told["missing_keys"]), sorted(told["unexpected_keys"])
    wrong = sorted(str(key) for key in told.get("mismatched_keys", ()))
    for keys, what in (
        (missing, "weights are missing from the file and would be drawn at random"),
        (wrong, "weights have another shape than the config says"),
        (more, "weights of the file belong to no part of this architecture"),
    ):
        if keys:
            prefixed = any("_orig_mod." in key for key in more)
            hint = "; keys begin with '_orig_mod.', as torch.compile leaves them: save model._orig_mod" * prefixed
            adapted = any("lora_" in key or ".base_layer." in key for key in more)
            hint += "; an adapter was saved into it: save model.merge_and_unload(), or use adapter=" * adapted
            names = ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
            raise ValueError(f"name={source!r}: {len(keys)} {what}: {names}{hint}")


def _text_part(hf: nn.Module, text: Any) -> nn.Module:
    """The language model inside a multimodal one, as a model of its own over the same weights."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    whole: Any = hf
    if type(whole.config) is type(text):
        return hf
    inner = whole.get_decoder()
    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(text), None)
    head = whole.get_output_embeddings()
    if kind is None or head is None:
        raise ValueError(
            f"{type(hf).__name__}: transformers has no text-only model for its {type(text).__name__}; "
            "the kit steers language models"
        )
    with torch.device("meta"):
        alone = kind(text)
    if type(inner) is not type(getattr(alone, alone.base_model_prefix)):
        raise ValueError(
            f"{type(hf).__name__}: its language part is a {type(inner).__name__}, not that of {kind.__name__}"
        )
    setattr(alone, alone.base_model_prefix, inner)
    alone.set_output_embeddings(head)
    alone.generation_config = whole.generation_config
    alone.config.architectures = [kind.__name__]
    return alone


def in_memory(model: Any, dtype: torch.dtype | None, device: torch.device | None) -> nn.Module:
    """A module tree of its own over the weights of a model that is already loaded.

    What ``torch.compile`` put around it is left out, a PEFT adapter is merged into a copy (in
    float32). The model itself stays as it is, its mode and its gradients too.

    Args:
        dtype, device: None for the model's own.

    Raises:
        TypeError: it is no causal language model of transformers.
        ValueError: an adapter that no merge can stand for, or weights that are not here.
    """
    from transformers import PreTrainedModel

    given = model
    model = getattr(model, "_orig_mod", model)
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    adapted = hasattr(model, "peft_config") and not isinstance(model, PreTrainedModel)
    hf = _merged(model) if adapted else _twin(model) if isinstance(model, PreTrainedModel) else None
    if not isinstance(hf, PreTrainedModel) or hf.get_output_embeddings() is None:
        raise TypeError(
            f"name is a {type(given).__name__}: give the name or folder of a model, or a causal language model of "
            "transformers (AutoModelForCausalLM)"
        )
    if getattr(hf, "_hf_peft_config_loaded", False):
        raise ValueError(
            f"name is a {type(model).__name__} with adapters inside: give it unadapted, with adapter=folder"
        )
    if any(weight.is_meta for weight in hf.parameters()):
        raise ValueError(
            f"name is a {type(model).__name__} whose weights are on 'meta' (offloaded or not loaded): load them"
        )
    if model.training:
        warnings.warn("the model was in training mode: the kit runs it in eval mode", stacklevel=3)
    text = hf.config.get_text_config(decoder=True)
    hf = hf if text is hf.config else _text_part(hf, text)
    return hf.to(device=device, dtype=dtype).eval()


def _twin(model: nn.Module) -> nn.Module:
    """A second module tree whose parameters share storage, and the count of changes to it."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    memo |= {id(b): b for b in model.buffers()}
    twin = copy.deepcopy(model, memo)
    for module in list(twin.modules()):
        for name, child in module.named_children():
            if hasattr(child, "_orig_mod"):
                setattr(module, name, child._orig_mod)
    return twin


def _merged(model: Any) -> Any:
    """The base of a PEFT model with its adapter merged, checked against the model itself."""
    kinds = ", ".join(sorted({str(getattr(c, "peft_type", c)) for c in model.peft_config.values()}))
    twin = copy.deepcopy(model).float().eval()
    vocabulary = twin.get_output_embeddings().weight.shape[0]
    try:
        before = sample_logits(twin, vocabulary)
        twin = twin.merge_and_unload()
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(f"name is a PEFT model ({kinds}) whose adapter does not merge: {error}") from error
    if (gap := difference(sample_logits(twin, vocabulary), before)) > 2e-3:
        raise ValueError(
            f"name is a PEFT model ({kinds}) that computes something else once merged (logits differ by {gap:.0%} of "
            "their spread): its adapter acts on some tokens or in some modes only"
        )
    return twin.requires_grad_(False)


@contextmanager
def no_installs() -> Iterator[None]:
    """A block in which no package manager starts, whatever a library tries.

    TransformerLens installs torchvision when a processor does not load, which replaces torch.
    """
    if not _HOOKED:
        sys.addaudithook(_refuse_installs)  # for good: Python takes none off
        _HOOKED.append(True)
    token = _watching.set(True)
    try:
        yield
    finally:
        _watching.reset(token)


_HOOKED: list[bool] = []


def _refuse_installs(event: str, args: tuple[Any, ...]) -> None:
    if event not in _STARTS or not _watching.get():
        return
    parts = [part for arg in args[:2] for part in (arg if isinstance(arg, list | tuple) else [arg]) if part]
    words = " ".join(os.fsdecode(part) for part in parts if isinstance(part, str | bytes | os.PathLike))
    if _MANAGERS & {Path(word).name for word in words.split()}:
        raise PermissionError(f"not started while a model loads: {words}")
