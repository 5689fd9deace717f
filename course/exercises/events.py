"""A learner's events with exercises: what one line of a record says, and files of such lines.

A line is JSON: exercise, event, time, and the seconds since the first look at the exercise. Files
are read as if a stranger had written them, because some are (`course.room.table`).
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

TRIES = 3  # failed checks (or calls of `hint`) after which the solution opens
EVENTS = ("look", "failed", "passed", "hint", "solution")
NAME = re.compile(r"[0-9a-f]{16}\.jsonl")  # of a learner in a shared folder
MOST = 50  # of one kind that count, for one exercise: a loop around `check` fills no disk
LONGEST = 500  # bytes of a line
LIMIT = 2**18  # bytes of a file that are read


@dataclass
class Progress:
    """What one learner did with one exercise. Tries after the first pass do not count."""

    failed: int = 0
    hints: int = 0
    passed: bool = False
    solutions: int = 0
    looked: float | None = None  # when it was first looked at, in seconds since 1970
    seconds: float | None = None  # from the first look to the first pass

    @property
    def open(self) -> bool:
        """May the solution be shown?"""
        return self.passed or max(self.failed, self.hints) >= TRIES

    @property
    def tries(self) -> int:
        """Answers that were judged, up to the first that passed."""
        return self.failed + self.passed

    def add(self, event: str, at: float, seconds: float = 0.0) -> bool:
        """Count an event; False when it changes nothing."""
        before = (self.failed, self.hints, self.passed, self.solutions, self.looked)
        if self.looked is None:
            self.looked = at - seconds
        if event == "failed" and not self.passed:
            self.failed = min(MOST, self.failed + 1)
        elif event == "passed" and not self.passed:
            self.passed, self.seconds = True, seconds
        elif event == "hint":
            self.hints = min(MOST, self.hints + 1)
        elif event == "solution":
            self.solutions = min(MOST, self.solutions + 1)
        return before != (self.failed, self.hints, self.passed, self.solutions, self.looked)


class Event(NamedTuple):
    """One line of a record."""

    exercise: str
    event: str
    at: float  # seconds since 1970
    seconds: float  # since the first look


def line(event: Event) -> bytes:
    """An event as a line of a file."""
    text = json.dumps(
        {"exercise": event.exercise, "event": event.event, "at": round(event.at, 1), "seconds": round(event.seconds, 1)}
    )
    return text.encode() + b"\n"


def parse(raw: bytes) -> Event | str | None:
    """A line as an event, a name (`share(folder, name=...)`), or None: it is neither.

    Anybody may have written it, so nothing of it is taken that is not checked here.
    """
    if len(raw) > LONGEST:
        return None
    try:
        found = json.loads(raw)
        if isinstance(found, dict) and set(found) == {"name"} and isinstance(found["name"], str):
            return clean(found["name"])
        exercise, event, at, seconds = (found[key] for key in ("exercise", "event", "at", "seconds"))
        numbers = all(type(n) in (int, float) and math.isfinite(n) for n in (at, seconds))
        if (
            not numbers
            or not 0 < at < 1e11
            or not 0 <= seconds < 1e9
            or event not in EVENTS
            or not re.fullmatch(r"\d\d\.\d{1,2}", exercise, re.ASCII)
        ):
            return None
        return Event(exercise, event, float(at), float(seconds))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def clean(text: str, longest: int = 40) -> str:
    """A name as it may be shown: no control or direction characters, not long."""
    return "".join(c for c in text if c.isprintable())[:longest].strip()


def read(file: Path, *, shared: bool = False) -> tuple[list[Event | str], int]:
    """Events and names of a file, and how many lines were neither (a rest without an end is one).

    Only a regular file, and no more than its first `LIMIT` bytes.

    Args:
        shared: it may be anybody's; a link, to a file that only the reader may see, is refused.

    Raises:
        OSError: it cannot be read, or is a pipe or a device.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)  # opening a pipe would wait for ever
    flags |= getattr(os, "O_NOFOLLOW", 0) * shared
    with open(os.open(file, flags), "rb") as handle:
        if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
            raise OSError(f"{file} is no ordinary file")
        raw = handle.read(LIMIT + 1)
    lines = raw[:LIMIT].split(b"\n")
    ignored = int(bool(lines.pop()))  # a line that is being written, was torn, or goes too far
    found = []
    for one in filter(None, lines):
        parsed = parse(one)
        if parsed is None:
            ignored += 1
        else:
            found.append(parsed)
    return found, ignored


def tally(lines: Iterable[Event | str]) -> dict[str, Progress]:
    """Events, in the order in which they were written, as progress by exercise id."""
    found: dict[str, Progress] = {}
    for one in lines:
        if isinstance(one, Event):
            found.setdefault(one.exercise, Progress()).add(one.event, one.at, one.seconds)
    return found


def append(file: Path, raw: bytes, *, shared: bool = False) -> None:
    """Add a line, whole or not at all; makes the file when it is missing.

    Args:
        shared: the folder is open to others. They may read the file (``chmod 644``, whatever the
            umask is), and a link or a file of somebody else's in its place is refused.

    Raises:
        OSError: the disk is full, the folder is read-only, or the file is not one's own.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
    flags |= getattr(os, "O_NOFOLLOW", 0) * shared
    handle = os.open(file, flags, 0o600)
    try:
        facts = os.fstat(handle)
        own = stat.S_ISREG(facts.st_mode) and facts.st_uid == getattr(os, "geteuid", int)()
        if shared and not own:
            raise OSError(f"{file} is not an ordinary file of this user")
        end = facts.st_size
        if shared and end == 0 and hasattr(os, "fchmod"):
            os.fchmod(handle, 0o644)
        os.lseek(handle, max(0, end - 1), os.SEEK_SET)
        torn = end > 0 and os.read(handle, 1) != b"\n"  # a kernel was killed while it wrote
        raw = b"\n" * torn + raw
        try:
            done = os.write(handle, raw)
            if done != len(raw):
                raise OSError(f"the disk is full: {done} of {len(raw)} bytes were written")
        except OSError:
            os.ftruncate(handle, end)
            raise
    finally:
        os.close(handle)
