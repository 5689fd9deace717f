"""HTML that came out of a model or a notebook, made harmless for a static page.

Tags and attributes are kept by name (bleach); the rest goes, and the text of what can run goes with
it. A page's Content-Security-Policy (`course.site.pages`) stands behind this: either would do.
"""

from __future__ import annotations

import re

from bleach.sanitizer import Cleaner

_TEXT = """a abbr b blockquote br caption code col colgroup dd del details div dl dt em h1 h2 h3 h4
    h5 h6 hr i img ins kbd li mark ol p pre q s samp small span strong sub summary sup table tbody
    td tfoot th thead tr tt u ul var"""
_SVG = "svg g path rect line polyline polygon circle ellipse text tspan title"
_MATH = """math mfrac mi mn mo mover mpadded mroot mrow mspace msqrt mstyle msub msubsup msup mtable
    mtd mtext mtr munder munderover"""
_TAGS = frozenset(f"{_TEXT} {_SVG} {_MATH}".split())
_ATTRIBUTES = frozenset(
    """alt aria-busy aria-hidden aria-label aria-live class colspan cx cy d dir
    display fill fill-opacity font-family font-size font-weight halign height href id lang maxsize
    minsize open opacity points r role rowspan rx ry scope src start stretchy stroke
    stroke-dasharray stroke-linejoin stroke-opacity stroke-width style text-anchor title transform
    valign viewBox viewbox width x x1 x2 xmlns y y1 y2""".split()
)
# Raw text: an HTML parser hands it over as text, which nobody wants to read on the page.
_RAW = re.compile(
    r"<(script|style|iframe|object|template|noscript|title)\b.*?(?:</\1\s*>|\Z)", re.DOTALL | re.IGNORECASE
)
_PICTURE = re.compile(r"<svg\b.*?</svg\s*>", re.DOTALL | re.IGNORECASE)
_RAW_IN_SVG = re.compile(r"<(script|style|foreignObject)\b.*?(?:</\1\s*>|\Z)", re.DOTALL | re.IGNORECASE)
_FETCHES = re.compile(r"url\s*\(|expression\s*\(|@import|image-set|javascript:|\\", re.IGNORECASE)
_COVERS = re.compile(r"position\s*:\s*(?:fixed|sticky)", re.IGNORECASE)


class _Style:
    """What bleach asks of a CSS sanitiser: declarations that fetch or cover the page go."""

    def sanitize_css(self, style: str) -> str:
        kept = (part.strip() for part in style.split(";"))
        return "; ".join(p for p in kept if p and not _FETCHES.search(p) and not _COVERS.search(p))


def _attribute(tag: str, name: str, value: str) -> bool:
    if name not in _ATTRIBUTES:
        return False
    if name == "src":
        return tag == "img" and bool(re.match(r"data:image/(?:png|jpeg|gif);base64,", value))
    return name != "href" or (tag == "a" and not value.strip().lower().startswith("data:"))


_CLEANER = Cleaner(
    tags=_TAGS,
    attributes=_attribute,
    protocols={"http", "https", "mailto", "data"},
    strip=True,
    strip_comments=True,
    css_sanitizer=_Style(),
)


def clean(html: str) -> str:
    """HTML without scripts, handlers, frames, forms, foreign addresses and comments."""
    pictures: list[str] = []

    def keep(match: re.Match[str]) -> str:  # <title> is raw text in HTML, and a tooltip in an SVG
        pictures.append(_RAW_IN_SVG.sub("", match[0]))
        return f"\x00{len(pictures) - 1}\x00"

    text = _RAW.sub("", _PICTURE.sub(keep, html.replace("\x00", "")))
    text = re.sub("\x00(\\d+)\x00", lambda match: pictures[int(match[1])], text)
    return str(_CLEANER.clean(text))


def is_empty(html: str) -> bool:
    """Whether cleaned HTML shows nothing."""
    return not re.search(r"<(?:img|svg|hr)\b", html) and not re.sub(r"<[^>]*>|\s", "", html)
