"""Makes a checkpoint: runs what a notebook's sections need, and stores what is slow to make."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from course import runner
from course.catch_up import running
from course.catch_up.files import Entry, Shelf, read, write
from course.catch_up.plan import Book, Statement, is_stub
from course.catch_up.values import CannotStore, Writer
from course.exercises import registry

SLOW = 1.0  # seconds: what is made faster, with all that it rests on, is not stored
MAX_MB = 2.5  # of one file


@dataclass(eq=False)
class _Found:
    """A value that could be stored; cost: seconds to make it and what it alone rests on."""

    entry: Entry
    tensors: dict[str, Tensor] = field(repr=False)
    cost: float
    size: int


def make(
    book: Book,
    path: Path,
    *,
    small: bool = False,
    max_mb: float = MAX_MB,
    report: Callable[[str], None] = lambda text: None,
) -> Path:
    """Write a notebook's checkpoint.

    Stores values of names that a section needs and that take more than `SLOW` seconds, exactly. If
    they are too many, those with the most seconds for a byte.

    Raises:
        CatchUpError: a statement failed.
    """
    needed = _needed(book)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    seconds: dict[int, float] = {}
    found: list[_Found] = []
    registry()
    report(f"{book.name}: {len(needed)} statements")
    for s in book.statements:
        if s.index not in needed:
            continue
        names = tuple(sorted(needed[s.index]))
        start = time.perf_counter()
        with _inside(runner.FOLDER), running.quiet():
            running.run(book, s.node, s.cell, namespace, names)
        seconds[s.index] = time.perf_counter() - start
        cost = _cost(book, s, seconds, namespace)
        if cost < SLOW or is_stub(s.node) or not set(names) <= set(namespace):
            continue
        try:
            found.append(_stored(book, s, names, namespace, seconds[s.index], cost))
        except CannotStore as error:
            report(f"  cell {s.cell}: {', '.join(names)} ({cost:.1f} s) holds {error}")
    kept = _fitting(book, found, max_mb)
    tensors = {key: t for f in kept for key, t in f.tensors.items()}
    write(path, book.name, [f.entry for f in kept], tensors, small=small)
    for f in found:
        left = "" if f in kept else " not kept"
        report(f"  cell {f.entry.cell}: {', '.join(f.entry.names)}{left} ({f.cost:.1f} s, {f.size / 1e3:.0f} kB)")
    report(f"  {path.name}: {path.stat().st_size / 1e6:.2f} MB")
    read(path, book.name, small=small)
    return path


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """In the folder in which notebooks run."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _needed(book: Book) -> dict[int, set[str]]:
    """By index of a statement: the names of it that some section needs."""
    found: dict[int, set[str]] = {}
    for section in book.sections:
        for step in book.plan(section).steps:
            found.setdefault(step.statement.index, set()).update(step.names)
    return found


def _models(namespace: dict[str, Any]) -> dict[str, Any]:
    from transformer_lens.model_bridge import TransformerBridge

    return {n: v for n, v in namespace.items() if isinstance(v, TransformerBridge)}


def _cost(book: Book, s: Statement, seconds: dict[int, float], namespace: dict[str, Any]) -> float:
    """Seconds of a statement and those that it rests on, without loading models and modules."""
    models = set(_models(namespace))
    return sum(seconds.get(f.index, 0.0) for f in book.feeding(s) if not f.own.imports and not f.own.binds & models)


def _stored(
    book: Book, s: Statement, names: tuple[str, ...], namespace: dict[str, Any], seconds: float, cost: float
) -> _Found:
    from kit.models.bridge import fingerprint

    before = {n for e in book.statements[: s.index] for n in e.own.binds}
    known = {
        id(v): n
        for n, v in namespace.items()
        if n in before and n not in names and type(v) not in (bool, int, float, str, tuple, type(None))
    }
    key = book.digest(s)
    writer = Writer(known, f"{key[:12]}/")
    values = {name: writer.value(namespace[name]) for name in names}
    behind = {n for f in book.feeding(s) for n in f.reads}
    models = {n: fingerprint(m) for n, m in _models(namespace).items() if n in behind | writer.leans and n in before}
    entry = Entry(key, s.cell, values, tuple(sorted(writer.leans)), models, seconds)
    size = len(json.dumps(values)) + sum(t.nbytes for t in writer.tensors.values())
    return _Found(entry, writer.tensors, cost, size)


def _fitting(book: Book, found: list[_Found], max_mb: float) -> list[_Found]:
    """Those that some section would load, the most seconds for a byte first, while they fit."""
    kept: list[_Found] = []
    room = max_mb * 1e6
    for f in sorted(found, key=lambda f: f.cost / max(f.size, 1), reverse=True):
        if f.size <= room:
            kept.append(f)
            room -= f.size
    shelf = Shelf(book, [], small=False)
    shelf.entries = {f.entry.key: f.entry for f in kept}
    plans = [book.plan(section, shelf.stored()) for section in book.sections]
    used = {shelf.key(step.statement) for plan in plans for step in plan.steps if step.loaded}
    return [f for f in found if f in kept and f.entry.key in used]
