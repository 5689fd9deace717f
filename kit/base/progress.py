"""Progress with an estimate: a line in a notebook or a terminal, nothing in a log."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")


def track(
    items: Iterable[Item], what: str, total: int | None = None, status: Callable[[], str] = str
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
                show(f"{done} of {total} {what}, about {left:.0f} s to go" + (f" · {more}" if more else ""))
                shown = now
    finally:
        # a line that told of the wait is not worth keeping in a saved notebook; a stop is
        whole = total is None or done == total
        show("" if whole else f"stopped after {done} of {total} {what}", last=True)


@contextmanager
def to_the_end() -> Iterator[None]:
    """A block that the kernel's stop button does not cut in two: KeyboardInterrupt comes after it.

    Pressed again it comes at once. In threads other than the main one nothing changes: Python
    interrupts none of them.
    """
    before = signal.getsignal(signal.SIGINT)
    ours = before is not None and threading.current_thread() is threading.main_thread()  # None: not Python's
    if isinstance(before, _Press) or not ours:
        yield  # the block around this one is not cut either, or no stop comes through Python
        return
    press = _Press()
    signal.signal(signal.SIGINT, press)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if press.noted:
        raise KeyboardInterrupt


class _Press:
    """Notes the first press of the stop button; the second interrupts."""

    noted = False

    def __call__(self, _number: int, _frame: Any) -> None:
        if self.noted:
            raise KeyboardInterrupt
        self.noted = True


def processes() -> tuple[int, int]:
    """Which process this is and how many there are, as ``torchrun`` and ``accelerate launch`` tell
    it to each: ``(0, 1)`` where neither started it.

    Raises:
        ValueError: ``RANK`` and ``WORLD_SIZE`` that make no sense.
    """
    told = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (told[0].isdecimal() and told[1].isdecimal() and int(told[0]) < int(told[1])):
        raise ValueError(
            f"RANK={told[0]!r} and WORLD_SIZE={told[1]!r} in the environment: give "
            "numbers, RANK from 0 to WORLD_SIZE - 1, or unset both"
        )
    return int(told[0]), int(told[1])


class _line:
    """Shows one line that changes: a display handle in a kernel, stderr in a terminal.

    Of several processes only the first shows one.
    """

    def __init__(self) -> None:
        self.handle = None
        self.first = processes()[0] == 0
        shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
        if shell is not None and hasattr(shell, "kernel"):
            from IPython.display import display

            self.handle = display({"text/plain": ""}, raw=True, display_id=True)

    def __call__(self, text: str, last: bool = False) -> None:
        if self.handle is not None:
            self.handle.update({"text/plain": text}, raw=True)
        elif self.first and sys.stderr.isatty():
            sys.stderr.write(f"\r{text:<72}" + "\n" * last)
