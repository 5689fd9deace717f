"""Loading a model: where from, in which dtype, on which device, with which adapter."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from kit.base import threads
from kit.models import given, llama, lora, weights
from kit.models.activations import residual_scale
from kit.models.bridge import LLAMA_PLACES, Runtime, hold, register
from kit.models.fast_linear import same_weights
from kit.models.folder import check_finite
from kit.models.paths import reference_logits, settle
from kit.models.unopened import Known, Unopened, opened

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def model_dtype() -> str:
    """Name of the dtype in which this machine runs the embedded model."""
    return str(choose_dtype(_auto_device())[0]).removeprefix("torch.")


_PRELOADED: list[TransformerBridge] = []


def load_model(
    name: str | Path | nn.Module = weights.EMBEDDED,
    *,
    tokenizer: Any = None,
    dtype: str | torch.dtype = "auto",
    device: str = "auto",
    device_map: str | dict[str, Any] | None = None,
    adapter: str | Path | None = None,
    untrained: int | None = None,
) -> TransformerBridge:
    """Load a causal language model as a ``TransformerBridge``, ready to steer.

    Args:
        name: the embedded model (fetched and converted on first use), a local folder in the
            transformers format, a hub id (``"gpt2"``, ``"Qwen/Qwen2.5-0.5B-Instruct"``, ...), or a
            causal language model of transformers that is in memory, compiled or within a
            ``PeftModel`` too: it stays as it is, and shares its weights where dtype and device
            are its own (an adapter is merged into a copy). Of a multimodal model the part that
            reads text is loaded.
        tokenizer: needed for a model in memory; else the folder's own. The tokenizer, or what
            ``AutoTokenizer.from_pretrained`` takes.
        dtype: ``"auto"`` (see :func:`choose_dtype`; in memory the model's own), a torch dtype or
            its name.
        device: ``"auto"`` (CUDA when there is one, else CPU; in memory the model's own) or a torch
            device.
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
        TypeError: ``name`` is no causal language model of transformers.
        ValueError: an architecture that TransformerLens cannot wrap; weights that are missing from
            the file, have no place in the architecture or hold NaN, or a config far larger than
            they are; a model in memory without a tokenizer, or with ``device_map``, ``adapter`` or
            ``untrained``; an unknown dtype; ``device`` together with ``device_map``; a
            ``device_map`` that leaves blocks on the disk, or on the CPU beside GPUs; ``untrained``
            together with a ``device_map``; an adapter together with a dtype other than float32 or
            with ``untrained``, or one that does not fit.
    """
    plain = (name, tokenizer, device, device_map, adapter, untrained) == (weights.EMBEDDED, None, "auto", *[None] * 3)
    if plain and _PRELOADED and (dtype == "auto" or _as_dtype(dtype) == _PRELOADED[0].cfg.dtype):
        return _PRELOADED.pop()
    if name == weights.EMBEDDED and (tokenizer, device_map, adapter, untrained) == (None,) * 4:
        return _embedded(*_where_and_kind(dtype, device, None, None, None))
    known = name == weights.EMBEDDED  # whose hash was compared
    if not isinstance(name, str | os.PathLike):
        hf, words = _in_memory(name, tokenizer, dtype, device, (device_map, adapter, untrained))
        where, kind, title = hf.device, hf.dtype, str(hf.config._name_or_path or type(hf).__name__)
    else:
        title = os.fspath(name)
        where, kind = _where_and_kind(dtype, device, device_map, adapter, untrained)
        source = weights.locate(title, str(kind).removeprefix("torch."))
        with _no_bars():  # half a second of work; bars would be saved into notebooks
            hf = given.stored(source, kind, device_map)
            words = _tokenizer(source if tokenizer is None else tokenizer, embedded=known)
        weights.check_placement(hf, device_map)
    if not known:
        check_finite(hf, title)
    if untrained is not None:
        from transformers import AutoModelForCausalLM

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(untrained)
            hf = AutoModelForCausalLM.from_config(hf.config, dtype=kind)
    hf = hf.eval().requires_grad_(False)
    if adapter is not None:
        lora.merge(hf, adapter)
    if device_map is None:
        hf = hf.to(where)
    reference = None if known else reference_logits(hf)  # the embedded one: when it is first steered
    # dispatched modules carry forwards bound to the original, which a copy would keep calling
    decoder = None if device_map else llama.over(hf) or same_weights(hf)
    bridge = _bridge(hf, _for_bridge(words), title, None if device_map else where, kind)
    register(bridge, decoder, words)
    if reference is not None:
        settle(bridge, reference)
    return bridge


def _embedded(where: torch.device, kind: torch.dtype) -> TransformerBridge:
    """The embedded model, its bridge not made yet (:mod:`kit.models.unopened`)."""
    folder = weights.fetch(str(kind).removeprefix("torch."))
    decoder = llama.stored(folder, where)
    shape, words = decoder.shape, _tokenizer(folder, embedded=True, quick=True)
    theirs = _for_bridge(words)
    names = ("n_layers", "d_model", "n_heads", "d_head", "d_mlp", "d_vocab", "n_ctx")
    others = {
        "device": str(where),
        "dtype": kind,
        "model_name": weights.EMBEDDED,
        "positional_embedding_type": "rotary",
    }
    cfg = Known({name: getattr(shape, name) for name in names} | others)

    def make() -> TransformerBridge:
        return _bridge(_around(decoder, folder), theirs, weights.EMBEDDED, where, kind)

    model: Any = Unopened(make, {"cfg": cfg, "tokenizer": theirs})
    cfg.of(model)
    hold(model, Runtime(decoder, True, words, "model.layers", **LLAMA_PLACES))
    return model


def _around(decoder: llama.Llama, folder: Path) -> Any:
    """transformers' own module tree over a decoder's weights."""
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        hf = AutoModelForCausalLM.from_config(config, dtype=next(decoder.parameters()).dtype)
    llama.share(decoder, hf)
    hf.model.rotary_emb = type(hf.model.rotary_emb)(config).to(next(decoder.parameters()).device)  # has no weights
    hf.generation_config = GenerationConfig.from_pretrained(folder)
    return hf.eval()


def _for_bridge(words: Any) -> Any:
    theirs = copy.deepcopy(words)  # TransformerLens gives it tokens that the model never saw
    if not theirs.init_kwargs.setdefault("name_or_path", ""):
        theirs.init_kwargs["add_bos_token"] = True  # there is nowhere to load another one from
    return theirs


def _bridge(hf: Any, words: Any, title: str, device: torch.device | None, kind: torch.dtype) -> TransformerBridge:
    from transformer_lens.model_bridge import TransformerBridge

    hf.config.architectures = hf.config.architectures or [type(hf).__name__]
    with given.no_installs(), _wrapped(hf):
        bridge = TransformerBridge.boot_transformers(title, hf_model=hf, tokenizer=words, device=device, dtype=kind)
    bridge.original_model.requires_grad_(False)  # also what the bridge splits or adds
    return bridge.eval()


def _where_and_kind(
    dtype: str | torch.dtype, device: str, device_map: Any, adapter: Any, untrained: int | None
) -> tuple[torch.device, torch.dtype]:
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
    return where, kind


def _in_memory(model: Any, tokenizer: Any, dtype: str | torch.dtype, device: str, others: tuple[Any, ...]) -> Any:
    if any(other is not None for other in others):
        raise ValueError("name is a model in memory: device_map, adapter and untrained are for one that is loaded here")
    hf = given.in_memory(
        model, None if dtype == "auto" else _as_dtype(dtype), None if device == "auto" else torch.device(device)
    )
    if tokenizer is None:
        raise ValueError(
            "tokenizer=None: a model in memory needs its own; give AutoTokenizer.from_pretrained(where it came from)"
        )
    return hf, _tokenizer(tokenizer)


def _tokenizer(source: Any, embedded: bool = False, quick: bool = False) -> Any:
    from transformers import PreTrainedTokenizerBase

    if isinstance(source, PreTrainedTokenizerBase):
        return source
    if not isinstance(source, str | os.PathLike):
        raise TypeError(
            f"tokenizer is a {type(source).__name__}: give a tokenizer of transformers, or its folder or name"
        )
    if quick:  # its import brings no model in
        from transformers import PreTrainedTokenizerFast as Loader
    else:
        from transformers import AutoTokenizer as Loader
    # the embedded model's first token is a sink, whatever stands there: let it be the BOS
    more = {"add_bos_token": True} if embedded else {}
    return weights.from_hub_or_disk(Loader.from_pretrained, os.fspath(source), **more)


@contextmanager
def _wrapped(hf: Any) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # no adapter, or one that does not fit this form of the architecture
        said = " ".join(str(error).split("Available architectures")[0].split())[:300]
        raise ValueError(f"{type(hf).__name__}: TransformerLens cannot wrap this model: {said}") from error


@contextmanager
def _no_bars() -> Iterator[None]:
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()


def preload(dtype: str = "auto") -> None:
    """Load the embedded model now for the first :func:`load_model` of this process that asks for no
    more than ``dtype``, or of each process that is forked from it (``kit lab --warm``)."""
    model = opened(load_model(dtype=dtype))
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
        share = threads.kept().get("bfloat16", 0.0)
        if share > 1:
            return torch.float32, f"a token in bfloat16 takes {share:.2f} times as long here"
        return torch.bfloat16, "this CPU has bfloat16 instructions (AVX512-BF16 or AMX)"
    return torch.float32, "this CPU has no bfloat16 instructions"
