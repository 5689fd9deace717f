"""PromptView: a text of one's own, and the latents that fire on each of its tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ipywidgets as w

from kit.base.html import inline
from kit.sae import pages
from kit.sae.compare import Neighbours
from kit.sae.prompt import RANKINGS, Reading, read_prompt
from kit.sae.store import FeatureStore
from kit.widgets import frame
from kit.widgets.frame import View
from kit.widgets.latents.browser import FeatureBrowser

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_ALL = ("all tokens", -1)  # not None, which a Dropdown takes for "nothing chosen"


class PromptView(View):
    """``PromptView(store, model, "The capital of France is", answers=(" Paris", " Rome"))``.

    Latents are ranked token by token: by activation, by quantile (how unusual this activation is
    for the latent), or by attribution (what it does to the answers' logit difference).

    Attributes:
        reading: of the present text (:class:`kit.sae.Reading`); latent: the one whose page is open.
        frozen_html: the present state as HTML that needs no kernel.
    """

    def __init__(
        self,
        store: FeatureStore,
        model: TransformerBridge,
        text: str = "",
        *,
        answers: tuple[str, str] | None = None,
        browser: FeatureBrowser | None = None,
        near: Neighbours | None = None,
    ) -> None:
        """
        Args:
            answers: two continuations, for attribution.
            browser: opens the latents that are picked here; without one their pages stand below.
            near: for the pages, the nearest latents.

        Raises:
            ValueError: as :func:`kit.sae.read_prompt`.
        """
        store.dictionary.check(model)
        super().__init__()
        self.store, self._lm, self.browser, self._near = store, model, browser, near
        self._words = pages.words(model)
        self.reading: Reading | None = None
        self.latent: int | None = None
        self.text = frame.writing(text, "Your text")
        self.read = frame.button("Read", "70px", "which latents fire on this text")
        self.by = w.ToggleButtons(
            options=list(RANKINGS),
            style={"button_width": "96px"},
            tooltips=[
                "how strongly it fires",
                "how unusual that is for it",
                "what it does to the logit difference of the answers",
            ],
        )
        first, second = answers or ("", "")
        auto = w.Layout(flex="1 1 auto", width="auto")
        first, second = map(pages.spaced, (first, second))
        self.first = w.Text(first, placeholder="answer; · is a space", layout=auto, continuous_update=False)
        self.second = w.Text(second, placeholder="against", layout=auto, continuous_update=False)
        self.token = w.Dropdown(options=[_ALL], tooltip="tokens", layout=w.Layout(width="220px"))
        self.list = w.Select(rows=14, tooltip="latents", layout=w.Layout(width="300px"))
        self._table, self._page = w.HTML(layout=w.Layout(flex="1 1 480px", min_width="320px")), w.HTML()
        self.freeze_button = frame.freezer("this")
        self._arrange(
            "Latents on a text",
            frame.heading("Latents on a text", inline(store.dictionary.name)),
            w.HBox([self.text, self.read], layout=w.Layout(grid_gap="8px", align_items="center")),
            frame.row(self.by, w.HTML("answers"), self.first, self.second, self.freeze_button, gap="8px"),
            self._message,
            frame.row(w.VBox([self.token, self.list]), self._table, gap="14px", align="flex-start"),
            self._page,
            freeze=self.freeze_button,
            classes=["kit-prompt", "kit-picks"],
        )
        for control in (self.text, self.first, self.second):
            control.observe(lambda _c: self._try(self.run), "value")
        for control in (self.by, self.token):
            control.observe(lambda _c: self._try(self._draw), "value")
        self.list.observe(lambda c: self._try(lambda: self.show(c["new"])), "value")
        self.read.on_click(lambda _b: self._try(self.run))
        if text:
            self.run()

    def run(self) -> None:
        """Read the text that stands in the field.

        Raises:
            ValueError: an empty text, or as :func:`kit.sae.read_prompt`.
        """
        if not self.text.value.strip():
            raise ValueError("text is empty: give one")
        with self._silent():
            for field in (self.first, self.second):
                field.value = pages.spaced(field.value)
        first, second = (f" {t[1:]}" if t.startswith("·") else t for t in (self.first.value, self.second.value))
        self.reading = read_prompt(
            self.store, self._lm, self.text.value, answers=(first, second) if first and second else None
        )
        pieces = self._words(self.reading.tokens.tolist())
        with self._silent():
            self.token.options = [_ALL, *((f"{i}  {p!r}", i) for i, p in enumerate(pieces))]
        self._draw()

    def show(self, latent: int) -> None:
        """Open a latent's page.

        Raises:
            ValueError: no such latent.
        """
        self.latent = latent
        if self.browser is not None:
            self.browser.show(latent)
        else:
            self._page.value = pages.page(self.store, self._lm, latent, near=self._near)

    def _pick(self, latent: int) -> None:
        self.show(latent)
        with self._silent():
            self.list.value = latent if latent in [i for _, i in self.list.options] else None

    @property
    def has_run(self) -> bool:
        return self.reading is not None

    @property
    def frozen_html(self) -> str:
        return (
            f'<div style="font-size:13px;margin:4px 0">ranked by {self.by.value}</div>'
            f"{self._table.value}{self._page.value}"
        )

    def _draw(self) -> None:
        if self.reading is None:
            return
        by: Any = self.by.value
        position = None if self.token.value == _ALL[1] else self.token.value
        listed = self.reading.ranked(by, position, 40)
        pieces = self._words(self.reading.tokens.tolist())
        with self._silent():  # a new list would open a page by itself
            self.list.options = [
                (f"#{int(r.latent)}   {getattr(r, by):.3g}   on {pieces[int(r.position)]!r}", int(r.latent))
                for r in listed.itertuples()
            ]
            self.list.value = None
        self._table.value = pages.prompt(self.reading, self._words, by)
