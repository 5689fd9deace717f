"""``kit workshop``: student and instructor notebooks, the gallery, the handout, the links.

Everything is built in a folder beside the wanted one, which takes its place at the end: a build
that was stopped, or failed, leaves what was there before.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from course import runner
from course.site import colab, course_map, editions, gallery, handout
from kit.base.progress import track
from kit.cli.pins import pip_install

MARK = ".kit-workshop"  # a folder that holds this file was built here, and may be replaced
_LIBRARIES = ("bleach", "latex2mathml", "nbconvert", "nbformat")


def build(
    out: Path,
    names: Sequence[str] = (),
    *,
    repository: str = "",
    branch: str = "main",
    address: str = "",
    folder: Path = runner.FOLDER,
) -> list[str]:
    """Build a workshop's files; returns lines that say what is where.

    Args:
        out: the folder to make. One that an earlier build made is replaced.
        names: notebooks ("03", or a file name); all when empty.
        repository: its address, for the cell that sets up Colab and for ``links.md``.
        branch: the branch of the repository that holds the student edition.
        address: the room's address, for the handout and the hub's links.
        folder: where the notebooks are.

    Raises:
        ModuleNotFoundError: a library is missing; the text is the command that installs it.
        ValueError: no such notebook, no address, or ``out`` holds something else.
    """
    missing = [name for name in _LIBRARIES if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f"{', '.join(missing)} missing: {pip_install(*missing)}")
    if repository:
        colab.checked(repository)
    out = Path(os.path.abspath(out))
    if out.is_file():
        raise ValueError(f"out={out}: it is a file; name a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).is_file():
        raise ValueError(f"out={out}: it holds files that no build made; name another folder")
    whole = course_map.read(folder=folder)
    if not whole:
        raise ValueError(f"no notebooks in {folder}: run this in a clone of the repository")
    wanted = set(runner.choose(names, folder))
    lessons = [lesson for lesson in whole if lesson.path in wanted]
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        said = _fill(partial, lessons, whole, repository, branch, address)
        _put(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return [str(out), *said]


def _fill(
    out: Path,
    lessons: Sequence[course_map.Lesson],
    whole: Sequence[course_map.Lesson],
    repository: str,
    branch: str,
    address: str,
) -> list[str]:
    for name in ("student", "instructor", "gallery"):
        (out / name).mkdir(parents=True)
    stems = [lesson.path.stem for lesson in lessons]
    beside = zip([None, *lessons[:-1]], lessons, [*lessons[1:], None], strict=True)
    for before, lesson, after in track(list(beside), "notebooks"):
        source = course_map.open_notebook(lesson.path)
        for name, notebook in (
            ("student", editions.student(source, lesson, repository)),
            ("instructor", editions.instructor(source, lesson)),
        ):
            runner.write(notebook, out / name / lesson.path.name)
        html = gallery.notebook_page(source, lesson, before, after, stems)
        (out / "gallery" / f"{lesson.path.stem}.html").write_text(html, encoding="utf-8")
    index = gallery.index_page(lessons, whole)
    (out / "gallery" / "index.html").write_text(index, encoding="utf-8")
    (out / "handout.html").write_text(handout.handout_page(lessons, address), encoding="utf-8")
    (out / MARK).write_text("", encoding="utf-8")
    n = f"{len(lessons)} notebook{'s' * (len(lessons) != 1)}"
    said = [
        f"student/      {n} without outputs, solutions and quiz answers",
        f"instructor/   {n} with outputs, solutions, a plan and talking points",
        "gallery/      web pages: open index.html, or put the folder on any web server",
        "handout.html  one page of A4 for the room",
    ]
    if repository:
        hub = address if address.startswith(("http://", "https://")) else ""
        text = colab.links(lessons, repository, branch=branch, hub=hub)
        (out / "links.md").write_text(text, encoding="utf-8")
        said.append("links.md      for Colab, Binder and a JupyterHub with nbgitpuller")
    return [f"  {line}" for line in said]


def _put(partial: Path, out: Path) -> None:
    """Let a finished folder take the place of an earlier one."""
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    if out.is_dir():
        os.replace(out, old)
    try:
        os.replace(partial, out)
    except OSError:
        if old.is_dir():
            os.replace(old, out)
        raise
    shutil.rmtree(old, ignore_errors=True)
