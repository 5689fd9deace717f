"""No test, and no process that a test starts, looks up a name outside this machine or starts a
package manager.

Python imports a module of this name at start-up when its folder is on PYTHONPATH, so kernels and
servers are held to it too. Each refusal is appended to the file that KIT_OFFLINE_LOG names.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

_OWN_NAMES = {"", "localhost", "localhost.localdomain", "ip6-localhost", socket.gethostname()}


def is_local(host: Any) -> bool:
    """Whether a host is this machine: loopback, a wildcard to bind to, or its own name."""
    name = host.decode() if isinstance(host, bytes) else "" if host is None else str(host)
    try:
        address = ipaddress.ip_address(name.split("%")[0])
    except ValueError:
        return name in _OWN_NAMES
    return address.is_loopback or address.is_unspecified


def _note(what: str) -> None:
    if log := os.environ.get("KIT_OFFLINE_LOG"):
        with open(log, "a", encoding="utf-8") as out:
            out.write(f"{what}\n")


def _refuse(what: str, host: Any) -> None:
    _note(f"{what} {host}")
    raise socket.gaierror(socket.EAI_NONAME, f"{what}({host!r}) during tests, which are offline")


def _local_names_only(function: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(host: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_local(host):
            _refuse(function.__name__, host)
        return function(host, *args, **kwargs)

    return guarded


def _local_peers_only(method: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(self: socket.socket, address: Any) -> Any:
        if isinstance(address, tuple) and not is_local(address[0]):
            _refuse(method.__name__, address[0])
        return method(self, address)

    return guarded


# --- package managers ----------------------------------------------------------------------------

MANAGERS = r"(?:pip[\d.]*|pipx|uvx?|conda|mamba|micromamba|apt|apt-get|ensurepip|easy_install)"
_STARTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn"}


def manages(words: list[str]) -> bool:
    """Whether a command line is that of a package manager: by itself, as ``python -m pip``, as
    ``python .../bin/pip``, behind ``env`` or ``sudo``, or anywhere in a shell's script."""
    names = [os.path.basename(word) for word in words]
    program = names[0] if names else ""
    if re.fullmatch(r"(sh|bash|dash|zsh|env|sudo|xargs|nohup)(\.exe)?", program):
        return any(re.search(rf"(^|[\s;&|(/'\"]){MANAGERS}(\s|$)", word) for word in words[1:])
    if program.startswith("python"):
        module = words[words.index("-m") + 1] if "-m" in words[:-1] else ""
        names = [*names[:2], module.partition(".")[0]]  # the script that it runs, or the module
    else:
        names = names[:1]
    return any(re.fullmatch(MANAGERS + r"(\.exe|\.py)?", name) for name in names)


def _from_here(words: list[str]) -> bool:
    """Whether it is ``pip download``, which installs nothing, from an index on this machine: that
    dead ones are told is tested."""
    index = os.environ.get("PIP_INDEX_URL", "")
    return words[1:4] == ["-m", "pip", "download"] and index != "" and is_local(urlsplit(index).hostname)


def _installs_nothing(event: str, args: tuple[Any, ...]) -> None:
    if event == "import" and args[0].startswith("pip._internal") and not _from_here(sys.orig_argv):
        words = ["import pip"]
    elif event in _STARTS:
        given = args[1:] if event == "os.spawn" else args
        line = given[1] if len(given) > 1 and given[1] else given[:1]
        if event == "os.system" or isinstance(line, str | bytes):
            line = ["sh", line if isinstance(line, str | bytes) else given[0]]
        words = [os.fsdecode(word) for word in line]
        if not manages(words) and not (given[0] and manages([os.fsdecode(given[0]), *words[1:]])):
            return
        if _from_here(words):
            return
    else:
        return
    if product := sys.modules.get("kit.models.given"):  # what it refuses by itself, it shall say
        product._refuse_installs(event, args)
    _note(" ".join(words))
    raise PermissionError(f"not started during tests, which install nothing: {' '.join(words):.200}")


def install() -> None:
    """Patch the socket module of this process, and listen to what it starts; once is enough."""
    if getattr(socket, "_kit_offline", False):
        return
    if manages(["python", *sys.orig_argv[1:]]) and not _from_here(
        sys.orig_argv
    ):  # started by a shell, or by something else
        _note(" ".join(sys.orig_argv))
        sys.stderr.write("not started during tests, which install nothing\n")
        os._exit(1)
    sys.addaudithook(_installs_nothing)
    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr"):
        setattr(socket, name, _local_names_only(getattr(socket, name)))
    for name in ("connect", "connect_ex"):
        setattr(socket.socket, name, _local_peers_only(getattr(socket.socket, name)))
    socket._kit_offline = True  # type: ignore[attr-defined]


install()
