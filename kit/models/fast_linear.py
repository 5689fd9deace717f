"""Matrix products by the library that is fastest for their number of rows, on a CPU."""

from __future__ import annotations

import copy
import platform
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import cache, partial
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from kit.base import threads

ROWS = (1, 3, 9, 64)  # for which the probe compares the ways
_UP_TO = (1, 5, 32)  # rows for which each of them stands, the last for all above
_SMALL = 100_000  # numbers in a matrix below which the call of another library costs what it gains
_PLAIN = (Tensor, nn.Parameter)
_BLOCK = 64  # rows of a matrix that a core's cache holds until each row of x has met them


class Joined:
    """Products of the same activations with several matrices: as one, where these lie one after the
    other in memory (:mod:`kit.models.mapped`) and none of them is trained."""

    def __init__(self) -> None:
        self._whole: Tensor | None = None  # [out of all, in], kept so that their memory is
        self._at: tuple[int, ...] = ()

    def __reduce__(self) -> tuple[type[Joined], tuple[()]]:
        return Joined, ()  # a copy of the matrices lies elsewhere

    def __call__(self, x: Tensor, groups: Sequence[Sequence[Tensor]]) -> Sequence[Tensor]:
        """``x @ weight.T``, side by side for the weights of a group: x ``[..., in]``, weights
        ``[out, in]``, each result ``[..., out of its group]``."""
        weights = [weight for group in groups for weight in group]
        if any(type(weight) not in _PLAIN or weight.requires_grad or _wrapped(weight) for weight in weights):
            whole = None
        else:
            if self._at != (at := tuple([weight.data_ptr() for weight in weights])):
                self._whole, self._at = _one_after_the_other(weights), at
            whole = self._whole
        if whole is None:
            return [
                torch.cat([product(x, weight) for weight in group], -1) if group[1:] else product(x, group[0])
                for group in groups
            ]
        return product(x, whole).split([sum(map(len, group)) for group in groups], -1)


def _one_after_the_other(weights: Sequence[Tensor]) -> Tensor | None:
    first, end = weights[0], weights[0].data_ptr()
    home = first.untyped_storage().data_ptr()
    for weight in weights:
        of_one = (
            weight.is_contiguous()
            and (weight.dtype, weight.device, weight.shape[1:]) == (first.dtype, first.device, first.shape[1:])
            and (weight.data_ptr(), weight.untyped_storage().data_ptr()) == (end, home)
            and end != 0
        )
        if not of_one:
            return None
        end += weight.nbytes
    rows = sum(len(weight) for weight in weights)
    return first.detach().as_strided((rows, first.shape[1]), first.stride())


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``: x ``[..., in]``, weight ``[out, in]``; differentiable."""
    if (
        weight.numel() < _SMALL
        or weight.dtype != torch.float32
        or x.dtype != torch.float32
        or weight.device.type != "cpu"
        or type(weight) not in _PLAIN  # quantised, or shared between machines
        or not weight.is_contiguous()  # oneDNN then takes a hundred times as long
    ):
        return nn.functional.linear(x, weight, bias)
    count = torch.get_num_threads()
    # torch.func's transforms and forward mode, neither of which shows as requires_grad; within them
    # a tensor does not tell its rows
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    name = way(ROWS[-1] if transformed else x.numel() // weight.shape[1], count)
    trained = weight.requires_grad or (bias is not None and bias.requires_grad)
    if transformed or (torch.is_grad_enabled() and (x.requires_grad or trained)):
        if name != "oneDNN" or bias is not None or trained or _wrapped(weight):
            return nn.functional.linear(x, weight, bias)
        return _Frozen.apply(x, weight)
    return WAYS[name](x, weight, bias)


def _wrapped(weight: Tensor) -> bool:
    """Whether a transform differentiates by it, or runs over several of it."""
    return torch._C._functorch.is_functorch_wrapped_tensor(weight) or (
        forward_ad._current_level >= 0 and forward_ad.unpack_dual(weight).tangent is not None
    )


class _Frozen(torch.autograd.Function):
    """``x @ weight.T`` by oneDNN, and likewise its derivatives by x, of any order and direction."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        return _onednn(x, weight, None)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])  # whose change in between is then an error
        ctx.save_for_forward(inputs[1])
        ctx.set_materialize_grads(False)  # no matrix of zeros for the one that stays as it is

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return _Frozen.apply(grad, weight.t()), None

    @staticmethod
    def jvp(ctx: Any, change: Tensor, _: None) -> Tensor:
        (weight,) = ctx.saved_tensors
        return _Frozen.apply(change, weight)

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, int | None], x: Tensor, weight: Tensor) -> tuple[Tensor, int]:
        assert dims[0] is not None and dims[1] is None
        return _Frozen.apply(x.movedim(dims[0], 0), weight), 0


def way(rows: int, count: int) -> str:
    """The name of what multiplies that many rows on so many threads, as the probe of this machine
    found (`kit fetch`)."""
    side = "alone" if count == 1 else "together"
    told = threads.kept().get("products", {}).get(side, "")
    return _table(side, told)[bisect_left(_UP_TO, rows)]


@cache
def _table(side: str, told: str) -> list[str]:
    names = told.split()
    if len(names) == len(ROWS) and set(names) <= set(ways()):
        return names
    # Not measured: MKL, which torch has on x86, takes 1.5 times as long as the others on an AMD;
    # elsewhere torch calls what the system brings.
    if platform.machine().lower() in ("x86_64", "amd64") and "oneDNN" in ways():
        return ["numpy", "numpy" if side == "alone" else "oneDNN", "oneDNN", "oneDNN"]
    return ["torch"] * len(ROWS)


def ways() -> list[str]:
    """Those that this torch has."""
    return [name for name in WAYS if name != "oneDNN" or torch.backends.mkldnn.is_available()]


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _numpy(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out, width = weight.shape
    matrix, given = weight.detach().numpy(), x.detach().numpy().reshape(-1, width)
    block = gcd(out, _BLOCK)
    if len(given) == 1:
        made = matrix @ given[0]
    elif block < 16:
        return nn.functional.linear(x, weight, bias)
    else:  # [out / block, 1, block, width] with [rows, width, 1]: a loop in C over a vector's product
        made = matrix.reshape(-1, 1, block, width) @ given[:, :, None]
        made = made[..., 0].swapaxes(0, 1)  # [rows, out / block, block]
    y = torch.from_numpy(made.reshape(*x.shape[:-1], out))
    return y if bias is None else y.add_(bias)


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "torch": nn.functional.linear,  # MKL, or Apple's Accelerate
    "oneDNN": _onednn,
    "numpy": _numpy,  # OpenBLAS, or Accelerate
}


def same_weights(hf: nn.Module) -> nn.Module:
    """A second module tree over the same parameters and buffers: no weight is copied."""
    shared = {id(t): t for t in [*hf.parameters(), *hf.buffers()]}
    twin = copy.deepcopy(hf, shared)
    for module in twin.modules():
        if type(module) is nn.Linear:
            module.forward = partial(_linear, module)  # type: ignore[method-assign]
    return twin


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    return product(x, module.weight, module.bias)
