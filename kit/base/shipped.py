"""Where shipped files lie, and the plain texts among them."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

from kit.base.files import read_json


def path(*parts: str) -> Path:
    """The path of a shipped file.

    Raises:
        FileNotFoundError: no such file; the text lists what its folder holds.
        ValueError: a path that leaves the folder of shipped files.
    """
    if any(p.is_absolute() or p.drive or ".." in p.parts or "\0" in str(p) for p in map(Path, parts)):
        raise ValueError(f"parts={parts!r}: give names below the folder of shipped files")
    package = Path(__file__).resolve().parents[1]  # a wheel has the files within, a clone beside it
    root = package / "_data" if (package / "_data").is_dir() else package.parent / "data"
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
