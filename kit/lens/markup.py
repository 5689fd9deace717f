"""A reading as HTML: a grid of words, token by token and layer by layer. No script, own styles."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from kit.base.html import INK, LINE, MONO, PLAIN, SAFE, SANS, SOFT, spaced
from kit.lens.reading import Reading, Words

_CELL = (
    f"padding:1px 6px;border:solid {LINE};border-width:0 1px 1px 0;max-width:96px;overflow:hidden;"
    "text-overflow:ellipsis;white-space:nowrap"
)
_HEAD = f"position:sticky;background:var(--jp-layout-color1,Canvas);font-weight:400;color:{SOFT};z-index:1"


def grid(
    reading: Reading,
    *,
    plain: bool = False,
    chosen: tuple[int, int] | None = None,
    hidden: frozenset[str] = frozenset(),
) -> str:
    """The likeliest word in each cell, deeper where it is surer; the latest layer on top, as the
    model ends. Hovering shows more words, the other lens and the ranks of traced words.

    Args:
        plain: show the logit lens.
        chosen: layer and position of the cell that is marked.
        hidden: words that are not shown.
    """
    head = "".join(f'<th style="{_CELL};{_HEAD};top:0">{spaced(piece)}</th>' for piece in reading.pieces)
    rows = []
    for layer in reversed(reading.layers):
        cells = "".join(_cell(reading, layer, at, plain, chosen, hidden) for at in range(len(reading.pieces)))
        rows.append(f'<tr><th style="{_CELL};{_HEAD};left:0">{layer}</th>{cells}</tr>')
    said = "".join(
        f'<td style="{_CELL};border-bottom:2px solid rgba({INK},.9)">{_word(reading.spell([int(i)])[0], hidden)}</td>'
        for i in reading.final_ids[:, 0]
    )
    return (
        # collapsed borders stay behind when a sticky cell moves over its neighbours
        f'<div class="{PLAIN}" style="overflow:auto;max-height:480px">'
        f'<table style="border-collapse:separate;border-spacing:0;font:12px/1.5 {MONO};text-align:left">'
        f'<thead><tr><th style="{_CELL};{_HEAD};top:0;left:0;z-index:2">layer</th>{head}</tr></thead>'
        f'<tbody><tr><th style="{_CELL};{_HEAD};left:0">said</th>{said}</tr>{"".join(rows)}</tbody></table></div>'
    )


def _cell(
    reading: Reading, layer: int, at: int, plain: bool, chosen: tuple[int, int] | None, hidden: frozenset[str]
) -> str:
    words, other = reading.words(at, layer, plain=plain), reading.words(at, layer, plain=not plain)
    names = ("logit lens", "Jacobian lens") if plain else ("Jacobian lens", "logit lens")
    lines = [f"layer {layer}, token {at}"]
    for name, listed in zip(names, (words, other), strict=True):
        kept = [f"{word!r} {p:.2f}" for word, p in listed if word not in hidden]
        lines.append(f"{name}: {', '.join(kept)}")
    row = reading.layers.index(layer)
    for word, ranks in reading.ranks.items():
        lines.append(f"rank of {word!r}: {int(ranks[row, at])}, logit lens {int(reading.plain_ranks[word][row, at])}")
    mark = f"outline:2px solid rgba({INK},1);outline-offset:-2px;" if chosen == (layer, at) else ""
    fill = f"background:rgba({SAFE},{0.08 + 0.5 * words[0][1]:.2f});"
    return (
        f'<td data-layer="{layer}" data-position="{at}"{" data-chosen" * bool(mark)} tabindex="0" '
        f'title="{escape(chr(10).join(lines))}" style="{_CELL};{fill}{mark}cursor:pointer">{_word(words[0][0], hidden)}</td>'
    )


def _word(word: str, hidden: frozenset[str]) -> str:
    return '<span style="opacity:.5">–</span>' if word in hidden else spaced(word)


def words(
    listed: Sequence[tuple[str, float]], title: str, *, marks: Sequence[str] = (), hidden: frozenset[str] = frozenset()
) -> str:
    """A list of words with their probabilities or scores.

    Args:
        marks: of each word what a drag of it says; without them they cannot be dragged.
        hidden: words that are not shown.
    """
    rows = []
    for i, (word, value) in enumerate(listed):
        name = _word(word, hidden)
        if marks and word not in hidden:
            # a link drops its address into a text field, without a script; this one leads nowhere
            name = (
                f'<a href="data:,{marks[i]}" draggable="true" data-mark="{marks[i]}" style="color:inherit">{name}</a>'
            )
        rows.append(
            f'<tr><td style="padding:0 12px 0 0">{name}</td><td style="text-align:right;color:{SOFT}">{value:.2f}</td></tr>'
        )
    return (
        f'<div class="{PLAIN}" style="font:13px/1.6 {MONO}"><div style="font-family:{SANS};color:{SOFT}">'
        f'{escape(title)}</div><table style="border-collapse:collapse">{"".join(rows)}</table></div>'
    )


def reads_as(found: Words, n: int = 5) -> str:
    """A direction's first words by both lenses; grey, and said so, where chance reads as well."""
    lensed, plain = (", ".join(spaced(word) for word, _ in words[:n]) for words in (found.lens, found.plain))
    told = f"mean score of its words {found.peak:.1f}; of random directions the share {found.p:.3f} gets there"
    doubt = "" if found.readable else " (no better than chance)"
    return (
        f'<div class="{PLAIN}" title="{told}" style="font-size:12px;overflow-wrap:anywhere;'
        f'opacity:{0.9 if found.readable else 0.55}">reads as{doubt}: <span style="font-family:{MONO}">{lensed}</span>'
        f'<span style="color:{SOFT}"> · logit lens: <span style="font-family:{MONO}">{plain}</span></span></div>'
    )
