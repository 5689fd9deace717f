"""Documents: what they name is there, and versions and counts agree with the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import kit
from course import runner
from kit import cli

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "data").rglob("README.md"))]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())


def missing_links(page: Path, text: str) -> list[str]:
    """Relative links of a page that lead nowhere; code is no link."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    targets = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", prose)
    return [target for target in targets if not (page.parent / target).exists()]


def unknown_commands(text: str) -> list[str]:
    """``make`` targets and ``kit`` commands in code that do not exist."""
    pieces = re.findall(r"```(?:sh|text)?\n(.*?)```|`([^`\n]+)`", text, re.DOTALL)
    code = "\n".join("".join(pair) for pair in pieces)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    made = [f"make {name}" for name in re.findall(r"^make ([a-z]+)\b", code, re.MULTILINE) if name not in targets]
    (commands,) = (action.choices for action in cli.parser()._actions if action.dest == "command")
    run = [f"kit {name}" for name in re.findall(r"^kit ([a-z]+)\b", code, re.MULTILINE) if name not in commands]
    return made + run


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    assert missing_links(page, page.read_text(encoding="utf-8")) == []


@each_page
def test_commands_exist(page: Path) -> None:
    assert unknown_commands(page.read_text(encoding="utf-8")) == []


def test_a_dead_link_and_a_command_that_is_not_are_found() -> None:
    text = "[a](nowhere.md), [b](LICENSE), `make lab`, `make tea`, `kit brew`\n```sh\nkit lab\n```"
    assert missing_links(ROOT / "README.md", text) == ["nowhere.md"]
    assert unknown_commands(text) == ["make tea", "kit brew"]


def test_the_citation_is_of_this_version() -> None:
    told = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert told["cff-version"] == "1.2.0"
    assert str(told["version"]) == kit.__version__
    # what the format demands, and what its readers show
    assert all(isinstance(told[key], str) and told[key] for key in ("message", "title", "license"))
    assert told["authors"] and all({"name", "family-names"} & who.keys() for who in told["authors"])
    known = {
        "cff-version",
        "message",
        "type",
        "title",
        "abstract",
        "authors",
        "version",
        "license",
        "keywords",
        "date-released",
    }
    assert told["type"] == "software" and set(told) <= known


def test_the_licence_is_the_one_that_is_named_everywhere() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert text.startswith("MIT License\n") and "WITHOUT WARRANTY OF ANY KIND" in text
    told = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert told["license"] == "MIT" and '\nlicense = "MIT"\n' in project


def test_the_changelog_has_this_version_or_says_that_it_comes() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heads = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert heads[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", h) for h in heads[1:])
    first = text.partition("## [Unreleased]")[2].partition("\n## ")[0]
    assert any(kit.__version__ in part for part in (first, *heads[1:2]))
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", text, re.MULTILINE)) <= kinds


def test_contributing_names_parts_of_the_suite_that_are_all_of_it() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 115  # two screens
    tests = ROOT / "tests"
    named = re.findall(r"\btests/[a-z]+\b(?![/.])", "\n".join(re.findall(r"pytest -n 2 (.+)`", text)))
    assert len(named) == len(set(named))
    assert {ROOT / name for name in named} == {file.parent for file in tests.rglob("test_*.py")} - {tests}
    assert "tests/test_*.py" in text and runner.FOLDER.name == "notebooks"


def test_the_map_shows_the_folders_that_are_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## A notebook")[0]
    picture = re.search(r"```text\n(.+?)```", text, re.DOTALL)
    assert picture is not None
    drawn = {line.split()[0] for line in picture[1].splitlines()}
    folders = {f"kit/{p.name}" for p in (ROOT / "kit").iterdir() if (p / "__init__.py").is_file()}
    assert drawn == folders | {"course"}
    inner = {
        f"{line.split()[0]}/{name}" for line in picture[1].splitlines() for name in re.findall(r"\b(\w+)/(?= |$)", line)
    }
    assert inner and all((ROOT / name).is_dir() for name in inner)
    homes = [ROOT / "kit", ROOT, *(ROOT / "kit" / "widgets").iterdir()]
    files = re.findall(r"`([\w/]+\.py)`", text)
    assert len(files) > 15 and [f for f in files if not any((home / f).is_file() for home in homes)] == []
