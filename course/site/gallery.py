"""The notebooks with their outputs as plain web pages: no script, no request, no kernel.

Each page is one file that carries its style and pictures, so that it works from a folder on disk
and from any web server. nbconvert makes the body; what came out of cells and Markdown is cleaned
(`course.site.clean`), formulas become MathML, and a widget shows the state that its cell froze.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course.site import course_map, drawing
from course.site.clean import clean, is_empty

if TYPE_CHECKING:
    from nbformat import NotebookNode

    from course.site.course_map import Lesson


WIDGET = "application/vnd.jupyter.widget-view+json"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_KINDS = ("text/html", "image/png", "image/jpeg", "text/plain")  # the first that an output has
_CAPTION = re.compile(r"""(?:title\(|title=|heatmap\(.*?,)\s*f?(["'])(.+?)\1""", re.DOTALL)


def page(title: str, body: str, *, before: str = "", after: str = "", kind: str = "", style: str = "pages.css") -> str:
    """A whole HTML page: head, policy, style, skip link, ``before`` and ``after`` the main part."""
    rules = (Path(__file__).parent / style).read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{rules}</style>
</head>
<body class="{kind}">
<a class="skip" href="#main">Skip to the text</a>
{before}
<main id="main" tabindex="-1">
{body}
</main>
{after}
</body>
</html>
"""


# --- one notebook ---------------------------------------------------------------------------------


def notebook_page(
    notebook: NotebookNode,
    lesson: Lesson,
    before: Lesson | None = None,
    after: Lesson | None = None,
    pages: Sequence[str] = (),
) -> str:
    """One notebook as a page.

    Args:
        before: the notebook of the page before, ``after`` the next one's.
        pages: stems of all notebooks that have a page; links to others become plain text.
    """
    body = _exporter(frozenset(pages)).convert(still(notebook), lesson.number)
    own = course_map.sections(notebook, lesson.number)
    toc = "".join(f'<li><a href="#{s.id}">{escape(s.title)}</a></li>' for s in own)
    facts = (
        f"Notebook {lesson.number} · {lesson.minutes} minutes for you · {lesson.seconds} s "
        f"for the machine · needs {lesson.needs}"
    )
    head = (
        f'<p class="facts">{escape(facts)}</p><nav class="toc" aria-label="Sections">'
        f"<details><summary>Sections</summary><ol>{toc}</ol></details></nav>"
    )
    steps = _steps(before, after)
    return page(
        f"{lesson.number} {lesson.title}: {lesson.question}",
        head + body,
        kind="notebook",
        before=f'<nav class="top" aria-label="Pages">{steps}</nav>',
        after=f'<nav class="bottom" aria-label="Pages, again">{steps}</nav>',
    )


def _steps(before: Lesson | None, after: Lesson | None) -> str:
    links = ['<a href="index.html">All notebooks</a>']
    for lesson, word, rel in ((before, "Previous", "prev"), (after, "Next", "next")):
        if lesson is not None:
            name = escape(f"{lesson.number} {lesson.title}")
            links.append(f'<a rel="{rel}" href="{lesson.path.stem}.html">{word}: {name}</a>')
    return " ".join(links)


def still(notebook: NotebookNode) -> NotebookNode:
    """A copy whose outputs are what a page without scripts can show, and harmless.

    A widget gives way to the HTML that was frozen beside it, or to a box that says where it lives.
    """
    found = copy.deepcopy(notebook)
    found.metadata.pop("widgets", None)
    for cell in found.cells:
        if cell.cell_type == "code":
            shown = [_still_output(output, cell.source) for output in cell.outputs]
            cell.outputs = [output for output in shown if output is not None]
    return found


def _still_output(output: NotebookNode, code: str) -> NotebookNode | None:
    if "data" not in output:
        return output  # a stream or an error: nbconvert escapes their text
    data, plain = output.data, str(output.data.get("text/plain", ""))
    output.metadata = type(output)()
    if "text/html" in data:
        html, scripted = clean(data["text/html"]), is_scripted(data["text/html"])
        if is_empty(html):
            html = box(plain, scripted=scripted) if WIDGET in data or scripted else ""
        data = {"text/html": html} if html else {}
    elif WIDGET in data:
        data = {"text/html": box(plain)}
    else:
        kind = next((kind for kind in _KINDS if kind in data), None)
        data = {kind: data[kind]} if kind else {"text/html": box("")}
        if kind in ("image/png", "image/jpeg"):
            output.metadata[kind] = {"alt": caption(code)}
    output.data = type(output)(data)
    return output if data else None


def is_scripted(html: str) -> bool:
    """Whether an output brings a script, without which it may show nothing."""
    return bool(re.search(r"<script\b", html, re.IGNORECASE))


def box(what: str, *, scripted: bool = False) -> str:
    """What stands in the place of an output that only a live notebook can show."""
    name = re.match(r"[A-Z]\w+(?=\()", what)
    which = f" (<code>{escape(name[0])}</code>)" if name else ""
    why = "a script, and these pages run none" if scripted else "a running kernel"
    return f'<div class="live" role="note"><b>Live in the notebook.</b> This view{which} needs {why}.</div>'


def caption(code: str) -> str:
    """An alternative text for the figure that a cell draws: the title that its code gives it."""
    titles = [found[2] for found in _CAPTION.finditer(code) if "{" not in found[2]]
    return f"Figure: {titles[0]}" if titles else "Figure drawn by the code above"


@cache
def _exporter(pages: frozenset[str]) -> Any:
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):  # type: ignore[misc]
        """Markdown whose ``## `` headings carry the sections' ids, and formulas as MathML."""

        number, place = "", 0

        def heading(self, text: str, level: int, **_: Any) -> str:
            self.place += level == 2
            id = f' id="{self.number}.{self.place}"' if level == 2 else ""
            return f"<h{level}{id}>{text}</h{level}>\n"

        def link(self, text: str, url: str, title: str | None = None) -> str:
            target, _, anchor = url.partition("#")
            if target.endswith(".ipynb") and Path(target).stem in pages:
                url = f"{Path(target).stem}.html" + (f"#{anchor}" if anchor else "")
            elif target and not re.match(r"(?:https?|mailto):", target):
                return text  # a file of the repository, which is not beside this page
            return str(super().link(text, url, title))

        def inline_math(self, body: str) -> str:
            return formula(body)

        def block_math(self, body: str) -> str:
            return formula(body, block=True)

    class Exporter(HTMLExporter):  # type: ignore[misc]
        def convert(self, notebook: NotebookNode, number: str) -> str:
            self.renderer = Renderer(escape=False)
            self.renderer.number = number
            return str(self.from_notebook_node(notebook)[0])

        def default_filters(self) -> Any:
            yield from super().default_filters()
            yield ("markdown2html", self.markdown)

        def markdown(self, source: str) -> str:
            return clean(MarkdownWithMath(renderer=self.renderer).render(source))

    return Exporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)


def formula(tex: str, *, block: bool = False) -> str:
    """A formula as MathML; as code where it is no TeX that can be read."""
    from latex2mathml.converter import convert

    try:
        return str(convert(tex.strip(), display="block" if block else "inline"))
    except Exception:
        return f"<code>{escape(tex.strip())}</code>"


# --- the first page -------------------------------------------------------------------------------


def index_page(lessons: Sequence[Lesson], whole: Sequence[Lesson] = ()) -> str:
    """The first page: map and table of the course.

    Args:
        lessons: the notebooks that have a page.
        whole: all notebooks of the course, for the map; by default the same ones.
    """
    there = {lesson.number for lesson in lessons}
    minutes, rows = sum(lesson.minutes for lesson in lessons), []
    for item in lessons:
        goals = "".join(f"<li>{escape(goal)}</li>" for goal in item.goals)
        rows.append(
            f'<tr><th scope="row"><a href="{item.path.stem}.html">{item.number} '
            f"{escape(item.title)}</a></th><td>{escape(item.question)}<ul>{goals}</ul></td>"
            f'<td data-label="You">{item.minutes} min</td><td data-label="Machine">{item.seconds} s'
            f'</td><td data-label="Needs">{escape(item.needs)}</td></tr>'
        )
    body = f"""<h1>Steering a language model: the course</h1>
<p>{len(lessons)} notebooks with their outputs, as they ran; {minutes // 60} h and
{minutes % 60} minutes for a person. These pages need no kernel and no network; a slider moves in
the notebooks:</p>
<pre>make lab     # sets everything up (once) and opens the first notebook
kit doctor   # what is wrong with this machine, and what mends it</pre>
<h2 id="map">The map</h2>
<p>A notebook needs what points at it with a full line; a dashed line means that it helps.</p>
<div class="scroll" role="region" aria-label="Map of the course" tabindex="0">
{drawing.chart(whole or lessons, there)}
</div>
<h2 id="table">The notebooks</h2>
<div class="scroll" role="region" aria-label="Table of the notebooks" tabindex="0">
<table class="course"><thead><tr><th scope="col">Notebook</th>
<th scope="col">Question and goals</th><th scope="col">You</th>
<th scope="col">Machine</th><th scope="col">Needs</th></tr></thead>
<tbody>{"".join(rows)}</tbody></table></div>
<p class="facts">Seconds were measured on two CPU cores when the outputs were made.</p>"""
    return page("Steering a language model: the course", body, kind="index")
