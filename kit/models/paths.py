"""Two paths, one model: whether a bridge computes what transformers computes.

TransformerLens computes attention anew, so that its patterns can be hooked; on some architectures
it computes another model (rotary pairs of Cohere, split heads of DeepSeek V2). So the two are
compared on a few tokens, once for each model.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kit.models.bridge import runtime
from kit.models.hook_points import Hooks, at_bridge, at_decoder

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_TOKENS = 12
# half precision rounds each of some thirty blocks anew, and may send a token to another expert
_MOST = {torch.float32: 2e-3, torch.float64: 2e-3}
_MOST_HALF = 0.15


def sample_tokens(vocabulary: int) -> Tensor:
    """A few fixed tokens ``[1, 12]``."""
    return torch.randint(vocabulary, (1, _TOKENS), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def sample_logits(module: nn.Module, vocabulary: int, n: int = _TOKENS) -> Tensor:
    """Logits ``[n, vocabulary]`` of the first n of them, float32, on the CPU."""
    where = next(module.parameters()).device
    return module(input_ids=sample_tokens(vocabulary)[:, :n].to(where)).logits[0].float().cpu()


def reference_logits(hf: Any) -> Tensor:
    """The sample logits of a model that is not wrapped yet.

    Raises:
        ValueError: it is no causal language model: it has an encoder, or reads ahead.
    """
    vocabulary = hf.config.get_text_config().vocab_size
    kind = "is an encoder with a decoder" if hf.config.is_encoder_decoder else ""
    if not kind:
        whole, part = sample_logits(hf, vocabulary), sample_logits(hf, vocabulary, _TOKENS // 2)
        limit = _MOST.get(hf.dtype, _MOST_HALF)
        kind = "reads ahead of each token" if difference(whole[: len(part)], part, hf.dtype) > limit else ""
    if kind:
        raise ValueError(f"{type(hf).__name__} {kind}: the kit steers causal language models")
    return whole


def difference(a: Tensor, b: Tensor, dtype: torch.dtype = torch.float32) -> float:
    """How far logits ``[pos, vocabulary]`` are apart, as a share of their own spread: where they
    are farthest; in half precision at the middle position, since it may route some tokens to other
    experts."""
    a, b = (x - x.mean(-1, keepdim=True) for x in (a, b))  # TransformerLens may centre the unembedding
    spread = b.norm(dim=-1)
    gaps = (a - b).norm(dim=-1) / spread.clamp(min=1e-9)  # [pos]
    found = float(gaps.max() if dtype in _MOST else gaps.median())
    return found if found == found else float("inf")


@torch.no_grad()
def apart(model: TransformerBridge) -> float:
    """How far bridge and decoder are apart on a few tokens with a step at a middle block (so that a
    hook point that nothing passes shows too); see :func:`difference`. Infinite where the bridge
    fails."""
    state, layer = runtime(model), (model.cfg.n_layers - 1) // 2
    d = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(0))

    def step(x: Tensor, _given: Tensor | None) -> Tensor:  # half as long as the stream itself
        return x + 0.5 * x.norm(dim=-1, keepdim=True) * (d / d.norm()).to(x)

    def steered(attach: Any, module: nn.Module) -> Tensor:
        with Hooks() as hooks:
            hooks.put(lambda: attach(model, layer, "resid", step))
            return sample_logits(module, model.cfg.d_vocab)

    with state.lock:
        wanted = steered(at_decoder, state.decoder)
        try:
            return difference(steered(at_bridge, model.original_model), wanted, model.cfg.dtype)
        except Exception:  # whatever breaks in a wrapped module: the decoder does without
            return float("inf")


def check_paths(model: TransformerBridge) -> None:
    """Compare a bridge with its decoder, once for each state of the weights.

    Raises:
        ValueError: they compute different models.
    """
    state = runtime(model)
    if state.shares_weights and (gap := state.kept("paths", lambda: apart(model))) > most(model):
        how = f"logits differ by {gap:.0%} of their spread" if gap < float("inf") else "it fails on a few tokens"
        raise ValueError(
            f"{architecture(model)}: TransformerLens's bridge does not compute what "
            f"transformers computes here ({how}), so kit.steer and hooks on the bridge would steer another model; "
            "kit.generate runs transformers' own modules and is right"
        )


def most(model: TransformerBridge) -> float:
    """The largest :func:`difference` that rounding explains."""
    return _MOST.get(model.cfg.dtype, _MOST_HALF)


def settle(model: TransformerBridge, reference: Tensor) -> None:
    """Make a fresh bridge compute what the plain model computed before it was wrapped.

    Where TransformerLens's attention computes something else, transformers' own runs in its place:
    hook points inside of it that have no module (scores, patterns, rotated queries) then stay
    silent, which is said.
    """
    if _gap(model, reference) <= most(model):
        return
    from transformer_lens.model_bridge.generalized_components import AttentionBridge

    own = [m for m in model.original_model.modules() if isinstance(m, AttentionBridge)]
    for attention in own:  # its own setting of attributes writes through to what it wraps
        object.__setattr__(attention, "forward", _native(attention))
    if _gap(model, reference) <= most(model):
        _say(
            f"{architecture(model)}: TransformerLens's attention computes another model, so the bridge runs "
            "transformers' own; its hook points for scores, patterns and rotated queries stay silent"
        )
        return
    for attention in own:  # the class's again: check_paths refuses what steers through it
        object.__delattr__(attention, "forward")
    _say(
        f"{architecture(model)}: the bridge of TransformerLens computes another model; only the kit's decoder is right"
    )


def _gap(model: TransformerBridge, reference: Tensor) -> float:
    try:
        plain = difference(sample_logits(model.original_model, model.cfg.d_vocab), reference, model.cfg.dtype)
    except Exception:
        return float("inf")
    return max(plain, apart(model)) if runtime(model).shares_weights else plain


def _say(message: str) -> None:
    sys.stderr.write(message + "\n")


def _native(attention: Any) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:
        if "hidden_states" in kwargs:
            kwargs["hidden_states"] = attention.hook_in(kwargs["hidden_states"])
        else:
            args = (attention.hook_in(args[0]), *args[1:])
        out = attention.original_component(*args, **kwargs)
        if isinstance(out, tuple):
            return (attention.hook_out(out[0]), *out[1:])
        return attention.hook_out(out)

    return forward


def architecture(model: TransformerBridge) -> str:
    """The name of its class in transformers."""
    return str(
        (getattr(model.original_model.config, "architectures", None) or [type(model.original_model).__name__])[0]
    )
