"""The doctor: break one thing, and exactly that row fails and names the command that mends it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

import kit
from course import DTYPE
from course.__main__ import main
from course.room import machines
from kit import cli
from kit.base import writable
from kit.cli import doctor
from kit.cli import lab as labcheck
from kit.cli.pins import pins
from kit.models import weights
from kit.models.load import model_dtype

ROOT = Path(__file__).resolve().parents[2]


def failed(report: doctor.DoctorReport) -> list[str]:
    return [check.name for check in report.checks if check.ok is False]


def row(report: doctor.DoctorReport, name: str) -> doctor.Check:
    return next(check for check in report.checks if check.name == name)


@pytest.fixture
def healthy(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A machine on which everything is right; returns the versions it has, to be broken."""
    versions = pins()
    fine = {"present": True, "ok": True, "path": Path("cache"), "sha256": "0" * 64}
    monkeypatch.setattr(doctor, "_installed", versions.get)
    monkeypatch.setattr(weights, "status", lambda dtype: fine)
    monkeypatch.setattr(doctor, "_lab_starts", lambda: doctor.Check("JupyterLab starts", True, ""))
    monkeypatch.setattr(doctor, "_steered_token", lambda: doctor.Check("steered token", True, ""))
    return versions


def hide(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], module: str) -> None:
    """Make a module look uninstalled."""
    monkeypatch.setitem(sys.modules, module, None)
    versions.pop(module.replace("_", "-"), None)


def test_a_healthy_machine_is_ready(healthy: dict[str, str]) -> None:
    report = doctor.run()
    assert failed(report) == [] and report.ok
    names = [check.name for check in report.checks]
    for name in ("Python", "memory", "threads", "dtype", "model", "widgets", "steered token"):
        assert name in names
    assert set(doctor.DIRECT) <= set(names)
    assert report.seconds > 0 and "ready" in report.summary


@pytest.mark.parametrize("name", ["torch", "transformer-lens", "ipywidgets"])
def test_another_version_than_the_pinned_one(healthy: dict[str, str], name: str) -> None:
    pin = healthy[name]
    healthy[name] = "0.0.1"
    report = doctor.run(quick=True)
    assert failed(report) == [name]
    assert f"pip install {name}=={pin}" in row(report, name).fix
    assert "0.0.1" in row(report, name).detail and pin in row(report, name).detail


def test_the_cpu_build_is_the_pinned_version(healthy: dict[str, str]) -> None:
    healthy["torch"] += "+cpu"
    assert row(doctor.run(quick=True), "torch").ok


def test_a_transitive_package_off_its_pin_is_a_warning(healthy: dict[str, str]) -> None:
    healthy["tornado"] = "1.0"
    report = doctor.run(quick=True)
    assert report.ok and row(report, "other packages").ok is None
    assert "tornado 1.0" in row(report, "other packages").detail


def test_every_installed_package_off_its_pin_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the version that is there, the pinned one, and the command that brings it back."""
    off = {"torch": "2.14.1+cu130", "tornado": "1.0", "attrs": "2", "yarl": "3.0", "six": "4", "tqdm": "5", "zipp": "6"}
    plain = doctor.metadata.version
    monkeypatch.setattr(doctor.metadata, "version", lambda name: off.get(name) or plain(name))
    checks = doctor.run(quick=True).checks
    for name, version in off.items():
        (named,) = [c for c in checks if f"{name} {version}" in f"{c.name} {c.detail}"]
        assert named.ok is False if name in doctor.DIRECT else named.ok is None
        assert pins()[name] in named.detail and f"{name}=={pins()[name]}" in named.fix


def test_it_runs_where_torch_and_jupyter_are_not() -> None:
    gone = "torch numpy jupyterlab jupyter_core jupyter_client ipywidgets IPython traitlets psutil packaging".split()
    code = (
        f"import sys\nsys.modules.update(dict.fromkeys({gone}))\n"
        "from kit.cli import main\nsys.exit(main(['doctor', '--json']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stderr == "" and done.returncode == 1
    rows = json.loads(done.stdout)["checks"]
    assert [r["name"] for r in rows if r["word"] == "FAIL" and r["name"] != "model"] == ["packaging"]
    assert {r["name"] for r in rows} >= {*doctor.DIRECT, "memory", "JupyterLab starts", "steered token"}
    assert not [r for r in rows if r["word"] == "FAIL" and not r["fix"]]


@pytest.mark.parametrize("module", ["torch", "jupyterlab", "ipywidgets", "packaging", "psutil"])
def test_a_missing_package_fails_one_row(healthy: dict[str, str], monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    hide(monkeypatch, healthy, module)
    report = doctor.run()
    assert failed(report) == [module]
    assert f"pip install {module}" in row(report, module).fix
    waiting = [check for check in report.checks if "not tried" in check.detail]
    assert waiting or module == "packaging"
    assert all(check.ok is None and module in check.detail for check in waiting)


@pytest.mark.parametrize(
    "code, says, mends",
    [
        ("import no_such_thing", "ModuleNotFoundError: No module named 'no_such_thing'", "-c constraints.txt -e"),
        (
            "raise OSError('libx.so: cannot open')",
            "OSError: libx.so: cannot open",
            "--force-reinstall --no-deps gguf==",
        ),
        ("raise ImportError('half\\x1b[2J written')", "ImportError: half[2J written", "--force-reinstall"),
        ("1 +", "SyntaxError", "--force-reinstall"),
    ],
)
def test_an_installed_package_that_fails_at_import_is_not_ready(
    healthy: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, says: str, mends: str
) -> None:
    (tmp_path / "gguf.py").write_text(f"print('hello')\n{code}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "gguf", raising=False)
    report = doctor.run(quick=True)
    assert failed(report) == ["gguf"] and not report.ok
    assert f"; importing it fails: {says}" in row(report, "gguf").detail and mends in row(report, "gguf").fix


def test_one_broken_import_is_one_fail_and_leaves_the_json_alone(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("print('hello')\nraise OSError('libtorch_cpu.so: undefined symbol')\n")
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT), os.environ["PYTHONPATH"]])}
    command = [sys.executable, "-m", "kit", "doctor", "--quick", "--json"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    rows = {r["name"]: r for r in json.loads(done.stdout)["checks"]}
    assert done.returncode == 1
    assert [name for name, r in rows.items() if r["word"] == "FAIL" and name != "model"] == ["torch"]
    assert "libtorch_cpu.so: undefined symbol" in rows["torch"]["detail"]
    assert rows["dtype"]["detail"] == "not tried: needs torch"
    assert rows["sae-lens"]["word"] == "warn" and "mend what fails above first" in rows["sae-lens"]["detail"]


FOLDERS = (
    "HOME JUPYTER_CONFIG_DIR JUPYTER_DATA_DIR JUPYTER_RUNTIME_DIR JUPYTERLAB_WORKSPACES_DIR XDG_DATA_HOME KIT_CACHE"
)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere other variables move these folders")
@pytest.mark.parametrize("name", FOLDERS.split())
@pytest.mark.parametrize("kind", ["a file", "below a file", errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_cannot_be_written_is_not_ready(
    healthy: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    kind: str | int,
) -> None:
    """Neither for the doctor nor for `kit lab`, which would crash or lose work."""
    place, started = tmp_path / "place", []
    if isinstance(kind, str):
        place.touch()
        says = f"{place} is a file; a folder is needed"
    else:
        place.mkdir()
        says = f"{place} cannot be written: {os.strerror(kind).lower()}"
        plain = tempfile.TemporaryFile

        def refused(dir: Path) -> Any:  # as root may write whatever a mode says
            if Path(dir).is_relative_to(place):
                raise OSError(kind, os.strerror(kind))
            return plain(dir=dir)

        monkeypatch.setattr(writable.tempfile, "TemporaryFile", refused)
    for other in (*FOLDERS.split(), "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(name, str(place / "deep" if kind == "below a file" else place))
    monkeypatch.setattr(cli.os, "execv", lambda path, command: started.append(command))
    monkeypatch.setattr(doctor, "_package", lambda name, broken: doctor.Check(name, True, ""))
    report = doctor.run()
    assert failed(report) == ["disk"] and not report.ok
    assert says in row(report, "disk").detail and "Errno" not in row(report, "disk").detail
    assert f'{name}="$(mktemp -d)"' in row(report, "disk").fix
    assert cli.main(["lab", str(tmp_path)]) == 1 and started == []
    err = capsys.readouterr().err
    assert err.startswith("kit lab: ") and says in err and "Errno" not in err and err.count("\n") == 1
    shown = subprocess.run(
        ["sh", "-c", f'{row(report, "disk").fix} && echo "${name}"'], capture_output=True, text=True, check=True
    )
    monkeypatch.setenv(name, shown.stdout.strip())
    assert failed(doctor.run()) == [], "what the arrow says mends it"
    shutil.rmtree(shown.stdout.strip())


@pytest.mark.parametrize("kind", ["a file", "below a file", errno.EROFS])
def test_fetching_where_nothing_can_be_written_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str | int
) -> None:
    place = tmp_path / "place"
    if kind == errno.EROFS:

        def refused(*args: Any, **options: Any) -> Any:
            raise OSError(kind, os.strerror(errno.EROFS))

        monkeypatch.setattr(Path, "mkdir", refused)
        monkeypatch.setattr(writable.tempfile, "TemporaryFile", refused)
        says = f"{tmp_path} cannot be written: read-only file system"
    else:
        place.touch()
        says = f"{place} is a file; a folder is needed"
    monkeypatch.setenv("KIT_CACHE", str(place / "deep" if kind == "below a file" else place))
    assert cli.main(["fetch"]) == 1
    err = capsys.readouterr().err
    assert "kit fetch: cannot write the model cache " in err and says in err and "Errno" not in err


def test_a_shared_cache_that_has_the_model_need_not_be_written(
    healthy: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labcheck, "why_not", lambda folder: "no" if "cache" in folder.name else "")
    monkeypatch.setenv("KIT_CACHE", "/srv/cache")
    assert "KIT_CACHE=/srv/cache: no" in labcheck.blocked()[0]
    monkeypatch.setattr(weights, "cached", lambda dtype="": Path("/srv/cache"))
    assert labcheck.blocked() == ("", "")


def test_a_dtype_that_is_none(healthy: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIT_DTYPE", "float31")
    report = doctor.run()
    assert failed(report) == ["dtype"] and row(report, "dtype").fix == "unset KIT_DTYPE"
    assert "KIT_DTYPE='float31'" in row(report, "dtype").detail
    assert row(report, "model").detail == "not tried: needs the dtype"
    assert row(report, "steered token").ok is None


def test_a_missing_model(healthy: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(doctor, "_installed", healthy.get)
    monkeypatch.setattr(doctor, "_lab_starts", lambda: doctor.Check("JupyterLab starts", True, ""))
    monkeypatch.setenv("KIT_CACHE", str(tmp_path))
    report = doctor.run()
    assert failed(report) == ["model"]
    assert row(report, "model").fix.endswith("kit fetch")
    assert row(report, "steered token").ok is None  # it would download what the row above misses
    assert not list(tmp_path.iterdir())


def test_a_damaged_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KIT_CACHE", str(tmp_path))
    folder = tmp_path / weights.EMBEDDED / model_dtype()
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"half a download")
    (folder / "kit.json").write_text(json.dumps({"weights_sha256": "0" * 64}))
    check = doctor._model()
    assert check.ok is False and "damaged" in check.detail and check.fix.endswith("kit fetch")


def test_fetch_replaces_a_damaged_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test_a_damaged_model(monkeypatch, tmp_path)
    folder = tmp_path / weights.EMBEDDED / model_dtype()
    monkeypatch.setattr(weights, "fetch", lambda dtype: folder)
    assert cli.main(["fetch"]) == 0
    assert not folder.exists() and "damaged" in capsys.readouterr().err


def test_little_memory_is_a_warning(healthy: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    small = SimpleNamespace(total=3 * 2**30, available=2 * 2**30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: small)
    report = doctor.run(quick=True)
    assert report.ok and row(report, "memory").ok is None
    assert "3.0 GB" in row(report, "memory").detail


def test_a_check_that_raises_is_a_row(healthy: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def explode() -> doctor.Check:
        raise RuntimeError("no such\ninstruction <avx>")

    monkeypatch.setattr(doctor, "_steered_token", explode)
    report = doctor.run()
    assert failed(report) == ["steered token"]
    broken = row(report, "steered token")
    assert broken.detail == "RuntimeError: no such instruction <avx>" and broken.fix
    assert "&lt;avx&gt;" in report._repr_html_() and "<avx>" not in report._repr_html_()


def test_every_failure_names_a_command(healthy: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*args: Any) -> doctor.Check:
        raise OSError("broken")

    for name in (
        "_python_version",
        "_package",
        "_other_packages",
        "_memory",
        "_threads",
        "_model",
        "_widgets",
        "_lab_starts",
    ):
        monkeypatch.setattr(doctor, name, explode)
    rows = [check for check in doctor.run().checks if check.ok is False]
    monkeypatch.setattr(doctor, "_dtype", explode)  # on which the model rests
    rows += [check for check in doctor.run().checks if check.ok is False and check.name == "dtype"]
    assert len(rows) == len(doctor.DIRECT) + 8
    assert all(check.fix for check in rows)


def test_command_exit_status_and_formats(healthy: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--quick"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ok    Python") and lines[-1].startswith("ready (")
    healthy["numpy"] = "1.0"
    assert cli.main(["doctor", "--quick", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False
    assert [c["name"] for c in told["checks"] if c["word"] == "FAIL"] == ["numpy"]
    assert cli.main(["doctor", "--quick"]) == 1
    out = capsys.readouterr().out
    assert "FAIL  numpy" in out and "-> " in out and "not ready" in out


def test_widgets_switched_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert labcheck.widgets()[0]
    (tmp_path / "labconfig").mkdir()
    page = {"disabledExtensions": {labcheck.MANAGER: True}}
    (tmp_path / "labconfig" / "page_config.json").write_text(json.dumps(page))
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
    ok, detail = labcheck.widgets()
    assert not ok and "switched off" in detail


def test_widget_halves_that_do_not_match(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"ipywidgets": "8.1.9", "jupyterlab_widgets": "1.1.0"}
    monkeypatch.setattr(labcheck.metadata, "version", versions.__getitem__)
    ok, detail = labcheck.widgets()
    assert not ok and "do not match" in detail


def children() -> list[psutil.Process]:
    return [p for p in psutil.Process().children(recursive=True) if "jupyterlab" in p.cmdline()]


def test_a_server_that_cannot_start_leaves_nothing() -> None:
    wrong = "--ServerApp.root_dir=/no/such/folder"
    with pytest.raises(RuntimeError, match="it ended"), labcheck.server(wrong):
        pass
    with pytest.raises(TimeoutError, match="no answer in time"), labcheck.server(seconds=0):
        pass
    assert children() == []


def test_the_server_answers_and_is_gone_afterwards() -> None:
    with labcheck.server() as lab:
        assert lab.ask("api/status")["kernels"] == 0
        assert children()
        port = int(lab.url.rstrip("/").rsplit(":", 1)[1])
    assert children() == []
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_one_steered_token_for_real() -> None:
    if weights.cached(model_dtype()) is None:
        pytest.skip("the embedded model is not fetched: run `kit fetch`")
    check = doctor._steered_token()
    assert check.ok and "first token" in check.detail


# --- a room ---------------------------------------------------------------------------------------


def report(folder: Path, name: str, *checks: doctor.Check, **more: Any) -> Path:
    """What ``kit doctor --json`` printed on a machine."""
    found = doctor.DoctorReport(checks or (doctor.Check("Python", True, "3.12.1"),), 1.0).as_dict()
    file = folder / f"{name}.json"
    file.write_text(json.dumps(found | more))
    return file


BROKEN = doctor.Check("torch", False, "not installed", "pip install torch==2.13.0")
LOW = doctor.Check("memory", None, "3.0 GB", "close something")


def test_a_room_is_judged_machine_by_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(tmp_path, "ada")
    report(tmp_path, "bob", LOW)
    assert main(["doctor", "--workshop", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "warn     bob                  memory: 3.0 GB",
        "                              -> close something",
        "ready    ada",
        "2 of 2 machines can be used (1 ready, 1 warn)",
    ]
    report(tmp_path, "cem", LOW, BROKEN, doctor.Check("numpy", False, "1.0", "later"))
    report(tmp_path, "dee", kit="0.0.1")
    (tmp_path / "notes.txt").write_text("not a report")
    assert main(["doctor", "--workshop", str(tmp_path)]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[:2] == [
        "FAIL     cem                  torch: not installed",
        "                              -> pip install torch==2.13.0",
    ]
    assert any("dee" in line and f"0.0.1, this one is {kit.__version__}" in line for line in out)
    assert out[-1] == "3 of 4 machines can be used (1 ready, 2 warn, 1 FAIL)"
    assert main(["doctor", "--workshop", str(tmp_path), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [(m["name"], m["word"]) for m in told] == [
        ("cem", "FAIL"),
        ("bob", "warn"),
        ("dee", "warn"),
        ("ada", "ready"),
    ]


def test_the_command_hands_a_room_to_the_course(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(cli.os, "execv", lambda path, command: commands.append(command))
    cli.main(["doctor", "--workshop", "reports", "--json"])
    assert commands == [[sys.executable, "-m", "course", "doctor", "--workshop", "reports", "--json"]]
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    assert cli.main(["table", "room"]) == 1 and len(commands) == 1


DAMAGED = {
    "empty": b"",
    "cut": b'{"ok": true, "checks": [{"na',
    "binary": bytes(range(256)),
    "other": b'{"cells": []}',
    "list": b"[1, 2]",
    "no rows": b'{"checks": []}',
    "a row of text": b'{"checks": ["ok"]}',
    "deep": b"[" * 100_000,
    "a number for ok": b'{"checks": [{"name": "a", "ok": 1, "detail": "", "fix": ""}]}',
    "no ok": b'{"checks": [{"name": "a", "detail": "", "fix": ""}]}',
    "a list for a name": b'{"checks": [{"name": ["a"], "ok": true, "detail": "", "fix": ""}]}',
    "huge": b" " * (2**20 + 1),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_report_is_a_row_and_no_machine_that_is_ready(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report(tmp_path, "ada")
    (tmp_path / f"{kind}.json").write_bytes(DAMAGED[kind])
    assert main(["doctor", "--workshop", str(tmp_path)]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"damaged  {kind}") and "`kit doctor --json` again" in out[1]
    assert out[-1] == "1 of 2 machines can be used (1 ready, 1 damaged)"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_reports_of_other_shells_are_read(tmp_path: Path, encoding: str) -> None:
    text = report(tmp_path, "ada", doctor.Check("model", False, "Grüße", "x")).read_text()
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    (tmp_path / "ada.json").write_bytes(mark + json.dumps(json.loads(text), ensure_ascii=False).encode(encoding))
    (machine,) = machines.machines(tmp_path)
    assert (machine.word, machine.worst) == ("FAIL", "model: Grüße")


def test_a_report_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    evil = doctor.Check("to\x1b[2Jrch", False, "a\nb\x07" + "c" * 5000, "rm\u202e -rf\x00 /")
    report(tmp_path, "ada\x1b[2J", evil)
    (machine,) = machines.machines(tmp_path)
    assert str(machine).isascii() and len(str(machine)) < 800 and str(machine).count("\n") == 1
    assert all(c.isprintable() or c == "\n" for c in str(machine))


def test_an_empty_folder_is_no_room(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert main(["doctor", "--workshop", str(folder)]) == 1
        assert "kit doctor --json" in capsys.readouterr().err


def test_the_host_of_a_room(
    healthy: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fine = doctor.Check("", True, "fine")
    for name in ("_cache", "_disk", "_clock"):  # of this machine
        monkeypatch.setattr(machines, name, lambda name=name: replace(fine, name=name))
    monkeypatch.setattr(machines, "find_spec", lambda name: None)
    assert main(["doctor", "--quick", "--workshop"]) == 1
    out = capsys.readouterr().out
    assert "FAIL  JupyterHub        not installed" in out and "pip install jupyterhub" in out
    for name in ("Python", "_disk", "_cache", "ports", "_clock"):
        assert f"  {name}  " in out
    assert out.count("FAIL") == 2, "the row and the count"
    assert cli.main(["doctor", "--quick"]) == 0
    assert "JupyterHub" not in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="file modes")
def test_a_cache_that_learners_cannot_read(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Path(tempfile.mkdtemp()).resolve()  # pytest's own folders are closed to others
    monkeypatch.setenv("KIT_CACHE", str(place / "cache"))
    try:
        assert "not here yet" in machines._cache().detail
        folder = place / "cache" / weights.EMBEDDED / DTYPE
        folder.mkdir(parents=True)
        for name in ("kit.json", "model.safetensors"):
            (folder / name).write_text("{}")
            (folder / name).chmod(0o644)
        for path in (folder, *list(folder.parents)[:3]):
            path.chmod(0o755)
        check = machines._cache()
        assert check.ok and str(folder) in check.detail
        place.chmod(0o700)
        check = machines._cache()
        assert check.ok is False and check.detail == f"others cannot enter {place}"
        assert "KIT_CACHE=" in check.fix
        place.chmod(0o755)
        (folder / "kit.json").chmod(0o666)
        check = machines._cache()
        assert check.ok is None and "others may change" in check.detail
        (folder / "model.safetensors").chmod(0o600)
        check = machines._cache()
        assert check.ok is False and check.detail == "1 of its files are closed to others"
        assert subprocess.run(check.fix, shell=True, check=False).returncode == 0
        (folder / "kit.json").chmod(0o644)
        assert machines._cache().ok, "the fix mends it"
    finally:
        shutil.rmtree(place)


def test_a_port_in_use_a_full_disk_and_a_wrong_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(machines, "PORTS", {port: "the hub"})
        check = machines._ports()
        assert check.ok is None and f"{port} (the hub)" in check.detail and str(port) in check.fix
    assert machines._ports().ok
    for free, ok in ((0.5, False), (3, None), (50, True)):
        usage = SimpleNamespace(free=free * 2**30)
        monkeypatch.setattr(machines.shutil, "disk_usage", lambda _p, usage=usage: usage)
        assert machines._disk().ok is ok
    monkeypatch.setattr(machines.shutil, "which", lambda _name: None)
    assert machines._clock().ok
    monkeypatch.setattr(machines, "time", SimpleNamespace(time=lambda: 1e9, strftime=time.strftime))
    check = machines._clock()
    assert check.ok is False and "earlier than the kit's own files" in check.detail and check.fix


def test_a_host_check_that_raises_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode() -> doctor.Check:
        raise OSError("no such\x1b\nthing")

    monkeypatch.setattr(machines, "_ports", explode)
    checks = {check.name: check for check in machines.host()}
    assert len(checks) == 5 and checks["ports"].ok is False
    assert checks["ports"].detail == "OSError: no such thing" and checks["ports"].fix
