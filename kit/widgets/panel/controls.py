"""The panel's inputs and where they stand; they know no model."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import ipywidgets as w

from kit.models.positions import Positions
from kit.steering import render
from kit.steering.intervention import Op

_POSITIONS = ("all", "prompt", "last_prompt", "generated")
_CUSTOM = "custom"
_ALL = ""  # not None, which a Dropdown takes for "nothing chosen"
_WHOLE = ("whole setting × multiplier", _ALL)
_COMBINED = ("the combination as set", _ALL)


def _small(kind: type[w.Widget], label: str, width: str, **options: Any) -> Any:
    return kind(
        description=label,
        style={"description_width": "initial"},
        layout=w.Layout(width=width, flex="0 0 auto"),
        **options,
    )


class Controls:
    """Every input widget of a panel, by name."""

    def __init__(
        self, prompt: str, chat: bool, positions: Positions, op: Op, max_new_tokens: int, temperature: float, seed: int
    ) -> None:
        """Args as in :class:`kit.widgets.SteeringPanel`."""
        self.prompt = w.Textarea(
            prompt,
            placeholder="Prompt",
            continuous_update=False,
            rows=2,
            layout=w.Layout(flex="1 1 auto", width="auto", height="58px"),
        )
        self.chat = w.ToggleButtons(
            options=[("Chat", True), ("Raw", False)],
            value=chat,
            tooltips=["the prompt is a user's message", "the model continues the prompt"],
            style={"button_width": "52px"},
            layout=w.Layout(width="auto"),
        )
        self.generate = w.Button(description="Generate", button_style="primary", layout=w.Layout(width="100px"))
        self.stop = w.Button(description="Stop", layout=w.Layout(width="70px"))
        self.tokens = _small(w.BoundedIntText, "tokens", "106px", value=max_new_tokens, min=1, max=4096)
        self.temperature = _small(
            w.BoundedFloatText, "temperature", "134px", value=temperature, min=0, max=10, step=0.1
        )
        self.seed = _small(w.BoundedIntText, "seed", "92px", value=seed, min=0, max=2**31 - 1)
        self._given = positions
        named = isinstance(positions, str) and positions in _POSITIONS
        options = [*_POSITIONS] if named else [*_POSITIONS, _CUSTOM]
        self.positions = _small(
            w.Dropdown, "positions", "172px", options=options, value=positions if named else _CUSTOM
        )
        self.op = _small(w.Dropdown, "op", "112px", options=["add", "ablate", "clamp"], value=op)
        self.measure = w.Checkbox(
            True,
            description="measure KL",
            indent=False,
            tooltip="off is about twice as fast",
            layout=w.Layout(width="104px"),
        )
        self.system = w.Text(
            placeholder="system message (optional)",
            continuous_update=False,
            layout=w.Layout(flex="1 1 170px", min_width="150px"),
        )
        self.view = w.ToggleButtons(
            options=[("Side by side", "side"), ("Ladder", "ladder")],
            style={"button_width": "100px"},
            layout=w.Layout(width="auto"),
        )
        tips = (
            "same layer, norm and coefficient, no meaning: what any push of this size does",
            "the opposite coefficients",
            "the unsteered model, asked in words",
        )
        names = ("Random vector", "Negated", "Words only")
        self.random, self.negated, self.words = (
            w.ToggleButton(description=f"+ {name}", tooltip=tip, layout=w.Layout(width="auto"))
            for name, tip in zip(names, tips, strict=True)
        )
        self.instruction = w.Text(
            "Answer in a happy way.",
            continuous_update=False,
            tooltip="what words ask of the unsteered model",
            layout=w.Layout(flex="1 1 170px", min_width="150px"),
        )
        self.ladder_of = _small(w.Dropdown, "ladder of", "280px", options=[_WHOLE])
        self.rungs = _small(w.Dropdown, "rungs", "100px", options=[5, 7, 9], value=5)
        self.save = w.Button(description="Save vector", layout=w.Layout(width="100px"))
        self.save_what = w.Dropdown(options=[_COMBINED], tooltip="what to save", layout=w.Layout(width="190px"))
        self.load = w.Button(description="Load vector", layout=w.Layout(width="100px"))
        self.path = w.Text(
            placeholder="path of a .safetensors or .gguf file", layout=w.Layout(flex="1 1 180px", min_width="150px")
        )
        self.freeze = w.Button(
            description="Freeze", layout=w.Layout(width="80px"), tooltip="keep this state as plain HTML in the notebook"
        )
        self._ladder_bar = [self.ladder_of, self.rungs]
        self._control_bar = [self.random, self.negated, self.words, self.instruction]
        self.view.observe(lambda _change: self._choose_bar(), "value")
        self.words.observe(lambda _change: self._choose_bar(), "value")
        self._choose_bar()

    def that_rerun(self) -> list[w.Widget]:
        """Those whose change starts a run; the prompt waits for Generate or a slider."""
        return [
            self.chat,
            self.tokens,
            self.temperature,
            self.seed,
            self.positions,
            self.op,
            self.measure,
            self.system,
            self.view,
            self.random,
            self.negated,
            self.words,
            self.instruction,
            self.ladder_of,
            self.rungs,
        ]

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

    def arrange(
        self,
        sheet: w.Widget,
        model: str,
        badge: w.HTML,
        status: w.HTML,
        vectors: w.VBox,
        message: w.HTML,
        grid: w.GridBox,
        receipt: w.HTML,
        frozen: w.HTML,
    ) -> tuple[w.Widget, ...]:
        """The rows of the panel, from top to bottom."""
        title = w.HTML(
            f'<span style="font-size:16px;font-weight:600">Steering panel</span> '
            f'<span style="font-size:12px;opacity:.75">&ensp;{escape(model)}</span>'
        )
        legend = w.HTML(f'<div style="font-size:12px;opacity:.75">{render.meter_legend()}</div>')
        buttons = w.HBox([self.generate, self.stop])
        side = w.VBox([self.chat, buttons], layout=w.Layout(flex="0 0 auto"))
        wide = {"width": "100%", "align_items": "center"}
        head = w.HBox(
            [title, badge, w.HBox(layout=w.Layout(flex="1")), status],
            layout=w.Layout(grid_gap="2px 12px", flex_flow="row wrap", **wide),
        )
        for part in (title, badge, status):
            part.layout.flex = "0 0 auto"
        wrap = w.Layout(flex_flow="row wrap", **wide)
        bars = [
            w.HBox(items, layout=wrap)
            for items in (
                [self.tokens, self.temperature, self.seed, self.positions, self.op, self.measure, self.system],
                [self.view, *self._ladder_bar, *self._control_bar],
                [self.save, self.save_what, self.load, self.path, self.freeze],
            )
        ]
        for bar in (vectors, bars[1], bars[2]):
            bar.add_class("kit-bar")
        return (
            sheet,
            head,
            w.HBox([self.prompt, side], layout=w.Layout(width="100%")),
            bars[0],
            vectors,
            bars[1],
            message,
            grid,
            receipt,
            legend,
            bars[2],
            frozen,
        )
