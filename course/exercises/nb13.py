"""Exercises of notebook 13: activation x gradient, a threshold, a gate, a pruned stream."""

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
        "One matrix product gives all pairs at activation 1. Activations then scale its rows, and whether "
        "a target fires decides about its column.",
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
        "Which targets fire without the source is not asked of those that fire with it: compare pre - effect "
        "with the threshold anew.",
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


# --- 13.3 the two ways through a gate ---------------------------------------------------------


def two_ways(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """How much of a small push each hidden unit of a gated MLP passes on, by either of its inputs.

    A unit is silu(a) * b, where silu(a) = a * sigmoid(a). It moves when b moves, and when a moves.

    a, b: [tokens, hidden] -> [2, hidden], slopes, means over the tokens: first by b, then by a
    """
    import torch

    s = torch.sigmoid(a)
    by_b = a * s
    by_a = b * (s + a * s * (1 - s))
    return torch.stack([by_b, by_a]).mean(1)


def _two_ways_spec(answer: Any) -> None:
    import torch

    rng = torch.Generator().manual_seed(133)
    a, b = (2 * torch.randn(5, 4, generator=rng) for _ in range(2))
    step = 1e-4

    def unit(a: Any, b: Any) -> Any:
        return a / (1 + (-a).exp()) * b

    x, y = a.double(), b.double()
    by_b = (unit(x, y + step) - unit(x, y - step)) / (2 * step)  # the definition: push a little, and look
    by_a = (unit(x + step, y) - unit(x - step, y)) / (2 * step)
    TWO_WAYS.expect(answer, a, b, want=torch.stack([by_b.mean(0), by_a.mean(0)]).float())


TWO_WAYS = Exercise.of(
    two_ways,
    id="13.3",
    title="two ways through a gate",
    spec=_two_ways_spec,
    hints=(
        "silu(a) * b is a product: by b its slope is the other factor; by a it is b times the slope of silu.",
        "silu is itself a product, a * sigmoid(a), and the slope of a sigmoid s is s * (1 - s). Take slopes "
        "token by token; the mean comes last.",
    ),
    on_error="both slopes are [tokens, hidden]; stack them to [2, tokens, hidden], and take the mean over tokens",
    wrong={
        "the slope at the mean token: take each token's slope, then the mean": (
            "s = torch.sigmoid(a)",
            "a, b = a.mean(0, keepdim=True), b.mean(0, keepdim=True)\n    s = torch.sigmoid(a)",
        ),
        "the gate's own slope is missing: silu is a product, too": ("b * (s + a * s * (1 - s))", "b * s"),
        "that is the slope of a sigmoid: silu is a * sigmoid(a)": ("(s + a * s * (1 - s))", "s * (1 - s)"),
        "what the gate passes is silu(a), not sigmoid(a)": ("by_b = a * s", "by_b = s"),
        "the slope by a has the other factor, b, in it": ("b * (s", "(s"),
        "by a first: the slope by b comes first": ("[by_b, by_a]", "[by_a, by_b]"),
        "the sum over tokens: take their mean": (".mean(1)", ".sum(1)"),
        "one for each token: take the mean over tokens": (".mean(1)", ""),
        "the mean over hidden units: keep them, take the mean over tokens": (".mean(1)", ".mean(2)"),
    },
    moral="A gate is a weight that each token sets anew; a mean of it is the best that weights alone can have.",
)


# --- 13.4 a pruned stream ------------------------------------------------------------------------


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

    rng = torch.Generator().manual_seed(134)
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
    id="13.4",
    title="a pruned stream",
    spec=_pruned_spec,
    hints=(
        "Strong means large, whatever the sign; topk gives the places of the n largest.",
        "Make the activations of what has to go: f with zeros in the columns that stay. What they write "
        "comes off the stream.",
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

EXERCISES = [SCORES, DROP, TWO_WAYS, PRUNED]
