"""``python -m course.room.hub``: convert the model once for all seats, then become JupyterHub."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from course.room import settings


def main(arguments: list[str]) -> int:
    """Returns 1 with one line on stderr if the hub cannot start."""
    try:
        host = settings.read()
        if os.geteuid() != 0:
            raise PermissionError(
                f"user {os.geteuid()}: each seat runs as its own unix user, so root must start the hub"
            )
        settings.make_folders(host)
        os.environ["KIT_CACHE"] = str(host.cache)
        fetch = [sys.executable, "-m", "kit", "fetch"]  # not in this process: a hub needs no torch
        if subprocess.run(fetch, stdout=subprocess.DEVNULL).returncode:
            raise OSError(f"the model is not in {host.cache}: run `kit fetch` with a network")
    except (OSError, ValueError) as error:
        sys.stderr.write(f"kit hub: {error}\n")
        return 1
    config = Path(__file__).resolve().parent / "jupyterhub_config.py"
    command = [sys.executable, "-m", "jupyterhub", "-f", str(config), *arguments]
    sys.stdout.flush()
    os.execv(sys.executable, command)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
