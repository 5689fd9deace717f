"""``kit doctor --workshop``: is every machine of a room ready, and can this one be its host?

Each participant mails the output of ``kit doctor --json``; the instructor puts the files into one
folder, named as the machines are to be called. Nothing is asked over a network. How many seats a
host's memory holds is not guessed here: ``kit room`` measures that.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from course import DTYPE
from kit import __version__
from kit.base.files import cache_dir, read_bytes
from kit.cli.doctor import Check, attempt, plain
from kit.cli.pins import interpreter, pip_install
from kit.models import weights

PORTS = {8000: "the hub's public port", 8001: "its proxy's API", 8081: "its own API"}
_MOST = 2**20  # bytes of a report


@dataclass(frozen=True)
class Machine:
    """One report: ``ready``, ``warn``, ``FAIL``, or ``damaged`` where it could not be read.

    Attributes:
        worst: the first line that fails, else the first warning; empty for a machine without any.
        fix: the command that mends it.
    """

    name: str
    word: str
    worst: str = ""
    fix: str = ""

    @property
    def ok(self) -> bool:
        """Whether this machine can take part, with or without a warning."""
        return self.word in ("ready", "warn")

    def __str__(self) -> str:
        row = f"{self.word:7}  {self.name:20} {self.worst}".rstrip()
        return row + (f"\n{'':7}  {'':20} -> {self.fix}" if self.fix else "")


def machines(folder: str | Path) -> list[Machine]:
    """The reports (``*.json``) of a folder, those that need work first.

    Raises:
        ValueError: there is no such folder, or no report in it.
    """
    folder = Path(folder)
    files = sorted(folder.glob("*.json"))
    if not files:
        raise ValueError(
            f"no *.json in {folder}: put there what `kit doctor --json` prints on each machine, a file a machine"
        )
    order = ("FAIL", "damaged", "warn", "ready")
    return sorted((_machine(file) for file in files), key=lambda m: order.index(m.word))


def summary(found: list[Machine]) -> str:
    """``28 of 30 machines can be used (25 ready, 3 warn, 1 FAIL, 1 damaged)``"""
    words = [machine.word for machine in found]
    counts = ", ".join(f"{words.count(w)} {w}" for w in ("ready", "warn", "FAIL", "damaged") if w in words)
    usable = sum(machine.ok for machine in found)
    return f"{usable} of {len(found)} machines can be used ({counts})"


def _machine(file: Path) -> Machine:
    name = plain(file.stem, 60)
    try:
        checks, version = _report(json.loads(read_bytes(file, _MOST)))  # UTF-16 too, which PowerShell writes
    except (OSError, ValueError, RecursionError) as error:
        why = plain(str(error)) or type(error).__name__
        return Machine(name, "damaged", why, "ask for the output of `kit doctor --json` again")
    if version != __version__:
        other = f"{version or 'older'}, this one is {__version__}"
        checks.insert(0, Check("kit", None, other, "bring both to one version"))
    worst = next((c for ok in (False, None) for c in checks if c.ok is ok), None)
    if worst is None:
        return Machine(name, "ready")
    return Machine(name, worst.word, f"{worst.name}: {worst.detail}", worst.fix)


def _report(found: Any) -> tuple[list[Check], str]:
    """The rows of a report and its kit's version; raises ValueError when it is none."""
    rows = found.get("checks") if isinstance(found, dict) else None
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"it holds a {type(found).__name__}, no report of `kit doctor --json`")
    checks: list[Check] = []
    for row in rows:
        given = row if isinstance(row, dict) else {}
        ok, texts = given.get("ok", 0), [given.get(key, "") for key in ("name", "detail", "fix")]
        if not isinstance(ok, bool | None) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"row {len(checks) + 1} is none of `kit doctor --json`")
        name, detail, fix = map(plain, texts)
        checks.append(Check(name, ok, detail, fix))
    version = found.get("kit")
    return checks, plain(version, 20) if isinstance(version, str) else ""


# --- this machine as the room's host -------------------------------------------------------------


def host() -> Iterator[Check]:
    """What a host of a room needs besides ``kit doctor``; a check never raises."""
    table = {"JupyterHub": _hub, "free disk": _disk, "model cache": _cache, "ports": _ports, "clock": _clock}
    for name, look in table.items():
        yield attempt(name, look, f"{interpreter()} -m kit doctor")


def _hub() -> Check:
    if find_spec("jupyterhub") is None:
        return Check("JupyterHub", False, "not installed", pip_install("jupyterhub"))
    return Check("JupyterHub", True, metadata.version("jupyterhub"))


def _disk() -> Check:
    """Of the disks that hold the model cache and the learners' homes."""
    wanted = (cache_dir().absolute(), Path("/home"))
    there = [next(p for p in (place, *place.parents) if p.exists()) for place in wanted]
    place = min(there, key=lambda p: shutil.disk_usage(p).free)
    free = shutil.disk_usage(place).free / 2**30
    detail = f"{free:.1f} GB under {place}"
    if free < 1:
        return Check("free disk", False, detail, f"make room: du -xh --max-depth=2 {place}")
    if free < 5:
        return Check("free disk", None, f"{detail}; 5 GB or more is comfortable")
    return Check("free disk", True, detail)


def _cache() -> Check:
    """Every learner's kernel maps the same files: all may read them, none may change them."""
    if os.name != "posix":
        return Check("model cache", None, "not tried: this system has no file modes")
    folder = weights.cached(DTYPE)
    fetch = f"{interpreter()} -m kit fetch"
    if folder is None:
        return Check("model cache", False, f"{weights.EMBEDDED} is not here yet ({DTYPE})", fetch)
    folder = folder.resolve()
    files = [folder, *folder.rglob("*")]
    closed = [p for p in files if not _others_may(p, stat.S_IXOTH | stat.S_IROTH if p.is_dir() else stat.S_IROTH)]
    gates = [p for p in folder.parents if not _others_may(p, stat.S_IXOTH)]
    loose = [p for p in files if _others_may(p, stat.S_IWOTH)]
    if closed:
        detail, fix = f"{len(closed)} of its files are closed to others", f"chmod -R o+rX {folder}"
    elif gates:
        detail = f"others cannot enter {gates[-1]}"
        fix = f"KIT_CACHE=/srv/kit {fetch}   # and KIT_CACHE=/srv/kit for every learner"
    elif loose:
        return Check("model cache", None, f"others may change {loose[0]}", f"chmod -R o-w {folder}")
    else:
        return Check("model cache", True, f"{folder}: readable by all")
    return Check("model cache", False, detail, fix)


def _others_may(path: Path, bits: int) -> bool:
    return path.stat().st_mode & bits == bits


def _ports() -> Check:
    taken = []
    for port in PORTS:
        with socket.socket() as probe:
            if os.name == "posix":  # else one just closed counts as taken
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                taken.append(port)
    if taken:
        what = ", ".join(f"{port} ({PORTS[port]})" for port in taken)
        return Check("ports", None, f"in use: {what}; fine if the hub runs already", f"ss -ltnp 'sport = :{taken[0]}'")
    return Check("ports", True, f"{', '.join(map(str, PORTS))} are free")


def _clock() -> Check:
    """Logins expire by it, and the room's table tells by it who is active."""
    newest = max(file.stat().st_mtime for file in Path(__file__).parents[1].rglob("*.py"))
    now = time.strftime("%Y-%m-%d %H:%M")
    if newest > time.time() + 60:
        return Check("clock", False, f"{now}: earlier than the kit's own files", "date -s TIME")
    return Check("clock", True, now)
