"""Data to HTML strings, for the panel, for notebooks and for readers without a kernel.

Pure functions. Every text of a model or a person passes ``html.escape``. The HTML carries its own
inline CSS and no script, so that it looks the same in JupyterLab (light and dark), in Voila, in
nbconvert's pages and in a saved notebook that nobody runs.

Colour says how far steering moved a token: one hue, more of it for a larger KL divergence. The
underline says the same without colour. Far is not broken: a right answer where the model would have
refused is far, too. So distance and damage have words of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import exp, log
from statistics import median
from typing import TYPE_CHECKING

from kit.base.html import CELL, INK, LINE, MONO, PLAIN, SAFE, SANS, SOFT, WRAP, inline, isolated, number, spaced
from kit.steering.results import Row, label

if TYPE_CHECKING:
    from kit.steering.results import Receipt, TokenMeasure

# Mean KL to the unsteered model in nats a token at which the word for the distance changes.
NEAR, FAR = 0.5, 1.5
# Damage, on texts long enough to show it: fewer than half of all token pairs distinct is a loop.
# The other limit is on the median token's -log p under the unsteered model, since a few surprising
# words make no rubble. Greedy texts of the embedded model (40 tokens, two vectors, two prompts):
# at most log 3.7 up to coefficient 0.3, where they read well; up to log 9.9 from 0.45 on.
LOOP, ODD, _LONG = 0.5, log(8), 12
_FULL = 3.0  # nats: the end of the meter, and the darkest token
# a grid, so that meters of equal width break their lines alike
_FACTS = (
    "display:grid;grid-template-columns:repeat(auto-fit,minmax(112px,auto));gap:0 8px;font-size:12px;"
    "line-height:1.4;white-space:nowrap;font-variant-numeric:tabular-nums"
)


def distance(row: Row) -> str:
    """``near``, ``far`` or ``very far``; empty when the row was not measured or not steered."""
    if row.kl is None or row.coefficients is None:
        return ""
    return "near" if row.kl < NEAR else "far" if row.kl < FAR else "very far"


def damage(row: Row) -> str:
    """What is wrong with a steered text: ``loops`` or ``rambles``; empty where nothing shows, and
    for texts of fewer than 12 tokens, which cannot show it."""
    if row.coefficients is None or len(row.tokens) < _LONG:
        return ""
    if row.distinct_2 < LOOP:
        return "loops"
    return "rambles" if row.measures and median(m.nll for m in row.measures) > ODD else ""


def tokens(row: Row, tooltips: bool = True) -> str:
    """A row's text, each token shaded by its KL; hovering shows what it replaced.

    Args:
        row: of a run with ``measure=True``; without measures the text is plain.
        tooltips: leave them out while text streams: nobody can hover over moving text.
    """
    if row.coefficients is None or not row.measures:
        return escape(row.text)
    spans, cost = [], 0.0
    for piece, measure in zip(row.pieces, row.measures, strict=False):
        cost = max(cost, measure.kl)
        if not piece:  # half a character: its cost belongs to the token that ends it
            continue
        title = f' title="{escape(_tooltip(piece, measure))}"' if tooltips else ""
        spans.append(f'<span style="{_shade(cost)}"{title}>{escape(piece)}</span>')
        cost = 0.0
    return "".join(spans) + escape("".join(row.pieces[len(row.measures) :]))


def _shade(kl: float) -> str:
    if not kl >= 0.02:
        return ""
    alpha = 0.55 * min(1.0, kl / _FULL) ** 0.5
    width = 1 + (kl >= NEAR) + (kl >= FAR)
    line = f"border-bottom:{width}px solid rgba({INK},.9)" if kl >= 0.1 else ""
    return f"background:rgba({INK},{alpha:.2f});{line}"


def _tooltip(piece: str, measure: TokenMeasure) -> str:
    def side(name: str, top: Sequence[tuple[str, float]]) -> str:
        return f"{name}: " + ", ".join(f"{text!r} {p:.0%}" for text, p in top)

    return "\n".join(
        [
            f"{piece!r}  KL {measure.kl:.2f} nats, -log p unsteered {measure.nll:.2f}",
            side("before steering", measure.before),
            side("after steering", measure.after),
        ]
    )


def dose_meter(row: Row) -> str:
    """KL on a scale with its two thresholds, the words for distance and damage, perplexity under
    the unsteered model and distinct-2."""
    bar, words = "", []
    if distance(row):
        ends = [0.0, NEAR, FAR, _FULL]
        zones = "".join(
            f'<div style="width:{(b - a) / _FULL:.1%};background:rgba({INK},{alpha})"></div>'
            for a, b, alpha in zip(ends[:-1], ends[1:], (0.12, 0.3, 0.55), strict=True)
        )
        at = min(1.0, (row.kl or 0.0) / _FULL)
        bar = (
            f'<div style="position:relative;margin:8px 0 5px"><div style="display:flex;height:6px;'
            f'border-radius:3px;overflow:hidden">{zones}</div><div style="position:absolute;'
            f"left:calc({at:.1%} - 2px);top:-3px;width:4px;height:12px;border-radius:2px;"
            f'background:var(--jp-ui-font-color1,currentColor)"></div></div>'
        )
        words = [f"<b>{distance(row)}</b>: KL {number(row.kl)}"]
    if damage(row):
        words.append(f'<b style="color:rgb({INK})">damaged: {damage(row)}</b>')
    facts = [*words, f"perplexity {number(row.perplexity, 1)}", f"distinct-2 {number(row.distinct_2)}"]
    return (
        f'{bar or _blank_bar()}<div style="{_FACTS};color:{SOFT}">'
        + "".join(f"<span>{fact}</span>" for fact in facts)
        + "</div>"
    )


def _blank_bar() -> str:
    return '<div style="height:6px;margin:8px 0 5px"></div>'


def meter_legend() -> str:
    """What the meter's words mean."""
    return (
        f"Distance, the mean KL to the unsteered model in nats a token: near below {NEAR}, far below {FAR}, "
        "then very far. Damaged is another matter: a text loops when under half of its token pairs are distinct, "
        f"and rambles when the unsteered model gives half of its tokens less than one chance in {exp(ODD):.0f}. "
        "Hover over a token for what it replaced."
    )


def column(
    title: str,
    subtitle: str,
    row: Row,
    *,
    busy: bool = False,
    tooltips: bool = True,
    min_lines: float = 5,
    waiting: str = "",
) -> str:
    """One text of the panel: heading, tokens, dose meter.

    Args:
        busy: text still streams; screen readers wait until it does not.
        min_lines: height that is kept free, so that nothing jumps while text arrives.
        waiting: what stands there before the first token.
    """
    text = tokens(row, tooltips) or f'<span style="color:{SOFT}">{escape(waiting)}</span>'
    meter = dose_meter(row) if row.tokens else f"{_blank_bar()}<div style='height:34px'></div>"
    return (
        f'<div class="{PLAIN}" style="border:1px solid {LINE};border-radius:6px;padding:8px 12px 9px;'
        f"height:100%;box-sizing:border-box;display:flex;flex-direction:column;line-height:1.5;"
        f'font-family:{SANS}">'
        f'<div style="font-size:13px;{WRAP}"><b>{inline(title)}</b> '
        f'<span style="color:{SOFT};font-variant-numeric:tabular-nums">{inline(subtitle)}</span>'
        f'</div><div role="status" aria-live="polite" aria-busy="{str(busy).lower()}" dir="auto" '
        f'class="kit-text" style="{WRAP};font-size:14px;min-height:{1.5 * min_lines:.1f}em;'
        f'flex:1;margin-top:4px">{text}</div>{meter}</div>'
    )


def receipt(text: Receipt | str) -> str:
    """What a run really steered, line by line."""
    return (
        f'<div class="{PLAIN}" style="font:12px/1.5 {MONO};color:{SOFT};{WRAP}" role="note">{escape(str(text))}</div>'
    )


def badge(hooks: Sequence[str]) -> str:
    """``clean``, or the names of the hooks that stand on the model."""
    what = "✓ clean" if not hooks else f"⚠ hooked: {', '.join(map(isolated, hooks))}"
    ink = SAFE if not hooks else INK
    hint = "no hook is left on the model" if not hooks else "these hooks act on every run"
    return (
        f'<span title="{hint}" style="display:inline-block;font:600 12px/18px {SANS};'
        f"padding:0 9px;border-radius:10px;border:1px solid rgba({ink},.9);"
        f'background:rgba({ink},.14);overflow-wrap:anywhere">{escape(what)}</span>'
    )


def ladder(rows: Sequence[Row], names: Sequence[str], about: Receipt) -> str:
    """A finished run as a table: coefficient, text, KL, perplexity, distinct-2; the receipt."""
    heads = "".join(
        f'<th style="{CELL};font-weight:600">{name}</th>'
        for name in ("coefficient", "text", "KL", "perplexity", "distinct-2")
    )
    lines, vectors = [], names
    for row in rows:
        kl = None if row.coefficients is None else row.kl
        numbers = (number(kl), number(row.perplexity, 1), number(row.distinct_2))
        cells = "".join(f'<td style="{CELL};font-variant-numeric:tabular-nums">{n}</td>' for n in numbers)
        lines.append(
            f'<tr style="background:none"><td style="{CELL};white-space:nowrap">'
            f'{escape(label(row.coefficients, vectors))}</td><td dir="auto" style="{CELL};{WRAP}">'
            f"{tokens(row)}</td>{cells}</tr>"
        )
    names = " and ".join(map(isolated, names)) or "no vector"
    return (
        f'<div class="{PLAIN}" style="font:13px/1.5 {SANS}"><table style="border-collapse:collapse;font:inherit;'
        f'table-layout:auto;width:100%;margin:0"><caption style="text-align:left;color:{SOFT};padding:0 10px">'
        f"{escape(names)}</caption><thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody>"
        f'</table><div style="padding:4px 10px">{receipt(about)}</div></div>'
    )


def frozen(
    title: str,
    prompt: str,
    settings: Sequence[tuple[str, str]],
    columns: Sequence[tuple[str, str, Row]],
    receipt_text: Receipt | str,
    hooks: Sequence[str] = (),
    note: str = "",
) -> str:
    """A panel's state as one self-contained piece of HTML; the same state gives the same HTML.

    Args:
        settings: name and value of whatever produced the texts.
        columns: title, subtitle and row of each text.
    """
    shown = " · ".join(f"{inline(name)} <b>{inline(value)}</b>" for name, value in settings)
    wide = "180px" if len(columns) > 3 else "260px"
    boxes = "".join(f"<div>{column(head, sub, row, min_lines=2)}</div>" for head, sub, row in columns)
    return (
        f'<div class="{PLAIN}" style="font:13px/1.5 {SANS};border:1px solid {LINE};border-radius:8px;'
        f'padding:12px 14px"><div style="display:flex;gap:10px;align-items:baseline;'
        f'flex-wrap:wrap"><b style="font-size:15px">{escape(title)}</b>{badge(hooks)}</div>'
        f'<div dir="auto" style="{WRAP};margin:6px 0 2px;font-size:14px">{escape(prompt)}</div>'
        f'<div style="font-size:12px;color:{SOFT};{WRAP}">{shown}</div>'
        f'<div style="display:grid;gap:10px;margin:10px 0;'
        f'grid-template-columns:repeat(auto-fit,minmax({wide},1fr))">{boxes}</div>'
        f"{receipt(receipt_text)}"
        f'<div style="font-size:12px;color:{SOFT}">{escape(note or meter_legend())}</div></div>'
    )


def token_mask(pieces: Sequence[str], read: Sequence[bool], steered: Sequence[bool], prompt: int | None = None) -> str:
    """A prompt token by token: what is read (underlined), what is steered (filled).

    Args:
        pieces: the tokens' texts, special tokens included.
        read: for each token, whether a fit reads its activation.
        steered: for each token, whether steering changes its activation.
        prompt: how many of them are the prompt; the rest stands for tokens to come.

    Raises:
        ValueError: the three differ in length.
    """
    if not len(pieces) == len(read) == len(steered):
        raise ValueError(f"{len(pieces)} pieces, {len(read)} read, {len(steered)} steered: one for each token")
    n = len(pieces) if prompt is None else prompt
    cells = []
    for i, (piece, is_read, is_steered) in enumerate(zip(pieces, read, steered, strict=True)):
        what = " and ".join(["read"] * is_read + ["steered"] * is_steered) or "untouched"
        fill = f"rgba({INK},.3)" if is_steered else "transparent"
        edge = f"rgba({SAFE},1)" if is_read else "transparent"
        outline = "dashed" if i >= n else "solid"
        where = f"position {i}" if i < n else "generated"
        cells.append(
            f'<span title="{where}: {what}" style="display:inline-block;margin:2px;padding:1px 5px;'
            f"border:1px {outline} {LINE};border-bottom:4px solid {edge};background:{fill};"
            f'border-radius:4px;{WRAP}">{spaced(piece)}</span>' + ("<br>" if "\n" in piece else "")
        )
    counts = f"{sum(read)} read, {sum(steered[:n])} of {n} prompt tokens steered"
    tail = steered[n:]
    later = (
        ""
        if not tail
        else ", generated tokens " + ("steered" if all(tail) else ("partly steered" if any(tail) else "not steered"))
    )
    return (
        f'<div class="{PLAIN}" style="font:13px/1.6 {MONO}"><div dir="ltr">{"".join(cells)}</div>'
        f'<div style="font:12px/1.8 {SANS};color:{SOFT}"><span style="border-bottom:4px solid '
        f'rgba({SAFE},1)">read</span> &ensp;<span style="background:rgba({INK},.3);padding:0 5px'
        f'">steered</span> &ensp;{escape(counts + later)}</div></div>'
    )
