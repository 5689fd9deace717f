"""What views share: style sheet, names for screen readers, inputs, a line for errors, freezing, and
an end: ipywidgets keeps every widget, and so the model behind its callbacks, until it is closed.

Inputs keep their width, and their names are as wide as their words.
"""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import anywidget
import ipywidgets as w
import traitlets

from kit.base import html
from kit.base.checks import is_number, is_whole
from kit.models.bridge import runtime
from kit.widgets.panel.controller import Controller, Frame, one_line, refuse_held

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Kind = TypeVar("Kind", bound=w.Widget)
NARROW = {"description_width": "initial"}


class Page(anywidget.AnyWidget):
    """Invisible part of a view, its eyes: names the view as a region, and every control that has
    none after its label, tooltip or placeholder, also those that come later; marks the view when
    its kernel is gone; looks whether what was frozen (of class ``frozen``) is there; and tells
    which latent (:func:`kit.sae.pages.to`) was clicked in a view of class ``kit-picks``."""

    _esm = Path(__file__).with_name("page.js")
    label, frozen = (traitlets.Unicode().tag(sync=True) for _ in range(2))
    found = traitlets.Unicode().tag(sync=True)  # "yes <frozen>" or "no <frozen>"
    picked = traitlets.Unicode().tag(sync=True)  # "<latent> <how many clicks so far>"


_NOT_KEPT = (
    "Shown below, but not kept: no output of a cell shows this view by itself, and a notebook saves outputs only. "
    "End a cell with the view's freeze() to keep it."
)
PANEL = f"<style>\n{Path(__file__).with_name('panel.css').read_text(encoding='utf-8')}</style>"


def frame(page: Page, more: str = "") -> w.Widget:
    """The first child of every view: its style, and what looks at the page. ``more`` are further
    style sheets."""
    return w.HBox([w.HTML(PANEL + more), page], layout=w.Layout(height="0"))


def message() -> w.HTML:
    """Where a view says what went wrong; screen readers say it too."""
    line = w.HTML()
    line.add_class("kit-status")
    return line


def small(kind: type[Kind], label: str, width: str, name: str = "", **options: Any) -> Kind:
    """An input of a fixed width with its name beside it; ``options`` as for its kind.

    Raises:
        ValueError: a value outside ``min`` to ``max``, which the widget would move there silently;
            it is called ``name``, or as the label.
    """
    if {"value", "min", "max"} <= {*options}:
        value, low, high = options["value"], options["min"], options["max"]
        whole = issubclass(kind, w.BoundedIntText)
        if not (is_whole(value) if whole else is_number(value)) or not low <= value <= high:
            what = "whole number" if whole else "number"
            raise ValueError(f"{name or label}={value!r}: give a {what} from {low} to {high}")
    return kind(description=label, style=NARROW, layout=w.Layout(width=width, flex="0 0 auto"), **options)


def button(label: str, width: str = "auto", tip: str | None = None, button_style: str = "") -> w.Button:
    """A button that keeps its width."""
    layout = w.Layout(width=width, flex="0 0 auto")
    return w.Button(description=label, tooltip=tip, button_style=button_style, layout=layout)


def freezer(what: str = "this state", width: str = "80px") -> w.Button:
    """The button for :meth:`kit.widgets.frame.View.freeze`."""
    return button("Freeze", width, f"keep {what} as plain HTML in the notebook")


def writing(text: str, hint: str, height: str = "56px") -> w.Textarea:
    """A field for a text, as wide as its row allows; it speaks up when the text is whole."""
    layout = w.Layout(flex="1 1 auto", width="auto", height=height)
    return w.Textarea(text, placeholder=hint, rows=2, continuous_update=False, layout=layout)


def line(width: int, least: int, **options: Any) -> w.Text:
    """A field of one line that grows from ``width`` pixels, and shrinks to ``least``; ``options``
    as for :class:`ipywidgets.Text`."""
    return w.Text(layout=w.Layout(flex=f"1 1 {width}px", min_width=f"{least}px"), **options)


def measure(on: bool) -> w.Checkbox:
    """Whether a run measures what steering costs."""
    layout = w.Layout(width="104px", flex="0 0 auto")
    return w.Checkbox(on, description="measure KL", indent=False, tooltip="off is about twice as fast", layout=layout)


def row(*items: w.Widget, gap: str | None = None, align: str = "center") -> w.HBox:
    """Widgets beside one another, on further lines where there is no room."""
    layout = w.Layout(width="100%", align_items=align, flex_flow="row wrap", grid_gap=gap)
    return w.HBox(items, layout=layout)


def bar(*items: w.Widget) -> w.HBox:
    """A row below a line."""
    made = row(*items)
    made.add_class("kit-bar")
    return made


def heading(title: str, about: str) -> w.HTML:
    """The name of a view and what it is about, both HTML."""
    return w.HTML(f'<b style="font-size:15px">{title}</b><span style="opacity:.75">&ensp;{about}</span>')


def head(title: str, model: str, *parts: w.HTML) -> w.HBox:
    """The top of a view that runs a model: its name, the model's (HTML); at the right its status,
    the last of ``parts``."""
    name = w.HTML(
        f'<span style="font-size:16px;font-weight:600">{title}</span> '
        f'<span style="font-size:12px;opacity:.75">&ensp;{model}</span>'
    )
    for part in (name, *parts):
        part.layout.flex = "0 0 auto"
    return row(name, *parts[:-1], w.HBox(layout=w.Layout(flex="1")), parts[-1], gap="2px 12px")


def cell() -> tuple[str, Any] | None:
    """The cell that runs now (its id, or its text) and which run this is; None outside of cells."""
    from IPython import get_ipython

    shell: Any = get_ipython()
    if shell is None:
        return None
    if hasattr(shell, "get_parent"):  # a kernel's
        asked = shell.get_parent() or {}
        if asked.get("header", {}).get("msg_type") != "execute_request":
            return None  # a callback
        return asked["metadata"].get("cellId") or asked["content"]["code"], asked["header"]["msg_id"]
    told = shell.history_manager.input_hist_raw
    return told[-1], len(told)


def dispose(widget: w.Widget) -> None:
    """Close a widget and all that it is made of."""
    if not isinstance(widget, View):  # that does so itself
        for value in list(widget._trait_values.values()):
            for part in value if isinstance(value, list | tuple) else [value]:
                if isinstance(part, w.Widget):
                    dispose(part)
    widget.close()


_MADE: dict[str, tuple[Any, weakref.WeakSet[View]]] = {}  # by cell: its last run, and what that made


class View(w.VBox):
    """A view that can be frozen, and whose clicks say what went wrong: in the log nobody looks.

    A cell that runs again closes the views that it made before.

    Subclasses have ``frozen_html``, and ``has_run`` where there is nothing to show at first; they
    call :meth:`_arrange`.
    """

    _quiet = False  # while the view itself sets its controls
    _shut = False

    def __init__(self) -> None:
        super().__init__()
        self._own = {*vars(self), "_own", "_shut"}  # what is left when it is closed
        self._message, self._area, self._eyes = message(), w.HTML(), Page()
        self._eyes.observe(lambda change: self._frozen(change["new"]), "found")
        self._eyes.observe(lambda change: self._try(lambda: self._pick(int(change["new"].split()[0]))), "picked")
        self._outputs: dict[Any, Any] = {}  # by cell: a handle of what stands below this view there
        if here := cell():
            run, before = _MADE.get(here[0], (None, ()))
            if run != here[1]:
                _MADE[here[0]] = here[1], weakref.WeakSet()
                for view in list(before):
                    view.close()
                if before:
                    gc.collect()  # a model is full of circles, which are found late and cost memory
            _MADE[here[0]][1].add(self)

    def _arrange(
        self, name: str, *rows: w.Widget, freeze: w.Button | None = None, classes: Sequence[str] = (), sheet: str = ""
    ) -> None:
        """Show rows from top to bottom, and below them what the button ``freeze`` keeps."""
        if freeze is not None:
            freeze.on_click(lambda _button: self._try(self._freeze))
            rows = (*rows, self._area)
        self._eyes.label = name
        self.children = (frame(self._eyes, sheet), *rows)
        for each in ("kit-panel", *html.PLAIN.split(), *classes):
            self.add_class(each)

    @property
    def frozen_html(self) -> str:
        """The present state as HTML that needs no kernel."""
        raise NotImplementedError

    @property
    def has_run(self) -> bool:
        """Whether there is a state to show."""
        return True

    def freeze(self) -> Any:
        """The present state as HTML that stays in the saved notebook: end a cell with it."""
        from IPython.display import HTML

        return HTML(self.frozen_html)

    def freeze_here(self, area: w.HTML) -> str:
        """Put the state into the outputs of the cells that show this view, or, where there are
        none, into ``area``, which no notebook keeps.

        Returns:
            What to tell the user, as HTML. The page tells more: an output may have been cleared.
        """
        if self._outputs and not os.environ.get("SERVER_SOFTWARE", "").startswith("voila"):
            frozen = self.freeze()
            self._eyes.frozen = f"kit-frozen-{uuid4().hex[:12]}"
            frozen.data = f'<div class="{self._eyes.frozen}">{frozen.data}</div>'
            for output in self._outputs.values():
                output.update(frozen)
            area.value = ""
            return html.message("Freezing into the output of the cell that shows this view ...")
        area.value = self.frozen_html
        return html.message(_NOT_KEPT, error=True)

    def _freeze(self) -> None:
        self._message.value = self.freeze_here(self._area)

    def _frozen(self, found: str) -> None:
        """What the page says about the last freezing."""
        if found == f"yes {self._eyes.frozen}":
            self._say("Frozen below; it stays in the notebook when you save it.")
        elif found == f"no {self._eyes.frozen}":
            self._say("")  # no part of the state
            self._area.value = self.frozen_html
            self._say(_NOT_KEPT, error=True)

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(**options) or {}
        if self.has_run:  # for readers without a kernel
            bundle["text/html"] = self.frozen_html
        return bundle

    def _ipython_display_(self) -> None:
        from IPython.display import HTML, display

        if self._shut:
            display(HTML(html.message("This view is closed: run the cell that made it, and this one, again.")))
            return
        display(self._repr_mimebundle_(), raw=True)
        # an output of the cell that can be filled later: unlike a widget it is saved
        self._outputs[(cell() or [None])[0]] = display(HTML(""), display_id=True)

    def close(self) -> None:
        """Take the view off the screen, and let go of all that it is made of and shows."""
        if "_own" in vars(self) and not self._shut:
            self._end()
            parts = [*self.children, self.layout]
            for value in vars(self).values():  # those that are not on the screen now; other views are not ours
                several = value if isinstance(value, list) else [value]
                parts += [part for part in several if isinstance(part, w.Widget) and not isinstance(part, View)]
            for part in parts:
                dispose(part)
            self.children, self._shut = (), True
            for name in {*vars(self)} - self._own:
                delattr(self, name)
        super().close()

    def _pick(self, latent: int) -> None:
        """What a click on a latent's number does; for views of class ``kit-picks``."""

    def _end(self) -> None:
        """Stop what runs; called once, also where a subclass's constructor raised."""

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if self._shut:
                raise AttributeError(f"this {type(self).__name__} is closed, so it has no {name!r}: make a new one")
            return object.__getattribute__(self, name)  # with the error that it has by itself

    def _try(self, job: Callable[[], Any], failed: str = "") -> None:
        """Do what a click asks for; ``failed`` goes before an error."""
        if self._quiet:
            return
        try:
            self._message.value = ""
            job()
        except Exception as error:
            self._say(failed + one_line(error), error=True)

    def _say(self, text: str, *, error: bool = False) -> None:
        self._message.value = html.message(text, error=error)

    @contextmanager
    def _silent(self) -> Iterator[None]:
        """While the view itself sets its controls, they start nothing."""
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before


class LiveView(View):
    """A view on a :class:`kit.widgets.Controller`: it posts requests and draws their frames.

    Callbacks may run on a kernel's subshell thread while a cell runs; they read the controls, post
    a request and return. The worker calls :meth:`_show`, the only place that writes text.
    Subclasses have ``_post``, and ``_take`` for a frame of the last request.
    """

    _called = "view"  # in its errors

    def __init__(self, model: TransformerBridge) -> None:
        runtime(model)  # refuses what is no bridge
        super().__init__()
        self._lm = model
        self._name = str(model.cfg.model_name or "model")
        self._chats = bool(model.tokenizer.chat_template)
        self._guard = threading.RLock()  # callbacks, cells and the worker all come here
        self._error: str | None = None
        self._id = 0  # of the request whose frames are drawn
        self._status, self._receipt = w.HTML(), w.HTML()
        self.controller = Controller(model, self._show)
        self._own.add("controller")  # which says that it is closed

    def run(self, wait: bool = True, timeout: float | None = None) -> None:
        """Generate with the present settings; with ``wait`` return when the texts are there.

        Raises:
            RuntimeError: the run failed; the text says why. What it had is kept. Or it was to be
                waited for within :func:`kit.steer`, which holds the model until its block ends.
            TimeoutError: it is not done in ``timeout`` seconds (it goes on).
        """
        if wait:
            refuse_held(self._lm)
        self._post()
        if not wait:
            return
        try:
            if not self.controller.wait(timeout):
                raise TimeoutError(f"the {self._called} has not finished within {timeout} seconds")
        except KeyboardInterrupt:
            self.stop()
            raise
        failure = self._error or self.controller.failure
        if failure:
            raise RuntimeError(f"the {self._called}'s run failed: {failure}")

    def stop(self) -> None:
        """End the run within one token, and keep what there is."""
        self.controller.stop()

    def _end(self) -> None:
        if "controller" in vars(self):
            self.stop()
            self.controller.close()

    def _post(self) -> None:
        raise NotImplementedError

    def _show(self, frame: Frame) -> None:
        with self._guard:
            if frame.id == self._id:  # else a newer request has been posted meanwhile
                self._error = frame.error
                self._take(frame)

    def _take(self, frame: Frame) -> None:
        raise NotImplementedError
