"""RoomTable: where in the exercises a room is, renewed by itself."""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from html import escape
from pathlib import Path

import ipywidgets as w

from course.room.table import STUCK, Row, Table, read_room
from kit.base.html import INK, LINE, PLAIN, SANS, number
from kit.widgets.frame import View

_FONT = f"font:14px/1.5 {SANS}"
_HEADS = ("exercise", "stuck", "started", "tries", "passed", "hints", "solution opened", "median minutes")
_ALL = "all"
_LIVE: weakref.WeakSet[RoomTable] = weakref.WeakSet()


class RoomTable(View):
    """What the learners of a room share (`course.exercises.share`), on screen.

    Attributes:
        table: the last one read (`course.room.table.Table`).
        notebook: a :class:`Dropdown`, which of its notebooks is shown.
        automatic: a :class:`Checkbox`, whether it renews itself.
        frozen_html: the present table as HTML that needs no kernel.
    """

    def __init__(self, folder: str | Path, *, every: float = 5.0) -> None:
        """
        Args:
            folder: the one that learners share with.
            every: seconds between two looks at it.

        Raises:
            OSError: there is no such folder, or it may not be read.
            ValueError: ``every`` outside 0.1 to 3600.
        """
        if not 0.1 <= every <= 3600:
            raise ValueError(f"every={every!r}: give seconds, from 0.1 to 3600")
        self.folder, self.every = Path(folder), every
        self.table: Table = read_room(folder)
        self._guard = threading.RLock()  # callbacks, cells and the thread all come here
        self._wake = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None
        self.refresh_button = w.Button(
            description="Refresh", tooltip="read the folder now", button_style="primary", layout=w.Layout(width="auto")
        )
        self.automatic = w.Checkbox(True, description=f"every {every:g} s", indent=False, layout=w.Layout(width="auto"))
        self.notebook = w.Dropdown(
            options=[_ALL],
            description="notebook",
            layout=w.Layout(width="170px"),
            style={"description_width": "initial"},
        )
        self.freeze_button = w.Button(
            description="Freeze", layout=w.Layout(width="auto"), tooltip="keep this table as plain HTML in the notebook"
        )
        self._html, self._time = w.HTML(), w.HTML()
        super().__init__()
        bar = w.Layout(grid_gap="8px", flex_flow="row wrap", align_items="center")
        self._arrange(
            "Where the room is",
            w.HBox([self.refresh_button, self.automatic, self.notebook, self.freeze_button], layout=bar),
            self._message,
            self._html,
            self._time,
            freeze=self.freeze_button,
            classes=["kit-room"],
        )
        self._html.add_class("kit-grow")
        self.refresh_button.on_click(lambda _b: self._try(self.refresh))
        self.notebook.observe(lambda _c: self._try(self._draw), "value")
        self.automatic.observe(lambda _c: self._follow(), "value")
        self._draw()
        _LIVE.add(self)
        self._follow()

    def refresh(self) -> None:
        """Read the folder now.

        Raises:
            OSError: it is gone, or may no longer be read; the last table stays on the screen.
        """
        table = read_room(self.folder)
        with self._guard:
            self.table = table
            self._draw()

    @property
    def has_run(self) -> bool:
        return True

    @property
    def frozen_html(self) -> str:
        return self._shown() + _when(self.table)

    def _end(self) -> None:
        with self._guard:
            self._closed = True
            thread = self._thread
        self._wake.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(2.0)

    def _follow(self) -> None:
        """Start the thread if it is wanted; one that is not wanted ends by itself."""
        with self._guard:
            if self.automatic.value and not self._closed and self._thread is None:
                self._wake.clear()
                self._thread = threading.Thread(target=self._work, name="kit-room", daemon=True)
                self._thread.start()
            elif not self.automatic.value:
                self._wake.set()

    def _work(self) -> None:
        failed = False
        while True:
            self._wake.wait(self.every)
            with self._guard:
                if self._closed or not self.automatic.value:
                    self._thread = None
                    return
                self._wake.clear()  # switched off and on again meanwhile
            try:
                self.refresh()
                if failed:
                    self._say("")
                failed = False
            except Exception as error:
                self._say(" ".join(str(error).split()) or type(error).__name__, error=True)
                failed = True

    def _shown(self) -> str:
        return html(self.table, None if self.notebook.value == _ALL else self.notebook.value)

    def _draw(self) -> None:
        with self._guard:
            self._quiet = True
            try:
                options = (_ALL, *self.table.notebooks)
                if self.notebook.options != options:
                    chosen = self.notebook.value
                    self.notebook.options = options
                    self.notebook.value = chosen if chosen in options else _ALL
            finally:
                self._quiet = False
            # the time apart: a table that is drawn anew would scroll back and lose the focus
            self._html.value = self._shown()
            self._time.value = _when(self.table)


def html(table: Table, notebook: str | None = None) -> str:
    """A table of :func:`course.room.table.read_room` as HTML, of one notebook or all.

    Every text passes ``html.escape``. A bar says where the room is stuck; so do its numbers and,
    where a third of those who started are, the word.
    """
    cell = f"padding:3px 7px;border-bottom:1px solid {LINE};vertical-align:middle"
    right = f"{cell};text-align:right;font-variant-numeric:tabular-nums"
    left = f"{cell};text-align:left;font-weight:400"
    heads = "".join(
        f'<th scope="col" style="{left if i < 2 else right};font-weight:600">{name}</th>'
        for i, name in enumerate(_HEADS)
    )
    rows = table.of(notebook)
    body = "".join(_row(row, left, right) for row in rows)
    notes = f"<div>⚠ {escape('; '.join(table.notes))}</div>" if table.notes else ""
    empty = "" if rows else "<div>Nobody has started an exercise.</div>"
    return (
        f'<div class="{PLAIN}" style="{_FONT}"><div role="region" aria-label="the table" tabindex="0" '
        f'style="overflow-x:auto"><table style="border-collapse:collapse;table-layout:auto;font:'
        f'inherit;margin:0"><caption style="text-align:left;padding:2px 7px 6px;'
        f'color:inherit"><b style="font-size:15px">The room</b>&ensp;{escape(table.headline)}'
        f"</caption><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>{empty}"
        f'<div style="font-size:12px;opacity:.8;padding:6px 7px;max-width:60em">started, passed, '
        f"solution opened, stuck: learners; tries and hints: of all together; minutes: from the "
        f"first look to the pass; stuck: {STUCK} or more failed tries and no pass.{notes}</div>"
        "</div>"
    )


def _when(table: Table) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(table.at))
    return f'<div style="{_FONT};font-size:12px;opacity:.8;padding:0 7px">as of {at}</div>'


def _row(row: Row, left: str, right: str) -> str:
    minutes = number(row.minutes, 1)
    numbers = (row.started, row.tries, row.passed, row.hints, row.solutions, minutes)
    cells = "".join(f'<td style="{right}">{n}</td>' for n in numbers)
    bar = (
        f'<span aria-hidden="true" style="display:inline-block;width:72px;height:12px;'
        f'border:1px solid {LINE};vertical-align:-1px;margin-right:8px"><span style="display:'
        f'block;height:12px;width:{row.heat:.0%};background:rgb({INK})"></span></span>'
    )
    words = f"{row.stuck} of {row.started}"
    if row.warns:
        words = f"<b>⚠ {words}: stuck</b>"
    names = f'<div style="font-size:12px">{escape(row.who)}</div>' if row.names else ""
    return (
        f'<tr style="background:none"><th scope="row" style="{left};min-width:10em">'
        f'<b>{escape(row.exercise)}</b> {escape(row.title)}</th><td style="{left}">'
        f'<span style="white-space:nowrap">{bar}{words}</span>{names}</td>{cells}</tr>'
    )


@atexit.register
def _end_all() -> None:
    """A thread that draws while the interpreter ends would meet what is gone already."""
    for table in list(_LIVE):
        table._end()
