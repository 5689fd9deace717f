"""Exercises of notebook 01, hooks: logit lens, patching, ablating and adding a direction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from course.exercises import Exercise
from course.exercises.patching import check_index, shares_of, toy
from course.exercises.specs import Wrong, call, compare, describe

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


# --- 01.1 logit lens -----------------------------------------------------------------------------


def logit_lens(
    resid: torch.Tensor, ln_final: Callable[[torch.Tensor], torch.Tensor], W_U: torch.Tensor
) -> torch.Tensor:
    """Logits [pos, d_vocab] read from a residual stream [pos, d_model].

    ln_final: the model's final norm, a function [pos, d_model] -> [pos, d_model]
    W_U: the unembedding [d_model, d_vocab]
    """
    return ln_final(resid) @ W_U


def _lens_spec(answer: Any) -> None:
    import torch

    seed = torch.Generator().manual_seed(11)
    resid = 4 * torch.randn(5, 8, generator=seed)  # [pos, d_model], not yet of unit size
    W_U = torch.randn(8, 13, generator=seed)  # [d_model, d_vocab]
    gain = 0.5 + torch.rand(8, generator=seed)

    def ln_final(x: torch.Tensor) -> torch.Tensor:  # RMS norm with a learned gain
        return gain * x / x.pow(2).mean(-1, keepdim=True).sqrt()

    # The definition, one position and one token at a time.
    want = torch.empty(5, 13)
    for pos in range(5):
        normed = ln_final(resid[pos])
        for token in range(13):
            want[pos, token] = (normed * W_U[:, token]).sum()
    LENS.expect(answer, resid, ln_final, W_U, want=want)


LENS = Exercise.of(
    logit_lens,
    id="01.1",
    title="logit lens",
    spec=_lens_spec,
    hints=(
        "The model itself does two things after its last block; do the same, only earlier.",
        "The second step is a matrix product: [pos, d_model] on the left, [d_model, d_vocab] on the right. What comes before it?",
    ),
    on_error="W_U is [d_model, d_vocab]: it goes on the right of the matrix product, untransposed",
    wrong={
        "the residual stream was not normalised: call ln_final first": "resid @ W_U",
        "these are probabilities: return the logits, before the softmax": "(ln_final(resid) @ W_U).softmax(-1)",
        "these are log-probabilities: return the logits themselves": "(ln_final(resid) @ W_U).log_softmax(-1)",
        "only the last position was read: keep all of them": "(ln_final(resid) @ W_U)[-1]",
        "on the right of the matrix product, untransposed": "ln_final(resid) @ W_U.T",
    },
    moral="Every layer can be read in the vocabulary, by the two steps that end the model.",
)


# --- 01.2 activation patching score --------------------------------------------------------------


def recovery(patched: torch.Tensor, clean: torch.Tensor, corrupt: torch.Tensor) -> torch.Tensor:
    """Share of the clean behaviour that a patch restores, elementwise.

    All three are logit differences. 0: as bad as the corrupt run; 1: as good as the clean run.
    """
    return (patched - corrupt) / (clean - corrupt)


def _recovery_spec(answer: Any) -> None:
    import torch

    seed = torch.Generator().manual_seed(12)
    clean, corrupt = torch.tensor(3.2), torch.tensor(-1.6)
    # Fixed points of the definition: nothing, a quarter, all; a patch may also overshoot or harm.
    shares = torch.tensor([[0.0, 0.25, 1.0], [0.5, 1.5, -0.5]])  # [layer, pos]
    patched = corrupt + shares * (clean - corrupt)
    RECOVERY.expect(answer, patched, clean, corrupt, want=shares)

    # Elementwise: every prompt has its own clean and corrupt value.
    clean, corrupt = 2 + torch.rand(4, generator=seed), -torch.rand(4, generator=seed)
    shares = torch.rand(3, 4, generator=seed)  # [layer, prompt]
    patched = corrupt + shares * (clean - corrupt)
    RECOVERY.expect(answer, patched, clean, corrupt, want=shares)


RECOVERY = Exercise.of(
    recovery,
    id="01.2",
    title="activation patching score",
    spec=_recovery_spec,
    hints=(
        "Put patched = corrupt into your formula: it must give 0. Then patched = clean: 1.",
        "How far did the patch come, of the whole way? Both are measured from the same end.",
    ),
    wrong={
        "clean and corrupt are swapped: the corrupt run has to score 0": "(patched - clean) / (corrupt - clean)",
        "not divided by the distance from corrupt to clean": "patched - corrupt",
        "divided by clean alone: divide by the distance clean - corrupt": "(patched - corrupt) / clean",
        "clamped: a patch that overshoots scores above 1, one that harms below 0": (
            "((patched - corrupt) / (clean - corrupt)).clamp(0, 1)"
        ),
        "averaged over prompts before dividing: work elementwise": (
            "(patched - corrupt.mean()) / (clean.mean() - corrupt.mean())"
        ),
    },
    moral="0 and 1 now mean the same for every prompt, so patches can be compared.",
)


# --- 01.3 which block moves the fact -------------------------------------------------------------


def moving_block(model: Any, clean: torch.Tensor, corrupt: torch.Tensor) -> int | None:
    position = int((clean != corrupt)[0].nonzero()[0])  # the one token that differs
    names = [f"blocks.{block}.hook_out" for block in range(model.cfg.n_layers)]
    logits, cache = model.run_with_cache(clean, names_filter=names)
    start = model.run_with_hooks(corrupt, fwd_hooks=[])
    good, bad = logits[0, -1].argmax(), start[0, -1].argmax()
    gaps = [float(x[0, -1, good] - x[0, -1, bad]) for x in (start, logits)]
    for block, name in enumerate(names):

        def patch(x: torch.Tensor, hook: Any, name: str = name) -> torch.Tensor:
            x = x.clone()
            x[:, position] = cache[name][:, position]
            return x

        patched = model.run_with_hooks(corrupt, fwd_hooks=[(name, patch)])
        gap = float(patched[0, -1, good] - patched[0, -1, bad])
        if (gap - gaps[0]) / (gaps[1] - gaps[0]) < 0.5:
            return block
    return None


def _block_spec(answer: Any, *, model: Any, clean: Any, corrupt: Any) -> None:
    check_index(answer, "block", model.cfg.n_layers)
    place = (0, int((clean != corrupt)[0].nonzero()[0]))

    def share(block: int) -> float:
        return shares_of(model, clean, corrupt, f"blocks.{block}.hook_out", [place])[0]

    after, before = share(answer), share(answer - 1) if answer else 1.0
    if after >= 0.5:
        raise Wrong(
            arrived=f"block {answer}, after which patching there still recovers {after:.2f}",
            expected="a block after which it recovers less than half",
            likely="too early: the fact has not left this position yet",
        )
    if before < 0.5:
        raise Wrong(
            arrived=f"block {answer}, but one block before it recovers only {before:.2f} already",
            expected="the first block after which it recovers less than half",
            likely="too late: an earlier block had moved the fact on",
        )


BLOCK = Exercise.of(
    moving_block,
    id="01.3",
    title="where the fact moves",
    stub=("# The first block after which patching the country's position recovers less than half.\nmoving_block = ..."),
    spec=_block_spec,
    hints=(
        "Read one column of the heat map, the one of the country, from the first block on.",
        "Where the column drops, is the answer the last block above one half, or the next one?",
    ),
    wrong={
        "too early: the fact has not left this position yet": lambda **context: moving_block(**context) - 1,
        "too late: an earlier block had moved the fact on": lambda **context: moving_block(**context) + 1,
        "counting starts at 0": lambda model, **context: model.cfg.n_layers,
    },
    moral="Up to there the fact sits at the country's token; from there on, at the last one.",
    example=toy,
)


# --- 01.4 which head carries it ------------------------------------------------------------------


def carrier(model: Any, clean: torch.Tensor, corrupt: torch.Tensor, block: int) -> int:
    name = f"blocks.{block}.attn.hook_z"  # [batch, pos, head, d_head]
    logits, cache = model.run_with_cache(clean, names_filter=[name])
    start = model.run_with_hooks(corrupt, fwd_hooks=[])
    good, bad = logits[0, -1].argmax(), start[0, -1].argmax()
    gaps = []
    for head in range(model.cfg.n_heads):

        def patch(x: torch.Tensor, hook: Any, head: int = head) -> torch.Tensor:
            x = x.clone()
            x[:, -1, head] = cache[name][:, -1, head]
            return x

        patched = model.run_with_hooks(corrupt, fwd_hooks=[(name, patch)])
        gaps.append(float(patched[0, -1, good] - patched[0, -1, bad]))
    return gaps.index(max(gaps))


def _head_spec(answer: Any, *, model: Any, clean: Any, corrupt: Any, block: int) -> None:
    check_index(answer, "head", model.cfg.n_heads)
    places = [(0, -1, head) for head in range(model.cfg.n_heads)]
    shares = shares_of(model, clean, corrupt, f"blocks.{block}.attn.hook_z", places)
    if shares[answer] < max(shares):
        little = "this head brings next to nothing, wherever it looks"
        some = "this head helps, yet another one brings more"
        raise Wrong(
            arrived=f"head {answer}, which recovers {shares[answer]:.2f}",
            expected=f"the head that recovers most, {max(shares):.2f}",
            likely=f"{little if shares[answer] < 0.1 else some}: patch all of them and compare",
        )


HEAD = Exercise.of(
    carrier,
    id="01.4",
    title="which head carries it",
    stub=(
        "# Patch the heads of that block one at a time, at the last position. Which brings back the most?\n"
        "carrier = ..."
    ),
    spec=_head_spec,
    hints=(
        "hook_z is [batch, pos, head, d_head]; write clean values into [:, -1, head] only.",
        "`put` takes the place as its second argument, `patched` gives the recovery: nine runs, and compare them.",
    ),
    wrong={
        "this head helps, yet another one brings more": 0,
        "this head brings next to nothing": 2,
        "the answer is one whole number": lambda block, **context: (block, 1),
    },
    moral="Where a head looks is a hint; what comes back when you patch it is the test.",
    example=lambda: toy(block=2),
)


# --- 01.5 ablate a direction ---------------------------------------------------------------------


def ablate(resid: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """resid [pos, d_model] without its component along direction [d_model].

    direction may have any length but zero. resid itself must stay as it was.
    """
    unit = direction / direction.norm()
    component = resid @ unit  # [pos]: how far each position reaches along the direction
    return resid - component[:, None] * unit


def _ablate_spec(answer: Any) -> None:
    import torch

    seed = torch.Generator().manual_seed(13)
    resid = torch.randn(6, 10, generator=seed)  # [pos, d_model]
    direction = 3 * torch.randn(10, generator=seed)
    shapes = "resid @ direction is [pos]: give it a last dimension of 1 before it multiplies"
    given = resid.clone()
    got = call(answer, given, direction.clone(), likely=shapes)

    length = direction.pow(2).sum().sqrt()
    want = torch.empty(6, 10)
    for pos in range(6):
        along = sum(resid[pos, i] * direction[i] / length for i in range(10))
        want[pos] = resid[pos] - along * direction / length
    compare(got, want, ABLATE.known(resid, direction))
    if not torch.equal(given, resid):
        raise Wrong(
            arrived=f"a resid that was changed to {describe(given)}",
            expected=f"resid as it was, {describe(resid)}, and a new tensor",
            likely="-= works in place: a hook that does so also changes what was cached",
        )


ABLATE = Exercise.of(
    ablate,
    id="01.5",
    title="ablate a direction",
    spec=_ablate_spec,
    hints=(
        "How long is the shadow of each position on the direction? Subtract exactly that shadow.",
        "The shadow's length is a dot product with a direction of length 1; the shadow points along that direction.",
    ),
    wrong={
        "direction was not normalised: divide it by its norm first": ("direction / direction.norm()", "direction"),
        "divided by the norm once: the unit vector occurs twice in the projection": (
            "resid - component[:, None] * direction"
        ),
        "the whole norm was removed: remove only the part along direction": (
            "resid - resid.norm(dim=-1, keepdim=True) * unit"
        ),
        "this is the part that should go: subtract it from resid": "component[:, None] * unit",
        "the component was removed twice, which reflects: subtract it once": "resid - 2 * component[:, None] * unit",
        "-= works in place": "resid.sub_(component[:, None] * unit)",
    },
    moral="Nothing downstream can read this direction any more; all that is orthogonal survived.",
)

# --- 01.6 steer ----------------------------------------------------------------------------------


def adding(
    c: float,
    scale: float,
    v: torch.Tensor,  # [d_model]
    where: int | slice,
) -> Callable[[torch.Tensor, Any], torch.Tensor]:
    """A hook that adds the step c * scale * v at some positions, and leaves the others.

    c: the coefficient; scale: how long coefficient 1 is; v: a direction [d_model] of length 1
    where: an index or a slice of positions
    -> a function of (activation [batch, pos, d_model], hook) that gives the changed activation
    """

    def hook_fn(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        changed = activation.clone()
        changed[:, where] += c * scale * v
        return changed

    return hook_fn


def _adding_spec(answer: Any) -> None:
    import torch

    seed = torch.Generator().manual_seed(16)
    activation = torch.randn(2, 5, 6, generator=seed)  # [batch, pos, d_model]
    v = torch.randn(6, generator=seed)
    v = v / v.norm()
    for c, where in ((0.3, slice(None)), (-0.5, 3), (0.2, slice(1, 4))):
        hook = call(answer, c, 150.0, v.clone(), where, likely="return the inner function, hook_fn")
        if not callable(hook):
            raise Wrong(
                arrived=describe(hook),
                expected="a function of an activation and a hook",
                likely="the step was returned, or the changed activation: return the function that adds it",
            )
        given = activation.clone()
        got = call(hook, given, None, likely="the inner function takes (activation, hook); where is an index of pos")
        steered = list(range(5))[where] if isinstance(where, slice) else [where]
        want = activation.clone()
        for row in range(2):
            for pos in steered:  # one position at a time
                want[row, pos] = activation[row, pos] + torch.stack([c * 150.0 * x for x in v])

        known = ((cause, made(activation.clone(), None)) for cause, made in ADDING.known(c, 150.0, v, where))
        compare(got, want, known, atol=1e-3)
        if not torch.equal(given, activation):
            raise Wrong(
                arrived="an activation that was changed in place",
                expected="a new tensor, and the given one as it was",
                likely="clone() the activation first: others have cached the one that is given",
            )


ADDING = Exercise.of(
    adding,
    id="01.6",
    title="the adding hook",
    spec=_adding_spec,
    hints=(
        "`put` above is nearly it: it overwrites. What is to stand at these positions instead?",
        "Clone first. Then all rows of the batch, the positions `where`; v is as wide as the last dimension.",
    ),
    wrong={
        "overwritten: add the step to what is there": ("+= c * scale * v", "= c * scale * v"),
        "scale is missing: a coefficient is in units of it": ("c * scale * v", "c * v"),
        "every position was changed: only those in `where`": ("[:, where]", "[:]"),
        "the step was subtracted": ("+= c", "-= c"),
        "only the first row of the batch was changed": ("[:, where]", "[0, where]"),
        "clone() the activation first": ("activation.clone()", "activation"),
        "the changed activation: return the function that adds it": "c * scale * v",
    },
    moral="This is all that steering is. What a kit adds: units, receipts, and an end.",
)

EXERCISES = [LENS, RECOVERY, BLOCK, HEAD, ABLATE, ADDING]
