"""How much of a vector to give, as its metadata say it: one reader and one writer of those keys."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["kl", "radius", "largest activation"]


@dataclass(frozen=True)
class Dose:
    """What was found out about a vector's coefficients.

    Attributes:
        coefficient: what to steer with (the length at which it was trained, say); None where no one
            number was found.
        low, high: coefficients between which it was found to behave; None where no range was
            looked for.
        kind: what the range rests on: a bound on the mean KL (:func:`kit.calibrate`), the radius up
            to which a model's answer is linear, or a latent's largest activation.
        target: that bound, nats a token, or the ratio of non-linear to linear part at the radius.
    """

    coefficient: float | None = None
    low: float | None = None
    high: float | None = None
    kind: Kind = "kl"
    target: float | None = None

    @property
    def has_range(self) -> bool:
        """Whether there is a range to show."""
        return self.low is not None and self.high is not None

    @classmethod
    def of(cls, thing: Any) -> Dose:
        """What a vector's ``metadata`` say; files come from anywhere, so what makes no sense there
        counts as not said."""
        metadata: Any = getattr(thing, "metadata", None) or {}
        coefficient, told = metadata.get("coefficient"), metadata.get("calibration")
        known = cls(float(coefficient)) if _number(coefficient) else cls()
        if not isinstance(told, dict) or not _number(told.get("low")) or not _number(told.get("high")):
            return known
        low, high = float(told["low"]), float(told["high"])
        if not low < high:
            return known
        kind: Any = told.get("kind", "kl")
        target: Any = told.get("ratio", 0.5) if kind == "radius" else told.get("target_kl")
        return cls(known.coefficient, low, high, kind, float(target) if _number(target) else None)

    def metadata(self) -> dict[str, Any]:
        """The entries of a vector's ``metadata`` that say this."""
        found: dict[str, Any] = {} if self.coefficient is None else {"coefficient": self.coefficient}
        if self.has_range:
            ends: dict[str, Any] = {"low": self.low, "high": self.high}
            if self.kind == "kl":
                ends["target_kl"] = self.target
            else:
                ends["kind"] = self.kind
            if self.kind == "radius":
                ends["ratio"] = self.target
            found["calibration"] = ends
        return found


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
