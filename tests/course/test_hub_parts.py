"""What the workshop's hub is made of, tested without one."""

from __future__ import annotations

import asyncio
import os
import pwd
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from course import __main__ as course_main
from course.room import cgroups, hub, seat_server, settings, slips
from kit import cli


@pytest.mark.parametrize(
    "name, value, says",
    [
        ("KIT_HUB_IP", "0.0.0.0", "reached from other machines"),
        ("KIT_HUB_IP", "::", "reached from other machines"),
        ("KIT_HUB_IP", "hub.local", "give an IP address"),
        ("KIT_HUB_CERT", "/no/such.pem", "both files or neither"),
        ("KIT_HUB_MEMORY", "2 gigabytes", "1500M or 2G"),
        ("KIT_HUB_MEMORY", "0G", "1500M or 2G"),
        ("KIT_HUB_CPUS", "-1", "number of cores"),
        ("KIT_HUB_CPUS", "0.01", "number of cores"),
        ("KIT_HUB_SEATS", "many", "whole number from 0 to 500"),
        ("KIT_HUB_PORT", "99999", "whole number from 1 to 65000"),
        ("KIT_HUB_IDLE", "5", "whole number from 60"),
        ("KIT_HUB_HOME", "relative", "absolute path"),
        ("KIT_HUB_PREFIX", "root;", "letters and a dash"),
    ],
)
def test_settings_that_make_no_sense_are_refused(name: str, value: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        settings.read({name: value})
    assert name in str(error.value)
    assert settings.read({name: ""}) == settings.read({})


def test_settings_as_shipped() -> None:
    host = settings.read({})
    assert host.url == "http://127.0.0.1:8000" and host.seats == 30
    assert (host.memory, host.cpus, host.idle) == (2 * 2**30, 2.0, 3600)
    assert host.private == Path("/var/lib/steering-hub/private")
    assert settings.read({"KIT_HUB_MEMORY": "1500M"}).memory == 1500 * 2**20
    none = settings.read({"KIT_HUB_MEMORY": "0", "KIT_HUB_CPUS": "0"})
    assert (none.memory, none.cpus) == (0, 0.0)


def test_tls_opens_the_hub_to_the_room(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    environ = {"KIT_HUB_IP": "0.0.0.0", "KIT_HUB_CERT": str(cert), "KIT_HUB_KEY": str(key)}
    with pytest.raises(ValueError, match="there is no such file"):
        settings.read(environ)
    cert.touch()
    key.touch()
    assert settings.read(environ).url == "https://0.0.0.0:8000"


def test_a_closed_folder_on_the_way_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    said = settings.closed_to_others([Path("/usr/bin"), tmp_path / "link"])
    assert said.endswith(f"so no seat can use {tmp_path / 'link'}")
    assert settings.closed_to_others([Path("/usr/bin")]) == ""


def test_folders_are_made_private_and_must_stay_so(tmp_path: Path) -> None:
    host = settings.read({"KIT_HUB_HOME": str(tmp_path / "hub")})
    before = os.umask(0o077)
    try:
        settings.make_folders(host)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(p.stat().st_mode) for p in (host.home, host.private, host.cache)]
    assert modes == [0o755, 0o700, 0o755]
    host.private.chmod(0o750)
    with pytest.raises(PermissionError, match="mode 0700"):
        settings.make_folders(host)


def test_laying_out_overwrites_nothing(tmp_path: Path) -> None:
    source, home = tmp_path / "source", tmp_path / "home"
    (source / "part").mkdir(parents=True)
    (source / ".ipynb_checkpoints").mkdir()
    for name in ("a.ipynb", "b.ipynb", "part/c.txt", ".ipynb_checkpoints/a.ipynb"):
        (source / name).write_text(f"fresh {name}")
    home.mkdir()
    (home / "a.ipynb").write_text("mine")
    (home / "b.ipynb").symlink_to(tmp_path / "elsewhere")  # dangling: still the user's
    assert seat_server.lay_out(source, home) == [home / "part" / "c.txt"]
    assert (home / "a.ipynb").read_text() == "mine" and not (tmp_path / "elsewhere").exists()
    assert sorted(p.name for p in home.iterdir()) == ["a.ipynb", "b.ipynb", "part"]
    assert seat_server.lay_out(source, home) == []


def test_seats_keep_their_passwords(tmp_path: Path) -> None:
    slips.prepare(tmp_path, 2)
    first = (tmp_path / "slips.txt").read_text().splitlines()
    slips.prepare(tmp_path, 3)
    lines = (tmp_path / "slips.txt").read_text().splitlines()
    known = dict(line.split() for line in lines)
    assert set(known) == {"instructor", "seat01", "seat02", "seat03"} and set(first) < set(lines)
    seats = slips.load(tmp_path)
    assert all(seats.right(name, password) for name, password in known.items())
    assert not seats.right("seat01", known["seat02"]) and not seats.right("eve", "")
    (tmp_path / "slips.txt").unlink()  # printed and shredded
    slips.prepare(tmp_path, 3)
    assert not (tmp_path / "slips.txt").exists()


@pytest.mark.parametrize("name", ["seat01", "nobody", "", "seat01\x00", "a" * 300])
def test_a_wrong_password_costs_the_same_whether_there_is_such_a_seat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Else names could be told by how long the answer takes."""
    slips.prepare(tmp_path, 1)
    work: list[Any] = []
    scrypt, compare = slips.hashlib.scrypt, slips.hmac.compare_digest
    monkeypatch.setattr(slips.hashlib, "scrypt", lambda text, **cost: work.append(cost) or scrypt(text, **cost))
    monkeypatch.setattr(slips.hmac, "compare_digest", lambda *two: work.append([*map(len, two)]) or compare(*two))
    assert not slips.load(tmp_path).right(name, "guess")
    (cost, lengths) = work
    assert (len(cost.pop("salt")), cost, lengths) == (16, {"n": 2**14, "r": 8, "p": 1}, [128, 128])


def test_a_slips_mark_changes_with_the_password_and_with_the_door() -> None:
    seats = slips.Seats()
    first = seats.renew("ada"), seats.renew("bo"), seats.mark("ada")
    assert first[2] == seats.mark("ada") != seats.mark("bo") and len(first[2]) == 64
    seats.renew("ada")
    assert seats.mark("ada") not in ("", first[2])
    seats.open = False
    assert seats.mark("ada") == seats.mark("nobody") == ""
    seats.renew(slips.INSTRUCTOR)
    assert seats.mark(slips.INSTRUCTOR)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"open": true, "seats": []}', '{"open": 1'])
def test_a_damaged_seat_file_lets_nobody_in(tmp_path: Path, text: str) -> None:
    (tmp_path / "seats.json").write_text(text)
    with pytest.raises(ValueError, match="is damaged"):
        slips.load(tmp_path)


@pytest.mark.parametrize("name", ["", "Root", "a b", "../x", "-x", "x" * 24, "x;reboot", "x\n"])
def test_names_that_are_no_accounts_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="give a letter"):
        slips.Seats().renew(name)


def test_control_groups_of_version_2_by_their_file_names(tmp_path: Path) -> None:
    """The files of the unified layout; that a kernel heeds them is not shown by this test."""
    proc, own = tmp_path / "proc", tmp_path / "sys/fs/cgroup/box"
    proc.mkdir()
    own.mkdir(parents=True)
    (proc / "cgroup").write_text("0::/box\n")
    (proc / "mountinfo").write_text("30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    (own / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    places = cgroups.find(proc, tmp_path)
    assert places.version == 2 and set(places.own.values()) == {own}
    group = cgroups.Group("kit-a", memory=10**9, cpus=1.5, tasks=99, places=places)
    folder = own / cgroups.PARENT / "kit-a"
    for above in (own, own / cgroups.PARENT):
        assert (above / "cgroup.subtree_control").read_text() == "+memory +cpu +pids"
    assert (folder / "memory.max").read_text() == "1000000000"
    assert (folder / "cpu.max").read_text() == "150000 100000"
    assert (folder / "pids.max").read_text() == "99"
    group.enter()
    assert (folder / "cgroup.procs").read_text() == str(os.getpid())
    (own / "cgroup.controllers").write_text("cpu pids\n")
    with pytest.raises(OSError, match="KIT_HUB_MEMORY=0"):
        cgroups.find(proc, tmp_path)


def test_one_command_starts_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands: list[list[str]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.os, "execv", lambda path, command: commands.append(command))
    cli.main(["hub", "--debug"])
    assert commands == [[sys.executable, "-m", "course", "hub", "--debug"]]
    started: list[list[str]] = []
    monkeypatch.setattr(course_main, "need", lambda module: None)
    monkeypatch.setattr(hub, "main", lambda arguments: started.append(arguments) or 0)
    assert course_main.main(commands[0][3:]) == 0
    assert started == [["--debug"]]
    assert Path.cwd() == settings.ROOT


def test_a_hub_that_cannot_start_says_why_in_a_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "course.room.hub"],
        env=os.environ | {"KIT_HUB_IP": "0.0.0.0"},
        cwd=settings.ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("kit hub: KIT_HUB_IP=0.0.0.0 can be reached")


# --- accounts and systemd -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "comment, uid, owner, mode, says",
    [
        ("root", 0, 0, 0o700, "did not make"),
        ("Kit Carson", 1000, 1000, 0o700, "did not make"),
        ("steering-kit seat", 0, 0, 0o700, "did not make"),
        ("steering-kit seat", 1000, 1000, 0o755, "not private"),
        ("steering-kit seat", 1000, 1001, 0o700, "not private"),
    ],
)
def test_a_seat_never_becomes_another_account(
    monkeypatch: pytest.MonkeyPatch, comment: str, uid: int, owner: int, mode: int, says: str
) -> None:
    seats = pytest.importorskip("course.room.seats", reason="needs the extra hub")
    entry = pwd.struct_passwd(("kit-x", "!", uid, uid, f"{comment},,,", "/home/kit-x", "/bin/sh"))
    monkeypatch.setattr(seats.pwd, "getpwnam", lambda login: entry)
    found = SimpleNamespace(st_uid=owner, st_mode=stat.S_IFDIR | mode)
    monkeypatch.setattr(seats.os, "stat", lambda path, **_: found)
    with pytest.raises(ValueError, match=says):
        asyncio.run(seats.account("x", "kit-"))


def test_under_systemd_a_seat_is_a_unit_with_its_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is asked of systemd; that systemd does it is not shown by this test."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("the hub's configuration loads as root, on Linux")
    seats = pytest.importorskip("course.room.seats", reason="needs the extra hub")
    from systemdspawner import systemd
    from traitlets.config import PyFileConfigLoader

    prefix = tmp_path / "venv"
    script = prefix / "hub-proxy/node_modules/configurable-http-proxy/bin/configurable-http-proxy"
    for file in (script, prefix / "bin" / "node"):
        file.parent.mkdir(parents=True)
        file.touch(0o755)
    is_dir = Path.is_dir
    monkeypatch.setattr(Path, "is_dir", lambda p: str(p) == "/run/systemd/system" or is_dir(p))
    monkeypatch.setattr(settings, "closed_to_others", lambda paths: "")
    monkeypatch.setattr(sys, "prefix", str(prefix))
    for name, value in {"HOME": tmp_path / "hub", "MEMORY": "1500M", "CPUS": "1.5"}.items():
        monkeypatch.setenv(f"KIT_HUB_{name}", str(value))
    monkeypatch.setenv("KIT_CACHE", str(tmp_path / "hub" / "cache"))
    monkeypatch.setenv("KIT_TABLE", "/srv/table")
    monkeypatch.setenv("KIT_DTYPE", "float32")
    config = PyFileConfigLoader("jupyterhub_config.py", settings.ROOT / "course" / "room").load_config()
    assert config.JupyterHub.spawner_class is seats.SystemdSeat
    assert config.Spawner.environment["KIT_TABLE"] == "/srv/table"
    assert config.Spawner.environment["KIT_DTYPE"] == "float32"

    asked: dict[str, Any] = {}

    async def account(name: str, prefix: str) -> None:
        asked["account"] = prefix + name

    async def start(unit: str, **options: Any) -> None:
        asked.update(options, unit=unit)

    async def running(unit: str) -> bool:
        return "unit" in asked

    async def failed(unit: str) -> bool:
        return False

    me = pwd.getpwuid(os.getuid())
    monkeypatch.setattr(seats, "account", account)
    monkeypatch.setattr(systemd, "start_transient_service", start)
    monkeypatch.setattr(systemd, "service_running", running)
    monkeypatch.setattr(systemd, "service_failed", failed)
    monkeypatch.setattr(seats.SystemdSeat, "get_env", lambda self: {})
    monkeypatch.setattr(seats.SystemdSeat, "get_args", lambda self: [])
    monkeypatch.setattr(pwd, "getpwnam", lambda login: asked.setdefault("login", login) and me)
    seat = seats.SystemdSeat(user=SimpleNamespace(name="ada", id=7), config=config)
    address, _ = asyncio.run(seat.start())
    assert address == "127.0.0.1"
    assert {asked[key] for key in ("account", "login", "unit")} == {"kit-ada"}
    limits = {
        "MemoryMax": 1500 * 2**20,
        "CPUQuota": "150%",
        "CPUWeight": "100",
        "TasksMax": "512",
        "MemorySwapMax": "0",
        "OOMPolicy": "continue",  # a kernel that is ended for its memory takes no server along
    }
    apart = {"PrivateTmp": "yes", "PrivateDevices": "yes", "NoNewPrivileges": "yes", "UMask": "0077"}
    assert {key: asked["properties"][key] for key in limits | apart} == limits | apart
    assert str(tmp_path / "hub" / "cache") in asked["properties"]["ReadOnlyDirectories"]
    assert asked["cmd"] == [sys.executable, str(settings.ROOT / "course" / "room" / "seat_server.py")]
