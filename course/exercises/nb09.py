"""Exercises of notebook 09: explained variance, batch top-k, CE recovered, the decoder-norm fold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from course.exercises import Exercise
from course.exercises.specs import Wrong, call, compare, describe

if TYPE_CHECKING:
    import torch


# --- 09.1 explained variance -----------------------------------------------------------------

_EXPLAINED_STUB = '''
def explained(x, found, keep):
    """1 less the squared error over the variance, both summed over the tokens with keep = True.

    x, found: [tokens, d]; keep: [tokens], True and False -> a tensor without dimensions
    The variance is about the mean of the kept tokens.
    """
    raise NotImplementedError("your turn")
'''


def explained(x: torch.Tensor, found: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    x, found = x[keep], found[keep]
    return 1 - (x - found).square().sum() / (x - x.mean(0)).square().sum()


def _explained_spec(answer: Any) -> None:
    import torch

    rng = torch.Generator().manual_seed(91)
    x = 3 + torch.randn(12, 5, generator=rng) * torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0])
    found = x + 0.4 * torch.randn(12, 5, generator=rng)
    keep = torch.ones(12, dtype=torch.bool)
    keep[[2, 7]] = False
    x[~keep] *= 50  # sinks
    a, b = x[keep], found[keep]
    error, spread = 0.0, 0.0
    for token, guess in zip(a, b, strict=True):  # the definition, one token at a time
        error += float(((token - guess) ** 2).sum())
        spread += float(((token - a.sum(0) / len(a)) ** 2).sum())
    got = call(
        answer, x.clone(), found.clone(), keep.clone(), likely="keep is [tokens]: x[keep] has the rows that count"
    )
    left, centred = (a - b).square(), (a - a.mean(0)).square()
    every = (x - x.mean(0)).square()
    compare(
        got,
        torch.tensor(1 - error / spread),
        {
            "the sinks are in: leave out the tokens with keep = False, above and below": 1
            - (x - found).square().sum() / every.sum(),
            "the denominator still has the sinks": 1 - left.sum() / every.sum(),
            "the mean is taken over all tokens; take it over those that are kept": 1
            - left.sum() / (a - x.mean(0)).square().sum(),
            "the denominator is not about the mean: a constant would look like variance": 1
            - left.sum() / a.square().sum(),
            "a ratio for each dimension, then the mean: sum first, divide once": (
                1 - left.sum(0) / centred.sum(0)
            ).mean(),
            "a ratio for each token, then the mean: sum first, divide once": (1 - left.sum(1) / centred.sum(1)).mean(),
            "that is the share left over: subtract it from 1": left.sum() / centred.sum(),
            "lengths, not their squares": 1 - left.sum(1).sqrt().sum() / centred.sum(1).sqrt().sum(),
        },
    )


def _explained_all(x: Any, found: Any, keep: Any) -> Any:
    return 1 - (x - found).square().sum() / (x - x.mean(0)).square().sum()


def _explained_not_centred(x: Any, found: Any, keep: Any) -> Any:
    x, found = x[keep], found[keep]
    return 1 - (x - found).square().sum() / x.square().sum()


def _explained_by_token(x: Any, found: Any, keep: Any) -> Any:
    x, found = x[keep], found[keep]
    return (1 - (x - found).square().sum(1) / (x - x.mean(0)).square().sum(1)).mean()


EXPLAINED = Exercise(
    id="09.1",
    title="explained variance",
    stub=_EXPLAINED_STUB,
    solution=explained,
    spec=_explained_spec,
    hints=(
        "x, found = x[keep], found[keep] first. Then two sums of squares over everything.",
        "1 - (x - found).square().sum() / (x - x.mean(0)).square().sum()",
    ),
    wrong=[
        ("sinks left in", _explained_all),
        ("not about the mean", _explained_not_centred),
        ("a mean of ratios", _explained_by_token),
    ],
    moral="Ask of any explained variance: over which tokens, about which mean?",
)


# --- 09.2 batch top-k ------------------------------------------------------------------------

_BATCH_TOPK_STUB = '''
def batch_topk(pre, k):
    """Keep the k * batch largest pre-activations of the whole batch, as far as they are positive;
    everything else becomes 0.

    pre: [batch, latents]; k: whole number -> [batch, latents]
    """
    raise NotImplementedError("your turn")
'''


def batch_topk(pre: torch.Tensor, k: int) -> torch.Tensor:
    import torch

    positive = pre.relu().flatten()
    best = positive.topk(k * len(pre))
    return torch.zeros_like(positive).scatter(0, best.indices, best.values).reshape(pre.shape)


def _batch_topk_spec(answer: Any) -> None:
    import torch

    rng = torch.Generator().manual_seed(92)
    for shift, k in ((0.0, 2), (-1.2, 3)):
        pre = torch.randn(6, 9, generator=rng) + shift
        pre[0] += 1.5  # a token that has much to say
        pre[3, 4] = -5.0
        n = len(pre)
        want = torch.zeros_like(pre)
        ranked = sorted((-float(pre[i, j]), i, j) for i in range(6) for j in range(9))
        for value, i, j in ranked[: k * n]:  # the definition, one at a time
            if value < 0:
                want[i, j] = -value

        def kept(x: Any, how_many: int) -> Any:
            flat = x.flatten()
            best = flat.abs().topk(how_many).indices
            return torch.zeros_like(flat).scatter(0, best, flat[best]).reshape(x.shape)

        each = pre.relu().topk(k, dim=1)
        signed = pre.flatten().topk(k * n)
        got = call(
            answer,
            pre.clone(),
            k,
            likely="topk wants one dimension: flatten the batch, and bring its shape back at the end",
        )
        compare(
            got,
            want,
            {
                "k for each token: that is TopK; here the tokens of a batch share k * batch": torch.zeros_like(
                    pre
                ).scatter(1, each.indices, each.values),
                "k for the whole batch: it is k * batch, k for a token on average": kept(pre.relu(), k),
                "a negative one was kept: a latent fires or is 0": torch.zeros(pre.numel())
                .scatter(0, signed.indices, signed.values)
                .reshape(6, 9),
                "size counts here, not the sign: a large negative one is no firing": kept(pre, k * n),
                "a mask: keep the values themselves": (want > 0).float(),
                "nothing was left out: a ReLU alone": pre.relu(),
            },
        )


def _batch_topk_each(pre: Any, k: int) -> Any:
    import torch

    best = pre.relu().topk(k, dim=1)
    return torch.zeros_like(pre).scatter(1, best.indices, best.values)


def _batch_topk_negative(pre: Any, k: int) -> Any:
    import torch

    flat = pre.flatten()
    best = flat.topk(k * len(pre))
    return torch.zeros_like(flat).scatter(0, best.indices, best.values).reshape(pre.shape)


def _batch_topk_few(pre: Any, k: int) -> Any:
    import torch

    flat = pre.relu().flatten()
    best = flat.topk(k)
    return torch.zeros_like(flat).scatter(0, best.indices, best.values).reshape(pre.shape)


BATCH_TOPK = Exercise(
    id="09.2",
    title="batch top-k",
    stub=_BATCH_TOPK_STUB,
    solution=batch_topk,
    spec=_batch_topk_spec,
    hints=(
        "pre.relu().flatten(), then topk(k * len(pre)): it gives values and indices.",
        "Put them back: zeros_like(flat).scatter(0, best.indices, best.values).reshape(pre.shape)",
    ),
    wrong=[
        ("top-k for each token", _batch_topk_each),
        ("negative ones kept", _batch_topk_negative),
        ("k for the batch", _batch_topk_few),
    ],
    moral="A dull token may use five latents, and a rich one a hundred.",
)


# --- 09.3 CE recovered -----------------------------------------------------------------------

_RECOVERED_STUB = '''
def recovered(clean, patched, zeroed):
    """The share of the loss between "zeros" and "untouched" that the reconstruction wins back.

    clean, patched, zeroed: [tokens], cross-entropy of each token in nats: untouched, with the
    reconstruction in place, with zeros in place -> a tensor without dimensions
    """
    raise NotImplementedError("your turn")
'''


def recovered(clean: torch.Tensor, patched: torch.Tensor, zeroed: torch.Tensor) -> torch.Tensor:
    return (zeroed.mean() - patched.mean()) / (zeroed.mean() - clean.mean())


def _recovered_spec(answer: Any) -> None:
    import torch

    rng = torch.Generator().manual_seed(93)
    clean = 3 + torch.rand(8, generator=rng)
    patched = clean + 0.9 * torch.rand(8, generator=rng)
    zeroed = 9 + 3 * torch.rand(8, generator=rng)
    one, two, three = (sum(x.tolist()) / len(x) for x in (clean, patched, zeroed))
    got = call(
        answer,
        clean.clone(),
        patched.clone(),
        zeroed.clone(),
        likely="all three are [tokens]: .mean() gives the model's loss",
    )
    compare(
        got,
        torch.tensor((three - two) / (three - one)),
        {
            "a share for each token, then the mean: a few tokens that zeros hardly hurt would rule; "
            "average the losses first": ((zeroed - patched) / (zeroed - clean)).mean(),
            "that is the share that is lost: subtract it from 1": torch.tensor((two - one) / (three - one)),
            "clean over patched says nothing of what zeros would cost": torch.tensor(one / two),
            "the denominator is the gap between zeros and untouched": torch.tensor((three - two) / three),
            "the reference is zeros, not the reconstruction": torch.tensor((two - one) / (three - two)),
            "one number for each token: average the losses first": (zeroed - patched) / (zeroed - clean),
        },
    )


def _recovered_tokens(clean: Any, patched: Any, zeroed: Any) -> Any:
    return ((zeroed - patched) / (zeroed - clean)).mean()


def _recovered_lost(clean: Any, patched: Any, zeroed: Any) -> Any:
    return (patched.mean() - clean.mean()) / (zeroed.mean() - clean.mean())


def _recovered_ratio(clean: Any, patched: Any, zeroed: Any) -> Any:
    return clean.mean() / patched.mean()


RECOVERED = Exercise(
    id="09.3",
    title="CE loss recovered",
    stub=_RECOVERED_STUB,
    solution=recovered,
    spec=_recovered_spec,
    hints=(
        "Three means first. Zeros score 0, the untouched model 1.",
        "(zeroed.mean() - patched.mean()) / (zeroed.mean() - clean.mean())",
    ),
    wrong=[
        ("a mean of ratios", _recovered_tokens),
        ("the share lost", _recovered_lost),
        ("clean over patched", _recovered_ratio),
    ],
    moral="Zeros are a very low bar: 0.9 recovered can still cost a nat a token. Give both.",
)


# --- 09.4 the decoder-norm fold --------------------------------------------------------------

_FOLD_STUB = '''
def fold(W_enc, b_enc, W_dec):
    """The same dictionary with decoder rows of length 1.

    It encodes as relu(x @ W_enc + b_enc) and writes latents @ W_dec: what it writes must not change.
    W_enc: [d, latents]; b_enc: [latents]; W_dec: [latents, d] -> the three, as a tuple
    """
    raise NotImplementedError("your turn")
'''


def fold(W_enc: torch.Tensor, b_enc: torch.Tensor, W_dec: torch.Tensor) -> Any:
    norm = W_dec.norm(dim=-1)
    return W_enc * norm, b_enc * norm, W_dec / norm[:, None]


def _fold_spec(answer: Any) -> None:
    import torch

    rng = torch.Generator().manual_seed(94)
    W_enc, W_dec = torch.randn(6, 6, generator=rng), torch.randn(6, 6, generator=rng)
    b_enc, x = torch.randn(6, generator=rng), torch.randn(20, 6, generator=rng)
    W_dec = W_dec * torch.tensor([0.2, 0.5, 1.0, 2.0, 3.0, 5.0])[:, None]
    before = (x @ W_enc + b_enc).relu() @ W_dec
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
    enc, bias, dec = got
    length = dec.norm(dim=-1)
    if not torch.allclose(length, torch.ones(6), atol=1e-4):
        columns = torch.allclose(dec.norm(dim=0), torch.ones(6), atol=1e-4)
        raise Wrong(
            arrived=f"row lengths {describe(length)}",
            expected="1 for each decoder row",
            likely="columns were normalised: a latent's direction is a row of W_dec"
            if columns
            else "divide each row of W_dec by its own length",
        )
    after = (x @ enc + bias).relu() @ dec
    norm = W_dec.norm(dim=-1)
    compare(
        after,
        before,
        {
            "the encoder was left as it was: what the decoder loses, the latents must gain": (x @ W_enc + b_enc).relu()
            @ dec,
            "the bias was left as it was: it is part of what a latent reads": (x @ (W_enc * norm) + b_enc).relu() @ dec,
            "the encoder was divided, too: latents must grow where rows shrink": (
                x @ (W_enc / norm) + b_enc / norm
            ).relu()
            @ dec,
        },
    )


def _fold_decoder(W_enc: Any, b_enc: Any, W_dec: Any) -> Any:
    return W_enc, b_enc, W_dec / W_dec.norm(dim=-1, keepdim=True)


def _fold_no_bias(W_enc: Any, b_enc: Any, W_dec: Any) -> Any:
    norm = W_dec.norm(dim=-1)
    return W_enc * norm, b_enc, W_dec / norm[:, None]


def _fold_columns(W_enc: Any, b_enc: Any, W_dec: Any) -> Any:
    norm = W_dec.norm(dim=0)
    return W_enc * norm, b_enc * norm, W_dec / norm


FOLD = Exercise(
    id="09.4",
    title="the decoder-norm fold",
    stub=_FOLD_STUB,
    solution=fold,
    spec=_fold_spec,
    hints=(
        ("norm = W_dec.norm(dim=-1). A latent that is norm times as large may write a row that is norm times shorter."),
        ("W_enc * norm, b_enc * norm, W_dec / norm[:, None]: for norm > 0, relu(norm * z) is norm * relu(z)."),
    ),
    wrong=[("the decoder alone", _fold_decoder), ("without the bias", _fold_no_bias), ("columns", _fold_columns)],
    moral="Now activations are lengths, in the stream's own units, and latents can be compared.",
)


EXERCISES = [EXPLAINED, BATCH_TOPK, RECOVERED, FOLD]
