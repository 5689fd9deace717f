"""The panel and the small widgets on a tiny random model: no browser, set a trait, see a trait."""

from __future__ import annotations

import csv
import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ipywidgets")
import ipywidgets
import torch

import kit
from kit.steering.dose import Dose
from kit.steering.rank_one import Factor
from kit.widgets import BlindRating, SteeringPanel, TokenMask
from kit.widgets.panel import arms
from kit.widgets.panel.files import load, save
from kit.widgets.panel.rating import Item, Ratings
from kit.widgets.panel.token_mask import reads

WAIT = 60.0


@pytest.fixture
def make(chat: Any) -> Iterator[Callable[..., SteeringPanel]]:
    made = []

    def build(*vectors: Any, **options: Any) -> SteeringPanel:
        options = {"prompt": "The kettle", "max_new_tokens": 5} | options
        made.append(SteeringPanel(options.pop("model", chat), list(vectors), **options))
        return made[-1]

    yield build
    for panel in made:
        panel.close()


def vector(name: str = "happy", layer: int = 1, seed: int = 0, **more: Any) -> kit.SteeringVector:
    direction = torch.randn(48, generator=torch.Generator().manual_seed(50 + seed))
    return kit.SteeringVector(direction, layer, name, **more)


def column(panel: SteeringPanel, i: int) -> str:
    return panel._columns[i].value


def texts(panel: SteeringPanel) -> list[str]:
    return [row.text for row in panel.rows]


def test_a_slider_changes_the_steered_text_and_not_the_baseline(make: Any, chat: Any) -> None:
    panel = make(vector())
    panel.run(timeout=WAIT)
    before = texts(panel)
    assert before[0] == before[1], "coefficient 0 is the baseline"
    panel.vector_rows[0].slider.value = 0.9
    assert panel.controller.wait(WAIT)
    after = texts(panel)
    assert after[0] == before[0] and after[1] != before[1]
    assert after == kit.generate(chat, "The kettle", panel.vector_rows[0].vector, [None, 0.9], max_new_tokens=5).texts
    assert "KL" in column(panel, 1) and "title=" in column(panel, 1)
    assert "layer 1" in panel._receipt.value and "clean" in panel._badge.value
    assert "done" in panel._status.value
    assert kit.hooks_left(chat) == []


def test_set_is_a_hand_on_the_slider_and_widens_its_range(make: Any) -> None:
    panel = make(vector())
    panel.set("happy", 1e9)
    assert panel.controller.wait(WAIT)
    assert panel.rows[1].coefficients == (1e9,) and "done" in panel._status.value
    with pytest.raises(ValueError, match="this panel has 'happy'"):
        panel.set("sad", 1.0)
    with pytest.raises(ValueError, match="finite"):
        panel.set("happy", float("nan"))


def test_a_browser_that_rounds_the_slider_starts_no_run(make: Any) -> None:
    panel = make(vector(), coefficients=[0.255])
    panel.run(timeout=WAIT)
    slider, started = panel.vector_rows[0].slider, panel.controller.started
    slider.value = 0.26  # what JupyterLab sends when it draws 0.255 on a grid of 0.01
    slider.value = 0.25999999999999995
    assert panel.controller.wait(WAIT) and panel.controller.started == started
    panel.run(timeout=WAIT)
    assert panel.rows[1].coefficients == (0.255,), "what was set is what runs"
    slider.value = 0.27
    assert panel.controller.wait(WAIT)
    assert panel.rows[1].coefficients == (0.27,)


def test_switching_a_vector_off_takes_it_out(make: Any) -> None:
    panel = make(vector(), vector("sad", 2, 1), coefficients=[0.5, 0.5])
    panel.run(timeout=WAIT)
    assert panel.rows[1].coefficients == (0.5, 0.5)
    panel.vector_rows[0].on.value = False
    assert panel.controller.wait(WAIT)
    assert panel.rows[1].coefficients == (0.5,) and "happy" not in panel._receipt.value
    panel.vector_rows[1].on.value = False
    assert panel.controller.wait(WAIT)
    assert panel.rows[1].coefficients is None and "no vector is on" in column(panel, 1)


def test_control_arms(make: Any, chat: Any) -> None:
    panel = make(vector(), coefficients=[0.8], op="clamp")
    panel.controls.random.value = True
    panel.controls.negated.value = True
    panel.controls.words.value = True
    assert panel.controller.wait(WAIT)
    rows = panel.rows
    assert [r.coefficients for r in rows] == [None, (0.8, None), (-0.8, None), (None, 0.8), None]
    v = panel.vector_rows[0].vector
    random = panel._plan.vectors[1]
    assert random.norm == v.norm and random.layer == v.layer and abs(v.cosine(random)) < 0.6
    alone = [
        kit.generate(chat, "The kettle", one, [c], op="clamp", max_new_tokens=5).texts[0]
        for one, c in ((v, 0.8), (v, -0.8), (random, 0.8))
    ]
    assert texts(panel)[1:4] == alone, "a control arm differs from the same run alone"
    words = f"{panel.controls.instruction.value}\n\nThe kettle"
    assert rows[4].text == kit.generate(chat, words, max_new_tokens=5).texts[0]


@pytest.mark.parametrize(
    ("setting", "asked"),
    [
        ([("happy-sad", 0.3)], "Answer in a happy way."),
        ([("happy-sad", -0.3)], "Answer in a sad way."),
        ([("-happy-sad", 0.3)], "Answer in a sad way."),
        ([("-0.23 happy-sad", -0.3)], "Answer in a happy way."),
        ([("0.5 happy-sad @14", -0.3)], "Answer in a sad way."),
        ([("happy-sad (2)", -0.3), ("formal-casual", 0.1)], "Answer in a sad and formal way."),
        ([("happy-sad", 0.0)], "Be glad."),
        ([("melbo 3", 0.3)], "Be glad."),
        ([("melbo 3", -0.3)], None),
        ([("happy-sad", 0.3), ("melbo 3", -0.3)], None),
        ([], "Be glad."),
    ],
)
def test_what_is_asked_in_words_is_where_the_coefficients_point(setting: Any, asked: str | None) -> None:
    assert arms.in_words([(vector(name), c) for name, c in setting], "Be glad.") == asked


def test_words_follow_the_slider_until_others_are_written(make: Any) -> None:
    panel = make(vector("happy-sad"), coefficients=[-0.3])
    panel.controls.words.value = True
    assert panel.controller.wait(WAIT)
    assert panel._plan.arms[-1].instruction == panel.controls.instruction.value == "Answer in a sad way."
    panel.set("happy-sad", 0.3)
    assert panel.controller.wait(WAIT)
    assert panel._plan.arms[-1].instruction == "Answer in a happy way."
    panel.controls.instruction.value = "Be glad."
    panel.set("happy-sad", -0.3)
    assert panel.controller.wait(WAIT)
    assert panel._plan.arms[-1].instruction == "Be glad."
    nameless = make(vector("happy"), coefficients=[-0.3])
    nameless.controls.words.value = True
    assert nameless.controller.wait(WAIT)
    assert [arm.title for arm in nameless._plan.arms] == ["Unsteered", "Steered"]


def test_a_saved_vector_keeps_its_sign_and_its_own_range(tmp_path: Path) -> None:
    told = {"calibration": {"low": -0.2, "high": 0.33, "target_kl": 0.5}, "effect": 5.3, "auroc": 0.97}
    v = replace(vector("happy-sad"), metadata=told)
    for made, name in ((arms.combination([(v, -0.23)]), "-0.23-happy-sad"), (-v, "-happy-sad"), (v, "happy-sad")):
        assert save(made, tmp_path).name == f"{name}.safetensors"
    back = kit.SteeringVector.load(tmp_path / "-0.23-happy-sad.safetensors")
    dose = Dose.of(back)
    assert (dose.low, dose.high) == pytest.approx((-0.33 / 0.23, 0.2 / 0.23))
    assert not {"effect", "auroc"} & set(back.metadata)
    assert save(replace(v, name="-"), tmp_path).name == "-vector.safetensors"
    assert save(replace(v, name="../x"), tmp_path).name == "x.safetensors"


def test_ladders(make: Any) -> None:
    panel = make(vector(), vector("sad", 2, 1), coefficients=[0.4, 0.2])
    panel.controls.view.value = "ladder"
    assert panel.controller.wait(WAIT)
    expected = [(0.0, 0.0), (0.2, 0.1), (0.4, 0.2), (0.6, 0.3), (0.8, 0.4)]
    assert [r.coefficients for r in panel.rows] == [pytest.approx(e) for e in expected]
    panel.controls.ladder_of.value = "sad"
    panel.controls.rungs.value = 9
    assert panel.controller.wait(WAIT)
    assert [r.coefficients[0] for r in panel.rows] == pytest.approx([-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1])
    assert {r.coefficients[1] for r in panel.rows} == {0.4}
    assert "sad −1.00" in column(panel, 0) and "with happy +0.40" in column(panel, 0)
    panel.remove("sad")
    assert panel.controller.wait(WAIT)
    assert panel.controls.ladder_of.value == "" and len(panel.rows) == 9


def test_a_ladder_of_nothing_says_so(make: Any) -> None:
    panel = make()
    panel.controls.view.value = "ladder"
    assert "no vector is on" in panel._message.value
    with pytest.raises(RuntimeError, match="no vector is on"):
        panel.run(timeout=WAIT)
    panel.controls.view.value = "side"
    assert panel.controller.wait(WAIT) and panel._message.value == ""


def test_errors_are_shown_and_lose_nothing(make: Any) -> None:
    panel = make(vector(), coefficients=[0.5])
    panel.run(timeout=WAIT)
    before = texts(panel)
    panel.controls.prompt.value = "  "
    with pytest.raises(RuntimeError, match="prompt is empty"):
        panel.run(timeout=WAIT)
    assert "prompt is empty" in panel._message.value
    panel.controls.prompt.value = "word " * 400
    with pytest.raises(RuntimeError, match="context"):
        panel.run(timeout=WAIT)
    panel.controls.path.value = "nowhere.safetensors"
    panel.controls.load.click()
    assert "nothing loaded" in panel._message.value and len(panel.vector_rows) == 1
    panel.controls.prompt.value = "The kettle"
    panel.run(timeout=WAIT)
    assert texts(panel) == before


def test_raw_and_chat_prompts_differ(make: Any, chat: Any, llama: Any) -> None:
    panel = make(vector())
    panel.controls.chat.value = False
    assert panel.controller.wait(WAIT)
    plain = kit.generate(chat, kit.text_tokens(chat, "The kettle"), max_new_tokens=5).texts[0]
    assert texts(panel)[0] == plain
    without = make(vector(), model=llama)
    assert without.controls.chat.disabled and without.controls.chat.value is False
    without.run(timeout=WAIT)


def test_save_and_load(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    panel = make(vector(), vector("sad", 1, 1), vector("far", 2, 2), coefficients=[0.4, -0.2, 0])
    panel.run(timeout=WAIT)
    combined = texts(panel)[1]
    panel.controls.save.click()
    (path,) = tmp_path.glob("*.safetensors")
    assert path.name in panel._message.value
    panel.controls.save.click()
    assert len(list(tmp_path.glob("*.safetensors"))) == 2, "a file was written over"
    for name in ("happy", "sad", "far"):
        panel.remove(name)
    panel.controls.path.value = str(path)
    panel.controls.load.click()
    loaded = panel.vector_rows[0].vector
    panel.set(loaded.name, 1.0)
    panel.run(timeout=WAIT)
    assert texts(panel)[1] == combined, "at 1 the file does what the sliders did"
    panel.controls.load.click()  # the same name again
    assert [r.vector.name for r in panel.vector_rows] == [loaded.name, f"{loaded.name} (2)"]


def test_vectors_of_two_layers_are_saved_one_by_one(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    panel = make(vector("a/../b"), vector("sad", 2, 1), coefficients=[0.4, -0.2])
    panel.controls.save.click()
    assert "several places" in panel._message.value and not list(tmp_path.iterdir())
    panel.controls.save_what.value = "a/../b"
    panel.controls.save.click()
    assert [p.name for p in tmp_path.iterdir()] == ["a-..-b.safetensors"]


def test_find_safe_range_runs_on_the_worker(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    from kit.steering import sweep

    seen = []

    def fake(model: Any, vector: Any, target_kl: float) -> sweep.Calibration:
        seen.append(threading.current_thread().name)
        return sweep.Calibration(-0.3, 0.45, target_kl, [])

    monkeypatch.setattr(sweep, "calibrate", fake)
    panel = make(vector())
    row = panel.vector_rows[0]
    row.find.click()
    assert panel.controller.wait(WAIT)
    assert seen == ["kit-panel"] and row.safe == (-0.3, 0.45)
    assert row.ends == (-0.9, 0.9) and "near −0.30 to +0.45" in row._range.value
    assert "left:33.33%" in row._shade.value and "right:25.00%" in row._shade.value
    assert panel._message.value == ""


def test_what_steers_alike_is_put_on_the_panel_once(make: Any) -> None:
    panel = make(vector())
    factor = Factor(torch.eye(48)[:2], torch.eye(48)[:2], (1, 2), 3.0, "rows")
    assert panel.put(factor, 0.2) == "rows"
    assert panel.put(replace(factor, name="other"), 0.4) == "rows", "its name does not count"
    assert panel.put(replace(factor, radius=4.0, name="other"), 0.1) == "other"
    assert panel.put(vector("sad"), 0.3) == "happy"
    assert panel.controller.wait(WAIT)
    assert [(r.vector.name, r.coefficient) for r in panel.vector_rows] == [
        ("happy", 0.3),
        ("rows", 0.4),
        ("other", 0.1),
    ]


def test_a_loaded_factor_says_where_it_acts(make: Any, tmp_path: Path) -> None:
    panel = make()
    factor = Factor(torch.eye(48)[:2], torch.eye(48)[:2], (1, 2), 3.0, "rows")
    panel.controls.path.value = str(save(factor, tmp_path))
    panel.controls.load.click()
    assert "Loaded rows (2 layers)" in panel._message.value


def test_a_calibration_in_the_metadata_is_shaded_at_once(make: Any) -> None:
    known = {"calibration": {"target_kl": 0.5, "low": -0.4, "high": 0.45}}
    row = make(vector(metadata=known)).vector_rows[0]
    assert row.safe == (-0.4, 0.45) and "near −0.40" in row._range.value
    odd = make(vector(metadata={"calibration": {"low": None}})).vector_rows[0]
    assert odd.safe is None


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "🙂 & <b>", "مرحبا"])
def test_names_and_prompts_are_escaped(make: Any, name: str) -> None:
    panel = make(vector(name), prompt=f"{name} hi", coefficients=[0.5])
    panel.controls.instruction.value = name
    panel.controls.words.value = True
    panel.run(timeout=WAIT)
    pages = [panel.frozen_html, *[h.value for h in _htmls(panel)]]
    assert all("<script" not in page and '<b>">' not in page for page in pages)
    assert all(f">{name}" not in page for page in pages if "<" in name)


def _htmls(widget: Any) -> Iterator[Any]:
    if isinstance(widget, ipywidgets.HTML):
        yield widget
    for child in getattr(widget, "children", ()):
        yield from _htmls(child)


def test_freeze(make: Any) -> None:
    panel = make(vector(), coefficients=[0.5])
    assert "not run yet" in panel.freeze().data
    assert "text/html" not in panel._repr_mimebundle_()
    panel.run(timeout=WAIT)
    first = panel.freeze().data
    panel.run(timeout=WAIT)
    assert panel.freeze().data == first, "the same state gives the same HTML"
    for part in ("The kettle", "happy +0.50", "Unsteered", "layer 1", "clean", "temperature"):
        assert part in first
    bundle = panel._repr_mimebundle_()
    assert bundle["text/html"] == first and "application/vnd.jupyter.widget-view+json" in bundle


def test_many_moves_end_with_the_last(make: Any) -> None:
    panel = make(vector(), max_new_tokens=20)
    for i in range(30):
        panel.vector_rows[0].slider.value = round(i * 0.02, 2)
    assert panel.controller.wait(WAIT)
    assert panel.rows[1].coefficients == (pytest.approx(0.58, abs=0.03),)
    c = panel.controller
    assert c.finished == 1 and c.started == c.finished + c.cancelled


def test_a_stale_frame_is_not_drawn(make: Any) -> None:
    panel = make(vector())
    panel.run(timeout=WAIT)
    frame, shown = panel.frame, column(panel, 1)
    panel._id += 1
    panel._show(frame)
    panel._id -= 1
    assert column(panel, 1) == shown


def test_a_foreign_vector_is_refused(make: Any, chat: Any) -> None:
    with pytest.raises(ValueError, match="was made on model"):
        make(vector(fingerprint="0" * 16))
    with pytest.raises(ValueError, match="width"):
        make(kit.SteeringVector(torch.ones(7), 1, "short"))
    with pytest.raises(ValueError, match="2 coefficients for 1"):
        make(vector(), coefficients=[1, 2])


def test_a_panel_that_is_closed_and_dropped_is_gone(chat: Any) -> None:
    panel = SteeringPanel(chat, vector(), "The kettle", max_new_tokens=2)
    panel.run(timeout=WAIT)
    thread = panel.controller._thread
    panel.close()
    assert thread is not None and not thread.is_alive()
    assert kit.hooks_left(chat) == []
    gone = weakref.ref(panel.controller)
    del panel, thread
    gc.collect()
    assert gone() is None or gone()._thread is None


def test_files(tmp_path: Path, chat: Any) -> None:
    path = save(vector("a b/c"), tmp_path)
    assert path.parent == tmp_path and load(f" {path} ", chat).name == "a b/c"
    with pytest.raises(ValueError, match="give the path"):
        load(" ", chat)
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="damaged"):
        load(str(bad), chat)


def test_arms_are_pure() -> None:
    v = vector()
    plan = arms.side_by_side([(v, 0.5)], negated=True, instruction=" Be glad. ")
    assert [arm.title for arm in plan.arms] == ["Unsteered", "Steered", "Negated", "Words only"]
    assert [arm.subtitle for arm in plan.arms[1:3]] == ["happy +0.50", "happy −0.50"]
    assert plan.arms[-1].instruction == "Be glad."
    assert arms.signed(-0.0) == "+0.00" and arms.signed(1e9) == "+1e+09"
    assert arms.unique("a", ["a", "a (2)"]) == "a (3)"
    with pytest.raises(ValueError, match="every coefficient is 0"):
        arms.combination([(v, 0.0)])


# token mask


def test_token_mask_follows_its_menus(chat: Any) -> None:
    mask = TokenMask(chat, "The kettle", positions="generated")
    n = kit.chat_tokens(chat, "The kettle").shape[1]
    assert mask.steered.tolist() == [False] * (n - 1) + [True] * 4
    assert mask.read.tolist() == [False] * (n - 1) + [True]
    assert "&lt;bos&gt;" in mask.html
    mask.positions.value = "prompt"
    assert mask.steered.tolist() == [True] * n + [False] * 3
    mask.reading.value = "mean"
    assert mask.read.tolist() == [False] + [True] * (n - 1)
    assert mask._repr_mimebundle_()["text/html"] == mask.html


def test_token_mask_takes_the_whole_position_language(chat: Any) -> None:
    ids = kit.text_tokens(chat, "The kettle hummed")
    n = ids.shape[1]
    chosen = torch.arange(n) % 2 == 0
    assert TokenMask(chat, ids, positions=chosen).steered[:n].equal(chosen)
    assert TokenMask(chat, ids, positions=-2).steered.nonzero().tolist() == [[n - 2]]
    assert TokenMask(chat, ids, read=slice(1, 3)).read.nonzero().flatten().tolist() == [1, 2]
    with pytest.raises(ValueError, match="use 'last', 'mean'"):
        reads("middle", 4)


# blind rating

ITEMS = [Item(f"text {i}", f"{i / 10:+.2f}", i > 2) for i in range(6)]


def test_ratings_are_shuffled_by_seed_and_resume(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    first = Ratings(ITEMS, path, seed=3)
    order = [item.id for item in first.items]
    assert order == [item.id for item in Ratings(ITEMS, seed=3).items]
    assert order != [item.id for item in Ratings(ITEMS, seed=4).items]
    first.rate(5, True)
    first.rate(1, False)
    again = Ratings(ITEMS, path, seed=3)
    assert again.current == first.items[2] and again.answers == first.answers
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [r["item"] for r in rows] == order[:2] and rows[0]["score"] == "5"
    assert [p.name for p in tmp_path.iterdir()] == ["r.csv"]


def test_ratings_refuse_what_makes_no_sense(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no text"):
        Ratings([])
    ratings = Ratings(ITEMS[:1])
    with pytest.raises(ValueError, match="1 to 5"):
        ratings.rate(6, True)
    ratings.rate(3, True)
    with pytest.raises(ValueError, match="every text is rated"):
        ratings.rate(3, True)
    path = tmp_path / "r.csv"
    Ratings(ITEMS[:1], path).rate(3, False)
    with pytest.raises(ValueError, match="other texts"):
        Ratings(ITEMS[1:], path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="no CSV of ratings"):
        Ratings(ITEMS, path)


def test_ratings_summary() -> None:
    ratings = Ratings(ITEMS)
    while (item := ratings.current) is not None:
        ratings.rate(5 if item.steered else 2, item.steered)
    assert ratings.summary() == {"rated": 6, "hits": 6, "mean score steered": 5.0, "mean score unsteered": 2.0}


def test_blind_rating_hides_and_reveals(chat: Any, tmp_path: Path) -> None:
    rating = BlindRating(chat, vector(), ["The <b>kettle</b>"], [None, 0.9], max_new_tokens=5, path=tmp_path / "r.csv")
    assert "+0.90" not in rating._text.value and "&lt;b&gt;" in rating._text.value
    for _ in range(2):
        assert rating.score.value is rating.guess.value is None and rating.next.disabled, "nothing is chosen before"
        rating.guess.value = True
        assert rating.next.disabled
        rating.score.value = 4
        rating.next.click()
    assert "+0.90" in rating._text.value and "of 2 guesses" in rating._text.value
    assert rating.next.disabled
    written = kit.generate(chat, "The kettle", vector(), [None, 0.9], max_new_tokens=5)
    assert len(BlindRating(written, path=None).ratings.items) == 2
    with pytest.raises(ValueError, match="at least one prompt"):
        BlindRating(chat, vector(), [])
