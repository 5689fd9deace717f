"""What stands between a panel and the model: one worker, and the newest request wins.

Knows no widget. Callbacks, whatever thread they run on, only :meth:`Controller.post`; one daemon
thread runs the model and hands out frames. A worker that has had nothing to do for a while ends
and is started again by the next request, so panels of re-run cells leave no threads behind.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from kit.models.bridge import runtime
from kit.models.positions import Positions
from kit.models.tokens import chat_tokens, text_tokens
from kit.steering import generation
from kit.steering.intervention import Intervention, Op
from kit.steering.results import Receipt, Row

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_LIVE: weakref.WeakSet[Controller] = weakref.WeakSet()
_IDLE = 20.0  # seconds without work after which a worker thread ends


@dataclass(frozen=True)
class Arm:
    """One text of a run.

    Attributes:
        title, subtitle: its heading.
        coefficients: one number (or None, off) for each vector; None is the unsteered model.
        instruction: words put before the prompt of the unsteered model, instead of steering.
    """

    title: str
    coefficients: tuple[float | None, ...] | None = None
    instruction: str | None = None
    subtitle: str = ""


@dataclass(frozen=True)
class Request:
    """Everything that a run depends on; arguments as in :func:`kit.stream`.

    Attributes:
        chat: the prompt is a user's message, for a model with a chat template; else plain text.
        system: a system message of the chat.
    """

    prompt: str
    arms: tuple[Arm, ...]
    vectors: tuple[Intervention, ...] = ()
    chat: bool = True
    system: str | None = None
    positions: Positions = "all"
    op: Op = "add"
    max_new_tokens: int = 40
    temperature: float = 0.0
    seed: int = 0
    measure: bool = True


@dataclass(frozen=True)
class Frame:
    """The state of a run at one moment.

    Attributes:
        id: what :meth:`Controller.post` returned for the request.
        rows: one for each arm, as far as it has come; copies, safe to keep.
        receipt: of the steered arms.
        done: nothing more will come.
        stopped: it ended because :meth:`Controller.stop` was called.
        error: what went wrong, in one line.
        seconds: since the run started.
        first_token: seconds from the request's post to its first token.
        steps: tokens decoded, counted once for all arms of a batch.
    """

    id: int
    request: Request
    rows: tuple[Row, ...]
    receipt: Receipt
    done: bool = False
    stopped: bool = False
    error: str | None = None
    seconds: float = 0.0
    first_token: float | None = None
    steps: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Decode steps a second, all rows of a step counted once; 0 before the first."""
        return self.steps / self.seconds if self.seconds > 0 else 0.0


@dataclass
class _Run:
    """A request on its way, with the event that ends it within one token."""

    id: int
    request: Request
    posted: float
    stop: threading.Event


class Controller:
    """Runs requests on a model, never two at once, the newest first and only."""

    def __init__(
        self,
        model: TransformerBridge,
        on_frame: Callable[[Frame], None],
        *,
        fps: float = 15,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start nothing yet.

        Args:
            on_frame: called on the worker thread, at most ``fps`` times a second and once more at
                a run's end. What it raises ends that run and is kept in ``failure``.
            clock: seconds, for the frame rate and the times in frames.
        """
        self.model, self.on_frame, self.clock = model, on_frame, clock
        self.interval = 1 / fps
        self.started = self.finished = self.cancelled = 0
        self.failure: BaseException | None = None
        self._changed = threading.Condition()
        self._next: _Run | None = None
        self._running: _Run | None = None
        self._jobs: deque[Callable[[], None]] = deque()
        self._busy = False
        self._closed = False
        self._thread: threading.Thread | None = None
        self._last_id = 0
        self._last_frame = float("-inf")
        self._worded: tuple[Any, Row] | None = None
        _LIVE.add(self)

    def post(self, request: Request) -> int:
        """Ask for a run; returns its id at once. A run that is under way ends within one token."""
        with self._changed:
            self._last_id += 1
            self._next = _Run(self._last_id, request, self.clock(), threading.Event())
            self._interrupt()
            self._wake()
            return self._last_id

    def call(self, job: Callable[[], None]) -> None:
        """Run something else on the worker (a calibration); it waits its turn and keeps it."""
        with self._changed:
            self._jobs.append(job)
            self._wake()

    def stop(self) -> None:
        """End the run within one token; one that has not begun ends without a token."""
        with self._changed:
            if self._next is not None:  # not dropped: its last frame says that it was stopped
                self._next.stop.set()
            self._interrupt()
            self._changed.notify_all()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until nothing runs or waits; False when the time is over first.

        Raises:
            RuntimeError: on the worker itself, or as :func:`refuse_held`.
        """
        refuse_held(self.model)
        if threading.current_thread() is self._thread:
            raise RuntimeError("wait() on the worker thread would wait for itself: call it from another")
        with self._changed:
            return self._changed.wait_for(lambda: not self.busy, timeout)

    @property
    def busy(self) -> bool:
        """Whether something runs or waits to run."""
        return bool(self._busy or self._next or self._jobs)

    def close(self, timeout: float = 5.0) -> None:
        """Stop for good, and wait until the worker has ended."""
        if self._closed:
            return
        with self._changed:
            self._closed, self._next = True, None
            self._jobs.clear()
            self._interrupt()
            self._changed.notify_all()
            thread = self._thread
        # one that waits for this thread's lock ends when the lock is given back
        if thread is not None and thread is not threading.current_thread() and not holds(self.model):
            thread.join(timeout)
        self.model, self._worded = None, None

    def _interrupt(self) -> None:
        if self._running is not None:
            self._running.stop.set()

    def _wake(self) -> None:
        if self._closed:
            self._next = None
            self._jobs.clear()
            raise RuntimeError("this panel is closed; make a new one")
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="kit-panel", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._busy, self._running = False, None
                self._changed.notify_all()
                has_work = self._changed.wait_for(lambda: self._next or self._jobs or self._closed, _IDLE)
                if self._closed or not has_work:
                    self._thread = None
                    return
                self._busy = True
                self._running, self._next = self._next, None
                job = self._jobs.popleft() if self._running is None else partial(self._execute, self._running)
            try:
                job()
            except Exception as error:
                self.failure = error

    def _execute(self, run: _Run) -> None:
        self.failure = None
        start = self.clock()
        frame = Frame(run.id, run.request, (), Receipt())
        if run.stop.is_set():
            self._emit(replace(frame, done=True, stopped=True))
            return
        self.started += 1
        try:
            for frame in self._frames(run, start):
                if run.stop.is_set():
                    break
                if self.clock() - self._last_frame >= self.interval and not self._emit(frame):
                    run.stop.set()
        except Exception as error:
            self._emit(replace(frame, done=True, error=one_line(error)))
            self.finished += 1
            return
        stopped = run.stop.is_set()
        self.cancelled += stopped
        self.finished += not stopped
        if self._next is None:  # otherwise the next run draws over it
            seconds = self.clock() - start
            self._emit(replace(frame, done=True, stopped=stopped, seconds=seconds))

    def _emit(self, frame: Frame) -> bool:
        self._last_frame = self.clock()
        try:
            self.on_frame(frame)
        except Exception as error:
            self.failure = error
            return False
        return True

    def _frames(self, run: _Run, start: float) -> Iterator[Frame]:
        """A frame after each token: the steered arms in one batch, then those in words."""
        request, steps, first = run.request, 0, None
        rows = [Row(arm.coefficients, Receipt()) for arm in request.arms]
        batch = [i for i, arm in enumerate(request.arms) if arm.instruction is None]
        worded = [i for i, arm in enumerate(request.arms) if arm.instruction is not None]
        receipt = Receipt()

        def frame() -> Frame:
            copies = tuple(
                replace(row, tokens=[*row.tokens], pieces=[*row.pieces], measures=[*row.measures]) for row in rows
            )
            seconds = self.clock() - start
            return Frame(run.id, request, copies, receipt, seconds=seconds, first_token=first, steps=steps)

        for group in [batch, *[[i] for i in worded]]:
            if not group or run.stop.is_set():
                continue
            key = _wording(request, request.arms[group[0]])
            if self._worded is not None and group is not batch and self._worded[0] == key:
                rows[group[0]] = self._worded[1]
                yield frame()
                continue
            stream = self._stream(run, [request.arms[i] for i in group])
            for i, row in zip(group, stream.rows, strict=True):
                rows[i] = row
            if group is batch:
                receipt = stream.receipt
            for _ in stream:
                steps += 1
                first = self.clock() - run.posted if first is None else first
                yield frame()
            if group is not batch and not run.stop.is_set():
                self._worded = (key, rows[group[0]])

    def _stream(self, run: _Run, arms: list[Arm]) -> Any:
        request = run.request
        words = arms[0].instruction
        text = request.prompt if words is None else f"{words}\n\n{request.prompt}"
        if not request.prompt.strip():
            raise ValueError("the prompt is empty: write one")
        if request.chat:
            tokens = chat_tokens(self.model, text, request.system)
        else:
            tokens = text_tokens(self.model, text)
        return generation.stream(
            self.model,
            tokens,
            request.vectors if words is None else (),
            [arm.coefficients for arm in arms],
            positions=request.positions,
            op=request.op,
            max_new_tokens=request.max_new_tokens,
            temperature=request.temperature,
            seed=request.seed,
            measure=request.measure and words is None,
            stop_event=run.stop,
        )


def _wording(request: Request, arm: Arm) -> Any:
    """What a text asked for in words depends on: no slider."""
    return replace(request, arms=(arm,), vectors=(), positions="all", op="add", measure=False)


def holds(model: TransformerBridge) -> bool:
    """Whether this thread has the model for itself, within :func:`kit.steer`, say."""
    lock: Any = runtime(model).lock
    return bool(lock._is_owned())  # as threading.Condition asks


def refuse_held(*models: TransformerBridge) -> None:
    """To be called before waiting for another thread that runs one of the models.

    Raises:
        RuntimeError: this thread holds it, so neither would ever go on.
    """
    if any(map(holds, models)):
        raise RuntimeError(
            "this thread holds the model (a kit.steer block is open), and what runs in the background waits for it: "
            "wait after the block, or start with wait=False"
        )


def one_line(error: Exception) -> str:
    """An error as a line for a view."""
    return " ".join(str(error).split()) or type(error).__name__


@atexit.register
def _close_all() -> None:
    """A daemon thread inside torch while the interpreter ends can bring the process down."""
    for controller in list(_LIVE):
        controller.close(2.0)
