"""Texts to train on, which the kit does not ship."""

from __future__ import annotations

import gzip
import zlib
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from kit.base.files import parse_object

MOST_TEXT = 2**24  # characters of one text of a corpus
NLTK = ("brown", "abc", "movie_reviews", "webtext", "state_union", "inaugural")


def corpus(source: str | Path) -> list[str]:
    """Texts to train on, which the kit does not ship.

    Args:
        source: a file of one text a line, or of JSON lines with a "text" (``.jsonl``,
            ``.jsonl.gz``), or the word ``"nltk"`` for the English corpora of NLTK that the shipped
            dictionaries are from (fetched once by ``nltk.download``).

    Raises:
        FileNotFoundError: no such file; OSError: NLTK's corpora are not here and cannot be
            fetched; ValueError: a file without a text, a damaged one, a line without a "text", or
            one text or line of more than `MOST_TEXT` characters.
    """
    if source == "nltk":
        import nltk

        found = []
        for name in NLTK:
            _nltk(name)
            words = getattr(nltk.corpus, name)
            found += [" ".join(words.words(i)) if name == "brown" else words.raw(i) for i in words.fileids()]
        return found
    file = Path(source)
    if not file.is_file():
        raise FileNotFoundError(f"source={str(source)!r}: give a file of texts, or 'nltk'")
    opened = gzip.open if file.suffix == ".gz" else open
    try:
        with opened(file, "rt", encoding="utf-8") as lines:
            rows = [line.strip() for line in iter(lambda: _line(lines), "") if line.strip()]
        if ".jsonl" in file.name:
            rows = [parse_object(row, f"line {i + 1}")["text"] for i, row in enumerate(rows)]
    except (ValueError, KeyError, EOFError, zlib.error) as error:
        raise ValueError(f"source={str(source)!r}: {error!r:.200}: give a file of texts") from error
    if not rows or not all(isinstance(row, str) for row in rows):
        raise ValueError(f"source={str(source)!r}: it holds no text, or something else")
    return rows


def _line(lines: TextIO) -> str:
    found = lines.readline(MOST_TEXT + 1)
    if len(found) > MOST_TEXT:  # a packed file of a few kilobytes may unpack to any size
        raise ValueError(f"a line of more than {MOST_TEXT} characters")
    return found


def _nltk(name: str) -> None:
    """Fetch a corpus of NLTK, if it is not here.

    Raises:
        OSError: it cannot be fetched.
    """
    import nltk
    from nltk import downloader

    from kit.models.weights import no_network, patience

    for place in (f"corpora/{name}", f"corpora/{name}.zip"):
        with suppress(LookupError):
            nltk.data.find(place)
            return
    before, downloader.NETWORK_TIMEOUT = downloader.NETWORK_TIMEOUT, patience()
    try:
        done, why = nltk.download(name, quiet=True), "the download failed"
    except Exception as error:  # of the XML that something else sent in its place, for one
        done, why = False, f"{type(error).__name__}: {error!s:.200}"
    finally:
        downloader.NETWORK_TIMEOUT = before
    if not done:
        raise OSError(no_network(f"could not fetch NLTK's corpus {name!r}", why))


def split(texts: list[str]) -> tuple[list[str], list[str]]:
    """Texts to train on, and the held-out ones: of 41 the last."""
    return [text for i, text in enumerate(texts) if i % 41 != 40], texts[40::41]
