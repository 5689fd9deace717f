"""Texts of somebody's file: what is read, and what is refused with a reason."""

from __future__ import annotations

import gzip
import os
import resource
from pathlib import Path

import pytest

from kit import data
from kit.base import texts

LINES = b'{"text": "one\\ntwo"}\n{"text": "three"}\n'


def wrote(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_lines_paragraphs_and_json_lines(tmp_path: Path) -> None:
    plain = wrote(tmp_path / "a.txt", b"one\nline two\n\n\n two \n")
    assert texts.read(plain, paragraphs=True) == ["one\nline two", "two"]
    assert texts.read(plain, paragraphs=False) == ["one", "line two", "two"]
    told = wrote(tmp_path / "a.jsonl", b'{"text": "a\\n\\nb", "id": 1}\n\n{"text": ""}\n')
    packed = wrote(tmp_path / "b.jsonl.gz", gzip.compress(LINES))
    for paragraphs in (True, False):
        assert texts.read(told, paragraphs=paragraphs) == ["a\n\nb"]
        assert texts.read(packed, paragraphs=paragraphs) == ["one\ntwo", "three"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_what_editors_put_in_is_no_text(tmp_path: Path, end: bytes, mark: bytes) -> None:
    plain = wrote(tmp_path / "a.txt", mark + "über\nzwei\n\ndrei".encode().replace(b"\n", end))
    assert texts.read(plain, paragraphs=True) == ["über\nzwei", "drei"]
    assert data.corpus(plain) == ["über", "zwei", "drei"]
    assert texts.read(wrote(tmp_path / "a.jsonl", mark + LINES.replace(b"\n", end)), paragraphs=True)[1] == "three"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"text": "one"}\n[1]\n', "line 2: no JSON object"),
        ("a.jsonl", b'{"text": 3}\n', "line 1: the field 'text' is no text"),
        ("a.jsonl", b'{"text": "a", "text": "b"}\n', "line 1: .*twice"),
        ("a.txt", b"\n\n \n", "holds no text"),
        ("a.txt", b"one\ncaf\xe9\n", r"line 2 is not UTF-8 \(byte 0xe9 at 3.*save it as UTF-8"),
        ("a.jsonl", '{"text": "a"}\n'.encode("utf-16"), "line 1.*UTF-8"),
        ("a.txt", b"one\0two", "line 1: a byte 0"),
        ("a.csv", b"text,label\none,1\n", "a .csv is no list of texts: save it as .jsonl"),
        ("a.TSV", b"text\tlabel\none\t1\n", "no list of texts"),
        ("a.csv.gz", gzip.compress(b"text\none\n", mtime=0), "no list of texts"),
        ("a.json", b'["one", "two"]', "no list of texts"),
        ("a.parquet", b"PAR1", "no list of texts"),
        ("a.txt.gz", b"plain", "damaged or not packed"),
        ("a.txt.gz", gzip.compress(b"text" * 99, mtime=0)[:-12], "damaged or not packed"),
        (None, b"", "there is no such file"),
    ],
)
def test_a_file_that_holds_no_texts_is_named(tmp_path: Path, name: str | None, content: bytes, said: str) -> None:
    file = wrote(tmp_path / name, content) if name else tmp_path / "absent.txt"
    for paragraphs in (True, False):
        with pytest.raises((ValueError, FileNotFoundError), match=said) as told:
            texts.read(file, paragraphs=paragraphs)
        assert file.name in str(told.value)


@pytest.mark.parametrize("line", [b"a", b"a" * 99 + b"\n", b'{"text": "aaaaaaaaaaaaaaaaaaaaaaaaa"}\n'])
def test_a_packed_bomb_takes_no_memory(tmp_path: Path, line: bytes) -> None:
    packed, piece = tmp_path / "a.jsonl.gz", line * (2**20 // len(line))
    with gzip.open(packed, "wb", 9) as file:
        for _ in range(200):
            file.write(piece)
    assert packed.stat().st_size < 2**21
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="goes on after|line of more than"):
        texts.read(wrote(packed.with_name("a.txt.gz"), packed.read_bytes()), paragraphs=True)
    if b"text" in line:
        with pytest.raises(ValueError, match="goes on after"):
            data.corpus(packed)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 2**10  # kilobytes


def test_a_pipe_is_no_corpus(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    for read in (data.corpus, lambda file: texts.read(file, paragraphs=True)):
        with pytest.raises(OSError, match="ordinary file"):
            read(tmp_path / "a.txt")
