"""A latent's page as HTML: no script, no network, the same in a saved notebook.

Every piece of text passes ``html.escape``. Colour says how strongly the latent fires on a token;
the underline says the same without colour. Latents of the page's own dictionary are marked
(:func:`to`): a view that shows the page opens those that are clicked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from math import isnan
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kit.base.html import INK, LINE, PLAIN, SAFE, SANS, WRAP, inline, number
from kit.models.logit_lens import Ends, direction_logits, logit_lens, long_tokens
from kit.sae.ablation import Ablation
from kit.sae.about import Effect, correlated
from kit.sae.compare import Neighbours
from kit.sae.corpus_lens import CorpusLens
from kit.sae.prompt import By, Reading
from kit.sae.store import Example, FeatureStore

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

FONT = f"font:13px/1.55 {SANS}"
SILENT = "<p>It never fires on this corpus: there is nothing to show.</p>"
Words = Callable[[Sequence[int]], list[str]]


def words(model: TransformerBridge) -> Words:
    """A function from token ids to the text of each, one by one."""
    tokenizer = model.tokenizer

    def texts(ids: Sequence[int]) -> list[str]:
        return [tokenizer.decode([i]) for i in ids]

    return texts


def spelled(piece: str) -> str:
    """A token's text, escaped, its line breaks and the like spelled out."""
    return inline(repr(piece)[1:-1])


def spaced(text: str) -> str:
    """A text that begins with a space, which none sees, with a dot in its place."""
    return f"·{text[1:]}" if text.startswith(" ") else text


def code(texts: Words, token: int) -> str:
    """A token's text, set as code."""
    return f"<code>{spelled(texts([token])[0])}</code>"


def note(inner: str) -> str:
    """A small line of explanation, as HTML."""
    return f'<div style="opacity:.7;font-size:12px">{inner}</div>'


def to(latent: int) -> str:
    """A latent's number, to click at where a view can open it."""
    return f'<span data-latent="{latent}">#{latent}</span>'


def shaded(
    pieces: Sequence[str], values: Sequence[float], full: float, *, breaks: bool = True, more: Sequence[str] = ()
) -> str:
    """Pieces of text, each shaded by its value: blue above zero, vermillion below.

    Args:
        full: the value of the darkest shade.
        breaks: whether a line break is one, or only its sign.
        more: further lines to show when the mouse is on a piece, for each.
    """
    spans = []
    for i, (piece, value) in enumerate(zip(pieces, values, strict=True)):
        text = escape(piece).replace("\n", "⏎\n" if breaks else "⏎")
        share = min(abs(value) / full, 1.0) if full > 0 else 0.0
        if share < 0.02 and not more:
            spans.append(text)
            continue
        hue = SAFE if value > 0 else INK
        title = "\n".join([f"{'activation ' if more else ''}{value:.3g}", *more[i : i + 1]])
        look = f"background:rgba({hue},{0.6 * share:.2f});border-bottom:{1 + round(2 * share)}px solid rgba({hue},.9)"
        spans.append(f'<span title="{inline(title)}" style="{look if share >= 0.02 else ""}">{text}</span>')
    return "".join(spans)


def example(
    e: Example, texts: Words, full: float, whole: Example | None = None, *, effect: Effect | None = None
) -> str:
    """One example, on a line of its own; with ``whole``, a click shows the row that it is from, and
    with ``effect`` the mouse shows what the latent does to the predictions after each token."""
    pieces, values = texts(e.tokens.tolist()), e.values.tolist()
    under = [] if effect is None else [_effect(*told, texts) for told in zip(effect.loss.tolist(), effect.raised)]
    line = (
        f'<span style="display:inline-block;min-width:4.5em;font-variant-numeric:tabular-nums">{number(e.value)}</span>'
        f'<span style="{WRAP}">{shaded(pieces, values, full, breaks=False, more=under)}</span>'
    )
    if whole is None:
        return f'<div style="padding:3px 0">{line}</div>'
    more = shaded(texts(whole.tokens.tolist()), whole.values.tolist(), full)
    return (
        f'<details style="padding:3px 0"><summary style="cursor:pointer">{line}</summary>'
        f'<div style="{WRAP};margin:4px 0 8px 4.5em;border-left:2px solid {LINE};padding-left:10px">{more}</div>'
        "</details>"
    )


def _effect(loss: float, raised: Sequence[tuple[int, float, float]], texts: Words) -> str:
    """What the mouse shows on a token: the loss on the next one, and what becomes likelier."""
    lines = [] if isnan(loss) else [f"without the latent, the loss on the next token changes by {loss:+.3f} nats"]
    lines += [f"{texts([i])[0]!r} {without:.1%} → {with_it:.1%} with it" for i, without, with_it in raised]
    return "\n".join(lines)


def histogram(
    counts: Tensor, edges: Tensor, width: int = 260, height: int = 64, *, x: str = "activation", y: str = "tokens"
) -> str:
    """Counts as bars, heights on a square-root scale, which keeps rare strong firings visible; blue
    above zero, vermillion below.

    Boxes and no SVG, of which JupyterLab shows only the words where a notebook is not trusted yet.

    Args:
        x, y: what the axes show.
    """
    tall = counts.float().sqrt()
    top = float(tall.max()) or 1.0
    low, high = float(edges[0]), float(edges[-1])
    bars = "".join(
        f'<span title="{float(edges[i]):.3g} to {float(edges[i + 1]):.3g}: {int(counts[i])}" style="flex:1;height:'
        f'{h:.1f}px;margin-right:1px;background:rgb({INK if float(edges[i] + edges[i + 1]) < 0 else SAFE})"></span>'
        for i, h in enumerate((tall / top * (height - 2)).tolist())
    )
    under = "".join(f"<span>{text}</span>" for text in (f"{low:.3g}", inline(x), f"{high:.3g}"))
    return (
        f'<div role="img" aria-label="histogram: {inline(y)} by {inline(x)}" style="width:{width}px;font-size:10px">'
        f'<div style="opacity:.7">{inline(y)} (√)</div><div style="display:flex;align-items:flex-end;height:{height}px;'
        f'border-bottom:1px solid rgba(128,128,128,.6)">{bars}</div>'
        f'<div style="display:flex;justify-content:space-between">{under}</div></div>'
    )


def logits(model: TransformerBridge, row: Tensor) -> str:
    """How many tokens of the vocabulary a row ``[d_model]`` makes how much likelier or less likely,
    straight through the final norm's gain and the unembedding."""
    found = direction_logits(model, row[None].to(model.cfg.device))[0].cpu()
    found[long_tokens(model).cpu()] = 0.0
    low, high = float(found.min()), float(found.max())
    counts = torch.histc(found, 60, low, high)
    return histogram(counts, torch.linspace(low, high, 61), x="logit, direct path", y="tokens")


def lens(found: Ends, texts: Words) -> str:
    """Both ends of a logit lens, side by side."""

    def column(title: str, pairs: Sequence[tuple[int, float]]) -> str:
        rows = "".join(
            f'<div style="display:flex;justify-content:space-between;gap:14px">{code(texts, token)}'
            f"<span>{value:+.2f}</span></div>"
            for token, value in pairs
        )
        return f'<div style="min-width:150px"><b>{title}</b>{rows}</div>'

    left_out = ", ".join(map(spelled, texts(found.dropped[:8])))
    more = f" and {len(found.dropped) - 8} more" if len(found.dropped) > 8 else ""
    return (
        '<div style="display:flex;gap:28px;flex-wrap:wrap">'
        f"{column('promotes', found.top)}{column('suppresses', found.bottom)}</div>"
        + note(f"left out, for their long unembeddings: {left_out}{more}" if found.dropped else "")
    )


def ablation(found: Ablation, texts: Words) -> str:
    """Ablated text above gradient x activation: what the latent needs is blue in both."""
    pieces = texts(found.tokens.tolist())
    cost, slope = (-found.change).tolist(), found.gradient.tolist()
    slope[0] = 0.0  # the sink's embedding says little about words

    def line(title: str, values: list[float]) -> str:
        full = max(map(abs, values)) if values else 0.0
        return (
            f'<div style="margin:4px 0"><b>{title}</b> <span style="opacity:.7">(darkest: {number(full)})</span>'
            f'<div style="{WRAP}">{shaded(pieces, values, full)}</div></div>'
        )

    pairs = "".join(
        f"<div>without {spelled(pieces[i])} and {spelled(pieces[j])}: {number(extra)} further than the two alone</div>"
        for i, j, extra in found.either()
    )
    agree = found.agreement
    return (
        f'<div class="{PLAIN}">'
        + line(f"lost when the word is taken out (activation {number(found.value)})", cost)
        + line("gradient x activation", slope)
        + note("" if isnan(agree) else f"correlation of the two {agree:+.2f}")
        + f"{pairs}</div>"
    )


def page(
    store: FeatureStore,
    model: TransformerBridge,
    latent: int,
    *,
    n_top: int = 8,
    n_interval: int = 2,
    near: Neighbours | None = None,
    more: str = "",
    label: str = "",
    effects: Sequence[Effect] = (),
) -> str:
    """Everything about one latent: examples from its whole range, histograms, logits, company.

    Args:
        near: for lines on the nearest latents.
        more: HTML to show above the examples (:mod:`kit.sae.sections` makes some).
        label: what its reader calls it.
        effects: :func:`kit.sae.about.effect` of the ``n_top`` strongest examples; the mouse shows
            them.

    Raises:
        ValueError: no such latent.
    """
    texts, dictionary = words(model), store.dictionary
    where, value = store.entries(latent)
    head = (
        '<div style="display:flex;gap:12px;align-items:baseline;flex-wrap:wrap">'
        f'<b style="font-size:15px">{inline(dictionary.name)} #{latent}{inline(f": {label}") if label else ""}</b>'
        f"<span>fires on {len(where) / store.n_tokens:.3%} of {store.n_tokens:,} tokens</span></div>"
    )
    if not len(where):
        return box(head + SILENT)
    full = float(value.max())
    counts, edges = store.histogram(latent)
    strongest = store.top(latent, n_top)
    told = [*effects, *[None] * len(strongest)]
    top = [example(e, texts, full, store.whole(latent, e), effect=one) for e, one in zip(strongest, told, strict=False)]
    bins = [
        f'<div style="margin-top:6px;opacity:.8">{low:.3g} to {high:.3g}: {share:.1%} of firings</div>'
        + "".join(example(e, texts, full) for e in some)
        for low, high, share, some in store.intervals(latent, n=n_interval)
        if some
    ]
    by_token = ", ".join(
        f"{code(texts, int(r.token))} ({r.share:.0%} of {r.count})" for r in store.by_token(latent, 6).itertuples()
    )
    company = ", ".join(f"{to(int(r.latent))} ({r.jaccard:.2f})" for r in store.together(latent, 5).itertuples())
    alike = ", ".join(f"{to(int(r.latent))} ({r.r:+.2f})" for r in correlated(store, latent, 5).itertuples())
    row = dictionary.rows[latent].to(model.cfg.device)
    said = lens(logit_lens(model, row, 6), texts)
    if (scored := _scored(store, model)) is not None:
        plain = f'<details><summary style="cursor:pointer;opacity:.7">plain logit lens</summary>{said}</details>'
        said = f"{lens(scored.read(latent, 6), texts)}{note('z-scores over latents, of tokens that the corpus has')}{plain}"
    return box(
        f'{head}<div style="display:flex;gap:32px;flex-wrap:wrap;margin:8px 0">'
        f"<div><b>activations</b><br>{histogram(counts, edges)}"
        f"<div>mean {number(float(value.float().mean()))}, largest {number(full)}</div></div>"
        f"<div><b>logits</b><br>{logits(model, row)}</div><div>{said}</div></div>"
        f"<div><b>tokens</b> {by_token or 'none twice'}</div>"
        f"<div><b>fires together with</b> {company or 'none'} <span style='opacity:.7'>both over either</span></div>"
        f"<div><b>correlated with</b> {alike or 'none'}</div>"
        f"{'' if near is None else neighbours(near, latent)}"
        f'<div style="margin-top:10px">{more}</div>'
        f'<div style="margin-top:10px"><b>strongest</b>{_sum(strongest, effects)}{"".join(top)}</div>'
        f'<div style="margin-top:10px"><b>over its whole range</b>{"".join(bins)}</div>'
    )


def _scored(store: FeatureStore, model: TransformerBridge) -> CorpusLens | None:
    """The store's lens over its corpus, made at its first page; None if the corpus is too small."""
    kept = vars(store)
    if "pages' lens" not in kept:
        try:
            kept["pages' lens"] = CorpusLens(store, model)
        except ValueError:
            kept["pages' lens"] = None
    return kept["pages' lens"]


def _sum(shown: Sequence[Example], effects: Sequence[Effect]) -> str:
    """What taking the latent out costs where it fires on the examples that are shown."""
    costs = [c for e, f in zip(shown, effects) for c, v in zip(f.loss.tolist(), e.values) if v > 0 and not isnan(c)]
    if not costs:
        return ""
    return note(
        f"without it the loss on the next token changes by {sum(costs) / len(costs):+.3f} nats, a mean over the "
        f"{len(costs)} tokens below on which it fires (its strongest examples, no fair sample); the mouse shows each"
    )


def neighbours(near: Neighbours, latent: int) -> str:
    """The nearest latents, with cosines: here, in the other dictionaries, and in what they say."""

    def some(pairs: Sequence[tuple[int, float]]) -> str:
        return ", ".join(f"{to(i)} ({cosine:+.2f})" for i, cosine in pairs) or "none"

    others = "".join(f"; {inline(each.name)} #{i} ({cosine:+.2f})" for each, i, cosine in near.elsewhere(latent))
    return (
        f"<div><b>nearest rows</b> {some(near.same(latent))}{others}</div>"
        f"<div><b>says nearly the same</b> {some(near.saying(latent))}</div>"
    )


def prompt(found: Reading, texts: Words, by: By = "activation", n: int = 5) -> str:
    """A text as a table: a line for each token, with the latents that fire most on it."""
    lines = []
    pieces = texts(found.tokens.tolist())
    top = max(float(getattr(found, by).abs().max()), 1e-9)
    for at, piece in enumerate(pieces):
        cells = []
        for r in found.ranked(by, at, n).itertuples():
            value = getattr(r, by)
            hue = SAFE if value > 0 else INK
            shown = f"{value:.0%}" if by == "quantile" else number(value)
            cells.append(
                f'<span data-latent="{int(r.latent)}" style="display:inline-block;margin:1px 6px 1px 0;padding:0 6px;border-radius:9px;'
                f"background:rgba({hue},{0.5 * abs(value) / top:.2f});border:1px solid rgba({hue},.6);"
                f'font-variant-numeric:tabular-nums">#{int(r.latent)} {shown}</span>'
            )
        lines.append(
            f'<tr><td style="padding:2px 14px 2px 0;vertical-align:top;opacity:.6">{at}</td>'
            f'<td style="padding:2px 14px 2px 0;text-align:left;vertical-align:top"><code>{spelled(piece)}</code></td>'
            f'<td style="text-align:left">{"".join(cells)}</td></tr>'
        )
    told = ""
    if found.answers is not None:
        a, b = (f"<code>{inline(spaced(t))}</code>" for t in texts(found.answers))
        told = f"<div>logit({a}) - logit({b}) = {found.difference:+.2f}</div>"
    return box(f'{told}<table style="border-collapse:collapse;margin:0">{"".join(lines)}</table>')


def box(inner: str) -> str:
    """HTML in the frame that pages and their sections share."""
    return (
        f'<div class="{PLAIN}" style="{FONT};border:1px solid {LINE};border-radius:8px;padding:12px 14px">{inner}</div>'
    )
