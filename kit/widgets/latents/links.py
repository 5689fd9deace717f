"""LinkBrowser: walk from latent to latent along the links between two dictionaries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import ipywidgets as w

from kit.base.html import INK, PLAIN, SAFE, SANS, inline
from kit.lens.lens import Lens
from kit.lens.markup import reads_as
from kit.sae import pages
from kit.sae.links import Links
from kit.sae.store import FeatureStore
from kit.widgets import frame
from kit.widgets.frame import View

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Side = Literal["source", "target"]
_STEP, _WIDE = 34, 220  # pixels: from node to node, and of the edges between the columns
_OTHER: dict[Side, Side] = {"source": "target", "target": "source"}


class LinkBrowser(View):
    """A latent, its strongest links, and its page; click at the other end of a link to go there.

    Attributes:
        side, latent: which latent is open: of the links' sources, or of their targets.
        others: ``(latent, share)`` at the other ends of its links, strongest first.
        frozen_html: graph and page as HTML that needs no kernel.
    """

    def __init__(
        self,
        links: Links,
        sources: FeatureStore,
        targets: FeatureStore,
        model: TransformerBridge,
        *,
        n: int = 8,
        lens: Lens | None = None,
    ) -> None:
        """Open the target of the strongest link.

        Args:
            sources, targets: stores of the links' two dictionaries.
            n: how many links of a latent are shown.
            lens: says on each page what the latent's row reads as.

        Raises:
            ValueError: stores of other dictionaries, stores or a lens of another model, or no link
                but zeros.
        """
        for name, store, latents in (("sources", sources, links.source), ("targets", targets, links.target)):
            if store.dictionary is not latents and store.dictionary.digest != latents.digest:
                more = " with other weights" if store.dictionary.name == latents.name else ""
                raise ValueError(
                    f"{name} is a store of {store.dictionary.name!r}: the links are of {latents.name!r}{more}"
                )
            store.dictionary.check(model)
        if lens is not None:
            lens.check([model])
        first = links.top(1)
        if not len(first):
            raise ValueError("links has none that is not zero: read more text")
        super().__init__()
        self.links, self._stores, self._lm, self._n = links, {"source": sources, "target": targets}, model, n
        self._words, self._lens = pages.words(model), lens
        self.number = frame.small(w.BoundedIntText, "latent", "140px", value=0, min=0, max=10**9)
        self.which = w.ToggleButtons(options=list(_OTHER), style={"button_width": "90px"})
        self.buttons = [w.Button(layout=w.Layout(width="210px", height="28px", margin="3px 0")) for _ in range(n)]
        self._centre, self._edges, self._page = w.HTML(), w.HTML(), w.HTML()
        self._graph = w.HBox(layout=w.Layout(align_items="center"))
        self._arrange(
            "Links between dictionaries",
            frame.heading(
                f"Links from {inline(links.source.name)} to {inline(links.target.name)}",
                f"{links.method}, {links.tokens:,} tokens; blue raises, vermillion lowers",
            ),
            w.HBox([self.which, self.number], layout=w.Layout(grid_gap="10px", align_items="center")),
            self._message,
            self._graph,
            self._page,
            classes=["kit-links", "kit-picks"],
        )
        for i, button in enumerate(self.buttons):
            button.on_click(lambda _b, i=i: self._try(lambda: self.show(_OTHER[self.side], self.others[i][0])))
        self.number.observe(lambda c: self._try(lambda: self.show(self.side, c["new"])), "value")
        self.which.observe(lambda c: self._try(lambda: self._turn(c["new"])), "value")
        self.show("target", int(first["target"].iloc[0]))

    def show(self, side: Side, latent: int) -> None:
        """Open a latent.

        Raises:
            ValueError: no such latent, or another side than ``"source"`` and ``"target"``.
        """
        if side not in self._stores:
            raise ValueError(f"side={side!r}: use 'source' or 'target'")
        self._stores[side].dictionary.check_latent(latent)
        table = self.links.top(self._n, **{side: latent}, least=1)  # type: ignore[arg-type]
        other = _OTHER[side]
        self.side, self.latent = side, latent
        self.others = list(zip(table[other].tolist(), table["share"].tolist(), strict=True))
        with self._silent():
            self.which.value, self.number.value = side, latent
        for i, button in enumerate(self.buttons):
            button.layout.display = None if i < len(self.others) else "none"
            if i < len(self.others):
                button.description = self._label(other, self.others[i][0])
                button.tooltip = f"{self.others[i][1]:+.1%} of the target's activation; open its page"
        self._centre.value = f'<b style="padding:0 8px">{inline(self._label(side, latent))}</b>'
        self._edges.value = self._svg()
        ends = [w.VBox(self.buttons), self._edges, self._centre]
        self._graph.children = ends if side == "target" else ends[::-1]
        row, layer = self._stores[side].dictionary.rows[latent], self._stores[side].dictionary.site.layer
        said = "" if self._lens is None else reads_as(self._lens.words(row, layer))
        self._page.value = pages.page(self._stores[side], self._lm, latent, n_top=6, n_interval=1, more=said)

    def _pick(self, latent: int) -> None:
        self.show(self.side, latent)

    @property
    def frozen_html(self) -> str:
        column = "".join(
            f'<div style="height:{_STEP}px;line-height:{_STEP}px">{inline(self._label(_OTHER[self.side], i))}</div>'
            for i, _share in self.others
        )
        ends = [f"<div>{column}</div>", f"<div>{self._svg()}</div>", f"<div>{self._centre.value}</div>"]
        row = "".join(ends if self.side == "target" else ends[::-1])
        return f'<div class="{PLAIN}" style="display:flex;align-items:center;font:13px {SANS}">{row}</div>{self._page.value}'

    def _turn(self, side: Side) -> None:
        """To the strongest link's other end, or, where there is none, to the first latent there."""
        self.show(side, self.others[0][0] if self.others else 0)

    def _label(self, side: Side, latent: int) -> str:
        """The latent's number, and the token on which it is most active."""
        table = self._stores[side].by_token(latent, 1, least=1)
        said = repr(self._words([int(table["token"].iloc[0])])[0]) if len(table) else "never fires"
        return f"#{latent}  {said}"

    def _svg(self) -> str:
        """The edges, from the column of nodes to the open one; wide where they are strong."""
        n = len(self.others)
        high = max(_STEP * n, _STEP)
        full = max((abs(share) for _, share in self.others), default=1.0)
        lines, end = [], 8 if self.side == "target" else _WIDE - 8
        anchor = "start" if self.side == "target" else "end"
        for i, (_, share) in enumerate(self.others):
            y, x = _STEP * (i + 0.5), (4, _WIDE - 4)
            a, b = x if self.side == "target" else x[::-1]
            lines.append(
                f'<path d="M{a} {y:.0f} C{_WIDE / 2} {y:.0f} {_WIDE / 2} {high / 2:.0f} {b} {high / 2:.0f}" '
                f'fill="none" stroke="rgb({SAFE if share > 0 else INK})" '
                f'stroke-width="{1 + 7 * abs(share) / full:.1f}" stroke-opacity=".65">'
                f"<title>{share:+.1%}</title></path>"
                f'<text x="{end}" y="{y - 5:.0f}" text-anchor="{anchor}">{share:+.1%}</text>'
            )
        return (
            f'<svg width="{_WIDE}" height="{high}" font-size="11" fill="currentColor" role="img" '
            f'aria-label="links of the latent">{"".join(lines)}</svg>'
        )
