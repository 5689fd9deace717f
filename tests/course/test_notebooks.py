"""The committed notebooks: outputs held to sources, and each runs offline, at its small size."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from nbformat import NotebookNode

from course import exercises, rules, runner

PATHS = runner.choose([])
NAMES = [path.stem for path in PATHS]
each_notebook = pytest.mark.parametrize("path", PATHS, ids=NAMES)

# Runs before a notebook's own cells: conftest's guard against name look-ups holds in the kernel.
GUARDED = "import socket\nassert socket._kit_offline"


def check_calls(notebook: NotebookNode) -> dict[str, str]:
    """The checks a notebook makes: exercise id -> keywords of the call, as source."""
    found = {}
    for cell in notebook.cells:
        if cell.cell_type != "code" or "exercises.check(" not in cell.source:
            continue
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "kit.exercises.check":
                keywords = ", ".join(f"{k.arg}={ast.unparse(k.value)}" for k in node.keywords)
                found[ast.literal_eval(node.args[0])] = keywords
    return found


def solved(notebook: NotebookNode) -> list[str]:
    """Cells that give every check of a notebook, in its own kernel, the solution's answer."""
    return [
        f"_exercise, _context = kit.exercises.find({id!r}), dict({keywords})\n"
        "_answer = _exercise.answer(_exercise.solution, _context)\n"
        f"_outcome = kit.exercises.check({id!r}, _answer, **_context)\n"
        "assert _outcome, _outcome"
        for id, keywords in check_calls(notebook).items()
    ]


def test_the_course_has_its_notebooks() -> None:
    assert {name[:2] for name in NAMES} >= {"00", "01", "02", "03", "04"}
    assert len({name[:2] for name in NAMES}) == len(NAMES), "two notebooks share a number"


@each_notebook
def test_stored_outputs_belong_to_the_sources(path: Path) -> None:
    assert runner.problems(path) == []


@each_notebook
def test_exercises_of_the_notebook_are_the_registered_ones(path: Path) -> None:
    notebook = rules.read(path)
    number = path.stem[:2]
    registered = {id: e for id, e in exercises.registry().items() if id.startswith(f"{number}.")}
    assert check_calls(notebook).keys() == registered.keys()
    code = [cell.source.strip() for cell in notebook.cells if cell.cell_type == "code"]
    for id, exercise in registered.items():
        stub = exercise.stub.strip()
        assert any(stub in source for source in code), f"no cell holds the stub of {id}"


@each_notebook
def test_runs_from_top_to_bottom_offline(path: Path) -> None:
    notebook = rules.read(path)
    passes = 2 if path == PATHS[0] else 1  # the first one also a second time in the same kernel
    done, _ = runner.execute(  # the budget is held when outputs are made: this is no timing
        path, small=True, prelude=[GUARDED], epilogue=solved(notebook), passes=passes
    )
    assert [cell.source for cell in done.cells] == [cell.source for cell in notebook.cells]
