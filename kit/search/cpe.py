"""Causal Perturbation Elicitation: rank-1 changes of attention that change the most downstream.

Factors phi_j = (a_l, b_l), unit blocks for each layer l of a band, act as ``W_O + R b_l a_l^T``.
They maximise ``sum_j <u_j, delta_R(phi_j)>`` by soft-orthogonalised gradient iteration (SOGI: Mack,
Panickssery and Turner, 2026, arXiv:2606.29604): u becomes the direction of the change, phi the
gradient's unit blocks, and factors with a strong gradient push like ones away.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from kit.base.checks import check_counts, check_positive, is_whole
from kit.base.directions import random_units, repel, unit
from kit.base.progress import track
from kit.models.bridge import fingerprint
from kit.models.positions import Positions
from kit.search.features import Ranked, p_values
from kit.search.layer_slice import Prompts
from kit.search.radius import Radius, dose
from kit.search.rank_one_map import RankOneMap
from kit.steering.rank_one import Factor, export

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge


def linear_radius(
    model: TransformerBridge,
    prompts: Prompts,
    source_layers: Sequence[int],
    target_layer: int,
    ratio: float = 0.5,
    *,
    read: Positions = slice(-3, None),
    n_factors: int = 16,
    seed: int = 0,
) -> Radius:
    """The radius R at which the change's non-linear part is ``ratio`` times its linear part.

    The criterion of :func:`kit.search.radius.linear_radius`, on factors that one gradient step made
    for random output directions, as a fit starts with. Factors that are random themselves would not
    do: what they read is nearly orthogonal to the heads' outputs, so they stay linear for longer by
    an order of magnitude than any factor that a fit finds.

    Returns:
        A :class:`kit.search.radius.Radius` whose ``value`` is a norm of the change of each matrix.

    Raises:
        ValueError: as :func:`fit`, or no such radius up to 128.
    """
    band = RankOneMap(model, prompts, source_layers, target_layer, read=read)
    return band.linear_radius(ratio, n_factors=n_factors, seed=seed)


def fit(
    model: TransformerBridge,
    prompts: Prompts,
    source_layers: Sequence[int],
    target_layer: int,
    *,
    n_factors: int = 64,
    iterations: int = 10,
    radius: float | str | Radius = 1.0,
    temperature: float = 1.0,
    repel_steps: int = 10,
    read: Positions = slice(-3, None),
    seed: int = 0,
) -> CPE:
    """Fit factors to a band of layers on some prompts.

    Args:
        prompts, read: as for :class:`kit.search.layer_slice.LayerSlice`.
        source_layers: the band, such as ``range(8, 13)``; from layer 1 on.
        target_layer: the block after which the change is read, above the band.
        n_factors: how many; may exceed every dimension.
        iterations: a keyboard interrupt ends them early and keeps what the last whole one gave.
        radius: the norm R of the change of each matrix, 1 in the paper for models from 8 to 70
            billion parameters; ``"auto"`` for :func:`linear_radius`.
        temperature, repel_steps: of :func:`kit.base.directions.repel`; 0 steps leave factors free
            to become alike.

    Returns:
        A :class:`CPE`, its factors by falling change.

    Raises:
        ValueError: layers, prompts, numbers or a radius that make no sense, or a gradient that is
            not finite.
    """
    return fit_band(
        RankOneMap(model, prompts, source_layers, target_layer, read=read),
        n_factors=n_factors,
        iterations=iterations,
        radius=radius,
        temperature=temperature,
        repel_steps=repel_steps,
        seed=seed,
    )


def fit_band(
    band: RankOneMap,
    *,
    n_factors: int = 64,
    iterations: int = 10,
    radius: float | str | Radius = 1.0,
    temperature: float = 1.0,
    repel_steps: int = 10,
    seed: int = 0,
) -> CPE:
    """:func:`fit` on a band that was made before, or on one with a gradient of its own.

    Args:
        n_factors, iterations, radius, temperature, repel_steps, seed: as for :func:`fit`.

    Raises:
        ValueError: as :func:`fit`.
    """
    check_counts(n_factors=n_factors, iterations=iterations)
    check_counts(0, repel_steps=repel_steps)
    check_positive(temperature=temperature)
    if isinstance(radius, str) and radius != "auto":
        raise ValueError(f"radius={radius!r}: give a positive number or 'auto'")
    if not isinstance(radius, str | Radius):
        check_positive(radius=radius)
    if isinstance(radius, str):
        radius = band.linear_radius(seed=seed)
    r = float(radius)
    U = random_units(n_factors, band.d_model, seed + 1_000_003).to(band.piece.origin)
    phi = band.random(n_factors, seed)
    history: list[float] = []
    with suppress(KeyboardInterrupt):
        phi = unit(_gradient(band, phi, U, r)[1])
        for _ in track(range(iterations), "iterations", status=lambda: f"objective {history[-1]:.4g}"):
            changes, grads = _gradient(band, phi, U, r)
            score = float((changes * U).sum(-1).mean())
            strength = grads.flatten(1).norm(dim=-1)  # [m], over all blocks of a factor
            moved = repel(unit(grads), strength, repel_steps, temperature)
            phi, U = moved, unit(changes)
            history.append(score)
    if not history:
        raise KeyboardInterrupt("stopped before the first iteration was whole")
    return CPE(band, phi, band.delta(phi, r), r, history, seed)


def _gradient(band: RankOneMap, phi: Tensor, U: Tensor, r: float) -> tuple[Tensor, Tensor]:
    changes, grads = band.gradient(phi, U, r)
    if not bool(grads.isfinite().all() and changes.isfinite().all()):
        raise ValueError(
            f"radius={r}: the change or its gradient is not finite; lower the radius, or load the model in float32"
        )
    return changes, grads


@dataclass
class CPE(Ranked):
    """Factors of a band, by falling norm of what they change.

    Attributes:
        band: the :class:`kit.search.rank_one_map.RankOneMap` that they were fitted on.
        phi: their blocks, ``[m, 2 * layers, width]``.
        changes: the mean change after the target block, ``[m, d_model]``.
        radius: R; history: the objective at each iteration, the mean of ``<u_j, delta(phi_j)>``.
    """

    called: ClassVar[str] = "factor"

    band: RankOneMap = field(repr=False)
    phi: Tensor = field(repr=False)
    changes: Tensor = field(repr=False)
    radius: float
    history: list[float] = field(default_factory=list, repr=False)
    seed: int = 0

    def __post_init__(self) -> None:
        order = self.changes.norm(dim=-1).argsort(descending=True, stable=True)
        self.phi, self.changes = self.phi[order], self.changes[order]
        band, mark = self.band, fingerprint(self.band.model)
        reads, writes = band.split(self.phi)
        self.factors = [
            Factor(
                a,
                b,
                band.layers,
                self.radius,
                f"cpe {i}",
                mark,
                {
                    "method": "cpe",
                    "factor": i,
                    "target": band.target,
                    "seed": self.seed,
                    "change": float(change.norm()),
                    **dose(1.0, self.radius),
                },
            )
            for i, (a, b, change) in enumerate(zip(reads, writes, self.changes, strict=True))
        ]

    @property
    def U(self) -> Tensor:
        """Unit directions of the changes, ``[m, d_model]``."""
        return unit(self.changes)

    def logit_changes(self) -> Tensor:
        """As of :class:`kit.search.features.Ranked`."""
        return self.band.logits(self.phi, self.radius) - self.band.piece.logits(None)

    def kl(self) -> Tensor:
        """As of :class:`kit.search.features.Ranked`."""
        return self.band.kl(self.phi, self.radius)

    def controls(self, n: int = 32, seed: int = 0, *, same_reads: bool = False) -> Tensor:
        """Blocks of n random factors, or of factors that read as these do and write at random."""
        phi = self.band.random(n, seed)
        if same_reads:
            layers = len(self.band.layers)
            phi[:, :layers] = self.phi[torch.arange(n) % len(self), :layers]
        return phi

    def table(self, n_random: int = 32, seed: int = 0) -> pd.DataFrame:
        """Every factor beside random factors of the same radius.

        Returns:
            Columns ``change`` (norm after the target block), ``times_random`` (over the median
            random factor), ``times_same_reads`` (over the median factor that reads what trained
            ones read and writes at random: the sharper control), ``p`` (share of the sharper
            controls that change as much or more, counting the factor itself), ``kl``, ``kl_p``,
            and ``nearest``, the highest cosine with another factor.
        """
        size, kl = self.scores("change"), self.kl()
        plain, sharp = (self.controls(n_random, seed, same_reads=same) for same in (False, True))
        base, other = (self.band.delta(c, self.radius).norm(dim=-1) for c in (plain, sharp))
        columns = {
            "change": size,
            "times_random": size / base.median(),
            "times_same_reads": size / other.median(),
            "p": p_values(size, other),
            "kl": kl,
            "kl_p": p_values(kl, self.band.kl(sharp, self.radius)),
        }
        return self.beside(columns, unit(self.phi.flatten(1)))  # a factor's blocks as one row

    def export(
        self,
        path: str | Path,
        factors: int | Sequence[int] = 0,
        coefficients: float | Sequence[float] = 1.0,
        *,
        base: str | None = None,
    ) -> Path:
        """Chosen factors as one PEFT adapter folder: see :func:`kit.steering.rank_one.export`.

        Args:
            factors: an index, or several.
        """
        chosen = [factors] if is_whole(factors) else factors
        return export(path, self.band.model, [self.factors[i] for i in chosen], coefficients, base=base)
