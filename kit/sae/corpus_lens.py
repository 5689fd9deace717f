"""What a latent says more than other latents do, in words that the corpus knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kit.base.checks import is_whole
from kit.base.directions import unit
from kit.models.logit_lens import Ends, token_directions
from kit.sae.store import FeatureStore

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class CorpusLens:
    """The logit lens of every latent of a store, against that of all its latents.

    The plain lens (:func:`kit.sae.logit_lens`) is headed by tokens that nobody writes, and by the
    same few tokens for many latents. Here a token counts only if the corpus has it, and its logit,
    less the mean over the vocabulary, is told as a z-score over latents: less the mean that all
    latents' rows, at norm 1, give it, over their standard deviation. So what all latents promote is
    at 0, and 3 means as much for a common token as for a rare one.

    Attributes:
        tokens: ids that are looked at, ``[kinds]``.
        mean, spread: of each one's logit over latents, ``[kinds]``.
    """

    @torch.no_grad()
    def __init__(self, store: FeatureStore, model: TransformerBridge, least: int = 3) -> None:
        """Some tenths of a second; keep it for all latents.

        Args:
            store: whose corpus and latents.
            model: theirs.
            least: how often the corpus must have a token.

        Raises:
            ValueError: no token is so frequent; another model than the latents'; fewer than two
                latents; an architecture whose logits are not made so.
        """
        if not is_whole(least) or least < 1:
            raise ValueError(f"least={least!r}: give a whole number from 1 on")
        store.dictionary.check(model)
        if len(store) < 2:
            raise ValueError(f"store holds {len(store)} latent: a z-score needs two or more")
        count = torch.bincount(store.tokens.flatten())
        self.tokens = (count >= least).nonzero()[:, 0]
        if not len(self.tokens):
            raise ValueError(f"least={least}: the corpus's most frequent token occurs {int(count.max())} times")
        self._store = store
        self._rows = unit(store.dictionary.rows.cpu().float())  # [latents, d_model]
        self._words = token_directions(model, self.tokens.tolist()).cpu()  # [kinds, d_model]
        middle = self._rows.mean(0)
        apart = (self._rows - middle).double()
        around = (apart.T @ apart / len(apart)).float()  # [d_model, d_model]
        self.mean = self._words @ middle
        self.spread = ((self._words @ around) * self._words).sum(-1).clamp(min=0).sqrt()

    @torch.no_grad()
    def read(self, latent: int, n: int = 10) -> Ends:
        """Both ends of a latent's lens: token ids and z-scores, most extreme first; it leaves out
        nothing more (``dropped`` is empty).

        Raises:
            ValueError: no such latent.
        """
        self._store.dictionary.check_latent(latent)
        score = (self._words @ self._rows[latent] - self.mean) / self.spread.clamp(min=1e-9)
        order = score.argsort(descending=True)

        def some(which: torch.Tensor) -> list[tuple[int, float]]:
            return [(int(self.tokens[i]), float(score[i])) for i in which[:n]]

        return Ends(some(order), some(order.flip(0)), [])
