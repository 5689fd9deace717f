"""Faults on purpose: hostile text, malicious files, dead networks, killed jobs, and what was lost.

``python -m tests.faults [--rounds N] [--only WHAT]`` runs all of it and prints the counts that
``docs/security.md`` speaks of; the tests run short versions of the same functions.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

BEGINS = "tests.faults.begins"


def begins() -> None:
    """Said by a job that has set up what it needs: it is hurt from here on, not before."""
    sys.audit(BEGINS)


@dataclass
class Row:
    """One line of the table.

    Attributes:
        what: was tried; inputs: hostile inputs given; faults: injected (a kill, a dead server).
        losses: one line each: a crash, a hang, a half-written file, something that came through.
    """

    what: str
    inputs: int = 0
    faults: int = 0
    losses: list[str] = field(default_factory=list)


def table(rows: list[Row]) -> str:
    """The rows and their totals as text, and under them each loss."""
    total = Row(
        "total", sum(r.inputs for r in rows), sum(r.faults for r in rows), [loss for r in rows for loss in r.losses]
    )
    wide = max(len(row.what) for row in [*rows, total]) + 2
    lines = [f"{'what':<{wide}}{'inputs tried':>14}{'faults injected':>17}{'losses':>8}"]
    lines += [f"{r.what:<{wide}}{r.inputs:>14}{r.faults:>17}{len(r.losses):>8}" for r in [*rows, total]]
    return "\n".join([*lines, *(f"LOST: {r.what}: {loss}" for r in rows for loss in r.losses)])
