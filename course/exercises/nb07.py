"""Exercises of notebook 07, unlocking: recovered share, rank-1 change, choosing, mean vector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from course.exercises import Exercise
from course.exercises.specs import Wrong, call, compare, describe

if TYPE_CHECKING:
    import torch


# --- 07.1 the recovered share --------------------------------------------------------------------

_SHARE_STUB = '''
def recovered(right, locked, unlocked):
    """Which share of the gap between locked and unlocked accuracy was recovered. One number.

    right, locked, unlocked: [items] of ones and zeros: steered, unsteered, with the password
    """
    raise NotImplementedError("your turn")
'''


def recovered(right: torch.Tensor, locked: torch.Tensor, unlocked: torch.Tensor) -> torch.Tensor:
    return (right.mean() - locked.mean()) / (unlocked.mean() - locked.mean())


def _share_spec(answer: Any) -> None:
    import torch

    locked = torch.tensor([0.0, 0, 0, 1, 0, 0, 0, 0, 0, 0])
    unlocked = torch.tensor([1.0, 1, 1, 1, 0, 1, 1, 1, 1, 0])
    right = torch.tensor([1.0, 0, 1, 0, 1, 0, 1, 1, 1, 0])
    got = call(
        answer,
        right.clone(),
        locked.clone(),
        unlocked.clone(),
        likely="three tensors of ones and zeros, one entry an item: start from their means",
    )
    a, b, c = (sum(x.tolist()) / 10 for x in (right, locked, unlocked))
    compare(
        torch.as_tensor(got).float(),
        torch.tensor((a - b) / (c - b)),
        {
            "this is plain accuracy: a locked model may be right now and then": torch.tensor(a),
            "divided by unlocked accuracy: the gap starts at locked accuracy, not at zero": torch.tensor((a - b) / c),
            "locked accuracy was left out above the line": torch.tensor(a / (c - b)),
            "one share for each item: take means first": (right - locked) / (unlocked - locked),
        },
    )


def _share_plain(right: Any, _locked: Any, _unlocked: Any) -> Any:
    return right.mean()


def _share_from_zero(right: Any, locked: Any, unlocked: Any) -> Any:
    return (right.mean() - locked.mean()) / unlocked.mean()


def _share_left_out(right: Any, locked: Any, unlocked: Any) -> Any:
    return right.mean() / (unlocked.mean() - locked.mean())


SHARE = Exercise(
    id="07.1",
    title="how much of the gap?",
    stub=_SHARE_STUB,
    solution=recovered,
    spec=_share_spec,
    hints=(
        "0 when the vector does nothing, 1 when it does what the password does.",
        "(steered - locked) / (unlocked - locked), each the mean over items.",
    ),
    wrong=[
        ("plain accuracy", _share_plain),
        ("a gap from zero", _share_from_zero),
        ("locked left out", _share_left_out),
    ],
    moral="Only the gap counts: a lock that leaks makes every vector look good.",
)


# --- 07.2 a rank-1 change ------------------------------------------------------------------------

_FACTOR_STUB = '''
def changed(x, W, read, write, radius):
    """What a layer gives after its matrix gained radius * outer(write, read).

    x: [positions, heads], what goes in; W: [d_model, heads]; without the change it gives x @ W.T
    read: [heads], write: [d_model], both of length 1
    """
    raise NotImplementedError("your turn")
'''


def changed(x: torch.Tensor, W: torch.Tensor, read: torch.Tensor, write: torch.Tensor, radius: float) -> torch.Tensor:
    return x @ W.T + radius * (x @ read)[:, None] * write


def _factor_spec(answer: Any) -> None:
    import torch

    rng = torch.Generator().manual_seed(72)
    x, W = torch.randn(3, 5, generator=rng), torch.randn(4, 5, generator=rng)
    read, write = torch.randn(5, generator=rng), torch.randn(4, generator=rng)
    read, write = read / read.norm(), write / write.norm()
    got = call(
        answer,
        x.clone(),
        W.clone(),
        read.clone(),
        write.clone(),
        4.0,
        likely="x @ read is one number a position; give it a dimension before * write",
    )
    plain = x @ W.T
    # The definition, one entry at a time.
    want = torch.stack(
        [
            torch.stack([sum(x[p, h] * (W[d, h] + 4.0 * write[d] * read[h]) for h in range(5)) for d in range(4)])
            for p in range(3)
        ]
    )
    compare(
        got,
        want,
        {
            "the radius is missing": plain + (x @ read)[:, None] * write,
            "only the change: add what the layer gives without it": want - plain,
            "a fixed step along write: it must be as long as x reaches along read": plain + 4.0 * write,
            "the magnitude of what was read: a negative reading writes the other way": plain
            + 4.0 * (x @ read).abs()[:, None] * write,
        },
    )


def _factor_no_radius(x: Any, W: Any, read: Any, write: Any, _radius: Any) -> Any:
    return x @ W.T + (x @ read)[:, None] * write


def _factor_fixed(x: Any, W: Any, _read: Any, write: Any, radius: Any) -> Any:
    return x @ W.T + radius * write


def _factor_alone(x: Any, _W: Any, read: Any, write: Any, radius: Any) -> Any:
    return radius * (x @ read)[:, None] * write


FACTOR = Exercise(
    id="07.2",
    title="a rank-1 change of a matrix",
    stub=_FACTOR_STUB,
    solution=changed,
    spec=_factor_spec,
    hints=("Multiply out: (W + r b aᵀ) x = W x + r b (aᵀ x).", "x @ W.T + radius * (x @ read)[:, None] * write"),
    wrong=[("no radius", _factor_no_radius), ("a fixed step", _factor_fixed), ("the change alone", _factor_alone)],
    moral="A number read, a direction written: the smallest change a matrix can have.",
)


# --- 07.3 choosing -------------------------------------------------------------------------------

_PICK_STUB = '''
def pick(validation, test, n):
    """The test accuracy that may be reported for "the best of the first n". One number.

    validation, test: [candidates, items] of ones and zeros, candidates by rank
    """
    raise NotImplementedError("your turn")
'''


def pick(validation: torch.Tensor, test: torch.Tensor, n: int) -> torch.Tensor:
    return test[validation[:n].mean(1).argmax()].mean()


def _pick_spec(answer: Any) -> None:
    import torch

    validation = torch.tensor([[0.0, 0, 1, 0], [1, 1, 1, 0], [1, 0, 0, 1], [1, 1, 1, 1]])
    test = torch.tensor([[0.0, 1, 0, 0, 0], [1, 0, 1, 1, 0], [1, 1, 1, 1, 1], [0, 0, 1, 0, 1]])
    for n in (3, 4, 1):
        got = call(
            answer,
            validation.clone(),
            test.clone(),
            n,
            likely="rows are candidates: look at the first n rows of validation",
        )
        first = [sum(row) for row in validation[:n].tolist()]
        want = torch.tensor(sum(test[first.index(max(first))].tolist()) / 5)
        compare(
            torch.as_tensor(got).float(),
            want,
            {
                "chosen on the test items: that number can only flatter": test[:n].mean(1).max(),
                "this is validation accuracy, on which the candidate was chosen": validation[:n].mean(1).max(),
                "all candidates were looked at, not the first n": test[validation.mean(1).argmax()].mean(),
                "a mean over candidates: choose one first": test[:n].mean(),
            },
        )


def _pick_on_test(_validation: Any, test: Any, n: int) -> Any:
    return test[:n].mean(1).max()


def _pick_reports_validation(validation: Any, _test: Any, n: int) -> Any:
    return validation[:n].mean(1).max()


def _pick_among_all(validation: Any, test: Any, _n: int) -> Any:
    return test[validation.mean(1).argmax()].mean()


PICK = Exercise(
    id="07.3",
    title="choose here, report there",
    stub=_PICK_STUB,
    solution=pick,
    spec=_pick_spec,
    hints=(
        "Two sets of items, two jobs: validation says which candidate, test says how good it is.",
        "best = validation[:n].mean(1).argmax(), then test[best].mean()",
    ),
    wrong=[
        ("chosen on test", _pick_on_test),
        ("validation reported", _pick_reports_validation),
        ("among all", _pick_among_all),
    ],
    moral="With 64 candidates the best on test is a lottery winner; the best on validation has to win twice.",
)


# --- 07.4 the mean of a set ----------------------------------------------------------------------

_MEAN_STUB = '''
def mean_of(directions, norm):
    """One vector for a whole set: their mean direction, as long as each of them was.

    directions: [n, d_model], rows of length 1; norm: the length at which each was used
    """
    raise NotImplementedError("your turn")
'''


def mean_of(directions: torch.Tensor, norm: float) -> torch.Tensor:
    mean = directions.mean(0)
    return norm * mean / mean.norm()


def _mean_spec(answer: Any) -> None:
    import torch

    rng = torch.Generator().manual_seed(74)
    rows = torch.randn(6, 5, generator=rng) + torch.tensor([1.0, 0, 0, 0, 0])
    rows = rows / rows.norm(dim=1, keepdim=True)
    got = call(answer, rows.clone(), 24.0, likely="the mean runs over rows, dimension 0")
    total = [sum(column) for column in zip(*rows.tolist(), strict=True)]
    length = sum(x * x for x in total) ** 0.5
    want = torch.tensor([24.0 * x / length for x in total])
    compare(
        got,
        want,
        {
            "the mean of unit rows is shorter than one: bring it back to length 1 first": 24.0 * rows.mean(0),
            "a sum, n times too long or nearly so: divide by its length": 24.0 * rows.sum(0),
            "length 1: the norm is missing": want / 24.0,
            "one number for each row: the mean ran over the wrong dimension": 24.0 * rows.mean(1) / rows.mean(1).norm(),
        },
    )
    if abs(float(got.norm()) - 24.0) > 1e-3:
        raise Wrong(arrived=describe(got), expected="a vector of length 24", likely="rescale it")


def _mean_short(directions: Any, norm: float) -> Any:
    return norm * directions.mean(0)


def _mean_sum(directions: Any, norm: float) -> Any:
    return norm * directions.sum(0)


def _mean_unit(directions: Any, _norm: float) -> Any:
    return directions.mean(0) / directions.mean(0).norm()


MEAN = Exercise(
    id="07.4",
    title="one vector for a set",
    stub=_MEAN_STUB,
    solution=mean_of,
    spec=_mean_spec,
    hints=(
        "Compare at equal norm: the mean of many near-orthogonal rows is short.",
        "Mean over dim 0, divide by its own norm, times norm.",
    ),
    wrong=[("too short", _mean_short), ("a sum", _mean_sum), ("length one", _mean_unit)],
    moral="Means of near-orthogonal rows are short: forgetting that compares a push with a nudge.",
)

EXERCISES = [SHARE, FACTOR, PICK, MEAN]
