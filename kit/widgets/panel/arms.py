"""Which texts a panel asks for: pure functions from its settings to the arms of a run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kit.base.html import isolated
from kit.steering.intervention import Intervention, check_fits
from kit.steering.rank_one import Factor
from kit.steering.vectors import SteeringVector
from kit.widgets.panel.controller import Arm

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Setting = Sequence[tuple[Intervention, float]]


@dataclass(frozen=True)
class Plan:
    """Vectors of a run, and its arms."""

    vectors: tuple[Intervention, ...]
    arms: tuple[Arm, ...]


def side_by_side(
    setting: Setting, *, controls: Sequence[Intervention] = (), negated: bool = False, instruction: str | None = None
) -> Plan:
    """The unsteered text beside the steered one, and control arms.

    Args:
        setting: the vectors that are on, with their coefficients.
        controls: one for each of them, put in their place with the same coefficients.
        negated: add an arm with the opposite coefficients.
        instruction: add an unsteered arm that is asked in words.
    """
    numbers = tuple(c for _, c in setting)
    off: tuple[None, ...] = (None,) * len(controls)
    arms = [Arm("Unsteered")]
    if setting:
        arms.append(Arm("Steered", numbers + off, subtitle=describe(setting)))
        if negated:
            opposite = [(v, -c) for v, c in setting]
            arms.append(Arm("Negated", tuple(-c for c in numbers) + off, subtitle=describe(opposite)))
        if controls:
            pushed = (None,) * len(setting) + numbers
            arms.append(Arm("Random direction", pushed, subtitle="same layer, norm and coefficient"))
    else:
        arms.append(Arm("Steered", subtitle="no vector is on"))
    if instruction and instruction.strip():
        words = instruction.strip()
        arms.append(Arm("Words only", instruction=words, subtitle=f"“{isolated(words)}” before the prompt"))
    vectors = (*(v for v, _ in setting), *controls)
    return Plan(vectors if setting else (), tuple(arms))


def in_words(setting: Setting, otherwise: str) -> str | None:
    """What to ask for in words in place of a setting: the ends to which its coefficients point, of
    vectors named by both (``happy-sad``); else ``otherwise``, or None where one points away."""
    ends = []
    for v, c in setting:
        named = re.fullmatch(r"(-?)[\d.]* ?([^\W\d_]+)-([^\W\d_]+)( @\d+| \(\d+\))*", v.name)
        if named and c:
            ends.append(named[2] if (c > 0) != bool(named[1]) else named[3])
        elif c < 0:
            return None
    return f"Answer in a {' and '.join(ends)} way." if ends else otherwise


def setting_ladder(setting: Setting, rungs: int) -> Plan:
    """The whole setting times a multiplier; 1 is what the sliders show.

    Raises:
        ValueError: no vector is on.
    """
    if not setting:
        raise ValueError("no vector is on: switch one on to see its ladder")
    arms = []
    for m in multipliers(rungs):
        scaled = [(v, m * c) for v, c in setting]
        title = f"× {m:g}".replace("-", "−")
        arms.append(Arm(title, tuple(c for _, c in scaled), subtitle=describe(scaled)))
    return Plan(tuple(v for v, _ in setting), tuple(arms))


def vector_ladder(setting: Setting, chosen: Intervention, ends: tuple[float, float], rungs: int) -> Plan:
    """One vector in equal steps over a range; the others stay as they are set."""
    others = [(v, c) for v, c in setting if v is not chosen]
    note = f"with {describe(others)}" if others else ""
    low, high = ends
    arms = []
    for i in range(rungs):
        c = round(low + (high - low) * i / (rungs - 1), 3) + 0.0  # no "-0.00"
        arms.append(Arm(f"{isolated(chosen.name)} {signed(c)}", (c, *(c for _, c in others)), subtitle=note))
    return Plan((chosen, *(v for v, _ in others)), tuple(arms))


def multipliers(rungs: int) -> list[float]:
    """0 to 2 for five rungs, then further to the negative side, in steps of one half.

    >>> multipliers(5)
    [0.0, 0.5, 1.0, 1.5, 2.0]
    >>> multipliers(7)[0], multipliers(9)[0]
    (-1.0, -2.0)
    """
    return [2.0 - 0.5 * i for i in range(rungs)][::-1]


def describe(setting: Setting) -> str:
    """``happy-sad +0.20, formal-casual −0.10``; zeros only where there is nothing else."""
    shown = [(v, c) for v, c in setting if c]
    if not shown and len(setting) > 1:
        return f"all {signed(0)}"
    shown = shown or list(setting)
    return ", ".join(f"{isolated(v.name)} {signed(c)}" for v, c in shown)


def signed(c: float) -> str:
    """A coefficient as it is shown everywhere: sign, two decimals, a real minus."""
    shown = f"{round(c, 2) + 0.0:+.2f}" if abs(c) < 1e4 else f"{c:+.0e}"  # + 0.0: no "-0.00"
    return shown.replace("-", "−")


def combination(setting: Setting) -> Any:
    """The setting as one vector: at coefficient 1 it does what the setting does.

    Raises:
        ValueError: nothing is on, the vectors are at several layers, or not vectors.
    """
    parts = [(v, c) for v, c in setting if c]
    if not parts:
        raise ValueError("every coefficient is 0, so there is no combination to save: move a slider first")
    layers = {getattr(v, "layer", None) for v, _ in parts}
    if None in layers or len(layers) > 1:
        raise ValueError(
            f"{describe(parts)} act at several places: only vectors of one layer make one vector; "
            "choose one of them to save"
        )
    total: Any = parts[0][1] * parts[0][0]  # type: ignore[operator]
    for v, c in parts[1:]:
        total = total + c * v  # type: ignore[operator]
    if len(parts) == 1:
        return total
    name = " ".join(f"{v.name} {c:+.2f}" for v, c in parts)
    return replace(total, name=name)


def unique(name: str, taken: Sequence[str]) -> str:
    """A name that is not taken: ``name``, ``name (2)``, ..."""
    found, n = name, 1
    while found in taken:
        n += 1
        found = f"{name} ({n})"
    return found


def layers_of(model: TransformerBridge, vector: Intervention) -> list[int]:
    """The blocks of a model where a vector acts.

    Raises:
        ValueError: no intervention, or one that does not fit this model.
    """
    if not hasattr(vector, "parts"):
        raise ValueError(
            f"vectors holds a {type(vector).__name__}: give interventions (a SteeringVector, say), and "
            "their coefficients as coefficient(s)"
        )
    return sorted({part.layer for part in check_fits(model, vector)})


def identity(vector: Intervention) -> Any:
    """What is the same for interventions that steer alike, whatever they are called."""
    if isinstance(vector, SteeringVector):
        return vector.layer, round(vector.norm, 6), vector.direction.numpy().tobytes()
    if isinstance(vector, Factor):
        rows = (vector.reads, vector.writes)
        return vector.layers, round(vector.radius, 6), *(r.numpy().tobytes() for r in rows)
    return id(vector)
