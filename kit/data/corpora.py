"""Texts to train on, which the kit does not ship."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from kit.base import texts

NLTK = ("brown", "abc", "movie_reviews", "webtext", "state_union", "inaugural")


def corpus(source: str | Path) -> list[str]:
    """Texts to train on, which the kit does not ship.

    Args:
        source: a file of one text a line, or of JSON lines with a "text" (``.jsonl``,
            ``.jsonl.gz``), or the word ``"nltk"`` for the English corpora of NLTK that the shipped
            dictionaries are from (fetched once by ``nltk.download``).

    Raises:
        FileNotFoundError: no such file; OSError: NLTK's corpora are not here and cannot be
            fetched; OSError, ValueError: as :func:`kit.base.texts.read`.
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
    if not file.exists():
        raise FileNotFoundError(f"source={str(source)!r}: give a file of texts, or 'nltk'")
    return texts.read(file, paragraphs=False)


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
