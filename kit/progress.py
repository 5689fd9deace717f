"""Progress with an estimate: a line in a notebook or a terminal, nothing in a log."""
from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

Item = TypeVar("Item")


def track(
    items: Iterable[Item],
    what: str,
    total: int | None = None,
    status: Callable[[], str] = str,
) -> Iterator[Item]:
    """Yield items while a line says how many of them are done and how long the rest takes.

    Args:
        items: anything to iterate over.
        what: what is being counted, in the plural ("prompts").
        total: their number, if ``items`` has no length.
        status: what else the line says, a live loss for example.
    """
    total = len(items) if total is None and isinstance(items, Sized) else total
    show, start, shown = _line(), time.monotonic(), 0.0
    done = 0
    try:
        for item in items:
            yield item
            done += 1
            now = time.monotonic()
            if now - shown > 0.2 and total:
                left = (now - start) / done * (total - done)
                more = status()
                show(f"{done} of {total} {what}, about {left:.0f} s to go"
                     + (f" · {more}" if more else ""))
                shown = now
    finally:
        # a line that told of the wait is not worth keeping in a saved notebook; a stop is
        whole = total is None or done == total
        show("" if whole else f"stopped after {done} of {total} {what}", last=True)


class _line:
    """Shows one line that changes: a display handle in a kernel, stderr in a terminal."""

    def __init__(self) -> None:
        self.handle = None
        shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
        if shell is not None and hasattr(shell, "kernel"):
            from IPython.display import display

            self.handle = display({"text/plain": ""}, raw=True, display_id=True)

    def __call__(self, text: str, last: bool = False) -> None:
        if self.handle is not None:
            self.handle.update({"text/plain": text}, raw=True)
        elif sys.stderr.isatty():
            sys.stderr.write(f"\r{text:<72}" + "\n" * last)
