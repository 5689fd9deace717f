"""What a committed notebook has to look like; `problems` lists what is wrong with one.

The first cell starts with ``# title``. One of the first two, a markdown cell tagged ``header``, has
a line ``**Goal:** ...`` and the line that `TIME` describes, in which the runner fills in the
seconds. ``metadata.kit`` holds, from the authors, ``budget_seconds`` (full size, two cores) and, if
need be, ``max_mb``; from the runner, ``machine_seconds``, ``human_minutes`` and ``source_sha256``.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from course import DTYPE
from kit.base.files import junk, read_text

if TYPE_CHECKING:
    from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]  # of the clone
CELLS = (20, 60)
LINES, COLUMNS = 20, 100  # of a code cell
OVERRUN = 1.5  # a notebook may take this many times its budget
MAX_MB = 1.5  # of a saved notebook, unless metadata.kit.max_mb allows more
TIME = re.compile(
    r"(?P<human>\*\*Time:\*\* (?P<minutes>\d+) minutes for you) · "
    r"(?P<machine>\S+ s for the machine \(.+ CPU cores?, measured\))"
)
_MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|tmp|Users)/\w+|\b[A-Z]:\\{1,2}[A-Z]\w+")
_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]{6,}")  # "<object at 0x7f...>" tells a reader nothing


def source_hash(notebook: NotebookNode) -> str:
    """SHA-256 of all cells' types and sources, but for the measured time in the header."""
    cells = [(cell.cell_type, TIME.sub(r"\g<human>", cell.source)) for cell in notebook.cells]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()


def section_lines(source: str) -> Iterator[tuple[str, bool]]:
    """The lines of a Markdown cell, and whether each begins a section: a ``## `` heading, wherever
    it stands but in a code fence."""
    fenced = False
    for line in source.splitlines():
        fenced ^= line.lstrip().startswith(("```", "~~~"))
        yield line, line.startswith("## ") and not fenced


def read(path: Path) -> NotebookNode:
    """Read a notebook file (format 4).

    Raises:
        OSError: it cannot be read; ValueError: it is no notebook, or its ``metadata.kit`` is no
            object with sensible numbers.
    """
    import nbformat

    raw = read_text(path)
    with junk(str(path)):
        try:
            notebook = nbformat.reads(raw, as_version=4)
        except (nbformat.ValidationError, nbformat.reader.NotJSONError) as error:
            raise ValueError(f"{path} is no notebook: {error!s:.200}") from error
        told = notebook.metadata.get("kit", {})
        if not isinstance(told, dict):
            raise TypeError(f"metadata.kit is a {type(told).__name__}")
        for name in ("budget_seconds", "max_mb", "machine_seconds", "human_minutes"):
            value = told.get(name, 0)
            if isinstance(value, bool) or not isinstance(value, int | float) or (not 0 <= value < 1e6):
                raise ValueError(
                    f"{path}: metadata.kit.{name} is {value!r:.40}, not a number of seconds, minutes or megabytes"
                )
    return notebook


def problems(path: Path) -> list[str]:
    """What keeps a saved notebook from being committed; empty when all is well."""
    import nbformat

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # reading mends double cell ids with a mere warning
            notebook = read(path)
            nbformat.validate(notebook)
    except (nbformat.ValidationError, OSError, ValueError, Warning) as error:
        return [f"not a valid notebook: {error!s:.500}"]
    return _frame_problems(notebook) + _output_problems(notebook, path.stat().st_size)


def _frame_problems(notebook: NotebookNode) -> list[str]:
    """Faults of what the authors wrote."""
    found = []
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    heads = [c for c in notebook.cells[:2] if "header" in c.metadata.get("tags", [])]
    if not notebook.cells or not re.match(r"# \S", notebook.cells[0].source):
        found.append("the first cell does not start with a '# title'")
    if len(heads) != 1 or heads[0].cell_type != "markdown":
        found.append("no markdown cell tagged 'header' among the first two")
    else:
        if not re.search(r"\*\*Goals?:\*\* *\S", heads[0].source):
            found.append("the header has no '**Goal:** ...' line")
        if len(TIME.findall(heads[0].source)) != 1:
            found.append(
                "the header needs one line like '**Time:** 25 minutes for you · "
                "0 s for the machine (two CPU cores, measured)'"
            )
    if not CELLS[0] <= len(notebook.cells) <= CELLS[1]:
        found.append(f"{len(notebook.cells)} cells, not {CELLS[0]} to {CELLS[1]}")
    for number, cell in enumerate(notebook.cells):
        lines = cell.source.count("\n") + 1
        if cell.cell_type == "code" and lines > LINES:
            found.append(f"cell {number}: {lines} lines, at most {LINES}")
        if cell.cell_type == "code" and (wide := max(map(len, cell.source.splitlines()), default=0)) > COLUMNS:
            found.append(f"cell {number}: {wide} columns, at most {COLUMNS}")
        for call in re.findall(r"kit\.load_model\(([^()]*)\)", cell.source if cell.cell_type == "code" else ""):
            if f'dtype="{DTYPE}"' not in call:
                found.append(f'cell {number}: load_model without dtype="{DTYPE}", in which the course computes')
        if not cell.source.strip():
            found.append(f"cell {number}: empty")
        if path := _machine_path(cell.source):
            found.append(f"cell {number}: a path of one machine, {path}")
    if not code or not re.search(r"^kit\.assert_clean\(", code[-1].source, re.MULTILINE):
        found.append("the last code cell does not call kit.assert_clean(model)")
    budget = notebook.metadata.get("kit", {}).get("budget_seconds")
    if not isinstance(budget, int | float) or budget <= 0:
        found.append(f"metadata.kit.budget_seconds is {budget!r}, not a number of seconds")
    return found


def _output_problems(notebook: NotebookNode, stored: int) -> list[str]:
    """Faults of the stored outputs; `stored` is the file's size in bytes."""
    found = []
    kit = notebook.metadata.get("kit", {})
    if kit.get("source_sha256") != source_hash(notebook):
        found.append("the sources changed since the outputs were made: run make notebooks")
    header = TIME.search("\n".join(cell.source for cell in notebook.cells[:2]))
    told = (int(header["minutes"]), header["machine"].split()[0]) if header else None
    if told != (kit.get("human_minutes"), str(kit.get("machine_seconds"))):
        found.append(f"header and metadata disagree on the time: {told}")
    limit = OVERRUN * (kit.get("budget_seconds") or 0)
    if kit.get("machine_seconds", 0) > limit:
        found.append(f"over budget: {kit['machine_seconds']} s, at most {limit:g} s")
    megabytes = stored / 1e6
    if megabytes > kit.get("max_mb", MAX_MB):
        found.append(f"{megabytes:.1f} MB, at most {kit.get('max_mb', MAX_MB)} MB")
    if path := _machine_path(json.dumps(notebook.metadata)):
        found.append(f"the metadata (widget state?) name a path of one machine, {path}")
    count = 0
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        count += 1
        if cell.execution_count != count:
            found.append(f"cell {number}: execution count {cell.execution_count}, not {count}")
        for output in cell.outputs:
            if output.output_type == "error" or output.get("name") == "stderr":
                found.append(f"cell {number}: {output.get('ename', 'stderr')} output")
            if path := _machine_path(_text(output)):
                found.append(f"cell {number}: output names a path of one machine, {path}")
            if address := _ADDRESS.search(_plain(output)):
                found.append(f"cell {number}: output shows an object's address, {address[0]}")
    return found


def _machine_path(text: str) -> str | None:
    here = [str(ROOT)]
    if sys.prefix != sys.base_prefix:  # a virtual environment
        here.append(sys.prefix)
    known = next((path for path in here if path in text), None)
    match = _MACHINE_PATH.search(text)
    return known or (match[0] if match else None)


def _plain(output: NotebookNode) -> str:
    return output.get("text") or output.get("data", {}).get("text/plain", "")


def _text(output: NotebookNode) -> str:
    """All that is readable in an output; pictures are base64, in which anything may occur."""
    data = {kind: v for kind, v in output.get("data", {}).items() if not kind.startswith("image/")}
    return "\n".join([output.get("text", ""), *(v if isinstance(v, str) else json.dumps(v) for v in data.values())])
