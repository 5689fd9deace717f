"""How good a dictionary is, on text that it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kit.base.progress import track
from kit.models.bridge import runtime
from kit.models.hook_points import replaced
from kit.models.tokens import counted, pack
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

    def as_dict(self) -> dict[str, Any]:
        """The figures as plain values, for JSON."""
        return asdict(self)


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
        sink: how many times the median norm of its row is too much for a token; ``inf`` keeps every token.

    Raises:
        ValueError: as :meth:`Dictionary.check` and :func:`kit.sae.pack`.
    """
    dictionary.check(model)
    if dictionary.site.kind not in ("resid", "mlp_out"):
        raise ValueError(
            f"{dictionary.name!r} reads {dictionary.site} and writes elsewhere: only an "
            "SAE, which reads what it writes, can stand in for it"
        )
    tokens = (texts if isinstance(texts, Tensor) else pack(model, texts, context))[:rows]
    tokens = tokens.to(model.cfg.device)
    state, total = runtime(model), _Sums(len(dictionary))
    for batch in track(list(tokens.split(8)), "batches of text"):
        seen: list[Tensor] = []

        def put(x: Tensor, found: Tensor | None = None, seen: Any = seen) -> Tensor:
            """Keeps what the model has; gives what stands in its place."""
            if not seen:
                seen.append(x)
                return x
            return torch.where(counted(seen[0], sink)[..., None], found, x).to(x)

        log_p = []
        with state.lock:
            for what in ("clean", "sae", "zero"):
                found = None
                if what == "sae":
                    latents = dictionary.encode(seen[0])
                    found = dictionary.decode(latents)
                    total.activations(seen[0].float(), found, latents, sink)
                elif what == "zero":
                    found = torch.zeros_like(seen[0])
                with replaced(model, dictionary.site, lambda x, found=found: put(x, found)):
                    out = state.decoder(input_ids=batch, use_cache=False)
                log_p.append(out.logits[:, :-1].float().log_softmax(-1))
        total.losses(log_p, batch[:, 1:], counted(seen[0], sink)[:, :-1])
    return total.quality()


class _Sums:
    """Sums over batches, from which the figures are made."""

    def __init__(self, latents: int) -> None:
        self.ce, self.kl, self.n = torch.zeros(3, dtype=torch.float64), 0.0, 0
        self.fired, self.l0, self.tokens, self.sinks, self.all = torch.zeros(latents), 0.0, 0, 0, 0
        # of each part, measured and all: tokens, sum, sum of squares, squared error
        self.parts: dict[str, list[Any]] = {"measured": [0, 0, 0, 0], "all": [0, 0, 0, 0]}

    def activations(self, x: Tensor, found: Tensor, latents: Tensor, sink: float) -> None:
        keep = counted(x, sink)
        every = torch.ones_like(keep)
        for part, on in (("measured", keep), ("all", every)):
            a, b = x[on].double(), found[on].double()
            for i, more in enumerate((len(a), a.sum(0), a.square().sum(), (a - b).square().sum())):
                self.parts[part][i] = self.parts[part][i] + more
        self.sinks += int((every & ~keep).sum())
        self.all += int(every.sum())
        on_latents = latents[keep] > 0
        self.fired += on_latents.sum(0).cpu()
        self.l0 += float(on_latents.sum())
        self.tokens += int(keep.sum())

    def losses(self, log_p: Sequence[Tensor], target: Tensor, keep: Tensor) -> None:
        keep, target = keep.to(log_p[0].device), target.to(log_p[0].device)
        for i, part in enumerate(log_p):
            self.ce[i] -= part.gather(-1, target[..., None])[..., 0][keep].double().sum().cpu()
        clean, sae = log_p[0], log_p[1]
        self.kl += float((clean.exp() * (clean - sae)).sum(-1)[keep].sum())
        self.n += int(keep.sum())

    def quality(self) -> Quality:
        def explained(n: int, total: Tensor, squares: Tensor, error: Tensor) -> float:
            return float(1 - error / (squares - total.square().sum() / n).clamp(min=1e-12))

        clean, sae, zero = (self.ce / max(self.n, 1)).tolist()
        gap = zero - clean
        return Quality(
            clean,
            sae,
            zero,
            (zero - sae) / gap if gap > 1e-6 else float("nan"),
            self.kl / self.n,
            explained(*self.parts["measured"]),
            explained(*self.parts["all"]),
            self.l0 / self.tokens,
            float((self.fired == 0).float().mean()),
            self.tokens,
            self.sinks / self.all,
        )
