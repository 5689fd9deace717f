"""Exercises of notebook 02, steering vectors: a mean, AUROC, a probe, a control, a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from course.exercises import Exercise
from course.exercises.specs import Wrong, call, compare, describe

if TYPE_CHECKING:
    import pandas as pd
    import torch


# --- 02.1 mean difference ------------------------------------------------------------------------


def mean_direction(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """Unit vector [d] that points from the negatives' mean to the positives' mean.

    positive, negative: activations [n, d]; n may differ between the two.
    """
    difference = positive.mean(0) - negative.mean(0)
    return difference / difference.norm()


def _mean_spec(answer: Any) -> None:
    import torch

    seed = torch.Generator().manual_seed(21)
    positive = 2 * torch.randn(7, 6, generator=seed) + 1.0
    negative = torch.randn(5, 6, generator=seed)

    # The definition, one number at a time.
    raw = torch.empty(6)
    for i in range(6):
        raw[i] = sum(x[i] for x in positive) / 7 - sum(x[i] for x in negative) / 5
    length = sum(x * x for x in raw) ** 0.5
    want = raw / length
    MEAN.expect(answer, positive, negative, want=want)


MEAN = Exercise.of(
    mean_direction,
    id="02.1",
    title="mean difference",
    spec=_mean_spec,
    hints=(
        "Two steps: a vector from one mean to the other, then give it length 1.",
        "The order matters twice: which mean is subtracted from which, and averaging before scaling.",
    ),
    on_error="average each side over its texts first, dim 0: the sides need not be equally many",
    wrong={
        "the direction is right, its length is not 1: divide by its norm": "difference",
        "turned round: positive minus negative, so that + means more of the positive": (
            "-difference / difference.norm()"
        ),
        "every text was normalised before averaging: normalise the difference, once": (
            "difference = positive",
            "positive, negative = (x / x.norm(dim=1)[:, None] for x in (positive, negative))\n"
            "    difference = positive",
        ),
        "sums instead of means: the side with more texts weighs more": (".mean(0)", ".sum(0)"),
        "average each side over its texts first": "(positive - negative).mean(0)",
    },
    moral="This is the whole method. All the rest of this notebook asks whether to believe it.",
)


# --- 02.2 AUROC ----------------------------------------------------------------------------------


def auroc_by_hand(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """Chance that a positive score is above a negative one; a tie counts half.

    positive [n], negative [m]: scores, one for each text. Compare every positive with every
    negative. Returns one number.
    """
    above = (positive[:, None] > negative).float()  # [n, m]: every positive meets every negative
    level = (positive[:, None] == negative).float()
    return (above + 0.5 * level).mean()


def _auroc_spec(answer: Any) -> None:
    import torch

    cases = (
        ([3.0, 1.0, 2.0, 2.0, 9.0], [2.0, 0.0, 1.0]),
        ([-3.0, -1.0, -2.5], [-2.0, -4.0, -1.0, -6.0]),
        ([1.0, 1.0], [1.0, 1.0, 1.0]),
    )
    for ups, downs in cases:
        positive, negative = torch.tensor(ups), torch.tensor(downs)
        shapes = "the sides differ in length: positive[:, None] compares each with all negatives"
        got = call(answer, positive.clone(), negative.clone(), likely=shapes)
        if isinstance(got, int | float) and not isinstance(got, bool):
            got = torch.tensor(float(got))

        # The definition: a tournament of every positive against every negative.
        points = 0.0
        for p in ups:
            for q in downs:
                points += 1.0 if p > q else 0.5 if p == q else 0.0
        compare(got, points / (len(ups) * len(downs)), AUROC.known(positive, negative))


AUROC = Exercise.of(
    auroc_by_hand,
    id="02.2",
    title="AUROC",
    spec=_auroc_spec,
    hints=(
        "Make a table [n, m] of who beats whom; positive[:, None] > negative does it at once.",
        "A second table says who ties. How much does a tie count, and how do you turn points into a chance?",
    ),
    wrong={
        "ties count nothing: give half a point to each": "above.mean()",
        "ties count as wins: give half a point to each": "(above + level).mean()",
        "turned round: count the positives that are above": "1 - (above + 0.5 * level).mean()",
        "points were counted: divide by the number of comparisons": (".mean()", ".sum()"),
        "this is the accuracy at threshold 0: AUROC needs no threshold": (
            "((positive > 0).sum() + (negative <= 0).sum()) / sum(above.shape)"
        ),
        "only the means were compared: compare every pair": "(positive.mean() > negative.mean()).float()",
        "the sides differ in length": "(positive > negative).float().mean()",
    },
    moral="0.5 is a coin, 1 is a clean split, and 0 is a clean split with the sign turned round.",
)


# --- 02.3 what a probe minimises -----------------------------------------------------------------


def probe_loss(
    w: torch.Tensor,  # [d]
    b: torch.Tensor,
    x: torch.Tensor,  # [n, d]
    y: torch.Tensor,  # [n]
) -> torch.Tensor:
    """What a logistic probe makes small, one number: |w|^2 / 2 + 0.1 * (sum of -log p over texts).

    p is the probability of a text's own side; that of "positive" is sigmoid(x @ w + b).

    w: weights [d]; b: a number, not penalised; x: texts [n, d]; y: [n], 1 positive, 0 negative
    """
    import torch

    score = (2 * y - 1) * (x @ w + b)  # above 0 where the text is on its own side
    surprise = -torch.nn.functional.logsigmoid(score)
    return w @ w / 2 + 0.1 * surprise.sum()


def _loss_spec(answer: Any) -> None:
    import math

    import torch

    seed = torch.Generator().manual_seed(23)
    x, y = torch.randn(7, 4, generator=seed), torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0])
    w, b = torch.randn(4, generator=seed), torch.tensor(0.7)
    want = sum(float(number) ** 2 for number in w) / 2
    for text, side in zip(x, y, strict=True):  # one text at a time
        p = 1 / (1 + math.exp(-float((text * w).sum() + b)))
        want += 0.1 * -math.log(p if side == 1 else 1 - p)
    LOSS.expect(answer, w, b, x, y, want=torch.tensor(want))
    far = torch.tensor([200.0, 0.0, 0.0, 0.0])  # a text that is very sure, on the wrong side
    got = call(answer, far, b, -x[:1].abs() - 1, torch.ones(1))
    if not torch.as_tensor(got).float().isfinite().all():
        raise Wrong(
            arrived=describe(got),
            expected="a finite loss also where the probe is far off",
            likely="log(sigmoid(...)) overflows: torch.nn.functional.logsigmoid does both in one",
        )


LOSS = Exercise.of(
    probe_loss,
    id="02.3",
    title="what a probe minimises",
    spec=_loss_spec,
    hints=(
        "sigmoid(-s) is 1 - sigmoid(s): what must a negative text's score be multiplied with?",
        "2 * y - 1 is +1 or -1. torch.nn.functional.logsigmoid is safe where log(sigmoid(s)) is not.",
    ),
    on_error="x @ w is [n]: one score for each text",
    wrong={
        "averaged over the texts: it is a sum": ("surprise.sum()", "surprise.mean()"),
        "the penalty is missing: without it weights grow without end": "0.1 * surprise.sum()",
        "half the squared length of w, not all of it": ("w @ w / 2", "w @ w"),
        "the length of w, not half its square": ("w @ w / 2", "w.norm()"),
        "0.1 is missing": ("0.1 * ", ""),
        "the sides are turned round": ("2 * y - 1", "1 - 2 * y"),
        "negatives were counted as positives: p is that of a text's own side": ("(2 * y - 1) * ", ""),
        "the bias is missing: x @ w + b": ("x @ w + b", "x @ w"),
        "log(sigmoid(...)) overflows": ("torch.nn.functional.logsigmoid(score)", "torch.log(torch.sigmoid(score))"),
    },
    moral="Small weights and few surprises: 0.1 says how much a surprise weighs.",
)


# --- 02.4 the label control ----------------------------------------------------------------------


def swap_half(
    positive: torch.Tensor,  # [n, d]
    negative: torch.Tensor,  # [n, d]
    seed: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Copies of both sides in which exactly half of the pairs changed sides.

    positive, negative: [n, d]; row i of one is the partner of row i of the other, and stays so.
    n // 2 pairs are exchanged; a torch.Generator with this seed draws which ones.
    """
    import torch

    rng = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(positive), generator=rng)[: len(positive) // 2]
    up, down = positive.clone(), negative.clone()
    up[chosen], down[chosen] = negative[chosen], positive[chosen]
    return up, down


def _swap_spec(answer: Any) -> None:
    import torch

    n = 9
    positive = torch.arange(n * 2.0).reshape(n, 2) + 1  # every row says who it is
    negative = -positive
    drawn = set()
    for seed in range(6):
        given = positive.clone(), negative.clone()
        state = torch.get_rng_state()
        got = call(answer, *given, seed)
        moved = not torch.equal(state, torch.get_rng_state())
        torch.set_rng_state(state)
        shape = f"two tensors {list(positive.shape)}"
        if not (isinstance(got, tuple | list) and len(got) == 2):
            raise Wrong(arrived=describe(got), expected=shape, likely="return both: up, down")
        up, down = got
        for side in (up, down):
            if not isinstance(side, torch.Tensor) or side.shape != positive.shape:
                raise Wrong(
                    arrived=describe(side),
                    expected=shape,
                    likely="rows were dropped or added: exchange rows, keep the shape",
                )
        if not (torch.equal(given[0], positive) and torch.equal(given[1], negative)):
            raise Wrong(
                arrived="sides that were changed in place",
                expected="new tensors",
                likely="clone() both sides before you exchange rows",
            )
        swapped = []
        for i in range(n):  # row by row: kept, exchanged with its partner, or something else
            kept = torch.equal(up[i], positive[i]) and torch.equal(down[i], negative[i])
            swapped.append(torch.equal(up[i], negative[i]) and torch.equal(down[i], positive[i]))
            if not (kept or swapped[-1]):
                raise Wrong(
                    arrived=f"row {i}: {describe(up[i])} beside {describe(down[i])}",
                    expected=f"row {i}: {describe(positive[i])} beside its partner, or exchanged",
                    likely="rows moved or partners were parted: exchange a row with its partner, "
                    "and clone() both sides before you overwrite one",
                )
        if moved:
            raise Wrong(
                arrived="a draw from torch's global random numbers",
                expected="a draw from torch.Generator().manual_seed(seed)",
                likely="generator= was not passed, so the seed decides nothing",
            )
        if sum(swapped) != n // 2:
            raise Wrong(
                arrived=f"{sum(swapped)} of {n} pairs exchanged with seed {seed}",
                expected=f"{n // 2}, with every seed",
                likely="a coin for each pair gives half only on average: draw n // 2 rows",
            )
        if not torch.equal(call(answer, positive.clone(), negative.clone(), seed)[0], up):
            raise Wrong(
                arrived=f"two results for seed {seed}",
                expected="the same one twice",
                likely="make a new generator with the seed in every call",
            )
        drawn.add(tuple(swapped))
    if len(drawn) < 2:
        raise Wrong(
            arrived="the same rows for six seeds",
            expected="rows that the seed draws",
            likely="the seed is not used: torch.randperm takes generator=",
        )


SWAP = Exercise.of(
    swap_half,
    id="02.4",
    title="the label control",
    spec=_swap_spec,
    hints=(
        "Draw n // 2 row numbers first. torch.randperm(n, generator=rng) shuffles all of them.",
        "Read from the sides that were given, write into copies: else the second line reads what the first wrote.",
    ),
    wrong={
        "a coin for each pair gives half only on average": (
            "torch.randperm(len(positive), generator=rng)[: len(positive) // 2]",
            "torch.rand(len(positive), generator=rng) < 0.5",
        ),
        "rows moved or partners were parted": (
            "negative[chosen], positive[chosen]",
            "negative[: len(chosen)], positive[: len(chosen)]",
        ),
        "the seed is not used": ("torch.randperm(len(positive), generator=rng)", "torch.arange(len(positive))"),
        "clone() both sides before you exchange rows": (".clone()", ""),
    },
    moral="Same texts, same code, no label left on average: what survives is not your concept.",
)

# --- 02.5 choose a layer -------------------------------------------------------------------------

CEILING = 0.5  # nats a token


def best_layer(table: pd.DataFrame) -> int:
    cells = table.groupby(["layer", "coefficient"])[["effect", "kl"]].mean()  # over prompts
    affordable = cells[cells.kl <= 0.5]
    layer, _ = affordable.effect.idxmax()
    return int(layer)


def _layer_spec(answer: Any, *, table: Any) -> None:
    import numbers

    rows: dict[tuple[int, float], list[tuple[float, float]]] = {}
    for row in table.itertuples():
        rows.setdefault((int(row.layer), float(row.coefficient)), []).append((row.effect, row.kl))
    cells = {key: [sum(column) / len(found) for column in zip(*found, strict=True)] for key, found in rows.items()}
    affordable = {key: effect for key, (effect, kl) in cells.items() if kl <= CEILING}
    best = max(affordable, key=lambda key: affordable[key])
    layers = sorted({layer for layer, _ in cells})
    shown = describe(answer)
    expected = (
        f"a layer of {layers}: the one with the largest mean effect among the cells that "
        f"cost at most {CEILING} nats a token"
    )
    if not isinstance(answer, numbers.Real) or isinstance(answer, bool):
        raise Wrong(arrived=shown, expected=expected, likely="give one whole number")
    if answer not in layers:
        known = [c for _, c in cells]
        likely = "that is a coefficient" if answer in known else "the table has no such layer"
        raise Wrong(arrived=shown, expected=expected, likely=f"{likely}: look at its first column")
    if answer == best[0]:
        return
    top = max(cells, key=lambda key: cells[key][0])
    cheap = min(cells, key=lambda key: cells[key][1])
    single = max((row for row in table.itertuples() if row.kl <= CEILING), key=lambda r: r.effect)
    likely = "its best affordable cell is weaker than another layer's"
    if answer == top[0]:
        likely = f"the largest effect of all, but it costs {cells[top][1]:.2f} nats a token"
    elif answer == cheap[0]:
        likely = "the cheapest cell: a cost alone says nothing about what it buys"
    elif answer == single.layer:
        likely = "the best single prompt: take the mean over prompts before you choose"
    raise Wrong(arrived=shown, expected=expected, likely=likely)


def _layer_example() -> dict[str, Any]:
    import pandas as pd

    cells = {  # (layer, coefficient): effect and KL on two prompts
        (4, 0.2): [(0.5, 0.05), (0.7, 0.07)],
        (4, 0.4): [(1.1, 0.2), (0.9, 0.2)],
        (9, 0.2): [(2.0, 0.3), (2.4, 0.4)],
        (9, 0.4): [(2.8, 0.9), (3.0, 1.1)],
        (14, 0.4): [(6.0, 1.9), (5.0, 2.1)],
        (19, 0.2): [(2.9, 0.3), (0.1, 0.2)],
        (19, 0.4): [(0.3, 0.7), (0.2, 0.8)],
    }
    rows = [(*cell, i, *pair) for cell, pairs in cells.items() for i, pair in enumerate(pairs)]
    names = ["layer", "coefficient", "prompt", "effect", "kl"]
    return {"table": pd.DataFrame(rows, columns=names)}


LAYER = Exercise.of(
    best_layer,
    id="02.5",
    title="choose a layer",
    stub="layer_of_choice = ...  # a number from the first column",
    spec=_layer_spec,
    hints=(
        "First strike out every cell of the right-hand map that is above 0.5. Then look left.",
        "A cell is a layer and a coefficient, with a row a prompt: groupby, mean, then the ceiling, then the largest.",
    ),
    wrong={
        "the largest effect of all, but it costs": ("cells[cells.kl <= 0.5]", "cells"),
        "the cheapest cell: a cost alone says nothing about what it buys": "int(cells.kl.idxmin()[0])",
        "the best single prompt: take the mean over prompts before you choose": 19,
        "that is a coefficient": 0.4,
    },
    moral="Chosen on these probes. Whether it holds is for probes that did not choose it to say.",
    example=_layer_example,
)

EXERCISES = [MEAN, AUROC, LOSS, SWAP, LAYER]
