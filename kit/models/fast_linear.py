"""The decoder's module tree: a second one over a model's weights, with faster matrix products."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn


def same_weights(hf: nn.Module) -> nn.Module:
    """A second module tree over the same parameters and buffers: no weight is copied."""
    shared = {id(t): t for t in [*hf.parameters(), *hf.buffers()]}
    twin = copy.deepcopy(hf, shared)
    for module in twin.modules():
        if type(module) is nn.Linear and _onednn_is_faster(module.weight):
            module.forward = partial(_onednn_linear, module)  # type: ignore[method-assign]
    return twin


def _onednn_is_faster(weight: Tensor) -> bool:
    # Over a few rows oneDNN is up to a fifth faster than MKL with a float32 matrix, and up to two
    # thirds with a large one (`make bench`: decode and ladder); below this size its call overhead
    # eats the gain.
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and weight.numel() > 300_000
    )


def _onednn_linear(module: nn.Linear, x: Tensor) -> Tensor:
    # for one row, or on one thread, only matrices that no cache holds (the unembedding) gain; and
    # the fused operator has no derivative, which a transform (torch.func) does not show as
    # requires_grad
    few = x.shape[:-1].numel() == 1 or torch.get_num_threads() == 1
    if (few and module.weight.numel() < 4_000_000) or torch.is_grad_enabled():
        return nn.functional.linear(x, module.weight, module.bias)
    return torch.ops.mkldnn._linear_pointwise(x, module.weight, module.bias, "none", [], "")
