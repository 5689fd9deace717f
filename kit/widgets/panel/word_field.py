"""A field in which a word becomes a slider."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ipywidgets as w

from kit.widgets import frame

if TYPE_CHECKING:
    from kit.lens.lens import Lens
    from kit.steering.vectors import SteeringVector

_MARK = re.compile(r"kit-word-(\d+)-(\d+)")


def mark(layer: int, token: int) -> str:
    """The address of a word in a view, which a click or a drag of it says."""
    return f"kit-word-{layer}-{token}"


def marked(text: str) -> tuple[int, int] | None:
    """Layer and token of a :func:`mark` in what was dropped or clicked, or None."""
    found = _MARK.search(text)
    return (int(found[1]), int(found[2])) if found else None


class WordField(w.HBox):
    """``ocean``, or ``sad > happy``: Enter or the button makes it a vector at the layer beside it;
    a word of a LensView can be dropped here.

    Attributes:
        text, layer, add: its inputs.
    """

    def __init__(self, lens: Lens, take: Callable[[SteeringVector], Any], attempt: Callable[..., Any]) -> None:
        """
        Args:
            take: gets the vector.
            attempt: runs a job and says what went wrong, as :meth:`kit.widgets.frame.View._try`.
        """
        self._lens, self._take, self._attempt = lens, take, attempt
        self.text = frame.line(200, 120, placeholder="a word, or two with > between")
        self.text.add_class("kit-drop")
        middle = lens.model.cfg.n_layers // 2
        near = min(lens.layers, key=lambda layer: abs(layer - middle))
        self.layer = frame.small(w.Dropdown, "layer", "110px", options=lens.layers, value=near)
        self.add = frame.button("+ Word", "70px", "steer with this word, read off the Jacobian lens")
        super().__init__([self.text, self.layer, self.add], layout=w.Layout(max_width="460px", grid_gap="6px"))
        self.text.observe(self._dropped, "value")
        self.text.on_msg(lambda _text, sent, _buffers: self._typed() if sent.get("event") == "submit" else None)
        self.add.on_click(lambda _button: self._typed())

    def _typed(self) -> None:
        words = self.text.value
        if words.strip():
            self._attempt(lambda: self._give(self._lens.typed(words, self.layer.value)), "not added: ")

    def _dropped(self, change: Any) -> None:
        if found := marked(change["new"]):
            layer, token = found
            (word,) = self._lens.words_of([token])
            self._attempt(lambda: self._give(self._lens.direction(word, layer)), "not added: ")

    def _give(self, vector: SteeringVector) -> None:
        self._take(vector)
        self.text.value = ""
