"""The instructor's table: where in the exercises a room is, from the files that learners share.

Learners' kernels write into one folder (`course.exercises.share`, or ``$KIT_TABLE`` for the whole
host), each learner into a file of its own. Make it a drop box, which its owner, the instructor,
reads, and in which the others can write but neither list nor delete::

    install -d -m 1733 -o instructor /srv/room

Anybody in the room can put anything there, so a file counts for one learner at most, is read up to
`LIMIT` bytes, and what is not an event of an exercise that exists is ignored, counted and told.
"""

from __future__ import annotations

import os
import stat
import statistics
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from course import exercises
from course.exercises.events import NAME, Event, Progress, read, tally
from course.exercises.summary import counted, key

ACTIVE = 300.0  # seconds after an event in which a learner counts as active
STUCK = 2  # failed tries without a pass
FILES = 300  # that are read; of each account in turn, so that nobody's files crowd others out
_NAMED = 5
_AHEAD = 60.0  # seconds; a line from a later time than that was made up


@dataclass(frozen=True)
class Row:
    """One exercise; counts of learners unless it says otherwise.

    Attributes:
        started: whose check ran, if only on the unwritten answer; or who took a hint.
        tries: judged answers of all of them, up to each one's first pass; hints: taken, by all.
        solutions: who opened the solution.
        minutes: median from the first look to the pass, of those who passed; None without a pass.
        stuck: who failed twice or more and has not passed; names: those of them who gave a name.
    """

    exercise: str
    title: str
    started: int = 0
    tries: int = 0
    passed: int = 0
    hints: int = 0
    solutions: int = 0
    minutes: float | None = None
    stuck: int = 0
    names: tuple[str, ...] = ()

    @property
    def heat(self) -> float:
        """Share of those who started that is stuck, from 0 to 1."""
        return self.stuck / self.started if self.started else 0.0

    @property
    def who(self) -> str:
        """The first names, and how many more."""
        more = len(self.names) - _NAMED
        return ", ".join(self.names[:_NAMED]) + (f" and {more} more" if more > 0 else "")

    @property
    def warns(self) -> bool:
        """Whether this is worth a word to the whole room: a third of those who started, and two."""
        return self.stuck >= 2 and self.heat >= 1 / 3


@dataclass(frozen=True)
class Table:
    """All rows of the notebooks that somebody has started.

    Attributes:
        learners: files, one each; active: of them, those with an event in the last five minutes.
        notes: what was ignored, and why.
        at: when it was read, in seconds since 1970.
    """

    rows: tuple[Row, ...]
    learners: int
    active: int
    notes: tuple[str, ...]
    at: float

    @property
    def notebooks(self) -> list[str]:
        """Numbers of the notebooks that somebody has worked in, in the order of the rows."""
        return list(dict.fromkeys(row.exercise.partition(".")[0] for row in self.rows))

    @property
    def headline(self) -> str:
        """``30 learners, 12 active in the last five minutes``"""
        learners = counted(self.learners, "learner", "learners") or "no learner yet"
        return f"{learners}, {self.active} active in the last five minutes"

    def of(self, notebook: str | None) -> tuple[Row, ...]:
        """The rows of one notebook (``"02"``), or all."""
        wanted = f"{notebook}."
        return tuple(r for r in self.rows if notebook is None or r.exercise.startswith(wanted))

    def text(self, notebook: str | None = None) -> str:
        """For a terminal."""
        rows = self.of(notebook)
        wide = max([8, *(len(f"{row.exercise} {row.title}") for row in rows)])
        lines = [f"{'exercise':{wide}}  started  tries  passed  hints  solution  minutes  stuck"]
        for row in rows:
            minutes = "-" if row.minutes is None else f"{row.minutes:.1f}"
            bar = "#" * round(10 * row.heat)
            names = f" ({row.who})" if row.names else ""
            lines.append(
                f"{f'{row.exercise} {row.title}':{wide}}  {row.started:7}  {row.tries:5}  "
                f"{row.passed:6}  {row.hints:5}  {row.solutions:8}  {minutes:>7}  "
                f"{bar:<10} {row.stuck} of {row.started}{' !' if row.warns else ''}{names}"
            )
        return "\n".join([self.headline, *lines, *self.notes])

    def __str__(self) -> str:
        return self.text()


def read_room(folder: str | Path, now: float | None = None) -> Table:
    """Read what the learners of a room shared.

    Args:
        folder: the one that learners share with.
        now: seconds since 1970, if not the clock's.

    Raises:
        FileNotFoundError: no such folder; NotADirectoryError: it is a file.
        PermissionError: it is somebody else's drop box.
    """
    now = time.time() if now is None else now
    known = exercises.registry()
    learners: list[dict[str, Progress]] = []
    names: list[str] = []
    active, faults = 0, Counter[str]()
    files, faults["files left out"] = _files(Path(folder))
    for file in files:
        try:
            lines, ignored = read(file, shared=True)
        except OSError:
            faults["files that cannot be read"] += 1
            continue
        events = [e for e in lines if isinstance(e, Event) and e.at <= now + _AHEAD]
        foreign = sum(event.exercise not in known for event in events)
        given = [line for line in lines if isinstance(line, str)]
        faults["lines ignored"] += ignored + len(lines) - len(events) - len(given) + foreign
        events = [event for event in events if event.exercise in known]
        learners.append(tally(events))
        names.append(given[-1] if given else "")
        active += any(event.at >= now - ACTIVE for event in events)
    seen = {id[:2] for learner in learners for id in learner}
    rows = tuple(_row(id, learners, names) for id in sorted(known, key=key) if id[:2] in seen)
    notes = tuple(counted(n, what.replace("s ", " ", 1), what) for what, n in faults.items() if n)
    return Table(rows, len(learners), active, notes, now)


def _files(folder: Path) -> tuple[list[Path], int]:
    """Learners' files, and how many things in the folder are none of them."""
    found: list[tuple[int, str]] = []
    other = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if not NAME.fullmatch(entry.name):
                other += 1
                continue
            facts = entry.stat(follow_symlinks=False)
            if stat.S_ISREG(facts.st_mode):
                found.append((facts.st_uid, entry.name))
            else:
                other += 1
    turn: Counter[int] = Counter()
    order = []
    for owner, name in sorted(found):
        order.append((turn[owner], name))
        turn[owner] += 1
    taken = [folder / name for _, name in sorted(order)[:FILES]]
    return taken, other + len(order) - len(taken)


def _row(id: str, learners: list[dict[str, Progress]], names: list[str]) -> Row:
    did = [(learner[id], name) for learner, name in zip(learners, names, strict=True) if id in learner]
    mine = [progress for progress, _ in did]
    times = [progress.seconds / 60 for progress in mine if progress.seconds is not None]
    stuck = [name for progress, name in did if progress.failed >= STUCK and not progress.passed]
    return Row(
        id,
        exercises.find(id).title,
        started=len(mine),
        tries=sum(p.tries for p in mine),
        passed=sum(p.passed for p in mine),
        hints=sum(p.hints for p in mine),
        solutions=sum(p.solutions > 0 for p in mine),
        minutes=statistics.median(times) if times else None,
        stuck=len(stuck),
        names=tuple(sorted(filter(None, stuck))),
    )
