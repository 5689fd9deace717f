"""Small pieces of HTML that every view shares: colours, fonts, numbers, messages."""

from __future__ import annotations

from html import escape

INK = "213,94,0"  # vermillion of the Okabe-Ito palette
SAFE = "0,114,178"  # its blue

LINE = "var(--jp-border-color2,rgba(128,128,128,.4))"
SOFT = "var(--jp-ui-font-color2,inherit)"
SANS = "var(--jp-ui-font-family,system-ui,sans-serif)"
MONO = "var(--jp-code-font-family,ui-monospace,monospace)"
WRAP = "white-space:pre-wrap;overflow-wrap:anywhere"
CELL = f"padding:4px 10px;border-bottom:1px solid {LINE};text-align:left;vertical-align:top"


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
        f'<div role="{"alert" if error else "status"}" style="border-left:4px solid rgba({ink},.9);'
        f'padding:2px 10px;font:13px/1.5 {SANS};{WRAP}">{"Error: " * error}{escape(text)}</div>'
    )
