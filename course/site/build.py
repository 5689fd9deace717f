"""``kit workshop``: student and instructor notebooks, pages, the handout, the links."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from course import rules, runner
from course.site import colab, course_map
from course.site.output import replaced
from kit.base.progress import track
from kit.cli.pins import pip_install

MARK = ".kit-workshop"  # a folder that holds this file was built here, and may be replaced
_LIBRARIES = ("bleach", "jinja2", "latex2mathml", "nbconvert", "nbformat")


def build(
    out: Path,
    names: Sequence[str] = (),
    *,
    repository: str = "",
    branch: str = "main",
    address: str = "",
    folder: Path = runner.FOLDER,
) -> list[str]:
    """Build a workshop's files, whole or not at all; returns lines that say what is where.

    Args:
        out: the folder to make. One that an earlier build made is replaced.
        names: notebooks ("03", or a file name); all when empty.
        repository: its address, for the cell that sets up Colab and for ``links.md``.
        branch: the branch of the repository that holds the student edition.
        address: the room's address, for the handout and the hub's links.
        folder: where the notebooks are.

    Raises:
        ModuleNotFoundError: a library is missing; the text is the command that installs it.
        FileExistsError: ``out`` holds something else.
        ValueError: no such notebook, or no address.
    """
    missing = [name for name in _LIBRARIES if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f"{', '.join(missing)} missing: {pip_install(*missing)}")
    from course.site import pages  # which imports them

    if repository:
        colab.checked(repository)
    wanted = runner.choose(names, folder)
    whole = course_map.read(folder)
    if not whole:
        raise ValueError(f"no notebooks in {folder}: run this in a clone of the repository")
    lessons = [lesson for lesson in whole if lesson.path in wanted]
    n = f"{len(lessons)} notebook{'s' * (len(lessons) != 1)}"
    said = [
        f"student/      {n} without outputs, solutions and quiz answers",
        f"instructor/   {n} with outputs, solutions, a plan and talking points",
        "pages/        web pages: open index.html, or put the folder on any web server",
        "handout.html  one page of A4 for the room",
    ]
    with replaced(out, MARK) as fresh:
        for name in ("student", "instructor", "pages"):
            (fresh / name).mkdir()
        _notebooks(fresh, lessons, repository)
        texts = {
            "pages/index.html": pages.index_page(lessons, whole),
            "handout.html": pages.handout_page(lessons, address),
            MARK: "",
        }
        if repository:
            hub = address if address.startswith(("http://", "https://")) else ""
            texts["links.md"] = colab.links(lessons, repository, branch=branch, hub=hub)
            said.append("links.md      for Colab, Binder and a JupyterHub with nbgitpuller")
        for name, text in texts.items():
            (fresh / name).write_text(text, encoding="utf-8")
    return [os.path.abspath(out), *(f"  {line}" for line in said)]


def _notebooks(out: Path, lessons: Sequence[course_map.Lesson], repository: str) -> None:
    """Both editions and the page of each notebook."""
    from course.site import editions, pages

    there = {lesson.path.stem for lesson in lessons}
    beside = zip([None, *lessons[:-1]], lessons, [*lessons[1:], None], strict=True)
    for before, lesson, after in track(list(beside), "notebooks"):
        source = rules.read(lesson.path)
        runner.write(editions.student(source, lesson, repository), out / "student" / lesson.path.name)
        runner.write(editions.instructor(source, lesson), out / "instructor" / lesson.path.name)
        html = pages.notebook_page(source, lesson, before, after, there)
        (out / "pages" / f"{lesson.path.stem}.html").write_text(html, encoding="utf-8")
