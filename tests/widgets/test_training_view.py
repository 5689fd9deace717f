"""The training view without a browser: what it keeps, what its controls do, what it leaves."""

from __future__ import annotations

import _thread
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kit.models.activations import capture
from kit.sae import Site, Source, Training, evaluate, pack
from kit.widgets import TrainingView
from kit.widgets.training import charts
from kit.widgets.training import run as training_run
from kit.widgets.training.held_out import LIVELY, HeldOut, Look
from tests import tiny

TEXTS = [sentence for _ in range(12) for sentence in tiny.SENTENCES]
NAMES = ["resid 2 x1", "resid 2 x2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny.load(tmp_path_factory.mktemp("view"), "llama")


@pytest.fixture(scope="module")
def held_out(model: Any) -> torch.Tensor:
    """Rows of words in an order that nothing was trained on."""
    rng = torch.Generator().manual_seed(5)
    tokens = pack(model, TEXTS, 20)[:6]
    tokens[:, 1:] = tokens[:, 1:].flatten()[torch.randperm(6 * 19, generator=rng)].reshape(6, 19)
    return tokens


def training(model: Any, **options: Any) -> Training:
    settings: dict[str, Any] = {"widths": [1, 2], "k": 4, "steps": 30} | options
    return Training(Source(model, TEXTS, [Site(2)], batch=64, context=20, rows=16), **settings)


@pytest.fixture
def make(model: Any, held_out: torch.Tensor) -> Iterator[Callable[..., TrainingView]]:
    made = []

    def view(run: Training | None = None, **options: Any) -> TrainingView:
        made.append(TrainingView(run or training(model), held_out, **{"refresh": 0.0} | options))
        return made[-1]

    yield view
    for one in made:
        one.close()


def at(run: Training, jobs: dict[int, Callable[[], Any]]) -> None:
    """Do something on the training thread, in the middle of a step."""
    advance = run.advance

    def also() -> Any:
        jobs.get(run.step, lambda: None)()
        return advance()

    run.advance = also  # type: ignore[method-assign]


def vertices(html: str) -> list[int]:
    return [len(found.split()) for found in re.findall(r'class="line" points="([^"]*)"', html)]


# --- a whole run ---------------------------------------------------------------------------------


def test_the_history_is_that_of_the_training(model: Any, make: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(training_run, "_SHARE", float("inf"))
    plain, want = training(model), {}
    while plain.step < plain.steps:
        outputs = plain.advance()
        want[plain.step] = plain.report(outputs).figures
    view = make(every=5)
    assert not view.has_run and "Press Start" in view.frozen_html
    view.run(timeout=120)
    table = view.history
    assert list(table.columns) == ["step", "name", "loss", "explained_variance", "l0", "dead", "ce_recovered"]
    tenths_and_fives = sorted({*range(3, 31, 3), *range(5, 31, 5)})
    assert [r.step for r in view.reports] == tenths_and_fives
    assert list(table.step) == [s for s in tenths_and_fives for _ in NAMES]
    for row in table.itertuples():
        figures = want[row.step][row.name]
        assert row.loss == pytest.approx(figures.loss, rel=1e-4)
        assert row.explained_variance == pytest.approx(figures.explained_variance, abs=1e-4)
        assert (row.l0, row.dead) == pytest.approx((figures.l0, figures.dead), abs=1e-4)
    measured = table.dropna()
    chosen, other = (measured[measured.name == name] for name in reversed(NAMES))
    assert list(chosen.step) == list(range(3, 31, 3)), "the chosen one at each tenth"
    assert list(other.step) == [30], "all of them at the end"


def test_ce_recovered_is_that_of_evaluate(model: Any, make: Any, held_out: torch.Tensor) -> None:
    view = make(ce_rows=3)
    view.run(timeout=120)
    last = view.history.set_index(["step", "name"]).ce_recovered
    for d in view.training.dictionaries():
        want = evaluate(d, model, held_out, rows=3).ce_recovered
        assert last[30, d.name] == pytest.approx(want, abs=1e-4)


def test_texts_are_packed_like_those_that_are_trained_on(model: Any) -> None:
    view = TrainingView(training(model), TEXTS[:9], rows=2)
    assert torch.equal(view._run.held.tokens, pack(model, TEXTS[:9], 20)[:2])
    assert "2 of 2 held-out rows are also trained on" in view._status.value
    view.close()


def test_looking_keeps_to_its_share_of_the_time(make: Any) -> None:
    view = make(every=10**6)
    run = view._run
    run.trained, run.looked = 100.0, 7.0
    assert run._affordable(0.5) and not run._affordable(1.5)
    assert view.share == pytest.approx(7 / 107)


# --- stop and resume -----------------------------------------------------------------------------


def test_stopped_and_resumed_is_the_same_curve(model: Any, make: Any, tmp_path: Path) -> None:
    whole = make(every=1)
    whole.run(timeout=120)
    run = training(model)
    view = make(run, every=1, folder=tmp_path)
    at(run, {11: view.stop})
    view.run(timeout=120)
    assert run.step == 12 and "stopped" in view._status.value and not view.running
    assert view.start.description == "Resume" and not view.start.disabled
    restored = training(model)
    restored.restore(tmp_path)
    assert restored.step == 12, "a stop leaves a checkpoint"
    view.start.click()
    view.wait(120)
    assert "done" in view._status.value and view.start.disabled
    assert list(view.history.step) == list(whole.history.step)
    assert list(view.history.loss) == pytest.approx(list(whole.history.loss), rel=1e-4)
    again = make(training(model), folder=tmp_path)
    assert again.training.step == 30, "a new view goes on from the checkpoint"


def test_an_interrupt_keeps_the_checkpoint(model: Any, make: Any, tmp_path: Path) -> None:
    run = training(model, steps=100_000)
    view = make(run, folder=tmp_path)
    # a shell starts background jobs with interrupts ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(1.0, _thread.interrupt_main).start()
        with pytest.raises(KeyboardInterrupt):
            view.run(timeout=60)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not view.running and 0 < run.step < 100_000
    restored = training(model, steps=100_000)
    restored.restore(tmp_path)
    assert restored.step == run.step


def test_a_wait_can_end_first(model: Any, make: Any) -> None:
    run = training(model)
    view = make(run)
    gate = threading.Event()
    at(run, {3: gate.wait})
    with pytest.raises(TimeoutError, match=r"within 0\.3 seconds"):
        view.run(timeout=0.3)
    gate.set()
    view.wait(120)
    assert run.step == 30


def test_two_views_never_train_at_once(make: Any, model: Any) -> None:
    run = training(model)
    one, two = make(run), make(run)
    gate = threading.Event()
    at(run, {2: gate.wait})
    one.run(wait=False)
    one.run(wait=False)  # it runs already: nothing
    with pytest.raises(RuntimeError, match="another view"):
        two.run(timeout=10)
    two.start.click()
    assert "another view" in two._message.value
    gate.set()
    one.wait(120)
    assert run.step == 30
    two.run(timeout=60)  # free again, and at its end


# --- while it trains -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "label"),
    [("batchtopk", "k"), ("topk", "k"), ("standard", "L1 coefficient"), ("jumprelu", "L0 coefficient")],
)
def test_the_sparsity_field_is_the_training_s(model: Any, make: Any, architecture: Any, label: str) -> None:
    told = {"k": 4} if label == "k" else {"k": 32, "sparsity": 1.0}
    run = training(model, architecture=architecture, **told)
    view = make(run, every=1)
    field = view.sparsity
    assert field.description == label and field.value == run.sparsity
    values: list[float] = []

    def middle() -> None:
        thread = threading.Thread(target=lambda: setattr(field, "value", 2))
        thread.start()
        thread.join(10)
        values.append(run.sparsity)

    at(run, {15: middle})
    view.run(timeout=120)
    assert values == [4.0 if label == "k" else 1.0], "not in the middle of a step"
    assert run.sparsity == 2 == field.value and run.changes == [(16, 2)]
    if label == "k":
        l0 = view.history.groupby("step").l0.mean()
        assert l0[16] == pytest.approx(4, abs=0.1) and l0[17] == pytest.approx(2, abs=0.1)
        assert "dotted: k" in view.frozen_html
        run.sparsity = 3
        field.value = 10**6  # the field keeps to what the narrowest dictionary has
        assert run.sparsity == 48
    else:
        assert "dotted: k" not in view.frozen_html


def test_a_refused_sparsity_is_told_and_taken_back(make: Any) -> None:
    view = make()
    view._set_sparsity(-3)
    assert "k=-3" in view._message.value
    view.run(timeout=120)
    assert view.sparsity.value == 4 == view.training.sparsity


def test_another_latent_and_dictionary_while_it_runs(model: Any, make: Any) -> None:
    run = training(model)
    view = make(run)
    seen: list[Any] = []

    def wish(what: Any, value: Any) -> Callable[[], None]:
        def job() -> None:
            thread = threading.Thread(target=lambda: setattr(what, "value", value))
            thread.start()
            thread.join(10)

        return job

    at(
        run,
        {
            5: wish(view.number, 17),
            7: lambda: seen.append((view.latent, view._run.look.latent)),
            12: wish(view.choose, NAMES[0]),
            14: lambda: seen.append(view._run.look.name),
            20: wish(view.number, 40),
        },
    )
    view.run(timeout=120)
    assert seen == [(17, 17), NAMES[0]]
    assert view.selected == NAMES[0] and view.number.max == 47
    assert view.latent == view.number.value == 40 == view._run.look.latent
    assert "latent #40" in view.frozen_html
    view.select(NAMES[1])
    assert view.number.max == 95 and view._run.look.name == NAMES[1]
    view.show(90)
    view.next.click()
    assert view.latent != 90 and view._run.look.latent == view.latent == view.number.value


def test_an_error_reaches_the_view_and_run(make: Any, monkeypatch: Any) -> None:
    view = make()

    def broken(number: int) -> Any:
        raise ValueError("disk <full>")

    monkeypatch.setattr(view.training.source, "harvest", broken)
    with pytest.raises(RuntimeError, match="training failed: disk <full>"):
        view.run(timeout=60)
    assert "disk &lt;full&gt;" in view._message.value and "failed" in view._status.value
    assert not view.running and "disk &lt;full&gt;" in view.frozen_html
    step = view.training.step
    monkeypatch.undo()
    view.run(timeout=60)  # mended, it goes on
    assert 0 < step < 30 == view.training.step
    assert "disk" not in view.frozen_html


# --- what is shown -------------------------------------------------------------------------------


def test_examples_and_densities_are_those_of_brute_force(model: Any, make: Any, held_out: torch.Tensor) -> None:
    view = make(rows=5)
    view.run(timeout=120)
    (d,) = [d for d in view.training.dictionaries() if d.name == view.selected]
    x = capture(model, held_out[:5], [(2, "resid")])[2, "resid"]
    latents = d.encode(x)
    norm = x.norm(dim=-1)
    counts = norm <= 10 * norm[:, 1:].median(1, keepdim=True).values
    counts[:, 0] = False
    latents[~counts] = 0
    density = (latents > 0).sum((0, 1)) / counts.sum()
    assert torch.allclose(view._run.look.density, density)
    busy = int(density.argmax())
    view.show(busy)
    best, where = latents[..., busy].max(1)
    order = best.argsort(descending=True)
    order = order[best[order] > 0]
    assert len(view.examples) == len(order) > 1
    for e, row in zip(view.examples, order.tolist(), strict=True):
        assert e.value == pytest.approx(float(best[row]), rel=1e-4)
        assert e.row == row and e.first + e.at == int(where[row])
        piece = slice(e.first, e.first + len(e.tokens))
        assert torch.equal(e.tokens, held_out[row, piece])
        assert torch.allclose(e.values, latents[row, piece, busy], atol=1e-4)


def test_sinks_count_for_nothing(model: Any, held_out: torch.Tensor) -> None:
    x = capture(model, held_out, [(2, "resid")])[2, "resid"]
    norm = x.norm(dim=-1)
    want = (norm <= 1.1 * norm[:, 1:].median(1, keepdim=True).values)[:, 1:].sum()
    held = HeldOut(model, held_out, [Site(2)], sink=1.1)
    held.read()
    assert held.n_tokens(Site(2)) == want < held_out.numel() - len(held_out)


def test_next_lively_goes_round() -> None:
    density = torch.tensor([0.0, 0.01, 0.5, 0.02, 1e-5, 0.002])
    look = Look("d", 1, density, 0, [])
    assert [look.next_lively(i) for i in (0, 1, 3, 5)] == [1, 3, 5, 1]
    assert [look.lively(i) for i in range(6)] == [False, True, False, True, False, True]
    none = Look("d", 1, torch.tensor([0.0, 0.9, LIVELY[1] * 1.5]), 0, [])
    assert none.next_lively(0) == 2, "else the nearest one"


def test_a_frozen_view_holds_the_charts_and_no_script(make: Any) -> None:
    view = make(every=3)
    view._words = lambda ids: ["<script>alert(1)</script>" for _ in ids]
    view.run(timeout=120)
    view.show(int(view._run.look.density.argmax()))
    html = view.frozen_html
    points = vertices(html)
    assert points[:8] == [10] * 8, "loss, explained variance, L0, dead: two lines of ten points"
    recovered = view.history.dropna().groupby("name").size()
    assert points[8:] == [recovered[name] for name in NAMES]
    assert html.count('class="bar"') == 24
    assert "<script" not in html and "&lt;script&gt;" in html
    assert all(name in html for name in NAMES) and "step 30 of 30" in html
    last = view.history.iloc[-1]
    assert f"{last.loss:.3g}" in html and f"{last.explained_variance:.3g}" in html
    assert view.freeze().data == html and view._repr_mimebundle_()["text/html"] == html
    view.freeze_button.click()
    assert view._area.value == html


@pytest.mark.parametrize(
    ("points", "options", "want"),
    [
        ([(0, 0.0), (10, 1.0)], {"low": 0, "high": 1}, ["36.0,90.0", "226.0,6.0"]),
        ([(0, -9.0), (10, 9.0)], {"low": 0, "high": 1}, ["36.0,90.0", "226.0,6.0"]),
        ([(0, 1.0), (5, 10.0), (10, 100.0)], {}, ["36.0,90.0", "131.0,48.0", "226.0,6.0"]),
        ([(0, 1.0), (5, float("nan")), (10, 3.0)], {}, ["36.0,90.0", "226.0,6.0"]),
        ([(10, 2.0)], {}, ["226.0,48.0"]),
    ],
    ids=["its range", "beyond", "log", "nan", "one point"],
)
def test_points_stand_where_they_belong(points: Any, options: Any, want: list[str]) -> None:
    html = charts.lines("<b>", {"a<b": points}, 10, **options)
    assert re.findall(r'class="line" points="([^"]*)"', html)[0].split() == want
    assert "<b></b>" not in html and "a&lt;b" in html
    assert ("log scale" in html) == (max(y for _, y in points) == 100)


def test_a_long_history_is_thinned_and_keeps_its_end() -> None:
    (line,) = re.findall(
        r'class="line" points="([^"]*)"', charts.lines("x", {"a": [(i, float(i)) for i in range(5000)]}, 4999)
    )
    assert len(line.split()) <= 401 and line.split()[-1] == "226.0,6.0"


# --- wrong arguments -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"every": 0}, "every=0"),
        ({"rows": 1.5}, r"rows=1\.5"),
        ({"ce_rows": True}, "ce_rows=True"),
        ({"refresh": -1}, "refresh=-1"),
        ({"refresh": float("nan")}, "refresh=nan"),
        ({"held_out": []}, "held_out: texts="),
        ({"held_out": ["short"]}, "held_out: texts hold"),
        ({"held_out": torch.zeros(3)}, r"held_out has shape \[3\]"),
        ({"held_out": torch.zeros(3, 9)}, r"held_out holds torch\.float32"),
        ({"held_out": torch.full((3, 9), 10**6)}, "from 1000000 to 1000000"),
        ({"training": "a run"}, "training='a run'"),
    ],
)
def test_the_view_names_what_is_wrong(model: Any, held_out: torch.Tensor, options: dict[str, Any], names: str) -> None:
    settings = {"training": training(model), "held_out": held_out} | options
    with pytest.raises(ValueError, match=names):
        TrainingView(settings.pop("training"), settings.pop("held_out"), **settings)


def test_unknown_latents_and_dictionaries_are_named(make: Any) -> None:
    view = make()
    with pytest.raises(ValueError, match="latent=96: this dictionary has 0 to 95"):
        view.show(96)
    with pytest.raises(ValueError, match="latent=True"):
        view.show(True)
    with pytest.raises(ValueError, match="name='x9': use 'resid 2 x1', 'resid 2 x2'"):
        view.select("x9")
