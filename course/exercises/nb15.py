"""Exercises of notebook 15: a meta-SAE's forward pass, a step of pursuit, a fair control."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from course.exercises import Exercise
from course.exercises.specs import Wrong, call, compare, describe

if TYPE_CHECKING:
    import torch


# --- 15.1 a meta-SAE's forward pass --------------------------------------------------------------


def write(rows: torch.Tensor, sae: Any, k: float) -> torch.Tensor:
    """Write rows as few meta-latents: encode, keep the largest of the batch, decode.

    A code is relu((rows - b_dec) @ W_enc + b_enc). It counts by what it writes: itself times the
    length of its decoder row. The int(k * n) that count most in all n rows stay, the rest become
    0; what stays is decoded with W_dec, and b_dec is added again.

    rows: [n, d]; sae: a dict of W_enc [d, m], b_enc [m], W_dec [m, d], b_dec [d] -> [n, d]
    """
    code = ((rows - sae["b_dec"]) @ sae["W_enc"] + sae["b_enc"]).relu()
    counts = code * sae["W_dec"].norm(dim=-1)
    least = counts.flatten().topk(int(k * len(rows))).values[-1]
    return (code * (counts >= least)) @ sae["W_dec"] + sae["b_dec"]


def _write_spec(answer: Any) -> None:
    import torch

    rng = torch.Generator().manual_seed(152)
    length = torch.tensor([0.2, 1.0, 2.5, 0.6, 1.7, 3.0, 0.4, 1.2])
    for k in (2, 1.5):
        sae = {
            "W_enc": torch.randn(5, 8, generator=rng),
            "b_enc": 0.5 * torch.randn(8, generator=rng),
            "W_dec": length[:, None] * torch.nn.functional.normalize(torch.randn(8, 5, generator=rng), dim=-1),
            "b_dec": torch.randn(5, generator=rng),
        }
        rows = torch.randn(6, 5, generator=rng)
        rows[0] *= 2  # a row that has much to say
        code = {}
        for n, row in enumerate(rows):  # the definition, number by number
            for i in range(8):
                read = float((row - sae["b_dec"]) @ sae["W_enc"][:, i] + sae["b_enc"][i])
                code[n, i] = max(read, 0.0)
        ranked = sorted(code, key=lambda at: -code[at] * float(length[at[1]]))
        want = sae["b_dec"].repeat(6, 1)
        for n, i in ranked[: int(k * 6)]:
            want[n] += code[n, i] * sae["W_dec"][i]
        WRITE.expect(answer, rows, sae, k, want=want)


WRITE = Exercise.of(
    write,
    id="15.1",
    title="a meta-SAE's forward pass",
    spec=_write_spec,
    hints=(
        "Three lines: the codes, [n, m]; how much each counts, [n, m]; and the smallest that stays.",
        "topk of one long row of all counts gives the smallest that stays, its last value. A comparison with it "
        "is 0 or 1 for each code.",
    ),
    on_error="codes are [n, m]: flatten them for topk, and take int(k * n) of them",
    wrong={
        "k for each row: here the rows of a batch share k * n codes": (
            "counts.flatten().topk(int(k * len(rows))).values[-1]",
            "counts.topk(int(k), dim=1).values[:, -1:]",
        ),
        "k for the whole batch: it is k * n, k for a row on average": ("int(k * len(rows))", "int(k)"),
        "chosen by the codes alone: one with a long decoder row counts more": (' * sae["W_dec"].norm(dim=-1)', ""),
        "the counts were decoded: they choose, the codes are what is decoded": ("(code * (", "(counts * ("),
        "the ones that count least stayed": (">= least", "< least"),
        "all codes were decoded: the choice is missing": ("(code * (counts >= least))", "code"),
        "b_dec was not taken off before the rows were read": ('(rows - sae["b_dec"])', "rows"),
        "b_dec is missing in what is made": (' + sae["b_dec"]', ""),
        "b_enc is missing": (' + sae["b_enc"]', ""),
        "the relu is missing: a code is never negative": (".relu()", ".abs()"),
        "a mask was decoded: keep the codes themselves": ("code * (counts >= least)", "(counts >= least).float()"),
        "those are the codes, [n, m]: decode them": "code * (counts >= least)",
    },
    moral="With a loss and a step around it, this is the method.",
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
        "code != 0 says which are in use. Least squares: which weights w make w @ atoms[on] nearest to x? "
        "torch.linalg.lstsq(A, b) finds w with A @ w near b: what are A and b, and their shapes?",
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
        "If centred = u @ diag(size) @ axes, then the covariance is axes.T @ diag(size ** 2 / n) @ axes: which "
        "[d, d] matrix, times its own transpose, gives that?",
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

EXERCISES = [WRITE, STEP, TWINS]
