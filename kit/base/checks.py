"""Checks of arguments that many functions share: an error names argument, value and remedy."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import TypeIs


def is_whole(value: object) -> TypeIs[int]:
    """Whether it is a whole number, of Python or numpy; a bool is none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> TypeIs[float]:
    """Whether it is a finite real number, of Python or numpy; a bool is none."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def plain(value: Any) -> Any:
    """Python numbers for those of numpy and torch."""
    return value.tolist() if hasattr(value, "tolist") else value


def check_counts(least: int = 1, **given: object) -> None:
    """Refuse what is no whole number from ``least`` on; the names are those of the arguments.

    Raises:
        ValueError: names the first that is none.
    """
    for name, n in given.items():
        if not is_whole(n) or n < least:
            raise ValueError(f"{name}={n!r}: give a whole number from {least} on")


def check_positive(**given: object) -> None:
    """Refuse what is no positive finite number; the names are those of the arguments.

    Raises:
        ValueError: names the first that is none.
    """
    for name, x in given.items():
        if not is_number(x) or not x > 0:
            raise ValueError(f"{name}={x!r}: give a positive number")
