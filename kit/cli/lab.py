"""A JupyterLab server of one's own for a moment, and what its browser half will find there."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from kit.base.files import cache_dir
from kit.base.writable import why_not
from kit.models import weights

NOTIFICATION = "@jupyterlab/apputils-extension:notification"
MANAGER = "@jupyter-widgets/jupyterlab-manager"


@dataclass(frozen=True)
class Lab:
    """A running server: ``url`` ends in a slash, ``seconds`` is the time it took to answer."""

    url: str
    token: str
    seconds: float = 0.0

    def ask(self, path: str, method: str = "GET", patience: float = 5.0) -> Any:
        """The JSON answer of the server's API (None for none), within ``patience`` seconds."""
        header = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(self.url + path, method=method, headers=header)
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback: no proxy
        with direct.open(request, timeout=patience) as answer:
            body = answer.read()
        return json.loads(body) if body else None

    def asks_nobody(self) -> bool:
        """Whether the settings that reach the browser switch news and update checks off."""
        answer = self.ask(f"lab/api/settings/{NOTIFICATION}")
        defaults = {name: entry.get("default") for name, entry in answer["schema"]["properties"].items()}
        found = defaults | answer["settings"]
        return found["fetchNews"] == "false" and found["checkForUpdates"] is False


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
    import psutil

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    lab = Lab(f"http://127.0.0.1:{port}/", secrets.token_hex(16))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1"]
        command += [f"--port={port}", "--ServerApp.port_retries=0", "--ServerApp.base_url=/"]
        command += [f"--ServerApp.root_dir={folder or scratch}", *server_options(), *arguments]
        # the token by the environment: command lines are public
        env = os.environ | {"JUPYTER_TOKEN": lab.token, "JUPYTER_RUNTIME_DIR": scratch}
        log = Path(scratch) / "lab.log"
        start = time.perf_counter()
        with log.open("wb") as out:
            process = psutil.Popen(
                command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=env, cwd=scratch, start_new_session=True
            )
        try:
            _wait(process, lab, log, start + seconds)
            yield replace(lab, seconds=time.perf_counter() - start)
        finally:
            family = [process]
            with suppress(psutil.NoSuchProcess):  # its kernels are sessions of their own
                family += process.children(recursive=True)
            with suppress(psutil.NoSuchProcess):
                process.terminate()
            for one in psutil.wait_procs(family, timeout=10)[1]:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
                    one.wait()


def _wait(process: subprocess.Popen[bytes], lab: Lab, log: Path, end: float) -> None:
    while True:
        if process.poll() is not None:
            lines = log.read_text(errors="replace").strip().splitlines() or ["it says nothing"]
            raise RuntimeError(f"it ended with status {process.returncode}: {lines[-1]}")
        try:
            lab.ask("api/status")
            return
        except OSError as error:  # URLError and refused connections are both OSErrors
            if time.perf_counter() > end:
                raise TimeoutError(f"no answer in time: {error}") from error
            time.sleep(0.1)


def blocked() -> tuple[str, str]:
    """Which folders that JupyterLab, the kit and the course write to cannot be written, and why,
    and the command that moves them elsewhere; two empty texts where all can."""
    from jupyter_core import paths
    from platformdirs import user_data_dir

    places = {
        "HOME": str(Path.home()),
        "JUPYTER_CONFIG_DIR": paths.jupyter_config_dir(),
        "JUPYTER_DATA_DIR": paths.jupyter_data_dir(),
        "JUPYTER_RUNTIME_DIR": paths.jupyter_runtime_dir(),
        "XDG_DATA_HOME": user_data_dir("steering-kit"),
    }
    places |= {n: os.environ[n] for n in ("JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR") if n in os.environ}
    if not weights.cached("bfloat16"):  # a shared cache that has the model is for reading
        places["KIT_CACHE"] = str(cache_dir())
    why = {name: text for name, place in places.items() if (text := why_not(Path(place)))}
    if "HOME" in why:  # what lies in it moves with it
        why = {name: text for name, text in why.items() if name == "HOME" or name in os.environ}
    move = " ".join(["export", *(f'{name}="$(mktemp -d)"' for name in why)])
    return "; ".join(f"{name}={places[name]}: {text}" for name, text in why.items()), move if why else ""


def widgets() -> tuple[bool, str]:
    """Whether ipywidgets (kernel) and jupyterlab_widgets (server) are there, match and are on.

    Their mismatch is the blank cell that says "model not found".
    """
    from jupyter_core.paths import jupyter_path
    from jupyterlab_server.config import get_page_config

    kernel, server_side = metadata.version("ipywidgets"), metadata.version("jupyterlab_widgets")
    if kernel.split(".")[0] != "8" or server_side.split(".")[0] != "3":
        return False, f"ipywidgets {kernel} and jupyterlab_widgets {server_side} do not match"
    page = get_page_config(jupyter_path("labextensions"))
    if MANAGER not in [extension["name"] for extension in page["federated_extensions"]]:
        return False, f"JupyterLab does not see {MANAGER}"
    if MANAGER in page["disabledExtensions"]:
        return False, f"{MANAGER} is switched off: jupyter labextension enable {MANAGER}"
    return True, f"ipywidgets {kernel} with jupyterlab_widgets {server_side}"


def trust(folder: Path) -> None:
    """Sign the course's notebooks in a folder, as ``jupyter trust`` does, for this user.

    Of outputs that were not made here JupyterLab shows neither pictures (of SVG only the words are
    left) nor live widgets. Who runs the course's own command trusts the course's code anyway.
    """
    import nbformat
    from nbformat.sign import NotebookNotary

    notary = NotebookNotary()
    for file in sorted(folder.glob("[0-9][0-9]_*.ipynb")):
        with suppress(Exception):  # a damaged one, in any way that nbformat may trip over: JupyterLab says so
            notebook = nbformat.read(file, nbformat.NO_CONVERT)
            if not notary.check_signature(notebook):
                notary.sign(notebook)


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
