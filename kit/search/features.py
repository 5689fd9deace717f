"""What a search without labels found: features, how they rank, and vectors for the panel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from kit.base.checks import is_whole
from kit.base.directions import duplicates, random_units
from kit.models.bridge import fingerprint
from kit.search.layer_slice import Differential, LayerSlice, slice_behind
from kit.search.maps import Map
from kit.search.radius import Radius, dose
from kit.steering.vectors import SteeringVector

if TYPE_CHECKING:
    import pandas as pd


class Ranked(ABC):
    """What a search found, each with a change downstream: scores, an order, a table.

    Attributes:
        changes: what each really changes at its radius, ``[m, d_model]``.
        called: what one of them is called; named: the scores that have a name, the default first.
    """

    changes: Tensor
    called: ClassVar[str] = "feature"
    named: ClassVar[tuple[str, ...]] = ("change", "kl")

    def __len__(self) -> int:
        return len(self.changes)

    @abstractmethod
    def logit_changes(self) -> Tensor:
        """What each changes at the output, after each training prompt:
        ``[m, prompts, d_vocab]``."""

    @abstractmethod
    def kl(self) -> Tensor:
        """Nats that each moves the next token's distribution on the training prompts, ``[m]``."""

    def scores(self, by: str | Tensor | None = None) -> Tensor:
        """A score for each, ``[m]``.

        Args:
            by: ``"alpha"``, the fitted strength squared (of features, and their default; reported
                as good but noisy); ``"change"``, the norm of what it changes at the target layer
                (the default of factors); ``"kl"``, nats that it moves the next token's
                distribution on the training prompts; a tensor ``[d_model]``, the change's product
                with it; a tensor ``[d_vocab]``, the logit change's product with it (a one for each
                wanted token, minus one for the others).

        Raises:
            ValueError: another name or shape, or a score that needs a model without one.
        """
        if isinstance(by, Tensor):
            if by.shape == self.changes.shape[1:]:
                return self.changes @ by.to(self.changes)
            moved = self.logit_changes()
            if by.shape != moved.shape[-1:]:
                width = self.changes.shape[1]
                raise ValueError(f"by has shape {list(by.shape)}: give [{width}] or {list(moved.shape[-1:])}")
            return (moved @ by.to(moved)).mean(-1)  # [m, prompts] to [m]
        by = self.named[0] if by is None else by
        if by not in self.named:
            raise ValueError(f"by={by!r}: use {', '.join(map(repr, self.named))} or a target tensor")
        return self.kl() if by == "kl" else self.changes.norm(dim=-1)

    def ranking(self, by: str | Tensor | None = None) -> list[int]:
        """Indices, highest of :meth:`scores` first."""
        return self.scores(by).argsort(descending=True, stable=True).tolist()

    def beside(self, columns: Mapping[str, Tensor], directions: Tensor) -> pd.DataFrame:
        """A table of columns ``[m]``, and ``nearest``: the highest cosine of a unit row of
        ``directions [m, n]`` with another one."""
        import pandas as pd

        cosines = directions @ directions.T - 2 * torch.eye(len(self)).to(directions)
        columns = {**columns, "nearest": cosines.max(-1).values}
        table = pd.DataFrame({name: c.cpu().numpy() for name, c in columns.items()})
        table.index.name = self.called
        return table


@dataclass
class Features(Ranked):
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
            features of ``<u, delta(R v)>`` with the v that it starts from (orthogonalised) and the
            u that it inherits; for ``"quadratic"`` of ``R^2 / 2 T2(u, v, v)`` with its own u.
        seed: of the fit.
    """

    named: ClassVar[tuple[str, ...]] = ("alpha", "change", "kl")

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
        order = self.ranking("alpha")
        self.V, self.U = self.V[order], self.U[order]
        self.alpha, self.changes = self.alpha[order], self.changes[order]

    def duplicates(self, above: float = 0.9) -> list[tuple[int, int, float]]:
        """Pairs of features whose input directions have a cosine above this."""
        return duplicates(self.V, above)

    def scores(self, by: str | Tensor | None = None) -> Tensor:
        """As of :class:`Ranked`, with ``"alpha"``."""
        if by is None or isinstance(by, str) and by == "alpha":
            return self.alpha if self.method == "melbo" else self.alpha.square()
        return super().scores(by)

    def logit_changes(self) -> Tensor:
        """As of :class:`Ranked`."""
        piece = slice_behind(self.piece)
        return piece.logits(self.thetas) - piece.logits(None)

    def kl(self) -> Tensor:
        """As of :class:`Ranked`."""
        return slice_behind(self.piece).kl(self.thetas)

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
        control = self.radius.value * random_units(n_random, self.V.shape[1], seed).to(self.V)
        size, base = self.scores("change"), self.piece.delta(control).norm(dim=-1)
        columns = {"alpha": self.alpha, "change": size, "times_random": size / base.median(), "p": p_values(size, base)}
        if isinstance(self.piece, LayerSlice | Differential):
            kl = self.kl()
            columns |= {"kl": kl, "kl_p": p_values(kl, slice_behind(self.piece).kl(control))}
        return self.beside(columns, self.V)

    def vectors(self, features: int | Sequence[int] | None = None) -> list[SteeringVector]:
        """Steering vectors for panel and generation, in the order asked for.

        Args:
            features: the first so many, or indices (from :meth:`ranking`, say); default all.

        Returns:
            Unit-norm vectors at the source layer. ``metadata["coefficient"]`` is the radius in
            units of :func:`kit.residual_scale`: what to steer with.

        Raises:
            ValueError: no such features, or a map that was not made of a model.
        """
        piece, every = slice_behind(self.piece), range(len(self))
        chosen = every if features is None else features
        if is_whole(chosen):
            chosen = every[:chosen] if chosen > 0 else ()
        if not len(chosen) or any(i not in every for i in chosen):
            raise ValueError(f"features={features!r}: give how many, or indices from 0 to {len(self) - 1}")
        kind, label = ("melbo", "melbo") if self.method == "melbo" else ("dct", f"dct-{self.method}")
        return [
            vector(
                piece,
                self.V[i],
                self.radius,
                f"{kind} {i}",
                label,
                {
                    "feature": int(i),
                    "alpha": float(self.alpha[i]),
                    "seed": self.seed,
                    "change": float(self.changes[i].norm()),
                },
            )
            for i in chosen
        ]


@dataclass
class DCT(Features):
    """Features of a map: ``delta(theta) ~ sum_l alpha_l sigma(<v_l, theta / radius>) u_l``."""

    def predict(self, thetas: Tensor) -> Tensor:
        """What the features say that thetas ``[k, d]`` change: ``[k, d]``."""
        inner = (thetas / self.radius.value) @ self.V.T  # [k, m]
        if self.method == "quadratic":
            inner = inner.square()
        elif self.method == "exponential":
            inner = inner.expm1()
        return (inner * self.alpha) @ self.U


def p_values(found: Tensor, control: Tensor) -> Tensor:
    """Share of controls ``[n]`` that reach each figure found ``[m]``, counting itself: ``[m]``."""
    above = (control[None] >= found[:, None]).sum(-1)  # [m, n] to [m]
    return (above + 1) / (len(control) + 1)


def vector(
    piece: LayerSlice,
    direction: Tensor,
    radius: Radius,
    name: str,
    method: str,
    about: Mapping[str, object] | None = None,
) -> SteeringVector:
    """A direction found on a slice as a steering vector at the slice's source layer.

    Args:
        about: what else its metadata say.
    """
    metadata = {"source": piece.source, "target": piece.target, **dose(radius.coefficient, radius), **(about or {})}
    return SteeringVector(
        direction, piece.source, name, method, fingerprint=fingerprint(piece.model), metadata=metadata
    )


def strengths(method: str, V: Tensor, U: Tensor, along: Tensor) -> Tensor:
    """alpha ``[m]`` that fits features together: least squares on their derivative tensors.

    Args:
        along: ``[m]``, for each feature the map's own part along it at unit input.
    """
    inner = V @ V.T
    if method == "exponential":
        inner = inner.expm1()
    elif method == "quadratic":
        inner = inner.square()
    system = (U @ U.T) * inner  # [m, m]
    return torch.linalg.lstsq(system.double().cpu(), along.double().cpu()[:, None], driver="gelsd").solution[:, 0].to(V)
