"""Runs the course's notebooks and holds their stored outputs to their sources.

``python -m course.runner [NAME ...] [--check]`` is what ``make notebooks`` calls. Each notebook
runs from top to bottom in a fresh kernel of this interpreter; its file is replaced only when every
cell succeeded. What a notebook has to look like is said in `course.rules`.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course.rules import ROOT, TIME, problems, read, source_hash
from kit.base.files import whole
from kit.base.threads import cores

if TYPE_CHECKING:
    from nbformat import NotebookNode

FOLDER = ROOT / "notebooks"
_LANGUAGE = {"name": "python", "file_extension": ".py", "mimetype": "text/x-python", "pygments_lexer": "ipython3"}


def size(full: Any, small: Any) -> Any:
    """`small` where the environment says ``KIT_SMALL=1`` (the tests do), else `full`.

    The one switch of heavy notebooks. It may change sizes only, never what is run.
    """
    return small if os.environ.get("KIT_SMALL", "0") not in ("", "0") else full


class NotebookError(Exception):
    """A cell failed or wrote to stderr; the text shows the cell and what it said."""

    def __init__(self, name: str, number: int, source: str, detail: str) -> None:
        cell = "\n".join(f"    {line}" for line in source.splitlines())
        super().__init__(f"{name}, cell {number}:\n{cell}\n{detail.strip()}")


def execute(
    path: Path, *, small: bool = False, prelude: Sequence[str] = (), epilogue: Sequence[str] = (), passes: int = 1
) -> tuple[NotebookNode, float]:
    """Run a notebook in a fresh kernel; returns it with new outputs, and the seconds it took.

    The code cells in `prelude` and `epilogue` run before and after it and are not kept. `passes=2`
    runs its cells again in the same kernel. Nothing is written, nor is the reader's record of
    exercises read: outputs must not depend on who ran it. Raises `NotebookError`.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellControlSignal, DeadKernelError
    from nbformat.v4 import new_code_cell

    notebook = read(path)
    cells = notebook.cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    for cell in code:
        cell.outputs, cell.execution_count = [], None
    notebook.metadata.pop("widgets", None)
    before, after = ([new_code_cell(source) for source in extra] for extra in (prelude, epilogue))
    notebook.cells = [*before, *cells, *after]
    budget = notebook.metadata.get("kit", {}).get("budget_seconds") or 60
    manager = kernel_manager()
    client = NotebookClient(
        notebook, km=manager, timeout=max(60, int(4 * budget)), resources={"metadata": {"path": str(path.parent)}}
    )
    # The kit must be importable from notebooks/ too where it runs from a clone, not installed.
    search = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, search)),
        "KIT_SMALL": str(int(small)),
        "KIT_PROGRESS": "off",
        "PYTHONHASHSEED": "0",
    }
    environment.pop("MPLBACKEND", None)  # as Jupyter shows figures, whatever the shell prefers
    import_module("matplotlib.font_manager")  # on a new machine it says on stderr that it builds
    first, last = len(before), len(before) + len(cells)
    order = [*range(first), *[*range(first, last)] * passes, *range(last, last + len(after))]
    seconds = 0.0
    with client.setup_kernel(env=environment, cleanup_kc=True):
        for step, index in enumerate(order):
            cell, own = notebook.cells[index], first <= index < last
            start = time.perf_counter()
            try:
                client.execute_cell(cell, index, store_history=own)
            except (CellControlSignal, DeadKernelError) as error:
                text = re.sub(r"\x1b\[[\d;]*m", "", str(error))  # colours of the traceback
                raise NotebookError(path.name, index - first, cell.source, text) from None
            if step < last:  # the first pass
                seconds += own * (time.perf_counter() - start)
            for output in cell.get("outputs", []) if own else []:
                if output.get("name") == "stderr":
                    text = f"wrote to stderr, which readers would see:\n{output.text}"
                    raise NotebookError(path.name, index - first, cell.source, text)
        client.set_widgets_metadata()
    for cell in code:  # a progress line that wiped itself leaves an empty output
        cell.outputs = [o for o in cell.outputs if o.get("data") != {"text/plain": ""}]
    notebook.cells = cells
    return notebook, seconds


def kernel_manager() -> Any:
    """A manager whose kernel is this interpreter, whatever kernel specs the machine has."""
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    class ThisInterpreter(KernelSpecManager):
        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            launch = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            # Otherwise each start warns that its loopback connection is not encrypted.
            launch.append("--log-level=ERROR")
            return KernelSpec(argv=launch, display_name="Python 3", language="python")

    return AsyncKernelManager(kernel_spec_manager=ThisInterpreter())


def stamp(notebook: NotebookNode, seconds: float) -> None:
    """Write the measured seconds into header and metadata, and the sources' hash into the latter.

    What authors keep in ``metadata.kit`` (goals, budget_seconds, max_mb) stays.
    """
    whole = max(1, round(seconds))
    count = {1: "one CPU core", 2: "two CPU cores"}.get(cores(), f"{cores()} CPU cores")
    line = rf"\g<human> · {whole} s for the machine ({count}, measured)"
    kit = notebook.metadata.setdefault("kit", {})
    for cell in notebook.cells[:2]:
        if "header" in cell.metadata.get("tags", []) and (found := TIME.search(cell.source)):
            cell.source = TIME.sub(line, cell.source, count=1)
            kit["human_minutes"] = int(found["minutes"])
    kit.update(machine_seconds=whole, source_sha256=source_hash(notebook))
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    notebook.metadata["language_info"] = dict(_LANGUAGE)


def write(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook whole or not at all."""
    import nbformat

    with whole(path) as part:
        part.write_text(nbformat.writes(notebook, version=4) + "\n", encoding="utf-8")


def choose(names: Sequence[str], folder: Path = FOLDER) -> list[Path]:
    """Notebook files in order; a name is a number ("03"), a stem or a file name; none means all.

    Raises ValueError for a name that no notebook begins with; the text lists the notebooks.
    """
    every = sorted(folder.glob("[0-9][0-9]*.ipynb"))
    wanted = [Path(name).stem for name in names]
    for name in wanted:
        if not name or not any(path.stem.startswith(name) for path in every):
            listing = ", ".join(path.stem for path in every) or f"none in {folder}"
            raise ValueError(f"no notebook {name!r}; there are: {listing}")
    return [p for p in every if not wanted or any(p.stem.startswith(name) for name in wanted)]


def refresh(path: Path) -> float:
    """Run a notebook and replace its file; returns the seconds. Raises `NotebookError`."""
    notebook, seconds = execute(path)
    stamp(notebook, seconds)
    write(notebook, path)
    return seconds


def again(path: Path) -> tuple[bool, str]:
    """Run a notebook and compare what it prints with what is stored; writes nothing.

    Returns whether its prose holds here, and that in a line. Raises `NotebookError`.
    """
    from course.again import SHARE, compare, share

    made, _ = execute(path)
    found = compare(read(path), made)
    worst = sorted(found, key=lambda c: c.same / c.parts)[:3]
    cells = ", ".join(f"cell {c.cell} {c.same / c.parts:.0%}" for c in worst if c.same < c.parts)
    holds = share(found) >= SHARE
    return holds, f"{share(found):.0%} of its output again{f' ({cells})' if cells else ''}"


def main(arguments: Sequence[str] | None = None, report: Callable[[str], None] = print) -> int:
    """The command line; returns 1 if a notebook failed or has problems."""
    parser = argparse.ArgumentParser(prog="python -m course.runner", description=main.__doc__)
    parser.add_argument("names", nargs="*", help="notebooks (03, or a file name); default: all")
    parser.add_argument("--check", action="store_true", help="run nothing, look at what is stored")
    parser.add_argument("--again", action="store_true", help="run, and compare with what is stored")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        paths = choose(options.names, options.folder)
    except ValueError as error:
        parser.error(str(error))
    if not paths:
        parser.error(f"there are no notebooks in {options.folder}")
    status = 0
    for path in paths:
        took = "stored"
        try:
            if options.again:
                holds, took = again(path)
                report(f"{path.name}  {took}  {'ok' if holds else 'DIFFERS'}")
                status |= not holds
                continue
            if not options.check:
                report(f"{path.name} ...")
                took = f"{refresh(path):.1f} s"
        except NotebookError as error:
            report(f"{error}\n{path.name}  FAILED, file left as it was")
            status = 1
            continue
        faults = problems(path)
        report("\n  ".join([f"{path.name}  {took}  {'PROBLEMS' if faults else 'ok'}", *faults]))
        status = 1 if faults else status
    return status


if __name__ == "__main__":
    raise SystemExit(main())
