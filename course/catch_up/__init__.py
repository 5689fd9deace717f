"""Catch-up: a late learner begins at any section of a notebook.

``kit.catch_up("05.3")``, in a fresh kernel of notebook 05, makes again what the cells before
section 3 made: it runs them, but for those that their authors have tagged as slow
(`course.catch_up.book`). What these made it takes from a file that the kit ships
(`course.catch_up.files`). ``python -m course.catch_up 05`` makes a notebook's file.
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


def catch_up(where: str, *, into: dict[str, Any] | None = None, kept: bool = True, folder: Path | None = None) -> Card:
    """Begin a notebook at one of its sections.

    Args:
        where: ``"05.3"``, section 3 of notebook 05, its ``## `` headings counted from 1; ``"05"``
            lists the sections.
        into: the names' dict; the notebook's own, or the caller's where there is none.
        kept: False takes nothing from a kept file, and runs the cells.
        folder: of the notebooks; the clone's by default.

    Returns:
        A card: for a section a :class:`CatchUp`, which says what was run, loaded, replaced and
        left out.

    Raises:
        ValueError: no such notebook or section, or a damaged kept file.
        CatchUpError: a cell before the section failed; the text names it and what it was to make.
    """
    from course import runner
    from course.catch_up.book import Book

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
    folders = [files.local()] if kept else []
    with suppress(FileNotFoundError):
        folders[:0] = [files.shipped()] if kept else []
    shelf = files.Shelf(book, folders, small=small)
    return running.catch_up(book, int(match[2]), _here() if into is None else into, shelf)


def _here() -> dict[str, Any]:
    """The notebook's namespace, or that of the module that called `catch_up`."""
    if "IPython" in sys.modules and (shell := sys.modules["IPython"].get_ipython()):
        return shell.user_ns
    return sys._getframe(2).f_globals
