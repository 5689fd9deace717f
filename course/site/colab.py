"""The first cell that makes a notebook work in Colab, and the links that open notebooks elsewhere.

In Colab the cell clones the repository and installs the pinned packages into the session; anywhere
else it does nothing. A session that had another numpy loaded before has to be restarted once, which
the cell says.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from course.site.course_map import Lesson, mermaid
from course.site.output import render
from kit.cli.pins import CPU_TORCH, pins

CLONE = "steering-kit"
_GITHUB = re.compile(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?")

_CELL = """
# In Colab: get the kit and its model (some minutes, about 2 GB). Anywhere else: nothing.
import sys

if "google.colab" in sys.modules:
    import os
    import shutil
    import subprocess

    def run(*command):
        print("$", *command, flush=True)
        subprocess.run(command, check=True)

    pip = sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"
    if not os.path.isdir("{clone}"):
        run("git", "clone", "--quiet", "--depth", "1", "--", {repository!r}, "{clone}")
    if not shutil.which("nvidia-smi"):  # without a GPU: not the gigabytes of CUDA
        run(*pip, "--no-deps", "--index-url", "{index}", "torch=={torch}")
    run(*pip, "-c", "{clone}/constraints.txt", "-e", "./{clone}")
    run(sys.executable, "-m", "kit", "fetch")
    sys.path.insert(0, os.path.abspath("{clone}"))
    if "numpy" in sys.modules:
        print("Now restart the session (menu Runtime), then run from the top: quick now.")
"""


def checked(repository: str) -> str:
    """The address of a repository, as it was given.

    Raises:
        ValueError: it is no address that git could take, or one that git would take for an option.
    """
    local = repository.startswith("/") and Path(repository).is_dir()
    if not local and not re.fullmatch(r"(?:https?|ssh|file)://[^\s'\"\\<>]+", repository):
        raise ValueError(f"repository={repository!r}: give an address such as https://github.com/OWNER/NAME")
    return repository


def cell(repository: str) -> str:
    """Source of the first cell. Raises ValueError like `checked`."""
    return _CELL.strip().format(repository=checked(repository), clone=CLONE, index=CPU_TORCH, torch=pins()["torch"])


def links(lessons: Sequence[Lesson], repository: str, *, branch: str = "main", hub: str = "") -> str:
    """A Markdown page of links that open the student edition in Colab, Binder and on a JupyterHub.

    Args:
        branch: the repository's branch that holds the student edition.
        hub: address of the JupyterHub that has nbgitpuller, for the last column.
    """
    checked(repository)
    github = _GITHUB.fullmatch(repository)
    name = repository.rstrip("/").removesuffix(".git").rsplit("/", 1)[-1]
    where, at = quote(repository, safe=""), quote(branch, safe="")
    rows = []
    for lesson in lessons:
        path = f"student/{lesson.path.name}"
        colab = f"https://colab.research.google.com/github/{github[1]}/blob/{quote(branch)}/{path}" if github else ""
        binder = f"https://mybinder.org/v2/{f'gh/{github[1]}' if github else f'git/{where}'}/{at}?labpath={path}"
        tree = quote(f"lab/tree/{name}/{path}", safe="")
        pull = f"{hub.rstrip('/')}/hub/user-redirect/git-pull?repo={where}&branch={at}&urlpath={tree}"
        rows.append((lesson, colab, binder, pull))
    return render(
        "links.md", rows=rows, repository=repository, branch=branch, hub=hub, github=github, map=mermaid(lessons)
    )
