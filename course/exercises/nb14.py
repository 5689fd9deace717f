"""Exercises of notebook 14: relative norm, what sparsity costs, latent scaling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from course.exercises import Exercise

if TYPE_CHECKING:
    import torch


# --- 14.1 whose latent is it? --------------------------------------------------------------------


def relative_norm(decoder: torch.Tensor) -> torch.Tensor:
    """Whose latent is it: 0 where only the first model has it, 1 where only the second does.

    The second model's share of the two rows' norms.

    decoder: [latents, 2, d], what each latent writes into the first and into the second model
    -> [latents]
    """
    size = decoder.norm(dim=-1)
    return size[:, 1] / size.sum(-1)


def _norm_spec(answer: Any) -> None:
    import torch

    rng = torch.Generator().manual_seed(141)
    decoder = torch.randn(6, 2, 5, generator=rng)
    decoder[1, 0] = 0
    decoder[2, 1] = 0
    decoder[3, 1] *= 3
    want = torch.zeros(6)
    for i, (first, second) in enumerate(decoder.tolist()):  # the definition, one row at a time
        a, b = sum(v * v for v in first) ** 0.5, sum(v * v for v in second) ** 0.5
        want[i] = b / (a + b)
    NORM.expect(answer, decoder, want=want)


NORM = Exercise.of(
    relative_norm,
    id="14.1",
    title="whose latent is it?",
    spec=_norm_spec,
    hints=(
        "Each latent has two rows. The length of each is decoder.norm(dim=-1), [latents, 2].",
        "A share of both is 0.5 where the two are alike, and 1 where the first is 0. Which two numbers are divided?",
    ),
    on_error="decoder.norm(dim=-1) is [latents, 2]",
    wrong={
        "that is the first model's share: swap them": ("size[:, 1]", "size[:, 0]"),
        "squared norms: take the square root, or a norm": "size[:, 1] ** 2 / (size**2).sum(-1)",
        "over the first norm it runs to infinity: divide by both norms added": "size[:, 1] / size[:, 0]",
        "norms are added, not squared and added: |a| + |b| is not |(a, b)|": (
            "size[:, 1] / decoder.flatten(1).norm(dim=-1)"
        ),
    },
    moral="One number a latent says whose it looks to be. Whether it is, only the data say.",
)


# --- 14.2 what a latent costs --------------------------------------------------------------------


def cost(f: torch.Tensor, decoder: torch.Tensor) -> torch.Tensor:
    """What latents cost a crosscoder: activation times the sum of its two rows' norms.

    f: [tokens, latents], activations; decoder: [latents, 2, d] -> [tokens], summed over latents
    """
    return f @ decoder.norm(dim=-1).sum(-1)


def _cost_spec(answer: Any) -> None:
    import torch

    rng = torch.Generator().manual_seed(142)
    f = torch.rand(4, 5, generator=rng) * torch.tensor([1.0, 0.0, 2.0, 3.0, 0.5])
    decoder = torch.randn(5, 2, 6, generator=rng)
    decoder[2, 0] = 0
    want = torch.zeros(4)
    for t in range(4):
        for i in range(5):
            want[t] += f[t, i] * (decoder[i, 0].norm() + decoder[i, 1].norm())
    COST.expect(answer, f, decoder, want=want)


COST = Exercise.of(
    cost,
    id="14.2",
    title="what a latent costs",
    spec=_cost_spec,
    hints=(
        "The price of one unit of activation is a number a latent: both norms added.",
        "So you have prices [latents] and amounts [tokens, latents]: a token pays the sum of amount times price.",
    ),
    on_error="norms: [latents, 2]; add the two columns",
    wrong={
        "that is the norm of the whole row: to spread over both models would be cheap, and "
        "nothing would stay exclusive": ("f @ decoder.flatten(1).norm(dim=-1)"),
        "the activation is missing: a latent that is silent costs nothing": ("f @", "(f > 0).float() @"),
        "only the larger of the two norms: the other one is free then": ("sum(-1)", "amax(-1)"),
        "[tokens, latents]: sum over the latents": ("f @", "f *"),
    },
    moral="With two norms added, writing into a second model costs as much as a second latent would.",
)


# --- 14.3 latent scaling -------------------------------------------------------------------------


def scaling(y: torch.Tensor, f: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """How much of a latent is in y: the b for which b * f * d comes closest to y.

    Least squares over all tokens and dimensions: minimise sum |y[t] - b * f[t] * d|^2.

    y: [tokens, d_model]; f: [tokens], the latent's activations; d: [d_model], its row -> one number
    """
    return (f * (y @ d)).sum() / (f.square().sum() * d.square().sum())


def _scaling_spec(answer: Any) -> None:
    import torch

    rng = torch.Generator().manual_seed(143)
    f = torch.tensor([0.0, 2.0, 0.5, 0.0, 1.0, 3.0])
    d = torch.randn(7, generator=rng) * 1.7
    y = 0.4 * f[:, None] * d + 0.8 * torch.randn(6, 7, generator=rng)
    basis = (f[:, None] * d).reshape(-1, 1)
    want = torch.linalg.lstsq(basis, y.reshape(-1, 1)).solution[0, 0]
    SCALING.expect(answer, y, f, d, want=want)


SCALING = Exercise.of(
    scaling,
    id="14.3",
    title="latent scaling",
    spec=_scaling_spec,
    hints=(
        "It is a regression with one coefficient: of all numbers y[t, j] on all numbers f[t] * d[j].",
        "Its coefficient is the sum of the products of both over the sum of squares of the latter. y @ d does "
        "the sum over dimensions, f the one over tokens.",
    ),
    on_error="y @ d is [tokens]: how far each lies along d",
    wrong={
        "the row's own length is missing: divide by |d|^2 too": "(f * (y @ d)).sum() / f.square().sum()",
        "a mean of the tokens' ratios counts weak firings as much as strong ones": (
            "((y @ d)[f > 0] / (f[f > 0] * d.square().sum())).mean()"
        ),
        "tokens count by how strongly the latent fires there: multiply with f before you sum": (
            "(y @ d).sum() / (f.sum() * d.square().sum())"
        ),
        "the row's length, not its square: the row is in y @ d once and in b * f * d once more": (
            "d.square().sum()",
            "d.norm()",
        ),
    },
    moral="The same factor in both models: the latent is shared, whatever its norms say.",
)

EXERCISES = [NORM, COST, SCALING]
