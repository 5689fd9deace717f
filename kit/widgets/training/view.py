"""TrainingView: dictionaries while they train, live: curves, densities, one latent as it forms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets as w
from torch import Tensor

from kit.base.checks import check_counts
from kit.base.html import message
from kit.models.tokens import pack
from kit.sae import pages
from kit.sae.store import Example
from kit.sae.training import COEFFICIENTS, Report, Training
from kit.widgets import frame
from kit.widgets.frame import View
from kit.widgets.panel.controller import one_line, refuse_held
from kit.widgets.training import markup
from kit.widgets.training.held_out import HeldOut
from kit.widgets.training.run import TrainingRun

if TYPE_CHECKING:
    import pandas as pd

_FIGURES = ("loss", "explained_variance", "l0", "dead")
_HINT = "Press Start."


class TrainingView(View):
    """A :class:`kit.sae.Training` on screen: ``TrainingView(training, held_out_texts)``.

    Loss, explained variance and L0 are of the batch in training. CE loss recovered (of the chosen
    dictionary at each tenth of the run, of all at its end), densities and examples are of the
    held-out text.

    Attributes:
        training: what is trained; stopped, it can be used and resumed elsewhere.
        selected: name of the dictionary whose latents are shown.
        latent: the one whose examples are shown; ``examples``: those, best first.
        reports: a :class:`kit.sae.Report` every so many steps; ``history``: the same as a table.
        share: of the time so far, what looking took (without the last look, at the end).
        frozen_html: the present state as HTML that needs no kernel.
    """

    def __init__(
        self,
        training: Training,
        held_out: Sequence[str] | Tensor,
        *,
        folder: str | Path | None = None,
        every: int | None = None,
        refresh: float = 0.5,
        rows: int = 24,
        ce_rows: int = 4,
    ) -> None:
        """Train nothing until Start is pressed or :meth:`run` is called.

        Args:
            held_out: texts that are not trained on; or tokens ``[rows, context]``, as
                :func:`kit.sae.pack` makes them.
            folder: where each tenth of the run, a stop and the end leave a checkpoint. If one lies
                there and ``training`` has not begun, it goes on from it.
            every: steps between two points of a curve (default: 200 points in all).
            refresh: seconds between two drawings, at least.
            rows: of held-out text, for densities and examples; ce_rows: for CE loss recovered.

        Raises:
            ValueError: names the argument, its value, and what would be right; or as
                :meth:`kit.sae.Training.restore`.
        """
        if not isinstance(training, Training):
            raise ValueError(f"training={training!r:.60}: give a kit.sae.Training")
        check_counts(every=1 if every is None else every, rows=rows, ce_rows=ce_rows)
        if not 0 <= refresh < math.inf:
            raise ValueError(f"refresh={refresh!r}: give seconds, from 0 on")
        tokens = _tokens(training, held_out)[:rows]
        if folder is not None and not training.step and (Path(folder) / "training.json").is_file():
            training.restore(folder)
        super().__init__()
        self.training = training
        held = HeldOut(training.source.model, tokens, list(training.sites.values()), ce_rows=ce_rows)
        self._run = TrainingRun(
            training, held, self._draw, folder=folder, refresh=refresh, every=every or max(1, training.steps // 200)
        )
        trained_on = set(map(tuple, training.source.tokens.tolist()))
        self._both = sum(tuple(row) in trained_on for row in tokens.tolist())
        self._words = pages.words(training.source.model)
        self.start = frame.button("Start", tip="train in the background", button_style="primary")
        self.stop_button = frame.button("Stop", tip="after the step under way; Resume goes on from there")
        names = list(training.trainers)
        self.choose = frame.small(w.Dropdown, "dictionary", "auto", options=names, value=self.selected)
        self.number = frame.small(w.BoundedIntText, "latent", "120px", value=0, min=0, max=self._latents() - 1)
        self.next = frame.button("Next lively", tip="the next latent that fires neither rarely nor always")
        self.sparsity = self._sparsity_field()
        self.freeze_button = frame.freezer(width="auto")
        self._status, self._curves, self._latent_html = w.HTML(), w.HTML(), w.HTML()
        for part in (self._status, self._curves, self._latent_html):
            part.add_class("kit-grow")
        chosen = (self.choose, self.number, self.next, self.sparsity)
        self._arrange(
            "Training of dictionaries",
            self._status,
            frame.row(self.start, self.stop_button, *chosen, self.freeze_button, gap="8px"),
            self._message,
            self._curves,
            self._latent_html,
            freeze=self.freeze_button,
        )
        self.start.on_click(lambda _b: self._try(self._start))
        self.stop_button.on_click(lambda _b: self.stop())
        self.choose.observe(lambda c: self._try(lambda: self.select(c["new"])), "value")
        self.number.observe(lambda c: self._try(lambda: self._chosen(c["new"])), "value")
        self.next.on_click(lambda _b: self._try(self.next_lively))
        self.sparsity.observe(lambda c: self._try(lambda: self._set_sparsity(c["new"])), "value")
        self._draw()

    def _sparsity_field(self) -> Any:
        """k, or the coefficient of the sparsity term, under its own name."""
        t, kind = self.training, self.training.settings["architecture"]
        if kind in COEFFICIENTS:
            name = "L0 coefficient" if kind == "jumprelu" else "L1 coefficient"
            most = max(1e6, t.sparsity)
            return frame.small(w.BoundedFloatText, name, "170px", value=t.sparsity, min=0, max=most)
        narrowest = min(len(x.sae.W_dec) for x in t.trainers.values())
        if kind == "topk":
            return frame.small(w.BoundedIntText, "k", "90px", value=int(t.sparsity), min=1, max=narrowest)
        least = min(1.0, t.sparsity)
        return frame.small(w.BoundedFloatText, "k", "90px", value=t.sparsity, min=least, max=narrowest, step=1)

    # what a notebook calls

    def run(self, wait: bool = True, timeout: float | None = None) -> None:
        """Train to the end, in a thread; what was stopped goes on with the very next batch.

        Args:
            wait: block until it ends, for notebooks that run from top to bottom. While a cell
                blocks, controls do nothing until it is done; ``wait=False`` leaves them live.
            timeout: seconds to wait.

        Raises:
            RuntimeError: training failed, another view trains this ``Training`` now, or this is
                within :func:`kit.steer`, which holds the model.
            TimeoutError: it is not done in ``timeout`` seconds (it goes on).
            KeyboardInterrupt: training was stopped; a checkpoint lies in ``folder``, if given.
        """
        if wait:
            refuse_held(*self._run.models)
        self._start()
        if wait:
            self.wait(timeout)

    def wait(self, timeout: float | None = None) -> None:
        """Block until nothing trains; errors as :meth:`run`."""
        self._run.wait(timeout)

    def stop(self) -> None:
        """End after the step under way; :meth:`run` goes on from there."""
        self._run.stop()

    def select(self, name: str) -> None:
        """Show the latents of a dictionary.

        Raises:
            ValueError: no such dictionary.
        """
        if name not in self.training.trainers:
            names = ", ".join(map(repr, self.training.trainers))
            raise ValueError(f"name={name!r}: use {names}")
        run = self._run
        with run.guard:
            if name == run.selected:
                return
            run.selected, run.pinned, run.look = name, False, None
            # the number first, or the field would cut it off and tell of a choice
            run.latent = self.number.value = 0
            self.number.max = self._latents() - 1
            self.choose.value = name
            run.do(run.renew)

    def show(self, latent: int) -> None:
        """Show the examples of a latent, from now on.

        Raises:
            ValueError: no such latent.
        """
        n = self._latents()
        if isinstance(latent, bool) or not isinstance(latent, int) or not 0 <= latent < n:
            raise ValueError(f"latent={latent!r}: this dictionary has 0 to {n - 1}")
        run = self._run
        with run.guard:
            if latent == run.latent and run.pinned:
                return
            run.latent, run.pinned = latent, True
            self.number.value = latent
            run.do(run.renew)

    def next_lively(self) -> None:
        """Show the next latent that fires neither rarely nor always."""
        run = self._run

        def job() -> None:
            if run.look is None:
                run.renew()
            assert run.look is not None
            self.show(run.look.next_lively(run.latent))

        run.do(lambda: self._try(job))

    @property
    def selected(self) -> str:
        """Name of the dictionary that is shown."""
        return self._run.selected

    @property
    def latent(self) -> int:
        """Index of the latent that is shown."""
        return self._run.latent

    @property
    def running(self) -> bool:
        """Whether the training goes on in its thread."""
        return self._run.running

    @property
    def reports(self) -> list[Report]:
        """All reports so far, oldest first."""
        return list(self._run.reports)

    @property
    def examples(self) -> list[Example]:
        """Examples of the shown latent at the last look; empty before the first."""
        return [] if self._run.look is None else list(self._run.look.examples)

    @property
    def history(self) -> pd.DataFrame:
        """Columns ``step``, ``name``, ``loss``, ``explained_variance``, ``l0``, ``dead`` and
        ``ce_recovered`` (NaN where it was not measured); a row for each report and dictionary."""
        import pandas as pd

        rows = [
            (r.step, name, *(getattr(f, what) for what in _FIGURES), self._run.recovered.get((r.step, name), math.nan))
            for r in self.reports
            for name, f in r.figures.items()
        ]
        return pd.DataFrame(rows, columns=["step", "name", *_FIGURES, "ce_recovered"])

    @property
    def share(self) -> float:
        """Share of the time that went into looking rather than training, 0 to 1."""
        return self._run.looked / max(self._run.looked + self._run.trained, 1e-9)

    @property
    def has_run(self) -> bool:
        return bool(self._run.reports)

    @property
    def frozen_html(self) -> str:
        if not self.has_run:
            return message(f"Nothing has been trained here yet. {_HINT}")
        return pages.box(self._status.value + self._message.value + self._curves.value + self._latent_html.value)

    def _end(self) -> None:
        if "_run" in vars(self):
            self._run.stop()
            self._run.join(10.0)  # the step under way

    # from the controls

    def _start(self) -> None:
        self._say("")
        with self._run.guard:  # the thread's last drawing must not come before this one
            self._run.start()
            self._draw()

    def _chosen(self, latent: int) -> None:
        """From the number's field, which also follows the latent by itself."""
        if latent != self.latent:
            self.show(latent)

    def _set_sparsity(self, value: float) -> None:
        def job() -> None:
            if value != self.training.sparsity:
                self.training.sparsity = value
            self._draw()

        if value != self.training.sparsity or self._run.pending:
            self._run.do(lambda: self._try(job))

    def _latents(self) -> int:
        return len(self.training.trainers[self.selected].sae.W_dec)

    # to the screen

    def _draw(self) -> None:
        t, run = self.training, self._run
        self.start.disabled = run.running or t.step >= t.steps
        self.start.description = "Resume" if t.step else "Start"
        self.stop_button.disabled = not run.running
        with run.guard:
            if not run.pending:  # else what was just typed would be lost
                self.sparsity.value = t.sparsity  # it can be set in a cell, too
                self.number.value = run.latent
        if run.running:
            word = "training" if t.step < t.steps else "measuring on held-out text"
            word = word if run.held.ready else "reading held-out text"
        elif run.error:
            word = "failed"
        else:
            word = "done" if t.step >= t.steps else "stopped" if t.step else "not begun"
        rate = run.served / max(run.trained + run.looked, 1e-9)
        note = f"{self._both} of {len(run.held.tokens)} held-out rows are also trained on" if self._both else ""
        self._status.value = markup.status(t, word, rate, note)
        if run.reports:
            self._curves.value = markup.curves(t, self.reports, dict(run.recovered), run.selected)
        look = run.look
        self._latent_html.value = (
            "" if look is None else markup.latent(look, self._words, run.held.n_tokens(t.sites[look.name]))
        )
        if run.error is not None:
            self._say(one_line(run.error), error=True)


def _tokens(training: Training, held_out: Sequence[str] | Tensor) -> Tensor:
    """Rows as long as those that are trained on, or the rows given."""
    model = training.source.model
    if isinstance(held_out, Tensor):
        if held_out.dim() != 2 or not len(held_out) or held_out.shape[1] < 2:
            raise ValueError(
                f"held_out has shape {list(held_out.shape)}: give [rows, context], as kit.sae.pack makes them"
            )
        if held_out.is_floating_point() or not 0 <= int(held_out.min()) <= int(held_out.max()) < model.cfg.d_vocab:
            raise ValueError(
                f"held_out holds {held_out.dtype} from {held_out.min()} to "
                f"{held_out.max()}: give token ids below {model.cfg.d_vocab}"
            )
        return held_out.long().to(model.cfg.device)
    try:
        return pack(model, held_out, training.source.tokens.shape[1])
    except ValueError as error:
        raise ValueError(f"held_out: {error}") from error
