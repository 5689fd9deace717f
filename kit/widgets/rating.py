"""Steered or not? Rate texts blind, then reveal: a thin view over :class:`Ratings`."""
from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as w

from kit import generation, render
from kit.generation import Generation, label
from kit.widgets.ratings import Item, Ratings

_BOX = "border:1px solid rgba(128,128,128,.4);border-radius:6px;padding:10px 14px"
_TD = 'style="padding:3px 10px"'


class BlindRating(w.VBox):
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
        **options: Any,
    ) -> None:
        """Texts come from finished generations, or from a model that writes them now.

        Args:
            source: a :class:`kit.Generation`, several, or a model.
            vectors, coefficients, options: for a model, as in :func:`kit.generate`.
            prompts: for a model: each is answered once for every coefficient.
            path: the CSV; rating goes on where it ends. None keeps nothing.
            seed: of the order.

        Raises:
            ValueError: no text, or a CSV with ratings of other texts.
        """
        if hasattr(source, "hook_dict"):
            if isinstance(prompts, str) or not prompts:
                raise ValueError(f"prompts={prompts!r}: give a list with at least one prompt")
            written = [(prompt, generation.generate(source, prompt, vectors, list(coefficients),
                                                    **options)) for prompt in prompts]
        else:
            many = [source] if isinstance(source, Generation) else list(source)
            written = [("", one) for one in many]
        self.ratings = Ratings([i for prompt, g in written for i in items(prompt, g)], path, seed)
        self._text = w.HTML()
        self.score = w.ToggleButtons(options=[1, 2, 3, 4, 5], value=3, description="how good?",
                                     style={"button_width": "44px"})
        self.guess = w.ToggleButtons(options=[("not steered", False), ("steered", True)],
                                     description="I think", style={"button_width": "110px"})
        self.next = w.Button(description="Next", button_style="primary")
        self.reveal = w.Button(description="Reveal")
        super().__init__([self._text, self.score, self.guess, w.HBox([self.next, self.reveal])])
        self.next.on_click(lambda _button: self.rate(self.score.value, self.guess.value))
        self.reveal.on_click(lambda _button: self._reveal())
        self._show()

    def rate(self, score: int, guess: bool) -> None:
        """Answer for the text on the screen and go on."""
        try:
            self.ratings.rate(score, guess)
        except OSError as error:  # the answer is kept; only the file is not
            self._text.value = render.message(f"not saved: {error}", error=True)
            return
        self._show()

    def _show(self) -> None:
        item = self.ratings.current
        if item is None:
            self._reveal()
            return
        done, n = len(self.ratings.answers), len(self.ratings.items)
        prompt = f'<div style="opacity:.75;margin-bottom:6px">{escape(item.prompt)}</div>'
        self._text.value = (
            f'<div style="font-size:12px;opacity:.75">text {done + 1} of {n}</div><div dir="auto" '
            f'role="status" style="{_BOX};min-height:6em;font-size:15px;line-height:1.5;'
            f'white-space:pre-wrap">{prompt * bool(item.prompt)}{escape(item.text)}</div>'
        )

    def _reveal(self) -> None:
        for widget in (self.next, self.reveal, self.score, self.guess):
            widget.disabled = True
        self._text.value = self.revealed_html

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(**options) or {}
        return {**bundle, "text/html": self._text.value}

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
            f'<div style="{_BOX}"><b>{s["hits"]} of {s["rated"]} guesses are right.</b> '
            f'Mean score: steered {render.number(s["mean score steered"], 1)}, '
            f'unsteered {render.number(s["mean score unsteered"], 1)}.'
            f'<table style="margin-top:8px"><tr><th>coefficient</th><th>score</th><th>guess</th>'
            f'<th style="text-align:left">text</th></tr>{rows}</table></div>'
        )


def items(prompt: str, written: Generation) -> list[Item]:
    """A generation's rows as things to rate; a coefficient of 0 counts as unsteered."""
    return [
        Item(row.text, label(row.coefficients), any(row.coefficients or ()), prompt)
        for row in written.rows
    ]
