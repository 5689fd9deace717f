"""Exercises of notebook 06, Deep Causal Transcoding: the radius, one step, QR signs, MMCS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from course.exercises import Exercise
from course.exercises.specs import Wrong, call, compare, describe

if TYPE_CHECKING:
    import torch


# --- 06.1 the calibration ratio ------------------------------------------------------------------

_RATIO_STUB = '''
def bend(change, linear):
    """How far from linear the map is: the root mean square, over directions, of
    |change - linear| / |linear|. One number.

    change, linear: [directions, d_model], what R v changes, and what R J v says
    """
    raise NotImplementedError("your turn")
'''


def bend(change: torch.Tensor, linear: torch.Tensor) -> torch.Tensor:
    each = (change - linear).norm(dim=-1) / linear.norm(dim=-1)
    return each.square().mean().sqrt()


def _ratio_spec(answer: Any) -> None:
    import torch

    seed = torch.Generator().manual_seed(61)
    linear = torch.randn(5, 7, generator=seed) * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])[:, None]
    change = linear + torch.randn(5, 7, generator=seed)
    got = call(
        answer,
        change.clone(),
        linear.clone(),
        likely="both are [directions, d_model]: a norm runs over the last dimension",
    )
    # The definition, one direction at a time.
    each = []
    for row, line in zip(change, linear, strict=True):
        gap = sum((float(a) - float(b)) ** 2 for a, b in zip(row, line, strict=True))
        each.append((gap / sum(float(b) ** 2 for b in line)) ** 0.5)
    want = torch.tensor((sum(e * e for e in each) / len(each)) ** 0.5)
    gaps = change - linear
    compare(
        torch.as_tensor(got).float(),
        want.float(),
        {
            "one number for each direction: take the root of their mean square": torch.tensor(each),
            "a plain mean: square the ratios, average, take the root": torch.tensor(sum(each) / 5),
            "the root is missing": want.square(),
            "divided by the whole change: the linear part is the ruler": (gaps.norm(dim=-1) / change.norm(dim=-1))
            .square()
            .mean()
            .sqrt(),
            "numerator and denominator were averaged apart: long directions then count most": gaps.norm()
            / linear.norm(),
            "this is the whole change over its linear part: subtract the linear part first": (
                change.norm(dim=-1) / linear.norm(dim=-1)
            )
            .square()
            .mean()
            .sqrt(),
        },
    )


def _ratio_mean(change: Any, linear: Any) -> Any:
    return ((change - linear).norm(dim=-1) / linear.norm(dim=-1)).mean()


def _ratio_pooled(change: Any, linear: Any) -> Any:
    return (change - linear).norm() / linear.norm()


def _ratio_whole(change: Any, linear: Any) -> Any:
    return (change.norm(dim=-1) / linear.norm(dim=-1)).square().mean().sqrt()


RATIO = Exercise(
    id="06.1",
    title="how far from linear",
    stub=_RATIO_STUB,
    solution=bend,
    spec=_ratio_spec,
    hints=(
        "First a ratio for each direction: the length of a difference over the length of a line.",
        "Norms over dim=-1, divide, square, mean, square root.",
    ),
    wrong=[("plain mean", _ratio_mean), ("pooled", _ratio_pooled), ("linear part not subtracted", _ratio_whole)],
    moral="The radius is where this number reaches 0.5.",
)


# --- 06.2 MMCS -----------------------------------------------------------------------------------

_MMCS_STUB = '''
def mmcs(found, true):
    """Mean over the true directions of the largest |cosine| with a found one.

    found: [m, d], true: [n, d], rows of length 1 -> one number
    """
    raise NotImplementedError("your turn")
'''


def mmcs(found: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    return (true @ found.T).abs().max(dim=-1).values.mean()


def _mmcs_spec(answer: Any) -> None:
    import torch

    seed = torch.Generator().manual_seed(62)
    found, true = torch.randn(9, 6, generator=seed), torch.randn(4, 6, generator=seed)
    found, true = (x / x.norm(dim=-1, keepdim=True) for x in (found, true))
    found[0], found[1] = -true[0], true[1]
    got = call(
        answer,
        found.clone(),
        true.clone(),
        likely="found is [m, d] and true is [n, d]: one of them has to be transposed",
    )
    # The definition, one pair at a time.
    best = [max(abs(sum(float(a) * float(b) for a, b in zip(t, f, strict=True))) for f in found) for t in true]
    cosines = true @ found.T
    compare(
        torch.as_tensor(got).float(),
        torch.tensor(sum(best) / len(best)),
        {
            "a found -v counts as v: take absolute values first": cosines.max(-1).values.mean(),
            "the maximum ran over the true ones: each true direction picks its best found one": cosines.abs()
            .max(0)
            .values.mean(),
            "the mean of all cosines: take the maximum over the found ones first": cosines.abs().mean(),
            "one number for each true direction: take their mean": torch.tensor(best),
        },
    )


def _mmcs_signed(found: Any, true: Any) -> Any:
    return (true @ found.T).max(dim=-1).values.mean()


def _mmcs_other_way(found: Any, true: Any) -> Any:
    return (found @ true.T).abs().max(dim=-1).values.mean()


def _mmcs_mean(found: Any, true: Any) -> Any:
    return (true @ found.T).abs().mean()


MMCS = Exercise(
    id="06.2",
    title="were the true factors found?",
    stub=_MMCS_STUB,
    solution=mmcs,
    spec=_mmcs_spec,
    hints=(
        "true @ found.T holds every cosine; which dimension belongs to the found ones?",
        "Absolute values, then .max(dim=-1).values, then the mean.",
    ),
    wrong=[("signed", _mmcs_signed), ("maximum over the true ones", _mmcs_other_way), ("no maximum", _mmcs_mean)],
    moral="1 means that all were found; random directions of this width never reach 0.",
)


# --- 06.3 one step -------------------------------------------------------------------------------

_STEP_STUB = '''
def step(piece, V, U, r):
    """One iteration, without the orthogonalisation: new (V, U), rows of length 1.

    piece.vjp(thetas, outputs) gives the changes [m, d] at thetas [m, d], and J^T outputs [m, d],
    J taken at each theta. V, U: unit rows [m, d]; r: the radius
    """
    raise NotImplementedError("your turn")
'''


def step(piece: Any, V: torch.Tensor, U: torch.Tensor, r: float) -> tuple[torch.Tensor, torch.Tensor]:
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

    raw = piece.vjp(r * V, U)
    new_v, new_u = after(r * V, U)
    close, from_new = after(V, U), after(r * V, new_u)[0]
    compare(
        got[0],
        new_v,
        {
            "V and U changed places": new_u,
            "the gradient is not of length 1: divide each row by its norm": raw[1],
            "the map was taken at V, not at r * V": close[0],
            "V was pulled back from the new U: both come from one call of vjp": from_new,
            "normalised as a whole: each row has a length of its own": raw[1] / raw[1].norm(),
            "V was left as it is: the pulled-back direction takes its place": V,
        },
    )
    compare(
        got[1],
        new_u,
        {
            "the change is not of length 1: divide each row by its norm": raw[0],
            "the map was taken at V, not at r * V": close[1],
            "U was left as it is: the change takes its place": U,
        },
    )


def _step_small(piece: Any, V: Any, U: Any, r: float) -> Any:
    return step(piece, V, U, 1.0)


def _step_swapped(piece: Any, V: Any, U: Any, r: float) -> Any:
    return step(piece, V, U, r)[::-1]


def _step_raw(piece: Any, V: Any, U: Any, r: float) -> Any:
    return piece.vjp(r * V, U)[::-1]


STEP = Exercise(
    id="06.3",
    title="one step of the iteration",
    stub=_STEP_STUB,
    solution=step,
    spec=_step_spec,
    hints=(
        "One call, piece.vjp(r * V, U), gives all that is needed: the changes and the gradients.",
        "The gradients, each of length 1, are the new V; the changes, each of length 1, the new U.",
    ),
    wrong=[("radius forgotten", _step_small), ("V and U changed places", _step_swapped), ("not normalised", _step_raw)],
    moral="Infinite step size: the gradient itself becomes the new direction.",
)


# --- 06.4 the signs of QR ------------------------------------------------------------------------

_SIGNS_STUB = '''
def mend(q, rows):
    """q with signs such that each row of it points the way of the row that it came from.

    q: orthonormal rows [m, d], from QR; rows: [m, d], what was orthogonalised
    """
    raise NotImplementedError("your turn")
'''


def mend(q: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
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
    got = call(answer, (want * flips).clone(), rows.clone(), likely="a product for each row: (q * rows).sum(dim=-1)")
    along = (want * flips * rows).sum(-1, keepdim=True)
    compare(
        got,
        want,
        {
            "nothing was turned: some rows of q point against the rows they came from": want * flips,
            "turned the wrong way: a negative product means that the row must turn": -want,
            "every row was turned: only those with a negative product must": -want * flips,
            "multiplied by the product itself: its sign is enough": want * flips * along,
            "these are the rows before QR: return q, with its signs mended": rows,
        },
    )


def _signs_none(q: Any, rows: Any) -> Any:
    return q


def _signs_wrong_way(q: Any, rows: Any) -> Any:
    return -mend(q, rows)


def _signs_scaled(q: Any, rows: Any) -> Any:
    return q * (q * rows).sum(dim=-1, keepdim=True)


SIGNS = Exercise(
    id="06.4",
    title="mend the signs",
    stub=_SIGNS_STUB,
    solution=mend,
    spec=_signs_spec,
    hints=(
        "Two arrows point the same way when their product is positive.",
        "along = (q * rows).sum(dim=-1, keepdim=True); turn the rows where it is negative.",
    ),
    wrong=[("nothing turned", _signs_none), ("the wrong way", _signs_wrong_way), ("scaled", _signs_scaled)],
    moral="One line, free of cost; section 5 shows what it is worth.",
)


EXERCISES = [RATIO, MMCS, STEP, SIGNS]
