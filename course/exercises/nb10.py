"""Exercises of notebook 10, read a dictionary: intervals, counts, ablated text, attribution."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from course.exercises import Exercise
from course.exercises.specs import Wrong, call, compare, describe

if TYPE_CHECKING:
    import torch


# --- 10.1 the whole range ------------------------------------------------------------------------


def shares(values: torch.Tensor, bins: int) -> torch.Tensor:
    """Cut the range from 0 to the largest value into bins of equal width: the share of the values
    in each, weakest bin first. The largest value belongs to the last bin.

    values: tensor [n], a latent's firings, all above 0; bins: a whole number
    -> [bins], numbers from 0 to 1: a tensor, an array or a list
    """
    import torch

    return torch.histc(values, bins, 0, float(values.max())) / len(values)


def _shares_spec(answer: Any) -> None:
    import torch

    values = torch.rand(200, generator=torch.Generator().manual_seed(101)).square() * 9 + 0.6
    for bins in (10, 4):
        top, counts = float(values.max()), [0] * bins  # the definition, one firing at a time
        for v in values.tolist():
            counts[min(int(v / top * bins), bins - 1)] += 1
        want = torch.tensor(counts) / len(values)
        SHARES.expect(answer, values, bins, want=want, atol=1e-6)


SHARES = Exercise.of(
    shares,
    id="10.1",
    title="the whole range",
    spec=_shares_spec,
    hints=(
        "Counted from 0, in which bin is a value v? v / largest * bins, rounded down; only the largest needs care.",
        "torch.histc counts values in bins of equal width between two ends, which you name. A share is a count "
        "over how many there are.",
    ),
    on_error="values is a tensor [n], bins a whole number",
    wrong={
        "strongest first: turn it round": "(torch.histc(values, bins, 0, float(values.max())) / len(values)).flip(0)",
        "these are counts: divide by how many values there are": (" / len(values)", ""),
        "bins of equal count, which hide that strong firings are rare: cut the range, not the list": (
            "torch.full((bins,), 1 / bins)"
        ),
        "the range starts at the smallest value: start at 0": (", 0, float(values.max())", ""),
        "a density: divide by the number of values only": ("len(values)", "len(values) * bins / values.max()"),
    },
    moral="The top bin usually holds a few firings in a thousand: that is what top examples show.",
)


# --- 10.2 counts ---------------------------------------------------------------------------------


def hits(fires: torch.Tensor, fits: torch.Tensor) -> tuple[float, float]:
    """Two shares: of the firings, those on tokens that fit the concept; of the tokens that fit,
    those on which it fires.

    fires, fits: tensors [n] of True and False, one for each token -> two numbers
    """
    both = (fires & fits).sum()
    return float(both / fires.sum()), float(both / fits.sum())


def _hits_spec(answer: Any) -> None:
    import torch

    fires = torch.tensor([1, 1, 1, 0, 0, 0, 0, 0, 0, 1], dtype=torch.bool)
    fits = torch.tensor([1, 0, 1, 1, 1, 0, 0, 0, 1, 1], dtype=torch.bool)
    got = call(answer, fires.clone(), fits.clone(), likely="both are tensors of True and False")
    try:
        first, second = got
        pair = (float(first), float(second))
    except (TypeError, ValueError):
        likely = "return both shares: of the firings, and of the tokens that fit"
        raise Wrong(arrived=describe(got), expected="two numbers", likely=likely) from None
    both = sum(a and b for a, b in zip(fires.tolist(), fits.tolist(), strict=True))
    f, c = int(fires.sum()), int(fits.sum())

    def near(other: tuple[float, float]) -> bool:
        return max(abs(x - y) for x, y in zip(pair, other, strict=True)) < 1e-5

    if near((both / f, both / c)):
        return
    otherwise = "count by hand: tokens with both, firings, tokens that fit"
    raise Wrong(
        arrived=f"({pair[0]:.3g}, {pair[1]:.3g})",
        expected=f"({both / f:.3g}, {both / c:.3g}), for {f} firings, {c} tokens that fit, {both} of both",
        likely=HITS.cause(near, fires, fits, otherwise=otherwise),
    )


HITS = Exercise.of(
    hits,
    id="10.2",
    title="count the hits",
    spec=_hits_spec,
    hints=(
        "fires & fits is true where both are; .sum() counts.",
        "One number above both fraction bars, how many tokens are both. Below, each share has its own whole.",
    ),
    wrong={
        "the two changed places: the firings come first": "float(both / fits.sum()), float(both / fires.sum())",
        "divided by all tokens: each share has its own whole": "(float(both / len(fires)),) * 2",
        "how often it fires, and how often the concept comes: count where both are true": (
            "float(fires.float().mean()), float(fits.float().mean())"
        ),
        "these are the mistakes: count the tokens where both are true": (
            "1 - float(both / fires.sum()), 1 - float(both / fits.sum())"
        ),
        "accuracy is no help where most tokens are neither": "(float((fires == fits).float().mean()),) * 2",
    },
    moral="Precision and recall. A label for a latent should come with both.",
)


# --- 10.3 ablated text ---------------------------------------------------------------------------


def needs(read: Callable[[list[int]], float], tokens: list[int]) -> list[float]:
    """What the latent loses on the last token when each earlier one is taken out of the text:
    positive where it needs the token. The first and the last token stay, and get 0.

    read: a function of a list of tokens, which gives the activation on the last of them
    tokens: a list of token ids -> a list of as many numbers
    """
    lost = [0.0] * len(tokens)
    for i in range(1, len(tokens) - 1):
        lost[i] = read(tokens) - read(tokens[:i] + tokens[i + 1 :])
    return lost


def _toy(tokens: Any) -> float:
    """A latent that wants 7 and 3 before the end, less so far away, and dislikes 5."""
    n = len(tokens)
    weight = {7: 4.0, 3: 2.0, 5: -1.5, 9: 1.0}
    return 1.0 + sum(weight.get(int(t), 0.25) / (n - i) for i, t in enumerate(tokens))


def _needs_spec(answer: Any) -> None:
    import torch

    tokens = [9, 2, 7, 8, 5, 3, 6, 4]
    given = list(tokens)
    got = call(answer, _toy, given, likely="read takes a list of tokens: tokens[:i] + tokens[i + 1:]")
    if given != tokens:
        raise Wrong(
            arrived=f"tokens is {given} afterwards",
            expected="the list as it was",
            likely="del or pop changed the caller's list: build a new one",
        )
    try:
        numbers = torch.as_tensor([float(x) for x in got])
    except (TypeError, ValueError):
        raise Wrong(arrived=describe(got), expected="a list of numbers", likely="one number for each token") from None
    full, last = _toy(tokens), len(tokens) - 1
    without = [_toy([t for j, t in enumerate(tokens) if j != i]) for i in range(len(tokens))]
    want = torch.tensor([full - w if 0 < i < last else 0.0 for i, w in enumerate(without)])
    compare(numbers, want, NEEDS.known(_toy, tokens))


NEEDS = Exercise.of(
    needs,
    id="10.3",
    title="ablated text",
    spec=_needs_spec,
    hints=(
        "A loop over the positions from 1 to len(tokens) - 2; the others stay at 0.",
        "The text without token i is what stands before it, and what stands after it: two slices, joined.",
    ),
    wrong={
        "the sign: what it loses is the activation with the token, less the one without": (
            "lost[i] = read(tokens) - read(tokens[:i] + tokens[i + 1 :])",
            "lost[i] = read(tokens[:i] + tokens[i + 1 :]) - read(tokens)",
        ),
        "the first and the last token stay: they get 0": ("range(1, len(tokens) - 1)", "range(len(tokens))"),
        "the activations themselves: subtract them from the one of the whole text": ("read(tokens) - ", ""),
        "masked, not taken out: the text keeps its length then": ("+ tokens", "+ [0] + tokens"),
        "one number for each token, also for the two that stay": "lost[1:-1]",
    },
    moral="kit.sae.ablated_text does the same in one batch, and for pairs.",
)


# --- 10.4 attribution ----------------------------------------------------------------------------


def attribution(value: torch.Tensor, row: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """To first order, what a latent adds to a logit difference, all tokens together.

    value: tensor [n], its activation on each token
    row: tensor [d_model], what it writes into the stream at activation 1
    slope: tensor [n, d_model], gradient of the difference in the stream at each token
    -> one number
    """
    return (value * (slope @ row)).sum()


def _attribution_spec(answer: Any) -> None:
    import torch

    seed = torch.Generator().manual_seed(104)
    value = torch.tensor([0.0, 3.0, 0.0, 1.5, 0.5])
    row, slope = torch.randn(6, generator=seed) * 2, torch.randn(5, 6, generator=seed)
    want = sum(
        float(v) * sum(float(a) * float(b) for a, b in zip(s, row, strict=True))
        for v, s in zip(value, slope, strict=True)
    )  # the definition, a token at a time
    ATTRIBUTION.expect(answer, value, row, slope, want=want, number=True)


ATTRIBUTION = Exercise.of(
    attribution,
    id="10.4",
    title="gradient x activation",
    spec=_attribution_spec,
    hints=(
        "What it writes at a token is value * row; the difference moves by slope times that.",
        "slope @ row says for each token how much one unit of activation moves the difference.",
    ),
    on_error="slope @ row is [n]: one slope along the latent's row for each token",
    wrong={
        "the activation is missing: a latent that does not fire adds nothing": ("value * ", ""),
        "the row was put at norm 1: it writes activation times the row as it is": (
            "slope @ row",
            "slope @ row / row.norm()",
        ),
        "one number for each token: add them up": (".sum()", ""),
        "the sign: adding is positive": "-(value * (slope @ row)).sum()",
        "absolute values hide which answer it favours": (".sum()", ".abs().sum()"),
        "a mean over the tokens: every one of them adds its part": (".sum()", ".mean()"),
        "only the last token: earlier ones reach the answer through attention": (".sum()", "[-1]"),
    },
    moral="A tangent. Taking the latent out for real says how good a tangent it is.",
)

EXERCISES = [SHARES, HITS, NEEDS, ATTRIBUTION]
