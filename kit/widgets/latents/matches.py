"""MatchBrowser: the latents of one dictionary beside their nearest ones in another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ipywidgets as w
import torch

from kit.base.html import inline
from kit.sae import pages
from kit.sae.compare import mcs
from kit.sae.store import FeatureStore
from kit.widgets import frame
from kit.widgets.frame import View

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_LISTED = 400


class MatchBrowser(View):
    """Two stores side by side: pick a latent of the first, and see its match in the second.

    Attributes:
        match: of every latent of ``a`` in ``b`` (:class:`kit.sae.Match`).
        latent: of ``a``, the one that is open; listed: those in the list.
        frozen_html: the two pages as HTML that needs no kernel.
    """

    def __init__(self, a: FeatureStore, b: FeatureStore, model: TransformerBridge) -> None:
        """
        Raises:
            ValueError: a store of another model.
        """
        a.dictionary.check(model)
        b.dictionary.check(model)
        super().__init__()
        self.a, self.b, self._lm = a, b, model
        self.match = mcs(a.dictionary, b.dictionary)
        self.latent, self.listed = 0, list[int]()
        fires = a.density() > 0
        self._order = [i for i in self.match.cosine.argsort(descending=True).tolist() if fires[i]]
        self.order = w.ToggleButtons(options=["nearest", "farthest", "most frequent"], style={"button_width": "130px"})
        self.list = w.Select(rows=8, tooltip="latents", layout=w.Layout(width="260px"))
        # side by side at any width
        self._left, self._right = (w.HTML(layout=w.Layout(flex="1 1 0", min_width="0")) for _ in range(2))
        self._arrange(
            "Matches between dictionaries",
            frame.heading(
                f"{inline(a.dictionary.name)} and its matches in {inline(b.dictionary.name)}",
                f"mean of the maximal cosines {self.match.mean:.3f}",
            ),
            self.order,
            frame.row(self.list, w.HTML(self._histogram()), gap="24px"),
            self._message,
            w.HBox([self._left, self._right], layout=w.Layout(grid_gap="14px", align_items="flex-start")),
            classes=["kit-matches"],  # not "kit-picks": two dictionaries' latents stand here
        )
        self.order.observe(lambda _c: self._try(self._sort), "value")
        self.list.observe(lambda c: self._try(lambda: self.show(c["new"])), "value")
        self._sort()
        self.show(self.listed[0])

    def show(self, latent: int) -> None:
        """Open a latent of ``a``, and beside it its match.

        Raises:
            ValueError: no such latent.
        """
        self._left.value = pages.page(self.a, self._lm, latent, n_top=6, n_interval=1)
        self._right.value = pages.page(self.b, self._lm, int(self.match.nearest[latent]), n_top=6, n_interval=1)
        self.latent = latent
        with self._silent():
            if latent in self.listed:
                self.list.value = latent

    @property
    def frozen_html(self) -> str:
        cosine = float(self.match.cosine[self.latent])
        return (
            f'<div style="font-size:13px;margin:4px 0">cosine {cosine:+.3f}</div>'
            f'<div style="display:flex;gap:14px">'
            f'<div style="flex:1 1 0;min-width:0">{self._left.value}</div>'
            f'<div style="flex:1 1 0;min-width:0">{self._right.value}</div></div>'
        )

    def _histogram(self) -> str:
        counts = torch.histc(self.match.cosine, 40, 0, 1)
        return pages.histogram(counts, torch.linspace(0, 1, 41), x="maximal cosine", y="latents")

    def _sort(self) -> None:
        order = self._order
        if self.order.value == "farthest":
            order = order[::-1]
        elif self.order.value == "most frequent":
            order = sorted(order, key=self.a.density().tolist().__getitem__, reverse=True)
        self.listed = order[:_LISTED] or [0]
        with self._silent():
            self.list.options = [
                (f"#{i} → #{int(self.match.nearest[i])}   {float(self.match.cosine[i]):+.3f}", i) for i in self.listed
            ]
            self.list.value = self.latent if self.latent in self.listed else None
