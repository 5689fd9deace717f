"""From logits to tokens, text, and what each token cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kit.base.divergence import kl
from kit.models.bridge import runtime
from kit.models.unopened import is_open
from kit.steering.results import TokenMeasure

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class Sampler:
    """Greedy, or a generator for each row, all seeded alike, so that rows stay independent."""

    def __init__(self, rows: int, temperature: float, seed: int) -> None:
        self.temperature = temperature
        self.generators = [torch.Generator().manual_seed(seed) for _ in range(rows)]

    def __call__(self, logits: Tensor) -> Tensor:
        logits = logits.float().nan_to_num()  # float16 overflows under absurd coefficients
        if self.temperature == 0:
            return logits.argmax(-1)
        p = (logits / self.temperature).softmax(-1).cpu()
        drawn = [torch.multinomial(row, 1, generator=g) for row, g in zip(p, self.generators, strict=True)]
        return torch.cat(drawn).to(logits.device)


class Pieces:
    """Text that each token completes; half a character waits for the token that ends it."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.shown = tokenizer, 0
        self.tokens: list[int] = []

    def add(self, token: int) -> str:
        """The text that this token completes; empty while a character is still unfinished."""
        self.tokens.append(token)
        text = self.tokenizer.decode(self.tokens)
        if text.endswith("\ufffd"):
            return ""
        piece, self.shown = text[self.shown :], len(text)
        return piece


def measure_tokens(
    model: TransformerBridge, logits: Tensor, chosen: Tensor, shadow_of: Sequence[int]
) -> dict[int, TokenMeasure]:
    """A :class:`TokenMeasure` for each row; a row without a shadow is its own baseline."""
    n = len(chosen)
    log_p = logits.float().log_softmax(-1).nan_to_num(neginf=-1e4)
    baseline = torch.arange(n)
    baseline[list(shadow_of)] = torch.arange(n, len(logits))
    before = log_p[baseline]
    after = log_p[:n]
    nats = kl(after, before).clamp(min=0).tolist()
    nll = (-before.gather(-1, chosen[:, None])[:, 0]).tolist()
    tops = [_top(model, before), _top(model, after)]
    return {i: TokenMeasure(nats[i], nll[i], tops[0][i], tops[1][i]) for i in range(n)}


def _top(model: TransformerBridge, log_p: Tensor) -> list[list[tuple[str, float]]]:
    p, ids = log_p.exp().topk(5, dim=-1)
    return [
        [(model.tokenizer.decode([t]), q) for t, q in zip(*pair, strict=True)]
        for pair in zip(ids.tolist(), p.tolist(), strict=True)
    ]


def end_tokens(model: TransformerBridge) -> set[int]:
    """Tokens at which a row ends: the generation config's and the tokenizer's."""
    # a bridge that is not made yet is Llama's, whose tokenizer knows
    config = getattr(model.original_model, "generation_config", None) if is_open(model) else None
    ends = getattr(config, "eos_token_id", None)
    found = ends if isinstance(ends, list) else [ends]
    return {t for t in [*found, runtime(model).tokenizer.eos_token_id] if t is not None}
