"""The instructor's table: exact counts, nothing that a file can do to the page, the widget."""

from __future__ import annotations

import json
import os
import random
import re
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from course import exercises
from course.__main__ import main
from course.exercises import events
from course.exercises.events import Event
from course.room import table as tables
from course.room.room_table import RoomTable, html
from course.room.table import Row, read_room
from tests.test_browser import _run, _wait, browser, nameless

NOW = 1_750_000_000.0  # past, for lines from the future are ignored
KNOWN = [id for id in sorted(exercises.registry()) if id.startswith("01.")]


def learner(folder: Path, n: int, *found: Event | bytes) -> Path:
    """The file of learner ``n``."""
    file = folder / f"{n:016x}.jsonl"
    raw = [events.line(one) if isinstance(one, Event) else one + b"\n" for one in found]
    file.write_bytes(b"".join(raw))
    return file


def only(folder: Path) -> Row:
    """The one exercise that somebody has started."""
    (row,) = [row for row in read_room(folder, NOW).rows if row.started]
    return row


# --- thirty learners -----------------------------------------------------------------------------


def play(folder: Path, seed: int) -> tuple[dict[str, list[dict[str, Any]]], int]:
    """Thirty learners do exercises; what each did, by exercise, and how many are active."""
    rng = random.Random(seed)
    did: dict[str, list[dict[str, Any]]] = {id: [] for id in KNOWN}
    active = 0
    for n in range(30):
        last = NOW - rng.choice([100, 290, 310, 4000])
        written: list[Event] = []
        for id in KNOWN[: rng.randint(0, len(KNOWN))]:
            failed, hints = rng.choice([0, 0, 1, 1, 2, 3, 7]), rng.choice([0, 0, 1, 2])
            passed, opened = rng.random() < 0.6, rng.random() < 0.3
            acts = ["failed"] * failed + ["hint"] * hints + ["solution"] * opened
            rng.shuffle(acts)
            times = [0.0]
            for _ in range(len(acts) + passed):
                times.append(times[-1] + rng.randint(1, 60))
            acts = ["look", *acts, *["passed"] * passed]
            did[id].append(
                {"failed": failed, "hints": hints, "opened": opened, "passed": passed, "minutes": times[-1] / 60}
            )
            if passed and rng.random() < 0.5:  # what comes after the pass does not count
                acts += ["failed", "failed", "passed"]
                times += [times[-1] + more for more in (5, 10, 15)]
            written += [Event(id, act, s, s) for act, s in zip(acts, times, strict=True)]
        if written:  # the last event falls where the choice above put it
            shift = last - max(event.at for event in written)
            written = [event._replace(at=event.at + shift) for event in written]
            active += last >= NOW - 300
        learner(folder, n, *written)
    return did, active


@pytest.mark.parametrize("seed", range(5))
def test_thirty_learners_give_exactly_their_table(tmp_path: Path, seed: int) -> None:
    did, active = play(tmp_path, seed)
    found = read_room(tmp_path, NOW)
    expected = []
    for id in KNOWN:
        times = [one["minutes"] for one in did[id] if one["passed"]]
        expected.append(
            Row(
                id,
                exercises.find(id).title,
                started=len(did[id]),
                tries=sum(one["failed"] + one["passed"] for one in did[id]),
                passed=len(times),
                hints=sum(one["hints"] for one in did[id]),
                solutions=sum(one["opened"] for one in did[id]),
                minutes=pytest.approx(statistics.median(times)) if times else None,
                stuck=sum(one["failed"] >= 2 and not one["passed"] for one in did[id]),
            )
        )
    assert list(found.rows) == expected
    assert (found.learners, found.active, found.notes) == (30, active, ())
    assert 0 < active < 30 and sum(row.stuck for row in found.rows) > 5, "the case says something"


def test_the_terminal_shows_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n in range(3):
        learner(tmp_path, n, *[Event("01.1", "failed", NOW, 0.0)] * 2)
    learner(tmp_path, 3, Event("01.1", "hint", NOW - 9000, 0), Event("01.1", "passed", NOW, 90))
    shown = read_room(tmp_path, NOW).text("01").splitlines()
    assert shown[0] == "4 learners, 4 active in the last five minutes"
    assert shown[1].split() == ["exercise", "started", "tries", "passed", "hints", "solution", "minutes", "stuck"]
    assert re.split(r"  +", shown[2]) == ["01.1 logit lens", "4", "7", "1", "1", "0", "1.5", "########", "3 of 4 !"]
    ends = [match.end() for match in re.finditer(r"[\w-]+(?=  |$)", shown[1])][1:7]
    assert [shown[3][end - 1] for end in ends] == ["0"] * 5 + ["-"], "columns stand below heads"
    assert len(shown) == 2 + len(KNOWN)
    assert main(["table", str(tmp_path), "--notebook", "02"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2, "nobody has started notebook 02"
    assert main(["table", str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_an_empty_room(tmp_path: Path) -> None:
    found = read_room(tmp_path)
    assert found.rows == () and found.headline.startswith("no learner yet, 0 active")
    assert "Nobody has started" in html(found)


# --- what anybody may put there ------------------------------------------------------------------

GOOD = Event("01.1", "failed", NOW - 10, 0.0)
BAD = [
    b"not json",
    b"\x00\xff\xfe",
    b"[]",
    b"null",
    b"{}",
    b'"<script>alert(1)</script>"',
    b'{"exercise": "<img src=x onerror=alert(1)>", "event": "failed", "at": 5, "seconds": 0}',
    b'{"exercise": "01.1", "event": "<b>", "at": 5, "seconds": 0}',
    b'{"exercise": "01.1", "event": ["failed"], "at": 5, "seconds": 0}',
    b'{"exercise": ["01.1"], "event": "failed", "at": 5, "seconds": 0}',
    b'{"exercise": "99.9", "event": "failed", "at": 5, "seconds": 0}',
    b'{"exercise": "01.1", "event": "failed", "at": NaN, "seconds": 0}',
    b'{"exercise": "01.1", "event": "failed", "at": 1e999, "seconds": 0}',
    b'{"exercise": "01.1", "event": "failed", "at": 5, "seconds": -5}',
    b'{"exercise": "01.1", "event": "passed", "at": 5, "seconds": true}',
    b'{"exercise": "01.1", "event": "failed", "at": "5", "seconds": 0}',
    b'{"exercise": "01.1", "event": "failed", "at": 1' + b"0" * 400 + b', "seconds": 0}',
    b'{"exercise": "01.1", "event": "failed", "at": 5, "seconds": 0}' + b" " * 500,
    b"[" * 450,
    b'{"name": 5}',
    b'{"name": ["a"]}',
    json.dumps({"exercise": "01.1", "event": "passed", "at": NOW + 3600, "seconds": 0}).encode(),
]


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_a_line_that_is_no_event_is_ignored_and_told(tmp_path: Path, bad: bytes) -> None:
    learner(tmp_path, 1, bad, GOOD, bad)
    found = read_room(tmp_path, NOW)
    assert found.notes == ("2 lines ignored",)
    assert (only(tmp_path).tries, only(tmp_path).passed, found.active) == (1, 0, 1)
    assert "2 lines ignored" in html(found) and "2 lines ignored" in found.text()


def test_a_name_is_escaped_short_and_printable(tmp_path: Path) -> None:
    name = "<script>alert('x')</script>\x1b[2J\u202e" + "w" * 100
    learner(tmp_path, 1, json.dumps({"name": name}).encode(), GOOD, GOOD)
    learner(tmp_path, 2, b'{"name": "Ada"}', b'{"name": ""}', GOOD, GOOD)  # taken back
    row = only(tmp_path)
    assert row.names == ("<script>alert('x')</script>[2J" + "w" * 10,) and row.stuck == 2
    page = html(read_room(tmp_path, NOW))
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "\x1b" not in read_room(tmp_path, NOW).text()


def test_many_names_are_cut_short(tmp_path: Path) -> None:
    for n in range(8):
        learner(tmp_path, n, f'{{"name": "L{n}"}}'.encode(), GOOD, GOOD)
    assert only(tmp_path).who == "L0, L1, L2, L3, L4 and 3 more"
    assert "and 3 more" in html(read_room(tmp_path, NOW)) and "L6" not in html(read_room(tmp_path))


def test_a_flood_counts_as_one_person(tmp_path: Path) -> None:
    """Of tries, of bytes, of files: the others' numbers stay what they are."""
    learner(tmp_path, 1, GOOD)
    learner(tmp_path, 2, *[GOOD] * 2000)
    assert (only(tmp_path).tries, only(tmp_path).stuck) == (1 + events.MOST, 1)
    huge = learner(tmp_path, 2, GOOD)
    with huge.open("ab") as out:
        out.truncate(2**40)  # a terabyte, most of it a hole
    found = read_room(tmp_path, NOW)
    assert only(tmp_path).tries == 2 and found.notes == ("1 line ignored",)
    for n in range(tables.FILES + 20):
        learner(tmp_path, 100 + n, GOOD)
    found = read_room(tmp_path, NOW)
    assert found.learners == tables.FILES and "22 files left out" in found.notes


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs two users")
def test_one_accounts_files_do_not_crowd_out_another_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "FILES", 5)
    for n in range(50):
        os.chown(learner(tmp_path, n, GOOD), 61_000, 61_000)
    for n in (97, 98, 99):  # by name they come last
        os.chown(learner(tmp_path, n, Event("01.2", "passed", NOW, 60.0)), 61_000 + n, 61_000)
    rows = {row.exercise: row.started for row in read_room(tmp_path, NOW).rows}
    assert rows["01.2"] == 3 and rows["01.1"] == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes and links")
def test_pipes_links_folders_and_other_names_are_left_alone(tmp_path: Path) -> None:
    room = tmp_path / "room"
    room.mkdir()
    learner(room, 1, GOOD)
    secret = learner(tmp_path, 7, *[Event("01.1", "passed", NOW, 0.0)])
    (room / f"{2:016x}.jsonl").symlink_to(secret)
    os.mkfifo(room / f"{3:016x}.jsonl")  # opening it to read would wait for ever
    (room / f"{4:016x}.jsonl").mkdir()
    (room / "<img src=x>.jsonl").write_text("x")
    found = read_room(room, NOW)
    assert found.notes == ("4 files left out",) and found.learners == 1
    assert only(room).passed == 0
    for n in (2, 3):  # put there between the listing and the reading
        with pytest.raises(OSError):
            events.read(room / f"{n:016x}.jsonl", shared=True)


# --- the widget ----------------------------------------------------------------------------------


class Shape(HTMLParser):
    """Tags and their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def having(self, tag: str, **wanted: str) -> int:
        return sum(t == tag and wanted.items() <= a.items() for t, a in self.tags)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., RoomTable]]:
    made: list[RoomTable] = []

    def view(**options: Any) -> RoomTable:
        made.append(RoomTable(tmp_path, **options))
        return made[-1]

    yield view
    for one in made:
        one.close()


def test_it_is_a_real_table_and_colour_is_never_alone(tmp_path: Path) -> None:
    for n in range(3):
        learner(tmp_path, n, GOOD, GOOD)
    page = html(read_room(tmp_path, NOW))
    shape = Shape(page)
    assert shape.having("caption") == 1 and shape.having("th", scope="col") == 8
    assert shape.having("th", scope="row") == len(KNOWN)
    assert shape.having("td") == 7 * len(KNOWN)
    assert "⚠ 3 of 3: stuck" in page and page.count("⚠") == 1
    assert "width:100%;background:rgb(213,94,0)" in page
    assert shape.having("script") == 0 and "http" not in page


def test_it_renews_itself_and_ends_with_its_view(tmp_path: Path, make: Callable[..., RoomTable]) -> None:
    view = make(every=0.1)
    assert "Nobody has started" in view.frozen_html
    learner(tmp_path, 1, GOOD)
    wait(lambda: view.table.learners == 1 and "01.1" in view._html.value)
    thread = view._thread
    view.automatic.value = False
    wait(lambda: view._thread is None)
    learner(tmp_path, 2, GOOD)
    time.sleep(0.3)
    assert view.table.learners == 1, "it was switched off"
    view.refresh_button.click()
    assert view.table.learners == 2
    view.automatic.value = True
    learner(tmp_path, 3, GOOD)
    wait(lambda: view.table.learners == 3)
    assert thread is not None and view._thread is not thread
    view.close()
    assert not [t for t in threading.enumerate() if t.name == "kit-room"]


def test_it_is_switched_off_and_on_while_it_waits(make: Callable[..., RoomTable]) -> None:
    view = make(every=0.1)
    reads: list[float] = []
    view._time.observe(lambda _change: reads.append(time.monotonic()), "value")
    with view._guard:  # before its thread can see that it was off
        view.automatic.value = False
        view.automatic.value = True
    view.refresh = lambda: reads.append(time.monotonic())  # type: ignore[method-assign]
    time.sleep(0.5)
    assert view._thread is not None and len(reads) < 20, "it waits between two looks"


def test_a_table_that_is_the_same_is_not_drawn_anew(tmp_path: Path, make: Callable[..., RoomTable]) -> None:
    """Else it scrolls back, and loses the keyboard's focus, every few seconds."""
    learner(tmp_path, 1, GOOD)
    view, drawn = make(every=3600), []
    view._html.observe(drawn.append, "value")
    before = view.table
    view.refresh()
    assert view.table.at > before.at and drawn == []
    view.table = tables.Table((), 0, 0, (), 5.0)  # another time alone
    view._draw()
    drawn.clear()
    view.table = tables.Table((), 0, 0, (), 500.0)
    view._draw()
    assert drawn == [] and view._time.value in view.frozen_html
    learner(tmp_path, 1, GOOD, GOOD)
    view.refresh()
    assert len(drawn) == 1


def test_a_folder_that_goes_is_said_and_one_that_comes_back_is_read(
    tmp_path: Path, make: Callable[..., RoomTable]
) -> None:
    room = tmp_path / "room"
    room.mkdir()
    learner(room, 1, GOOD)
    view = RoomTable(room, every=0.1)
    try:
        room.rename(tmp_path / "away")
        wait(lambda: "Error: " in view._message.value and "room" in view._message.value)
        assert view.table.learners == 1 and "01.1" in view._html.value
        (tmp_path / "away").rename(room)
        wait(lambda: view._message.value == "")
    finally:
        view.close()
    with pytest.raises(FileNotFoundError):
        RoomTable(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="every=0"):
        RoomTable(room, every=0)


def test_one_notebook_stays_chosen_while_others_come(tmp_path: Path, make: Callable[..., RoomTable]) -> None:
    learner(tmp_path, 1, GOOD)
    view = make(every=3600)
    assert view.notebook.options == ("all", "01")
    view.notebook.value = "01"
    learner(tmp_path, 2, GOOD._replace(exercise="00.1"))
    view.refresh()
    assert view.notebook.options == ("all", "00", "01") and view.notebook.value == "01"
    assert "00.1" not in view._html.value and "01.1" in view._html.value
    view.notebook.value = "all"
    assert "00.1" in view._html.value and view._html.value in view.frozen_html
    view.freeze_button.click()
    assert view._area.value == view.frozen_html


def wait(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


CELL = """
from course.room.room_table import RoomTable
room = RoomTable({folder!r}, every=0.5)
room
"""


def test_an_instructor_watches_it_in_jupyterlab(browser: Any, tmp_path: Path) -> None:
    import nbformat

    room, lab = tmp_path / "room", tmp_path / "lab"
    room.mkdir()
    lab.mkdir()
    learner(room, 1, GOOD, GOOD, b'{"name": "<img src=x onerror=document.title=1>"}')
    cell = nbformat.v4.new_code_cell(CELL.format(folder=str(room)).strip())
    with _run(browser, nbformat.v4.new_notebook(cells=[cell]), lab) as page:
        view = page.page.locator(".kit-room").first
        _wait(lambda: "1 of 1" in view.inner_text(), 60)
        rows = view.locator("tbody tr")
        assert rows.count() == len(KNOWN) and view.locator("thead th").count() == 8
        assert view.locator("img").count() == 0 and "<img src=x" in view.inner_text()
        _wait(lambda: not nameless(page, ".kit-room"), 60)
        learner(room, 2, GOOD, Event("01.1", "passed", NOW, 120.0))  # nothing is pressed
        _wait(lambda: "1 of 2" in rows.first.inner_text(), 60)
        assert rows.first.locator("td").all_inner_texts()[1:] == ["2", "4", "1", "0", "0", "2.0"]
        view.get_by_role("checkbox").uncheck()
        view.get_by_role("button", name="Freeze", exact=True).click()
        _wait(lambda: page.page.locator(".jp-OutputArea table caption").count() == 2, 60)
        learner(room, 3, GOOD)
        time.sleep(1.5)
        assert "1 of 2" in rows.first.inner_text(), "switched off, it stands still"
        view.get_by_role("button", name="Refresh", exact=True).click()
        _wait(lambda: "1 of 3" in rows.first.inner_text(), 60)
        assert page.asked <= {"127.0.0.1", ""}, page.asked
