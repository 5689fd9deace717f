"""Jobs that are killed: at a file operation, in the middle of a write, at a moment of time.

The host process loads everything once and forks a child for each run, so that a round costs what
the job costs. The host itself never computes a gradient: torch forbids that before a fork.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.faults import BEGINS, Row
from tests.faults.jobs import Job

LIMIT = 300  # seconds after which a child counts as hung
_EVENTS = (
    "open",
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "shutil.rmtree",
    "os.chmod",
)
KINDS = ("file operation", "byte", "disk full", "time")
STOP = "stop button"
MOST_FILES = 8  # of a job, each of which is cut in its middle
LAST = 3  # operations on files with which every job ends, each of which it does not live to do


def run(jobs: list[Job], folder: Path, rounds: int, seed: int = 0) -> list[Row]:
    """Kill every job ``rounds`` times, each time at another moment, and let it run again."""
    return [_job(job, folder / job.name.replace(" ", "-"), rounds, seed) for job in jobs]


def _job(job: Job, home: Path, rounds: int, seed: int) -> Row:
    row, rng = Row(f"killed: {job.name}"), random.Random(f"{seed} {job.name}")
    clean = home / "clean"
    clean.mkdir(parents=True)
    told = home / "told"
    status = child(lambda: _watched(job, clean, told))
    if status != 0:
        row.losses.append(f"the run that nobody disturbs ended with {status}")
        return row
    expected = _result(job, clean, home / "expected")
    count, took, seen = json.loads(told.read_text())
    sizes = {p.name: p.stat().st_size for p in sorted(clean.rglob("*")) if p.is_file() and p.stat().st_size}
    every = (*KINDS, STOP) if job.stoppable else KINDS
    kinds = [every[n % len(every)] for n in range(max(rounds, len(every) if rounds >= len(KINDS) else 0))]
    harms: list[tuple[str, Any]] = []
    for kind in kinds:
        name = rng.choice(list(sizes))
        limit = (name if name in seen else "", rng.randrange(sizes[name]))
        harms.append(
            (
                kind,
                {"file operation": rng.randrange(count), "time": rng.random() * took, STOP: rng.random() * took}.get(
                    kind, limit
                ),
            )
        )
    if rounds >= len(KINDS):  # a small file beside a large one is hit too, in its middle
        harms += [("byte", (name, size // 2)) for name, size in list(sizes.items())[:MOST_FILES] if name in seen]
        # when all is done but for the clearing up: the next run has nothing to write, and clears up too
        harms += [("file operation", n) for n in range(max(0, count - LAST), count)]
    for n, (kind, at) in enumerate(harms):
        told, where = f"{kind} {at}", home / f"round-{n}"
        where.mkdir()
        status = child(lambda k=kind, a=at, w=where: _hurt(job, w, k, a))
        row.faults += 1
        if status not in (0, 3, -signal.SIGKILL, -signal.SIGXFSZ):
            row.losses.append(f"{told}: it ended with {status}")
        row.losses += [f"{told}: {what}" for what in _told(job, where, home / f"seen-{n}")]
        if kind == "disk full" and (left := _parts(where)):
            row.losses.append(f"{told}: it left {left}")
        status = child(lambda w=where: job.run(w))
        if status != 0:
            row.losses.append(f"{told}: run again, it ended with {status}")
            continue
        if left := _parts(where):
            row.losses.append(f"{told}: run again, what the first left is still there: {left}")
        again = _result(job, where, home / f"again-{n}")
        if (
            again is None
            or expected is None
            or set(again) != set(expected)
            or not all(torch.allclose(again[k], expected[k], rtol=1e-4, atol=1e-5) for k in expected)
        ):
            row.losses.append(f"{told}: run again, it gives something else")
    return row


def _parts(home: Path) -> list[str]:
    return [p.name for p in home.rglob("*") if p.suffix == ".part" or p.name.startswith(".tmp")]


def _watched(job: Job, home: Path, told: Path) -> None:
    """How many operations on files there are, how long they go on, and which files they name."""
    count, start, seen = [0], [0.0], set()

    def step(path: str) -> None:
        start[0] = start[0] or time.monotonic()
        count[0] += bool(path)
        seen.update(_names(path))

    _hook(home, step)
    job.run(home)
    told.write_text(json.dumps([max(1, count[0]), time.monotonic() - start[0], sorted(seen)]))


def _names(path: str) -> list[str]:
    """The file that a path is about, and the one that a folder beside it is for."""
    return [
        part
        for name in Path(path).parts
        for part in (name, name[1:].rsplit(".", 2)[0] if name.endswith(".part") else name)
    ]


def _hurt(job: Job, home: Path, kind: str, at: Any) -> None:
    begun, left = [False], [at]

    def begin() -> None:
        if kind == "time":
            killer = os.getpid()
            if os.fork() == 0:  # from outside, in the middle of whatever it does
                time.sleep(at)
                os.kill(killer, signal.SIGKILL)
                os._exit(0)
        elif kind == STOP:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
            signal.setitimer(signal.ITIMER_REAL, max(at, 0.001))

    def fill() -> None:
        """A file that grows to this size: the process dies there, or is told that the disk is full."""
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if kind == "byte" else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(at[1]), resource.RLIM_INFINITY))

    def step(path: str) -> None:
        if not begun[0]:
            begun[0] = True
            begin()
        if kind == "file operation" and path:
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
        elif kind in ("byte", "disk full") and (at[0] in _names(path) or not at[0]):
            fill()

    _hook(home, step)
    try:
        job.run(home)
    except KeyboardInterrupt as error:
        raise SystemExit(3) from error
    except Exception as error:
        if kind != "disk full" or not isinstance(error, OSError) or str(home) not in str(error):
            raise  # it is to say that, and where
        raise SystemExit(3) from error


def _hook(home: Path, step: Callable[[str], None]) -> None:
    """Call ``step`` before every operation on a file in the folder with its path, and with an empty
    one when a job has set up what it needs."""
    inside = str(home)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == BEGINS or (event in _EVENTS and args and str(args[0]).startswith(inside)):
            step("" if event == BEGINS else str(args[0]))

    sys.addaudithook(hook)


def child(job: Callable[[], Any], kill_after: float | None = None) -> int:
    """Run it in a fork; returns its exit status, or the negative number of a signal."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            with open(os.devnull, "w") as null:
                os.dup2(null.fileno(), 1)
                job()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    end = time.monotonic() + (LIMIT if kill_after is None else kill_after)
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            if kill_after is None:
                return -99
            break
        time.sleep(0.005)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # of its own session: kernels that a notebook runner left
    return os.waitstatus_to_exitcode(status)


def _told(job: Job, home: Path, out: Path) -> list[str]:
    """What is wrong with what lies there after a kill."""
    status = child(lambda: out.write_text("\n".join(job.look(home))))
    if status != 0:
        return [f"what it left cannot be looked at ({status})"]
    return [line for line in out.read_text().splitlines() if line]


def _result(job: Job, home: Path, out: Path) -> dict[str, Tensor] | None:
    status = child(lambda: save_file(job.result(home), out))
    return load_file(out) if status == 0 else None


def interrupted(fits: dict[str, Callable[[], Any]], sound: Callable[[Any], str], rounds: int, seed: int = 0) -> Row:
    """The stop button in the middle of a fit: what there is is kept, and the model is left clean.

    Args:
        fits: by name; each runs one and returns what it found.
        sound: what is wrong with what a fit returned (None when it raised); empty when all is well.
    """
    row = Row("stopped: MELBO, DCT and CPE fits")
    for name, fit in fits.items():
        rng = random.Random(f"{seed} {name}")
        with tempfile.NamedTemporaryFile("r") as told:

            def timed(out: str = told.name, fit: Any = fit) -> None:
                start = time.perf_counter()
                fit()
                Path(out).write_text(str(time.perf_counter() - start))

            if child(timed) != 0:
                row.losses.append(f"{name}: the run that nobody disturbs fails")
                continue
            took = float(Path(told.name).read_text())
        for _ in range(rounds):
            at = max(0.001, rng.random() * took)
            row.faults += 1
            status = child(lambda f=fit, a=at: _stopped(f, a, sound))
            if status != 0:
                row.losses.append(f"{name}, stopped after {at:.2f} s: ended with {status}")
    return row


def _stopped(fit: Callable[[], Any], at: float, sound: Callable[[Any], str]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    signal.setitimer(signal.ITIMER_REAL, at)
    found = None
    with suppress(KeyboardInterrupt):
        found = fit()
    signal.setitimer(signal.ITIMER_REAL, 0)
    if why := sound(found):
        raise AssertionError(why)
