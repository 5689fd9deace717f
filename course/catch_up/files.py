"""Checkpoint files: safetensors with JSON in the metadata, one for each notebook.

An entry holds what one statement of the notebook made. Its key is a hash of the code that the
values rest on, so that a changed notebook finds no entry and runs the statement instead of taking a
stale value. Files are looked for in the shipped ``data/checkpoints`` and in ``checkpoints`` of the
cache directory, where a room's host may keep larger ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from course.catch_up.plan import Book, Statement
from course.catch_up.values import Reader
from kit import data
from kit.base.files import opened, whole
from kit.models import weights

FORMAT = "steering-kit-checkpoint/1"
MAX_MB, MAX_JSON_MB = 512, 32
_KEYS = {"key", "cell", "names", "leans", "models", "seconds"}


class OtherModel(ValueError):
    """The checkpoint's values were made with another model than the one in this notebook."""


@dataclass(frozen=True)
class Entry:
    """What one statement made.

    Attributes:
        key: hash of the code behind it; cell: where it stood; seconds: that it took to make.
        names: by name, JSON as :class:`course.catch_up.values.Writer` makes it.
        leans: other names that have to be there first; models: those of models, and fingerprints.
        path: of the file.
    """

    key: str
    cell: int
    names: dict[str, Any] = field(repr=False)
    leans: tuple[str, ...]
    models: dict[str, str]
    seconds: float
    path: Path | None = None

    def values(self, names: Iterable[str], namespace: Mapping[str, Any]) -> dict[str, Any]:
        """The values of some of the names.

        Args:
            namespace: where the names are on which they lean.

        Raises:
            OtherModel: a model here is not the one it was made with.
            ValueError: a damaged file.
        """
        from kit.models.bridge import fingerprint

        for model, mark in self.models.items():
            try:
                here = fingerprint(namespace[model])
            except Exception as error:  # a file may call anything a model
                raise ValueError(f"{self.path} is damaged: {model!r} is no model") from error
            if here != mark:
                raise OtherModel(f"{self.path} was made with model {mark} as {model!r}; the one here is {here}")
        near = {name: namespace[name] for name in self.leans if name in namespace}
        assert self.path is not None
        with opened(self.path, FORMAT, "checkpoint") as (file, _):
            try:
                reader = Reader(file.get_tensor, near)
                return {name: reader.value(self.names[name]) for name in names}
            except Exception as error:  # constructors raise anything when their fields are wrong
                raise ValueError(f"{self.path} is damaged, cell {self.cell}: {error}") from error


def write(path: Path, notebook: str, entries: Iterable[Entry], tensors: Mapping[str, Tensor], *, small: bool) -> Path:
    """Write a checkpoint whole or not at all."""
    from safetensors.torch import save_file

    import kit

    listed = [
        {
            "key": e.key,
            "cell": e.cell,
            "names": e.names,
            "leans": list(e.leans),
            "models": e.models,
            "seconds": round(e.seconds, 1),
        }
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
        raise ValueError(f"{path} has {path.stat().st_size / 1e6:.0f} MB; a checkpoint has at most {MAX_MB} MB")
    with opened(path, FORMAT, "checkpoint") as (_, about):
        text = about["entries"]
        if (about["notebook"], about["small"]) != (notebook, str(int(small))):
            raise ValueError(
                f"{path} is a checkpoint of {about['notebook']!r} with KIT_SMALL="
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
    names, leans, models = raw["names"], raw["leans"], raw["models"]
    fits = (
        isinstance(raw["key"], str)
        and isinstance(raw["cell"], int)
        and isinstance(raw["seconds"], int | float)
        and isinstance(names, dict)
        and isinstance(leans, list)
        and isinstance(models, dict)
        and all(isinstance(n, str) and n.isidentifier() for n in [*names, *leans, *models])
        and all(isinstance(mark, str) for mark in models.values())
    )
    if not fits:
        raise ValueError("an entry has parts of another kind than it needs")
    return Entry(raw["key"], raw["cell"], names, tuple(leans), models, raw["seconds"], path)


def shipped() -> Path:
    """The folder of shipped checkpoints. Raises FileNotFoundError where none are shipped."""
    return data.path("checkpoints")


def local() -> Path:
    """The folder for checkpoints of this host, in the cache directory."""
    return weights.cache_dir() / "checkpoints"


def file_name(notebook: str, *, small: bool) -> str:
    """What the checkpoint of a notebook is called, at full size or with ``KIT_SMALL=1``."""
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
        self._keys: dict[int, str] = {}

    def key(self, statement: Statement) -> str:
        """The key that an entry for a statement has."""
        if statement.index not in self._keys:
            self._keys[statement.index] = self.book.digest(statement)
        return self._keys[statement.index]

    def find(self, statement: Statement, names: Iterable[str]) -> Entry | None:
        """The entry that has all these names of a statement."""
        entry = self.entries.get(self.key(statement)) if self.entries else None
        return entry if entry and set(names) <= set(entry.names) else None

    def stored(self) -> Callable[[Statement, frozenset[str]], frozenset[str] | None]:
        """For :meth:`course.catch_up.plan.Book.plan`."""
        made: dict[int, frozenset[str]] = {}
        earlier: frozenset[str] = frozenset()
        for s in self.book.statements:  # a file may lean only on what the notebook made before
            made[s.index] = earlier
            earlier |= s.own.binds

        def look(statement: Statement, names: frozenset[str]) -> frozenset[str] | None:
            entry = self.find(statement, names)
            leans = frozenset([*entry.leans, *entry.models]) if entry else None
            return leans if leans is not None and leans <= made[statement.index] else None

        return look


def stale(book: Book, path: Path, *, small: bool = False) -> list[str]:
    """What a file holds of code that the notebook no longer has; empty when it is up to date."""
    return [
        f"{path.name}: cell {e.cell} or one before it changed since {', '.join(e.names)} "
        f"was stored: run python -m course.catch_up {book.name[:2]}"
        for e in read(path, book.name, small=small).values()
        if e.key not in book.digests
    ]
