"""The rehearsal of a room, and kernels forked from a warm one, with real kernels."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest

from course.__main__ import main
from course.room import rehearsal, warm_kernels
from kit.cli import lab as labcheck
from tests import tiny

linux = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="kernels are forked on Linux only")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def search_path() -> Iterator[None]:
    """The warm parent, like every kernel, must find the kit."""
    with pytest.MonkeyPatch.context() as patch:
        path = os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])
        patch.setenv("PYTHONPATH", path)
        yield


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A notebook with a panel on a tiny model."""
    folder = tmp_path_factory.mktemp("lesson")
    tiny.save(folder / "model", "llama", chat=True)
    cells = [
        "import torch, kit\nmodel = kit.load_model('model')",
        "vector = kit.SteeringVector(torch.randn(model.cfg.d_model), 1, 'v')\n"
        "panel = kit.widgets.SteeringPanel(model, vector, 'hi', max_new_tokens=4)",
        "import os; assert os.environ['OMP_NUM_THREADS'] == '1'",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    nbformat.write(notebook, folder / "lesson.ipynb")
    return folder / "lesson.ipynb"


def a_rehearsal(**changes: Any) -> rehearsal.Rehearsal:
    values = dict(
        notebook="n.ipynb",
        kernels=10,
        steering=10,
        cores=2,
        total=24 * 2**30,
        available=21 * 2**30,
        warm=False,
        answered=1.0,
        ready=2.0,
        pss=3 * 2**30,
        private=2**30 // 5,
        cells=(rehearsal.Cell(0, "import kit", 1.0, 2.0),),
        first_text=0.5,
        done=1.0,
    )
    return rehearsal.Rehearsal(**values | changes)


def test_seats_are_what_free_memory_holds_beside_what_is_shared() -> None:
    # 3 GB in all, 10 times 0.2 GB private: 1 GB shared; 21 free, less 1 kept, less 1 shared: 19
    assert a_rehearsal().seats == 95
    assert a_rehearsal(available=2**30).seats == 0
    assert "this host seats 95" in str(a_rehearsal())
    assert a_rehearsal().ok and not a_rehearsal(steering=9).ok
    assert not a_rehearsal(errors=("kernel 1: x",)).ok


@pytest.mark.parametrize("warm", [False, pytest.param(True, marks=linux)])
def test_every_kernel_runs_the_notebook_and_steers(lesson: Path, warm: bool) -> None:
    lines: list[str] = []
    result = rehearsal.rehearse(2, lesson, warm=warm, show=lines.append)
    assert result.ok and result.steering == 2 and result.errors == ()
    assert [cell.number for cell in result.cells] == [0, 1, 2]
    assert all(0 < cell.median <= cell.slowest for cell in result.cells)
    assert 0 < result.answered < result.ready and 0 < result.first_text < result.done
    assert result.pss > 2 * result.private > 0
    assert result.seats > 2 and result.warm == warm
    assert lines[0] == "starting 2 kernels" and "2 of 2: a kernel has shown a steered text" in lines
    if warm:  # what they import is the parent's
        assert result.private < 150 * 2**20
    assert json.dumps(result.as_dict())
    mine = psutil.Process().children(recursive=True)
    kernels = [p for p in mine if p.is_running() and "ipykernel_launcher" in " ".join(p.cmdline())]
    assert not [p for p in kernels if p.status() != psutil.STATUS_ZOMBIE]


def test_a_cell_that_fails_in_a_kernel_is_an_error_of_the_room(
    lesson: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = lesson.with_name("broken.ipynb")
    notebook = nbformat.read(lesson, as_version=4)
    notebook.cells[2].source = "1 / 0"
    nbformat.write(notebook, broken)
    assert main(["room", "--kernels", "1", "--notebook", str(broken)]) == 1
    printed = capsys.readouterr().out
    assert "error         kernel 1, cell 2: ZeroDivisionError: division by zero" in printed
    assert "steering      1 of 1" in printed


def test_what_cannot_be_rehearsed_is_said(lesson: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"kernels=0: give a whole number from 1 on"):
        rehearsal.rehearse(0)
    with pytest.raises(ValueError, match=r"lesson.ipynb'.*1 code cells to run makes a panel"):
        rehearsal.rehearse(1, lesson, cells=1)
    assert main(["room", "--kernels", "-3"]) == 1
    assert "kit room: kernels=-3" in capsys.readouterr().err


async def _started(folder: Path, **env: str) -> tuple[Any, Any]:
    from course.runner import kernel_manager

    manager = kernel_manager()
    rehearsal._register(manager)
    await manager.start_kernel(env=os.environ | env, cwd=str(folder))
    client = manager.client()
    client.start_channels()
    await client.wait_for_ready(timeout=120)
    return manager, client


async def _said(client: Any, code: str) -> str:
    texts: list[str] = []

    def hear(message: dict[str, Any]) -> None:
        if message["msg_type"] == "stream":
            texts.append(message["content"]["text"])

    reply = await client.execute_interactive(code, timeout=120, output_hook=hear)
    return "".join(texts).strip() or reply["content"].get("ename", "")


@linux
def test_a_forked_kernel_is_a_kernel_of_its_own(tmp_path: Path) -> None:
    async def story() -> None:
        here, there = await asyncio.gather(_started(tmp_path, WHO="a"), _started(ROOT, WHO="b"))
        code = "import os, sys\nprint(os.environ['WHO'], os.getcwd(), os.getpid(), os.getppid())"
        first, second = [(await _said(c, code)).split() for _, c in (here, there)]
        assert first[:2] == ["a", str(tmp_path)] and second[:2] == ["b", str(ROOT)]
        assert first[2] == str(here[0].provisioner.pid) != second[2]
        assert {first[3], second[3]} == {str(warm_kernels.parent())}
        # libraries came with the fork, numbers at random and names did not
        assert await _said(here[1], "print('torch' in sys.modules)") == "True"
        draw = "import numpy\nprint(numpy.random.rand())"
        assert await _said(here[1], draw) != await _said(there[1], draw)
        await _said(here[1], "mine = 1")
        assert await _said(there[1], "print(mine)") == "NameError"
        # subprocesses can be waited for, although their grandparent does not wait for its own
        assert await _said(here[1], "import subprocess as s\nprint(s.call(['false']))") == "1"
        # an interrupt reaches one kernel
        busy = [asyncio.create_task(_said(c, "import time\ntime.sleep(3)\nprint('slept')")) for _, c in (here, there)]
        await asyncio.sleep(1)
        await here[0].interrupt_kernel()
        assert await asyncio.gather(*busy) == ["KeyboardInterrupt", "slept"]
        # a restart is a new process, an end is an end
        await here[0].restart_kernel(now=True)
        await here[1].wait_for_ready(timeout=120)
        assert await _said(here[1], "print('mine' in dir())") == "False"
        assert here[0].provisioner.pid != int(first[2])
        for manager, client in (here, there):
            client.stop_channels()
            pid = manager.provisioner.pid
            await manager.shutdown_kernel(now=True)
            assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie"

    asyncio.run(story())


@linux
def test_kernels_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    script = (
        "import os, time\nfrom course.room import warm_kernels as w\n"
        "command = [__import__('sys').executable, '-m', 'ipykernel_launcher', '-f', 'k.json']\n"
        "kernel = w.fork(command, dict(os.environ), os.getcwd())\n"
        "print(kernel.pid, w.parent(), kernel.poll(), flush=True)\ntime.sleep(100)"
    )
    starter = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, text=True, stdout=subprocess.PIPE)
    assert starter.stdout is not None
    kernel, parent, polled = starter.stdout.readline().split()
    assert polled == "None" and psutil.Process(int(kernel)).ppid() == int(parent)
    starter.kill()
    starter.communicate()
    deadline = time.monotonic() + 30
    while any(_alive(int(pid)) for pid in (kernel, parent)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _alive(int(kernel)) and not _alive(int(parent))


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@linux
def test_a_signal_never_reaches_another_process() -> None:
    child = subprocess.Popen(["sleep", "100"])
    forked = warm_kernels.Forked(child.pid, os.pidfd_open(child.pid))
    assert forked.poll() is None
    forked.send_signal(signal.SIGKILL)
    assert forked.wait() == 0 and forked.poll() == 0
    child.wait()
    with pytest.raises(ProcessLookupError, match="has ended"):
        forked.send_signal(signal.SIGTERM)


@pytest.mark.parametrize("command", [["ir", "-f", "{c}"], [sys.executable, "-m", "bash_kernel"]])
def test_other_languages_start_as_usual(command: list[str]) -> None:
    assert not warm_kernels.can_fork(command)


@linux
def test_a_jupyterlab_of_kit_lab_warm_forks_its_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dist = tmp_path / "kit_warm_probe-1.dist-info"  # as an installed kit has it, wherever we run
    dist.mkdir()
    (dist / "METADATA").write_text("Metadata-Version: 2.1\nName: kit-warm-probe\nVersion: 1\n")
    target = "course.room.warm_kernels:WarmProvisioner"
    (dist / "entry_points.txt").write_text(f"[jupyter_client.kernel_provisioners]\n{warm_kernels.NAME} = {target}\n")
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert f'{warm_kernels.NAME} = "{target}"' in pyproject
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]]))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(warm_kernels.SWITCH, "to be overwritten")
    warm_kernels.switch_on()
    with labcheck.server(folder=tmp_path) as lab:
        kernel = lab.ask("api/kernels", "POST", patience=120)
        mine = psutil.Process().children(recursive=True)
        warm = [
            p
            for p in mine
            if warm_kernels.__name__ in " ".join(p.cmdline()) and warm_kernels.parent() not in (p.pid, p.ppid())
        ]  # of the tests above
        assert len(warm) == 2 and warm[1].ppid() == warm[0].pid  # the parent and its one kernel
        lab.ask(f"api/kernels/{kernel['id']}", "DELETE")


def test_lab_warm_without_the_provisioner_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_kernels, "NAME", "kit-nowhere")
    with pytest.raises(RuntimeError, match="does not know 'kit-nowhere'; install the kit: .*pip"):
        warm_kernels.switch_on()
