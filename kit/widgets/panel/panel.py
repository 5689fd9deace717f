"""The live panel: sliders on one side of a :class:`Controller`, streaming text on the other.

A callback may run on a kernel's subshell thread while a cell runs; it reads the controls, posts a
request and returns. The worker calls :meth:`SteeringPanel._show`, the only place that writes text.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ipywidgets as w

from kit.base.html import message
from kit.models.hook_points import hooks_left
from kit.models.positions import Positions
from kit.steering import render
from kit.steering.intervention import Intervention, Op
from kit.steering.results import Receipt, Row
from kit.widgets import frame as style
from kit.widgets.panel import arms
from kit.widgets.panel import arms as state
from kit.widgets.panel.controller import Controller, Frame, Request
from kit.widgets.panel.controls import Controls
from kit.widgets.panel.files import load, save
from kit.widgets.panel.vector_row import VectorRow

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


_HINT = "Move a slider or press Generate."


class SteeringPanel(w.VBox):
    """Steer a model by hand and watch: ``SteeringPanel(model, vectors, "How are you?")``.

    Attributes:
        rows, receipt: results of the latest run (:class:`kit.steering.results.Row`).
        frozen_html: the present state as HTML that needs no kernel.
        controls: every input widget, for notebooks that want to set or hide one.
    """

    def __init__(
        self,
        model: TransformerBridge,
        vectors: Intervention | Sequence[Intervention] = (),
        prompt: str = "How are you feeling today?",
        *,
        coefficients: Sequence[float] | float | None = None,
        positions: Positions = "all",
        op: Op = "add",
        chat: bool = True,
        max_new_tokens: int = 40,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Nothing is generated until a slider moves, Generate is pressed or :meth:`run` is called.

        Args:
            vectors: one intervention or several; each gets a row with a slider.
            coefficients: where the sliders stand at first (default 0), one number or one for each.

        Raises:
            ValueError: a vector of another model, or as many coefficients as there are no vectors.
        """
        vectors = list(vectors) if isinstance(vectors, Sequence) else [vectors]
        start = (
            [coefficients] * len(vectors)
            if isinstance(coefficients, int | float)
            else (list(coefficients) if coefficients is not None else [0.0] * len(vectors))
        )
        if len(start) != len(vectors):
            raise ValueError(f"{len(start)} coefficients for {len(vectors)} vectors")
        self._lm = model
        self._guard = threading.RLock()  # callbacks, cells and the worker all come here
        self._plan = arms.Plan((), (), ())
        self._frame: Frame | None = None
        self._error: str | None = None
        self._id, self._quiet = 0, True
        self._outputs: list[Any] = []
        self._random: dict[Any, Intervention] = {}
        self.controller = Controller(model, self._show)
        self.controls = Controls(
            prompt, chat and bool(model.tokenizer.chat_template), positions, op, max_new_tokens, temperature, seed
        )
        if not model.tokenizer.chat_template:
            self.controls.chat.disabled = True
        self._name = str(model.cfg.model_name or "model")
        self._badge, self._status, self._message = w.HTML(), w.HTML(), style.message()
        self._receipt = w.HTML(render.receipt(_HINT))
        self._columns: list[w.HTML] = []
        self._grid = w.GridBox(layout=w.Layout(grid_gap="10px", margin="8px 0", width="100%"))
        self._vectors = w.VBox(layout=w.Layout(width="100%"))
        self._frozen_area = w.HTML()
        super().__init__()
        self.children = self.controls.arrange(
            style.frame("Steering panel"),
            self._name,
            self._badge,
            self._status,
            self._vectors,
            self._message,
            self._grid,
            self._receipt,
            self._frozen_area,
        )
        self.add_class("kit-panel")
        for vector, coefficient in zip(vectors, start, strict=True):
            self.add(vector, coefficient)
        self._refresh_badge()
        self._lay_out()
        self._connect()
        self._quiet = False

    # what a notebook calls

    def run(self, wait: bool = True, timeout: float | None = None) -> None:
        """Generate with the present settings; with ``wait`` return when the texts are there.

        Raises:
            RuntimeError: the run failed; the text says why.
            TimeoutError: it is not done in ``timeout`` seconds (it goes on).
        """
        self._post()
        if not wait:
            return
        try:
            if not self.controller.wait(timeout):
                raise TimeoutError(f"the panel has not finished within {timeout} seconds")
        except KeyboardInterrupt:
            self.controller.stop()
            raise
        failure = self._error or self.controller.failure
        if failure:
            raise RuntimeError(f"the panel's run failed: {failure}")

    def set(self, name: str, coefficient: float) -> None:
        """Move the slider of a vector, as a hand would."""
        self._row(name).set(coefficient)

    def add(self, vector: Intervention, coefficient: float = 0.0) -> None:
        """Add a vector; a name that is taken gets a number.

        Raises:
            ValueError: it does not fit this model.
        """
        from kit.steering.generation import session_of

        session_of(self._lm, [vector], [(0.0,)], "all", "add")  # refuses what does not fit
        taken = [row.vector.name for row in self._vectors.children]
        if vector.name in taken:
            vector = replace(vector, name=arms.unique(vector.name, taken))  # type: ignore[type-var]
        layers = sorted({part.layer for part in vector.parts(self._lm)})
        row = VectorRow(
            vector,
            layers,
            coefficient,
            on_change=self._post_unless_quiet,
            on_remove=self._remove,
            on_calibrate=self._calibrate,
        )
        self._vectors.children = (*self._vectors.children, row)
        self._offer_names()

    def remove(self, name: str) -> None:
        """Take a vector off the panel."""
        self._remove(self._row(name))

    def stop(self) -> None:
        """End the run within one token."""
        self.controller.stop()

    def freeze(self) -> Any:
        """The present state as HTML that stays in the saved notebook: end a cell with it."""
        from IPython.display import HTML

        return HTML(self.frozen_html)

    def close(self) -> None:
        """Stop, end the worker thread, and take the panel off the screen."""
        if "controller" in vars(self):  # a constructor that raised is closed too
            self.controller.close()
        super().close()

    @property
    def rows(self) -> list[Row]:
        """Rows of the last run; empty before the first."""
        return list(self._frame.rows) if self._frame else []

    @property
    def receipt(self) -> Receipt:
        """What the last run really steered; an empty receipt before the first."""
        return self._frame.receipt if self._frame else Receipt()

    @property
    def frozen_html(self) -> str:
        """The last run as HTML that needs no kernel."""
        with self._guard:
            if self._frame is None:
                return message(f"This panel has not run yet. {_HINT}")
            return state.frozen(self._name, self._frame, self._plan.subtitles, hooks_left(self._lm))

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(**options) or {}
        if self._frame is not None:  # for readers without a kernel
            bundle["text/html"] = self.frozen_html
        return bundle

    def _ipython_display_(self) -> None:
        from IPython.display import HTML, display

        display(self._repr_mimebundle_(), raw=True)
        # an output of the cell that Freeze can fill later: unlike a widget it is saved
        self._outputs.append(display(HTML(""), display_id=True))

    # from the controls to the worker

    def _connect(self) -> None:
        c = self.controls
        c.generate.on_click(lambda _button: self._post())
        c.stop.on_click(lambda _button: self.stop())
        c.freeze.on_click(lambda _button: self._freeze())
        c.save.on_click(lambda _button: self._save())
        c.load.on_click(lambda _button: self._load())
        for control in c.that_rerun():
            control.observe(lambda _change: self._post_unless_quiet(), "value")

    def _post_unless_quiet(self) -> None:
        if not self._quiet:
            self._post()

    def _post(self) -> None:
        with self._guard:
            try:
                self._plan = self._make_plan()
            except ValueError as error:
                self._error = str(error)
                self._say(self._error, error=True)
                self.controller.stop()
                return
            self._error = None
            self._lay_out()
            self._say("")
            self._status.value = state.status("generating")
            self._id = self.controller.post(
                Request(arms=self._plan.arms, vectors=self._plan.vectors, **self.controls.values())
            )

    def _setting(self) -> list[tuple[Intervention, float]]:
        return [(r.vector, r.coefficient) for r in self._vectors.children if r.on.value]

    def _make_plan(self) -> arms.Plan:
        c, setting = self.controls, self._setting()
        if c.view.value == "ladder":
            if not c.ladder_of.value:
                return arms.setting_ladder(setting, c.rungs.value)
            row = self._row(c.ladder_of.value)
            return arms.vector_ladder(setting, row.vector, row.ends, c.rungs.value)
        return arms.side_by_side(
            setting,
            controls=[self._control_of(v, i) for i, (v, _) in enumerate(setting)] if c.random.value else (),
            negated=c.negated.value,
            instruction=c.instruction.value if c.words.value else None,
        )

    def _control_of(self, vector: Intervention, index: int) -> Intervention:
        if not hasattr(vector, "random"):
            raise ValueError(f"{vector.name!r} is no vector: there is no random one of its norm")
        key = (vector, 1000 * self.controls.seed.value + index)  # one direction for each vector
        if key not in self._random:
            self._random[key] = replace(vector.random(key[1]), name=f"random for {vector.name}")
        return self._random[key]

    def _row(self, name: str) -> VectorRow:
        for row in self._vectors.children:
            if row.vector.name == name:
                return row
        names = ", ".join(repr(r.vector.name) for r in self._vectors.children)
        raise ValueError(f"name={name!r}: this panel has {names or 'no vectors'}")

    def _remove(self, row: VectorRow) -> None:
        self._vectors.children = tuple(r for r in self._vectors.children if r is not row)
        self._offer_names()
        self._post_unless_quiet()

    def _offer_names(self) -> None:
        self._quiet, before = True, self._quiet
        self.controls.offer([row.vector.name for row in self._vectors.children])
        self._quiet = before

    def _calibrate(self, row: VectorRow) -> None:
        def job() -> None:
            from kit.steering.sweep import calibrate

            try:
                found = calibrate(self._lm, row.vector, render.STRONG)  # type: ignore[arg-type]
                row.set_range({"low": found.low, "high": found.high, "target_kl": found.target_kl})
                self._say("")
            except Exception as error:
                self._say(f"no safe range for {row.vector.name}: {error}", error=True)
            finally:
                row.find.disabled = False

        row.find.disabled = True
        self._say(f"Finding the safe range of {row.vector.name} …")
        self.controller.call(job)

    def _save(self) -> None:
        try:
            chosen = self.controls.save_what.value
            vector = arms.combination(self._setting()) if not chosen else (self._row(chosen).vector)
            self._say(f"Saved {vector.name} as {save(vector)}")
        except (TypeError, ValueError, OSError) as error:
            self._say(str(error), error=True)

    def _load(self) -> None:
        try:
            vector = load(self.controls.path.value, self._lm)
            self.add(vector)
            self._say(f"Loaded {vector.name} (layer {vector.layer})")
        except Exception as error:
            self._say(f"nothing loaded: {error}", error=True)

    def _freeze(self) -> None:
        self.last_frozen = self.frozen_html
        if self._outputs and not os.environ.get("SERVER_SOFTWARE", "").startswith("voila"):
            self._outputs[-1].update(self.freeze())
            self._say("Frozen below; it stays in the notebook when you save it.")
        else:
            self._frozen_area.value = self.last_frozen

    # from the worker to the screen

    def _lay_out(self) -> None:
        n = max(2, len(self._plan.arms))
        while len(self._columns) < n:
            column = w.HTML()
            column.add_class("kit-column")
            self._columns.append(column)
        wanted = tuple(self._columns[:n])
        if self._grid.children == wanted:
            return
        wide = {2: 260, 3: 200, 4: 170}.get(n, 148)
        self._grid.layout.grid_template_columns = f"repeat(auto-fit, minmax({wide}px, 1fr))"
        empty = Row(None, Receipt())
        titles = [arm.title for arm in self._plan.arms] or ["Unsteered", "Steered"]
        for title, column in zip(titles, wanted, strict=True):
            column.value = render.column(title, "", empty, waiting=_HINT, min_lines=self._lines(n))
        self._grid.children = wanted

    def _lines(self, columns: int) -> float:
        letters = {2: 62, 3: 40, 4: 29}.get(columns, 22)  # a line, in a notebook 1100 px wide
        return min(12, 1 + 4.6 * self.controls.tokens.value / letters)

    def _show(self, frame: Frame) -> None:
        """Draw a frame; called by the worker."""
        with self._guard:
            if frame.id != self._id:  # a newer request has been posted meanwhile
                return
            self._error = frame.error
            if frame.error:
                self._say(frame.error, error=True)
            if frame.rows:
                self._frame = frame
                self._draw(frame)
            if frame.done:
                self._refresh_badge()
                self._status.value = state.status(
                    "stopped" if frame.stopped else "failed" if frame.error else "done", frame
                )

    def _draw(self, frame: Frame) -> None:
        lines = self._lines(len(frame.rows))
        waiting = "…" if not frame.done else "" if frame.stopped else "(ends at once)"
        subtitles = self._plan.subtitles
        for i, (arm, row) in enumerate(zip(frame.request.arms, frame.rows, strict=True)):
            self._columns[i].value = render.column(
                arm.title, subtitles[i], row, busy=not frame.done, tooltips=frame.done, min_lines=lines, waiting=waiting
            )
        self._receipt.value = render.receipt(frame.receipt)

    def _refresh_badge(self) -> None:
        self._badge.value = render.badge(hooks_left(self._lm))

    def _say(self, text: str, *, error: bool = False) -> None:
        self._message.value = message(text, error=error)
