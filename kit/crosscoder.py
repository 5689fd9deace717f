"""Crosscoders: one dictionary for two models, which shows what the second has that the first lacks.

A latent is read from both models' activations at one place and writes a row into each. Latents
whose row is (nearly) zero in one model look exclusive to the other; :func:`latent_scaling` checks
whether they are (Lindsey et al. 2024, "Sparse crosscoders"; Minder et al. 2025, arXiv:2504.02922).
"""
from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from kit.models import fingerprint
from kit.sae.latents import Latents
from kit.sae.paired import Pair, PairedSource, check_pair
from kit.sae.paired_quality import SHARED, PairQuality, Scaling, evaluate, latent_scaling, summary
from kit.sae.site import Site
from kit.sae.training import Training
from kit.untrusted import parse, parse_object, shapes_at_most, whole
from kit.vectors import SteeringVector, opened

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

__all__ = ["SHARED", "Crosscoder", "CrosscoderTraining", "PairQuality", "PairedLatents",
           "PairedSource", "Scaling", "check_pair", "evaluate", "latent_scaling", "summary"]
_FORMAT = "steering-kit-crosscoder/1"
_NAMES = {"encoder": 3, "bias": 1, "threshold": 1, "decoder": 3, "offset": 2, "factors": 1}
_MOST = 2**34  # numbers in the encoder: a million latents of two models of width 8192


class CrosscoderTraining(Training):
    """:class:`kit.sae.Training` with the losses of crosscoders, on a :class:`PairedSource`."""

    architectures = ("batchtopk", "standard")

    def __init__(
        self, source: PairedSource, *, dedicated: tuple[int, int] = (0, 0), dedicated_k: float = 2,
        difference: float = 0, **settings: Any,
    ) -> None:  # fmt: skip
        """
        Args:
            dedicated: so many latents read and write the first model alone, and so many the second
                (Jiralerspong and Bricken 2026, arXiv:2602.11729). They are the first latents, in
                this order. Where two models hardly differ, every free latent comes out shared.
            dedicated_k: of the k that fire on a token, so many are dedicated ones; BatchTopK only.
            difference: weight, beside the two models' errors, of the error of their difference.
                Both this and a k of their own are from Kassem et al. 2026 (arXiv:2603.04426).
            settings: as for :class:`kit.sae.Training`.

        Raises:
            ValueError: as :class:`kit.sae.Training`; more dedicated latents than there are, a
                ``dedicated_k`` not below k, or a negative weight.
        """
        from kit.sae.paired_losses import paired_error

        super().__init__(source, **settings)
        first, second = dedicated
        own = first + second
        if not difference >= 0:
            raise ValueError(f"difference={difference!r}: give a weight from 0 on")
        if own and not 0 < dedicated_k < self.settings["k"]:
            raise ValueError(f"dedicated_k={dedicated_k!r}: give a number above 0 and below "
                             f"k={self.settings['k']}")  # fmt: skip
        self.settings |= {"dedicated": [first, second], "dedicated_k": dedicated_k,
                          "difference": difference}  # fmt: skip
        for trainer in self.trainers.values():
            sae = trainer.sae
            n, width = sae.W_dec.shape
            if min(dedicated) < 0 or own > n:
                raise ValueError(f"dedicated={dedicated!r}: give two numbers from 0 on, together "
                                 f"at most the {n} latents")  # fmt: skip
            sae.dedicated, sae.dedicated_k = own, float(dedicated_k)
            if difference:
                sae.mse_loss_fn = paired_error(difference)
            mask = torch.ones(n, 2)
            mask[:first, 1] = mask[first:own, 0] = 0
            mask = mask.repeat_interleave(width // 2, 1)
            for weight, keep in ((sae.W_dec, mask), (sae.W_enc, mask.T)):
                with torch.no_grad():
                    weight *= keep.to(weight)
                # and so it stays zero
                weight.register_hook(lambda grad, keep=keep.to(weight): grad * keep)

    def _classes(self, architecture: str) -> tuple[Any, Any]:
        from kit.sae.paired_losses import PairedBatchTopK, PairedStandard

        cls, of = super()._classes(architecture)
        return {"batchtopk": PairedBatchTopK, "standard": PairedStandard}.get(architecture, cls), of

    def crosscoder(self, name: str | None = None) -> Crosscoder:
        """The crosscoder as it is now; the widest, where several are trained.

        Args:
            name: what it is called on panels and pages.
        """
        key = max(self.trainers, key=lambda k: len(self.trainers[k].sae.W_dec))
        sae, scale = self.trainers[key].sae, self.trainers[key].activation_scaler.scaling_factor
        source = self.source
        assert isinstance(source, PairedSource) and source.factors is not None
        with torch.no_grad():
            decoder = sae.W_dec.detach().unflatten(-1, (2, -1))
            size = decoder.norm(dim=-1).sum(-1)  # latents in units in which the two norms add to 1
            bias = sae.b_enc.detach()
            if sae.cfg.apply_b_dec_to_input:
                bias = bias - sae.b_dec.detach() @ sae.W_enc.detach()
            threshold = getattr(sae, "topk_threshold", bias.new_zeros(())).float()
            threshold = threshold.expand(len(size)).clone()
            if sae.dedicated and hasattr(sae, "dedicated_threshold"):
                threshold[: sae.dedicated] = sae.dedicated_threshold
            parts = ((sae.W_enc.detach() * size).T.unflatten(-1, (2, -1)).clone(), bias * size,
                     threshold, decoder / size[:, None, None],
                     sae.b_dec.detach().unflatten(-1, (2, -1)).clone())  # fmt: skip
            return Crosscoder(
                *(part.cpu() for part in parts), source.factors * scale,
                self.sites[key], name or f"crosscoder {self.sites[key].layer}",
                tuple(map(fingerprint, source.models)), self.told(),  # type: ignore[arg-type]
            )  # fmt: skip


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
        x = both.to(self.encoder).unflatten(-1, (2, -1)) * self.factors[:, None]
        return (x.flatten(-2) @ self.encoder.flatten(-2).T + self.bias).to(both.device)

    @torch.no_grad()
    def encode(self, both: Tensor) -> Tensor:
        """Latents ``[..., latents]`` of both models' activations ``[..., 2 * d_model]``."""
        pre = self.before(both.flatten(0, -2)).unflatten(0, both.shape[:-1])
        return torch.where(pre > self.threshold.clamp(min=0).to(pre), pre, 0.0)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Activations ``[..., 2, d_model]`` of latents ``[..., latents]``."""
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
        n, width = len(self.bias), self.decoder.shape[-1]
        wanted = {"encoder": (n, 2, width), "bias": (n,), "threshold": (n,),
                  "decoder": (n, 2, width), "offset": (2, width), "factors": (2,)}  # fmt: skip
        for name, shape in wanted.items():
            part = getattr(self, name)
            if not n or not width or tuple(part.shape) != shape:
                raise ValueError(f"{name} of {self.name!r} has shape {list(part.shape)}: with {n} "
                                 f"latents of width {width} it must be {list(shape)}")  # fmt: skip
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
            raise ValueError(f"{self.name!r} belongs to models {', '.join(self.fingerprints)}; these "
                             f"are {', '.join(found)}{more}")  # fmt: skip

    def save(self, path: str | Path, dtype: torch.dtype = torch.float32) -> Path:
        """Write one safetensors file; ``dtype`` is that of the encoder and the decoder."""
        wide = {"encoder", "decoder"}
        parts = {n: getattr(self, n).to(dtype if n in wide else torch.float32).contiguous()
                 for n in _NAMES}  # fmt: skip
        about = {"format": _FORMAT, "name": self.name, "hook_name": self.site.hook_name,
                 "fingerprints": json.dumps(self.fingerprints),
                 "metadata": json.dumps(self.metadata)}  # fmt: skip
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
            found = cls(*(file.get_tensor(n).float() for n in _NAMES), Site.of(about["hook_name"]),
                        about["name"], tuple(marks),
                        parse_object(about["metadata"], f"{path}: metadata"))  # fmt: skip
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
        self.crosscoder, self.models, self.which = crosscoder, models, which
        self.name, self.site = crosscoder.name, crosscoder.site
        self.fingerprint = crosscoder.fingerprints[which]

    @property
    def rows(self) -> Tensor:
        return self.crosscoder.rows(self.which)

    def readers(self, _model: TransformerBridge) -> Pair:
        """Both models; see :meth:`kit.sae.Latents.readers`."""
        return self._pair()

    def _pair(self) -> Pair:
        if self.models is None:
            raise ValueError("models=None: make the latents with both models to read them")
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
        models, found = self._pair(), self.crosscoder
        both = self.activations(models[0], tokens).float().cpu()
        both = both.unflatten(-1, (2, -1))
        return torch.einsum("rnmd,md,m->mrn", both, found.encoder[latent], found.factors)

    def encode(self, x: Tensor) -> Tensor:
        if x.shape[-1] != 2 * self.crosscoder.decoder.shape[-1]:
            raise ValueError(f"{self.name!r} reads both models' activations side by side, not one "
                             f"model's of width {x.shape[-1]}")  # fmt: skip
        return self.crosscoder.encode(x)

    def before(self, x: Tensor) -> Tensor:
        return self.crosscoder.before(x)
