"""Exercises of notebook 15: explained variance with weights, a step of pursuit, a fair control."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from course.exercises import Exercise
from course.exercises.specs import Wrong, call, compare, describe

if TYPE_CHECKING:
    import torch


# --- 15.1 explained variance of rows -----------------------------------------------------------


def score(rows: torch.Tensor, made: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Explained variance of all rows together.

    1 - (squared length of what is left) / (squared length of rows less their mean), both summed
    over rows, each row counted `weight` times; the mean is weighted, too.

    rows, made: [n, d], the rows and what was made of them; weight: [n], from 0 on -> a scalar
    """
    mean = (weight[:, None] * rows).sum(0) / weight.sum()
    left = (weight * (rows - made).square().sum(-1)).sum()
    return 1 - left / (weight * (rows - mean).square().sum(-1)).sum()


def _score_spec(answer: Any) -> None:
    import torch

    rng = torch.Generator().manual_seed(151)
    rows = torch.randn(7, 4, generator=rng) + torch.tensor([1.0, 0.0, -0.5, 0.0])
    made = rows + torch.linspace(0.1, 0.9, 7)[:, None] * torch.randn(7, 4, generator=rng)
    weight = torch.tensor([0.0, 4.0, 2.0, 0.5, 1.0, 0.1, 1.0])
    total, mean = float(weight.sum()), torch.zeros(4)
    for w, row in zip(weight.tolist(), rows, strict=True):  # the definition, row by row
        mean += w * row / total
    left = whole = 0.0
    for w, row, part in zip(weight.tolist(), rows, made, strict=True):
        left += w * float(((row - part) ** 2).sum())
        whole += w * float(((row - mean) ** 2).sum())
    SCORE.expect(answer, rows, made, weight, want=1 - left / whole)


SCORE = Exercise.of(
    score,
    id="15.1",
    title="explained variance of rows",
    spec=_score_spec,
    hints=(
        "First the weighted mean row: (weight[:, None] * rows).sum(0) / weight.sum().",
        "1 - left / whole; left sums weight * |row - made|^2, whole sums weight * |row - mean|^2.",
    ),
    on_error="weight is [n]: weight[:, None] * rows, but weight * (a sum over the last dim)",
    wrong={
        "the weights are not used": ("mean = (weight", "weight = rows.new_ones(len(rows))\n    mean = (weight"),
        "the mean was not taken off: a constant would then count as explained": ("(rows - mean)", "rows"),
        "the mean is weighted, too": ("(rows - mean)", "(rows - rows.mean(0))"),
        "the mean of the rows' own shares: sum over all rows first, then divide": (
            "(weight * (1 - (rows - made).square().sum(-1) / (rows - mean).square().sum(-1))).sum() / weight.sum()"
        ),
        "what is left, not what is explained: take it from 1": ("1 - left", "left"),
        "what was made, not what is left of the rows": (
            "(weight @ made.square().sum(-1)) / (weight @ (rows - mean).square().sum(-1))"
        ),
        "the weights were squared": ("mean = (weight", "weight = weight.square()\n    mean = (weight"),
    },
    moral="Below 0 is possible: then the mean alone would have been the better guess.",
)


# --- 15.2 one step of matching pursuit -----------------------------------------------------------


def step(x: torch.Tensor, atoms: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
    """One step of orthogonal matching pursuit: one more atom, then all weights again.

    The atom with the largest (signed) product with what is left of x joins those in use; then the
    weights of all that are in use are fitted again, by least squares.

    x: [d]; atoms: [m, d], of norm 1; code: [m], weights so far, 0 where not in use -> [m]
    """
    import torch

    left = x - code @ atoms
    on = code != 0
    on[(atoms @ left).masked_fill(on, -torch.inf).argmax()] = True
    new = torch.zeros_like(code)
    new[on] = torch.linalg.lstsq(atoms[on].T, x[:, None]).solution[:, 0]
    return new


def _next(x: Any, atoms: Any, code: Any) -> int:
    """The atom that is chosen by its product with what is left."""
    import torch

    products = atoms @ (x - code @ atoms)
    return int(products.masked_fill(code != 0, -torch.inf).argmax())


def _fitted(x: Any, atoms: Any, on: list[int]) -> Any:
    import torch

    chosen = atoms[on]
    weights = torch.linalg.solve(chosen @ chosen.T, chosen @ x)  # the normal equations
    return torch.zeros(len(atoms)).index_put((torch.tensor(on),), weights)


def _step_spec(answer: Any) -> None:
    import torch

    atoms = torch.tensor(
        [
            [1.0, 0, 0, 0, 0],
            [0.8, 0.6, 0, 0, 0],
            [0, 0.28, 0.96, 0, 0],
            [0, 0, 0, 1.0, 0],
            [0, 0, -0.6, 0, 0.8],
            [0, 0, 0, 0, -1.0],
        ]
    )
    x = torch.tensor([2.0, 0.9, 0.8, 0.1, 1.2])
    empty = torch.zeros(6)
    code = _fitted(x, atoms, [_next(x, atoms, empty)])
    STEP.expect(
        answer,
        x,
        atoms,
        empty,
        want=code,
        likely="nothing is in use yet: what is left of x is all of x",
        also={"nothing joined: an atom is in use from its first product on": empty},
    )
    on = code.nonzero()[:, 0].tolist()
    want = _fitted(x, atoms, [*on, _next(x, atoms, code)])
    STEP.expect(
        answer,
        x,
        atoms,
        code,
        want=want,
        likely="atoms[on].T is [d, in use]: the first argument of torch.linalg.lstsq",
        also={"no atom joined": code},
    )


STEP = Exercise.of(
    step,
    id="15.2",
    title="one step of matching pursuit",
    spec=_step_spec,
    hints=(
        "What is left is x - code @ atoms. The atom with the largest product with it joins.",
        "on = code != 0, with the new one; torch.linalg.lstsq(atoms[on].T, x[:, None]).solution.",
    ),
    wrong={
        "plain matching pursuit: the weights of before have to be fitted again": (
            "torch.where(on & (code == 0), atoms @ left, code)"
        ),
        "chosen by its product with x, of which much is explained already: use what is left": (
            "(atoms @ left)",
            "(atoms @ x)",
        ),
        "chosen by size: an atom that points away could only have a negative weight": (
            "(atoms @ left)",
            "(atoms @ left).abs()",
        ),
        "the new atom's product with x was taken for its weight": "torch.where(on & (code == 0), atoms @ x, code)",
        "only the new atom is fitted: keep those in use": ("new = torch", "on &= code == 0\n    new = torch"),
        "[d], the sum: return the weights, one for each atom": "new @ atoms",
    },
    moral="Atoms overlap: with each that joins, the others' shares change.",
)


# --- 15.3 a fair control -------------------------------------------------------------------------


def twins(rows: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Random rows that share their mean and their covariance with the given ones, and no more.

    rows: [n, d]; noise: [any, d], independent standard normal numbers -> [any, d]
    """
    import torch

    mean = rows.mean(0)
    _, size, axes = torch.linalg.svd(rows - mean, full_matrices=False)
    return mean + noise * (size / len(rows) ** 0.5) @ axes


def _covariance(rows: Any) -> Any:
    centred = rows - rows.mean(0)
    return centred.T @ centred / len(rows)


def _twins_spec(answer: Any) -> None:
    import torch

    rng = torch.Generator().manual_seed(153)
    mix = torch.randn(4, 4, generator=rng)
    rows = torch.randn(50, 4, generator=rng) @ mix + torch.tensor([1.0, -2.0, 0.0, 3.0])
    raw = torch.randn(200, 4, generator=rng)
    raw = raw - raw.mean(0)
    noise = raw @ torch.linalg.inv(torch.linalg.cholesky(_covariance(raw))).T  # exactly white
    got = call(
        answer,
        rows.clone(),
        noise.clone(),
        likely="noise @ root, with root [d, d] such that root.T @ root is the covariance",
    )
    still = call(answer, rows.clone(), torch.zeros(3, 4), likely="noise may have another number of rows than rows")
    if not isinstance(got, torch.Tensor) or got.shape != noise.shape:
        raise Wrong(
            arrived=describe(got),
            expected=describe(noise),
            likely="as many rows as the noise has, each [d]: return a tensor",
        )
    mean, cov = rows.mean(0), _covariance(rows)
    results = list(TWINS.known(rows, noise))
    compare(got.mean(0), mean, ((cause, other.mean(0)) for cause, other in results))
    compare(still, mean.expand(3, 4).clone())
    found = _covariance(got)
    if torch.allclose(found, cov * 50 / 49, rtol=1e-3, atol=1e-4):
        return  # divided by n - 1
    compare(found, cov, ((cause, _covariance(other)) for cause, other in results))


TWINS = Exercise.of(
    twins,
    id="15.3",
    title="a fair control",
    spec=_twins_spec,
    hints=(
        "White noise times a root of the covariance has that covariance. Then add the mean.",
        "_, size, axes = svd(rows - mean, full_matrices=False); noise * (size / n ** 0.5) @ axes.",
    ),
    wrong={
        "each coordinate has its own spread, but they do not vary together: use the covariance": (
            "mean + noise * rows.std(0, correction=0)"
        ),
        "the mean is missing: add rows.mean(0)": ("return mean + ", "return "),
        "the mean was added twice": ("return mean", "return 2 * mean"),
        "the singular values are of the sum over rows: divide them by the root of their number": (
            "size / len(rows) ** 0.5",
            "size",
        ),
        "multiplied by the covariance itself: use a root of it": "mean + noise @ _covariance(rows)",
        "the mean was not taken off before the covariance": ("svd(rows - mean,", "svd(rows,"),
        "the noise was passed on as it is": "mean + noise",
        "the singular values do not stand with their axes: noise * size, then @ axes": (
            "mean + noise * size / len(rows) ** 0.5"
        ),
    },
    moral="What a method finds here, it finds in a spectrum: no row shares a part with another.",
)

EXERCISES = [SCORE, STEP, TWINS]
