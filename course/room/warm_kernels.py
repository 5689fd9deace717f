"""Kernels that start warm: forked from a process that has the libraries and the model already.

An ordinary kernel spends seconds on importing torch and transformer-lens, and keeps a quarter of a
gigabyte of its own for them; thirty that start at once on two cores take minutes. A forked kernel
shares both with its parent. ``kit lab --warm`` switches it on for a server, by the name
``kit-warm`` of the provisioner below.

Each Jupyter server (or rehearsal) has a parent of its own, one process that it starts with its
first kernel; the two talk over a socket that nobody else can reach, and the parent ends with the
server, and its kernels with it. So kernels of different users never share one. Linux only.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from importlib.metadata import entry_points
from multiprocessing.connection import wait
from typing import Any, NoReturn

import psutil
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

from course import DTYPE
from kit.base.threads import cores
from kit.cli.pins import reinstall
from kit.models.load import preload

NAME = "kit-warm"
SWITCH = "JUPYTER_DEFAULT_PROVISIONER_NAME"  # jupyter_client's own environment variable
_LIMIT = 2**20  # bytes of a request: an environment and a command line
_ROOM_FOR_IMPORTS = 300.0  # seconds that the parent may take to get warm


class WarmProvisioner(LocalProvisioner):
    """Forks kernels of this interpreter and starts all others as usual."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Fork the kernel from the warm parent where its command allows that."""
        if not can_fork(cmd):
            return await super().launch_kernel(cmd, **kwargs)
        env = kwargs.get("env") or dict(os.environ)
        forked = await asyncio.to_thread(fork, cmd, env, kwargs.get("cwd") or os.getcwd())
        self.process = forked  # type: ignore[assignment]  # with all that is asked of a Popen
        self.pid = self.pgid = forked.pid
        return self.connection_info


def switch_on() -> None:
    """Let servers that this process starts, or becomes, fork their kernels.

    Raises:
        RuntimeError: this system cannot, or Jupyter does not find the provisioner.
    """
    if not hasattr(os, "pidfd_open"):
        raise RuntimeError("--warm: kernels can be forked on Linux only")
    if NAME not in entry_points(group=KernelProvisionerFactory.GROUP_NAME).names:
        raise RuntimeError(f"--warm: Jupyter does not know {NAME!r}; install the kit: {reinstall()}")
    os.environ[SWITCH] = NAME


def can_fork(command: list[str]) -> bool:
    """Whether a kernel's command is this interpreter's ipykernel, on a system with ``pidfd``."""
    ours = os.path.realpath(command[0]) == os.path.realpath(sys.executable)
    return ours and "ipykernel_launcher" in command and hasattr(os, "pidfd_open")


class Forked:
    """A kernel that is no child of this process, with what a provisioner uses of ``Popen``.

    The descriptor ``pidfd`` names the process itself: no signal can reach another one that got its
    number later.
    """

    stdin = stdout = stderr = None

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid, self._pidfd = pid, pidfd

    def poll(self) -> int | None:
        """None while it runs, else 0: the status itself went to its parent."""
        if self._pidfd >= 0:
            if not wait([self._pidfd], timeout=0):
                return None
            os.close(self._pidfd)
            self._pidfd = -1
        return 0

    def wait(self) -> int:
        """Block until it has ended."""
        if self._pidfd >= 0:
            wait([self._pidfd])
        return self.poll() or 0

    def send_signal(self, signum: int) -> None:
        """Raises ProcessLookupError when it has ended."""
        if self._pidfd < 0:
            raise ProcessLookupError(f"kernel {self.pid} has ended")
        signal.pidfd_send_signal(self._pidfd, signum)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def __del__(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)


_LOCK = threading.Lock()  # of the two below
_PARENT: subprocess.Popen[bytes] | None = None
_SOCKET: socket.socket | None = None


def parent() -> int | None:
    """Process id of this process's warm parent, None before its first kernel."""
    return _PARENT.pid if _PARENT is not None and _PARENT.poll() is None else None


def fork(command: list[str], env: dict[str, str], cwd: str) -> Forked:
    """Start one kernel; the first call starts the parent and waits until it is warm.

    Raises:
        RuntimeError: the parent ended, or could not fork; the text says why.
    """
    request = json.dumps({"argv": command, "env": env, "cwd": cwd}).encode()
    if len(request) > _LIMIT:
        raise RuntimeError(f"a kernel's environment of {len(request)} bytes; at most {_LIMIT}")
    with _LOCK:
        wire = _warm_up()
        try:
            wire.sendall(len(request).to_bytes(4, "big") + request)
            message, descriptors, _, _ = socket.recv_fds(wire, 4096, 1)
        except OSError as error:
            raise RuntimeError(f"the warm parent of kernels does not answer: {error}") from error
    answer: dict[str, Any] = json.loads(message) if message else {"error": "it ended; its last words are above"}
    if "error" in answer or not descriptors:
        raise RuntimeError(f"the warm parent of kernels started none: {answer.get('error')}")
    return Forked(answer["pid"], descriptors[0])


def _warm_up() -> socket.socket:
    global _PARENT, _SOCKET
    if _SOCKET is not None and parent() is not None:
        return _SOCKET
    ours, theirs = socket.socketpair()
    with theirs:
        _PARENT = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"},
        )
    ours.settimeout(_ROOM_FOR_IMPORTS)
    _SOCKET = ours
    return ours


# The parent's side.


def serve(descriptor: int) -> None:
    """Get warm, then fork a kernel for every request, until the other end is closed."""
    import torch

    torch.set_num_threads(1)  # a pool of threads would not survive a fork
    import ipykernel.kernelapp
    import ipywidgets
    import transformer_lens.model_bridge

    from kit.models import weights
    from kit.widgets import SteeringPanel

    assert ipykernel.kernelapp and ipywidgets and transformer_lens.model_bridge and SteeringPanel
    if not torch.cuda.is_available() and weights.cached(DTYPE):  # CUDA cannot be forked
        preload(DTYPE)
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page that holds an object
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks for the kernels' status
    children: list[int] = []
    with socket.socket(fileno=descriptor) as wire:
        while request := _read(wire):
            pid = os.fork()
            if pid == 0:
                wire.close()
                _become_kernel(**request)
            with suppress(OSError):  # the child does the same; whoever comes first
                os.setpgid(pid, pid)
            children.append(pid)
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                wire.sendall(json.dumps({"error": "the kernel ended at once"}).encode())
                continue
            socket.send_fds(wire, [json.dumps({"pid": pid}).encode()], [pidfd])
            os.close(pidfd)
    for pid in children:
        with suppress(OSError, psutil.NoSuchProcess):
            if os.getpgid(pid) == pid and psutil.Process(pid).ppid() == os.getpid():
                os.killpg(pid, signal.SIGTERM)


def _read(wire: socket.socket) -> dict[str, Any] | None:
    with suppress(OSError):
        size = int.from_bytes(wire.recv(4, socket.MSG_WAITALL), "big")
        body = wire.recv(size, socket.MSG_WAITALL) if 0 < size <= _LIMIT else b""
        return json.loads(body) if body and len(body) == size else None
    return None


def _become_kernel(argv: list[str], env: dict[str, str], cwd: str) -> NoReturn:
    status = 1
    try:
        os.setpgid(0, 0)  # an interrupt goes to the group, so to this kernel alone
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.clear()
        os.environ.update(env)
        os.chdir(cwd)
        import numpy as np
        import torch
        from ipykernel.kernelapp import IPKernelApp

        np.random.seed()
        threads = env.get("OMP_NUM_THREADS", "")
        torch.set_num_threads(int(threads) if threads.isdigit() else cores())
        options = argv[argv.index("ipykernel_launcher") + 1 :]
        # ends itself within a second of its parent's end
        options.append(f"--IPKernelApp.parent_handle={os.getppid()}")
        sys.argv = ["ipykernel_launcher", *options]
        IPKernelApp.launch_instance(argv=options)
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
