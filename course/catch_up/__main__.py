"""``python -m course.catch_up [NAME ...]``: make notebooks' kept files, or look at them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence

from course import runner
from course.catch_up.book import Book
from course.catch_up.files import file_name, local, stale, stamp
from course.catch_up.making import MAX_MB, make


def main(arguments: Sequence[str] | None = None, report: Callable[[str], None] = print) -> int:
    """Run notebooks up to their last tagged cell and store what the tagged cells made.

    Returns 1 if a kept file is out of date (``--check``) or cannot be stamped (``--stamp``).
    """
    parser = argparse.ArgumentParser(prog="python -m course.catch_up", description=main.__doc__)
    parser.add_argument("names", nargs="*", help="notebooks (05, or a file name); default: all")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="run nothing, look at what is stored")
    what.add_argument(
        "--stamp",
        action="store_true",
        help="run nothing, take what is stored as made by the code as it is now: after a change "
        "that can make no other values, a renamed function for example",
    )
    parser.add_argument("--local", action="store_true", help="for this host: into the cache directory, of any size")
    parser.add_argument("--mb", type=float, default=MAX_MB, help="at most so large, each")
    options = parser.parse_args(arguments)
    try:
        paths = runner.choose(options.names)
    except ValueError as error:
        parser.error(str(error))
    small = runner.size(False, True)
    folder = local() if options.local else runner.FOLDER.parent / "data" / "kept"
    status = 0
    for path in paths:
        book = Book.of(path)
        target = folder / file_name(book.name, small=small)
        if not (options.check or options.stamp):
            if not options.local:  # what is shipped is the same whoever makes it
                os.environ["KIT_DTYPE"] = "float32"
            limit = float("inf") if options.local else options.mb
            make(book, target, small=small, max_mb=limit, report=report)
        elif target.is_file():
            try:
                if options.stamp:
                    stamp(book, target, small=small)
                faults = stale(book, target, small=small)
            except ValueError as error:
                faults = [str(error)]
            report("\n".join(faults) or f"{target.name} ok")
            status |= bool(faults)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
