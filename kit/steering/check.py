"""``kit.check``: what to run before believing a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from kit.base.divergence import kl
from kit.base.html import CELL, PLAIN, SANS, SOFT, inline
from kit.base.threads import fitted
from kit.models.bridge import runtime
from kit.models.hook_points import hooks_left
from kit.models.paths import apart, most
from kit.models.tokens import prompt_tokens, text_tokens
from kit.steering.generation import generate, logits
from kit.steering.intervention import Intervention
from kit.steering.sweep import preference

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class CheckRow:
    """One thing that was checked: what, whether it holds, and the figures."""

    what: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class CheckResult:
    """The table of :func:`check`; true when every row holds."""

    rows: list[CheckRow]

    @property
    def passed(self) -> bool:
        """Whether every row holds."""
        return all(row.ok for row in self.rows)

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        width = max(len(row.what) for row in self.rows)
        return "\n".join(f"{'ok  ' if row.ok else 'FAIL'}  {row.what:<{width}}  {row.detail}" for row in self.rows)

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><td style="{CELL}"><b>{"ok" if row.ok else "FAIL"}</b></td>'
            f'<td style="{CELL}">{inline(row.what)}</td>'
            f'<td style="{CELL};color:{SOFT}">{inline(row.detail)}</td></tr>'
            for row in self.rows
        )
        style = f"border-collapse:collapse;table-layout:auto;font-family:{SANS}"
        return f'<table class="{PLAIN}" style="{style}">{rows}</table>'


@fitted(2)  # one count for all: other counts round otherwise, and rows are compared
def check(
    model: TransformerBridge,
    vector: Intervention,
    prompt: str | torch.Tensor = "How do you feel today?",
    *,
    coefficient: float = 0.3,
    claim: Sequence[Mapping[str, str]] | None = None,
    controls: int = 5,
    max_new_tokens: int = 8,
) -> CheckResult:
    """Test the machinery and the vector, on your model and your prompt.

    Args:
        coefficient: the dose at which the vector is checked.
        claim: probes that say what the vector does, each with ``prompt``, ``positive`` and
            ``negative`` (``kit.data.contrast(name)["probes"]``); the control then compares their
            mean log-probability shift with that of random vectors of the same norm. Without them
            it compares how far the output moves at all.
        controls: how many random vectors.

    Returns:
        A :class:`CheckResult`: bridge and decoder compute one model, zero coefficient changes
        nothing, cached equals uncached decoding,
        rows of a batch equal single runs, no hook is left, the vector changes the output, and it
        does so more than random vectors.
    """
    before = hooks_left(model)
    tokens = prompt_tokens(model, prompt)
    rungs: list[float | None] = [None, -coefficient, 0.0, coefficient]
    rows = [
        _paths(model),
        _zero(model, vector, tokens),
        _cached(model, vector, tokens, coefficient, max_new_tokens),
        _batched(model, vector, tokens, rungs, max_new_tokens),
    ]
    base, steered = (logits(model, tokens, vector, [c], keep=1)[0].float() for c in (None, coefficient))
    change = float((steered - base).abs().max())
    rows.append(
        CheckRow(
            "the vector changes the output",
            change > 1e-3,
            f"largest change of a logit {change:.2f} at {coefficient:+.2f}",
        )
    )
    rows.append(_random(model, vector, tokens, coefficient, claim, controls))
    left = hooks_left(model)
    rows.append(
        CheckRow(
            "hooks are back to what they were",
            left == before,
            f"{len(left)} on the model" + (f": {', '.join(left)}" if left else ""),
        )
    )
    return CheckResult(rows)


def _paths(model: TransformerBridge) -> CheckRow:
    what = "bridge and decoder compute one model"
    if not runtime(model).shares_weights:
        return CheckRow(what, True, "one path only: it was spread over devices, or loaded elsewhere")
    gap = apart(model)
    return CheckRow(what, gap <= most(model), f"steered logits of both differ by {gap:.1e} of their spread")


def _zero(model: TransformerBridge, vector: Intervention, tokens: torch.Tensor) -> CheckRow:
    zero, plain = logits(model, tokens, vector, [0.0]), logits(model, tokens)
    gap = float((zero - plain).abs().max())
    return CheckRow(
        "coefficient 0 equals no steering, exactly", torch.equal(zero, plain), f"largest difference of a logit {gap:g}"
    )


def _cached(model: TransformerBridge, vector: Intervention, tokens: torch.Tensor, c: float, n: int) -> CheckRow:
    cached = generate(model, tokens, vector, [c], max_new_tokens=n).rows[0].tokens
    text = tokens
    for _ in cached:
        out = logits(model, text, vector, [c], prompt_length=tokens.shape[1], keep=1)
        text = torch.cat([text, out.argmax(-1, keepdim=True)], dim=1)
    same = text[0, tokens.shape[1] :].tolist() == cached
    return CheckRow("cached decoding equals uncached", same, f"{len(cached)} tokens")


def _batched(
    model: TransformerBridge, vector: Intervention, tokens: torch.Tensor, rungs: Sequence[float | None], n: int
) -> CheckRow:
    ladder = generate(model, tokens, vector, rungs, max_new_tokens=n)
    alone = [generate(model, tokens, vector, [c], max_new_tokens=n).rows[0] for c in rungs]
    same = sum(a.tokens == b.tokens for a, b in zip(ladder.rows, alone, strict=True))
    return CheckRow(
        "each row of a ladder equals its single run", same == len(rungs), f"{same} of {len(rungs)} rows alike"
    )


def _random(
    model: TransformerBridge,
    vector: Intervention,
    tokens: torch.Tensor,
    c: float,
    claim: Sequence[Mapping[str, str]] | None,
    controls: int,
) -> CheckRow:
    arms = [vector, *[vector.random(seed) for seed in range(controls)]]  # type: ignore[attr-defined]
    rungs = [None, *[[c * (i == j) for j in range(len(arms))] for i in range(len(arms))]]
    if claim:
        effects = [0.0] * len(arms)
        for probe in claim:
            start = text_tokens(model, probe["prompt"])
            shifts = preference(model, start, probe["positive"], probe["negative"], arms, rungs)
            for i, shift in enumerate(shifts[1:]):
                effects[i] += (shift - shifts[0]) / len(claim)
        what, unit = "moves in the claimed direction", f"nats on {len(claim)} probes"
    else:
        log_p = logits(model, tokens, arms, rungs, keep=1).float().log_softmax(-1)
        effects = kl(log_p[1:], log_p[0]).tolist()
        what, unit = "moves the output", "nats of KL"
    own, others = effects[0], effects[1:]
    return CheckRow(
        f"{what} more than random vectors",
        own > max(others),
        f"{own:.3g} {unit}; {controls} random ones {min(others):.3g} to {max(others):.3g}",
    )
