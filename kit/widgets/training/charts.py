"""Small charts as inline SVG: no script, the same in light and dark and in a saved notebook.

Lines carry the Okabe-Ito colours, then the same ones dashed; text and axes take the page's colour.
Every text passes ``html.escape``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

from torch import Tensor

# without yellow and black, which are lost on a white and on a dark page
_INKS = ("0,114,178", "213,94,0", "0,158,115", "204,121,167", "230,159,0", "86,180,233")
_DASHES = ("", "5 3", "1.5 2.5")
_WIDE, _HIGH, _LEFT, _TOP = 190, 84, 36, 6  # of the area for lines, and its margins
_VERTICES = 400  # more than a chart has pixels
Points = Sequence[tuple[float, float]]


def ink(i: int) -> tuple[str, str]:
    """Colour (``"r,g,b"``) and dash pattern of the i-th line."""
    return _INKS[i % len(_INKS)], _DASHES[i // len(_INKS) % len(_DASHES)]


def key(i: int, strong: bool = False) -> str:
    """A short piece of the i-th line, for a legend."""
    rgb, dash = ink(i)
    return (
        f'<svg width="20" height="8" viewBox="0 0 20 8" aria-hidden="true"><path d="M0 4H20" '
        f'stroke="rgb({rgb})" stroke-width="{3 if strong else 2}" stroke-dasharray="{dash}"/>'
        "</svg>"
    )


def legend(names: Sequence[str], chosen: str | None = None) -> str:
    """Which line is which; the chosen one is bold, here and in the charts."""
    items = "".join(
        f'<span style="white-space:nowrap;{"font-weight:600" if name == chosen else ""}">'
        f"{key(i, name == chosen)} {escape(name)}</span>"
        for i, name in enumerate(names)
    )
    return f'<div style="display:flex;gap:4px 18px;flex-wrap:wrap">{items}</div>'


def lines(
    title: str,
    series: Mapping[str, Points],
    steps: int,
    *,
    chosen: str | None = None,
    low: float | None = None,
    high: float | None = None,
    guide: Points = (),
    shown: Callable[[float], str] = "{:.3g}".format,
) -> str:
    """One chart: a line for each name over the steps, and each line's last value.

    Args:
        series: step and value, by name; a value that is not finite is left out.
        steps: where the axis ends.
        low, high: ends of the vertical axis; what lies beyond is drawn at the end. Without
            them the axis fits the lines, on a log scale where they span a factor of 20.
        guide: a thin dashed line to hold the others against.
        shown: a value as text.
    """
    kept = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()}
    values = [y for points in (*kept.values(), guide) for _, y in points]
    log = low is None and bool(values) and min(values) > 0 and max(values) > 20 * min(values)
    bottom, top = _ends(values, low, high, log)

    def y_of(value: float) -> float:
        share = _log(value, bottom, top) if log else (value - bottom) / (top - bottom)
        return _TOP + _HIGH * (1 - min(max(share, 0.0), 1.0))

    def path(points: Points) -> str:
        return " ".join(f"{_LEFT + _WIDE * x / steps:.1f},{y_of(y):.1f}" for x, y in points)

    drawn, last = [], []
    for share in (0.0, 0.5, 1.0):
        at = bottom * (top / bottom) ** share if log else bottom + (top - bottom) * share
        drawn.append(
            f'<path d="M{_LEFT} {y_of(at):.1f}h{_WIDE}" stroke="currentColor" opacity=".18"/>'
            f'<text x="{_LEFT - 4}" y="{y_of(at) + 3.5:.1f}" text-anchor="end">{shown(at)}</text>'
        )
    if guide:
        drawn.append(
            f'<polyline class="guide" points="{path(guide)}" fill="none" '
            'stroke="currentColor" stroke-dasharray="2 3" opacity=".7"/>'
        )
    for i, (name, points) in enumerate(kept.items()):
        rgb, dash = ink(i)
        last.append(
            f'<span style="white-space:nowrap">{key(i, name == chosen)} '
            f"{shown(points[-1][1]) if points else '–'}</span>"
        )
        if not points:
            continue
        stride = -(-len(points) // _VERTICES)
        some = [*points[:-1:stride], points[-1]]
        end = path(some[-1:]).split(",")
        drawn.append(
            f'<polyline class="line" points="{path(some)}" fill="none" stroke="rgb({rgb})" '
            f'stroke-width="{2.6 if name == chosen else 1.6}" stroke-dasharray="{dash}" '
            f'stroke-linejoin="round"><title>{escape(name)}</title></polyline>'
            f'<circle cx="{end[0]}" cy="{end[1]}" r="2.6" fill="rgb({rgb})"/>'
        )
    wide, floor = _LEFT + _WIDE + 6, _TOP + _HIGH + 13
    drawn.append(
        f'<text x="{_LEFT}" y="{floor}">0</text><text x="{_LEFT + _WIDE}" y="{floor}" '
        f'text-anchor="end">step {steps:,}</text>'
    )
    told = f"{title}, last values: " + ", ".join(
        f"{name} {shown(points[-1][1])}" for name, points in kept.items() if points
    )
    return (
        f'<div style="max-width:340px"><div><b>{escape(title)}</b>'
        f'<span style="opacity:.7">{" · log scale" * log}</span></div><div style="display:flex;'
        f'gap:0 12px;flex-wrap:wrap;font-variant-numeric:tabular-nums">{"".join(last)}</div>'
        f'<svg viewBox="0 0 {wide} {floor + 4}" width="100%" role="img" '
        f'aria-label="{escape(told)}" font-size="10" fill="currentColor" '
        f'style="display:block">{"".join(drawn)}</svg></div>'
    )


def densities(density: Tensor, tokens: int, bins: int = 24) -> str:
    """How often latents fire: a histogram of log10 density ``[latents]``, the silent ones apart.

    Args:
        tokens: on how many the density was measured: below one in so many nothing is seen.
    """
    least = math.log10(1 / max(tokens, 10))
    alive = density[density > 0].float().log10()
    counts = alive.clamp(least, 0).histc(bins, least, 0).tolist()
    wide, high, left = 300, 80, 34
    step, top = (wide - left) / bins, max(*counts, 1.0)
    bars = "".join(
        f'<rect class="bar" x="{left + i * step:.1f}" y="{high - n / top * (high - 4):.1f}" '
        f'width="{step * 0.86:.1f}" height="{n / top * (high - 4):.1f}" fill="rgb({_INKS[0]})">'
        f"<title>1e{least * (1 - i / bins):.2f} to 1e{least * (1 - (i + 1) / bins):.2f}: "
        f"{int(n)} latents</title></rect>"
        for i, n in enumerate(counts)
    )
    ticks = "".join(
        f'<text x="{left + (1 - e / least) * (wide - left):.1f}" y="{high + 12}" '
        f'text-anchor="{"end" if e == 0 else "middle"}">{"1" if e == 0 else f"1e{e}"}</text>'
        for e in range(math.ceil(least + 0.3), 1)
    )
    silent = int((density == 0).sum())
    return (
        '<div style="max-width:300px"><div><b>firing density</b></div><div>'
        f"{silent:,} of {len(density):,} latents never fire on {tokens:,} held-out tokens</div>"
        f'<svg viewBox="0 0 {wide} {high + 16}" width="{wide}" role="img" aria-label="histogram of '
        f'log10 firing density" font-size="10" fill="currentColor" style="display:block;'
        f'max-width:100%">{bars}<path d="M{left} {high}H{wide}" stroke="currentColor" '
        f'opacity=".4"/><text x="{left - 4}" y="12" text-anchor="end">{int(top)}</text>'
        f"{ticks}</svg></div>"
    )


def _ends(values: Sequence[float], low: float | None, high: float | None, log: bool) -> tuple[float, float]:
    """Bottom and top of an axis, never the same."""
    bottom = min(values, default=0.0) if low is None else low
    top = max(values, default=1.0) if high is None else high
    if log:
        return bottom, top
    least = max(0.1 * max(abs(bottom), abs(top)), 1e-6)  # noise of a flat line is no curve
    if top - bottom < least:
        middle = (top + bottom) / 2
        bottom = middle - least / 2 if low is None else low
        top = middle + least / 2 if high is None else max(high, bottom + least)
    return bottom, top


def _log(value: float, bottom: float, top: float) -> float:
    return math.log(max(value, bottom) / bottom) / math.log(top / bottom)
