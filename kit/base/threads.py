"""How many threads a computation uses: what fits its size, of the cores that are free now.

OpenMP's threads wait for one another after every product, and spin meanwhile. Where one of them has
lost its core to another program all wait for it, again and again, and a step of one row takes
several times what it takes on one thread. So one row gets one thread, larger work the cores that
others leave. A count that the user has set wins: ``OMP_NUM_THREADS``, ``MKL_NUM_THREADS``, or
``torch.set_num_threads`` with anything but torch's own default. The BLAS of numpy, which multiplies
single rows (:mod:`kit.models.fast_linear`), gets one thread: its own would spin beside torch's.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

# How long a waiting thread spins before it sleeps, in GNU's words and in Intel's and LLVM's: what
# the probe tries (`kit.cli.waiting`). "short" is used where none was kept.
WAITING: dict[str, dict[str, str]] = {
    "torch's own": {},
    "short": {"GOMP_SPINCOUNT": "3000", "KMP_BLOCKTIME": "1"},
    "longer": {"GOMP_SPINCOUNT": "30000", "KMP_BLOCKTIME": "10"},
    "none": {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"},
}
WAITS = sorted({name for settings in WAITING.values() for name in settings})
KEPT = "threads.json"  # in the cache folder
_WINDOW = 0.1  # seconds: the system's clocks tick every hundredth, so this tells tenths of a core
_STALE = 1.0  # seconds after which an average says little of now


def cores() -> int:
    """How many CPU cores this process may use: those it is bound to, at most its group's quota."""
    return max(1, math.ceil(min(_bound(), _quota())))


def _bound() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _quota(root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> float:
    """Cores that the control groups (version 2) around this process grant it; infinite without."""
    try:
        inside = Path(root, Path(own).read_text().partition("0::/")[2].strip(), "cpu.max")
        limits = [group / inside.name for group in inside.parents if group.is_relative_to(root)]
        told = [limit.read_text().split() for limit in limits if limit.is_file()]
        return min((int(most) / int(period) for most, period in told if most != "max"), default=math.inf)
    except (OSError, ValueError):  # another system
        return math.inf


def _clocks() -> tuple[float, float]:
    """Seconds that our cores have worked, for anyone and for this process alone."""
    import psutil

    each = psutil.cpu_times(percpu=True)
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(each))
    # on Linux `user` holds `guest` already, on Windows `system` the time in interrupts
    names = ("user", "nice", "system", "irq", "softirq", "steal")
    return sum(getattr(each[i], n, 0.0) for i in mine if i < len(each) for n in names), time.process_time()


def _running(proc: Path = Path("/proc")) -> float | None:
    """How many threads of others run at this moment, the least of three looks; None where nobody
    tells."""
    if _bound() != os.cpu_count() or not (proc / "loadavg").is_file():
        return None
    looks = []
    for _ in range(3):  # who has only just woken up is gone in a millisecond
        everyone = int((proc / "loadavg").read_text().split()[3].partition("/")[0])
        looks.append(everyone - _spinning(proc / "self" / "task"))
        time.sleep(0.001)
    return max(0, min(looks))


def _spinning(tasks: Path) -> int:
    """How many threads of this process run: this one, and those that wait for work and spin."""
    states = []
    for task in tasks.iterdir():
        with suppress(OSError):  # it has ended
            states.append((task / "stat").read_text().rpartition(") ")[2][:1])
    return states.count("R")


class Load:
    """What others leave of the cores, as a number of threads that changes calmly; ``others`` is how
    many cores they use."""

    def __init__(self) -> None:
        self.others, self._count, self._lock = 0.0, 0, threading.Lock()
        self._read = -math.inf, 0.0, 0.0  # when, and the clocks then

    def free(self) -> int:
        """At least one; looks at most ten times a second."""
        with self._lock:
            now, (then, busy_then, own_then) = time.monotonic(), self._read
            if now - then >= _WINDOW:
                busy, own = _clocks()
                told = _running() if now - then > _STALE else None
                if told is None:
                    told = (busy - busy_then - (own - own_then)) / (now - then)
                self.others, self._read = min(max(0.0, told), _bound()), (now, busy, own)
            # about half a core moves nothing: two processes that watch each other would swing
            if not self._count - 0.5 <= _bound() - self.others <= self._count + 0.75:
                self._count = max(1, math.floor(_bound() - self.others + 0.5))
            return self._count


class Blas:
    """The BLAS of numpy and scipy, whose count of threads is one for the whole process."""

    def __init__(self) -> None:
        self._lock, self._blocks = threading.Lock(), 0
        self._usual: list[tuple[Any, int]] = []

    @contextmanager
    def alone(self) -> Iterator[None]:
        """On one thread, until the last of all Python threads' blocks has ended."""
        counted = 0
        try:  # at once: a stop between the count and this would hold it for good
            with self._lock:
                if not self._blocks:
                    self._usual = [(library, library.num_threads) for library in _libraries()]
                    for library, _ in self._usual:
                        library.set_num_threads(1)
                self._blocks += 1
                counted = 1
            yield
        finally:
            with self._lock:
                self._blocks -= counted
                if not self._blocks:
                    for library, count in self._usual:
                        library.set_num_threads(count)


@cache
def _libraries() -> list[Any]:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas").lib_controllers


_LOAD, _BLAS = Load(), Blas()
_inside: dict[int, int] = {}  # by Python thread: the count that its outermost `fitted` has set
_usual = 0  # torch's own count, as last seen


@contextmanager
def fitted(rows: int) -> Iterator[None]:
    """``with fitted(rows):`` what runs inside uses as many threads as suit it now.

    The outermost such block of a Python thread chooses, for all within and to its end: long work
    that should follow the machine has one for each iteration, what must give the same numbers twice
    one around all, since another count may round otherwise. It takes microseconds.

    Args:
        rows: of activations that a layer gets, over all texts and positions: 1 for a step of
            decoding one row, which gets one thread (or what the probe found best).
    """
    if threading.get_ident() in _inside:
        yield
        return
    with _BLAS.alone(), _fitted(rows):
        yield


@contextmanager
def _fitted(rows: int) -> Iterator[None]:
    global _usual
    import torch

    me, now, taken = threading.get_ident(), torch.get_num_threads(), list(_inside.values())
    if users() or not (now in _own() or (_usual and now in taken)):
        yield  # the user's count; a new Python thread may have inherited a block's
        return
    usual = _usual = now if now in _own() else _usual
    most = kept().get("one row", 1) if rows == 1 else usual
    if most > 1:
        most = min(most, usual, cores(), _LOAD.free() - sum(taken))
    if _LOAD.others >= 0.5 and too_late():
        warnings.warn(f"another program keeps a core busy, and {too_late()}", stacklevel=1)  # so once
    try:
        _inside[me] = max(1, most)
        torch.set_num_threads(_inside[me])
        yield
    finally:
        if torch.get_num_threads() == _inside.pop(me, now):  # else the user's, from now on
            torch.set_num_threads(usual)


def users() -> str:
    """The variable by which the user has said how many threads there are; empty without one."""
    return next((f"{n}={os.environ[n]}" for n in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if n in os.environ), "")


@cache
def _own() -> frozenset[int]:
    """The counts that torch may have chosen by itself."""
    import psutil

    return frozenset({_bound(), cores(), psutil.cpu_count(logical=False), kept().get("default")})


@cache
def kept() -> Mapping[str, Any]:
    """What the probe found on this machine; empty where it was not run, or elsewhere."""
    try:
        from kit.base.files import cache_dir, read_json

        found = read_json(cache_dir() / KEPT, 2**16)
        whole = all(isinstance(found[name], int) for name in ("one row", "default"))
        whole = whole and isinstance(found["products"], dict) and found["waiting"] in WAITING
        return found if whole and found["cores"] == cores() else {}
    except (OSError, ValueError, LookupError, TypeError, ImportError):  # no file, another's, no platformdirs
        return {}


_set: dict[str, str] = {}  # what `prepare` put into the environment
_LATE = "torch" in sys.modules


def prepare() -> None:
    """Say in the environment how threads wait, for torch, which reads it when it is loaded, and for
    what this process starts; nothing where the user has said anything of it."""
    if all(os.environ.get(name) == _set.get(name) for name in WAITS):
        found = WAITING[kept().get("waiting", "short")]
        for name in _set:  # a probe may have chosen anew
            del os.environ[name]
        _set.clear()
        _set.update(found)
        os.environ.update(found)


def too_late() -> str:
    """One line on a torch that was loaded before the kit; empty where none was."""
    return _LATE * bool(_set) * "torch was loaded before kit, so its waiting threads burn cores: import kit first"
