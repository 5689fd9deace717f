"""What a direction says to the vocabulary, if nothing came between it and the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kit.models.bridge import norm_gain, runtime, unwrapped

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False)
class Lens:
    """Both ends of a direction's logits.

    Attributes:
        top, bottom: token ids and logits, most extreme first.
        dropped: ids that were left out, for the norm of their unembedding.
    """

    top: list[tuple[int, float]]
    bottom: list[tuple[int, float]]
    dropped: list[int]


@torch.no_grad()
def logit_lens(model: TransformerBridge, direction: Tensor, n: int = 10, *, mads: float = 5.0) -> Lens:
    """Multiply a direction with the final norm's gain and the unembedding (nostalgebraist 2020).

    Args:
        direction: ``[d_model]``.
        mads: tokens are left out whose unembedding is longer than the median by more than so many
            median absolute deviations (times 1.4826): rarely used tokens may have huge ones, which
            head every list. Logan Riggs's dictionaries of Pythia left out norms above 20, which
            fits that model; this rule fits any.

    Raises:
        ValueError: a direction of another shape.
    """
    if direction.shape != (model.cfg.d_model,):
        raise ValueError(f"direction has shape {list(direction.shape)}: give [{model.cfg.d_model}]")
    rows, drop = _unembedding(model), long_tokens(model, mads)
    logits = rows @ (direction.to(rows) * _gain(model))
    logits[drop] = 0.0
    order = logits.argsort(descending=True)
    order = order[~torch.isin(order, drop)]
    return Lens(
        [(int(i), float(logits[i])) for i in order[:n]],
        [(int(i), float(logits[i])) for i in order.flip(0)[:n]],
        drop.tolist(),
    )


@torch.no_grad()
def long_tokens(model: TransformerBridge, mads: float = 5.0) -> Tensor:
    """Ids of tokens whose unembedding is unusually long; see :func:`logit_lens`."""
    if not mads > 0:
        raise ValueError(f"mads={mads!r}: give a positive number; inf keeps every token")
    # a hundred milliseconds, and every page asks
    norm = runtime(model).kept("lens norms", lambda: (_unembedding(model) * _gain(model)).norm(dim=-1))
    middle = norm.median()
    spread = 1.4826 * (norm - middle).abs().median()
    return (norm > middle + mads * spread).nonzero()[:, 0]


@torch.no_grad()
def direct_attribution(model: TransformerBridge, rows: Tensor, stream: Tensor, tokens: Sequence[int]) -> Tensor:
    """Logits that pieces of the residual stream give directly, at one position.

    The final norm's scale is the one that it has there (frozen), so that the pieces of a stream add
    up to its logits, less the unembedding's bias.

    Args:
        rows: ``[k, d_model]``, pieces (a latent's activation times its decoder row, say).
        stream: ``[d_model]``, the stream after the last block at that position.
        tokens: whose logits.

    Returns:
        float32 ``[k, tokens]``.
    """
    norm, words = _final_norm(model), _unembedding(model)[list(tokens)]
    home, rows, stream = rows.device, rows.to(words), stream.to(words)
    if isinstance(norm, nn.LayerNorm):
        rows = rows - rows.mean(-1, keepdim=True)
        stream = stream - stream.mean()
    scale = (stream.square().mean() + getattr(norm, "eps", getattr(norm, "variance_epsilon", 0.0))).rsqrt()
    return (rows * scale * _gain(model) @ words.T).to(home)


@torch.no_grad()
def said_by(model: TransformerBridge) -> Tensor:
    """A square root ``[d_model, d_model]`` of how directions act on log-odds: the length of
    ``direction @ root`` is that of the change of all logits, less their mean over the vocabulary.
    """

    def root() -> Tensor:
        rows = _unembedding(model) * _gain(model)
        rows = (rows - rows.mean(0)).double()
        size, axes = torch.linalg.eigh(rows.T @ rows)
        return (axes * size.clamp(min=0).sqrt()).float()

    return runtime(model).kept("lens root", root)


def _words(model: TransformerBridge) -> Tensor:
    decoder: Any = runtime(model).decoder
    return decoder.get_output_embeddings().weight.detach()


def _unembedding(model: TransformerBridge) -> Tensor:
    """``[d_vocab, d_model]``, float32."""
    return _words(model).float()


def _final_norm(model: TransformerBridge) -> nn.Module:
    path = model.adapter.component_mapping["ln_final"].name
    return unwrapped(runtime(model).decoder.get_submodule(path))


def _gain(model: TransformerBridge) -> Tensor:
    """The final norm's, ``[d_model]``, where the unembedding is."""
    return norm_gain(_final_norm(model)).to(_words(model).device)
