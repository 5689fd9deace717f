"""What a host may decide about its hub: a handful of ``KIT_HUB_*`` variables, read once."""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_UNITS = {"M": 2**20, "G": 2**30}


@dataclass(frozen=True)
class Settings:
    """Everything that differs between hosts.

    ``home`` holds ``private/`` (database, secrets, slips.txt; root only). ``memory`` is in bytes
    for each seat, 0 for no limit; ``cpus`` in cores for each seat, 0 for no limit; ``idle`` in
    seconds; ``prefix`` is what a seat's unix account begins with.
    """

    home: Path
    cache: Path
    ip: str
    port: int
    cert: str
    key: str
    seats: int
    memory: int
    cpus: float
    idle: int
    prefix: str

    @property
    def private(self) -> Path:
        return self.home / "private"

    @property
    def url(self) -> str:
        host = f"[{self.ip}]" if ":" in self.ip else self.ip
        return f"{'https' if self.cert else 'http'}://{host}:{self.port}"


def read(environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings of an environment; what it does not name has the default in README.md.

    Raises ValueError for a value that makes no sense, and for an address that the room can reach
    without TLS: passwords would cross its Wi-Fi in the clear.
    """
    home = Path(environ.get("KIT_HUB_HOME") or "/var/lib/steering-hub")
    found = Settings(
        home=home,
        cache=Path(environ.get("KIT_CACHE") or home / "cache"),
        ip=environ.get("KIT_HUB_IP") or "127.0.0.1",
        port=_whole(environ, "KIT_HUB_PORT", 8000, 1, 65_000),
        cert=environ.get("KIT_HUB_CERT", ""),
        key=environ.get("KIT_HUB_KEY", ""),
        seats=_whole(environ, "KIT_HUB_SEATS", 30, 0, 500),
        memory=_bytes(environ.get("KIT_HUB_MEMORY") or "2G"),
        cpus=_cores(environ.get("KIT_HUB_CPUS") or "2"),
        idle=_whole(environ, "KIT_HUB_IDLE", 3600, 60, 10**6),
        prefix=environ.get("KIT_HUB_PREFIX") or "kit-",
    )
    for name, path in (("KIT_HUB_HOME", home), ("KIT_CACHE", found.cache)):
        if not path.is_absolute():
            raise ValueError(f"{name}={path}: give an absolute path")
    if not re.fullmatch(r"[a-z][a-z0-9]{1,6}-", found.prefix):
        raise ValueError(f"KIT_HUB_PREFIX={found.prefix!r}: give 2 to 7 letters and a dash: kit-")
    if bool(found.cert) != bool(found.key):
        raise ValueError(f"KIT_HUB_CERT={found.cert}, KIT_HUB_KEY={found.key}: give both files or neither")
    for name, file in (("KIT_HUB_CERT", found.cert), ("KIT_HUB_KEY", found.key)):
        if file and not Path(file).is_file():
            raise ValueError(f"{name}={file}: there is no such file")
    try:
        loopback = ipaddress.ip_address(found.ip).is_loopback
    except ValueError:
        raise ValueError(f"KIT_HUB_IP={found.ip!r}: give an IP address, such as 0.0.0.0") from None
    if not loopback and not found.cert:
        raise ValueError(
            f"KIT_HUB_IP={found.ip} can be reached from other machines: give KIT_HUB_CERT and "
            "KIT_HUB_KEY too, or stay on 127.0.0.1 behind a proxy that speaks TLS"
        )
    return found


def make_folders(host: Settings) -> None:
    """Make the folders that are missing; PermissionError if the private one is not root's alone."""
    for folder, mode in ((host.home, 0o755), (host.private, 0o700), (host.cache, 0o755)):
        if not folder.is_dir():
            folder.mkdir(parents=True)
            folder.chmod(mode)  # whatever the umask is
    found = host.private.stat()
    if found.st_mode & 0o077 or found.st_uid != os.geteuid():
        raise PermissionError(f"{host.private} holds secrets: give it to root, mode 0700")


def closed_to_others(paths: Iterable[Path]) -> str:
    """Why seats cannot reach one of these paths; empty when they can reach them all."""
    for path in paths:
        real = path.resolve()
        for folder in (*reversed(real.parents), real):
            if folder.is_dir() and not folder.stat().st_mode & 0o001:
                return f"{folder} is closed to other users, so no seat can use {path}"
    return ""


def needed_by_seats(cache: Path) -> list[Path]:
    """What every seat's server reads: the interpreter, its packages, this clone and the model."""
    return [Path(sys.executable), Path(sys.prefix), Path(sys.base_prefix), ROOT, cache]


def _whole(environ: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    text = environ.get(name) or str(default)
    if not re.fullmatch(r"\d+", text) or not low <= int(text) <= high:
        raise ValueError(f"{name}={text!r}: give a whole number from {low} to {high}")
    return int(text)


def _bytes(text: str) -> int:
    if text == "0":
        return 0
    if not (found := re.fullmatch(r"(\d+)([MG])", text)) or int(found[1]) == 0:
        raise ValueError(f"KIT_HUB_MEMORY={text!r}: give megabytes or gigabytes, 1500M or 2G")
    return int(found[1]) * _UNITS[found[2]]


def _cores(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?", text) or 0 < float(text) < 0.1:
        raise ValueError(f"KIT_HUB_CPUS={text!r}: give a number of cores from 0.1, or 0: no limit")
    return float(text)
