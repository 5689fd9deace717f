"""Files of our own: whole, readable as the umask says, alone, and without a rest."""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import kit
from course.studies import elicitation, recovery
from kit.base import scratch, shards
from kit.base.files import whole
from kit.models import lora
from kit.steering.rank_one import Factor
from kit.widgets.gallery import sets
from kit.widgets.gallery.features import Feature
from kit.widgets.latents.labels import Labels
from kit.widgets.panel import files as panel_files
from kit.widgets.panel.rating import Item, Ratings

POSIX = pytest.mark.skipif(os.name == "nt", reason="needs modes and signals of POSIX")
VECTOR = kit.SteeringVector(torch.arange(1.0, 49), 1, "a vector")
FACTOR = Factor(torch.ones(2, 48), torch.ones(2, 48), (1, 2), 3.0, "a factor")
ITEMS = [Item(f"text {i}", "0.2", i % 2 == 0) for i in range(40)]


def adapter(path: Path) -> Any:
    return lora.write(path, {"model.layers.1.mlp.up_proj": (torch.randn(2, 48), torch.randn(96, 2))}, base="x")


def table(path: Path) -> None:
    Ratings(ITEMS, path).rate(4, True)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "vector": VECTOR.save,
    "factor": FACTOR.save,
    "panel": lambda path: panel_files.save(VECTOR, path.parent),
    "set": lambda path: sets.save([Feature(VECTOR, 1, 0.5), Feature(FACTOR, 2, 0.5)], path),
    "adapter": adapter,
    "ratings": table,
    "rows": lambda path: shards.write_rows(path, [[1, 2]]),
}


def everything(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file()]


def parts(folder: Path) -> list[str]:
    return [p.name for p in folder.rglob("*") if p.name.endswith((".part", ".lock")) or p.name.startswith(".tmp")]


# --- modes ---------------------------------------------------------------------------------------


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@POSIX
@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077], indirect=True, ids=oct)
@pytest.mark.parametrize("name", WRITERS)
def test_files_have_the_mode_that_the_umask_says(tmp_path: Path, umask: int, name: str) -> None:
    for _ in range(2):  # new, and in the place of an older one
        WRITERS[name](tmp_path / "it.safetensors")
        found = {p: stat.S_IMODE(p.stat().st_mode) for p in everything(tmp_path)}
        assert found and set(found.values()) == {0o666 & ~umask}, found
    folders = [p for p in tmp_path.rglob("*") if p.is_dir()]
    assert {stat.S_IMODE(p.stat().st_mode) for p in folders} <= {0o777 & ~umask}


@POSIX
@pytest.mark.parametrize("umask", [0o000], indirect=True)
def test_a_private_file_is_private_from_its_first_byte(tmp_path: Path, umask: int) -> None:
    with whole(tmp_path / "it", private=True) as part:
        part.write_text("secret")
        assert stat.S_IMODE(part.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "it").stat().st_mode) == 0o600


# --- errors --------------------------------------------------------------------------------------


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Files of more than a kilobyte meet a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@POSIX
@pytest.mark.parametrize("name", [*WRITERS, "torch"])
def test_a_full_disk_is_an_oserror_that_names_the_file(tmp_path: Path, small_disk: None, name: str) -> None:
    def of_torch(path: Path) -> None:
        with whole(path) as part:
            torch.save(torch.ones(9999), part)

    path = tmp_path / "it.safetensors"
    write = {"torch": of_torch, "rows": lambda p: shards.write_rows(p, [[1] * 999])}.get(name) or WRITERS[name]
    with pytest.raises(OSError) as told:
        for _ in range(9):  # a table of ratings grows
            write(path)
    assert str(tmp_path) in str(told.value) and ".part" not in str(told.value), told.value
    assert [p for p in everything(tmp_path) if name != "ratings"] == [] and parts(tmp_path) == []


@POSIX
def test_a_disk_that_is_full_anywhere_in_a_file_of_torch_is_an_oserror(tmp_path: Path) -> None:
    """Near the end of the file torch has other words for it."""
    torch.save(torch.ones(9999), tmp_path / "whole")
    size = (tmp_path / "whole").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for most in (200, size // 2, *range(size - 1500, size, 100)):
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
            with pytest.raises(OSError, match="it'"), whole(tmp_path / "it") as part:
                torch.save(torch.ones(9999), part)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert parts(tmp_path) == []


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as told:
        VECTOR.save(tmp_path / "missing" / "v.safetensors")
    assert told.value.filename == str(tmp_path / "missing" / "v.safetensors")


def test_errors_that_are_not_of_writing_go_through(tmp_path: Path) -> None:
    for error in (RuntimeError("CUDA"), ValueError("x"), OSError("does not read back"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as told:
            with whole(tmp_path / "it"):
                raise error
        assert told.value is error
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        with whole(tmp_path / "it"):
            open("/elsewhere")
    assert list(tmp_path.iterdir()) == []


# --- what killed processes leave -----------------------------------------------------------------

VICTIM = """
import sys, os, signal
from kit.base.files import whole
with whole(sys.argv[1]) as part:
    part.write_bytes(bytes(1000))
    (part.parent / ".tmpAbC123").write_bytes(bytes(1000))  # as safetensors has one beside its file
    os.kill(os.getpid(), signal.SIGKILL)
"""


@POSIX
def test_what_a_killed_save_left_goes_with_the_next_one_there(tmp_path: Path) -> None:
    for name in ("a.safetensors", "[b]*"):
        subprocess.run([sys.executable, "-c", VICTIM, str(tmp_path / name)], check=False)
        assert len(parts(tmp_path)) == 2 and not (tmp_path / name).exists()
    with whole(tmp_path / "another") as part:
        part.write_text("x")
    assert [p.name for p in tmp_path.iterdir()] == ["another"]


def _rating(file: Path) -> None:
    Ratings([Item("a", "b", True)], file)


def _labels(file: Path) -> None:
    class Dictionary:
        digest, name, __len__ = "d", "n", lambda _self: 1

    Labels(Dictionary(), file)  # type: ignore[arg-type]


def _shards(file: Path) -> None:
    file.write_text("done")
    shards.work([file], lambda _n: None)


def _records(file: Path) -> None:
    file.write_text(json.dumps([{"organism": "a", "arm": "cpe", "seed": 0}]))
    recovery._complete(file, "a", [("cpe", 0, 1, "mean")])


@POSIX
@pytest.mark.parametrize("go_on", [_rating, _labels, _shards, _records], ids=lambda job: job.__name__)
def test_who_has_nothing_left_to_write_clears_up_too(tmp_path: Path, go_on: Callable[[Path], None]) -> None:
    """Killed after the last file had its name, and before its folder was gone."""
    subprocess.run([sys.executable, "-c", VICTIM, str(tmp_path / "another")], check=False)
    assert parts(tmp_path)
    go_on(tmp_path / "file")
    assert not parts(tmp_path)


def test_the_part_of_one_who_writes_stays(tmp_path: Path) -> None:
    with whole(tmp_path / "a") as mine:
        mine.write_text("a")
        VECTOR.save(tmp_path / "a")
        code = f"import kit, torch; kit.SteeringVector(torch.ones(4), 1, 'v').save({str(tmp_path / 'a')!r})"
        subprocess.run([sys.executable, "-c", code], check=True)
        assert mine.is_file()
    assert (tmp_path / "a").read_text() == "a" and len(list(tmp_path.iterdir())) == 1


def test_parts_of_other_hosts_are_left_for_an_hour(tmp_path: Path) -> None:
    theirs = tmp_path / ".a.0123abcd-1-0.part"
    foreign = [tmp_path / name for name in (".b.1.part", "video.part", ".c.part")]  # of other programs
    for folder in (theirs, *foreign):
        folder.mkdir()
    scratch.drop_parts(tmp_path)
    assert theirs.is_dir()
    scratch.drop_parts(tmp_path, "b")
    assert theirs.is_dir()
    os.utime(theirs, (time.time() - 4000,) * 2)
    for folder in foreign:
        os.utime(folder, (0, 0))
    scratch.drop_parts(tmp_path)
    assert not theirs.exists() and all(folder.is_dir() for folder in foreign)
    theirs.mkdir()
    scratch.drop_parts(tmp_path, "a")  # who has its lock knows that nobody writes it
    assert not theirs.exists()


# --- many at once --------------------------------------------------------------------------------


def together(job: Callable[[int], Any], n: int = 24) -> list[Any]:
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(job, range(n)))


def test_threads_that_write_one_file_each_write_it_whole(tmp_path: Path) -> None:
    for name, write in WRITERS.items():
        (tmp_path / name).mkdir()
        together(lambda _i, write=write, name=name: write(tmp_path / name / "it.safetensors"))
        assert parts(tmp_path) == []
    assert kit.SteeringVector.load(tmp_path / "vector" / "it.safetensors").name == "a vector"
    assert lora.read(tmp_path / "adapter" / "it.safetensors").base == "x"


def test_a_save_of_the_panel_never_replaces_another(tmp_path: Path) -> None:
    paths = together(lambda _i: panel_files.save(VECTOR, tmp_path))
    assert len(set(paths)) == 24 == len(list(tmp_path.iterdir()))
    folders = together(lambda _i: sets.save([Feature(VECTOR, 1, 0.5)], tmp_path / "set"))
    assert len(set(folders)) == 24 and all(len(sets.load(folder)) == 1 for folder in folders)


def test_a_disk_without_links_keeps_the_promise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", none)
    assert len(set(together(lambda _i: panel_files.save(VECTOR, tmp_path)))) == 24


SLOW = """
import os, time
real, link = os.replace, os.link
os.replace = lambda *paths: (time.sleep(0.005), real(*paths))
os.link = lambda *paths: (time.sleep(0.005), link(*paths))
"""
SAVES = """
import sys, torch, kit
from kit.widgets.panel import files
sys.stdin.readline()
for i in range(30):
    files.save(kit.SteeringVector(torch.ones(4), 1, "v"), sys.argv[1])
"""
RATES = """
import sys
from kit.widgets.panel.rating import Item, Ratings
items = [Item(f"text {i}", "0.2", i % 2 == 0) for i in range(40)]
ratings, which = Ratings(items, sys.argv[1]), int(sys.argv[2])
sys.stdin.readline()
for i in range(which, 40, 2):  # this one rates every second text
    item = ratings.items[i]
    ratings.answers = {k: v for k, v in ratings.answers.items() if k in {ratings.items[j].id for j in range(which, i, 2)}}
    type(ratings).current = property(lambda self: item)
    ratings.rate(3, True)
"""
MEASURES = """
import sys
from types import SimpleNamespace
from course.studies import elicitation, recovery
recovery.organisms.load = lambda name: SimpleNamespace()
elicitation.measure = lambda m, name, arm, seed, setting: {"organism": name, "arm": arm, "seed": seed}
first = int(sys.argv[2])
sys.stdin.readline()
from pathlib import Path
recovery._complete(Path(sys.argv[1]), "withholding", [("melbo", seed, 1, "mean") for seed in range(first, 80, 2)])
"""


def race(code: str, path: Path) -> None:
    """Two processes that begin at the same moment, and whose writes take their time."""
    command = [sys.executable, "-c", SLOW + code, str(path)]
    some = [subprocess.Popen([*command, str(i)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) for i in (0, 1)]
    time.sleep(0.1)
    for one in some:
        one.stdin.write(b"go\n")  # type: ignore[union-attr]
        one.stdin.flush()  # type: ignore[union-attr]
    for one in some:
        one.communicate(timeout=120)
        assert one.returncode == 0


def test_two_processes_lose_no_record_rating_or_vector(tmp_path: Path) -> None:
    race(SAVES, tmp_path)
    assert len(list(tmp_path.iterdir())) == 60
    race(MEASURES, tmp_path / "r.json")
    assert sorted(r["seed"] for r in recovery.read(tmp_path / "r.json")) == list(range(80))
    race(RATES, tmp_path / "ratings.csv")
    assert len(Ratings(ITEMS, tmp_path / "ratings.csv").answers) == 40
