"""Supervised steering vectors: gradient descent on what the model should say, or not say.

One vector is optimised through the frozen model, on as little as one example (Subramani, Suresh and
Peters, 2022, arXiv:2205.05124; one-shot: Dunefsky and Cohan, 2025, arXiv:2502.18862). The same
thing is an activation-space attack when the continuation is one that the model was trained to
refuse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from kit.base.checks import check_counts, check_positive
from kit.base.directions import random_units
from kit.base.divergence import kl
from kit.base.progress import track
from kit.base.shipped import neutral_texts
from kit.base.threads import fitted
from kit.models.activations import residual_scale
from kit.models.bridge import check_layer, fingerprint
from kit.models.positions import Positions, select
from kit.models.tokens import Text, text_rows, text_tokens
from kit.search.layer_slice import steered_logits
from kit.search.radius import dose
from kit.steering.vectors import SteeringVector

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def fit(
    model: TransformerBridge,
    prompts: Text | Sequence[Text],
    targets: str | Sequence[str | None] | None,
    layer: int,
    *,
    avoid: str | Sequence[str | None] | None = None,
    radius: float | None = None,
    penalty: Literal["norm", "kl"] | None = None,
    weight: float = 1.0,
    steps: int = 60,
    rate: float = 0.05,
    positions: Positions = "all",
    seed: int = 0,
    name: str = "optimised",
) -> SteeringVector:
    """Find one vector that makes given continuations likely, or unlikely.

    Minimises, in mean over the prompts, ``-log p(target)`` per token and
    ``-log(1 - p(avoid))``, with p the probability of the whole continuation, plus the penalty.

    Args:
        prompts: one or several user messages or token tensors.
        targets: for each prompt (or one for all) a continuation to promote; None promotes nothing.
        avoid: the same, to suppress.
        layer: the block after which the vector acts.
        radius: the longest norm allowed, in units of :func:`kit.residual_scale` (default 0.5).
        penalty: ``"norm"``, for the shortest vector that works: the length (in residual scales)
            times ``weight`` is added; ``"kl"``: the mean KL(steered || unsteered) in nats a token
            on neutral text is added, times ``weight``.
        steps, rate: of Adam; a step moves a coordinate by at most ``rate * scale / sqrt(d_model)``
            times ten.
        positions: where it acts, see :func:`kit.models.positions.select`. Positions after the
            prompt belong to the continuation.
        seed: of the start, a random direction at a hundredth of the residual scale.

    Returns:
        A unit vector at the layer. ``metadata["coefficient"]`` is the length found, to steer with;
        ``metadata`` also holds the loss, the probabilities reached and whether it was interrupted
        (the best so far is kept).

    Raises:
        ValueError: an argument that makes no sense, as many targets as there are no prompts, or
            neither targets nor anything to avoid.
    """
    check_layer(model, layer)
    rows = text_rows(model, prompts, "prompts", prompts=True)
    if penalty not in ("norm", "kl", None):
        raise ValueError(f"penalty={penalty!r}: use 'norm', 'kl' or None")
    check_counts(steps=steps)
    check_positive(radius=0.5 if radius is None else radius, weight=weight, rate=rate)
    examples = [
        _Example(model, row[None], text, sign, positions)
        for sign, texts in ((1, targets), (-1, avoid))
        for row, text in zip(rows, _spread(texts, len(rows), sign), strict=True)
        if text is not None
    ]
    if not examples:
        raise ValueError("targets=None and avoid=None: give something to promote or to suppress")
    scale = residual_scale(model, layer)
    cost = _Cost(model, layer, penalty, weight, scale)
    start = random_units(1, model.cfg.d_model, seed).to(model.cfg.device)
    theta = (0.01 * scale * start).requires_grad_()
    longest = scale * (0.5 if radius is None else radius)
    optimiser = torch.optim.Adam([theta], lr=10 * rate * scale / math.sqrt(model.cfg.d_model))
    best, least = theta.detach().clone(), math.inf
    history: list[float] = []
    with suppress(KeyboardInterrupt):
        for _ in track(range(steps), "steps", status=lambda: f"loss {history[-1]:.3g}"):
            optimiser.zero_grad()
            with fitted(2), torch.enable_grad():
                loss = cost(theta)
                for example in examples:
                    loss = loss + example.loss(layer, theta) / len(examples)
                loss.backward()
            now = loss.item()
            if now < least:
                best, least = theta.detach().clone(), now
            history.append(now)
            optimiser.step()
            with torch.no_grad():
                theta *= (longest / theta.norm()).clamp(max=1)
    if not history:
        raise KeyboardInterrupt("stopped before the first step was whole")
    length = float(best.norm()) / scale
    with torch.no_grad():
        reached = [float(example.log_p(layer, best).exp()) for example in examples]
    about: dict[str, Any] = {
        **dose(length),
        "loss": least,
        "probabilities": reached,
        "steps": len(history),
        "interrupted": len(history) < steps,
        "seed": seed,
    }
    return SteeringVector(best[0], layer, name, "optimised", fingerprint=fingerprint(model), metadata=about)


class _Example:
    """One continuation of one prompt, promoted (sign 1) or suppressed (-1)."""

    def __init__(self, model: TransformerBridge, prompt: Tensor, text: str, sign: int, positions: Positions) -> None:
        ids = model.tokenizer(text, add_special_tokens=False).input_ids
        if not ids:
            raise ValueError(f"target {text!r} holds no token")
        self.model, self.sign = model, sign
        self.target = torch.tensor(ids, device=prompt.device)
        # the last token of the continuation is only ever predicted
        self.tokens = torch.cat([prompt, self.target[None, :-1]], dim=1)
        index = torch.arange(self.tokens.shape[1], device=prompt.device)
        self.where = select(positions, index, prompt.shape[1])
        if not bool(self.where.any()):
            raise ValueError(
                f"positions={positions!r}: nothing of a prompt of {prompt.shape[1]} tokens would be steered"
            )

    def log_p(self, layer: int, theta: Tensor) -> Tensor:
        n = len(self.target)
        out = steered_logits(self.model, self.tokens, layer, theta, self.where, keep=n)
        return out[0].log_softmax(-1)[torch.arange(n, device=out.device), self.target].sum()

    def loss(self, layer: int, theta: Tensor) -> Tensor:
        log_p = self.log_p(layer, theta)
        if self.sign > 0:
            return -log_p / len(self.target)
        return -torch.log1p(-log_p.exp().clamp(max=1 - 1e-6))


class _Cost:
    """What is added to the loss: the length, or the damage on neutral text."""

    def __init__(self, model: TransformerBridge, layer: int, penalty: str | None, weight: float, scale: float) -> None:
        self.model, self.layer, self.penalty = model, layer, penalty
        self.weight, self.scale = weight, scale
        if penalty == "kl":
            texts = neutral_texts()[:2]
            self.texts = [text_tokens(model, t)[:, :48] for t in texts]
            zero = torch.zeros(1, model.cfg.d_model, device=model.cfg.device)
            with torch.no_grad():
                self.plain = [self._log_p(t, zero) for t in self.texts]

    def _log_p(self, tokens: Tensor, theta: Tensor) -> Tensor:
        keep = tokens.shape[1]
        return steered_logits(self.model, tokens, self.layer, theta, keep=keep).log_softmax(-1)

    def __call__(self, theta: Tensor) -> Tensor:
        if self.penalty == "norm":
            return self.weight * theta.norm() / self.scale
        total = theta.new_zeros(())
        if self.penalty == "kl":
            for tokens, plain in zip(self.texts, self.plain, strict=True):
                total = total + kl(self._log_p(tokens, theta), plain).mean()
            total = self.weight * total / len(self.texts)
        return total


def _spread(texts: Any, n: int, sign: int) -> list[str | None]:
    if texts is None or isinstance(texts, str):
        return [texts] * n
    if len(texts) != n:
        which = "targets" if sign > 0 else "avoid"
        raise ValueError(f"{which} holds {len(texts)} continuations for {n} prompts")
    return list(texts)
