"""Where files of our own are made: beside the place that they go to, alone, and without a rest.

What a killed process left of one names that process, so that whoever writes there next clears up.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
import socket
import stat
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_STALE = 3600  # seconds after which a part of a file is what a killed process left
_HOST = f"{zlib.crc32(socket.gethostname().encode()):08x}"
_PART = re.compile(r"\..*\.([0-9a-f]{8})-(\d+)-\d+\.part", re.DOTALL)  # host and process
_NUMBERS = itertools.count()
_TORCH_WRITES = ("inline_container", "PytorchStream", "iostream")  # what its RuntimeErrors of a full disk name


@contextmanager
def scratch(target: str | Path) -> Iterator[Path]:
    """An empty folder beside ``target``, in which that is made; it goes when the block ends.

    It lies where ``target`` will, so that a rename takes no time and needs no second disk.

    Raises:
        OSError: what the block cannot write, whatever it raised; the text names ``target``.
    """
    target = Path(target)
    drop_parts(target.parent)
    part = target.with_name(f".{target.name}.{_HOST}-{os.getpid()}-{next(_NUMBERS)}.part")
    with _told(target, part):
        part.mkdir(mode=0o700)
        try:
            yield part
        finally:
            shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _told(target: Path, part: Path) -> Iterator[None]:
    """Errors of writing as an OSError that names what was to be written, not a part of it."""
    from safetensors import SafetensorError

    try:
        yield
    except OSError as error:
        if error.errno is None or not str(error.filename or part).startswith(str(part)):
            raise
        raise OSError(error.errno, error.strerror, str(target)) from error
    except (SafetensorError, RuntimeError) as error:
        said = str(error)
        if isinstance(error, RuntimeError) and not any(word in said for word in _TORCH_WRITES):
            raise
        if number := re.search(r"os error (\d+)", said):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(target)) from error
        raise OSError(errno.EIO, f"is the disk full? {said:.200}", str(target)) from error


def as_umask(folder: Path) -> None:
    """Give the files in a folder the mode that any new file there gets: safetensors makes its own
    0600, and nobody else could read them."""
    probe = folder / ".mode"
    os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for file in folder.rglob("*"):
        if file.is_file() and stat.S_IMODE(file.stat().st_mode) != mode:
            file.chmod(mode)


def drop_parts(folder: str | Path, only: str = "") -> None:
    """Remove what killed processes left in a folder while they wrote: parts of processes of this
    host that are gone, and those of other hosts that nobody touched for an hour.

    Whoever goes on from a file calls it: where all is done nothing is written, and nothing else
    clears up.

    Args:
        only: a file's name that nobody else writes now: its parts go, whoever made them.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        for part in [entry for entry in entries if entry.name.endswith(".part")]:
            made = _PART.fullmatch(part.name)
            if made is None:
                continue
            with suppress(OSError):
                since = part.stat().st_mtime
                gone = not _writes(int(made[2]), since) if made[1] == _HOST else time.time() - since >= _STALE
                if gone or part.name.startswith(f".{only}.{made[1]}-"):
                    shutil.rmtree(part.path)


def _writes(pid: int, since: float) -> bool:
    """Whether a process lives, and is the one that had this number then."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return process.create_time() <= since + 2 and process.status() != psutil.STATUS_ZOMBIE
    return False


def keep_new(made: Path, folder: Path, stem: str, ending: str = "") -> Path:
    """Move a file or folder out of a :func:`scratch` to ``stem`` and its ending, with a number from
    2 on where that is taken: never over another, and be it one that appears at this moment."""
    for n in itertools.count(1):
        path = folder / f"{stem}{f'-{n}' * (n > 1)}{ending}"
        with suppress(FileExistsError):
            if not os.path.lexists(path):
                _claim(made, path)
                return path
    raise AssertionError(f"stem={stem!r}: numbers do not end")


def _claim(made: Path, path: Path) -> None:
    """Give a file or folder its name, unless something has it: then a FileExistsError."""
    try:
        (os.rename if made.is_dir() else os.link)(made, path)
    except OSError as error:
        if os.path.lexists(path):
            raise FileExistsError(path) from error
        if made.is_dir():
            raise
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))  # a file system without links
        os.replace(made, path)


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Alone with a file that several processes or threads read, change and write again.

    Raises:
        OSError: the folder cannot be written.
    """
    from filelock import FileLock

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    with lock:
        try:
            yield
        finally:  # while it is held: who waits for it sees that, and begins anew
            with suppress(OSError):
                os.unlink(lock.lock_file)
