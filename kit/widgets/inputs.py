"""Inputs and rows that the views share: widths that stay, names as wide as their words."""

from __future__ import annotations

from typing import Any, TypeVar

import ipywidgets as w

Kind = TypeVar("Kind", bound=w.Widget)
NARROW = {"description_width": "initial"}


def small(kind: type[Kind], label: str, width: str, **options: Any) -> Kind:
    """An input of a fixed width with its name beside it; ``options`` as for its kind."""
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
