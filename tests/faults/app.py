"""A visitor of the Voila app who wants more than the app: to run code, to read files and sources.

Voila is started with the options of ``kit app`` on a notebook of one slider, which must still work.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kit import cli
from tests.faults import Row

SECRET = "the-source-of-a-cell"
CELL = f"""
import ipywidgets as w
name = {SECRET!r}
slider, told = w.IntSlider(0, 0, 100), w.Label("none")
slider.observe(lambda change: setattr(told, "value", f"moved to {{change.new}}"), "value")
w.VBox([slider, told])
"""
WAIT = 120.0
PATHS = (
    "voila/files/app.ipynb",
    "voila/files/private.png",
    "voila/files/",
    "api/contents",
    "api/contents/app.ipynb",
    "api/kernelspecs",
    "api/sessions",
    "api/terminals",
    "tree",
    "lab",
    "voila/tree",
    "voila/render/private.ipynb",
    "files/app.ipynb",
    "nbconvert/html/app.ipynb",
    "voila/static/../../../../app.ipynb",
    "voila/static/..%2f..%2f..%2fetc%2fpasswd",
    "voila/files/..%2f..%2fetc%2fpasswd",
    "static/..%2f..%2fetc/passwd",
    "voila/templates/../../etc/passwd",
    "voila/templates/lab/static/..%2f..%2f..%2fetc/passwd",
    "voila/labextensions/..%2f..%2f..%2fetc/passwd",
    "voila/files//etc/passwd",
    "voila/static//etc/passwd",
    "app.ipynb",
    "private.txt",
)


@contextmanager
def voila(folder: Path) -> Iterator[str]:
    """Voila on a free loopback port, as ``kit app`` starts it; its address."""
    from nbformat import v4, writes

    (folder / "app.ipynb").write_text(writes(v4.new_notebook(cells=[v4.new_code_cell(CELL)])))
    for name in ("private.png", "private.txt", "private.ipynb"):
        (folder / name).write_text("PRIVATE")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "voila", "app.ipynb", *cli.app_options(), "--no-browser", f"--port={port}"]
    with (folder / "voila.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            _wait(port, process, folder / "voila.log")
            yield f"http://127.0.0.1:{port}/"
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + WAIT
    while True:
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"voila does not answer: {log.read_text()[-1000:]}")
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)


def run(folder: Path) -> Row:
    """Everything that we know a visitor may try; needs Voila and websocket-client."""
    row = Row("visitor of the Voila app")
    marker = folder / "code-ran"
    with voila(folder) as url:
        status, page, cookies = _get(url)
        row.inputs += 1
        if status != 200 or SECRET in page:
            row.losses.append(f"the page (status {status}) shows its sources")
        found = re.search(r'"kernelId": ?"([0-9a-f-]{36})"', page)
        if found is None:
            row.losses.append("no kernel in the page: nothing could be tried")
            return row
        kernel = found[1]
        for path in PATHS:
            row.inputs += 1
            status, text, _ = _get(url + path)
            if SECRET in text or "PRIVATE" in text or "root:" in text or '"kernelspecs"' in text:
                row.losses.append(f"{path}: status {status}, {text[:80]!r}")
        for path, body in (
            ("api/kernels", {}),
            ("api/sessions", {"path": "x", "type": "console"}),
            ("api/terminals", {}),
            ("api/contents", {"type": "notebook"}),
        ):
            row.inputs += 1
            status, text, _ = _get(url + path, json.dumps(body).encode(), cookies)
            if status < 400:
                row.losses.append(f"POST {path}: status {status}")
        row.inputs += 1
        if _opens(url, kernel, cookies, "http://evil.example"):
            row.losses.append("a page of another site can talk to the kernel")
        _talk(row, url, kernel, cookies, marker)
        with socket.socket() as s:
            s.settimeout(1)
            row.inputs += 1
            outside = next((a for a in _addresses() if not a.startswith("127.")), None)
            with suppress(socket.gaierror):  # pytest lets nothing leave loopback; the command does
                if outside and s.connect_ex((outside, int(url.rsplit(":", 1)[1].strip("/")))) == 0:
                    row.losses.append(f"it listens on {outside}")
    return row


def _addresses() -> list[str]:
    import psutil

    every = [a for some in psutil.net_if_addrs().values() for a in some]
    return [a.address for a in every if a.family == socket.AF_INET]


def _get(url: str, body: bytes | None = None, cookies: str = "") -> tuple[int, str, str]:
    """Status, text and cookies; the path goes out as it is written here."""
    request = urllib.request.Request(url, data=body, headers={"Cookie": cookies})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=WAIT) as answer:
            told = answer.headers.get_all("Set-Cookie") or []
            return answer.status, answer.read().decode(errors="replace"), "; ".join(line.split(";")[0] for line in told)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace"), ""


def _socket(url: str, kernel: str, cookies: str, origin: str) -> Any:
    import websocket

    address = url.replace("http", "ws", 1) + f"api/kernels/{kernel}/channels?session_id=visitor"
    return websocket.create_connection(address, timeout=WAIT, origin=origin, cookie=cookies)


def _opens(url: str, kernel: str, cookies: str, origin: str) -> bool:
    try:
        _socket(url, kernel, cookies, origin).close()
    except Exception:
        return False
    return True


def _message(kind: str, content: dict[str, Any], channel: str = "shell") -> str:
    header = {
        "msg_id": uuid.uuid4().hex,
        "username": "visitor",
        "session": "visitor",
        "msg_type": kind,
        "version": "5.3",
        "date": "2026-01-01T00:00:00Z",
    }
    return json.dumps(
        {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": channel, "buffers": []}
    )


def _talk(row: Row, url: str, kernel: str, cookies: str, marker: Path) -> None:
    wire = _socket(url, kernel, cookies, url.rstrip("/"))
    code = {
        "code": f"open({str(marker)!r}, 'w')",
        "silent": False,
        "store_history": False,
        "user_expressions": {"x": f"open({str(marker)!r}, 'w')"},
        "allow_stdin": True,
    }
    bad = [
        ("execute_request", code),
        ("complete_request", {"code": "os.", "cursor_pos": 3}),
        ("inspect_request", {"code": "slider", "cursor_pos": 3, "detail_level": 1}),
        ("history_request", {"hist_access_type": "tail", "n": 99, "raw": True, "output": False}),
        (
            "debug_request",
            {"type": "request", "command": "evaluate", "seq": 1, "arguments": {"expression": code["code"]}},
        ),
        ("is_complete_request", {"code": "1"}),
        ("input_reply", {"value": "1"}),
        ("interrupt_request", {}),
    ]
    for channel in ("shell", "control", "stdin", "iopub"):
        for kind, content in bad:
            row.inputs += 1
            wire.send(_message(kind, content, channel))
    wire.send(_message("comm_info_request", {"target_name": "jupyter.widget"}))
    seen = _until(wire, "comm_info_reply")
    comms = seen[-1]["content"]["comms"] if seen else {}
    answers = {m["msg_type"] for m in seen} - {"status", "comm_info_reply"}
    if answers:
        row.losses.append(f"the kernel answered with {sorted(answers)}")
    moved = False
    for comm in comms:  # the slider is one of them: what a page sends when it is dragged
        told = {"method": "update", "state": {"value": 7}, "buffer_paths": []}
        wire.send(_message("comm_msg", {"comm_id": comm, "data": told}))
        more = _until(wire, "status", idle=True)
        moved = moved or any("moved to 7" in json.dumps(m["content"]) for m in more)
    row.inputs += 1
    if not moved:
        row.losses.append(f"the widget does not work any more ({len(comms)} comms)")
    if marker.exists():
        row.losses.append("a visitor ran code")
    wire.close()


def _until(wire: Any, kind: str, idle: bool = False) -> list[dict[str, Any]]:
    """Messages up to one of a kind (of ``status``: that it is idle)."""
    found: list[dict[str, Any]] = []
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        try:
            text = wire.recv()
        except Exception:
            break
        message = json.loads(text)
        message.setdefault("msg_type", message["header"]["msg_type"])
        found.append(message)
        if message["msg_type"] == kind and (not idle or message["content"]["execution_state"] == "idle"):
            break
    return found
