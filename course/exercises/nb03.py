"""Exercises of notebook 03: a push, what it costs, where it acts, how pushes add up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from course.exercises import Exercise
from course.exercises.specs import Wrong, call, describe

if TYPE_CHECKING:
    import torch


# --- 03.1 the push -------------------------------------------------------------------------------


def push(resid: torch.Tensor, coefficients: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """The residual stream with each row's own coefficient times the step added at every position.

    resid: [rows, pos, d_model]; coefficients: [rows]; step: [d_model] -> [rows, pos, d_model]
    """
    return resid + coefficients[:, None, None] * step


def _push_spec(answer: Any) -> None:
    import torch

    seed = torch.Generator().manual_seed(31)
    for rows, pos in ((3, 3), (3, 4), (4, 1)):  # as many rows as positions, other numbers, one new token
        resid = torch.randn(rows, pos, 6, generator=seed)
        coefficients = torch.tensor([-0.4, 0.0, 0.3, 1.0])[:rows]
        step = 5 * torch.randn(6, generator=seed)
        want = resid.clone()
        for row in range(rows):  # the definition, one token at a time
            for i in range(pos):
                want[row, i] += coefficients[row] * step
        PUSH.expect(answer, resid, coefficients, step, want=want)


PUSH = Exercise.of(
    push,
    id="03.1",
    title="a push for each row",
    spec=_push_spec,
    hints=(
        "The same step for every token of a row, and another multiple of it for every row.",
        "Write the three shapes under each other, ends aligned. Where do the coefficients lack dimensions? "
        "Indexing with None makes one of size 1.",
    ),
    on_error="coefficients is [rows]: give it the two dimensions that it lacks behind",
    wrong={
        "the coefficients ran along the positions: each belongs to a row": "resid + coefficients[:, None] * step",
        "every row got the first coefficient": "resid + coefficients[0] * step",
        "every row got the sum of the coefficients: each has its own": "resid + coefficients.sum() * step",
        "the step replaced the stream: add it to resid": "coefficients[:, None, None] * step + 0 * resid",
        "the sign is turned round: a positive coefficient adds the step": "resid - coefficients[:, None, None] * step",
        "the step has its length already: do not divide by it": (
            "resid + coefficients[:, None, None] * step / step.norm()"
        ),
        "only the last position was pushed: every one is": (
            "resid + coefficients[:, None, None] * step * (resid.new_ones(resid.shape[1]).cumsum(0) "
            "== resid.shape[1])[:, None]"
        ),
    },
    moral="This line is all of steering; the rest is bookkeeping.",
)


# --- 03.2 distinct-2 -----------------------------------------------------------------------------


def distinct_2(tokens: list[int]) -> float:
    """Share of different pairs among all pairs of neighbours in a list of token ids.

    1.0: no pair occurs twice. A list too short to hold a pair counts as 1.0.
    """
    pairs = [(tokens[i], tokens[i + 1]) for i in range(len(tokens) - 1)]
    return len(set(pairs)) / len(pairs) if pairs else 1.0


def _distinct_spec(answer: Any) -> None:
    short = "fewer than two tokens hold no pair: return 1.0 before you divide"
    for tokens in ([3, 1, 4], [5, 6, 5, 6, 5], [9, 9, 9, 9], [1, 2, 2, 1, 1, 2], [7], []):
        seen, pairs = [], 0
        for i in range(len(tokens) - 1):  # the definition, one pair at a time
            pairs += 1
            if (tokens[i], tokens[i + 1]) not in seen:
                seen.append((tokens[i], tokens[i + 1]))
        want = len(seen) / pairs if pairs else 1.0
        DISTINCT.expect_number(
            answer,
            tokens,
            want=want,
            likely=short if len(tokens) < 2 else "",
            unread="return the ratio itself",
            otherwise="count the pairs of this list on paper, then print what your code counts",
        )


DISTINCT = Exercise.of(
    distinct_2,
    id="03.2",
    title="distinct-2 by hand",
    spec=_distinct_spec,
    hints=(
        "[5, 6, 5, 6, 5] holds four pairs, and two of them are different.",
        "Pair each token with the one after it; Python's set() drops what occurs twice. What of the empty list?",
    ),
    wrong={
        "single tokens were counted: count pairs of neighbours": "len(set(tokens)) / max(len(tokens), 1)",
        "divided by the number of tokens: n tokens hold n - 1 pairs": "len(set(pairs)) / max(len(tokens), 1)",
        "the pairs do not overlap: every token but the last begins one": (
            "range(len(tokens) - 1)",
            "range(0, len(tokens) - 1, 2)",
        ),
        "(a, b) and (b, a) are different pairs": "len({frozenset(pair) for pair in pairs}) / max(len(pairs), 1)",
        "this is the share of repeated pairs: return 1 minus it": "1 - len(set(pairs)) / len(pairs) if pairs else 0.0",
        "return 1.0 before you divide": "len(set(pairs)) / len(pairs)",
    },
    moral="A loop can look fluent to KL and perplexity; this number sees it.",
)


# --- 03.3 KL divergence --------------------------------------------------------------------------


def kl(steered: torch.Tensor, unsteered: torch.Tensor) -> torch.Tensor:
    """KL(steered || unsteered) in nats, one number for each position.

    steered, unsteered: logits [pos, d_vocab] -> [pos]
    """
    log_p = steered.log_softmax(-1)
    log_q = unsteered.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _kl_spec(answer: Any) -> None:
    import math

    import torch

    seed = torch.Generator().manual_seed(32)
    steered = 2 * torch.randn(4, 9, generator=seed)  # [pos, d_vocab]
    unsteered = 2 * torch.randn(4, 9, generator=seed)

    # The definition, one position and one token at a time.
    def distribution(logits: torch.Tensor) -> list[float]:
        weights = [math.exp(x) for x in logits.tolist()]
        return [x / sum(weights) for x in weights]

    want = torch.zeros(4)
    for pos in range(4):
        p, q = distribution(steered[pos]), distribution(unsteered[pos])
        want[pos] = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    KL.expect(answer, steered, unsteered, want=want)


KL = Exercise.of(
    kl,
    id="03.3",
    title="the cost of a push, in nats",
    spec=_kl_spec,
    hints=(
        "An average, under the steered probabilities, of how much likelier each token became.",
        "Inside the average stand log-probabilities, and logits are none yet; its weights are probabilities. "
        "Which dimension is summed, which is kept?",
    ),
    on_error="both are [pos, d_vocab]: the softmax runs over the last dimension",
    wrong={
        "the direction is turned round: the weights are the steered probabilities": (
            "(log_q.exp() * (log_q - log_p)).sum(-1)"
        ),
        "logits are no log-probabilities: take log_softmax before subtracting": (
            "(log_p.exp() * (steered - unsteered)).sum(-1)"
        ),
        "these are bits: take the natural logarithm": "(log_p.exp() * (log_p - log_q)).sum(-1) / 0.693147",
        "averaged over positions: keep one number for each": ("sum(-1)", "sum(-1).mean()"),
        "summed over positions: keep one number for each": ("sum(-1)", "sum()"),
        "averaged over the vocabulary: a divergence sums over it": ("sum(-1)", "mean(-1)"),
        "the sign is turned round: a divergence is never negative": ("log_p - log_q", "log_q - log_p"),
        "the softmax ran over positions, not over the vocabulary": ("softmax(-1)", "softmax(0)"),
    },
    moral="This is the number behind the dose meter and the colours.",
)


# --- 03.4 the same step for a mix ----------------------------------------------------------------


def fair_coefficient(a: torch.Tensor, b: torch.Tensor, c: float) -> torch.Tensor:
    """The coefficient at which a + b makes a step as long as a alone makes at c.

    a, b: directions [d_model] of length 1, not necessarily at a right angle
    """
    return c / (a + b).norm()


def _mix_spec(answer: Any) -> None:
    import torch

    seed = torch.Generator().manual_seed(34)
    a, b = torch.randn(2, 12, generator=seed)
    a, b = a / a.norm(), b / b.norm()
    for other, name in ((b, "b"), (a + 0.4 * b, "b close to a"), (0.5 * b - a, "b against a")):
        other = other / other.norm()
        for c in (0.3, -0.2):
            # The definition: the length of the sum, one coordinate at a time.
            square = sum((float(x) + float(y)) ** 2 for x, y in zip(a, other, strict=True))
            want = torch.tensor(c / square**0.5)
            MIX.expect(
                answer,
                a,
                other,
                c,
                want=want,
                number=True,
                also={f"the sign was lost (here c = {c}, {name})": want.abs()},
            )


MIX = Exercise.of(
    fair_coefficient,
    id="03.4",
    title="a fair dose for a mix",
    spec=_mix_spec,
    hints=(
        "Draw two arrows of length 1 and their sum. How long is it at 90 degrees, at 10, at 170?",
        "At coefficient x the step is x (a + b). Write down its length and that of the step c a.",
    ),
    wrong={
        "halved: that is right only when both point the same way": "c / 2",
        "divided by the square root of 2: right only at a right angle; use the real length of a + b": "c / 2**0.5",
        "multiplied by the length of a + b: a longer vector needs less": "c * (a + b).norm()",
        "divided by the squared length: take the root": "c / (a + b).norm() ** 2",
    },
    moral="Compare mixes at equal step, or the longer one wins whatever it says.",
)


# --- 03.5 a position mask ------------------------------------------------------------------------


def steer_here(prompt: int, first: int, count: int) -> torch.Tensor:
    """Which positions of one forward pass to steer, as a bool tensor [count].

    Wanted: the last three tokens of a prompt of `prompt` tokens, and everything after it.
    This pass computes positions first, first + 1, ... (with a cache: first > 0, often count = 1).
    """
    import torch

    index = torch.arange(first, first + count)  # where this pass stands in the whole sequence
    return index >= prompt - 3


def _mask_spec(answer: Any) -> None:
    import torch

    # prompt, first, count: the whole prompt; no cache; cached steps; a chunk that ends in the
    # prompt, one that starts in it; a prompt of two tokens
    cases = ((8, 0, 8), (8, 0, 11), (8, 8, 1), (8, 11, 1), (8, 2, 4), (8, 6, 5), (2, 0, 3))
    for prompt, first, count in cases:
        got = call(answer, prompt, first, count)
        want = []
        for i in range(count):  # the definition, one position of the whole sequence at a time
            position = first + i
            in_last_three = prompt - 3 <= position < prompt
            want.append(in_last_three or position >= prompt)
        what = f"steer_here({prompt}, {first}, {count}) = {want}"
        if not isinstance(got, torch.Tensor) or got.dtype != torch.bool:
            raise Wrong(
                arrived=describe(got),
                expected=what,
                likely="return a bool tensor: torch.arange(...) >= a number is one",
            )
        if got.tolist() == want:
            continue
        otherwise = "write the positions first, first + 1, ... under each other and mark them"
        cause = MASK.cause(got.equal, prompt, first, count, otherwise=otherwise)
        raise Wrong(arrived=str(got.tolist()), expected=what, likely=cause)


MASK = Exercise.of(
    steer_here,
    id="03.5",
    title="a position mask that survives a cache",
    spec=_mask_spec,
    hints=(
        "With a cache, a pass often computes one position only. Which one is it?",
        "Number this pass as it stands in the whole text, not from 0; from which number on is a token steered?",
    ),
    wrong={
        "counted from the start of this pass: add first, a cache hides what came before": (
            "torch.arange(count) >= prompt - 3"
        ),
        "the last three of this pass, not of the prompt": "torch.arange(count) >= count - 3",
        "what comes after the prompt is missing": "(index >= prompt - 3) & (index < prompt)",
        "the prompt's last three are missing": "index >= prompt",
        "one too few: the last three start at prompt - 3": "index > prompt - 3",
    },
    moral="In the kit this is positions=slice(-3, None). Code that counts within the cached slice "
    "steers the wrong tokens and says nothing.",
)

EXERCISES = [PUSH, DISTINCT, KL, MIX, MASK]
