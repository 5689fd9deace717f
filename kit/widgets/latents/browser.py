"""FeatureBrowser: search a dictionary's latents, open one, try a text on it, steer with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import ipywidgets as w
import torch
from torch import Tensor

from kit.models.activations import residual_scale
from kit.models.tokens import text_tokens
from kit.sae import pages
from kit.sae.ablation import ablated_text
from kit.sae.compare import Neighbours
from kit.sae.steered_latent import Latent
from kit.widgets import frame
from kit.widgets.frame import Careful
from kit.widgets.gallery import to_panel

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from kit.sae.latents import Latents
    from kit.sae.store import FeatureStore
    from kit.widgets.panel.panel import SteeringPanel


_TEXT = "how strongly the text fires it"
_SAYS = "effect on the next token"  # at its largest, direct path: root mean square of the logits
_LIKE = "similarity to the given vector"
_LISTED = 200  # latents in the list at once


class FeatureBrowser(Careful):
    """A feature store on screen: ``FeatureBrowser(store, model)``.

    Attributes:
        near: for the nearest latents (:class:`kit.sae.Neighbours`).
        latent: the one whose page is open; listed: those in the list, in its order.
        panel: where "Steer with it" puts a latent.
        frozen_html: the page as HTML that needs no kernel.
    """

    def __init__(
        self,
        store: FeatureStore,
        model: TransformerBridge,
        *,
        panel: SteeringPanel | None = None,
        like: Tensor | None = None,
        others: Sequence[Latents] = (),
        figures: Mapping[str, Tensor] | None = None,
        more: Callable[[int], str] | None = None,
        coefficient: float = 1.0,
    ) -> None:
        """Open the latent that fires most strongly.

        Args:
            like: ``[d_model]``; latents can then be sorted by the cosine of their rows with it.
            others: dictionaries in which the nearest latent is named too (other widths, say).
            figures: ``{name: [latents]}``, further figures to sort by (relative norms, say).
            more: HTML for a latent's page, above the examples (:mod:`kit.sae.sections` makes some).
            coefficient: at which a latent goes to the panel, times its largest activation.

        Raises:
            ValueError: latents of another model, a ``like`` of another width, or figures of another
                length.
        """
        store.dictionary.check(model)
        rows = store.dictionary.rows
        if like is not None and like.shape != rows.shape[1:]:
            raise ValueError(f"like has shape {list(like.shape)}: give [{rows.shape[1]}]")
        self.store, self._lm, self.panel, self._coefficient = store, model, panel, coefficient
        self.latent, self._quiet, self._more = 0, True, more
        self.near = Neighbours(store.dictionary, model, others)
        self._made: dict[int, Any] = {}  # what went to the panel, so that it is known there again
        self._keys: dict[str, Tensor] = {
            "largest activation": store.maxima(),
            "density": store.density(),
            "mean activation": store.means(),
            _SAYS: store.maxima() * self.near.loudness,
        }
        if like is not None:
            self._keys[_LIKE] = torch.cosine_similarity(rows, like.cpu().float()[None], dim=-1)
        for name, values in (figures or {}).items():
            if values.shape != (len(store),):
                raise ValueError(f"figures[{name!r}] has shape {list(values.shape)}: give [{len(store)}]")
            self._keys[name] = values.float().nan_to_num(-torch.inf)
        wide = {"description_width": "initial"}
        self.sort = w.Dropdown(
            options=list(self._keys), description="sort by", style=wide, layout=w.Layout(width="290px")
        )
        self.number = w.BoundedIntText(
            0, min=0, max=len(store) - 1, description="latent", style=wide, layout=w.Layout(width="130px")
        )
        self.text = w.Textarea(
            placeholder="Try your own text: which latents fire on it?",
            rows=2,
            continuous_update=False,
            layout=w.Layout(flex="1 1 auto", width="auto", height="56px"),
        )
        self.read = w.Button(
            description="Read", tooltip="which latents fire on this text", layout=w.Layout(width="70px")
        )
        self.ablate = w.Button(
            description="Ablated text",
            layout=w.Layout(width="110px"),
            tooltip="which earlier words the latent needs, on your text or on its strongest example",
        )
        self.steer = w.Button(
            description="Steer with it",
            layout=w.Layout(width="110px"),
            disabled=panel is None,
            tooltip="put the latent on the steering panel",
        )
        self.freeze_button = w.Button(
            description="Freeze", layout=w.Layout(width="80px"), tooltip="keep this page as plain HTML in the notebook"
        )
        self.list = w.Select(rows=22, tooltip="latents", layout=w.Layout(width="260px"))
        self._page, self._message, self._area = w.HTML(), frame.message(), w.HTML()
        super().__init__()
        bar = w.Layout(grid_gap="8px", flex_flow="row wrap", align_items="center", width="100%")
        self._page.layout = w.Layout(flex="1 1 480px", min_width="320px")
        self.children = (
            frame.frame("Feature browser"),
            w.HTML(
                f'<b style="font-size:15px">Features of {escape(store.dictionary.name)}</b>'
                f'<span style="opacity:.75">&ensp;{len(store):,} latents, '
                f"{store.n_tokens:,} tokens</span>"
            ),
            w.HBox([self.text, self.read], layout=w.Layout(grid_gap="8px", align_items="center")),
            w.HBox([self.sort, self.number, self.ablate, self.steer, self.freeze_button], layout=bar),
            self._message,
            w.HBox(
                [self.list, self._page],
                layout=w.Layout(grid_gap="14px", flex_flow="row wrap", align_items="flex-start"),
            ),
            self._area,
        )
        for name in ("kit-panel", "kit-browser"):
            self.add_class(name)
        self._connect()
        self._quiet = False
        self.sort_by("largest activation")
        self.show(self.listed[0])

    # what a notebook calls

    def show(self, latent: int) -> None:
        """Show a latent's page.

        Raises:
            ValueError: no such latent.
        """
        self.store.dictionary.check_latent(latent)
        self._card = pages.page(
            self.store, self._lm, latent, near=self.near, more="" if self._more is None else self._more(latent)
        )
        self.latent = latent
        self._quiet = True
        self.number.value = latent
        if latent in self.listed:
            self.list.value = latent
        self._quiet = False
        self._page.value = self._card

    def sort_by(self, key: str) -> None:
        """List the latents by a figure, highest first.

        Raises:
            ValueError: a figure that is not there.
        """
        if key not in self._keys:
            raise ValueError(f"key={key!r}: use {', '.join(map(repr, self._keys))}")
        values = self._keys[key]
        order = values.argsort(descending=True, stable=True)
        order = order[(self.store.density() > 0)[order]][:_LISTED]
        self.listed = order.tolist() or [0]
        self._quiet = True
        self.list.options = [(f"#{i}   {_short(float(values[i]), key)}", i) for i in self.listed]
        if self.latent in self.listed:
            self.list.value = self.latent
        self.sort.value = key
        self._quiet = False

    def try_text(self, text: str) -> None:
        """Sort by how strongly a text fires each latent, and open the one that it fires most.

        "How strongly" is the share of the latent's largest activation on the corpus.

        Raises:
            ValueError: a text without a token.
        """
        latents = self.store.read(self._lm, text)
        self._keys[_TEXT] = latents.amax(0) / self.store.maxima().clamp(min=1e-6)
        self._quiet = True
        self.text.value = text
        self.sort.options = list(self._keys)
        self._quiet = False
        self.sort_by(_TEXT)
        self.show(self.listed[0])
        self._show_text(latents)

    def show_ablated(self) -> None:
        """Ablated text of the open latent: on the given text, or on its strongest example."""
        i = self.latent
        if self.text.value.strip():
            ids = text_tokens(self._lm, self.text.value)[0].cpu()
            values = self.store.read(self._lm, ids)[:, i]
            ids = ids[: max(3, int(values.argmax()) + 1)]
        else:
            rows = (self.store.whole(i, e) for e in self.store.top(i, 20))
            whole = next((w for w in rows if w.at >= 2), None)  # else nothing can be removed
            if whole is None:
                raise ValueError(f"latent {i} never fires on the corpus after a third token: give a text of your own")
            ids = whole.tokens[max(0, whole.at - 39) : whole.at + 1]
        found = ablated_text(self.store.dictionary, self._lm, ids, i, pairs=len(ids) <= 16)
        self._extend(pages.ablation(found, pages.words(self._lm)))

    def to_panel(self) -> str:
        """Put the open latent on the panel, and run it; returns the name that it has there.

        Raises:
            ValueError: this browser has no panel, or the latent never fires.
        """
        if self.panel is None:
            raise ValueError("panel=None: make the browser with panel=... to steer with a latent")
        top, d = float(self.store.maxima()[self.latent]), self.store.dictionary
        if not top > 0:
            raise ValueError(f"latent {self.latent} never fires on the corpus, so it has no unit")
        vector: Any = d.vector(self.latent, top)
        coefficient = self._coefficient
        if d.site.kind == "resid" and len(d.readers(self._lm)) == 1:
            vector = self._made.setdefault(self.latent, Latent(d, self.latent, top))
        else:  # one stream does not show it: its row is added, as long as it is at most
            coefficient *= top * vector.metadata["row_norm"] / residual_scale(self._lm, vector.layer)
        name = to_panel.put(self.panel, vector, coefficient)
        self._say(f"{name} is on the panel at {coefficient:+.2g}.")
        return name

    @property
    def has_run(self) -> bool:
        return bool(self._page.value)

    @property
    def frozen_html(self) -> str:
        return self._page.value

    # from the controls

    def _connect(self) -> None:
        self.list.observe(lambda c: self._try(lambda: self.show(c["new"])), "value")
        self.number.observe(lambda c: self._try(lambda: self.show(c["new"])), "value")
        self.sort.observe(lambda c: self._try(lambda: self.sort_by(c["new"])), "value")
        self.read.on_click(lambda _b: self._try(lambda: self.try_text(self.text.value)))
        self.ablate.on_click(lambda _b: self._try(self.show_ablated))
        self.steer.on_click(lambda _b: self._try(self.to_panel))
        self.freeze_button.on_click(
            lambda _b: self._try(lambda: setattr(self._message, "value", self.freeze_here(self._area)))
        )

    def _show_text(self, latents: Tensor) -> None:
        ids = text_tokens(self._lm, self.text.value)[0].tolist()
        values = latents[:, self.latent].tolist()
        shown = pages.shaded(pages.words(self._lm)(ids), values, max(map(abs, values)))
        self._extend(f'<b>#{self.latent} on your text</b><div style="white-space:pre-wrap">{shown}</div>')

    def _extend(self, html: str) -> None:
        box = (
            f'<div style="font:13px/1.55 var(--jp-ui-font-family,system-ui,sans-serif);padding:10px 14px">{html}</div>'
        )
        self._page.value = box + self._card


def _short(value: float, key: str) -> str:
    return f"{value:.3%}" if key == "density" else f"{value:.3g}"
