"""Directions from contrast: mean difference, principal component, probe, and attention heads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kit.base.directions import unit
from kit.models.activations import Read, of_rows
from kit.models.bridge import check_layer, fingerprint
from kit.models.tokens import Text, text_rows
from kit.steering.intervention import Part
from kit.steering.vectors import SteeringVector

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Texts = Iterable[Text] | Text
FOLDS = 4  # in which held-out figures are measured


def mean_difference(positive: Tensor, negative: Tensor) -> Tensor:
    """Mean of the positives minus mean of the negatives, ``[n, d]`` to ``[d]``.

    Turner et al. 2023 (arXiv 2308.10248), Rimsky et al. 2023 (arXiv 2312.06681); also called
    mass-mean probing in Marks and Tegmark 2023 (arXiv 2310.06824).
    """
    return positive.mean(0) - negative.mean(0)


def pca(positive: Tensor, negative: Tensor) -> Tensor:
    """First principal component of pairs centred on their own mean, ``[n, d]`` to ``[d]``.

    Each pair becomes +-(p - n) / 2, so the centred data has mean zero by construction and the
    component is the top right singular vector of the differences. Zou et al. 2023
    (arXiv 2310.01405). Needs as many positives as negatives, in the same order.
    """
    if len(positive) != len(negative):
        raise ValueError(f"method='pca' needs pairs; got {len(positive)} positive and {len(negative)} negative")
    direction = torch.linalg.svd(positive - negative, full_matrices=False).Vh[0]
    return direction * torch.sign(direction @ mean_difference(positive, negative))


def probe(positive: Tensor, negative: Tensor) -> Tensor:
    """Weights of a logistic regression that tells the two apart, ``[n, d]`` to ``[d]``.

    L2-regularised on standardised features, mapped back to the activation's own coordinates.
    """
    from sklearn.linear_model import LogisticRegression

    x = torch.cat([positive, negative])
    spread = x.std(0).clamp(min=1e-6)
    y = [1] * len(positive) + [0] * len(negative)
    found = LogisticRegression(C=0.1, max_iter=2000).fit(((x - x.mean(0)) / spread).numpy(), y)
    return torch.tensor(found.coef_[0], dtype=torch.float32) / spread


METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mean": mean_difference, "pca": pca, "probe": probe}


def auroc(positive: Tensor, negative: Tensor) -> float:
    """Chance that a positive score exceeds a negative one; ties count half."""
    wins = (positive[:, None] > negative).float() + 0.5 * (positive[:, None] == negative).float()
    return float(wins.mean())


def fit(
    model: TransformerBridge,
    positive: Texts,
    negative: Texts,
    layer: int,
    method: str = "mean",
    read: Read = "last",
    *,
    name: str | None = None,
) -> SteeringVector:
    """A steering vector from texts that have a property and texts that lack it.

    Args:
        positive, negative: plain texts or tokens, as :func:`kit.models.tokens.text_rows` takes
            them, one or more; pairs in the same order, if they are pairs (``"pca"`` needs that, and
            pairs are kept together when data is held out). One pair is Activation Addition (Turner
            et al. 2023).
        layer: where the residual stream is read and will be steered.
        method: ``"mean"``, ``"pca"`` or ``"probe"`` (see the functions of this module).
        read: token position(s): ``"last"``, ``"mean"``, an int or a slice.

    Returns:
        The vector fitted on all texts. Its ``metadata["auroc"]`` is held-out: the mean over four
        folds (fewer of fewer texts) of how well a direction fitted on the rest separates the fold;
        or it says that nothing could be held out.

    Raises:
        ValueError: no texts, an unknown method, layer or read, or sides that differ by no more than
            rounding.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r}: use {', '.join(map(repr, METHODS))}")
    check_layer(model, layer)
    sides = _sides(model, positive, negative, [layer], read, "resid")
    up, down = (side[:, :, 0] for side in sides)  # [texts, tokens, d]
    direction = METHODS[method](up.flatten(0, 1), down.flatten(0, 1))  # of [texts * tokens, d]
    _check_apart(model, up.flatten(0, 1), down.flatten(0, 1), f"at layer {layer}")
    scores = []
    for train, test in _folds(len(up), len(down)):
        if not all(map(len, test)):
            continue
        found = METHODS[method](*(side[i].flatten(0, 1) for side, i in zip((up, down), train, strict=True)))
        scores.append(auroc(*(side[i].flatten(0, 1) @ found for side, i in zip((up, down), test, strict=True))))
    about = {
        "auroc": round(sum(scores) / len(scores), 4) if scores else _not_held_out(len(up), len(down)),
        "folds": len(scores),
        "positive": len(up),
        "negative": len(down),
        "read": str(read),
    }
    return SteeringVector(
        direction, layer, name or f"{method} @{layer}", method, fingerprint=fingerprint(model), metadata=about
    )


def _sides(
    model: TransformerBridge, positive: Texts, negative: Texts, layers: Sequence[int], read: Read, site: str
) -> tuple[Tensor, Tensor]:
    """Activations ``[texts, tokens, layers, width]`` of both sides."""
    up, down = text_rows(model, positive, "positive"), text_rows(model, negative, "negative")
    both = of_rows(model, [*up, *down], layers, read, site=site)
    n = len(up) + len(down)
    if len(both) % n:
        raise ValueError(f"read={read!r} reads different numbers of tokens from the texts")
    both = both.reshape(n, -1, *both.shape[1:])  # [texts * tokens, ...] to [texts, tokens, layers, width]
    return both[: len(up)], both[len(up) :]


def _check_apart(model: TransformerBridge, up: Tensor, down: Tensor, where: str) -> None:
    """Refuse sides ``[n, d]`` whose means are no further apart than rounding brings them, as those
    of the same texts in other batches are: some steps of float32, and in each text about one of the
    model's dtype."""
    coarse = torch.finfo(model.cfg.dtype).eps / min(len(up), len(down)) ** 0.5
    size = torch.cat([up, down]).norm(dim=-1).square().mean().sqrt()
    apart = mean_difference(up, down).norm()
    if not apart > size * max(32 * torch.finfo(torch.float32).eps, 2 * coarse):
        raise ValueError(
            f"positive and negative are the same {where}: their means are {float(apart):.2g} apart, which is rounding "
            f"in activations of norm {float(size):.3g}; give texts that differ up to where they are read"
        )


def _not_held_out(n_up: int, n_down: int) -> str:
    pairs = f"{n_up} pair{'s' * (n_up > 1)}" if n_up == n_down else f"{n_up} positive and {n_down} negative"
    return f"not held out: {pairs}"


def _folds(n_up: int, n_down: int) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Train and test indices of both sides; index i of both is always held out together. None where
    a side has one text."""
    count = min(FOLDS, n_up, n_down)
    order = torch.randperm(max(n_up, n_down), generator=torch.Generator().manual_seed(0))
    if min(n_up, n_down) < 2 * FOLDS:  # what both sides have first, so that every fold gets of it
        order = torch.cat([order[order < min(n_up, n_down)], order[order >= min(n_up, n_down)]])
    folds = []
    for fold in range(count if count > 1 else 0):
        held = torch.zeros(len(order), dtype=torch.bool)
        held[order[fold::count]] = True
        split = [(~held[:n]).nonzero()[:, 0] for n in (n_up, n_down)]
        if all(map(len, split)):
            folds.append((split, [held[:n].nonzero()[:, 0] for n in (n_up, n_down)]))
    return folds


@dataclass(frozen=True, eq=False)
class HeadSteering:
    """Inference-time intervention on attention heads: an intervention with many small parts.

    Attributes:
        heads: (layer, head) of each chosen head, best first.
        directions: unit vectors ``[heads, d_head]``.
        sigmas: standard deviation of the activations along each direction; coefficient 1 moves
            every chosen head by one of its own standard deviations.
        accuracy: held-out probe accuracy of every head of the model, ``[layers, heads]``.
    """

    heads: list[tuple[int, int]]
    directions: Tensor
    sigmas: list[float]
    accuracy: Tensor
    name: str = "heads"
    fingerprint: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def parts(self, model: TransformerBridge) -> list[Part]:
        """One :class:`kit.steering.intervention.Part` a head, on the heads' outputs before they are
        mixed."""
        found = []
        d_head = self.directions.shape[1]
        for (layer, head), direction, sigma in zip(self.heads, self.directions, self.sigmas, strict=True):
            flat = torch.zeros(model.cfg.n_heads * model.cfg.d_head)
            flat[head * d_head : (head + 1) * d_head] = direction
            found.append(Part(layer, "z", flat, sigma))
        return found

    def random(self, seed: int = 0) -> HeadSteering:
        """The control: random directions in the same heads, moved as far."""
        rng = torch.Generator().manual_seed(seed)
        noise = torch.randn(self.directions.shape, generator=rng)
        return replace(self, directions=noise / noise.norm(dim=-1, keepdim=True), name=f"random {seed}", metadata={})


def fit_heads(
    model: TransformerBridge, positive: Texts, negative: Texts, top_k: int = 16, *, name: str = "heads"
) -> HeadSteering:
    """Find the heads that tell two kinds of text apart, and the direction in each.

    A logistic probe on every head's output at the last token, ranked by held-out accuracy (four
    folds, fewer of fewer texts, pairs kept together); the direction is the mean difference, the
    step its standard deviation. Li et al. 2023, Inference-Time Intervention (arXiv 2306.03341).

    Raises:
        ValueError: ``top_k`` outside the model's number of heads, a side of one text, which leaves
            nothing to rank by, or sides that leave every head chosen the same.
    """
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    cfg = model.cfg
    n = cfg.n_layers * cfg.n_heads
    if not 1 <= top_k <= n:
        raise ValueError(f"top_k={top_k!r}: this model has {n} heads")
    sides = _sides(model, positive, negative, range(cfg.n_layers), "last", "z")
    up, down = (s[:, 0].reshape(len(s), n, -1) for s in sides)  # [texts, layers * heads, d_head]
    folds = _folds(len(up), len(down))
    if not folds:
        raise ValueError(f"heads are ranked on held-out texts; {_not_held_out(len(up), len(down))}: give two or more")
    hits = torch.zeros(n)
    for train, test in folds:
        x, y = torch.cat([up[train[0]], down[train[1]]]), _labels(*train)
        held, truth = torch.cat([up[test[0]], down[test[1]]]), _labels(*test)
        mean, spread = x.mean(0), x.std(0).clamp(min=1e-6)
        x, held = (x - mean) / spread, (held - mean) / spread
        with threadpool_limits(1):  # fits this small only wait for each other's threads
            for head in range(n):
                line = LogisticRegression(C=0.1, max_iter=500).fit(x[:, head].numpy(), y)
                hits[head] += float((line.predict(held[:, head].numpy()) == truth).mean()) / len(folds)
    best = hits.argsort(descending=True, stable=True)[:top_k].tolist()
    _check_apart(model, up[:, best].flatten(1), down[:, best].flatten(1), "in every head chosen")
    shift = torch.stack([mean_difference(up[:, h], down[:, h]) for h in best])
    directions = unit(shift)
    both = torch.cat([up, down])
    sigmas = [float((both[:, h] @ d).std()) for h, d in zip(best, directions, strict=True)]
    return HeadSteering(
        [divmod(h, cfg.n_heads) for h in best],
        directions,
        sigmas,
        hits.reshape(cfg.n_layers, cfg.n_heads),
        name,
        fingerprint(model),
        {"top_k": top_k, "positive": len(up), "negative": len(down), "folds": len(folds)},
    )


def _labels(up: Tensor, down: Tensor) -> Any:
    import numpy as np

    return np.array([1] * len(up) + [0] * len(down))
