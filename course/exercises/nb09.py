"""Exercises of notebook 09: batch top-k, the loss, the fold, explained variance, CE recovered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from course.exercises import Exercise
from course.exercises.specs import Wrong, call, compare, describe

if TYPE_CHECKING:
    import torch


# --- 09.1 batch top-k ------------------------------------------------------------------------


def batch_topk(pre: torch.Tensor, k: float) -> torch.Tensor:
    """Keep the int(k * batch) largest pre-activations of the whole batch, as far as they are
    positive; everything else becomes 0.

    pre: [batch, latents]; k: a number, also a fraction -> [batch, latents]
    """
    import torch

    positive = pre.relu().flatten()
    best = positive.topk(int(k * len(pre)))
    return torch.zeros_like(positive).scatter(0, best.indices, best.values).reshape(pre.shape)


def _batch_topk_spec(answer: Any) -> None:
    import torch

    rng = torch.Generator().manual_seed(92)
    for shift, k in ((0.0, 2), (-1.2, 3), (0.0, 1.5)):
        pre = torch.randn(6, 9, generator=rng) + shift
        pre[0] += 1.5  # a token that has much to say
        pre[3, 4] = -5.0
        want = torch.zeros_like(pre)
        ranked = sorted((-float(pre[i, j]), i, j) for i in range(6) for j in range(9))
        for value, i, j in ranked[: int(k * len(pre))]:  # the definition, one at a time
            if value < 0:
                want[i, j] = -value

        BATCH_TOPK.expect(answer, pre, k, want=want)


BATCH_TOPK = Exercise.of(
    batch_topk,
    id="09.1",
    title="batch top-k",
    spec=_batch_topk_spec,
    hints=(
        "Make the batch one long row, negatives set to 0: then topk finds the largest of all tokens together.",
        "topk gives values and indices. A row of zeros, into which scatter puts those values at those "
        "places, needs only its old shape.",
    ),
    on_error="topk wants one dimension and a whole number: flatten the batch, take int(k * batch)",
    wrong={
        "k for each token: that is TopK; here the tokens of a batch share k * batch": (
            "pre.relu() * (pre >= pre.topk(int(k), dim=1).values[:, -1:])"
        ),
        "k for the whole batch: it is k * batch, k for a token on average": ("k * len(pre)", "k"),
        "a negative one was kept: a latent fires or is 0": (".relu()", ""),
        "size counts here, not the sign: a large negative one is no firing": (
            "pre * (pre.abs() >= pre.abs().flatten().topk(int(k * len(pre))).values[-1])"
        ),
        "a mask: keep the values themselves": ("best.values", "(best.values > 0).float()"),
        "nothing was left out: a ReLU alone": "pre.relu()",
    },
    moral="A dull token may use five latents, and a rich one a hundred.",
)


# --- 09.2 an SAE's loss ----------------------------------------------------------------------


def loss(x: Any, found: Any, f: Any, W_dec: torch.Tensor, l1: float) -> torch.Tensor:
    """Squared error, summed over the dimensions, plus the price of firing; the mean over the batch.

    The price of a token is l1 times the sum, over latents, of activation times length of the row.
    x, found: [batch, d], what was given and what was made of it; f: [batch, latents], activations;
    W_dec: [latents, d]; l1: a number, 0 for BatchTopK -> a tensor without dimensions
    """
    price = (f * W_dec.norm(dim=-1)).sum(-1)
    return ((x - found).square().sum(-1) + l1 * price).mean()


def _loss_spec(answer: Any) -> None:
    import torch

    rng = torch.Generator().manual_seed(95)
    x, found = torch.randn(7, 5, generator=rng), torch.randn(7, 5, generator=rng)
    f = (torch.randn(7, 6, generator=rng)).relu()
    W_dec = torch.randn(6, 5, generator=rng) * torch.tensor([0.3, 1.0, 2.0, 0.5, 1.5, 3.0])[:, None]
    for l1 in (0.7, 0.0):
        total = 0.0
        for token, made, fired in zip(x, found, f, strict=True):  # the definition, one token at a time
            total += sum(float(v) ** 2 for v in token - made)
            total += l1 * sum(float(a) * float(row.norm()) for a, row in zip(fired, W_dec, strict=True))
        LOSS.expect(answer, x, found, f, W_dec, l1, want=total / len(x))


LOSS = Exercise.of(
    loss,
    id="09.2",
    title="an SAE's loss",
    spec=_loss_spec,
    hints=(
        "Two numbers for each token, both [batch]: the squared error and the price. Then one mean.",
        "W_dec.norm(dim=-1) is [latents]: it stretches the columns of f. Which sums run over dimensions, "
        "which over latents, and what is left for the mean?",
    ),
    on_error="x - found is [batch, d], f is [batch, latents]: bring both to [batch] before you add them",
    wrong={
        "the error's mean over dimensions: sum over them, the mean is over tokens": (
            "(x - found).square().sum(-1)",
            "(x - found).square().mean(-1)",
        ),
        "lengths of the error, not their squares": ("(x - found).square().sum(-1)", "(x - found).norm(dim=-1)"),
        "the rows' lengths are missing: half the activation at a row twice as long would cost half": (
            "f * W_dec.norm(dim=-1)",
            "f",
        ),
        "a sum over the batch: a larger batch would have a larger loss": (").mean()", ").sum()"),
        "that counts firings: the price is of their size, or no gradient reaches them": (
            "f * W_dec.norm(dim=-1)",
            "(f > 0) * W_dec.norm(dim=-1)",
        ),
        "the price is missing": ("+ l1 * price", ""),
        "l1 is the weight of the price alone, not of the error": (
            "(x - found).square().sum(-1) + l1 * price",
            "l1 * ((x - found).square().sum(-1) + price)",
        ),
        "one number for each token: the mean over the batch is missing": (").mean()", ")"),
    },
    moral="Two wishes pull at each other: be like x, and be short.",
)


# --- 09.3 the decoder-norm fold --------------------------------------------------------------


def fold(W_enc: torch.Tensor, b_enc: torch.Tensor, W_dec: torch.Tensor) -> Any:
    """The same dictionary with decoder rows of length 1.

    It encodes as relu(x @ W_enc + b_enc) and writes latents @ W_dec, which must not change.
    W_enc: [d, latents]; b_enc: [latents]; W_dec: [latents, d] -> the three, as a tuple
    """
    norm = W_dec.norm(dim=-1)
    return W_enc * norm, b_enc * norm, W_dec / norm[:, None]


def _fold_spec(answer: Any) -> None:
    import torch

    rng = torch.Generator().manual_seed(94)
    W_enc, W_dec = torch.randn(6, 6, generator=rng), torch.randn(6, 6, generator=rng)
    b_enc, x = torch.randn(6, generator=rng), torch.randn(20, 6, generator=rng)
    W_dec = W_dec * torch.tensor([0.2, 0.5, 1.0, 2.0, 3.0, 5.0])[:, None]
    got = call(
        answer,
        W_enc.clone(),
        b_enc.clone(),
        W_dec.clone(),
        likely="norms of the rows: W_dec.norm(dim=-1) is [latents]; W_enc has a column for each latent, W_dec a row",
    )
    if not isinstance(got, tuple | list) or len(got) != 3:
        raise Wrong(arrived=describe(got), expected="W_enc, b_enc, W_dec, in this order", likely="return all three")
    for name, mine, old in zip(("W_enc", "b_enc", "W_dec"), got, (W_enc, b_enc, W_dec), strict=True):
        if not hasattr(mine, "shape") or mine.shape != old.shape:
            raise Wrong(
                arrived=f"{name}: {describe(mine)}",
                expected=f"{name} of shape {list(old.shape)}",
                likely="a norm was broadcast the wrong way",
            )
    length = got[2].norm(dim=-1)
    if not torch.allclose(length, torch.ones(6), atol=1e-4):
        columns = torch.allclose(got[2].norm(dim=0), torch.ones(6), atol=1e-4)
        raise Wrong(
            arrived=f"row lengths {describe(length)}",
            expected="1 for each decoder row",
            likely="columns were normalised: a latent's direction is a row of W_dec"
            if columns
            else "divide each row of W_dec by its own length",
        )

    def written(W_enc: torch.Tensor, b_enc: torch.Tensor, W_dec: torch.Tensor) -> torch.Tensor:
        return (x @ W_enc + b_enc).relu() @ W_dec

    known = ((cause, written(*folded)) for cause, folded in FOLD.known(W_enc, b_enc, W_dec))
    compare(written(*got), written(W_enc, b_enc, W_dec), known)


FOLD = Exercise.of(
    fold,
    id="09.3",
    title="the decoder-norm fold",
    spec=_fold_spec,
    hints=(
        "norm = W_dec.norm(dim=-1). A latent that is norm times as large may write a row that is norm times shorter.",
        "For a positive number c, relu(c * z) = c * relu(z): so a row's length can move through the ReLU. "
        "z has two parts; both take the factor.",
    ),
    wrong={
        "the encoder was left as it was: what the decoder loses, the latents must gain": (
            "W_enc, b_enc, W_dec / norm[:, None]"
        ),
        "the bias was left as it was: it is part of what a latent reads": ("b_enc * norm", "b_enc"),
        "the encoder was divided, too: latents must grow where rows shrink": (
            "W_enc * norm, b_enc * norm",
            "W_enc / norm, b_enc / norm",
        ),
        "columns were normalised: a latent's direction is a row of W_dec": (
            "W_enc * norm, b_enc * norm, W_dec / W_dec.norm(dim=0)"
        ),
    },
    moral="Now activations are lengths, in the stream's own units, and latents can be compared.",
)


# --- 09.4 explained variance -----------------------------------------------------------------


def explained(x: torch.Tensor, found: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """1 less the squared error over the variance, both summed over the tokens with keep = True.

    x, found: [tokens, d]; keep: [tokens], True and False -> a tensor without dimensions
    The variance is about the mean of the kept tokens.
    """
    x, found = x[keep], found[keep]
    return 1 - (x - found).square().sum() / (x - x.mean(0)).square().sum()


def _explained_spec(answer: Any) -> None:
    import torch

    rng = torch.Generator().manual_seed(91)
    x = 3 + torch.randn(12, 5, generator=rng) * torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0])
    found = x + 0.4 * torch.randn(12, 5, generator=rng)
    keep = torch.ones(12, dtype=torch.bool)
    keep[[2, 7]] = False
    x[~keep] *= 4  # sinks
    a, b = x[keep], found[keep]
    error, spread = 0.0, 0.0
    for token, guess in zip(a, b, strict=True):  # the definition, one token at a time
        error += float(((token - guess) ** 2).sum())
        spread += float(((token - a.sum(0) / len(a)) ** 2).sum())
    EXPLAINED.expect(answer, x, found, keep, want=1 - error / spread)


EXPLAINED = Exercise.of(
    explained,
    id="09.4",
    title="explained variance",
    spec=_explained_spec,
    hints=(
        "Take the rows that count first, of both tensors. Then two sums of squares over everything.",
        "One sum is of x less found, the other of x less its mean, a vector [d]. Divide once, at the end.",
    ),
    on_error="keep is [tokens]: x[keep] has the rows that count",
    wrong={
        "the sinks are in: leave out the tokens with keep = False, above and below": (
            "x[keep], found[keep]",
            "x, found",
        ),
        "above it is right, but the denominator still has the sinks": lambda x, found, keep: (
            1 - (x - found)[keep].square().sum() / (x - x.mean(0)).square().sum()
        ),
        "the denominator is right, but the error above still has the sinks": lambda x, found, keep: (
            1 - (x - found).square().sum() / (x[keep] - x[keep].mean(0)).square().sum()
        ),
        "the right tokens, but about the mean of all: take the mean of the kept ones": lambda x, found, keep: (
            1 - (x - found)[keep].square().sum() / (x - x.mean(0))[keep].square().sum()
        ),
        "the denominator is not about the mean: a constant would look like variance": ("(x - x.mean(0))", "x"),
        "one mean for all numbers: each dimension has its own, x.mean(0)": ("x.mean(0)", "x.mean()"),
        "the mean of each token over its dimensions: it is over tokens, x.mean(0)": (
            "x.mean(0)",
            "x.mean(1, keepdim=True)",
        ),
        "the error is divided by n and the variance by n - 1: two plain sums need neither": (
            "1 - (x - found).square().mean(0).sum() / x.var(0).sum()"
        ),
        "a ratio for each dimension, then the mean: sum first, divide once": (
            "(1 - (x - found).square().sum(0) / (x - x.mean(0)).square().sum(0)).mean()"
        ),
        "a ratio for each token, then the mean: sum first, divide once": (
            "(1 - (x - found).square().sum(1) / (x - x.mean(0)).square().sum(1)).mean()"
        ),
        "that is the share left over: subtract it from 1": ("1 - (x", "(x"),
        "lengths, not their squares": (".square()", ".norm(dim=1)"),
    },
    moral="Ask of any explained variance: over which tokens, about which mean?",
)


# --- 09.5 CE recovered -----------------------------------------------------------------------


def recovered(clean: torch.Tensor, patched: torch.Tensor, zeroed: torch.Tensor) -> torch.Tensor:
    """The share of the loss between "zeros" and "untouched" that the reconstruction wins back.

    clean, patched, zeroed: [tokens], cross-entropy of each token in nats: untouched, with the
    reconstruction in place, with zeros in place -> a tensor without dimensions
    """
    return (zeroed.mean() - patched.mean()) / (zeroed.mean() - clean.mean())


def _recovered_spec(answer: Any) -> None:
    import torch

    rng = torch.Generator().manual_seed(93)
    clean = 3 + torch.rand(8, generator=rng)
    patched = clean + 0.9 * torch.rand(8, generator=rng)
    zeroed = 9 + 3 * torch.rand(8, generator=rng)
    one, two, three = (sum(x.tolist()) / len(x) for x in (clean, patched, zeroed))
    RECOVERED.expect(answer, clean, patched, zeroed, want=(three - two) / (three - one))


RECOVERED = Exercise.of(
    recovered,
    id="09.5",
    title="CE loss recovered",
    spec=_recovered_spec,
    hints=(
        "Three means first. Zeros score 0, the untouched model 1.",
        "Where is the reconstruction on the way from zeros to untouched? The way already gone, over the whole way.",
    ),
    on_error="all three are [tokens]: .mean() gives the model's loss",
    wrong={
        "a share for each token, then the mean: a few tokens that zeros hardly hurt would "
        "rule; average the losses first": ("((zeroed - patched) / (zeroed - clean)).mean()"),
        "that is the share that is lost: subtract it from 1": (
            "zeroed.mean() - patched.mean()",
            "patched.mean() - clean.mean()",
        ),
        "clean over patched says nothing of what zeros would cost": "clean.mean() / patched.mean()",
        "the denominator is the gap between zeros and untouched": ("(zeroed.mean() - clean.mean())", "zeroed.mean()"),
        "the reference is zeros, not the reconstruction": (
            "(patched.mean() - clean.mean()) / (zeroed.mean() - patched.mean())"
        ),
        "one number for each token: average the losses first": (".mean()", ""),
    },
    moral="Zeros are a very low bar: 0.9 recovered can still cost a nat a token. Give both.",
)

EXERCISES = [BATCH_TOPK, LOSS, FOLD, EXPLAINED, RECOVERED]
