"""The errors page: what stands on it is what the kit raises, and every message helps."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHOWN = r"^\*\*`(.+)`\*\*  $"  # two spaces: what follows stands on a line of its own


@pytest.fixture(scope="module")
def errors() -> ModuleType:
    """``docs/errors.py``, which is a script beside its page."""
    spec = importlib.util.spec_from_file_location("docs_errors", ROOT / "docs" / "errors.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def messages(errors: ModuleType) -> list[Any]:
    return list(errors.messages())


def found_in(errors: ModuleType, code: str) -> list[Any]:
    return list(errors.Module("m", ast.parse(code)).messages())


def test_the_page_is_what_the_source_says(errors: ModuleType, messages: list[Any]) -> None:
    page = errors.PAGE.read_text(encoding="utf-8")
    assert page.count(errors.MARK) == 1
    written = errors.MARK + page.partition(errors.MARK)[2]
    assert written == errors.generated(messages), "run: python docs/errors.py"


def test_the_first_half_quotes_messages_that_exist(errors: ModuleType, messages: list[Any]) -> None:
    head = errors.PAGE.read_text(encoding="utf-8").partition(errors.MARK)[0]
    quoted = re.findall(SHOWN, head, re.MULTILINE)
    known = {message.text.replace("`", "'") for message in messages}
    rules = (ROOT / "course" / "rules.py").read_text(encoding="utf-8")
    assert len(quoted) >= 25 and len(set(quoted)) == len(quoted)
    assert [text for text in quoted if text not in known and text not in rules] == []
    told = re.findall(SHOWN + r"\n((?:.+\n)+)", head, re.MULTILINE)
    assert [text for text, _ in told] == quoted
    for text, why in told:
        assert why.startswith(("Why: ", "Why (`")) and " Do: " in why.replace("\n", " "), text


def helps(message: Any) -> bool:
    """A message names the value that was given, or the argument, or, in a view, what to do.

    A run that somebody stopped was given nothing wrong. What begins so that it needs what it is about
    is the end of a longer text: whoever reads a file puts its path before it.
    """
    end = re.match(r"(it|an entry|a dict|that) (is|has|does|ends|names)\b", message.text)
    told = message.valued or any(re.search(rf"\b{name}\b", message.text) for name in message.known)
    literal = r"\b\w+=(None|True|\{\}|\[\]|'\w*')|^--\w+:|\b[A-Z_]+=\w"
    told = told or re.search(literal, message.text) is not None
    view = message.module.startswith("kit.widgets.") and re.search(r"[:;] \w", message.text) is not None
    return bool(told or view or end or message.error == "KeyboardInterrupt")


def test_every_message_names_the_argument_or_the_value(messages: list[Any]) -> None:
    assert [message for message in messages if not helps(message)] == []


def test_a_message_that_names_nothing_is_found(errors: ModuleType) -> None:
    bad, good, value = found_in(
        errors,
        """
def fit(layers):
    if layers: raise ValueError("this does not work")
    if layers: raise ValueError("layers is empty: give one")
    raise ValueError(f"{len(layers)} are too many")
""",
    )
    assert [helps(message) for message in (bad, good, value)] == [False, True, True]
    assert value.text == "<number of layers> are too many"


def test_a_message_belongs_to_the_public_names_that_lead_to_it(errors: ModuleType) -> None:
    found = found_in(
        errors,
        """
class A:
    def __init__(self, n): _check(n)
    def go(self, path): self._inner(path)
    def _inner(self, path):
        assert path, f"path={path!r}: give one"
        raise NotImplementedError
def load(n): return _check(n)
def _check(n):
    raise ValueError(_text(n))
def _text(n):
    return f"n={n!r}: give {', '.join(map(str, _ALLOWED))} below {_ALLOWED[0].x - 1}"
class Broken(Exception):
    def __init__(self, name): super().__init__(f"{name} broke")
def act(): raise Broken("it") from None
""",
    )
    assert [(m.error, m.text, m.names) for m in found] == [
        ("AssertionError", "path=<path>: give one", ("A.go",)),
        ("ValueError", "n=<n>: give <allowed> below <x - 1>", ("A", "load")),
        ("Broken", "<name> broke", ("act",)),
    ]
    assert found[1].known == {"n"}


def test_modules_stand_in_one_group_each(errors: ModuleType) -> None:
    named = [name for names, _ in errors.GROUPS.values() for name in names]
    assert len(named) == len(set(named))
    assert all((ROOT / name.replace(".", "/")).is_dir() for name in named)
    assert errors.group("kit.sae.store") == "Dictionaries" and errors.group("kit.cli.pins") == errors.REST


def test_a_page_without_the_mark_is_left_alone(
    errors: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    page = tmp_path / "errors.md"
    page.write_text("my own notes")
    monkeypatch.setattr(errors, "PAGE", page)
    with pytest.raises(SystemExit, match="no line that says where the written part ends"):
        errors.main()
    assert page.read_text() == "my own notes"
    page.write_text(f"# Errors\n\n{errors.MARK}\nold\n")
    assert errors.main() == 0
    assert page.read_text().startswith(f"# Errors\n\n{errors.MARK}\n\n## Every message (")
    assert [f.name for f in tmp_path.iterdir()] == ["errors.md"]
