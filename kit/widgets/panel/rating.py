"""A blind test of texts: what one thinks of them, and what they were, in a CSV.

:class:`Ratings` holds order, answers and summary and knows no widget; :class:`BlindRating` asks.
"""

from __future__ import annotations

import csv
import hashlib
import io
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as w

from kit.base.files import read_text, whole
from kit.base.html import PLAIN, number
from kit.base.scratch import drop_parts, locked
from kit.models.positions import Positions
from kit.steering import generation
from kit.steering.generation import Generation
from kit.steering.intervention import Op
from kit.steering.results import label
from kit.widgets.frame import View

_FIELDS = ("item", "prompt", "text", "label", "steered", "score", "guess")
_SCORES = (1, 2, 3, 4, 5)


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
            ValueError: no items, or a CSV that holds ratings of other texts; OSError: it cannot be
                read, or is no ordinary file.
        """
        self.items = list({item.id: item for item in items}.values())
        if not self.items:
            raise ValueError("items=[]: there is no text to rate")
        random.Random(seed).shuffle(self.items)
        self.path = None if path is None else Path(path)
        self.answers: dict[str, Answer] = {}
        if self.path is not None:
            drop_parts(self.path.parent)
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
        if score not in _SCORES:
            raise ValueError(f"score={score!r}: give a whole number from 1 to 5")
        self.answers[self.current.id] = Answer(score, bool(guess))
        if self.path is not None:
            with locked(self.path):  # another kernel may have rated too
                self._resume(self.path)
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
            lines = csv.writer(out)
            lines.writerow(_FIELDS)
            for i in self.items:
                if answer := self.answers.get(i.id):
                    said = (int(i.steered), answer.score, int(answer.guess))
                    lines.writerow((i.id, i.prompt, i.text, i.label, *said))

    def _resume(self, path: Path) -> None:
        """Add what the file holds to the answers, of which those given here stay."""
        if not path.exists():
            return
        try:
            lines = csv.DictReader(io.StringIO(read_text(path), newline=""))
            if lines.fieldnames is not None and tuple(lines.fieldnames) != _FIELDS:
                raise ValueError(f"its first line is {','.join(lines.fieldnames)!r:.80}")
            rows = list(lines)
            found = {row["item"]: Answer(int(row["score"]), row["guess"] == "1") for row in rows}
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise ValueError(f"{path} is no CSV of ratings: {error!r:.200}") from error
        if any(answer.score not in _SCORES for answer in found.values()):
            raise ValueError(f"{path} is no CSV of ratings: a score is outside 1 to 5")
        if not set(found) <= {item.id for item in self.items}:
            raise ValueError(f"{path} holds ratings of other texts; give another path")
        self.answers = found | self.answers


_BOX = "border:1px solid rgba(128,128,128,.4);border-radius:6px;padding:10px 14px"
_TD = 'style="padding:3px 10px"'


class BlindRating(View):
    """``BlindRating(generations)`` or ``BlindRating(model, vector, prompts, [None, 0.2])``.

    Attributes:
        ratings: order, answers, summary and CSV.
    """

    def __init__(
        self,
        source: Any,
        vectors: Any = (),
        prompts: Sequence[str] = (),
        coefficients: Sequence[float | None] = (None, 0.2),
        *,
        path: str | Path | None = "ratings.csv",
        seed: int = 0,
        positions: Positions = "all",
        op: Op = "add",
        max_new_tokens: int = 40,
        temperature: float = 0.0,
    ) -> None:
        """Texts come from finished generations, or from a model that writes them now.

        Args:
            source: a :class:`kit.Generation`, several, or a model.
            prompts: for a model: each is answered once for every coefficient.
            path: the CSV; rating goes on where it ends. None keeps nothing.
            seed: of the order.

        The others are for a model, as in :func:`kit.generate`.

        Raises:
            ValueError: no text, or a CSV with ratings of other texts.
        """
        if isinstance(source, Iterable):
            written = [("", one) for one in source]
        elif isinstance(source, Generation):
            written = [("", source)]
        else:
            if isinstance(prompts, str) or not prompts:
                raise ValueError(f"prompts={prompts!r}: give a list with at least one prompt")
            run = partial(
                generation.generate,
                source,
                vectors=vectors,
                coefficients=list(coefficients),
                positions=positions,
                op=op,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
            )
            written = [(prompt, run(prompt=prompt)) for prompt in prompts]
        super().__init__()
        items = [
            # a coefficient of 0 counts as unsteered
            Item(row.text, label(row.coefficients, one.names), any(row.coefficients or ()), prompt)
            for prompt, one in written
            for row in one.rows
        ]
        self.ratings = Ratings(items, path, seed)
        self._text = w.HTML()
        self.score = w.ToggleButtons(
            options=_SCORES, value=None, description="how good?", style={"button_width": "44px"}
        )
        self.guess = w.ToggleButtons(
            options=[("not steered", False), ("steered", True)],
            value=None,  # what is chosen already is chosen too often
            description="I think",
            style={"button_width": "110px"},
        )
        self.next = w.Button(description="Next", button_style="primary", tooltip="once both are chosen", disabled=True)
        self.reveal = w.Button(description="Reveal")
        buttons = w.HBox([self.next, self.reveal])
        self._arrange("Blind rating", self._text, self.score, self.guess, buttons, self._message)
        self.next.on_click(lambda _button: self._try(lambda: self.rate(self.score.value, self.guess.value)))
        for choice in (self.score, self.guess):
            choice.observe(lambda _change: self._ready(), "value")
        self.reveal.on_click(lambda _button: self._try(self._reveal))
        self._show()

    def rate(self, score: int, guess: bool) -> None:
        """Answer for the text on the screen and go on; that the file cannot be written is told."""
        try:
            self.ratings.rate(score, guess)
        except (OSError, ValueError) as error:  # the answer is kept, and written with the next
            self._say(f"not saved: {error}", error=True)
        self._show()

    def _show(self) -> None:
        item = self.ratings.current
        if item is None:
            self._reveal()
            return
        self.score.value = self.guess.value = None
        done, n = len(self.ratings.answers), len(self.ratings.items)
        prompt = f'<div style="opacity:.75;margin-bottom:6px">{escape(item.prompt)}</div>'
        self._text.value = (
            f'<div style="font-size:12px;opacity:.75">text {done + 1} of {n}</div><div dir="auto" class="{PLAIN}" '
            f'role="status" style="{_BOX};min-height:6em;font-size:15px;line-height:1.5;'
            f'white-space:pre-wrap">{prompt * bool(item.prompt)}{escape(item.text)}</div>'
        )

    def _ready(self) -> None:
        self.next.disabled = self.score.value is None or self.guess.value is None

    def _reveal(self) -> None:
        for widget in (self.next, self.reveal, self.score, self.guess):
            widget.disabled = True
        self._text.value = self.revealed_html

    @property
    def frozen_html(self) -> str:
        return self._text.value

    @property
    def revealed_html(self) -> str:
        """The summary and every rated text with what it was."""
        s = self.ratings.summary()
        rows = "".join(
            f"<tr><td {_TD}>{escape(item.label)}</td><td {_TD}>{answer.score}</td>"
            f"<td {_TD}>{'✓' if answer.guess == item.steered else '✗'}</td>"
            f'<td dir="auto" style="padding:3px 10px;text-align:left;white-space:pre-wrap">'
            f"{escape(item.text)}</td></tr>"
            for item in self.ratings.items
            if (answer := self.ratings.answers.get(item.id))
        )
        return (
            f'<div class="{PLAIN}" style="{_BOX}"><b>{s["hits"]} of {s["rated"]} guesses are right.</b> '
            f"Mean score: steered {number(s['mean score steered'], 1)}, "
            f"unsteered {number(s['mean score unsteered'], 1)}."
            f'<table style="margin-top:8px"><tr><th>coefficient</th><th>score</th><th>guess</th>'
            f'<th style="text-align:left">text</th></tr>{rows}</table></div>'
        )
