"""How much of a vector to give, as its metadata say it: one reader and one writer of those keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kit.base.checks import is_number

Kind = Literal["kl", "radius", "largest activation"]
_OF_A_SIGN = ("auroc", "effect", "effect_of_random")
_OF_A_LAYER = (
    *(*_OF_A_SIGN, "folds", "coefficient", "calibration", "radius", "loss", "probabilities"),
    *("alpha", "change", "interrupted", "steps", "gallery"),
)


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
        known = cls(float(coefficient)) if is_number(coefficient) else cls()
        if not isinstance(told, dict) or not is_number(told.get("low")) or not is_number(told.get("high")):
            return known
        low, high = float(told["low"]), float(told["high"])
        if not low < high:
            return known
        kind: Any = told.get("kind", "kl")
        target: Any = told.get("ratio", 0.5) if kind == "radius" else told.get("target_kl")
        return cls(known.coefficient, low, high, kind, float(target) if is_number(target) else None)

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


def scaled(metadata: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """The metadata of a vector times a factor: its coefficients are divided by it, and with a
    negative one goes what tells of one sign only."""
    found = {name: told for name, told in metadata.items() if factor > 0 or name not in _OF_A_SIGN}
    found.pop("gallery", None)
    coefficient, told = found.get("coefficient"), found.get("calibration")
    if is_number(coefficient):
        found["coefficient"] = coefficient / factor
    if isinstance(told, dict) and is_number(told.get("low")) and is_number(told.get("high")):
        low, high = sorted((told["low"] / factor, told["high"] / factor))
        same = {name: told[name] for name in ("target_kl", "kind", "ratio") if name in told}
        found["calibration"] = {"low": low, "high": high, **same}
    return found


def moved(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a vector at another layer than its own: without what was measured there."""
    return {name: told for name, told in metadata.items() if name not in _OF_A_LAYER}
