"""Catch-up: what a section needs, and real notebooks. Files: `test_checkpoints.py`."""

from __future__ import annotations

import ast
import builtins
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest

import kit
from course import exercises, runner
from course.catch_up import CatchUpError, running
from course.catch_up.files import Shelf, local
from course.catch_up.plan import Book
from course.catch_up.running import catch_up
from course.catch_up.scopes import effects
from course.catch_up.values import CannotStore, Writer
from kit.data import organisms

EVERY = runner.choose([])


def book(*cells: str, name: str = "77_made_up") -> Book:
    """A notebook: cells that start with ``#`` and a space are markdown."""
    new = nbformat.v4
    made = [new.new_markdown_cell(c) if c.startswith(("# ", "## ")) else new.new_code_cell(c) for c in cells]
    return Book(new.new_notebook(cells=made), name, frozenset({*dir(builtins), "__name__"}))


def shelf(of: Book, *folders: Path) -> Shelf:
    return Shelf(of, folders, small=False)


def effect(code: str, shown: bool = False) -> Any:
    return effects(ast.parse(code).body[0], shown=shown)


def caught(of: Book, number: int, **given: Any) -> dict[str, Any]:
    """The namespace after catching up, less what every namespace has."""
    namespace: dict[str, Any] = dict(given)
    catch_up(of, number, namespace, shelf(of))
    return {k: v for k, v in namespace.items() if k != "__builtins__"}


# --- one statement ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "reads", "binds"),
    [
        ("a = b + c", "b c", "a"),
        ("a, *d = e = b", "b", "a d e"),
        ("a += 1", "a", "a"),
        ("a[i].x = v", "a i v", ""),
        ("import x.y as z, w.v", "", "z w"),
        ("from m import n as o", "", "o"),
        ("for i in r:\n    s = i + t", "r t", "i s"),
        ("for i in r:\n    s = s + i", "r s", "i s"),
        ("a = [i for i in r if i > n for j in i]", "r n", "a"),
        ("a = [(last := i) for i in r]", "r", "a last"),
        ("a = {k: v for k, v in d.items()}", "d", "a"),
        ("with f(p) as q:\n    g = q.h", "f p", "q g"),
        ("try:\n    a = f()\nexcept E as e:\n    print(e)", "f E print", "a e"),
        ("if c:\n    a = 1\nelse:\n    b = a", "c a", "a b"),
        ("while n:\n    n = n - m", "n m", "n"),
        ("def f(x, y=d):\n    z = x + g\n    return z", "d", "f"),
        ("@w\nclass C(B):\n    x = y\n    def m(self):\n        return x + later", "w B y", "C"),
        ("a = sorted(r, key=lambda i: i + n)", "sorted r n", "a"),
        ("def f():\n    return [x for x in r] + x\n", "", "f"),
        ("del a", "", "a"),
        ("match s:\n    case [p, *q]:\n        t = p\n    case V.w:\n        pass", "s V", "p q t"),
    ],
)
def test_what_a_statement_reads_and_binds(code: str, reads: str, binds: str) -> None:
    found = effect(code)
    assert (found.reads, found.binds) == (set(reads.split()), set(binds.split()))


def test_what_is_bound_in_one_branch_may_not_be_bound() -> None:
    assert effect("if c:\n    a = b = 1\nelse:\n    a = 2").kills == {"a"}
    assert effect("for a in r:\n    b = 1").kills == set()
    assert effect("with f() as a:\n    b = 1").kills == {"a", "b"}


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("a.append(b)", "a"),
        ("x = a.pop()", "a"),
        ("a.b.c[0].run()", "a"),
        ("a.report()", "a"),  # a method called for its own sake
        ("x = a.report()", ""),
        ("a.weight.fill_(0)", "a"),
        ("x = torch.rand(3, generator=rng)", "rng"),
        ("x = next(a)", "a"),
        ("x = [b.run() for b in a]", "a"),
        ("x = [b.run() for i, (b, c) in enumerate(zip(a, d))]", "a"),
        ("a[0] += b", "a"),
        ("setattr(a, 'x', b)", "a"),
        ("del a[0]", "a"),
        ("print(a)", ""),
        ("a.save(folder / 'x')", "a folder"),
    ],
)
def test_what_a_statement_changes(code: str, changes: str) -> None:
    assert effect(code).changes == set(changes.split())


def test_the_last_expression_of_a_cell_is_there_to_be_shown() -> None:
    assert effect("a.report()", shown=True).changes == set()
    assert effect("a.append(1)", shown=True).changes == {"a"}


# --- sections and plans -----------------------------------------------------------------------


def test_sections_are_second_headings_in_order() -> None:
    of = book("# title", "## 4 · One\n\n## Two\n### no", "x = 1", "## Three\n```\n## code\n```", "x")
    assert [(s.number, s.title, s.cell) for s in of.sections] == [(1, "4 · One", 1), (2, "Two", 1), (3, "Three", 3)]
    with pytest.raises(ValueError, match="section 4: 77_made_up has 1: 4 · One; 2: Two; 3: Three"):
        of.section(4)


CASES: dict[str, tuple[list[str], str, dict[str, Any]]] = {
    "only what is needed": (["a = 1\nb = 2"], "a", {"a": 1}),
    "through other names": (["a = 1\nb = a + 1", "c = b * 2\nd = 0"], "c", {"c": 4}),
    "the last of several": (["a = 1", "a = 2"], "a", {"a": 2}),
    "augmented": (["a = 1", "a += 1"], "a", {"a": 2}),
    "appended through another name": (["a = []\nb = a", "b.append(1)"], "a", {"a": [1]}),
    "shown and appended": (["a = []", "a.append(1)"], "a", {"a": [1]}),
    "changed in a loop": (["a = {}\nfor i in range(2):\n    a[i] = i"], "a, i", {"a": {0: 0, 1: 1}, "i": 1}),
    "changed through a loop": (["a = [[], []]\nfor b in a:\n    b.append(1)"], "a", {"a": [[1], [1]]}),
    "changed by a function": (["def f(x):\n    x.append(1)\na = []\nf(a)"], "a", {"a": [1]}),
    "changed in a function's function": (
        ["def g(y):\n    y.append(1)\ndef f(x):\n    g(y=x)\na = []\nb = f(a)"],
        "a",
        {"a": [1]},
    ),
    "a name of a function that it changes": (["a = []\ndef f():\n    a.append(1)\nb = f()"], "a", {"a": [1]}),
    "a name made after its function": (["def f():\n    return n\nn = 1"], "f()", {"n": 1}),
    "a name as it was at the call": (["n = 1\ndef f():\n    return n\nm = f()\nn = 5"], "m, n", {"m": 1, "n": 5}),
    "a lambda in a dict": (["n = 2\nd = {'x': lambda i: i * n}\nn = 3"], "d['x'](1)", {"n": 3}),
    "a comprehension's own name": (["i = 3\na = [i for i in range(2)]"], "a, i", {"a": [0, 1], "i": 3}),
    "walrus": (["a = [(b := i) for i in range(3)]"], "b", {"b": 2}),
    "with": (["import contextlib as c\nwith c.nullcontext(4) as a:\n    b = a + 1"], "b", {"b": 5}),
    "import as": (["import math as m\nimport json\na = m.floor(1.5)"], "a", {"a": 1}),
    "deleted and made again": (["a = 1\ndel a", "a = 2"], "a", {"a": 2}),
    "attributes": (
        ["import types\na = types.SimpleNamespace()\na.x = 1\na.y = a.x + 1"],
        "a",
        {"a": SimpleNamespace(x=1, y=2)},
    ),
    "class": (["n = 2\nclass C:\n    x = n\n    def m(self):\n        return k", "k = 7\na = C().m()"], "a", {"a": 7}),
    "global": (["n = 0\ndef f():\n    global n\n    n = 4\nf()"], "n", {"n": 4}),
    "a setting of a module": (
        ["import random as r\nr.seed(5)\nx = r.random()\nr.seed(5)\na = r.random()"],
        "a",
        {"a": 0.6229016948897019},
    ),
    "a function of a module": (["import heapq as h\na = [3, 1, 2]\nh.heapify(a)\nb = 1"], "a", {"a": [1, 3, 2]}),
    "one of two branches": (["a = 1\nif a:\n    a = 2"], "a", {"a": 2}),
    "tried": (["a = 0\ntry:\n    a = 1 / 0\nexcept ZeroDivisionError:\n    a = 5"], "a", {"a": 5}),
    "several targets": (["a, b = c = [1], [2]\nb.append(c[0][0])"], "c", {"c": ([1], [2, 1])}),
}


@pytest.mark.parametrize("case", CASES)
def test_catching_up_leaves_what_running_everything_leaves(case: str) -> None:
    cells, last, want = CASES[case]
    found = caught(book(*cells, "## Here", last), 1)
    everything: dict[str, Any] = {}
    for cell in cells:
        exec(cell, everything)
    assert {name: found[name] for name in want} == want
    assert {name: everything[name] for name in want} == want


def test_a_last_call_that_shows_nothing_was_made_for_what_it_does() -> None:
    cells = [
        nbformat.v4.new_code_cell(c) for c in ("import heapq as h\na = [3, 1, 2]\nh.heapify(a)", "h.nsmallest(1, a)")
    ]
    cells += [nbformat.v4.new_markdown_cell("## Here"), nbformat.v4.new_code_cell("a")]
    cells[1].outputs = [nbformat.v4.new_output("execute_result", {"text/plain": "[1]"})]
    of = Book(nbformat.v4.new_notebook(cells=cells), "77_x", frozenset(dir(builtins)))
    assert caught(of, 1)["a"] == [1, 3, 2]
    assert [step.statement.cell for step in of.plan(of.section(1)).steps] == [0, 0, 0]


def test_what_nobody_needs_is_left_out() -> None:
    of = book(
        "a = 1\nboom = 1 / 0\nprint(a)",
        "class P:\n    def show(self):\n        return 1 / 0\np = P()",
        "p.show()",
        "a.bit_length()\nq = 1 / 0",
        "## Here",
        "a",
    )
    namespace: dict[str, Any] = {}
    card = catch_up(of, 1, namespace, shelf(of))
    assert card.computed == ("a",) and card.skipped == ("P", "boom", "p", "q")
    assert "left out, no later cell needs them: P, boom, p, q" in card.message
    assert "<b>Ready for section 1 of notebook 77: Here</b>" in card._repr_html_()


def test_earlier_cells_are_not_heard_and_their_figures_are_closed(capsys: pytest.CaptureFixture[str]) -> None:
    import matplotlib.pyplot as plt

    mine = plt.figure()
    of = book(
        "import matplotlib.pyplot as plt\nfor i in [1]:\n    print('loud')\n    a = i\nf, ax = plt.subplots()",
        "## Here",
        "a, f",
    )
    assert caught(of, 1)["a"] == 1
    assert capsys.readouterr().out == ""
    assert plt.get_fignums() == [mine.number]
    plt.close(mine)


def test_a_name_that_no_cell_makes_is_an_error_that_names_it() -> None:
    of = book("a = 1", "## Here", "a + lost")
    with pytest.raises(CatchUpError, match="section 1 of 77_made_up needs lost: no cell before it"):
        caught(of, 1)


def test_a_cell_that_fails_is_an_error_that_names_it() -> None:
    of = book("a = 1", "b = a / 0\nc = 1", "## Here", "b")
    with pytest.raises(CatchUpError, match="cell 1, which makes b, failed: ZeroDivision") as e:
        caught(of, 1)
    assert isinstance(e.value.__cause__, ZeroDivisionError)


def test_a_name_that_was_not_made_is_an_error_that_names_it() -> None:
    of = book("if len('') > 0:\n    a = 1", "## Here", "a")
    with pytest.raises(CatchUpError, match="77_made_up, cell 0: it ran, and 'a' is not there"):
        caught(of, 1)


def test_magics_are_refused_by_cell() -> None:
    with pytest.raises(ValueError, match="77_made_up, cell 1: not plain Python"):
        book("a = 1", "%matplotlib inline")


# --- learners' answers ------------------------------------------------------------------------

STUB = 'def step(x):\n    """Say."""\n    raise NotImplementedError("your turn")'
CHECK = 'kit.exercises.check("99.1", step)'


@pytest.fixture
def exercise(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [
        exercises.Exercise("99.1", "t", STUB, lambda x: x + 1, lambda a: None, ("", ""), []),
        exercises.Exercise("99.2", "t", "v = ...", lambda n: n * 10, lambda a, n: None, ("", ""), [], kind="value"),
    ]
    monkeypatch.setattr(exercises, "registry", lambda: {e.id: e for e in made})


def test_the_solution_stands_in_where_later_cells_need_the_answer(exercise: None) -> None:
    of = book("import kit", STUB, CHECK, "a = step(1)", "## Here", "a", "step(2)")
    namespace: dict[str, Any] = {}
    card = catch_up(of, 1, namespace, shelf(of))
    assert namespace["a"] == 2 and card.solved == ("step",) and "step" not in card.computed


def test_your_own_answer_stays_and_a_stub_does_not(exercise: None) -> None:
    of = book("import kit", STUB, CHECK, "a = step(1)", "## Here", "a")
    namespace: dict[str, Any] = {"step": lambda x: x + 100}
    assert catch_up(of, 1, namespace, shelf(of)).kept == ("step",)
    assert namespace["a"] == 101
    stub: dict[str, Any] = {}
    exec(STUB, stub)
    assert caught(of, 1, step=stub["step"])["a"] == 2


def test_a_stub_that_only_its_check_reads_stays_a_stub(exercise: None) -> None:
    of = book("import kit", STUB, "## Here", CHECK)
    with pytest.raises(NotImplementedError):
        caught(of, 1)["step"](1)


def test_a_value_is_solved_with_what_its_check_is_given(exercise: None) -> None:
    of = book("import kit\nm = 4", "v = ...", 'kit.exercises.check("99.2", v, n=m)', "## Here", "v")
    assert caught(of, 1)["v"] == 40


# --- the notebooks ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", EVERY, ids=lambda p: p.stem)
def test_every_section_gets_what_the_rest_of_the_notebook_reads(path: Path) -> None:
    of = Book.of(path)
    assert of.sections
    for section in of.sections:
        plan = of.plan(section)
        assert plan.missing == frozenset(), section
        # Going forward: every statement that runs finds what it reads at its top level.
        here = set(of.builtins)
        rest = [s for s in of.statements if s.cell >= section.cell]
        for s in [*(step.statement for step in plan.steps), *rest]:
            assert s.own.reads - s.own.binds <= here, (section, s.cell, s.own.reads - here)
            here |= s.own.binds


@pytest.mark.parametrize("path", EVERY, ids=lambda p: p.stem)
def test_no_section_runs_what_is_only_there_to_be_seen(path: Path) -> None:
    of = Book.of(path)
    for section in of.sections:
        for step in of.plan(section).steps:
            assert not step.statement.is_check
            code = of.code(step.statement)
            assert "SteeringPanel(" not in code or "panel" in step.names


def digest(namespace: dict[str, Any], name: str) -> str:
    """Every bit of a value; of what cannot be stored, its type."""
    names = {
        id(v): n
        for n, v in namespace.items()
        if n != name and not isinstance(v, bool | int | float | str | tuple | type(None))
    }
    try:
        writer = Writer(names)
        told = json.dumps(writer.value(namespace[name]), sort_keys=True)
    except CannotStore as error:
        return str(error)
    parts = [told, *(f"{t.dtype}{list(t.shape)}{t.tolist()}" for t in writer.tensors.values())]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


@pytest.fixture
def small_and_shared(monkeypatch: pytest.MonkeyPatch, smol: Any) -> Iterator[None]:
    """Notebooks at small size, in their folder, with the model that is loaded anyway."""
    before = Path.cwd()
    monkeypatch.setenv("KIT_SMALL", "1")
    monkeypatch.setattr(kit, "load_model", lambda: smol, raising=False)
    os.chdir(runner.FOLDER)
    yield
    os.chdir(before)


def run_from(of: Book, cell: int, namespace: dict[str, Any]) -> None:
    with running.quiet():
        for s in of.statements:
            if s.cell >= cell:
                running.run(of, s.node, s.cell, namespace, ())


def test_every_section_of_a_notebook_starts_as_if_all_had_run(small_and_shared: None) -> None:
    """Catching up to any section of notebook 06 gives the bits that running all before it gives;
    and the last section that needs more than the model runs on them to the notebook's end."""
    of = Book.of(runner.choose(["06"])[0])
    plans = {s.number: of.plan(s) for s in of.sections}
    last = max((p for p in plans.values() if len(p.steps) > 5), key=lambda p: p.section.cell)
    whole: dict[str, Any] = {}
    compared = 0
    with running.quiet():
        for s in of.statements:
            for number in [n for n, p in plans.items() if p.section.cell <= s.cell]:
                names = plans.pop(number).names
                namespace: dict[str, Any] = {}
                catch_up(of, number, namespace, Shelf(of, [], small=True))
                for name in names & set(whole):
                    assert digest(namespace, name) == digest(whole, name), (number, name)
                    compared += 1
                assert names - set(whole) <= {n for t in of.statements for n in t.own.binds}
            if s.cell >= last.section.cell:
                break
            running.run(of, s.node, s.cell, whole, ())
    assert compared > 50 and namespace["fit"] is not whole["fit"]
    run_from(of, last.section.cell, namespace)


def test_the_rest_of_a_notebook_runs_on_what_was_made(small_and_shared: None) -> None:
    of = Book.of(runner.choose(["05"])[0])
    namespace: dict[str, Any] = {}
    catch_up(of, 5, namespace, Shelf(of, [], small=True))
    run_from(of, of.section(5).cell, namespace)
    assert namespace["named"].layer == 10 and len(namespace["runs"]) == 3


# --- the call ---------------------------------------------------------------------------------


def test_where_is_a_notebook_or_a_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIT_CACHE", str(tmp_path))
    card = kit.catch_up("05")
    assert card.title == "Sections of 05_melbo"
    assert card.message.splitlines()[2] == "05.3   3 · Train a set together"
    with pytest.raises(ValueError, match="where='3': give a notebook and a section"):
        kit.catch_up("3")
    with pytest.raises(ValueError, match="section 99: 05_melbo has 1: 1 · Push here"):
        kit.catch_up("05.99")
    with pytest.raises(ValueError, match="no notebook '77'"):
        kit.catch_up("77.1")
    assert local() == tmp_path / "checkpoints"


def test_the_callers_own_names_are_filled_outside_a_notebook(tmp_path: Path) -> None:
    cells = [nbformat.v4.new_code_cell("a = 4"), nbformat.v4.new_markdown_cell("## S"), nbformat.v4.new_code_cell("a")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "77_x.ipynb")
    space: dict[str, Any] = {"kit": kit, "folder": tmp_path}
    exec("kit.catch_up('77.1', folder=folder)", space)
    assert space["a"] == 4
    into: dict[str, Any] = {}
    kit.catch_up("77.1", folder=tmp_path, into=into)
    assert into["a"] == 4
    assert organisms.SPLITS  # nothing of the kit was shadowed by the notebook's names
