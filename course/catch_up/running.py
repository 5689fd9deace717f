"""Makes again what the cells before a section made, and tells what it did."""

from __future__ import annotations

import ast
import linecache
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from course.catch_up.book import Book, Cell, Section, Statement, assigned, is_stub
from course.catch_up.files import Entry, OtherModel, Shelf
from course.exercises import Card, registry
from kit.base.progress import track


class CatchUpError(RuntimeError):
    """A cell before the section failed; the text names it and what it was to make."""


@dataclass(frozen=True, repr=False)
class CatchUp(Card):
    """What :func:`kit.catch_up` did. Shows itself as a card.

    Attributes:
        computed: names that were made by running earlier cells; loaded: from a kept file.
        solved: learners' answers that later cells need: the exercises' solutions stand in.
        yours: answers of your own that were there already and stay.
        replaced: names that were there already and have another value now.
        skipped: names of earlier cells that no later cell needs, and that were left out.
        seconds: that it took.
    """

    computed: tuple[str, ...] = ()
    loaded: tuple[str, ...] = ()
    solved: tuple[str, ...] = ()
    yours: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass
class Replay:
    """Cells of a notebook made again in a namespace, one after the other.

    Attributes:
        how: by name, the part of the card that tells how it came to be what it is now.
    """

    book: Book
    namespace: dict[str, Any]
    how: dict[str, str] = field(default_factory=dict)

    def told(self, part: str) -> tuple[str, ...]:
        """The names of one part of the card."""
        return tuple(name for name, how in self.how.items() if how == part)

    def run(self, cell: Cell) -> None:
        """Run a cell; checks are left out, and an answer that is missing is the solution's.

        Raises:
            CatchUpError: a statement failed.
        """
        for s in cell.body:
            if s.exercise:
                self._answer(cell, s)
            elif not s.is_check:
                self._execute(cell, s.node)

    def load(self, cell: Cell, entry: Entry | None) -> None:
        """Take a tagged cell's values from its entry; functions and imports are made again.

        Raises:
            OtherModel, ValueError: as :meth:`course.catch_up.files.Entry.values`.
            CatchUpError: a definition failed.
        """
        if entry and cell.kept:
            there = self.book.given_before(cell)
            near = {name: value for name, value in self.namespace.items() if name in there}
            self.namespace |= entry.values(cell.kept, near)
            self.how |= dict.fromkeys(cell.kept, "loaded")
        for node in cell.definitions:
            self._execute(cell, node)
        for name in sorted(cell.names - cell.gives):
            if self.how.get(name) in ("computed", "loaded"):  # an earlier cell's: not what it would be
                del self.namespace[name]
            self.how[name] = "skipped"

    def _execute(self, cell: Cell, node: ast.stmt) -> None:
        names = sorted(assigned([node]))
        title = f"<{self.book.name}, cell {cell.number}>"
        linecache.cache[title] = len(cell.source), None, cell.source.splitlines(keepends=True), title
        namespace = self.namespace
        try:
            exec(compile(ast.Module([node], []), title, "exec"), namespace)
        except Exception as error:
            what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            makes = f", which makes {', '.join(names)}," if names else ""
            raise CatchUpError(f"{self.book.name}, cell {cell.number}{makes} failed: {what}") from error
        self.how |= dict.fromkeys([name for name in names if name in namespace], "computed")

    def _answer(self, cell: Cell, s: Statement) -> None:
        """An exercise's answer: the learner's own, the solution, or the stub that nobody reads."""
        from course.exercises import find

        (name,) = assigned([s.node])
        namespace = self.namespace
        if name in namespace and not _unwritten(namespace[name]):
            self.how[name] = "yours"
            return
        if not (s.used and is_stub(s.node)):
            self._execute(cell, s.node)
            return
        exercise = find(s.exercise)
        try:
            context = {key: eval(code, namespace) for key, code in s.context}
        except Exception as error:
            raise CatchUpError(
                f"{self.book.name}, cell {cell.number}: the solution that makes {name!r} needs what is "
                f"not there yet: {error}"
            ) from error
        namespace[name] = exercise.answer(exercise.solution, context)
        self.how[name] = "solved"


def _unwritten(answer: Any) -> bool:
    if answer is None or answer is Ellipsis:
        return True
    code = getattr(answer, "__code__", None)
    return code is not None and "NotImplementedError" in code.co_names


def catch_up(book: Book, number: int, namespace: dict[str, Any], shelf: Shelf) -> CatchUp:
    """Put into a namespace what the cells before a section make.

    Raises:
        ValueError: no such section, or a damaged kept file.
        CatchUpError: a statement failed.
    """
    start = time.perf_counter()
    section = book.section(number)
    before, note = dict(namespace), ""
    try:
        done = _replay(book, section, namespace, shelf)
    except OtherModel as error:  # its values must not be used here, but the cells can be run
        note = f"kept file not used: {error}"
        done = _replay(book, section, namespace, Shelf(book, [], small=False))
    made = [n for n, how in done.how.items() if how not in ("yours", "skipped") and n in namespace]
    replaced = tuple(n for n in made if n in before and before[n] is not namespace[n])
    return _card(book, section, done, replaced, note, time.perf_counter() - start)


def expected(book: Book, section: Section, shelf: Shelf) -> float:
    """Seconds that the cells before a section that have to run took when the notebook was run."""
    usable = shelf.usable(section.cell)
    return sum(c.seconds for c in book.before(section.cell) if c.number not in usable)


def _replay(book: Book, section: Section, namespace: dict[str, Any], shelf: Shelf) -> Replay:
    done, now = Replay(book, namespace), ""
    usable, rest = shelf.usable(section.cell), expected(book, section, shelf)
    registry()  # as the checks that are left out would: later cells use kit.exercises.nbNN

    def status() -> str:
        return f"{now}; these cells took {rest:.0f} s when they were measured" if rest > 20 else now

    for cell in track(book.before(section.cell), "cells", status=status):
        now = f"cell {cell.number}"
        with quiet():
            if cell.number in usable:
                done.load(cell, usable[cell.number])
            else:
                done.run(cell)
    return done


def _card(book: Book, section: Section, done: Replay, replaced: tuple[str, ...], note: str, seconds: float) -> CatchUp:
    parts = {
        "made by running their cells": done.told("computed"),
        "loaded from a kept file": done.told("loaded"),
        "solutions of exercises": done.told("solved"),
        "your own answers, as they were": done.told("yours"),
        "yours before, now of these cells": replaced,
        "left out, no later cell needs them": done.told("skipped"),
    }
    lines = [f"{what}: {', '.join(names)}" for what, names in parts.items() if names]
    return CatchUp(
        f"Ready for section {section.number} of notebook {book.name[:2]}: {section.title}",
        "\n".join([*lines, *filter(None, [note]), f"{seconds:.1f} s"]),
        computed=done.told("computed"),
        loaded=done.told("loaded"),
        solved=done.told("solved"),
        yours=done.told("yours"),
        replaced=replaced,
        skipped=done.told("skipped"),
        seconds=seconds,
    )


@contextmanager
def quiet() -> Iterator[None]:
    """No text, table or panel of earlier cells, and none of their figures left to be shown."""
    from IPython.utils.capture import capture_output

    plt = sys.modules.get("matplotlib.pyplot")
    before = set(plt.get_fignums()) if plt else set()
    try:
        with capture_output(stderr=False):
            yield
    finally:
        if plt := sys.modules.get("matplotlib.pyplot"):
            for number in set(plt.get_fignums()) - before:
                plt.close(number)
