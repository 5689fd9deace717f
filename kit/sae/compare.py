"""Are they the same latents? Maximal cosine similarity across widths, and k-sparse probes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kit.base.checks import is_whole
from kit.base.directions import random_units, unit
from kit.base.progress import track
from kit.models.bridge import runtime
from kit.models.logit_lens import said_by
from kit.models.sites import Site
from kit.models.tokens import packed
from kit.sae.dictionary import Dictionary
from kit.sae.latents import Latents
from kit.sae.quality import next_log_p

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False)
class Match:
    """For each row of one set, the nearest of another.

    Attributes:
        cosine: ``[n]``, the largest (signed) cosine; nearest: ``[n]``, whose it is.
    """

    cosine: Tensor
    nearest: Tensor

    @property
    def mean(self) -> float:
        """MMCS, the mean of the maximal cosines."""
        return float(self.cosine.mean())


def mcs(a: Latents | Tensor, b: Latents | Tensor) -> Match:
    """Maximal cosine similarity of each decoder row of ``a`` among those of ``b``.

    Directional, and signed: a row that points the other way is no match. From a smaller to a
    larger dictionary it asks which latents were found again (Sharkey, Braun and Millidge 2022;
    Cunningham et al. 2023, arXiv:2309.08600).

    Args:
        a, b: dictionaries, or rows ``[n, width]``.

    Raises:
        ValueError: rows of different widths, or zero rows only.
    """
    x, y = (rows.rows if isinstance(rows, Latents) else rows.float() for rows in (a, b))
    if x.dim() != 2 or y.dim() != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"a has shape {list(x.shape)} and b {list(y.shape)}: give rows of one width")
    y = unit(y)
    parts = [(unit(some) @ y.T).max(1) for some in x.split(4096)]
    return Match(torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts]))


def children(a: Latents | Tensor, b: Latents | Tensor, above: float = 0.7) -> list[list[int]]:
    """For each latent of ``a``, those of ``b`` that are nearest to it and nearer than ``above``:
    two and more where it split.

    Raises:
        ValueError: as :func:`mcs`.
    """
    back = mcs(b, a)
    found: list[list[int]] = [[] for _ in range(len(a))]
    for i in (back.cosine > above).nonzero()[:, 0].tolist():
        found[int(back.nearest[i])].append(i)
    return found


class Neighbours:
    """The latents nearest to one: in its own dictionary, in others, and in what they say.

    "What they say" is the change of all tokens' log-odds that a row makes through the final norm's
    gain and the unembedding; the angle between two such changes needs only the unembedding's
    covariance, ``[d_model, d_model]``.

    Attributes:
        loudness: ``[latents]``, root mean square of that change over the vocabulary, at activation
            1, in nats before the final norm's scale.
    """

    def __init__(self, dictionary: Latents, model: TransformerBridge, others: Sequence[Latents] = ()) -> None:
        """
        Raises:
            ValueError: as :func:`mcs`, or as :meth:`Latents.check`.
        """
        for each in (dictionary, *others):
            each.check(model)
        self.dictionary, self.others = dictionary, list(others)
        self._rows = unit(dictionary.rows)
        self._theirs = [unit(each.rows) for each in others]
        said = dictionary.rows @ said_by(model).to(self._rows)
        self.loudness = said.norm(dim=-1) / model.cfg.d_vocab**0.5
        self._said = unit(said)

    def same(self, latent: int, n: int = 3) -> list[tuple[int, float]]:
        """Latents and cosines of the dictionary's other rows, nearest first."""
        self.dictionary.check_latent(latent)
        return _nearest(self._rows, latent, n)

    def saying(self, latent: int, n: int = 3) -> list[tuple[int, float]]:
        """Latents that change the tokens' log-odds most alike, and the cosines of the changes."""
        self.dictionary.check_latent(latent)
        return _nearest(self._said, latent, n)

    def elsewhere(self, latent: int) -> list[tuple[Latents, int, float]]:
        """In each other dictionary the nearest latent and its cosine."""
        self.dictionary.check_latent(latent)
        found = []
        for each, rows in zip(self.others, self._theirs, strict=True):
            cosine, at = (rows @ self._rows[latent]).max(0)
            found.append((each, int(at), float(cosine)))
        return found


def _nearest(rows: Tensor, latent: int, n: int) -> list[tuple[int, float]]:
    cosine = rows @ rows[latent]
    cosine[latent] = -2.0
    best = cosine.topk(min(n, len(cosine) - 1))
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def mcs_table(
    dictionaries: Sequence[Dictionary], control: Sequence[Dictionary] = (), *, above: float = 0.9, seed: int = 0
) -> pd.DataFrame:
    """MMCS of every dictionary with the next larger one, beside two controls.

    Args:
        dictionaries: in rising width.
        control: the same widths, trained on a model with random weights (Heap et al. 2025,
            arXiv:2501.17727): what the method finds where nothing was learnt.
        above: cosines that count as found again.

    Returns:
        Columns ``a, b`` (names), ``mmcs``, ``found`` (share above), ``random`` (MMCS of random
        rows of the same sizes) and, with controls, ``untrained`` and ``untrained_found``.

    Raises:
        ValueError: fewer than two dictionaries, or controls of other sizes.
    """
    import pandas as pd

    if len(dictionaries) < 2:
        raise ValueError(f"dictionaries={list(dictionaries)}: give two or more, in rising width")
    if control and [len(d) for d in control] != [len(d) for d in dictionaries]:
        raise ValueError(
            f"control has sizes {[len(d) for d in control]}: give the sizes {[len(d) for d in dictionaries]}"
        )
    rows = []
    for i, (a, b) in enumerate(pairwise(dictionaries)):
        found, d = mcs(a, b), a.rows.shape[1]
        row = {
            "a": a.name,
            "b": b.name,
            "mmcs": found.mean,
            "found": float((found.cosine > above).float().mean()),
            "random": mcs(random_units(len(a), d, seed), random_units(len(b), d, seed + 1)).mean,
        }
        if control:
            plain = mcs(control[i], control[i + 1])
            row |= {"untrained": plain.mean, "untrained_found": float((plain.cosine > above).float().mean())}
        rows.append(row)
    return pd.DataFrame(rows)


@torch.no_grad()
def importance(dictionary: Latents, model: TransformerBridge, tokens: Tensor, latents: Sequence[int]) -> Tensor:
    """What the model's loss loses when a latent is taken out of the stream: ``[latents]``.

    What the latent writes, ``activation * row``, is subtracted from the residual stream after its
    layer (a dictionary's error stays), at every position but the first.

    Args:
        tokens: ``[rows, n]``.

    Returns:
        Increase of the cross-entropy in nats, a mean over all tokens (not only where it fires).

    Raises:
        ValueError: no such latent, or as :meth:`Latents.check`.
    """
    dictionary.check(model)
    dictionary.check_latent(*latents)
    tokens = packed(model, tokens, name="tokens").to(model.cfg.device)

    def loss(site: Site, change: Callable[[Tensor], Tensor]) -> float:
        return -float(next_log_p(model, tokens, site, change).gather(-1, tokens[:, 1:, None]).mean())

    kept: list[Tensor] = []
    stream = Site(dictionary.site.layer)

    def keep(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    with runtime(model).lock:
        clean = loss(dictionary.site, keep)
        values = dictionary.encode(kept[0])
        values[:, 0] = 0
        found = []
        for i in track(latents, "latents"):
            part = values[..., i, None] * dictionary.rows[i].to(values)
            found.append(loss(stream, lambda x, part=part: x - part.to(x)) - clean)  # type: ignore[misc]
    return torch.tensor(found)


def sparse_probe(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], k: int | None) -> tuple[float, list[int]]:
    """Accuracy of a logistic probe on the k features that differ most between two classes.

    Features are chosen by the difference of their class means, on the training set (Gurnee et al.
    2023, arXiv:2305.01610; the measure of SAEBench, Karvonen et al. 2025, arXiv:2503.09532).

    Args:
        train, test: features ``[n, m]`` (latents, or the stream's own coordinates as the baseline)
            and labels ``[n]`` of 0 and 1.
        k: how many features; None for all.

    Returns:
        Accuracy on the test set, and the features.

    Raises:
        ValueError: a k that makes no sense, or one class only.
    """
    from sklearn.linear_model import LogisticRegression

    (x, y), (x_test, y_test) = train, test
    if k is not None and (not is_whole(k) or not 1 <= k <= x.shape[1]):
        raise ValueError(f"k={k!r}: give 1 to {x.shape[1]}, or None for all features")
    on = y.bool()
    if bool(on.all()) or not bool(on.any()):
        raise ValueError("train has one class only: give examples of both")
    gap = (x[on].mean(0) - x[~on].mean(0)).abs()
    best = torch.arange(x.shape[1]) if k is None else gap.argsort(descending=True, stable=True)[:k]
    scale = x[:, best].std(0).clamp(min=1e-6)
    probe = LogisticRegression(max_iter=1000)
    probe.fit((x[:, best] / scale).numpy(), y.numpy())
    return float(probe.score((x_test[:, best] / scale).numpy(), y_test.numpy())), best.tolist()
