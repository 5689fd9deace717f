"""Catch-up: a late learner begins at any section of a notebook.

``kit.catch_up("05.3")``, in a fresh kernel of notebook 05, makes what section 3 and the cells after
it need: it runs the statements before it on which they rest, skips the others, and takes values
that are slow to make from a checkpoint that the kit ships (`course.catch_up.files`), where there is
one. ``python -m course.catch_up 05`` makes a notebook's checkpoint.
"""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from course.catch_up import files, running
from course.catch_up.running import CatchUp, CatchUpError
from course.exercises import Card

__all__ = ["CatchUp", "CatchUpError", "catch_up"]


def catch_up(
    where: str, *, into: dict[str, Any] | None = None, checkpoint: bool = True, folder: Path | None = None
) -> Card:
    """Begin a notebook at one of its sections.

    Args:
        where: ``"05.3"``, section 3 of notebook 05, its ``## `` headings counted from 1; ``"05"``
            lists the sections.
        into: the names' dict; the notebook's own, or the caller's where there is none.
        checkpoint: False runs everything that is needed and takes nothing from a file.
        folder: of the notebooks; the clone's by default.

    Returns:
        A card: for a section a :class:`CatchUp`, which says what was run, loaded and left out.

    Raises:
        ValueError: no such notebook or section, or a damaged checkpoint.
        CatchUpError: a name cannot be provided; the text names it and its cell.
    """
    from course import runner
    from course.catch_up.plan import Book

    match = re.fullmatch(r"(\d\d)(?:\.(\d+))?", where) if isinstance(where, str) else None
    if match is None:
        raise ValueError(
            f"where={where!r}: give a notebook and a section, as in '05.3', or a "
            "notebook, '05', for a list of its sections"
        )
    (path,) = runner.choose([match[1]], folder or runner.FOLDER)
    book, small = Book.of(path), runner.size(False, True)
    if match[2] is None:
        lines = "\n".join(f"{match[1]}.{s.number:<3} {s.title}" for s in book.sections)
        return Card(f"Sections of {book.name}", lines, f'kit.catch_up("{match[1]}.3")')
    folders = [files.local()] if checkpoint else []
    with suppress(FileNotFoundError):
        folders[:0] = [files.shipped()] if checkpoint else []
    shelf = files.Shelf(book, folders, small=small)
    return running.catch_up(book, int(match[2]), _here() if into is None else into, shelf)


def _here() -> dict[str, Any]:
    """The notebook's namespace, or that of the module that called `catch_up`."""
    if "IPython" in sys.modules and (shell := sys.modules["IPython"].get_ipython()):
        return shell.user_ns
    return sys._getframe(2).f_globals
