"""A rehearsal of a room: N real kernels on this machine, all at work at once.

``kit room --kernels 30`` starts thirty kernels together, runs a notebook in each of them, presses a
slider of its panel in all of them at the same moment, as a browser does, and says what that took.
Everybody at once is the worst case: people in a room wait, read and think.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from statistics import mean, median
from typing import Any

import psutil
from jupyter_client.provisioning import KernelProvisionerFactory

from course.room import warm_kernels
from kit.base.checks import check_counts
from kit.base.threads import cores
from kit.cli import doctor

_PATIENCE = 1800.0  # seconds for one cell, or one slider, in the slowest kernel
_RESERVE = 2**30  # bytes for the system and the server
_GB, _MB = 2**30, 2**20


@dataclass(frozen=True)
class Cell:
    """What one cell took in the kernels, in seconds, from sending it to its end."""

    number: int
    source: str
    median: float
    slowest: float


@dataclass(frozen=True)
class Rehearsal:
    """What a room took. Seconds; bytes of proportional set size (PSS), where a page that n
    processes share counts as 1/n in each.

    Attributes:
        kernels, steering: how many were started; how many showed a steered text at the end.
        cores, total, available: cores, memory of this machine, and what of it was free before.
        warm: whether kernels were forked from a warm parent.
        answered, ready: until the last kernel answered; until the last had run the first cell,
            which loads the model.
        pss: of all kernels (and the warm parent) together, the largest of the moments measured.
        private: what each kernel has for itself alone, the mean.
        cells: one for each code cell.
        first_text, done: slider to the first new token, and to the last, in the slowest kernel.
        errors: what went wrong, one line each.
    """

    notebook: str
    kernels: int
    steering: int
    cores: int
    total: int
    available: int
    warm: bool
    answered: float
    ready: float
    pss: int
    private: int
    cells: tuple[Cell, ...]
    first_text: float
    done: float
    errors: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every kernel steered and none failed."""
        return not self.errors and self.steering == self.kernels

    @property
    def shared(self) -> int:
        """Bytes that the kernels have in common."""
        return self.pss - self.kernels * self.private

    @property
    def seats(self) -> int:
        """How many such kernels this machine's free memory holds, with 1 GB left over."""
        return max(0, int((self.available - _RESERVE - self.shared) // max(1, self.private)))

    def as_dict(self) -> dict[str, Any]:
        """The figures as plain values, for JSON."""
        return asdict(self) | {"seats": self.seats, "ok": self.ok}

    def __str__(self) -> str:
        slowest = max(self.cells, key=lambda cell: cell.slowest)
        lines = [
            f"{self.kernels} kernels{', forked from a warm one' if self.warm else ''}, "
            f"{self.cores} cores, {self.total / _GB:.1f} GB; {self.notebook}, "
            f"{len(self.cells)} cells in each",
            f"start         all answer after {self.answered:.1f} s, all have the model after {self.ready:.1f} s",
            f"memory        {self.pss / _GB:.2f} GB in all (PSS): {self.private / _MB:.0f} MB for "
            f"each kernel alone, {self.shared / _GB:.2f} GB that they share",
            f"slowest cell  number {slowest.number}: {slowest.slowest:.1f} s "
            f"(median {slowest.median:.1f} s) with all at once",
            f"              {slowest.source}",
            f"slider        pressed in all at once: first new token after {self.first_text:.1f} s "
            f"at the latest, all done after {self.done:.1f} s",
            f"steering      {self.steering} of {self.kernels}",
            *(f"error         {error}" for error in self.errors[:5]),
            f"this host seats {self.seats} (memory: {self.available / _GB:.1f} GB were free, 1 GB is kept back)",
        ]
        return "\n".join(lines)


class RoomError(RuntimeError):
    """A kernel did not start or did not answer; the text says which."""


def rehearse(
    kernels: int,
    notebook: Path | None = None,
    *,
    cells: int | None = None,
    warm: bool = False,
    show: Callable[[str], None] = lambda _text: None,
) -> Rehearsal:
    """Start kernels, run a notebook in each, press a slider in all, and end them, whatever happens.

    Args:
        kernels: how many.
        notebook: one whose panel is called ``panel``; the course's first when None.
        cells: only so many code cells (the one that makes the panel must be among them).
        warm: fork the kernels from one that has the libraries and the model
            (:mod:`course.room.warm_kernels`; Linux).
        show: called with one line whenever a stage begins or a kernel finishes one.

    Raises:
        ValueError: no kernels, a notebook without code, or one whose cells make no ``panel``.
        RuntimeError: ``warm`` on a system that cannot fork kernels.
        RoomError: a kernel did not start, or ended.
    """
    from course.runner import choose, read

    check_counts(kernels=kernels)
    if warm and not hasattr(os, "pidfd_open"):
        raise RuntimeError("warm=True: kernels can be forked on Linux only")
    path = notebook or choose(["00"])[0]
    sources = [cell.source for cell in read(path).cells if cell.cell_type == "code"][:cells]
    if not any("panel" in source for source in sources):
        raise ValueError(f"notebook={path.name!r}: none of the {len(sources)} code cells to run makes a panel")
    return asyncio.run(_Room(kernels, path, sources, warm, show).run())


class _Room:
    def __init__(
        self, kernels: int, path: Path, sources: Sequence[str], warm: bool, show: Callable[[str], None]
    ) -> None:
        self.count, self.path, self.sources = kernels, path, sources
        self.warm, self.show = warm, show
        self.managers: list[Any] = []
        self.clients: list[Any] = []
        self.errors: list[str] = []
        self.times: list[list[float]] = [[] for _ in sources]
        self.pss = self.private = 0
        self.sockets = tempfile.TemporaryDirectory(prefix="room-", ignore_cleanup_errors=True)

    async def run(self) -> Rehearsal:
        total, available = doctor.memory()
        try:
            start = time.perf_counter()
            self.show(f"starting {self.count} kernels")
            await self._all(self._start, "answers")
            answered = time.perf_counter() - start
            await self._all(lambda i: self._cell(i, 0), "has the model")
            ready = time.perf_counter() - start
            self._measure()
            await self._all(self._rest, "has run the notebook")
            self._measure()
            presses = await self._all(self._press, "has shown a steered text")
            self._measure()
        finally:
            await self._end()
        good = [press for press in presses if press]
        cells = [
            Cell(i, source.strip().splitlines()[0][:72], median(times), max(times))
            for i, (source, times) in enumerate(zip(self.sources, self.times, strict=True))
            if times
        ]
        return Rehearsal(
            self.path.name,
            self.count,
            len(good),
            cores(),
            total,
            available,
            self.warm,
            answered,
            ready,
            self.pss,
            self.private,
            tuple(cells),
            max((first for first, _ in good), default=float("nan")),
            max((done for _, done in good), default=float("nan")),
            tuple(self.errors),
        )

    async def _all(self, job: Callable[[int], Any], what: str) -> list[Any]:
        done = 0

        async def one(i: int) -> Any:
            nonlocal done
            result = await job(i)
            done += 1
            self.show(f"{done} of {self.count}: a kernel {what}")
            return result

        return await asyncio.gather(*(one(i) for i in range(self.count)))

    async def _start(self, i: int) -> None:
        from course.runner import kernel_manager

        manager = kernel_manager()
        if os.name != "nt":  # of thirty that look for free ports at once, two find the same
            manager.transport, manager.ip = "ipc", f"{self.sockets.name}/{i}"
        if self.warm:
            _register(manager)
        search = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, search)),
            "OMP_NUM_THREADS": "1",
            "KIT_PROGRESS": "off",
        }
        env.pop("MPLBACKEND", None)
        self.managers.append(manager)
        await manager.start_kernel(env=env, cwd=str(self.path.parent))
        client = manager.client()
        client.start_channels()
        try:
            await client.wait_for_ready(timeout=_PATIENCE)
        except RuntimeError as error:
            raise RoomError(f"kernel {i + 1} of {self.count} did not start: {error}") from error
        self.clients.append(client)

    async def _execute(self, i: int, code: str) -> dict[str, Any]:
        """Run code in a kernel; returns the reply's content and what it printed as ``text``."""
        texts: list[str] = []

        def hear(message: dict[str, Any]) -> None:
            if message["msg_type"] == "stream":
                texts.append(message["content"]["text"])

        reply = await self.clients[i].execute_interactive(code, allow_stdin=False, timeout=_PATIENCE, output_hook=hear)
        return reply["content"] | {"text": "".join(texts)}

    async def _cell(self, i: int, number: int) -> None:
        start = time.perf_counter()
        content = await self._execute(i, self.sources[number])
        self.times[number].append(time.perf_counter() - start)
        if content["status"] != "ok":
            line = f"{content.get('ename', 'aborted')}: {content.get('evalue', '')}"
            self.errors.append(f"kernel {i + 1}, cell {number}: {' '.join(line.split())[:200]}")

    async def _rest(self, i: int) -> None:
        for number in range(1, len(self.sources)):
            await self._cell(i, number)

    async def _press(self, i: int) -> tuple[float, float] | None:
        """Move the panel's first slider as a browser does; (first token, end) in seconds."""
        content = await self._execute(
            i, "import json\nrow = panel.vector_rows[0].slider\nprint(json.dumps([row.model_id, row.value]))"
        )
        try:
            comm, value = json.loads(content["text"])
        except ValueError:
            self.errors.append(f"kernel {i + 1}: no panel to press a slider of")
            return None
        wanted = 0.1 if value != 0.1 else 0.15
        state = {"method": "update", "state": {"value": wanted}, "buffer_paths": []}
        client = self.clients[i]
        client.shell_channel.send(client.session.msg("comm_msg", {"comm_id": comm, "data": state}))
        start = time.perf_counter()
        content = await self._execute(
            i,
            f"panel.controller.wait({_PATIENCE})\nframe = panel.frame\n"
            "print(json.dumps([frame.first_token, frame.done and not frame.error, "
            "panel.rows[-1].text, str(panel.receipt)]))",
        )
        done = time.perf_counter() - start
        try:
            first, whole, text, receipt = json.loads(content["text"])
        except ValueError:
            self.errors.append(f"kernel {i + 1}: {content.get('evalue', 'the panel says nothing')}")
            return None
        if not (whole and text and "prompt positions" in receipt):
            self.errors.append(f"kernel {i + 1}: the slider moved and nothing was steered")
            return None
        return first, done

    def _measure(self) -> None:
        """Keep the largest sum of PSS so far; see the class's attributes."""
        kernels = [manager.provisioner.pid for manager in self.managers]
        extra = [warm_kernels.parent()] if self.warm else []
        full = {pid: psutil.Process(pid).memory_full_info() for pid in [*kernels, *extra] if pid}
        total = sum(getattr(info, "pss", info.uss) for info in full.values())
        if total > self.pss:
            self.pss, self.private = total, int(mean(full[pid].uss for pid in kernels))

    async def _end(self) -> None:
        for client in self.clients:
            client.stop_channels()

        async def end(manager: Any) -> None:
            with suppress(Exception):
                await manager.shutdown_kernel(now=True)

        await asyncio.gather(*(end(manager) for manager in self.managers))
        self.sockets.cleanup()


def _register(manager: Any) -> None:
    """Give a manager the provisioner that forks, whether or not the kit is installed."""
    target = f"{warm_kernels.__name__}:{warm_kernels.WarmProvisioner.__name__}"
    entry = EntryPoint(warm_kernels.NAME, target, KernelProvisionerFactory.GROUP_NAME)
    factory = KernelProvisionerFactory.instance(parent=manager.parent)
    factory.provisioners[warm_kernels.NAME] = entry
    factory.default_provisioner_name = warm_kernels.NAME


def main(kernels: int, notebook: Path | None, cells: int | None, warm: bool, as_json: bool) -> int:
    """What ``kit room`` prints; 1 when something went wrong in a kernel."""
    tty = sys.stderr.isatty()

    def show(text: str) -> None:
        if tty:
            sys.stderr.write(f"\r{text:<72}")

    result = rehearse(kernels, notebook, cells=cells, warm=warm, show=show)
    if tty:
        sys.stderr.write("\r" + " " * 72 + "\r")
    print(json.dumps(result.as_dict(), indent=1) if as_json else result)
    return 0 if result.ok else 1
