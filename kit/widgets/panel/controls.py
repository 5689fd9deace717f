"""The panel's inputs and the rows that they stand in; they know no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ipywidgets as w

from kit.models.positions import Positions
from kit.steering.intervention import Op
from kit.widgets import frame

_POSITIONS = ("all", "prompt", "last_prompt", "generated")
_CUSTOM = "custom"
WORDS = "Answer in a happy way."  # to begin with
_ALL = ""  # not None, which a Dropdown takes for "nothing chosen"
_WHOLE = ("whole setting × multiplier", _ALL)
_COMBINED = ("the combination as set", _ALL)


def _choice(width: str, *options: Any, **more: Any) -> w.ToggleButtons:
    return w.ToggleButtons(options=options, style={"button_width": width}, layout=w.Layout(width="auto"), **more)


def _toggle(name: str, tip: str) -> w.ToggleButton:
    return w.ToggleButton(description=f"+ {name}", tooltip=tip, layout=w.Layout(width="auto"))


class Controls:
    """Every input widget of a panel, by name.

    Attributes:
        ask, settings, look, files: the rows that the inputs stand in.
    """

    def __init__(
        self, prompt: str, chat: bool, positions: Positions, op: Op, max_new_tokens: int, temperature: float, seed: int
    ) -> None:
        """Args as in :class:`kit.widgets.SteeringPanel`."""
        self.prompt = frame.writing(prompt, "Prompt", "58px")
        tips = ["the prompt is a user's message", "the model continues the prompt"]
        self.chat = _choice("52px", ("Chat", True), ("Raw", False), value=chat, tooltips=tips)
        self.generate = frame.button("Generate", "100px", button_style="primary")
        self.stop = frame.button("Stop", "70px")
        side = w.VBox([self.chat, w.HBox([self.generate, self.stop])], layout=w.Layout(flex="0 0 auto"))
        self.ask = w.HBox([self.prompt, side], layout=w.Layout(width="100%"))

        self.tokens = frame.small(
            w.BoundedIntText, "tokens", "106px", "max_new_tokens", value=max_new_tokens, min=1, max=4096
        )
        self.temperature = frame.small(
            w.BoundedFloatText, "temperature", "134px", value=temperature, min=0, max=10, step=0.1
        )
        self.seed = frame.small(w.BoundedIntText, "seed", "92px", value=seed, min=0, max=2**31 - 1)
        self._given = positions
        named = isinstance(positions, str) and positions in _POSITIONS
        options = [*_POSITIONS] if named else [*_POSITIONS, _CUSTOM]
        self.positions = frame.small(
            w.Dropdown, "positions", "172px", options=options, value=positions if named else _CUSTOM
        )
        self.op = frame.small(w.Dropdown, "op", "112px", options=["add", "ablate", "clamp"], value=op)
        self.measure = frame.measure(True)
        self.system = frame.line(170, 150, placeholder="system message (optional)", continuous_update=False)
        self.settings = frame.row(
            self.tokens, self.temperature, self.seed, self.positions, self.op, self.measure, self.system
        )

        self.view = _choice("100px", ("Side by side", "side"), ("Ladder", "ladder"))
        self.ladder_of = frame.small(w.Dropdown, "ladder of", "280px", options=[_WHOLE])
        self.rungs = frame.small(w.Dropdown, "rungs", "100px", options=[5, 7, 9], value=5)
        self.random = _toggle(
            "Random vector", "same layer, norm and coefficient, no meaning: what any push of this size does"
        )
        self.negated = _toggle("Negated", "the opposite coefficients")
        self.words = _toggle("Words only", "the unsteered model, asked in words")
        self.instruction = frame.line(
            170, 150, value=WORDS, tooltip="what words ask of the unsteered model", continuous_update=False
        )
        self._ladder_bar = [self.ladder_of, self.rungs]
        self._control_bar = [self.random, self.negated, self.words, self.instruction]
        self.look = frame.bar(self.view, *self._ladder_bar, *self._control_bar)

        self.save = frame.button("Save vector", "100px")
        self.save_what = w.Dropdown(options=[_COMBINED], tooltip="what to save", layout=w.Layout(width="190px"))
        self.load = frame.button("Load vector", "100px")
        self.path = frame.line(180, 150, placeholder="path of a .safetensors or .gguf file")
        self.freeze = frame.freezer()
        self.files = frame.bar(self.save, self.save_what, self.load, self.path, self.freeze)
        for control in (self.view, self.words):
            control.observe(lambda _change: self._choose_bar(), "value")
        self._choose_bar()

    def that_rerun(self) -> Sequence[w.Widget]:
        """Those whose change starts a run; the prompt waits for Generate or a slider."""
        return (self.chat, *self.settings.children, *self.look.children)

    def values(self) -> dict[str, Any]:
        """Arguments of a :class:`kit.widgets.panel.controller.Request`."""
        chosen = self.positions.value
        return {
            "prompt": self.prompt.value,
            "chat": self.chat.value,
            "system": self.system.value.strip() or None,
            "positions": self._given if chosen == _CUSTOM else chosen,
            "op": self.op.value,
            "max_new_tokens": self.tokens.value,
            "temperature": self.temperature.value,
            "seed": self.seed.value,
            "measure": self.measure.value,
        }

    def offer(self, names: Sequence[str]) -> None:
        """The vectors that can be chosen for a ladder or a file."""
        rest = [(name, name) for name in names]
        for menu, first in ((self.ladder_of, _WHOLE), (self.save_what, _COMBINED)):
            before = menu.value
            menu.options = [first, *rest]
            menu.value = before if before in names else _ALL

    def _choose_bar(self) -> None:
        in_ladder = self.view.value == "ladder"
        for widget in self._ladder_bar:
            widget.layout.display = "" if in_ladder else "none"
        for widget in self._control_bar:
            widget.layout.display = "none" if in_ladder else ""
        if not self.words.value:
            self.instruction.layout.display = "none"
