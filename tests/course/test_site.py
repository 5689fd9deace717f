"""Workshop: the course map, both editions of each notebook, the pages, the handout, the links."""

from __future__ import annotations

import copy
import json
import re
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat import NotebookNode, v4

from course import exercises, rules, runner
from course.__main__ import main
from course.site import build as building
from course.site import colab, course_map, editions, pages
from course.site.clean import clean
from kit.cli.pins import pins
from tests.test_browser import FLAGS, _chromium

ROOT = Path(__file__).parents[2]
SOURCES = {path: rules.read(path) for path in runner.choose([])}
LESSONS = {path: course_map.lesson(path, notebook) for path, notebook in SOURCES.items()}
each_notebook = pytest.mark.parametrize("path", SOURCES, ids=[path.stem for path in SOURCES])
WIDGET = "application/vnd.jupyter.widget-view+json"
REPOSITORY = "https://github.com/someone/steering-kit"
NEEDS = re.compile(r"^\*\*Needs:\*\* *(.+)$", re.MULTILINE)
LATE = re.compile(r'^\*\*Late\?\*\* `kit\.catch_up\("(\d\d)\.(\d+)"\)`', re.MULTILINE)
LATE_FROM = 3  # sections that hold code: from so many on a header says how to start later


def small(*cells: NotebookNode, number: str = "07") -> tuple[NotebookNode, course_map.Lesson]:
    """A notebook of these cells, and its lesson."""
    notebook = v4.new_notebook(cells=list(cells))
    notebook.metadata["kit"] = {
        "title": "a title",
        "question": "Why?",
        "goals": ["see"],
        "after": ["00"],
        "human_minutes": 20,
        "machine_seconds": 3,
        "talking_points": ["mind the gap"],
    }
    return notebook, course_map.lesson(Path(f"{number}_test.ipynb"), notebook)


# --- the course map -------------------------------------------------------------------------------


def holds_code(notebook: NotebookNode, section: course_map.Section) -> bool:
    """Whether a section has a code cell, besides the one that ends every notebook."""
    return any(index != len(notebook.cells) - 1 for index in section.code)


def needs(header: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Numbers of the notebooks that a header's **Needs:** line asks for, and that it says help.

    What stands behind a semicolon helps; what stands before it is needed.
    """
    line = NEEDS.search(header)
    if line is None:
        return (), ()
    text = re.sub(r"\([^)]*\)", "", line[1])  # links' addresses repeat the number
    asked, _, better = text.partition(";")
    return tuple(re.findall(r"\b\d\d\b", asked)), tuple(re.findall(r"\b\d\d\b", better))


def faults(lesson: course_map.Lesson, notebook: NotebookNode) -> list[str]:
    """Where header and metadata of a notebook disagree, and prerequisites that come too late."""
    header = "\n".join(cell.source for cell in notebook.cells[:2])
    found = []
    for name, said, kept in zip(("after", "helps"), needs(header), (lesson.after, lesson.helps), strict=True):
        if said != kept:
            found.append(f"the header needs {said}, metadata.kit.{name} is {kept}")
    if late := [n for n in (*lesson.after, *lesson.helps) if n >= lesson.number]:
        found.append(f"it needs {', '.join(late)}, which does not come before it")
    if not lesson.goals or not all(lesson.goals):
        found.append("metadata.kit.goals is empty")
    own = course_map.sections(notebook, lesson.number)
    late_line = LATE.search(header)
    if (sum(holds_code(notebook, s) for s in own) >= LATE_FROM) != (late_line is not None):
        found.append("the header's **Late?** line: there from three sections with code on")
    if late_line and not (late_line[1] == lesson.number and 1 <= int(late_line[2]) <= len(own)):
        found.append(f"the header's **Late?** line names no section: {late_line[0]}")
    return found


@each_notebook
def test_header_and_metadata_agree(path: Path) -> None:
    lesson = LESSONS[path]
    assert faults(lesson, SOURCES[path]) == []
    assert 3 <= len(lesson.talking_points) <= 7
    header = "\n".join(cell.source for cell in SOURCES[path].cells[:2])
    told = rules.TIME.search(header)
    assert told and int(told["minutes"]) == lesson.minutes
    assert told["machine"].startswith(f"{lesson.seconds} s ")


def test_the_course_is_told_alike_everywhere() -> None:
    lessons = list(LESSONS.values())
    assert [lesson.number for lesson in lessons] == [f"{n:02d}" for n in range(len(lessons))]
    start = "\n".join(cell.source for cell in SOURCES[lessons[0].path].cells)
    repair = "run: python -m course.site.course_map --write"
    assert course_map.table(lessons, "", "00").strip() in start, repair
    assert course_map.table(lessons) in (ROOT / "README.md").read_text(encoding="utf-8"), repair


def test_write_brings_stale_tables_up_to_date_and_then_rests(tmp_path: Path) -> None:
    for path in SOURCES:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    readme = tmp_path / "README.md"
    readme.write_text(
        "before\n\n| a | b |\n|---|---|\n| [00](notebooks/00_start_here.ipynb) | 9 |\n\nafter\n", encoding="utf-8"
    )
    late = tmp_path / "16_facts.ipynb"
    notebook = rules.read(late)
    notebook.metadata["kit"]["machine_seconds"] = 12_345
    runner.write(notebook, late)
    changed = course_map.write(tmp_path, readme)
    assert changed == [tmp_path / "00_start_here.ipynb", readme]
    assert rules.problems(changed[0]) == []
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("before\n\n| notebook ") and text.endswith("|\n\nafter\n")
    assert "| 12345 s |" in text
    assert course_map.write(tmp_path, readme) == []


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("nothing but this kit. About 1 GB.", ((), ())),
        ("notebook 02; 2 GB of memory.", (("02",), ())),
        ("[00 start here](00_start_here.ipynb); [02 vectors](02_v.ipynb) helps. 1 GB.", (("00",), ("02",))),
        ("[05 MELBO](05_melbo.ipynb), [06 DCT](06_dct.ipynb).", (("05", "06"), ())),
    ],
)
def test_needs_are_read_from_the_header(line: str, wanted: tuple[Any, Any]) -> None:
    assert needs(f"**Goal:** x\n\n**Needs:** {line}\n") == wanted


def test_faults_name_what_disagrees() -> None:
    header = v4.new_markdown_cell("# t\n\n**Needs:** [03](03_x.ipynb).")
    code = [c for n in range(3) for c in (v4.new_markdown_cell(f"## {n}"), v4.new_code_cell("1"))]
    notebook, lesson = small(header, *code, v4.new_code_cell("kit.assert_clean(model)"))
    found = "\n".join(faults(lesson, notebook))
    assert "needs ('03',), metadata.kit.after is ('00',)" in found and "**Late?**" in found
    del notebook.metadata["kit"]["title"], notebook.metadata["kit"]["goals"]
    with pytest.raises(ValueError, match=r"07_test.ipynb: metadata.kit has no title, goals"):
        course_map.lesson(lesson.path, notebook)


def test_a_file_that_is_no_notebook_is_named(tmp_path: Path) -> None:
    for text in ("", "[]", '{"cells": 3}'):
        (tmp_path / "00_x.ipynb").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"00_x\.ipynb"):
            course_map.read(folder=tmp_path)


def test_sections_count_headings_wherever_they_stand() -> None:
    notebook, _ = small(
        v4.new_markdown_cell("# t\n## 7 · One"),
        v4.new_code_cell("a"),
        v4.new_markdown_cell("done\n\n## Two\n```\n## no heading\n```\n## Three"),
        v4.new_code_cell("b"),
        v4.new_code_cell("kit.assert_clean(model)"),
    )
    found = course_map.sections(notebook, "07")
    assert [(s.id, s.title, s.code) for s in found] == [
        ("07.1", "7 · One", (1,)),
        ("07.2", "Two", ()),
        ("07.3", "Three", (3, 4)),
    ]
    assert [holds_code(notebook, s) for s in found] == [True, False, True]


def test_the_map_shows_every_notebook_once_and_points_downwards() -> None:
    lessons = list(LESSONS.values())
    needs = {(a, lesson.number) for lesson in lessons for a in lesson.after}
    helps = {(a, lesson.number) for lesson in lessons for a in lesson.helps}
    drawn = course_map.mermaid(lessons)
    boxes = re.findall(r'^n(\d\d)\["\1 ([^"]+)<br>(\d+) min"\]$', drawn, re.MULTILINE)
    assert boxes == [(lesson.number, lesson.title, str(lesson.minutes)) for lesson in lessons]
    for arrow, wanted in (("-->", needs), ("-.->", helps)):
        arrows = re.findall(rf"^n(\d\d) {arrow} n(\d\d)$", drawn, re.MULTILINE)
        assert set(arrows) == wanted and len(arrows) == len(wanted) > 0
    assert all(a < b for a, b in needs | helps)
    assert course_map.mermaid(lessons[1:2]).count("n01") == 1  # what it needs is not there

    page = pages.index_page(lessons[:2], lessons)
    assert re.findall(r'<tr id="(\d\d)">', page) == [lesson.number for lesson in lessons]
    assert len(re.findall(r'<a href="[^#]', page)) == 2
    for number, needed, onward in re.findall(
        r'<tr id="(\d\d)">.*?data-label="Needs">(.*?)</td>.*?data-label="Leads to">(.*?)</td>', page, re.DOTALL
    ):
        asked, _, helpful = needed.partition("(")
        assert {(n, number) for n in re.findall(r'href="#(\d\d)"', asked)} == {e for e in needs if e[1] == number}
        assert {(n, number) for n in re.findall(r'href="#(\d\d)"', helpful)} == {e for e in helps if e[1] == number}
        assert {(number, n) for n in re.findall(r'href="#(\d\d)"', onward)} == {
            e for e in needs | helps if e[0] == number
        }


# --- the editions ---------------------------------------------------------------------------------


def unfolded(text: str) -> str:
    """A folded reading as its source had it."""
    return text.replace(editions.FOLDED, "", 1).replace("</details>", "", 1)


def unanswered(text: str) -> str:
    """Markdown with a sentence in the place of the quiz's answers."""
    before, answers, after = text.partition("<details><summary>Answers</summary>")
    return before + editions.ANSWERS + after.partition("</details>")[2] if answers else text


@each_notebook
def test_student_edition_is_the_source_less_outputs_and_answers(path: Path) -> None:
    source, lesson = SOURCES[path], LESSONS[path]
    student = editions.student(source, lesson, REPOSITORY)
    nbformat.validate(student)
    assert student.cells[0].metadata.tags == ["colab"]
    own = student.cells[1:]
    assert [(c.id, c.cell_type) for c in own] == [(c.id, c.cell_type) for c in source.cells]
    for mine, theirs in zip(own, source.cells, strict=True):
        assert "execution" not in mine.metadata
        if mine.cell_type == "code":
            assert (mine.source, mine.outputs, mine.execution_count) == (theirs.source, [], None)
        elif "reading" in theirs.metadata.get("tags", []):
            assert mine.source.startswith(editions.FOLDED)
            assert unfolded(mine.source).split() == unanswered(theirs.source).split()
        else:
            assert mine.source == unanswered(theirs.source)
    text = json.dumps(student)
    for gone in ("<summary>Answers</summary>", "talking_points", "source_sha256", "widget-view"):
        assert gone not in text
    assert "widgets" not in student.metadata and text.count(editions.FOLDED) >= 3


def test_no_student_edition_holds_a_solution() -> None:
    """The cell of each exercise has none of the solution's lines but those that its stub gives."""
    for path, lesson in LESSONS.items():
        student = editions.student(SOURCES[path], lesson)
        for id in lesson.exercises:
            exercise = exercises.find(id)
            own = [c.source for c in student.cells if exercise.stub.strip() in c.source]
            assert len(own) == 1, id
            given = {line.strip() for line in exercise.stub.splitlines()}
            lines = {line.strip() for line in exercises.source(exercise).splitlines()} - given
            lines = {line for line in lines if len(line) > 8 and not line.startswith("def ")}
            assert lines, id
            assert not [line for line in lines if line in own[0]], id


def test_a_solved_source_is_refused() -> None:
    path = runner.choose(["00"])[0]
    solved = copy.deepcopy(SOURCES[path])
    for cell in solved.cells:
        if cell.source.startswith("pushed = ..."):
            cell.source = "pushed = 12"
    with pytest.raises(ValueError, match=r"00_start_here.ipynb: no cell holds the stub of 00\.1"):
        editions.student(solved, LESSONS[path])


def test_fold_hides_the_reading_and_nothing_behind_it() -> None:
    text = "**What happened.** It sank.\n\nAll of it.\n\n**Predict first.** Will it float?"
    inside, outside = editions.fold(text).split("</details>")
    assert "All of it." in inside and "Predict" not in inside and "Will it float?" in outside
    assert editions.fold("Only this.").endswith("Only this.\n\n</details>")


@each_notebook
def test_instructor_edition_adds_and_changes_nothing(path: Path) -> None:
    source, lesson = SOURCES[path], LESSONS[path]
    teacher = editions.instructor(source, lesson)
    nbformat.validate(teacher)
    added = [c for c in teacher.cells if "instructor" in c.metadata.get("tags", [])]
    assert [c for c in teacher.cells if c not in added] == source.cells
    assert len(added) == 1 + 2 * len(lesson.exercises)
    plan = next(c for c in added if c.id == "instructor-plan").source
    assert all(point in plan for point in lesson.talking_points)
    places = {c.id: i for i, c in enumerate(teacher.cells)}
    for id in lesson.exercises:
        exercise, name = exercises.find(id), f"instructor-{id.replace('.', '-')}"
        at = places[f"{name}-notes"]
        assert f'check("{id}"' in teacher.cells[at - 1].source
        assert places[f"{name}-solution"] == at + 1
        assert exercises.source(exercise) in teacher.cells[at + 1].source
        notes, told = teacher.cells[at].source, editions.wrong_answers(exercise)
        assert exercise.moral in notes and len(told) == len(exercise.wrong) > 0
        for label, message in told:
            assert label in notes and message.splitlines()[-1] in notes


@each_notebook
def test_plan_adds_up(path: Path) -> None:
    plan = editions.plan(SOURCES[path], LESSONS[path])
    assert sum(minutes for _, minutes, _ in plan) == LESSONS[path].minutes
    assert all(minutes >= 0 for _, minutes, _ in plan)
    assert all(minutes == 0 for part, minutes, _ in plan if part.title == "On your own")
    measured = sum(seconds for _, _, seconds in plan)
    assert measured == pytest.approx(LESSONS[path].seconds, abs=2)


def test_solution_cells_take_no_name_that_the_notebook_uses() -> None:
    """A teacher who runs them gets the notebook that learners have."""
    for source in SOURCES.values():
        code = "\n".join(c.source for c in source.cells if c.cell_type == "code")
        for check in (check for cell in source.cells for check in course_map.checks(cell)):
            name = exercises.find(check.id).solution.__name__
            taken = re.search(rf"^(?:\w+, )*{name}(?:, \w+)* = ", code, re.MULTILINE)
            assert name == check.answer or taken is None, f"{check.id}: {name}"


def test_instructor_edition_runs_with_its_solutions(tmp_path: Path) -> None:
    path = runner.choose(["00"])[0]
    target = tmp_path / path.name
    runner.write(editions.instructor(SOURCES[path], LESSONS[path]), target)
    done, _ = runner.execute(target, small=True)
    said = [c.outputs[-1].data["text/plain"] for c in done.cells if c.id.endswith("-solution")]
    assert len(said) == 2 and all(text.startswith("Passed: 00.") for text in said)


# --- Colab and the links --------------------------------------------------------------------------


def test_colab_cell_does_nothing_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("a command ran"))
    space: dict[str, Any] = {}
    exec(colab.cell(REPOSITORY), space)
    assert set(space) == {"__builtins__", "sys"}


def test_colab_cell_runs_the_commands_of_the_makefile(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[list[str]] = []
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setattr("subprocess.run", lambda command, check: ran.append(list(command)))
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    exec(colab.cell(REPOSITORY), {})
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    assert ran == [
        ["git", "clone", "--quiet", "--depth", "1", "--", REPOSITORY, "steering-kit"],
        [*pip, "--no-deps", "--index-url", "https://download.pytorch.org/whl/cpu", f"torch=={pins()['torch']}"],
        [*pip, "-c", "steering-kit/constraints.txt", "-e", "./steering-kit"],
        [sys.executable, "-m", "kit", "fetch"],
    ]
    assert sys.path[0] == str(tmp_path / "steering-kit")
    ran.clear()
    (tmp_path / "steering-kit").mkdir()
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/nvidia-smi")
    exec(colab.cell(REPOSITORY), {})
    assert [command[3] for command in ran] == ["install", "fetch"]  # no clone, the usual torch
    assert "restart the session" in capsys.readouterr().out.lower()


@pytest.mark.parametrize(
    "address",
    [
        "",
        "--upload-pack=touch x",
        "https://a b",
        "https://a/'; import os #",
        "github.com/a/b",
        "javascript:alert(1)",
        'https://a/"b',
        "../elsewhere",
        "https://a/b\nimport os",
    ],
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="repository="):
        colab.cell(address)


def test_links_lead_to_the_student_edition() -> None:
    lessons = list(LESSONS.values())[:2]
    text = colab.links(lessons, REPOSITORY + ".git", branch="day 1", hub="https://hub.example/")
    assert ("https://colab.research.google.com/github/someone/steering-kit/blob/day%201/student/01_hooks.ipynb") in text
    assert ("https://mybinder.org/v2/gh/someone/steering-kit/day%201?labpath=student/00_start_here.ipynb") in text
    assert (
        "https://hub.example/hub/user-redirect/git-pull?repo=https%3A%2F%2Fgithub.com%2Fsomeone"
        "%2Fsteering-kit.git&branch=day%201&urlpath=lab%2Ftree%2Fsteering-kit%2Fstudent%2F"
        "01_hooks.ipynb"
    ) in text
    elsewhere = colab.links(lessons, "https://git.example/x/kit")
    assert "colab.research" not in elsewhere and "upload a file" in elsewhere
    assert "mybinder.org/v2/git/https%3A%2F%2Fgit.example%2Fx%2Fkit/main" in elsewhere


# --- cleaning -------------------------------------------------------------------------------------

EVIL = [
    "<script>document.title='owned'</script>",
    "<scr<script></script>ipt>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "<svg onload=\"document.title='owned'\"><script>document.title='owned'</script></svg>",
    "<svg><title><img src=x onerror=\"document.title='owned'\"></title></svg>",
    "<math><mtext><table><mglyph><style><img src=x onerror=\"document.title='owned'\">",
    "<a href=\"javascript:document.title='owned'\">x</a>",
    '<a href="data:text/html,<script>alert(1)</script>">x</a>',
    "<iframe srcdoc=\"<script>parent.document.title='owned'</script>\"></iframe>",
    "<form action='https://evil.example'><button formaction=javascript:alert(1)>x</button></form>",
    "<base href='https://evil.example/'><meta http-equiv=refresh content='0;url=//evil.example'>",
    "<link rel=stylesheet href='//evil.example/x.css'><style>@import '//evil.example/y';</style>",
    '<div style="background:url(//evil.example/z)">x</div>',
    "<div style='position:fixed;inset:0'>over everything</div>",
    "<details ontoggle=\"document.title='owned'\" open>x</details>",
    "<textarea></textarea><img src='//evil.example/p.png'>",
    "</div></main></body><h1>out</h1>",
    "<noscript><p title=\"</noscript><img src=x onerror=document.title='owned'>\">",
    "<!-- --!><img src=x onerror=\"document.title='owned'\"> -->",
    "\x00<script>document.title='owned'</script>",
]


@pytest.mark.parametrize("html", EVIL)
def test_nothing_that_acts_survives(html: str) -> None:
    left = clean(html)
    assert not re.search(r"<(script|iframe|form|base|meta|link|style|textarea|object|button)", left)
    assert not re.search(r"<[^>]*\s(on\w+|srcdoc|formaction)\s*=", left)
    assert not re.search(r"""<[^>]*(?:href|src)=["']?(?!data:image/|https?:|#)""", left)
    assert not re.search(r"<[^>]*(?:evil\.example|url\(|fixed)", left)


def test_what_the_kit_shows_stays() -> None:
    kept = (
        '<div style="color: var(--jp-ui-font-color2,inherit); width: 12%" role="note">'
        '<svg viewBox="0 0 8 8" width="8" height="8"><rect x="1" y="2" width="3" height="4" '
        'fill="rgb(0,1,2)"><title>a &lt; b</title></rect></svg>'
        '<table class="dataframe"><tbody><tr><td>1</td></tr></tbody></table></div>'
    )
    assert clean(kept) == kept
    assert clean("<style scoped>td {color: red}</style><b>1</b>") == "<b>1</b>"


# --- the pages ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole workshop, once."""
    out = tmp_path_factory.mktemp("workshop") / "out"
    building.build(out, repository=REPOSITORY, address="https://room.example")
    return out


def test_the_build_is_complete(built: Path) -> None:
    names = [path.name for path in SOURCES]
    for edition in ("student", "instructor"):
        assert sorted(p.name for p in (built / edition).iterdir()) == names
    html = sorted(p.name for p in (built / "pages").iterdir())
    assert html == sorted([*(path.stem + ".html" for path in SOURCES), "index.html"])
    assert {p.name for p in built.iterdir()} == {
        "student",
        "instructor",
        "pages",
        "handout.html",
        "links.md",
        building.MARK,
    }
    assert list(built.parent.iterdir()) == [built]


def test_pages_ask_nobody_and_lead_somewhere(built: Path) -> None:
    folder = built / "pages"
    for page in folder.iterdir():
        text = page.read_text(encoding="utf-8")
        assert f'content="{pages.POLICY}"' in text and '<html lang="en">' in text
        assert not re.search(r'<script|<iframe|<link (?!rel="icon")|@import', text)
        assert text.count("<main ") == 1 and text.count("<h1") >= 1
        tags = re.findall(r"<img\b[^>]*>", text)
        assert all(re.search(r'\salt="[^"]+"', tag) for tag in tags)
        ids = re.findall(r'<\w[^>]*\sid="([^"]+)"', text)
        assert len(ids) == len(set(ids))
        for target in re.findall(r'<a [^>]*?href="([^"]+)"', text):
            if target.startswith("#"):
                assert target[1:] in ids, f"{page.name}: {target}"
            elif not target.startswith(("https://", "http://")):
                assert (folder / target.partition("#")[0]).is_file(), f"{page.name}: {target}"


def words(html: str) -> list[str]:
    return unescape(re.sub(r"<[^>]*>", " ", html)).split()


def test_every_frozen_view_is_on_its_page(built: Path) -> None:
    count = 0
    for path, notebook in SOURCES.items():
        shown = " ".join(words((built / "pages" / f"{path.stem}.html").read_text("utf-8")))
        for output in (o for cell in notebook.cells for o in cell.get("outputs", [])):
            data = output.get("data", {})
            if WIDGET in data and data.get("text/html"):
                assert " ".join(words(clean(data["text/html"]))[:12]) in shown, path.stem
                count += 1
    assert count >= 15
    hooks = (built / "pages" / "01_hooks.html").read_text(encoding="utf-8")
    assert hooks.count('class="live"') == 1 and "needs a script" in hooks


@contextmanager
def browser_page(**options: Any) -> Iterator[tuple[Any, list[str], list[str]]]:
    """A page in Chromium, the addresses it asks for, and what its console says."""
    chromium = _chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        page = browser.new_context(**options).new_page()
        asked: list[str] = []
        said: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        try:
            yield page, asked, said
        finally:
            browser.close()


def test_pages_in_a_browser(built: Path) -> None:
    folder = built / "pages"
    with browser_page(viewport={"width": 400, "height": 800}) as (page, asked, said):
        for name in ("index", "05_melbo", "03_live_steering"):
            page.goto((folder / f"{name}.html").as_uri())
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= 400, f"{name} is {wide} wide"
            page.keyboard.press("Tab")
            assert page.evaluate("document.activeElement.className") == "skip"
            if name == "05_melbo":
                formula = page.locator("math").first.bounding_box()
                assert formula["width"] > 100 and formula["height"] > 15
                assert "$$" not in page.locator("main").inner_text()
            if name == "03_live_steering":
                shown = page.locator(".output_html", has_text="Steering panel").first
                assert shown.is_visible()
                assert "happy-sad · layer 18 · add" in shown.inner_text()
        page.set_viewport_size({"width": 1280, "height": 900})
        page.goto((folder / "index.html").as_uri())
        page.locator("table.course a", has_text="05 MELBO").click()
        assert page.locator("h1").first.inner_text().startswith("What else can this model")
        page.get_by_role("link", name="Next: 06 deep causal transcoding").first.click()
        assert page.url == (folder / "06_dct.html").as_uri()
        assert said == []
        assert {url for url in asked if not url.startswith((folder.as_uri(), "data:"))} == set()


def test_text_of_a_model_does_nothing_on_a_page(tmp_path: Path) -> None:
    html = "".join(f"<div>{text}</div>" for text in EVIL)
    outputs = [
        v4.new_output("stream", text="\n".join(EVIL)),
        v4.new_output(
            "display_data", data={"text/html": html, "text/plain": "x"}, metadata={"text/html": {"isolated": True}}
        ),
        v4.new_output("display_data", data={WIDGET: {"model_id": "1"}, "text/html": "<p>frozen</p>" + EVIL[0]}),
        v4.new_output("display_data", data={WIDGET: {"model_id": "1"}, "text/plain": "Panel(<script>)"}),
        v4.new_output("display_data", data={"application/x-<script>": "x"}),
        v4.new_output("display_data", data={"image/svg+xml": EVIL[3], "text/plain": "drawing"}),
        v4.new_output("error", ename="E", evalue="e", traceback=["\x1b[31m" + EVIL[0]]),
    ]
    cells = [
        v4.new_markdown_cell("# t\n## <img src=x onerror=\"document.title='owned'\">"),
        v4.new_markdown_cell("$x^2$ [y](javascript:alert(1))\n\n" + "\n\n".join(EVIL)),
        v4.new_code_cell("print('<script>')", outputs=outputs),
    ]
    notebook, lesson = small(*cells)
    for name in ("title", "question"):
        notebook.metadata["kit"][name] = EVIL[2]
    notebook.metadata["kit"]["goals"] = [EVIL[0]]
    lesson = course_map.lesson(lesson.path, notebook)
    made = {
        "page": pages.notebook_page(notebook, lesson, lesson, lesson),
        "index": pages.index_page([lesson]),
        "hand": pages.handout_page([lesson], EVIL[2]),
    }
    for name, text in made.items():
        (tmp_path / f"{name}.html").write_text(text, encoding="utf-8")
    with browser_page() as (page, asked, said):
        for name in made:
            page.goto((tmp_path / f"{name}.html").as_uri())
            page.wait_for_timeout(200)
            assert page.title() != "owned" and len(page.title()) > 10
            assert page.evaluate("document.querySelectorAll('script, iframe, form').length") == 0
            assert page.locator("main").count() == 1
            if name == "page":
                text = page.locator("main").inner_text()
                assert "frozen" in text and text.count("Live in the notebook.") == 2
                assert page.locator("math msup").count() == 1
        assert said == [] and all(url.startswith(("file:", "data:")) for url in asked)


def test_handout_is_one_page(built: Path) -> None:
    with browser_page() as (page, asked, said):
        page.goto((built / "handout.html").as_uri())
        text = page.locator("main").inner_text()
        printed = page.pdf(prefer_css_page_size=True)
        assert said == [] and all(url.startswith(("file:", "data:")) for url in asked)
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) == 1
    box = re.search(rb"/MediaBox \[([\d. ]+)\]", printed)
    assert box and [float(x) for x in box[1].split()] == pytest.approx([0, 0, 595, 842], abs=1.5)
    assert "https://room.example" in text and "make lab" in text and "kit doctor" in text
    for lesson in LESSONS.values():
        assert lesson.question in text and f"{lesson.minutes} min" in text
        assert lesson.exercises[0] in text


# --- the command ----------------------------------------------------------------------------------


def test_command_builds_some_notebooks_and_replaces_its_own_folder_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "w"
    for _ in range(2):
        assert main(["workshop", "15", "--out", str(out)]) == 0
    assert "student/      1 notebook without outputs" in capsys.readouterr().out
    assert [p.name for p in (out / "student").iterdir()] == ["15_atoms.ipynb"]
    assert not (out / "links.md").exists() and list(tmp_path.iterdir()) == [out]
    index = (out / "pages" / "index.html").read_text(encoding="utf-8")
    assert index.count('<tr id="') == len(SOURCES) and len(re.findall(r'<a href="[^#]', index)) == 1
    assert index.count('<a href="15_atoms.html"') == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years", encoding="utf-8")
    for arguments, complaint in (
        (["15", "--out", str(tmp_path / "mine")], "holds files that no build made"),
        (["15", "--out", str(tmp_path / "mine" / "thesis.txt")], "it is a file"),
        (["99", "--out", str(out)], "no notebook '99'"),
        (["15", "--out", str(out), "--repository", "x"], "give an address such as"),
    ):
        assert main(["workshop", *arguments]) == 1
        assert complaint in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.txt").read_text(encoding="utf-8") == "years"


def test_a_build_that_stops_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "w"
    out.mkdir()
    (out / building.MARK).write_text("", encoding="utf-8")
    (out / "handout.html").write_text("the old one", encoding="utf-8")

    def stop(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(pages, "notebook_page", stop)
    assert main(["workshop", "15", "--out", str(out)]) == 130
    assert (out / "handout.html").read_text(encoding="utf-8") == "the old one"
    assert list(tmp_path.iterdir()) == [out]


def test_a_missing_library_is_named_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(building, "find_spec", lambda name: None if name == "bleach" else object())
    assert main(["workshop", "--out", str(tmp_path / "w")]) == 1
    assert f"pip install bleach=={pins()['bleach']}" in capsys.readouterr().err
