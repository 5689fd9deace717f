"""The runner behind ``make notebooks``, on small notebooks made here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from course import exercises, rules, runner
from course.runner import NotebookError
from tests.course.test_notebooks import GUARDED, check_calls, solved

HEADER = "**Goal:** see the runner work.\n\n**Time:** 5 minutes for you · 0 s for the machine (two CPU cores, measured)"


def make(*sources: str, fill: int = 20, **kit: Any) -> NotebookNode:
    """A notebook that keeps all rules once it was run."""
    head = [new_markdown_cell("# Try the runner"), new_markdown_cell(HEADER)]
    head[1].metadata["tags"] = ["header"]
    last = "class kit: assert_clean = print\nkit.assert_clean()".replace(": ", ":\n    ")
    code = [new_code_cell(source) for source in (*sources, last)]
    filler = [new_markdown_cell("text") for _ in range(max(0, fill - len(head) - len(code)))]
    notebook = new_notebook(cells=[*head, *filler, *code])
    notebook.metadata["kit"] = {"budget_seconds": 30, "goals": ["run"], **kit}
    return notebook


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def save(notebook: NotebookNode, name: str = "00_try.ipynb") -> Path:
        nbformat.write(notebook, tmp_path / name)
        return tmp_path / name

    return save


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The text of a small notebook as the runner leaves it."""
    path = tmp_path_factory.mktemp("finished") / "00_try.ipynb"
    sources = ["x = 1\nprint('x is', x)", "x + 1", "[x] * 3"]
    nbformat.write(make(*sources), path)
    runner.refresh(path)
    return path.read_text(encoding="utf-8")


def test_a_refreshed_notebook_has_no_problems(finished: str, tmp_path: Path) -> None:
    path = tmp_path / "00_try.ipynb"
    path.write_text(finished, encoding="utf-8")
    assert runner.problems(path) == []
    notebook = rules.read(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3, 4]
    assert code[0].outputs[0].text == "x is 1\n"
    assert code[1].outputs[0].data["text/plain"] == "2"
    kit = notebook.metadata.kit
    assert (kit.goals, kit.budget_seconds, kit.human_minutes) == (["run"], 30, 5)
    assert f"5 minutes for you · {kit.machine_seconds} s for the machine" in finished
    assert finished.endswith("}\n")


def _set(key: str, value: Any) -> Callable[[NotebookNode], None]:
    return lambda nb: nb.metadata["kit"].__setitem__(key, value)


def _source(index: int, old: str, new: str) -> Callable[[NotebookNode], None]:
    def change(nb: NotebookNode) -> None:
        assert old in nb.cells[index].source
        nb.cells[index].source = nb.cells[index].source.replace(old, new)

    return change


def _output(output: NotebookNode) -> Callable[[NotebookNode], None]:
    return lambda nb: nb.cells[-2].outputs.append(output)


def _text_output(text: str) -> Callable[[NotebookNode], None]:
    return _output(new_output("stream", name="stdout", text=text))


def _html_output(text: str) -> Callable[[NotebookNode], None]:
    return _output(new_output("display_data", data={"text/html": text}))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_source(-2, "[x]", "[x, x]"), "sources changed"),
        (_source(2, "text", "other text"), "sources changed"),
        (_source(1, "5 minutes", "6 minutes"), "sources changed"),
        (lambda nb: nb.cells.insert(3, new_markdown_cell("new")), "sources changed"),
        (lambda nb: nb.cells[2].update(cell_type="raw"), "sources changed"),
        (_set("source_sha256", None), "sources changed"),
        (_source(1, " s for the machine", "9 s for the machine"), "disagree on the time"),
        (_set("machine_seconds", 2.5), "disagree on the time"),
        (_set("human_minutes", 6), "disagree on the time"),
        (_set("budget_seconds", 0.5), "over budget"),
        (_set("budget_seconds", None), "budget_seconds is None"),
        (_set("max_mb", 0.001), "MB, at most"),
        (_text_output("x" * 1_600_000), "1.6 MB, at most 1.5 MB"),
        (lambda nb: nb.cells[-1].update(execution_count=9), "execution count 9, not 4"),
        (lambda nb: nb.cells[-1].update(execution_count=None), "execution count None"),
        (_output(new_output("error", ename="E", evalue="", traceback=[])), "E output"),
        (_output(new_output("stream", name="stderr", text="warning")), "stderr output"),
        (_text_output("saved /home/ada/x"), "one machine, /home/ada"),
        (_text_output("saved C:\\Users\\ada"), r"one machine, C:\Users"),
        (_text_output(f"in {runner.FOLDER.parent}/x"), "one machine"),
        (_html_output("<b>/tmp/x1</b>"), "one machine, /tmp/x1"),
        (_text_output("<A object at 0x7f0012345678>"), "object's address"),
        (_source(-2, "[x]", "'/root/x', [x]"), "cell 18: a path of one machine"),
        (lambda nb: nb.metadata.update(widgets={"state": "/tmp/abc"}), "metadata"),
        (_source(0, "# ", ""), "'# title'"),
        (_source(0, "# ", "## "), "'# title'"),
        (lambda nb: nb.cells[1].metadata.pop("tags"), "tagged 'header'"),
        (_source(1, "**Goal:**", "Goal:"), "**Goal:**"),
        (_source(1, "**Time:**", "Time:"), "needs one line like"),
        (lambda nb: nb.cells.pop(3), "19 cells"),
        (lambda nb: nb.cells.extend(new_markdown_cell("x") for _ in range(41)), "61 cells"),
        (_source(-2, "[x]", "#\n" * 20 + "[x]"), "21 lines, at most 20"),
        (_source(-2, "[x] * 3", "[x] * 3" + " # " + "x" * 91), "101 columns, at most 100"),
        (_source(-2, "[x] * 3", " \n"), "empty"),
        (_source(-1, "kit.assert_clean()", "# kit.assert_clean()"), "assert_clean"),
        (lambda nb: nb.cells.append(new_code_cell("x")), "assert_clean"),
        (lambda nb: nb.cells.append(nb.cells[3]), "not a valid notebook: Non-unique cell id"),
        (lambda nb: nb.cells[-2].pop("outputs"), "not a valid notebook"),
    ],
)
def test_each_problem_is_noticed(
    finished: str, tmp_path: Path, change: Callable[[NotebookNode], Any], problem: str
) -> None:
    notebook = nbformat.reads(finished, as_version=4)
    change(notebook)
    path = tmp_path / "00_try.ipynb"
    path.write_text(json.dumps(notebook), encoding="utf-8")
    found = runner.problems(path)
    assert any(problem in line for line in found), found


@pytest.mark.parametrize(
    "harmless",
    [
        _html_output("<a href='https://example.org/home/page'>x</a>"),
        _text_output("Q:\nA:\n"),
        _output(new_output("display_data", data={"image/png": "/tmp/abcd"})),
    ],
)
def test_harmless_outputs_are_let_through(
    finished: str, tmp_path: Path, harmless: Callable[[NotebookNode], Any]
) -> None:
    notebook = nbformat.reads(finished, as_version=4)
    harmless(notebook)
    path = tmp_path / "00_try.ipynb"
    nbformat.write(notebook, path)
    assert runner.problems(path) == []


def test_measured_seconds_are_no_part_of_the_hash() -> None:
    notebook = make("1")
    before = runner.source_hash(notebook)
    runner.stamp(notebook, 123.4)
    assert "· 123 s for the machine" in notebook.cells[1].source
    assert runner.source_hash(notebook) == before == notebook.metadata.kit.source_sha256
    runner.stamp(notebook, 0.2)  # again, over its own line
    assert "· 1 s for the machine" in notebook.cells[1].source
    assert runner.source_hash(notebook) == before


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("print('before')\n1 / 0", "ZeroDivisionError"),
        ("import sys\nprint('careful', file=sys.stderr)", "wrote to stderr"),
        ("import warnings\nwarnings.warn('old')", "UserWarning: old"),
        ("import os\nos._exit(1)", "died"),
    ],
)
def test_a_failing_cell_leaves_the_file_alone(save: Callable[..., Path], source: str, said: str) -> None:
    path = save(make("y = 2", source))
    before = path.read_bytes()
    lines: list[str] = []
    status = runner.main(["--folder", str(path.parent)], report=lines.append)
    text = "\n".join(lines)
    assert status == 1
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert said in text and source.splitlines()[-1] in text and "cell 18:" in text
    assert "\x1b[" not in text and "left as it was" in text


def test_one_failure_does_not_stop_the_others(save: Callable[..., Path]) -> None:
    save(make("1 / 0"), "00_bad.ipynb")
    good = save(make("1"), "01_good.ipynb")
    lines: list[str] = []
    assert runner.main(["--folder", str(good.parent)], report=lines.append) == 1
    assert re.fullmatch(r"01_good.ipynb  \d+\.\d s  ok", lines[-1])
    assert runner.problems(good) == []
    assert runner.main(["01", "--check", "--folder", str(good.parent)], lines.append) == 0
    assert runner.main(["00", "--check", "--folder", str(good.parent)], lines.append) == 1
    assert "PROBLEMS" in lines[-1] and "sources changed" in lines[-1]


def test_a_budget_overrun_is_reported(save: Callable[..., Path]) -> None:
    path = save(make("import time\ntime.sleep(1.6)", budget_seconds=1))
    lines: list[str] = []
    assert runner.main(["00", "--folder", str(path.parent)], report=lines.append) == 1
    assert "over budget: 2 s, at most 1.5 s" in lines[-1]
    assert rules.read(path).metadata.kit.machine_seconds == 2


def test_an_interrupted_write_leaves_the_old_file(save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(make("1"))
    before = path.read_bytes()

    def interrupted(*arguments: Any) -> None:
        assert path.read_bytes() == before  # until here nothing touched it
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runner.write(make("2"), path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_kernel_is_this_interpreter_in_the_notebooks_folder(
    save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    foreign = tmp_path / "jupyter" / "kernels" / "python3"  # a spec that would win otherwise
    foreign.mkdir(parents=True)
    spec = {"argv": ["/bin/false"], "display_name": "no", "language": "python"}
    (foreign / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    monkeypatch.delenv("PYTHONPATH", raising=False)  # the kit is found without it
    path = save(make("import course.runner, os, sys\nprint((sys.executable, os.getcwd()))"))
    done, _ = runner.execute(path)
    assert done.cells[-2].outputs[0].text == f"{(sys.executable, str(tmp_path))}\n"


def test_small_is_one_switch(save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for value, expected in {"1": 2, "0": 900, "": 900}.items():
        monkeypatch.setenv("KIT_SMALL", value)
        assert runner.size(900, 2) == expected
    path = save(make("from course.runner import size\nsize(900, 2)"))
    for small, expected in {True: "2", False: "900"}.items():  # whatever the caller's environment
        monkeypatch.setenv("KIT_SMALL", str(int(not small)))
        done, _ = runner.execute(path, small=small)
        assert done.cells[-2].outputs[0].data["text/plain"] == expected


def test_prelude_epilogue_and_a_second_pass(save: Callable[..., Path]) -> None:
    path = save(make("n = globals().get('n', start) + 1", "n"))
    done, _ = runner.execute(path, prelude=["start = 10"], epilogue=["assert n == 11"])
    counts = [cell.execution_count for cell in done.cells if cell.cell_type == "code"]
    assert counts == [1, 2, 3]
    assert len(done.cells) == 20
    done, _ = runner.execute(path, prelude=["start = 10"], passes=2)
    assert done.cells[-2].outputs[0].data["text/plain"] == "12"
    with pytest.raises(NotebookError, match="AssertionError"):
        runner.execute(path, prelude=["start = 10"], epilogue=["assert n == 0"])
    with pytest.raises(NotebookError, match="NameError"):
        runner.execute(path)
    once = save(make("assert 'seen' not in globals()\nseen = True"), "01_once.ipynb")
    runner.execute(once)
    with pytest.raises(NotebookError, match="AssertionError"):
        runner.execute(once, passes=2)


def test_a_skipped_cell_keeps_no_old_output(save: Callable[..., Path]) -> None:
    notebook = make("1", "2")
    skipped = notebook.cells[-2]
    skipped.metadata["tags"] = ["skip-execution"]
    skipped.outputs, skipped.execution_count = [new_output("stream", text="old")], 2
    path = save(notebook)
    runner.refresh(path)
    assert rules.read(path).cells[-2].outputs == []
    assert any("execution count None" in problem for problem in runner.problems(path))


def test_widget_state_is_kept_and_renewed(save: Callable[..., Path]) -> None:
    notebook = make("import ipywidgets\nipywidgets.IntSlider(7)")
    notebook.metadata["widgets"] = {"old": {}}
    done, _ = runner.execute(save(notebook))
    states = done.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"].values()
    assert 7 in [state["state"].get("value") for state in states]
    assert "old" not in done.metadata.widgets
    notebook = make("1")
    notebook.metadata["widgets"] = {"old": {}}
    assert "widgets" not in runner.execute(save(notebook))[0].metadata


def test_a_kernel_looks_up_no_names_of_other_machines(save: Callable[..., Path]) -> None:
    here = "socket.getaddrinfo('localhost', 80) and 'here'"
    away = "urllib.request.urlopen('http://example.org', timeout=5)"
    runner.execute(save(make("import socket", here)), prelude=[GUARDED])
    with pytest.raises(NotebookError, match=r"example\.org.*which are offline"):
        runner.execute(save(make("import urllib.request", away)), prelude=[GUARDED])


def test_a_progress_line_that_wiped_itself_leaves_no_output(save: Callable[..., Path]) -> None:
    code = "from kit.base.progress import track\nsum(1 for _ in track(range(3), 'steps'))"
    done, _ = runner.execute(save(make(code)))
    outputs = done.cells[-2].outputs
    assert [o.data["text/plain"] for o in outputs] == ["3"]


def test_figures_are_shown_inline_whatever_the_shell_prefers(
    save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPLBACKEND", "Agg")
    path = save(make("import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"))
    done, _ = runner.execute(path)
    assert done.cells[-2].outputs[0].data["image/png"]


def test_solutions_are_checked_in_the_notebooks_kernel(save: Callable[..., Path]) -> None:
    stub = exercises.find("01.2").stub
    notebook = make("import torch\nimport kit", stub, "kit.exercises.check('01.2', recovery)")
    notebook.cells[-1].source = "1"
    assert check_calls(notebook) == {"01.2": ""}
    done, _ = runner.execute(save(notebook), epilogue=solved(notebook))
    assert "Your turn" in done.cells[-2].outputs[0].data["text/plain"]
    assert "<b>Your turn" in done.cells[-2].outputs[0].data["text/html"]
    broken = [cell.replace(".solution", ".wrong[0][1]") for cell in solved(notebook)]
    with pytest.raises(NotebookError, match="swapped"):
        runner.execute(save(notebook), epilogue=broken)
    context = make("kit.exercises.check('02.3', x, model=model, n=[1, 2])")
    assert check_calls(context) == {"02.3": "model=model, n=[1, 2]"}


def test_choose_takes_numbers_stems_and_files(tmp_path: Path) -> None:
    for name in ("02_b", "01_a", "readme", "10_z"):
        (tmp_path / f"{name}.ipynb").write_text("{}")

    def chosen(*names: str) -> list[str]:
        return [path.stem for path in runner.choose(names, tmp_path)]

    assert chosen() == ["01_a", "02_b", "10_z"]
    assert chosen("02", "notebooks/01_a.ipynb") == ["01_a", "02_b"]
    with pytest.raises(ValueError, match="no notebook '07'; there are: 01_a, 02_b, 10_z"):
        chosen("07")
    with pytest.raises(SystemExit):
        runner.main(["07", "--folder", str(tmp_path)])
    with pytest.raises(SystemExit):  # nothing to check is no success
        runner.main(["--check", "--folder", str(tmp_path / "none")])


def test_the_switch_loads_nothing_heavy() -> None:
    code = "import sys, course.runner; sys.exit(bool({'nbclient', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
