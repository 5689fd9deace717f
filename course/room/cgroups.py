"""A control group for each seat, for hosts where systemd does not keep them.

The kernel counts a group's memory as a whole, however many kernels a seat starts, and ends the
largest of its processes when it asks for more than the limit. Pages of mapped weights count for
the seat that touched them first, and are given up before anything is ended. Both layouts are
served: version 1 (a hierarchy for each controller) and version 2 (one for all).
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PARENT = "steering-hub"
WANTED = ("memory", "cpu", "pids")
_PERIOD = 100_000  # microseconds; the kernel's own default


@dataclass(frozen=True)
class Places:
    """The group that this process is in, by controller; ``version`` is 1 or 2."""

    version: int
    own: Mapping[str, Path]


def find(proc: Path = Path("/proc/self"), root: Path = Path("/")) -> Places:
    """Where this process's groups lie.

    Raises OSError when there is no memory controller that this process may divide further.
    """
    paths: dict[str, str] = {}
    for line in (proc / "cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        paths |= dict.fromkeys(names.split(","), path)
    unified: Path | None = None
    own: dict[str, Path] = {}
    for line in (proc / "mountinfo").read_text().splitlines():
        fields, _, tail = line.partition(" - ")
        kind, _, options = tail.split(" ", 2)
        top, mount = fields.split(" ")[3:5]
        if kind == "cgroup2" and "" in paths:
            unified = _inside(root, mount, top, paths[""])
        elif kind == "cgroup":
            for name in set(options.split(" ")[-1].split(",")) & set(WANTED) & set(paths):
                own[name] = _inside(root, mount, top, paths[name])
    version = 1 if "memory" in own else 2
    if version == 2 and unified is not None:
        file = unified / "cgroup.controllers"
        held = file.read_text().split() if file.is_file() else []
        own = {name: unified for name in WANTED if name in held}
    if "memory" not in own or not os.access(own["memory"], os.W_OK):
        raise OSError(
            errno.ENOTSUP,
            "no memory control group that this process may divide, so a limit for each seat would "
            "not hold: run the hub where systemd runs, or set KIT_HUB_MEMORY=0 for no limit",
        )
    return Places(version, own)


def _inside(root: Path, mount: str, top: str, path: str) -> Path:
    below = os.path.relpath(path, top)
    return root / mount.lstrip("/") / ("" if below.startswith("..") else below)


class Group:
    """The control group of one seat.

    Args:
        name: a unix account.
        memory: bytes, 0 for no limit. cpus: cores, 0 for no limit. tasks: processes and threads.
        places: where the hub's own groups lie.

    Raises OSError when the kernel refuses a limit.
    """

    def __init__(self, name: str, *, memory: int, cpus: float, tasks: int, places: Places) -> None:
        self.folders = {kind: own / PARENT / name for kind, own in places.own.items()}
        if places.version == 2:
            for own in set(places.own.values()):
                (own / PARENT).mkdir(exist_ok=True)
                for folder in (own, own / PARENT):  # a group hands down what it is told to
                    self._write(folder / "cgroup.subtree_control", " ".join(f"+{kind}" for kind in places.own))
        for folder in set(self.folders.values()):
            folder.mkdir(parents=True, exist_ok=True)
        quota = int(cpus * _PERIOD)
        v1 = {
            "memory": {"memory.limit_in_bytes": str(memory or -1)},
            "cpu": {"cpu.cfs_period_us": str(_PERIOD), "cpu.cfs_quota_us": str(quota or -1)},
            "pids": {"pids.max": str(tasks)},
        }
        v2 = {
            "memory": {"memory.max": str(memory or "max"), "memory.swap.max": "0"},
            "cpu": {"cpu.max": f"{quota or 'max'} {_PERIOD}"},
            "pids": {"pids.max": str(tasks)},
        }
        for kind, folder in self.folders.items():
            for file, value in (v1 if places.version == 1 else v2)[kind].items():
                if file != "memory.swap.max" or (folder / file).exists():  # a kernel without swap
                    self._write(folder / file, value)

    @staticmethod
    def _write(file: Path, value: str) -> None:
        try:
            file.write_text(value)
        except OSError as error:
            raise OSError(error.errno, f"the kernel refused {value!r} in {file}") from error

    def enter(self) -> None:
        """Move this process in; what it starts is born there."""
        for folder in set(self.folders.values()):
            (folder / "cgroup.procs").write_text(str(os.getpid()))

    def processes(self) -> list[int]:
        """The ids of the processes inside."""
        text = (self.folders["memory"] / "cgroup.procs").read_text()
        return [int(pid) for pid in text.split()]

    def remove(self, seconds: float = 5.0) -> None:
        """End what is left inside and take the group away; one that stays is used again."""
        end = time.monotonic() + seconds
        with suppress(FileNotFoundError):
            while (left := self.processes()) and time.monotonic() < end:
                for pid in left:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                time.sleep(0.02)
        for folder in set(self.folders.values()):
            with suppress(OSError):
                folder.rmdir()
