"""Exercises of notebook 12, steer with latents: clamping, errors, sums, and chance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from course.exercises import Exercise
from course.exercises.specs import Wrong, call, compare

if TYPE_CHECKING:
    import torch


# --- 12.1 clamp ----------------------------------------------------------------------------------


def clamp(x: torch.Tensor, value: torch.Tensor, row: torch.Tensor, target: float) -> torch.Tensor:
    """Set a latent: what it adds now gives way to target * row. All else stays.

    x: [n, d_model], the stream; value: [n], the latent's activation on each token
    row: [d_model], its decoder row (of any length); target: a number -> [n, d_model]
    """
    return x + (target - value)[:, None] * row


def _clamp_spec(answer: Any) -> None:
    import torch

    seed = torch.Generator().manual_seed(121)
    x, row = torch.randn(4, 6, generator=seed), torch.randn(6, generator=seed) * 1.7
    value, target = torch.tensor([0.0, 2.0, 0.5, 0.0]), 3.0
    want = torch.stack([h - float(v) * row + target * row for h, v in zip(x, value, strict=True)])
    CLAMP.expect(answer, x, value, row, target, want=want)


CLAMP = Exercise.of(
    clamp,
    id="12.1",
    title="set a latent",
    spec=_clamp_spec,
    hints=(
        "The latent adds value * row now, and is to add target * row. What has to be added to x?",
        "value is [n] and row [d_model]: with value[:, None] their product is [n, d_model].",
    ),
    on_error="value is [n] and row [d_model]: value[:, None] * row is [n, d_model]",
    wrong={
        "this adds: what the latent writes now has to go first": "x + target * row",
        "the latent went, nothing came: that is an ablation": "x - value[:, None] * row",
        "the row was put at norm 1: it is used as it is": "x + (target - value)[:, None] * row / row.norm()",
        "this sets the stream's part along the row, which is not what the latent adds: other "
        "latents point that way too": ("x + (target - x @ row / row.norm())[:, None] * row / row.norm()"),
        "the sign: target comes, value goes": ("target - value", "value - target"),
        "this is what is added: add it to the stream": ("x + ", ""),
    },
    moral="The dictionary's error is still in x: nothing that it cannot say was lost.",
)


# --- 12.2 the error ------------------------------------------------------------------------------


def without(
    x: torch.Tensor,  # [n, d_model]
    values: torch.Tensor,  # [n, latents]
    decode: Callable[[torch.Tensor], torch.Tensor],
    latent: int,
    keep_error: bool,
) -> torch.Tensor:
    """The stream without a latent, by the dictionary's own decoder.

    x: [n, d_model]; values: [n, latents]; decode(values) gives [n, d_model]
    keep_error: whether what the dictionary does not explain in x is added back -> [n, d_model]
    """
    rest = values.clone()
    rest[:, latent] = 0
    error = x - decode(values)
    return decode(rest) + error if keep_error else decode(rest)


def _without_spec(answer: Any) -> None:
    import torch

    seed = torch.Generator().manual_seed(122)
    rows, bias = torch.randn(7, 5, generator=seed), torch.randn(5, generator=seed)
    x = torch.randn(3, 5, generator=seed) * 2
    values = torch.randn(3, 7, generator=seed).relu()
    values[:, 2] = torch.tensor([1.0, 0.0, 2.5])

    def decode(f: torch.Tensor) -> torch.Tensor:
        return f @ rows + bias

    rest = torch.cat([values[:, :2], torch.zeros(3, 1), values[:, 3:]], 1)
    for keep in (True, False):
        given = values.clone()
        got = call(answer, x.clone(), given, decode, 2, keep, likely="decode takes all the latents, [n, latents]")
        if not torch.equal(given, values):
            raise Wrong(
                arrived="values changed by the call",
                expected="values as they were",
                likely="rest = values is the same tensor: clone it before you write",
            )
        explained = x - values[:, 2:3] * rows[2]
        compare(got, explained if keep else decode(rest), WITHOUT.known(x, values, decode, 2, keep))


WITHOUT = Exercise.of(
    without,
    id="12.2",
    title="what the dictionary cannot say",
    spec=_without_spec,
    hints=(
        "Decode twice: all the latents, for the error; and a copy in which one latent is 0.",
        "The error is what decode(values), with nothing removed, leaves of x.",
    ),
    wrong={
        "nothing changed: the error was taken after the latent went, so that it holds the latent": (
            "x - decode(values)",
            "x - decode(rest)",
        ),
        "the error stayed: without it, only the reconstruction is left": "decode(rest) + error",
        "the error is missing: x less the whole reconstruction": "decode(rest)",
        "the latent is still there: set it to 0 before decoding": "decode(values)",
        "the sign of the error: x less its reconstruction": "decode(rest) - error",
        "clone it before you write": (".clone()", ""),
    },
    moral="With the error, this is x less one latent. Without it, every token changes.",
)


# --- 12.3 a sum ----------------------------------------------------------------------------------


def length(sizes: torch.Tensor, cosines: torch.Tensor) -> torch.Tensor:
    """How long the sum of some pieces is, from their lengths and the cosines between them.

    sizes: [m]; cosines: [m, m], with ones on the diagonal -> one number
    """
    return (sizes @ cosines @ sizes).sqrt()


def _length_spec(answer: Any) -> None:
    import torch

    seed = torch.Generator().manual_seed(123)
    pieces = torch.randn(4, 5, generator=seed) * torch.tensor([3.0, 1.0, 2.0, 0.5])[:, None]
    sizes = pieces.norm(dim=-1)
    cosines = (pieces @ pieces.T) / (sizes[:, None] * sizes)
    want = pieces.sum(0).norm()  # the pieces themselves, which the learner does not have
    LENGTH.expect(answer, sizes, cosines, want=want, number=True)


LENGTH = Exercise.of(
    length,
    id="12.3",
    title="how long is a sum?",
    spec=_length_spec,
    hints=(
        "The square of the length is the sum, over all pairs, of size times size times cosine.",
        "Each piece is a pair with itself, too. Summed over all pairs: sizes @ cosines @ sizes.",
    ),
    on_error="sizes is [m], cosines [m, m]",
    wrong={
        "the lengths were added: pieces that point apart make a shorter sum": "sizes.sum()",
        "Pythagoras holds at right angles only: the cosines count": "sizes.square().sum().sqrt()",
        "the root is missing: this is the square of the length": (".sqrt()", ""),
        "each pair counts twice, once in each order": "((sizes.square().sum() + sizes @ cosines @ sizes) / 2).sqrt()",
        "the sizes are missing: only the angles were added up": "cosines.sum().abs().sqrt()",
    },
    moral="combine() reports all three: length of the sum, lengths of the pieces, cosines.",
)


# --- 12.4 chance ---------------------------------------------------------------------------------


def chance(effect: float, controls: Sequence[float]) -> float:
    """How often chance does as well: the share of all arms, the tested one included, whose effect
    is at least as large as the tested one's.

    effect: a number; controls: a list of numbers, from random vectors -> a number above 0
    """
    return (1 + sum(c >= effect for c in controls)) / (1 + len(controls))


def _chance_spec(answer: Any) -> None:
    cases = [(2.0, [0.1, -0.4, 2.5, 1.0, 2.0, 0.3, -3.0]), (4.0, [1.0, 0.0, -5.0, 2.0])]
    for effect, controls in cases:
        n, above = len(controls), 0
        for c in controls:
            above += c >= effect
        CHANCE.expect_number(
            answer,
            effect,
            controls,
            want=(1 + above) / (1 + n),
            unread="return a share",
            otherwise="count by hand: the controls that reach the effect, and the tested arm",
        )


CHANCE = Exercise.of(
    chance,
    id="12.4",
    title="would chance do as well?",
    spec=_chance_spec,
    hints=(
        "Count the controls that are at least as large; the tested arm belongs to both numbers.",
        "With 2 of 7 controls at least as large as the effect it is (1 + 2) / (1 + 7).",
    ),
    on_error="a number and a list of numbers",
    wrong={
        "the tested arm is missing: with few controls a p of 0 claims too much": ("1 + ", ""),
        "the tested arm is missing from the whole: divide by one more": ("(1 + len(controls))", "len(controls)"),
        "this is the share of controls that do worse": "sum(c < effect for c in controls) / len(controls)",
        "a control that does exactly as well counts": (">=", ">"),
        "absolute values: a push the other way is not as good": ("sum(c", "sum(abs(c)"),
    },
    moral="With ten controls it cannot fall below 1/11: the count of controls sets the floor.",
)

EXERCISES = [CLAMP, WITHOUT, LENGTH, CHANCE]
