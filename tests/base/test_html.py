"""Foreign names and texts among the kit's own words: seen, isolated, never acting."""

from __future__ import annotations

import pytest

from kit.base.html import inline, isolated, message, visible

ACTING = [*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xD800, 0xDFFF]


@pytest.mark.parametrize("code", ACTING, ids=hex)
def test_what_acts_unseen_is_spelled_out(code: int) -> None:
    assert visible(f"a{chr(code)}b") == f"a{ascii(chr(code))[1:-1]}b"
    visible(f"a{chr(code)}b").encode()


def test_everything_else_stays() -> None:
    text = "tab\tand\nlines, שלום, 👩\u200d🚀, \u200f, é, \xa0"
    assert visible(text) == text


@pytest.mark.parametrize("name", ["שלום", "سعيد", "abc שלום", "\u200fabc"])
def test_a_name_that_runs_the_other_way_is_isolated(name: str) -> None:
    assert isolated(name) == f"\u2068{name}\u2069" and visible(isolated(name)) == isolated(name)


@pytest.mark.parametrize("name", ["\u202eevil", "\u2069\u202eevil", "\u2067evil", "\u2068a\u202eb\u2069"])
def test_a_name_cannot_leave_its_isolate(name: str) -> None:
    shown = isolated(f"{name} שלום")
    assert shown.startswith("\u2068") and shown.endswith("\u2069")
    assert not set(shown[1:-1]) & set(map(chr, ACTING))


def test_plain_names_are_as_they_were() -> None:
    assert isolated("happy-sad $5") == "happy-sad $5" and inline("a<b") == "a&lt;b"
    assert "Error: a\\x1b[31mb" in message("a\x1b[31mb", error=True)
