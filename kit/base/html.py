"""Small pieces of HTML that every view shares: colours, fonts, numbers, messages, foreign names."""

from __future__ import annotations

import re
import unicodedata
from html import escape

INK = "213,94,0"  # vermillion of the Okabe-Ito palette
SAFE = "0,114,178"  # its blue

LINE = "var(--jp-border-color2,rgba(128,128,128,.4))"
SOFT = "var(--jp-ui-font-color2,inherit)"
SANS = "var(--jp-ui-font-family,system-ui,sans-serif)"
MONO = "var(--jp-code-font-family,ui-monospace,monospace)"
WRAP = "white-space:pre-wrap;overflow-wrap:anywhere"
# classes of whatever pages must not typeset: "$5 for adults, $3 for children" is no formula
PLAIN = "mathjax_ignore tex2jax_ignore"  # JupyterLab's MathJax 3 and 4; MathJax 2 of nbconvert
CELL = f"padding:4px 10px;border-bottom:1px solid {LINE};text-align:left;vertical-align:top"

# what acts on a terminal or turns a line round unseen; and lone surrogates, which no stream takes
_ACTS = r"\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_ACTING = re.compile(f"\u2068[^{_ACTS}]*\u2069|[{_ACTS}]")  # a whole isolate turns nothing outside of it


def visible(text: str) -> str:
    """Foreign text with control characters but tabs and line breaks spelled out (``\\x1b``)."""
    return _ACTING.sub(lambda found: found[0] if len(found[0]) > 1 else ascii(found[0])[1:-1], text)


def isolated(text: str) -> str:
    """A name for a line of the kit's own words, which it can neither reorder nor act on."""
    text = visible(text)
    turns = any(unicodedata.bidirectional(letter) in ("R", "AL", "AN") for letter in text)
    return f"\u2068{text}\u2069" if turns else text  # first strong isolate, pop


def inline(text: str) -> str:
    """The same as HTML; running text, which has a block of its own, is only escaped."""
    return escape(isolated(text))


def spaced(piece: str) -> str:
    """A token so that its spaces and line breaks are seen, as HTML."""
    return inline(piece.replace("\n", "↵").replace(" ", "·") or "∅")


def number(value: float | None, digits: int = 2) -> str:
    """A number for a table; a dash for one that was not measured."""
    if value is None:
        return "–"
    return f"{value:.{digits}f}" if abs(value) < 1e4 else f"{value:.0e}"


def message(text: str, *, error: bool = False) -> str:
    """A line below the panel's controls; nothing for an empty text."""
    if not text:
        return ""
    ink = INK if error else SAFE
    return (
        f'<div class="{PLAIN}" role="{"alert" if error else "status"}" style="border-left:4px solid rgba({ink},.9);'
        f'padding:2px 10px;font:13px/1.5 {SANS};{WRAP}">{"Error: " * error}{escape(visible(text))}</div>'
    )
