"""Exercises of notebook 11: matches, co-firing, latents that split, what one costs, ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from course.exercises import Exercise
from course.exercises.specs import Wrong, as_tensor, call, compare, describe

if TYPE_CHECKING:
    import torch


# --- 11.1 matches ----------------------------------------------------------------------------


def matches(a: torch.Tensor, b: torch.Tensor) -> Any:
    """For each row of a, the largest cosine with any row of b, and which row of b has it.

    a: [n, d], b: [m, d], rows of any length but zero -> the two, as a tuple: [n] and [n]
    """
    a = a / a.norm(dim=-1, keepdim=True)
    b = b / b.norm(dim=-1, keepdim=True)
    best = (a @ b.T).max(dim=1)
    return best.values, best.indices


def _matches_spec(answer: Any) -> None:
    import torch

    rng = torch.Generator().manual_seed(111)
    a = torch.randn(4, 6, generator=rng) * torch.tensor([0.3, 1.0, 2.0, 4.0])[:, None]
    b = torch.randn(7, 6, generator=rng) * torch.linspace(0.2, 3, 7)[:, None]
    b[2] = -2 * a[1]  # the same line, the other way
    want, whose = torch.zeros(4), torch.zeros(4)
    for i in range(4):  # the definition, one pair at a time
        each = [float(a[i] @ y / (a[i].norm() * y.norm())) for y in b]
        want[i], whose[i] = max(each), each.index(max(each))
    got = call(answer, a.clone(), b.clone(), likely="a @ b.T is [n, m]: a maximum over dim=1")
    if not isinstance(got, tuple | list) or len(got) != 2:
        likely = "return both: .max(dim=1) has .values and .indices"
        raise Wrong(arrived=describe(got), expected="cosines and places, as a tuple", likely=likely)
    cosine, nearest = (as_tensor(part) for part in got)
    compare(cosine, want, ((cause, found[0]) for cause, found in MATCHES.known(a, b)))
    if not hasattr(nearest, "shape") or nearest.is_floating_point():
        raise Wrong(arrived=describe(nearest), expected="whole numbers [n]", likely="places are .indices, not .values")
    compare(nearest.float(), whose, ((cause, found[1].float()) for cause, found in MATCHES.known(a, b)))


MATCHES = Exercise.of(
    matches,
    id="11.1",
    title="matches",
    spec=_matches_spec,
    hints=(
        "A cosine is a product of rows of length 1. With both sides so, one matrix product has them all, [n, m].",
        "Each row of a asks once: over which dimension is the maximum? It gives values and places. Keep the "
        "sign: a latent that points the other way is another.",
    ),
    wrong={
        "a row that points the other way was counted as a match: keep the sign": ("(a @ b.T)", "(a @ b.T).abs()"),
        "from b to a: each row of a asks, and has one answer": ("dim=1", "dim=0"),
        "only one side has length 1": ("b / b.norm(dim=-1, keepdim=True)", "b"),
        "only the other side has length 1": ("a / a.norm(dim=-1, keepdim=True)", "a"),
        "products, not cosines: bring the rows of both to length 1 first": lambda a, b: (
            (a @ b.T).max(dim=1).values,
            (a @ b.T).max(dim=1).indices,
        ),
        "a mean over b: take the largest": "(a @ b.T).mean(dim=1), best.indices",
        "return both: .max(dim=1) has .values and .indices": "best.values",
        "places are .indices, not .values": "best.values, best.values",
    },
    moral="The mean of the cosines is MMCS. It is not symmetric, and it is never 0.",
)


# --- 11.2 do they fire together? ---------------------------------------------------------------


def together(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Jaccard index of two latents: tokens on which both fire, over tokens on which either does.

    a, b: [tokens], activations, never negative -> a tensor without dimensions (0 if none fires)
    """
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
    TOGETHER.expect(answer, a, b, want=both / either)
    nothing = torch.zeros(60)
    empty = call(answer, nothing, nothing.clone())
    if float(empty) != 0:
        raise Wrong(
            arrived=describe(empty),
            expected="0 where neither ever fires",
            likely="0 / 0: keep the denominator at 1 or more, with clamp(min=1)",
        )


TOGETHER = Exercise.of(
    together,
    id="11.2",
    title="do they fire together?",
    spec=_together_spec,
    hints=(
        "Two counts: ((a > 0) & (b > 0)).sum() and the same with |.",
        "A pair that never fires is 0 over 0. Let the denominator be 1 at least.",
    ),
    on_error="(a > 0) & (b > 0) says where both fire",
    wrong={
        "tokens on which neither fires count as agreement: nearly all tokens are such": (
            "((a > 0) == (b > 0)).float().mean()"
        ),
        "over the first latent's tokens only: divide by either": "both / (a > 0).sum()",
        "over the second latent's tokens only: divide by either": "both / (b > 0).sum()",
        "over all tokens: divide by those on which either fires": "both / len(a)",
        "activations were multiplied: here it counts whether they fire": "(a * b).sum() / either",
        "the two counts were added: tokens on which both fire are in twice": "both / ((a > 0).sum() + (b > 0).sum())",
        "0 / 0: keep the denominator at 1 or more": "both / either",
    },
    moral="Two latents that fire on one token in a hundred agree on 98 per cent of tokens by chance.",
)


# --- 11.3 which latents split? ------------------------------------------------------------------


def families(nearest: torch.Tensor, cosine: torch.Tensor, n: int, above: float) -> torch.Tensor:
    """How many latents of a large dictionary each latent of a small one has as its children.

    nearest: [m], for each latent of the large one, which of the n small ones is nearest;
    cosine: [m], how near; a child is nearer than above -> [n], counts as floating-point numbers
    """
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
    FAMILIES.expect(answer, nearest, cosine, n, above, want=want)


FAMILIES = Exercise.of(
    families,
    id="11.3",
    title="which latents split?",
    spec=_families_spec,
    hints=(
        "A mask on nearest keeps the parents of those that are children at all.",
        "Then count how often each of 0 to n - 1 is there, also those that are not there: bincount has a minlength.",
    ),
    on_error="nearest[cosine > above] are the parents; count each, with bincount",
    wrong={
        "latents without children are missing: give bincount a minlength": ("minlength=n", ""),
        "the threshold is not used": ("[cosine > above]", ""),
        "the sign was dropped: a row that points the other way is no child": ("cosine", "cosine.abs()"),
        "those below the threshold were counted": (">", "<="),
        "whether there is a child, not how many": "(nearest[cosine > above].bincount(minlength=n) > 0).float()",
    },
    moral="Two children may be two meanings, or one meaning and its echo: look at what they fire on.",
)

# --- 11.4 what a latent costs --------------------------------------------------------------------


def cost(values: torch.Tensor, gradient: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """What the model's answers change by without a latent: half the square of (gradient times what
    the latent writes, summed over a text's positions), summed over the texts.

    values: [texts, pos, latents], activations; gradient: [texts, pos, d]; rows: [latents, d];
    a latent writes activation * row -> [latents]
    """
    along = (values * (gradient @ rows.T)).sum(dim=1)
    return along.square().sum(dim=0) / 2


def _cost_spec(answer: Any) -> None:
    import torch

    rng = torch.Generator().manual_seed(115)
    values = torch.randn(3, 4, 5, generator=rng).relu()
    gradient, rows = torch.randn(3, 4, 6, generator=rng), torch.randn(5, 6, generator=rng)
    want = torch.zeros(5)
    for latent in range(5):  # the definition, one number at a time
        for text in range(3):
            along = 0.0
            for pos in range(4):
                along += float(gradient[text, pos] @ (values[text, pos, latent] * rows[latent]))
            want[latent] += along**2 / 2
    COST.expect(answer, values, gradient, rows, want=want)


COST = Exercise.of(
    cost,
    id="11.4",
    title="what a latent costs",
    spec=_cost_spec,
    hints=(
        "gradient times activation times row, summed over d: gradient @ rows.T does d for all latents at once.",
        "Two sums are left. What a latent writes at two places of a text acts together, so that sum comes "
        "before the square; texts know nothing of each other.",
    ),
    on_error="gradient @ rows.T is [texts, pos, latents], as values are",
    wrong={
        "squared at each position: what a latent writes in one text acts together, so sum first, then square": (
            "(values * (gradient @ rows.T)).square().sum(dim=(0, 1)) / 2"
        ),
        "the texts were summed before the square: they know nothing of each other": (
            "(values * (gradient @ rows.T)).sum(dim=(0, 1)).square() / 2"
        ),
        "the half is missing": ("/ 2", ""),
        "not squared: losses of this sign and that cancel": "along.sum(dim=0) / 2",
        "a mean over the texts: sum": ("along.square().sum(dim=0)", "along.square().mean(dim=0)"),
        "the activations are missing": ("values * ", ""),
    },
    moral="One backward pass serves all latents: the gradient does not know which of them goes.",
)


# --- 11.5 Spearman's rank correlation -----------------------------------------------------------


def spearman(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Correlation of the ranks of x with the ranks of y. No two values are equal.

    x, y: [n] -> a tensor without dimensions, from -1 to 1
    """
    x, y = (values.argsort().argsort().float() for values in (x, y))
    x, y = x - x.mean(), y - y.mean()
    return (x * y).sum() / (x.norm() * y.norm())


def _spearman_spec(answer: Any) -> None:
    import torch

    rng = torch.Generator().manual_seed(113)
    for n in (9, 14):
        x = torch.randn(n, generator=rng)
        y = (2 * x + torch.randn(n, generator=rng)).exp()
        ranks = [torch.tensor([float((v < one).sum()) for one in v]) for v in (x, y)]
        apart = (ranks[0] - ranks[1]).square().sum()
        want = 1 - 6 * apart / (n * (n * n - 1))  # Spearman's own formula
        SPEARMAN.expect(answer, x, y, want=want)


SPEARMAN = Exercise.of(
    spearman,
    id="11.5",
    title="Spearman's rank correlation",
    spec=_spearman_spec,
    hints=(
        "The rank of a value is how many are smaller: argsort, and argsort of that.",
        "Then Pearson's correlation of the two ranks: centre both, and divide their product by their lengths.",
    ),
    on_error="ranks are whole numbers: .float() first",
    wrong={
        "that is Pearson's: it takes values, not ranks": ("values.argsort().argsort().float()", "values"),
        "argsort is not the rank: it says who comes first, not where one stands; take argsort().argsort()": (
            ".argsort().argsort()",
            ".argsort()",
        ),
        "the ranks were not centred": ("x - x.mean(), y - y.mean()", "x, y"),
        "only x became ranks": (
            "x, y = (values.argsort().argsort().float() for values in (x, y))",
            "x = x.argsort().argsort().float()",
        ),
        "only y became ranks": (
            "x, y = (values.argsort().argsort().float() for values in (x, y))",
            "y = y.argsort().argsort().float()",
        ),
        "one of the two is ranked from the largest down": "-(x * y).sum() / (x.norm() * y.norm())",
    },
    moral="Densities and losses span factors of a thousand: ranks keep a few giants from ruling.",
)


EXERCISES = [MATCHES, TOGETHER, FAMILIES, COST, SPEARMAN]
