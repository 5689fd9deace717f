"""Matrix products by the kernel that is fastest for their number of rows, on a CPU."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``: x ``[..., in]``, weight ``[out, in]``; differentiable."""
    # the fused operator has no derivative, which a transform (torch.func) does not show as
    # requires_grad
    if torch.is_grad_enabled() or not _onednn_is_faster(x.numel() // weight.shape[1], weight):
        return nn.functional.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _onednn_is_faster(rows: int, weight: Tensor) -> bool:
    # Over a few rows oneDNN is up to a fifth faster than MKL with a float32 matrix, and up to two
    # thirds with a large one (`make bench`: decode and ladder); below this size its call overhead
    # eats the gain. For one row, or on one thread, only matrices that no cache holds (the
    # unembedding) gain.
    size = weight.numel()
    return (
        size > 300_000
        and (size > 4_000_000 or (rows > 1 and torch.get_num_threads() > 1))
        and weight.dtype == torch.float32
        and weight.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
    )


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
