"""Long work cut into files: any process makes the next one that is missing.

No process waits for a message of another. A shard is made under a lock that the system takes away
from a process that dies, so a killed worker costs the shard that it was at, and whoever is left,
or comes back later, makes it. The folder must lie where such locks work: on a local disk, or a
network disk that keeps POSIX locks.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.base.files import read_text, whole
from kit.base.progress import processes, track
from kit.base.scratch import drop_parts

if TYPE_CHECKING:
    from torch import Tensor

_WAIT = 0.1  # seconds between two looks at shards that others are making


def work(files: Sequence[Path], make: Callable[[int], None], what: str = "shards") -> None:
    """Make every file that is missing, together with all processes that do the same; returns when
    none is missing.

    Args:
        make: gets an index and writes ``files[index]``, whole or not at all
            (:func:`kit.base.files.whole`).
        what: what the line of progress counts, for all processes; the first of them shows it.
            Empty for none.

    Raises:
        RuntimeError: ``make`` did not write its file. What ``make`` raises goes through, after its
            lock is given back.
    """
    for folder in {file.parent for file in files}:
        folder.mkdir(parents=True, exist_ok=True)
        drop_parts(folder)
    rank, world = processes()
    first = rank * len(files) // world  # each begins at another place, so that few locks are tried
    order = [*range(first, len(files)), *range(first)]
    missing = [i for i in order if not files[i].exists()]
    made = _made(files, missing, make)
    for _ in track(made, what, len(missing)) if what else made:
        pass


def _made(files: Sequence[Path], missing: list[int], make: Callable[[int], None]) -> Iterator[None]:
    """Something for every file that is there, whoever made it."""
    while missing:
        took = any(_make(files[i], i, make) for i in missing)
        left = [i for i in missing if not files[i].exists()]
        yield from [None] * (len(missing) - len(left))
        if not took and left:
            time.sleep(_WAIT)
        missing = left


def _make(file: Path, index: int, make: Callable[[int], None]) -> bool:
    """Whether this process could take the shard."""
    from filelock import FileLock, Timeout

    lock = FileLock(file.with_name(f".{file.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    try:
        if not file.exists():  # made by another while this one looked for the lock
            drop_parts(file.parent, file.name)  # of a process that was killed: the lock says that nobody writes
            make(index)
            if not file.exists():
                raise RuntimeError(f"shard {index} was made without its file {file}")
    finally:
        lock.release()
        if file.exists():  # who waits for the lock then finds the file; nobody needs it any more
            with suppress(OSError):
                os.unlink(lock.lock_file)
    return True


def digest(settings: Mapping[str, Any]) -> str:
    """Sixteen hex digits of settings; tensors count with every bit."""
    found = hashlib.sha256()
    for name in sorted(settings):
        found.update(f"{name}={_told(settings[name])}\n".encode())
    return found.hexdigest()[:16]


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return digest(value)
    if not hasattr(value, "detach"):
        return repr(value)
    import torch

    tensor: Tensor = value.detach().cpu().contiguous()
    bits = hashlib.sha256(tensor.view(-1).view(torch.uint8).numpy().data).hexdigest()
    return f"{tensor.dtype} {list(tensor.shape)} {bits}"


def named(function: Callable[..., Any], argument: str) -> str:
    """The name by which files know a function.

    Raises:
        ValueError: a lambda, or something else without a name of its own.
    """
    name = getattr(function, "__qualname__", "")
    if not name or "<" in name:
        raise ValueError(
            f"{argument}={function!r} with shards: the files know a function by its name; give one "
            "that is defined with def at the top of a module or notebook"
        )
    return f"{function.__module__}.{name}"


def write_rows(file: Path, rows: Sequence[Sequence[Any]]) -> None:
    """Rows of a table as JSON; floats keep every bit."""
    with whole(file) as part:
        part.write_text(json.dumps(rows, default=float), encoding="utf-8")


def read_rows(file: Path, width: int) -> list[tuple[Any, ...]]:
    """What :func:`write_rows` wrote.

    Raises:
        ValueError: a damaged file, or rows that are not ``width`` wide.
    """
    try:
        rows = json.loads(read_text(file))
        if all(len(row) == width for row in rows):
            return [tuple(row) for row in rows]
    except (ValueError, TypeError) as error:  # no JSON, no text, no list
        raise ValueError(f"shard {file} is damaged ({error}): delete it and run again") from error
    raise ValueError(f"shard {file} is damaged (its rows are not {width} wide): delete it and run again")
