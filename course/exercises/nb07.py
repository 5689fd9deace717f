"""Exercises of notebook 07, unlocking: recovered share, rank-1 change, choosing, mean vector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from course.exercises import Exercise
from course.exercises.specs import Wrong, describe

if TYPE_CHECKING:
    import torch


# --- 07.1 the recovered share --------------------------------------------------------------------


def recovered(right: torch.Tensor, locked: torch.Tensor, unlocked: torch.Tensor) -> torch.Tensor:
    """Which share of the gap between locked and unlocked accuracy was recovered. One number.

    right, locked, unlocked: [items] of ones and zeros: steered, unsteered, with the password
    """
    return (right.mean() - locked.mean()) / (unlocked.mean() - locked.mean())


def _share_spec(answer: Any) -> None:
    import torch

    locked = torch.tensor([0.0, 0, 0, 1, 0, 0, 0, 0, 0, 0])
    unlocked = torch.tensor([1.0, 1, 1, 1, 0, 1, 1, 1, 1, 0])
    right = torch.tensor([1.0, 0, 1, 0, 1, 0, 1, 1, 1, 0])
    a, b, c = (sum(x.tolist()) / 10 for x in (right, locked, unlocked))
    SHARE.expect(answer, right, locked, unlocked, want=(a - b) / (c - b), number=True)


SHARE = Exercise.of(
    recovered,
    id="07.1",
    title="how much of the gap?",
    spec=_share_spec,
    hints=(
        "0 when the vector does nothing, 1 when it does what the password does.",
        "Take the mean over items of each of the three. Which two of them bound the gap, and where does it start?",
    ),
    on_error="three tensors of ones and zeros, one entry an item: start from their means",
    wrong={
        "this is plain accuracy: a locked model may be right now and then": "right.mean()",
        "divided by unlocked accuracy: the gap starts at locked accuracy, not at zero": (
            "(right.mean() - locked.mean()) / unlocked.mean()"
        ),
        "locked accuracy was left out above the line": "right.mean() / (unlocked.mean() - locked.mean())",
    },
    moral="Only the gap counts: a lock that leaks makes every vector look good.",
)


# --- 07.2 a rank-1 change ------------------------------------------------------------------------


def changed(
    x: torch.Tensor,  # [positions, heads]
    W: torch.Tensor,  # [d_model, heads]
    read: torch.Tensor,  # [heads]
    write: torch.Tensor,  # [d_model]
    radius: float,
) -> torch.Tensor:
    """What a layer gives after its matrix gained radius * outer(write, read).

    x: [positions, heads], what goes in; W: [d_model, heads]; without the change it gives x @ W.T
    read: [heads], write: [d_model], both of length 1
    """
    return x @ W.T + radius * (x @ read)[:, None] * write


def _factor_spec(answer: Any) -> None:
    import torch

    rng = torch.Generator().manual_seed(72)
    x, W = torch.randn(3, 5, generator=rng), torch.randn(4, 5, generator=rng)
    read, write = torch.randn(5, generator=rng), torch.randn(4, generator=rng)
    read, write = read / read.norm(), write / write.norm()
    # The definition, one entry at a time.
    want = torch.stack(
        [
            torch.stack([sum(x[p, h] * (W[d, h] + 4.0 * write[d] * read[h]) for h in range(5)) for d in range(4)])
            for p in range(3)
        ]
    )
    FACTOR.expect(answer, x, W, read, write, 4.0, want=want)


FACTOR = Exercise.of(
    changed,
    id="07.2",
    title="a rank-1 change of a matrix",
    spec=_factor_spec,
    hints=(
        "Multiply out: (W + r b aᵀ) x = W x + r b (aᵀ x).",
        "aᵀ x is one number a position: [positions]. Against [d_model] it needs one more dimension.",
    ),
    on_error="x @ read is one number a position; give it a dimension before * write",
    wrong={
        "the radius is missing": ("radius * ", ""),
        "only the change: add what the layer gives without it": ("x @ W.T + ", ""),
        "a fixed step along write: it must be as long as x reaches along read": "x @ W.T + radius * write",
        "the magnitude of what was read: a negative reading writes the other way": ("(x @ read)", "(x @ read).abs()"),
    },
    moral="A number read, a direction written: the smallest change a matrix can have.",
)


# --- 07.3 choosing -------------------------------------------------------------------------------


def pick(validation: torch.Tensor, test: torch.Tensor, n: int) -> torch.Tensor:
    """The test accuracy that may be reported for "the best of the first n". One number.

    validation, test: [candidates, items] of ones and zeros, candidates by rank
    """
    return test[validation[:n].mean(1).argmax()].mean()


def _pick_spec(answer: Any) -> None:
    import torch

    validation = torch.tensor([[0.0, 0, 1, 0], [1, 1, 1, 0], [1, 0, 0, 1], [1, 1, 1, 1]])
    test = torch.tensor([[0.0, 1, 0, 0, 0], [1, 0, 1, 1, 0], [1, 1, 1, 1, 1], [0, 0, 1, 0, 1]])
    for n in (3, 4, 1):
        first = [sum(row) for row in validation[:n].tolist()]
        want = torch.tensor(sum(test[first.index(max(first))].tolist()) / 5)
        PICK.expect(answer, validation, test, n, want=want, number=True)


PICK = Exercise.of(
    pick,
    id="07.3",
    title="choose here, report there",
    spec=_pick_spec,
    hints=(
        "Two sets of items, two jobs: validation says which candidate, test says how good it is.",
        "argmax over one of the two tells a row; which of them may choose it, and which is read there?",
    ),
    on_error="rows are candidates: look at the first n rows of validation",
    wrong={
        "chosen on the test items: that number can only flatter": "test[:n].mean(1).max()",
        "this is validation accuracy, on which the candidate was chosen": "validation[:n].mean(1).max()",
        "all candidates were looked at, not the first n": ("[:n]", ""),
        "a mean over candidates: choose one first": "test[:n].mean()",
    },
    moral="With 64 candidates the best on test is a lottery winner; the best on validation has to win twice.",
)


# --- 07.4 the mean of a set ----------------------------------------------------------------------


def mean_of(directions: torch.Tensor, norm: float) -> torch.Tensor:
    """One vector for a whole set: their mean direction, as long as each of them was.

    directions: [n, d_model], rows of length 1; norm: the length at which each was used
    """
    mean = directions.mean(0)
    return norm * mean / mean.norm()


def _mean_spec(answer: Any) -> None:
    import torch

    rng = torch.Generator().manual_seed(74)
    rows = torch.randn(6, 5, generator=rng) + torch.tensor([1.0, 0, 0, 0, 0])
    rows = rows / rows.norm(dim=1, keepdim=True)
    total = [sum(column) for column in zip(*rows.tolist(), strict=True)]
    length = sum(x * x for x in total) ** 0.5
    want = torch.tensor([24.0 * x / length for x in total])
    got = MEAN.expect(answer, rows, 24.0, want=want)
    if abs(float(got.norm()) - 24.0) > 1e-3:
        raise Wrong(arrived=describe(got), expected="a vector of length 24", likely="rescale it")


MEAN = Exercise.of(
    mean_of,
    id="07.4",
    title="one vector for a set",
    spec=_mean_spec,
    hints=(
        "Compare at equal norm: the mean of many near-orthogonal rows is short.",
        "Two vectors of one direction differ by a factor. By which, if one has length 1?",
    ),
    on_error="the mean runs over rows, dimension 0",
    wrong={
        "the mean of unit rows is shorter than one: bring it back to length 1 first": "norm * mean",
        "a sum, n times too long or nearly so: divide by its length": "norm * directions.sum(0)",
        "length 1: the norm is missing": "mean / mean.norm()",
        "one number for each row: the mean ran over the wrong dimension": ("mean(0)", "mean(1)"),
    },
    moral="Means of near-orthogonal rows are short: forgetting that compares a push with a nudge.",
)

EXERCISES = [SHARE, FACTOR, PICK, MEAN]
