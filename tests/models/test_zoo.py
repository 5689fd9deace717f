"""The zoo: what docs/models.md says of each architecture is so, and nothing there is wrong.

After a change of the kit or of the zoo: ``python -m tests.models.zoo --write``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models import zoo

PAGE = zoo.PAGE.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", zoo.ZOO)
def test_an_architecture_is_as_the_page_says(name: str, tmp_path: Path) -> None:
    cells = zoo.row(name, tmp_path)
    wrong = {what: cell for what, cell in cells.items() if not cell.startswith(("ok", "refused"))}
    assert not wrong
    line, more = zoo.lines(name, cells)
    assert line in PAGE and [x for x in PAGE if x.startswith(f"- {name}, ")] == more


def test_the_page_has_the_zoo_and_its_counts() -> None:
    cells = {line.split(" | ")[0][2:]: line.split(" | ")[1:] for line in PAGE if line.startswith("| ")}
    del cells["architecture"]
    assert list(cells) == list(zoo.ZOO)
    passed = sum(all("ok" in cell for cell in row) for row in cells.values())
    assert any(line.startswith(f"**{passed} of {len(zoo.ZOO)} pass every check") for line in PAGE)


def test_a_slip_is_wrong_a_kit_error_refused_and_any_other_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, texts = zoo.residuals, zoo.text_tokens
    monkeypatch.setattr(zoo, "residuals", lambda *args, **options: real(*args, **options) * 1.0001)
    monkeypatch.setattr(zoo, "pack", lambda *args: {}["packed"])
    monkeypatch.setattr(zoo, "logit_lens", lambda model, *args, **options: texts(model, ""))
    cells = zoo.row("Llama", tmp_path)
    assert {what: cell[:28] for what, cell in cells.items() if cell != "ok"} == {
        "residuals": "WRONG: the stream off by 0.0",
        "logit lens": "refused: text='': it holds n",
        "batches": "WRONG: texts off by 0.0001",
        "BOS": "CRASH: KeyError: 'packed' (m",
    }
