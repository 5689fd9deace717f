"""Exercises of notebook 13: activation x gradient, what a threshold hides, a pruned stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from course.exercises import Exercise

if TYPE_CHECKING:
    import torch


# --- 13.1 activation x gradient ----------------------------------------------------------------


def scores(
    f: torch.Tensor,  # [sources]
    rows: torch.Tensor,  # [sources, d]
    slopes: torch.Tensor,  # [targets, d]
    g: torch.Tensor,  # [targets]
) -> torch.Tensor:
    """Activation x gradient of every pair of latents, at one token.

    f: [sources], activations; rows: [sources, d], what each writes at activation 1;
    slopes: [targets, d], gradient of each target's pre-activation by the stream;
    g: [targets], activations -> [sources, targets], 0 where the target does not fire
    """
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
    SCORES.expect(answer, f, rows, slopes, g, want=want)


SCORES = Exercise.of(
    scores,
    id="13.1",
    title="activation x gradient",
    spec=_scores_spec,
    hints=(
        "The source adds f[i] * rows[i] to the stream; a target's slope says what that does to it.",
        "f[:, None] * (rows @ slopes.T), times (g > 0), which is one number a column.",
    ),
    on_error="rows @ slopes.T is [sources, targets]; f[:, None] scales its rows",
    wrong={
        "the source's activation is missing: that is what one unit of it would do": ("f[:, None] * ", ""),
        "targets that do not fire have an activation of 0 and no slope: set them to 0": (" * (g > 0)", ""),
        "the target's activation was multiplied in: here it only says whether it fires": ("(g > 0)", "g"),
        "[targets, sources]: sources come first": "(f[:, None] * (rows @ slopes.T) * (g > 0)).T",
        "whether the source fires, not how strongly": ("f[:, None]", "(f > 0)[:, None]"),
        "the size of it: keep the sign, some links lower": ("(rows @ slopes.T)", "(rows @ slopes.T).abs()"),
    },
    moral="One gradient a target prices all sources at once; how well, only an ablation says.",
)


# --- 13.2 what a threshold hides ------------------------------------------------------------------


def drop(pre: torch.Tensor, effect: torch.Tensor, threshold: float) -> torch.Tensor:
    """What a JumpReLU target loses when a source is taken out: its activation with, less without.

    A JumpReLU's activation is its pre-activation where that is above the threshold, else 0.

    pre: [n], pre-activations with the source; effect: [n], the source's part of each;
    threshold: a number above 0 -> [n]
    """
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
    DROP.expect(answer, pre, effect, threshold, want=want)


DROP = Exercise.of(
    drop,
    id="13.2",
    title="what a threshold hides",
    spec=_drop_spec,
    hints=(
        "Two activations, with and without the source, each through the JumpReLU; then subtract.",
        "z * (z > threshold) for z = pre, and for z = pre - effect.",
    ),
    on_error="without = pre - effect; both go through the JumpReLU",
    wrong={
        "that is the gradient's answer: it misses the fall from the threshold to 0": "effect * (pre > threshold)",
        "a JumpReLU does not subtract its threshold: above it the value passes whole": (
            "(pre - threshold).relu() - (without - threshold).relu()"
        ),
        "the threshold is not used": "pre.relu() - without.relu()",
        "the other way round: with the source, less without it": (
            "without * (without > threshold) - pre * (pre > threshold)"
        ),
        "targets that fire only once the source is gone count too": (
            "(pre - without * (without > threshold)) * (pre > threshold)"
        ),
    },
    moral="A source that tips a target over its threshold is worth all of it, whatever the slope.",
)


# --- 13.3 a pruned stream ------------------------------------------------------------------------


def pruned(
    x: torch.Tensor,  # [tokens, d]
    f: torch.Tensor,  # [tokens, sources]
    rows: torch.Tensor,  # [sources, d]
    share: torch.Tensor,  # [sources]
    n: int,
) -> torch.Tensor:
    """The stream that one target reads when only its n strongest edges are kept.

    x: [tokens, d], the stream; f: [tokens, sources], activations; rows: [sources, d];
    share: [sources], of the edges into this target, of either sign. What the dictionary
    does not explain stays in the stream. -> [tokens, d]
    """
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
    PRUNED.expect(answer, x, f, rows, share, n, want=want)


PRUNED = Exercise.of(
    pruned,
    id="13.3",
    title="a pruned stream",
    spec=_pruned_spec,
    hints=(
        "Strong means large, whatever the sign: share.abs().topk(n).indices.",
        "Set the kept columns of f to 0 (index_fill), and subtract what is left of f, times rows.",
    ),
    on_error="share.abs().topk(n).indices are the kept; the others' f @ rows is taken off",
    wrong={
        "by signed share: an edge that lowers the target strongly is a strong edge": (".abs()", ""),
        "the kept edges were taken out, the others left in": "x - f[:, kept] @ rows[kept]",
        "only the kept latents are left: what the dictionary does not explain has to stay": "f[:, kept] @ rows[kept]",
        "the weakest edges were kept": ("topk(n)", "topk(n, largest=False)"),
        "all latents were taken out": "x - f @ rows",
        "nothing was taken out": "x",
    },
    moral="Subtract what you prune; a stream rebuilt from the kept would lose the error as well.",
)

EXERCISES = [SCORES, DROP, PRUNED]
