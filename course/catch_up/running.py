"""Runs a plan in a namespace, and tells what it did."""

from __future__ import annotations

import ast
import io
import linecache
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from typing import Any

from course.catch_up.files import OtherModel, Shelf
from course.catch_up.plan import Book, Plan, Step
from course.exercises import Card, registry
from kit.base.progress import track


class CatchUpError(RuntimeError):
    """A name that a section needs cannot be provided; the text names it and the cell it is from."""


@dataclass(frozen=True, repr=False)
class CatchUp(Card):
    """What :func:`kit.catch_up` did. Shows itself as a card.

    Attributes:
        computed: names that were made by running earlier cells; loaded: from a checkpoint.
        solved: learners' answers that later cells need: the exercises' solutions stand in.
        kept: answers of your own that were there already and stay.
        skipped: names of earlier cells that no later cell needs, and that were left out.
        seconds: that it took.
    """

    computed: tuple[str, ...] = ()
    loaded: tuple[str, ...] = ()
    solved: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass
class _Done:  # dicts for sets that keep their order
    computed: dict[str, None] = field(default_factory=dict)
    loaded: dict[str, None] = field(default_factory=dict)
    solved: dict[str, None] = field(default_factory=dict)
    kept: dict[str, None] = field(default_factory=dict)


def expected(book: Book, plan: Plan) -> float:
    """Seconds that the cells of a plan's statements took when the notebook was run: at most what
    running them takes on that machine."""
    return sum(book.seconds[c] for c in {s.statement.cell for s in plan.steps if not s.loaded})


def catch_up(book: Book, number: int, namespace: dict[str, Any], shelf: Shelf) -> CatchUp:
    """Put into a namespace what a section and those after it need.

    Raises:
        ValueError: no such section, or a damaged checkpoint.
        CatchUpError: a statement failed, or did not make what it should.
    """
    start = time.perf_counter()
    section = book.section(number)
    plan = book.plan(section, shelf.stored())
    if plan.missing:
        names = ", ".join(sorted(plan.missing))
        raise CatchUpError(f"section {number} of {book.name} needs {names}: no cell before it makes that")
    note = ""
    try:
        done = _run(book, plan, namespace, shelf)
    except OtherModel as error:  # its values must not be used here, but the cells can be run
        note = f"checkpoint not used: {error}"
        plan = book.plan(section)
        done = _run(book, plan, namespace, shelf)
    for step in plan.steps:
        for name in plan.names.intersection(step.names) - set(namespace):
            raise CatchUpError(f"{book.name}, cell {step.statement.cell}: it ran, and {name!r} is not there")
    seconds = time.perf_counter() - start
    return _card(book, plan, done, note, seconds)


def _card(book: Book, plan: Plan, done: _Done, note: str, seconds: float) -> CatchUp:
    loaded = tuple(n for n in done.loaded if n not in done.computed)
    skipped = tuple(sorted(plan.skipped))
    parts = {
        "made by running their cells": done.computed,
        "loaded from a checkpoint": loaded,
        "solutions of exercises": done.solved,
        "your own, kept": done.kept,
        "left out, no later cell needs them": skipped,
    }
    lines = [f"{what}: {', '.join(names)}" for what, names in parts.items() if names]
    section = plan.section
    return CatchUp(
        f"Ready for section {section.number} of notebook {book.name[:2]}: {section.title}",
        "\n".join([*lines, *filter(None, [note]), f"{seconds:.1f} s"]),
        computed=tuple(done.computed),
        loaded=loaded,
        solved=tuple(done.solved),
        kept=tuple(done.kept),
        skipped=skipped,
        seconds=seconds,
    )


def _run(book: Book, plan: Plan, namespace: dict[str, Any], shelf: Shelf) -> _Done:
    done, now = _Done(), ""
    rest = expected(book, plan)
    registry()  # as the checks that are left out would: later cells use kit.exercises.nbNN

    def status() -> str:
        return f"{now}; these cells took {rest:.0f} s when they were measured" if rest > 20 else now

    with quiet():
        for step in track(plan.steps, "steps", status=status):
            now = f"cell {step.statement.cell}: {', '.join(step.names)}"
            if step.loaded:
                entry = shelf.find(step.statement, step.names)
                assert entry is not None
                namespace |= entry.values(step.names, namespace)
                done.loaded |= dict.fromkeys(step.names)
            elif step.solved:
                _solve(book, step, namespace, done)
            else:
                run(book, step.statement.node, step.statement.cell, namespace, step.names)
                done.computed |= dict.fromkeys(step.names)
    return done


def run(book: Book, node: ast.stmt, cell: int, namespace: dict[str, Any], names: tuple[str, ...]) -> None:
    """Run one statement. Raises `CatchUpError`, which names its cell and what it was to make."""
    title = f"<{book.name}, cell {cell}>"
    source = book.sources[cell]
    linecache.cache[title] = len(source), None, source.splitlines(keepends=True), title
    try:
        exec(compile(ast.Module([node], []), title, "exec"), namespace)
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise CatchUpError(f"{book.name}, cell {cell}, which makes {', '.join(names)}, failed: {what}") from error


def _solve(book: Book, step: Step, namespace: dict[str, Any], done: _Done) -> None:
    """The solution of an exercise, unless an answer that is no stub is there."""
    from course.exercises import find

    (name,) = step.statement.own.binds
    if name in namespace and not _unwritten(namespace[name]):
        done.kept[name] = None
        return
    exercise = find(step.statement.exercise)
    try:
        context = {key: eval(code, namespace) for key, code in step.statement.context}
    except Exception as error:
        raise CatchUpError(
            f"{book.name}, cell {step.statement.cell}: the solution that makes "
            f"{name!r} needs what is not there yet: {error}"
        ) from error
    namespace[name] = exercise.answer(exercise.solution, context)
    done.solved[name] = None


def _unwritten(answer: Any) -> bool:
    if answer is None or answer is Ellipsis:
        return True
    code = getattr(answer, "__code__", None)
    return code is not None and "NotImplementedError" in code.co_names


@contextmanager
def quiet() -> Iterator[None]:
    """No text of earlier cells, and none of their figures left to be shown."""
    plt = sys.modules.get("matplotlib.pyplot")
    before = set(plt.get_fignums()) if plt else set()
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        if plt := sys.modules.get("matplotlib.pyplot"):
            for number in set(plt.get_fignums()) - before:
                plt.close(number)
