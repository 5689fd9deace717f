"""Exercises that check themselves.

One module per notebook (`nb01.py` belongs to notebook 01) holds a list `EXERCISES`. The checker of
an exercise is its `spec`: a slow, readable statement of what a right answer does, which raises
`Wrong(arrived, expected, likely)` and stores no tensors. An answer never makes `check` raise.

The docstring of an exercise's solution is its task. `Exercise.of` makes from the solution the stub,
which stands word for word in a cell of the notebook, and wrong answers, by which the checker knows
common mistakes.
"""

from __future__ import annotations

import html
import importlib
import inspect
import pkgutil
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from course.exercises import record
from course.exercises.events import TRIES, Progress
from course.exercises.exercise import Exercise, source
from course.exercises.specs import Wrong, describe, describe_error, is_stub
from kit.base.html import PLAIN


class UnknownExercise(KeyError):
    """No exercise has this id; the text lists the ids that exist."""

    def __str__(self) -> str:  # KeyError would show the text in quotation marks
        return str(self.args[0])


# One a kernel, begun with what earlier kernels kept in this machine's record.
_PROGRESS: dict[str, Progress] = {}
_PASSED: dict[str, Any] = {}  # by exercise, the answer that passed in this kernel


@dataclass(frozen=True)
class Card:
    """A message that Jupyter shows as HTML and a terminal as plain text."""

    title: str
    message: str
    code: str = ""
    note: str = ""  # about the record, not about the answer

    def __repr__(self) -> str:
        parts = (self.title, self.message, self.code, self.note)
        return "\n".join(part for part in parts if part)

    def _repr_html_(self) -> str:
        # Colours are inherited, so the card reads well on a light and on a dark page.
        code = f"<pre style='margin:.5em 0 0'>{html.escape(self.code)}</pre>" if self.code else ""
        note = f"<small>{html.escape(self.note)}</small>" if self.note else ""
        return (
            f"<div class='{PLAIN}' style='border-left:4px solid currentColor;padding:.3em .8em;margin:.3em 0'>"
            f"<b>{html.escape(self.title)}</b><div style='white-space:pre-wrap;"
            f"font-family:monospace'>{html.escape(self.message)}</div>{code}{note}</div>"
        )


@dataclass(frozen=True, repr=False)
class Outcome(Card):
    """The result of a check; true when the answer passed."""

    passed: bool = False
    todo: bool = False  # nothing was written yet

    def __bool__(self) -> bool:
        return self.passed


@cache
def registry() -> dict[str, Exercise]:
    """All exercises by id, from the modules `nbNN` of this package, loaded when first asked for."""
    found: dict[str, Exercise] = {}
    for module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
        if not re.fullmatch(r"nb\d\d", module):
            continue
        for exercise in importlib.import_module(f"{__name__}.{module}").EXERCISES:
            if not exercise.id.startswith(f"{module[2:]}.") or exercise.id in found:
                raise ValueError(f"{module}: exercise id {exercise.id!r} is foreign or used twice")
            found[exercise.id] = exercise
    return found


def find(id: str) -> Exercise:
    """The exercise with this id. Raises `UnknownExercise`, which lists the ids."""
    try:
        return registry()[id]
    except (KeyError, TypeError):
        ids = ", ".join(sorted(registry())) or "none"
        raise UnknownExercise(f"no exercise {id!r}; the ids are: {ids}") from None


def progress(id: str) -> Progress:
    """The learner's record for an exercise of this id."""
    if find(id).id not in _PROGRESS:
        _PROGRESS[id] = record.recorded()[0].get(id) or Progress()
    return _PROGRESS[id]


def share(folder: str | Path | None, *, name: str | None = None) -> Card:
    """Let a room's instructor see the results of your checks, in ``folder``; None ends it.

    What is shared, and what is raised: `course.exercises.record.share`.
    """
    return Card("The room's table", record.share(folder, name=name))


def check(id: str, answer: Any, **context: Any) -> Outcome:
    """Compare `answer` with the exercise's specification.

    `context` holds what some specs need besides the answer (`model=model`). Returns an `Outcome`
    whatever the answer is; raises `UnknownExercise` for an id that does not exist.
    """
    exercise, mine = find(id), progress(id)
    name = f"{id} {exercise.title}"

    def todo() -> Outcome:
        advice = "Replace the placeholder, then run the check again."
        note = record.note(id, mine, "look")
        return Outcome(f"Your turn: {name}", advice, todo=True, note=note)

    if answer is None or answer is Ellipsis:
        return todo()
    try:
        inspect.signature(exercise.spec).bind(answer, **context)
    except TypeError as error:
        return Outcome(f"Cannot check yet: {name}", f"The call of check() does not fit: {error}.")
    try:
        exercise.spec(answer, **context)
    except Exception as error:
        _PASSED.pop(id, None)
        if is_stub(error):
            return todo()
        if not isinstance(error, Wrong):
            error = Wrong(
                arrived=f"an answer that the checker could not read ({describe_error(error)})",
                expected="an answer of the type that the exercise names",
                likely=f"{describe(answer)} is of another kind than the checker reads",
            )
        note = record.note(id, mine, "failed")
        more = f"Next: kit.exercises.{'solution' if mine.open else 'hint'}({id!r})"
        return Outcome(f"Not yet: {name}", str(error), more, note)
    _PASSED[id] = answer
    note = record.note(id, mine, "passed")
    moral = exercise.moral or "This does what was asked."
    return Outcome(f"Passed: {name}", moral, passed=True, note=note)


def mine(id: str) -> Any:
    """What later cells use: the answer that passed last in this kernel, else ours.

    So a notebook computes with the reader's own function, and runs before there is one. Raises
    `UnknownExercise`.
    """
    exercise = find(id)
    return exercise.usable(_PASSED[exercise.id]) if exercise.id in _PASSED else exercise.solution


def hint(id: str) -> Card:
    """Hint one, then hint two, then the way to the solution."""
    exercise, mine = find(id), progress(id)
    note = record.note(id, mine, "hint")
    shown = enumerate(exercise.hints[: mine.hints], 1)
    text = "\n".join(f"{number}. {line}" for number, line in shown)
    offer = f"The solution is open: kit.exercises.solution({id!r})" if mine.open else ""
    return Card(f"Hint for {id} {exercise.title}", text, offer, note)


def solution(id: str, *, force: bool = False) -> Card:
    """The solution's source, once the exercise is passed or `TRIES` attempts were made.

    Before that, says how many are left; `force=True` opens it at once.
    """
    exercise, mine = find(id), progress(id)
    if force or mine.open:
        note = record.note(id, mine, "solution")
        return Card(f"Solution of {id} {exercise.title}", "", source(exercise), note)
    left = TRIES - mine.failed
    tries = f"{left} more {'try' if left == 1 else 'tries'}"
    return Card(f"Not open yet: {id} {exercise.title}", f"It opens after {tries}, or a pass.")
