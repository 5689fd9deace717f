"""Texts to train on from a file of somebody's: lines, paragraphs or JSON lines, packed or not."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from kit.base.files import decoded, must_exist, parse_object

MOST_TEXT = 2**24  # bytes of one line
MOST_CORPUS = 2**32  # bytes of a whole file, unpacked
_TIMES = 64  # its size that a packed one may unpack to, beside some megabytes; prose has 3
# what holds texts that a reader of lines would not find
_OTHERS = ".arrow .bz2 .csv .doc .docx .htm .html .json .odt .parquet .pdf .tsv .xls .xlsx .xml .xz .zip .zst"


def read(path: str | Path, *, paragraphs: bool) -> list[str]:
    """Of ``.jsonl`` the field ``text`` of each line; of any other file its lines, or its
    paragraphs, which empty lines separate. ``.gz`` is unpacked; empty texts are left out.

    Raises:
        OSError: there is no ordinary file. ValueError: a table or an office's file, no text in
            UTF-8 or none at all, a line that is no such JSON or longer than `MOST_TEXT`, more than
            `MOST_CORPUS` bytes, or a packed file that is damaged or a bomb.
    """
    path = Path(path)
    kind = Path(path.name.removesuffix(".gz")).suffix.lower()
    if kind in _OTHERS.split():
        raise ValueError(f'{path}: a {kind} is no list of texts: save it as .jsonl, each line {{"text": ...}}')
    lines = _lines(path)
    if kind == ".jsonl":
        found = [_text(line, f"{path}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    elif paragraphs:
        found = ["\n".join(some).strip() for full, some in groupby(lines, lambda line: bool(line.strip())) if full]
    else:
        found = [line.strip() for line in lines]
    if not any(found):
        raise ValueError(f"{path}: it holds no text")
    return [text for text in found if text]


def _lines(path: Path) -> Iterator[str]:
    size = must_exist(path)
    packed = path.suffix == ".gz"
    left = most = min(MOST_CORPUS, _TIMES * size + 2**24) if packed else MOST_CORPUS
    with gzip.open(path) if packed else open(path, "rb") as file:
        number = 0
        while line := _line(file, path):
            number, left = number + 1, left - len(line)
            if left < 0:
                raise ValueError(f"{path} goes on after {most / 2**20:,.0f} MB: more than texts of its size are read")
            if b"\0" in line:
                raise ValueError(f"{path}, line {number}: a byte 0: this is no text in UTF-8")
            yield from decoded(line, f"{path}, line {number}").rstrip("\r\n").split("\r")


def _line(file: gzip.GzipFile | io.BufferedReader, path: Path) -> bytes:
    try:
        line = file.readline(MOST_TEXT + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged or not packed: {error}") from error
    if len(line) > MOST_TEXT:
        raise ValueError(f"{path}: a line of more than {MOST_TEXT} bytes")
    return line


def _text(line: str, where: str) -> str:
    try:
        text = parse_object(line, where)["text"]
    except (ValueError, KeyError) as error:
        raise ValueError(f"{where}: no JSON object with a field 'text' ({error})") from error
    if not isinstance(text, str):
        raise ValueError(f"{where}: the field 'text' is no text")
    return text
