"""Texts to train on, which the kit does not ship."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from kit.base import shipped, texts
from kit.data.prose import tidy

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

NLTK = ("brown", "abc", "movie_reviews", "webtext", "state_union", "inaugural")


def corpus(source: str | Path) -> list[str]:
    """Texts to train on, which the kit does not ship.

    Args:
        source: a file of one text a line, or of JSON lines with a "text" (``.jsonl``,
            ``.jsonl.gz``), or the word ``"nltk"`` for the English corpora of NLTK that the shipped
            dictionaries are from (fetched once by ``nltk.download``, and put right by
            :func:`kit.data.tidy`).

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
        return [tidy(text) for text in found]
    file = Path(source)
    if not file.exists():
        raise FileNotFoundError(f"source={str(source)!r}: give a file of texts, or 'nltk'")
    return texts.read(file, paragraphs=False)


def browsing(
    model: TransformerBridge, source: str | Path | None = None, tokens: int = 400_000, context: int = 128
) -> Tensor:
    """Rows of text to look at latents on: many and mixed, so that rare latents show themselves too.

    Args:
        source: as :func:`corpus` takes it: ``"nltk"`` fetches 21 MB, once. None takes NLTK's
            corpora where they are on this machine, and asks no network: else the texts that the
            kit ships (:func:`kit.data.texts`, 38,000 tokens).
        tokens: at most so many, drawn from all of the text; a store of 400,000 takes minutes.
        context: tokens a row.

    Returns:
        LongTensor ``[rows, context]``, the same rows for the same source.

    Raises:
        ValueError: fewer than one row of tokens; else as :func:`corpus` and :func:`kit.sae.pack`.
    """
    import torch

    from kit.models.tokens import pack

    if not tokens >= context:
        raise ValueError(f"tokens={tokens!r}: a row alone has {context}")
    if source is None and all(map(_here, NLTK)):
        source = "nltk"
    some = shipped.texts() if source is None else corpus(source)
    rows = pack(model, some, context)
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    return rows[drawn[: tokens // context].to(rows.device)]


def _here(name: str) -> bool:
    """Whether a corpus of NLTK is on this machine."""
    import nltk

    for place in (f"corpora/{name}", f"corpora/{name}.zip"):
        with suppress(LookupError):
            nltk.data.find(place)
            return True
    return False


def _nltk(name: str) -> None:
    """Fetch a corpus of NLTK, if it is not here.

    Raises:
        OSError: it cannot be fetched.
    """
    import nltk
    from nltk import downloader

    from kit.models.weights import no_network, patience

    if _here(name):
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
