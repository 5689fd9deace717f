"""What a direction says to the vocabulary, if nothing came between it and the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kit.models.bridge import norm_gain, runtime, unwrapped, without_bias
from kit.models.fast_linear import product
from kit.models.hook_points import Hooks, output_of
from kit.models.paths import architecture, difference, most, sample_tokens

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False)
class Ends:
    """Both ends of a direction's logits.

    Attributes:
        top, bottom: token ids and logits, most extreme first.
        dropped: ids that were left out, for the norm of their unembedding.
    """

    top: list[tuple[int, float]]
    bottom: list[tuple[int, float]]
    dropped: list[int]


@torch.no_grad()
def logit_lens(model: TransformerBridge, direction: Tensor, n: int = 10, *, mads: float = 5.0) -> Ends:
    """Multiply a direction with the final norm's gain and the unembedding (nostalgebraist 2020),
    less its mean where that norm takes it out, and with the logits' factor where there is one.

    Args:
        direction: ``[d_model]``.
        mads: tokens are left out whose unembedding is longer than the median by more than so many
            median absolute deviations (times 1.4826): rarely used tokens may have huge ones, which
            head every list. Logan Riggs's dictionaries of Pythia left out norms above 20, which
            fits that model; this rule fits any.

    Raises:
        ValueError: a direction of another shape, or an architecture whose logits are not made so.
    """
    if direction.shape != (model.cfg.d_model,):
        raise ValueError(f"direction has shape {list(direction.shape)}: give [{model.cfg.d_model}]")
    drop = long_tokens(model, mads)
    logits = direction_logits(model, direction[None])[0]
    logits[drop] = 0.0
    order = logits.argsort(descending=True)
    order = order[~torch.isin(order, drop)]
    return Ends(
        [(int(i), float(logits[i])) for i in order[:n]],
        [(int(i), float(logits[i])) for i in order.flip(0)[:n]],
        drop.tolist(),
    )


@torch.no_grad()
def direction_logits(model: TransformerBridge, rows: Tensor) -> Tensor:
    """What directions ``[k, d_model]`` add to the logits of each token, but for the size of the
    stream that the final norm divides by: float32 ``[k, d_vocab]``.

    Raises:
        ValueError: an architecture whose logits are not made so.
    """
    words, end = _unembedding(model), _end(model)
    return product(end.normed(rows.to(words)), words) * end.factor


@torch.no_grad()
def token_directions(model: TransformerBridge, tokens: Sequence[int]) -> Tensor:
    """By what a stream before the final norm is multiplied for each token's logit, less the mean
    over the vocabulary (which no probability sees): float32 ``[tokens, d_model]``.

    Raises:
        ValueError: an architecture whose logits are not made so.
    """
    words, end = _unembedding(model), _end(model)
    return end.readers(words[list(tokens)]) - end.readers(words.mean(0))


@torch.no_grad()
def stream_logits(model: TransformerBridge, stream: Tensor) -> Tensor:
    """What the model would say if ``stream`` ``[..., d_model]`` came out of its last block: by its
    own final norm, unembedding, factor and soft cap; float32 ``[..., d_vocab]``.

    Raises:
        ValueError: an architecture whose logits are not made so.
    """
    decoder: Any = runtime(model).decoder
    head: Any = decoder.get_output_embeddings()
    weight, end = head.weight, _end(model)
    stream = stream.to(weight)
    normed = stream if end.norm is None else end.norm(stream)
    logits = product(normed.to(weight), weight, getattr(head, "bias", None)).float() * end.factor
    return logits if end.cap is None else end.cap * (logits / end.cap).tanh()


@torch.no_grad()
def long_tokens(model: TransformerBridge, mads: float = 5.0) -> Tensor:
    """Ids of tokens whose unembedding is unusually long; see :func:`logit_lens`."""
    if not mads > 0:
        raise ValueError(f"mads={mads!r}: give a positive number; inf keeps every token")
    # a hundred milliseconds, and every page asks
    norm = runtime(model).kept("lens norms", lambda: _end(model).readers(_unembedding(model)).norm(dim=-1))
    middle = norm.median()
    spread = 1.4826 * (norm - middle).abs().median()
    return (norm > middle + mads * spread).nonzero()[:, 0]


@torch.no_grad()
def direct_attribution(model: TransformerBridge, rows: Tensor, stream: Tensor, tokens: Sequence[int]) -> Tensor:
    """Logits that pieces of the residual stream give directly, at one position.

    The final norm's scale is the one that it has there (frozen), so that the pieces of a stream add
    up to its logits, less the biases of norm and unembedding and before a soft cap.

    Args:
        rows: ``[k, d_model]``, pieces (a latent's activation times its decoder row, say).
        stream: ``[d_model]``, the stream after the last block at that position.
        tokens: whose logits.

    Returns:
        float32 ``[k, tokens]``.

    Raises:
        ValueError: an architecture whose logits are not made so.
    """
    words, end = _unembedding(model)[list(tokens)], _end(model)
    home, rows, stream = rows.device, rows.to(words), stream.to(words)
    return (end.normed(rows) * end.size_at(stream) @ words.T * end.factor).to(home)


@torch.no_grad()
def said_by(model: TransformerBridge) -> Tensor:
    """A square root ``[d_model, d_model]`` of how directions act on log-odds: the length of
    ``direction @ root`` is that of the change of all logits, less their mean over the vocabulary.
    """

    def root() -> Tensor:
        rows = _end(model).readers(_unembedding(model))
        rows = (rows - rows.mean(0)).double()
        size, axes = torch.linalg.eigh(rows.T @ rows)
        return (axes * size.clamp(min=0).sqrt()).float()

    return runtime(model).kept("lens root", root)


@dataclass(frozen=True, eq=False)
class _End:
    """What stands between the stream after the last block and the unembedding.

    Attributes:
        norm: the final one; None where there is none.
        gain: ``[d_model]``, the norm's.
        centred: whether the norm takes the mean out.
        factor: of the logits; cap: at which they bend, None where they do not.
    """

    norm: nn.Module | None
    gain: Tensor
    centred: bool
    factor: float = 1.0
    cap: float | None = None

    def normed(self, rows: Tensor) -> Tensor:
        """What the norm makes of pieces of the stream ``[..., d_model]``, but for its size."""
        return _centre(rows, self.centred) * self.gain.to(rows)

    def readers(self, words: Tensor) -> Tensor:
        """The other way round: by what a piece is multiplied for each word's logit,
        ``[words, d_model]`` of unembeddings."""
        return _centre(words * self.gain.to(words), self.centred) * self.factor

    def size_at(self, stream: Tensor) -> float:
        """By what the norm multiplies at a stream ``[d_model]``, its gain aside."""
        if self.norm is None:
            return 1.0
        weight = next(self.norm.parameters(), stream)
        own = self.normed(stream)
        found = without_bias(self.norm, stream.to(weight)).to(own)
        return float((found * own).sum() / own.square().sum())


def _centre(rows: Tensor, centred: bool) -> Tensor:
    return rows - rows.mean(-1, keepdim=True) if centred else rows


@torch.no_grad()
def _end(model: TransformerBridge) -> _End:
    """Measured once on a few tokens, and checked: the pieces must add up to the logits.

    Raises:
        ValueError: they do not.
    """

    def measure() -> _End:
        state, width = runtime(model), model.cfg.d_model
        decoder: Any = state.decoder
        norm, end = _final_norm(model), _End(None, torch.ones(width), centred=False)
        if norm is not None:
            end = _End(norm, norm_gain(norm, width), _takes_mean_out(norm, width))
        found: list[Tensor] = []
        last = state.block(model.cfg.n_layers - 1)
        with state.lock, Hooks() as hooks:
            hooks.put(lambda: last.register_forward_hook(lambda _m, _i, out: found.append(output_of(out))))
            logits = decoder(input_ids=sample_tokens(model.cfg.d_vocab).to(model.cfg.device)).logits
        head: Any = decoder.get_output_embeddings()
        bias = getattr(head, "bias", None)
        normed = (found[0] if norm is None else norm(found[0].to(model.cfg.device)))[0]  # [pos, d_model]
        if normed.shape[-1] != head.weight.shape[-1]:
            raise ValueError(
                _no_lens(model, f"its unembedding reads {head.weight.shape[-1]} numbers of a stream of {width}")
            )
        raw = nn.functional.linear(normed.to(head.weight), head.weight, bias).float()
        want = logits[0].float().to(raw.device)
        config = decoder.config.get_text_config() if hasattr(decoder, "config") else None  # ours is plain
        cap = next((c for name in _CAPS if (c := getattr(config, name, None))), None)
        if cap:
            want = cap * (want / cap).clamp(-1 + 1e-6, 1 - 1e-6).atanh()
        factor = _of_config(float((want * raw).sum() / raw.square().sum()), config)
        if (gap := difference((factor * raw).cpu(), want.cpu(), model.cfg.dtype)) > most(model):
            raise ValueError(
                _no_lens(model, f"norm and unembedding give logits that are off by {gap:.0%} of their spread")
            )
        return replace(end, factor=factor, cap=cap)

    return runtime(model).kept("lens", measure)


_CAPS = ("final_logit_softcapping", "logits_soft_cap")


def _no_lens(model: TransformerBridge, why: str) -> str:
    return f"{architecture(model)}: no logit lens reads this architecture: {why}"


def _of_config(measured: float, config: Any) -> float:
    """A measured factor, as exact as the config says it."""
    told = {} if config is None else config.to_dict()
    numbers = [n for n in told.values() if isinstance(n, int | float) and not isinstance(n, bool) and n > 0]
    near = [n for number in [1.0, *numbers] for n in (number, 1 / number) if abs(n / measured - 1) < 0.01]
    return float(min(near, key=lambda n: abs(n / measured - 1), default=measured))


def _takes_mean_out(norm: nn.Module, width: int) -> bool:
    weight = next(norm.parameters(), torch.zeros(()))
    signs = torch.ones(width).index_fill(0, torch.arange(1, width, 2), -1.0).to(weight)
    pair = norm(torch.stack([signs, signs + 1])[None])[0].float()
    return torch.allclose(pair[0], pair[1], atol=0.05 * float(pair.abs().max()))


def _words(model: TransformerBridge) -> Tensor:
    decoder: Any = runtime(model).decoder
    return decoder.get_output_embeddings().weight.detach()


def _unembedding(model: TransformerBridge) -> Tensor:
    """``[d_vocab, d_model]``, float32."""
    return _words(model).float()


def _final_norm(model: TransformerBridge) -> nn.Module | None:
    state = runtime(model)
    return unwrapped(state.decoder.get_submodule(state.final_norm)) if state.final_norm else None
