"""Estimates: the algebra on a clock that the test moves, what is counted, and what they say."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kit.cli import estimates, timing
from kit.cli.timing import Estimate, Line, duration, line
from kit.sae import FeatureStore, Neurons, Site, Source
from kit.search import dct, melbo
from kit.search.layer_slice import LayerSlice
from kit.steering.sweep import sweep
from tests import tiny


class Clock:
    """Time that passes only while jobs run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.sizes = 0.0, []
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)

    def job(self, fixed: float, each: float, first: float = 0.0) -> Any:
        def run(size: int) -> None:
            self.now += fixed + each * size + (first if not self.sizes else 0)
            self.sizes.append(size)

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def estimate(**changes: Any) -> Estimate:
    gb = 2**30
    return replace(Estimate("harvest", 1000, 600.0, 0.1, gb, 2 * gb, 8 * gb, 50 * gb, 1.5), **changes)


# --- the line -------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 2, 3, 16, 1000])
def test_what_a_call_costs_is_told_from_what_an_item_costs(clock: Clock, most: int) -> None:
    found = line(clock.job(0.002, 0.001, first=9.0), most)  # the first call warms up
    if most == 1:
        assert (found.fixed, found.each) == pytest.approx((0, 0.003))
    else:
        assert (found.fixed, found.each) == pytest.approx((0.002, 0.001))
    assert max(clock.sizes) <= most and found.spread == pytest.approx(0)
    assert found.seconds(most) == pytest.approx(0.002 + 0.001 * most)


def test_the_probe_keeps_to_its_budget(clock: Clock) -> None:
    line(clock.job(0.0, 0.1), 1000, budget=2.0)
    assert clock.now < 2 * 2.0 and max(clock.sizes) >= 8
    start = clock.now
    line(clock.job(0.0, 5.0), 1000, budget=1.0)  # a single item exceeds it
    assert clock.now - start == pytest.approx(5 * 2)


def test_a_clock_that_only_makes_noise_gives_no_negative_price(monkeypatch: Any) -> None:
    times = iter([0, 0, 0, 5, 10, 12, 20, 21, 30, 35, 40, 42, 50, 51] + list(range(60, 900)))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(times)))
    found = line(lambda _n: None, 8, budget=100.0)
    assert found.each > 0 and found.fixed >= 0


def test_calls_are_counted_whole() -> None:
    found = Line(1.0, 0.5)
    assert found.seconds(10) == 6.0
    assert found.seconds(10, most=4) == 3 * 1.0 + 10 * 0.5
    with pytest.raises(ValueError, match="most=0"):
        line(lambda _n: None, 0)


def test_memory_is_what_a_run_adds() -> None:
    held = []
    grown = timing.memory(lambda: held.append(bytearray(b"x") * 300_000_000))
    assert 280_000_000 < grown < 400_000_000


# --- what it says ---------------------------------------------------------------------------------


def test_two_lines(clock: Clock) -> None:
    text = str(estimate())
    assert text.splitlines() == [
        "harvest: 1,000 tokens · 10 minutes (7.7 minutes to 13 minutes) · "
        "memory 1.0 GB of 8.0 GB free · disk 2.0 GB of 50 GB free",
        "fits: about 10 minutes (probed here for 1.5 s)",
    ]
    assert "disk" not in str(estimate(disk_bytes=0))
    assert "under 0.1 GB of" in str(estimate(memory_bytes=1000))
    assert str(estimate(note="no answer ended early")).endswith("; no answer ended early)")


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"seconds": 3599}, "fits: about 60 minutes"),
        ({"seconds": 3.3 * 3600}, "fits a night: about 3.3 hours"),
        (
            {"seconds": 20 * 3600},
            "leave the laptop: about 20 hours here; a machine k times as fast takes a k-th of it (10 times: 2.0 hours)",
        ),
        (
            {"memory_bytes": 31 * 2**30},
            "leave this machine, or ask for less at a time: 31 GB of memory, and 8.0 GB are free",
        ),
        ({"disk_bytes": 60 * 2**30}, "give a folder on another disk: 60 GB, and 50 GB are free"),
    ],
)
def test_when_to_leave(changes: dict[str, Any], advice: str) -> None:
    assert estimate(**changes).advice == advice
    assert estimate(**changes).fits is ("GB" not in advice)


def test_the_range_is_never_narrower_than_what_machines_do() -> None:
    wide, narrow = estimate(spread=1.0), estimate(spread=0.0)
    assert (wide.low, wide.high) == (300, 1200)
    assert narrow.high / narrow.seconds == narrow.seconds / narrow.low == pytest.approx(1.3)


def test_a_name_is_text_and_never_html() -> None:
    html = estimate(what="<script>x</script>", note="a < b")._repr_html_()
    assert "<script" not in html and "&lt;script&gt;" in html and "a &lt; b" in html
    assert "fits: about 10 minutes" in html and "1,000 tokens" in html


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.44, "0.4 s"),
        (89, "89 s"),
        (90, "1.5 minutes"),
        (5399, "90 minutes"),
        (5400, "1.5 hours"),
        (47 * 3600, "47 hours"),
        (72 * 3600, "3.0 days"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# --- what is counted ------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Rows that each kind of pass takes; and every line costs a second an item."""
    seen: dict[str, int] = {}
    for name in ("delta", "vjp", "jvp", "second", "gradient"):

        def watch(
            self: Any, rows: Any, *rest: Any, plain: Any = getattr(LayerSlice, name), name: str = name, **more: Any
        ) -> Any:
            seen[name] = seen.get(name, 0) + len(rows)
            return plain(self, rows, *rest, **more)

        monkeypatch.setattr(LayerSlice, name, watch)
    return seen


@pytest.mark.parametrize("method", dct.METHODS)
def test_an_estimate_counts_the_passes_that_the_fit_takes(
    llama: Any, counted: dict[str, int], monkeypatch: pytest.MonkeyPatch, method: Any
) -> None:
    prompts = tiny.prompt(llama)
    options: dict[str, Any] = {"method": method, "n_features": 5, "radius": 3.0, "iterations": 3}
    piece = LayerSlice(llama, prompts, 0, 2)
    dct.fit_map(piece, **options)
    truth = sum(counted.values())
    monkeypatch.setattr(estimates, "line", lambda _job, _most, _budget: Line(0.0, 1.0))
    found = estimates.dct(llama, prompts, 0, 2, **options)
    assert found.tokens == truth * 12
    svd = (48 / 48) ** 3 if method == "linear" else 0
    assert found.seconds == pytest.approx(truth + svd, abs=0.9)  # the slice itself takes some


@pytest.mark.parametrize("together", [True, False])
def test_an_estimate_counts_the_steps_of_melbo(
    llama: Any, counted: dict[str, int], monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    prompts = [tiny.prompt(llama, 12)[0], tiny.prompt(llama, 9)[0]]
    options: dict[str, Any] = {"steps": 4, "restarts": 2, "together": together, "radius": 3.0}
    melbo.fit_slice(LayerSlice(llama, prompts, 0, 2), 3, **options)
    truth = sum(counted.values())
    monkeypatch.setattr(estimates, "line", lambda _job, most, _budget: Line(0.0, float(most > 1)))
    found = estimates.melbo(llama, prompts, 0, 2, 3, **options)
    assert found.tokens == truth * 2 * 12
    assert found.seconds == pytest.approx(truth, abs=0.9)


def test_an_auto_radius_is_counted(llama: Any) -> None:
    given = estimates.dct(llama, tiny.prompt(llama), 0, 2, n_features=4, radius=3.0, budget=0.1)
    auto = estimates.dct(llama, tiny.prompt(llama), 0, 2, n_features=4, budget=0.1)
    assert auto.tokens - given.tokens == 12 * 30 * (1 + estimates._RADII)


def test_a_harvest_grows_with_its_tokens(llama: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(estimates, "line", lambda _job, _most, _budget: Line(2.0, 1.0))
    one, ten = (
        estimates.harvest(llama, n, 1, context=32, folder=tmp_path / "absent" / "too") for n in (16 * 32, 160 * 32)
    )
    assert (one.seconds, ten.seconds) == (2 + 16, 10 * (2 + 16))
    source = Source(
        llama, list(tiny.SENTENCES) * 40, [Site(1), Site(2, "mlp_out")], batch=8, context=32, rows=16, cache=tmp_path
    )
    told = estimates.filling(source)
    assert told.tokens == source.chunks * 16 * 32 and not list(tmp_path.iterdir())
    source.fill()
    written = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert told.disk_bytes == pytest.approx(written, rel=0.02)


def test_a_store_takes_what_fires(llama: Any, tmp_path: Path, monkeypatch: Any) -> None:
    latents, tokens = Neurons(llama, 1), tiny.prompt(llama, 32).expand(40, -1)
    monkeypatch.setattr(estimates, "line", lambda _job, _most, _budget: Line(2.0, 1.0))
    monkeypatch.setattr(estimates, "memory", lambda _job: 1000)
    told = {path: estimates.store(latents, llama, tokens, path) for path in (None, tmp_path / "store")}
    found = FeatureStore.build(latents, llama, tokens, path=tmp_path / "store")
    n = len(found.where)
    assert n > 1000 and {each.seconds for each in told.values()} == {3 * 2 + 40}
    assert told[None].memory_bytes == 1000 + 95 * n + 4 * tokens.numel()
    assert told[tmp_path / "store"].disk_bytes == pytest.approx((tmp_path / "store").stat().st_size, abs=2000)
    assert not told[None].disk_bytes
    monkeypatch.setattr(estimates, "RUN", 100)  # then runs go to the disk
    many = estimates.store(latents, llama, tokens)
    assert many.disk_bytes == 16 * n and many.memory_bytes == 1000 + 95 * 100 + 4 * tokens.numel()


def test_a_training_is_its_steps_and_its_harvest(llama: Any, monkeypatch: Any) -> None:
    def told(job: Any, most: int, _budget: float) -> Line:
        job(1)
        return Line(0.0, 1.0 if most == 16 else 100.0)  # 16 rows of a harvest; 2 units of a batch

    monkeypatch.setattr(estimates, "line", told)
    options: dict[str, Any] = {"tokens": 1280, "batch": 128, "context": 33, "rows": 20, "widths": (1, 2), "k": 4}
    cached = estimates.sae_training(llama, 1, **options, cached=True)
    assert cached.seconds == 10 * 2 * 100 and "2 dictionaries at resid 1" in cached.what
    whole = estimates.sae_training(llama, 1, **options)
    assert whole.seconds - cached.seconds == 2 * 20  # two chunks of 20 rows


def test_a_sweep_is_as_many_ladders_as_it_runs(llama: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [tiny.prompt(llama, n) for n in (5, 20, 9)]
    given: dict[str, Any] = {"layers": [1, 2], "coefficients": [0.1, 0.2], "max_new_tokens": 7}
    ran: list[tuple[int, int]] = []
    plain = estimates.ladder

    def watch(model: Any, vector: Any, prompt: Any, *rest: Any) -> Any:
        ran.append((vector.layer, prompt.shape[1]))
        return plain(model, vector, prompt, *rest)

    monkeypatch.setattr(estimates, "ladder", watch)
    monkeypatch.setattr(estimates, "line", lambda job, most, _budget: (job(1), Line(1.0, most))[1])
    found = estimates.sweep(llama, tiny.vector(llama, 1), prompts, **given, judge=len)
    assert set(ran) == {(2, 9)}  # the middle layer and the middle prompt
    assert found.seconds == 6 * (1 + 7 * 7)
    table = sweep(llama, tiny.vector(llama, 1), prompts, **given, judge=len)
    assert re.match(r"sweep, 6 ladders of 3 rows", found.what) and len(table) == 6 * 2


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m: estimates.harvest(m, 0, 1), "tokens=0"),
        (lambda m: estimates.harvest(m, 100, 9), "layer=9"),
        (lambda m: estimates.harvest(m, 100, 1, "z"), "site='z'"),
        (lambda m: estimates.sae_training(m, 1, tokens=1.5), "tokens=1.5"),
        (lambda m: estimates.sae_training(m, 1, architecture="x", context=20), "architecture='x'"),
        (lambda m: estimates.melbo(m, tiny.prompt(m), 2, 1), "source=2, target=1"),
        (lambda m: estimates.melbo(m, tiny.prompt(m), 0, 1, steps=0), "steps=0"),
        (lambda m: estimates.dct(m, tiny.prompt(m), 0, 1, method="cubic"), "method='cubic'"),
        (lambda m: estimates.sweep(m, tiny.vector(m, 1), ["a"]), "give targets"),
        (lambda m: estimates.sweep(m, tiny.vector(m, 1), [], judge=len), "prompts="),
        (lambda m: estimates.sweep(m, tiny.vector(m, 1), ["a"], [], judge=len), "layers="),
    ],
)
def test_what_makes_no_sense_is_refused(llama: Any, call: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call(llama)
