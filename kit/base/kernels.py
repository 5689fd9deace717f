"""Kernels of torch that stand aside where derivatives need plain ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Fused kernels out of the way of forward mode and of second derivatives.

    Fused attention has neither; the fused layer norm has a wrong second derivative wherever
    forward mode takes part, and says nothing (seen in torch 2.13).
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH), _PlainNorm():
        yield


class _PlainNorm(TorchFunctionMode):
    def __torch_function__(self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.layer_norm:
            return _layer_norm(*args, **kwargs)
        return func(*args, **kwargs)


def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    over = tuple(range(-len(shape), 0))
    x = x - x.mean(over, keepdim=True)
    x = x * (x.square().mean(over, keepdim=True) + eps).rsqrt()
    x = x if weight is None else x * weight
    return x if bias is None else x + bias
