"""FeatureBrowser: search latents, open one, label it, try a text on it, steer with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets as w
import torch
from torch import Tensor

from kit.base.html import PLAIN, SANS, inline, isolated
from kit.lens.lens import Lens
from kit.lens.markup import reads_as
from kit.models.activations import residual_scale
from kit.models.tokens import text_tokens
from kit.sae import pages
from kit.sae.ablation import ablated_text
from kit.sae.about import Effect, effect, overlap
from kit.sae.compare import Neighbours
from kit.sae.latents import Latents
from kit.sae.steered_latent import Latent
from kit.sae.store import FeatureStore
from kit.widgets import frame
from kit.widgets.frame import View
from kit.widgets.latents.labels import Labels
from kit.widgets.panel.panel import SteeringPanel

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_TEXT = "how strongly the text fires it"
_SAYS = "effect on the next token"  # at its largest, direct path: root mean square of the logits
_LIKE = "similarity to the given vector"
_ON = "firing on "  # and the token: how well "it fires" and "it is this token" agree
_OWN = "my list: "  # and its name, by largest activation
_LISTED = 200  # latents in the list at once
_TOP = 8  # strongest examples on a page


class FeatureBrowser(View):
    """A feature store on screen: ``FeatureBrowser(store, model)``.

    Attributes:
        near: for the nearest latents (:class:`kit.sae.Neighbours`).
        latent: the one whose page is open; listed: those in the list, in its order.
        panel: where "Steer with it" puts a latent.
        labels: the reader's own labels and lists (:class:`kit.widgets.latents.labels.Labels`).
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
        labels: str | Path | None = "latent_labels.json",
        lens: Lens | None = None,
    ) -> None:
        """Open the latent that fires most strongly.

        Args:
            like: ``[d_model]``; latents can then be sorted by the cosine of their rows with it.
            others: dictionaries in which the nearest latent is named too (other widths, say).
            figures: ``{name: [latents]}``, further figures to sort by (relative norms, say).
            more: HTML for a latent's page, above the examples (:mod:`kit.sae.sections` makes some).
            coefficient: at which a latent goes to the panel, times its largest activation.
            labels: the file that keeps labels and lists, written at the first; None keeps nothing.
            lens: says on each page what the latent's row reads as; for latents that two models
                share, of either.

        Raises:
            ValueError: latents or a lens of another model, a ``like`` of another width, figures of
                another length, or a file that holds something else than labels.
        """
        store.dictionary.check(model)
        if lens is not None:
            lens.check(store.dictionary.readers(model))
        rows = store.dictionary.rows
        if like is not None and like.shape != rows.shape[1:]:
            raise ValueError(f"like has shape {list(like.shape)}: give [{rows.shape[1]}]")
        own = Labels(store.dictionary, labels)
        super().__init__()
        self.labels, self._words = own, pages.words(model)
        self._said: dict[int, str] = {}  # by latent, the tokens that it fires on
        self._effects: dict[int, list[Effect]] = {}
        self.store, self._lm, self.panel, self._coefficient = store, model, panel, coefficient
        self.latent, self._more, self._lens = 0, more, lens
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
        self.sort = frame.small(w.Dropdown, "sort by", "290px", options=list(self._keys))
        self.number = frame.small(w.BoundedIntText, "latent", "130px", value=0, min=0, max=len(store) - 1)
        self.text = frame.writing("", "Try your own text: which latents fire on it?")
        self.read = frame.button("Read", "70px", "which latents fire on this text")
        needs = "which earlier words the latent needs, on your text or on its strongest example"
        self.ablate = frame.button("Ablated text", "110px", needs)
        self.weigh = frame.button("Effects", "80px", "on loss and next tokens, of its strongest examples: about 2 s")
        self.find = frame.line(150, 120, placeholder="a token: which latents fire on it?", continuous_update=False)
        self.name = frame.line(220, 150, placeholder="your label for this latent", continuous_update=False)
        self.group = w.Combobox(
            value="starred", tooltip="the list to put it on", continuous_update=False, layout=w.Layout(width="130px")
        )
        self.mark = w.ToggleButton(description="☆", tooltip="on your list", layout=w.Layout(width="34px"))
        self.steer = frame.button("Steer with it", "110px", "put the latent on the steering panel")
        self.steer.disabled = panel is None
        self.freeze_button = frame.freezer("this page")
        self.list = w.Select(rows=24, tooltip="latents", layout=w.Layout(width="330px"))
        self._page = w.HTML(layout=w.Layout(flex="1 1 480px", min_width="320px"))
        self._arrange(
            "Feature browser",
            frame.heading(
                f"Features of {inline(store.dictionary.name)}", f"{len(store):,} latents, {store.n_tokens:,} tokens"
            ),
            w.HBox([self.text, self.read], layout=w.Layout(grid_gap="8px", align_items="center")),
            frame.row(self.sort, self.number, self.find, self.name, self.group, self.mark, gap="8px"),
            frame.row(self.ablate, self.weigh, self.steer, self.freeze_button, gap="8px"),
            self._message,
            frame.row(self.list, self._page, gap="14px", align="flex-start"),
            freeze=self.freeze_button,
            classes=["kit-browser", "kit-picks"],
        )
        for control in (self.list, self.number):
            control.observe(lambda c: self._try(lambda: self.show(c["new"])), "value")
        self.sort.observe(lambda c: self._try(lambda: self.sort_by(c["new"])), "value")
        self.read.on_click(lambda _b: self._try(lambda: self.try_text(self.text.value)))
        self.find.observe(lambda c: self._try(lambda: self._search(c["new"])), "value")
        self.name.observe(lambda c: self._try(lambda: self.label(c["new"]), "not kept: "), "value")
        self.group.observe(lambda _c: self._try(self._show_own), "value")
        self.mark.observe(lambda c: self._try(lambda: self.put(self.group.value, c["new"]), "not kept: "), "value")
        self.weigh.on_click(lambda _b: self._try(self.show_effects))
        self.ablate.on_click(lambda _b: self._try(self.show_ablated))
        self.steer.on_click(lambda _b: self._try(self.to_panel))
        self._offer()
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
            self.store,
            self._lm,
            latent,
            n_top=_TOP,
            near=self.near,
            more=self._reads(latent) + ("" if self._more is None else self._more(latent)),
            label=self.labels.of.get(latent, ""),
            effects=self._effects.get(latent, ()),
        )
        self.latent = latent
        with self._silent():
            self.number.value = latent
            self.list.value = latent if latent in self.listed else None
        self._show_own()
        self._page.value = self._card

    def _reads(self, latent: int) -> str:
        latents = self.store.dictionary
        return "" if self._lens is None else reads_as(self._lens.words(latents.rows[latent], latents.site.layer))

    def sort_by(self, key: str) -> None:
        """List the latents by a figure, highest first.

        Raises:
            ValueError: a figure that is not there.
        """
        if key not in self._keys:
            raise ValueError(f"key={key!r}: use {', '.join(map(repr, self._keys))}")
        values = self._keys[key]
        order = values.argsort(descending=True, stable=True)
        shown = values > 0 if key.startswith((_ON, _OWN)) else self.store.density() > 0
        self.listed = order[shown[order]][:_LISTED].tolist() or [0]
        form = ".3%" if key == "density" else ".3g"
        with self._silent():
            self.list.options = [(self._line(i, f"{float(values[i]):{form}}"), i) for i in self.listed]
            self.list.value = self.latent if self.latent in self.listed else None
            self.sort.value = key

    def search(self, token: str) -> None:
        """List the latents that fire on a token, those first that fire on it and on little else,
        and open the first.

        Args:
            token: its text; case and spaces around it count only where nothing else is given. Line
                breaks and the like as on the pages: ``\\n``.

        Raises:
            ValueError: no token of the corpus reads so, or no latent fires on it.
        """
        kinds = self.store.tokens.unique().tolist()
        texts = dict(zip(kinds, self._words(kinds), strict=True))
        exact = [i for i, text in texts.items() if token in (text, repr(text)[1:-1])]
        bare = token.strip().casefold()
        found = [i for i, text in texts.items() if bare and text.strip().casefold() == bare] or exact
        if not found:
            raise ValueError(f"token={token!r}: no token of the corpus reads so; longer words are several tokens")
        values = overlap(self.store, found)
        if not bool(values.any()):
            raise ValueError(f"token={token!r}: no latent fires on it")
        key = _ON + ", ".join(repr(texts[i]) for i in found[:3])
        self._keys = {name: x for name, x in self._keys.items() if not name.startswith(_ON)} | {key: values}
        self._offer()
        self.sort_by(key)
        self.show(self.listed[0])

    def label(self, text: str) -> None:
        """Call the open latent something; an empty text takes the label away.

        Raises:
            OSError: the file cannot be written.
        """
        self.labels.label(self.latent, text)
        self.sort_by(self.sort.value)
        self.show(self.latent)

    def put(self, name: str = "starred", on: bool = True) -> None:
        """Put the open latent on a list of one's own, or take it off.

        Raises:
            ValueError: a list without a name; OSError: the file cannot be written.
        """
        self.labels.put(self.latent, name, on)
        self._offer()
        self._show_own()

    def show_effects(self) -> None:
        """What the open latent does to the loss and to the next tokens on its strongest examples,
        which the mouse shows; see :func:`kit.sae.about.effect`."""
        i = self.latent
        self._effects[i] = [effect(self.store, self._lm, i, e) for e in self.store.top(i, _TOP)]
        self.show(i)

    def try_text(self, text: str) -> None:
        """Sort by how strongly a text fires each latent, and open the one that it fires most.

        "How strongly" is the share of the latent's largest activation on the corpus.

        Raises:
            ValueError: a text without a token.
        """
        latents = self.store.read(self._lm, text)
        self._keys[_TEXT] = latents.amax(0) / self.store.maxima().clamp(min=1e-6)
        with self._silent():
            self.text.value = text
        self._offer()
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
        name = self.panel.put(vector, coefficient)
        self._say(f"{isolated(name)} is on the panel at {coefficient:+.2g}.")
        return name

    @property
    def frozen_html(self) -> str:
        return self._page.value

    # to the screen

    def _pick(self, latent: int) -> None:
        self.show(latent)

    def _search(self, text: str) -> None:
        if text.strip():
            self.search(text)

    def _line(self, latent: int, figure: str) -> str:
        """A latent in the list: number, figure, label, and the tokens that it fires on most."""
        if latent not in self._said:
            top = self.store.by_token(latent, 3, least=1)
            self._said[latent] = " ".join(map(repr, self._words(top["token"].tolist())))
        label = self.labels.of.get(latent, "")
        return "\u2002".join([f"#{latent}", figure, *([f"“{label}”"] if label else []), self._said[latent]])

    def _offer(self) -> None:
        """What one can sort by, the lists of one's own among it."""
        kept = {name: x for name, x in self._keys.items() if not name.startswith(_OWN)}
        for name, some in self.labels.lists.items():
            own = torch.zeros(len(self.store)).index_fill(0, torch.tensor(some), 1.0)
            kept[_OWN + name] = own * self.store.maxima().clamp(min=1e-6)
        self._keys = kept
        with self._silent():
            before = self.sort.value
            self.sort.options = list(kept)
            self.sort.value = before if before in kept else next(iter(kept))
            self.group.options = sorted({"starred", *self.labels.lists})

    def _show_own(self) -> None:
        with self._silent():
            self.name.value = self.labels.of.get(self.latent, "")
            self.mark.value = self.latent in self.labels.lists.get(self.group.value.strip(), [])
            self.mark.description = "★" if self.mark.value else "☆"

    def _show_text(self, latents: Tensor) -> None:
        ids = text_tokens(self._lm, self.text.value)[0].tolist()
        values = latents[:, self.latent].tolist()
        shown = pages.shaded(pages.words(self._lm)(ids), values, max(map(abs, values)))
        self._extend(f'<b>#{self.latent} on your text</b><div style="white-space:pre-wrap">{shown}</div>')

    def _extend(self, html: str) -> None:
        self._page.value = (
            f'<div class="{PLAIN}" style="font:13px/1.55 {SANS};padding:10px 14px">{html}</div>' + self._card
        )
