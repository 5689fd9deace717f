"""What a run reports: receipts of what was steered, rows of text, and what steering cost them.

A receipt is written down by the hook that steered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from kit.base.html import isolated


@dataclass
class Entry:
    """What one intervention did, counted inside the hook: per row, positions and sizes."""

    name: str
    layers: list[int]
    op: str
    prompt_steered: list[int]
    decode_steered: list[int]
    ratios: list[list[float]]


@dataclass
class Receipt:
    """What a run really steered. ``str(receipt)`` is what the panel shows; an intervention that
    changed nothing (at coefficient 0, say) has no line there.

    Attributes:
        entries: one for each intervention.
        prompt_positions: tokens of the prompt (of the first row).
        decode_steps: forward passes after the prompt's. n new tokens need n - 1 of them, since the
            prompt's own pass produces the first.
        other_hooks: names of hooks on the model that the kit did not set.
    """

    entries: list[Entry] = field(default_factory=list)
    prompt_positions: int = 0
    decode_steps: int = 0
    other_hooks: list[str] = field(default_factory=list)

    def row(self, row: int) -> Receipt:
        """The same receipt with the numbers of one batch row."""
        entries = [
            Entry(e.name, e.layers, e.op, [e.prompt_steered[i]], [e.decode_steered[i]], [e.ratios[i]])
            for e in self.entries
            for i in [min(row, len(e.ratios) - 1)]
        ]
        return Receipt(entries, self.prompt_positions, self.decode_steps, self.other_hooks)

    def __str__(self) -> str:
        lines = []
        for e in self.entries:
            if not any(map(any, e.ratios)):
                continue
            layers = ", ".join(map(str, sorted(set(e.layers))))
            sizes = [sorted(r)[len(r) // 2] for r in e.ratios if r]
            size = (
                " to ".join(f"{s:.2f}" for s in sorted({round(min(sizes), 2), round(max(sizes), 2)})) if sizes else "0"
            )
            lines.append(
                f"{isolated(e.name)} · layer{'s' * (', ' in layers)} {layers} · {e.op} · "
                f"{max(e.prompt_steered)}/{self.prompt_positions} prompt positions · "
                f"{max(e.decode_steered)}/{self.decode_steps} decode steps · |cv|/|h| = {size}"
            )
        if not lines:
            lines.append(
                f"nothing steered · {self.prompt_positions} prompt positions · {self.decode_steps} decode steps"
            )
        if self.other_hooks:
            lines.append(f"also hooked: {', '.join(map(isolated, self.other_hooks))}")
        return "\n".join(lines)


@dataclass(frozen=True)
class TokenMeasure:
    """What one steered token cost, against the unsteered model on the same text so far.

    Attributes:
        kl: KL(steered || unsteered) of the next-token distributions, in nats.
        nll: -log p of the token under the unsteered model, in nats.
        before: the five likeliest tokens of the unsteered model, with probabilities.
        after: the same of the steered model.
    """

    kl: float
    nll: float
    before: list[tuple[str, float]]
    after: list[tuple[str, float]]


@dataclass
class Row:
    """One rung of a ladder. ``coefficients`` is None for an unsteered row."""

    coefficients: tuple[float | None, ...] | None
    receipt: Receipt
    tokens: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    measures: list[TokenMeasure] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The new text, all pieces joined."""
        return "".join(self.pieces)

    @property
    def kl(self) -> float | None:
        """Mean KL to the unsteered model in nats a token; None unless measured."""
        return _mean([m.kl for m in self.measures])

    @property
    def perplexity(self) -> float | None:
        """Perplexity of the text under the unsteered model; None unless measured."""
        nll = _mean([m.nll for m in self.measures])
        return None if nll is None else math.exp(min(nll, 700))

    @property
    def distinct_2(self) -> float:
        """Different token pairs over all token pairs: 1 is no repetition, 0 is one token."""
        pairs = list(zip(self.tokens, self.tokens[1:], strict=False))
        return len(set(pairs)) / len(pairs) if pairs else 1.0


def label(coefficients: tuple[float | None, ...] | None, names: Sequence[str] = ()) -> str:
    """How a row is called on screen: ``unsteered``, ``+0.30``; of several vectors, by their names,
    those that are on: ``happy +0.30, calm -0.10``."""
    if coefficients is None:
        return "unsteered"
    if len(coefficients) != len(names) or len(names) == 1:
        return ", ".join("off" if c is None else f"{c:+.2f}" for c in coefficients)
    on = [(name, c) for name, c in zip(names, coefficients, strict=True) if c is not None]
    shown = [(name, c) for name, c in on if c] or on
    return ", ".join(f"{isolated(name)} {c:+.2f}" for name, c in shown) or "all off"


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
