"""A gallery's inputs and where they stand; they know no model."""

from __future__ import annotations

from typing import Any

import ipywidgets as w

from kit.widgets.gallery.features import FILTERS, SORTS

SIZES = (6, 12, 24, 48)


def _small(kind: type[w.Widget], label: str, width: str, **options: Any) -> Any:
    return kind(
        description=label,
        style={"description_width": "initial"},
        layout=w.Layout(width=width, flex="0 0 auto"),
        **options,
    )


def _button(label: str, width: str, tip: str = "", **options: Any) -> w.Button:
    return w.Button(description=label, tooltip=tip, layout=w.Layout(width=width, flex="0 0 auto"), **options)


class GalleryControls:
    """Every input widget of a gallery, by name."""

    def __init__(self, prompt: str, max_new_tokens: int, measure: bool, page_size: int) -> None:
        """Args as in :class:`kit.widgets.FeatureGallery`."""
        self.prompt = w.Textarea(
            prompt,
            placeholder="Prompt",
            continuous_update=False,
            rows=2,
            layout=w.Layout(flex="1 1 auto", width="auto", height="58px"),
        )
        self.generate = _button("Generate", "100px", button_style="primary")
        self.stop = _button("Stop", "70px", "keeps what there is; Generate goes on from there")
        self.factor = w.FloatSlider(
            value=1.0,
            min=0.25,
            max=2.0,
            step=0.05,
            readout_format=".2f",
            description="× calibrated",
            continuous_update=False,
            style={"description_width": "initial"},
            layout=w.Layout(flex="1 1 260px", min_width="220px", max_width="480px"),
        )
        self.factor.add_class("kit-slider")
        self.tokens = _small(w.BoundedIntText, "tokens", "106px", value=max_new_tokens, min=1, max=4096)
        self.measure = w.Checkbox(
            measure,
            description="measure KL",
            indent=False,
            tooltip="off is about twice as fast",
            layout=w.Layout(width="104px", flex="0 0 auto"),
        )
        self.keep = _small(w.Dropdown, "show", "150px", options=list(FILTERS.items()))
        self.sort = _small(w.Dropdown, "sort by", "150px", options=list(SORTS.items()))
        sizes = sorted({*SIZES, page_size})
        self.page_size = _small(w.Dropdown, "a page", "110px", options=sizes, value=page_size)
        self.back, self.on = _button("‹", "34px", "page before"), _button("›", "34px", "next page")
        self.where = w.HTML(layout=w.Layout(flex="0 0 auto"))
        self.save = _button("Save set", "90px", "all features, marks and texts, as a new folder")
        self.load = _button("Load set", "90px", "merge a saved set into this gallery")
        self.path = w.Text(
            "features",
            placeholder="folder of the set",
            continuous_update=False,
            layout=w.Layout(flex="1 1 180px", min_width="120px"),
        )
        self.freeze = _button("Freeze", "80px", "keep this state as plain HTML in the notebook")

    def page(self, first: int, last: int, total: int) -> None:
        """Say which features are on the page, and which way one can turn."""
        text = f"{first + 1}–{last} of {total}" if total else "none"
        self.where.value = (
            f'<span style="font-size:12px;opacity:.8;white-space:nowrap;'
            f'font-variant-numeric:tabular-nums;padding:0 6px">{text}</span>'
        )
        self.back.disabled, self.on.disabled = first == 0, last >= total

    def arrange(
        self,
        sheet: w.Widget,
        model: str,
        status: w.HTML,
        message: w.HTML,
        pinned: w.GridBox,
        cards: w.GridBox,
        receipt: w.HTML,
        frozen: w.HTML,
    ) -> tuple[w.Widget, ...]:
        """The rows of the gallery, from top to bottom; ``model`` is HTML."""
        title = w.HTML(
            f'<span style="font-size:16px;font-weight:600">Feature gallery</span> '
            f'<span style="font-size:12px;opacity:.75">&ensp;{model}</span>'
        )
        wide = {"width": "100%", "align_items": "center"}
        wrap = w.Layout(flex_flow="row wrap", **wide)
        head = w.HBox(
            [title, w.HBox(layout=w.Layout(flex="1")), status],
            layout=w.Layout(flex_flow="row wrap", grid_gap="2px 12px", **wide),
        )
        for part in (title, status):
            part.layout.flex = "0 0 auto"
        buttons = w.HBox([self.generate, self.stop], layout=w.Layout(flex="0 0 auto"))
        ask = w.HBox([self.prompt, buttons], layout=w.Layout(width="100%"))
        run = w.HBox([self.factor, self.tokens, self.measure], layout=wrap)
        pages = w.HBox([self.back, self.where, self.on], layout=w.Layout(align_items="center", flex="0 0 auto"))
        look = w.HBox([self.keep, self.sort, self.page_size, pages], layout=wrap)
        files = w.HBox([self.save, self.load, self.path, self.freeze], layout=wrap)
        for bar in (look, files):
            bar.add_class("kit-bar")
        return sheet, head, ask, run, message, pinned, look, cards, receipt, files, frozen
