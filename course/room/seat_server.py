"""What a seat runs, as its own user: lay out the notebooks, then become the Jupyter server.

The notebooks are copied into the home as files that the participant owns. One that is there stays
as it is, whatever changed here; one that was deleted or renamed comes back fresh.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from course.room.behind_server import BEHIND


def lay_out(source: Path, target: Path) -> list[Path]:
    """Copy each file that the target folder lacks; returns the copies. Overwrites nothing."""
    made = []
    for file in sorted(source.rglob("*")):
        copy = target / file.relative_to(source)
        hidden = any(part.startswith(".") for part in file.relative_to(source).parts)
        if hidden or not file.is_file() or os.path.lexists(copy):
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=copy.parent, prefix=".copy-")
        os.close(handle)
        try:
            shutil.copyfile(file, name)
            os.link(name, copy)  # unlike a rename, this never replaces what appeared meanwhile
            made.append(copy)
        except FileExistsError:
            pass
        finally:
            os.unlink(name)
    return made


def main(arguments: list[str]) -> None:
    """Lay out, then turn into the server; a full disk must not keep anyone from logging in."""
    try:
        lay_out(Path(os.environ["KIT_HUB_NOTEBOOKS"]), Path.home() / "notebooks")
    except OSError as error:
        sys.stderr.write(f"notebooks were not copied: {error}\n")
    shell = [*BEHIND, os.environ.get("SHELL") or "/bin/sh", "-l"]
    command = [
        *(sys.executable, "-m", "jupyterhub.singleuser"),
        # in the user's own folder: on a shared host anyone could listen to a kernel's TCP port
        "--KernelManager.transport=ipc",
        "--AsyncMappingKernelManager.kernel_manager_class=course.room.seat_kernels.SeatKernelManager",
        f"--ServerApp.terminado_settings={{'shell_command': {shell!r}}}",
    ]
    os.execv(sys.executable, [*command, *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
