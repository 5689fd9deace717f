"""The versions that the kit is tested with, and the commands that bring a machine to them."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

CPU_TORCH = "https://download.pytorch.org/whl/cpu"


def pins() -> dict[str, str]:
    """Pinned version by package name, from constraints.txt, for this Python and system."""
    from packaging.requirements import Requirement

    lines = _constraints().read_text(encoding="utf-8").splitlines()
    wanted = [Requirement(line) for line in lines if line and not line.startswith("#")]
    here = [pin for pin in wanted if pin.marker is None or pin.marker.evaluate()]
    return {pin.name: str(pin.specifier).removeprefix("==") for pin in here}


def _constraints() -> Path:
    package = Path(__file__).resolve().parents[1]
    shipped = package / "_data" / "constraints.txt"  # in a wheel; else the clone's own
    return shipped if shipped.is_file() else package.parent / "constraints.txt"


def interpreter() -> str:
    """This Python as one types it here."""
    return _short(Path(sys.executable))


def _short(path: Path) -> str:
    inside = path.is_relative_to(Path.cwd())
    text = str(path.relative_to(Path.cwd()) if inside else path)
    return shlex.quote(text) if os.name == "posix" else f'"{text}"'


def reinstall() -> str:
    """The command that brings every package to its pin, and the shipped settings with it."""
    pinned = _constraints()
    what = f"-e {_short(pinned.parent)}" if pinned.parent.name != "_data" else "steering-kit"
    return f"{interpreter()} -m pip install -c {_short(pinned)} {what}"


def pip_install(*names: str) -> str:
    """The command that installs packages at their pins (the CPU torch where there is no GPU)."""
    try:
        known = pins()
    except (ImportError, OSError):
        known = {}
    wanted = " ".join(f"{name}=={known[name]}" if name in known else name for name in names)
    lean = "torch" in names and sys.platform == "linux" and not shutil.which("nvidia-smi")
    index = f" --extra-index-url {CPU_TORCH}" if lean else ""
    return f"{interpreter()} -m pip install {wanted}{index}"
