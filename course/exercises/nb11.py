"""Exercises of notebook 11: maximal cosines, co-firing, ranks, latents that split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from course.exercises import Exercise
from course.exercises.specs import Wrong, call, compare, describe

if TYPE_CHECKING:
    import torch


# --- 11.1 maximal cosines --------------------------------------------------------------------

_NEAREST_STUB = '''
def maximal_cosines(a, b):
    """For each row of a, the largest cosine with any row of b.

    a: [n, d], b: [m, d], rows of any length but zero -> [n]
    """
    raise NotImplementedError("your turn")
'''


def maximal_cosines(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    a = a / a.norm(dim=-1, keepdim=True)
    b = b / b.norm(dim=-1, keepdim=True)
    return (a @ b.T).max(dim=1).values


def _nearest_spec(answer: Any) -> None:
    import torch

    rng = torch.Generator().manual_seed(111)
    a = torch.randn(4, 6, generator=rng) * torch.tensor([0.3, 1.0, 2.0, 4.0])[:, None]
    b = torch.randn(7, 6, generator=rng) * torch.linspace(0.2, 3, 7)[:, None]
    b[2] = -2 * a[1]  # the same line, the other way
    want = torch.zeros(4)
    for i in range(4):  # the definition, one pair at a time
        want[i] = max(float(a[i] @ y / (a[i].norm() * y.norm())) for y in b)
    got = call(answer, a.clone(), b.clone(), likely="a @ b.T is [n, m]: a maximum over dim=1")
    x, y = (rows / rows.norm(dim=-1, keepdim=True) for rows in (a, b))
    compare(
        got,
        want,
        {
            "a row that points the other way was counted as a match: keep the sign": (x @ y.T).abs().max(1).values,
            "from b to a: each row of a asks, and has one answer": (x @ y.T).max(0).values,
            "products, not cosines: bring the rows of both to length 1 first": (a @ b.T).max(1).values,
            "only one side has length 1": (x @ b.T).max(1).values,
            "only the other side has length 1": (a @ y.T).max(1).values,
            "a mean over b: take the largest": (x @ y.T).mean(1),
            "one number for all: that is MMCS; here each row has its own": want.mean(),
        },
    )


def _nearest_absolute(a: Any, b: Any) -> Any:
    a, b = (rows / rows.norm(dim=-1, keepdim=True) for rows in (a, b))
    return (a @ b.T).abs().max(dim=1).values


def _nearest_turned(a: Any, b: Any) -> Any:
    a, b = (rows / rows.norm(dim=-1, keepdim=True) for rows in (a, b))
    return (a @ b.T).max(dim=0).values


def _nearest_products(a: Any, b: Any) -> Any:
    return (a @ b.T).max(dim=1).values


NEAREST = Exercise(
    id="11.1",
    title="maximal cosines",
    stub=_NEAREST_STUB,
    solution=maximal_cosines,
    spec=_nearest_spec,
    hints=(
        "Rows to length 1, both sides, then one product [n, m].",
        "(a @ b.T).max(dim=1).values, without abs: a latent that points the other way is another.",
    ),
    wrong=[
        ("unsigned", _nearest_absolute),
        ("the other direction", _nearest_turned),
        ("not normalised", _nearest_products),
    ],
    moral="Their mean is MMCS. It is not symmetric, and it is never 0.",
)


# --- 11.2 do they fire together? ---------------------------------------------------------------

_TOGETHER_STUB = '''
def together(a, b):
    """Jaccard index of two latents: tokens on which both fire, over tokens on which either does.

    a, b: [tokens], activations, never negative -> a tensor without dimensions (0 if none fires)
    """
    raise NotImplementedError("your turn")
'''


def together(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    both, either = ((a > 0) & (b > 0)).sum(), ((a > 0) | (b > 0)).sum()
    return both / either.clamp(min=1)


def _together_spec(answer: Any) -> None:
    import torch

    rng = torch.Generator().manual_seed(112)
    a = torch.rand(60, generator=rng) * (torch.rand(60, generator=rng) < 0.25)
    b = torch.rand(60, generator=rng) * (torch.rand(60, generator=rng) < 0.35)
    b[a > 0.5] = 2.0
    both = either = 0
    for x, y in zip(a.tolist(), b.tolist(), strict=True):  # the definition, one token at a time
        both += x > 0 and y > 0
        either += x > 0 or y > 0
    got = call(answer, a.clone(), b.clone(), likely="(a > 0) & (b > 0) says where both fire")
    on, off = a > 0, b > 0
    compare(
        got,
        torch.tensor(both / either),
        {
            "tokens on which neither fires count as agreement: nearly all tokens are such": (on == off).float().mean(),
            "over the first latent's tokens only: divide by either": both / on.sum(),
            "over the second latent's tokens only: divide by either": both / off.sum(),
            "over all tokens: divide by those on which either fires": torch.tensor(both / len(a)),
            "activations were multiplied: here it counts whether they fire": (a * b).sum() / either,
            "the two counts were added: tokens on which both fire are in twice": both / (on.sum() + off.sum()),
        },
    )
    nothing = torch.zeros(60)
    empty = call(answer, nothing, nothing.clone())
    if float(empty) != 0:
        raise Wrong(
            arrived=describe(empty),
            expected="0 where neither ever fires",
            likely="0 / 0: keep the denominator at 1 or more, with clamp(min=1)",
        )


def _together_agree(a: Any, b: Any) -> Any:
    return ((a > 0) == (b > 0)).float().mean()


def _together_first(a: Any, b: Any) -> Any:
    return ((a > 0) & (b > 0)).sum() / (a > 0).sum()


def _together_empty(a: Any, b: Any) -> Any:
    return ((a > 0) & (b > 0)).sum() / ((a > 0) | (b > 0)).sum()


TOGETHER = Exercise(
    id="11.2",
    title="do they fire together?",
    stub=_TOGETHER_STUB,
    solution=together,
    spec=_together_spec,
    hints=(
        "Two counts: ((a > 0) & (b > 0)).sum() and the same with |.",
        "both / either.clamp(min=1): the clamp is for latents that never fire.",
    ),
    wrong=[("silence counts", _together_agree), ("one latent's tokens", _together_first), ("0 / 0", _together_empty)],
    moral="Two latents that fire on one token in a hundred agree on 98 per cent of tokens by chance.",
)


# --- 11.4 Spearman's rank correlation -----------------------------------------------------------

_SPEARMAN_STUB = '''
def spearman(x, y):
    """Correlation of the ranks of x with the ranks of y. No two values are equal.

    x, y: [n] -> a tensor without dimensions, from -1 to 1
    """
    raise NotImplementedError("your turn")
'''


def spearman(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x, y = (values.argsort().argsort().float() for values in (x, y))
    x, y = x - x.mean(), y - y.mean()
    return (x * y).sum() / (x.norm() * y.norm())


def _spearman_spec(answer: Any) -> None:
    import torch

    def correlation(x: Any, y: Any) -> Any:
        x, y = x - x.mean(), y - y.mean()
        return (x * y).sum() / (x.norm() * y.norm())

    rng = torch.Generator().manual_seed(113)
    for n in (9, 14):
        x = torch.randn(n, generator=rng)
        y = (2 * x + torch.randn(n, generator=rng)).exp()
        ranks = [torch.tensor([float((v < one).sum()) for one in v]) for v in (x, y)]
        apart = (ranks[0] - ranks[1]).square().sum()
        want = 1 - 6 * apart / (n * (n * n - 1))  # Spearman's own formula
        got = call(answer, x.clone(), y.clone(), likely="ranks are whole numbers: .float() first")
        once = [v.argsort().float() for v in (x, y)]
        compare(
            got,
            want,
            {
                "that is Pearson's: it takes values, not ranks": correlation(x, y),
                "argsort is not the rank: it says who comes first, not where one stands; "
                "take argsort().argsort()": correlation(*once),
                "the ranks were not centred": (ranks[0] * ranks[1]).sum() / (ranks[0].norm() * ranks[1].norm()),
                "only x became ranks": correlation(ranks[0], y),
                "only y became ranks": correlation(x, ranks[1]),
                "one of the two is ranked from the largest down": -want,
            },
        )


def _spearman_pearson(x: Any, y: Any) -> Any:
    x, y = x - x.mean(), y - y.mean()
    return (x * y).sum() / (x.norm() * y.norm())


def _spearman_once(x: Any, y: Any) -> Any:
    return _spearman_pearson(x.argsort().float(), y.argsort().float())


def _spearman_not_centred(x: Any, y: Any) -> Any:
    x, y = (values.argsort().argsort().float() for values in (x, y))
    return (x * y).sum() / (x.norm() * y.norm())


SPEARMAN = Exercise(
    id="11.4",
    title="Spearman's rank correlation",
    stub=_SPEARMAN_STUB,
    solution=spearman,
    spec=_spearman_spec,
    hints=(
        "The rank of a value is how many are smaller: argsort, and argsort of that.",
        "Then Pearson's correlation: centre both, (x * y).sum() / (x.norm() * y.norm()).",
    ),
    wrong=[("Pearson's", _spearman_pearson), ("argsort once", _spearman_once), ("not centred", _spearman_not_centred)],
    moral="Densities and losses span factors of a thousand: ranks keep a few giants from ruling.",
)


# --- 11.3 which latents split? ------------------------------------------------------------------

_SPLIT_STUB = '''
def families(nearest, cosine, n, above):
    """How many latents of a large dictionary each latent of a small one has as its children.

    nearest: [m], for each latent of the large one, which of the n small ones is nearest;
    cosine: [m], how near; a child is nearer than above -> [n], counts as floating-point numbers
    """
    raise NotImplementedError("your turn")
'''


def families(nearest: torch.Tensor, cosine: torch.Tensor, n: int, above: float) -> torch.Tensor:
    return nearest[cosine > above].bincount(minlength=n).float()


def _families_spec(answer: Any) -> None:
    import torch

    rng = torch.Generator().manual_seed(114)
    nearest = torch.randint(0, 5, (20,), generator=rng)
    cosine = torch.rand(20, generator=rng)
    cosine[3] = -0.9
    n, above = 7, 0.6  # nobody is nearest to latents 5 and 6
    want = [0.0] * n
    for parent, near in zip(nearest.tolist(), cosine.tolist(), strict=True):
        want[parent] += near > above
    got = call(
        answer,
        nearest.clone(),
        cosine.clone(),
        n,
        above,
        likely="nearest[cosine > above] are the parents; count each, with bincount",
    )
    near = nearest[cosine > above]
    compare(
        got,
        torch.tensor(want),
        {
            "latents without children are missing: give bincount a minlength": near.bincount().float(),
            "the threshold is not used": nearest.bincount(minlength=n).float(),
            "the sign was dropped: a row that points the other way is no child": nearest[cosine.abs() > above]
            .bincount(minlength=n)
            .float(),
            "those below the threshold were counted": nearest[cosine <= above].bincount(minlength=n).float(),
            "whether there is a child, not how many": (torch.tensor(want) > 0).float(),
        },
    )


def _families_short(nearest: Any, cosine: Any, n: int, above: float) -> Any:
    return nearest[cosine > above].bincount().float()


def _families_all(nearest: Any, cosine: Any, n: int, above: float) -> Any:
    return nearest.bincount(minlength=n).float()


def _families_unsigned(nearest: Any, cosine: Any, n: int, above: float) -> Any:
    return nearest[cosine.abs() > above].bincount(minlength=n).float()


FAMILIES = Exercise(
    id="11.3",
    title="which latents split?",
    stub=_SPLIT_STUB,
    solution=families,
    spec=_families_spec,
    hints=(
        "First choose: nearest[cosine > above] holds a parent for each child.",
        "bincount(minlength=n) counts them; then .float().",
    ),
    wrong=[
        ("without minlength", _families_short),
        ("without the threshold", _families_all),
        ("unsigned", _families_unsigned),
    ],
    moral="Two children may be two meanings, or one meaning and its echo: look at what they fire on.",
)


EXERCISES = [NEAREST, TOGETHER, FAMILIES, SPEARMAN]
