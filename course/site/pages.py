"""The notebooks with their outputs as plain web pages: no script, no request, no kernel.

Each page is one file that carries its style and pictures, so that it works from a folder on disk
and from any web server. nbconvert makes the body (``templates/cells.html.j2``); what came out of
cells and Markdown is cleaned (`course.site.clean`), formulas become MathML, and a widget shows the
state that its cell froze.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from markupsafe import Markup, escape
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode

from course.site import course_map
from course.site.clean import clean, is_empty
from course.site.course_map import Lesson
from course.site.output import FOLDER, render

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_CAPTION = re.compile(r"""(?:title\(|title=|heatmap\(.*?,)\s*f?(["'])(.+?)\1""", re.DOTALL)


def notebook_page(
    notebook: NotebookNode,
    lesson: Lesson,
    before: Lesson | None = None,
    after: Lesson | None = None,
    pages: Collection[str] = (),
) -> str:
    """One notebook as a page.

    Args:
        before: the notebook of the page before, ``after`` the next one's.
        pages: stems of all notebooks that have a page; links to others become plain text.
    """
    renderer = _Renderer(lesson.number, pages)
    exporter = HTMLExporter(
        template_name="basic",
        template_file=str(FOLDER / "cells.html.j2"),
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        sanitize_html=True,  # with the filter clean_html, which is ours
        filters={
            "caption": caption,
            "clean_html": clean,
            "is_empty": is_empty,
            "markdown2html": MarkdownWithMath(renderer=renderer).render,
        },
    )
    body, _ = exporter.from_notebook_node(notebook)
    sections = course_map.sections(notebook, lesson.number)
    return _page("notebook", lesson=lesson, before=before, after=after, sections=sections, body=Markup(body))


def index_page(lessons: Sequence[Lesson], whole: Sequence[Lesson] = ()) -> str:
    """The first page: the map of the course.

    Args:
        lessons: the notebooks that have a page.
        whole: all notebooks of the course; by default the same ones.
    """
    minutes = sum(lesson.minutes for lesson in lessons)
    return _page("index", lessons=lessons, whole=whole or lessons, minutes=minutes)


def handout_page(lessons: Sequence[Lesson], address: str = "") -> str:
    """The handout, which prints on one page of A4 (18 notebooks; fewer leave room).

    Args:
        address: where the room's notebooks are; a line to write on when empty.
    """
    linked = address.startswith(("http://", "https://"))
    return _page("handout", lessons=lessons, address=address, linked=linked, exercise_ids=exercise_ids)


def exercise_ids(lesson: Lesson) -> str:
    """``00.1 to 2`` for a run of ids, else all of them."""
    ids = sorted(lesson.exercises)
    places = [int(id.split(".")[1]) for id in ids]
    if len(ids) < 2 or places != list(range(places[0], places[0] + len(places))):
        return ", ".join(ids)
    return f"{ids[0]} to {places[-1]}"


def _page(kind: str, **values: Any) -> str:
    return render(f"{kind}.html", kind=kind, policy=Markup(POLICY), **values)


def caption(code: str) -> str:
    """An alternative text for the figure that a cell draws: the title that its code gives it."""
    titles = [found[2] for found in _CAPTION.finditer(code) if "{" not in found[2]]
    return f"Figure: {titles[0]}" if titles else "Figure drawn by the code above"


class _Renderer(IPythonRenderer):  # type: ignore[misc]
    """Markdown whose ``## `` headings carry the sections' ids, and formulas as MathML."""

    def __init__(self, number: str, pages: Collection[str]) -> None:
        super().__init__(escape=False)
        self.number, self.pages, self.place = number, pages, 0

    def heading(self, text: str, level: int, **_: Any) -> str:
        self.place += level == 2
        id = f' id="{self.number}.{self.place}"' if level == 2 else ""
        return f"<h{level}{id}>{text}</h{level}>\n"

    def link(self, text: str, url: str, title: str | None = None) -> str:
        target, _, anchor = url.partition("#")
        if target.endswith(".ipynb") and Path(target).stem in self.pages:
            url = f"{Path(target).stem}.html" + (f"#{anchor}" if anchor else "")
        elif target and not re.match(r"(?:https?|mailto):", target):
            return text  # a file of the repository, which is not beside this page
        return str(super().link(text, url, title))

    def inline_math(self, body: str) -> str:
        return formula(body)

    def block_math(self, body: str) -> str:
        return formula(body, block=True)


def formula(tex: str, *, block: bool = False) -> str:
    """A formula as MathML; as code where it is no TeX that can be read."""
    try:
        return str(convert(tex.strip(), display="block" if block else "inline"))
    except Exception:
        return f"<code>{escape(tex.strip())}</code>"
