"""``kit progress``: what a participant did with the exercises, from the record on this machine.

No points and no certificate: what is done, what is open, and how many tries and minutes it took.
"""

from __future__ import annotations

from typing import Any

from course import exercises
from course.exercises import record
from course.exercises.events import Progress


def summary() -> dict[str, Any]:
    """The record as plain values.

    Returns:
        ``record``: the file (None where nothing is kept); ``notebooks``: of each, its number, how
        many exercises are ``done`` and ``open``, and ``exercises``, those that were looked at;
        ``ignored``: lines of the record that say nothing, and exercises of no course of today.
    """
    kept, ignored = record.recorded()
    by_notebook: dict[str, list[str]] = {}
    for id in sorted(exercises.registry(), key=key):
        by_notebook.setdefault(id.partition(".")[0], []).append(id)
    notebooks = []
    for number, ids in by_notebook.items():
        done = sum(kept[id].passed for id in ids if id in kept)
        started = [_exercise(id, kept[id]) for id in ids if id in kept]
        notebooks.append({"notebook": number, "done": done, "open": len(ids) - done, "exercises": started})
    ignored += sum(id not in exercises.registry() for id in kept)
    file = record.path()
    return {"record": None if file is None else str(file), "notebooks": notebooks, "ignored": ignored}


def key(id: str) -> tuple[int, int]:
    """Order of the course: 02.10 comes after 02.9."""
    notebook, _, number = id.partition(".")
    return int(notebook), int(number)


def _exercise(id: str, mine: Progress) -> dict[str, Any]:
    return {
        "id": id,
        "title": exercises.find(id).title,
        "done": mine.passed,
        "tries": mine.tries,
        "hints": mine.hints,
        "solution": mine.solutions > 0,
        "minutes": None if mine.seconds is None else round(mine.seconds / 60, 1),
    }


def text() -> str:
    """The record as lines for a terminal."""
    found = summary()
    if found["record"] is None:
        return "KIT_PROGRESS=off: nothing is kept."
    lines = []
    for book in found["notebooks"]:
        whole = book["done"] + book["open"]
        lines.append(f"notebook {book['notebook']}: {book['done']} of {whole} done")
        for one in book["exercises"]:
            facts = [counted(one["tries"], "try", "tries"), counted(one["hints"], "hint", "hints")]
            facts.append("solution opened" if one["solution"] else "")
            facts.append("" if one["minutes"] is None else f"{one['minutes']:.1f} min")
            word = "done" if one["done"] else "open"
            said = ", ".join(filter(None, facts)) or "looked at"
            lines.append(f"  {word}  {one['id']:6} {one['title']}: {said}")
    if not any(book["exercises"] for book in found["notebooks"]):
        lines.append("No exercise was looked at yet.")
    if found["ignored"]:
        said = counted(found["ignored"], "line or exercise", "lines or exercises")
        lines.append(f"{said} of the record could not be read or not be found in this course")
    lines.append(f"kept in {found['record']}, on this machine alone")
    return "\n".join(lines)


def counted(n: int, one: str, more: str) -> str:
    """``3 tries``; empty for none."""
    return f"{n} {one if n == 1 else more}" if n else ""


def forget(id: str = "") -> str:
    """Take one exercise, or all of them, out of the record; returns what was done.

    Raises:
        UnknownExercise: no exercise has this id; OSError: the record cannot be written.
    """
    if id:
        exercises.find(id)
    lines = record.reset(id or None)
    what = f"exercise {id}" if id else "every exercise"
    return (
        f"{what}: {counted(lines, 'line', 'lines') or 'nothing'} removed from the record; "
        "a kernel that runs forgets when it is restarted"
    )
