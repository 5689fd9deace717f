"""A training as HTML: where it stands, its curves, one latent. Pure functions, no widget.

Every piece of text passes ``html.escape``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from kit.base.html import LINE, SAFE, inline
from kit.sae import pages
from kit.sae.training import COEFFICIENTS, Report, Training
from kit.widgets.training import charts
from kit.widgets.training.held_out import Look


def status(training: Training, word: str, rate: float, note: str = "") -> str:
    """One line and a bar: step, tokens, tokens a second, time left.

    Args:
        word: "training", "done" ...; the time left is told while it is "training".
        rate: tokens a second; 0 where it is not known yet.
        note: a warning.
    """
    t = training
    parts = [f"<b>{escape(word)}</b>", f"step {t.step:,} of {t.steps:,}", f"{t.source.served:,} tokens"]
    if rate > 0:
        parts.append(f"{rate:,.0f} tokens/s")
        if word == "training":
            parts.append(f"about {_duration((t.steps - t.step) * t.source.batch / rate)} left")
    if note:
        parts.append(f"<b>⚠ {escape(note)}</b>")
    return (
        f'<div style="{pages.FONT}"><b style="font-size:15px">Training '
        f'{escape(str(t.settings["architecture"]))}</b><div style="display:flex;gap:4px 16px;'
        f'flex-wrap:wrap;font-variant-numeric:tabular-nums">'
        f"{''.join(f'<span>{part}</span>' for part in parts)}</div>"
        f'<div style="height:4px;border-radius:2px;background:rgba(128,128,128,.3);margin:5px 0">'
        f'<div style="height:4px;border-radius:2px;width:{t.step / t.steps:.1%};'
        f'background:rgb({SAFE})"></div></div></div>'
    )


def curves(
    training: Training, reports: Sequence[Report], recovered: Mapping[tuple[int, str], float], chosen: str
) -> str:
    """Small multiples: a chart for each figure, a line for each dictionary.

    Args:
        recovered: CE loss recovered, by step and name.
        chosen: the dictionary whose line is bold.
    """
    t = training

    def of(what: str) -> dict[str, list[tuple[float, float]]]:
        return {name: [(r.step, getattr(r.figures[name], what)) for r in reports] for name in t.trainers}

    measured = {
        name: [(step, y) for (step, whose), y in sorted(recovered.items()) if whose == name] for name in t.trainers
    }
    guide = _k_over_time(t)
    dead = of("dead")
    most = max(0.05, *(y for points in dead.values() for _, y in points))
    some: dict[str, Any] = {"steps": t.steps, "chosen": chosen}
    drawn = [
        charts.lines("loss", of("loss"), **some),
        charts.lines("explained variance", of("explained_variance"), low=0, high=1, **some),
        charts.lines("L0" + " (dotted: k)" * bool(guide), of("l0"), guide=guide, **some),
        charts.lines("dead latents", dead, low=0, high=most, shown="{:.1%}".format, **some),
        charts.lines("CE loss recovered, held out", measured, low=0, high=1, **some),
    ]
    return (
        f'<div style="{pages.FONT}">{charts.legend(list(t.trainers), chosen)}'
        f'<div style="display:grid;grid-template-columns:repeat(auto-fill,minmax(210px,1fr));'
        f'gap:14px 20px;margin-top:8px">'
        f"{''.join(drawn)}</div></div>"
    )


def latent(look: Look, texts: pages.Words, tokens: int) -> str:
    """Densities of all latents, and the strongest examples of one.

    Args:
        tokens: how many were looked at.
    """
    full = look.examples[0].value if look.examples else 0.0
    shown = "".join(pages.example(e, texts, full) for e in look.examples)
    return (
        f'<div style="{pages.FONT};border-top:1px solid {LINE};margin-top:8px;'
        f'padding-top:8px"><b>{inline(look.name)} on held-out text, step {look.step:,}</b>'
        f'<div style="display:flex;gap:10px 32px;flex-wrap:wrap;margin-top:4px"><div>'
        f'{charts.densities(look.density, tokens)}</div><div style="flex:1 1 360px">'
        f"<div><b>latent #{look.latent}</b> fires on {float(look.density[look.latent]):.2%} of "
        f"them; strongest:</div>{shown or '<div>It does not fire here.</div>'}</div></div></div>"
    )


def _k_over_time(t: Training) -> list[tuple[float, float]]:
    """k step by step, as points of a line; empty for architectures that have no k."""
    if t.settings["architecture"] in COEFFICIENTS:
        return []
    k = float(t.settings["k"])  # type: ignore[arg-type]
    points = [(0.0, k)]
    for step, then in t.changes:
        points += [(float(step), k), (float(step), then)]
        k = then
    return [*points, (float(t.step), k)]


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
