"""What every test starts from: no network, no model hub, no package manager, no window."""

from __future__ import annotations

import os
import runpy
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

import kit  # before anything brings torch: it says how threads wait

OFFLINE = Path(__file__).parent / "offline"

runpy.run_path(str(OFFLINE / "sitecustomize.py"))  # this process; PYTHONPATH holds its children
os.environ["PYTHONPATH"] = os.pathsep.join(path for path in (str(OFFLINE), os.environ.get("PYTHONPATH")) if path)
SHIMS = tempfile.TemporaryDirectory(prefix="no-managers-")  # what shells and scripts find on their path
for _name in ("pip", "pip3", "pipx", "uv", "uvx", "conda", "mamba", "micromamba", "apt", "apt-get"):
    _shim = Path(SHIMS.name, _name)
    _shim.write_text(
        '#!/bin/sh\necho "$0 $*" >> "${KIT_OFFLINE_LOG:-/dev/null}"\necho "$0: not in tests" >&2\nexit 1\n'
    )
    _shim.chmod(0o755)
os.environ["PATH"] = os.pathsep.join([SHIMS.name, os.environ.get("PATH", os.defpath)])
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["KIT_PROGRESS"] = "off"  # no test reads or writes the record of who runs it
os.environ.pop("KIT_TABLE", None)
if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers share the cores


class _ByFile(LoadFileScheduling):
    """A file's tests share a process, but for runs of notebooks: each has a kernel of its own, and
    in one file they would keep one process busy long after the other has nothing left to do."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid if "test_runs_from_top_to_bottom" in nodeid else super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    return _ByFile(config, log)


@pytest.fixture(autouse=True, scope="session")
def no_probe() -> Iterator[None]:
    """No test waits while threads are measured, or depends on what that found."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kit.cli.waiting.once", dict)
        yield


# Models that load once: `model` is each tiny architecture in turn, `smol` the embedded model.

_LOADED: dict[str, Any] = {}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function: the tiny model of a kind ("gpt2", "neox", "llama", "gemma2"; "chat" has a
    template), loaded once; its folder is ``tmp_path`` of ``model.folder``."""
    from tests import tiny

    def get(kind: str) -> Any:
        if kind not in _LOADED:
            folder = tmp_path_factory.mktemp(kind)
            arch = "llama" if kind == "chat" else kind
            _LOADED[kind] = tiny.load(folder, arch, chat=kind == "chat", seed=len(kind))
            _LOADED[kind].cfg.kit_folder = str(folder)
        return _LOADED[kind]

    return get


@pytest.fixture(params=["gpt2", "neox", "llama"])
def model(request: pytest.FixtureRequest, tiny_model: Any) -> Any:
    return tiny_model(request.param)


@pytest.fixture
def llama(tiny_model: Any) -> Any:
    return tiny_model("llama")


@pytest.fixture
def gemma(tiny_model: Any) -> Any:
    return tiny_model("gemma2")


@pytest.fixture
def chat(tiny_model: Any) -> Any:
    return tiny_model("chat")


@pytest.fixture(scope="session")
def smol() -> Any:
    """The embedded model in float32, whatever this machine prefers; converting it, where that was
    never done, takes half a minute."""
    import kit

    return kit.load_model(dtype="float32")


@pytest.fixture(autouse=True)
def no_hook_survives() -> Iterator[None]:
    """Whatever a test does, it leaves every loaded model clean."""
    yield
    if not _LOADED:
        return
    import kit

    left = {kind: kit.hooks_left(model) for kind, model in _LOADED.items()}
    assert not any(left.values()), left


@pytest.fixture(autouse=True)
def one_thread_for_tiny_models(request: pytest.FixtureRequest) -> Iterator[None]:
    """Two threads over a matrix of 48 x 48 mostly wait for one another."""
    if "tiny_model" not in request.fixturenames or "smol" in request.fixturenames:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_hang() -> Iterator[None]:
    """What waits for ever fails after a minute."""

    def late(*_: Any) -> None:
        raise AssertionError("it hangs")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
