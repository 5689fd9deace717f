"""No test, and no process that a test starts, may look up a name outside this machine.

Python imports a module of this name at start-up when its folder is on PYTHONPATH, so kernels and
servers are held to it too. Each refusal is appended to the file that KIT_OFFLINE_LOG names.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable
from typing import Any

_OWN_NAMES = {"", "localhost", "localhost.localdomain", "ip6-localhost", socket.gethostname()}


def is_local(host: Any) -> bool:
    """Whether a host is this machine: loopback, a wildcard to bind to, or its own name."""
    name = host.decode() if isinstance(host, bytes) else "" if host is None else str(host)
    try:
        address = ipaddress.ip_address(name.split("%")[0])
    except ValueError:
        return name in _OWN_NAMES
    return address.is_loopback or address.is_unspecified


def _refuse(what: str, host: Any) -> None:
    if log := os.environ.get("KIT_OFFLINE_LOG"):
        with open(log, "a", encoding="utf-8") as out:
            out.write(f"{what} {host}\n")
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


def install() -> None:
    """Patch the socket module of this process; once is enough."""
    if getattr(socket, "_kit_offline", False):
        return
    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr"):
        setattr(socket, name, _local_names_only(getattr(socket, name)))
    for name in ("connect", "connect_ex"):
        setattr(socket.socket, name, _local_peers_only(getattr(socket.socket, name)))
    socket._kit_offline = True  # type: ignore[attr-defined]


install()
