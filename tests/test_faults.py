"""Threats and faults, the short versions; ``python -m tests.faults`` runs more of the same.

The table of ``docs/security.md`` names these tests.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.faults import Row, table
from tests.faults.seeds import SEEDS, Seed

ROOT = Path(__file__).resolve().parents[1]
POSIX = pytest.mark.skipif(os.name == "nt", reason="needs fork and signals of POSIX")


def part(name: str) -> list[Row]:
    """One part of the command, in a process of its own: some parts fork, all of them load much."""
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ['PYTHONPATH']}"}
    command = [sys.executable, "-m", "tests.faults", "--rounds", "0", "--only", name, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, check=False, timeout=900)
    assert done.stdout, done.stderr[-3000:]
    return [Row(**row) for row in json.loads(done.stdout)]


def lost_nothing(rows: list[Row]) -> None:
    assert not any(row.losses for row in rows), table(rows)
    assert all(row.inputs or row.faults for row in rows), table(rows)


# --- the document --------------------------------------------------------------------------------


def threats() -> list[str]:
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [line for line in lines[1:] if not line.startswith("| ---")]


def test_the_table_has_a_row_for_each_threat() -> None:
    assert len(threats()) == 13


@pytest.mark.parametrize("row", threats(), ids=lambda row: row[2:40])
def test_every_threat_names_a_test_that_exists(row: str) -> None:
    found = re.findall(r"`tests/((?:\w+/)?test_\w+\.py)(?:::(\w+))?`", row)
    assert found, f"no test: {row}"
    for file, name in found:
        told = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert f"def {name or 'test_'}" in told, f"no {name} in {file}"


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: seed.what)
def test_every_seed_can_be_planted_and_names_its_test(seed: Seed) -> None:
    """Whether its test sees it, ``python -m tests.faults.seeds`` says."""
    ast.parse(seed.planted(ROOT))
    file, _, name = seed.test.partition("::")
    assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8")


def test_the_seeds_are_thirty_and_more() -> None:
    assert len({seed.what for seed in SEEDS}) == len(SEEDS) >= 30
    with pytest.raises(ValueError, match="0 times"):
        replace(SEEDS[0], old="nowhere at all").planted(ROOT)


# --- no code from data ---------------------------------------------------------------------------

_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "yaml.load",
    "yaml.unsafe_load",
    "os.system",
    "os.popen",
    "pd.read_pickle",
    "pandas.read_pickle",
}


def suspicious(code: str) -> list[str]:
    """Calls in a program that could turn data into code."""
    found = []
    for node in ast.walk(ast.parse(code)):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        found += [f"import {name}" for name in names if name.split(".")[0] in _MODULES]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {k.arg: ast.unparse(k.value) for k in node.keywords}
        bad = called in _CALLS
        bad |= called == "torch.load" and given.get("weights_only") != "True"
        bad |= "allow_pickle" in given and given["allow_pickle"] != "False"
        bad |= given.get("shell", "False") != "False"
        bad |= given.get("trust_remote_code", "False") != "False"
        found += [f"line {node.lineno}: {ast.unparse(node):.60}"] * bad
    return found


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "eval(x)",
        "torch.load(p)",
        "yaml.load(x)",
        "torch.load(p, weights_only=False)",
        "np.load(p, allow_pickle=True)",
        "run(c, shell=True)",
        "load(s, trust_remote_code=True)",
        "exec(compile(x, 'a', 'exec'))",
    ],
)
def test_the_search_for_it_finds_it(code: str) -> None:
    assert suspicious(code)


def test_nothing_in_the_kit_unpickles_or_evaluates() -> None:
    files = sorted([*(ROOT / "kit").rglob("*.py"), *(ROOT / "course").rglob("*.py")])
    assert len(files) > 150
    found = {f.name: s for f in files if (s := suspicious(f.read_text(encoding="utf-8")))}
    # catching up runs cells of a notebook, as its reader would; nothing of a kept file
    cells = found.pop("running.py")
    assert len(cells) == 3 and all("namespa" in call or "Module([node]" in call for call in cells)
    # a wrong answer is an exercise's own solution, from its own module, with a line changed there
    assert len(found.pop("exercise.py")) == 2
    assert found == {}


# --- the parts -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    pytest.importorskip("ipywidgets")
    from tests.faults import markup, subjects

    return markup.everything(subjects.make(tmp_path_factory.mktemp("models")))


def test_hostile_text_stays_text(pages: dict[str, str]) -> None:
    from tests.faults import markup

    bad = {name: found for name, html in pages.items() if (found := markup.foreign(html))}
    assert bad == {}
    said = "".join(pages.values())
    assert said.count("&lt;script&gt;") > 50  # it was there to be escaped


@pytest.mark.parametrize(
    "text",
    [
        "<script>",
        "<img src=x>",
        '<b onclick="x">',
        "<a href=x>",
        '<i style="background:url(x)">',
        "<!-- x -->",
        "<kitx>",
    ],
)
def test_the_reader_sees_what_is_not_ours(text: str) -> None:
    from tests.faults import markup

    assert markup.foreign(f"<div>{text}</div>")
    assert markup.foreign('<div style="color:red" title="&lt;script&gt;"><b>&lt;p&gt;</b></div>') == []


def test_a_browser_runs_nothing_of_it(pages: dict[str, str]) -> None:
    from tests.faults.markup import HOSTILE, MARK
    from tests.test_browser import FLAGS, _chromium

    chromium = _chromium()
    from playwright.sync_api import sync_playwright

    asked: list[str] = []
    dialogs: list[str] = []
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=list(FLAGS))

        def ran(html: str) -> tuple[Any, int]:
            page = browser.new_page()  # a page that is filled anew keeps its window
            page.on("request", lambda r: asked.append(r.url))
            page.on("dialog", lambda d: (dialogs.append(d.message), d.dismiss()))
            page.set_content(f"<!doctype html><meta charset=utf-8>{html}")
            for event in ("mouseover", "focus", "click", "load"):
                page.evaluate(
                    """kind => document.querySelectorAll('body *').forEach(
                    e => e.dispatchEvent(new Event(kind)))""",
                    event,
                )
            foreign = page.locator("script, iframe, img, object, embed, form, input").count()
            return page.evaluate(f"window.{MARK}"), foreign

        assert ran(HOSTILE[0]) == (1, 1)  # the trap is armed
        asked.clear()
        assert ran("".join(pages.values())) == (None, 0)
        browser.close()
    outside = [url for url in asked if not url.startswith(("about:", "data:"))]
    assert outside == [] and dialogs == []


@pytest.fixture(scope="module")
def files() -> list[Row]:
    return part("files")


@POSIX
def test_broken_files_are_refused(files: list[Row]) -> None:
    kinds = [row for row in files if row.what.startswith("file: ")]
    assert len(kinds) == 19
    lost_nothing(kinds)


@POSIX
def test_names_do_not_leave_their_folder(files: list[Row]) -> None:
    lost_nothing([row for row in files if row.what == "names that become paths"])


@POSIX
def test_a_visitor_of_the_app_moves_widgets_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("voila")
    pytest.importorskip("websocket")
    from tests.faults import app

    row = app.run(tmp_path)
    assert row.losses == [] and row.inputs > 60


@POSIX
def test_a_dead_network_is_said_and_nothing_hangs(tmp_path: Path) -> None:
    from tests.faults import network

    lost_nothing(network.run(tmp_path, ("never answers", "portal that redirects")))


@POSIX
def test_killed_jobs_leave_no_half_and_go_on() -> None:
    rows = part("kills")
    assert len(rows) == 17
    lost_nothing(rows)
