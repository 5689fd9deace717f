"""Prose as people write it, of corpora that were cut into words or set in lower case."""

from __future__ import annotations

import re

_QUOTES = ((re.compile(r"``"), '"'), (re.compile(r"(?<!\d)''"), '"'))
_DOUBLED = re.compile(r" ?(?<![;?!,])([;?!,]) ?\1(?! ?[;?!,])")  # Brown says these twice
_SPACED = re.compile(r"[ \t]+")
_JOINED = (
    (re.compile(r"(?<=\w) (n't|'(?:s|re|ve|ll|d|m))\b", re.IGNORECASE), r"\1"),  # did n't, she 's
    (re.compile(r"(?<=[^\s.]) ([.,;:?!](?! ?\.))(?=[\s\"')\]]|$)"), r"\1"),  # the end . The next
    (re.compile(r"(?<=\S) ([)\]])"), r"\1"),
    (re.compile(r"([(\[]) (?=\S)"), r"\1"),
    (re.compile(r"(?<=\w)\. (com|net|org)\b"), r".\1"),
)
_START = re.compile(r"((?:^|\n|(?<!\b[A-Za-z])(?:\.[\"')\]]*|[?!][)\]]*)(?=\s))\s*[\"'(\[]*)([a-z])")
_INITIALS = re.compile(r"\b[a-z]\.(?: ?[a-z]\.)+")  # l. a., u.s.
_I = re.compile(r"(?<![\w.'-])i(?=(?:'(?:m|d|ll|ve))?(?:[\s,;:?!]|$))")


def tidy(text: str) -> str:
    """A text with its punctuation where people put it, and sentences that begin with a capital.

    Joined are marks that stand apart from their words (did n't, ( so ), the end .); quotes of two
    backticks or apostrophes become straight ones; a mark that Brown says twice (;;) stands once.
    A text without capitals, as the film reviews are, gets them at the start of sentences, in
    initials and in I; its names stay small. Text that needs nothing of this is left alone, but for
    runs of spaces.
    """
    for found, instead in _QUOTES:
        text = found.sub(instead, text)
    text = _SPACED.sub(" ", text)
    text = "\n".join(map(_paired, text.split("\n")))
    for found, instead in (_DOUBLED, r"\1"), *_JOINED:
        text = found.sub(instead, text)
    letters = sum(map(str.isalpha, text))
    if letters and sum(map(str.isupper, text)) < letters / 500:
        text = _INITIALS.sub(lambda m: m[0].upper(), text)
        text = _I.sub("I", text)
        text = _START.sub(lambda m: m[1] + m[2].upper(), text)
    return text


def _paired(line: str) -> str:
    """A line whose quotes, if any stands between two spaces, are drawn to what they enclose."""
    if ' " ' not in f" {line} ":
        return line
    parts = line.split('"')
    if len(parts) % 2 == 0:  # one is missing: nobody can tell which
        return line
    return parts[0] + "".join('"' + (part.strip() if i % 2 else part) for i, part in enumerate(parts[1:], 1))
