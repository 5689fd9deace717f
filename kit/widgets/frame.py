"""What every view has: style sheet, names for screen readers, a line for errors, a frozen state."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import anywidget
import ipywidgets as w
import traitlets

from kit.base import html

# ipywidgets draws slider handles, boxes and readouts without any name for screen readers
_NAME_CONTROLS = """
const CONTROLS = '[role=slider], .widget-readout, input, select, textarea, button';

function nameOf(control) {
  const box = control.closest('.jupyter-widgets');
  const label = box?.querySelector(':scope > .widget-label');
  const shown = label && label.style.display !== 'none' && label.textContent.trim();
  return shown || box?.title || label?.title || control.placeholder || control.title || '';
}

function nameAll(root, name) {
  root.setAttribute('role', 'region');
  root.setAttribute('aria-label', name);
  for (const status of root.querySelectorAll('.kit-status')) status.setAttribute('role', 'status');
  for (const control of root.querySelectorAll(CONTROLS)) {
    if (control.tagName === 'BUTTON' && /\\p{L}/u.test(control.textContent)) continue;
    const found = nameOf(control);
    // a checkbox's own label stands around it
    const labelled = [...(control.labels ?? [])].some((label) => label.textContent.trim());
    if (found && !labelled && control.getAttribute('aria-label') !== found)
      control.setAttribute('aria-label', found);
    if (control.matches('.widget-readout')) control.setAttribute('role', 'textbox');
  }
}

export default {
  render({ model, el }) {
    let observer, waiting = 0;
    const start = () => {
      const root = el.closest('.kit-panel');
      if (!root) { waiting = requestAnimationFrame(start); return; }
      const again = () => { waiting = 0; nameAll(root, model.get('label')); };
      observer = new MutationObserver(() => { waiting ||= requestAnimationFrame(again); });
      const what = { childList: true, subtree: true, attributeFilter: ['title'] };
      observer.observe(root, what);
      again();
    };
    start();
    return () => { observer?.disconnect(); cancelAnimationFrame(waiting); };
  },
};
"""


class Names(anywidget.AnyWidget):
    """Invisible part of a view: names the view as a region, and every control that has none after
    its label, tooltip or placeholder, also those that come later."""

    _esm = _NAME_CONTROLS
    label = traitlets.Unicode().tag(sync=True)


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


class Freezing(w.VBox):
    """Subclasses have ``frozen_html`` and ``has_run``, and call :meth:`freeze_here`."""

    @property
    def frozen_html(self) -> str:
        """The present state as HTML that needs no kernel."""
        raise NotImplementedError

    @property
    def has_run(self) -> bool:
        """Whether there is a state to show."""
        raise NotImplementedError

    def freeze(self) -> Any:
        """The present state as HTML that stays in the saved notebook: end a cell with it."""
        from IPython.display import HTML

        return HTML(self.frozen_html)

    def freeze_here(self, area: w.HTML) -> str:
        """Put the state into the cell's output, or, where there is none, into ``area``.

        Returns:
            What to tell the user, as HTML.
        """
        outputs = vars(self).get("_outputs", [])
        if outputs and not os.environ.get("SERVER_SOFTWARE", "").startswith("voila"):
            outputs[-1].update(self.freeze())
            return html.message("Frozen below; it stays in the notebook when you save it.")
        area.value = self.frozen_html
        return ""

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(**options) or {}
        if self.has_run:  # for readers without a kernel
            bundle["text/html"] = self.frozen_html
        return bundle

    def _ipython_display_(self) -> None:
        from IPython.display import HTML, display

        display(self._repr_mimebundle_(), raw=True)
        # an output of the cell that can be filled later: unlike a widget it is saved
        vars(self).setdefault("_outputs", []).append(display(HTML(""), display_id=True))


class Careful(Freezing):
    """A view whose clicks say what went wrong in ``_message``: in the log nobody looks."""

    _message: w.HTML
    _quiet = False  # while the view itself sets its controls

    def _try(self, job: Callable[[], Any]) -> None:
        if self._quiet:
            return
        try:
            self._message.value = ""
            job()
        except Exception as error:
            self._say(str(error).splitlines()[0] if str(error) else type(error).__name__, error=True)

    def _say(self, text: str, *, error: bool = False) -> None:
        self._message.value = html.message(text, error=error)
