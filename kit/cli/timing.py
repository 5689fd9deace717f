"""What a long job will cost, from a short one: seconds as a line in its size, and what to do."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from statistics import median

from kit.base.checks import check_counts
from kit.base.html import INK, PLAIN, SANS, WRAP

_HOUR = 3600.0
_NIGHT = 10 * _HOUR
_SPREAD = 0.3  # the least that an estimate may be off either way: machines slow down and speed up
_GB = 2**30


@dataclass(frozen=True)
class Line:
    """Seconds of a call as ``fixed + each * size``.

    Attributes:
        spread: how far the runs at one size lay apart, as a share of their median.
    """

    fixed: float
    each: float
    spread: float = 0.0

    def seconds(self, size: float, most: float | None = None) -> float:
        """Of a job of that size, in as many calls as it takes where one takes ``most``."""
        calls = 1 if most is None else -(-size // most)
        return calls * self.fixed + size * self.each


def line(job: Callable[[int], object], most: int, budget: float = 1.0) -> Line:
    """Time ``job(size)`` at two sizes, in turn, after a call to warm up.

    Two sizes, since what every call costs whatever its size must not be counted with each item.

    Args:
        most: the largest size that makes sense; halved while one run of it does not fit the
            budget.
        budget: seconds after which no further round begins; the first is always whole.

    Raises:
        ValueError: ``most`` below 1.
    """
    check_counts(most=most)
    job(1)
    one = _timed(job, 1)
    while most > 2 and 1.3 * most * one > budget:
        most //= 2
    small, spent = max(1, most // 4), one
    times: dict[int, list[float]] = {small: [], most: []}
    if small == 1:
        times[1].append(one)
    for turn in range(20):
        if turn and spent >= budget:
            break
        for size, found in times.items():
            if turn or not found:
                found.append(_timed(job, size))
                spent += found[-1]
    large = median(times[most])
    spread = (max(times[most]) - min(times[most])) / large if large else 0.0
    each = (large - median(times[small])) / (most - small) if most > small else large / most
    if not 0 < each * most <= large:  # the noise of the clock exceeds the difference
        each = large / most
    return Line(large - each * most, each, spread)


def _timed(job: Callable[[int], object], size: int) -> float:
    start = time.perf_counter()
    job(size)
    return time.perf_counter() - start


def memory(job: Callable[[], object]) -> int:
    """Bytes by which a run raised this process's memory while it went on, sampled; what the process
    had kept for itself before is not in it."""
    import psutil

    gc.collect()  # what is given back while the job runs would hide what it takes
    process, done = psutil.Process(), threading.Event()
    before = top = process.memory_info().rss

    def watch() -> None:
        nonlocal top
        while not done.wait(0.002):
            top = max(top, process.memory_info().rss)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        job()
    finally:
        done.set()
        thread.join()
    return max(top, process.memory_info().rss) - before


@dataclass(frozen=True)
class Estimate:
    """What a job would take on this machine as it is now. Shows itself in two lines.

    Attributes:
        what: the job, in words.
        tokens: that the model would read or write.
        seconds: to expect; from ``low`` to ``high`` as far as the probe can tell.
        spread: of the probe's own runs, as a share.
        memory_bytes, disk_bytes: beyond what is in use now, the loaded model included there.
        free_memory, free_disk: bytes that were free when this was made.
        probe_seconds: what finding out took.
        note: what the probe could not see.
    """

    what: str
    tokens: int
    seconds: float
    spread: float
    memory_bytes: int
    disk_bytes: int
    free_memory: int
    free_disk: int
    probe_seconds: float
    note: str = ""

    @property
    def low(self) -> float:
        """Seconds, the lower end of the range."""
        return self.seconds / (1 + max(_SPREAD, self.spread))

    @property
    def high(self) -> float:
        """Seconds, the upper end of the range."""
        return self.seconds * (1 + max(_SPREAD, self.spread))

    @property
    def fits(self) -> bool:
        """Whether memory and disk suffice."""
        return self.memory_bytes <= self.free_memory and self.disk_bytes <= self.free_disk

    @property
    def advice(self) -> str:
        """One line: whether to start here, and when to leave the laptop."""
        if self.memory_bytes > self.free_memory:
            return (
                f"leave this machine, or ask for less at a time: {_gb(self.memory_bytes)} of "
                f"memory, and {_gb(self.free_memory)} are free"
            )
        if self.disk_bytes > self.free_disk:
            return f"give a folder on another disk: {_gb(self.disk_bytes)}, and {_gb(self.free_disk)} are free"
        here = duration(self.seconds)
        if self.seconds < _HOUR:
            return f"fits: about {here}"
        if self.seconds < _NIGHT:
            return f"fits a night: about {here}"
        return (
            f"leave the laptop: about {here} here; a machine k times as fast takes a k-th of "
            f"it (10 times: {duration(self.seconds / 10)})"
        )

    def __str__(self) -> str:
        parts = [
            f"{self.what}: {self.tokens:,} tokens",
            f"{duration(self.seconds)} ({duration(self.low)} to {duration(self.high)})",
            f"memory {_gb(self.memory_bytes)} of {_gb(self.free_memory)} free",
        ]
        if self.disk_bytes:
            parts.append(f"disk {_gb(self.disk_bytes)} of {_gb(self.free_disk)} free")
        how = f"probed here for {duration(self.probe_seconds)}" + (f"; {self.note}" if self.note else "")
        return f"{' · '.join(parts)}\n{self.advice} ({how})"

    def _repr_html_(self) -> str:
        mark = "" if self.fits else f"border-left:4px solid rgba({INK},1);padding-left:8px;"
        return f'<div class="{PLAIN}" style="font:13px/1.5 {SANS};{mark}{WRAP}">{escape(str(self))}</div>'


def duration(seconds: float) -> str:
    """Seconds in the unit that a person would use: ``0.4 s``, ``12 minutes``, ``5.2 hours``."""
    unit, length = "days", 24 * _HOUR
    for name, size, end in (("s", 1, 90), ("minutes", 60, 90 * 60), ("hours", _HOUR, 48 * _HOUR)):
        if seconds < end:
            unit, length = name, size
            break
    n = seconds / length
    return f"{n:.0f} {unit}" if n >= 9.95 else f"{n:.1f} {unit}"


def _gb(size: int) -> str:
    if 0 < size < 0.1 * _GB:
        return "under 0.1 GB"
    return f"{size / _GB:.1f} GB" if size < 9.95 * _GB else f"{size / _GB:.0f} GB"
