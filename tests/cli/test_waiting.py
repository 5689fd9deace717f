"""The probe of how threads should wait: what it chooses, when it runs; one real, short run of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from kit.base import threads
from kit.cli import doctor, waiting
from kit.cli.waiting import chosen, fastest, once  # themselves: in tests nothing else may probe
from kit.models.fast_linear import ROWS, ways


def told(nine: float, busy: float) -> dict[str, Any]:
    return {"usual": 4, "quiet": nine, "busy": busy}


def times(torch: float, numpy: float, together: float, half: float = 5.0) -> dict[str, Any]:
    """One row by two libraries on one thread, by both in the same time on all; nine by the first."""
    alone = {"1": {"torch": torch, "numpy": numpy}} | {n: {"torch": 9.0, "numpy": 30.0} for n in ("3", "9", "64")}
    both = {n: {"torch": together, "numpy": together + 3 * (n != "1")} for n in ("1", "3", "9", "64")}
    return {"alone": alone, "together": both, "bfloat16": half}


def test_the_least_harm_of_those_that_cost_nothing() -> None:
    found = {"torch's own": told(20, 300), "short": told(21.5, 60), "longer": told(20, 90), "none": told(30, 40)}
    kept = chosen(found)
    assert kept["waiting"] == "short" and kept["default"] == 4 and kept["spinning"] == found
    assert chosen(found | {"short": told(22.5, 60)})["waiting"] == "longer"


def test_one_row_on_all_threads_where_that_is_a_fifth_faster() -> None:
    assert fastest(times(10, 8, together=6.3), 4)["one row"] == 4
    assert fastest(times(10, 8, together=6.5), 4)["one row"] == 1


def test_the_fastest_library_for_each_number_of_rows() -> None:
    found = fastest(times(10, 8, together=9, half=6), 2)
    assert found["products"] == {"alone": "numpy torch torch torch", "together": "torch torch torch torch"}
    assert found["bfloat16"] == 6 / 8 and found["multiplying"]["bfloat16"] == 6


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, a quiet machine of two cores, and a probe that takes no time."""
    env = {name: at for name, at in os.environ.items() if name not in (*threads.WAITS, "OMP_NUM_THREADS")}
    monkeypatch.setattr(os, "environ", env | {"KIT_CACHE": str(tmp_path)})
    monkeypatch.setattr(threads, "_set", {})
    monkeypatch.setattr(threads, "_bound", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(psutil, "cpu_percent", lambda seconds: 3.0)
    quick = lambda code, settings: told(20, 60 - len(settings)) if code == waiting._SPINNING else times(10, 8, 9)
    monkeypatch.setattr(waiting, "_run", quick)
    threads.kept.cache_clear()
    return tmp_path


@pytest.fixture(autouse=True)
def nothing_stays(monkeypatch: pytest.MonkeyPatch) -> Any:
    yield
    monkeypatch.undo()
    threads.kept.cache_clear()


def test_it_runs_once_and_what_it_found_holds(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads.prepare()
    found = once()
    assert found["waiting"] == "short" and json.loads((place / threads.KEPT).read_text()) == found
    assert threads.kept() == found
    monkeypatch.setattr(waiting, "_run", lambda code, settings: pytest.fail("again"))
    assert once() == found
    monkeypatch.setattr(doctor.waiting, "once", once)
    assert doctor._threads(quick=False).detail.endswith(
        "waiting short, as measured here; one row by numpy, nine by torch"
    )


def test_what_it_found_is_in_the_environment_of_what_starts_next(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads.prepare()
    passive = lambda settings: told(20, 10 if "OMP_WAIT_POLICY" in settings else 60)
    monkeypatch.setattr(
        waiting, "_run", lambda code, settings: passive(settings) if code == waiting._SPINNING else times(10, 8, 9)
    )
    once()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE" and "GOMP_SPINCOUNT" not in os.environ


def test_it_waits_for_a_quiet_machine(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_percent", lambda seconds: 45.0)
    assert once() == {} and not list(place.iterdir())
    assert "not measured yet" in doctor._threads(quick=True).detail


def test_a_users_word_needs_no_probe(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert once() == {} and not list(place.iterdir())
    assert doctor._threads(quick=True).detail == "of 2 cores, as you say: OMP_NUM_THREADS=3"


def test_a_cache_that_cannot_be_written_is_no_error(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "file").touch()
    monkeypatch.setenv("KIT_CACHE", str(place / "file"))
    assert once()["waiting"] == "short"


def test_a_torch_that_came_first_is_a_warning(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads.prepare()
    assert doctor._threads(quick=True).ok
    monkeypatch.setattr(threads, "_LATE", True)
    row = doctor._threads(quick=True)
    assert row.ok is None and row.detail.endswith(threads.too_late())


def test_the_probe_itself() -> None:
    short = {"rounds=15": "rounds=1", "rounds=9": "rounds=1", "8 * shapes": "shapes"}
    spinning, products = waiting._SPINNING, waiting._PRODUCTS
    for long, brief in short.items():
        spinning, products = spinning.replace(long, brief), products.replace(long, brief)
    found = waiting._run(spinning, threads.WAITING["short"])
    assert set(found) == {"usual", "quiet", "busy"} and min(found.values()) > 0
    found = waiting._run(products, threads.WAITING["short"])
    for side in ("alone", "together"):
        assert list(found[side]) == [str(rows) for rows in ROWS]
        assert all(list(some) == ways() and min(some.values()) > 0 for some in found[side].values())
    assert fastest(found, 2)["bfloat16"] > 0
