"""What all views share: they end, freeze, refuse to wait for themselves, and tell what cannot be saved."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ipywidgets")
import IPython
import ipywidgets
import numpy as np
import torch
from ipywidgets.widgets.widget import _instances
from transformers import AutoModelForCausalLM

import kit
from kit.steering import generation
from kit.widgets import (
    BlindRating,
    FeatureBrowser,
    FeatureGallery,
    LinkBrowser,
    MatchBrowser,
    PromptView,
    SteeringPanel,
    TokenMask,
    TrainingView,
    frame,
)
from tests import tiny
from tests.faults import markup, subjects

WAIT = 30.0


@pytest.fixture
def small(tmp_path: Path) -> Iterator[subjects.Subjects]:
    yield subjects.make(tmp_path / "models")
    for widget in list(_instances.values()):
        if isinstance(widget, frame.View):
            widget.close()


@pytest.fixture
def views(chat: Any) -> Iterator[list[Any]]:
    made = [
        SteeringPanel(chat, tiny.vector(chat, 1), "The kettle", max_new_tokens=3),
        FeatureGallery(chat, [tiny.vector(chat, 1)], "The kettle", max_new_tokens=3),
    ]
    yield made
    for view in made:
        view.close()


# --- waiting ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, 1])
def test_a_run_within_steer_is_refused_at_once_and_goes_after_it(views: list[Any], chat: Any, which: int) -> None:
    view = views[which]
    with kit.steer(chat, {tiny.vector(chat, 2): 0.5}):
        with pytest.raises(RuntimeError, match="this thread holds the model"):
            view.run(timeout=WAIT)
        assert view.controller.started == 0 and not view.controller.busy, "nothing was asked for"
        view.run(wait=False)
        with pytest.raises(RuntimeError, match="this thread holds the model"):
            view.controller.wait(WAIT)
    assert view.controller.wait(WAIT) and "done" in view._status.value
    view.run(timeout=WAIT)


def test_closing_within_steer_waits_for_nobody(chat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    panel = SteeringPanel(chat, (), "The kettle", max_new_tokens=3)
    with kit.steer(chat, {tiny.vector(chat, 2): 0.5}):
        panel.run(wait=False)
        thread = panel.controller._thread
        assert thread is not None
        monkeypatch.setattr(thread, "join", lambda _seconds: pytest.fail("it waits for this very thread"))
        panel.close()
    threading.Thread.join(thread, WAIT)
    assert not thread.is_alive()


@pytest.mark.parametrize("paired", [False, True])
def test_a_training_is_not_waited_for_within_steer(small: subjects.Subjects, paired: bool) -> None:
    training = small.paired() if paired else small.training()
    if paired:  # what a view trains has one dictionary a site; its run is the same
        from kit.widgets.training.run import TrainingRun

        run = TrainingRun(training, None, lambda: None, folder=None, every=1, refresh=1.0)  # type: ignore[arg-type]
        wait, started = run.wait, lambda: run.running
    else:
        view = TrainingView(training, subjects.TEXTS[:20], rows=6, ce_rows=2)
        wait, started = view.run, lambda: view.running
    with (
        kit.steer(small.other if paired else small.model, {small.vector(): 0.1}),
        pytest.raises(RuntimeError, match="this thread holds the model"),
    ):
        wait(timeout=WAIT)
    assert not started()


# --- ending ----------------------------------------------------------------------------------------


def test_every_view_that_is_closed_lets_go_of_its_model_and_parts(small: subjects.Subjects) -> None:
    before, views = set(_instances), []
    with markup.speaking(small.model), markup.speaking(small.other):
        for _name, view in markup._views(small):
            views.append(view)
    del view
    kinds = {type(view) for view in views}
    assert {SteeringPanel, FeatureGallery, TokenMask, BlindRating, FeatureBrowser, PromptView} <= kinds
    assert {MatchBrowser, LinkBrowser, TrainingView} <= kinds and len(_instances) > 500
    kept = [weakref.ref(small.model), weakref.ref(small.other)]
    live = [view for view in views if isinstance(view, frame.View)]
    for view in [*live, *live]:  # twice does no harm
        view.close()
    assert set(_instances) <= before, "ipywidgets keeps none of their parts"
    small.__dict__.clear()
    del views, view  # but the views themselves are kept, as a notebook's Out keeps them
    gc.collect()
    assert [ref() for ref in kept] == [None, None]
    with pytest.raises(AttributeError, match="this SteeringPanel is closed, so it has no 'rows'"):
        _ = live[0].rows
    assert not live[0].children and "closed" in shown(live[0])


def shown(view: Any) -> str:
    """What a cell that ends with a view shows as HTML."""
    told: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("IPython.display.display", lambda what, **_: told.append(what))
        view._ipython_display_()
    return str(getattr(told[0], "data", told[0]))


def test_a_view_whose_arguments_are_refused_keeps_no_model(tmp_path: Path) -> None:
    model = tiny.load(tmp_path, "llama", chat=True)
    short = kit.SteeringVector(torch.ones(7), 1, "short")
    for more in ({"vectors": short}, {"temperature": -1}):
        with pytest.raises(ValueError):
            SteeringPanel(model, **more)
    kept = weakref.ref(model)
    del model
    gc.collect()
    assert kept() is None


@pytest.fixture
def run_cell(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function: from now on a cell runs, of this id or text; None: a callback of a widget."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(get_parent=lambda: asked))
    monkeypatch.setattr(frame, "_MADE", {})

    count = itertools.count()

    def run(cell: str | None, text: str = "panel") -> None:
        kind = "comm_msg" if cell is None else "execute_request"
        asked.update(header={"msg_type": kind, "msg_id": str(next(count))}, metadata={}, content={"code": text})
        if cell:
            asked["metadata"] = {"cellId": cell}

    return run


@pytest.mark.parametrize("by_id", [True, False])
def test_a_cell_that_runs_again_closes_what_it_made(run_cell: Any, chat: Any, by_id: bool) -> None:
    def again(cell: str, text: str) -> None:
        run_cell(cell if by_id else "", text)

    again("a", "two views")
    first, second = SteeringPanel(chat, ()), TokenMask(chat, "The kettle")
    assert not first._shut, "the second view of one run closes nothing"
    again("b", "another")
    other = TokenMask(chat, "The kettle")
    run_cell(None)
    by_hand = TokenMask(chat, "The kettle")
    assert not any(view._shut for view in (first, second, other, by_hand))
    again("a", "two views, edited" if by_id else "two views")
    third = SteeringPanel(chat, ())
    assert first._shut and second._shut and not third._shut and not other._shut and not by_hand._shut
    for view in (third, other, by_hand):
        view.close()


def test_a_shell_without_a_kernel_knows_its_cells_too(monkeypatch: pytest.MonkeyPatch, chat: Any) -> None:
    history = [""]
    shell = SimpleNamespace(history_manager=SimpleNamespace(input_hist_raw=history))
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    made = []
    for _ in range(3):
        history.append("panel = ...")
        made.append(SteeringPanel(chat, ()))
    assert [view._shut for view in made] == [True, True, False]
    made[-1].close()


def test_a_gallery_takes_its_field_off_the_panel(chat: Any) -> None:
    panel = SteeringPanel(chat, ())
    before = panel.children
    gallery = FeatureGallery(chat, [tiny.vector(chat, 1)], panel=panel)
    assert len(panel.children) == len(before) + 1
    gallery.close()
    assert panel.children == before
    gallery = FeatureGallery(chat, [tiny.vector(chat, 1)], panel=panel)
    panel.close()
    gallery._cards[0].add.click()
    assert "closed" in gallery._message.value
    gallery.close()


def test_a_vector_taken_off_leaves_no_widget(chat: Any) -> None:
    panel = SteeringPanel(chat, ())
    before = set(_instances)
    panel.add(tiny.vector(chat, 1))
    panel.vector_rows[0].remove.click()
    assert set(_instances) == before
    panel.close()


# --- freezing --------------------------------------------------------------------------------------


class Output:
    def __init__(self) -> None:
        self.data = ""

    def update(self, shown: Any) -> None:
        self.data = shown.data


def test_what_is_frozen_goes_where_the_view_is_shown_and_the_page_has_the_last_word(views: list[Any]) -> None:
    for view in views:
        view.run(timeout=WAIT)
        state = view.frozen_html
        view._outputs = {"a": Output(), "b": Output()}
        view.controls.freeze.click()
        assert view._eyes.frozen.startswith("kit-frozen-")
        for output in view._outputs.values():
            assert output.data == f'<div class="{view._eyes.frozen}">{state}</div>'
        assert "stays" not in view._message.value and view._area.value == ""
        view._eyes.found = "no kit-frozen-earlier"
        assert view._area.value == "", "an answer about an earlier freezing"
        view._eyes.found = f"yes {view._eyes.frozen}"
        assert "it stays in the notebook" in view._message.value and view._area.value == ""
        view.controls.freeze.click()
        view._eyes.found = f"no {view._eyes.frozen}"
        assert "not kept" in view._message.value and view._area.value == state


def test_frozen_where_no_cell_shows_the_view_it_says_that_nothing_is_kept(small: subjects.Subjects) -> None:
    for _name, view in markup._views(small):
        buttons = [b for b in frame_buttons(view) if b.description == "Freeze"]
        for button in buttons:
            button.click()
            assert "not kept" in view._message.value and len(view._area.value) > 100


def frame_buttons(view: Any) -> list[Any]:
    found, queue = [], [view]
    while queue:
        each = queue.pop()
        queue += getattr(each, "children", ())
        found += [each] if isinstance(each, ipywidgets.Button) else []
    return found


def test_a_cell_that_shows_a_view_again_takes_the_place_of_its_earlier_output(run_cell: Any, chat: Any) -> None:
    panel = TokenMask(chat, "The kettle")
    for cell in ("a", "a", "b"):
        run_cell(cell)
        shown(panel)
    assert list(panel._outputs) == ["a", "b"]
    panel.close()


# --- saving ----------------------------------------------------------------------------------------


def test_every_view_that_saves_tells_what_kept_it_from_it(
    views: list[Any], small: subjects.Subjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    panel, gallery = views
    panel.set("v0@1", 0.5)
    monkeypatch.setattr(kit.SteeringVector, "save", full)
    gallery.controls.path.value = str(tmp_path / "set")
    for view in (panel, gallery):
        view.controls.save.click()
        assert "No space left on device" in view._message.value and 'role="alert"' in view._message.value
    run = generation.generate(small.model, "The kettle", small.vector(), [None, 0.5], max_new_tokens=3)
    rating = BlindRating(run, path=tmp_path / "missing" / "ratings.csv")
    monkeypatch.setattr("kit.widgets.panel.rating.whole", full)
    first = rating._text.value
    rating.score.value, rating.guess.value = 3, True
    rating.next.click()
    assert "No space left on device" in rating._message.value
    assert "text 2 of" in rating._text.value != first, "the text that is rated next is on the screen"
    training = TrainingView(small.training(), subjects.TEXTS[:20], rows=6, ce_rows=2, folder=tmp_path / "run")
    monkeypatch.setattr(training.training, "save", full)
    with pytest.raises(RuntimeError, match="No space left"):
        training.run(timeout=60)
    assert "No space left on device" in training._message.value


# --- arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"temperature": -1}, r"temperature=-1: give a number from 0 to 10"),
        ({"temperature": float("nan")}, r"temperature=nan"),
        ({"temperature": 11}, r"temperature=11"),
        ({"max_new_tokens": 0}, r"max_new_tokens=0: give a whole number from 1 to 4096"),
        ({"max_new_tokens": 5000}, r"max_new_tokens=5000"),
        ({"max_new_tokens": 2.5}, r"max_new_tokens=2\.5: give a whole number"),
        ({"seed": 2**40}, r"seed=1099511627776: give a whole number from 0 to 2147483647"),
        ({"seed": -1}, r"seed=-1"),
        ({"seed": True}, r"seed=True"),
    ],
)
def test_what_a_control_cannot_show_is_refused(chat: Any, options: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        SteeringPanel(chat, (), **options)
    if "max_new_tokens" in options:
        with pytest.raises(ValueError, match=r"max_new_tokens="):
            FeatureGallery(chat, [tiny.vector(chat, 1)], **options)


def test_numbers_of_numpy_are_numbers(chat: Any) -> None:
    panel = SteeringPanel(chat, (), max_new_tokens=np.int64(7), temperature=np.float32(0.5), seed=np.int64(3))
    values = panel.controls.values()
    assert (values["max_new_tokens"], values["temperature"], values["seed"]) == (7, 0.5, 3)
    panel.close()


def test_a_model_that_is_no_bridge_is_named_with_what_to_pass(chat: Any, small: subjects.Subjects) -> None:
    plain = AutoModelForCausalLM.from_pretrained(small.folder / "one")
    vector, store = small.vector(), subjects.trained(small)[1]
    for make in (
        lambda: SteeringPanel(plain, vector),
        lambda: SteeringPanel(plain),
        lambda: SteeringPanel(vector, chat),
        lambda: FeatureGallery(plain, [vector]),
        lambda: TokenMask(plain, "The kettle"),
        lambda: BlindRating(plain, vector, ["The kettle"]),
        lambda: FeatureBrowser(store, plain),
        lambda: PromptView(store, plain, "The kettle"),
        lambda: MatchBrowser(store, store, plain),
    ):
        with pytest.raises(TypeError, match="pass the TransformerBridge that kit.load_model returns"):
            make()
