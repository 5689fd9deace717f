"""The course map, read from the notebooks themselves.

What a notebook says in its header for people it keeps in ``metadata.kit`` for programs: ``title``
and ``question``, ``goals``, ``after`` (numbers of the notebooks that it needs) and ``helps``
(numbers of those that help).

``python -m course.site.course_map`` prints the table of the course; with ``--write`` it also puts
it into notebook 00 and the README, which is due whenever the notebooks were timed anew.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from course import rules, runner
from kit.base.files import whole

if TYPE_CHECKING:
    from nbformat import NotebookNode

_TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)


@dataclass(frozen=True)
class Section:
    """The part of a notebook below one ``## `` heading.

    ``id`` is the notebook's number and the heading's place, whatever number the heading shows; the
    part before the first heading has place 0. ``text`` is its Markdown, ``code`` the indices of its
    code cells.
    """

    id: str
    title: str
    text: str
    code: tuple[int, ...]


@dataclass(frozen=True)
class Check:
    """A call ``kit.exercises.check(id, answer, **context)``, as source text."""

    id: str
    answer: str
    context: str


@dataclass(frozen=True)
class Lesson:
    """One notebook. ``minutes`` are for a person, ``seconds`` were measured on the machine."""

    path: Path
    title: str
    question: str
    minutes: int
    seconds: int
    goals: tuple[str, ...]
    after: tuple[str, ...]
    helps: tuple[str, ...]
    exercises: tuple[str, ...]
    talking_points: tuple[str, ...]

    @property
    def number(self) -> str:
        """Two digits."""
        return self.path.stem[:2]

    @property
    def needs(self) -> str:
        """The prerequisites in words: ``02 (05 helps)``, a dash for none."""
        helps = f"({', '.join(self.helps)} helps)" if self.helps else ""
        return " ".join(filter(None, [", ".join(self.after), helps])) or "–"


def lesson(path: Path, notebook: NotebookNode | None = None) -> Lesson:
    """Read one notebook.

    Raises:
        ValueError: its ``metadata.kit`` lacks something; the text names the notebook and what.
    """
    notebook = rules.read(path) if notebook is None else notebook
    kit = notebook.metadata.get("kit", {})
    lacks = [
        key for key in ("title", "question", "goals", "after", "human_minutes", "machine_seconds") if key not in kit
    ]
    if lacks:
        raise ValueError(f"{path.name}: metadata.kit has no {', '.join(lacks)}")
    found = [check.id for cell in notebook.cells for check in checks(cell)]
    return Lesson(
        path,
        kit["title"],
        kit["question"],
        kit["human_minutes"],
        kit["machine_seconds"],
        tuple(kit["goals"]),
        tuple(kit["after"]),
        tuple(kit.get("helps", ())),
        tuple(found),
        tuple(kit.get("talking_points", ())),
    )


def read(folder: Path = runner.FOLDER) -> list[Lesson]:
    """All notebooks in order. Raises ValueError like `lesson`."""
    return [lesson(path) for path in runner.choose([], folder)]


def checks(cell: NotebookNode) -> list[Check]:
    """The exercise checks of a code cell; none in a cell that is no Python."""
    if cell.cell_type != "code" or "exercises.check(" not in cell.source:
        return []
    try:
        tree = ast.parse(cell.source)
    except SyntaxError:  # a magic, or an answer half typed
        return []
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "kit.exercises.check"
    ]
    return [
        Check(
            ast.literal_eval(call.args[0]),
            ast.unparse(call.args[1]),
            ", ".join(f"{k.arg}={ast.unparse(k.value)}" for k in call.keywords),
        )
        for call in calls
    ]


def parts(notebook: NotebookNode, number: str) -> list[Section]:
    """What stands before the first ``## `` heading, then the sections, in order.

    A heading counts wherever it stands in a Markdown cell; a line in a code fence is no heading.
    """
    found: list[tuple[str, list[str], list[int]]] = [("Start", [], [])]
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            found[-1][2].append(index)
            continue
        for line, begins in rules.section_lines(cell.source):
            if begins:
                found.append((line[3:].strip(), [], []))
            found[-1][1].append(line)
        found[-1][1].append("")
    return [
        Section(f"{number}.{place}", title, "\n".join(text), tuple(code))
        for place, (title, text, code) in enumerate(found)
    ]


def sections(notebook: NotebookNode, number: str) -> list[Section]:
    """The sections that `kit.catch_up` can start at, counted from 1."""
    return parts(notebook, number)[1:]


def table(lessons: Sequence[Lesson], folder: str = "notebooks/", here: str = "") -> str:
    """The course as a Markdown table.

    Args:
        folder: what stands before the file names in links.
        here: number of the notebook that the table stands in, which is no link.
    """
    rows = ["| notebook | question | you | machine | needs |", "|---|---|---|---|---|"]
    for item in lessons:
        name = f"{item.number} {item.title}"
        link = f"**{name}**" if item.number == here else f"[{name}]({folder}{item.path.name})"
        rows.append(f"| {link} | {item.question} | {item.minutes} min | {item.seconds} s | {item.needs} |")
    return "\n".join(rows) + "\n"


def mermaid(lessons: Sequence[Lesson]) -> str:
    """The map as Mermaid in a Markdown fence, which GitHub and JupyterLab draw by themselves."""
    there = {item.number for item in lessons}
    lines = ["```mermaid", "flowchart TD"]
    for item in lessons:
        lines.append(f'n{item.number}["{item.number} {item.title}<br>{item.minutes} min"]')
        lines += [f"n{number} --> n{item.number}" for number in item.after if number in there]
        lines += [f"n{number} -.-> n{item.number}" for number in item.helps if number in there]
    return "\n".join([*lines, "```"])


def replace_table(text: str, first: str, new: str) -> str:
    """`text` with the Markdown table that mentions `first` replaced.

    Raises:
        ValueError: there is no such table, or more than one.
    """
    found = [match for match in _TABLE.finditer(text) if first in match[0]]
    if len(found) != 1:
        raise ValueError(f"{len(found)} tables mention {first!r}: one is needed")
    return text[: found[0].start()] + new + text[found[0].end() :]


def write(folder: Path = runner.FOLDER, readme: Path | None = None) -> list[Path]:
    """Put the table into notebook 00 and the README; returns the files that changed."""
    lessons, changed = read(folder), []
    start = lessons[0].path
    notebook = rules.read(start)
    cell = next(cell for cell in notebook.cells if "01_hooks.ipynb) | " in cell.source)
    new = replace_table(cell.source, "01_hooks.ipynb", table(lessons, "", "00"))
    if new != cell.source:
        cell.source = new
        notebook.metadata["kit"]["source_sha256"] = rules.source_hash(notebook)
        runner.write(notebook, start)
        changed.append(start)
    readme = readme or folder.parent / "README.md"
    old = readme.read_text(encoding="utf-8")
    new = replace_table(old, start.name, table(lessons))
    if new != old:
        with whole(readme) as part:
            part.write_text(new, encoding="utf-8")
        changed.append(readme)
    return changed


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: print the table, or put it where it belongs."""
    parser = argparse.ArgumentParser(prog="python -m course.site.course_map", description=main.__doc__)
    parser.add_argument("--write", action="store_true", help="into notebook 00 and the README")
    if parser.parse_args(arguments).write:
        print("\n".join(f"{path.name}: new table" for path in write()) or "nothing to change")
    else:
        print(table(read()), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
