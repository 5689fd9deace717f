"""The panel's controller with a fake stream and a fake clock: no model, no widget, no browser."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kit.steering.generation import Stream
from kit.steering.results import Receipt, Row
from kit.widgets.panel import controller as module
from kit.widgets.panel.controller import Arm, Controller, Frame, Request

WAIT = 20.0


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class FakeStreams:
    """Stands in for ``kit.steering.generation.stream``; a token takes ``tick`` seconds of the clock."""

    def __init__(self, clock: Clock, tick: float = 0.0) -> None:
        self.clock, self.tick = clock, tick
        self.running = self.most = 0
        self.calls: list[dict[str, Any]] = []
        self.after_stop = 0
        self.gate: threading.Semaphore | None = None  # one release, one token
        self.fail: Exception | None = None

    def __call__(self, model: Any, tokens: Any, vectors: Any, table: Any, **options: Any) -> Any:
        self.calls.append({"tokens": tokens, "vectors": vectors, "table": table, **options})
        rows = [Row(row, Receipt()) for row in table]
        stop = options["stop_event"]

        def steps() -> Iterator[int]:
            self.running += 1
            self.most = max(self.most, self.running)
            try:
                for i in range(options["max_new_tokens"]):
                    if self.gate is not None:
                        self.gate.acquire(timeout=WAIT)
                    if self.fail and i == 1:
                        raise self.fail
                    self.after_stop += stop.is_set()
                    if stop.is_set():
                        return
                    self.clock.now += self.tick
                    for row in rows:
                        row.tokens.append(i)
                        row.pieces.append(f"{row.coefficients} ")
                    yield i
            finally:
                self.running -= 1

        return Stream(steps(), rows, [], Receipt())


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def streams(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> FakeStreams:
    fake = FakeStreams(clock)

    monkeypatch.setattr(module.generation, "stream", fake)
    monkeypatch.setattr(module, "text_tokens", lambda model, text: (model, text))
    return fake


@pytest.fixture
def make(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Controller, list[Frame]]]]:
    made = []
    beside = SimpleNamespace(lock=threading.RLock())
    monkeypatch.setattr(module, "runtime", lambda _model: beside)

    def build(on_frame: Callable[[Frame], None] | None = None, **options: Any) -> Any:
        frames: list[Frame] = []
        model = SimpleNamespace(tokenizer=SimpleNamespace(chat_template=None))
        made.append(Controller(model, on_frame or frames.append, clock=clock, **options))
        return made[-1], frames

    yield build
    for controller in made:
        controller.close()


def request(value: float = 1.0, tokens: int = 5, **changes: Any) -> Request:
    arms = (Arm("Unsteered"), Arm("Steered", (value,)))
    return Request(
        **{"prompt": "hello", "arms": arms, "vectors": ("v",), "chat": False, "max_new_tokens": tokens} | changes
    )


def last(frames: list[Frame]) -> Frame:
    return [frame for frame in frames if frame.done][-1]


def test_a_run_ends_with_a_frame_that_holds_everything(streams: FakeStreams, make: Any) -> None:
    controller, frames = make()
    identity = controller.post(request(0.5))
    assert controller.wait(WAIT)
    end = last(frames)
    assert end.id == identity and end.error is None and not end.stopped
    assert [len(row.tokens) for row in end.rows] == [5, 5]
    assert end.rows[1].coefficients == (0.5,) and end.steps == 5
    assert (controller.started, controller.finished, controller.cancelled) == (1, 1, 0)


def test_thirty_posts_in_a_burst_end_with_the_last_value_only(streams: FakeStreams, make: Any) -> None:
    controller, frames = make()
    streams.gate = gate = threading.Semaphore(0)
    for i in range(30):
        controller.post(request(i / 100))
        gate.release()
        time.sleep(0.001)  # some runs begin, some are replaced before they do
    for _ in range(100):
        gate.release()
    assert controller.wait(WAIT)
    assert streams.most == 1, "two generations ran at once"
    end = last(frames)
    assert end.id == 30 and end.rows[1].coefficients == (0.29,) and len(end.rows[1].tokens) == 5
    assert controller.finished == 1
    assert controller.started == controller.finished + controller.cancelled


def test_a_newer_request_cancels_within_one_token(streams: FakeStreams, make: Any) -> None:
    controller, frames = make()
    streams.gate = gate = threading.Semaphore(0)
    controller.post(request(0.1, tokens=1000))
    gate.release()
    _until(lambda: streams.running == 1)
    controller.post(request(0.2, tokens=3))
    for _ in range(8):
        gate.release()
    assert controller.wait(WAIT)
    assert streams.after_stop <= 1
    assert last(frames).rows[1].coefficients == (0.2,)
    assert not any(frame.done and frame.id == 1 for frame in frames), "a cancelled run drew over"


def test_stop_ends_within_one_token_and_says_so(streams: FakeStreams, make: Any) -> None:
    controller, frames = make()
    streams.gate = gate = threading.Semaphore(0)
    controller.post(request(tokens=1000))
    gate.release()
    _until(lambda: bool(frames))
    controller.stop()
    gate.release()
    assert controller.wait(WAIT)
    assert last(frames).stopped and len(last(frames).rows[1].tokens) <= 2
    assert streams.after_stop <= 1 and controller.cancelled == 1


def test_stop_ends_what_has_not_begun_and_says_so(streams: FakeStreams, make: Any) -> None:
    controller, frames = make()
    streams.gate = gate = threading.Semaphore(0)
    controller.post(request(0.1))
    _until(lambda: streams.running == 1)
    controller.post(request(0.2))
    controller.stop()
    for _ in range(10):
        gate.release()
    assert controller.wait(WAIT)
    assert len(streams.calls) == 1 and controller.started == 1
    assert frames[-1].id == 2 and frames[-1].stopped and frames[-1].done


def test_an_error_becomes_a_frame_and_the_worker_survives(streams: FakeStreams, make: Any) -> None:
    controller, frames = make()
    streams.fail = RuntimeError("out of\n memory")
    controller.post(request())
    assert controller.wait(WAIT)
    assert last(frames).error == "out of memory" and len(last(frames).rows[1].tokens) == 1
    streams.fail = None
    controller.post(request(0.7))
    assert controller.wait(WAIT)
    assert last(frames).error is None and last(frames).rows[1].coefficients == (0.7,)


def test_an_empty_prompt_is_an_error_frame(streams: FakeStreams, make: Any) -> None:
    controller, frames = make()
    controller.post(request(prompt="  "))
    assert controller.wait(WAIT)
    assert last(frames).error == "the prompt is empty: write one"


def test_a_view_that_fails_stops_the_run_and_is_remembered(streams: FakeStreams, make: Any) -> None:
    def broken(frame: Frame) -> None:
        raise KeyError("gone")

    controller, _ = make(broken)
    controller.post(request(tokens=1000))
    assert controller.wait(WAIT)
    assert isinstance(controller.failure, KeyError) and len(streams.calls) == 1


@pytest.mark.parametrize("tick", [0.001, 0.01, 0.05, 0.2])
def test_frames_come_no_faster_than_the_rate(streams: FakeStreams, make: Any, clock: Clock, tick: float) -> None:
    controller, frames = make(fps=15)
    streams.tick = tick
    controller.post(request(tokens=200))
    assert controller.wait(WAIT)
    assert len(frames) <= 15 * clock.now + 2  # the first one, and the last one
    assert len(frames) >= min(200, 0.6 * 15 * clock.now)
    assert frames[-1].done and len(frames[-1].rows[1].tokens) == 200


def test_frames_are_copies(streams: FakeStreams, make: Any, clock: Clock) -> None:
    controller, frames = make(fps=1e6)
    streams.tick = 1.0
    controller.post(request(tokens=4))
    assert controller.wait(WAIT)
    assert [len(frame.rows[0].tokens) for frame in frames] == [1, 2, 3, 4, 4]


def test_a_text_asked_for_in_words_runs_unsteered_and_once(streams: FakeStreams, make: Any) -> None:
    controller, frames = make()
    arms = (Arm("Unsteered"), Arm("Steered", (1.0,)), Arm("Words", instruction="Be glad."))
    controller.post(request(arms=arms))
    assert controller.wait(WAIT)
    steered, worded = streams.calls
    assert steered["table"] == [None, (1.0,)] and steered["measure"]
    assert worded["vectors"] == () and worded["table"] == [None] and not worded["measure"]
    assert worded["tokens"][1] == "Be glad.\n\nhello"
    assert [len(row.tokens) for row in last(frames).rows] == [5, 5, 5]
    moved = (arms[0], Arm("Steered", (2.0,)), arms[2])
    controller.post(request(arms=moved))  # a slider does not change what was asked in words
    assert controller.wait(WAIT)
    assert len(streams.calls) == 3 and len(last(frames).rows[2].tokens) == 5
    controller.post(request(arms=moved, seed=1))  # the seed does
    assert controller.wait(WAIT)
    assert len(streams.calls) == 5


def test_jobs_run_on_the_same_thread_and_may_fail(streams: FakeStreams, make: Any) -> None:
    controller, frames = make()
    seen: list[str] = []

    def bad() -> None:
        seen.append(threading.current_thread().name)
        raise ValueError("no")

    controller.call(bad)
    controller.call(lambda: seen.append(threading.current_thread().name))
    controller.post(request())
    assert controller.wait(WAIT)
    assert seen == ["kit-panel"] * 2 and last(frames).error is None


def test_close_ends_the_worker_and_refuses_more(streams: FakeStreams, make: Any) -> None:
    controller, _ = make()
    controller.post(request())
    thread = controller._thread
    controller.close()
    assert thread is not None and not thread.is_alive()
    with pytest.raises(RuntimeError, match="closed"):
        controller.post(request())


def test_a_chat_with_a_model_that_has_no_template_says_so(llama: Any) -> None:
    frames: list[Frame] = []
    controller = Controller(llama, frames.append)
    controller.post(Request("The kettle", (Arm("Unsteered"),), chat=True))
    assert controller.wait(WAIT)
    assert "has no chat template" in str(frames[-1].error)
    controller.close()


def test_an_idle_worker_ends_and_comes_back(streams: FakeStreams, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_IDLE", 0.01)
    controller, frames = make()
    controller.post(request(0.1))
    assert controller.wait(WAIT)
    _until(lambda: controller._thread is None)
    controller.post(request(0.2))
    assert controller.wait(WAIT)
    assert last(frames).rows[1].coefficients == (0.2,)


def test_posts_from_many_threads(streams: FakeStreams, make: Any) -> None:
    controller, frames = make()
    ids: list[int] = []
    threads = [threading.Thread(target=lambda i=i: ids.append(controller.post(request(float(i))))) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert controller.wait(WAIT)
    assert sorted(ids) == list(range(1, 17)) and streams.most == 1
    assert last(frames).id == 16


def test_a_real_model_is_stopped_without_a_hook_left(chat: Any) -> None:
    import kit

    vector = kit.SteeringVector(torch.randn(chat.cfg.d_model), 1, "v")
    frames: list[Frame] = []
    first = threading.Event()

    def on_frame(frame: Frame) -> None:
        frames.append(frame)
        first.set()

    controller = Controller(chat, on_frame)
    arms = (Arm("Unsteered"), Arm("Steered", (0.5,)))
    controller.post(Request("The kettle", arms, (vector,), max_new_tokens=150, temperature=1.0))
    assert first.wait(WAIT)
    controller.stop()
    assert controller.wait(WAIT)
    assert frames[-1].done and len(frames[-1].rows[1].tokens) < 150
    assert kit.hooks_left(chat) == []
    controller.post(Request("The kettle", arms, (vector,), max_new_tokens=6))
    assert controller.wait(WAIT)
    alone = kit.generate(chat, "The kettle", vector, [None, 0.5], max_new_tokens=6)
    assert [row.text for row in frames[-1].rows] == alone.texts
    assert "layer 1" in str(frames[-1].receipt)
    controller.close()


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)
