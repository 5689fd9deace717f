"""A JupyterLab server of one's own for a moment, and what its browser half will find there."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

NOTIFICATION = "@jupyterlab/apputils-extension:notification"
MANAGER = "@jupyter-widgets/jupyterlab-manager"


@dataclass(frozen=True)
class Lab:
    """A running server: ``url`` ends in a slash, ``seconds`` is the time it took to answer."""

    url: str
    token: str
    seconds: float

    def ask(self, path: str, method: str = "GET", patience: float = 5.0) -> Any:
        """The JSON answer of the server's API (None for none), within ``patience`` seconds."""
        return _ask(self.url + path, self.token, method, patience)

    def asks_nobody(self) -> bool:
        """Whether the settings that reach the browser switch news and update checks off."""
        answer = self.ask(f"lab/api/settings/{NOTIFICATION}")
        defaults = answer["schema"]["properties"]

        def value(name: str) -> Any:
            return answer["settings"].get(name, defaults[name]["default"])

        return value("fetchNews") == "false" and value("checkForUpdates") is False


def _ask(url: str, token: str, method: str = "GET", patience: float = 5.0) -> Any:
    request = urllib.request.Request(url, method=method)
    request.add_header("Authorization", f"token {token}")
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback: no proxy
    with direct.open(request, timeout=patience) as answer:
        body = answer.read()
    return json.loads(body) if body else None


@contextmanager
def server(*arguments: str, folder: Path | None = None, seconds: float = 60.0) -> Iterator[Lab]:
    """Start JupyterLab on a free loopback port with a random token; stop it at the end, always.

    Args:
        arguments: further arguments of ``jupyter lab``.
        folder: what it serves; an empty temporary folder when None.
        seconds: how long it may take to answer.

    Raises:
        RuntimeError: it ends before it answers; the text is the last line of its log.
        TimeoutError: it does not answer in time.
    """

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch, socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
        s.close()
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1"]
        command += [f"--port={port}", "--ServerApp.port_retries=0", "--ServerApp.base_url=/"]
        command += [f"--ServerApp.root_dir={folder or scratch}", *server_options(), *arguments]
        token = secrets.token_hex(16)  # by the environment: command lines are public
        env = os.environ | {"JUPYTER_TOKEN": token, "JUPYTER_RUNTIME_DIR": scratch}
        log = Path(scratch) / "lab.log"
        with log.open("wb") as out:
            start = time.perf_counter()
            process = subprocess.Popen(
                command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=env, cwd=scratch, start_new_session=True
            )
            url = f"http://127.0.0.1:{port}/"
            try:
                _wait(process, url, token, log, start + seconds)
                yield Lab(url, token, time.perf_counter() - start)
            finally:
                _stop(process, url, token)


def _wait(process: subprocess.Popen[bytes], url: str, token: str, log: Path, end: float) -> None:
    while True:
        if process.poll() is not None:
            lines = log.read_text(errors="replace").strip().splitlines() or ["it says nothing"]
            raise RuntimeError(f"it ended with status {process.returncode}: {lines[-1]}")
        try:
            _ask(url + "api/status", token)
            return
        except OSError as error:  # URLError and refused connections are both OSErrors
            if time.perf_counter() > end:
                raise TimeoutError(f"no answer in time: {error}") from error
            time.sleep(0.1)


def _stop(process: subprocess.Popen[bytes], url: str, token: str) -> None:
    if process.poll() is None:
        try:
            _ask(url + "api/shutdown", token, "POST")
            process.wait(10)
        except (OSError, subprocess.TimeoutExpired):
            pass
    if hasattr(os, "killpg"):
        try:  # its kernels too, and whatever a half-started server left
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
    elif process.poll() is None:
        process.kill()
    process.wait()


def widgets() -> tuple[bool, str]:
    """Whether ipywidgets (kernel) and jupyterlab_widgets (server) are there, match and are on.

    Their mismatch is the blank cell that says "model not found".
    """
    from jupyter_core.paths import jupyter_config_path, jupyter_path

    kernel, server_side = metadata.version("ipywidgets"), metadata.version("jupyterlab_widgets")
    if kernel.split(".")[0] != "8" or server_side.split(".")[0] != "3":
        return False, f"ipywidgets {kernel} and jupyterlab_widgets {server_side} do not match"
    places = [Path(place) / MANAGER / "package.json" for place in jupyter_path("labextensions")]
    if not any(place.is_file() for place in places):
        return False, f"JupyterLab does not see {MANAGER}"
    for place in jupyter_config_path():
        page = Path(place) / "labconfig" / "page_config.json"
        if page.is_file() and _disabled(json.loads(page.read_text(encoding="utf-8"))):
            return False, f"{MANAGER} is switched off in {page}"
    return True, f"ipywidgets {kernel} with jupyterlab_widgets {server_side}"


def _disabled(page_config: dict[str, Any]) -> bool:
    names = page_config.get("disabledExtensions", {})
    if isinstance(names, list):  # the form before JupyterLab 4
        return MANAGER in names
    return bool(names.get(MANAGER))


def server_options() -> list[str]:
    """What ``jupyter lab`` needs here: no console browser, and a word for root in a container."""
    options = [] if has_browser() else ["--no-browser"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.append("--allow-root")
    return options


def has_browser() -> bool:
    """Whether opening a page can show one: on Linux that takes a display or ``$BROWSER``."""
    hints = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    return not sys.platform.startswith("linux") or any(os.environ.get(name) for name in hints)
