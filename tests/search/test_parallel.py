"""Work on several processes: the same results as one, nothing lost with a process, no hang."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import kit
from kit import sae
from kit.base import progress, shards, texts
from kit.cli import harvest
from kit.sae import Source
from kit.search import dct, melbo, parallel
from kit.search.layer_slice import Differential
from tests import parallel_worker as worker
from tests import tiny

ROOT = Path(__file__).resolve().parents[2]
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it forks and kills")

# makes one shard, takes the next, says so and never ends
HOLDING = """
import sys, time
from pathlib import Path
from kit.base import shards

folder = Path(sys.argv[1])

def make(i):
    if i == 1:
        print("in the middle", flush=True)
        time.sleep(600)
    (folder / str(i)).write_text("child")

shards.work([folder / str(i) for i in range(4)], make)
"""


def start(*command: str) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])}
    return subprocess.Popen(
        [sys.executable, *command], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("parallel")
    tiny.save(found / "model", "llama")
    return found


@pytest.fixture(scope="module")
def started(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Two processes do everything, while this one computes what it is compared with."""
    found = start(
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "tests.parallel_worker",
        str(folder),
    )
    yield found
    found.kill()


@pytest.fixture(scope="module")
def model(folder: Path, started: Any) -> Any:
    before = torch.get_num_threads()
    yield worker.load(folder)
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def alone(model: Any) -> dict[str, torch.Tensor]:
    return worker.fits(model)


@pytest.fixture(scope="module")
def two(started: subprocess.Popen[str], model: Any, alone: Any, folder: Path) -> Path:
    """Their folder, when both are done; the second one ends by a kill."""
    said, _ = started.communicate(timeout=240)
    assert (folder / "end").is_file(), said
    assert started.returncode == 1 and "-9" in said, said
    return folder


def chunks(cache: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {file.name: load_file(file) for file in sorted(cache.iterdir())}


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        same(a[k], b[k]) if isinstance(a[k], dict) else torch.equal(a[k], b[k]) for k in a
    )


# --- two processes, the same results --------------------------------------------------------------


def test_rows_of_a_pass_are_shared_bit_by_bit(two: Path, alone: dict[str, Any]) -> None:
    for rank in (0, 1):
        assert same(load_file(two / f"rows-{rank}.safetensors"), alone)


def test_prompts_are_shared_up_to_the_order_of_a_sum(two: Path, alone: dict[str, Any]) -> None:
    first, second = (load_file(two / f"prompts-{rank}.safetensors") for rank in (0, 1))
    assert same(first, second)  # summed in the same order everywhere
    for name, want in alone.items():
        # float32 sums of a few terms differ by 1e-7 of their size; steps and SVDs make 1e-6 of it
        assert torch.allclose(first[name], want, atol=2e-5 * float(want.abs().max())), name
    assert not same(first, alone)  # or each process computed all of it


def test_a_harvest_is_shared_and_every_chunk_is_made_once(two: Path, model: Any, tmp_path: Path) -> None:
    made = [line.split() for line in (two / "chunks.log").read_text().splitlines()]
    n = worker.source(model, None).chunks
    assert sorted(int(chunk) for _, chunk in made) == list(range(n)) and n > 6
    assert len({process for process, _ in made}) == 2
    worker.source(model, tmp_path).fill()
    assert same(chunks(two / "cache"), chunks(tmp_path))  # and no lock or half file is left


def test_a_sweep_is_the_same_table_in_every_process(two: Path, model: Any, tmp_path: Path) -> None:
    plain = worker.table(model, None)
    pd.testing.assert_frame_equal(worker.table(model, tmp_path), plain, check_exact=True)
    for rank in (0, 1):
        found = pd.read_json(two / f"table-{rank}.json", precise_float=True)
        pd.testing.assert_frame_equal(found, plain, rtol=1e-13, check_dtype=False)
    # what lies there is read, not run
    shared = worker.table(model, two / "sweep")
    pd.testing.assert_frame_equal(shared, plain, check_exact=True)
    assert len(list((two / "sweep").iterdir())) == 6


def test_restarts_are_shared_and_the_best_is_everyone_s(two: Path, model: Any) -> None:
    plain = worker.restarts(model, None)
    for rank in (0, 1):
        found = load_file(two / f"restarts-{rank}.safetensors")
        assert torch.equal(found["V"], plain.V) and torch.equal(found["alpha"], plain.alpha)
    assert len(list((two / "restarts").iterdir())) == 4


def test_two_machines_share_a_fit_and_a_harvest(folder: Path, model: Any, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    told = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", place]
    worker.command(folder, tmp_path)  # which writes the texts
    work = ["-m", "tests.parallel_worker", str(folder), "nodes"]
    launchers = [start("-m", "torch.distributed.run", *told, "--rdzv-id", "test", *work) for _ in range(2)]
    plain = melbo.fit_slice(worker.slice_of(model), 4, steps=2, radius=3.0).V
    try:
        said = [launcher.communicate(timeout=120)[0] for launcher in launchers]
    finally:
        for launcher in launchers:
            launcher.kill()
    assert [launcher.returncode for launcher in launchers] == [0, 0], said
    found = [load_file(folder / f"node-{rank}.safetensors") for rank in (0, 1)]
    assert [int(told["node"]) for told in found] == [0, 1]
    assert all(torch.equal(told["V"], plain) for told in found)
    made = [line.split() for line in (folder / "nodes.log").read_text().splitlines()]
    assert sorted(int(chunk) for _, chunk in made) == list(range(worker.source(model, None).chunks))
    assert len({process for process, _ in made}) == 2
    assert sum("chunks of 8 rows" in text for text in said) == 1  # the first of all processes, not of each machine
    assert harvest.main(worker.command(folder, tmp_path / "alone")) == 0
    assert same(chunks(folder / "nodes"), chunks(tmp_path / "alone"))


# --- a process that dies --------------------------------------------------------------------------


@linux
@pytest.mark.parametrize(("kind", "total"), [("cache", None), ("sweep", 6), ("restarts", 4)])
def test_a_killed_worker_costs_only_its_shard(
    two: Path, model: Any, kind: str, total: int | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    left = two / f"killed-{kind}"
    job = {
        "cache": lambda at: worker.source(model, at).fill(),
        "sweep": lambda at: worker.table(model, at),
        "restarts": lambda at: worker.restarts(model, at),
    }[kind]
    total = total or worker.source(model, None).chunks
    done = {f for f in left.iterdir() if not f.name.startswith(".") and f.suffix != ".part"}
    assert len(done) == 2 and len(list(left.glob("*.part"))) == 1
    times, made = {f: f.stat().st_mtime_ns for f in done}, []
    replace = os.replace
    monkeypatch.setattr(shards.os, "replace", lambda part, file: (made.append(file), replace(part, file)))
    found = job(left)
    assert len(made) == total - 2 and not done & set(made)
    assert {f: f.stat().st_mtime_ns for f in done} == times
    assert len(list(left.iterdir())) == total  # no lock, no half file
    want = job(tmp_path)
    if kind == "sweep":
        pd.testing.assert_frame_equal(found, want, check_exact=True)
    elif kind == "restarts":
        assert torch.equal(found.V, want.V)
    else:
        assert same(chunks(left), chunks(tmp_path))


@linux
def test_who_waits_for_a_shard_takes_it_when_its_maker_dies(tmp_path: Path) -> None:
    child = start("-c", HOLDING, str(tmp_path))
    assert child.stdout is not None and "in the middle" in child.stdout.readline()
    files = [tmp_path / str(i) for i in range(4)]
    thread = threading.Thread(target=shards.work, args=(files, lambda i: files[i].write_text("parent")), daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not (files[2].exists() and files[3].exists()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert thread.is_alive() and not files[1].exists()  # its maker lives
    child.kill()
    child.wait()
    thread.join(30)
    assert [f.read_text() for f in files] == ["child", "parent", "parent", "parent"]


def test_a_lost_peer_is_an_error_and_no_hang(two: Path) -> None:
    said = {file.stem: file.read_text() for file in two.glob("*.txt")}
    assert {"other-0", "other-1", "silent-0", "dead-0"} <= set(said)
    assert "is at 'vjp' with 3 rows" in said["other-0"] and "with 4 rows" in said["other-1"]
    assert "did not answer within 2 s" in said["silent-0"]
    assert "process 0 of 2 lost another one" in said["dead-0"]


def test_processes_with_other_weights_or_prompts_compute_nothing_together(two: Path) -> None:
    for way in ("prompts", "data", "weights"):
        mine, theirs = ((two / f"{way}-{rank}.txt").read_text().splitlines() for rank in (0, 1))
        for a, b in zip(mine, theirs, strict=True):  # of DCT and of MELBO
            assert "has other weights than another" in a or "a model and prompts with the digest" in a and a != b
        assert len(mine) == 2


# --- one process ----------------------------------------------------------------------------------


def test_one_process_is_a_group_of_one(model: Any, alone: dict[str, Any]) -> None:
    piece = worker.slice_of(model)
    with parallel.group() as team:
        assert (team.rank, team.size, team.first) == (0, 1, True)
        assert parallel.shared(piece) is piece
        team.wait()
        with pytest.raises(ValueError, match="within group"), parallel.group():
            pass
    assert parallel.shared(piece) is piece


def test_spans_are_whole_batches_where_there_are_enough() -> None:
    def lengths(*args: int) -> list[int]:
        found = parallel.spans(*args)
        assert [s.start for s in found[1:]] == [s.stop for s in found[:-1]]
        assert found[0].start == 0 and found[-1].stop == args[0]
        return [s.stop - s.start for s in found]

    assert lengths(64, 2, 8) == [32, 32]
    assert lengths(20, 2, 8) == [8, 12]  # three batches
    assert lengths(16, 4, 8) == [4, 4, 4, 4]  # two batches for four
    assert lengths(1, 2, 8) == [0, 1]


def test_what_cannot_be_shared_is_refused(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    piece = worker.slice_of(model)
    four = worker.LayerSlice(model, [tiny.prompt(model)[0]] * 4, 0, 2)
    monkeypatch.setattr(parallel, "_TEAMS", [parallel.Team(0, 4, "prompts")])
    with pytest.raises(ValueError, match="3 prompts for 4 processes"):
        dct.fit_map(piece, n_features=2)
    with pytest.raises(ValueError, match="loud and quiet"):
        parallel.shared(Differential(four, four))
    monkeypatch.undo()
    for options, said in [({"split": "layers"}, "split='layers'"), ({"timeout": 0}, "timeout=0")]:
        with pytest.raises(ValueError, match=said), parallel.group(**options):
            pass
    with pytest.raises(ValueError, match="shards with together=False"):
        melbo.fit_slice(piece, 2, radius=1.0, together=False, shards=tmp_path)
    with pytest.raises(ValueError, match="cache=None"):
        worker.source(model, None).fill()
    with pytest.raises(ValueError, match="judge=.*by its name"):
        worker.sweep(model, tiny.vector(model, 1), [tiny.prompt(model)], judge=lambda text: 1.0, shards=tmp_path)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="RANK='2'"):
        progress.processes()


def test_a_shard_is_known_by_all_that_it_depends_on(model: Any, folder: Path, tmp_path: Path) -> None:
    vector, prompts = tiny.vector(model, 1), [tiny.prompt(model)]
    given: dict[str, Any] = {"coefficients": [0.5], "targets": (" a", " b"), "max_new_tokens": 2}
    changes: list[dict[str, Any]] = [
        {},
        {"coefficients": [0.4]},
        {"targets": (" a", " c")},
        {"max_new_tokens": 3},
        {"layers": [2]},
        {"positions": "prompt"},
        {"op": "ablate"},
    ]
    for change in changes:
        worker.sweep(model, vector, prompts, **{**given, **change}, shards=tmp_path)
    worker.sweep(model, tiny.vector(model, 1, seed=1), prompts, **given, shards=tmp_path)
    worker.sweep(model, vector, [tiny.prompt(model, seed=1)], **given, shards=tmp_path)
    half = kit.load_model(str(folder / "model"), dtype="bfloat16", device="cpu")  # its numbers are others
    worker.sweep(half, vector, prompts, **given, shards=tmp_path)
    assert len(list(tmp_path.iterdir())) == len(changes) + 3
    assert shards.digest(worker.slice_of(half).settings()) != shards.digest(worker.slice_of(model).settings())
    rows = {"tokens": torch.arange(3), "mask": None}
    assert shards.digest(rows) == shards.digest(dict(reversed(rows.items())))
    assert shards.digest(rows) != shards.digest({**rows, "tokens": torch.arange(3).int()})


def test_a_damaged_shard_is_named(model: Any, tmp_path: Path) -> None:
    worker.table(model, tmp_path)
    file = sorted(tmp_path.iterdir())[2]
    for content in (b"", b"[[1, 2]]", b"\xff\xfe", b"{}1", b"7"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=f"{file.name} is damaged.*delete it"):
            worker.table(model, tmp_path)


def test_a_damaged_chunk_or_restart_is_named(model: Any, tmp_path: Path) -> None:
    jobs = {
        "r": lambda: worker.restarts(model, tmp_path / "r"),
        "c": lambda: worker.source(model, tmp_path / "c").fill(),
    }
    for name, job in jobs.items():
        job()
        file = sorted((tmp_path / name).iterdir())[1]
        file.write_bytes(file.read_bytes()[:60])
        with pytest.raises(ValueError, match=f"{file.name}.*(is damaged.*delete it|delete it.*is damaged)"):
            job()


def test_a_folder_of_other_settings_is_refused_before_any_work(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.source(model, tmp_path).fill()
    monkeypatch.setattr(Source, "read_chunk", None)
    worker.source(model, tmp_path).fill()  # nothing is missing
    other = Source(model, worker.TEXTS, [sae.Site(1)], batch=16, context=20, rows=8, seed=1, cache=tmp_path)
    with pytest.raises(ValueError, match="made with other seed"):
        other.fill()


def test_an_interrupt_keeps_what_is_done(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = shards.write_rows
    calls: list[Path] = []

    def stop(file: Path, rows: Any) -> None:
        calls.append(file)
        if len(calls) == 3:
            raise KeyboardInterrupt
        write(file, rows)

    monkeypatch.setattr(shards, "write_rows", stop)
    found = worker.table(model, tmp_path)
    assert found.attrs["interrupted"] and len(found) == 2 * 2
    monkeypatch.undo()
    whole = worker.table(model, tmp_path)
    assert not whole.attrs["interrupted"] and len(whole) == 6 * 2


def test_make_must_write_its_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shard 0 was made without its file"):
        shards.work([tmp_path / "a"], lambda _i: None)


def test_only_the_first_process_shows_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Terminal:
        isatty = staticmethod(lambda: True)
        write = staticmethod(shown.append)

    monkeypatch.setattr(progress.sys, "stderr", Terminal)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        assert not shown
        monkeypatch.setenv("RANK", rank)
        list(progress.track([1], "runs"))
    assert shown


# --- the command ----------------------------------------------------------------------------------


def test_the_command_fills_what_a_source_reads(
    model: Any, folder: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = worker.command(folder, tmp_path / "out")
    assert harvest.main([*command, "--estimate"]) == 0
    assert capsys.readouterr().out.startswith("harvest of resid 1: ")
    assert not (tmp_path / "out").exists()
    assert harvest.main(command) == 0
    n = worker.source(model, None).chunks
    assert capsys.readouterr().out.startswith(f"{n} chunks of 8 rows, {n * 8 * 20:,} tokens, ")
    monkeypatch.setattr(Source, "read_chunk", None)
    given = Source(
        model,
        texts.read(folder / "corpus.txt", paragraphs=True),
        [sae.Site(1)],
        batch=16,
        context=20,
        rows=8,
        cache=tmp_path / "out",
    )
    read = [next(given)[sae.Site(1)] for _ in range(3 * n)]
    monkeypatch.undo()
    plain = Source(model, worker.TEXTS, [sae.Site(1)], batch=16, context=20, rows=8)
    assert all(torch.equal(some, next(plain)[sae.Site(1)]) for some in read)
    assert harvest.main([*command, "--seed", "1"]) == 1
    assert "made with other seed" in capsys.readouterr().err
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))  # a disk that is full after so much
    try:
        assert harvest.main(worker.command(folder, tmp_path / "full")) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    said = capsys.readouterr().err
    assert said.startswith("kit.harvest: ") and str(tmp_path / "full" / "chunk-") in said and said.count("\n") == 1
    assert [p.name for p in (tmp_path / "full").iterdir() if not p.name.endswith(".lock")] == []
