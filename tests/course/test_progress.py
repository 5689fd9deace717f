"""The record of exercises: what it holds, what survives, what it must never do to a learner."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from course import exercises, runner
from course.__main__ import main
from course.exercises import events, nb01, record
from course.exercises.events import MOST, Event, Progress
from course.room.table import read_room

WRONG = nb01.LENS.wrong[0][1]


class Clock:
    def __init__(self) -> None:
        self.now = 1_750_000_000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(record, "time", made)
    return made


@pytest.fixture
def restart(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """A function that forgets what a kernel knows."""

    def fresh() -> None:
        exercises._PROGRESS.clear()
        record._told.clear()
        record._room = record._chosen = None

    fresh()
    yield fresh
    fresh()


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restart: Any) -> Path:
    """This learner's record, which does not exist yet."""
    path = tmp_path / "home" / "data" / "progress.jsonl"
    monkeypatch.setenv("KIT_PROGRESS", str(path))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- what is written -----------------------------------------------------------------------------


def test_a_line_holds_exercise_event_and_times_and_nothing_else(mine: Path, clock: Clock) -> None:
    exercises.check("01.1", ...)
    for seconds, act in [
        (5, lambda: exercises.check("01.1", ...)),  # a second look is none
        (10, lambda: exercises.check("01.1", WRONG)),
        (20, lambda: exercises.solution("01.1")),  # not open: nothing happened
        (30, lambda: exercises.hint("01.1")),
        (90, lambda: exercises.check("01.1", nb01.logit_lens)),
        (95, lambda: exercises.solution("01.1")),
    ]:
        clock.now = 1_750_000_000.0 + seconds
        assert act().note == ""
    expected = [("look", 0), ("failed", 10), ("hint", 30), ("passed", 90), ("solution", 95)]
    assert lines(mine) == [
        {"exercise": "01.1", "event": event, "at": 1_750_000_000.0 + s, "seconds": float(s)} for event, s in expected
    ]
    assert mine.stat().st_mode & 0o077 == 0, "the record is nobody else's business"


def test_the_record_survives_the_kernel(mine: Path, restart: Any, clock: Clock) -> None:
    exercises.check("01.1", WRONG)
    exercises.check("01.1", WRONG)
    exercises.hint("01.1")
    before = exercises.progress("01.1")
    restart()
    assert exercises.progress("01.1") == before and before is not exercises.progress("01.1")
    assert nb01.LENS.hints[1] in exercises.hint("01.1").message, "the second hint comes second"
    assert not exercises.solution("01.1").code
    clock.now += 60
    assert "solution('01.1')" in exercises.check("01.1", WRONG).code  # the third try of two kernels
    assert exercises.check("01.1", nb01.logit_lens)
    restart()
    after = exercises.progress("01.1")
    assert (after.failed, after.hints, after.passed, after.seconds) == (3, 2, True, 60.0)
    assert exercises.solution("01.1").code
    assert exercises.progress("01.2") == Progress()


def test_nothing_counts_after_the_pass_and_a_loop_fills_no_disk(mine: Path) -> None:
    exercises.check("01.1", nb01.logit_lens)
    exercises.check("01.1", WRONG)
    exercises.check("01.1", nb01.logit_lens)
    assert [line["event"] for line in lines(mine)] == ["passed"]
    assert exercises.progress("01.1").tries == 1
    for _ in range(MOST + 10):
        exercises.hint("01.2")
    assert len(lines(mine)) == 1 + MOST


def test_off_writes_and_reads_nothing(
    mine: Path, restart: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    exercises.hint("01.1")
    restart()
    before = mine.read_bytes()
    monkeypatch.setenv("KIT_PROGRESS", "off")
    monkeypatch.setenv("KIT_TABLE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert exercises.progress("01.1").hints == 0
    assert exercises.hint("01.1").note == ""
    assert mine.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["home"]


def test_the_default_place_is_the_users_data_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KIT_PROGRESS", "")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    path = record.path()
    assert path is not None and path.name == "progress.jsonl" and "steering-kit" in path.parts
    if sys.platform == "linux":
        assert path == tmp_path / "steering-kit" / "progress.jsonl"


def test_an_executed_notebook_neither_reads_nor_writes_it(
    mine: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import nbformat

    for _ in range(3):
        exercises.check("01.1", WRONG)  # whoever runs the notebook has opened the solution
    before = mine.read_bytes()
    room = tmp_path / "room"
    room.mkdir()
    monkeypatch.setenv("KIT_TABLE", str(room))
    cells = [
        "import kit\nkit.exercises.check('01.1', ...)",
        "kit.exercises.hint('01.1')",
        "kit.exercises.solution('01.1').title",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    nbformat.write(book, tmp_path / "book.ipynb")
    done, _ = runner.execute(tmp_path / "book.ipynb")
    shown = [cell.outputs[0].data["text/plain"] for cell in done.cells]
    assert "Your turn" in shown[0] and "shared" not in shown[0]
    assert nb01.LENS.hints[1] not in shown[1] and shown[2].startswith("'Not open yet")
    assert mine.read_bytes() == before and not list(room.iterdir())


# --- several kernels, and faults -----------------------------------------------------------------


def python(code: str) -> subprocess.Popen[str]:
    """Python code, in a process that finds this kit."""
    root = str(Path(__file__).parents[2])
    search = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", code],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": search},
    )


WRITER = """
from course.exercises import record
from course.exercises.events import Progress
record._WAIT = 60.0  # a busy machine
for n in range(40):
    said = record.note(f"01.{n}", Progress(), "hint")
    assert said == "", said
"""


def test_kernels_that_write_at_once_lose_no_line(mine: Path) -> None:
    for process in [python(WRITER) for _ in range(5)]:
        assert process.communicate(timeout=120)[1] == "" and process.returncode == 0
    kept, ignored = record.recorded()
    assert ignored == 0
    assert {id: p.hints for id, p in kept.items()} == {f"01.{n}": 5 for n in range(40)}


FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))  # bytes of any file: the disk is full
from course import exercises as e
said = [e.hint("01.1").note for _ in range(12)]
print(sum(map(bool, said)), e.progress("01.1").hints)
print(next(filter(None, said)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of file sizes as on Linux")
def test_a_full_disk_is_one_quiet_note_and_no_torn_line(mine: Path) -> None:
    out, err = python(FULL).communicate(timeout=120)
    assert err == ""
    counts, note = out.splitlines()
    assert counts == "1 12", "said once, and the kernel's own count goes on"
    assert note.startswith("This result is not in your record (") and "counts until" in note
    raw = mine.read_bytes()
    assert 0 < len(raw) <= 600 and raw.endswith(b"\n")
    assert record.recorded()[1] == 0, "the line that did not fit was taken back"


def test_a_place_that_cannot_be_written_is_one_quiet_note(
    mine: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KIT_PROGRESS", str(tmp_path / "file" / "progress.jsonl"))
    first = exercises.check("01.1", WRONG)
    assert "not in your record" in first.note and first.note in repr(first)
    assert f"<small>{first.note[:20]}" in first._repr_html_()
    assert exercises.check("01.1", WRONG).note == ""
    assert exercises.progress("01.1").failed == 2


def test_a_kernel_that_hangs_with_the_lock_stops_nobody(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exercises.hint("01.1")
    monkeypatch.setattr(record, "_WAIT", 0.05)
    with FileLock(f"{mine}.lock"):
        assert "not in your record" in exercises.hint("01.1").note
    assert exercises.hint("01.1").note == ""
    assert [line["event"] for line in lines(mine)] == ["hint", "hint"]


def test_damage_is_passed_over_and_what_follows_is_whole(mine: Path, restart: Any) -> None:
    exercises.hint("01.1")
    good = mine.read_bytes()
    mine.write_bytes(good + b"\x00\xff garbage\n" + good[:25])  # killed in the middle of a line
    restart()
    exercises.hint("01.1")
    kept, ignored = record.recorded()
    assert kept["01.1"].hints == 2 and ignored == 2
    assert mine.read_bytes().count(b"\n") == 4


# --- kit progress --------------------------------------------------------------------------------


@pytest.fixture
def some(mine: Path, restart: Any, clock: Clock) -> Path:
    exercises.check("01.2", ...)
    clock.now += 30
    exercises.check("01.1", WRONG)
    exercises.hint("01.1")
    clock.now += 150
    exercises.check("01.1", nb01.logit_lens)
    exercises.solution("01.1")
    events.append(mine, b'{"exercise": "77.7", "event": "hint", "at": 5, "seconds": 0}\n')
    events.append(mine, b"not json\n")
    restart()
    return mine


def test_progress_says_what_is_done_and_what_is_open(some: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["progress"]) == 0
    shown = capsys.readouterr().out.splitlines()
    n = sum(id.startswith("01.") for id in exercises.registry())
    start = shown.index(f"notebook 01: 1 of {n} done")
    assert shown[start + 1 : start + 3] == [
        "  done  01.1   logit lens: 2 tries, 1 hint, solution opened, 2.5 min",
        f"  open  01.2   {nb01.RECOVERY.title}: looked at",
    ]
    assert shown[start + 3].startswith("notebook 02: 0 of ")
    assert shown[-2].startswith("2 lines or exercises of the record could not be read")
    assert shown[-1] == f"kept in {some}, on this machine alone"
    assert main(["progress", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    book = next(book for book in told["notebooks"] if book["notebook"] == "01")
    assert (book["done"], book["open"], told["ignored"]) == (1, n - 1, 2)
    assert book["exercises"][0] == {
        "id": "01.1",
        "title": "logit lens",
        "done": True,
        "tries": 2,
        "hints": 1,
        "solution": True,
        "minutes": 2.5,
    }


def test_reset_forgets_one_exercise_or_all(some: Path, restart: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["progress", "--reset", "99.9"]) == 1
    assert "no exercise '99.9'" in capsys.readouterr().err
    assert main(["progress", "--reset", "01.1"]) == 0
    assert "exercise 01.1: 5 lines removed" in capsys.readouterr().out  # and the damaged one
    assert [line["exercise"] for line in lines(some)] == ["01.2", "77.7"]
    assert exercises.progress("01.1") == Progress()
    assert main(["progress", "--reset"]) == 0
    assert "every exercise: 2 lines removed" in capsys.readouterr().out
    assert some.read_bytes() == b"" and some.stat().st_mode & 0o777 == 0o600
    assert main(["progress"]) == 0
    assert "No exercise was looked at yet." in capsys.readouterr().out


def test_a_reset_that_is_interrupted_loses_nothing(some: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = some.read_bytes()

    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kit.base.files.os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        record.reset()
    assert some.read_bytes() == before
    assert sorted(f.name for f in some.parent.iterdir()) == [some.name, f"{some.name}.lock"]


# --- sharing with a room -------------------------------------------------------------------------


@pytest.fixture
def room(tmp_path: Path) -> Path:
    folder = tmp_path / "room"
    folder.mkdir()
    folder.chmod(0o1733)
    return folder


def test_nothing_is_shared_unasked(mine: Path, room: Path) -> None:
    exercises.check("01.1", WRONG)
    assert not list(room.iterdir())
    assert {f.name for f in mine.parent.iterdir()} == {mine.name, f"{mine.name}.lock"}


def test_the_hosts_folder_gets_a_file_without_a_name(
    mine: Path, room: Path, restart: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USER", "ada")
    monkeypatch.setenv("KIT_TABLE", str(room))
    before = os.umask(0o077)
    try:
        first = exercises.check("01.1", WRONG)
        clock.now += 7
        assert exercises.hint("01.1").note == ""
    finally:
        os.umask(before)
    assert "share(None)" in first.note and "not your name or code" in first.note, "told once"
    (file,) = room.iterdir()
    assert events.NAME.fullmatch(file.name) and file.stat().st_mode & 0o777 == 0o644
    assert lines(file) == lines(mine) and len(lines(file)) == 2
    assert "ada" not in file.read_text()
    restart()
    clock.now += 3
    exercises.check("01.1", nb01.logit_lens)
    assert [f.name for f in room.iterdir()] == [file.name], "the same learner in the next kernel"
    assert [line["seconds"] for line in lines(file)] == [0.0, 7.0, 10.0]


def test_minutes_in_the_room_begin_in_the_room(mine: Path, room: Path, clock: Clock) -> None:
    exercises.check("01.1", ...)
    clock.now += 86_400  # looked at yesterday, at home
    exercises.share(room)
    exercises.check("01.1", WRONG)
    clock.now += 60
    exercises.check("01.1", nb01.logit_lens)
    (file,) = room.iterdir()
    assert [line["seconds"] for line in lines(file)] == [0.0, 60.0]
    assert lines(mine)[-1]["seconds"] == 86_460.0


def test_sharing_is_chosen_named_and_ended_by_the_learner(
    mine: Path, room: Path, tmp_path: Path, restart: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    assert "without your name" in exercises.share(room).message
    (file,) = room.iterdir()
    assert file.read_bytes() == b""
    assert "as Ada" in exercises.share(room, name="Ada\x1b[31m\u202e\n").message
    assert lines(file) == [{"name": "Ada[31m"}]
    exercises.share(other)
    assert next(other.iterdir()).name != file.name, "another room cannot tell that it is the same"
    monkeypatch.setenv("KIT_TABLE", str(room))
    restart()
    exercises.share(None)
    assert exercises.hint("01.1").note == "" and len(lines(file)) == 1, "a no wins over the host"
    with pytest.raises(FileNotFoundError, match="no such folder"):
        exercises.share(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="name='Ada'"):
        exercises.share(None, name="Ada")
    monkeypatch.setenv("KIT_PROGRESS", "off")
    with pytest.raises(ValueError, match="KIT_PROGRESS=off"):
        exercises.share(room)


def test_a_folder_that_takes_nothing_is_one_quiet_note(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KIT_TABLE", str(tmp_path / "nowhere"))
    notes = [exercises.hint("01.1").note for _ in range(3)]
    assert "The room's table did not get this" in notes[0] and notes[1:] == ["", ""]
    assert len(lines(mine)) == 3


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="needs links that can be refused")
def test_a_link_in_the_place_of_ones_file_is_refused(mine: Path, room: Path) -> None:
    exercises.share(room)
    (file,) = room.iterdir()
    target = room.parent / "precious"
    target.write_text("precious\n")
    file.unlink()
    file.symlink_to(target)
    assert "did not get this" in exercises.hint("01.1").note
    assert target.read_text() == "precious\n"


def as_user(uid: int, job: Callable[[], Any]) -> str:
    """What ``job`` says as another user of this machine, in a child process."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            said = repr(job())
        except BaseException as error:
            said = type(error).__name__
        os.write(into, said.encode())
        os._exit(0)
    os.close(into)
    with open(out, encoding="utf-8") as told:
        said = told.read()
    os.waitpid(child, 0)
    return said


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs two users")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_users_of_a_drop_box_neither_see_nor_touch_each_other(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as place:  # pytest's own are closed to other users
        Path(place).chmod(0o755)
        room = Path(place, "room")
        room.mkdir()
        room.chmod(0o1733)
        monkeypatch.setenv("KIT_TABLE", str(room))
        homes = {uid: Path(place, str(uid)) for uid in (61_001, 61_002)}
        for uid, home in homes.items():
            home.mkdir(0o700)
            os.chown(home, uid, uid)

        def learner(uid: int) -> str:
            os.environ["KIT_PROGRESS"] = str(homes[uid] / "progress.jsonl")
            os.umask(0o077)
            return exercises.check("01.1", WRONG).note

        for uid in homes:
            assert "are shared with" in as_user(uid, lambda uid=uid: learner(uid))
        files = {file.stat().st_uid: file for file in room.iterdir()}
        assert set(files) == set(homes)
        theirs = files[61_001]
        line = events.line(Event("01.1", "passed", 5.0, 0.0))
        for job in (
            lambda: os.listdir(room),
            lambda: theirs.write_bytes(b""),
            theirs.unlink,
            lambda: theirs.rename(room / "x"),
            lambda: os.listdir(homes[61_001]),
            lambda: events.append(theirs, line, shared=True),
            lambda: read_room(room),
        ):
            assert as_user(61_002, job) == "PermissionError"
        (row,) = [row for row in read_room(room).rows if row.started]
        assert (row.exercise, row.started, row.tries, row.passed) == ("01.1", 2, 2, 0)
