"""What stands between a training and its view: one thread, and a queue between its steps.

Knows no widget. What would disturb a step (a new sparsity, a copy of the weights) waits until the
step is done; while nothing trains it is done at once.
"""

from __future__ import annotations

import atexit
import math
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kit.sae.training import Report, Training
from kit.widgets.panel.controller import holds, one_line, refuse_held
from kit.widgets.training.held_out import HeldOut, Look

_SHARE = 0.08  # of the time that training takes, at most, goes into looking at it
_BUSY: weakref.WeakSet[Training] = weakref.WeakSet()  # those that a thread trains
_ENTRY = threading.Lock()  # of _BUSY
_LIVE: weakref.WeakSet[TrainingRun] = weakref.WeakSet()


class TrainingRun:
    """A training in the background.

    Attributes:
        selected, latent: what :attr:`look` is of; ``pinned``: the latent was chosen by a person.
        reports: a :class:`kit.sae.Report` every so many steps.
        recovered: CE loss recovered, by step and name.
        look: the last look at the held-out text.
        error: what ended the last run, if anything did.
        trained, looked: seconds in steps, and in looking while it trained.
    """

    def __init__(
        self,
        training: Training,
        held: HeldOut,
        on_change: Callable[[], None],
        *,
        folder: str | Path | None,
        every: int,
        refresh: float,
    ) -> None:
        """Start nothing yet.

        Args:
            on_change: draws; called on the thread at most once in ``refresh`` seconds, and at the
                end; while nothing trains, on the caller's.
            folder, every: see :class:`kit.widgets.TrainingView`.
        """
        self.training, self.held, self.on_change = training, held, on_change
        self.folder, self.every, self.refresh = folder, every, refresh
        self.selected, self.latent, self.pinned = list(training.trainers)[-1], 0, False
        self.reports: list[Report] = []
        self.recovered: dict[tuple[int, str], float] = {}
        self.look: Look | None = None
        self.error: Exception | None = None
        self.trained = self.looked = 0.0
        self.served = 0  # tokens, by this run: for the rate
        self.guard = threading.RLock()  # of the choice, the queue and the thread; never for a step
        self.pending: list[Callable[[], None]] = []
        self._thread: threading.Thread | None = None
        self._stop, self._ended = threading.Event(), threading.Event()
        self._drawn = self._draw_cost = self._look_cost = self._ce_cost = 0.0
        _LIVE.add(self)

    @property
    def models(self) -> Sequence[Any]:
        """Those whose activations are trained on."""
        return getattr(self.training.source, "models", [self.training.source.model])

    @property
    def running(self) -> bool:
        """Whether a thread trains."""
        return self._thread is not None

    def start(self) -> None:
        """Train on, in a thread; nothing if it does.

        Raises:
            RuntimeError: another thread trains the same ``Training``.
        """
        with self.guard, _ENTRY:
            if self.running:
                return
            if self.training in _BUSY:
                raise RuntimeError("this Training is trained by another view: stop that one first")
            _BUSY.add(self.training)
            self.error = None
            self._stop.clear()
            self._ended.clear()
            self._thread = threading.Thread(target=self._work, name="kit-training", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End after the step under way."""
        self._stop.set()

    def join(self, timeout: float) -> bool:
        """Wait for the thread, so many seconds (within :func:`kit.steer` none); whether nothing
        runs now."""
        # no Thread.join: Python 3.11 takes a thread for ended whose join was interrupted
        if self.running and threading.current_thread() is not self._thread and not any(map(holds, self.models)):
            self._ended.wait(timeout)
        return not self.running

    def wait(self, timeout: float | None = None) -> None:
        """Block until nothing trains; raises as :meth:`kit.widgets.TrainingView.run`."""
        refuse_held(*self.models)
        end = math.inf if timeout is None else time.monotonic() + timeout
        try:
            while not self.join(0.1):  # in bits, so that an interrupt is heard on any system
                if time.monotonic() > end:
                    raise TimeoutError(f"training is not done within {timeout} seconds")
        except KeyboardInterrupt:
            self.stop()
            self.join(120.0)  # the step under way, and the checkpoint
            raise
        with self.guard:  # the last drawing is done
            error = self.error
        if error is not None:
            raise RuntimeError(f"training failed: {one_line(error)}") from error

    def do(self, job: Callable[[], None]) -> None:
        """Between two steps if something trains, else now."""
        with self.guard:
            if self.running and threading.current_thread() is not self._thread:
                self.pending.append(job)
            else:
                job()

    def renew(self) -> None:
        """Look at the selected dictionary as it is now, and draw; not during a step."""
        step = self.training.step
        look = self.held.look(
            self.training.dictionary(self.selected), step, self.latent if self.pinned else None, before=self.latent
        )
        with self.guard:  # the choice may have changed meanwhile; another look is then on its way
            if look.name != self.selected or (self.pinned and look.latent != self.latent):
                return
            self.look, self.latent = look, look.latent
        self._draw()

    def _draw(self) -> None:
        began = time.monotonic()
        self.on_change()
        self._drawn = time.monotonic()
        self._draw_cost = self._drawn - began

    def _work(self) -> None:
        try:
            self._train()
        except Exception as error:
            self.error = error
        with self.guard:
            with _ENTRY:
                _BUSY.discard(self.training)
            self._thread = None
            try:
                self._clear_queue()
                self.on_change()
            except Exception as error:
                self.error = self.error or error
        self._ended.set()

    def _clear_queue(self) -> None:
        with self.guard:
            jobs, self.pending = self.pending, []
        for job in jobs:
            job()

    def _train(self) -> None:
        t = self.training
        self._ce_cost = self._ce_cost or self._timed(self.held.read, False) * self._passes()
        tenth, before = max(1, t.steps // 10), t.step
        while t.step < t.steps and not self._stop.is_set():
            if self.pending:
                self._timed(self._clear_queue)
            began, served = time.monotonic(), t.source.served
            outputs = t.advance()
            self.trained += time.monotonic() - began
            self.served += t.source.served - served
            end, point = t.step == t.steps, t.step % tenth == 0
            if end or point or t.step % self.every == 0:
                self._timed(partial(self._report, outputs))
            if point and not end:
                if self.folder is not None:
                    t.save(self.folder)
                if self._affordable(self._ce_cost):
                    first = not self.recovered
                    took = self._timed(lambda: self._recover([self.selected]))
                    self._ce_cost = took / 3 if first else took
            # a drawing is to take a fiftieth of the time at most, which leaves the rest for looks
            wait = max(self.refresh, 50 * self._draw_cost)
            if not end and time.monotonic() - self._drawn >= wait:
                if self._affordable(self._look_cost):
                    self._look_cost = self._timed(self.renew)
                else:
                    self._timed(self._draw)
        if t.step > before and self.folder is not None:
            t.save(self.folder)
        if t.step > before and t.step == t.steps:
            self._draw()  # the measures take a moment
            self._recover(list(t.trainers))
        self.renew()

    def _report(self, outputs: Any) -> None:
        self.reports.append(self.training.report(outputs))

    def _affordable(self, cost: float) -> bool:
        """Whether looking keeps to its share of the time."""
        return self.looked + cost <= _SHARE * self.trained

    def _timed(self, job: Callable[[], None], counts: bool = True) -> float:
        began = time.monotonic()
        job()
        took = time.monotonic() - began
        self.looked += took * counts
        return took

    def _passes(self) -> float:
        """How much the first CE loss recovered (three whole passes) costs, in times what reading
        cost (one pass of all rows, up to the last site)."""
        held = self.held
        layers = held.model.cfg.n_layers / (1 + max(site.layer for site in held.sites))
        return 3 * layers * min(1.0, held.ce_rows / len(held.tokens))

    def _recover(self, names: Sequence[str]) -> None:
        for name in names:
            found = self.held.recovered(self.training.dictionary(name))
            self.recovered[self.training.step, name] = found


@atexit.register
def _stop_all() -> None:
    """A daemon thread inside torch while the interpreter ends can bring the process down."""
    for run in list(_LIVE):
        run.stop()
    for run in list(_LIVE):
        run.join(5.0)
