"""Exercises of notebook 06, Deep Causal Transcoding: the radius, one step, QR signs, MMCS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from course.exercises import Exercise
from course.exercises.specs import Wrong, call, compare, describe

if TYPE_CHECKING:
    import torch


# --- 06.1 the calibration ratio ------------------------------------------------------------------


def bend(change: torch.Tensor, linear: torch.Tensor) -> torch.Tensor:
    """How far from linear the map is: the root mean square, over directions, of
    |change - linear| / |linear|. One number.

    change, linear: [directions, d_model], what R v changes, and what R J v says
    """
    each = (change - linear).norm(dim=-1) / linear.norm(dim=-1)
    return each.square().mean().sqrt()


def _ratio_spec(answer: Any) -> None:
    import torch

    seed = torch.Generator().manual_seed(61)
    linear = torch.randn(5, 7, generator=seed) * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])[:, None]
    change = linear + torch.randn(5, 7, generator=seed)
    # The definition, one direction at a time.
    each = []
    for row, line in zip(change, linear, strict=True):
        gap = sum((float(a) - float(b)) ** 2 for a, b in zip(row, line, strict=True))
        each.append((gap / sum(float(b) ** 2 for b in line)) ** 0.5)
    want = torch.tensor((sum(e * e for e in each) / len(each)) ** 0.5)
    RATIO.expect(answer, change, linear, want=want, number=True)


RATIO = Exercise.of(
    bend,
    id="06.1",
    title="how far from linear",
    spec=_ratio_spec,
    hints=(
        "First a ratio for each direction: the length of a difference over the length of a line.",
        "Five directions give five ratios. A root mean square is the root of the mean of their squares, not the mean.",
    ),
    on_error="both are [directions, d_model]: a norm runs over the last dimension",
    wrong={
        "one number for each direction: take the root of their mean square": "each",
        "a plain mean: square the ratios, average, take the root": "each.mean()",
        "the root is missing": "each.square().mean()",
        "divided by the whole change: the linear part is the ruler": ("/ linear.norm", "/ change.norm"),
        "numerator and denominator were averaged apart: long directions then count most": (
            "(change - linear).norm() / linear.norm()"
        ),
        "this is the whole change over its linear part: subtract the linear part first": (
            "(change - linear)",
            "change",
        ),
    },
    moral="The radius is where this number reaches 0.5.",
)


# --- 06.4 MMCS -----------------------------------------------------------------------------------


def mmcs(found: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Mean over the true directions of the largest |cosine| with a found one.

    found: [m, d], true: [n, d], rows of length 1 -> one number
    """
    return (true @ found.T).abs().max(dim=-1).values.mean()


def _mmcs_spec(answer: Any) -> None:
    import torch

    seed = torch.Generator().manual_seed(62)
    found, true = torch.randn(9, 6, generator=seed), torch.randn(4, 6, generator=seed)
    found, true = (x / x.norm(dim=-1, keepdim=True) for x in (found, true))
    found[0], found[1] = -true[0], true[1]
    # The definition, one pair at a time.
    best = [max(abs(sum(float(a) * float(b) for a, b in zip(t, f, strict=True))) for f in found) for t in true]
    MMCS.expect(answer, found, true, want=sum(best) / len(best), number=True)


MMCS = Exercise.of(
    mmcs,
    id="06.4",
    title="were the true factors found?",
    spec=_mmcs_spec,
    hints=(
        "true @ found.T holds every cosine; which dimension belongs to the found ones?",
        "Along the found ones take the best |cosine| (.max gives values and places), and only then a mean.",
    ),
    on_error="found is [m, d] and true is [n, d]: one of them has to be transposed",
    wrong={
        "a found -v counts as v: take absolute values first": (".abs()", ""),
        "the maximum ran over the true ones: each true direction picks its best found one": ("dim=-1", "dim=0"),
        "the mean of all cosines: take the maximum over the found ones first": (".max(dim=-1).values", ""),
        "one number for each true direction: take their mean": (".mean()", ""),
    },
    moral="1 means that all were found; random directions of this width never reach 0.",
)


# --- 06.2 one step -------------------------------------------------------------------------------


def step(
    piece: Any,
    V: torch.Tensor,  # [m, d]
    U: torch.Tensor,  # [m, d]
    r: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One iteration, without the orthogonalisation: new (V, U), rows of length 1.

    piece.vjp(thetas, outputs) gives the changes [m, d] at thetas [m, d], and J^T outputs [m, d],
    J taken at each theta. V, U: unit rows [m, d]; r: the radius
    """
    changes, grads = piece.vjp(r * V, U)
    return grads / grads.norm(dim=-1, keepdim=True), changes / changes.norm(dim=-1, keepdim=True)


def _step_spec(answer: Any) -> None:
    import torch

    from kit.search.maps import Map

    d, m, r = 6, 4, 1.5
    seed = torch.Generator().manual_seed(63)
    into, out = torch.randn(d, d, generator=seed), torch.randn(d, d, generator=seed)
    V, U = torch.randn(m, d, generator=seed), torch.randn(m, d, generator=seed)
    V, U = V / V.norm(dim=-1, keepdim=True), U / U.norm(dim=-1, keepdim=True)
    piece = Map(lambda theta: torch.tanh(theta @ into) @ out, d)
    got = call(
        answer, piece, V.clone(), U.clone(), r, likely="piece.vjp takes thetas and output directions, both [m, d]"
    )
    if not isinstance(got, tuple | list) or len(got) != 2:
        raise Wrong(arrived=describe(got), expected="two tensors, new V and new U", likely="return both, V first")

    def after(at: torch.Tensor, push: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        slope = 1 - torch.tanh(at @ into).square()  # by hand: the chain rule
        pulled, change = slope * (push @ out.T) @ into.T, torch.tanh(at @ into) @ out
        return tuple(x / x.norm(dim=-1, keepdim=True) for x in (pulled, change))

    for place, want in enumerate(after(r * V, U)):
        known = ((cause, result[place]) for cause, result in STEP.known(piece, V, U, r))
        compare(got[place], want, known)


STEP = Exercise.of(
    step,
    id="06.2",
    title="one step of the iteration",
    spec=_step_spec,
    hints=(
        "One call, piece.vjp(r * V, U), gives all that is needed: the changes and the gradients.",
        "What is the best answer u for a push R v? And which v raises <u, change> fastest? One of the two is a "
        "change, the other a gradient; only their directions count.",
    ),
    wrong={
        "V and U changed places": ("changes, grads", "grads, changes"),
        "the gradient is not of length 1: divide each row by its norm": (
            "grads / grads.norm(dim=-1, keepdim=True)",
            "grads",
        ),
        "the change is not of length 1: divide each row by its norm": (
            "changes / changes.norm(dim=-1, keepdim=True)",
            "changes",
        ),
        "the map was taken at V, not at r * V": ("r * V", "V"),
        "V was pulled back from the new U: both come from one call of vjp": (
            "return ",
            "_, grads = piece.vjp(r * V, changes / changes.norm(dim=-1, keepdim=True))\n    return ",
        ),
        "normalised as a whole: each row has a length of its own": ("dim=-1, keepdim=True", ""),
        "V was left as it is: the pulled-back direction takes its place": (
            "grads / grads.norm(dim=-1, keepdim=True)",
            "V",
        ),
        "U was left as it is: the change takes its place": ("changes / changes.norm(dim=-1, keepdim=True)", "U"),
    },
    moral="Infinite step size: the gradient itself becomes the new direction.",
)


# --- 06.3 the signs of QR ------------------------------------------------------------------------


def mend(q: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """q with signs such that each row of it points the way of the row that it came from.

    q: orthonormal rows [m, d], from QR; rows: [m, d], what was orthogonalised
    """
    import torch

    along = (q * rows).sum(dim=-1, keepdim=True)
    return torch.where(along < 0, -q, q)


def _signs_spec(answer: Any) -> None:
    import torch

    seed = torch.Generator().manual_seed(64)
    rows = torch.randn(5, 8, generator=seed)
    q: list[torch.Tensor] = []
    for row in rows:  # Gram-Schmidt, the definition: no row is ever turned round
        rest = row - sum(((row @ other) * other for other in q), torch.zeros(8))
        q.append(rest / rest.norm())
    want = torch.stack(q)
    flips = torch.tensor([1.0, -1.0, -1.0, 1.0, -1.0])[:, None]
    SIGNS.expect(answer, want * flips, rows, want=want)


SIGNS = Exercise.of(
    mend,
    id="06.3",
    title="mend the signs",
    spec=_signs_spec,
    hints=(
        "Two arrows point the same way when their product is positive.",
        "The product of row i of q with row i of rows is one number a row, not a matrix. Where it is negative, turn.",
    ),
    on_error="a product for each row: (q * rows).sum(dim=-1)",
    wrong={
        "nothing was turned: some rows of q point against the rows they came from": "q",
        "turned the wrong way: a negative product means that the row must turn": ("< 0", "> 0"),
        "every row was turned: only those with a negative product must": "-q",
        "multiplied by the product itself: its sign is enough": "q * along",
        "these are the rows before QR: return q, with its signs mended": "rows",
    },
    moral="One line, free of cost; section 6 shows what it is worth.",
)

EXERCISES = [RATIO, STEP, SIGNS, MMCS]
