"""How good a dictionary is, on text that it was not trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kit.base.divergence import kl
from kit.base.progress import track
from kit.base.threads import fitted
from kit.models.bridge import runtime
from kit.models.hook_points import replaced
from kit.models.sites import Site
from kit.models.tokens import counted, packed
from kit.sae.dictionary import Dictionary

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class Quality:
    """Figures of one dictionary; see :func:`evaluate`.

    Attributes:
        ce_clean, ce_sae, ce_zero: mean cross-entropy in nats a token, of the model as it is, with
            the dictionary's reconstruction in place, and with zeros in place.
        ce_recovered: ``(ce_zero - ce_sae) / (ce_zero - ce_clean)``; NaN where zeros do no harm.
        kl: KL(model || model with the reconstruction), nats a token.
        explained_variance: without sink tokens (the first of each row, and those of great norm);
            explained_variance_all: with them, who alone can decide it.
        l0: latents that fire on a token, mean; dead: share of latents that never fired here.
        tokens: how many were measured; sinks: share of tokens left out as sinks.
    """

    ce_clean: float
    ce_sae: float
    ce_zero: float
    ce_recovered: float
    kl: float
    explained_variance: float
    explained_variance_all: float
    l0: float
    dead: float
    tokens: int
    sinks: float


@torch.no_grad()
def evaluate(
    dictionary: Dictionary,
    model: TransformerBridge,
    texts: Sequence[str] | Tensor,
    *,
    context: int = 128,
    rows: int | None = None,
    sink: float = 10.0,
) -> Quality:
    """Measure a dictionary in its model.

    The reconstruction (or zeros) stands at every position but the first and the sink tokens, which
    keep their own activation, as in training; see :class:`kit.sae.Source`.

    Args:
        texts: held out from training; or tokens ``[rows, context]``, as :func:`kit.sae.pack` makes
            them.
        rows: how many rows of ``context`` tokens (default all).
        sink: how many times the median norm of its row is too much for a token; ``inf`` keeps every
            token.

    Raises:
        ValueError: as :meth:`Dictionary.check` and :func:`kit.sae.pack`.
    """
    dictionary.check(model)
    if dictionary.site.kind not in ("resid", "mlp_out"):
        raise ValueError(
            f"{dictionary.name!r} reads {dictionary.site} and writes elsewhere: only an "
            "SAE, which reads what it writes, can stand in for it"
        )
    tokens = packed(model, texts, context)[:rows]
    state, seen = runtime(model), list[Tensor]()
    measured, everything = Tally(len(dictionary)), Tally(len(dictionary))
    ce, divergence, n = torch.zeros(3, dtype=torch.float64), 0.0, 0

    def keep(x: Tensor) -> Tensor:
        seen.append(x)
        return x

    for batch in track(list(tokens.to(model.cfg.device).split(8)), "batches of text"):
        with state.lock, fitted(batch.numel()):
            found = [next_log_p(model, batch, dictionary.site, keep)]
            x = seen.pop()  # [rows, pos, width]
            on, latents = counted(x, sink), dictionary.encode(x)
            made = dictionary.decode(latents)
            for instead in (made, torch.zeros_like(x)):
                put = torch.where(on[..., None], instead, x).to(x)
                found.append(next_log_p(model, batch, dictionary.site, lambda _x, put=put: put))  # type: ignore[misc]
        x = dictionary.target(x)
        measured.add(x[on], made[on], latents[on])
        everything.add(x.flatten(0, 1), made.flatten(0, 1), latents.flatten(0, 1))
        home = found[0].device
        counts, target = on[:, :-1].to(home), batch[:, 1:, None].to(home)
        for i, part in enumerate(found):
            ce[i] -= part.gather(-1, target)[..., 0][counts].double().sum().cpu()
        divergence += float(kl(found[0], found[1])[counts].sum())
        n += int(counts.sum())
    clean, sae, zero = (ce / max(n, 1)).tolist()
    gap = zero - clean
    return Quality(
        ce_clean=clean,
        ce_sae=sae,
        ce_zero=zero,
        ce_recovered=(zero - sae) / gap if gap > 1e-6 else float("nan"),
        kl=divergence / n,
        explained_variance=float(measured.explained_variance),
        explained_variance_all=float(everything.explained_variance),
        l0=measured.l0,
        dead=measured.dead,
        tokens=measured.tokens,
        sinks=(everything.tokens - measured.tokens) / everything.tokens,
    )


def next_log_p(model: TransformerBridge, tokens: Tensor, site: Site, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Log-probabilities ``[rows, n - 1, d_vocab]`` of what comes after ``tokens [rows, n]``, with a
    change at a site."""
    with replaced(model, site, change):
        logits = runtime(model).clean(input_ids=tokens, use_cache=False).logits
    return logits[:, :-1].float().log_softmax(-1)


class Tally:
    """Sums over batches, from which figures are made.

    Attributes:
        tokens: so far; fired: ``[latents]``, on how many of them each fired.
    """

    def __init__(self, latents: int) -> None:
        self.tokens, self.fired = 0, torch.zeros(latents)
        self._total = self._squares = self._error = torch.zeros(())

    def add(self, x: Tensor, made: Tensor, latents: Tensor) -> None:
        """Activations ``[n, ..., width]``, what was made of them, and latents ``[n, latents]``."""
        x, made = x.cpu().double(), made.cpu().double()
        self._total = self._total + x.sum(0)
        self._squares = self._squares + x.square().sum((0, -1))  # [...]: each model's of two
        self._error = self._error + (x - made).square().sum((0, -1))
        self.fired += (latents > 0).sum(0).cpu()
        self.tokens += len(x)

    @property
    def explained_variance(self) -> Tensor:
        """``[...]``: 1 less the squared error over the squared distance from the mean."""
        spread = self._squares - self._total.square().sum(-1) / self.tokens
        return 1 - self._error / spread.clamp(min=1e-12)

    @property
    def l0(self) -> float:
        """Latents that fire on a token, mean."""
        return float(self.fired.double().sum()) / self.tokens

    @property
    def dead(self) -> float:
        """Share of latents that never fired."""
        return float((self.fired == 0).float().mean())
