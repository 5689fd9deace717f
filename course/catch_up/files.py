"""Kept files: safetensors with JSON in the metadata, one for each notebook.

An entry holds what one tagged cell of the notebook made. Its key is a hash of the code that the
values may rest on, so that a changed notebook finds no entry and runs the cell instead of taking a
stale value. Files are looked for in the shipped ``data/kept`` and in ``kept`` of the cache
directory, where a room's host may keep others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import Tensor

from course.catch_up.book import Book, Cell
from course.catch_up.values import Reader
from kit import data
from kit.base.files import cache_dir, opened, whole

FORMAT = "steering-kit-kept/1"
MAX_MB, MAX_JSON_MB = 512, 32
_KEYS = {"key", "cell", "names", "models", "seconds"}


class OtherModel(ValueError):
    """The kept values were made with another model than the one in this notebook."""


@dataclass(frozen=True)
class Entry:
    """What one cell made.

    Attributes:
        key: hash of the code behind it; cell: where it stood; seconds: that it took to make.
        names: by name, JSON as :class:`course.catch_up.values.Writer` makes it.
        models: names of the models that were there, and their fingerprints.
        path: of the file.
    """

    key: str
    cell: int
    names: dict[str, Any] = field(repr=False)
    models: dict[str, str]
    seconds: float
    path: Path | None = None

    def values(self, names: Iterable[str], near: Mapping[str, Any]) -> dict[str, Any]:
        """The values of some of the names.

        Args:
            near: by name, what the cells before made; a value may refer to it.

        Raises:
            OtherModel: a model here is not the one it was made with.
            ValueError: a damaged file.
        """
        from kit.models.bridge import fingerprint

        for model, mark in self.models.items():
            try:
                here = fingerprint(near[model])
            except Exception as error:  # a file may call anything a model
                raise ValueError(f"{self.path} is damaged: {model!r} is no model") from error
            if here != mark:
                raise OtherModel(f"{self.path} was made with model {mark} as {model!r}; the one here is {here}")
        assert self.path is not None
        found: dict[str, Any] = {}
        with opened(self.path, FORMAT, "kept file") as (file, _):
            try:
                for name in names:
                    found[name] = Reader(file.get_tensor, {**near, **found}).value(self.names[name])
            except Exception as error:  # constructors raise anything when their fields are wrong
                raise ValueError(f"{self.path} is damaged, cell {self.cell}: {error}") from error
        return found


def write(path: Path, notebook: str, entries: Iterable[Entry], tensors: Mapping[str, Tensor], *, small: bool) -> Path:
    """Write a kept file whole or not at all."""
    from safetensors.torch import save_file

    import kit

    listed = [
        {"key": e.key, "cell": e.cell, "names": e.names, "models": e.models, "seconds": round(e.seconds, 1)}
        for e in entries
    ]
    about = {
        "format": FORMAT,
        "notebook": notebook,
        "small": str(int(small)),
        "kit": kit.__version__,
        "entries": json.dumps(listed),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as part:
        save_file(dict(tensors), str(part), metadata=about)
    return path


def read(path: Path, notebook: str, *, small: bool) -> dict[str, Entry]:
    """A file's entries by key; their values are read when they are asked for.

    Raises:
        FileNotFoundError: no file.
        ValueError: a file of another notebook or size, a damaged or too large one.
    """
    if path.is_file() and path.stat().st_size > MAX_MB * 1e6:
        raise ValueError(f"{path} has {path.stat().st_size / 1e6:.0f} MB; a kept file has at most {MAX_MB} MB")
    with opened(path, FORMAT, "kept file") as (_, about):
        text = about["entries"]
        if (about["notebook"], about["small"]) != (notebook, str(int(small))):
            raise ValueError(
                f"{path} is a kept file of {about['notebook']!r} with KIT_SMALL="
                f"{about['small']}, not of {notebook!r} with KIT_SMALL={int(small)}"
            )
        if len(text) > MAX_JSON_MB * 1e6:
            raise ValueError(
                f"{path} describes its values in {len(text) / 1e6:.0f} MB of text; at most {MAX_JSON_MB} MB"
            )
    try:
        raw = json.loads(text)
        if not isinstance(raw, list):
            raise ValueError(f"its entries are a {type(raw).__name__}, not a list")
        return {e.key: e for e in (_entry(one, path) for one in raw)}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _entry(raw: Any, path: Path) -> Entry:
    if not isinstance(raw, dict) or set(raw) != _KEYS:
        raise ValueError("an entry does not have the parts that it needs")
    names, models = raw["names"], raw["models"]
    fits = (
        isinstance(raw["key"], str)
        and isinstance(raw["cell"], int)
        and isinstance(raw["seconds"], int | float)
        and isinstance(names, dict)
        and isinstance(models, dict)
        and all(isinstance(n, str) and n.isidentifier() for n in [*names, *models])
        and all(isinstance(mark, str) for mark in models.values())
    )
    if not fits:
        raise ValueError("an entry has parts of another kind than it needs")
    return Entry(raw["key"], raw["cell"], names, models, raw["seconds"], path)


def shipped() -> Path:
    """The folder of shipped kept files. Raises FileNotFoundError where none are shipped."""
    return data.path("kept")


def local() -> Path:
    """The folder for kept files of this host, in the cache directory."""
    return cache_dir() / "kept"


def file_name(notebook: str, *, small: bool) -> str:
    """What the kept file of a notebook is called, at full size or with ``KIT_SMALL=1``."""
    return f"{notebook[:2]}{'-small' if small else ''}.safetensors"


class Shelf:
    """The entries for one notebook, of all folders; those of later folders are preferred.

    Raises:
        ValueError: as :func:`read`.
    """

    def __init__(self, book: Book, folders: Iterable[Path], *, small: bool) -> None:
        self.book = book
        self.entries: dict[str, Entry] = {}
        for folder in folders:
            path = folder / file_name(book.name, small=small)
            if path.is_file():
                self.entries |= read(path, book.name, small=small)

    def find(self, cell: Cell) -> Entry | None:
        """The entry that has all the names which a tagged cell keeps."""
        entry = self.entries.get(self.book.digest(cell)) if self.entries and cell.kept else None
        return entry if entry and set(cell.kept or ()) <= set(entry.names) else None

    def usable(self, before: int) -> dict[int, Entry | None]:
        """The tagged cells before a cell that need not run, by number, and their entries.

        Those of one section belong together, for what they leave out only they themselves read: if
        one has no entry, all of them run.
        """
        found: dict[int, Entry | None] = {}
        tagged = [c for c in self.book.before(before) if c.kept is not None]
        for _, section in groupby(tagged, self.book.section_of):
            entries = {c: self.find(c) for c in section}
            if all(entry or not c.kept for c, entry in entries.items()):
                found |= {c.number: entry for c, entry in entries.items()}
        return found


def stale(book: Book, path: Path, *, small: bool = False) -> list[str]:
    """What a file holds of code that the notebook no longer has, and what it lacks."""
    entries = read(path, book.name, small=small)
    keys = {book.digest(c): c for c in book.kept}
    again = f"run python -m course.catch_up {book.name[:2]}"
    old = [
        f"{path.name}: cell {e.cell} or one before it changed since {', '.join(e.names)} was stored: {again}"
        for e in entries.values()
        if e.key not in keys
    ]
    lacks = [
        f"{path.name}: cell {c.number} keeps {', '.join(c.kept or ())}, which the file does not hold: {again}"
        for key, c in keys.items()
        if key not in entries or not set(c.kept or ()) <= set(entries[key].names)
    ]
    return old + lacks


def stamp(book: Book, path: Path, *, small: bool = False) -> None:
    """Say that a file's values hold for the notebook's code as it is now.

    Raises:
        ValueError: a cell that keeps other names than the file holds for it; nothing is written.
    """
    cells = {c.number: c for c in book.kept}
    entries = []
    for e in read(path, book.name, small=small).values():
        if e.cell not in cells or set(cells[e.cell].kept or ()) != set(e.names):
            raise ValueError(
                f"{path.name}: cell {e.cell} does not keep {', '.join(e.names)}, as the file "
                f"has it: run python -m course.catch_up {book.name[:2]}"
            )
        entries.append(replace(e, key=book.digest(cells[e.cell])))
    with opened(path, FORMAT, "kept file") as (file, _):
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    write(path, book.name, entries, tensors, small=small)
