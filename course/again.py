"""Does a notebook's prose hold on this machine? Its stored outputs beside those of a new run.

Machines add floating-point numbers in different orders, so last digits differ, and now and then a
text that hung on one of them. Numbers are the same within `NEAR`, words if they are equal, and a
notebook holds if at least `SHARE` of all that it printed is found again.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbformat import NotebookNode

NEAR = 0.02  # of a number's size, or of 1 for smaller ones
SHARE = 0.9
_PART = re.compile(r"[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?%?|\w+|[^\w\s]")
_TIME = re.compile(r"\b\d+(?:\.\d+)? (?:ms|s|seconds|minutes)\b")


@dataclass(frozen=True)
class Compared:
    """Of one cell: parts printed before, and how many of them the new run printed too."""

    cell: int
    parts: int
    same: int


def compare(stored: NotebookNode, made: NotebookNode) -> list[Compared]:
    """Compare the text that each code cell printed; both are the same notebook, run twice.

    Raises ValueError if their cells are not the same.
    """
    if [cell.source for cell in stored.cells] != [cell.source for cell in made.cells]:
        raise ValueError("made: its cells are not those of the stored notebook")
    found = []
    for number, (old, new) in enumerate(zip(stored.cells, made.cells, strict=True)):
        if old.cell_type == "code" and (parts := _parts(old)):
            found.append(Compared(number, len(parts), _same(parts, _parts(new))))
    return found


def share(compared: list[Compared]) -> float:
    """Of all printed parts, those that were found again; 1.0 for a notebook that prints none."""
    return sum(c.same for c in compared) / sum(c.parts for c in compared) if compared else 1.0


def _parts(cell: NotebookNode) -> list[str]:
    texts = (o.get("text") or o.get("data", {}).get("text/plain", "") for o in cell.outputs)
    return _PART.findall(_TIME.sub("", "\n".join(texts)))


def _same(old: list[str], new: list[str]) -> int:
    count = 0
    for what, i, j, k, m in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if what == "equal":
            count += j - i
        elif what == "replace" and j - i == m - k:  # as many as there were: perhaps last digits
            count += sum(_near(a, b) for a, b in zip(old[i:j], new[k:m], strict=True))
    return count


def _near(a: str, b: str) -> bool:
    try:
        x, y = (float(part.rstrip("%").replace(",", "")) for part in (a, b))
    except ValueError:
        return False
    return abs(x - y) <= NEAR * max(1.0, abs(x))
