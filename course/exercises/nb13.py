"""Exercises of notebook 13: activation x gradient, what a threshold hides, a pruned stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from course.exercises import Exercise
from course.exercises.specs import call, compare

if TYPE_CHECKING:
    import torch


# --- 13.1 activation x gradient ----------------------------------------------------------------

_SCORES_STUB = '''
def scores(f, rows, slopes, g):
    """Activation x gradient of every pair of latents, at one token.

    f: [sources], activations; rows: [sources, d], what each writes at activation 1;
    slopes: [targets, d], gradient of each target's pre-activation by the stream;
    g: [targets], activations -> [sources, targets], 0 where the target does not fire
    """
    raise NotImplementedError("your turn")
'''


def scores(f: torch.Tensor, rows: torch.Tensor, slopes: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    return f[:, None] * (rows @ slopes.T) * (g > 0)


def _scores_spec(answer: Any) -> None:
    import torch

    rng = torch.Generator().manual_seed(131)
    f = torch.tensor([0.0, 0.7, 3.0, 1.6])
    rows = torch.randn(4, 6, generator=rng)
    slopes = torch.randn(5, 6, generator=rng)
    g = torch.tensor([0.4, 0.0, 2.0, 5.0, 0.0])
    want = torch.zeros(4, 5)
    for i in range(4):  # the definition, one pair at a time
        for j in range(5):
            if g[j] > 0:
                want[i, j] = f[i] * sum(rows[i, k] * slopes[j, k] for k in range(6))
    got = call(
        answer,
        f.clone(),
        rows.clone(),
        slopes.clone(),
        g.clone(),
        likely="rows @ slopes.T is [sources, targets]; f[:, None] scales its rows",
    )
    product = rows @ slopes.T
    compare(
        got,
        want,
        {
            "the source's activation is missing: that is what one unit of it would do": product * (g > 0),
            "targets that do not fire have an activation of 0 and no slope: set them to 0": f[:, None] * product,
            "the target's activation was multiplied in: here it only says whether it fires": f[:, None] * product * g,
            "[targets, sources]: sources come first": want.T,
            "whether the source fires, not how strongly": (f > 0)[:, None] * product * (g > 0),
            "the size of it: keep the sign, some links lower": want.abs(),
        },
    )


def _scores_unit(f: Any, rows: Any, slopes: Any, g: Any) -> Any:
    return rows @ slopes.T * (g > 0)


def _scores_all(f: Any, rows: Any, slopes: Any, g: Any) -> Any:
    return f[:, None] * (rows @ slopes.T)


def _scores_weighted(f: Any, rows: Any, slopes: Any, g: Any) -> Any:
    return f[:, None] * (rows @ slopes.T) * g


SCORES = Exercise(
    id="13.1",
    title="activation x gradient",
    stub=_SCORES_STUB,
    solution=scores,
    spec=_scores_spec,
    hints=(
        "The source adds f[i] * rows[i] to the stream; a target's slope says what that does to it.",
        "f[:, None] * (rows @ slopes.T), times (g > 0), which is one number a column.",
    ),
    wrong=[
        ("without the activation", _scores_unit),
        ("targets that are off", _scores_all),
        ("times the target", _scores_weighted),
    ],
    moral="One gradient a target prices all sources at once; how well, only an ablation says.",
)


# --- 13.2 what a threshold hides ------------------------------------------------------------------

_DROP_STUB = '''
def drop(pre, effect, threshold):
    """What a JumpReLU target loses when a source is taken out: its activation with, less without.

    A JumpReLU's activation is its pre-activation where that is above the threshold, else 0.

    pre: [n], pre-activations with the source; effect: [n], the source's part of each;
    threshold: a number above 0 -> [n]
    """
    raise NotImplementedError("your turn")
'''


def drop(pre: torch.Tensor, effect: torch.Tensor, threshold: float) -> torch.Tensor:
    without = pre - effect
    return pre * (pre > threshold) - without * (without > threshold)


def _drop_spec(answer: Any) -> None:
    import torch

    threshold = 1.0
    pre = torch.tensor([3.0, 1.5, 1.2, 0.4, 0.8, 2.0, 0.2, 4.0])
    effect = torch.tensor([1.0, 0.9, 0.1, 0.3, -0.7, -0.5, -0.3, 5.0])
    want = torch.zeros(8)
    for i, (z, e) in enumerate(zip(pre.tolist(), effect.tolist(), strict=True)):
        want[i] = (z if z > threshold else 0) - (z - e if z - e > threshold else 0)
    got = call(
        answer, pre.clone(), effect.clone(), threshold, likely="without = pre - effect; both go through the JumpReLU"
    )
    without = pre - effect
    compare(
        got,
        want,
        {
            "that is the gradient's answer: it misses the fall from the threshold to 0": effect * (pre > threshold),
            "a JumpReLU does not subtract its threshold: above it the value passes whole": (pre - threshold).relu()
            - (without - threshold).relu(),
            "the threshold is not used": pre.relu() - without.relu(),
            "the other way round: with the source, less without it": -want,
            "targets that fire only once the source is gone count too": want * (pre > threshold),
            "the source is taken out, not put in twice": (pre + effect) * (pre + effect > threshold)
            - pre * (pre > threshold),
        },
    )


def _drop_gradient(pre: Any, effect: Any, threshold: float) -> Any:
    return effect * (pre > threshold)


def _drop_shifted(pre: Any, effect: Any, threshold: float) -> Any:
    return (pre - threshold).relu() - (pre - effect - threshold).relu()


def _drop_relu(pre: Any, effect: Any, threshold: float) -> Any:
    return pre.relu() - (pre - effect).relu()


def _drop_fires(pre: Any, effect: Any, threshold: float) -> Any:
    return drop(pre, effect, threshold) * (pre > threshold)


DROP = Exercise(
    id="13.2",
    title="what a threshold hides",
    stub=_DROP_STUB,
    solution=drop,
    spec=_drop_spec,
    hints=(
        "Two activations, with and without the source, each through the JumpReLU; then subtract.",
        "z * (z > threshold) for z = pre, and for z = pre - effect.",
    ),
    wrong=[
        ("the gradient's answer", _drop_gradient),
        ("threshold subtracted", _drop_shifted),
        ("plain ReLU", _drop_relu),
        ("only targets that fire", _drop_fires),
    ],
    moral="A source that tips a target over its threshold is worth all of it, whatever the slope.",
)


# --- 13.3 a pruned stream ---------------------------------------------------------------------------

_PRUNED_STUB = '''
def pruned(x, f, rows, share, n):
    """The stream that one target reads when only its n strongest edges are kept.

    x: [tokens, d], the stream; f: [tokens, sources], activations; rows: [sources, d];
    share: [sources], of the edges into this target, of either sign. What the dictionary
    does not explain stays in the stream. -> [tokens, d]
    """
    raise NotImplementedError("your turn")
'''


def pruned(x: torch.Tensor, f: torch.Tensor, rows: torch.Tensor, share: torch.Tensor, n: int) -> torch.Tensor:
    kept = share.abs().topk(n).indices
    gone = f.index_fill(1, kept, 0.0)
    return x - gone @ rows


def _pruned_spec(answer: Any) -> None:
    import torch

    rng = torch.Generator().manual_seed(133)
    x = torch.randn(3, 5, generator=rng)
    f = torch.rand(3, 6, generator=rng)
    rows = torch.randn(6, 5, generator=rng)
    share = torch.tensor([0.2, -0.9, 0.5, 0.05, -0.3, 0.6])
    n = 2
    kept = sorted(range(6), key=lambda i: -abs(float(share[i])))[:n]
    want = x.clone()
    for i in range(6):  # one latent at a time
        if i not in kept:
            want -= f[:, i, None] * rows[i]
    got = call(
        answer,
        x.clone(),
        f.clone(),
        rows.clone(),
        share.clone(),
        n,
        likely="share.abs().topk(n).indices are the kept; the others' f @ rows is taken off",
    )
    signed, weak = share.topk(n).indices, share.abs().topk(n, largest=False).indices
    chosen = share.abs().topk(n).indices
    compare(
        got,
        want,
        {
            "by signed share: an edge that lowers the target strongly is a strong edge": x
            - f.index_fill(1, signed, 0.0) @ rows,
            "the kept edges were taken out, the others left in": x - f[:, chosen] @ rows[chosen],
            "only the kept latents are left: what the dictionary does not explain has to stay": f[:, chosen]
            @ rows[chosen],
            "the weakest edges were kept": x - f.index_fill(1, weak, 0.0) @ rows,
            "all latents were taken out": x - f @ rows,
            "nothing was taken out": x,
        },
    )


def _pruned_signed(x: Any, f: Any, rows: Any, share: Any, n: int) -> Any:
    return x - f.index_fill(1, share.topk(n).indices, 0.0) @ rows


def _pruned_inverse(x: Any, f: Any, rows: Any, share: Any, n: int) -> Any:
    kept = share.abs().topk(n).indices
    return x - f[:, kept] @ rows[kept]


def _pruned_rebuilt(x: Any, f: Any, rows: Any, share: Any, n: int) -> Any:
    kept = share.abs().topk(n).indices
    return f[:, kept] @ rows[kept]


PRUNED = Exercise(
    id="13.3",
    title="a pruned stream",
    stub=_PRUNED_STUB,
    solution=pruned,
    spec=_pruned_spec,
    hints=(
        "Strong means large, whatever the sign: share.abs().topk(n).indices.",
        "Set the kept columns of f to 0 (index_fill), and subtract what is left of f, times rows.",
    ),
    wrong=[("signed", _pruned_signed), ("the kept taken out", _pruned_inverse), ("the error dropped", _pruned_rebuilt)],
    moral="Subtract what you prune; a stream rebuilt from the kept would lose the error as well.",
)


EXERCISES = [SCORES, DROP, PRUNED]
