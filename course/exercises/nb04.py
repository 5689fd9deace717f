"""Exercises of notebook 04: one head, held-out pairs, the best of many, intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from course.exercises import Exercise

if TYPE_CHECKING:
    import torch


# --- 04.1 a head's direction among all heads -----------------------------------------------------


def embed(direction: torch.Tensor, head: int, n_heads: int) -> torch.Tensor:
    """A vector [n_heads * d_head] that is `direction` [d_head] in its head and 0 elsewhere."""
    d_head = len(direction)
    flat = direction.new_zeros(n_heads * d_head)
    flat[head * d_head : (head + 1) * d_head] = direction
    return flat


def _embed_spec(answer: Any) -> None:
    import torch

    seed = torch.Generator().manual_seed(43)
    direction = torch.randn(5, generator=seed)
    n_heads, d_head, head = 4, 5, 2
    want = torch.tensor([direction[i % d_head].item() if i // d_head == head else 0.0 for i in range(n_heads * d_head)])
    EMBED.expect(answer, direction, head, n_heads, want=want)
    last = torch.cat([torch.zeros((n_heads - 1) * d_head), direction])
    EMBED.expect(answer, direction, n_heads - 1, n_heads, want=last)


EMBED = Exercise.of(
    embed,
    id="04.1",
    title="one head among nine",
    spec=_embed_spec,
    hints=(
        "The heads' outputs lie one after the other: head 0 owns the first d_head numbers.",
        "Where does the block of head 0 end, and so where do those of head 1 and of head h begin?",
    ),
    on_error="the slice of a head is head * d_head to (head + 1) * d_head",
    wrong={
        "the heads are interleaved: each head owns a block of d_head neighbours": (
            "head * d_head : (head + 1) * d_head",
            "head::n_heads",
        ),
        "starts at head: the block starts at head * d_head": (
            "head * d_head : (head + 1) * d_head",
            "head : head + d_head",
        ),
        "every head got the direction: the others must stay 0": "direction.repeat(n_heads)",
        "one head too far: heads count from 0": "flat.roll(d_head)",
        "this is [n_heads, d_head]: flatten it": "flat.reshape(n_heads, d_head)",
    },
    moral="Steering a head is ordinary steering, with a vector that is zero outside one block.",
)


# --- 04.2 accuracy on pairs that were left out ---------------------------------------------------


def held_out(diff: torch.Tensor) -> torch.Tensor:
    """Share of pairs (rows of diff, [pairs, d], true minus false) that are hits, a float tensor.

    A hit: the sum of all OTHER rows has a dot product above 0 with the pair's own row.
    """
    others = diff.sum(0) - diff  # [pairs, d]: for each pair the sum of all other rows
    return ((others * diff).sum(-1) > 0).float().mean()


def _held_out_spec(answer: Any) -> None:
    import torch

    seed = torch.Generator().manual_seed(41)
    for pairs, d, shift in ((25, 60, 0.0), (40, 12, 0.4)):  # pure noise, then a weak signal
        diff = torch.randn(pairs, d, generator=seed) + shift

        # The definition, one pair at a time.
        hits = []
        for i in range(pairs):
            direction = sum(diff[j] for j in range(pairs) if j != i)
            hits.append(float(direction @ diff[i] > 0))
        want = torch.tensor(hits).mean()
        HELD_OUT.expect(answer, diff, want=want)


HELD_OUT = Exercise.of(
    held_out,
    id="04.2",
    title="accuracy on pairs that were left out",
    spec=_held_out_spec,
    hints=(
        "The sum of all other rows is the sum of all rows minus the row itself.",
        "The dot product of two vectors is the sum of their elementwise product; do it for all rows at once, "
        "then count how many are above 0.",
    ),
    on_error="others and diff are both [pairs, d]: multiply elementwise, then sum over d",
    wrong={
        "each pair helped to fit the direction that judges it: leave its row out": (
            "diff.sum(0) - diff",
            "diff.sum(0)",
        ),
        "these are single pairs: take the mean": (".mean()", ""),
        "this is the number of hits: divide by the number of pairs": (".mean()", ".sum()"),
        "the sign is turned round: a hit is a dot product above 0": ("> 0", "< 0"),
    },
    moral="On pure noise the fitted direction looks excellent on its own pairs; this one does not.",
)


# --- 04.3 the best of many under the null --------------------------------------------------------


def p_of_best(observed: torch.Tensor, null: torch.Tensor) -> torch.Tensor:
    """Share of draws whose best head is at least as good as our best head, a float tensor.

    observed: [heads]; null: [heads, draws], the same accuracies with shuffled labels
    """
    best = null.max(dim=0).values  # [draws]: the best head of each draw
    return (best >= observed.max()).float().mean()


def _null_max_spec(answer: Any) -> None:
    import torch

    seed = torch.Generator().manual_seed(42)
    null = (0.5 + 0.06 * torch.randn(50, 200, generator=seed)).mul(80).round() / 80
    observed = null[:, :1].flatten().clone()
    observed[7] = null.max(0).values.median()  # a tie with some draws

    top = max(observed.tolist())
    reached = 0
    for draw in range(200):
        best = max(null[head, draw].item() for head in range(50))
        reached += best >= top
    NULL_MAX.expect(answer, observed, null, want=reached / 200)


NULL_MAX = Exercise.of(
    p_of_best,
    id="04.3",
    title="the best of many",
    spec=_null_max_spec,
    hints=(
        "We looked at all heads and kept the best. Do the same in every draw.",
        "First make one number of each draw: that of its best head. A draw that only ties with us did as well, too.",
    ),
    on_error="take the maximum over dim=0, heads",
    wrong={
        "one head was compared with one head: take the best of all heads in each draw": (
            "(null >= observed.max()).float().mean()"
        ),
        "the best head was compared with its own draws only: any head could have won": (
            "(null[observed.argmax()] >= observed.max()).float().mean()"
        ),
        "the maximum runs over draws: it should run over heads, one best head for each draw": ("dim=0", "dim=1"),
        "a tie counts too: use >=": (">=", ">"),
        "this is how often chance is worse: turn the comparison round": (">=", "<"),
    },
    moral="Chance gets the same 270 tickets that we had.",
)


# --- 04.4 bootstrap interval ---------------------------------------------------------------------


def interval(values: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """95% bootstrap interval of the mean, a tensor [2]: low, high.

    values: [n]; draws: [R, n], row r says which of the values resample r takes
    """
    means = values[draws].mean(dim=1)  # [R]: the mean of each resample
    return means.quantile(means.new_tensor([0.025, 0.975]))


def _interval_spec(answer: Any) -> None:
    import torch

    seed = torch.Generator().manual_seed(44)
    values = torch.randn(12, generator=seed) + 0.5
    draws = torch.randint(0, 12, (500, 12), generator=seed)

    means = torch.tensor([sum(values[i].item() for i in row) / len(row) for row in draws.tolist()])
    ends = torch.tensor([0.025, 0.975])
    INTERVAL.expect(answer, values, draws, want=means.quantile(ends))


INTERVAL = Exercise.of(
    interval,
    id="04.4",
    title="a bootstrap interval",
    spec=_interval_spec,
    hints=(
        "values[draws] gives all resamples at once, [R, n]. What is the mean of each?",
        "95% in the middle leave 5% outside: how much of it on each side? A tensor has a method quantile.",
    ),
    on_error="values[draws] is [R, n]: a mean over dim=1 leaves one number a resample",
    wrong={
        "this is the spread of single probes: average each resample first": ("mean(dim=1)", "flatten()"),
        "averaged over the resamples instead of within each: use dim=1": ("dim=1", "dim=0"),
        "5% on each side is a 90% interval: 2.5% on each side": ("[0.025, 0.975]", "[0.05, 0.95]"),
        "these are the extremes: take the 2.5% and the 97.5% quantile": ("[0.025, 0.975]", "[0.0, 1.0]"),
        "this is mean plus and minus one standard error, about 68%": (
            "means.mean() + means.std() * means.new_tensor([-1.0, 1.0])"
        ),
    },
    moral="Twelve probes are few: the interval says how few.",
)

EXERCISES = [EMBED, HELD_OUT, NULL_MAX, INTERVAL]
