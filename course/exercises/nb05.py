"""Exercises of notebook 05, MELBO: the objective, the sphere, and a p-value without a formula."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from course.exercises import Exercise
from course.exercises.specs import Wrong, call, compare, describe

if TYPE_CHECKING:
    import torch


# --- 05.1 the objective --------------------------------------------------------------------------

_OBJECTIVE_STUB = '''
def objective(shift, power):
    """Sum over tokens of |change at the token|^power.

    shift: [tokens, d_model], steered minus unsteered -> a tensor without dimensions
    """
    raise NotImplementedError("your turn")
'''


def objective(shift: torch.Tensor, power: float) -> torch.Tensor:
    return shift.norm(dim=-1).pow(power).sum()


def _objective_spec(answer: Any) -> None:
    import torch

    shift = torch.randn(3, 7, generator=torch.Generator().manual_seed(51))
    for power in (2, 4):
        want = torch.tensor(0.0)
        for token in shift:  # the definition, one token at a time
            length = sum(float(x) ** 2 for x in token) ** 0.5
            want = want + length**power
        got = call(answer, shift.clone(), power)
        compare(
            got,
            want,
            {
                "the norm ran over tokens: each token's change has a length, over d_model": shift.norm(dim=0)
                .pow(power)
                .sum(),
                "the lengths were summed before the power: raise each token's length first": shift.norm(dim=-1)
                .sum()
                .pow(power),
                "every coordinate was raised to the power: take the length of each token first": shift.abs()
                .pow(power)
                .sum(),
                "averaged over tokens: the objective is their sum": shift.norm(dim=-1).pow(power).mean(),
                "the power is missing": shift.norm(dim=-1).sum(),
            },
        )


def _objective_over_tokens(shift: Any, power: Any) -> Any:
    return shift.norm(dim=0).pow(power).sum()


def _objective_coordinates(shift: Any, power: Any) -> Any:
    return shift.abs().pow(power).sum()


def _objective_mean(shift: Any, power: Any) -> Any:
    return shift.norm(dim=-1).pow(power).mean()


OBJECTIVE = Exercise(
    id="05.1",
    title="how much was changed",
    stub=_OBJECTIVE_STUB,
    solution=objective,
    spec=_objective_spec,
    hints=(
        "Each token has one length: the norm over the last dimension.",
        "shift.norm(dim=-1) is [tokens]; raise it to the power, then sum.",
    ),
    wrong=[
        ("norm over tokens", _objective_over_tokens),
        ("power of coordinates", _objective_coordinates),
        ("mean", _objective_mean),
    ],
    moral="At power 2 a norm over the wrong dimension gives the same sum; at power 4 it does not.",
)


# --- 05.2 a step on the sphere -------------------------------------------------------------------

_STEP_STUB = '''
def step(theta, gradient, rate):
    """One step uphill that stays on the sphere of radius |theta|.

    Take from the gradient what points along theta, add rate times the rest, go back to the norm.
    theta, gradient: [d_model] -> [d_model]
    """
    raise NotImplementedError("your turn")
'''


def step(theta: torch.Tensor, gradient: torch.Tensor, rate: float) -> torch.Tensor:
    radius = theta.norm()
    along = theta / radius
    moved = theta + rate * (gradient - (gradient @ along) * along)
    return radius * moved / moved.norm()


def _step_spec(answer: Any) -> None:
    import torch

    theta, gradient = torch.randn(2, 9, generator=torch.Generator().manual_seed(52))
    theta = 3 * theta
    got = call(answer, theta.clone(), gradient.clone(), 0.5)
    size = sum(float(x) ** 2 for x in theta) ** 0.5
    dot = sum(float(g) * float(t) for g, t in zip(gradient, theta, strict=True))
    tangent = gradient - dot / size**2 * theta
    moved, down, raw = theta + 0.5 * tangent, theta - 0.5 * tangent, theta + 0.5 * gradient
    unscaled = theta + 0.5 * (gradient - dot * theta)

    def back(x: torch.Tensor) -> torch.Tensor:
        return size * x / x.norm()

    compare(
        got,
        back(moved),
        {
            "the step left the sphere: scale the result back to |theta|": moved,
            "the part along theta is still in the gradient": back(raw),
            "this goes downhill: add the gradient": back(down),
            "the result has norm 1: multiply by the radius": back(moved) / size,
            "the projection needs the unit vector: divide theta by its norm, both times": back(unscaled),
        },
    )


def _step_off_sphere(theta: Any, gradient: Any, rate: Any) -> Any:
    along = theta / theta.norm()
    return theta + rate * (gradient - (gradient @ along) * along)


def _step_downhill(theta: Any, gradient: Any, rate: Any) -> Any:
    return step(theta, -gradient, rate)


def _step_unit(theta: Any, gradient: Any, rate: Any) -> Any:
    return step(theta, gradient, rate) / theta.norm()


STEP = Exercise(
    id="05.2",
    title="uphill, on a sphere",
    stub=_STEP_STUB,
    solution=step,
    spec=_step_spec,
    hints=(
        "With u = theta / |theta|, the part of the gradient along u is (gradient @ u) * u.",
        "moved = theta + rate * (gradient - that part); return |theta| * moved / moved.norm().",
    ),
    wrong=[("off the sphere", _step_off_sphere), ("downhill", _step_downhill), ("norm 1", _step_unit)],
    moral="Without the way back, the easiest way to change more is a longer vector.",
)


# --- 05.3 beside random directions ---------------------------------------------------------------

_P_STUB = '''
def p_value(found, control):
    """How surprising is a change this large among random directions of the same norm?

    found: a number. control: list of numbers, one for each random direction. The share of all
    n + 1 (the controls and the vector itself) that are at least as large as found.
    """
    raise NotImplementedError("your turn")
'''


def p_value(found: float, control: list[float]) -> float:
    return (1 + sum(c >= found for c in control)) / (1 + len(control))


def _p_spec(answer: Any) -> None:
    for found, control in ((5.0, [1.0, 2.0, 6.0]), (9.0, [1.0, 2.0, 3.0, 4.0]), (2.0, [2.0, 2.0, 1.0, 7.0, 0.5])):
        above = 0
        for c in control:
            above += c >= found
        n = len(control)
        want = (above + 1) / (n + 1)
        got = call(answer, found, list(control))
        try:
            number = float(got)
        except (TypeError, ValueError):
            raise Wrong(
                arrived=describe(got), expected=f"{want:.3g}, a number", likely="return the share itself"
            ) from None
        if abs(number - want) < 1e-6:
            continue
        known = {
            "the vector itself was not counted: with n random directions p is never below 1 / (n + 1)": above / n,
            "this is the share below: count those at least as large": (n - above + 1) / (n + 1),
            "ties count as surprising: use >=, not >": (sum(c > found for c in control) + 1) / (n + 1),
            "divided by n: n + 1 values were compared": (above + 1) / n,
        }
        cause = next(
            (c for c, x in known.items() if abs(number - x) < 1e-6),
            "count by hand how many of this list reach the number",
        )
        raise Wrong(arrived=f"{number:.3g}", expected=f"p_value({found}, {control}) = {want:.3g}", likely=cause)


def _p_zero(found: Any, control: Any) -> Any:
    return sum(c >= found for c in control) / len(control)


def _p_below(found: Any, control: Any) -> Any:
    return (1 + sum(c < found for c in control)) / (1 + len(control))


def _p_ties(found: Any, control: Any) -> Any:
    return (1 + sum(c > found for c in control)) / (1 + len(control))


P_VALUE = Exercise(
    id="05.3",
    title="a p-value by counting",
    stub=_P_STUB,
    solution=p_value,
    spec=_p_spec,
    hints=(
        "Count the controls that are at least as large, and count the vector itself with them.",
        "(1 + number of controls >= found) / (1 + number of controls).",
    ),
    wrong=[("zero is possible", _p_zero), ("share below", _p_below), ("ties", _p_ties)],
    moral="A small p says only that this vector moves more than chance; not that it means a thing.",
)

EXERCISES = [OBJECTIVE, STEP, P_VALUE]
