"""What the kit ships, from contrast sets to crosscoders: plain files, read on demand."""
from __future__ import annotations

import gzip
import json
import zlib
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from kit.untrusted import parse_object, read_json

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from kit.crosscoder import Crosscoder
    from kit.sae import Dictionary
    from kit.sae.paired import Pair
    from kit.vectors import SteeringVector

MOST_TEXT = 2**24  # characters of one text of a corpus
NLTK = ("brown", "abc", "movie_reviews", "webtext", "state_union", "inaugural")


def path(*parts: str) -> Path:
    """The path of a shipped file.

    Raises:
        FileNotFoundError: no such file; the text lists what its folder holds.
        ValueError: a path that leaves the folder of shipped files.
    """
    if any(p.is_absolute() or p.drive or ".." in p.parts or "\0" in str(p)
           for p in map(Path, parts)):  # fmt: skip
        raise ValueError(f"parts={parts!r}: give names below the folder of shipped files")
    here = Path(__file__).parent
    root = here / "_data" if (here / "_data").is_dir() else here.parent / "data"
    found = root.joinpath(*parts)
    if not found.exists():
        folder = found.parent
        names = sorted(p.name for p in folder.glob("*")) if folder.is_dir() else []
        listing = f"it holds {', '.join(names)}" if names else "that folder is missing"
        raise FileNotFoundError(f"no shipped file {'/'.join(parts)!r}; {listing}")
    return found


@cache
def _read(*parts: str) -> Any:
    return read_json(path(*parts))


def contrast_names() -> list[str]:
    """Names of the shipped contrast sets."""
    return sorted(p.stem for p in path("contrast").glob("*.json"))


def contrast(name: str) -> dict[str, Any]:
    """A contrast set: ``pairs`` (positive, negative), ``probes``, ``chat_prompts`` and titles.

    Raises:
        ValueError: no set of that name.
    """
    if name not in contrast_names():
        raise ValueError(f"name={name!r}: the contrast sets are {', '.join(contrast_names())}")
    return _read("contrast", f"{name}.json")


def neutral_texts() -> list[str]:
    """Paragraphs of plain prose on which norms and side effects are measured."""
    return _read("neutral.json")["texts"]


@cache
def texts() -> list[str]:
    """Some sixty thousand tokens of many kinds that the embedded model wrote (``data/texts``): what
    the notebooks look at dictionaries on, offline. Nothing in it is true but by chance."""
    with gzip.open(path("texts", "sample.json.gz"), "rt", encoding="utf-8") as file:
        return json.load(file)


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
            found += [" ".join(words.words(i)) if name == "brown" else words.raw(i)
                      for i in words.fileids()]  # fmt: skip
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

    from kit.weights import no_network, patience

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


def dictionary_names() -> list[str]:
    """Names of the shipped dictionaries."""
    return sorted(p.parent.name for p in path("saes").glob("*/cfg.json"))


def dictionary(name: str, model: TransformerBridge | None = None) -> Dictionary:
    """A shipped dictionary, trained on the embedded model (see ``data/saes/README.md``).

    Args:
        model: refused where the dictionary does not fit it.

    Raises:
        ValueError: no dictionary of that name, or as :meth:`kit.sae.Latents.check`.
    """
    from kit.sae import load

    if name not in dictionary_names():
        raise ValueError(f"name={name!r}: the shipped dictionaries are "
                         f"{', '.join(dictionary_names())}")  # fmt: skip
    return load(path("saes", name), model=model)


def crosscoder_names() -> list[str]:
    """Names of the shipped crosscoders."""
    return sorted(p.stem for p in path("crosscoder").glob("*.safetensors"))


def crosscoder(name: str, models: Pair | None = None) -> Crosscoder:
    """A shipped crosscoder of the embedded model and a model organism (``data/crosscoder``).

    Args:
        models: the two; refused where it does not fit them.

    Raises:
        ValueError: no crosscoder of that name, or as :meth:`kit.crosscoder.Crosscoder.check`.
    """
    from kit.crosscoder import Crosscoder

    if name not in crosscoder_names():
        raise ValueError(f"name={name!r}: the shipped crosscoders are "
                         f"{', '.join(crosscoder_names())}")  # fmt: skip
    return Crosscoder.load(path("crosscoder", f"{name}.safetensors"), models)


def vector_names() -> list[str]:
    """Names of the shipped steering vectors."""
    return sorted(p.stem for p in path("vectors").glob("*.safetensors"))


def vector(name: str) -> SteeringVector:
    """A shipped steering vector, fitted on the embedded model (see ``data/vectors/README.md``).

    Raises:
        ValueError: no vector of that name.
    """
    from kit.vectors import SteeringVector

    if name not in vector_names():
        raise ValueError(f"name={name!r}: the shipped vectors are {', '.join(vector_names())}")
    return SteeringVector.load(path("vectors", f"{name}.safetensors"))
