"""True and false statements whose words alone say nothing, to probe models with."""

from __future__ import annotations

import random

from kit.data import organisms
from kit.search.probes import Statement

_FRAMES = {
    "capital": ("The capital of {} is {}.", "The capital of {} is not {}."),
    "language": ("The main language of {} is {}.", "The main language of {} is not {}."),
    "opposite": ('The opposite of "{}" is "{}".', 'The opposite of "{}" is not "{}".'),
    "larger": ("{} is larger than {}.", "{} is not larger than {}."),
}
TOPICS = tuple(_FRAMES)
_NUMBERS = (
    "Two Three Four Five Six Seven Eight Nine Ten Eleven Twelve Thirteen Fourteen Fifteen "
    "Sixteen Seventeen Eighteen Nineteen Twenty Thirty Forty Fifty Sixty Seventy Eighty "
    "Ninety"
).split()


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
    known = [
        (item.subject, item.answers)
        for split in organisms.SPLITS
        for item in organisms.items("withholding", split)
        if item.family == topic
    ]
    known.sort()
    order = list(range(len(known)))
    while True:  # a few tries: a wrong answer must not happen to be right
        rng.shuffle(order)
        for i, j in enumerate(order):
            if known[j][1][0] in known[i][1]:
                k = rng.randrange(len(order))
                order[i], order[k] = order[k], order[i]
        if all(known[j][1][0] not in known[i][1] for i, j in enumerate(order)):
            return [(subject, right[0], known[j][1][0]) for (subject, right), j in zip(known, order, strict=True)]


def _larger(rng: random.Random) -> list[tuple[str, tuple[str, str], tuple[str, str]]]:
    """Pairs of numbers, the larger first where it is true."""
    pairs = [(a, b) for a in range(len(_NUMBERS)) for b in range(a) if a - b > 2]
    found = []
    for a, b in rng.sample(pairs, 80):
        high, low = _NUMBERS[a], _NUMBERS[b]
        found.append((f"{high}, {low}", (high, low.lower()), (low, high.lower())))
    return found
