"""Exercises of notebook 03, live steering: what a push costs, where it acts, how pushes add up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from course.exercises import Exercise
from course.exercises.specs import Wrong, call, compare, describe

if TYPE_CHECKING:
    import torch


# --- 03.1 distinct-2 -----------------------------------------------------------------------------

_DISTINCT_STUB = '''
def distinct_2(tokens):
    """Share of different pairs among all pairs of neighbours in a list of token ids.

    1.0: no pair occurs twice. A list too short to hold a pair counts as 1.0.
    """
    raise NotImplementedError("your turn")
'''


def distinct_2(tokens: list[int]) -> float:
    pairs = [(tokens[i], tokens[i + 1]) for i in range(len(tokens) - 1)]
    return len(set(pairs)) / len(pairs) if pairs else 1.0


def _distinct_spec(answer: Any) -> None:
    short = "fewer than two tokens hold no pair: return 1.0 before you divide"
    for tokens in ([5, 6, 5, 6, 5], [1, 2, 2, 1, 1, 2], [9, 9, 9, 9], [3, 1, 4], [7], []):
        seen, pairs = [], 0
        for i in range(len(tokens) - 1):  # the definition, one pair at a time
            pairs += 1
            if (tokens[i], tokens[i + 1]) not in seen:
                seen.append((tokens[i], tokens[i + 1]))
        want = len(seen) / pairs if pairs else 1.0
        got = call(answer, list(tokens), likely=short if len(tokens) < 2 else "")
        blocks = [tuple(tokens[i : i + 2]) for i in range(0, len(tokens) - 1, 2)]
        unordered = {frozenset(tokens[i : i + 2]) for i in range(len(tokens) - 1)}
        n = max(pairs, 1)
        _same_number(
            got,
            want,
            f"distinct_2({tokens})",
            {
                "single tokens were counted: count pairs of neighbours": len(set(tokens)) / max(len(tokens), 1),
                "divided by the number of tokens: n tokens hold n - 1 pairs": len(seen) / max(len(tokens), 1),
                "the pairs do not overlap: every token but the last begins one": len(set(blocks)) / max(len(blocks), 1),
                "(a, b) and (b, a) are different pairs": len(unordered) / n,
                "this is the share of repeated pairs: return 1 minus it": 1 - want,
            },
        )


def _same_number(got: Any, want: float, what: str, known: dict[str, float]) -> None:
    try:
        number = float(got)
    except (TypeError, ValueError):
        raise Wrong(
            arrived=describe(got), expected=f"{what} = {want:.3g}, a number", likely="return the ratio itself"
        ) from None
    if abs(number - want) < 1e-6:
        return
    cause = next(
        (c for c, other in known.items() if abs(number - other) < 1e-6),
        "count the pairs of this list on paper, then print what your code counts",
    )
    raise Wrong(arrived=f"{number:.3g}", expected=f"{what} = {want:.3g}", likely=cause)


def _distinct_tokens(tokens: Any) -> Any:
    return len(set(tokens)) / max(len(tokens), 1)


def _distinct_blocks(tokens: Any) -> Any:
    pairs = [tuple(tokens[i : i + 2]) for i in range(0, len(tokens) - 1, 2)]
    return len(set(pairs)) / max(len(pairs), 1)


def _distinct_no_guard(tokens: Any) -> Any:
    pairs = [(tokens[i], tokens[i + 1]) for i in range(len(tokens) - 1)]
    return len(set(pairs)) / len(pairs)


DISTINCT = Exercise(
    id="03.1",
    title="distinct-2 by hand",
    stub=_DISTINCT_STUB,
    solution=distinct_2,
    spec=_distinct_spec,
    hints=(
        "[5, 6, 5, 6, 5] holds four pairs, and two of them are different.",
        "zip(tokens, tokens[1:]) walks over the pairs; a set keeps one of each.",
    ),
    wrong=[
        ("single tokens", _distinct_tokens),
        ("pairs that do not overlap", _distinct_blocks),
        ("no guard for short lists", _distinct_no_guard),
    ],
    moral="A loop can look fluent to KL and perplexity; this number sees it.",
)


# --- 03.2 KL divergence --------------------------------------------------------------------------

_KL_STUB = '''
def kl(steered, unsteered):
    """KL(steered || unsteered) in nats, one number for each position.

    steered, unsteered: logits [pos, d_vocab] -> [pos]
    """
    raise NotImplementedError("your turn")
'''


def kl(steered: torch.Tensor, unsteered: torch.Tensor) -> torch.Tensor:
    log_p = steered.log_softmax(-1)
    log_q = unsteered.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _kl_spec(answer: Any) -> None:
    import math

    import torch

    seed = torch.Generator().manual_seed(32)
    steered = 2 * torch.randn(4, 9, generator=seed)  # [pos, d_vocab]
    unsteered = 2 * torch.randn(4, 9, generator=seed)
    shapes = "both are [pos, d_vocab]: the softmax runs over the last dimension"
    got = call(answer, steered.clone(), unsteered.clone(), likely=shapes)

    # The definition, one position and one token at a time.
    def distribution(logits: torch.Tensor) -> list[float]:
        weights = [math.exp(x) for x in logits.tolist()]
        return [x / sum(weights) for x in weights]

    want, back = torch.zeros(4), torch.zeros(4)
    for pos in range(4):
        p, q = distribution(steered[pos]), distribution(unsteered[pos])
        want[pos] = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        back[pos] = sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
    raw = (steered.softmax(-1) * (steered - unsteered)).sum(-1)
    compare(
        got,
        want,
        {
            "the direction is turned round: the weights are the steered probabilities": back,
            "logits are no log-probabilities: take log_softmax before subtracting": raw,
            "these are bits: take the natural logarithm": want / math.log(2),
            "averaged over positions: keep one number for each": want.mean(),
            "summed over positions: keep one number for each": want.sum(),
            "averaged over the vocabulary: a divergence sums over it": want / 9,
            "the sign is turned round: a divergence is never negative": -want,
            "the softmax ran over positions, not over the vocabulary": (
                steered.softmax(0) * (steered.log_softmax(0) - unsteered.log_softmax(0))
            ).sum(-1),
        },
    )


def _kl_backwards(steered: Any, unsteered: Any) -> Any:
    return kl(unsteered, steered)


def _kl_raw(steered: Any, unsteered: Any) -> Any:
    return (steered.softmax(-1) * (steered - unsteered)).sum(-1)


def _kl_mean(steered: Any, unsteered: Any) -> Any:
    return kl(steered, unsteered).mean()


KL = Exercise(
    id="03.2",
    title="the cost of a push, in nats",
    stub=_KL_STUB,
    solution=kl,
    spec=_kl_spec,
    hints=(
        "An average, under the steered probabilities, of how much likelier each token became.",
        "log_p and log_q by log_softmax(-1); then the sum over tokens of p * (log_p - log_q).",
    ),
    wrong=[
        ("turned round", _kl_backwards),
        ("logits instead of log-probabilities", _kl_raw),
        ("averaged over positions", _kl_mean),
    ],
    moral="This is the number behind the dose meter and the colours.",
)


# --- 03.3 the same step for a mix ----------------------------------------------------------------

_MIX_STUB = '''
def fair_coefficient(a, b, c):
    """The coefficient at which a + b makes a step as long as a alone makes at c.

    a, b: directions [d_model] of length 1, not necessarily at a right angle
    """
    raise NotImplementedError("your turn")
'''


def fair_coefficient(a: torch.Tensor, b: torch.Tensor, c: float) -> torch.Tensor:
    return c / (a + b).norm()


def _mix_spec(answer: Any) -> None:
    import torch

    seed = torch.Generator().manual_seed(34)
    a, b = torch.randn(2, 12, generator=seed)
    a, b = a / a.norm(), b / b.norm()
    for other, name in ((b, "b"), (a + 0.4 * b, "b close to a"), (0.5 * b - a, "b against a")):
        other = other / other.norm()
        for c in (0.3, -0.2):
            got = torch.as_tensor(call(answer, a.clone(), other.clone(), c))
            # The definition: the length of the sum, one coordinate at a time.
            square = sum((float(x) + float(y)) ** 2 for x, y in zip(a, other, strict=True))
            want = torch.tensor(c / square**0.5)
            compare(
                got.float(),
                want,
                {
                    "halved: that is right only when both point the same way": torch.tensor(c / 2),
                    "divided by the square root of 2: right only at a right angle; use the real length "
                    "of a + b": torch.tensor(c / 2**0.5),
                    "multiplied by the length of a + b: a longer vector needs less": torch.tensor(c * square**0.5),
                    "divided by the squared length: take the root": torch.tensor(c / square),
                    f"the sign was lost (here c = {c}, {name})": want.abs(),
                },
            )


def _mix_half(a: Any, b: Any, c: Any) -> Any:
    return c / 2


def _mix_right_angle(a: Any, b: Any, c: Any) -> Any:
    return c / 2**0.5


def _mix_multiplied(a: Any, b: Any, c: Any) -> Any:
    return c * (a + b).norm()


MIX = Exercise(
    id="03.3",
    title="a fair dose for a mix",
    stub=_MIX_STUB,
    solution=fair_coefficient,
    spec=_mix_spec,
    hints=(
        "Draw two arrows of length 1 and their sum. How long is it at 90 degrees, at 10, at 170?",
        "x * length of (a + b) has to equal c.",
    ),
    wrong=[("half", _mix_half), ("as if at a right angle", _mix_right_angle), ("multiplied", _mix_multiplied)],
    moral="Compare mixes at equal step, or the longer one wins whatever it says.",
)


# --- 03.4 a position mask ------------------------------------------------------------------------

_MASK_STUB = '''
def steer_here(prompt, first, count):
    """Which positions of one forward pass to steer, as a bool tensor [count].

    Wanted: the last three tokens of a prompt of `prompt` tokens, and everything after it.
    This pass computes positions first, first + 1, ... (with a cache: first > 0, often count = 1).
    """
    raise NotImplementedError("your turn")
'''


def steer_here(prompt: int, first: int, count: int) -> torch.Tensor:
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
        positions = range(first, first + count)
        known = {
            "counted from the start of this pass: add first, a cache hides what came before": [
                i >= prompt - 3 for i in range(count)
            ],
            "the last three of this pass, not of the prompt": [i >= count - 3 for i in range(count)],
            "what comes after the prompt is missing": [prompt - 3 <= p < prompt for p in positions],
            "the prompt's last three are missing": [p >= prompt for p in positions],
            "one too few: the last three start at prompt - 3": [p > prompt - 3 for p in positions],
        }
        cause = next(
            (c for c, other in known.items() if got.tolist() == other),
            "write the positions first, first + 1, ... under each other and mark them",
        )
        raise Wrong(arrived=str(got.tolist()), expected=what, likely=cause)


def _mask_of_slice(prompt: Any, first: Any, count: Any) -> Any:
    import torch

    return torch.arange(count) >= prompt - 3


def _mask_prompt_only(prompt: Any, first: Any, count: Any) -> Any:
    import torch

    index = torch.arange(first, first + count)
    return (index >= prompt - 3) & (index < prompt)


def _mask_off_by_one(prompt: Any, first: Any, count: Any) -> Any:
    import torch

    return torch.arange(first, first + count) > prompt - 3


MASK = Exercise(
    id="03.4",
    title="a position mask that survives a cache",
    stub=_MASK_STUB,
    solution=steer_here,
    spec=_mask_spec,
    hints=(
        "With a cache, a pass often computes one position only. Which one is it?",
        "torch.arange(first, first + count) are the true positions; compare them with prompt - 3.",
    ),
    wrong=[
        ("positions of the slice", _mask_of_slice),
        ("nothing after the prompt", _mask_prompt_only),
        ("one too few", _mask_off_by_one),
    ],
    moral="In the kit this is positions=slice(-3, None). Code that counts within the cached slice "
    "steers the wrong tokens and says nothing.",
)

EXERCISES = [DISTINCT, KL, MIX, MASK]
