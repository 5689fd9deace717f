"""``python -m course.catch_up [NAME ...]``: make notebooks' checkpoints, or look at them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence

from course import runner
from course.catch_up.files import file_name, local, stale
from course.catch_up.making import MAX_MB, make
from course.catch_up.plan import Book


def main(arguments: Sequence[str] | None = None, report: Callable[[str], None] = print) -> int:
    """Run what the sections of notebooks need and store what is slow to make.

    Returns 1 if a checkpoint is out of date (``--check``).
    """
    parser = argparse.ArgumentParser(prog="python -m course.catch_up", description=main.__doc__)
    parser.add_argument("names", nargs="*", help="notebooks (05, or a file name); default: all")
    parser.add_argument("--check", action="store_true", help="run nothing, look at what is stored")
    parser.add_argument("--local", action="store_true", help="for this host: into the cache directory, of any size")
    parser.add_argument("--mb", type=float, default=MAX_MB, help="at most so large, each")
    options = parser.parse_args(arguments)
    try:
        paths = runner.choose(options.names)
    except ValueError as error:
        parser.error(str(error))
    small = runner.size(False, True)
    folder = local() if options.local else runner.FOLDER.parent / "data" / "checkpoints"
    status = 0
    for path in paths:
        book = Book.of(path)
        target = folder / file_name(book.name, small=small)
        if not options.check:
            if not options.local:  # what is shipped is the same whoever makes it
                os.environ["KIT_DTYPE"] = "float32"
            limit = float("inf") if options.local else options.mb
            make(book, target, small=small, max_mb=limit, report=report)
        elif target.is_file():
            old = stale(book, target, small=small)
            report("\n".join(old) or f"{target.name} ok")
            status |= bool(old)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
