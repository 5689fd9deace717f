"""Exercises of notebook 05, MELBO: the objective, the sphere, and a p-value without a formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from course.exercises import Exercise

if TYPE_CHECKING:
    import torch

    Climb = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # from theta and a direction to the next theta


# --- 05.1 the objective --------------------------------------------------------------------------


def objective(shift: torch.Tensor, power: float) -> torch.Tensor:
    """Sum over tokens of |change at the token|^power.

    shift: [tokens, d_model], steered minus unsteered -> a tensor without dimensions
    """
    return shift.norm(dim=-1).pow(power).sum()


def _objective_spec(answer: Any) -> None:
    import torch

    shift = torch.randn(3, 7, generator=torch.Generator().manual_seed(51))
    for power in (4, 2):  # 4 first: at 2 several mistakes give the right number
        want = torch.tensor(0.0)
        for token in shift:  # the definition, one token at a time
            length = sum(float(x) ** 2 for x in token) ** 0.5
            want = want + length**power
        OBJECTIVE.expect(answer, shift, power, want=want)


OBJECTIVE = Exercise.of(
    objective,
    id="05.1",
    title="how much was changed",
    spec=_objective_spec,
    hints=(
        "Each token has one length: the norm over the last dimension.",
        "Three things in this order: a length for each token, its power, the sum. What shape has each of them?",
    ),
    on_error="shift is [tokens, d_model], power a number: take the norm over one dimension",
    wrong={
        "the norm ran over tokens: each token's change has a length, over d_model": ("dim=-1", "dim=0"),
        "the lengths were summed before the power: raise each token's length first": (
            "shift.norm(dim=-1).sum().pow(power)"
        ),
        "every coordinate was raised to the power: take the length of each token first": "shift.abs().pow(power).sum()",
        "averaged over tokens: the objective is their sum": ("sum", "mean"),
        "the power is missing": (".pow(power)", ""),
        "one length of all tokens together: each token has its own": "shift.norm().pow(power)",
        "one number for each token: add them up": (".sum()", ""),
        "the power is always 2: use the one that is given": ("pow(power)", "pow(2)"),
        "a root was taken at the end: the power stays": "shift.norm(dim=-1).pow(power).sum().pow(1 / power)",
        "the largest token alone: add up all of them": (".sum()", ".max()"),
    },
    moral="At power 2 a norm over the wrong dimension gives the same sum; at power 4 it does not.",
)


# --- 05.2 a step on the sphere -------------------------------------------------------------------


def step(theta: torch.Tensor, gradient: torch.Tensor, climb: Climb) -> torch.Tensor:
    """One step uphill that stays on the sphere of radius |theta|.

    Take from the gradient what points along theta, climb along the rest, go back to the norm.
    theta, gradient: [d_model] -> [d_model]; climb(theta, rest): where an optimiser goes from theta
    """
    radius = theta.norm()
    along = theta / radius
    moved = climb(theta, gradient - (gradient @ along) * along)
    return radius * moved / moved.norm()


def _step_spec(answer: Any) -> None:
    import torch

    theta, gradient = torch.randn(2, 9, generator=torch.Generator().manual_seed(52))
    theta = 3 * theta

    def uphill(at: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        return at + 0.5 * rest

    size = sum(float(x) ** 2 for x in theta) ** 0.5
    dot = sum(float(g) * float(t) for g, t in zip(gradient, theta, strict=True))
    moved = theta + 0.5 * (gradient - dot / size**2 * theta)
    STEP.expect(answer, theta, gradient, uphill, want=size * moved / moved.norm())


STEP = Exercise.of(
    step,
    id="05.2",
    title="uphill, on a sphere",
    spec=_step_spec,
    hints=(
        "Two vectors at a right angle have the product 0. What of the gradient has product 0 with theta?",
        "Divide theta by its norm first: then (gradient @ that) times that is the part to take away. "
        "Where climb has gone, only the direction counts: its length must again be theta's.",
    ),
    on_error="climb takes two vectors [d_model]: theta itself, and the rest of the gradient",
    wrong={
        "the step left the sphere: scale the result back to |theta|": "moved",
        "the gradient was used whole: take away what points along theta": (
            "gradient - (gradient @ along) * along",
            "gradient",
        ),
        "this walks downhill: climb goes along what it is given": (
            "gradient - (gradient @ along) * along",
            "(gradient @ along) * along - gradient",
        ),
        "the result has norm 1: multiply by the radius": "moved / moved.norm()",
        "the projection needs the unit vector: divide theta by its norm, both times": ("theta / radius", "theta"),
        "climb did nothing: call climb(theta, rest)": ("climb(theta, gradient - (gradient @ along) * along)", "theta"),
        "the rest was added as it is: how far to go is climb's business": (
            "climb(theta, gradient - (gradient @ along) * along)",
            "theta + gradient - (gradient @ along) * along",
        ),
    },
    moral="Without the way back, the easiest way to change more is a longer vector.",
)


# --- 05.3 beside random directions ---------------------------------------------------------------


def p_value(found: float, control: list[float]) -> float:
    """How surprising is a change this large among random directions of the same norm?

    found: a number. control: list of numbers, one for each random direction. The share of all
    n + 1 (the controls and the vector itself) that are at least as large as found.
    """
    return (1 + sum(c >= found for c in control)) / (1 + len(control))


def _p_spec(answer: Any) -> None:
    for found, control in ((5.0, [1.0, 2.0, 6.0]), (9.0, [1.0, 2.0, 3.0, 4.0]), (2.0, [2.0, 2.0, 1.0, 7.0, 0.5])):
        above = 0
        for c in control:
            above += c >= found
        n = len(control)
        P_VALUE.expect_number(
            answer,
            found,
            control,
            want=(above + 1) / (n + 1),
            unread="return the share itself",
            otherwise="count by hand how many of this list reach the number",
        )


P_VALUE = Exercise.of(
    p_value,
    id="05.3",
    title="a p-value by counting",
    spec=_p_spec,
    hints=(
        "Count the controls that are at least as large, and count the vector itself with them.",
        "Of 64 controls none is as large: the answer is 1/65. One is: 2/65. What is it in general?",
    ),
    wrong={
        "the vector itself was not counted: with n random directions p is never below 1 / (n + 1)": ("1 + ", ""),
        "this is the share below: count those at least as large": (">=", "<"),
        "ties count as surprising: use >=, not >": (">=", ">"),
        "divided by n: n + 1 values were compared": ("(1 + len(control))", "len(control)"),
    },
    moral="A small p says only that this vector moves more than chance; not that it means a thing.",
)

EXERCISES = [OBJECTIVE, STEP, P_VALUE]
