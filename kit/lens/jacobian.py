"""The Jacobian of the last stream of one text, at every layer at once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from kit.base.threads import fitted
from kit.models.activations import Enough
from kit.models.bridge import runtime
from kit.models.hook_points import Hooks, output_of, with_output

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def of_text(model: TransformerBridge, row: Tensor, layers: Sequence[int], skip: int, batch: int) -> Tensor:
    """How the stream before the final norm follows the streams after some blocks, on one text:
    float32 ``[layers, d_model, d_model]``, on the CPU, rows what is read and columns what is moved.

    A row is the gradient of one number of the last stream, summed over the positions that count,
    and averaged over those where the earlier stream is moved; attention looks back only, so each of
    them is credited with itself and with what comes later.

    Args:
        row: ``[n]`` tokens; the first ``skip`` and the last do not count.
        layers: all below the last one.
        batch: rows of the Jacobian that one backward pass gives: the text runs so many times side
            by side, once.
    """
    width, last = model.cfg.d_model, model.cfg.n_layers - 1
    valid = slice(skip, len(row) - 1)
    streams, end = _streams(model, row.expand(batch, -1), layers, last)
    found = torch.empty(len(layers), width, width)
    cotangent, each = torch.zeros_like(end), torch.arange(batch, device=end.device)
    for start in range(0, width, batch):
        n = min(batch, width - start)
        cotangent.zero_()
        cotangent[each[:n], valid, start + each[:n]] = 1.0  # [batch, pos, d_model]: one number of each copy
        more = start + batch < width
        with runtime(model).lock, fitted(cotangent[..., 0].numel()):
            gradients = torch.autograd.grad(end, streams, cotangent, retain_graph=more)
        for at, gradient in enumerate(gradients):
            found[at, start : start + n] = gradient[:n, valid].float().mean(1).cpu()
    return found


def _streams(model: TransformerBridge, tokens: Tensor, layers: Sequence[int], last: int) -> tuple[list[Tensor], Tensor]:
    """The streams ``[rows, pos, d_model]`` after some blocks and after the last one, in one graph
    that begins at the first of them."""
    state, first = runtime(model), min(layers)
    kept: dict[int, Tensor] = {}

    def keep(layer: int, _module: Any, _args: Any, out: Any) -> Any:
        stream = output_of(out)
        kept[layer] = stream.detach().requires_grad_() if layer == first else stream
        if layer == last:
            raise Enough
        return with_output(out, kept[layer].clone())  # what a later block adds in place is not the stream's

    # the CPU's fused attention is slower backwards, where nearly all time goes
    attention = sdpa_kernel(SDPBackend.MATH) if model.cfg.device == "cpu" else nullcontext()
    with state.lock, fitted(tokens.numel()), attention, Hooks() as hooks, torch.enable_grad(), suppress(Enough):
        for layer in {*layers, last}:
            hooks.put(partial(state.block(layer).register_forward_hook, partial(keep, layer)))
        state.clean(input_ids=tokens.to(model.cfg.device), use_cache=False)
    return [kept[layer] for layer in layers], kept[last]
