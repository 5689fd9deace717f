"""The gallery on a tiny random model, and its parts without one: no browser."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ipywidgets")
pd = pytest.importorskip("pandas")
import torch

import kit
from kit.steering.dose import Dose
from kit.steering.rank_one import Factor
from kit.steering.results import Entry, Receipt, Row
from kit.widgets import FeatureGallery, SteeringPanel
from kit.widgets.gallery import markup, sets
from kit.widgets.gallery.batches import Batches
from kit.widgets.gallery.card import drag_mark, dropped
from kit.widgets.gallery.features import Feature, Result, features, view
from kit.widgets.panel import files
from kit.widgets.panel.controller import Frame, Request
from kit.widgets.panel.vector_row import range_label
from tests.tiny import HeadShift

WAIT = 60.0
PROMPT = "The kettle"


@pytest.fixture
def make(chat: Any) -> Iterator[Callable[..., FeatureGallery]]:
    made = []

    def build(*vectors: Any, **options: Any) -> FeatureGallery:
        options = {"prompt": PROMPT, "max_new_tokens": 5, "coefficient": 0.9, "batch": 4} | options
        model = options.pop("model", chat)
        given = options.pop("vectors", list(vectors))
        made.append(FeatureGallery(model, given, **options))
        return made[-1]

    yield build
    for gallery in made:
        gallery.close()


def vector(seed: int = 0, layer: int = 1, name: str = "", **about: Any) -> kit.SteeringVector:
    direction = torch.randn(48, generator=torch.Generator().manual_seed(50 + seed))
    return kit.SteeringVector(direction, layer, name or f"f{seed}", metadata=about)


def many(n: int) -> list[kit.SteeringVector]:
    return [vector(i) for i in range(n)]


def cards(gallery: FeatureGallery) -> list[Any]:
    return list(gallery._grid.children)


def names(gallery: FeatureGallery) -> list[str]:
    return [card.name.value for card in cards(gallery)]


# what is generated


def test_each_row_is_steered_by_its_own_vector_alone(make: Any, chat: Any) -> None:
    vectors = [vector(i, layer=1 + i % 2) for i in range(6)]
    gallery = make(*vectors, coefficient=[0.9, -0.9, 0.5, 1.2, 0.7, 1.0])
    gallery.run(timeout=WAIT)
    table = gallery.results
    for f, (_, row) in zip(gallery.features, table.iterrows(), strict=True):
        alone = kit.generate(chat, PROMPT, f.vector, [f.coefficient], max_new_tokens=5, measure=True).rows[0]
        assert row.text == alone.text and row.kl == pytest.approx(alone.kl, abs=1e-4)
        assert row.coefficient == f.coefficient and row.prompt == PROMPT
    assert gallery.unsteered.text == kit.generate(chat, PROMPT, max_new_tokens=5).texts[0]
    assert len({*table.text, gallery.unsteered.text}) > 3, "steering that shows"
    assert "6 texts" not in gallery._receipt.value and "7 texts, each steered by its own" in (gallery._receipt.value)
    assert kit.hooks_left(chat) == []


def test_the_random_control_has_the_best_vectors_norm_and_coefficient(make: Any, chat: Any) -> None:
    gallery = make(replace(vector(0), norm=2.0), vector(1), coefficient=[0.4, 0.1], seed=3)
    control = gallery._random
    assert control.vector.norm == 2.0 and control.coefficient == 0.4 and control.vector.layer == 1
    assert abs(control.vector.cosine(vector(0))) < 0.6
    gallery.run(timeout=WAIT)
    alone = kit.generate(chat, PROMPT, control.vector, [0.4], max_new_tokens=5).texts[0]
    assert gallery.random_control.text == alone
    assert "Random direction" in gallery._pins[1].value
    assert "Unsteered" in gallery._pins[0].value


def test_the_multiplier_scales_every_coefficient_and_generates_anew(make: Any, chat: Any) -> None:
    gallery = make(*many(3))
    gallery.run(timeout=WAIT)
    before = list(gallery.results.text)
    gallery.controls.factor.value = 2.0
    assert gallery.controller.wait(WAIT)
    table = gallery.results
    assert list(table.coefficient) == [1.8] * 3 and list(table.calibrated) == [0.9] * 3
    assert list(table.text) != before
    again = [kit.generate(chat, PROMPT, f.vector, [1.8], max_new_tokens=5).texts[0] for f in gallery.features]
    assert list(table.text) == again and gallery._random.result.coefficient == 1.8


def test_batches_hold_so_many_features_and_the_page_comes_first(make: Any) -> None:
    gallery = make(*many(10), page_size=3)
    gallery._turn(1)
    posted = _posts(gallery)
    gallery.run(timeout=WAIT)
    assert [len(r.vectors) for r in posted] == [5, 4, 2], "and the random control, once"
    ours = [[a.title for a in r.arms if a.title not in ("Unsteered", "Random direction")] for r in posted]
    order = [title for titles in ours for title in titles]
    assert order == [f"f{i}" for i in (3, 4, 5, 0, 1, 2, 6, 7, 8, 9)]
    for request in posted:
        for arm in request.arms:
            assert arm.coefficients is None or sum(c is not None for c in arm.coefficients) == 1
    assert "done" in gallery._status.value and "10 of 10" in gallery._status.value


def _posts(gallery: FeatureGallery) -> list[Request]:
    posted: list[Request] = []
    post = gallery.controller.post

    def spy(request: Request) -> int:
        posted.append(request)
        return post(request)

    gallery.controller.post = spy  # type: ignore[method-assign]
    return posted


def test_measuring_is_an_option(make: Any) -> None:
    gallery = make(*many(2), measure=False)
    gallery.run(timeout=WAIT)
    assert gallery.results.kl.isna().all() and gallery.results.text.str.len().gt(0).all()
    gallery.controls.measure.value = True
    gallery.run(timeout=WAIT)
    assert gallery.results.kl.gt(0).all()


def test_a_model_without_a_template_gets_raw_text(make: Any, llama: Any, chat: Any) -> None:
    gallery = make(vector(), model=llama)
    gallery.run(timeout=WAIT)
    plain = kit.generate(llama, kit.text_tokens(llama, PROMPT), vector(), [0.9], max_new_tokens=5)
    assert gallery.results.text[1] == plain.texts[0]
    raw = make(vector(), chat=False)
    raw.run(timeout=WAIT)
    tokens = kit.text_tokens(chat, PROMPT)
    assert raw.results.text[1] == kit.generate(chat, tokens, vector(), [0.9], max_new_tokens=5).texts[0]


# stopping, going on, failing


def test_stop_keeps_what_there_is_and_generate_goes_on(make: Any) -> None:
    gallery = make(*many(8), batch=2, max_new_tokens=12)
    posted, show = _posts(gallery), gallery._show

    def stop_in_the_third(frame: Frame) -> None:
        show(frame)
        if len(posted) == 3 and not frame.done:
            gallery.stop()

    gallery.controller.on_frame, gallery.controller.interval = stop_in_the_third, 0.0
    gallery.run(timeout=WAIT)
    gallery.controller.on_frame = show
    assert "stopped" in gallery._status.value and "4 of 8" in gallery._status.value
    first = gallery.results
    assert list(first.text[:4].str.len() > 0) == [True] * 4 and list(first.text[6:]) == ["", ""]
    assert not gallery.features[4].result.complete and gallery.features[4].result.text
    posted.clear()
    gallery.run(timeout=WAIT)
    assert [[a.title for a in r.arms] for r in posted] == [["f4", "f5"], ["f6", "f7"]]
    assert list(gallery.results.text[:4]) == list(first.text[:4])
    assert gallery.results.text.str.len().gt(0).all() and "done" in gallery._status.value
    posted.clear()
    gallery.run(timeout=WAIT)
    assert len(posted) == 4, "a gallery that is done does it again"


def test_stop_between_two_batches_is_not_lost(make: Any) -> None:
    gallery = make(*many(4), batch=2)
    draw = gallery._draw

    def stop_at_the_end(what: Any, busy: bool = False) -> None:
        draw(what, busy)
        if gallery._run and gallery._run.at == 1:
            gallery.stop()

    gallery._draw = stop_at_the_end
    gallery.run(timeout=WAIT)
    assert gallery.controller.started == 1 and "stopped" in gallery._status.value
    assert list(gallery.results.text.str.len() > 0) == [True, True, False, False]


def test_an_error_in_a_later_batch_keeps_the_earlier_ones(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from kit.steering import generation

    gallery, stream, calls = make(*many(4), batch=2), generation.stream, []

    def broken(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of <b>memory</b>")
        return stream(*args, **options)

    monkeypatch.setattr(generation, "stream", broken)
    with pytest.raises(RuntimeError, match="out of <b>memory"):
        gallery.run(timeout=WAIT)
    assert "out of &lt;b&gt;memory" in gallery._message.value and "failed" in gallery._status.value
    assert list(gallery.results.text.str.len() > 0) == [True, True, False, False]
    gallery.run(timeout=WAIT)
    assert gallery.results.text.str.len().gt(0).all() and gallery._message.value == ""


def test_errors_of_the_prompt_are_shown_and_lose_nothing(make: Any) -> None:
    gallery = make(*many(2))
    gallery.run(timeout=WAIT)
    before = list(gallery.results.text)
    for prompt, what in ((" ", "prompt is empty"), ("word " * 400, "context")):
        gallery.controls.prompt.value = prompt
        with pytest.raises(RuntimeError, match=what):
            gallery.run(timeout=WAIT)
        assert list(gallery.results.text) == before and what in gallery._message.value


def test_a_text_of_another_prompt_says_so_until_the_new_one_is_there(make: Any) -> None:
    gallery = make(*many(3))
    gallery.run(timeout=WAIT)
    gallery.hide("f1")
    gallery.controls.prompt.value = "A small boat"
    gallery.run(timeout=WAIT)
    gallery.controls.keep.value = "all"
    bodies = [card.body.value for card in cards(gallery)]
    assert "earlier run: “The kettle”" in bodies[1]
    assert "earlier" not in bodies[0] + bodies[2]
    assert list(gallery.results.prompt) == ["A small boat", PROMPT, "A small boat"]


def test_thirty_moves_and_presses_end_with_the_last(make: Any) -> None:
    gallery = make(*many(6), batch=2, max_new_tokens=8)
    threads = [threading.Thread(target=gallery._post) for _ in range(8)]
    for i in range(30):
        gallery.controls.factor.value = 0.25 + 0.05 * i
        if i % 4 == 0:
            threads[i // 4].start()
        if i % 7 == 3:
            gallery.stop()
    for thread in threads:
        thread.join()
    gallery.run(timeout=WAIT)
    assert list(gallery.results.coefficient) == pytest.approx([0.9 * 1.7] * 6)
    c = gallery.controller
    assert c.failure is None and c.started == c.finished + c.cancelled and not c.busy


def test_a_stale_frame_is_not_taken(make: Any) -> None:
    gallery = make(*many(2))
    gallery.run(timeout=WAIT)
    before = gallery.features[0].result
    row = Row((1.0,), Receipt(), [1], ["x"])
    gallery._run.at = 0  # as while its first batch runs
    gallery._show(Frame(gallery._id - 1, gallery._request(), (row,) * 4, Receipt()))
    assert gallery.features[0].result is before


def test_closing_ends_the_worker(chat: Any) -> None:
    gallery = FeatureGallery(chat, many(40), PROMPT, max_new_tokens=30, batch=4)
    gallery.run(wait=False)
    thread = gallery.controller._thread
    gallery.close()
    assert thread is not None and not thread.is_alive() and kit.hooks_left(chat) == []


# ranks, scores, marks, pages


def test_scores_rank_and_metadata_is_shown() -> None:
    vectors = many(3)
    found = features(vectors, {"kl": [1.0, math.nan, 3.0], "alpha": torch.arange(3.0)}, 0.1)
    assert [f.vector.name for f in found] == ["f2", "f0", "f1"] and found[0].rank == 1
    assert found[0].scores == {"kl": 3.0, "alpha": 2.0}
    frame = pd.DataFrame({"a": [0.0, 1.0, 0.5]})
    assert [f.name for f in features(vectors, frame)] == ["f1", "f2", "f0"]
    assert [f.name for f in features(vectors, [0.0, 1.0, 1.0])] == ["f1", "f2", "f0"]
    known = [vector(i, alpha=float(i), change=2.0) for i in range(2)]
    assert [f.name for f in features(known)] == ["f0", "f1"], "the given order stays"
    assert features(known)[1].scores == {"alpha": 1.0, "change": 2.0}
    assert features(SimpleNamespace(vectors=lambda: known))[1].vector is known[1]


def test_the_coefficient_is_the_calibrated_one() -> None:
    found = features(
        [vector(0, coefficient=0.17), vector(1), vector(2, coefficient="far"), vector(3, coefficient=math.inf)]
    )
    assert [f.coefficient for f in found] == [0.17, 0.3, 0.3, 0.3]
    assert [f.coefficient for f in features(many(2), None, [0.1, -0.2])] == [0.1, -0.2]
    ranked = features(many(2), [0.0, 1.0], [0.1, 0.2])
    assert [f.coefficient for f in ranked] == [0.2, 0.1], "they go with their vectors"


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"scores": [1.0]}, "3 numbers"),
        ({"scores": {"a": [1, 2, "x"]}}, "scores\\['a'\\]"),
        ({"scores": {}}, "at least one set"),
        ({"coefficient": [0.1]}, "3 numbers"),
        ({"coefficient": math.nan}, "finite"),
        ({"coefficient": "big"}, "coefficient='big'"),
        ({"batch": 0}, "batch=0"),
        ({"page_size": 0}, "page_size=0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
    ],
)
def test_refuses_what_makes_no_sense(make: Any, options: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        make(*many(3), **options)


def test_a_foreign_vector_is_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="was made on model"):
        make(vector(), replace(vector(1), fingerprint="0" * 16))
    with pytest.raises(ValueError, match="width"):
        make(kit.SteeringVector(torch.ones(7), 1, "short"))


def test_results_has_the_columns_and_no_score_hides_another(make: Any) -> None:
    gallery = make(*many(2), scores={"kl": [5.0, 7.0], "times": [1.0, 2.0]})
    gallery.run(timeout=WAIT)
    table = gallery.results
    assert list(table.columns[:6]) == ["name", "score", "text", "kl", "starred", "hidden"]
    assert list(table.score) == [7.0, 5.0] and list(table["score kl"]) == [7.0, 5.0]
    assert list(table.times) == [2.0, 1.0] and table.kl.max() < 5
    assert list(table.index) == [1, 2]
    empty = make()
    assert len(empty.results) == 0 and "kl" in empty.results.columns
    with pytest.raises(RuntimeError, match="no feature"):
        empty.run(timeout=WAIT)


def test_stars_names_and_hiding_by_hand(make: Any) -> None:
    gallery = make(*many(5), page_size=3)
    assert names(gallery) == ["f0", "f1", "f2"] and gallery.controls.where.value.count("1–3 of 5")
    first = cards(gallery)[0]
    first.star.value = True
    first.name.value = "pies"
    assert first.star.description == "★"
    assert [v.name for v in gallery.selected] == ["pies"]
    assert gallery.selected[0].direction.equal(vector(0).direction)
    cards(gallery)[1].hide.value = True
    assert names(gallery) == ["pies", "f2", "f3"]
    gallery.controls.on.click()
    assert names(gallery) == ["f4"] and gallery.controls.on.disabled
    gallery.controls.back.click()
    gallery.controls.keep.value = "starred"
    assert names(gallery) == ["pies"]
    gallery.controls.keep.value = "all"
    assert names(gallery) == ["pies", "f1", "f2"]
    cards(gallery)[1].hide.value = False
    cards(gallery)[2].name.value = "  "
    assert names(gallery)[2] == "f2", "no nameless ones"
    gallery.controls.page_size.value = 6
    assert len(cards(gallery)) == 5
    marked = gallery.results
    assert list(marked.name) == ["pies", "f1", "f2", "f3", "f4"]
    assert list(marked.starred) == [True, *[False] * 4] and not marked.hidden.any()


def test_stars_names_and_hiding_from_a_cell(make: Any) -> None:
    gallery = make(*many(3))
    gallery.star(2)
    gallery.rename("f1", "boats")
    gallery.star("f2")
    gallery.hide(1)
    assert [v.name for v in gallery.selected] == ["boats", "f2"] and names(gallery) == ["boats", "f2"]
    gallery.star("boats", False)
    assert [v.name for v in gallery.selected] == ["f2"]
    with pytest.raises(ValueError, match="'f9' is no feature here"):
        gallery.star("f9")


def test_turning_a_page_shows_each_features_own_text(make: Any) -> None:
    gallery = make(*many(6), page_size=2)
    gallery.run(timeout=WAIT)
    seen = []
    for _ in range(3):
        for card in cards(gallery):
            assert card.body.value == markup.body(
                card.feature, PROMPT, min_lines=0.6 + 4.6 * 5 / 40, waiting="not generated"
            )
            seen.append(card.feature.rank)
        gallery.controls.on.click()
    assert seen == [1, 2, 3, 4, 5, 6]


def test_views_sort() -> None:
    found = features([vector(i, name=n) for i, n in enumerate("bAc")])
    for f, kl in zip(found, (0.5, None, 0.1), strict=True):
        f.result = Result("p", 0.3, "t", kl)
    assert [f.name for f in view(found, "all", "kl")] == ["c", "b", "A"], "unmeasured last"
    assert [f.name for f in view(found, "all", "name")] == ["A", "b", "c"]
    assert [f.name for f in view(found, "all", "rank")] == ["b", "A", "c"]


def test_sorting_by_cost_follows_the_run(make: Any) -> None:
    gallery = make(*many(6))
    gallery.controls.sort.value = "kl"
    gallery.run(timeout=WAIT)
    shown = [card.feature.result.kl for card in cards(gallery)]
    assert shown == sorted(shown)


# sets


def test_a_set_comes_back_with_everything(make: Any, tmp_path: Path) -> None:
    vectors = [vector(i, coefficient=0.2 + i, about={"deep": [1, None, "ü"]}) for i in range(4)]
    vectors[1] = replace(vectors[1], norm=2.5, method="melbo")
    gallery = make(*vectors, scores={"alpha": [1.0, 2.0, 3.0, math.nan]}, coefficient=None)
    gallery.controls.factor.value = 0.25
    gallery.run(timeout=WAIT)
    for which, name in ((1, "a/../b"), (2, "same"), (3, "same"), (4, "<b>🙂</b>")):
        gallery.rename(which, name)
    gallery.star(2)
    gallery.hide(3)
    where = gallery.save(tmp_path / "deep" / "set")
    assert len(list(where.iterdir())) == 4 and [p.name for p in tmp_path.iterdir()] == ["deep"]
    other = make(vectors=())
    assert other.load(where) == 4
    pd.testing.assert_frame_equal(other.results, gallery.results)
    for mine, theirs in zip(gallery.features, other.features, strict=True):
        a, b = mine.vector, theirs.vector
        assert b.direction.equal(a.direction) and b.metadata == a.metadata
        assert (b.layer, b.norm, b.method, b.name, b.fingerprint) == (a.layer, a.norm, a.method, a.name, a.fingerprint)
    assert [v.name for v in other.selected] == ["same"]
    again = other.save(where)
    assert again != where and again.name == "set-2" and len(list(where.iterdir())) == 4
    for file in where.iterdir():
        alone = files.load(str(file), gallery._lm)  # any panel can read it
        assert alone.name in ("a/../b", "same", "<b>🙂</b>")


def test_loading_merges_by_direction_and_drops_nothing(make: Any, tmp_path: Path) -> None:
    gallery = make(*many(3))
    gallery.rename(2, "boats")
    gallery.star(2)
    where = gallery.save(tmp_path / "set")
    fresh = make(vector(7), vector(1), vector(2), scores=[3.0, 2.0, 1.0])
    fresh.rename(1, "mine")
    fresh.run(timeout=WAIT)
    text = fresh.results.text[2]
    assert fresh.load(where) == 1
    table = fresh.results
    assert list(table.name) == ["mine", "boats", "f2", "f0"] and list(table.index) == [1, 2, 3, 4]
    assert table.starred[2] and table.text[2] == text and table.score[2] == 2.0
    assert names(fresh) == ["mine", "boats", "f2", "f0"]


def test_buttons_save_and_load(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    gallery = make(*many(2))
    gallery.controls.save.click()
    assert (tmp_path / "features").is_dir() and "Saved 2" in gallery._message.value
    gallery.controls.load.click()
    assert "0 new features" in gallery._message.value
    for path, what in ((" ", "give the folder"), ("nowhere", "no such file")):
        gallery.controls.path.value = path
        gallery.controls.load.click()
        assert what in gallery._message.value and len(gallery.features) == 2
    (tmp_path / "bad").mkdir()
    gallery.controls.path.value = "bad"
    gallery.controls.load.click()
    assert "holds no .safetensors" in gallery._message.value
    (tmp_path / "bad" / "x.safetensors").write_bytes(b"nothing")
    gallery.controls.load.click()
    assert "damaged" in gallery._message.value and len(gallery.features) == 2


def test_a_plain_vector_and_damaged_marks(make: Any, tmp_path: Path) -> None:
    plain = files.save(vector(5, coefficient=0.4), tmp_path)
    (read,) = sets.load(plain)
    assert read.coefficient == 0.4 and not read.starred and read.vector.metadata == {"coefficient": 0.4}
    files.save(replace(vector(6), metadata={"gallery": {"rank": 1}}), tmp_path)
    with pytest.raises(ValueError, match="damaged"):
        sets.load(tmp_path)


def test_factors_come_back_and_are_known_again(tmp_path: Path) -> None:
    reads, writes = torch.eye(8)[:2], torch.eye(6)[:2]
    factor = Factor(reads, writes, (1, 2), 3.0, "f", metadata={"coefficient": 1.0})
    assert files.load(str(files.save(factor, tmp_path)), None).radius == 3.0  # type: ignore[union-attr, arg-type]
    feature = Feature(factor, 1, 1.0, starred=True, result=Result("p", 1.0, "t", 0.5))
    (read,) = sets.load(sets.save([feature], tmp_path / "set"))
    assert isinstance(read.vector, Factor) and read.starred and read.result == feature.result
    torch.testing.assert_close(read.vector.writes, writes)
    assert read.vector.metadata == {"coefficient": 1.0}
    assert sets.merge([feature], [read])[1] == 0
    other = replace(read, vector=replace(factor, radius=4.0))
    assert sets.merge([feature], [other])[1] == 1


def test_what_is_no_vector_runs_and_is_not_saved(make: Any, tmp_path: Path) -> None:
    heads = HeadShift([1, 2])
    gallery = make(heads, coefficient=1.0)
    assert gallery._random is None
    gallery.run(timeout=WAIT)
    assert gallery.results.text[1] and gallery.selected == []
    with pytest.raises(TypeError, match="only vectors and factors"):
        gallery.save(tmp_path / "set")
    assert list(tmp_path.iterdir()) == []
    mixed = make(heads, vector(), coefficient=1.0)
    assert mixed._random is not None
    mixed.run(timeout=WAIT)
    with pytest.raises(TypeError):
        mixed.save(tmp_path / "set")
    assert list(tmp_path.iterdir()) == [], "all or nothing"


# the panel


@pytest.fixture
def panel(chat: Any) -> Iterator[SteeringPanel]:
    built = SteeringPanel(chat, (), PROMPT, max_new_tokens=4)
    yield built
    built.close()


def test_a_feature_goes_to_the_panel_at_its_coefficient(make: Any, panel: Any) -> None:
    gallery = make(*many(3), panel=panel, coefficient=[0.17, 0.25, 0.3])
    gallery.rename(2, "boats")
    cards(gallery)[1].add.click()
    assert panel.controller.wait(WAIT)
    (row,) = panel.vector_rows
    assert row.vector.name == "boats" and row.coefficient == 0.25
    assert panel.rows[1].coefficients == (0.25,) and "boats is on the panel" in (gallery._message.value)
    panel.set("boats", 0.9)
    row.on.value = False
    gallery.rename(2, "ships")
    gallery.to_panel("ships")
    assert panel.controller.wait(WAIT)
    assert len(panel.vector_rows) == 1 and row.coefficient == 0.25 and row.on.value
    gallery.to_panel(1)
    assert panel.controller.wait(WAIT)
    assert [r.vector.name for r in panel.vector_rows] == ["boats", "f0"]


def test_a_rank_dropped_into_the_panels_field_adds_it(make: Any, panel: Any) -> None:
    gallery = make(*many(3), panel=panel)
    (field,) = [c for c in panel.children if "kit-drop" in c._dom_classes]
    assert f'href="data:,{drag_mark(gallery.features[2])}"' in cards(gallery)[2].rank.value
    field.value = "something else"
    assert field.value == "something else" and not panel.vector_rows
    field.value = f"data:,{drag_mark(gallery.features[2])}"
    assert panel.controller.wait(WAIT) and field.value == ""
    assert [r.vector.name for r in panel.vector_rows] == ["f2"]
    field.value = "data:,kit-feature-99"
    assert "99 is no feature" in gallery._message.value
    assert dropped("kit-feature-x") is None and dropped("") is None


def test_without_a_panel_there_is_no_button(make: Any) -> None:
    gallery = make(*many(1))
    assert cards(gallery)[0].add.layout.display == "none"
    with pytest.raises(ValueError, match="panel=None"):
        gallery.to_panel(1)


# HTML


NASTY = "<script>alert(1)</script>"


def test_everything_is_escaped(make: Any, monkeypatch: pytest.MonkeyPatch, chat: Any) -> None:
    gallery = make(vector(0, name=NASTY), vector(1), prompt=f"{NASTY} hi", scores={NASTY: [2.0, 1.0]})
    gallery.run(timeout=WAIT)
    row = Row((0.9,), gallery.features[1].result.row.receipt, [1, 2], [NASTY, "&"], [])
    gallery.features[1].result = Result(f"{NASTY} other", 0.9, row.text, 0.1, row)
    gallery.features[0].result = Result(NASTY, 0.9, NASTY, 0.1, None)  # as read from a file
    gallery._lay_out()
    pages = [
        gallery.frozen_html,
        *(c.body.value for c in cards(gallery)),
        gallery._receipt.value,
        *(p.value for p in gallery._pins),
        *(c.rank.value for c in cards(gallery)),
        gallery._status.value,
        gallery._message.value,
    ]
    assert all("<script" not in page for page in pages)
    assert pages[0].count("&lt;script") >= 5


def test_the_frozen_state(make: Any) -> None:
    gallery = make(*many(4), batch=2)
    assert "not run yet" in gallery.freeze().data
    assert "text/html" not in gallery._repr_mimebundle_()
    gallery.run(timeout=WAIT)
    gallery.rename(1, "pies")
    gallery.star(1)
    gallery.hide(2)
    first = gallery.freeze().data
    assert gallery.freeze().data == first
    gallery.run(timeout=WAIT)
    assert gallery.freeze().data == first, "the same state gives the same HTML"
    for part in (
        PROMPT,
        "1. pies",
        "★",
        "Unsteered",
        "Random direction",
        "3. f2",
        "4. f3",
        "clean",
        "3 of 4 features are shown",
        "each steered by its own vector alone",
    ):
        assert part in first, part
    assert "2. f1" not in first and "<script" not in first
    bundle = gallery._repr_mimebundle_()
    assert bundle["text/html"] == first and "application/vnd.jupyter.widget-view+json" in bundle
    gallery.controls.freeze.click()
    assert gallery._area.value == first, "not displayed by IPython: below the gallery"


def test_a_frozen_gallery_of_64_is_small(make: Any) -> None:
    gallery = make(*many(64), batch=32, max_new_tokens=24)
    gallery.run(timeout=120)
    assert len(gallery.frozen_html) < 400_000


def test_the_receipt_tells_of_a_text_steered_by_others() -> None:
    def entry(name: str, n: int) -> Entry:
        return Entry(name, [3], "add", [n], [n], [[0.5] * n])

    def feature(name: str, *entries: Entry) -> Feature:
        row = Row((1.0,), Receipt(list(entries), 4, 4, []), [1], ["x"])
        return Feature(vector(name=name), 1, 0.3, result=Result("p", 0.3, "x", None, row))

    good = feature("a", entry("a", 4), entry("b", 0))
    text = markup.receipt([good])
    assert text.startswith("1 texts, each steered by its own vector alone · layer 3 · add · 4/4")
    for bad in (feature("a", entry("a", 4), entry("b", 1)), feature("a", entry("b", 4)), feature("a", entry("a", 0))):
        assert "not by their own vector alone: a" in markup.receipt([good, bad])


def test_the_estimate() -> None:
    found = features(many(6))
    request = Request("p", (), max_new_tokens=10, measure=False)
    pin = Feature(None, 0, 0.0, name="Unsteered")  # type: ignore[arg-type]
    run = Batches.plan(request, 1.0, [pin], found, 3, started=100.0)
    assert [len(b) for b in run.batches] == [4, 3] and run.total == 6
    frame = Frame(1, run.next_request(), (), Receipt())
    assert run.left(frame, 105.0) is None
    half = replace(frame, steps=5)
    assert run.share(half) == 0.25 and run.left(half, 105.0) == pytest.approx(15.0)
    rows = tuple(Row((1.0,), Receipt(), [1], ["x"]) for _ in run.batch)
    run.take(replace(frame, rows=rows, done=True, steps=10))
    assert run.at == 1 and run.share(None) == 0.5 and run.left(None, 110.0) == pytest.approx(10.0)
    assert found[2].done(run.key(found[2])) and not found[3].done(run.key(found[3]))
    shown = markup.progress("generating", 3, 6, 0.5, 9.6)
    assert "generating · 3 of 6 features · about 10 s to go" in shown and "width:50.0%" in shown


# the panel's row


def test_a_range_from_a_radius_makes_no_claim_about_cost(panel: Any) -> None:
    found = Dose(low=-0.1717, high=0.1717, kind="radius", target=0.5)
    panel.add(vector(**found.metadata()))
    row = panel.vector_rows[0]
    assert ">radius ±0.17<" in row._range.value
    assert "non-linear part of the change is half the linear part" in row._range.value
    assert "KL" not in row._range.value and row.safe == (-0.1717, 0.1717)
    assert range_label(replace(found, target=0.25))[1].endswith("0.25 times the linear part")
    assert range_label(replace(found, target=None))[0] == "radius ±0.17"
    assert range_label(replace(found, low=-0.1))[0] == "radius −0.10 to +0.17"
    text, why = range_label(Dose(low=-0.4, high=0.4, target=0.7))
    assert text == "KL<0.7 −0.40 to +0.40" and "0.7 nats" in why
