"""What a search without labels found: features, how they rank, and vectors for the panel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kit.base.directions import duplicates, random_units
from kit.search.layer_slice import LayerSlice
from kit.search.maps import Map
from kit.search.radius import Radius

if TYPE_CHECKING:
    import pandas as pd

    from kit.steering.vectors import SteeringVector


@dataclass
class Features:
    """Directions that change much downstream, strongest first (by ``scores("alpha")``).

    Attributes:
        piece: the map on which they were found.
        method: ``"melbo"``, or the method of :func:`kit.search.dct.fit`.
        V: input directions, unit rows ``[m, d_model]``.
        U: output directions, unit rows ``[m, d_model]``.
        alpha: ``[m]``, the fitted strengths in activation units; for MELBO the objective.
        changes: what each vector really changes at the radius, ``delta(radius * v)``, ``[m, d]``.
        radius: the :class:`kit.search.radius.Radius` at which they act.
        history: the objective of each iteration, as the published code records it: the mean over
            factors of ``<u, delta(R v)>`` with the v that it starts from (orthogonalised) and the
            u that it inherits; for ``"quadratic"`` of ``R^2 / 2 T2(u, v, v)`` with its own u.
        seed: of the fit.
    """

    piece: Map = field(repr=False)
    method: str
    V: Tensor = field(repr=False)
    U: Tensor = field(repr=False)
    alpha: Tensor = field(repr=False)
    changes: Tensor = field(repr=False)
    radius: Radius
    history: list[float] = field(default_factory=list, repr=False)
    seed: int = 0

    def __post_init__(self) -> None:
        order = self.scores("alpha").argsort(descending=True)
        for name in ("V", "U", "alpha", "changes"):
            setattr(self, name, getattr(self, name)[order])

    def __len__(self) -> int:
        return len(self.V)

    def duplicates(self, above: float = 0.9) -> list[tuple[int, int, float]]:
        """Pairs of features whose input directions have a cosine above this."""
        return duplicates(self.V, above)

    def scores(self, by: str | Tensor = "alpha") -> Tensor:
        """A score for each feature, ``[m]``.

        Args:
            by: ``"alpha"``, the fitted strength squared (reported as good but noisy);
                ``"change"``, the norm of what it changes at the target layer; ``"kl"``, nats that
                it moves the next token's distribution on the training prompts; a tensor
                ``[d_model]``, the change's product with it; a tensor ``[d_vocab]``, the logit
                change's product with it (a one for each wanted token, minus one for the others).

        Raises:
            ValueError: another name or shape, or a score that needs a model without one.
        """
        if isinstance(by, Tensor):
            if by.shape == (self.V.shape[1],):
                return self.changes @ by.to(self.changes)
            moved = self._slice().logits(self.thetas) - self._slice().logits(None)
            if by.shape != moved.shape[-1:]:
                raise ValueError(f"by has shape {list(by.shape)}: give [{self.V.shape[1]}] or {list(moved.shape[-1:])}")
            return (moved @ by.to(moved)).mean(-1)
        if by == "alpha":
            return self.alpha if self.method == "melbo" else self.alpha.square()
        if by == "change":
            return self.changes.norm(dim=-1)
        if by == "kl":
            return self._slice().kl(self.thetas)
        raise ValueError(f"by={by!r}: use 'alpha', 'change', 'kl' or a target tensor")

    def ranking(self, by: str | Tensor = "alpha") -> list[int]:
        """Feature indices, highest of :meth:`scores` first."""
        return self.scores(by).argsort(descending=True).tolist()

    @property
    def thetas(self) -> Tensor:
        """The vectors at their radius, ``[m, d_model]``."""
        return self.radius.value * self.V

    def table(self, n_random: int = 64, seed: int = 0) -> pd.DataFrame:
        """Every feature beside random directions of the same norm.

        Returns:
            Columns ``alpha``, ``change`` (norm at the target layer), ``times_random`` (over the
            median random direction), ``p`` (share of random directions that change as much or
            more, counting the feature itself), and for a model ``kl`` and ``kl_p``, the same for
            the output; ``nearest``, the highest cosine with another feature.
        """
        import pandas as pd

        control = self.radius.value * random_units(n_random, self.V.shape[1], seed).to(self.V)
        size, base = self.changes.norm(dim=-1), self.piece.delta(control).norm(dim=-1)
        cosines = self.V @ self.V.T - 2 * torch.eye(len(self)).to(self.V)
        columns = {"alpha": self.alpha, "change": size, "times_random": size / base.median(), "p": p_values(size, base)}
        if isinstance(self.piece, LayerSlice):
            kl = self.piece.kl(self.thetas)
            columns |= {"kl": kl, "kl_p": p_values(kl, self.piece.kl(control))}
        columns["nearest"] = cosines.max(-1).values
        table = pd.DataFrame({name: c.cpu().numpy() for name, c in columns.items()})
        table.index.name = "feature"
        return table

    def vectors(self, features: int | Sequence[int] | None = None) -> list[SteeringVector]:
        """Steering vectors for panel and generation, in the order asked for.

        Args:
            features: the first so many, or indices (from :meth:`ranking`, say); default all.

        Returns:
            Unit-norm vectors at the source layer. ``metadata["coefficient"]`` is the radius in
            units of :func:`kit.residual_scale`: what to steer with.
        """
        piece, every = self._slice(), range(len(self))
        chosen = every if features is None else features
        if isinstance(chosen, int):
            chosen = every[:chosen] if chosen > 0 else ()
        if not len(chosen) or any(i not in every for i in chosen):
            raise ValueError(f"features={features!r}: give how many, or indices from 0 to {len(self) - 1}")
        return [
            vector(
                piece,
                self.V[i],
                self.radius,
                f"{self._kind} {i}",
                self._label,
                feature=int(i),
                alpha=float(self.alpha[i]),
                seed=self.seed,
                change=float(self.changes[i].norm()),
            )
            for i in chosen
        ]

    @property
    def _kind(self) -> str:
        return "melbo" if self.method == "melbo" else "dct"

    @property
    def _label(self) -> str:
        return "melbo" if self.method == "melbo" else f"dct-{self.method}"

    def _slice(self) -> LayerSlice:
        if isinstance(self.piece, LayerSlice):
            return self.piece
        raise ValueError(
            f"piece is a {type(self.piece).__name__}: only the factors of a LayerSlice have a model to steer"
        )


@dataclass
class DCT(Features):
    """Factors of a map: ``delta(theta) ~ sum_l alpha_l sigma(<v_l, theta / radius>) u_l``."""

    def predict(self, thetas: Tensor) -> Tensor:
        """What the factors say that thetas ``[k, d]`` change: ``[k, d]``."""
        inner = (thetas / self.radius.value) @ self.V.T
        if self.method == "quadratic":
            inner = inner.square()
        elif self.method == "exponential":
            inner = inner.expm1()
        return (inner * self.alpha) @ self.U


def p_values(found: Tensor, control: Tensor) -> Tensor:
    """Share of controls ``[n]`` that reach each figure found ``[m]``, counting itself: ``[m]``."""
    above = (control[None] >= found[:, None]).sum(-1)
    return (above + 1) / (len(control) + 1)


def vector(
    piece: LayerSlice, direction: Tensor, radius: Radius, name: str, method: str, **about: object
) -> SteeringVector:
    """A direction found on a slice as a steering vector at the slice's source layer."""
    from kit.models.bridge import fingerprint
    from kit.steering.vectors import SteeringVector

    c = radius.coefficient
    ratio = None if math.isnan(radius.ratio) else radius.ratio  # None: given, not calibrated
    metadata = {
        "source": piece.source,
        "target": piece.target,
        "radius": radius.value,
        "coefficient": c,
        "calibration": {"low": -c, "high": c, "kind": "radius", "ratio": ratio},
        **about,
    }
    return SteeringVector(
        direction, piece.source, name, method, fingerprint=fingerprint(piece.model), metadata=metadata
    )


def strengths(method: str, V: Tensor, U: Tensor, along: Tensor) -> Tensor:
    """alpha ``[m]`` that fits factors together: least squares on their derivative tensors.

    Args:
        along: ``[m]``, for each factor the map's own part along it at unit input.
    """
    inner = V @ V.T
    if method == "exponential":
        inner = inner.expm1()
    elif method == "quadratic":
        inner = inner.square()
    system = (U @ U.T) * inner
    return torch.linalg.lstsq(system.double().cpu(), along.double().cpu()[:, None], driver="gelsd").solution[:, 0].to(V)
