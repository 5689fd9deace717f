"""The workshop's hub, as shipped, on loopback: who gets in, what a seat can see and may use.

A hub needs Linux, root (each seat is a unix user), a memory control group and the proxy that
`make hub` installs. Without them these tests skip; with KIT_REQUIRE_HUB=1 they fail instead.
"""

from __future__ import annotations

import json
import os
import pwd
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import websocket

from course.room import cgroups, slips
from course.room.behind_server import RESERVE, TASKS
from tests import hub_client
from tests.hub_client import PREFIX, ROOT, Guest, Hub

MEMORY = 600  # megabytes for a seat: a kernel with torch fits in, the greedy cell does not


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    if why := hub_client.missing():
        if os.environ.get("KIT_REQUIRE_HUB") == "1":
            pytest.fail(f"hub test: {why}")
        pytest.skip(why)
    with hub_client.running(KIT_HUB_MEMORY=f"{MEMORY}M") as started:
        yield started


@pytest.fixture(scope="module")
def ada(hub: Hub) -> Guest:
    guest = hub.seat("seat01")
    guest.sit_down()
    return guest


@pytest.fixture(scope="module")
def bob(hub: Hub) -> Guest:
    guest = hub.seat("seat02")
    guest.sit_down()
    return guest


# --- the door -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, password",
    [
        ("seat01", "wrong-pass-word"),
        ("seat01", ""),
        ("nobody", "nobody"),
        ("root", "root"),
        ("instructor", "instructor"),
        ("admin", "admin"),
        ("../seat01", "x"),
        ("", ""),
    ],
)
def test_strangers_stay_out(hub: Hub, name: str, password: str) -> None:
    guest = hub.guest()
    assert guest.login(name, password).status_code == 403
    assert guest.get("hub/home").url.startswith(hub.url + "hub/login")
    assert guest.get("user/seat01/lab").url.startswith(hub.url + "hub/login")


def test_there_is_no_sign_up_and_no_api_without_a_token(hub: Hub) -> None:
    guest = hub.guest()
    assert guest.get("hub/signup").status_code == 404
    assert guest.post("hub/signup", data={"username": "eve"}).status_code == 404
    for path in ("users", "users/seat01", "services", "proxy"):
        assert guest.get(f"hub/api/{path}").status_code == 403
    assert guest.post("hub/api/users/eve").status_code == 403


def test_a_login_without_the_pages_token_is_refused(hub: Hub) -> None:
    form = {"username": "seat01", "password": hub.passwords()["seat01"]}
    guest = hub.guest()
    assert guest.web.post(hub.url + "hub/login", data=form, timeout=30).status_code == 403


def test_secrets_are_roots_and_no_two_passwords_alike(hub: Hub) -> None:
    private = hub.home / "private"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    for name in ("seats.json", "slips.txt", "cookie_secret", "jupyterhub.sqlite"):
        found = (private / name).stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o600, 0), name
    passwords = hub.passwords()
    assert sorted(passwords) == ["instructor", "seat01", "seat02"]
    assert len(set(passwords.values())) == 3
    assert all(len(p) == 14 for p in passwords.values())
    kept = (private / "seats.json").read_text() + hub.log.read_text(errors="replace")
    assert not [p for p in passwords.values() if p in kept]


def test_only_loopback_listens(hub: Hub, ada: Guest) -> None:
    own = psutil.Process(hub.process.pid)
    addresses = [a for p in (own, *own.children(recursive=True)) for a in listening(p)]
    assert len(addresses) >= 4  # proxy, its API, hub, one seat
    assert set(addresses) <= {"127.0.0.1", "::1"}


def listening(process: psutil.Process) -> list[str]:
    """The addresses that a process listens on; none when it just ended."""
    with suppress(psutil.NoSuchProcess):
        ends = process.net_connections()
        return [end.laddr.ip for end in ends if end.status == psutil.CONN_LISTEN]
    return []


# --- a seat -------------------------------------------------------------------------------------


def test_a_seat_is_a_user_of_its_own_with_the_notebooks(hub: Hub, ada: Guest) -> None:
    entry = pwd.getpwnam(PREFIX + "seat01")
    home = Path(entry.pw_dir)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700 and entry.pw_uid != 0
    notebooks = sorted(p.name for p in (ROOT / "notebooks").glob("*.ipynb"))
    assert sorted(p.name for p in (home / "notebooks").glob("*.ipynb")) == notebooks
    assert (home / "notebooks" / notebooks[0]).stat().st_uid == entry.pw_uid
    page = ada.get("hub/spawn")  # the server runs, so this leads into it
    assert page.url == f"{hub.url}user/seat01/lab/tree/notebooks/00_start_here.ipynb"
    assert page.ok and '"appName": "JupyterLab"' in page.text


SHOW = """
import json, os, pathlib, kit
print(json.dumps([os.getuid(), kit.data.vector("happy-sad").layer, os.environ["HF_HUB_OFFLINE"],
    os.environ["OMP_NUM_THREADS"], os.umask(0o077),
    pathlib.Path("/proc/self/cgroup").read_text().split()]))
"""
PEEK = """
import os, pathlib
def attempt(name, do):
    try: print(name, "ALLOWED", do())
    except OSError as error: print(name, type(error).__name__)
other, private, cache = map(pathlib.Path, {places!r})
attempt("other's home", lambda: os.listdir(other))
attempt("other's file", lambda: (other / "notebooks" / "mine.txt").read_text())
attempt("slips", lambda: (private / "slips.txt").read_text())
attempt("database", lambda: (private / "jupyterhub.sqlite").read_bytes())
attempt("new in cache", lambda: (cache / "evil").write_text("x"))
attempt("change in cache", lambda: (cache / "weights").write_text("x"))
attempt("swap in cache", lambda: os.rename(cache / "weights", cache / "w"))
attempt("take from cache", lambda: os.unlink(cache / "weights"))
attempt("other's process", lambda: pathlib.Path("/proc/{pid}/environ").read_bytes())
attempt("kill", lambda: os.kill({pid}, 9))
attempt("leave the group", lambda: pathlib.Path({group!r}).write_text(str(os.getpid())))
attempt("become root", lambda: os.setuid(0))
"""


def test_a_kernel_works_as_its_user_and_sees_nobody_else(hub: Hub, ada: Guest, bob: Guest) -> None:
    mine, theirs = (pwd.getpwnam(PREFIX + name) for name in ("seat01", "seat02"))
    kernel = ada.kernel()
    uid, layer, offline, threads, umask, groups = json.loads(kernel.run(SHOW))
    assert (uid, layer, offline, threads, umask) == (mine.pw_uid, 18, "1", "1", 0o077)
    assert any(group.endswith(f"/{cgroups.PARENT}/{mine.pw_name}") for group in groups)
    (Path(theirs.pw_dir) / "notebooks" / "mine.txt").write_text("private")
    server = next(p.pid for p in psutil.process_iter(["uids"]) if p.info["uids"].real == theirs.pw_uid)
    group = cgroups.find().own["memory"] / "cgroup.procs"
    places = [theirs.pw_dir, str(hub.home / "private"), str(hub.home / "cache")]
    said = kernel.run(PEEK.format(places=places, pid=server, group=str(group)))
    lines = said.splitlines()
    assert len(lines) == 12 and all(line.endswith(" PermissionError") for line in lines), said
    assert (hub.home / "cache" / "weights").read_text() == "the same for all"
    runtime = Path(mine.pw_dir) / ".local" / "share" / "jupyter" / "runtime"
    (file,) = runtime.glob(f"kernel-{kernel.id}.json")
    connection = json.loads(file.read_text())  # sockets in a private folder, not TCP ports
    assert connection["transport"] == "ipc" and connection["ip"].startswith(mine.pw_dir)


def test_nobody_opens_anothers_server(hub: Hub, ada: Guest, bob: Guest) -> None:
    assert bob.ask("GET", "user/seat02/api/contents").status_code == 200
    instructor = hub.seat("instructor")
    for guest in (bob, instructor):
        for path in ("api/contents", "api/kernels", "api/contents/notebooks"):
            assert guest.ask("GET", f"user/seat01/{path}").status_code == 403
        assert guest.ask("POST", "user/seat01/api/kernels").status_code == 403
        answer = guest.get("user/seat01/lab")  # with a browser's cookies
        assert answer.status_code == 403, answer.url
    assert bob.ask("DELETE", "hub/api/users/seat01/server").status_code in (403, 404)
    assert bob.get("hub/admin").status_code == 403
    assert instructor.get("hub/admin").status_code == 200
    assert instructor.ask("POST", "hub/api/users/eve").status_code in (403, 404)
    patch = instructor.ask("PATCH", "hub/api/users/instructor", json={"admin": True})
    assert patch.status_code in (403, 404)


GREEDY = """
held = [bytearray(b"x") * (200 << 20) for _ in range(10)]
print("got it all")
"""


def test_a_greedy_cell_ends_alone(hub: Hub, ada: Guest, bob: Guest) -> None:
    quiet, second, greedy = ada.kernel(), bob.kernel(), bob.kernel()
    assert quiet.run("x = 41") == "" and second.run("held = bytearray(b'x') * (200 << 20)") == ""
    assert greedy.run(GREEDY) == "died"  # the limit is the seat's, not each kernel's
    assert quiet.run("print(x + 1)") == "42\n"
    assert bob.ask("GET", "user/seat02/api/kernels").status_code == 200
    places = cgroups.find()
    folder = places.own["memory"] / cgroups.PARENT / (PREFIX + "seat02")
    most = {1: "memory.max_usage_in_bytes", 2: "memory.peak"}[places.version]
    assert MEMORY << 19 < int((folder / most).read_text()) <= MEMORY << 20


FORKS = """
import os, time
for n in range(2000):
    if os.fork() == 0:
        time.sleep(600)
        os._exit(0)
"""


def test_forks_without_end_end_a_kernel_and_not_its_server(hub: Hub, bob: Guest) -> None:
    """Each of them is smaller than the server, which the system would end for its size."""
    kernel, other = bob.kernel(), bob.kernel()
    (server,) = [p.pid for p in processes("seat02") if "jupyterhub.singleuser" in p.cmdline()]
    said = kernel.run(FORKS)
    assert said == "died" or "Resource temporarily unavailable" in said
    assert bob.kernel().run("print(6 * 7)") == "42\n" and other.socket.connected
    assert server in [p.pid for p in processes("seat02")]


def test_a_terminal_stands_behind_the_server_too(bob: Guest) -> None:
    assert bob.ask("POST", "user/seat02/api/terminals").status_code == 200
    (shell,) = soon(lambda: [p for p in processes("seat02") if p.name() == "bash"])
    proc = Path(f"/proc/{shell.pid}")
    assert (proc / "oom_score_adj").read_text() == "1000\n"
    (most,) = [line for line in (proc / "limits").read_text().splitlines() if line.startswith("Max processes")]
    assert most.split()[2:4] == [str(TASKS - RESERVE)] * 2


def processes(seat: str) -> list[psutil.Process]:
    """What runs as a seat's account."""
    uid, found = pwd.getpwnam(PREFIX + seat).pw_uid, []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess):
            if process.uids().real == uid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def soon(look: Callable[[], Any]) -> Any:
    """What comes of looking, as soon as it is something: within a minute."""
    end = time.monotonic() + 60
    while not (found := look()):
        assert time.monotonic() < end
        time.sleep(0.2)
    return found


# --- who leaves ---------------------------------------------------------------------------------


def test_the_culler_has_what_it_needs_and_no_more(hub: Hub, ada: Guest) -> None:
    own = [p for p in psutil.Process(hub.process.pid).children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
    (culler,) = [p for p in own if "jupyterhub_idle_culler" in p.cmdline()]
    assert culler.username() == "nobody" and "--timeout=3600" in culler.cmdline()
    token = culler.environ()["JUPYTERHUB_API_TOKEN"]
    headers = {"Authorization": f"token {token}"}
    guest = hub.guest()
    service = guest.get("hub/api/user", headers=headers).json()
    assert (service["kind"], service["name"], service["admin"]) == ("service", "idle-culler", False)
    narrow = {"list:users", "read:users:activity", "read:servers", "delete:servers"}
    implied = {"read:users:name", "read:services:name"}
    assert narrow <= {s.split("!")[0] for s in service["scopes"]} <= narrow | implied
    assert guest.get("user/seat01/api/contents", headers=headers).status_code == 403
    # The same program with the same token and a short patience ends an idle server.
    eager = subprocess.Popen(
        [sys.executable, "-m", "jupyterhub_idle_culler", "--timeout=1", "--cull-every=1", f"--url={hub.url}hub/api"],
        env=os.environ | {"JUPYTERHUB_API_TOKEN": token},
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + hub_client.SLOW
        while ada.server():
            assert time.monotonic() < end, "the idle server was not ended"
            time.sleep(0.3)
    finally:
        eager.kill()
        eager.wait()
    group = cgroups.find().own["memory"] / cgroups.PARENT / (PREFIX + "seat01")
    assert not group.exists()  # its kernels went with it


def test_work_outlives_the_server_and_is_never_overwritten(hub: Hub, ada: Guest) -> None:
    home = Path(pwd.getpwnam(PREFIX + "seat01").pw_dir)
    (home / "notebooks" / "00_start_here.ipynb").write_text("my work")
    (home / "notebooks" / "01_hooks.ipynb").unlink()
    assert ada.server() == {}  # ended above
    ada.sit_down()
    assert (home / "notebooks" / "00_start_here.ipynb").read_text() == "my work"
    assert (home / "notebooks" / "01_hooks.ipynb").is_file()


def test_seats_change_while_the_hub_runs(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIT_HUB_HOME", str(hub.home))
    assert slips.main(["add", "zoe"]) == 0
    password = hub.passwords()["zoe"]
    assert hub.guest().login("zoe", password).status_code == 200
    assert slips.main(["close"]) == 0
    assert hub.guest().login("zoe", password).status_code == 403
    assert hub.guest().login("instructor", hub.passwords()["instructor"]).status_code == 200
    assert slips.main(["open"]) == 0 and slips.main(["renew", "zoe"]) == 0
    assert hub.guest().login("zoe", password).status_code == 403
    assert hub.guest().login("zoe", hub.passwords()["zoe"]).status_code == 200
    assert slips.main(["remove", "zoe"]) == 0
    assert hub.guest().login("zoe", password).status_code == 403


DETACHED = """
import subprocess
print(subprocess.Popen(["sleep", "1000"], start_new_session=True).pid)
"""


def ways_in(guest: Guest, others: list[str], kernel: hub_client.Kernel) -> list[str]:
    """Which of the things that a slip opened still open something."""
    name, open_ways = guest.name, []
    for token in (guest.token, *others):
        with_token = Guest(guest.url, name, token)
        for method, path in (
            ("GET", f"user/{name}/api/contents"),
            ("POST", f"user/{name}/api/kernels"),
            ("GET", f"hub/api/users/{name}"),
            ("POST", f"hub/api/users/{name}/tokens"),
            ("POST", f"hub/api/users/{name}/server"),
        ):
            if with_token.ask(method, path).status_code < 300:
                open_ways.append(f"{method} {path} with a token")
    for path in ("hub/home", "hub/spawn", "hub/token", f"user/{name}/lab", f"user/{name}/api/contents"):
        answer = guest.get(path)
        if answer.ok and "/hub/login" not in answer.url:
            open_ways.append(f"{path} with cookies")
    with suppress(OSError, websocket.WebSocketException):
        kernel.socket.settimeout(1)
        if kernel.run("print(1)") == "1\n":
            open_ways.append("a kernel that was open")
    return open_ways


@pytest.mark.parametrize("do", ["renew", "remove", "close"])  # the last one is for everyone
def test_what_a_slip_opened_ends_with_it(hub: Hub, do: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIT_HUB_HOME", str(hub.home))
    name = f"eve-{do}"
    assert slips.main(["add", name]) == 0
    eve, old = hub.seat(name), hub.passwords()[name]
    eve.sit_down()
    narrow = {"scopes": [f"access:servers!user={name}"]}
    tokens = [eve.ask("POST", f"hub/api/users/{name}/tokens", json=body).json()["token"] for body in ({}, narrow)]
    assert eve.get(f"user/{name}/lab").url == f"{hub.url}user/{name}/lab"  # with a cookie of the server's own
    kernel = eve.kernel()
    assert psutil.pid_exists(int(kernel.run(DETACHED)))
    (server,) = [p for p in processes(name) if "jupyterhub.singleuser" in p.cmdline()]
    tokens.append(server.environ()["JUPYTERHUB_API_TOKEN"])
    assert len(ways_in(eve, tokens, kernel)) >= 10
    instructor = hub.seat("instructor")

    assert slips.main([do] if do == "close" else [do, name]) == 0
    assert soon(lambda: not processes(name)) and ways_in(eve, tokens, kernel) == []
    assert eve.login(name, old).status_code == 403
    assert instructor.ask("GET", "hub/api/users").status_code == 200 and instructor.get("hub/admin").ok
    if do == "remove":
        assert instructor.ask("POST", f"hub/api/users/{name}/server").status_code == 403
        assert slips.main(["add", name]) == 0
    elif do == "close":
        assert slips.main(["open"]) == 0
    new = hub.seat(name)
    assert new.server() == {} and ways_in(eve, tokens, kernel) == []
    if do == "renew":  # the earlier slip opens nothing of the next one's server either
        new.sit_down()
        assert new.ask("GET", f"user/{name}/api/kernels").json() == []
        assert ways_in(eve, tokens, kernel) == []
        new.ask("DELETE", f"hub/api/users/{name}/server")


def test_no_process_outlives_a_server_that_died(hub: Hub) -> None:
    bob = hub.seat("seat02")
    bob.sit_down()
    assert bob.kernel().run(DETACHED)
    (server,) = [p for p in processes("seat02") if "jupyterhub.singleuser" in p.cmdline()]
    server.kill()
    assert soon(lambda: not processes("seat02"))


def test_nothing_asked_for_another_machine(hub: Hub) -> None:
    assert (hub.home / "refused").read_text() == ""
