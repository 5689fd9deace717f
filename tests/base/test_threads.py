"""How many threads a computation gets, on machines whose load is made up: nothing is timed."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from kit.base import threads
from kit.base.threads import Load, fitted


class Machine:
    """Cores that others use so much of, at a time that stands still until it is told to go on."""

    def __init__(self, patch: pytest.MonkeyPatch, cores: int = 2) -> None:
        self.time, self.busy, self.own, self.looks = 0.0, 0.0, 0.0, 0
        self.running: float | None = None
        self.cores = cores
        patch.setattr(threads, "_bound", lambda: self.cores)
        patch.setattr(threads, "_clocks", self.clocks)
        patch.setattr(threads, "_running", lambda: self.running)
        patch.setattr(threads.time, "monotonic", lambda: self.time)

    def clocks(self) -> tuple[float, float]:
        self.looks += 1
        return self.busy, self.own

    def go_on(self, seconds: float, others: float = 0.0, own: float = 0.0) -> None:
        self.time += seconds
        self.busy += seconds * (others + own)
        self.own += seconds * own


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.fixture
def ours(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Two cores, nothing kept and nothing said by a user: torch's own default is two threads."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "_LOAD", Load())
    monkeypatch.setattr(threads, "_own", lambda: {2})
    monkeypatch.setattr(threads, "kept", lambda: {})
    monkeypatch.setattr(threads, "_usual", 0)
    monkeypatch.setattr(threads, "_LATE", False)
    monkeypatch.setattr(threads, "_quota", lambda: math.inf)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield machine
    assert not threads._inside
    torch.set_num_threads(before)


def within(rows: int) -> int:
    with fitted(rows):
        return torch.get_num_threads()


# --- what others leave ---


def test_own_work_is_not_others(machine: Machine) -> None:
    load = Load()
    load.free()
    machine.go_on(0.2, own=2.0)
    assert load.free() == 2 and load.others == 0


def test_a_busy_core_is_left_to_others_and_taken_again(machine: Machine) -> None:
    load = Load()
    assert load.free() == 2
    machine.go_on(0.2, others=1.0, own=1.0)
    assert load.free() == 1 and load.others == pytest.approx(1)
    machine.go_on(0.2, own=1.0)
    assert load.free() == 2


def test_one_thread_is_the_least(machine: Machine) -> None:
    load = Load()
    load.free()
    machine.go_on(0.2, others=9.0)
    assert load.free() == 1 and load.others == 2


def test_it_looks_ten_times_a_second_at_most(machine: Machine) -> None:
    load = Load()
    for _ in range(10):
        load.free()
        machine.go_on(0.03, others=1.0)
    assert machine.looks == 3  # at 0, 0.12 and 0.24


def test_a_load_about_half_a_core_moves_nothing(machine: Machine) -> None:
    load, seen = Load(), []
    load.free()
    for others in (0.45, 0.55, 0.45, 0.3, 0.2, 0.45):
        machine.go_on(0.2, others=others)
        seen.append(load.free())
    assert seen == [2, 1, 1, 1, 2, 2]


def test_after_a_pause_what_runs_now_counts_not_the_average(machine: Machine) -> None:
    load = Load()
    load.free()
    machine.go_on(30)  # quiet until just now
    machine.running = 1.0
    assert load.free() == 1
    machine.go_on(30, others=1.0)  # busy until just now
    machine.running = 0.0
    assert load.free() == 2
    machine.go_on(30, others=1.0)
    machine.running = None  # this system does not tell
    assert load.free() == 1


@pytest.mark.parametrize("cores", [2, 8])
@pytest.mark.parametrize("first", [0.0, 0.05])
def test_two_processes_settle_and_stay(monkeypatch: pytest.MonkeyPatch, cores: int, first: float) -> None:
    """Each sees the other's threads only; a core that two want is halved."""
    machine = Machine(monkeypatch, cores)
    loads, used = [Load(), Load()], [0.0, 0.0]
    counts, busy, seen = [cores, cores], 0.0, []
    monkeypatch.setattr(threads, "_clocks", lambda: (busy, used[turn]))
    for turn, load in enumerate(loads):
        load.free()
    for step in range(40):
        share = min(1.0, cores / sum(counts))
        machine.time += 0.15 + first * (step == 0)
        for i, n in enumerate(counts):
            used[i] += 0.15 * n * share
            busy += 0.15 * n * share
        for turn in (0, 1) if step % 2 else (1, 0):
            counts[turn] = loads[turn].free()
        seen.append(tuple(counts))
    assert sum(counts) <= cores and min(counts) >= 1
    assert len(set(seen[10:])) == 1, seen


def test_cores_of_a_control_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("0::/seats/one\n")
    root = tmp_path / "fs"
    (root / "seats" / "one").mkdir(parents=True)
    quota = threads._quota.__wrapped__
    assert quota(str(root), str(own)) == math.inf
    (root / "seats" / "one" / "cpu.max").write_text("max 100000\n")
    (root / "seats" / "cpu.max").write_text("150000 100000\n")
    assert quota(str(root), str(own)) == 1.5
    assert quota(str(root), str(tmp_path / "none")) == math.inf
    (root / "seats" / "cpu.max").write_text("junk\n")
    assert quota(str(root), str(own)) == math.inf
    monkeypatch.setattr(threads, "_bound", lambda: 64)
    monkeypatch.setattr(threads, "_quota", lambda: 1.5)
    assert threads.cores() == 2
    monkeypatch.setattr(threads, "_quota", lambda: 0.1)
    assert threads.cores() == 1


def test_the_systems_own_clocks_and_counts() -> None:
    busy, own = threads._clocks()
    times = psutil.cpu_times()
    assert 0 < own <= busy <= sum(times) and busy <= sum(times) - times.idle + 1
    running = threads._running()
    assert running is None or running >= 0


# --- what a block does ---


def test_one_row_is_one_thread_and_more_are_the_free_cores(ours: Machine) -> None:
    assert (within(1), within(2), within(1), within(360)) == (1, 2, 1, 2)
    ours.go_on(0.2, others=1.0)
    assert (within(1), within(9)) == (1, 1)
    assert torch.get_num_threads() == 2


def test_one_row_gets_more_where_the_probe_found_that_better(ours: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "kept", lambda: {"one row": 2})
    assert within(1) == 2
    ours.go_on(0.2, others=1.0)
    assert within(1) == 1


def test_the_outermost_block_holds(ours: Machine) -> None:
    with fitted(9):
        ours.go_on(0.2, others=1.0)
        assert (within(1), within(9), torch.get_num_threads()) == (2, 2, 2)
    assert within(9) == 1
    with fitted(1):
        assert within(9) == 1
    assert torch.get_num_threads() == 2


def test_an_error_gives_the_threads_back(ours: Machine) -> None:
    with pytest.raises(KeyboardInterrupt), fitted(1):
        raise KeyboardInterrupt
    assert torch.get_num_threads() == 2


def test_a_function_asks_at_each_call(ours: Machine) -> None:
    count = fitted(9)(torch.get_num_threads)
    assert count() == 2
    ours.go_on(0.2, others=1.0)
    assert count() == 1 and torch.get_num_threads() == 2


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_the_environment_wins(ours: Machine, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "2")
    ours.go_on(0.2, others=1.0)
    assert (within(1), within(9)) == (2, 2)
    assert threads.users() == f"{name}=2"


@pytest.mark.parametrize("count", [1, 3])
def test_a_count_that_torch_would_not_choose_is_the_users(ours: Machine, count: int) -> None:
    within(9)
    torch.set_num_threads(count)
    assert (within(1), within(9), torch.get_num_threads()) == (count, count, count)


def test_what_a_user_sets_within_a_block_stays(ours: Machine) -> None:
    with fitted(9):
        torch.set_num_threads(3)
    assert torch.get_num_threads() == 3 and within(1) == 3


def test_each_python_thread_has_its_own(ours: Machine) -> None:
    """A new one inherits what another has set for a moment: that is no user's count."""
    seen: list[int] = []

    def elsewhere() -> None:
        seen.extend((torch.get_num_threads(), within(1), within(9), torch.get_num_threads()))

    def beside() -> list[int]:
        seen.clear()
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return list(seen)

    assert beside() == [2, 1, 2, 2]
    with fitted(1):
        assert beside() == [1, 1, 1, 2]  # the other core is taken
        assert torch.get_num_threads() == 1
    with fitted(9):
        assert beside()[1:3] == [1, 1]
    assert beside()[1:] == [1, 2, 2]


def test_a_block_costs_no_look_for_one_row(ours: Machine) -> None:
    for _ in range(3):
        within(1)
        ours.go_on(1)
    assert ours.looks == 0


def test_other_counts_change_no_result_by_more_than_rounding(ours: Machine) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(9, 576), torch.randn(1536, 576)
    found = []
    for others in (0.0, 1.0):
        ours.go_on(0.2, others=others)
        with fitted(9):
            found.append(x @ w.T)
    assert (found[0] - found[1]).abs().max() <= 1e-3


# --- how threads wait ---


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(os, "environ", {name: at for name, at in os.environ.items() if name not in threads.WAITS})
    monkeypatch.setattr(threads, "_set", {})
    monkeypatch.setattr(threads, "_LATE", False)
    monkeypatch.setattr(threads, "kept", lambda: {})
    return monkeypatch


def said() -> dict[str, str]:
    return {name: os.environ[name] for name in threads.WAITS if name in os.environ}


def test_the_environment_says_how_threads_wait(environ: pytest.MonkeyPatch) -> None:
    threads.prepare()
    assert said() == threads.WAITING["short"]
    for name in ("none", "torch's own", "longer"):  # a probe ran
        environ.setattr(threads, "kept", lambda name=name: {"waiting": name})
        threads.prepare()
        assert said() == threads.WAITING[name]


@pytest.mark.parametrize("name", threads.WAITS)
def test_what_a_user_says_of_waiting_wins(environ: pytest.MonkeyPatch, name: str) -> None:
    environ.setenv(name, "7")
    environ.setattr(threads, "_LATE", True)
    threads.prepare()
    assert said() == {name: "7"}
    assert threads.too_late() == ""


def test_a_torch_that_came_first_is_told_of_once(ours: Machine, environ: pytest.MonkeyPatch) -> None:
    threads.prepare()
    assert threads.too_late() == ""
    environ.setattr(threads, "_LATE", True)
    assert "import kit first" in threads.too_late()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("default")
        within(9)
        assert not heard  # nobody suffers
        for _ in range(3):
            ours.go_on(0.2, others=1.0)
            within(9)
    assert [str(w.message) for w in heard] == [f"another program keeps a core busy, and {threads.too_late()}"]


_CHILD = (
    "import os, sys, kit, kit.base.threads as t; print([os.environ.get(n) for n in t.WAITS], 'torch' in sys.modules)"
)


def test_import_kit_knows_whether_torch_came_first(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name not in threads.WAITS}
    env["KIT_CACHE"] = str(tmp_path)  # a probe may have found that torch's own way is best
    for code in ("import torch, kit", "import kit, torch"):
        code += "; print(bool(kit.threads.too_late()))"
        told = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
        assert told == f"{code.startswith('import torch')}\n"


def test_import_kit_sets_it_for_itself_and_its_children() -> None:
    env = {name: value for name, value in os.environ.items() if name not in threads.WAITS}
    code = f"import kit, subprocess, sys\nsubprocess.run([sys.executable, '-c', {_CHILD!r}], check=True)"
    said = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    settings = threads.WAITING[threads.kept().get("waiting", "short")]
    assert said == f"{[settings.get(name) for name in threads.WAITS]} False\n"


# --- numpy's BLAS ---


class Library:
    """One of its libraries, as threadpoolctl shows it."""

    def __init__(self) -> None:
        self.num_threads = 4

    def set_num_threads(self, count: int) -> None:
        self.num_threads = count


@pytest.fixture
def blas(monkeypatch: pytest.MonkeyPatch) -> Library:
    library = Library()
    monkeypatch.setattr(threads, "_libraries", lambda: [library])
    return library


@pytest.mark.parametrize("said", [None, "OMP_NUM_THREADS", 1])
def test_numpy_has_one_thread_inside(
    ours: Machine, blas: Library, monkeypatch: pytest.MonkeyPatch, said: str | int | None
) -> None:
    if isinstance(said, str):
        monkeypatch.setenv(said, "2")
    elif said:
        torch.set_num_threads(said)
    for rows in (1, 9):
        with pytest.raises(KeyError), fitted(rows):
            with fitted(1):
                assert blas.num_threads == 1
            assert blas.num_threads == 1
            raise KeyError
        assert blas.num_threads == 4


def test_it_gets_its_threads_back_when_the_last_block_has_ended(ours: Machine, blas: Library) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def other() -> None:
        with fitted(9):
            inside.set()
            assert go_on.wait(10)

    with fitted(9):
        thread = threading.Thread(target=other)
        thread.start()
        assert inside.wait(10)
    assert blas.num_threads == 1
    go_on.set()
    thread.join()
    assert blas.num_threads == 4


def test_a_stop_as_they_are_taken_gives_them_back(
    ours: Machine, blas: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = blas.set_num_threads

    def pressed(count: int) -> None:
        taken(count)
        if count == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(blas, "set_num_threads", pressed)
    with pytest.raises(KeyboardInterrupt), fitted(9):
        pass
    assert blas.num_threads == 4
    monkeypatch.setattr(blas, "set_num_threads", taken)
    with fitted(9):
        assert blas.num_threads == 1
    assert blas.num_threads == 4


def test_the_real_libraries_are_found() -> None:
    code = (
        "import numpy, scipy.linalg, threadpoolctl; from kit.base.threads import fitted, _libraries\n"
        "count = lambda: [each['num_threads'] for each in threadpoolctl.threadpool_info() if each['user_api'] == 'blas']\n"
        "threadpoolctl.threadpool_limits(2, user_api='blas')\n"
        "with fitted(1): print(count())\n"
        "print(count())"
    )
    env = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    told = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    inside, after = map(json.loads, told.split("\n")[:2])
    assert set(inside) == {1} and set(after) == {2} and len(after) >= 1


# --- what is kept ---

GOOD: dict[str, Any] = {"cores": 2, "waiting": "longer", "default": 2, "one row": 1, "products": {}}


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        "[",
        "[]",
        "{}",
        json.dumps(GOOD | {"cores": 3}),
        json.dumps(GOOD | {"waiting": "LD_PRELOAD"}),
        json.dumps(GOOD | {"waiting": ["short"]}),
        json.dumps(GOOD | {"one row": "2"}),
        json.dumps(GOOD | {"products": "numpy"}),
        json.dumps({name: value for name, value in GOOD.items() if name != "products"}),  # of an older kit
    ],
)
def test_what_is_kept_is_believed_where_it_makes_sense(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wrong: str | None
) -> None:
    monkeypatch.setenv("KIT_CACHE", str(tmp_path))
    monkeypatch.setattr(threads, "_quota", lambda: math.inf)
    kept = threads.kept.__wrapped__
    if wrong is not None:
        (tmp_path / threads.KEPT).write_text(wrong)
    assert kept() == {}
    (tmp_path / threads.KEPT).write_text(json.dumps(GOOD))
    assert kept() == GOOD


def test_threads_of_our_own_that_spin_are_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_bound", os.cpu_count)
    (tmp_path / "loadavg").write_text("0.5 0.4 0.3 4/210 77")
    for i, (name, state) in enumerate([("python", "R"), ("a) S (b", "R"), ("python", "S")]):
        (tmp_path / "self" / "task" / str(i)).mkdir(parents=True)
        (tmp_path / "self" / "task" / str(i) / "stat").write_text(f"{i} ({name}) {state} 1 2 3")
    (tmp_path / "self" / "task" / "9").mkdir()  # one that ends as we look
    assert threads._running(tmp_path) == 2
    (tmp_path / "loadavg").write_text("0.5 0.4 0.3 1/210 77")
    assert threads._running(tmp_path) == 0
    assert threads._running(tmp_path / "nothing") is None
