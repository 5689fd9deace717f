"""Makes a kept file: runs a notebook up to its last tagged cell, stores what tagged cells made."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from course import runner
from course.catch_up.book import Book, Cell
from course.catch_up.files import Entry, Shelf, read, write
from course.catch_up.running import CatchUpError, Replay, quiet
from course.catch_up.values import CannotStore, Writer
from course.exercises import registry

MAX_MB = 2.5  # of one file


@dataclass(eq=False)
class _Found:
    """A cell's values, as a file holds them, and their size in bytes."""

    entry: Entry
    tensors: dict[str, Tensor] = field(repr=False)
    size: int


def make(
    book: Book,
    path: Path,
    *,
    small: bool = False,
    max_mb: float = MAX_MB,
    report: Callable[[str], None] = lambda text: None,
) -> None:
    """Write a notebook's kept file, if it has cells that keep something.

    What the file holds already for the code as it is now is not made again. If the values are too
    large together, those with the most seconds for a byte are stored.

    Raises:
        CatchUpError: a cell failed; or a tagged one made something that cannot be stored, or
            changed what it does not assign.
    """
    if not book.kept:
        report(f"{book.name}: no cell keeps anything")
        return
    end = book.kept[-1].number + 1
    usable = Shelf(book, [path.parent], small=small).usable(end)
    done, found = Replay(book, {"__name__": "__main__"}), []
    registry()
    report(f"{book.name}: {len(book.before(end))} cells")
    for cell in book.before(end):
        entry, start = usable.get(cell.number), time.perf_counter()
        before = _marks(done.namespace, cell)
        with _inside(runner.FOLDER), quiet():
            if cell.number in usable:
                done.load(cell, entry)
            else:
                done.run(cell)
        if cell.kept is not None and (changed := _changed(before, _marks(done.namespace, cell))):
            raise CatchUpError(
                f"{book.name}, cell {cell.number} is tagged and changes {changed}, which it does not make"
            )
        if cell.kept:
            found.append(_stored(book, cell, done.namespace, entry.seconds if entry else time.perf_counter() - start))
    kept = _fitting(found, max_mb)
    tensors = {key: t for f in kept for key, t in f.tensors.items()}
    write(path, book.name, [f.entry for f in kept], tensors, small=small)
    for f in found:
        left = "" if f in kept else " not stored"
        seconds, size = f.entry.seconds, f.size / 1e3
        report(f"  cell {f.entry.cell}: {', '.join(f.entry.names)}{left} ({seconds:.1f} s, {size:.0f} kB)")
    report(f"  {path.name}: {path.stat().st_size / 1e6:.2f} MB")
    read(path, book.name, small=small)


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """In the folder in which notebooks run."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _marks(namespace: dict[str, Any], cell: Cell) -> dict[str, str]:
    """Of a tagged cell: what tells whether the names that it does not assign are what they were."""
    marks = {}
    for name in set(namespace) - cell.names if cell.kept is not None else ():
        with suppress(CannotStore):
            marks[name] = mark(namespace[name])
    return marks


def mark(value: Any) -> str:
    """A hash of every bit of a value. Raises `CannotStore`."""
    writer = Writer({})
    text = json.dumps(writer.value(value))
    digest = hashlib.sha256(text.encode())
    for tensor in writer.tensors.values():
        digest.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _changed(before: dict[str, str], after: dict[str, str]) -> str:
    return ", ".join(sorted(name for name in before if after.get(name) != before[name]))


def _stored(book: Book, cell: Cell, namespace: dict[str, Any], seconds: float) -> _Found:
    from transformer_lens.model_bridge import TransformerBridge

    from kit.models.bridge import fingerprint

    earlier = book.given_before(cell) - cell.names
    there = {name: value for name, value in namespace.items() if name in earlier}
    plain = (bool, int, float, str, tuple, type(None))
    writer = Writer({id(v): n for n, v in there.items() if type(v) not in plain}, f"{cell.number}/")
    values = {}
    for name in cell.kept or ():
        try:
            values[name] = writer.value(namespace[name])
        except KeyError:
            raise CatchUpError(f"{book.name}, cell {cell.number}: it ran, and {name!r} is not there") from None
        except CannotStore as error:
            raise CatchUpError(f"{book.name}, cell {cell.number}: {name!r} cannot be kept, it holds {error}") from error
        if type(namespace[name]) not in plain:
            writer.names[id(namespace[name])] = name
    models = {n: fingerprint(m) for n, m in there.items() if isinstance(m, TransformerBridge)}
    entry = Entry(book.digest(cell), cell.number, values, models, seconds)
    return _Found(entry, writer.tensors, len(json.dumps(values)) + sum(t.nbytes for t in writer.tensors.values()))


def _fitting(found: list[_Found], max_mb: float) -> list[_Found]:
    """The most seconds for a byte first, while they fit."""
    kept: list[_Found] = []
    room = max_mb * 1e6
    for f in sorted(found, key=lambda f: f.entry.seconds / max(f.size, 1), reverse=True):
        if f.size <= room:
            kept.append(f)
            room -= f.size
    return [f for f in found if f in kept]
