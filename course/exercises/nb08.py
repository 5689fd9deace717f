"""Exercises of notebook 08: a differential objective, Youden's J, averages, crowding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from course.exercises import Exercise
from course.exercises.specs import Wrong, call, compare, describe

if TYPE_CHECKING:
    import torch


# --- 08.2 loud here, quiet there -----------------------------------------------------------------

_SERUM_STUB = '''
def serum(loud, quiet, weight):
    """A score for each vector: how long its change is on the guilty transcripts, less weight times
    how long its change is on the innocent ones.

    loud, quiet: [vectors, d_model], what each vector changes on the two sets -> [vectors]
    """
    raise NotImplementedError("your turn")
'''


def serum(loud: torch.Tensor, quiet: torch.Tensor, weight: float) -> torch.Tensor:
    return loud.norm(dim=-1) - weight * quiet.norm(dim=-1)


def _serum_spec(answer: Any) -> None:
    import torch

    seed = torch.Generator().manual_seed(81)
    loud, quiet = torch.randn(5, 7, generator=seed), torch.randn(5, 7, generator=seed)
    for weight in (2.0, 0.5):
        want = []
        for a, b in zip(loud, quiet, strict=True):  # the definition, one vector at a time
            long, short = (sum(float(x) ** 2 for x in row) ** 0.5 for row in (a, b))
            want.append(long - weight * short)
        got = call(
            answer,
            loud.clone(),
            quiet.clone(),
            weight,
            likely="both are [vectors, d_model]: a norm runs over the last dimension",
        )
        a, b = loud.norm(dim=-1), quiet.norm(dim=-1)
        compare(
            got,
            torch.tensor(want),
            {
                "the length of a difference: take two lengths, then their difference": (loud - weight * quiet).norm(
                    dim=-1
                ),
                "the weight is missing: it says how much a change on the innocent counts": a - b,
                "the sign is turned: loud on the guilty, quiet on the innocent": weight * b - a,
                "the two lengths were added: what happens on the innocent counts against a vector": a + weight * b,
                "a ratio: this objective is a difference": a / (weight * b),
                "one number for all: each vector gets its own score": torch.tensor(want).mean(),
                "the weight stands at the wrong set: it belongs to the innocent one": weight * a - b,
            },
        )


def _serum_difference(loud: Any, quiet: Any, weight: float) -> Any:
    return (loud - weight * quiet).norm(dim=-1)


def _serum_no_weight(loud: Any, quiet: Any, weight: float) -> Any:
    return loud.norm(dim=-1) - quiet.norm(dim=-1)


def _serum_turned(loud: Any, quiet: Any, weight: float) -> Any:
    return weight * quiet.norm(dim=-1) - loud.norm(dim=-1)


SERUM = Exercise(
    id="08.2",
    title="loud here, quiet there",
    stub=_SERUM_STUB,
    solution=serum,
    spec=_serum_spec,
    hints=(
        "Two lengths for each vector, over dim=-1; only then the difference.",
        "loud.norm(dim=-1) - weight * quiet.norm(dim=-1)",
    ),
    wrong=[
        ("length of the difference", _serum_difference),
        ("no weight", _serum_no_weight),
        ("sign turned", _serum_turned),
    ],
    moral="Guilt is the only label: no password and no confession is in this formula.",
)


# --- 08.1 Youden's J -----------------------------------------------------------------------------

_YOUDEN_STUB = '''
def youden(confessed, guilty):
    """The share of the guilty who confess, less the share of the innocent who do.

    confessed, guilty: lists of True and False, one for each transcript -> a number
    """
    raise NotImplementedError("your turn")
'''


def youden(confessed: list[bool], guilty: list[bool]) -> float:
    true = [c for c, g in zip(confessed, guilty, strict=True) if g]
    false = [c for c, g in zip(confessed, guilty, strict=True) if not g]
    return sum(true) / len(true) - sum(false) / len(false)


def _youden_spec(answer: Any) -> None:
    cases = [
        ([True, True, True, False] + [True, True, False], [True] * 4 + [False] * 3),
        ([True] * 5, [True, True, False, False, False]),
        ([False, True, False, False, True], [True, False, False, True, False]),
    ]
    for confessed, guilty in cases:
        n, a, b = len(guilty), 0, 0
        for c, g in zip(confessed, guilty, strict=True):
            a, b = a + (c and g), b + (c and not g)
        k, said = sum(guilty), sum(confessed)
        want = a / k - b / (n - k)
        got = call(answer, list(confessed), list(guilty), likely="two lists of True and False")
        try:
            number = float(got)
        except (TypeError, ValueError):
            raise Wrong(
                arrived=describe(got), expected=f"{want:.3g}, a number", likely="return the difference of two shares"
            ) from None
        if abs(number - want) < 1e-6:
            continue
        known = {
            "this is accuracy, which depends on how many are guilty": (a + n - k - b) / n,
            "only true confessions: one who says yes to everything gets 1": a / k,
            "this is the share of confessions that are true: divide by the guilty, not by those who confessed": a
            / said,
            "divided by all transcripts: each group has its own size": (a - b) / n,
            "the innocent come second: true less false": -want,
        }
        cause = next(
            (c for c, x in known.items() if abs(number - x) < 1e-6),
            "count by hand: confessions among the guilty, and among the innocent",
        )
        raise Wrong(arrived=f"{number:.3g}", expected=f"youden({confessed}, {guilty}) = {want:.3g}", likely=cause)


def _youden_accuracy(confessed: Any, guilty: Any) -> Any:
    return sum(c == g for c, g in zip(confessed, guilty, strict=True)) / len(guilty)


def _youden_true(confessed: Any, guilty: Any) -> Any:
    return sum(c and g for c, g in zip(confessed, guilty, strict=True)) / sum(guilty)


def _youden_precision(confessed: Any, guilty: Any) -> Any:
    return sum(c and g for c, g in zip(confessed, guilty, strict=True)) / sum(confessed)


YOUDEN = Exercise(
    id="08.1",
    title="Youden's J",
    stub=_YOUDEN_STUB,
    solution=youden,
    spec=_youden_spec,
    hints=(
        "Split the confessions in two lists: those of the guilty, and those of the innocent.",
        "Each list has a mean. Return the first mean less the second.",
    ),
    wrong=[("accuracy", _youden_accuracy), ("true confessions only", _youden_true), ("precision", _youden_precision)],
    moral="Saying yes to all scores 0, as does saying no to all, and as does a coin.",
)


# --- 08.3 the average serum ----------------------------------------------------------------------

_AVERAGE_STUB = '''
def average(thetas):
    """The mean of some vectors, as long as they are.

    thetas: [vectors, d_model], all of one length -> [d_model], of that length
    """
    raise NotImplementedError("your turn")
'''


def average(thetas: torch.Tensor) -> torch.Tensor:
    mean = thetas.mean(dim=0)
    return mean * thetas[0].norm() / mean.norm()


def _average_spec(answer: Any) -> None:
    import torch

    rows = torch.randn(4, 9, generator=torch.Generator().manual_seed(83))
    rows = 3 * rows / rows.norm(dim=-1, keepdim=True)
    got = call(answer, rows.clone(), likely="thetas is [vectors, d_model]: average over vectors")
    total = [sum(float(row[i]) for row in rows) for i in range(9)]
    size = sum(x * x for x in total) ** 0.5
    want = torch.tensor([3 * x / size for x in total])
    mean = rows.mean(0)
    compare(
        got,
        want,
        {
            "the mean is shorter than the vectors: m orthogonal ones leave 1/sqrt(m) of the length": mean,
            "the sum is too long: bring it to the length of the vectors": rows.sum(0),
            "its length is 1: multiply by the length that the vectors have": mean / mean.norm(),
            "averaged over d_model: average over the vectors, dim=0": rows.mean(1),
            "this is the first vector": rows[0],
        },
    )


def _average_plain(thetas: Any) -> Any:
    return thetas.mean(dim=0)


def _average_unit(thetas: Any) -> Any:
    mean = thetas.mean(dim=0)
    return mean / mean.norm()


def _average_sum(thetas: Any) -> Any:
    return thetas.sum(dim=0)


AVERAGE = Exercise(
    id="08.3",
    title="the average serum",
    stub=_AVERAGE_STUB,
    solution=average,
    spec=_average_spec,
    hints=("The mean over dim=0 points the right way. How long is it?", "mean * thetas[0].norm() / mean.norm()"),
    wrong=[("plain mean", _average_plain), ("length 1", _average_unit), ("sum", _average_sum)],
    moral="At its own, smaller length the average would lose, and not for its direction.",
)


# --- 08.4 crowding -------------------------------------------------------------------------------

_CROWDING_STUB = '''
def crowding(directions):
    """Mean |cosine| over the pairs of different rows.

    directions: [m, d], rows of any length but zero -> a tensor without dimensions
    """
    raise NotImplementedError("your turn")
'''


def crowding(directions: torch.Tensor) -> torch.Tensor:
    rows = directions / directions.norm(dim=-1, keepdim=True)
    m = len(rows)
    return ((rows @ rows.T).abs().sum() - m) / (m * (m - 1))


def _crowding_spec(answer: Any) -> None:
    import torch

    rows = torch.randn(5, 6, generator=torch.Generator().manual_seed(84))
    rows = rows * torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5])[:, None]
    got = call(answer, rows.clone(), likely="rows @ rows.T is [m, m], once the rows have length 1")
    pairs = []
    for i in range(5):  # the definition, one pair at a time
        for j in range(i):
            a, b = rows[i].tolist(), rows[j].tolist()
            dot = sum(x * y for x, y in zip(a, b, strict=True))
            size = sum(x * x for x in a) * sum(y * y for y in b)
            pairs.append(abs(dot) / size**0.5)
    units = rows / rows.norm(dim=-1, keepdim=True)
    full, raw = units @ units.T, rows @ rows.T
    compare(
        torch.as_tensor(got).float(),
        torch.tensor(sum(pairs) / len(pairs)),
        {
            "each row was compared with itself too: leave out the diagonal": full.abs().mean(),
            "v and -v lie on one line: take absolute values first": (full.sum() - 5) / 20,
            "products, not cosines: bring the rows to length 1": (raw.abs().sum() - raw.diagonal().sum()) / 20,
            "a sum over the pairs: divide by their number": torch.tensor(sum(pairs)),
            "the pairs were summed twice and counted once": torch.tensor(sum(pairs) / 5),
        },
    )


def _crowding_diagonal(directions: Any) -> Any:
    rows = directions / directions.norm(dim=-1, keepdim=True)
    return (rows @ rows.T).abs().mean()


def _crowding_signed(directions: Any) -> Any:
    rows = directions / directions.norm(dim=-1, keepdim=True)
    m = len(rows)
    return ((rows @ rows.T).sum() - m) / (m * (m - 1))


def _crowding_products(directions: Any) -> Any:
    m, products = len(directions), directions @ directions.T
    return (products.abs().sum() - products.diagonal().sum()) / (m * (m - 1))


CROWDING = Exercise(
    id="08.4",
    title="how crowded is a set of directions?",
    stub=_CROWDING_STUB,
    solution=crowding,
    spec=_crowding_spec,
    hints=(
        "Rows to length 1, then rows @ rows.T. Which m of its m * m numbers say nothing?",
        "(cosines.abs().sum() - m) / (m * (m - 1))",
    ),
    wrong=[
        ("with the diagonal", _crowding_diagonal),
        ("signed", _crowding_signed),
        ("not normalised", _crowding_products),
    ],
    moral="Its value for random directions is not 0: always show the two together.",
)


EXERCISES = [SERUM, YOUDEN, AVERAGE, CROWDING]
