"""Hostile text in everything that becomes HTML: widgets, frozen pages, pages of latents, tables.

The model's tokenizer is made to say hostile strings, and every name, prompt, label and score is one.
What comes out is parsed: only the kit's own elements and attributes may be in it, and whatever a
notebook shows of it must stand where MathJax looks for no formula (``tests/test_browser.py`` looks at
the page after it did).
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import torch

import kit
from course.exercises import Card
from course.room.room_table import RoomTable
from kit.base.html import message
from kit.cli.doctor import Check, DoctorReport
from kit.cli.timing import Estimate
from kit.lens import markup as lens_markup
from kit.sae import FeatureStore, Site, ablated_text, pages, sections
from kit.sae.links import links
from kit.sae.meta_sae import MetaLatents
from kit.sae.meta_sae import train as train_meta
from kit.steering import render
from kit.steering.check import CheckResult
from kit.widgets.gallery import markup as gallery_markup
from kit.widgets.panel import markup as panel_markup
from kit.widgets.training import charts
from kit.widgets.training import markup as training_markup
from tests.faults import Row
from tests.faults.subjects import TEXTS, Subjects

MARK = "kitx"  # stands in every hostile string
HOSTILE = (
    f"<script>window.{MARK}=1</script>",
    f"<img src=//{MARK}.invalid onerror=window.{MARK}=1>",
    f'"><svg onload=window.{MARK}=1>',
    f"' onmouseover='window.{MARK}=1' x='",
    f'" style="background:url(//{MARK}.invalid)" onfocus="window.{MARK}=1" autofocus="',
    f"</style><script>window.{MARK}=1</script>",
    f"</title></textarea><b {MARK}=1>",
    f"<a href=javascript:window.{MARK}=1>go</a>",
    f"<iframe srcdoc='<script>{MARK}</script>'>",
    f"&lt;script&gt;{MARK}&#60;/script&#x3e;",
    f"&#x3c;{MARK}&#62;",
    f"&{MARK}",
    "&amp;&quot;&",
    f"\u202e{MARK}\u2066\u2069",
    f"\0{MARK}\x1b[31m\x07\ufffe",
    "{{" + MARK + "}}",
    "${" + MARK + "}",
    "{%" + MARK + "%}",
    f"<!--{MARK}",
    f"]]><{MARK}>",
    f"<![CDATA[<{MARK}>",
    f"<{MARK} " + "x" * 3000,
    f"<math><mtext><{MARK}>",
    f"\n\n<{MARK}>\n```",
    f"\\(\\href{{javascript:{MARK}}}{{x}}\\)",
    f"$5 {MARK} for adults, $3 for children",
    f"$$\\href{{javascript:{MARK}}}{{x}}$$ \\[{MARK}\\] \\begin{{align}}{MARK}\\end{{align}} \\ref{{{MARK}}}",
)
TAGS = set(
    "a b br caption code details div i path rect line circle polyline g span summary svg "
    "style table tbody td text th thead title tr p small pre".split()
)
ATTRIBUTES = set(
    "aria-busy aria-label aria-hidden class cx cy d dir draggable fill fill-opacity font-size "
    "font-weight height href opacity points r role rx stroke stroke-dasharray "
    "stroke-linejoin stroke-width stroke-opacity style text-anchor title transform viewbox width x x1 "
    "x2 y y1 y2 open data-rank data-latent data-layer data-position data-chosen data-mark tabindex preserveaspectratio aria-live scope".split()
)
MODULES: tuple[ModuleType, ...] = (
    render,
    pages,
    sections,
    gallery_markup,
    training_markup,
    charts,
    panel_markup,
    lens_markup,
)


class _Reader(HTMLParser):
    """Notes every element and attribute that is not the kit's."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self.sheet = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sheet = tag == "style"
        if tag not in TAGS:
            self.found.append(f"<{tag}>")
        for name, value in attrs:
            value = value or ""
            if name not in ATTRIBUTES:
                self.found.append(f"<{tag} {name}={value!r:.40}>")
            if name == "style" and ("url(" in value or MARK in value or "expression" in value):
                self.found.append(f"<{tag} style={value!r:.80}>")
            if name == "href" and not value.startswith("data:,"):
                self.found.append(f"<{tag} href={value!r:.40}>")
            if (name in ("class", "d", "points", "transform", "href") or name.startswith("data-")) and MARK in value:
                self.found.append(f"<{tag} {name}={value!r:.40}>")

    def handle_endtag(self, tag: str) -> None:
        self.sheet = False

    def handle_data(self, data: str) -> None:
        if self.sheet and MARK in data:
            self.found.append(f"in a style sheet: {data[:60]!r}")

    def handle_comment(self, data: str) -> None:
        self.found.append(f"a comment {data[:40]!r}")

    def unknown_decl(self, data: str) -> None:
        self.found.append(f"a declaration {data[:40]!r}")

    handle_decl = handle_pi = unknown_decl


def foreign(html: str) -> list[str]:
    """Elements and attributes in HTML that are not the kit's own."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return reader.found


# parts of outputs, never shown without what stands around them; and what a widget itself shows
_PARTS = ("badge", "shaded", "legend")


class _Typeset(HTMLParser):
    """Notes foreign text that MathJax reads: MathJax 3 and 4, and 2."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.inside: list[bool] = []
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("br", "path", "rect", "circle", "line"):
            classes = set((dict(attrs).get("class") or "").split())
            self.inside.append({"mathjax_ignore", "tex2jax_ignore"} <= classes or (self.inside or [False])[-1])

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("br", "path", "rect", "circle", "line"):
            self.inside.pop()

    def handle_data(self, data: str) -> None:
        if MARK in data and not (self.inside or [False])[-1]:
            self.found.append(f"MathJax reads {data[:40]!r}")


def typeset(html: str) -> list[str]:
    """Foreign text in HTML that a page may take for mathematics."""
    reader = _Typeset()
    reader.feed(html)
    reader.close()
    return reader.found


def outputs(found: dict[str, str]) -> dict[str, str]:
    """Of :func:`everything` what stands in a notebook by itself."""
    return {name: html for name, html in found.items() if name.split(" ")[0] not in _PARTS and " live " not in name}


@contextmanager
def speaking(model: Any) -> Iterator[None]:
    """A model whose every token is a hostile string."""
    words = model.tokenizer

    def decode(ids: Any, **_: Any) -> str:
        found = torch.as_tensor(ids).reshape(-1).tolist()
        return "".join(HOSTILE[int(i) % len(HOSTILE)] for i in found)

    words.decode = decode
    words.batch_decode = lambda rows, **_: [decode(row) for row in rows]
    try:
        yield
    finally:
        del words.decode, words.batch_decode


@contextmanager
def watched() -> Iterator[set[CodeType]]:
    """The functions of `MODULES` that run inside the block, in any thread."""
    wanted = {code for m in MODULES for _, code in public(m)}
    seen: set[CodeType] = set()

    def profile(frame: Any, event: str, _arg: Any) -> None:
        if event == "call" and frame.f_code in wanted:
            seen.add(frame.f_code)

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        yield seen
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]


def public(module: ModuleType) -> list[tuple[str, CodeType]]:
    """A module's own public functions."""
    return [
        (f"{module.__name__}.{name}", f.__code__)
        for name, f in vars(module).items()
        if inspect.isfunction(f) and f.__module__ == module.__name__ and not name.startswith("_")
    ]


def everything(subjects: Subjects) -> dict[str, str]:
    """All the HTML that the kit makes of hostile text, by where it is from.

    Raises:
        AssertionError: a widget, or a function that makes HTML, is not among what was tried.
    """
    from kit import widgets

    with speaking(subjects.model), speaking(subjects.other), watched() as seen:
        found = dict(_all(subjects))
    tried = {name.split(" ")[0] for name in found}
    classes = {n for n in widgets._HOME if hasattr(getattr(widgets, n), "_repr_mimebundle_")}
    left = sorted(classes - tried)
    left += [name for m in MODULES for name, code in public(m) if code not in seen]
    if left:
        raise AssertionError(f"not tried: {left}")
    return found


def _all(subjects: Subjects) -> Iterator[tuple[str, str]]:
    views = []
    for name, view in _views(subjects):
        yield from shown(name, view)
        views.append(view)
    for view in views:
        getattr(view, "close", lambda: None)()
    yield from _plain(subjects)


def shown(name: str, view: Any) -> Iterator[tuple[str, str]]:
    """What of a widget a browser reads as HTML: frozen, in the notebook, and live."""
    for what in ("frozen_html", "revealed_html"):
        if hasattr(type(view), what):
            yield f"{name} {what}", getattr(view, what)
    bundle = view._repr_mimebundle_()
    yield f"{name} bundle", str(bundle.get("text/html", ""))
    if hasattr(view, "_dom_classes"):  # some pages typeset widgets too
        yield f"{name} root", f'<div class="{" ".join(view._dom_classes)}">{MARK}</div>'
    queue, n = [view], 0
    while queue:
        each = queue.pop()
        queue += [child for child in getattr(each, "children", ()) if child is not None]
        if type(each).__name__ in ("HTML", "HTMLMath") or getattr(each, "description_allow_html", False):
            n += 1
            yield f"{name} live {n}", f"{each.value}{each.description}"


def _views(subjects: Subjects) -> Iterator[tuple[str, Any]]:
    from kit import widgets
    from tests.faults.subjects import trained

    model, some = subjects.model, list(HOSTILE)
    vectors = [subjects.vector(f"{text}", i) for i, text in enumerate(some[:6])]
    panel = widgets.SteeringPanel(model, vectors[:3], some[0], coefficients=[0.3, 0.2, 0.1], max_new_tokens=6)
    panel.run(timeout=60)
    yield "SteeringPanel", panel
    lens = kit.lens.Lens(model, {at: torch.eye(model.cfg.d_model) for at in range(model.cfg.n_layers - 1)})
    gallery = widgets.FeatureGallery(
        model, vectors, some[1], coefficient=0.5, max_new_tokens=6, scores={some[4]: [1.0, 2, 3, 4, 5, 6]}, lens=lens
    )
    gallery.run(timeout=60)
    gallery.star(1)
    yield "FeatureGallery", gallery
    yield "TokenMask", widgets.TokenMask(model, some[3] + some[0])
    run = kit.generate(model, some[2], vectors[0], [None, 0.5], max_new_tokens=6)
    rating = widgets.BlindRating([run], path=None)
    yield "BlindRating one", rating
    while rating.ratings.current is not None:
        rating.rate(3, True)
    yield "BlindRating all", rating
    dictionary, store, crosscoder = trained(subjects)
    dictionary.name = some[4]
    busy = int(store.density().argmax())
    near = kit.sae.Neighbours(dictionary, model, [dictionary])
    figures = {some[0]: dictionary.rows.norm(dim=-1)}
    browser = widgets.FeatureBrowser(
        store, model, like=dictionary.rows[busy], others=[dictionary], figures=figures, lens=lens
    )
    browser.show(busy)
    yield "FeatureBrowser", browser
    grid = widgets.LensView(model, some[1] + TEXTS[0], lens, k=3, trace=(some[2][:1],))
    grid.filter.value = True
    yield "LensView", grid
    view = widgets.PromptView(store, model, some[5] + TEXTS[0], near=near, answers=("a", "b"))
    view.run()
    view.show(busy)
    yield "PromptView", view
    other = dataclasses.replace(dictionary, name=some[5])
    match = widgets.MatchBrowser(store, FeatureStore(other, store.tokens, store.start, store.where, store.value), model)
    yield "MatchBrowser", match
    later = dataclasses.replace(dictionary, name=some[6], site=Site(2))
    stores = [store, FeatureStore.build(later, model, store.tokens.long())]
    found = links(dictionary, later, model, store.tokens[:6].long(), method="ablation")
    yield "LinkBrowser", widgets.LinkBrowser(found, *stores, model, n=4)
    training = widgets.TrainingView(subjects.training(steps=20), TEXTS[:20], rows=6, ce_rows=2)
    training.run(timeout=120)
    yield "TrainingView", training
    yield "RoomTable", RoomTable(_room(subjects.folder / "room"))
    made = dict(_pages(subjects, store, crosscoder, busy, near))
    yield "pages", _Made(made)


def _room(folder: Path) -> Path:
    """A room's folder with hostile names and exercises in it."""
    folder.mkdir()
    for n, text in enumerate(HOSTILE):
        lines = [
            {"name": text},
            {"exercise": "00.1", "event": "failed", "at": 1.0, "seconds": 2},
            {"exercise": text, "event": text, "at": text, "seconds": text},
        ]
        file = folder / f"{n:016x}.jsonl"
        file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return folder


class _Made:
    """Finished HTML in the form of a view."""

    def __init__(self, made: dict[str, str]) -> None:
        self.made = made

    def _repr_mimebundle_(self) -> dict[str, str]:
        return {"text/html": "".join(self.made.values())}


def _pages(subjects: Subjects, store: Any, crosscoder: Any, busy: int, near: Any) -> Any:
    from kit.sae.crosscoders.model import PairedLatents

    model, texts = subjects.model, pages.words(subjects.model)
    e = store.top(busy, 1)[0]
    yield "page", pages.page(store, model, busy, near=near)
    yield (
        "ablation",
        pages.ablation(ablated_text(store.dictionary, model, e.tokens[: e.at + 1], busy, pairs=True), texts),
    )
    crosscoder = dataclasses.replace(crosscoder, name=HOSTILE[4])
    both = FeatureStore.build(PairedLatents(crosscoder, subjects.pair, 1), subjects.other, TEXTS, context=20)
    yield "both", sections.both_models(both, int(both.density().argmax()))
    atoms = train_meta(store.dictionary, size=24, k=2, steps=20, batch=48)
    atoms.name = HOSTILE[5]
    yield "tree", sections.tree(store, MetaLatents(atoms, store.dictionary), model, busy)


def _plain(subjects: Subjects) -> Iterator[tuple[str, str]]:
    """The functions themselves, with one hostile string after another."""
    model = subjects.model
    run = kit.generate(model, HOSTILE[0], subjects.vector(HOSTILE[4]), [None, 0.5], max_new_tokens=6, measure=True)
    check = kit.check(model, subjects.vector())
    for n, text in enumerate(HOSTILE):
        rows = [dataclasses.replace(row, what=text, detail=text) for row in check.rows]
        told: dict[str, Callable[[], str]] = {
            "check": lambda rows=rows: CheckResult(rows)._repr_html_(),
            "ladder": lambda text=text: dataclasses.replace(run, names=[text])._repr_html_(),
            "badge": lambda text=text: render.badge([text]),
            "estimate": lambda text=text: Estimate(text, 1, 1.0, 0.1, 1, 1, 10, 10, 0.1, text)._repr_html_(),
            "message": lambda text=text: message(text, error=True),
            "receipt": lambda text=text: render.receipt(text),
            "frozen": lambda text=text: render.frozen(
                text, text, [(text, text)], [(text, text, run.rows[1])], text, [text], text
            ),
            "shaded": lambda text=text: pages.shaded([text, text], [1.0, -1.0], 1.0),
            "legend": lambda text=text: charts.legend([text], text),
            "doctor": lambda text=text: DoctorReport((Check(text, False, text, text),), 0.1)._repr_html_(),
            "card": lambda text=text: Card(text, text, text, text)._repr_html_(),
        }
        for name, make in told.items():
            yield f"{name} {n}", make()


def run(subjects: Subjects) -> list[Row]:
    """Counts the pieces of HTML; a loss is an element or attribute that came from the text."""
    rows: dict[str, Row] = {}
    found = everything(subjects)
    shown = outputs(found)
    for name, html in found.items():
        row = rows.setdefault(name.split(" ")[0], Row(f"hostile text: {name.split(' ')[0]}"))
        row.inputs += 1
        row.losses += [f"{name}: {what}" for what in dict.fromkeys(foreign(html))]
        row.losses += [f"{name}: {what}" for what in dict.fromkeys(typeset(shown.get(name, "")))]
    return list(rows.values())
