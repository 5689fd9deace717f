"""Malicious and damaged files: every kind that the kit reads, every way we know to break one."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from course import runner
from kit import data
from kit.base.files import MOST_HEADER
from kit.base.shipped import contrast
from kit.data import organisms
from kit.widgets.gallery import sets
from kit.widgets.gallery.features import Feature
from kit.widgets.panel import files
from tests.faults import Row
from tests.faults.subjects import Subjects

SECONDS = 2.0  # of the processor, for one file: slow hosts take 1.5 to find that a template has no end
HANGS = 60  # seconds of a clock, after which reading one counts as hung
MEMORY = 300  # megabytes that reading all files of a kind may add to the process
NAMES = (
    "../../etc/passwd",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a/b",
    "..\\..\\x",
    "C:\\x",
    "a\0b",
    "CON",
    "x" * 5000,
    "\U00010348" * 200,
    "\u202egpj.x",
    "~/x",
    "$HOME",
    "`id`",
    ";id",
    "-rf",
    "%2e%2e%2fx",
    "\n",
    "a\nb",
    "vectors/../../x",
    ".hidden",
    "<b>",
)


@dataclass(frozen=True)
class Kind:
    """A kind of file: made once, broken copies are read.

    Attributes:
        make: writes a good one into a folder; returns the file (or the folder of several).
        read: reads it, as the kit does.
        special: further bad ones, each a function that changes the good one in place.
        harmless: a pattern of those that may be read all the same: parts that the kit does not
            read, texts that are free, numbers that make sense. Any other that is read is a loss.
    """

    name: str
    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    special: Callable[[Path], Iterator[tuple[str, Callable[[], Any]]]] | None = None
    harmless: str = "$."


def run(subjects: Subjects, folder: Path, rounds: int = 1, seed: int = 0) -> list[Row]:
    """Read every kind broken in every way.

    Args:
        rounds: how thorough: flips and cuts of each file grow with it; 0 takes a few of each.
    """
    from tests.faults.kinds import kinds

    rows = []
    for kind in kinds(subjects):
        home = folder / kind.name.replace(" ", "-")
        home.mkdir(parents=True)
        rows.append(_kind(kind, home, rounds, random.Random(f"{seed} {kind.name}")))
    return [*rows, names(subjects, folder / "names")]


def _kind(kind: Kind, home: Path, rounds: int, rng: random.Random) -> Row:
    row = Row(f"file: {kind.name}")
    (home / "good").mkdir()
    good = kind.make(home / "good")
    kind.read(good)  # a good one is read
    before = _memory()
    bad = home / f"bad{good.suffix}"
    targets = [p.relative_to(good) for p in sorted(good.rglob("*")) if p.is_file()]
    for target in targets or [Path()]:
        whole = (good / target).read_bytes()
        for told, content in _some(breakages(whole, max(1, rounds), rng), 7 * (not rounds), rng):
            _fresh(good, bad)
            _write(bad / target, content)
            _try(row, kind, bad, home, f"{target} {told}")
    _fresh(good, bad)
    for told, change in _some(kind.special(bad) if kind.special else (), 24 * (not rounds), rng):
        _fresh(good, bad)
        change()
        _try(row, kind, bad, home, told)
    if (grown := _memory() - before) > MEMORY:
        row.losses.append(f"reading took {grown} MB")
    return row


def _some(every: Iterable[Any], n: int, rng: random.Random) -> list[Any]:
    """So many of them, drawn at random; all for 0."""
    found = list(every)
    return rng.sample(found, min(n, len(found))) if n else found


def breakages(whole: bytes, rounds: int, rng: random.Random) -> Iterator[tuple[str, Any]]:
    """Broken versions of a file's content; an int stands for a file of so many zeros, a function
    makes what is no file."""
    step = max(64, len(whole) // (24 * rounds) // 64 * 64)
    for size in range(0, len(whole), step):
        yield f"cut at {size}", whole[:size]
    for n in range(24 * rounds):
        broken = bytearray(whole)
        for _ in range(1 + n % 4):
            # half of them in the first kilobyte, where headers are
            at = rng.randrange(min(len(broken), 1024) if n % 2 else len(broken))
            broken[at] = rng.randrange(256)
        yield f"flip {n}", bytes(broken)
    yield "of another kind", b"\x80\x04\x95junk" + bytes(100)
    yield "of letters", b"hello" * 50
    yield "half a gigabyte", 500 * 2**20
    yield "deep", b"[" * 200_000
    yield "deep object", b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    yield "a long number", b'{"a": ' + b"9" * 10_000 + b"}"
    yield "twice", b'{"a": 1, "a": 2}'
    for text in ("null", "[]", "{}", "1", '"x"', "NaN", '[{"a": Infinity}]', "[[1]]"):
        yield text, text.encode()
    for claim in (2**63 - 1, 2**40, 2**31):
        yield f"header of {claim}", struct.pack("<Q", claim) + whole[8:]
    entry = {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}
    header = json.dumps({"direction": entry, "W_dec": entry}).encode()
    yield "10^12 numbers", struct.pack("<Q", len(header)) + header + bytes(64)
    yield "a pipe", os.mkfifo
    yield "a device", lambda path: path.symlink_to("/dev/zero")
    if whole[8:10] == b'{"':  # of safetensors: whole, but for what it says of itself
        end = 8 + int.from_bytes(whole[:8], "little")
        told = json.loads(whole[8:end])
        told["__metadata__"] = told.get("__metadata__", {}) | {"x": "y" * (MOST_HEADER + 1)}
        long = json.dumps(told).encode()
        yield "a long header", struct.pack("<Q", len(long)) + long + whole[end:]


def _fresh(good: Path, bad: Path) -> None:
    if good.is_dir():
        shutil.rmtree(bad, ignore_errors=True)
        shutil.copytree(good, bad)
    else:
        bad.unlink(missing_ok=True)  # it may be a pipe
        shutil.copy(good, bad)


def _write(path: Path, content: Any) -> None:
    path.unlink()
    if callable(content):
        content(path)
    elif isinstance(content, int):
        with path.open("wb") as file:
            file.truncate(content)  # takes no room on the disk
    else:
        path.write_bytes(content)


def _try(row: Row, kind: Kind, bad: Path, home: Path, told: str) -> None:
    def outside() -> set[Path]:
        return {p for p in home.parent.rglob("*") if home not in p.parents}

    row.inputs += 1
    before, start = outside(), time.process_time()
    signal.signal(signal.SIGALRM, _hangs)
    signal.alarm(HANGS)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            kind.read(bad)
        if not re.search(rf"flip \d+$|{kind.harmless}", told):  # a flip may make another good one
            row.losses.append(f"{told}: it was read as if nothing were wrong")
    except (ValueError, OSError) as error:
        if len(str(error)) < 10:
            row.losses.append(f"{told}: the error says only {str(error)!r}")
    except Exception as error:  # what nobody expects is what is looked for
        row.losses.append(f"{told}: {type(error).__name__}: {str(error)[:120]}")
    finally:
        signal.alarm(0)
    if (took := time.process_time() - start) > SECONDS:
        row.losses.append(f"{told}: {took:.1f} s")
    if before != outside():
        row.losses.append(f"{told}: files outside of its folder changed")


def _hangs(*_: Any) -> None:
    raise AssertionError(f"it was not done after {HANGS} s")


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def names(subjects: Subjects, folder: Path) -> Row:
    """Names that become paths: nothing is read or written beside the folder that was meant."""
    row = Row("names that become paths")
    folder.mkdir(parents=True)
    asked: list[Callable[[str], Any]] = [
        data.vector,
        contrast,
        data.dictionary,
        data.crosscoder,
        data.path,
        organisms.load,
        organisms.password,
        lambda name: data.path("vectors", name),
        lambda name: runner.choose([name or "?"]),
    ]
    root = data.path()
    for ask in asked:
        for name in NAMES:
            row.inputs += 1
            try:
                found = ask(name)
            except (ValueError, OSError):
                continue
            if not isinstance(found, Path) or not found.resolve().is_relative_to(root.resolve()):
                row.losses.append(f"{name!r:.30} was found: {found!r:.80}")
    for i, name in enumerate(NAMES):
        home = folder / f"{i}" / "vectors"
        home.mkdir(parents=True)
        for save in (lambda v, h=home: files.save(v, h), lambda v, h=home: sets.save([Feature(v, 1, 0.5)], h / "set")):
            row.inputs += 1
            path = save(subjects.vector(name))
            inside = [p for p in home.rglob("*") if p.is_file()]
            outside = [p for p in folder.joinpath(f"{i}").rglob("*") if home not in p.parents]
            if outside != [home] or not path.resolve().is_relative_to(home.resolve()) or not inside:
                row.losses.append(f"{name!r:.30} was saved as {path}")
            if any(p.suffix != ".safetensors" or p.name.startswith(".") for p in inside):
                row.losses.append(f"{name!r:.30} left {sorted(p.name for p in inside)}")
    return row
