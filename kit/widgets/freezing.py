"""A view whose state stays readable in a saved notebook, with no kernel and no widgets."""
from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import ipywidgets as w

from kit import render


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
            return render.message("Frozen below; it stays in the notebook when you save it.")
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
        self._message.value = render.message(text, error=error)
