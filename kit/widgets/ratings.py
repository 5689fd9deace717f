"""A blind test of texts: order, answers, summary and the CSV they live in. Knows no widget."""
from __future__ import annotations

import csv
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kit.untrusted import MOST_JSON, size_at_most, whole

_FIELDS = ("item", "prompt", "text", "label", "steered", "score", "guess")


@dataclass(frozen=True)
class Item:
    """A text to rate; ``label`` (its coefficient) stays hidden until the end."""

    text: str
    label: str
    steered: bool
    prompt: str = ""

    @property
    def id(self) -> str:
        """Ten hex digits of everything the item is."""
        parts = "\x1f".join([self.prompt, self.text, self.label, str(self.steered)])
        return hashlib.sha256(parts.encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Answer:
    """A score from 1 (poor) to 5 (good), and whether the rater thinks the text was steered."""

    score: int
    guess: bool


class Ratings:
    """The texts in a seeded order, and what was said of them so far."""

    def __init__(self, items: Sequence[Item], path: str | Path | None = None, seed: int = 0):
        """Go on where the CSV at ``path`` ends, if there is one.

        Raises:
            ValueError: no items, or a CSV that holds ratings of other texts.
        """
        self.items = list({item.id: item for item in items}.values())
        if not self.items:
            raise ValueError("items=[]: there is no text to rate")
        random.Random(seed).shuffle(self.items)
        self.path = None if path is None else Path(path)
        self.answers: dict[str, Answer] = {}
        if self.path is not None and self.path.exists():
            self._resume(self.path)

    @property
    def current(self) -> Item | None:
        """The next text without an answer; None when all have one."""
        return next((item for item in self.items if item.id not in self.answers), None)

    def rate(self, score: int, guess: bool) -> None:
        """Answer for the current text, and write the CSV.

        Raises:
            ValueError: all are rated, or a score outside 1 to 5.
        """
        if self.current is None:
            raise ValueError("every text is rated: make a new rating to go on")
        if score not in (1, 2, 3, 4, 5):
            raise ValueError(f"score={score!r}: give a whole number from 1 to 5")
        self.answers[self.current.id] = Answer(score, bool(guess))
        if self.path is not None:
            self.save(self.path)

    def summary(self) -> dict[str, float | int | None]:
        """Hits among the guesses, and mean scores of steered and unsteered texts."""
        rated = [(item, self.answers[item.id]) for item in self.items if item.id in self.answers]

        def mean(steered: bool) -> float | None:
            scores = [a.score for item, a in rated if item.steered == steered]
            return sum(scores) / len(scores) if scores else None

        return {
            "rated": len(rated),
            "hits": sum(a.guess == item.steered for item, a in rated),
            "mean score steered": mean(True),
            "mean score unsteered": mean(False),
        }

    def save(self, path: Path) -> None:
        """Write the CSV whole or not at all."""
        with whole(path) as part, part.open("w", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, _FIELDS)
            writer.writeheader()
            for item in self.items:
                if answer := self.answers.get(item.id):
                    writer.writerow({
                        "item": item.id, "prompt": item.prompt, "text": item.text,
                        "label": item.label, "steered": int(item.steered),
                        "score": answer.score, "guess": int(answer.guess),
                    })

    def _resume(self, path: Path) -> None:
        known = {item.id for item in self.items}
        size_at_most(path, MOST_JSON)
        try:
            with open(path, newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            found = {row["item"]: Answer(int(row["score"]), row["guess"] == "1") for row in rows}
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise ValueError(f"{path} is no CSV of ratings: {error!r:.200}") from error
        if any(answer.score not in (1, 2, 3, 4, 5) for answer in found.values()):
            raise ValueError(f"{path} is no CSV of ratings: a score is outside 1 to 5")
        if not set(found) <= known:
            raise ValueError(f"{path} holds ratings of other texts; give another path")
        self.answers = found
