"""Exercises of notebook 04, heads and honesty: held-out accuracy, the best of many, z, intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from course.exercises import Exercise
from course.exercises.specs import call, compare

if TYPE_CHECKING:
    import torch


# --- 04.1 accuracy on pairs that were left out ---------------------------------------------------

_HELD_OUT_STUB = '''
def held_out(diff):
    """Share of pairs (rows of diff, [pairs, d], true minus false) that are hits, a float tensor.

    A hit: the sum of all OTHER rows has a dot product above 0 with the pair's own row.
    """
    raise NotImplementedError("your turn")
'''


def held_out(diff: torch.Tensor) -> torch.Tensor:
    others = diff.sum(0) - diff  # [pairs, d]: for each pair the sum of all other rows
    return ((others * diff).sum(-1) > 0).float().mean()


def _held_out_spec(answer: Any) -> None:
    import torch

    seed = torch.Generator().manual_seed(41)
    shapes = "others and diff are both [pairs, d]: multiply elementwise, then sum over d"
    for pairs, d, shift in ((25, 60, 0.0), (40, 12, 0.4)):  # pure noise, then a weak signal
        diff = torch.randn(pairs, d, generator=seed) + shift
        got = call(answer, diff.clone(), likely=shapes)

        # The definition, one pair at a time.
        hits, seen = [], []
        for i in range(pairs):
            direction = sum(diff[j] for j in range(pairs) if j != i)
            hits.append(float(direction @ diff[i] > 0))
            seen.append(float(diff.sum(0) @ diff[i] > 0))
        want = torch.tensor(hits).mean()
        compare(
            got,
            want,
            {
                "each pair helped to fit the direction that judges it: leave its row out": torch.tensor(seen).mean(),
                "these are single pairs: take the mean": torch.tensor(hits),
                "this is the number of hits: divide by the number of pairs": torch.tensor(hits).sum(),
                "the sign is turned round: a hit is a dot product above 0": 1 - want,
            },
        )


def _held_out_seen(diff: Any) -> Any:
    return (diff @ diff.sum(0) > 0).float().mean()


def _held_out_single(diff: Any) -> Any:
    return (((diff.sum(0) - diff) * diff).sum(-1) > 0).float()


def _held_out_count(diff: Any) -> Any:
    return (((diff.sum(0) - diff) * diff).sum(-1) > 0).float().sum()


HELD_OUT = Exercise(
    id="04.1",
    title="accuracy on pairs that were left out",
    stub=_HELD_OUT_STUB,
    solution=held_out,
    spec=_held_out_spec,
    hints=(
        "The sum of all other rows is the sum of all rows minus the row itself.",
        "others = diff.sum(0) - diff is [pairs, d]; (others * diff).sum(-1) is one number a pair.",
    ),
    wrong=[
        ("judged pairs it was fitted on", _held_out_seen),
        ("no mean", _held_out_single),
        ("a count", _held_out_count),
    ],
    moral="On pure noise the fitted direction looks excellent on its own pairs; this one does not.",
)


# --- 04.2 the best of many under the null --------------------------------------------------------

_NULL_MAX_STUB = '''
def p_of_best(observed, null):
    """Share of draws whose best head is at least as good as our best head, a float tensor.

    observed: [heads]; null: [heads, draws], the same accuracies with shuffled labels
    """
    raise NotImplementedError("your turn")
'''


def p_of_best(observed: torch.Tensor, null: torch.Tensor) -> torch.Tensor:
    best = null.max(dim=0).values  # [draws]: the best head of each draw
    return (best >= observed.max()).float().mean()


def _null_max_spec(answer: Any) -> None:
    import torch

    seed = torch.Generator().manual_seed(42)
    null = (0.5 + 0.06 * torch.randn(50, 200, generator=seed)).mul(80).round() / 80
    observed = null[:, :1].flatten().clone()
    observed[7] = null.max(0).values.median()  # a tie with some draws
    got = call(answer, observed.clone(), null.clone(), likely="take the maximum over dim=0, heads")

    top = max(observed.tolist())
    reached = strictly = 0
    for draw in range(200):
        best = max(null[head, draw].item() for head in range(50))
        reached += best >= top
        strictly += best > top
    own = int(observed.argmax())
    compare(
        got,
        torch.tensor(reached / 200),
        {
            "one head was compared with one head: take the best of all heads in each draw": (null >= top)
            .float()
            .mean(),
            "the best head was compared with its own draws only: any head could have won": (null[own] >= top)
            .float()
            .mean(),
            "the maximum runs over draws: it should run over heads, one best head for each draw": (
                null.max(1).values >= top
            )
            .float()
            .mean(),
            "a tie counts too: use >=": torch.tensor(strictly / 200),
            "this is how often chance is worse: turn the comparison round": torch.tensor(1 - reached / 200),
        },
    )


def _null_any(observed: Any, null: Any) -> Any:
    return (null >= observed.max()).float().mean()


def _null_own(observed: Any, null: Any) -> Any:
    return (null[observed.argmax()] >= observed.max()).float().mean()


def _null_draws(observed: Any, null: Any) -> Any:
    return (null.max(dim=1).values >= observed.max()).float().mean()


NULL_MAX = Exercise(
    id="04.2",
    title="the best of many",
    stub=_NULL_MAX_STUB,
    solution=p_of_best,
    spec=_null_max_spec,
    hints=(
        "We looked at all heads and kept the best. Do the same in every draw.",
        "best = null.max(dim=0).values has one number a draw; how often is it >= observed.max()?",
    ),
    wrong=[
        ("all heads of all draws", _null_any),
        ("only the head that won", _null_own),
        ("maximum over draws", _null_draws),
    ],
    moral="Chance gets the same 270 tickets that we had.",
)


# --- 04.3 a head's direction among all heads -----------------------------------------------------

_EMBED_STUB = '''
def embed(direction, head, n_heads):
    """A vector [n_heads * d_head] that is `direction` [d_head] in its head and 0 elsewhere."""
    raise NotImplementedError("your turn")
'''


def embed(direction: torch.Tensor, head: int, n_heads: int) -> torch.Tensor:
    d_head = len(direction)
    flat = direction.new_zeros(n_heads * d_head)
    flat[head * d_head : (head + 1) * d_head] = direction
    return flat


def _embed_spec(answer: Any) -> None:
    import torch

    seed = torch.Generator().manual_seed(43)
    likely = "the slice of a head is head * d_head to (head + 1) * d_head"
    direction = torch.randn(5, generator=seed)
    n_heads, d_head, head = 4, 5, 2
    got = call(answer, direction.clone(), head, n_heads, likely=likely)
    want = torch.tensor([direction[i % d_head].item() if i // d_head == head else 0.0 for i in range(n_heads * d_head)])
    strided, shifted = torch.zeros(2, n_heads * d_head)
    strided[head::n_heads] = direction
    shifted[head : head + d_head] = direction
    compare(
        got,
        want,
        {
            "the heads are interleaved: each head owns a block of d_head neighbours": strided,
            "starts at head: the block starts at head * d_head": shifted,
            "every head got the direction: the others must stay 0": direction.repeat(n_heads),
            "one head too far: heads count from 0": want.roll(d_head),
            "this is [n_heads, d_head]: flatten it": want.reshape(n_heads, d_head),
        },
    )
    last = call(answer, direction.clone(), n_heads - 1, n_heads, likely=likely)
    compare(last, torch.cat([torch.zeros((n_heads - 1) * d_head), direction]))


def _embed_strided(direction: Any, head: Any, n_heads: Any) -> Any:
    flat = direction.new_zeros(n_heads * len(direction))
    flat[head::n_heads] = direction
    return flat


def _embed_shifted(direction: Any, head: Any, n_heads: Any) -> Any:
    flat = direction.new_zeros(n_heads * len(direction))
    flat[head : head + len(direction)] = direction
    return flat


def _embed_everywhere(direction: Any, head: Any, n_heads: Any) -> Any:
    return direction.repeat(n_heads)


EMBED = Exercise(
    id="04.3",
    title="one head among nine",
    stub=_EMBED_STUB,
    solution=embed,
    spec=_embed_spec,
    hints=(
        "The heads' outputs lie one after the other: head 0 owns the first d_head numbers.",
        "Start from zeros of length n_heads * d_head and fill one slice.",
    ),
    wrong=[("interleaved", _embed_strided), ("starts at head", _embed_shifted), ("in every head", _embed_everywhere)],
    moral="Steering a head is ordinary steering, with a vector that is zero outside one block.",
)


# --- 04.4 bootstrap interval ---------------------------------------------------------------------

_INTERVAL_STUB = '''
def interval(values, draws):
    """95% bootstrap interval of the mean, a tensor [2]: low, high.

    values: [n]; draws: [R, n], row r says which of the values resample r takes
    """
    raise NotImplementedError("your turn")
'''


def interval(values: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    means = values[draws].mean(dim=1)  # [R]: the mean of each resample
    return means.quantile(means.new_tensor([0.025, 0.975]))


def _interval_spec(answer: Any) -> None:
    import torch

    seed = torch.Generator().manual_seed(44)
    values = torch.randn(12, generator=seed) + 0.5
    draws = torch.randint(0, 12, (500, 12), generator=seed)
    got = call(
        answer,
        values.clone(),
        draws.clone(),
        likely="values[draws] is [R, n]: a mean over dim=1 leaves one number a resample",
    )

    means = torch.tensor([sum(values[i].item() for i in row) / len(row) for row in draws.tolist()])
    ends = torch.tensor([0.025, 0.975])
    compare(
        got,
        means.quantile(ends),
        {
            "this is the spread of single probes: average each resample first": values[draws].flatten().quantile(ends),
            "averaged over the resamples instead of within each: use dim=1": values[draws].mean(0).quantile(ends),
            "5% on each side is a 90% interval: 2.5% on each side": means.quantile(torch.tensor([0.05, 0.95])),
            "these are the extremes: take the 2.5% and the 97.5% quantile": torch.stack([means.min(), means.max()]),
            "this is mean plus and minus one standard error, about 68%": means.mean()
            + means.std() * torch.tensor([-1.0, 1.0]),
        },
    )


def _interval_single(values: Any, draws: Any) -> Any:
    import torch

    return values[draws].flatten().quantile(torch.tensor([0.025, 0.975]))


def _interval_across(values: Any, draws: Any) -> Any:
    import torch

    return values[draws].mean(0).quantile(torch.tensor([0.025, 0.975]))


def _interval_ninety(values: Any, draws: Any) -> Any:
    import torch

    return values[draws].mean(1).quantile(torch.tensor([0.05, 0.95]))


INTERVAL = Exercise(
    id="04.4",
    title="a bootstrap interval",
    stub=_INTERVAL_STUB,
    solution=interval,
    spec=_interval_spec,
    hints=(
        "values[draws] gives all resamples at once, [R, n]. What is the mean of each?",
        "means = values[draws].mean(1), then means.quantile(means.new_tensor([0.025, 0.975])).",
    ),
    wrong=[
        ("spread of single probes", _interval_single),
        ("averaged over resamples", _interval_across),
        ("90% interval", _interval_ninety),
    ],
    moral="Twelve probes are few: the interval says how few.",
)

EXERCISES = [HELD_OUT, NULL_MAX, EMBED, INTERVAL]
