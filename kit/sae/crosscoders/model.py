"""Crosscoders: one dictionary for two models, which shows what the second has that the first lacks.

A latent is read from both models' activations at one place and writes a row into each. Latents
whose row is (nearly) zero in one model look exclusive to the other;
:func:`kit.sae.crosscoders.latent_scaling` checks whether they are (Lindsey et al. 2024, "Sparse
crosscoders"; Minder et al. 2025, arXiv:2504.02922).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from safetensors.torch import save_file
from torch import Tensor

from kit.base.files import as_json, opened, parse, parse_object, shapes_at_most, whole
from kit.models.bridge import fingerprint
from kit.models.sites import Site
from kit.sae.latents import Latents
from kit.steering.vectors import SteeringVector

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Pair: TypeAlias = "tuple[TransformerBridge, TransformerBridge]"
_FORMAT = "steering-kit-crosscoder/1"
_NAMES = {"encoder": 3, "bias": 1, "threshold": 1, "decoder": 3, "offset": 2, "factors": 1}
_MOST = 2**34  # numbers in the encoder: a million latents of two models of width 8192


def check_pair(models: Pair) -> None:
    """Refuse two models that no crosscoder can read together.

    Raises:
        ValueError: other tokenizers, widths or depths; or one model twice.
    """
    if len(models) != 2:
        raise ValueError(f"models has {len(models)} entries: give two, the first and the second")
    a, b = models
    for what, said in (("n_layers", "depths"), ("d_model", "widths")):
        mine, other = getattr(a.cfg, what), getattr(b.cfg, what)
        if mine != other:
            raise ValueError(
                f"models differ in their {said} ({what} {mine} and {other}): give a "
                "model and one that was tuned from it"
            )
    if a.tokenizer.get_vocab() != b.tokenizer.get_vocab():
        raise ValueError(
            "models have different tokenizers, so that one text is not the same tokens: "
            "give a model and one that was tuned from it"
        )
    if fingerprint(a) == fingerprint(b):
        raise ValueError("models have the same weights: give the tuned model as the second")


@dataclass(frozen=True, eq=False, repr=False)
class Crosscoder:
    """Latents that two models share, or do not.

    Inputs are multiplied with ``factors``, so that both models weigh the same; latents are in units
    in which the norms of a latent's two rows add up to 1.

    Attributes:
        encoder: ``[latents, 2, d_model]``; bias, threshold: ``[latents]``.
        decoder: ``[latents, 2, d_model]``; offset: ``[2, d_model]``.
        factors: ``[2]``, from activations to the units inside.
        site: where both models are read.
        fingerprints: of the first and of the second model.
    """

    encoder: Tensor
    bias: Tensor
    threshold: Tensor
    decoder: Tensor
    offset: Tensor
    factors: Tensor
    site: Site
    name: str
    fingerprints: tuple[str, str]
    metadata: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.bias)

    def __repr__(self) -> str:
        return f"Crosscoder({self.name!r}, {len(self)} latents, {self.site} of two models)"

    def before(self, both: Tensor) -> Tensor:
        """Pre-activations ``[n, latents]`` of both models' activations ``[n, 2 * d_model]``."""
        x = both.to(self.encoder).unflatten(-1, (2, -1)) * self.factors[:, None]  # [n, 2, d_model]
        return (x.flatten(-2) @ self.encoder.flatten(-2).T + self.bias).to(both.device)

    @torch.no_grad()
    def encode(self, both: Tensor) -> Tensor:
        """Latents ``[..., latents]`` of both models' activations ``[..., 2 * d_model]``."""
        pre = self.before(both.flatten(0, -2)).unflatten(0, both.shape[:-1])  # [n, latents] -> [..., latents]
        return torch.where(pre > self.threshold.clamp(min=0).to(pre), pre, 0.0)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Activations ``[..., 2, d_model]`` of latents ``[..., latents]``."""
        # [..., latents], [latents, 2, d_model] -> [..., 2, d_model]
        found = torch.einsum("...l,lmd->...md", latents.to(self.decoder), self.decoder) + self.offset
        return (found / self.factors[:, None]).to(latents.device)

    @property
    def relative_norm(self) -> Tensor:
        """``[latents]``: the second model's share of the two rows' norms, 0 (only the first has it)
        to 1 (only the second); between 0.3 and 0.7 it counts as shared."""
        return self.decoder[:, 1].norm(dim=-1) / self.decoder.norm(dim=-1).sum(-1)

    @property
    def cosine(self) -> Tensor:
        """``[latents]``, cosine of the two rows: near 1 for what is shared, unless it moved."""
        return torch.cosine_similarity(self.decoder[:, 0], self.decoder[:, 1], dim=-1)

    def rows(self, which: int) -> Tensor:
        """What latents write into one model at activation 1, ``[latents, d_model]``, in that
        model's activation units."""
        return self.decoder[:, which] / self.factors[which]

    def vector(self, latent: int, which: int = 1) -> SteeringVector:
        """A latent's row in one of the models, for the panel.

        Raises:
            ValueError: no such latent, or a model other than 0 and 1.
        """
        return PairedLatents(self, None, which).vector(latent)

    def check_shapes(self) -> None:
        """Refuse parts that do not fit together.

        Raises:
            ValueError: names the shape that is not as the others say, or a number that is not
                finite.
        """
        n, d = len(self.bias), self.decoder.shape[-1]
        rows, numbers = [n, 2, d], [n]
        wanted = dict(zip(_NAMES, (rows, numbers, numbers, rows, [2, d], [2]), strict=True))
        for name, shape in wanted.items():
            part = getattr(self, name)
            if not n or not d or list(part.shape) != shape:
                raise ValueError(
                    f"{name} of {self.name!r} has shape {list(part.shape)}: with {n} latents of width {d} "
                    f"it must be {shape}"
                )
            if not bool(part.isfinite().all()):
                raise ValueError(f"{name} of {self.name!r} holds NaN or infinity")

    def check(self, models: Pair) -> None:
        """Refuse models that it was not trained on.

        Raises:
            ValueError: as :func:`check_pair`, or other models, or the two in the wrong order.
        """
        check_pair(models)
        found = tuple(map(fingerprint, models))
        if found != self.fingerprints:
            more = ": swap them" if found[::-1] == self.fingerprints else ""
            raise ValueError(
                f"{self.name!r} belongs to models {', '.join(self.fingerprints)}; these are {', '.join(found)}{more}"
            )

    def save(self, path: str | Path, dtype: torch.dtype = torch.float32) -> Path:
        """Write one safetensors file; ``dtype`` is that of the encoder and the decoder."""
        wide = {"encoder", "decoder"}
        parts = {n: getattr(self, n).to(dtype if n in wide else torch.float32).contiguous() for n in _NAMES}
        about = {
            "format": _FORMAT,
            "name": self.name,
            "hook_name": self.site.hook_name,
            "fingerprints": json.dumps(self.fingerprints),
            "metadata": as_json(self.metadata, "metadata"),
        }
        with whole(path) as part:
            save_file(parts, part, about)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path, models: Pair | None = None) -> Crosscoder:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: no file; ValueError: something else, a damaged file, or as
                :meth:`check`.
        """
        with opened(path, _FORMAT, "crosscoder") as (file, about):
            shapes_at_most(path, _NAMES, _MOST)
            marks = parse(about["fingerprints"], f"{path}: fingerprints")
            if not isinstance(marks, list) or [type(m) for m in marks] != [str, str]:
                raise ValueError(f"{path}: fingerprints={marks!r:.80}: expected those of two models")
            found = cls(
                **{n: file.get_tensor(n).float() for n in _NAMES},
                site=Site.of(about["hook_name"]),
                name=about["name"],
                fingerprints=(marks[0], marks[1]),
                metadata=parse_object(about["metadata"], f"{path}: metadata"),
            )
            found.check_shapes()
        if models is not None:
            found.check(models)
        return found


class PairedLatents(Latents):
    """A crosscoder's latents as the store, the browser and the panel take them: read from both
    models, written into one."""

    def __init__(self, crosscoder: Crosscoder, models: Pair | None, which: int = 1) -> None:
        """
        Args:
            models: both; None for latents that are only written.
            which: the model whose latents they are, 0 or 1: pages and panels are given that one.

        Raises:
            ValueError: as :meth:`Crosscoder.check`, or a ``which`` other than 0 and 1.
        """
        if which not in (0, 1):
            raise ValueError(f"which={which!r}: use 0 for the first model, 1 for the second")
        if models is not None:
            crosscoder.check(models)
        self.crosscoder, self._models, self.which = crosscoder, models, which
        self.name, self.site = crosscoder.name, crosscoder.site
        self.fingerprint, self.rows = crosscoder.fingerprints[which], crosscoder.rows(which)

    @property
    def models(self) -> Pair:
        """Both models.

        Raises:
            ValueError: latents that were made without them.
        """
        if self._models is None:
            raise ValueError("models=None: make the latents with both models to read them")
        return self._models

    def weights(self) -> dict[str, Any]:
        return {**{name: getattr(self.crosscoder, name) for name in _NAMES}, "which": self.which}

    def readers(self, _model: TransformerBridge) -> Pair:
        """Both models; see :meth:`kit.sae.Latents.readers`."""
        return self.models

    def contributions(self, latent: int, tokens: Tensor) -> Tensor:
        """What each model's activations add to a latent's pre-activation, token by token.

        Args:
            tokens: ``[rows, n]``.

        Returns:
            ``[2, rows, n]``; both and the bias, which belongs to neither, add up to the
            pre-activation.

        Raises:
            ValueError: no such latent, or latents without their models.
        """
        self.check_latent(latent)
        both = self.activations(self.models[0], tokens).float().cpu().unflatten(-1, (2, -1))
        # [rows, n, 2, d_model], [2, d_model], [2] -> [2, rows, n]
        return torch.einsum("rnmd,md,m->mrn", both, self.crosscoder.encoder[latent], self.crosscoder.factors)

    def encode(self, x: Tensor) -> Tensor:
        if x.shape[-1] != 2 * self.crosscoder.decoder.shape[-1]:
            raise ValueError(
                f"{self.name!r} reads both models' activations side by side, not one model's of width {x.shape[-1]}"
            )
        return self.crosscoder.encode(x)

    def before(self, x: Tensor) -> Tensor:
        return self.crosscoder.before(x)
