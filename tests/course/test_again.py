"""Notebooks on a machine whose own dtype is bfloat16: the stored outputs are found again."""

from __future__ import annotations

import os

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from course import rules, runner
from course.again import SHARE, Compared, compare, share

# Quick ones at each run of the tests; KIT_EVERY_NOTEBOOK=1 takes all of 00 to 08, in some twenty minutes.
WHICH = [f"{n:02d}" for n in range(9)] if os.environ.get("KIT_EVERY_NOTEBOOK") else ["00", "01"]

BFLOAT16 = """
import os
import torch
os.environ.pop("KIT_DTYPE", None)
torch.cpu._is_avx512_bf16_supported = lambda: True
from kit.base import threads
from kit.models.load import choose_dtype
threads.kept = lambda: {}
assert choose_dtype("cpu")[0] == torch.bfloat16
"""


def printed(*texts: str) -> NotebookNode:
    cells = [new_code_cell(f"say({i})") for i in range(len(texts))]
    for cell, text in zip(cells, texts, strict=True):
        cell.outputs = [new_output("stream", text=text)]
    return new_notebook(cells=[new_markdown_cell("# Title"), *cells])


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("KL 0.503 of 'the sea'", 7),
        ("KL 0.507 of 'the sea'", 7),  # the last digit
        ("KL 0.603 of 'the sea'", 6),
        ("KL 0.503 of 'the sun'", 6),
        ("took KL 0.503 of 'the sea'", 7),  # one word more
        ("", 0),
    ],
)
def test_words_are_equal_and_numbers_near(text: str, same: int) -> None:
    assert compare(printed("KL 0.503 of 'the sea'"), printed(text)) == [Compared(1, 7, same)]


def test_measured_times_are_not_compared() -> None:
    assert share(compare(printed("done in 3.2 s"), printed("done in 31 s"))) == 1


def test_a_share_is_of_all_that_is_printed() -> None:
    found = compare(printed("one two three", "four"), printed("one two three", "five"))
    assert share(found) == 0.75 and share([]) == 1


def test_other_cells_are_another_notebook() -> None:
    with pytest.raises(ValueError, match="not those of the stored notebook"):
        compare(printed("one"), printed("one", "two"))


def test_again_tells_the_cells_that_differ(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    path = runner.choose(["00"])[0]
    made = rules.read(path)
    cell = max((c for c in made.cells if c.cell_type == "code"), key=lambda c: len(str(c.outputs)))
    monkeypatch.setattr(runner, "execute", lambda _: (made, 1.0))
    assert runner.again(path) == (True, "100% of its output again")
    cell.outputs = []
    holds, told = runner.again(path)
    assert f"cell {made.cells.index(cell)} 0%" in told and not told.startswith("100%")
    assert holds == (int(told.split("%")[0]) >= SHARE * 100)


@pytest.mark.parametrize("name", WHICH)
def test_prose_holds_where_the_machine_prefers_bfloat16(name: str) -> None:
    (path,) = runner.choose([name])
    made, _ = runner.execute(path, prelude=[BFLOAT16])
    found = compare(nbformat.read(path, as_version=4), made)
    assert share(found) >= SHARE, sorted(found, key=lambda c: c.same / c.parts)[:5]
