"""Are latents atoms? Dictionaries of dictionaries: meta-SAEs, and the baseline they must beat.

A meta-SAE takes the decoder rows of a dictionary for its data, and says of each latent which few
meta-latents it is made of (Bussmann, Pearce, Leask, Bloom, Sharkey and Nanda 2024, "Showing SAE
latents are not atomic using meta-SAEs"; as a score in SAEBench, Karvonen et al. 2025,
arXiv:2503.09532). A smaller dictionary of the same activations, trained on nothing but them, is the
fair baseline: :func:`pursue` writes each row as a few rows of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kit.base.checks import check_counts, is_whole
from kit.base.directions import unit
from kit.base.shards import digest
from kit.models.sites import Site
from kit.sae.dictionary import Dictionary
from kit.sae.latents import Latents
from kit.sae.source import Batch, refuse_others
from kit.sae.tables import strongest
from kit.sae.training import Training


class Rows:
    """Batches ``{site: [batch, d_model]}`` of a dictionary's decoder rows at norm 1, drawn with
    replacement: a source for :class:`kit.sae.Training`.

    Attributes:
        rows: ``[latents, d_model]``; weight: ``[latents]``, how likely each is drawn.
    """

    def __init__(self, latents: Latents, *, weight: Tensor | None = None, batch: int = 1024, seed: int = 0) -> None:
        """
        Args:
            weight: ``[latents]``, from 0 on (``store.density()`` draws rows as often as they
                fire); None draws all alike.

        Raises:
            ValueError: weights of another shape, negative ones or all zero, or no batch.
        """
        n = len(latents)
        if weight is None:
            weight = torch.ones(n)
        if weight.shape != (n,) or not bool((weight >= 0).all()) or not bool(weight.any()):
            raise ValueError(f"weight has shape {list(weight.shape)}: give [{n}], from 0 on, not all zero")
        check_counts(batch=batch)
        self.rows, self.weight = unit(latents.rows), weight.float()
        self.site, self.fingerprint = Site(latents.site.layer), latents.fingerprint
        self.batch, self.seed, self.served, self.dropped = batch, seed, 0, 0
        self._rng = torch.Generator().manual_seed(seed)
        self.device = "cpu"

    def __next__(self) -> Batch:
        drawn = torch.multinomial(self.weight, self.batch, replacement=True, generator=self._rng)
        self.served += self.batch
        return {self.site: self.rows[drawn]}

    def scales(self) -> dict[Site, tuple[Tensor, float]]:
        """The mean row, and what brings rows to norm sqrt(d_model)."""
        mean = (self.weight[:, None] * self.rows).sum(0) / self.weight.sum()
        return {self.site: (mean, self.rows.shape[1] ** 0.5)}

    def state_dict(self) -> dict[str, Any]:
        """What a run that is resumed needs to go on with the next row."""
        rows = digest({"rows": self.rows, "weight": self.weight})
        return {"served": self.served, "seed": self.seed, "size": self.batch, "rows": rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another one of the same rows stood.

        Raises:
            ValueError: other rows or weights, another seed or batch size.
        """
        refuse_others(self.state_dict(), state, but=("served",))
        self._rng = torch.Generator().manual_seed(self.seed)
        for _ in range(state["served"] // self.batch):  # draws are cheap, and this is exact
            torch.multinomial(self.weight, self.batch, replacement=True, generator=self._rng)
        self.served = state["served"]


@dataclass(frozen=True, eq=False)
class Codes:
    """Rows written as few rows of another set.

    Attributes:
        code: ``[n, atoms]``, mostly zero; made: ``[n, d]``, what it adds up to.
        rows: ``[n, d]``, what it was to be, at norm 1.
        best: ``[n]``, the largest cosine of each row with a single atom.
    """

    code: Tensor
    made: Tensor
    rows: Tensor
    best: Tensor

    @property
    def r2(self) -> Tensor:
        """``[n]``: share of each row's squared length (its mean over all rows taken off) that is
        explained."""
        left = (self.rows - self.made).square().sum(-1)
        return 1 - left / (self.rows - self.rows.mean(0)).square().sum(-1).clamp(min=1e-12)

    def score(self, weight: Tensor | None = None) -> float:
        """Explained variance of all rows together, as SAEBench has it: ``1 - sum |D - made|^2 /
        sum |D - mean D|^2``, each row counted ``weight`` times."""
        w = torch.ones(len(self.rows)) if weight is None else weight
        mean = (w[:, None] * self.rows).sum(0) / w.sum()
        left = (w * (self.rows - self.made).square().sum(-1)).sum()
        return float(1 - left / (w * (self.rows - mean).square().sum(-1)).sum())


def train(
    latents: Latents,
    *,
    size: int | None = None,
    k: float = 4,
    steps: int = 1500,
    weight: Tensor | None = None,
    lr: float = 5e-4,
    batch: int = 1024,
    seed: int = 0,
) -> Dictionary:
    """A meta-SAE: a BatchTopK SAE of decoder rows, by SAEBench's recipe.

    Args:
        latents: whose rows.
        size: meta-latents (default a quarter of the latents).
        k: how many of them a row is made of, mean.
        weight: as for :class:`Rows`.

    Returns:
        A dictionary whose rows are directions of the residual stream; :func:`decompose` reads
        latents with it. A keyboard interrupt ends training early and returns what there is.

    Raises:
        ValueError: names the argument, its value, and what would be right.
    """
    size = max(1, len(latents) // 4) if size is None else size
    if not is_whole(size) or not 1 <= size <= len(latents):
        raise ValueError(f"size={size!r}: give 1 to {len(latents)} meta-latents")
    source: Any = Rows(latents, weight=weight, batch=batch, seed=seed)
    run = Training(source, widths=(size / source.rows.shape[1],), k=k, steps=steps, lr=lr, seed=seed)
    run.run()
    (found,) = run.dictionaries()
    found.name = f"meta of {latents.name}"
    found.metadata["of"] = latents.name
    return found


def decompose(meta: Dictionary, latents: Latents) -> Codes:
    """Each latent's row as a few meta-latents: those above the threshold of training, so that rows
    that were not trained on may get more than k of them.

    Raises:
        ValueError: rows of another width.
    """
    if meta.rows.shape[1] != latents.rows.shape[1]:
        raise ValueError(f"meta has rows of width {meta.rows.shape[1]}, {latents.name!r} of {latents.rows.shape[1]}")
    rows = unit(latents.rows)
    code = meta.encode(rows)
    best = (rows @ unit(meta.rows).T).max(1).values
    return Codes(code, meta.decode(code), rows, best)


def pursue(rows: Latents | Tensor, atoms: Latents | Tensor, k: int = 4, *, below: float = math.inf) -> Codes:
    """Each row as the sum of k atoms, by orthogonal matching pursuit, weights from 0 on.

    Step by step the atom with the largest product with what is left is added, and all weights are
    fitted again (Pati, Rezaiifar and Krishnaprasad 1993). Latents are never negative, so neither
    are weights: an atom whose weight would be, is left out of that row's sum.

    Args:
        rows, atoms: dictionaries, or rows ``[n, d]`` and ``[m, d]``; both are taken at norm 1. No
            offset, which a meta-SAE has: where rows have a mean to speak of, give it as an atom.
        below: each row does without the atoms whose cosine with it is not below this: its
            near-copies, which are no parts.

    Raises:
        ValueError: a k that makes no sense, rows of different widths, or one that is left fewer
            than k atoms.
    """
    x, a = (unit(r.rows if isinstance(r, Latents) else r.float()) for r in (rows, atoms))
    if x.shape[-1] != a.shape[-1]:
        raise ValueError(f"rows have width {x.shape[-1]} and atoms {a.shape[-1]}: give one width")
    if not is_whole(k) or not 1 <= k <= min(len(a), a.shape[1]):
        raise ValueError(f"k={k!r}: give 1 to {min(len(a), a.shape[1])}")
    cosine = x @ a.T
    taken = cosine >= below
    if len(x) and (fewest := int((~taken).sum(1).min())) < k:
        raise ValueError(f"below={below}: a row is left {fewest} atoms, fewer than k={k}: give a larger one")
    best = cosine.masked_fill(taken, -2.0).max(1).values
    chosen, weight, left = torch.zeros(len(x), 0, dtype=torch.long), torch.zeros(len(x), 0), x
    for _ in range(k):
        next_one = (left @ a.T).masked_fill(taken, -2.0).argmax(1, keepdim=True)
        chosen, taken = torch.cat([chosen, next_one], 1), taken.scatter(1, next_one, True)
        some = a[chosen]  # [n, so far, d]
        weight = torch.linalg.lstsq(some.mT, x[..., None]).solution[..., 0].clamp(min=0)
        left = x - (weight[:, None] @ some)[:, 0]
    code = torch.zeros(len(x), len(a)).scatter(1, chosen, weight)
    return Codes(code, x - left, x, best)


class MetaLatents(Latents):
    """Meta-latents read on text: a meta-latent is as active as the latents that contain it, each
    times its share in them. With it the store, the browser and the panel take them."""

    def __init__(self, meta: Dictionary, latents: Latents) -> None:
        self.meta, self.latents, self.rows = meta, latents, meta.rows
        self.codes = decompose(meta, latents)
        self.code = self.codes.code
        self.name, self.site = meta.name, latents.site
        self.fingerprint = latents.fingerprint
        self._length = latents.rows.norm(dim=-1)

    def encode(self, x: Tensor) -> Tensor:
        return (self.latents.encode(x) * self._length.to(x.device)) @ self.code.to(x.device)

    def before(self, x: Tensor) -> Tensor:
        return (self.latents.before(x) * self._length.to(x.device)) @ self.code.to(x.device)

    def members(self, meta_latent: int, n: int = 8) -> list[tuple[int, float]]:
        """The latents that contain a meta-latent most, and how much of it.

        Raises:
            ValueError: no such meta-latent.
        """
        self.check_latent(meta_latent)
        return _largest(self.code[:, meta_latent], n)

    def parts(self, latent: int) -> list[tuple[int, float]]:
        """The meta-latents that a latent is made of, largest first.

        Raises:
            ValueError: no such latent.
        """
        self.latents.check_latent(latent)
        return _largest(self.code[latent], len(self))


def _largest(share: Tensor, n: int) -> list[tuple[int, float]]:
    order = strongest(share, n)
    return list(zip(order.tolist(), share[order].tolist(), strict=True))
