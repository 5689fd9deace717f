"""A notebook, read for its sections, its cells, and what of them is kept.

The sections of a notebook are its ``## `` headings, counted from 1. Authors tag a slow code cell in
its metadata, ``{"kit": {"keep": true}}``: what it assigns is kept in a file, and a late learner's
kernel takes it from there. A list of names in place of ``true`` keeps only these; ``[]`` keeps
nothing and says that the cell is there to be seen. Names that are left out must be read by no cell
but tagged ones of the same section. Every cell without a tag is run again.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import symtable
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course.rules import read, section_lines

if TYPE_CHECKING:
    from nbformat import NotebookNode

_CHECK = re.compile(r"(?:kit\.)?exercises\.check|check")
_MADE_AGAIN = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True)
class Section:
    """A ``## `` heading: its number from 1, its text, and the cell in which it stands."""

    number: int
    title: str
    cell: int


@dataclass(eq=False)
class Statement:
    """One top-level statement of a code cell.

    Attributes:
        exercise: the id of the exercise whose answer a learner writes here, or "".
        context: what the check of the answer is given besides, as (keyword, code).
        used: does anything but its check read the answer?
        is_check: nothing but the check of an answer.
    """

    node: ast.stmt = field(repr=False)
    exercise: str = ""
    context: tuple[tuple[str, str], ...] = ()
    used: bool = False
    is_check: bool = False


@dataclass(frozen=True, eq=False)
class Cell:
    """One code cell.

    Attributes:
        number: its index in the notebook, from 0.
        seconds: that it took when the stored outputs were made; 0 where that is not known.
        kept: the names whose values are kept; None where the cell has no tag.
    """

    number: int
    source: str = field(repr=False)
    body: tuple[Statement, ...] = field(repr=False)
    seconds: float
    kept: tuple[str, ...] | None

    @property
    def names(self) -> set[str]:
        """The names that it assigns, functions and imports among them."""
        return assigned(s.node for s in self.body)

    @property
    def definitions(self) -> list[ast.stmt]:
        """Functions, classes and imports: of a tagged cell they are run, for no file holds them."""
        return [s.node for s in self.body if isinstance(s.node, _MADE_AGAIN)]

    @property
    def gives(self) -> set[str]:
        """The names that a late learner's kernel has of it."""
        return self.names if self.kept is None else assigned(self.definitions) | set(self.kept)


class Book:
    """A notebook, read for its sections and code cells.

    Raises:
        ValueError: a cell that Python cannot parse, or a tag of another kind; the text names it.
    """

    def __init__(self, notebook: NotebookNode, name: str) -> None:
        self.name = name
        self.sections = _sections(notebook)
        self.cells = [_cell(c, i, name) for i, c in enumerate(notebook.cells) if c.cell_type == "code"]
        _find_exercises([s for cell in self.cells for s in cell.body])

    @classmethod
    def of(cls, path: Path) -> Book:
        """The notebook in a file."""
        return cls(read(path), path.stem)

    def section(self, number: int) -> Section:
        """Raises ValueError, which lists the sections."""
        for section in self.sections:
            if section.number == number:
                return section
        listing = "; ".join(f"{s.number}: {s.title}" for s in self.sections) or "none"
        raise ValueError(f"section {number}: {self.name} has {listing}")

    def section_of(self, cell: Cell) -> int:
        """The number of the section in which a cell stands, 0 before the first."""
        return sum(s.cell < cell.number for s in self.sections)

    def before(self, cell: int) -> list[Cell]:
        """The code cells before one of the notebook's cells."""
        return [c for c in self.cells if c.number < cell]

    def given_before(self, cell: Cell) -> set[str]:
        """The names that a late learner's kernel has of the cells before a cell."""
        return set().union(*(c.gives for c in self.before(cell.number)))

    @property
    def kept(self) -> list[Cell]:
        """The cells of which values are kept."""
        return [c for c in self.cells if c.kept]

    def digest(self, cell: Cell) -> str:
        """SHA-256 of the code on which a cell's values may rest: its own and that before it.

        Left out are imports (one that moved makes no other values), learners' answers and their
        checks, cells of which nothing is kept, and what does not matter to Python: comments and
        layout.
        """
        cells = [c for c in self.before(cell.number) if c.kept != ()]
        nodes = [s.node for c in [*cells, cell] for s in c.body if not (s.exercise or s.is_check)]
        return hashlib.sha256(json.dumps(_told(nodes)).encode()).hexdigest()


def assigned(nodes: Iterable[ast.stmt]) -> set[str]:
    """Names that statements bind, and those of which they set or delete an item or attribute."""
    nodes = list(nodes)
    text = ast.unparse(ast.Module(nodes, []))
    symbols = symtable.symtable(text, "cell", "exec").get_symbols()
    found = {s.get_name() for s in symbols if s.is_assigned() or s.is_imported()}
    for node in nodes:
        for part in () if isinstance(node, _MADE_AGAIN) else ast.walk(node):
            if isinstance(part, ast.NamedExpr):  # in a comprehension, symtable counts it as read
                found.add(part.target.id)
            elif isinstance(part, ast.Attribute | ast.Subscript) and not isinstance(part.ctx, ast.Load):
                found.add(_root(part))
    return found - {""}


def _root(node: ast.AST) -> str:
    """The name before the first dot or bracket of a target, "" where there is none."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _told(code: Any) -> Any:
    """Code as JSON that is the same in every Python."""
    if isinstance(code, ast.AST):
        parts = [[name, _told(value)] for name, value in ast.iter_fields(code) if value not in (None, [])]
        return [type(code).__name__, parts]
    if isinstance(code, list):
        return [_told(part) for part in code if not isinstance(part, ast.Import | ast.ImportFrom)]
    return repr(code)


def _cell(cell: NotebookNode, number: int, name: str) -> Cell:
    try:
        nodes = ast.parse(cell.source, f"{name}, cell {number}").body
    except SyntaxError as error:
        raise ValueError(f"{name}, cell {number}: not plain Python ({error})") from error
    own = cell.metadata.get("kit", {})
    keep = own.get("keep") if isinstance(own, dict) else own
    names = sorted(assigned(n for n in nodes if not isinstance(n, _MADE_AGAIN)))
    if keep is True:
        keep = names
    if keep is not None and not (isinstance(keep, list) and set(map(str, keep)) <= set(names)):
        raise ValueError(
            f"{name}, cell {number}: metadata.kit is {own!r:.80}; 'keep' is true, or a list of "
            f"names that the cell assigns: {', '.join(names) or 'none'}"
        )
    kept = None if keep is None else tuple(keep)
    return Cell(number, cell.source, tuple(map(Statement, nodes)), _seconds(cell.metadata), kept)


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


def _find_exercises(statements: list[Statement]) -> None:
    """Note where a learner writes the answer of an exercise, and where it is checked."""
    answers: dict[str, Statement] = {}
    for s in statements:
        calls = [n for n in ast.walk(s.node) if isinstance(n, ast.Call) and _CHECK.fullmatch(ast.unparse(n.func))]
        s.is_check = isinstance(s.node, ast.Expr) and s.node.value in calls
        for call in calls:
            match call.args:
                case [ast.Constant(value=str(exercise)), ast.Name(id=name), *_] if name in answers:
                    answer = answers[name]
                    answer.exercise = exercise
                    answer.context = tuple((k.arg, ast.unparse(k.value)) for k in call.keywords if k.arg)
        names = assigned([s.node])
        if isinstance(s.node, ast.FunctionDef | ast.Assign) and len(names) == 1:
            answers[names.pop()] = s
    for name, s in answers.items():
        others = [t.node for t in statements if t is not s and not t.is_check]
        s.used = any(isinstance(n, ast.Name) and n.id == name for node in others for n in ast.walk(node))


def is_stub(node: ast.stmt) -> bool:
    """A function that only raises NotImplementedError, or a name bound to ``...`` or None."""
    if isinstance(node, ast.FunctionDef):
        body = [s for s in node.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
        return len(body) == 1 and isinstance(body[0], ast.Raise) and ("NotImplementedError" in ast.unparse(body[0]))
    return (
        isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and node.value.value in (Ellipsis, None)
    )
