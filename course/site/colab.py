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
    address = repr(checked(repository))
    return render("colab.py.j2", repository=address, clone=CLONE, index=CPU_TORCH, torch=pins()["torch"]).strip()


def links(lessons: Sequence[Lesson], repository: str, *, branch: str = "main", hub: str = "") -> str:
    """A Markdown page of links that open the student edition in Colab, Binder and on a JupyterHub.

    Args:
        branch: the repository's branch that holds the student edition.
        hub: address of the JupyterHub that has nbgitpuller, for the last column.
    """
    checked(repository)
    found = _GITHUB.fullmatch(repository)
    github = found[1] if found else ""  # OWNER/NAME
    name = repository.rstrip("/").removesuffix(".git").rsplit("/", 1)[-1]
    where, at = quote(repository, safe=""), quote(branch, safe="")
    hosted = f"gh/{github}" if github else f"git/{where}"
    rows = []
    for lesson in lessons:
        path = f"student/{lesson.path.name}"
        colab = f"https://colab.research.google.com/github/{github}/blob/{quote(branch)}/{quote(path)}"
        binder = f"https://mybinder.org/v2/{hosted}/{at}?labpath={quote(path)}"
        tree = quote(f"lab/tree/{name}/{path}", safe="")
        pull = f"{hub.rstrip('/')}/hub/user-redirect/git-pull?repo={where}&branch={at}&urlpath={tree}"
        rows.append((lesson, colab, binder, pull))
    return render(
        "links.md", rows=rows, repository=repository, branch=branch, hub=hub, github=github, map=mermaid(lessons)
    )
