"""A gallery's features as HTML: the cards' bodies, progress, the state without a kernel."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from kit.base.html import LINE, PLAIN, SAFE, SANS, inline, isolated, number
from kit.steering import render
from kit.widgets.gallery.features import Feature, Result
from kit.widgets.panel.arms import signed
from kit.widgets.panel.controller import Request

_SOFT = "font-size:12px;opacity:.8;font-variant-numeric:tabular-nums"
_SCORES = 4  # so many stand on a card; the table has them all

SHEET = """<style>
.kit-gallery .kit-card {border:1px solid var(--jp-border-color2,#ccc); border-radius:6px;
  padding:6px 10px 8px; box-sizing:border-box; min-width:0; overflow:hidden}
.kit-gallery .kit-card-head {width:100%; align-items:center; min-width:0}
.kit-gallery .kit-card-head input[type=text] {border-color:transparent; background:transparent;
  font:600 14px var(--jp-ui-font-family,system-ui,sans-serif); padding:0 4px; color:inherit}
.kit-gallery .kit-card-head input[type=text]:hover,
.kit-gallery .kit-card-head input[type=text]:focus {border-color:var(--jp-border-color1,#999)}
.kit-gallery .kit-card-head .jupyter-button {padding:0 8px; margin:2px}
.kit-gallery .kit-card-body, .kit-gallery .kit-card-body > .widget-html-content {width:100%}
.kit-gallery .kit-rank a {color:inherit; text-decoration:none; cursor:grab; font-weight:600}
.kit-gallery .kit-slider .noUi-base::after {left:42.86%}
.kit-drop input[type=text] {border:1px dashed var(--jp-border-color1,#999)}
</style>"""


def body(
    feature: Feature,
    prompt: str,
    *,
    now: bool = True,
    busy: bool = False,
    tooltips: bool = True,
    min_lines: float = 3,
    waiting: str = "",
) -> str:
    """A card below its heading: coefficient and scores, text, what it cost.

    Args:
        prompt: the gallery's present one; a text of another is said to be.
        now: whether the text was made under the present settings.
        busy, tooltips, min_lines, waiting: as for :func:`kit.steering.render.column`.
    """
    r = feature.result or Result(prompt, None, "", None)  # nothing yet
    facts = [f"{isolated(name)} {value:.3g}" for name, value in list(feature.scores.items())[:_SCORES]]
    if feature.vector is not None:
        made = feature.coefficient if r.coefficient is None else r.coefficient
        facts.insert(0, f"coefficient {signed(made)}")
    if not now:
        facts.append("earlier run" if r.prompt == prompt else f"earlier run: “{isolated(r.prompt)}”")
    if not r.complete and not busy:
        facts.append("stopped")
    text = escape(r.text) if r.row is None else render.tokens(r.row, tooltips)
    text = text or f'<span style="opacity:.7">{escape(waiting)}</span>'
    if r.row is not None and r.row.tokens:
        cost = render.dose_meter(r.row)
    else:
        known = "" if r.kl is None else f"KL {number(r.kl)}"
        height = 53 if min_lines else 0  # so that nothing jumps when the meter comes
        cost = f'<div style="{_SOFT};min-height:{height}px;margin-top:6px">{known}</div>'
    line = " · ".join(facts)
    return (
        f'<div style="{_SOFT};overflow-wrap:anywhere">{inline(line)}</div>{feature.words}'
        f'<div dir="auto" class="kit-text" aria-busy="{str(busy).lower()}" style="white-space:'
        f"pre-wrap;overflow-wrap:anywhere;font-size:14px;line-height:1.45;margin-top:3px;"
        f'min-height:{1.45 * min_lines:.2f}em;opacity:{1 if now else 0.6}">{text}</div>{cost}'
    )


def pinned(feature: Feature, text: str) -> str:
    """A control's card: its name above its body."""
    alike = f'<span style="{_SOFT}"> same layer, norm and coefficient as the best feature</span>'
    hint = "" if feature.vector is None else alike
    return (
        f'<div style="border:1px solid {LINE};border-left:4px solid rgba({SAFE},.9);'
        f'border-radius:6px;padding:6px 10px 8px;height:100%;box-sizing:border-box"><b style="'
        f'font-size:14px">{escape(feature.name)}</b>{hint}{text}</div>'
    )


def progress(word: str, done: int, total: int, share: float, left: float | None) -> str:
    """``generating · 19 of 64 features · about 12 s to go`` above a bar."""
    parts = [word]
    if total:
        parts.append(f"{done} of {total} features")
    if left is not None:
        parts.append(f"about {max(1, round(left))} s to go")
    bar = (
        f'<div style="height:3px;border-radius:2px;background:rgba(128,128,128,.25);margin-top:2px"'
        f'><div style="height:3px;border-radius:2px;width:{min(1.0, share):.1%};'
        f'background:rgba({SAFE},.9)"></div></div>'
    )
    return (
        f'<div role="status" style="{_SOFT};white-space:nowrap;min-width:230px">{escape(" · ".join(parts))}{bar}</div>'
    )


def receipt(shown: Sequence[Feature]) -> str:
    """What was really steered, over all texts that were made here.

    Checks, from what the hooks wrote down, that each text was steered by its own vector alone.
    """
    layers, sizes, ops, others = set(), [], set(), set()
    mixed, positions, decoded = [], set(), 0
    n = 0
    for f in shown:
        row = None if f.result is None else f.result.row
        if row is None or f.vector is None:
            continue
        n += 1
        used = [e for e in row.receipt.entries if sum(e.prompt_steered) + sum(e.decode_steered)]
        if [e.name for e in used] != [f.vector.name]:
            mixed.append(f.name)
        for e in used:
            layers |= set(e.layers)
            ops.add(e.op)
            ratios = sorted(x for r in e.ratios for x in r)
            sizes += [ratios[len(ratios) // 2]] if ratios else []
            positions.add(f"{sum(e.prompt_steered)}/{row.receipt.prompt_positions}")
            decoded = max(decoded, sum(e.decode_steered))
        others |= set(row.receipt.other_hooks)
    if not n:
        return "nothing steered yet"
    ends = sorted({f"{s:.2f}" for s in (min(sizes), max(sizes))}) if sizes else ["0"]
    apart = (
        f"but not by their own vector alone: {', '.join(map(isolated, mixed))}"
        if mixed
        else "each steered by its own vector alone"
    )
    parts = [
        f"{n} texts, {apart}",
        f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, sorted(layers)))}",
        ", ".join(sorted(ops)),
        f"{', '.join(sorted(positions))} prompt positions",
        f"up to {decoded} decode steps",
        f"|cv|/|h| = {' to '.join(ends)}",
    ]
    if others:
        parts.append(f"also hooked: {', '.join(map(isolated, sorted(others)))}")
    return " · ".join(parts)


def frozen(
    request: Request,
    model: str,
    factor: float,
    pinned: Sequence[Feature],
    shown: Sequence[Feature],
    note: str,
    hooks: Sequence[str],
) -> str:
    """A gallery as one piece of HTML that needs no kernel; the same state gives the same HTML."""
    prompt = request.prompt
    settings = [
        ("model", model),
        ("input", "chat" if request.chat else "raw text"),
        ("× coefficient", f"{factor:g}"),
        ("tokens", str(request.max_new_tokens)),
        ("positions", str(request.positions)),
    ]
    note = f"{note} {render.meter_legend().split(' Hover')[0]}"
    about = " · ".join(f"{inline(name)} <b>{inline(value)}</b>" for name, value in settings)
    boxes = "".join(_box(f, prompt) for f in pinned), "".join(_box(f, prompt) for f in shown)
    grid = "display:grid;gap:10px;grid-template-columns:repeat(auto-fill,minmax(260px,1fr))"
    return (
        f'<div class="{PLAIN}" style="font:13px/1.5 {SANS};border:1px solid '
        f'{LINE};border-radius:8px;padding:12px 14px"><div style="display:flex;gap:10px;'
        f'align-items:baseline;flex-wrap:wrap"><b style="font-size:15px">Feature gallery</b>'
        f'{render.badge(hooks)}</div><div dir="auto" style="white-space:pre-wrap;overflow-wrap:'
        f'anywhere;margin:6px 0 2px;font-size:14px">{escape(prompt)}</div>'
        f'<div style="{_SOFT}">{about}</div><div style="{grid};margin:10px 0">{boxes[0]}</div>'
        f'<div style="{grid};margin:10px 0">{boxes[1]}</div>'
        f"{render.receipt(receipt([*pinned, *shown]))}"
        f'<div style="{_SOFT}">{escape(note)}</div></div>'
    )


def _box(feature: Feature, prompt: str) -> str:
    r = feature.result
    rank = f"{feature.rank}. " if feature.rank else ""
    return (
        f'<div style="border:1px solid {LINE};border-radius:6px;padding:6px 10px 8px;'
        f'box-sizing:border-box;min-width:0"><div style="font-size:14px;overflow-wrap:anywhere">'
        f"<b>{rank}{inline(feature.name)}</b>{' ★' * feature.starred}"
        f"{' (hidden)' * feature.hidden}</div>"
        + body(
            feature, prompt, now=r is None or r.prompt == prompt, tooltips=False, min_lines=0, waiting="not generated"
        )
        + "</div>"
    )
