"""Cards that are not there: real numbers on the CPU that refuse to meet across devices.

``torch.device("cpu", 0)`` and ``("cpu", 1)`` stand for two cards, ``torch.device("cpu")`` for the
host. A :class:`Far` tensor holds its numbers on the host, says that it is on a card, and every
operator is held to the rules of CUDA: all its tensors are on one device, but for single numbers
from the host and for indices; a generator of the host draws on the host; and numpy sees the host
only. So what passes here has moved every tensor to where it is used, without a card to try it on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten
CARDS = (torch.device("cpu", 0), torch.device("cpu", 1))
_MOVES = {aten.copy_.default, aten._to_copy.default}
_INDEX = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}
# operators that take no single number of another device either
_STRICT = {
    aten.cat,
    aten.stack,
    aten.gather,
    aten.index_select,
    aten.mm,
    aten.bmm,
    aten.addmm,
    aten.embedding,
    aten.scatter,
    aten.scatter_reduce,
    aten.index_add,
    aten.searchsorted,
}


class Far(Tensor):
    """A tensor on a pretended card."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, device: torch.device) -> Far:
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=device,
            requires_grad=False,
        )

    def __init__(self, inner: Tensor, device: torch.device) -> None:
        assert not isinstance(inner, Far)
        self.inner = inner

    def __repr__(self, *_: Any) -> str:  # type: ignore[override]
        return f"Far({self.inner}, {self.device})"

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return Far(self.inner.detach(), self.device)

    @data.setter
    def data(self, value: Tensor) -> None:
        if value.device != self.device:
            raise RuntimeError(f"data of {value.device} for a tensor on {self.device}")
        self.inner = value.inner  # type: ignore[attr-defined]

    def new_tensor(self, data: Any, **given: Any) -> Tensor:  # type: ignore[override]
        made = torch.tensor(data, dtype=given.get("dtype", self.dtype))
        return made.to(given.get("device", self.device))

    def tolist(self) -> Any:
        return self.inner.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert {self.device} device type tensor to numpy")

    def __array__(self, *_: Any) -> Any:
        return self.numpy()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Made(TorchFunctionMode):
    """``torch.tensor`` takes its device for the host's, since the kind is the same."""

    def __torch_function__(self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        device = (kwargs or {}).get("device")
        if func in (torch.tensor, torch.as_tensor) and device is not None:
            rest = {name: value for name, value in kwargs.items() if name != "device"}
            return func(*args, **rest).to(device)
        return func(*args, **(kwargs or {}))


class Cards(TorchDispatchMode):
    """Within the block, tensors can be made on :data:`CARDS`."""

    def __torch_dispatch__(self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
    asked = kwargs.get("device")
    if not any(isinstance(t, Far) for t in tensors) and (asked is None or asked.index is None):
        return func(*args, **kwargs)
    where = _device(func, args, tensors)
    if asked is not None:
        where = None if asked.index is None else asked
        kwargs = {**kwargs, "device": torch.device(asked.type)}  # "meta" asks for shapes only
    drawn = [v for v in kwargs.values() if isinstance(v, torch.Generator)]
    if drawn and where is not None and where.index is not None:
        raise RuntimeError(f"{func}: expected a {where} device type for generator but found cpu")
    if func is aten._efficientzerotensor.default:  # zeros without storage, which nobody below knows
        func = aten.zeros.default
    with _disable_current_modes():
        out = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    returns = func._schema.returns
    if returns and returns[0].alias_info is not None and returns[0].alias_info.is_write:
        return kwargs.get("out", args[0])  # in place
    if where is None or where.index is None:
        return out
    return tree_map(lambda t: Far(t, where) if isinstance(t, Tensor) else t, out)


def _inner(x: Any) -> Any:
    return x.inner if isinstance(x, Far) else x


def _device(func: Any, args: tuple[Any, ...], tensors: list[Tensor]) -> torch.device | None:
    """Where the result is; RuntimeError where CUDA would refuse."""
    if func in _MOVES:
        return args[0].device
    ruled = tensors
    if func in _INDEX:  # indices may be on the host
        ruled = [args[0], *[t for t in args[2:] if isinstance(t, Tensor)], *[t for t in args[1] if isinstance(t, Far)]]
    strict = func.overloadpacket in _STRICT
    found = {t.device for t in ruled if strict or t.dim() or t.device.index is not None}
    if len(found) > 1:
        raise RuntimeError(
            f"{func}: expected all tensors to be on the same device, but found {', '.join(sorted(map(str, found)))}"
        )
    return next(iter(found), None)


def spread(hf: nn.Module, blocks: str, cards: tuple[torch.device, torch.device] = CARDS) -> Any:
    """Put a ``transformers`` model on the two cards, the way accelerate leaves one: the first half
    of the blocks and what stands before them on one, all else on the other, with its hooks."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    stack = hf.get_submodule(blocks)
    outer = blocks.rpartition(".")[0]
    late = {f"{blocks}.{i}" for i in range(len(stack) // 2, len(stack))}
    late |= {f"{outer}.{name}" for name in ("norm", "ln_f", "final_layer_norm")}
    late |= {"lm_head", "embed_out"}

    def card(name: str) -> torch.device:
        second = any(name == part or name.startswith(f"{part}.") for part in late)
        return cards[1] if second else cards[0]

    for name, module in hf.named_modules():
        for own in (module._parameters, module._buffers):
            for key, tensor in own.items():
                if tensor is None:
                    continue
                far: Any = Far(tensor.detach(), card(name))
                own[key] = nn.Parameter(far, False) if own is module._parameters else far
    for name, module in list(hf.named_modules()):
        if name and (not list(module.children()) or name.rpartition(".")[0] == blocks):
            add_hook_to_module(module, AlignDevicesHook(card(name)))
    add_hook_to_module(hf, AlignDevicesHook(cards[0], io_same_device=True))
    hf.hf_device_map = {"": "cpu:0"} | {name: "cpu:1" for name in sorted(late)}
    return hf


BLOCKS = {"gpt2": "transformer.h", "neox": "gpt_neox.layers", "llama": "model.layers"}


@contextmanager
def two_cards(folder: str | Path, kind: str, **options: Any) -> Iterator[Any]:
    """Within the block: the model of a folder, loaded with ``device_map="auto"`` where that spreads
    it over two cards."""
    import transformer_lens.utilities.multi_gpu as multi_gpu
    from transformers import AutoModelForCausalLM

    import kit

    plain = AutoModelForCausalLM.from_pretrained

    def dispatched(source: str, **given: Any) -> Any:
        spreads = given.pop("device_map", None) == "auto"
        hf, told = plain(source, **given)  # with what it says of the weights' names
        return spread(hf, BLOCKS[kind]) if spreads else hf, told

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoModelForCausalLM, "from_pretrained", dispatched)
        patch.setattr(multi_gpu, "find_misplaced_modules", lambda _model: [])
        # inference tensors cannot be wrapped; that they are not differentiated is all they add here
        patch.setattr(torch, "inference_mode", torch.no_grad)
        # a parameter that moves is made anew: these cannot change what they are
        patch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
        with Cards(), _Made():
            yield kit.load_model(str(folder), device_map="auto", **options)
