"""A latent as an intervention: added, clamped or ablated on the panel, in units of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kit.base.checks import check_positive
from kit.base.directions import random_units
from kit.sae.latents import Latents
from kit.steering.dose import Dose
from kit.steering.intervention import Op, Part
from kit.steering.vectors import SteeringVector

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False)
class Latent:
    """One latent of a dictionary of the residual stream, for :func:`kit.steer` and the panel.

    Coefficient c means c times ``top``, an activation of the latent (its largest on a corpus, say):

    * ``op="add"`` adds ``c * top * row``: what the latent adds when it fires so strongly;
    * ``op="clamp"`` sets it: what it adds now gives way to ``c * top * row``;
    * ``op="ablate"`` takes the share c of what it adds now.

    Attributes:
        index: which latent; top: the activation that coefficient 1 stands for.
        keep_error: clamping and ablating change the latent's part of the stream and leave what the
            dictionary does not explain; with False its reconstruction replaces the stream, and
            the error is lost too (what steering through a dictionary often does unsaid).
        row: ``[d_model]``, written instead of the latent's own row: the control of :meth:`random`.
        name, fingerprint, metadata: as of a :class:`kit.SteeringVector`.

    A clamped latent need not read as its target afterwards: the encoder is no inverse of the row.

    Raises:
        ValueError: a latent that is not there, a ``top`` that is no positive number, or a
            dictionary of MLP outputs (the stream, where the panel acts, does not show them; take
            :meth:`Dictionary.vector`, which can be added).
    """

    dictionary: Latents = field(repr=False)
    index: int
    top: float = 1.0
    keep_error: bool = True
    row: Tensor | None = field(default=None, repr=False)
    name: str = ""
    fingerprint: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        vector = self.dictionary.vector(self.index)
        if self.dictionary.site.kind != "resid":
            raise ValueError(
                f"dictionary {self.dictionary.name!r} reads {self.dictionary.site}: clamping needs the "
                "residual stream; use dictionary.vector(index), which can be added"
            )
        check_positive(top=self.top)
        told = {
            "method": "sae latent",
            "dictionary": self.dictionary.name,
            "latent": self.index,
            "activation": self.top,
            **Dose(1.0, -1.0, 1.0, "largest activation").metadata(),
        }
        object.__setattr__(self, "name", self.name or vector.name)
        object.__setattr__(self, "fingerprint", self.dictionary.fingerprint)
        object.__setattr__(self, "metadata", {**told, **self.metadata})

    def random(self, seed: int = 0) -> Latent:
        """The control: it reads what this latent reads, and writes a random row of equal length."""
        own = self.dictionary.rows[self.index]
        row = random_units(1, len(own), seed)[0] * own.norm()
        return replace(self, row=row, name=f"random {seed}", metadata={"control of": self.name, "seed": seed})

    @property
    def writes(self) -> Tensor:
        """What is added at activation 1, ``[d_model]``."""
        return self.dictionary.rows[self.index] if self.row is None else self.row

    def parts(self, model: TransformerBridge) -> Sequence[Part]:
        """See :class:`kit.steering.intervention.Intervention`.

        Raises:
            ValueError: as :meth:`kit.sae.Latents.check`, or latents that two models share.
        """
        self.dictionary.check(model)
        if len(self.dictionary.readers(model)) > 1:
            raise ValueError(
                f"dictionary {self.dictionary.name!r} reads two models, and one runs "
                "here: use dictionary.vector(index), which can be added"
            )
        row = self.writes
        size = float(row.norm())
        return [_LatentPart(self.dictionary.site.layer, "resid", row / size, self.top * size, None, self)]


@dataclass(frozen=True, eq=False)
class _LatentPart(Part):
    latent: Latent | None = None

    def change(self, activation: Tensor, coefficient: Tensor, op: Op, given: Tensor | None = None) -> Tensor:
        if op == "add" or self.latent is None:
            return super().change(activation, coefficient, op, given)
        dictionary, i = self.latent.dictionary, self.latent.index
        values = dictionary.encode(activation)
        old, c = values[..., i, None], coefficient.to(values)
        new = c * self.latent.top if op == "clamp" else (1 - c) * old
        writes = self.latent.writes.to(values)
        if self.latent.keep_error:
            return (new - old) * writes
        rest = torch.cat([values[..., :i], 0 * old, values[..., i + 1 :]], dim=-1)
        found = dictionary.decode(rest) + new * writes  # type: ignore[attr-defined]
        return found - activation.float()


def combine(latents: Mapping[Latent, float], name: str = "combined") -> SteeringVector:
    """The sum of latents' rows as one steering vector, each at so many times its ``top``.

    Args:
        latents: weights by latent, all of one dictionary.

    Returns:
        A vector whose coefficient 1 is, in units of the residual scale as always, one scale;
        ``metadata`` holds ``size`` (length of the weighted sum in activation units), ``parts``
        (length of each piece) and ``cosines`` (between the pieces, in order): pieces that point
        against one another cancel.

    Raises:
        ValueError: no latent, or latents of different dictionaries.
    """
    if not latents:
        raise ValueError("latents is empty: give at least one")
    first = next(iter(latents))
    if any(latent.dictionary is not first.dictionary for latent in latents):
        raise ValueError("latents belong to different dictionaries: add their vectors instead")
    pieces = torch.stack([w * k.top * k.dictionary.rows[k.index] for k, w in latents.items()])
    total, size = pieces.sum(0), pieces.norm(dim=-1)
    cosines = (pieces @ pieces.T) / (size[:, None] * size).clamp(min=1e-12)
    told = {
        "size": float(total.norm()),
        "parts": size.tolist(),
        "cosines": cosines.tolist(),
        "latents": {k.name: w for k, w in latents.items()},
    }
    return SteeringVector(
        total, first.dictionary.site.layer, name, "sae latents", fingerprint=first.fingerprint, metadata=told
    )
