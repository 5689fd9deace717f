"""The live panel: sliders on one side of a :class:`Controller`, streaming text on the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ipywidgets as w

from kit.base.checks import plain
from kit.base.html import inline, isolated, message
from kit.models.bridge import runtime
from kit.models.hook_points import hooks_left
from kit.models.positions import Positions
from kit.steering import render, sweep
from kit.steering.dose import Dose
from kit.steering.intervention import Intervention, Op
from kit.steering.results import Receipt, Row
from kit.widgets import frame
from kit.widgets.frame import LiveView
from kit.widgets.panel import arms, markup
from kit.widgets.panel.controller import Frame, Request
from kit.widgets.panel.controls import WORDS, Controls
from kit.widgets.panel.files import load, save
from kit.widgets.panel.vector_row import VectorRow
from kit.widgets.panel.word_field import WordField

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from kit.lens.lens import Lens

_HINT = "Move a slider or press Generate."


class SteeringPanel(LiveView):
    """Steer a model by hand and watch: ``SteeringPanel(model, vectors, "How are you?")``.

    Attributes:
        rows, receipt: results of the latest run (:class:`kit.steering.results.Row`).
        frozen_html: the present state as HTML that needs no kernel.
        controls: every input widget, for notebooks that want to set or hide one.
        vector_rows: a row of inputs for each vector.
        frame: the last one that was drawn (:class:`kit.widgets.Frame`); None before the first.
    """

    _called = "panel"

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
        lens: Lens | None = None,
    ) -> None:
        """Nothing is generated until a slider moves, Generate is pressed or :meth:`run` is called.

        Args:
            vectors: one intervention or several; each gets a row with a slider.
            coefficients: where the sliders stand at first (default 0), one number or one for each.
            lens: of this model; typed words then become sliders, see :meth:`take_words`.

        Raises:
            ValueError: a vector of another model, as many coefficients as there are no vectors, or
                what no control can show; TypeError: ``model`` is no ``TransformerBridge``.
        """
        vectors = list(vectors) if isinstance(vectors, Sequence) else [vectors]
        coefficients = 0.0 if coefficients is None else plain(coefficients)
        start = [coefficients] * len(vectors) if isinstance(coefficients, int | float) else list(coefficients)
        if len(start) != len(vectors):
            raise ValueError(f"{len(start)} coefficients for {len(vectors)} vectors")
        chat = chat and bool(runtime(model) and model.tokenizer.chat_template)
        c = Controls(prompt, chat, positions, op, max_new_tokens, temperature, seed)
        for vector in vectors:
            arms.layers_of(model, vector)  # refused before there is a view that would keep the model
        super().__init__(model)
        self.frame: Frame | None = None
        self._plan, self._asked = arms.Plan((), ()), WORDS
        self._random: dict[Any, Intervention] = {}
        self.controls = c
        c.chat.disabled = not self._chats
        self._badge, self._receipt.value = w.HTML(), render.receipt(_HINT)
        self._columns: list[w.HTML] = []
        self._grid = w.GridBox(layout=w.Layout(grid_gap="10px", margin="8px 0", width="100%"))
        self._vectors = w.VBox(layout=w.Layout(width="100%"))
        self._vectors.add_class("kit-bar")
        self._arrange(
            "Steering panel",
            frame.head("Steering panel", inline(self._name), self._badge, self._status),
            c.ask,
            c.settings,
            self._vectors,
            c.look,
            self._message,
            self._grid,
            self._receipt,
            w.HTML(f'<div style="font-size:12px;opacity:.75">{render.meter_legend()}</div>'),
            c.files,
            freeze=c.freeze,
        )
        for vector, coefficient in zip(vectors, start, strict=True):
            self.add(vector, coefficient)
        self._refresh_badge()
        self._lay_out()
        c.generate.on_click(lambda _button: self._post())
        c.stop.on_click(lambda _button: self.stop())
        c.save.on_click(lambda _button: self._try(self._save))
        c.load.on_click(lambda _button: self._try(self._load, "nothing loaded: "))
        for control in c.that_rerun():
            control.observe(lambda _change: self._post_unless_quiet(), "value")
        if lens is not None:
            self.take_words(lens)

    # what a notebook calls

    def set(self, name: str, coefficient: float) -> None:
        """Move the slider of a vector, as a hand would."""
        self._row(name).set(coefficient)

    def add(self, vector: Intervention, coefficient: float = 0.0) -> None:
        """Add a vector; a name that is taken gets a number.

        Raises:
            ValueError: it does not fit this model.
        """
        layers = arms.layers_of(self._lm, vector)
        taken = [row.vector.name for row in self.vector_rows]
        if vector.name in taken:
            vector = replace(vector, name=arms.unique(vector.name, taken))  # type: ignore[type-var]
        row = VectorRow(vector, layers, coefficient)
        row.on_change(self._post_unless_quiet)
        row.remove.on_click(lambda _button: self._remove(row))
        row.find.on_click(lambda _button: self._calibrate(row))
        self._vectors.children = (*self.vector_rows, row)
        self._offer_names()

    def put(self, vector: Intervention, coefficient: float) -> str:
        """Put a vector on the panel at a coefficient, and run.

        One that is there already, whatever its name, gets that coefficient.

        Returns:
            The name that it has on the panel.

        Raises:
            ValueError: it does not fit this model.
        """
        same = arms.identity(vector)
        row = next((row for row in self.vector_rows if arms.identity(row.vector) == same), None)
        if row is None:
            self.add(vector, coefficient)
            row = self.vector_rows[-1]
        else:
            row.on.value = True
            row.set(coefficient)
        self.run(wait=False)
        return row.vector.name

    def show_below_vectors(self, widget: w.Widget) -> None:
        """Show one more widget, below the vectors (a gallery's field to drop ranks into, say)."""
        at = self.children.index(self._vectors) + 1
        self.children = (*self.children[:at], widget, *self.children[at:])

    def take_words(self, lens: Lens, coefficient: float = 0.15) -> None:
        """Show a field in which a word, or two with > between, becomes a slider at a coefficient;
        once, whoever asks.

        Raises:
            ValueError: a lens of another model.
        """
        if lens.model is not self._lm:
            raise ValueError("lens: it is of another model than the panel's")
        if not any(isinstance(child, WordField) for child in self.children):
            self.show_below_vectors(WordField(lens, lambda vector: self.put(vector, coefficient), self._try))

    def remove(self, name: str) -> None:
        """Take a vector off the panel."""
        self._remove(self._row(name))

    @property
    def vector_rows(self) -> tuple[VectorRow, ...]:
        """The rows of the vectors, from top to bottom."""
        return self._vectors.children

    @property
    def rows(self) -> list[Row]:
        """Rows of the last run; empty before the first."""
        return list(self.frame.rows) if self.frame else []

    @property
    def receipt(self) -> Receipt:
        """What the last run really steered; an empty receipt before the first."""
        return self.frame.receipt if self.frame else Receipt()

    @property
    def has_run(self) -> bool:
        return self.frame is not None

    @property
    def frozen_html(self) -> str:
        with self._guard:
            if self.frame is None:
                return message(f"This panel has not run yet. {_HINT}")
            return markup.frozen(self._name, self.frame, hooks_left(self._lm))

    # from the controls to the worker

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
            self._status.value = markup.status("generating")
            plan = self._plan
            self._id = self.controller.post(Request(arms=plan.arms, vectors=plan.vectors, **self.controls.values()))

    def _setting(self) -> list[tuple[Intervention, float]]:
        return [(r.vector, r.coefficient) for r in self.vector_rows if r.on.value]

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
            instruction=self._words(setting) if c.words.value else None,
        )

    def _words(self, setting: arms.Setting) -> str | None:
        """What to ask for in words: what was written, or else what the setting is named by."""
        field = self.controls.instruction
        if field.value != self._asked:
            return field.value
        words = arms.in_words(setting, WORDS)
        if words is not None:
            with self._silent():
                field.value = self._asked = words
        return words

    def _control_of(self, vector: Intervention, index: int) -> Intervention:
        if not hasattr(vector, "random"):
            raise ValueError(f"{vector.name!r} is no vector: there is no random one of its norm")
        key = (vector, 1000 * self.controls.seed.value + index)  # one direction for each vector
        if key not in self._random:
            self._random[key] = replace(vector.random(key[1]), name=f"random for {isolated(vector.name)}")
        return self._random[key]

    def _row(self, name: str) -> VectorRow:
        for row in self.vector_rows:
            if row.vector.name == name:
                return row
        names = ", ".join(repr(row.vector.name) for row in self.vector_rows)
        raise ValueError(f"name={name!r}: this panel has {names or 'no vectors'}")

    def _remove(self, row: VectorRow) -> None:
        self._vectors.children = tuple(r for r in self.vector_rows if r is not row)
        frame.dispose(row)
        self._offer_names()
        self._post_unless_quiet()

    def _offer_names(self) -> None:
        with self._silent():
            self.controls.offer([row.vector.name for row in self.vector_rows])

    def _calibrate(self, row: VectorRow) -> None:
        def job() -> None:
            try:
                found = sweep.calibrate(self._lm, row.vector, render.NEAR)
                row.set_range(Dose(low=found.low, high=found.high, target=found.target_kl))
                self._say("")
            except Exception as error:
                self._say(f"no near range for {isolated(row.vector.name)}: {error}", error=True)
            finally:
                row.find.disabled = False

        row.find.disabled = True
        self._say(f"Finding the near range of {isolated(row.vector.name)} …")
        self.controller.call(job)

    def _save(self) -> None:
        chosen = self.controls.save_what.value
        vector = self._row(chosen).vector if chosen else arms.combination(self._setting())
        self._say(f"Saved {isolated(vector.name)} as {save(vector)}")

    def _load(self) -> None:
        vector = load(self.controls.path.value, self._lm)
        self.add(vector)
        self._say(f"Loaded {isolated(vector.name)} ({self.vector_rows[-1].where})")

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

    def _take(self, frame: Frame) -> None:
        if frame.error:
            self._say(frame.error, error=True)
        if frame.rows:
            self.frame = frame
            self._draw(frame)
        if frame.done:
            self._refresh_badge()
            word = "stopped" if frame.stopped else "failed" if frame.error else "done"
            self._status.value = markup.status(word, frame)

    def _draw(self, frame: Frame) -> None:
        lines = self._lines(len(frame.rows))
        waiting = "…" if not frame.done else "" if frame.stopped else "(ends at once)"
        for column, arm, row in zip(self._columns, frame.request.arms, frame.rows, strict=False):
            column.value = render.column(
                arm.title, arm.subtitle, row, busy=not frame.done, tooltips=frame.done, min_lines=lines, waiting=waiting
            )
        self._receipt.value = render.receipt(frame.receipt)

    def _refresh_badge(self) -> None:
        self._badge.value = render.badge(hooks_left(self._lm))
