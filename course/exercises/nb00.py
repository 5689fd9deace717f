"""Exercises of notebook 00, start here: read a receipt, turn a coefficient into a step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from course.exercises import Exercise
from course.exercises.specs import Wrong, describe

if TYPE_CHECKING:
    import torch

    from kit.steering.results import Receipt


# --- 00.1 read the receipt -----------------------------------------------------------------------


def pushed_positions(receipt: Receipt) -> int:
    entry = receipt.entries[0]  # one vector was used, and the receipt is that of one row
    return entry.prompt_steered[0] + entry.decode_steered[0]


def _pushed_spec(answer: Any, *, receipt: Receipt) -> None:
    import operator

    try:
        got = operator.index(answer)
    except TypeError:
        raise Wrong(
            arrived=describe(answer), expected="a whole number", likely="count positions: no fraction, no text"
        ) from None
    # One position of the whole sequence at a time: those of the prompt, then those decoded later.
    entry = receipt.entries[0]
    in_prompt = sum(1 for _ in range(entry.prompt_steered[0]))
    decoded = sum(1 for _ in range(entry.decode_steered[0]))
    if got == in_prompt + decoded:
        return
    otherwise = "add the two numbers that stand left of a / in the receipt"
    raise Wrong(
        arrived=str(got),
        expected="the positions at which the vector was added",
        likely=PUSHED.cause(lambda other: got == other, receipt, otherwise=otherwise),
    )


def _receipt() -> dict[str, Any]:
    from kit.steering.results import Entry, Receipt

    entry = Entry("happy-sad", [18], "add", [1], [11], [[0.3] * 12])
    return {"receipt": Receipt([entry], prompt_positions=39, decode_steps=11)}


PUSHED = Exercise.of(
    pushed_positions,
    id="00.1",
    title="read the receipt",
    stub="pushed = ...  # how many positions did the vector change in this run?",
    spec=_pushed_spec,
    hints=(
        "A fraction in a receipt reads: steered positions / positions there were.",
        "The receipt has two such fractions. Which of the four numbers counts a change that was made?",
    ),
    wrong={
        "n new tokens need n - 1 decode steps: the prompt's own pass gives the first": (
            "entry.prompt_steered[0] + entry.decode_steered[0] + 1"
        ),
        "these are all positions there were: a receipt says steered/all, take the left numbers": (
            "receipt.prompt_positions + receipt.decode_steps"
        ),
        "these are the prompt's positions alone: decoding goes on pushing": "entry.prompt_steered[0]",
        "the prompt's steered positions are missing: add the number before the first /": "entry.decode_steered[0]",
    },
    moral="A receipt is the first thing to read when a plot looks too good, or too flat.",
    example=_receipt,
)


# --- 00.2 from coefficient to step ---------------------------------------------------------------


def step_length(coefficient: float, norms: torch.Tensor) -> torch.Tensor:
    """How far a coefficient moves the residual stream, in the stream's own units.

    norms [pos]: lengths of the residual vectors of one text; position 0 is the BOS token
    """
    return abs(coefficient) * norms[1:].median()


def _step_spec(answer: Any) -> None:
    import torch

    seed = torch.Generator().manual_seed(2)
    norms = 150 + 40 * torch.rand(12, generator=seed)
    norms[0], norms[5] = 24_000.0, 900.0  # BOS is huge; one odd token, as in real text
    for coefficient in (0.25, -0.5):
        ordered = sorted(norms.tolist()[1:])  # the definition: half are shorter, half are longer
        unit = ordered[len(ordered) // 2]
        STEP.expect(answer, coefficient, norms, want=abs(coefficient) * unit, number=True)


STEP = Exercise.of(
    step_length,
    id="00.2",
    title="from coefficient to step",
    spec=_step_spec,
    hints=(
        "Coefficient 1 is as long as a typical residual vector. Which position is not typical?",
        "A slice leaves a position out; of mean and median, one is not moved by an odd token. Then mind the sign.",
    ),
    wrong={
        "the mean over all positions: BOS is so long that it decides alone": "abs(coefficient) * norms.mean()",
        "the mean: one odd token moves it, the median stays": "abs(coefficient) * norms[1:].mean()",
        "this is the unit, the length of coefficient 1": "norms[1:].median()",
        "a length is not negative: the sign says where to, not how far": "coefficient * norms[1:].median()",
    },
    moral="0.3 is the same share of the stream at any layer of any model. What it costs there, it does not say.",
)

EXERCISES = [PUSHED, STEP]
