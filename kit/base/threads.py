"""How many threads a computation uses: what fits its size, of the cores that are free now.

OpenMP's threads wait for one another after every small product, and spin while they do. Where one
of them has lost its core to another program, all others wait for it, again and again: a step of one
row on two threads then takes several times what it takes on one. So one row runs on one thread,
larger work on the cores that others leave, asked anew a few times a second. A count that the user
has set wins: by ``OMP_NUM_THREADS`` or ``MKL_NUM_THREADS``, or by ``torch.set_num_threads`` with
anything but torch's own default.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import ContextDecorator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

_COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
# How long a waiting thread spins before it sleeps, in GNU's words and in Intel's and LLVM's: what
# the doctor's probe tries. The first is torch's own, the second what is used where none was kept.
WAITING: dict[str, dict[str, str]] = {
    "torch's own": {},
    "short": {"GOMP_SPINCOUNT": "3000", "KMP_BLOCKTIME": "1"},
    "longer": {"GOMP_SPINCOUNT": "30000", "KMP_BLOCKTIME": "10"},
    "none": {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"},
}
WAITS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
KEPT = "threads.json"
_WINDOW = 0.1  # seconds: a reading of the system's clocks, which tick every hundredth, is right to a tenth of a core
_STALE = 1.0  # seconds after which an average says little of now


def cores() -> int:
    """How many CPU cores this process may use: those it is bound to, at most its group's quota."""
    return max(1, math.ceil(min(_bound(), _quota())))


def _bound() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _quota(root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> float:
    """Cores that the control groups (version 2) around this process grant it; infinite without."""
    least = math.inf
    try:
        inner = Path(own).read_text().partition("0::/")[2].strip()
        for group in (Path(root, inner), *Path(root, inner).parents):
            if group.is_relative_to(root) and (group / "cpu.max").is_file():
                most, period = (group / "cpu.max").read_text().split()
                least = min(least, math.inf if most == "max" else int(most) / int(period))
    except (OSError, ValueError):  # no such files here
        pass
    return least


def _clocks() -> tuple[float, float]:
    """Seconds that the cores of this process have worked, for anyone and for this process alone."""
    import psutil

    whole = _bound() == os.cpu_count()
    each = [psutil.cpu_times()] if whole else psutil.cpu_times(percpu=True)
    mine = range(len(each)) if whole else [i for i in os.sched_getaffinity(0) if i < len(each)]
    # on Linux `user` holds `guest` already, on Windows `system` the time in interrupts
    names = ("user", "nice", "system", "irq", "softirq", "steal")
    return sum(getattr(each[i], name, 0.0) for i in mine for name in names), time.process_time()


def _running() -> float | None:
    """How many others run at this moment, where the system tells; the least of three looks."""
    if _bound() != os.cpu_count() or not sys.platform.startswith("linux"):
        return None  # those that it counts may run on cores that are none of ours
    least = math.inf
    try:
        for _ in range(3):
            with open("/proc/loadavg") as file:
                least = min(least, int(file.read().split()[3].partition("/")[0]) - 1)  # we run, too
            if least <= 0:
                return 0.0
            time.sleep(0.001)  # what has only just woken up, or spins for a moment, is gone by then
    except (OSError, ValueError, LookupError):
        return None
    return least


@dataclass
class Load:
    """What others leave of the cores: ``free()`` is a number of threads that changes calmly."""

    clocks: Callable[[], tuple[float, float]] = _clocks
    running: Callable[[], float | None] = _running
    now: Callable[[], float] = time.monotonic
    bound: Callable[[], int] = _bound
    others: float = 0.0  # cores
    _count: int = 0  # of threads, at the last answer
    _read: tuple[float, float, float] = (-math.inf, 0.0, 0.0)  # when, and both clocks then
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def free(self) -> int:
        """Cores that others leave, at least one; costs nothing within a tenth of a second."""
        with self._lock:
            when = self.now()
            if (age := when - self._read[0]) >= _WINDOW:
                self._look(when, age)
            enough = self.bound() - self.others
            # a load about half a core moves nothing: two that watch each other would swing
            if not self._count - 0.5 <= enough <= self._count + 0.75:
                self._count = max(1, math.floor(enough + 0.5))
            return self._count

    def _look(self, when: float, age: float) -> None:
        busy, own = self.clocks()
        _, busy_then, own_then = self._read
        told = self.running() if age > _STALE else None
        if told is None and age < math.inf:
            told = (busy - busy_then - (own - own_then)) / age
        self.others = min(max(0.0, told or 0.0), float(self.bound()))
        self._read = when, busy, own


_LOAD = Load()
_inside: dict[int, int] = {}  # by Python thread: the count that its outermost `fitted` has set
_usual = 0  # torch's own count, as last seen
_missed = False  # whether torch was loaded before `prepare`
_set: dict[str, str] = {}  # what `prepare` put into the environment
_told = False  # whether the user was told of it


class fitted(ContextDecorator):
    """``with fitted(rows):`` what runs inside uses as many threads as suit it now.

    The count is chosen at the beginning of the outermost such block of a Python thread and holds
    to its end, for all within: long work that should follow the machine has one for each of its
    iterations, what must give the same numbers twice has one around all (another count rounds
    otherwise). It costs microseconds. ``@fitted(rows)`` does it for a function.

    Args:
        rows: how many rows of activations a layer gets, over all texts and positions: 1 for a
            step of decoding one row. One row gets one thread (or what the doctor's probe found
            best), more get the cores that are free.
    """

    def __init__(self, rows: int) -> None:
        self.rows, self._before = rows, 0

    def _recreate_cm(self) -> fitted:
        return fitted(self.rows)  # as a decorator: one for each call

    def __enter__(self) -> None:
        global _usual, _told
        import torch

        me, now = threading.get_ident(), torch.get_num_threads()
        if me in _inside or users():
            return
        if now in _own():
            _usual = now
        elif not _usual or now not in list(_inside.values()):  # a new Python thread may inherit one of those
            return  # the user's
        elsewhere = sum(list(_inside.values()))
        free = _LOAD.free() - elsewhere if self.rows > 1 or _one_row() > 1 else 1
        if _missed and not _told and _LOAD.others >= 0.5:
            _told = True
            warnings.warn(f"others use {_LOAD.others:.1f} of {_bound()} cores, and {too_late()}", stacklevel=3)
        count = max(1, min(free, cores(), _usual, _one_row() if self.rows == 1 else _usual))
        self._before, _inside[me] = _usual, count
        if count != now:
            torch.set_num_threads(count)

    def __exit__(self, *_: object) -> None:
        if self._before:
            import torch

            count = _inside.pop(threading.get_ident())
            if count != self._before and torch.get_num_threads() == count:  # else the user's, from now on
                torch.set_num_threads(self._before)


def users() -> str:
    """The variable by which the user has said how many threads there are; empty without one."""
    return next((f"{name}={os.environ[name]}" for name in _COUNTS if name in os.environ), "")


@cache
def _own() -> frozenset[int]:
    """The counts that torch may have chosen by itself."""
    import psutil

    return frozenset({_bound(), cores(), psutil.cpu_count(logical=False), kept().get("default")})


def _one_row() -> int:
    found = kept().get("one row")
    return found if isinstance(found, int) and found > 1 else 1


@cache
def kept() -> Mapping[str, Any]:
    """What the probe found on this machine; empty where it was not run, or elsewhere."""
    try:
        from kit.base.files import cache_dir, read_json

        found = read_json(cache_dir() / KEPT, 2**16)
        return found if found.get("cores") == cores() and found.get("waiting") in WAITING else {}
    except (OSError, ValueError, AttributeError, TypeError, ImportError):  # no file, another's, no platformdirs
        return {}


def environment() -> dict[str, str]:
    """What must be in the environment before torch is loaded: how long waiting threads spin.

    Empty where the user has said anything of it himself.
    """
    if any(os.environ.get(name) != _set.get(name) for name in WAITS):
        return {}
    return dict(WAITING[kept().get("waiting", "short")])


def prepare() -> None:
    """Put :func:`environment` into this process's, for torch and all that it starts.

    Where torch is loaded already it comes too late for this process: :func:`too_late` says so.
    """
    global _missed
    found = environment()
    _missed = "torch" in sys.modules and bool(found)
    for name in list(_set) if found else ():  # a probe may have chosen anew
        del os.environ[name], _set[name]
    _set.update(found)
    os.environ.update(found)


def too_late() -> str:
    """One line on a torch that was loaded before the kit; empty where none was."""
    if not _missed:
        return ""
    return "torch was loaded before kit, so its waiting threads burn cores that others need: import kit first"
