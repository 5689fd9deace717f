"""Every artefact in ``data/`` has a card that names it, its making, size, licence and limits."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "data"
FOLDERS = [DATA, *sorted(f for f in DATA.iterdir() if f.is_dir())]
ROW = re.compile(r"^\| `([^`]+)` \| (.+) \| ([\d.]+) (kB|MB) \|$", re.MULTILINE)
SUBJECTS = {
    "how it was made": r"python data/\w+/make\.py|python -m (?:kit|course)\.\w+|\*\*Made by:\*\* no command",
    "licence": r"\*\*Licence:\*\* MIT",
    "limits": r"\*\*Limits:\*\*|^## (What (it is|they are) not|Measured, and what is not done)",
    "measured": r"\*\*Measured:\*\*|^\|.*\|\n\|---",
}


def files(folder: Path) -> list[Path]:
    """What the card of a folder has to name; of ``data`` itself what lies in no folder."""
    found = folder.rglob("*") if folder != DATA else folder.glob("*")
    return [f for f in sorted(found) if f.is_file() and f.name != "README.md" and f.parent.name != "__pycache__"]


def rows(folder: Path, text: str) -> dict[Path, list[str]]:
    """The patterns of a card that cover each file."""
    patterns = [pattern for pattern, *_ in ROW.findall(text)]
    return {f: [p for p in patterns if fnmatch(f.relative_to(folder).as_posix(), p)] for f in files(folder)}


def test_every_folder_has_its_card() -> None:
    assert [f.name for f in FOLDERS if not (f / "README.md").is_file()] == []
    cards = (DATA / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"\]\((\w+)/README\.md\)", cards) == [f.name for f in FOLDERS[1:]]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_the_card_names_every_file_with_its_size(folder: Path) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8")
    covered = rows(folder, text)
    assert {f.name: p for f, p in covered.items() if len(p) != 1} == {}  # one row for each file
    for pattern, what, number, unit in ROW.findall(text):
        mine = [f for f, patterns in covered.items() if pattern in patterns]
        assert mine, f"{pattern} covers nothing"
        size = sum(f.stat().st_size for f in mine)
        assert float(number) * {"kB": 1e3, "MB": 1e6}[unit] == pytest.approx(size, rel=0.1), pattern
        if "*" in pattern:  # a stated pattern; the names themselves stand on the card
            names = {f.relative_to(folder).parts[0].partition(".")[0] for f in mine}
            assert [name for name in sorted(names) if name not in text] == []
        assert what.strip()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_the_card_says_how_it_was_made_and_where_it_ends(folder: Path) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8")
    lacking = [what for what, seen in SUBJECTS.items() if not re.search(seen, text, re.MULTILINE)]
    assert lacking == []
    for script in re.findall(r"python (data/\w+/make\.py)", text):
        assert (ROOT / script).is_file(), script


def test_a_file_that_no_row_names_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "new.bin").write_text("?")
    found = rows(tmp_path, "| `*.json` | sets | 0.1 kB |\n| `a.*` | twice | 0.1 kB |\n")
    assert {f.name: p for f, p in found.items()} == {"a.json": ["*.json", "a.*"], "new.bin": []}
