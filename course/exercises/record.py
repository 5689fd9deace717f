"""What a learner did with the exercises: one file on this machine, one JSON line an event.

A line holds exercise, event, time and the seconds since the first look at it; never the answer.
The file is ``$KIT_PROGRESS``, else ``progress.jsonl`` in the user's data directory; with
``KIT_PROGRESS=off`` nothing is written or read. The notebook runner and the tests say so, for their
outputs must not depend on who runs them. A check never raises for the record's sake: what fails is
a line of text.

With `share`, or where the host sets ``$KIT_TABLE``, each event also goes to a folder that the
instructor of a room reads (`course.room.table`): a file of one's own under a random name, so that
nobody waits for, reads or overwrites anybody else's.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from course.exercises.events import LIMIT, Event, Progress, append, clean, line, parse, read, tally
from kit.base.files import whole

_WAIT = 1.0  # seconds for another kernel's line


# --- this learner's own record -------------------------------------------------------------------


def path() -> Path | None:
    """The record's file; None where ``KIT_PROGRESS=off``."""
    chosen = os.environ.get("KIT_PROGRESS", "")
    if chosen == "off":
        return None
    if chosen:
        return Path(chosen)
    import platformdirs

    return Path(platformdirs.user_data_dir("steering-kit")) / "progress.jsonl"


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Alone among this user's kernels, with the record's folder made.

    Raises:
        OSError: the folder cannot be written; filelock's ``Timeout`` is one too.
    """
    from filelock import FileLock

    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock", timeout=_WAIT):
        yield


def recorded() -> tuple[dict[str, Progress], int]:
    """What earlier kernels kept, by exercise id, and the number of lines that say nothing."""
    file = path()
    if file is None:
        return {}, 0
    try:
        events, ignored = read(file)
    except OSError:  # none yet, or unreadable: the learner begins anew, and writing says why
        return {}, 0
    return tally(events), ignored


def reset(exercise: str | None = None) -> int:
    """Forget one exercise, or all; returns the number of lines removed.

    A kernel that runs keeps its own count until it is restarted.

    Raises:
        OSError: the record cannot be written; it is then as it was.
    """
    file = path()
    if file is None or not file.exists():
        return 0
    with locked(file):
        lines = file.read_bytes().splitlines(keepends=True)

        def stays(raw: bytes) -> bool:
            event = parse(raw.strip())
            return exercise is not None and isinstance(event, Event) and event.exercise != exercise

        kept = [raw for raw in lines if stays(raw)]
        with whole(file, private=True) as part:
            part.write_bytes(b"".join(kept))
        return len(lines) - len(kept)


# --- the room ------------------------------------------------------------------------------------


@dataclass
class _Room:
    folder: Path
    learner: str
    progress: dict[str, Progress] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        return self.folder / f"{self.learner}.jsonl"


_told: set[str] = set()  # what this kernel has said once
_room: _Room | None = None
_chosen: str | None = None  # by `share`: a folder, or "" for none; None: as the environment says


def share(folder: str | Path | None, *, name: str | None = None) -> str:
    """From now on, let a room's instructor see the results of your checks; None: no longer.

    The folder gets a file under a random name, with what the local record holds: exercise, result
    and time, never your code. It holds no name of yours unless you give one; ``name=""`` takes it
    back. Holds for this kernel and wins over ``$KIT_TABLE``.

    Returns:
        What is shared now, in a sentence.

    Raises:
        FileNotFoundError: no such folder; OSError: it cannot be written.
        ValueError: ``KIT_PROGRESS=off``, where nothing is recorded; a name without a folder.
    """
    global _room, _chosen
    if folder is None or not str(folder):
        if name is not None:
            raise ValueError(f"name={name!r}: give the folder whose table is to show it")
        _room, _chosen = None, ""
        return "Nothing is shared: your results stay in your own record."
    if path() is None:
        raise ValueError(f"share({str(folder)!r}): KIT_PROGRESS=off, so there is nothing to share")
    room = _join(Path(folder))
    if not room.folder.is_dir():
        raise FileNotFoundError(f"folder={str(folder)!r}: there is no such folder")
    entry = b"" if name is None else json.dumps({"name": clean(name)}).encode() + b"\n"
    append(room.file, entry, shared=True)  # now, for a folder that refuses it should say so here
    _room, _chosen = room, str(folder)
    _told.add("room")
    whom = f"as {clean(name)}" if name and clean(name) else "without your name"
    return f"Your check results are shared with {room.folder}, {whom}; never your code."


def _join(folder: Path) -> _Room:
    """The same random name for the same folder: it is kept beside the record."""
    folder = Path(os.path.abspath(folder))
    file = path()
    if file is None:
        raise ValueError("KIT_PROGRESS=off")
    ids = file.with_name(f"{file.name}.rooms")
    known: dict[str, Any] = {}
    try:
        with locked(file):
            if ids.is_file():
                found = json.loads(ids.read_bytes()[:LIMIT])
                known = found if isinstance(found, dict) else {}
            if not re.fullmatch("[0-9a-f]{16}", str(known.get(str(folder)))):
                known[str(folder)] = secrets.token_hex(8)
                with whole(ids, private=True) as part:
                    part.write_bytes(json.dumps(known).encode())
    except (OSError, ValueError):  # a name for this kernel alone
        known = {str(folder): secrets.token_hex(8)}
    room = _Room(folder, known[str(folder)])
    with suppress(OSError):  # what earlier kernels shared
        room.progress = tally(read(room.file)[0])
    return room


def _room_now() -> _Room | None:
    """What `share` or else the environment says."""
    global _room
    wanted = os.environ.get("KIT_TABLE", "") if _chosen is None else _chosen
    if not wanted:
        return None
    if _room is None or _room.folder != Path(os.path.abspath(wanted)):
        _room = _join(Path(wanted))
    return _room


# --- what the exercises call ---------------------------------------------------------------------


def note(exercise: str, progress: Progress, event: str) -> str:
    """Count an event, keep it, and share it where that is wanted; never raises.

    Returns:
        What the learner should know, once a kernel; mostly nothing.
    """
    now = time.time()
    said = []
    seconds = _since(progress, now)
    counts = progress.add(event, now, seconds)
    file = path()
    if file is None:
        return ""
    if counts:
        try:
            with locked(file):
                append(file, line(Event(exercise, event, now, seconds)))
        except Exception as error:
            said.append(
                _once("kept", f"This result is not in your record ({_reason(error)}); it counts until the kernel ends.")
            )
    try:
        said.append(_share(exercise, event, now))
    except Exception as error:
        said.append(_once("shared", f"The room's table did not get this ({_reason(error)})."))
    return " ".join(filter(None, said))


def _share(exercise: str, event: str, now: float) -> str:
    room = _room_now()
    if room is None:
        return ""
    mine = room.progress.setdefault(exercise, Progress())
    seconds = _since(mine, now)
    if mine.add(event, now, seconds):
        append(room.file, line(Event(exercise, event, now, seconds)), shared=True)
    return _once(
        "room",
        f"Results of checks are shared with the room's table ({room.folder}), "
        "not your name or code; kit.exercises.share(None) ends that.",
    )


def _since(progress: Progress, now: float) -> float:
    return 0.0 if progress.looked is None else max(0.0, now - progress.looked)


def _once(what: str, text: str) -> str:
    if what in _told:
        return ""
    _told.add(what)
    return text


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
