"""The views' style sheet: alignment, visible focus, and the shaded range on a slider's own track.
"""
from __future__ import annotations

import ipywidgets as w

from kit.widgets.names import Names

PANEL = """<style>
.kit-panel {border:1px solid var(--jp-border-color2,#ccc); border-radius:8px;
  padding:10px 14px 12px; box-sizing:border-box; max-width:1500px; overflow:hidden}
.kit-panel .widget-html, .kit-panel .widget-html-content {line-height:normal; height:auto;
  margin:0; overflow:visible; min-width:0}
.kit-panel .widget-checkbox, .kit-panel .widget-checkbox label {margin:0 2px; height:28px;
  display:flex; align-items:center; overflow:visible}
.kit-panel .widget-checkbox input {margin:0 6px 0 0; width:15px; height:15px}
.kit-panel .kit-icon {padding:0; font-size:16px}
.kit-panel .kit-grow, .kit-panel .kit-grow > .widget-html-content {width:100%}
.kit-panel .kit-column, .kit-panel .kit-column > .widget-html-content {height:100%; width:100%}
.kit-panel textarea {padding:6px 9px;
  font:14px/1.45 var(--jp-ui-font-family,system-ui,sans-serif); border-radius:4px;
  resize:vertical}
.kit-panel .kit-bar {border-top:1px solid var(--jp-border-color2,#ccc); padding-top:8px;
  margin-top:8px}
.kit-panel .widget-readout {font-variant-numeric:tabular-nums; font-weight:600; font-size:13px}
.kit-panel .kit-slider .noUi-base {overflow:visible}
.kit-panel .kit-slider .noUi-connects {background:rgba(128,128,128,.3); border-radius:3px}
.kit-panel .kit-slider .noUi-connect {background:transparent}
.kit-panel .kit-slider .noUi-handle {z-index:3; box-shadow:none;
  background:var(--jp-brand-color1,#1976d2); border:2px solid var(--jp-layout-color0,#fff)}
.kit-panel .kit-slider .noUi-base::after {content:""; position:absolute; left:50%; top:-7px;
  width:1px; height:18px; background:currentColor; opacity:.55; pointer-events:none}
.kit-panel button.jupyter-button {border-radius:4px}
.kit-panel :is(button, input, textarea, select, summary, a, .noUi-handle,
  .widget-readout):focus-visible {outline:3px solid #D55E00 !important; outline-offset:2px;
  border-radius:4px}
.kit-panel button.jupyter-button.mod-active {background:rgba(0,114,178,.2); box-shadow:none;
  color:var(--jp-ui-font-color1,inherit); outline:1px solid rgba(0,114,178,.75);
  outline-offset:-1px}
</style>"""


def frame(name: str, more: str = "") -> w.Widget:
    """The first child of every view: its style, and its name and its controls' names for screen
    readers. ``more`` are further style sheets."""
    return w.HBox([w.HTML(PANEL + more), Names(label=name)], layout=w.Layout(height="0"))


def message() -> w.HTML:
    """Where a view says what went wrong; screen readers say it too."""
    line = w.HTML()
    line.add_class("kit-status")
    return line


def safe_range(name: str, low: float, high: float, ends: tuple[float, float]) -> str:
    """A style sheet that shades ``low`` to ``high`` on the track of the slider of class ``name``.

    A band of the track's own box, so that it stays aligned however wide the slider is.
    """
    start, end = ends
    width = end - start
    left = max(0.0, (low - start) / width)
    right = max(0.0, (end - high) / width)
    return (
        f"<style>.kit-panel .{name} .noUi-base::before {{content:''; position:absolute; "
        f"left:{left:.2%}; right:{right:.2%}; top:-7px; height:18px; border-radius:3px; "
        "background:rgba(0,114,178,.26); border:solid rgba(0,114,178,.75); "
        "border-width:0 2px; box-sizing:border-box; pointer-events:none}</style>"
    )
