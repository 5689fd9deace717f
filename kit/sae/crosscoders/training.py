"""Two models read together: the same tokens, both activations side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kit.models.activations import side_by_side
from kit.models.bridge import fingerprint
from kit.models.sites import Site
from kit.sae.architectures import Architecture
from kit.sae.crosscoders.model import Crosscoder, Pair, check_pair
from kit.sae.source import Batch, Source
from kit.sae.training import Training


class PairedSource(Source):
    """Batches ``{site: [batch, 2 * d_model]}``: both models' activations on the same tokens, side
    by side, each scaled to a mean norm of sqrt(d_model).

    Chunks, shuffling, sinks and the cache are those of :class:`kit.sae.Source`; a token that is a
    sink in either model is left out of both.

    Attributes:
        models: the two; ``model`` is the first of them.
        factors: ``[2]``, what each model's activations are multiplied with.
    """

    def __init__(
        self,
        models: Pair,
        texts: Sequence[str] | Tensor,
        site: Site,
        *,
        batch: int = 2048,
        context: int = 128,
        rows: int = 256,
        chunks: int | None = None,
        sink: float = 10.0,
        seed: int = 0,
        cache: str | Path | None = None,
    ) -> None:
        """Arguments as for :class:`kit.sae.Source`.

        Raises:
            ValueError: as :func:`check_pair` and :class:`kit.sae.Source`.
        """
        check_pair(models)
        self.models = models
        self.factors: Tensor | None = None
        super().__init__(
            models[0],
            texts,
            [site],
            batch=batch,
            context=context,
            rows=rows,
            chunks=chunks,
            sink=sink,
            seed=seed,
            cache=cache,
        )

    @property
    def _models(self) -> Pair:
        return self.models

    def _run(self, tokens: Tensor) -> Batch:
        (site,) = self.sites
        return {site: side_by_side(self.models, tokens, site.place)}

    def _usual(self, site: Site, some: Tensor) -> Tensor:
        halves = some.chunk(2, dim=-1)
        return super()._usual(site, halves[0]) & super()._usual(site, halves[1])

    def harvest(self, number: int) -> tuple[Batch, Tensor]:
        found, row = super().harvest(number)
        ((site, both),) = found.items()
        halves = both.unflatten(-1, (2, -1))  # [n, 2, d_model]
        if self.factors is None:
            self.factors = halves.shape[-1] ** 0.5 / halves.norm(dim=-1).mean(0)
        return {site: (halves * self.factors[:, None]).flatten(-2)}, row

    def state_dict(self) -> dict[str, Any]:
        factors = None if self.factors is None else self.factors.tolist()
        return {**super().state_dict(), "factors": factors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.factors = None if state["factors"] is None else torch.tensor(state["factors"])


class CrosscoderTraining(Training):
    """:class:`kit.sae.Training` with the losses of crosscoders, on a :class:`PairedSource`."""

    source: PairedSource
    architectures = ("batchtopk", "standard")

    def __init__(
        self,
        source: PairedSource,
        *,
        dedicated: tuple[int, int] = (0, 0),
        dedicated_k: float = 2,
        difference: float = 0,
        widths: Sequence[float] = (4,),
        architecture: Architecture = "batchtopk",
        k: float = 32,
        sparsity: float | None = None,
        steps: int = 200,
        lr: float = 8e-4,
        seed: int = 0,
    ) -> None:
        """Further arguments as for :class:`kit.sae.Training`.

        Args:
            dedicated: so many latents read and write the first model alone, and so many the second
                (Jiralerspong and Bricken 2026, arXiv:2602.11729). They are the first latents, in
                this order. Where two models hardly differ, every free latent comes out shared.
            dedicated_k: of the k that fire on a token, so many are dedicated ones; BatchTopK only.
            difference: weight, beside the two models' errors, of the error of their difference.
                Both this and a k of their own are from Kassem et al. 2026 (arXiv:2603.04426).

        Raises:
            ValueError: as :class:`kit.sae.Training`; more dedicated latents than there are, a
                ``dedicated_k`` not below k, or a negative weight.
        """
        from kit.sae.crosscoders.losses import paired_error

        super().__init__(
            source, widths=widths, architecture=architecture, k=k, sparsity=sparsity, steps=steps, lr=lr, seed=seed
        )
        first, second = dedicated
        own = first + second
        if not difference >= 0:
            raise ValueError(f"difference={difference!r}: give a weight from 0 on")
        if own and not 0 < dedicated_k < k:
            raise ValueError(f"dedicated_k={dedicated_k!r}: give a number above 0 and below k={k}")
        self.settings |= {"dedicated": [first, second], "dedicated_k": dedicated_k, "difference": difference}
        for trainer in self.trainers.values():
            sae = trainer.sae
            n, width = sae.W_dec.shape
            if min(dedicated) < 0 or own > n:
                raise ValueError(
                    f"dedicated={dedicated!r}: give two numbers from 0 on, together at most the {n} latents"
                )
            sae.dedicated, sae.dedicated_k = own, float(dedicated_k)
            if difference:
                sae.mse_loss_fn = paired_error(difference)
            mask = torch.ones(n, 2)
            mask[:first, 1] = mask[first:own, 0] = 0
            mask = mask.repeat_interleave(width // 2, 1).to(sae.W_dec)  # [latents, 2 * d_model]
            for weight, keep in ((sae.W_dec, mask), (sae.W_enc, mask.T)):
                with torch.no_grad():
                    weight *= keep
                weight.register_hook(keep.mul)  # of its gradient: so it stays zero

    def _classes(self, architecture: str) -> tuple[Any, Any]:
        from kit.sae.crosscoders.losses import PairedBatchTopK, PairedStandard

        cls, of = super()._classes(architecture)
        return {"batchtopk": PairedBatchTopK, "standard": PairedStandard}.get(architecture, cls), of

    @torch.no_grad()
    def crosscoder(self, name: str | None = None) -> Crosscoder:
        """The crosscoder as it is now; the widest, where several are trained.

        Args:
            name: what it is called on panels and pages.
        """
        key = max(self.trainers, key=lambda k: len(self.trainers[k].sae.W_dec))
        sae, scale = self.trainers[key].sae, self.trainers[key].activation_scaler.scaling_factor
        site = self.sites[key]
        assert self.source.factors is not None
        decoder = sae.W_dec.detach().unflatten(-1, (2, -1))  # [latents, 2, d_model]
        size = decoder.norm(dim=-1).sum(-1)  # latents in units in which the two norms add to 1
        bias = sae.b_enc
        if sae.cfg.apply_b_dec_to_input:
            bias = bias - sae.b_dec @ sae.W_enc
        return Crosscoder(
            # [2 * d_model, latents] -> [latents, 2, d_model]
            encoder=(sae.W_enc * size).T.unflatten(-1, (2, -1)).clone().cpu(),
            bias=(bias * size).cpu(),
            threshold=sae.thresholds().cpu(),
            decoder=(decoder / size[:, None, None]).cpu(),
            offset=sae.b_dec.unflatten(-1, (2, -1)).clone().cpu(),
            factors=self.source.factors * scale,
            site=site,
            name=name or f"crosscoder {site.layer}",
            fingerprints=tuple(map(fingerprint, self.source.models)),  # type: ignore[arg-type]
            metadata=self.told(),
        )
