"""Jobs that are killed: at a file operation, in the middle of a write, at a moment of time.

The host process loads everything once and forks a child for each run, so that a round costs what
the job costs. The host itself never computes a gradient: torch forbids that before a fork.
"""

from __future__ import annotations

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

from tests.faults import Row
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


def run(jobs: list[Job], folder: Path, rounds: int, seed: int = 0) -> list[Row]:
    """Kill every job ``rounds`` times, each time at another moment, and let it run again."""
    return [_job(job, folder / job.name.replace(" ", "-"), rounds, seed) for job in jobs]


def _job(job: Job, home: Path, rounds: int, seed: int) -> Row:
    row, rng = Row(f"killed: {job.name}"), random.Random(f"{seed} {job.name}")
    clean = home / "clean"
    clean.mkdir(parents=True)
    events, start = home / "events", time.monotonic()
    status = child(lambda: _counted(job, clean, events))
    took = time.monotonic() - start
    if status != 0:
        row.losses.append(f"the run that nobody disturbs ended with {status}")
        return row
    expected = _result(job, clean, home / "expected")
    count = max(1, int(events.read_text()))
    largest = max((p.stat().st_size for p in clean.rglob("*") if p.is_file()), default=1)
    every = (*KINDS, STOP) if job.stoppable else KINDS
    for n in range(max(rounds, len(every) if rounds >= len(KINDS) else 0)):
        kind = every[n % len(every)]
        at = {
            "file operation": rng.randrange(count),
            "time": rng.random() * took,
            STOP: 0.01 + rng.random() * took,
        }.get(kind, rng.randrange(largest))
        told, where = f"{kind} {at:.4g}", home / f"round-{n}"
        where.mkdir()
        status = child(lambda k=kind, a=at, w=where: _hurt(job, w, k, a), at if kind == "time" else None)
        row.faults += 1
        if status not in (0, 3, -signal.SIGKILL, -signal.SIGXFSZ):
            row.losses.append(f"{told}: it ended with {status}")
        row.losses += [f"{told}: {what}" for what in _told(job, where, home / f"seen-{n}")]
        if kind == "disk full" and (left := [p.name for p in where.rglob("*.part")]):
            row.losses.append(f"{told}: it left {left}")
        status = child(lambda w=where: job.run(w))
        if status != 0:
            row.losses.append(f"{told}: run again, it ended with {status}")
            continue
        again = _result(job, where, home / f"again-{n}")
        if (
            again is None
            or expected is None
            or set(again) != set(expected)
            or not all(torch.allclose(again[k], expected[k], rtol=1e-4, atol=1e-5) for k in expected)
        ):
            row.losses.append(f"{told}: run again, it gives something else")
    return row


def _counted(job: Job, home: Path, events: Path) -> None:
    count = [0]
    _hook(home, lambda: count.__setitem__(0, count[0] + 1))
    job.run(home)
    events.write_text(str(count[0]))


def _hurt(job: Job, home: Path, kind: str, at: float) -> None:
    if kind == "file operation":
        left = [int(at)]

        def step() -> None:
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1

        _hook(home, step)
    elif kind in ("byte", "disk full"):
        # a file that grows to this size: the process dies there, or is told that the disk is full
        dies = kind == "byte"
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if dies else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(at), resource.RLIM_INFINITY))
    elif kind == STOP:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
        signal.setitimer(signal.ITIMER_REAL, at)
    try:
        job.run(home)
    except KeyboardInterrupt as error:
        raise SystemExit(3) from error
    except Exception as error:
        if kind != "disk full":
            raise
        raise SystemExit(3) from error


def _hook(home: Path, step: Callable[[], None]) -> None:
    """Call ``step`` before every operation on a file in the folder."""
    inside = str(home)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in _EVENTS and args and str(args[0]).startswith(inside):
            step()

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
    def press(*_: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, press)
    signal.setitimer(signal.ITIMER_REAL, at)
    found = None
    with suppress(KeyboardInterrupt):
        found = fit()
    signal.setitimer(signal.ITIMER_REAL, 0)
    if why := sound(found):
        raise AssertionError(why)
