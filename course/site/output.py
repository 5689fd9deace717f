"""How the course's texts come about: templates that are filled, folders that are replaced."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> str:
    """A file of the folder ``templates``, filled by jinja2.

    In HTML every value is escaped that is no ``Markup``; a name that is not given is an error.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(values)


@contextmanager
def replaced(out: str | Path, mark: str) -> Iterator[Path]:
    """A new folder to fill; it takes the place of ``out`` when the block ends without an error.

    So a build that was stopped, or failed, leaves what was there before.

    Args:
        mark: a file that every build makes; a folder that holds it may be replaced.

    Raises:
        FileExistsError: ``out`` is a file, or a folder that holds something else.
    """
    target = Path(os.path.abspath(out))
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not (target / mark).is_file()):
        why = "it is a file" if target.is_file() else "it holds files that no build made"
        raise FileExistsError(
            f"out={str(out)!r} holds something else than a build: {why}; name a folder that is empty or not there yet"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        fresh = Path(scratch) / "new"
        fresh.mkdir()
        yield fresh
        if target.exists():
            os.replace(target, Path(scratch) / "old")
        os.replace(fresh, target)
