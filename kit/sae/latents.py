"""Latents of any kind: numbers that are read from an activation, each with a direction to write.

What a feature store, a browser, a prompt view and a panel ask of latents is :class:`Latents`. An
SAE and a transcoder (:class:`kit.sae.Dictionary`) have them, and so have an MLP
(:class:`Neurons`: hidden units) and a set of vectors (:class:`Directions`: probes, contrast
vectors, what MELBO and DCT find).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kit.base import shards
from kit.base.checks import is_whole
from kit.base.directions import unit
from kit.models.activations import capture, side_by_side
from kit.models.bridge import fingerprint, matrix
from kit.models.sites import Site
from kit.models.tokens import one_text, packed
from kit.steering.vectors import SteeringVector

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class Latents(ABC):
    """The protocol. A subclass sets four attributes and writes two methods.

    Attributes:
        name: what they are called on panels and pages.
        site: where they read. What they write goes into the residual stream after ``site.layer``.
        fingerprint: of the model that they belong to; None where a file does not say.
        rows: what each latent writes at activation 1, ``[latents, d_model]``, float32.
    """

    name: str
    site: Site
    fingerprint: str | None
    rows: Tensor

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Latents ``[..., latents]``, float32 and never negative, of activations ``[..., width]``.

        They come back on the device that the activations are on, wherever the latents are kept.
        """

    @abstractmethod
    def before(self, x: Tensor) -> Tensor:
        """Pre-activations ``[n, latents]`` of activations ``[n, width]``, differentiable: also
        latents that do not fire have a gradient here."""

    def __len__(self) -> int:
        """How many latents there are."""
        return len(self.rows)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self)} latents, {self.site})"

    def weights(self) -> dict[str, Any]:
        """All that they read and write with: numbers, tensors and other latents that they keep."""
        kept = {name: x for name, x in vars(self).items() if isinstance(x, Tensor | float | int | Latents)}
        return {n: x.weights() if isinstance(x, Latents) else x for n, x in kept.items()} | {"rows": self.rows}

    @property
    def digest(self) -> str:
        """Sixteen hex digits of :meth:`weights` and the site, by which a file knows whose it is."""
        return shards.digest({**self.weights(), "site": self.site})

    def readers(self, model: TransformerBridge) -> Sequence[TransformerBridge]:
        """The models whose activations, side by side, :meth:`encode` takes: the one given, but for
        latents that two models share."""
        return [model]

    def activations(self, model: TransformerBridge, tokens: Tensor) -> Tensor:
        """What :meth:`encode` takes, ``[rows, pos, width]``, on tokens ``[rows, n]``."""
        return side_by_side(self.readers(model), tokens, self.site.place)

    def read(self, model: TransformerBridge, text: str | Tensor) -> Tensor:
        """Latents ``[n, latents]`` on every token of a text, or of tokens ``[n]``, ``[1, n]``.

        Raises:
            ValueError: another model than theirs.
        """
        self.check(model)
        tokens = one_text(model, text)[None]
        return self.encode(self.activations(model, tokens)[0])

    def vector(self, latent: int, scale: float = 1.0, name: str | None = None) -> SteeringVector:
        """What a latent writes, as a steering vector in the residual stream after its layer.

        What an MLP puts out is the last thing that its block adds, so that its latents' directions
        are added there too.

        Args:
            scale: how strongly the latent fires when the panel's slider should suggest it (its
                largest activation, say): kept as ``metadata["activation"]``.

        Raises:
            ValueError: no such latent, or one whose row is zero.
        """
        self.check_latent(latent)
        row = self.rows[latent]
        told = {"dictionary": self.name, "latent": latent, "row_norm": float(row.norm()), "activation": scale}
        return SteeringVector(
            row,
            self.site.layer,
            name or f"{self.name} #{latent}",
            "sae latent",
            fingerprint=self.fingerprint,
            metadata=told,
        )

    def check_latent(self, *latents: int) -> None:
        """Raise a ValueError that gives the range unless each is one of them."""
        for latent in latents:
            if not is_whole(latent) or not 0 <= latent < len(self):
                raise ValueError(f"latent={latent!r}: {self.name!r} has 0 to {len(self) - 1}")

    def check(self, model: TransformerBridge) -> None:
        """Refuse a model that these latents do not fit.

        Raises:
            ValueError: names what does not fit: layer, width or fingerprint.
        """
        width, mark = self.rows.shape[1], fingerprint(model)  # refuses what is no bridge
        self.site.module(model)
        if width != model.cfg.d_model:
            raise ValueError(
                f"{self.name!r} writes {width} dimensions at layer {self.site.layer}; "
                f"this model has {model.cfg.d_model}"
            )
        if self.fingerprint not in (None, mark):
            raise ValueError(
                f"{self.name!r} belongs to model {self.fingerprint}, this one is {mark}: "
                "its latents would read another space"
            )


class Neurons(Latents):
    """The hidden units of a layer's MLP: what its output projection gets, row by row of it."""

    def __init__(self, model: TransformerBridge, layer: int, threshold: float = 0.0) -> None:
        """
        Args:
            threshold: a unit fires above it. Units of gated MLPs are rarely zero, and a store keeps
                every firing: raise it until a few in a hundred fire.

        Raises:
            ValueError: no such layer, an MLP without an output projection, a negative threshold.
        """
        if not threshold >= 0:
            raise ValueError(f"threshold={threshold!r}: give a number from 0 on")
        self.name, self.site, self.threshold = f"neurons {layer}", Site(layer, "neurons"), threshold
        self.fingerprint = fingerprint(model)
        self.rows = matrix(self.site.module(model)).float().cpu()

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        x = x.float()
        return torch.where(x > self.threshold, x, 0.0)

    def before(self, x: Tensor) -> Tensor:
        return x.float()


class Directions(Latents):
    """Steering vectors of one layer, read as probes: how far a token lies along each, above a
    threshold."""

    def __init__(
        self,
        vectors: Sequence[SteeringVector],
        model: TransformerBridge,
        texts: Sequence[str] | Tensor,
        density: float = 0.01,
    ) -> None:
        """Measure a corpus once: projections are counted from its mean, and each direction's
        threshold is set so that the given share of tokens fires it.

        Args:
            vectors: all of one layer.
            texts: or tokens ``[rows, context]``, as :func:`kit.sae.pack` makes them.

        Raises:
            ValueError: no vectors, vectors of several layers, a density outside of 0 to 1.
        """
        layers = sorted({v.layer for v in vectors})
        if len(layers) != 1:
            raise ValueError(f"vectors are of layers {layers}: give some, all of one layer")
        if not 0 < density < 1:
            raise ValueError(f"density={density!r}: give a share between 0 and 1")
        self.site, self.name = Site(layers[0]), f"directions {layers[0]}"
        self.names, self.fingerprint = [v.name for v in vectors], fingerprint(model)
        self.rows = unit(torch.stack([v.direction.float() for v in vectors]))
        self.check(model)
        tokens = packed(model, texts)
        parts = [
            capture(model, part, [self.site.place])[self.site.place][:, 1:].flatten(0, 1).float().cpu()
            for part in tokens.split(16)
        ]
        middle = torch.cat(parts).median(0).values  # sinks' norms would carry a mean away
        self._centre = self.rows @ middle
        along = torch.cat([part @ self.rows.T for part in parts]) - self._centre
        self._threshold = along.sort(0).values[int((1 - density) * (len(along) - 1))]

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        along = self.before(x.reshape(-1, x.shape[-1]))  # [..., d_model] -> [n, latents]
        fired = torch.where(along > self._threshold.clamp(min=0).to(along), along, 0.0)
        return fired.reshape(*x.shape[:-1], -1)

    def before(self, x: Tensor) -> Tensor:
        return x.float() @ self.rows.T.to(x.device) - self._centre.to(x.device)
