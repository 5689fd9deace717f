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

from kit import organisms
from kit.activations import Read, residuals
from kit.contrast import METHODS, auroc
from kit.models import check_layer
from kit.progress import track

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

_FRAMES = {
    "capital": ("The capital of {} is {}.", "The capital of {} is not {}."),
    "language": ("The main language of {} is {}.", "The main language of {} is not {}."),
    "opposite": ('The opposite of "{}" is "{}".', 'The opposite of "{}" is not "{}".'),
    "larger": ("{} is larger than {}.", "{} is not larger than {}."),
}
TOPICS = tuple(_FRAMES)
_NUMBERS = ("Two Three Four Five Six Seven Eight Nine Ten Eleven Twelve Thirteen Fourteen Fifteen "
            "Sixteen Seventeen Eighteen Nineteen Twenty Thirty Forty Fifty Sixty Seventy Eighty "
            "Ninety").split()  # fmt: skip
_FOLDS = 4


@dataclass(frozen=True)
class Statement:
    """A sentence that is true or false; ``subject`` is what it is about."""

    text: str
    true: bool
    topic: str
    subject: str
    negated: bool = False


def statements(topic: str, negated: bool = False, seed: int = 0) -> list[Statement]:
    """Two statements of each subject, one true and one false.

    Each answer stands in as many true as false statements, so that the answer's words alone say
    nothing; with ``negated`` the same subjects and answers, and the other truth.

    Args:
        topic: ``"capital"``, ``"language"``, ``"opposite"`` (facts of the kit's own lists, most of
            which the embedded model knows), or ``"larger"`` (numbers in words).
        seed: which wrong answer each subject gets.

    Raises:
        ValueError: another topic.
    """
    if topic not in _FRAMES:
        raise ValueError(f"topic={topic!r}: use {', '.join(map(repr, TOPICS))}")
    rng, frame = random.Random(seed), _FRAMES[topic][negated]
    found = []
    for subject, right, wrong in _larger(rng) if topic == "larger" else _facts(topic, rng):
        for answer, fits in ((right, True), (wrong, False)):
            pair = answer if isinstance(answer, tuple) else (subject, answer)
            found.append(Statement(frame.format(*pair), fits != negated, topic, subject, negated))
    return found


def _facts(topic: str, rng: random.Random) -> list[tuple[str, str, str]]:
    """Subject, right answer, and the right answer of another subject, each given once."""
    known = [(item.subject, item.answers) for split in organisms.SPLITS
             for item in organisms.items("withholding", split) if item.family == topic]  # fmt: skip
    known.sort()
    order = list(range(len(known)))
    while True:  # a few tries: a wrong answer must not happen to be right
        rng.shuffle(order)
        for i, j in enumerate(order):
            if known[j][1][0] in known[i][1]:
                k = rng.randrange(len(order))
                order[i], order[k] = order[k], order[i]
        if all(known[j][1][0] not in known[i][1] for i, j in enumerate(order)):
            return [(subject, right[0], known[j][1][0])
                    for (subject, right), j in zip(known, order, strict=True)]  # fmt: skip


def _larger(rng: random.Random) -> list[tuple[str, tuple[str, str], tuple[str, str]]]:
    """Pairs of numbers, the larger first where it is true."""
    pairs = [(a, b) for a in range(len(_NUMBERS)) for b in range(a) if a - b > 2]
    found = []
    for a, b in rng.sample(pairs, 80):
        high, low = _NUMBERS[a], _NUMBERS[b]
        found.append((f"{high}, {low}", (high, low.lower()), (low, high.lower())))
    return found


def across_layers(
    model: TransformerBridge, train: Sequence[Statement], tests: Mapping[str, Sequence[Statement]],
    layers: Iterable[int] | None = None, methods: Sequence[str] = ("mean", "probe"),
    read: Read = "last", controls: int = 3, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """How well probes of each layer tell true from false, where they were trained and elsewhere.

    Args:
        train: what probes are fitted on. On these themselves, four folds, a subject in one fold
            only: ``"held out"``.
        tests: further statements, by name, for probes fitted on all of ``train``. Subjects of
            ``train`` in them are fine where that is the question (negations), else not.
        layers: default all.
        methods: of :data:`kit.contrast.METHODS`: ``"mean"``, ``"probe"`` (logistic); ``"pca"``
            needs statements in pairs.
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
    if len(subjects) < 2 * _FOLDS:
        raise ValueError(f"train has {len(subjects)} subjects: give {2 * _FOLDS} or more")
    if not controls >= 1:
        raise ValueError(f"controls={controls!r}: give a whole number from 1 on")
    random.Random(seed).shuffle(subjects)
    fold = torch.tensor([subjects.index(s.subject) % _FOLDS for s in train])
    sets = {"train": train, **tests}
    x = {name: residuals(model, [s.text for s in some], layers, read) for name, some in sets.items()}
    y = {name: torch.tensor([s.true for s in some]) for name, some in sets.items()}
    rng = torch.Generator().manual_seed(seed)
    labels = [y["train"], *(y["train"][torch.randperm(len(train), generator=rng)]
                            for _ in range(controls))]  # fmt: skip
    rows = []
    for method in methods:
        for i, layer in enumerate(track(layers, f"layers, {method}")):
            here = x["train"][:, i]
            found: dict[str, list[tuple[float, float]]] = {}
            for label in labels:
                parts = [_judged(_fitted(method, here[fold != k], label[fold != k]),
                                 here[fold == k], y["train"][fold == k]) for k in range(_FOLDS)]  # fmt: skip
                found.setdefault("held out", []).append(
                    (sum(a for a, _ in parts) / _FOLDS, sum(b for _, b in parts) / _FOLDS))
                line = _fitted(method, here, label)
                for name in tests:
                    found.setdefault(name, []).append(_judged(line, x[name][:, i], y[name]))
            for name, ((area, accuracy), *shuffled) in found.items():
                areas = [a for a, _ in shuffled]
                rows.append({"method": method, "layer": layer, "test": name, "auroc": area,
                             "accuracy": accuracy, "low": min(areas), "high": max(areas)})  # fmt: skip
    return pd.DataFrame(rows)


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
