"""Set-up: the pins, what ``import kit`` costs, what make does, and that nothing phones out."""

from __future__ import annotations

import ast
import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import kit
from kit import cli
from kit.cli import doctor
from kit.cli import lab as labcheck
from kit.cli.lab import server_options, trust
from kit.cli.pins import pins
from kit.models import weights

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def python(code: str) -> str:
    """Standard output of a fresh interpreter."""
    command = [sys.executable, "-c", code]
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ['PYTHONPATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- import kit -------------------------------------------------------------------------------

HEAVY = (
    "torch",
    "transformers",
    "transformer_lens",
    "sae_lens",
    "pandas",
    "circuitsvis",
    "IPython",
    "ipywidgets",
    "matplotlib",
    "sklearn",
    "numpy",
)
TIMED = f"""
import sys, time
before = time.process_time()
import kit
dir(kit), kit.__version__
print(time.process_time() - before)
print([name for name in {HEAVY} if name in sys.modules])
"""


def test_import_is_light() -> None:
    runs = [python(TIMED).splitlines() for _ in range(3)]
    assert [loaded for _, loaded in runs] == ["[]"] * 3
    assert min(float(seconds) for seconds, _ in runs) < 0.3


def test_commands_and_doctor_load_nothing_heavy() -> None:
    loaded = f"[name for name in {HEAVY} if name in sys.modules]"
    assert python(f"import sys, kit, kit.cli; kit.doctor, kit.weights; print({loaded})").strip() == "[]"


def test_every_public_name_is_there() -> None:
    for name in kit.__all__:
        assert getattr(kit, name) is not None
        assert name in dir(kit)
    with pytest.raises(AttributeError, match="load_model"):
        kit.laod_model


def test_works_without_jupyter() -> None:
    python("""
import sys
for name in ("IPython", "ipywidgets", "ipykernel", "jupyterlab", "jupyter_core", "traitlets"):
    sys.modules[name] = None
import kit
for name in kit.__all__:
    if name != "widgets":
        getattr(kit, name)
""")


# --- the pins ---------------------------------------------------------------------------------


def constraint_lines() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def direct() -> list[Requirement]:
    wanted = [*PROJECT["dependencies"], *(text for extra in EXTRAS.values() for text in extra)]
    return [r for r in map(Requirement, wanted) if r.name != PROJECT["name"]]


def test_every_direct_dependency_is_pinned_exactly() -> None:
    pinned = pins()
    for wanted in direct():
        assert wanted.name in pinned, f"constraints.txt does not pin {wanted.name}"
        assert wanted.specifier.contains(pinned[wanted.name]), wanted
    for line in constraint_lines():
        assert str(line.specifier).startswith("==") and "+" not in str(line.specifier), line


def test_the_versions_that_the_course_is_built_on() -> None:
    exact = {str(line) for line in constraint_lines()}
    assert {"torch==2.13.0", "transformer-lens==3.9.0", "sae-lens==6.54.12"} <= exact
    assert pins()["transformers"] == "5.23.0" or sys.version_info < (3, 11)


def test_one_pin_for_each_supported_python() -> None:
    for version in ("3.10", "3.11", "3.12", "3.13"):
        full = f"{version}.9"
        seen: dict[str, str] = {}
        for line in constraint_lines():
            env = {"python_version": version, "python_full_version": full}
            if line.marker is None or line.marker.evaluate(env):
                assert line.name not in seen, f"{line.name} twice for Python {version}"
                seen[line.name] = str(line.specifier)
        for wanted in direct():
            assert wanted.name in seen, f"no {wanted.name} for Python {version}"
    assert SpecifierSet(PROJECT["requires-python"]).contains("3.10.0")


def test_what_the_dependencies_bring_is_pinned_too() -> None:
    pinned, reached = pins(), set()
    queue = [(canonicalize_name(r.name), r.extras) for r in direct()]
    while queue:
        name, extras = queue.pop()
        if (name, *extras) in reached:
            continue
        reached.add((name, *extras))
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for need in map(Requirement, needs):
            contexts = [{"extra": extra} for extra in extras] or [{"extra": ""}]
            if need.marker is None or any(need.marker.evaluate(context) for context in contexts):
                queue.append((canonicalize_name(need.name), tuple(need.extras)))
    cuda = ("nvidia-", "cuda-", "triton", "setuptools")
    assert not {n for n, *_ in reached if n not in pinned and not n.startswith(cuda)}


def test_conda_users_get_the_same_constraints() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    conda = [item for item in environment["dependencies"] if isinstance(item, str)]
    (pip,) = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    assert pip == ["-c constraints.txt", "-e .[test]"]
    (version,) = [item.split("=")[1] for item in conda if item.startswith("python=")]
    assert SpecifierSet(PROJECT["requires-python"]).contains(f"{version}.0")
    assert [item for item in conda if not item.startswith("python=")] == ["pip"]


def test_the_doctor_looks_at_every_direct_dependency() -> None:
    declared = sorted(Requirement(text).name for text in PROJECT["dependencies"])
    assert sorted(doctor.DIRECT) == declared


# What a declared dependency cannot be without, so that kit may import it too.
CARRIED = {
    "IPython": "ipywidgets",
    "threadpoolctl": "scikit-learn",
    "comm": "ipywidgets",
    "ipykernel": "jupyterlab",
    "traitlets": "ipywidgets",
    "huggingface_hub": "transformers",
    "jupyter_client": "jupyterlab",
    "jupyter_core": "jupyterlab",
    "jupyterlab_server": "jupyterlab",
    "nbconvert": "jupyterlab",
    "nltk": "sae-lens",
    "scipy": "scikit-learn",
    "sklearn": "scikit-learn",
}


def test_every_import_is_declared() -> None:
    declared = {r.name for r in direct()} | {r.name.replace("-", "_") for r in direct()}
    names: dict[str, str] = {}
    for file in sorted((ROOT / "kit").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0]: file.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names[node.module.split(".")[0]] = file.name
    third = {n: f for n, f in names.items() if n not in sys.stdlib_module_names | {"kit"}}
    assert not {n: f for n, f in third.items() if CARRIED.get(n, n) not in declared}


# --- nothing phones out -----------------------------------------------------------------------


def test_names_do_not_resolve_in_tests() -> None:
    with pytest.raises(socket.gaierror, match="offline"):
        socket.create_connection(("pypi.org", 443), timeout=5)
    with pytest.raises(socket.gaierror, match="offline"), socket.socket() as s:
        s.connect(("192.0.2.1", 80))
    assert socket.getaddrinfo("localhost", 80)
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_nor_in_the_processes_that_tests_start() -> None:
    code = "import socket\ntry: socket.getaddrinfo('pypi.org', 443)\nexcept OSError as e: print(e)"
    assert "offline" in python(code)


@pytest.mark.parametrize(
    "command",
    [
        ["pip", "--version"],
        ["/usr/local/bin/pip3.11", "list"],
        [sys.executable, "-m", "pip", "--version"],
        [sys.executable, "-I", "-m", "ensurepip", "--version"],
        ["conda", "--version"],
        ["mamba", "info"],
        ["uv", "pip", "list"],
        ["env", "A=1", "apt-get", "--version"],
        ["sh", "-c", "cd /tmp && pip --version"],
        ["sh", "-c", "/usr/bin/apt list"],
        "pip --version",
        "true; conda info",
    ],
    ids=str,
)
def test_no_test_starts_a_package_manager(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIT_OFFLINE_LOG", str(tmp_path / "refused"))
    with pytest.raises(PermissionError, match="during tests, which install nothing"):
        subprocess.run(command, shell=isinstance(command, str), check=False)
    if isinstance(command, list):
        with pytest.raises(PermissionError, match="install nothing"):
            os.posix_spawnp(command[0], command, os.environ)
    else:
        with pytest.raises(PermissionError, match="install nothing"):
            os.system(command)
    inside = f"import subprocess; subprocess.run({command!r}, shell={isinstance(command, str)})"
    done = subprocess.run([sys.executable, "-c", inside], capture_output=True, text=True, check=False)
    assert done.returncode and "install nothing" in done.stderr
    assert len((tmp_path / "refused").read_text().splitlines()) == 3


def test_nor_does_a_script_that_a_test_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIT_OFFLINE_LOG", str(tmp_path / "refused"))
    for line in ("pip --version", "uv --version", f"{sys.executable} -m pip --version", "exec apt-get --version"):
        script(tmp_path / "it", line)
        done = subprocess.run([tmp_path / "it"], capture_output=True, text=True, check=False)
        assert done.returncode == 1 and done.stdout == "", line
    assert len((tmp_path / "refused").read_text().splitlines()) == 4
    with pytest.raises(PermissionError, match="install nothing"):
        importlib.import_module("pip._internal.cli.main")


def test_only_a_download_from_this_machine_may_be_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-m", "pip", "download", "--retries=0", "no-such-package"]
    for index, starts in (("http://127.0.0.1:9/simple", True), ("https://pypi.org/simple", False), ("", False)):
        monkeypatch.setenv("PIP_INDEX_URL", index)
        if starts:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode and "no-such-package" in done.stderr
            with pytest.raises(PermissionError):
                subprocess.run([sys.executable, "-m", "pip", "install", "no-such-package"], check=False)
        else:
            with pytest.raises(PermissionError, match="install nothing"):
                subprocess.run(command, check=False)


def test_other_commands_start(tmp_path: Path) -> None:
    for command in (
        [sys.executable, "-c", "print('pip install x')"],
        ["echo", "conda", "-m"],
        ["sh", "-c", "echo apthere"],
    ):
        assert subprocess.run(command, capture_output=True, check=True).stdout


def test_jupyterlab_asks_for_no_news_and_no_updates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "refused"
    monkeypatch.setenv("KIT_OFFLINE_LOG", str(log))
    with labcheck.server(*shipped_settings(tmp_path)) as lab:
        assert lab.asks_nobody()
        settings = lab.ask("lab/api/settings/@jupyterlab/extensionmanager-extension:plugin")
        assert settings["schema"]["properties"]["enabled"]["default"] is False
    assert not log.exists(), log.read_text()


def shipped_settings(tmp_path: Path) -> list[str]:
    """Nothing where the package is installed; else the way to its settings file."""
    installed = Path(sys.prefix, "share/jupyter/lab/settings/overrides.d/steering-kit.json")
    if installed.is_file():
        assert installed.read_text() == (ROOT / "kit/cli/overrides.json").read_text()
        return []
    (tmp_path / "overrides.d").mkdir()
    shutil.copy(ROOT / "kit/cli/overrides.json", tmp_path / "overrides.d" / "kit.json")
    return [f"--LabApp.app_settings_dir={tmp_path}"]


# --- the command ------------------------------------------------------------------------------


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that ``kit`` turns into, which do not run."""
    commands: list[list[str]] = []
    monkeypatch.setattr(cli.os, "execv", lambda path, command: commands.append(command))
    monkeypatch.setattr(weights, "cached", lambda dtype: Path("cache"))
    return commands


def test_lab_opens_the_first_notebook(
    started: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = tmp_path / cli.FIRST
    first.parent.mkdir()
    first.write_text("{}")
    monkeypatch.chdir(tmp_path)
    cli.main(["lab", "--no-browser", "--port", "8899"])
    (command,) = started
    assert command[:3] == [sys.executable, "-m", "jupyterlab"]
    assert f"--ServerApp.root_dir={tmp_path}" in command
    assert f"--LabApp.default_url=/lab/tree/{cli.FIRST.as_posix()}" in command
    assert command[-3:] == ["--no-browser", "--port", "8899"]


def test_lab_opens_what_is_named(started: list[list[str]], tmp_path: Path) -> None:
    cli.main(["lab", str(tmp_path)])
    assert str(tmp_path) in started[0]
    assert not any(part.endswith(cli.FIRST.name) for part in started[0])


def test_no_browser_without_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cli.sys, "platform", "linux")
    assert "--no-browser" in server_options()
    monkeypatch.setenv("DISPLAY", ":0")
    assert "--no-browser" not in server_options()


def test_the_course_s_notebooks_are_trusted_and_changed_ones_only_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nbformat
    from nbformat.sign import NotebookNotary

    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    ours, other = tmp_path / "00_a.ipynb", tmp_path / "mine.ipynb"
    for file in (ours, other):
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")]), file)
    for i, broken in enumerate(
        ("{", "{}", "[]", '{"nbformat": 4}', '{"nbformat": 4, "nbformat_minor": 5, "cells": 3}')
    ):
        (tmp_path / f"0{i + 1}_b.ipynb").write_text(broken)

    def trusted(file: Path) -> bool:
        return bool(NotebookNotary().check_signature(nbformat.read(file, nbformat.NO_CONVERT)))

    trust(tmp_path)
    assert trusted(ours) and not trusted(other)
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("2")]), ours)
    assert not trusted(ours)
    trust(tmp_path)
    assert trusted(ours)


def test_errors_are_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "KIT", tmp_path / "kit")
    assert cli.main(["lab"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("kit lab: no notebooks/00_start_here.ipynb")
    for wrong in (["nonsense"], [], ["fetch", "--fast"], ["doctor", "now"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(wrong)
        assert stop.value.code == 2


# --- make -------------------------------------------------------------------------------------


def make(*arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    env["PATH"] = path + env["PATH"]
    command = ["make", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=False)


def script(file: Path, body: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(0o755)
    return file


@needs_make
def test_make_wants_a_new_enough_python(tmp_path: Path) -> None:
    old = script(tmp_path / "old", "case $1 in -V) echo Python 3.8.1;; *) exit 1;; esac")
    done = make("lab", f"PYTHON={old}", f"VENV={tmp_path / 'v'}")
    assert done.returncode and "Python 3.8.1, and this needs Python 3.10" in done.stderr
    done = make("lab", "PYTHON=no-such-python", f"VENV={tmp_path / 'v'}")
    assert done.returncode and "no no-such-python here" in done.stderr


@needs_make
def test_make_says_when_venv_is_missing(tmp_path: Path) -> None:
    bare = script(tmp_path / "bare", 'case "$2" in *ensurepip*) exit 1;; esac')
    done = make("lab", f"PYTHON={bare}", f"VENV={tmp_path / 'v'}")
    assert done.returncode and "python3-venv" in done.stderr


@needs_make
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="CUDA torch is Linux's default")
@pytest.mark.parametrize("index_works", [True, False])
def test_make_tries_the_cpu_build_first_and_does_not_need_it(tmp_path: Path, index_works: bool) -> None:
    log, venv = tmp_path / "log", tmp_path / "v"
    fail = "" if index_works else 'case "$*" in *--index-url*) exit 1;; esac'
    script(venv / "bin" / "python", f'echo "$@" >> {log}\n{fail}')
    without_gpu = script(tmp_path / "bin" / "command", "exit 1")
    done = make(f"{venv}/.lab", f"VENV={venv}", path=f"{without_gpu.parent}:")
    assert done.returncode == 0, done.stderr
    calls = log.read_text().splitlines()
    if shutil.which("nvidia-smi") is None:
        cpu = calls.pop(0)
        assert "--no-deps" in cpu and "torch==2.13.0" in cpu and "download.pytorch.org" in cpu
        assert ("default index" in done.stdout) is not index_works
    assert len(calls) == 1 and calls[0].endswith("-c constraints.txt -e .")
    again = make(f"{venv}/.lab", f"VENV={venv}")
    assert again.returncode == 0 and len(log.read_text().splitlines()) == len(calls) + (
        shutil.which("nvidia-smi") is None
    )


@needs_make
def test_make_leaves_the_index_alone_on_request_or_with_a_gpu(tmp_path: Path) -> None:
    gpu = script(tmp_path / "bin" / "nvidia-smi", "exit 0")
    for n, (extra, path) in enumerate([(["TORCH_INDEX="], ""), ([], f"{gpu.parent}:")]):
        log, venv = tmp_path / f"log{n}", tmp_path / f"v{n}"
        script(venv / "bin" / "python", f'echo "$@" >> {log}')
        done = make(f"{venv}/.lab", f"VENV={venv}", *extra, path=path)
        assert done.returncode == 0 and "--index-url" not in log.read_text()


def test_ci_runs_the_readme_test_command() -> None:
    run = ROOT / ".ci" / "run"
    assert os.access(run, os.X_OK)
    assert run.read_text().rstrip().endswith("\nmake test")
    assert "make test" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_wheel_ships_files_that_exist() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    wheel = tomllib.loads(text)["tool"]["hatch"]["build"]["targets"]["wheel"]
    for source in [*wheel["only-include"], *wheel["force-include"], *wheel["shared-data"]]:
        assert (ROOT / source).exists()
    json.loads((ROOT / "kit/cli/overrides.json").read_text(encoding="utf-8"))
