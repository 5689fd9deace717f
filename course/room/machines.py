"""``kit doctor --workshop``: is every machine of a room ready, and can this one be its host?

Each participant mails the output of ``kit doctor --json``; the instructor puts the files into one
folder, named as the machines are to be called. Nothing is asked over a network. How many seats a
host's memory holds is not guessed here: ``kit room`` measures that.
"""

from __future__ import annotations

import codecs
import json
import os
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kit import __version__
from kit.cli.doctor import Check
from kit.cli.pins import interpreter

PORTS = {8000: "the hub's public port", 8001: "its proxy's API", 8081: "its own API"}
_MOST = 2**20  # bytes of a report
_GB = 2**30


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
    name = _plain(file.stem, 60)
    again = "ask for the output of `kit doctor --json` again"
    try:
        with file.open("rb") as handle:
            raw = handle.read(_MOST + 1)
        if len(raw) > _MOST:
            return Machine(name, "damaged", f"larger than {_MOST // 2**20} MB", again)
        checks, version = _report(json.loads(_text(raw)))
    except (OSError, ValueError, RecursionError) as error:
        return Machine(name, "damaged", _plain(str(error)) or type(error).__name__, again)
    worst = next((c for ok in (False, None) for c in checks if c.ok is ok), None)
    if worst is not None and worst.ok is False:
        return Machine(name, "FAIL", f"{worst.name}: {worst.detail}", worst.fix)
    if version != __version__:
        return Machine(
            name, "warn", f"its kit is {version or 'older'}, this one is {__version__}", "bring both to one version"
        )
    if worst is not None:
        return Machine(name, "warn", f"{worst.name}: {worst.detail}", worst.fix)
    return Machine(name, "ready")


def _text(raw: bytes) -> str:
    """Windows PowerShell writes UTF-16, some editors a mark before UTF-8."""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return raw.decode("utf-16")
    return raw.decode("utf-8-sig")


def _report(found: Any) -> tuple[list[Check], str]:
    """The rows of a report and its kit's version; raises ValueError when it is none."""
    rows = found.get("checks") if isinstance(found, dict) else None
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"it holds a {type(found).__name__}, no report of `kit doctor --json`")
    checks = []
    for row in rows:
        texts = [row.get(key, "") for key in ("name", "detail", "fix")] if isinstance(row, dict) else [None]
        if not all(isinstance(text, str) for text in texts) or not any(
            row.get("ok", 0) is ok for ok in (True, False, None)
        ):
            raise ValueError(f"row {len(checks) + 1} is none of `kit doctor --json`")
        name, detail, fix = (_plain(text) for text in texts)
        checks.append(Check(name, row["ok"], detail, fix))
    version = found.get("kit")
    return checks, _plain(version, 20) if isinstance(version, str) else ""


def _plain(text: str, longest: int = 300) -> str:
    """One printable line: a report may hold anything, and it goes to a terminal."""
    line = " ".join(text.split())
    return "".join(c for c in line if c.isprintable())[:longest]


# --- this machine as the room's host -------------------------------------------------------------


def host() -> Iterator[Check]:
    """What a host of a room needs besides ``kit doctor``; a check never raises."""
    table: list[tuple[str, Callable[[], Check]]] = [
        ("JupyterHub", _hub),
        ("free disk", _disk),
        ("model cache", _cache),
        ("ports", _ports),
        ("clock", _clock),
    ]
    for name, look in table:
        try:
            yield look()
        except Exception as error:
            yield Check(name, False, f"{type(error).__name__}: {_plain(str(error))}", f"{interpreter()} -m kit doctor")


def _hub() -> Check:
    if find_spec("jupyterhub") is None:
        fix = f"{interpreter()} -m pip install jupyterhub"
        return Check("JupyterHub", False, "not installed", fix)
    from importlib.metadata import version

    return Check("JupyterHub", True, version("jupyterhub"))


def _disk() -> Check:
    """Of the disks that hold the model cache and the learners' homes."""
    from kit.models import weights

    places = {_exists(weights.cache_dir()), _exists(Path("/home"))}
    free = {place: shutil.disk_usage(place).free / _GB for place in places}
    place = min(free, key=lambda p: free[p])
    detail = f"{free[place]:.1f} GB under {place}"
    if free[place] < 1:
        return Check("free disk", False, detail, f"make room: du -xh --max-depth=2 {place}")
    if free[place] < 5:
        return Check("free disk", None, f"{detail}; 5 GB or more is comfortable")
    return Check("free disk", True, detail)


def _exists(path: Path) -> Path:
    path = path.absolute()
    return next(p for p in (path, *path.parents) if p.exists())


def _cache() -> Check:
    """Every learner's kernel maps the same files: all may read them, none may change them."""
    from kit.models import weights
    from kit.models.load import model_dtype

    if os.name != "posix":
        return Check("model cache", None, "not tried: this system has no file modes")
    dtype = model_dtype() if find_spec("torch") else "bfloat16"
    folder = weights.cached(dtype)
    fetch = f"{interpreter()} -m kit fetch"
    if folder is None:
        return Check("model cache", False, f"{weights.EMBEDDED} is not here yet ({dtype})", fetch)
    folder = folder.resolve()
    files = [folder, *folder.rglob("*")]
    closed = [p for p in files if not _others(p, stat.S_IXOTH | stat.S_IROTH if p.is_dir() else stat.S_IROTH)]
    if closed:
        return Check(
            "model cache", False, f"{len(closed)} of its files are closed to others", f"chmod -R o+rX {folder}"
        )
    gates = [p for p in folder.parents if not _others(p, stat.S_IXOTH)]
    if gates:
        return Check(
            "model cache",
            False,
            f"others cannot enter {gates[-1]}",
            f"KIT_CACHE=/srv/kit {fetch}   # and KIT_CACHE=/srv/kit for every learner",
        )
    loose = [p for p in files if _others(p, stat.S_IWOTH)]
    if loose:
        return Check("model cache", None, f"others may change {loose[0]}", f"chmod -R o-w {folder}")
    return Check("model cache", True, f"{folder}: readable by all")


def _others(path: Path, bits: int) -> bool:
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
    if shutil.which("timedatectl"):
        told = subprocess.run(
            ["timedatectl", "show", "-p", "NTPSynchronized", "--value"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
        if told.stdout.strip() == "no":
            return Check("clock", None, f"{now}; not set by a time server", "timedatectl set-ntp true")
    return Check("clock", True, now)
