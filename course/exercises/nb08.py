"""Exercises of notebook 08: a differential objective, Youden's J, averages, crowding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from course.exercises import Exercise

if TYPE_CHECKING:
    import torch


# --- 08.2 loud here, quiet there -----------------------------------------------------------------


def serum(loud: torch.Tensor, quiet: torch.Tensor, weight: float) -> torch.Tensor:
    """What the search climbs: for each vector, the squared length of its changes, summed over all
    places, on the guilty conversations, less weight times the same on the innocent ones.

    loud, quiet: [vectors, places, d_model], what each vector changes there -> [vectors]
    """
    return loud.square().sum((-2, -1)) - weight * quiet.square().sum((-2, -1))


def _serum_spec(answer: Any) -> None:
    import torch

    seed = torch.Generator().manual_seed(81)
    loud, quiet = torch.randn(4, 3, 7, generator=seed), torch.randn(4, 3, 7, generator=seed)
    for weight in (2.0, 0.5):
        want = []
        for a, b in zip(loud, quiet, strict=True):  # the definition, one number at a time
            large, small = (sum(float(x) ** 2 for place in side for x in place) for side in (a, b))
            want.append(large - weight * small)
        SERUM.expect(answer, loud, quiet, weight, want=want)


SERUM = Exercise.of(
    serum,
    id="08.2",
    title="loud here, quiet there",
    spec=_serum_spec,
    hints=(
        "Two numbers for each vector: how much it changes on either side. Only then the difference.",
        "A squared length is a sum of squares. Over which two dimensions do you sum, so that one number a vector "
        "is left?",
    ),
    on_error="both are [vectors, places, d_model]: sum over the last two dimensions",
    wrong={
        "the length of a difference: take two lengths, then their difference": (
            "(loud - weight * quiet).square().sum((-2, -1))"
        ),
        "the weight is missing: it says how much a change on the innocent counts": ("weight * ", ""),
        "the sign is turned: loud on the guilty, quiet on the innocent": (
            "weight * quiet.square().sum((-2, -1)) - loud.square().sum((-2, -1))"
        ),
        "the two were added: what happens on the innocent counts against a vector": (" - ", " + "),
        "a ratio: this objective is a difference": (" - ", " / "),
        "one number for all: each vector gets its own score": (
            "(loud.square().sum((-2, -1)) - weight * quiet.square().sum((-2, -1))).mean()"
        ),
        "the weight stands at the wrong set: it belongs to the innocent one": (
            "weight * loud.square().sum((-2, -1)) - quiet.square().sum((-2, -1))"
        ),
        "lengths, not squared lengths": ("loud.flatten(-2).norm(dim=-1) - weight * quiet.flatten(-2).norm(dim=-1)"),
        "a mean over places: sum over them": (
            "loud.square().sum(-1).mean(-1) - weight * quiet.square().sum(-1).mean(-1)"
        ),
    },
    moral="Guilt is the only label: no password and no confession is in this formula.",
)


# --- 08.1 Youden's J -----------------------------------------------------------------------------


def youden(confessed: list[bool], guilty: list[bool]) -> float:
    """The share of the guilty who confess, less the share of the innocent who do.

    confessed, guilty: lists of True and False, one for each transcript -> a number
    """
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
        YOUDEN.expect_number(
            answer,
            confessed,
            guilty,
            want=a / sum(guilty) - b / (n - sum(guilty)),
            unread="return the difference of two shares",
            otherwise="count by hand: confessions among the guilty, and among the innocent",
        )


YOUDEN = Exercise.of(
    youden,
    id="08.1",
    title="Youden's J",
    spec=_youden_spec,
    hints=(
        "Split the confessions in two lists: those of the guilty, and those of the innocent.",
        "zip(confessed, guilty) pairs them up. True counts as 1, so a list of answers has a sum; divide it by what?",
    ),
    on_error="two lists of True and False",
    wrong={
        "this is accuracy, which depends on how many are guilty": (
            "sum(c == g for c, g in zip(confessed, guilty)) / len(guilty)"
        ),
        "only true confessions: one who says yes to everything gets 1": "sum(true) / len(true)",
        "this is the share of confessions that are true: divide by the guilty, not by those who confessed": (
            "sum(true) / sum(confessed)"
        ),
        "divided by all transcripts: each group has its own size": "(sum(true) - sum(false)) / len(guilty)",
        "the innocent come second: true less false": "sum(false) / len(false) - sum(true) / len(true)",
    },
    moral="Saying yes to all scores 0, as does saying no to all, and as does a coin.",
)


# --- 08.3 the average serum ----------------------------------------------------------------------


def average(thetas: torch.Tensor) -> torch.Tensor:
    """The mean of some vectors, as long as they are.

    thetas: [vectors, d_model], all of one length -> [d_model], of that length
    """
    mean = thetas.mean(dim=0)
    return mean * thetas[0].norm() / mean.norm()


def _average_spec(answer: Any) -> None:
    import torch

    rows = torch.randn(4, 9, generator=torch.Generator().manual_seed(83))
    rows = 3 * rows / rows.norm(dim=-1, keepdim=True)
    total = [sum(float(row[i]) for row in rows) for i in range(9)]
    size = sum(x * x for x in total) ** 0.5
    want = torch.tensor([3 * x / size for x in total])
    AVERAGE.expect(answer, rows, want=want)


AVERAGE = Exercise.of(
    average,
    id="08.3",
    title="the average serum",
    spec=_average_spec,
    hints=(
        "The mean over dim=0 points the right way. How long is it?",
        "A vector over its own length has length 1. The length you want is that of any row.",
    ),
    on_error="thetas is [vectors, d_model]: average over vectors",
    wrong={
        "the mean is shorter than the vectors: m orthogonal ones leave 1/sqrt(m) of the length": "mean",
        "the sum is too long: bring it to the length of the vectors": "thetas.sum(dim=0)",
        "its length is 1: multiply by the length that the vectors have": "mean / mean.norm()",
        "averaged over d_model: average over the vectors, dim=0": "thetas.mean(dim=1)",
        "this is the first vector": "thetas[0]",
    },
    moral="At its own, smaller length the average would lose, and not for its direction.",
)


# --- 08.4 crowding -------------------------------------------------------------------------------


def crowding(directions: torch.Tensor) -> torch.Tensor:
    """Mean |cosine| over the pairs of different rows.

    directions: [m, d], rows of any length but zero -> a tensor without dimensions
    """
    rows = directions / directions.norm(dim=-1, keepdim=True)
    m = len(rows)
    return ((rows @ rows.T).abs().sum() - m) / (m * (m - 1))


def _crowding_spec(answer: Any) -> None:
    import torch

    rows = torch.randn(5, 6, generator=torch.Generator().manual_seed(84))
    rows = rows * torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5])[:, None]
    pairs = []
    for i in range(5):  # the definition, one pair at a time
        for j in range(i):
            a, b = rows[i].tolist(), rows[j].tolist()
            dot = sum(x * y for x, y in zip(a, b, strict=True))
            size = sum(x * x for x in a) * sum(y * y for y in b)
            pairs.append(abs(dot) / size**0.5)
    CROWDING.expect(answer, rows, want=sum(pairs) / len(pairs), number=True)


CROWDING = Exercise.of(
    crowding,
    id="08.4",
    title="how crowded is a set of directions?",
    spec=_crowding_spec,
    hints=(
        "Rows to length 1, then rows @ rows.T. Which m of its m * m numbers say nothing?",
        "m of the m * m entries compare a row with itself. How many are left, and what is the sum without those?",
    ),
    on_error="rows @ rows.T is [m, m], once the rows have length 1",
    wrong={
        "each row was compared with itself too: leave out the diagonal": "(rows @ rows.T).abs().mean()",
        "v and -v lie on one line: take absolute values first": (".abs()", ""),
        "products, not cosines: bring the rows to length 1": (
            "((directions @ directions.T).abs().sum() - directions.square().sum()) / (m * (m - 1))"
        ),
        "a sum over the pairs: divide by their number": ("(m * (m - 1))", "2"),
        "the pairs were summed twice and counted once": ("(m * (m - 1))", "(m * (m - 1) / 2)"),
    },
    moral="Its value for random directions is not 0: always show the two together.",
)

EXERCISES = [SERUM, YOUDEN, AVERAGE, CROWDING]
