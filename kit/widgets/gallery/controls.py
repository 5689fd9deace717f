"""A gallery's inputs and the rows that they stand in; they know no model."""

from __future__ import annotations

import ipywidgets as w

from kit.widgets import frame
from kit.widgets.gallery.features import FILTERS, SORTS

SIZES = (6, 12, 24, 48)


class GalleryControls:
    """Every input widget of a gallery, by name.

    Attributes:
        ask, settings, look, files: the rows that the inputs stand in.
    """

    def __init__(self, prompt: str, max_new_tokens: int, measure: bool, page_size: int) -> None:
        """Args as in :class:`kit.widgets.FeatureGallery`."""
        self.prompt = frame.writing(prompt, "Prompt", "58px")
        self.generate = frame.button("Generate", "100px", button_style="primary")
        self.stop = frame.button("Stop", "70px", "keeps what there is; Generate goes on from there")
        buttons = w.HBox([self.generate, self.stop], layout=w.Layout(flex="0 0 auto"))
        self.ask = w.HBox([self.prompt, buttons], layout=w.Layout(width="100%"))

        self.factor = w.FloatSlider(
            value=1.0,
            min=0.25,
            max=2.0,
            step=0.05,
            readout_format=".2f",
            description="× coefficient",
            continuous_update=False,
            style=frame.NARROW,
            layout=w.Layout(flex="1 1 260px", min_width="220px", max_width="480px"),
        )
        self.factor.add_class("kit-slider")
        self.tokens = frame.small(
            w.BoundedIntText, "tokens", "106px", "max_new_tokens", value=max_new_tokens, min=1, max=4096
        )
        self.measure = frame.measure(measure)
        self.settings = frame.row(self.factor, self.tokens, self.measure)

        self.keep = frame.small(w.Dropdown, "show", "150px", options=list(FILTERS.items()))
        self.sort = frame.small(w.Dropdown, "sort by", "150px", options=list(SORTS.items()))
        sizes = sorted({*SIZES, page_size})
        self.page_size = frame.small(w.Dropdown, "a page", "110px", options=sizes, value=page_size)
        self.back, self.on = frame.button("‹", "34px", "page before"), frame.button("›", "34px", "next page")
        self.where = w.HTML(layout=w.Layout(flex="0 0 auto"))
        pages = w.HBox([self.back, self.where, self.on], layout=w.Layout(align_items="center", flex="0 0 auto"))
        self.look = frame.bar(self.keep, self.sort, self.page_size, pages)

        self.save = frame.button("Save set", "90px", "all features, marks and texts, as a new folder")
        self.load = frame.button("Load set", "90px", "merge a saved set into this gallery")
        self.path = frame.line(180, 120, value="features", placeholder="folder of the set", continuous_update=False)
        self.freeze = frame.freezer()
        self.files = frame.bar(self.save, self.load, self.path, self.freeze)

    def page(self, first: int, last: int, total: int) -> None:
        """Say which features are on the page, and which way one can turn."""
        text = f"{first + 1}–{last} of {total}" if total else "none"
        self.where.value = (
            f'<span style="font-size:12px;opacity:.8;white-space:nowrap;'
            f'font-variant-numeric:tabular-nums;padding:0 6px">{text}</span>'
        )
        self.back.disabled, self.on.disabled = first == 0, last >= total
