"""A model, a chat as tokens, and the few facts about a model that steering needs.

The only module that touches ``transformer_lens`` (imported when a model is loaded). A loaded model
is a ``TransformerBridge``; beside it lives a *decoder*, the plain ``transformers`` module tree over
the same weight storage, which the decode loop runs because it costs about a third less a token.
"""
from __future__ import annotations

import hashlib
import os
import re
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kit import adapters, data, weights
from kit.twin import same_weights

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass
class Runtime:
    """What the kit keeps beside a bridge: one per model, found by :func:`runtime`."""

    decoder: nn.Module
    blocks: str
    o_proj: str | None
    shares_weights: bool
    mlp_path: str | None = None
    up_proj: str | None = None
    down_proj: str | None = None
    mlp_norm: str | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)
    cache: dict[Any, Any] = field(default_factory=dict)

    def block(self, layer: int) -> nn.Module:
        """The block with this index, counted from 0."""
        return self.decoder.get_submodule(f"{self.blocks}.{layer}")

    def head_mixer(self, layer: int) -> nn.Module:
        """The attention output projection of a layer; its input is the heads' outputs, flat."""
        return self.projection(layer, "attn_out")

    def projection_path(self, site: str) -> str:
        """Where in a block the matrix is that makes a site: ``"attn_out"`` from the heads' outputs,
        ``"mlp"`` from the MLP's hidden units."""
        path = {"attn_out": self.o_proj, "mlp": self.down_proj}[site]
        if path is None:
            what = "attention" if site == "attn_out" else "MLP"
            raise ValueError(f"this architecture has no separate {what} output projection")
        return path

    def projection(self, layer: int, site: str) -> nn.Module:
        """The matrix of :meth:`projection_path` in a layer."""
        return self.decoder.get_submodule(f"{self.blocks}.{layer}.{self.projection_path(site)}")

    def writer(self, layer: int, site: str) -> nn.Module:
        """The module whose output is a site: the layer's block, or its MLP for ``"mlp_out"``."""
        if site != "mlp_out":
            return self.block(layer)
        if self.mlp_path is None:
            raise ValueError(f"site={site!r}: this architecture has no separate MLP")
        return self.decoder.get_submodule(f"{self.blocks}.{layer}.{self.mlp_path}")

    def mlp_matrices(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """A layer's MLP as weights: input matrix ``[d_model, hidden]`` (of a gated MLP the one that
        is gated, not the gate), output matrix ``[hidden, d_model]``, and the gain of the norm
        before it ``[d_model]``."""
        if self.up_proj is None or self.down_proj is None or self.mlp_norm is None:
            raise ValueError(f"layer={layer}: this architecture's MLP has no separate input and "
                             "output projection")  # fmt: skip
        block = self.block(layer)
        up, down, norm = map(block.get_submodule, (self.up_proj, self.down_proj, self.mlp_norm))
        return matrix(up), matrix(down), norm_gain(norm)

    def port(self, layer: int, site: str) -> tuple[nn.Module, bool]:
        """The module at which a site is, and whether it is what goes in (else what comes out)."""
        if site == "z":
            return self.head_mixer(layer), True
        if site == "mlp_in":
            return self.writer(layer, "mlp_out"), True
        if site == "neurons":
            return self.projection(layer, "mlp"), True
        return self.writer(layer, site), False


def unwrapped(module: nn.Module) -> nn.Module:
    """The decoder's own module, whose class tells how to read it: a bridge stands around it where
    the model was spread over devices or loaded by others."""
    return getattr(module, "original_component", None) or module


def matrix(projection: nn.Module) -> Tensor:
    """A projection's weight as ``[in, out]``; GPT-2 keeps it so, others turned."""
    from transformers.pytorch_utils import Conv1D

    projection = unwrapped(projection)
    weight = projection.weight.detach()
    return weight if isinstance(projection, Conv1D) else weight.T


def norm_gain(norm: nn.Module) -> Tensor:
    """What a norm does to a vector of root mean square 1 (for LayerNorm: and mean 0), coordinate by
    coordinate, ``[width]``, float32."""
    norm = unwrapped(norm)
    weight = norm.weight.detach()
    if isinstance(norm, nn.LayerNorm):
        return weight.float()
    return norm(torch.ones_like(weight)[None])[0].float()  # some multiply by 1 + weight


_RUNTIMES: weakref.WeakKeyDictionary[Any, Runtime] = weakref.WeakKeyDictionary()
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
        adapter: a folder with a LoRA adapter (:mod:`kit.adapters`), merged into the weights. With
            one, ``dtype="auto"`` means float32, on every device: in bfloat16 most of a small
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
        raise ValueError(f"untrained={untrained!r} with device_map={device_map!r}: new weights are "
                         "drawn on one device; give device instead")  # fmt: skip
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
        adapters.merge(hf, adapter)
    if device_map is None:
        hf = hf.to(where)
    # dispatched modules carry forwards bound to the original, which a copy would keep calling
    decoder = None if device_map else same_weights(hf)
    boot_device = None if device_map else where
    bridge = TransformerBridge.boot_transformers(
        name, hf_model=hf, tokenizer=tokenizer, device=boot_device, dtype=kind
    )
    bridge.original_model.requires_grad_(False)  # also what the bridge splits or adds
    _RUNTIMES[bridge] = _make_runtime(bridge, decoder)
    return bridge


def preload() -> None:
    """Load the embedded model now for the first plain :func:`load_model` of this process, or of
    each process that is forked from it (:mod:`kit.workshop.warm_kernels`)."""
    model = load_model()
    residual_scale(model, 0)  # measured once per model
    _PRELOADED.append(model)


def runtime(model: TransformerBridge) -> Runtime:
    """The :class:`Runtime` of a bridge; made on first sight for bridges booted elsewhere.

    Raises:
        TypeError: ``model`` is not a ``TransformerBridge``.
    """
    if model in _RUNTIMES:
        return _RUNTIMES[model]
    if not (hasattr(model, "original_model") and hasattr(model, "hook_dict")):
        raise TypeError(
            f"model is a {type(model).__name__}; pass the TransformerBridge that "
            "kit.load_model returns"
        )
    _RUNTIMES[model] = _make_runtime(model, None)
    return _RUNTIMES[model]


def _make_runtime(bridge: TransformerBridge, decoder: nn.Module | None) -> Runtime:
    blocks = bridge.adapter.component_mapping["blocks"]
    attention = blocks.submodules.get("attn")
    mixer = attention and attention.submodules.get("o")
    path = f"{attention.name}.{mixer.name}" if mixer else None
    mlp, norm = blocks.submodules.get("mlp"), blocks.submodules.get("ln2")
    up, down = (mlp and mlp.submodules.get(name) for name in ("in", "out"))
    return Runtime(
        decoder or bridge.original_model, blocks.name, path, decoder is not None,
        mlp.name if mlp else None, f"{mlp.name}.{up.name}" if up else None,
        f"{mlp.name}.{down.name}" if down else None, norm.name if norm else None,
    )  # fmt: skip


def _auto_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _as_dtype(dtype: str | torch.dtype, name: str = "dtype") -> torch.dtype:
    kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not (isinstance(kind, torch.dtype) and kind.is_floating_point):
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


def chat_tokens(model: TransformerBridge, user: str, system: str | None = None) -> Tensor:
    """A user message in the model's chat template, up to where the answer starts.

    Args:
        user: the user's message.
        system: a system message; None leaves it to the template.

    Returns:
        LongTensor ``[1, n]`` with exactly the special tokens of the template: pass it on as
        tokens, since a template *string* would be given a second BOS.

    Raises:
        ValueError: an empty message, or a tokenizer without a chat template.
    """
    if not user.strip():
        raise ValueError("user='': the chat message is empty")
    tokenizer = model.tokenizer
    if not tokenizer.chat_template:
        raise ValueError(
            f"{model.cfg.model_name!r} has no chat template; use kit.text_tokens(model, text)"
        )
    messages = [{"role": "user", "content": user}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    return ids.to(model.cfg.device)


def text_tokens(model: TransformerBridge, text: str) -> Tensor:
    """Plain text as LongTensor ``[1, n]``, with one BOS where the model was trained with one.

    Raises:
        ValueError: the text holds no token.
    """
    ids = model.tokenizer(text, add_special_tokens=False).input_ids
    if not ids:
        raise ValueError(f"text={text!r}: it holds no token")
    bos = model.tokenizer.bos_token_id
    if model.cfg.default_prepend_bos and bos is not None and ids[0] != bos:
        ids = [bos, *ids]
    return torch.tensor([ids], device=model.cfg.device)


def fingerprint(model: TransformerBridge) -> str:
    """Sixteen hex digits that tell models apart, the same in float32 and bfloat16.

    Hashes the architecture and a sample of every weight matrix, rounded to bfloat16. A vector
    file carries it, so that a vector is never applied to a model whose space it does not know.
    """
    state = runtime(model)
    if "fingerprint" not in state.cache:
        cfg = model.cfg
        digest = hashlib.sha256(f"{cfg.n_layers} {cfg.d_model} {cfg.d_vocab}".encode())
        for weight in _own_weights(state.decoder):
            sample = weight.detach().flatten()[:: max(1, weight.numel() // 16)][:16]
            rounded = sample.to("cpu", torch.bfloat16).contiguous()
            digest.update(rounded.view(torch.uint8).numpy().tobytes())
        state.cache["fingerprint"] = digest.hexdigest()[:16]
    return state.cache["fingerprint"]


def _own_weights(module: nn.Module) -> Iterator[Tensor]:
    """Parameters less those that a bridge adds: split q, k and v beside a joint one, zero biases"""
    names = dict(module.named_parameters())
    for name, weight in names.items():
        joint = re.sub(r"\.[qkv]\.(_original_component\.\w+)$", r".qkv.\1", name)
        if (joint == name or joint not in names) and (weight.dim() > 1 or bool(weight.any())):
            yield weight


def check_layer(model: TransformerBridge, layer: int) -> None:
    """Raise a ValueError that gives the model's range unless ``layer`` is one of its blocks."""
    n = model.cfg.n_layers
    if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < n:
        raise ValueError(f"layer={layer!r}: this model has layers 0 to {n - 1}")


def residual_scale(model: TransformerBridge, layer: int) -> float:
    """Median norm of the residual stream after block ``layer`` on neutral text: the unit.

    The median over all positions but the first, since the first (BOS or whatever stands there)
    is an attention sink: on the embedded model its norm is about 150 times the rest, and a mean
    would measure that one position. Measured once per model, for every layer in one pass.

    Raises:
        ValueError: ``layer`` is not a layer of this model.
    """
    from kit.activations import residuals

    check_layer(model, layer)
    state = runtime(model)
    if "scales" not in state.cache:
        texts = data.neutral_texts()[:6]
        stream = residuals(model, texts, range(model.cfg.n_layers), read=slice(1, None))
        state.cache["scales"] = stream.norm(dim=-1).median(dim=0).values.tolist()
    scale = state.cache["scales"][layer]
    if not scale > 0 or scale == float("inf"):
        raise ValueError(f"the residual stream after layer {layer} has median norm {scale}")
    return scale
