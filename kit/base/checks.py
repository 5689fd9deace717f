"""Checks of arguments that many functions share: an error names argument, value and remedy."""

from __future__ import annotations

import math


def check_counts(least: int = 1, **given: object) -> None:
    """Refuse what is no whole number from ``least`` on; the names are those of the arguments.

    Raises:
        ValueError: names the first that is none.
    """
    for name, n in given.items():
        if isinstance(n, bool) or not isinstance(n, int) or n < least:
            raise ValueError(f"{name}={n!r}: give a whole number from {least} on")


def check_positive(**given: object) -> None:
    """Refuse what is no positive finite number; the names are those of the arguments.

    Raises:
        ValueError: names the first that is none.
    """
    for name, x in given.items():
        if isinstance(x, bool) or not isinstance(x, int | float) or not 0 < x < math.inf:
            raise ValueError(f"{name}={x!r}: give a positive number")
