"""Exercises of notebook 15: explained variance with weights, one step of pursuit, a fair control."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from course.exercises import Exercise
from course.exercises.specs import Wrong, call, compare, describe

if TYPE_CHECKING:
    import torch


# --- 15.1 explained variance of rows -----------------------------------------------------------

_SCORE_STUB = '''
def score(rows, made, weight):
    """Explained variance of all rows together.

    1 - (squared length of what is left) / (squared length of rows less their mean), both summed
    over rows, each row counted `weight` times; the mean is weighted, too.

    rows, made: [n, d], the rows and what was made of them; weight: [n], from 0 on -> a scalar
    """
    raise NotImplementedError("your turn")
'''


def score(rows: torch.Tensor, made: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
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
    got = call(
        answer,
        rows.clone(),
        made.clone(),
        weight.clone(),
        likely="weight is [n]: weight[:, None] * rows, but weight * (a sum over the last dim)",
    )
    one = torch.ones(7)
    rest = (rows - made).square().sum(-1)
    around = (rows - mean).square().sum(-1)
    plain = (rows - rows.mean(0)).square().sum(-1)
    compare(
        got,
        torch.tensor(1 - left / whole),
        {
            "the weights are not used": score(rows, made, one),
            "the mean was not taken off: a constant would then count as explained": 1
            - (weight * rest).sum() / (weight * rows.square().sum(-1)).sum(),
            "the mean is weighted, too": 1 - (weight * rest).sum() / (weight * plain).sum(),
            "the mean of the rows' own shares: sum over all rows first, then divide": (
                weight * (1 - rest / around)
            ).sum()
            / weight.sum(),
            "what is left, not what is explained: take it from 1": torch.tensor(left / whole),
            "what was made, not what is left of the rows": (weight * made.square().sum(-1)).sum()
            / (weight * around).sum(),
            "the weights were squared": score(rows, made, weight.square()),
        },
    )


def _score_alike(rows: Any, made: Any, weight: Any) -> Any:
    left = (rows - made).square().sum()
    return 1 - left / (rows - rows.mean(0)).square().sum()


def _score_origin(rows: Any, made: Any, weight: Any) -> Any:
    left = (weight * (rows - made).square().sum(-1)).sum()
    return 1 - left / (weight * rows.square().sum(-1)).sum()


def _score_plain_mean(rows: Any, made: Any, weight: Any) -> Any:
    left = (weight * (rows - made).square().sum(-1)).sum()
    return 1 - left / (weight * (rows - rows.mean(0)).square().sum(-1)).sum()


SCORE = Exercise(
    id="15.1",
    title="explained variance of rows",
    stub=_SCORE_STUB,
    solution=score,
    spec=_score_spec,
    hints=(
        "First the weighted mean row: (weight[:, None] * rows).sum(0) / weight.sum().",
        "1 - left / whole; left sums weight * |row - made|^2, whole sums weight * |row - mean|^2.",
    ),
    wrong=[
        ("weights ignored", _score_alike),
        ("mean kept", _score_origin),
        ("mean without weights", _score_plain_mean),
    ],
    moral="Below 0 is possible: then the mean alone would have been the better guess.",
)


# --- 15.2 one step of matching pursuit -----------------------------------------------------------

_STEP_STUB = '''
def step(x, atoms, code):
    """One step of orthogonal matching pursuit: one more atom, then all weights again.

    The atom with the largest (signed) product with what is left of x joins those in use; then the
    weights of all that are in use are fitted again, by least squares.

    x: [d]; atoms: [m, d], of norm 1; code: [m], weights so far, 0 where not in use -> [m]
    """
    raise NotImplementedError("your turn")
'''


def step(x: torch.Tensor, atoms: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
    import torch

    left = x - code @ atoms
    on = code != 0
    on[(atoms @ left).masked_fill(on, -torch.inf).argmax()] = True
    new = torch.zeros_like(code)
    new[on] = torch.linalg.lstsq(atoms[on].T, x[:, None]).solution[:, 0]
    return new


def _plain_step(x: Any, atoms: Any, code: Any, *, by: str = "left", size: bool = False) -> int:
    """The atom that is chosen by its product with what is left, or with x."""
    import torch

    products = atoms @ (x - code @ atoms if by == "left" else x)
    products = products.abs() if size else products
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
    first = _fitted(x, atoms, [_plain_step(x, atoms, empty)])
    got = call(
        answer, x.clone(), atoms.clone(), empty.clone(), likely="nothing is in use yet: what is left of x is all of x"
    )
    compare(
        got,
        first,
        {
            "nothing joined: an atom is in use from its first product on": empty,
            "[d], the sum: return the weights, one for each atom": first @ atoms,
        },
    )
    code = first
    on = code.nonzero()[:, 0].tolist()
    best = _plain_step(x, atoms, code)
    want = _fitted(x, atoms, [*on, best])
    got = call(
        answer,
        x.clone(),
        atoms.clone(),
        code.clone(),
        likely="atoms[on].T is [d, in use]: the first argument of torch.linalg.lstsq",
    )
    greedy = code.clone()
    greedy[best] = atoms[best] @ (x - code @ atoms)
    again = code.clone()
    again[best] = atoms[best] @ x
    compare(
        got,
        want,
        {
            "plain matching pursuit: the weights of before have to be fitted again": greedy,
            "chosen by its product with x, of which much is explained already: use what is left": _fitted(
                x, atoms, [*on, _plain_step(x, atoms, code, by="x")]
            ),
            "chosen by size: an atom that points away could only have a negative weight": _fitted(
                x, atoms, [*on, _plain_step(x, atoms, code, size=True)]
            ),
            "the new atom's product with x was taken for its weight": again,
            "no atom joined": code,
            "only the new atom is fitted: keep those in use": _fitted(x, atoms, [best]),
            "products with x for weights: atoms overlap, so fit them together": (atoms @ x) * (want != 0),
        },
    )


def _step_greedy(x: Any, atoms: Any, code: Any) -> Any:
    new, best = code.clone(), _plain_step(x, atoms, code)
    new[best] = atoms[best] @ (x - code @ atoms)
    return new


def _step_by_x(x: Any, atoms: Any, code: Any) -> Any:
    on = code.nonzero()[:, 0].tolist()
    return _fitted(x, atoms, [*on, _plain_step(x, atoms, code, by="x")])


def _step_by_size(x: Any, atoms: Any, code: Any) -> Any:
    on = code.nonzero()[:, 0].tolist()
    return _fitted(x, atoms, [*on, _plain_step(x, atoms, code, size=True)])


STEP = Exercise(
    id="15.2",
    title="one step of matching pursuit",
    stub=_STEP_STUB,
    solution=step,
    spec=_step_spec,
    hints=(
        "What is left is x - code @ atoms. The atom with the largest product with it joins.",
        "on = code != 0, with the new one; torch.linalg.lstsq(atoms[on].T, x[:, None]).solution.",
    ),
    wrong=[("no refit", _step_greedy), ("chosen by x", _step_by_x), ("chosen by size", _step_by_size)],
    moral="Atoms overlap: with each that joins, the others' shares change.",
)


# --- 15.3 a fair control -------------------------------------------------------------------------

_TWINS_STUB = '''
def twins(rows, noise):
    """Random rows that share their mean and their covariance with the given ones, and no more.

    rows: [n, d]; noise: [any, d], independent standard normal numbers -> [any, d]
    """
    raise NotImplementedError("your turn")
'''


def twins(rows: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
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
    compare(
        got.mean(0),
        mean,
        {"the mean is missing: add rows.mean(0)": torch.zeros(4), "the mean was added twice": 2 * mean},
    )
    compare(still, mean.expand(3, 4).clone())
    centred = rows - mean
    found = _covariance(got)
    if torch.allclose(found, cov * 50 / 49, rtol=1e-3, atol=1e-4):
        return  # divided by n - 1
    compare(
        found,
        cov,
        {
            "each coordinate has its own spread, but they do not vary together: use the covariance": torch.diag(
                cov.diagonal()
            ),
            "the singular values are of the sum over rows: divide them by the root of their number": cov * 50,
            "multiplied by the covariance itself: use a root of it": cov @ cov,
            "the mean was not taken off before the covariance": rows.T @ rows / 50,
            "the noise was passed on as it is": torch.eye(4),
            "the singular values do not stand with their axes: noise * size, then @ axes": torch.diag(
                torch.linalg.svdvals(centred).square() / 50
            ),
        },
    )


def _twins_coordinates(rows: Any, noise: Any) -> Any:
    return rows.mean(0) + noise * rows.std(0, correction=0)


def _twins_no_mean(rows: Any, noise: Any) -> Any:
    return twins(rows, noise) - rows.mean(0)


def _twins_long(rows: Any, noise: Any) -> Any:
    return rows.mean(0) + (twins(rows, noise) - rows.mean(0)) * len(rows) ** 0.5


def _twins_squared(rows: Any, noise: Any) -> Any:
    return rows.mean(0) + noise @ _covariance(rows)


TWINS = Exercise(
    id="15.3",
    title="a fair control",
    stub=_TWINS_STUB,
    solution=twins,
    spec=_twins_spec,
    hints=(
        "White noise times a root of the covariance has that covariance. Then add the mean.",
        "_, size, axes = svd(rows - mean, full_matrices=False); noise * (size / n ** 0.5) @ axes.",
    ),
    wrong=[
        ("one coordinate at a time", _twins_coordinates),
        ("no mean", _twins_no_mean),
        ("not divided", _twins_long),
        ("covariance, not its root", _twins_squared),
    ],
    moral="What a method finds here, it finds in a spectrum: no row shares a part with another.",
)


EXERCISES = [SCORE, STEP, TWINS]
