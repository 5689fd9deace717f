"""LensView: what the model is about to say, token by token and layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import ipywidgets as w
import traitlets

from kit.base.html import SOFT, inline, spaced
from kit.data import lens as shipped
from kit.lens import markup
from kit.lens.filter import HIDDEN, is_vulgar
from kit.lens.lens import Lens
from kit.lens.reading import Reading
from kit.models.tokens import Text
from kit.widgets import frame
from kit.widgets.frame import View
from kit.widgets.panel.panel import SteeringPanel
from kit.widgets.panel.word_field import mark, marked

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_LENSES = ("Jacobian lens", "logit lens")


class Grid(anywidget.AnyWidget):
    """HTML whose cells and words can be clicked."""

    _esm = Path(__file__).with_name("grid.js")
    html = traitlets.Unicode().tag(sync=True)
    clicked: Any = traitlets.List().tag(sync=True)


class LensView(View):
    """``LensView(model, "The capital of France is")``: a grid of words, tokens by layers.

    A cell's words stand beside the grid, by both lenses; clicked or dragged, one goes onto the
    panel as a slider.

    Attributes:
        reading: of the present text (:class:`kit.lens.Reading`).
        chosen: layer and position of the open cell.
        frozen_html: the present state as HTML that needs no kernel.
    """

    def __init__(
        self,
        model: TransformerBridge,
        prompt: Text,
        lens: Lens | None = None,
        *,
        panel: SteeringPanel | None = None,
        coefficient: float = 0.15,
        k: int = 8,
        trace: tuple[str, ...] = (),
    ) -> None:
        """
        Args:
            prompt: a chat message, or tokens as they are.
            lens: of this model; None for the one that is shipped (:func:`kit.data.lens`).
            panel: where words go, also into a field of its own (:meth:`SteeringPanel.take_words`).
            coefficient: at which they go there.
            k: how many words a cell has.
            trace: words whose rank every cell tells.

        Raises:
            ValueError: as :meth:`kit.lens.Lens.read`, or a lens of another model.
        """
        lens = shipped(model) if lens is None else lens
        lens.check([model])
        super().__init__()
        self.lens, self.panel, self._at, self._k = lens, panel, coefficient, k
        self.reading: Reading = lens.read(prompt, k=k, trace=trace)
        self.chosen = (self.reading.layers[-1], len(self.reading.pieces) - 1)
        self._trace = trace
        self.text = frame.writing(prompt if isinstance(prompt, str) else "", "Your text")
        self.read = frame.button("Read", "70px", "what the model is about to say, token by token")
        self.which = w.ToggleButtons(options=list(_LENSES), style={"button_width": "110px"})
        self.filter = w.Checkbox(
            False,
            description="hide vulgar words",
            indent=False,
            tooltip=f"a list of {len(HIDDEN)} word stems; what it hides is drawn as a dash",
            layout=w.Layout(width="150px", flex="0 0 auto"),
        )
        self.freeze_button = frame.freezer("this")
        self.grid = Grid(layout=w.Layout(flex="0 1 auto", min_width="320px", max_width="calc(100% - 270px)"))
        self.words = Grid(layout=w.Layout(flex="0 1 250px", min_width="240px"))
        self._arrange(
            "Lens",
            frame.heading("What it is about to say", inline(repr(lens))),
            w.HBox([self.text, self.read], layout=w.Layout(grid_gap="8px", align_items="center")),
            frame.row(self.which, self.filter, self.freeze_button, gap="8px"),
            self._message,
            frame.row(self.grid, self.words, gap="14px", align="flex-start"),
            freeze=self.freeze_button,
            classes=["kit-lens"],
        )
        self.text.observe(lambda _c: self._try(self.run), "value")
        self.read.on_click(lambda _b: self._try(self.run))
        for control in (self.which, self.filter):
            control.observe(lambda _c: self._try(self._draw), "value")
        for shown in (self.grid, self.words):
            shown.observe(lambda change: self._try(lambda: self._click(change["new"])), "clicked")
        self._draw()
        if panel is not None:
            panel.take_words(lens, coefficient)

    def run(self) -> None:
        """Read the text that stands in the field.

        Raises:
            ValueError: an empty text.
        """
        if not self.text.value.strip():
            raise ValueError("text is empty: give one")
        self.reading = self.lens.read(self.text.value, k=self._k, trace=self._trace)
        self.chosen = (self.reading.layers[-1], len(self.reading.pieces) - 1)
        self._draw()

    def show(self, layer: int, position: int) -> None:
        """Open a cell.

        Raises:
            ValueError: a layer that was not read; IndexError: no such token.
        """
        self.reading.words(position, layer)
        self.chosen = (layer, position % len(self.reading.pieces))
        self._draw()

    def to_panel(self, word: str, layer: int) -> str:
        """Put a word on the panel; returns its name there.

        Raises:
            ValueError: there is no panel, or as :meth:`kit.lens.Lens.direction`.
        """
        if self.panel is None:
            raise ValueError("panel=None: give LensView the panel that words go to")
        return self.panel.put(self.lens.direction(word, layer), self._at)

    def _click(self, clicked: list[Any]) -> None:
        if clicked[0] == "cell":
            self.show(clicked[1], clicked[2])
            return
        if self.panel is None:
            self._say("There is no panel here to put it on: LensView(model, prompt, panel=panel).")
            return
        if found := marked(clicked[1]):
            (word,) = self.lens.words_of([found[1]])
            self._say(f"on the panel: {self.to_panel(word, found[0])}")

    def _hidden(self) -> frozenset[str]:
        if not self.filter.value:
            return frozenset()
        ids = {int(i) for each in (self.reading.ids, self.reading.plain_ids) for i in each.flatten()}
        return frozenset(word for word in self.lens.words_of(sorted(ids)) if is_vulgar(word))

    def _draw(self) -> None:
        plain, hidden = self.which.value == _LENSES[1], self._hidden()
        self.grid.html = markup.grid(self.reading, plain=plain, chosen=self.chosen, hidden=hidden)
        self.words.html = self._listed(hidden, marks=self.panel is not None)

    def _listed(self, hidden: frozenset[str], *, marks: bool) -> str:
        layer, at = self.chosen
        row = self.reading.layers.index(layer)
        both = []
        for name, ids, plain in ((_LENSES[0], self.reading.ids, False), (_LENSES[1], self.reading.plain_ids, True)):
            said = [mark(layer, int(i)) for i in ids[row, at]] if marks else []
            both.append(markup.words(self.reading.words(at, layer, plain=plain), name, marks=said, hidden=hidden))
        where = f"layer {layer}, at {spaced(self.reading.pieces[at])}"
        hint = "click a word, or drag it, to steer with it" if marks else ""
        return (
            f'<div><div style="margin-bottom:4px">{where}</div><div style="display:flex;gap:24px">{"".join(both)}</div>'
            f'<div style="font-size:12px;color:{SOFT}">{hint}</div></div>'
        )

    @property
    def frozen_html(self) -> str:
        hidden = self._hidden()
        note = f"vulgar words are hidden by a list of {len(HIDDEN)} stems" if self.filter.value else ""
        return (
            f'<div style="font-size:13px;margin:4px 0">{inline(repr(self.lens))}, {self.which.value}</div>'
            f"{self.grid.html}{self._listed(hidden, marks=False)}"
            f'<div style="font-size:12px;color:{SOFT}">{note}</div>'
        )
