"""Whether a folder can be written, found by writing: a mode says nothing of a read-only disk."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def why_not(folder: Path) -> str:
    """Why no file can be made in a folder, in words; empty when one can, and nothing stays of it.

    A folder that is not there is judged by the nearest one above it, in which it would be made.
    """
    place = folder.absolute()
    try:
        while not os.path.lexists(place):
            place = place.parent
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"x")
    except OSError as error:
        if os.path.isfile(place):
            return f"{place} is a file; a folder is needed"
        return f"{place} cannot be written: {(error.strerror or str(error)).lower()}"
    return ""
