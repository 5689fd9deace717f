"""What has to run, of a notebook's earlier cells, before a section can begin.

The sections of a notebook are its ``## `` headings, counted from 1. A plan goes backwards from the
section's first cell: it keeps the statements that make or change a name that something after them
reads, and leaves out the rest (texts shown, panels that nobody reads, checks of exercises).
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course.catch_up.names import with_aliases
from course.catch_up.scopes import Effects, Function, effects, given
from course.rules import read, section_lines

if TYPE_CHECKING:
    from nbformat import NotebookNode


_CHECK = re.compile(r"(?:kit\.)?exercises\.check|check")
Context = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Section:
    """A ``## `` heading: its number from 1, its text, and the cell in which it stands."""

    number: int
    title: str
    cell: int


@dataclass(frozen=True, eq=False)
class Statement:
    """One top-level statement of a code cell.

    Attributes:
        cell: the cell's index in the notebook, from 0; index: among all statements.
        reads, changes: with what the functions that it may call read and change.
        exercise: the id of the exercise whose answer a learner writes here, or "".
        context: what the check of the answer is given besides, as (keyword, code).
        is_check: nothing but the check of an answer.
    """

    cell: int
    index: int
    node: ast.stmt = field(repr=False)
    own: Effects = field(repr=False)
    reads: frozenset[str] = frozenset()
    changes: frozenset[str] = frozenset()
    exercise: str = ""
    context: Context = ()
    is_check: bool = False

    @property
    def makes(self) -> frozenset[str]:
        """Names that it binds or changes, perhaps."""
        return frozenset(self.own.binds) | self.changes


@dataclass(frozen=True)
class Step:
    """A statement of a plan.

    Attributes:
        names: the needed names that it makes; loaded: they come from a checkpoint.
        solved: a learner's answer which more than its check needs: the solution stands in for it.
    """

    statement: Statement
    names: tuple[str, ...]
    loaded: bool = False
    solved: bool = False


@dataclass(frozen=True)
class Plan:
    """What to do before a section.

    Attributes:
        section: where the learner goes on; steps: in order.
        names: all that the rest of the notebook needs; missing: those of them, or of what their
            statements need, that no earlier cell makes; skipped: names that the earlier cells make
            and nobody needs.
    """

    section: Section
    steps: tuple[Step, ...]
    names: frozenset[str]
    missing: frozenset[str]
    skipped: frozenset[str]


# Of a statement that could be loaded: the names which its values lean on; None: run it.
Stored = Callable[[Statement, frozenset[str]], "frozenset[str] | None"]


class Book:
    """A notebook, read for its sections and statements.

    Args:
        builtins: names that need no cell (those of Python and Jupyter).

    Raises:
        ValueError: a cell that Python cannot parse; the text names it.
    """

    def __init__(self, notebook: NotebookNode, name: str, builtins: frozenset[str]) -> None:
        self.name, self.builtins = name, builtins
        self.sources = {i: c.source for i, c in enumerate(notebook.cells) if c.cell_type == "code"}
        self.seconds = {i: _seconds(notebook.cells[i].metadata) for i in self.sources}
        self.sections = _sections(notebook)
        shows = {i for i in self.sources if notebook.cells[i].get("outputs")} or set(self.sources)
        plain = []
        for cell, source in self.sources.items():
            try:
                body = ast.parse(source, f"{name}, cell {cell}").body
            except SyntaxError as error:
                raise ValueError(f"{name}, cell {cell}: not plain Python ({error})") from error
            for node in body:
                # Where a run notebook shows nothing, the last call was made for what it does.
                own = effects(node, shown=node is body[-1] and cell in shows)
                plain.append(Statement(cell, len(plain), node, own))
        self.statements = _resolved(plain, builtins)

    @classmethod
    def of(cls, path: Path) -> Book:
        """The notebook in a file."""
        import builtins

        extra = {"display", "get_ipython", "__name__", "__builtins__", "In", "Out", "exit", "quit"}
        return cls(read(path), path.stem, frozenset({*dir(builtins), *extra}))

    def section(self, number: int) -> Section:
        """Raises ValueError, which lists the sections."""
        for section in self.sections:
            if section.number == number:
                return section
        listing = "; ".join(f"{s.number}: {s.title}" for s in self.sections) or "none"
        raise ValueError(f"section {number}: {self.name} has {listing}")

    def plan(self, section: Section, stored: Stored | None = None) -> Plan:
        """What to run, and what to load, before a section."""
        earlier = [s for s in self.statements if s.cell < section.cell]
        rest = self.statements[len(earlier) :]
        need: set[str] = set()
        for s in reversed(rest):
            need = (need - s.own.kills) | s.reads
        names = frozenset(need - self.builtins)
        steps, need = self._back(earlier, set(names), stored)
        every = {n for s in earlier for n in s.own.binds}
        # A name that a loop binds is read after it: the loop will have run.
        need -= every | {n for s in rest for n in s.own.binds}
        made = {n for step in steps for n in step.names}
        return Plan(section, tuple(steps), names, frozenset(need), frozenset(every - made))

    def _back(self, earlier: list[Statement], need: set[str], stored: Stored | None) -> tuple[list[Step], set[str]]:
        steps = []
        for s in reversed(earlier):
            names = frozenset(s.makes & need)
            if not names:
                continue
            lean = stored(s, names) if stored else None
            if lean is None:
                need = (need - s.own.kills) | (s.reads - self.builtins)
            else:
                need = (need - names) | lean
            solved = bool(s.exercise) and self._used(s)
            if solved:
                need |= {n for _, code in s.context for n in _read(code)} - self.builtins
            steps.append(Step(s, tuple(sorted(names)), lean is not None, solved))
        return steps[::-1], need

    def _used(self, stub: Statement) -> bool:
        """Does anything but its check read a learner's answer?"""
        for s in self.statements[stub.index + 1 :]:
            if s.reads & stub.own.binds and not s.is_check:
                return True
            if stub.own.binds <= s.own.kills:
                return False
        return False

    def feeding(self, statement: Statement) -> list[Statement]:
        """The statements on which a statement's values rest, itself the last."""
        steps, _ = self._back(self.statements[: statement.index], set(statement.reads), None)
        return [*(step.statement for step in steps), statement]

    def digest(self, statement: Statement) -> str:
        """SHA-256 of the code on which a statement's values rest, the same in every Python."""
        lines = "\n".join(map(self.code, self.feeding(statement)))
        return hashlib.sha256(lines.encode()).hexdigest()

    def code(self, statement: Statement) -> str:
        """A statement's source, with its decorators."""
        node = statement.node
        first = min(n.lineno for n in [node, *getattr(node, "decorator_list", [])])
        lines = self.sources[statement.cell].encode().splitlines()[first - 1 : node.end_lineno]
        lines[-1] = lines[-1][: node.end_col_offset]
        if first == node.lineno:
            lines[0] = lines[0][node.col_offset :]
        return b"\n".join(lines).decode()

    @cached_property
    def digests(self) -> dict[str, Statement]:
        """Every statement by its digest."""
        return {self.digest(s): s for s in self.statements}


def _sections(notebook: NotebookNode) -> list[Section]:
    found: list[Section] = []
    for i, cell in enumerate(notebook.cells):
        for line, begins in section_lines(cell.source) if cell.cell_type == "markdown" else []:
            if begins:
                found.append(Section(len(found) + 1, line[3:].strip(), i))
    return found


def _seconds(metadata: Mapping[str, Any]) -> float:
    """What a cell took when its stored outputs were made; 0 where that is not known."""
    times = metadata.get("execution", {})
    try:
        start, end = (
            datetime.fromisoformat(times[key].replace("Z", "+00:00"))
            for key in ("iopub.status.busy", "shell.execute_reply")
        )
    except (KeyError, ValueError, AttributeError):
        return 0.0
    return max(0.0, (end - start).total_seconds())


def _resolved(plain: list[Statement], builtins: frozenset[str]) -> list[Statement]:
    """Statements whose reads and changes go through the functions that they may call."""
    checked, checks = _checked(plain)
    functions: dict[str, list[Function]] = {}
    imports: set[str] = set()
    aliases: set[tuple[str, str]] = set()
    found = []
    for s in plain:
        own = s.own
        reads, changes, settings = set(own.reads), set(own.changes), set(own.settings)
        seen: set[str] = set()
        while todo := reads - seen:
            seen |= todo
            for name in todo:
                for f in [*functions.get(name, []), *own.later.get(name, [])]:
                    reads |= f.reads - (own.kills if name in own.later else set())
                    changes |= f.changes
                    settings |= f.settings
        for call in own.calls:
            name = call[0]
            for f in [*functions.get(name, []), *own.later.get(name, [])]:
                spoils = _spoils(f, functions, set())
                changes |= set().union(*(v for k, v in given(call, f).items() if k in spoils))
            if call[3] and name not in functions and name not in own.later:
                changes |= set().union(*call[1], *call[2].values())
        new = own.aliases | {(b, a) for a, b in own.aliases}
        changes = with_aliases(changes, aliases | new)
        aliases = {(a, b) for a, b in aliases if not {a, b} & own.rebound} | new
        for name in own.binds:
            if name in own.kills:
                functions.pop(name, None)
            if name in own.later:
                functions.setdefault(name, []).extend(own.later[name])
        imports = (imports - own.kills) | own.imports
        changes |= {one for name, one in own.lent if name in imports}
        changes -= builtins | (imports - settings)
        exercise, context = checked.get(s.index, ("", ()))
        found.append(
            replace(
                s,
                reads=frozenset(reads),
                changes=frozenset(changes),
                exercise=exercise,
                context=context,
                is_check=s.index in checks,
            )
        )
    return found


def _spoils(f: Function, functions: Mapping[str, list[Function]], seen: set[int]) -> set[str]:
    """Parameters that a function changes, itself or by the functions that it calls."""
    if id(f) in seen:
        return set()
    seen.add(id(f))
    spoils = set(f.spoils)
    for call in f.calls:
        for g in functions.get(call[0], []):
            inner = _spoils(g, functions, seen)
            spoils |= {n for k, v in given(call, g).items() if k in inner for n in v}
    return spoils


def _checked(statements: list[Statement]) -> tuple[dict[int, tuple[str, Context]], set[int]]:
    """By the index of each statement that a learner has to write: the exercise that checks it and
    the keywords of the check; and the indices of the checks."""
    stubs: dict[str, int] = {}
    found: dict[int, tuple[str, Context]] = {}
    checks = set()
    for s in statements:
        for name in s.own.binds:
            stubs.pop(name, None)
            if is_stub(s.node):
                stubs[name] = s.index
        for call in ast.walk(s.node):
            if not isinstance(call, ast.Call) or not _CHECK.fullmatch(ast.unparse(call.func)):
                continue
            if isinstance(s.node, ast.Expr) and s.node.value is call:
                checks.add(s.index)
            if len(call.args) < 2 or not isinstance(call.args[0], ast.Constant):
                continue
            answer = call.args[1]
            if isinstance(answer, ast.Name) and answer.id in stubs:
                context = tuple((k.arg, ast.unparse(k.value)) for k in call.keywords if k.arg)
                found[stubs[answer.id]] = str(call.args[0].value), context
    return found, checks


def _read(code: str) -> set[str]:
    return effects(ast.parse(code).body[0], shown=True).reads


def is_stub(node: ast.stmt) -> bool:
    """A function that only raises NotImplementedError, or a name bound to ``...`` or None."""
    if isinstance(node, ast.FunctionDef):
        body = [s for s in node.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
        return len(body) == 1 and isinstance(body[0], ast.Raise) and ("NotImplementedError" in ast.unparse(body[0]))
    return (
        isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and node.value.value in (Ellipsis, None)
    )
