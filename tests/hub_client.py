"""A real hub of the shipped configuration on loopback, and a participant at its door."""

from __future__ import annotations

import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import requests
import websocket

from course.room import cgroups, settings

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "course" / "room" / "jupyterhub_config.py"
PREFIX = "kitci-"
SLOW = 180.0  # seconds that a start may take on a busy machine


@dataclass
class Hub:
    """A running hub; ``home`` is its KIT_HUB_HOME."""

    url: str
    home: Path
    log: Path
    process: subprocess.Popen[bytes]

    def passwords(self) -> dict[str, str]:
        text = (self.home / "private" / "slips.txt").read_text()
        return dict(line.split() for line in text.splitlines())

    def guest(self) -> Guest:
        return Guest(self.url)

    def seat(self, name: str) -> Guest:
        """Somebody who logged in with the password on the slip, holding a token of theirs."""
        guest = self.guest()
        answer = guest.login(name, self.passwords()[name])
        assert answer.ok and answer.url.endswith("/hub/home"), (answer, answer.url)
        answer = guest.post(f"hub/api/users/{name}/tokens", json={"note": "test"})
        assert answer.status_code == 201, answer.text
        guest.name, guest.token = name, answer.json()["token"]
        return guest


@dataclass
class Guest:
    """A browser without a screen: cookies, and a token once it has logged in."""

    url: str
    name: str = ""
    token: str = ""
    web: requests.Session = field(default_factory=requests.Session)

    def __post_init__(self) -> None:
        self.web.trust_env = False  # loopback: no proxy

    def get(self, path: str, **options: Any) -> requests.Response:
        return self.web.get(self.url + path, timeout=30, **options)

    def post(self, path: str, **options: Any) -> requests.Response:
        """With the page's own XSRF token, as its script would."""
        self.get("hub/login?next=%2Fhub%2Fhome")
        token = next(c.value for c in self.web.cookies if c.name == "_xsrf" and c.path == "/hub/")
        headers = {"X-XSRFToken": str(token), "Referer": self.url + "hub/home"}
        return self.web.post(self.url + path, headers=headers, timeout=30, **options)

    def login(self, name: str, password: str) -> requests.Response:
        form = {"username": name, "password": password}
        return self.post("hub/login?next=%2Fhub%2Fhome", data=form)

    def ask(self, method: str, path: str, **options: Any) -> requests.Response:
        """With the token and nothing else."""
        with requests.Session() as web:
            web.trust_env = False
            return web.request(
                method,
                self.url + path,
                headers={"Authorization": f"token {self.token}"},
                timeout=30,
                allow_redirects=False,
                **options,
            )

    def sit_down(self) -> None:
        """Start the own server and wait until it answers."""
        answer = self.ask("POST", f"hub/api/users/{self.name}/server")
        assert answer.status_code in (201, 202), answer.text
        end = time.monotonic() + SLOW
        while not self.server().get("ready"):
            assert time.monotonic() < end, "the server did not start in time"
            time.sleep(0.2)

    def server(self) -> dict[str, Any]:
        return self.ask("GET", f"hub/api/users/{self.name}").json()["servers"].get("", {})

    def kernel(self) -> Kernel:
        answer = self.ask("POST", f"user/{self.name}/api/kernels")
        assert answer.status_code == 201, answer.text
        return Kernel(self, answer.json()["id"])


class Kernel:
    """A kernel of a seat, spoken to through the hub's proxy."""

    def __init__(self, guest: Guest, name: str) -> None:
        self.guest, self.id = guest, name
        self.socket = websocket.create_connection(
            guest.url.replace("http", "ws", 1) + f"user/{guest.name}/api/kernels/{name}/channels",
            header=[f"Authorization: token {guest.token}"],
            timeout=SLOW,
            http_no_proxy=["*"],
        )

    def run(self, code: str) -> str:
        """What a cell printed; its error's name and text; or "died" when the kernel did."""
        header = {
            "msg_id": secrets.token_hex(8),
            "msg_type": "execute_request",
            "version": "5.3",
            "session": "test",
            "username": "test",
            "date": "",
        }
        content = {
            "code": code,
            "silent": False,
            "store_history": False,
            "allow_stdin": False,
            "user_expressions": {},
            "stop_on_error": True,
        }
        self.socket.send(
            json.dumps({"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"})
        )
        said = ""
        while True:
            message = json.loads(self.socket.recv())
            kind, content = message["msg_type"], message["content"]
            if kind == "status" and content["execution_state"] in ("restarting", "dead"):
                return "died"
            if message["parent_header"].get("msg_id") != header["msg_id"]:
                continue
            if kind == "stream":
                said += content["text"]
            elif kind == "error":
                return f"{content['ename']}: {content['evalue']}"
            elif kind == "status" and content["execution_state"] == "idle":
                return said


def missing() -> str:
    """Why a hub cannot run here; empty when it can."""
    if not sys.platform.startswith("linux"):
        return "the hub is for Linux"
    if os.geteuid() != 0:
        return "only root can start servers as other users"
    if missed := [name for name in ("useradd", "userdel", "unshare") if not shutil.which(name)]:
        return f"{', '.join(missed)} not found"
    if Path("/run/systemd/system").is_dir():
        return "with systemd the seats are its units; these tests are of the other spawner"
    proxy = Path(sys.prefix, "hub-proxy/node_modules/configurable-http-proxy")
    if not proxy.is_dir() or not shutil.which("node"):
        return f"the proxy is not in {proxy}: make .venv/.proxy"
    try:
        __import__("jupyterhub")
        cgroups.find()
    except ImportError as error:
        return f"{error}: pip install -c constraints.txt -e '.[hub]'"
    except OSError as error:
        return str(error)
    return ""


@contextmanager
def running(**environ: str) -> Iterator[Hub]:
    """The shipped configuration on free ports with two seats; accounts and files go at the end."""
    home = Path(tempfile.mkdtemp(prefix="kit-hub-"))
    home.chmod(0o755)
    cache, refused = home / "cache", home / "refused"
    cache.mkdir()
    (cache / "weights").write_text("the same for all")
    refused.touch()
    refused.chmod(0o666)
    port = _free_port()
    env = (
        os.environ
        | {
            "KIT_HUB_HOME": str(home),
            "KIT_CACHE": str(cache),
            "KIT_HUB_PORT": str(port),
            "KIT_HUB_SEATS": "2",
            "KIT_HUB_PREFIX": PREFIX,
            "KIT_OFFLINE_LOG": str(refused),
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]]),
        }
        | environ
    )
    log = home / "hub.log"
    jupyterhub = [sys.executable, "-m", "jupyterhub", "-f", str(CONFIG)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*_doors_open(home, settings.needed_by_seats(cache)), *jupyterhub],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd=home,
            start_new_session=True,
        )
    try:
        hub = Hub(f"http://127.0.0.1:{port}/", home, log, process)
        _wait(hub)
        yield hub
    finally:
        _stop(process)
        for entry in pwd.getpwall():
            if entry.pw_name.startswith(PREFIX):
                subprocess.run(["userdel", "--remove", entry.pw_name], capture_output=True)
        with suppress(OSError):
            for folder in cgroups.find().own.values():
                (folder / cgroups.PARENT).rmdir()
        shutil.rmtree(home, ignore_errors=True)


def _doors_open(scratch: Path, needed: list[Path]) -> list[str]:
    """A command prefix under which every user may read what the seats need.

    A test may run from root's own home. In a mount namespace that only the hub sees, each folder
    that is closed to others is covered by an empty one that holds just the needed paths, which
    are mounted there for reading only.
    """
    if not settings.closed_to_others(needed):
        return []
    shut = {}
    for path in needed:
        real = path.resolve()
        closed = [p for p in reversed(real.parents) if not p.stat().st_mode & 0o001]
        if closed:
            shut[real if real.is_dir() else real.parent] = closed[0]
    aside = scratch / "aside"
    lines = ["set -e", f"mkdir {aside}", f"mount -t tmpfs -o mode=755 tmpfs {aside}"]
    for n, path in enumerate(shut):
        lines += [f"mkdir {aside}/{n}", f"mount --bind '{path}' {aside}/{n}", f"mount -o remount,bind,ro {aside}/{n}"]
    lines += [f"mount -t tmpfs -o mode=755 tmpfs '{folder}'" for folder in set(shut.values())]
    for n, path in enumerate(shut):
        lines += [f"mkdir -p '{path}'", f"mount --move {aside}/{n} '{path}'"]
    script = "\n".join([*lines, 'exec "$@"'])
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "hub"]


def _free_port() -> int:
    """A port whose neighbours of the hub (proxy API, hub) are free too."""
    for _ in range(100):
        port = 20_000 + secrets.randbelow(10_000)  # below those that the system gives to clients
        with suppress(OSError):
            for other in (port, port + 1, port + 81):
                with socket.socket() as s:
                    s.bind(("127.0.0.1", other))
            return port
    raise OSError("no three free ports")


def _wait(hub: Hub) -> None:
    end = time.monotonic() + SLOW
    while True:
        assert hub.process.poll() is None, hub.log.read_text()
        assert time.monotonic() < end, hub.log.read_text()
        with suppress(requests.RequestException):
            if hub.guest().get("hub/health").ok:
                return
        time.sleep(0.2)


def _stop(process: subprocess.Popen[bytes]) -> None:
    for one in psutil.process_iter():  # seats need no farewell
        with suppress(psutil.Error):
            if one.username().startswith(PREFIX):
                one.kill()
    children: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):  # its services are sessions of their own, and outlive it
        children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(30)
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
