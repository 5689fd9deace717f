"""A little held-out text, run through the model once, to look at dictionaries while they train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kit.models.activations import capture
from kit.models.bridge import runtime
from kit.models.hook_points import replaced
from kit.models.sites import Site
from kit.models.tokens import counted
from kit.sae.dictionary import Dictionary
from kit.sae.store import Example, FeatureStore

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

LIVELY = (1e-3, 3e-2)  # densities of latents that one can learn something from


@dataclass(frozen=True, eq=False)
class Look:
    """What a dictionary does on the held-out text.

    Attributes:
        name, step: of which dictionary, when.
        density: share of tokens on which each latent fires, ``[latents]``.
        latent: the one that the examples are of; examples: where it fires most, best first.
    """

    name: str
    step: int
    density: Tensor
    latent: int
    examples: list[Example]

    def next_lively(self, after: int) -> int:
        """The next latent with a density in ``LIVELY``, else the one nearest to them in the log;
        round and round."""
        low, high = LIVELY
        some = ((self.density >= low) & (self.density <= high)).nonzero()[:, 0].tolist()
        if not some:
            middle = torch.tensor(low * high).sqrt().log()
            return int((self.density.clamp(min=1e-9).log() - middle).abs().argmin())
        return next((i for i in some if i > after), some[0])

    def lively(self, latent: int) -> bool:
        """Whether the latent fires often enough to show, and not on everything."""
        return bool(LIVELY[0] <= float(self.density[latent]) <= LIVELY[1])


class HeldOut:
    """Activations of some tokens at some sites, and what the model makes of them.

    As in training and in :func:`kit.sae.evaluate`, the first position of a row and sink tokens
    count for nothing.
    """

    def __init__(
        self, model: TransformerBridge, tokens: Tensor, sites: Sequence[Site], *, ce_rows: int = 4, sink: float = 10.0
    ) -> None:
        """Runs nothing yet.

        Args:
            tokens: ``[rows, context]``.
            ce_rows: of how many rows the cross-entropy is taken.
        """
        self.model, self.tokens, self.sites = model, tokens, list(dict.fromkeys(sites))
        self.ce_rows, self.sink = ce_rows, sink
        self._x: dict[Site, Tensor] = {}
        self._keep: dict[Site, Tensor] = {}
        self._clean: Tensor | None = None
        self._zero: dict[Site, Tensor] = {}

    def read(self) -> None:
        """Run the model up to the last site, the first time; the model does not change."""
        if self.ready:
            return
        parts = [capture(self.model, some, [s.place for s in self.sites]) for some in self.tokens.split(16)]
        found = {s: torch.cat([part[s.place].cpu() for part in parts]) for s in self.sites}
        for site, x in found.items():
            self._keep[site] = counted(x, self.sink)
        self._x = found

    @property
    def ready(self) -> bool:
        """Whether the held-out activations are there."""
        return bool(self._x)

    def n_tokens(self, site: Site) -> int:
        """How many tokens count at a site."""
        return int(self._keep[site].sum())

    @torch.no_grad()
    def look(self, dictionary: Dictionary, step: int, latent: int | None, n: int = 6, before: int = 0) -> Look:
        """Densities, and the n strongest examples of a latent.

        Args:
            latent: None takes ``before``, or the next lively one after it where it is not.

        Raises:
            ValueError: no such latent.
        """
        self.read()
        site = dictionary.site
        keep, x = self._keep[site].flatten(), self._x[site].flatten(0, 1)  # [rows * pos], [rows * pos, width]
        latents = torch.cat([dictionary.encode(some) for some in x.split(1024)])  # [rows * pos, latents]
        latents[~keep] = 0
        density = (latents > 0).sum(0) / max(int(keep.sum()), 1)
        found = Look(dictionary.name, step, density, before, [])
        if latent is None:
            latent = before if found.lively(before) else found.next_lively(before)
        dictionary.check_latent(latent)
        value = latents[:, latent].clone()
        where = value.nonzero()[:, 0]
        start = (torch.arange(len(density) + 1) > latent) * len(where)
        store = FeatureStore(dictionary, self.tokens.cpu().int(), start, where, value[where])
        return Look(dictionary.name, step, density, latent, store.top(latent, n))

    @torch.no_grad()
    def recovered(self, dictionary: Dictionary) -> float:
        """CE loss recovered, as :func:`kit.sae.evaluate` has it on the first ``ce_rows`` rows.

        What the model does untouched and with zeros is computed once, so that this is one pass.
        """
        self.read()
        site = dictionary.site
        if self._clean is None:
            self._clean = self._losses(None, None)
        x = self._x[site][: self.ce_rows]
        if site not in self._zero:
            self._zero[site] = self._losses(site, torch.zeros_like(x))
        sae = self._losses(site, dictionary.decode(dictionary.encode(x)))
        keep = self._keep[site][: self.ce_rows, :-1]
        clean, zero, left = (float(some[keep].double().mean()) for some in (self._clean, self._zero[site], sae))
        return (zero - left) / (zero - clean) if zero - clean > 1e-6 else float("nan")

    def _losses(self, site: Site | None, found: Tensor | None) -> Tensor:
        """Cross-entropy ``[rows, pos - 1]`` in nats, with ``found`` in a site's place if given."""
        state, rows, parts = runtime(self.model), self.tokens[: self.ce_rows], []
        for at in range(0, len(rows), 8):
            batch = rows[at : at + 8]
            with state.lock:
                if site is None or found is None:
                    out = state.clean(input_ids=batch, use_cache=False)
                else:
                    put, on = found[at : at + 8], self._keep[site][at : at + len(batch), :, None]

                    def change(x: Tensor, put: Tensor = put, on: Tensor = on) -> Tensor:
                        return torch.where(on.to(x.device), put.to(x), x)

                    with replaced(self.model, site, change):
                        out = state.clean(input_ids=batch, use_cache=False)
            log_p = out.logits[:, :-1].float().log_softmax(-1)
            parts.append(-log_p.gather(-1, batch[:, 1:, None])[..., 0].cpu())
        return torch.cat(parts)
