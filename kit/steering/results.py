"""A row of a run: its text, its receipt, and what steering cost it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from kit.steering.receipt import Receipt
from kit.steering.sampling import TokenMeasure


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


def label(coefficients: tuple[float | None, ...] | None) -> str:
    """How a row is called on screen: ``unsteered``, ``+0.30``, ``+0.30, off``."""
    if coefficients is None:
        return "unsteered"
    return ", ".join("off" if c is None else f"{c:+.2f}" for c in coefficients)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
