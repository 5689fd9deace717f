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
from kit.cli.waiting import chosen, once  # themselves: in tests nothing else may probe


def told(nine: float, busy: float, one: float = 10.0, two: float = 10.0) -> dict[str, Any]:
    return {"usual": 4, "quiet": [one, two, 30.0, nine], "busy": [one, two, 30.0, busy], "bfloat16": 1.5}


def test_the_least_harm_of_those_that_cost_nothing() -> None:
    found = {"torch's own": told(20, 300), "short": told(21.5, 60), "longer": told(20, 90), "none": told(30, 40)}
    kept = chosen(found)
    assert kept["waiting"] == "short" and kept["default"] == 4 and kept["one row"] == 1
    assert chosen(found | {"short": told(22.5, 60)})["waiting"] == "longer"
    assert kept["milliseconds"] == found and kept["bfloat16"] == 1.5


def test_one_row_on_all_threads_where_that_is_a_fifth_faster() -> None:
    assert chosen({"short": told(20, 60, two=7.9)})["one row"] == 4
    assert chosen({"short": told(20, 60, two=8.1)})["one row"] == 1


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, a quiet machine of two cores, and a probe that takes no time."""
    env = {name: at for name, at in os.environ.items() if name not in (*threads.WAITS, "OMP_NUM_THREADS")}
    monkeypatch.setattr(os, "environ", env | {"KIT_CACHE": str(tmp_path)})
    monkeypatch.setattr(threads, "_set", {})
    monkeypatch.setattr(threads, "_bound", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(psutil, "cpu_percent", lambda seconds: 3.0)
    monkeypatch.setattr(waiting, "_measured", lambda settings: told(20, 60 - len(settings)))
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
    monkeypatch.setattr(waiting, "_measured", lambda settings: pytest.fail("again"))
    assert once() == found
    monkeypatch.setattr(doctor.waiting, "once", once)
    assert "waiting short, as measured here" in doctor._threads(quick=False).detail


def test_what_it_found_is_in_the_environment_of_what_starts_next(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads.prepare()
    monkeypatch.setattr(waiting, "_measured", lambda settings: told(20, 10 if "OMP_WAIT_POLICY" in settings else 60))
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


def test_the_probe_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        waiting, "_CHILD", waiting._CHILD.replace("rounds=15", "rounds=1").replace("8 * shapes", "shapes")
    )
    found = waiting._measured(threads.WAITING["short"])
    assert set(found) == {"usual", "quiet", "busy", "bfloat16"} and found["bfloat16"] > 0 and found["usual"] >= 1
    assert all(len(found[how]) == 4 and min(found[how]) > 0 for how in ("quiet", "busy"))
