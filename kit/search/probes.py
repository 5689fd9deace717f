"""Probes for truth: statements whose answer is known, and lines that tell the true from the false.

A probe that works on what it was trained on says little. :func:`across_layers` asks it about other
subjects, other topics and negations, which turn true into false without touching the words that
carry the fact (Marks and Tegmark 2023, arXiv:2310.06824; Levinstein and Herrmann 2023,
arXiv:2307.00175; Bürger, Hamprecht and Nadler 2024, arXiv:2407.12831), and trains it on shuffled
labels too, which is what a line in so many dimensions finds by luck.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kit.base.checks import check_counts
from kit.base.progress import track
from kit.models.activations import Read, residuals
from kit.models.bridge import check_layer
from kit.search.contrast import FOLDS, METHODS, auroc

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class Statement:
    """A sentence that is true or false; ``subject`` is what it is about."""

    text: str
    true: bool
    topic: str
    subject: str
    negated: bool = False


def across_layers(
    model: TransformerBridge,
    train: Sequence[Statement],
    tests: Mapping[str, Sequence[Statement]],
    layers: Iterable[int] | None = None,
    methods: Sequence[str] = ("mean", "probe"),
    read: Read = "last",
    controls: int = 3,
    seed: int = 0,
) -> pd.DataFrame:
    """How well probes of each layer tell true from false, where they were trained and elsewhere.

    Args:
        train: what probes are fitted on. On these themselves, four folds, a subject in one fold
            only: ``"held out"``.
        tests: further statements, by name, for probes fitted on all of ``train``. Subjects of
            ``train`` in them are fine where that is the question (negations), else not.
        layers: default all.
        methods: of :data:`kit.search.contrast.METHODS`: ``"mean"``, ``"probe"`` (logistic);
            ``"pca"`` needs statements in pairs.
        read: at which token(s): the last one is the full stop.
        controls: how many times the same is fitted to shuffled labels.

    Returns:
        Columns ``method``, ``layer``, ``test``, ``auroc`` (0.5 is chance; below, the probe says the
        opposite), ``accuracy`` (threshold: midway between the class means of ``train``; where a
        test's activations lie elsewhere as a whole it suffers, and AUROC does not), ``low`` and
        ``high`` (AUROCs of the controls, from the lowest to the highest). Where a
        layer knows nothing, a logistic probe's held-out figures lie below 0.5, not at it: an answer
        that is true of a subject left out was a wrong one in what is left.

    Raises:
        ValueError: a layer, method or ``read`` that is not there; statements that are all true or
            all false, fewer than eight subjects, or no control.
    """
    import pandas as pd

    layers = list(range(model.cfg.n_layers) if layers is None else layers)
    for layer in layers:
        check_layer(model, layer)
    for method in methods:
        if method not in METHODS:
            raise ValueError(f"method={method!r}: use {', '.join(map(repr, METHODS))}")
    for name, some in {"train": train, **tests}.items():
        if len({s.true for s in some}) < 2:
            raise ValueError(f"{name} needs true and false statements; it has {len(some)}, all alike")
    subjects = sorted({s.subject for s in train})
    if len(subjects) < 2 * FOLDS:
        raise ValueError(f"train has {len(subjects)} subjects: give {2 * FOLDS} or more")
    check_counts(controls=controls)
    random.Random(seed).shuffle(subjects)
    fold = torch.tensor([subjects.index(s.subject) % FOLDS for s in train])
    sets = {"train": train, **tests}
    x = {name: residuals(model, [s.text for s in some], layers, read) for name, some in sets.items()}
    y = {name: torch.tensor([s.true for s in some]) for name, some in sets.items()}
    rng = torch.Generator().manual_seed(seed)
    labels = [y["train"], *(y["train"][torch.randperm(len(train), generator=rng)] for _ in range(controls))]
    rows = []
    for method in methods:
        for i, layer in enumerate(track(layers, f"layers, {method}")):
            here = x["train"][:, i]
            found: dict[str, list[tuple[float, float]]] = {}
            for label in labels:
                parts = [
                    _judged(_fitted(method, here[fold != k], label[fold != k]), here[fold == k], y["train"][fold == k])
                    for k in range(FOLDS)
                ]
                found.setdefault("held out", []).append(
                    (sum(a for a, _ in parts) / FOLDS, sum(b for _, b in parts) / FOLDS)
                )
                line = _fitted(method, here, label)
                for name in tests:
                    found.setdefault(name, []).append(_judged(line, x[name][:, i], y[name]))
            for name, ((area, accuracy), *shuffled) in found.items():
                areas = [a for a, _ in shuffled]
                rows.append((method, layer, name, area, accuracy, min(areas), max(areas)))
    return pd.DataFrame(rows, columns=["method", "layer", "test", "auroc", "accuracy", "low", "high"])


def _fitted(method: str, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """A direction ``[d]``, and the score midway between the two classes' means."""
    positive, negative = x[label], x[~label]
    if method == "pca":  # pairs, as far as there are
        n = min(len(positive), len(negative))
        positive, negative = positive[:n], negative[:n]
    line = METHODS[method](positive, negative)
    return line, (positive.mean(0) + negative.mean(0)) @ line / 2


def _judged(fitted: tuple[Tensor, Tensor], x: Tensor, truth: Tensor) -> tuple[float, float]:
    """AUROC and accuracy."""
    score = x @ fitted[0] - fitted[1]
    return auroc(score[truth], score[~truth]), float(((score > 0) == truth).float().mean())
