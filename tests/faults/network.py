"""Dead proxies, captive portals, refused connections, answers that end in the middle.

Everything of the kit that reaches for the network is pointed at a server on loopback that behaves
so. What must come is an error that says what to do, soon, and nothing half-written.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import urllib.request
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

import kit
from kit import sae as saes
from kit.data.corpora import corpus
from kit.models import weights
from tests.faults import Row

PATIENCE = 0.5  # seconds a try may wait here; 20 outside of tests
HANGS = 100  # seconds after which a call counts as hung
PORTAL = b"<!doctype html><title>Welcome</title><form action=/login><input name=room></form>"


class _Portal(BaseHTTPRequestHandler):
    """Answers every request with a page to sign in on."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(PORTAL)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(PORTAL)

    do_HEAD = do_POST = do_GET

    def log_message(self, *_: Any) -> None:
        pass


class _Redirecting(_Portal):
    """As most portals do: elsewhere first."""

    def do_GET(self) -> None:
        if self.path.startswith("/login"):
            super().do_GET()
            return
        self.send_response(302)
        self.send_header("Location", "/login")
        self.end_headers()

    do_HEAD = do_POST = do_GET


class _Cut(_Portal):
    """Promises a file, and ends in the middle of it."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", "5000")
        self.send_header("ETag", f'"{"a" * 40}"')
        self.send_header("X-Repo-Commit", "b" * 40)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(b'{"model_type": "llama"')
        self.close_connection = True

    do_HEAD = do_POST = do_GET


class _Broken(_Portal):
    """A proxy whose own network is gone."""

    def do_GET(self) -> None:
        self.send_error(502)

    do_HEAD = do_POST = do_GET


@contextmanager
def answering(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """A server on loopback; its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def silent() -> Iterator[str]:
    """A server that takes connections and never says a word."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def refusing() -> Iterator[str]:
    """An address where nobody listens."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
    yield address


FAULTS: dict[str, Callable[[], Any]] = {
    "never answers": silent,
    "refuses": refusing,
    "portal": lambda: answering(_Portal),
    "portal that redirects": lambda: answering(_Redirecting),
    "cut in the middle": lambda: answering(_Cut),
    "bad gateway": lambda: answering(_Broken),
    "dead proxy": silent,
}


def _model(url: str, home: Path, stack: ExitStack) -> None:
    kit.load_model("nobody/no-model")


def _release(url: str, home: Path, stack: ExitStack) -> None:
    saes.load("gpt2-small-res-jb", "blocks.8.hook_resid_pre")


def _fetch(url: str, home: Path, stack: ExitStack) -> None:
    told = {
        "KIT_CACHE": str(home / "kit"),
        "PIP_INDEX_URL": f"{url}/simple",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    stack.enter_context(mock.patch.dict(os.environ, told))
    stack.enter_context(mock.patch.object(weights, "find_spec", lambda name: None))
    weights.fetch(say=lambda text: None)


def _corpus(url: str, home: Path, stack: ExitStack) -> None:
    import nltk
    from nltk import downloader

    (home / "nltk").mkdir(exist_ok=True)
    stack.enter_context(mock.patch.object(nltk.data, "path", [str(home / "nltk")]))
    other = downloader.Downloader(f"{url}/index.xml", str(home / "nltk"))
    stack.enter_context(mock.patch.object(nltk, "download", other.download))
    # its own refuses loopback; the timeout that it is given is what counts here
    plain = lambda page, timeout: urllib.request.urlopen(page, timeout=timeout)
    stack.enter_context(mock.patch.object(downloader, "urlopen", plain))
    corpus("nltk")


CALLS: dict[str, Callable[[str, Path, ExitStack], None]] = {
    "a model of the hub": _model,
    "a dictionary of the hub": _release,
    "kit fetch": _fetch,
    "a corpus of NLTK": _corpus,
}


def run(folder: Path, faults: Collection[str] = tuple(FAULTS)) -> list[Row]:
    """Every call under every fault.

    Args:
        faults: which of them.
    """
    rows = []
    for call in CALLS:
        row = Row(f"network: {call}", faults=len(faults))
        for fault in faults:
            home = folder / call.replace(" ", "-") / fault.replace(" ", "-")
            home.mkdir(parents=True)
            row.losses += [f"{fault}: {what}" for what in _one(call, fault, home)]
        rows.append(row)
    return rows


def _one(call: str, fault: str, home: Path) -> list[str]:
    from huggingface_hub import constants

    def hung(*_: Any) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(HANGS)
    try:
        with ExitStack() as stack:
            url = stack.enter_context(FAULTS[fault]())
            told = {"KIT_NET_TIMEOUT": str(PATIENCE), "no_proxy": "", "NO_PROXY": ""}
            if fault == "dead proxy":
                told |= dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY"), url)
                url = "http://hub.invalid"
            stack.enter_context(mock.patch.dict(os.environ, told))
            for name, value in (
                ("ENDPOINT", url),
                ("HF_HUB_OFFLINE", False),
                ("HF_HUB_CACHE", str(home / "hub")),
                ("HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"),
            ):
                stack.enter_context(mock.patch.object(constants, name, value))
            CALLS[call](url, home, stack)
    except OSError as error:
        said = str(error)
        if "it hangs" in said:
            return ["it hangs"]
        lost = [] if "network" in said and "sign in" in said else [f"it only says {said!r:.300}"]
    except Exception as error:
        return [f"{type(error).__name__}: {error!s:.300}"]
    else:
        return ["nothing was there, and it went well"]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    ends = (".json", ".safetensors", ".zip", ".gguf", ".whl", ".npz")
    return lost + [f"it left {p.relative_to(home)}" for p in home.rglob("*") if p.is_file() and p.suffix in ends]
