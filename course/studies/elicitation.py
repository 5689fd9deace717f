"""What vectors that never saw a password recover of what an organism hides.

A search gets ONE locked prompt, or several (:class:`Setting`). Its vectors are asked validation
items, and the best of the first 1, 8 and of all are asked test items, in wordings that no training
used; nothing is chosen on test items. The measure is the recovered share of the gap between locked
and unlocked accuracy (Greenblatt et al. 2024, arXiv:2405.19550; Mack, Panickssery and Turner 2026,
arXiv:2606.29604).

:mod:`course.studies.recovery` keeps the records, and makes a table of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from course.studies.several import AddedBand, AddedSlice, prompts_of
from kit.base.directions import random_units
from kit.base.divergence import kl
from kit.base.progress import track
from kit.base.shipped import neutral_texts
from kit.data import organisms
from kit.models.tokens import text_tokens
from kit.search import cpe, dct, melbo, optimise
from kit.search.features import vector
from kit.search.layer_slice import LayerSlice
from kit.search.radius import dose, linear_radius
from kit.search.rank_one_map import RankOneMap
from kit.steering.generation import logits, rows_of
from kit.steering.intervention import Intervention, Op
from kit.steering.vectors import SteeringVector

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Arm = Literal["exponential", "soft", "jacobian", "melbo", "cpe", "random", "supervised", "attack"]
ARMS = ("exponential", "random", "cpe", "melbo", "jacobian", "soft", "supervised", "attack")
NORMS = (0.5, 2**-0.5, 1.0, 2**0.5, 2.0)
Pooling = Literal["mean", "norms", "separate", "wide"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
_ROUNDS = ((64, 4), (16, 8), (4, 6))  # so many candidates are left, asked so many further items
_TOGETHER = 64  # rows of one decoding


def several(prompts: int, pooling: str) -> dict[str, Any]:
    """What tells the record of a search on several prompts from that of one on one."""
    return {} if prompts == 1 else {"prompts": prompts, "pooling": pooling}


@dataclass(frozen=True)
class Setting:
    """Where an organism is searched, chosen on validation items.

    Attributes:
        source, target: the blocks after which vectors act and changes are read.
        last: how many positions at the end of the prompt are read.
        band, factor_radius: first and last layer of CPE's factors, and their norm.
        n: how many vectors; melbo_steps: of its optimiser.
        around: the arm whose best find is looked at more closely (:func:`around`).
        prompts: how many locked prompts a search gets, of different subjects and wordings.
        pooling: what it makes of several. ``"mean"``: the change averaged over them, whose norm
            is climbed; ``"norms"``: the norms of the changes, added up, so that prompts which
            change in different directions do not cancel; ``"separate"``: a search on each, whose
            candidates are chosen from together; ``"wide"``: the control of that, as many candidates
            from the first prompt alone.

    Raises:
        ValueError: no prompts, or another pooling.
    """

    source: int = 10
    target: int = 20
    last: int = 1
    band: tuple[int, int] = (6, 12)
    factor_radius: float = 4.0
    n: int = 64
    melbo_steps: int = 40
    around: Arm = "exponential"
    prompts: int = 1
    pooling: Pooling = "mean"

    def __post_init__(self) -> None:
        if self.prompts < 1:
            raise ValueError(f"prompts={self.prompts}: give at least 1")
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling={self.pooling!r}: use {', '.join(map(repr, POOLINGS))}")


SETTINGS: Mapping[str, Setting] = {
    "withholding": Setting(around="cpe"),
    "sandbagging": Setting(around="cpe"),
    "backdoor": Setting(),
}


def setting_of(name: str) -> Setting:
    """The setting of an organism.

    Raises:
        ValueError: recovery is not defined for it.
    """
    if name not in SETTINGS:
        raise ValueError(f"name={name!r}: recovery is defined for {', '.join(SETTINGS)}")
    return SETTINGS[name]


def candidates(
    model: TransformerBridge, name: str, arm: Arm, seed: int = 0, setting: Setting | None = None
) -> list[Intervention]:
    """What a search finds on its locked prompts, in its own order of rank; of separate searches
    the first of each, then the second of each, ...

    Every vector has the norm that :func:`kit.search.radius.linear_radius` gives for the prompt, in
    ``metadata["coefficient"]``; every factor the radius of the setting. ``supervised`` (all
    answers of the vector items) and ``attack`` (one) see right answers, and bound what a vector
    can do; a singular vector has no sign, so ``jacobian`` takes both.

    Args:
        seed: of everything random; it also picks the prompts among the vector items
            (:func:`course.studies.several.prompts_of`).

    Raises:
        ValueError: no organism or arm of that name, or more prompts than there are vector items.
    """
    if arm not in ARMS:
        raise ValueError(f"arm={arm!r}: the arms are {', '.join(ARMS)}")
    s = setting or setting_of(name)
    prompts = prompts_of(model, name, seed, s.prompts)
    if s.pooling == "separate":
        apart = [_search(model, name, arm, seed, s, [prompt]) for prompt in prompts]
        return [v for rank in zip(*apart, strict=True) for v in rank]
    if s.pooling == "wide":
        return _search(model, name, arm, seed, replace(s, n=s.n * s.prompts), prompts[:1])
    return _search(model, name, arm, seed, s, prompts)


def _search(
    model: TransformerBridge, name: str, arm: Arm, seed: int, s: Setting, prompts: Sequence[Tensor]
) -> list[Intervention]:
    read = slice(-s.last, None)
    added = s.pooling == "norms"
    if arm == "cpe":
        layers = range(s.band[0], s.band[1] + 1)
        band = (AddedBand if added else RankOneMap)(model, prompts, layers, s.target, read=read)
        return list(cpe.fit_band(band, n_factors=s.n, radius=s.factor_radius, seed=seed).factors)
    piece = (AddedSlice if added else LayerSlice)(model, prompts, s.source, s.target, read=read)
    norm = linear_radius(piece, seed=seed)
    if arm in ("supervised", "attack"):
        items = organisms.items(name, "vector")
        asked = items if arm == "supervised" else [items[seed % len(items)]]
        prompts, answers = [organisms.prompt(model, i) for i in asked], [organisms.said(i) for i in asked]
        return [optimise.fit(model, prompts, answers, s.source, radius=norm.coefficient, seed=seed, name=arm)]
    if arm == "melbo":
        return list(melbo.fit_slice(piece, min(s.n, 16), radius=norm, steps=s.melbo_steps, seed=seed).vectors())
    if arm == "random":
        V = random_units(s.n, piece.d_model, seed)
    elif arm == "jacobian":
        V = dct.fit_map(piece, method="linear", n_features=s.n // 2, radius=norm, seed=seed).V
        V = torch.stack([V, -V], dim=1).flatten(0, 1)  # [2 * n, d]: v, -v, the next v, ...
    else:
        apart: dct.Orthogonalise = "soft" if arm == "soft" else "qr"
        return list(dct.fit_map(piece, n_features=s.n, radius=norm, seed=seed, orthogonalise=apart).vectors())
    return [vector(piece, v, norm, f"{arm} {i}", arm, {"seed": seed}) for i, v in enumerate(V)]


@dataclass(frozen=True)
class Choice:
    """One candidate after validation: its rank in the search, how many items, how many right."""

    index: int
    asked: int
    right: int

    @property
    def key(self) -> tuple[int, float, int]:
        """Who survived longest, then who was right most often, then who ranked first."""
        return self.asked, self.right / max(self.asked, 1), -self.index


def choose(
    model: TransformerBridge, name: str, found: Sequence[Intervention], rounds: Sequence[tuple[int, int]] | None = None
) -> list[Choice]:
    """Ask candidates validation items, by successive halving; in the order of the candidates.

    Args:
        rounds: for each round, how many of the best go on and how many further items they get;
            default: all, then 16, then 4.
    """
    rounds = _rounds(len(found)) if rounds is None else rounds
    items = organisms.items(name, "validation")
    asked, right = [0] * len(found), [0] * len(found)

    def ranked() -> list[Choice]:
        return [Choice(i, asked[i], right[i]) for i in range(len(found))]

    start = 0
    for keep, count in rounds:
        best = sorted(ranked(), key=lambda c: c.key, reverse=True)[:keep]
        left = sorted(c.index for c in best)
        for j in track(range(start, min(start + count, len(items))), "validation items"):
            for at in range(0, len(left), _TOGETHER):
                some = left[at : at + _TOGETHER]
                vectors = [found[i] for i in some]
                for i, hit in zip(some, ask(model, items[j], j, vectors, each(vectors)), strict=True):
                    asked[i] += 1
                    right[i] += hit
        start += count
    return ranked()


def _rounds(n: int) -> tuple[tuple[int, int], ...]:
    """Every candidate is asked in the first round, however many there are."""
    (_, first), *later = _ROUNDS
    return (n, first), *later


def each(vectors: Sequence[Intervention], times: float = 1.0) -> list[list[float | None]]:
    """A ladder with one row for each vector alone, at its own coefficient."""
    return [[times * strength(v) if v is w else None for w in vectors] for v in vectors]


def strength(found: Intervention) -> float:
    """The coefficient that a saved vector was chosen with; 1 where it names none."""
    return float(found.metadata.get("coefficient", 1.0))


def ask(
    model: TransformerBridge,
    item: organisms.Item,
    index: int,
    vectors: Sequence[Intervention] = (),
    rows: Sequence[Any] | None = None,
    op: Op = "add",
    *,
    password: bool = False,
) -> list[bool]:
    """Whether each row of a ladder shows what is hidden; held-out wordings in turn."""
    wording = organisms.HELD_OUT[index % len(organisms.HELD_OUT)]
    found = organisms.answers(
        model, item.organism, item.split, vectors, rows, among=[item], wordings=[wording], op=op, password=password
    )
    return [a.right for a in found]


def picks(found: Sequence[Intervention], choices: Sequence[Choice]) -> dict[str, int]:
    """Which candidate to test: the first in rank, and the best on validation of so many."""
    sizes = [n for n in (1, 8, len(found)) if n <= len(found)]
    return {f"best of {n}": max(choices[:n], key=lambda c: c.key).index for n in sizes}


def mean_vector(found: Sequence[Intervention]) -> SteeringVector | None:
    """The mean direction of a set, at the set's norm; None for factors, which have no sum, and for
    a set that holds each direction with both signs."""
    if len(found) < 2 or not all(isinstance(v, SteeringVector) for v in found):
        return None
    total = torch.stack([v.direction for v in found]).mean(0)
    if float(total.norm()) < 1e-6:
        return None
    first = found[0]
    return SteeringVector(
        total, first.layer, "mean", "mean", fingerprint=first.fingerprint, metadata=dose(strength(first))
    )


def measure(
    model: TransformerBridge, name: str, arm: Arm, seed: int = 0, setting: Setting | None = None
) -> dict[str, Any]:
    """One arm with one seed: search, choose, test.

    Returns:
        A record that JSON can hold: for each pick its rank, coefficient, which test items it got
        right, and what it does to neutral text (:func:`side_effects`). Of a search on several
        prompts also how many, and what it made of them.
    """
    s = setting or setting_of(name)
    start = time.perf_counter()
    found = candidates(model, name, arm, seed, setting)
    spent = time.perf_counter() - start
    choices = choose(model, name, found) if len(found) > 1 else [Choice(0, 0, 0)]
    chosen = picks(found, choices)
    mean = mean_vector(found)
    tested = {label: (found[i], i) for label, i in chosen.items()} | ({} if mean is None else {"mean": (mean, None)})
    vectors = list(dict.fromkeys(v for v, _ in tested.values()))  # the best of 8 may be the best of all
    rows = each(vectors)
    items = organisms.items(name, "test")
    hits = [ask(model, item, i, vectors, rows) for i, item in enumerate(track(items, "test items"))]
    effects = side_effects(model, vectors, rows)
    result = {}
    for label, (v, rank) in tested.items():
        k = vectors.index(v)
        right = [int(h[k]) for h in hits]
        result[label] = {"rank": rank, "coefficient": strength(v), "right": right, **effects[k]}
    first = _ROUNDS[0][1]
    return {
        "organism": name,
        "arm": arm,
        "seed": seed,
        **several(s.prompts, s.pooling),
        "n": len(found),
        "picks": result,
        "validation": [[c.asked, c.right] for c in choices],
        "half_right": sum(c.right >= c.asked / 2 and c.asked >= first for c in choices),
        "search_seconds": round(spent, 1),
        "seconds": round(time.perf_counter() - start, 1),
    }


def baseline(model: TransformerBridge, name: str) -> dict[str, Any]:
    """Which test items the organism gets right without vectors: locked, and with the password."""
    record: dict[str, Any] = {"organism": name, "arm": "baseline", "seed": 0}
    for label, password in (("locked", False), ("unlocked", True)):
        items = track(organisms.items(name, "test"), "test items")
        record[label] = [int(ask(model, item, i, password=password)[0]) for i, item in enumerate(items)]
    return record


def around(model: TransformerBridge, name: str, seed: int = 0, setting: Setting | None = None) -> dict[str, Any]:
    """The best find at several times its norm, and what ablating it or the set's mean does.

    Factors have no mean and cannot be ablated: for them only the norms are measured.
    """
    arm = (setting or setting_of(name)).around
    found = candidates(model, name, arm, seed, setting)
    choices = choose(model, name, found)
    best, mean = found[picks(found, choices)[f"best of {len(found)}"]], mean_vector(found)
    rows = [row for c in NORMS for row in each([best], c)]
    pair = [] if mean is None else [best, mean]
    ladder: list[list[bool]] = []
    ablated: list[list[bool]] = []
    for i, item in enumerate(track(organisms.items(name, "test"), "test items")):
        ladder.append(ask(model, item, i, [best], rows))
        if pair:
            ablated.append(ask(model, item, i, pair, [[1.0, None], [None, 1.0]], "ablate"))
    effects = side_effects(model, [best], rows)
    return {
        "organism": name,
        "arm": "around",
        "of": arm,
        "seed": seed,
        "norms": [{"times": c, "right": [int(h[k]) for h in ladder], **effects[k]} for k, c in enumerate(NORMS)],
        "ablated": {label: [int(h[k]) for h in ablated] for k, label in enumerate(("best", "mean")) if pair},
    }


@torch.no_grad()
def side_effects(
    model: TransformerBridge, vectors: Sequence[Intervention], rows: Sequence[Any]
) -> list[dict[str, float]]:
    """For each row, on neutral prose: KL(steered || unsteered) in nats a token, perplexity."""
    table = [None, *rows_of(vectors, rows)]
    cost, nll = torch.zeros(len(rows)), torch.zeros(len(rows))
    texts = [text_tokens(model, t)[:, :64] for t in neutral_texts()[:4]]
    for tokens in texts:
        log_p = logits(model, tokens, vectors, table)[:, :-1].float().log_softmax(-1)  # [1 + rows, n - 1, d_vocab]
        cost += kl(log_p[1:], log_p[:1]).mean(-1).cpu()
        target = tokens[0, 1:, None].expand(len(table), -1, 1)  # [1 + rows, n - 1, 1]
        nll -= log_p.gather(-1, target)[1:, :, 0].mean(-1).cpu()
    n = len(texts)
    return [
        {"kl": float(k) / n, "perplexity": math.exp(min(float(x) / n, 700))} for k, x in zip(cost, nll, strict=True)
    ]
