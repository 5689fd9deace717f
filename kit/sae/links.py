"""Links between dictionaries: which latents make which later ones fire, and how far to believe it.

A latent writes its row into the residual stream; a later one reads what the blocks between make of
it. :func:`links` scores every pair at once, token by token, with attention held as it was, so that
what is left between two sites is a function of one token. :func:`ablated` is what the scores are
held against: the latent taken out of the model, everything after it live.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from kit.base.checks import check_counts
from kit.base.kernels import plain_kernels
from kit.base.progress import track
from kit.models.activations import capture
from kit.models.bridge import runtime
from kit.models.tokens import counted, packed
from kit.sae.frozen_attention import Between
from kit.sae.latents import Latents
from kit.sae.tables import table

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

Method = Literal["gradient", "integrated", "ablation"]
METHODS = ("gradient", "integrated", "ablation")
At = Literal["own", "maximum"]
_ENTRIES = 2048  # latents that fire, times tokens, in one pass of the blocks between


@dataclass(frozen=True, eq=False)
class Links:
    """Scores of all pairs of latents; see :func:`links`.

    Attributes:
        source, target: whose latents they are.
        score: ``[sources, targets]``, what the source latent does to the target latent's
            activation, a mean over the tokens on which the source fires; in the target's units.
        fired: ``[sources]``, on how many tokens each source latent fired.
        total: ``[targets]``, each target latent's activation summed over all tokens.
        method, at: as given; tokens: how many were read, sinks left out.
    """

    source: Latents
    target: Latents
    score: Tensor
    fired: Tensor
    total: Tensor
    method: str
    at: str
    tokens: int

    @cached_property
    def share(self) -> Tensor:
        """``[sources, targets]``: the part of the target latent's summed activation that the
        source latent accounts for; 0 for targets that never fire."""
        whole = self.score * self.fired[:, None]
        return torch.where(self.total > 0, whole / self.total.clamp(min=1e-9), 0.0)

    def top(
        self,
        n: int = 10,
        *,
        source: int | None = None,
        target: int | None = None,
        by: Literal["score", "share"] = "share",
        least: int = 5,
    ) -> pd.DataFrame:
        """The strongest links, by size.

        Args:
            source, target: only those of one latent.
            by: what ranks them.
            least: only source latents that fired on so many tokens.

        Returns:
            Columns ``source, target, score, share, fired``.

        Raises:
            ValueError: no such latent, or an unknown ``by``.
        """
        if by not in ("score", "share"):
            raise ValueError(f"by={by!r}: use 'score' or 'share'")
        value = self.share if by == "share" else self.score
        mask = (self.fired >= least)[:, None]
        if source is not None:
            self.source.check_latent(source)
            mask = mask & (torch.arange(len(self.source)) == source)[:, None]
        if target is not None:
            self.target.check_latent(target)
            mask = mask & (torch.arange(len(self.target)) == target)
        flat = (value.abs() * mask).flatten()
        best = flat.topk(min(n, len(flat)))
        where = best.indices[best.values > 0]
        a, b = where // value.shape[1], where % value.shape[1]
        return table(source=a, target=b, score=self.score[a, b], share=self.share[a, b], fired=self.fired[a])


def links(
    source: Latents,
    target: Latents,
    model: TransformerBridge,
    texts: Sequence[str] | Tensor,
    *,
    method: Method = "gradient",
    at: At = "own",
    maxima: Tensor | None = None,
    steps: int = 4,
    context: int = 128,
) -> Links:
    """What every source latent does to every target latent, at the token where it fires.

    Attention between the two is held (:class:`Between`), so the score is of what the source does
    at its own token, through MLPs and along the stream. Three methods, of the same cost to a
    factor:

    * ``"gradient"``: activation x gradient of the target's pre-activation, where the target fires
      (as in Marks et al. 2024, arXiv:2403.19647, between SAE latents);
    * ``"integrated"``: the gradient's mean along the way from the latent's absence to its value
      (Sundararajan et al. 2017, arXiv:1703.01365);
    * ``"ablation"``: the target's activation less what it is without the latent, no approximation;
      it also sees targets that only fire once the source is gone.

    Args:
        source: latents that write into the stream; their errors, and other latents, stay.
        target: latents that read at a later layer.
        texts: or tokens ``[rows, context]``, as :func:`kit.sae.pack` makes them.
        at: ``"own"`` takes latents at the activation that they have; ``"maximum"`` raises each to
            ``maxima`` first.
        maxima: ``[sources]``, the largest activations on a corpus (``store.maxima()``).
        steps: points on the way, for ``"integrated"``.

    Returns:
        The scores. A keyboard interrupt ends it early and keeps the texts that were read.

    Raises:
        ValueError: names the argument, its value, and what would be right; as
            :meth:`Latents.check`.
    """
    _check(source, target, model, method, at, maxima, steps)
    tokens = packed(model, texts, context)
    between = Between(model, source.site.layer, target.site)
    score = torch.zeros(len(source), len(target))
    fired, total, n = torch.zeros(len(source)), torch.zeros(len(target)), 0
    rows = source.rows
    with suppress(KeyboardInterrupt):
        for row in track(list(tokens.split(1)), "rows of text"):
            f, g, x = _read(between, source, target, row)
            part = torch.zeros_like(score)
            places = f.nonzero(as_tuple=True)  # tokens, and latents that fire on them
            for where, which in zip(*(part.split(_ENTRIES) for part in places), strict=True):
                d = rows[which]
                had = f[where, which][:, None]
                value = had if maxima is None or at == "own" else maxima[which][:, None]
                here = x[where] + (value - had) * d
                told = _effect(between, target, here, value * d, where, g, method, steps, moved=at == "maximum")
                part.index_add_(0, which, told)
            score += part  # whole rows of text only
            fired, total, n = fired + (f > 0).sum(0), total + g.sum(0), n + int((f > 0).any(1).sum())
    if not n:
        raise ValueError("no source latent fires on these texts: give other or longer ones")
    score /= fired.clamp(min=1)[:, None]
    return Links(source, target, score, fired, total, method, at, n)


def _check(
    source: Latents, target: Latents, model: TransformerBridge, method: str, at: str, maxima: Tensor | None, steps: int
) -> None:
    for latents in (source, target):
        latents.check(model)
    if method not in METHODS:
        raise ValueError(f"method={method!r}: use {', '.join(map(repr, METHODS))}")
    if at not in ("own", "maximum"):
        raise ValueError(f"at={at!r}: use 'own' or 'maximum'")
    if at == "maximum" and (maxima is None or maxima.shape != (len(source),)):
        given = None if maxima is None else list(maxima.shape)
        raise ValueError(
            f"maxima has shape {given}: at='maximum' takes [{len(source)}], the "
            "largest activation of each source latent (store.maxima())"
        )
    check_counts(steps=steps)


def _read(between: Between, source: Latents, target: Latents, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Latents of both kinds, 0 on sinks, and the stream: ``[tokens, ...]`` each, on the host, where
    sums are kept whatever devices the blocks are on."""
    (read,) = between.read(tokens, source.site)
    stream = between.stream.cpu()
    keep = counted(stream).flatten()[:, None]  # [rows, n] -> [tokens, 1]
    f, g = (latents.encode(x.cpu()).flatten(0, 1) * keep for latents, x in ((source, read), (target, between.target)))
    return f, g, stream.flatten(0, 1).float()


def _effect(
    between: Between,
    target: Latents,
    x: Tensor,
    step: Tensor,
    where: Tensor,
    g: Tensor,
    method: str,
    steps: int,
    moved: bool,
) -> Tensor:
    """What each ``step [n, d_model]``, which is in the stream x now, does to the targets
    ``[n, targets]``."""
    with torch.no_grad():
        now = target.encode(between(x, where)) if moved else g[where]
        if method == "ablation":
            return now - target.encode(between(x - step, where))
    back = [0.0] if method == "gradient" else [(i + 0.5) / steps for i in range(steps)]
    slope = torch.zeros_like(now)
    for share in back:
        with torch.enable_grad(), plain_kernels():
            told: Any = torch.func.jvp(lambda at: target.before(between(at, where)), (x - share * step,), (step,))
        slope += told[1].detach()
    return slope / len(back) * (now > 0)


@torch.no_grad()
def ablated(
    source: Latents,
    target: Latents,
    model: TransformerBridge,
    tokens: Tensor,
    latents: Sequence[int],
    *,
    of: Literal["activation", "pre-activation"] = "activation",
) -> Tensor:
    """The truth that links approximate: source latents taken out of the model, one at a time.

    A latent's part of the stream is removed wherever it fires, everything after it runs as it will,
    attention too.

    Args:
        tokens: ``[rows, n]``.
        latents: of the source.
        of: what is measured of the targets. A latent with a threshold falls from it to 0 at once,
            which no gradient sees; ``"pre-activation"``, where the target fires, leaves that out,
            and is what ``"gradient"`` and ``"integrated"`` are after.

    Returns:
        ``[latents, targets]``: what the latent did to the target, a mean over the tokens on which
        the latent fires (0 where it fires on none).

    Raises:
        ValueError: no such latent, an unknown ``of``, a target that does not lie after the source,
            or as :meth:`Latents.check`.
    """
    if of not in ("activation", "pre-activation"):
        raise ValueError(f"of={of!r}: use 'activation' or 'pre-activation'")
    source.check(model)
    target.check(model)
    source.check_latent(*latents)
    kept = capture(model, tokens, [source.site.place, (source.site.layer, "resid"), target.site.place])
    kept = {place: x.cpu() for place, x in kept.items()}
    keep = counted(kept[source.site.layer, "resid"])
    f = source.encode(kept[source.site.place]) * keep[..., None]
    fires = target.encode(kept[target.site.place]) > 0

    def value(x: Tensor, where: Tensor) -> Tensor:
        some = x[where]
        return target.encode(some) if of == "activation" else target.before(some) * fires[on]

    found, directions = torch.zeros(len(latents), len(target)), source.rows.to(f)
    stream, between = kept[source.site.layer, "resid"], Between(model, source.site.layer, target.site)
    between.read(tokens[:1])  # what its blocks get beside the stream fits any number of rows
    for n, i in enumerate(track(latents, "latents")):
        part, on = f[..., i, None] * directions[i], f[..., i] > 0
        rows = on.any(1)  # the others do not change
        if not bool(rows.any()):
            continue
        changed = between.live(stream[rows] - part[rows].to(stream)).cpu()
        now = value(kept[target.site.place], on)
        found[n] = (now - value(changed, on[rows])).mean(0)
    return found


def agreement(score: Tensor, truth: Tensor, n: int = 400) -> float:
    """Rank correlation (Spearman) of scores with the truth, over the n pairs that are largest in
    either: the many that are zero in both would decide it otherwise.

    Raises:
        ValueError: different shapes.
    """
    if score.shape != truth.shape:
        raise ValueError(f"score has shape {list(score.shape)} and truth {list(truth.shape)}: give the same pairs")
    a, b = score.flatten(), truth.flatten()
    some = torch.cat([x.abs().topk(min(n, len(x))).indices for x in (a, b)]).unique()
    ranks = torch.stack([x[some].argsort().argsort().float() for x in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


@torch.no_grad()
def weight_links(source: Latents, target: Latents, model: TransformerBridge) -> Tensor:
    """The weights alone: what each source row would do to each target latent if the MLP between
    were linear, ``[sources, targets]`` for activations of 1.

    The rows go through the norm's gain, the MLP's input and output matrices, and the target's
    encoder; the non-linearity (and, in gated MLPs, the gate) is left out, which is what
    :func:`links` shows to matter.

    Raises:
        ValueError: a target that does not read what an MLP puts out.
    """
    for latents in (source, target):
        latents.check(model)
    if target.site.kind != "mlp_out" or target.site.layer <= source.site.layer:
        raise ValueError(
            f"target reads {target.site}: the weights alone lead to what a later MLP "
            "puts out; take a dictionary of 'mlp_out'"
        )
    into, out, gain = (w.float().cpu() for w in runtime(model).mlp_matrices(target.site.layer))
    through = ((source.rows.cpu() * gain) @ into) @ out
    zero = target.before(torch.zeros(1, through.shape[1]))
    return target.before(through) - zero


@torch.no_grad()
def explained(
    found: Links,
    model: TransformerBridge,
    tokens: Tensor,
    targets: Sequence[int],
    keep: Sequence[float] = (0, 0.003, 0.01, 0.03, 0.1, 0.3, 1),
    *,
    per_target: int = 64,
    seed: int = 0,
) -> pd.DataFrame:
    """How much of the targets' activation a pruned graph still makes.

    Edges into each target latent are kept by size, in the manner of ACDC (Conmy et al. 2023,
    arXiv:2304.14997); every other source latent is then taken out of the stream that this target
    reads, attention held. What the dictionary does not explain stays.

    Args:
        tokens: ``[rows, n]``, other ones than the links are from.
        targets: latents; each is measured on up to ``per_target`` tokens on which it fires.
        keep: shares of the source latents (that fire here or there) whose edges are kept.

    Returns:
        Columns ``kept``, ``edges`` (into each target), ``explained`` (activation with the kept
        edges over activation with all, each summed over tokens and targets) and ``random`` (with
        as many edges drawn among the latents that fire).

    Raises:
        ValueError: no such latent, none that fires on these tokens, or a share outside 0 to 1.
    """
    source, target = found.source, found.target
    target.check_latent(*targets)
    if any(not 0 <= share <= 1 for share in keep):
        raise ValueError(f"keep={list(keep)}: give shares from 0 to 1")
    between = Between(model, source.site.layer, target.site)
    f, g, x = _read(between, source, target, tokens)
    rng = torch.Generator().manual_seed(seed)
    # latents that fire here only have no score, and go first
    alive, rows = ((found.fired > 0) | (f > 0).any(0)).nonzero()[:, 0], source.rows
    sums = torch.zeros(len(keep), 2)
    whole = 0.0
    for j in targets:
        at = g[:, j].nonzero()[:, 0]
        at = at[torch.randperm(len(at), generator=rng)[:per_target]]
        if not len(at):
            continue
        whole += float(g[at, j].sum())
        best = alive[found.share[alive, j].abs().argsort(descending=True, stable=True)]
        drawn = alive[torch.randperm(len(alive), generator=rng)]
        for i, share in enumerate(keep):
            n = round(share * len(alive))
            for k, chosen in enumerate((best[:n], drawn[:n])):
                gone = f[at].index_fill(1, chosen, 0)
                left = target.encode(between(x[at] - gone @ rows, at))
                sums[i, k] += float(left[:, j].sum())
    if not whole:
        raise ValueError(f"targets={list(targets)}: none of them fires on these tokens")
    edges, (best, drawn) = [round(s * len(alive)) for s in keep], (sums / whole).T
    return table(kept=keep, edges=edges, explained=best, random=drawn)
