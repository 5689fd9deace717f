"""Catch-up: cells run again, tags, and real notebooks. Files: `test_kept.py`."""

from __future__ import annotations

import ast
import builtins
import os
import symtable
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest

import kit
from course import exercises, runner
from course.catch_up import CatchUpError, making, running
from course.catch_up.book import Book, Cell, assigned, is_stub
from course.catch_up.files import Shelf, local
from course.catch_up.making import mark
from course.catch_up.running import Replay, catch_up
from course.catch_up.values import CannotStore
from kit.data import organisms

EVERY = runner.choose([])


def book(*cells: str | tuple[str, Any], name: str = "77_made_up") -> Book:
    """A notebook: cells that start with ``#`` and a space are markdown; (source, keep): tagged."""
    new = nbformat.v4
    made = []
    for cell in cells:
        source, keep = (cell, None) if isinstance(cell, str) else cell
        kind = new.new_markdown_cell if source.startswith(("# ", "## ")) else new.new_code_cell
        made.append(kind(source, metadata={} if keep is None else {"kit": {"keep": keep}}))
    return Book(new.new_notebook(cells=made), name)


def shelf(of: Book, *folders: Path) -> Shelf:
    return Shelf(of, folders, small=False)


def caught(of: Book, number: int, **given: Any) -> dict[str, Any]:
    """The namespace after catching up, less what every namespace has."""
    namespace: dict[str, Any] = dict(given)
    catch_up(of, number, namespace, shelf(of))
    return {k: v for k, v in namespace.items() if k != "__builtins__"}


# --- one cell ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("a = b + c", "a"),
        ("a, *d = e = b", "a d e"),
        ("a += 1", "a"),
        ("a: int = 1", "a"),
        ("a[i].x = v", "a"),
        ("a.b.c[0] += v", "a"),
        ("del a[0]", "a"),
        ("a[0], (b.x, c) = v", "a b c"),
        ("f(a)[0] = v", ""),
        ("import x.y as z, w.v", "z w"),
        ("from m import n as o", "o"),
        ("for i in r:\n    s = i + t", "i s"),
        ("for i, (j, k.x) in r:\n    a[i] = j", "i j k a"),
        ("a = [i for i in r if i > n for j in i]", "a"),
        ("a = [(last := i) for i in r]", "a last"),
        ("print(b := 3)", "b"),
        ("with f(p) as q:\n    g = q.h", "q g"),
        ("try:\n    a = f()\nexcept E as e:\n    print(e)", "a e"),
        ("if c:\n    a = 1\nelse:\n    b = a", "a b"),
        ("while n:\n    n = n - m", "n"),
        ("def f(x, y=d):\n    z = x + g\n    x[0] = z\n    return z", "f"),
        ("@w\nclass C(B):\n    x = y\n    def m(self):\n        self.z = x", "C"),
        ("a = sorted(r, key=lambda i: i + n)", "a"),
        ("a.append(1)\nprint(a)", ""),
        ("match s:\n    case [p, *q]:\n        t = p\n    case V.w:\n        pass", "p q t"),
    ],
)
def test_what_a_cell_assigns(code: str, names: str) -> None:
    assert assigned(ast.parse(code).body) == set(names.split())


def test_a_tag_keeps_what_the_cell_assigns_or_some_of_it() -> None:
    code = "import m\ndef f():\n    return 1\nb, a = 1, 2\nd['x'] = a"
    kept = [book((code, keep)).cells[0].kept for keep in (True, ["a"], [])]
    assert kept == [("a", "b", "d"), ("a",), ()]
    assert book(code).cells[0].kept is None
    assert book((code, ["a"])).cells[0].gives == {"m", "f", "a"}


@pytest.mark.parametrize("keep", [False, "a", 1, ["m"], ["f"], ["other"], [["a"]], {"a": 1}])
def test_a_tag_of_another_kind_is_refused_by_cell(keep: Any) -> None:
    told = r"77_made_up, cell 1: metadata.kit is .*'keep' is true, or a list .* assigns: a, b"
    with pytest.raises(ValueError, match=told):
        book("c = 1", ("import m\ndef f():\n    return 1\na = b = 1", keep))


# --- sections and cells -----------------------------------------------------------------------


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


def test_what_an_untagged_cell_changes_is_changed_again(tmp_path: Path) -> None:
    """A kept object that a later cell changes in place, by a call of any name."""
    cells = ("class C(list):\n    def odd(self, x):\n        self.append(x)", "log = C()", ("a = [1]", True))
    of = book(*cells, "a.append(2)\nlog.odd(a)", "def f(x):\n    x.reverse()\nf(a)", "## Here", "a")
    for _ in range(2):
        making.make(of, tmp_path / "77.safetensors")
        namespace: dict[str, Any] = {}
        card = catch_up(of, 1, namespace, shelf(of, tmp_path))
        assert "a" in namespace and namespace["a"] == [2, 1] and namespace["log"] == [[2, 1]]
        assert namespace["log"][0] is namespace["a"] and card.loaded == ("a",)


def test_every_untagged_cell_runs_and_no_check_does() -> None:
    of = book(
        "import kit\na = 1\nsaid = []",
        "class P:\n    def show(self):\n        said.append('shown')\np = P()",
        "p.show()",
        'kit.exercises.check("99.1", lost)',
        "a.bit_length()",
        "## Here",
        "a",
    )
    namespace: dict[str, Any] = {}
    card = catch_up(of, 1, namespace, shelf(of))
    assert namespace["said"] == ["shown"]
    assert card.computed == ("kit", "a", "said", "P", "p") and card.skipped == ()
    assert "made by running their cells: kit, a, said, P, p" in card.message
    assert "<b>Ready for section 1 of notebook 77: Here</b>" in card._repr_html_()


def test_a_cell_that_keeps_nothing_is_left_out() -> None:
    shown = "import math as m\ndef f():\n    return a\nb = 1 / 0\na = 5\nprint(b)"
    of = book("b = 1", (shown, []), "c = m.floor(1.5)", "## Here", "c")
    namespace: dict[str, Any] = {"a": 7}
    card = catch_up(of, 1, namespace, shelf(of))
    assert namespace["c"] == 1 and namespace["f"]() == 7  # functions and imports are made
    assert "b" not in namespace  # rather than what an earlier cell called so
    assert set(card.skipped) == {"a", "b"}
    assert "left out, no later cell needs them: " in card.message


def test_cells_of_one_section_are_left_out_together() -> None:
    """What a tagged cell leaves out is there when another tagged cell of its section has to run."""
    of = book("n = 1", "## A", ("a = n + 1\nq = 0", []), "## B", ("b = 2", []), ("c = b + 1", True), "## C", "c")
    namespace: dict[str, Any] = {}
    card = catch_up(of, 3, namespace, shelf(of))
    assert namespace["c"] == 3 and card.computed == ("n", "b", "c") and card.skipped == ("a", "q")


def test_names_that_were_there_are_told_as_replaced() -> None:
    of = book("a = [1]\nb = 2\nimport math", "## Here", "a")
    mine: dict[str, Any] = {"a": "mine", "other": "mine", "b": 2}
    card = catch_up(of, 1, mine, shelf(of))
    assert card.replaced == ("a",) and mine["a"] == [1] and mine["other"] == "mine"
    assert "yours before, now of these cells: a" in card.message
    assert catch_up(of, 1, {}, shelf(of)).replaced == ()


def test_earlier_cells_are_not_heard_and_their_figures_are_closed(capsys: pytest.CaptureFixture[str]) -> None:
    import matplotlib.pyplot as plt

    mine = plt.figure()
    of = book(
        "import matplotlib.pyplot as plt\nfrom IPython.display import display\nfor i in [1]:\n    print('loud')\n"
        "    display('loud')\n    a = i\nf, ax = plt.subplots()",
        "## Here",
        "a, f",
    )
    assert caught(of, 1)["a"] == 1
    assert capsys.readouterr().out == ""
    assert plt.get_fignums() == [mine.number]
    plt.close(mine)


def test_a_cell_that_fails_is_an_error_that_names_it() -> None:
    of = book("a = 1", "b = a / 0\nc = 1", "## Here", "b")
    with pytest.raises(CatchUpError, match="77_made_up, cell 1, which makes b, failed: ZeroDivision") as e:
        caught(of, 1)
    assert isinstance(e.value.__cause__, ZeroDivisionError)


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
    assert catch_up(of, 1, namespace, shelf(of)).yours == ("step",)
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


PROVIDED = frozenset({*dir(builtins), "display", "get_ipython", "__name__"})
NESTED = ("listcomp", "genexpr", "setcomp", "dictcomp")  # scopes that run where they stand


def scopes(table: symtable.SymbolTable, into_functions: bool) -> Iterator[symtable.SymbolTable]:
    for child in table.get_children():
        if into_functions or child.get_name() in NESTED or child.get_type() == "class":
            yield child
            yield from scopes(child, into_functions)


def read_by(node: ast.stmt, later: bool = False) -> set[str]:
    """The notebook's names that a statement reads, or with `later` its functions when called."""
    top = symtable.symtable(ast.unparse(node), "cell", "exec")
    inner = set(scopes(top, False))
    tables = set(scopes(top, True)) - inner if later else {top, *inner}
    found = set()
    for table in tables:
        own = [s for s in table.get_symbols() if table is top or not (s.is_assigned() or s.is_parameter())]
        found |= {s.get_name() for s in own if s.is_referenced() and s.is_global()}
    parts = list(ast.walk(node))
    found -= {n.target.id for n in parts if isinstance(n, ast.NamedExpr)}
    if later:
        return found
    bound = {n.id for n in parts if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
    if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Expr):
        added = {n.target.id for n in parts if isinstance(n, ast.AugAssign) and isinstance(n.target, ast.Name)}
        return found | added
    return found - bound - {n.name for n in parts if isinstance(n, ast.ExceptHandler) and n.name}


class Names:
    """The names that are there, going forward through a notebook without running it."""

    def __init__(self) -> None:
        self.here, self.left_out = set(PROVIDED), set[str]()
        self.read, self.functions = set[str](), dict[str, set[str]]()
        self.lost: dict[str, set[str]] = {}  # of what a function reads
        self.faults: list[str] = []

    def run(self, cell: Cell, nodes: list[ast.stmt]) -> None:
        for node in nodes:
            if lost := read_by(node) - self.here:
                self.faults.append(f"cell {cell.number} reads {lost}")
            self.here |= assigned([node])
            self.left_out -= assigned([node])
            self.read |= read_by(node)
            if later := read_by(node, later=True):
                names = assigned([node]) or {f"cell {cell.number}"}
                self.functions |= dict.fromkeys(names, later)
                self.lost |= dict.fromkeys(names, later & self.left_out)
                self.read |= set() if isinstance(node, ast.FunctionDef) else assigned([node])

    def skip(self, cell: Cell) -> None:
        self.here = self.here - cell.names | cell.gives
        self.left_out = self.left_out - cell.gives | (cell.names - cell.gives)
        self.run(cell, cell.definitions)

    def reached(self) -> set[str]:
        """What is read, also by the functions that are."""
        found: set[str] = set()
        while more := self.read - found:
            found |= more
            self.read = found.union(*(self.functions.get(name, set()) for name in more))
        return found


def faults(of: Book, start: int) -> list[str]:
    """What a learner who begins at a cell would not have, of what runs there and after it."""
    names = Names()
    for cell in of.before(start):
        if cell.kept is not None:
            names.skip(cell)
            continue
        names.run(cell, [s.node for s in cell.body if not s.is_check])
        for s in cell.body:  # a solution is given what its check is
            needs = [ast.parse(code).body[0] for _, code in s.context if s.used]
            names.faults += [f"cell {cell.number}: {n}" for node in needs for n in read_by(node) - names.here]
    names.lost = {name: read & names.left_out for name, read in names.functions.items()}
    for cell in of.cells:
        if cell.number >= start:
            names.run(cell, [s.node for s in cell.body])
    lost = {name: names.lost[name] for name in names.reached() if names.lost.get(name)}
    return names.faults + [f"{name} reads {read}" for name, read in lost.items()]


def test_the_search_for_lost_names_finds_them() -> None:
    cells = ("n = 1", ("a = n\nb = a", ["b"]), "## Here")
    assert faults(book(*cells, "b"), 2) == []
    assert faults(book(*cells, "a = 2\na"), 2) == []
    for code in ("print(a)", "a += 1", "a[0] = 1", "c = [a for i in b]", "for i in a:\n    pass"):
        assert faults(book(*cells, code), 2) == ["cell 3 reads {'a'}"], code
    assert faults(book("def f():\n    return a", *cells[1:], "f()"), 3) != []
    assert faults(book("a = 0", ("a = 1\nb = 2", ["b"]), "## Here", "a"), 2) == ["cell 3 reads {'a'}"]
    assert faults(book("## Here", "x = lost", "def f():\n    return gone"), 0) != []


@pytest.mark.parametrize("path", EVERY, ids=lambda p: p.stem)
def test_every_section_gets_what_the_rest_of_the_notebook_reads(path: Path) -> None:
    of = Book.of(path)
    assert of.sections
    for section in of.sections:
        assert faults(of, section.cell) == [], section


@pytest.mark.parametrize("path", EVERY, ids=lambda p: p.stem)
def test_no_check_of_an_answer_is_run_or_is_part_of_a_hash(path: Path) -> None:
    """And nothing is left out of a hash that the authors, not the learner, have written."""
    statements = [s for cell in Book.of(path).cells for s in cell.body]
    checks = [s for s in statements if "exercises.check(" in ast.unparse(s.node)]
    assert checks and all(s.is_check for s in checks)
    answers = [s for s in statements if s.exercise]
    assert len(answers) == len(checks) and all(is_stub(s.node) for s in answers)


def bits(value: Any) -> str:
    """Every bit of a value; of what cannot be stored, its type."""
    with suppress(CannotStore):
        return mark(value)
    return str(type(value))


@pytest.fixture
def small_and_shared(monkeypatch: pytest.MonkeyPatch, smol: Any) -> Iterator[None]:
    """Notebooks at small size, in their folder, with the model that is loaded anyway."""
    before = Path.cwd()
    monkeypatch.setenv("KIT_SMALL", "1")
    monkeypatch.setattr(kit, "load_model", lambda dtype: smol, raising=False)
    os.chdir(runner.FOLDER)
    yield
    os.chdir(before)


def run_from(of: Book, cell: int, namespace: dict[str, Any]) -> None:
    rest = Replay(of, namespace)
    for one in of.cells:
        if one.number >= cell:
            with running.quiet():
                rest.run(one)


def test_every_section_of_a_notebook_starts_as_if_all_had_run(small_and_shared: None, tmp_path: Path) -> None:
    """Catching up to any section of notebook 06, from a file or by its cells, gives the bits that
    running all before it gives; and the rest of the notebook runs on them."""
    of = Book.of(runner.choose(["06"])[0])
    making.make(of, tmp_path / "06-small.safetensors", small=True)
    filled = Shelf(of, [tmp_path], small=True)
    whole = Replay(of, {})
    starts = {s.cell: s.number for s in of.sections if of.cells[-1].number > s.cell}
    rest: dict[int, dict[str, Any]] = {}
    compared = loaded = 0
    for cell in of.cells:
        for start in [start for start in starts if start <= cell.number]:
            namespace: dict[str, Any] = {}
            card = catch_up(of, starts.pop(start), namespace, filled)
            loaded += len(card.loaded)
            left = set(whole.how) - set(card.skipped)
            assert left <= set(namespace)
            for name in left:
                assert bits(namespace[name]) == bits(whole.namespace[name]), (cell.number, name)
                compared += 1
            if "fit" in card.loaded:
                rest.setdefault(cell.number, namespace)
        with running.quiet():
            whole.run(cell)
    assert compared > 200 and loaded > 15
    first, namespace = next(iter(rest.items()))
    assert namespace["fit"] is not whole.namespace["fit"]
    run_from(of, first, namespace)


def test_the_rest_of_a_notebook_runs_on_what_was_made(small_and_shared: None) -> None:
    of = Book.of(runner.choose(["05"])[0])
    namespace: dict[str, Any] = {}
    catch_up(of, 5, namespace, Shelf(of, [], small=True))
    run_from(of, of.section(5).cell, namespace)
    assert namespace["named"].layer == 10 and len(namespace["group"]) == 4


# --- the call ---------------------------------------------------------------------------------


def test_where_is_a_notebook_or_a_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIT_CACHE", str(tmp_path))
    card = kit.catch_up("05")
    assert card.title == "Sections of 05_melbo"
    assert card.message.splitlines()[2] == "05.3   3 · How long a vector?"
    with pytest.raises(ValueError, match="where='3': give a notebook and a section"):
        kit.catch_up("3")
    with pytest.raises(ValueError, match="section 99: 05_melbo has 1: 1 · What comes out"):
        kit.catch_up("05.99")
    with pytest.raises(ValueError, match="no notebook '77'"):
        kit.catch_up("77.1")
    assert local() == tmp_path / "kept"


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
