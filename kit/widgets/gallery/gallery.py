"""Many vectors at once: ranked, with what each makes the model say, to name, star and keep.

The same :class:`Controller` as the panel's. A run is a row of batches: each is one request, and
the worker's last frame of a batch posts the next.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets as w

from kit.base.checks import check_counts
from kit.base.html import inline, isolated, message
from kit.lens.lens import Lens
from kit.lens.markup import reads_as
from kit.models.bridge import runtime
from kit.models.hook_points import hooks_left
from kit.models.positions import Positions
from kit.steering import render
from kit.steering.results import Row
from kit.widgets import frame
from kit.widgets.frame import LiveView
from kit.widgets.gallery import features, markup, sets
from kit.widgets.gallery.batches import Batches
from kit.widgets.gallery.card import FeatureCard, drop_field
from kit.widgets.gallery.controls import GalleryControls
from kit.widgets.gallery.features import Feature
from kit.widgets.panel.controller import Frame, Request
from kit.widgets.panel.panel import SteeringPanel

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

_HINT = "Press Generate."


class FeatureGallery(LiveView):
    """Vectors ranked, each with its completion: ``FeatureGallery(model, dct, "How are you?")``.

    Attributes:
        features: everything the gallery knows, by rank
            (:class:`kit.widgets.gallery.features.Feature`).
        results: a table of it; ``selected``: the starred vectors, under their new names.
        unsteered, random_control: rows of the two pinned texts (:class:`kit.steering.results.Row`).
        frozen_html: the present state as HTML that needs no kernel.
        controls: every input widget.

    :meth:`run` generates for every feature that the filter shows; what was stopped goes on.
    """

    _called = "gallery"

    def __init__(
        self,
        model: TransformerBridge,
        vectors: Any = (),
        prompt: str = "How are you feeling today?",
        *,
        coefficient: float | Sequence[float] | None = None,
        panel: SteeringPanel | None = None,
        batch: int = 16,
        max_new_tokens: int = 24,
        chat: bool = True,
        scores: Any = None,
        measure: bool = True,
        page_size: int = 12,
        positions: Positions = "all",
        seed: int = 0,
        lens: Lens | None = None,
    ) -> None:
        """Nothing is generated until Generate is pressed or :meth:`run` is called.

        Args:
            vectors: interventions, or a fit that has ``vectors()`` (a DCT, say), best first.
            coefficient: at which each acts, one number or one for each, in residual scales.
                Default: each vector's ``metadata["coefficient"]``, else 0.3.
            panel: where "to panel" and a drag put a vector.
            batch: so many features run as one batch, each row steered by its own vector alone.
            scores: a number for each vector, or several sets by name (a mapping, a table): the
                first ranks, highest first. Default: the order given.
            measure: report each text's KL to the unsteered model; without, runs take about half
                as long.
            positions: where to steer, as in :func:`kit.steer`.
            seed: of the random control: a direction of the first vector's layer and norm.
            lens: says on each card what the vector reads as.

        Raises:
            ValueError: a vector or a lens of another model, or numbers that do not fit the vectors.
        """
        check_counts(batch=batch, page_size=page_size, max_new_tokens=max_new_tokens)
        runtime(model)  # refuses what is no bridge
        found = features.features(vectors, scores, coefficient)
        features.check(found, model)
        if lens is not None:
            lens.check([model])
        c = GalleryControls(prompt, max_new_tokens, measure, page_size)
        super().__init__(model)
        self._seed, self._positions, self._batch = seed, positions, batch
        self._chat = chat and self._chats
        self._run: Batches | None = None
        self._page, self._wanted = 0, False
        self.features, self._lens = found, lens
        self._plain = Feature(None, 0, 0.0, name="Unsteered")  # type: ignore[arg-type]
        self._random = features.random_control(found, seed)
        self.panel = panel
        self.controls = c
        self._pins = [w.HTML(), w.HTML()]
        self._cards: list[FeatureCard] = []
        self._shown: list[Feature] = []
        grid = {"grid_gap": "10px", "margin": "8px 0", "width": "100%"}
        pin_grid = w.GridBox(
            self._pins, layout=w.Layout(grid_template_columns="repeat(auto-fit, minmax(260px, 1fr))", **grid)
        )
        self._grid = w.GridBox(layout=w.Layout(grid_template_columns="repeat(auto-fill, minmax(290px, 1fr))", **grid))
        self._receipt.value = render.receipt(_HINT)
        self._arrange(
            "Feature gallery",
            frame.head("Feature gallery", inline(self._name), self._status),
            c.ask,
            c.settings,
            self._message,
            pin_grid,
            c.look,
            self._grid,
            self._receipt,
            c.files,
            freeze=c.freeze,
            classes=["kit-gallery"],
            sheet=markup.SHEET,
        )
        self._lay_out()
        c.generate.on_click(lambda _button: self._post())
        c.stop.on_click(lambda _button: self.stop())
        c.save.on_click(lambda _button: self._try(self._save, "nothing saved: "))
        c.load.on_click(lambda _button: self._try(self._load, "nothing loaded: "))
        c.back.on_click(lambda _button: self._turn(-1))
        c.on.on_click(lambda _button: self._turn(1))
        c.factor.observe(lambda _change: self._post(), "value")
        for control in (c.keep, c.sort, c.page_size):
            control.observe(lambda _change: self._turn(0), "value")
        self._field = drop_field(lambda rank: self._try(lambda: self.to_panel(rank), "not added: "))
        if panel is not None:
            panel.show_below_vectors(self._field)

    def _end(self) -> None:
        super()._end()
        if "_field" in vars(self):
            if self.panel is not None:
                self.panel.children = tuple(each for each in self.panel.children if each is not self._field)
            frame.dispose(self._field)

    # what a notebook calls

    def stop(self) -> None:
        """End the run within one token, and keep what there is."""
        with self._guard:
            self._wanted = False  # a batch that just ended must not post the next
            super().stop()

    @property
    def results(self) -> pd.DataFrame:
        """See :func:`kit.widgets.gallery.features.table`."""
        with self._guard:
            return features.table(self.features)

    @property
    def selected(self) -> list[Any]:
        """The starred vectors, best first, under the names that they have here."""
        with self._guard:
            return [f.named() for f in features.view(self.features, "starred", "rank")]

    @property
    def unsteered(self) -> Row | None:
        """The unsteered row; None before the first run."""
        return self._plain.result.row if self._plain.result else None

    @property
    def random_control(self) -> Row | None:
        """The row of the random direction; None before it ran."""
        return self._random.result.row if self._random and self._random.result else None

    def star(self, which: str | int, on: bool = True) -> None:
        """Star a feature, by name or rank."""
        with self._guard:
            features.find(self.features, which).starred = bool(on)
            self._lay_out()

    def hide(self, which: str | int, on: bool = True) -> None:
        """Hide a feature, by name or rank."""
        with self._guard:
            features.find(self.features, which).hidden = bool(on)
            self._lay_out()

    def rename(self, which: str | int, name: str) -> None:
        """Give a feature, by name or rank, another name; an empty one changes nothing."""
        with self._guard:
            feature = features.find(self.features, which)
            feature.name = str(name).strip() or feature.name
            self._lay_out()

    def to_panel(self, which: str | int) -> None:
        """Put a feature on the panel at its calibrated coefficient, and run the panel.

        A vector that is there already gets that coefficient.

        Raises:
            ValueError: this gallery has no panel, or no such feature.
        """
        feature = features.find(self.features, which)
        if self.panel is None:
            raise ValueError("panel=None: make the gallery with panel=... to add vectors to it")
        name = self.panel.put(feature.named(), feature.coefficient)
        self._say(f"{isolated(name)} is on the panel at {feature.coefficient:+.3g}.")

    def save(self, folder: str | Path | None = None) -> Path:
        """Write all features, marks and texts; see :func:`kit.widgets.gallery.sets.save`."""
        with self._guard:
            return sets.save(self.features, folder or self.controls.path.value)

    def load(self, path: str | Path) -> int:
        """Merge a saved set into this gallery; returns how many features are new to it.

        Raises:
            ValueError: files that do not fit; FileNotFoundError: nothing there. Nothing changes.
        """
        read = sets.load(path)
        features.check(read, self._lm)
        with self._guard:
            self.features, new = sets.merge(self.features, read)
            self._random = self._random or features.random_control(self.features, self._seed)
            self._lay_out()
        return new

    @property
    def has_run(self) -> bool:
        return any(f.result for f in [self._plain, *self.features])

    @property
    def frozen_html(self) -> str:
        with self._guard:
            if not self.has_run:
                return message(f"This gallery has not run yet. {_HINT}")
            request = self._run.request if self._run else self._request()
            shown = self._kept()
            note = f"{len(shown)} of {len(self.features)} features are shown."
            factor = self._run.factor if self._run else self.controls.factor.value
            return markup.frozen(request, self._name, factor, self._pinned(), shown, note, hooks_left(self._lm))

    def _kept(self) -> list[Feature]:
        """What the filter keeps, in the order chosen."""
        return features.view(self.features, self.controls.keep.value, self.controls.sort.value)

    def _pinned(self) -> list[Feature]:
        return [self._plain, *([self._random] if self._random else [])]

    # from the controls to the worker

    def _request(self) -> Request:
        c = self.controls
        return Request(
            c.prompt.value,
            (),
            chat=self._chat,
            positions=self._positions,
            max_new_tokens=c.tokens.value,
            measure=c.measure.value,
        )

    def _post(self) -> None:
        with self._guard:
            wanted = sorted(self._kept(), key=lambda f: f not in self._shown)  # this page first
            if not wanted:
                self._error = "no feature to generate for: the filter shows none"
                self._say(self._error, error=True)
                return
            pinned = self._pinned()
            self._run = Batches.plan(
                self._request(), self.controls.factor.value, pinned, wanted, self._batch, time.monotonic()
            )
            self._error, self._wanted = None, True
            self._say("")
            self._post_batch()
            self._draw([*pinned, *self._shown])

    def _post_batch(self) -> None:
        assert self._run is not None
        self._status.value = self._progress("generating", None)
        self._id = self.controller.post(self._run.next_request())

    def _save(self) -> None:
        self._say(f"Saved {len(self.features)} features in {self.save()}")

    def _load(self) -> None:
        before = len(self.features)
        new = self.load(self.controls.path.value)
        self._say(f"Loaded: {new} new features beside the {before} that were here.")

    def _turn(self, by: int) -> None:
        with self._guard:
            self._page = max(0, self._page + by) if by else 0
            self._lay_out()

    # from the worker to the screen

    def _lay_out(self) -> None:
        """Put the features of the page on cards."""
        wanted, size = self._kept(), self.controls.page_size.value
        self._page = max(0, min(self._page, (len(wanted) - 1) // size))
        first = self._page * size
        self._shown = wanted[first : first + size]
        self.controls.page(first, first + len(self._shown), len(wanted))
        if self._lens and (unread := [f for f in self._shown if not f.words]):
            for feature, said in zip(unread, self._lens.name_vectors([f.vector for f in unread]), strict=True):
                feature.words = "" if said is None else reads_as(said)
        for feature in self._shown[len(self._cards) :]:
            self._cards.append(self._new_card(feature))
        for card, feature in zip(self._cards, self._shown, strict=False):
            card.bind(feature)
        cards = tuple(self._cards[: len(self._shown)])
        if self._grid.children != cards:
            self._grid.children = cards
        self._draw([*self._pinned(), *self._shown])

    def _new_card(self, feature: Feature) -> FeatureCard:
        card = FeatureCard(feature, self.panel is not None)
        card.on_change(card.name, self.rename)
        card.on_change(card.star, self.star)
        card.on_change(card.hide, self.hide)
        card.add.on_click(lambda _button: self._try(lambda: self.to_panel(card.feature.rank), "not added: "))
        return card

    def _take(self, frame: Frame) -> None:
        run = self._run
        assert run is not None
        batch = run.batch
        run.take(frame)
        if frame.error:
            self._say(f"{frame.error} (what was there is kept)", error=True)
        self._draw(batch, busy=not frame.done)
        if not frame.done:
            self._status.value = self._progress("generating", frame)
            return
        self._receipt.value = render.receipt(markup.receipt([*self._pinned(), *self.features]))
        if frame.error or frame.stopped or not self._wanted or not run.batch:
            self._wanted = False
            word = "failed" if frame.error else "done" if not run.batch else "stopped"
            self._status.value = self._progress(word, None)
            self._lay_out()  # the order may depend on what came
        else:
            self._post_batch()

    def _progress(self, word: str, frame: Frame | None) -> str:
        run = self._run
        assert run is not None
        now = time.monotonic()
        left = run.left(frame, now) if word == "generating" else None
        if word != "generating":
            word = f"{word} in {now - run.started:.0f} s"
        return markup.progress(word, run.finished, run.total, run.share(frame), left)

    def _draw(self, what: Sequence[Feature], busy: bool = False) -> None:
        """Write the texts of those features that are on the screen."""
        run, c = self._run, self.controls
        places = {id(card.feature): card.body for card in self._cards[: len(self._shown)]}
        places |= {id(f): pin for f, pin in zip(self._pinned(), self._pins, strict=False)}
        prompt = run.request.prompt if run else c.prompt.value
        lines = min(8.0, 0.6 + 4.6 * c.tokens.value / 40)
        for f in what:
            if id(f) not in places:
                continue
            now = run is None or f.result is None or f.key == run.key(f)
            waiting = _HINT if run is None else "…" if self._wanted else "not generated"
            text = markup.body(f, prompt, now=now, busy=busy, tooltips=not busy, min_lines=lines, waiting=waiting)
            places[id(f)].value = text if f.rank else markup.pinned(f, text)
