"""What a reader calls latents, and which ones go together, in a JSON file: a part for each
dictionary, known by its weights. Knows no widget."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kit.base.files import read_json, whole
from kit.base.scratch import drop_parts, locked
from kit.sae.latents import Latents

_FORMAT = "steering-kit-labels/1"


class Labels:
    """Labels and lists of one dictionary's latents.

    Attributes:
        of: the label of each latent that has one.
        lists: latents by the name of a list, in the order in which they came.
    """

    def __init__(self, dictionary: Latents, path: str | Path | None) -> None:
        """Read what the file holds of this dictionary; None keeps nothing beyond the session.

        Raises:
            ValueError: the file is none of labels; OSError: it cannot be read.
        """
        self.path = None if path is None else Path(path)
        self._key, self._name, self._n = dictionary.digest, dictionary.name, len(dictionary)
        self.of: dict[int, str] = {}
        self.lists: dict[str, list[int]] = {}
        if self.path is not None:
            drop_parts(self.path.parent)
            self._read(self.path)

    def label(self, latent: int, text: str) -> None:
        """Name a latent; an empty text takes its label away.

        Raises:
            OSError: the file cannot be written.
        """
        with self._changing():
            self.of.pop(latent, None)
            if text.strip():
                self.of[latent] = text.strip()

    def put(self, latent: int, name: str, on: bool = True) -> None:
        """Put a latent on a list, or take it off; a list that is empty is gone.

        Raises:
            ValueError: a list without a name; OSError: the file cannot be written.
        """
        if not name.strip():
            raise ValueError("name is empty: give the list a name")
        with self._changing():
            rest = [i for i in self.lists.pop(name.strip(), []) if i != latent]
            if rest or on:
                self.lists[name.strip()] = [*rest, latent] if on else rest

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Change what the file holds now: another kernel may have written, too."""
        if self.path is None:
            yield
            return
        with locked(self.path):
            kept = self._read(self.path)
            yield
            labels = {str(i): text for i, text in sorted(self.of.items())}
            kept[self._key] = {"name": self._name, "labels": labels, "lists": self.lists}
            with whole(self.path) as part:
                text = json.dumps({"format": _FORMAT, "dictionaries": kept}, indent=1, ensure_ascii=False)
                part.write_text(text + "\n", encoding="utf-8")

    def _read(self, path: Path) -> dict[str, Any]:
        """All of the file, its part of this dictionary taken over."""
        if not path.exists():
            return {}
        try:
            found = read_json(path)
            if found["format"] != _FORMAT:
                raise ValueError(f"format {found['format']!r:.40}, expected {_FORMAT!r}")
            kept = dict(found["dictionaries"])
            mine = kept.get(self._key, {"labels": {}, "lists": {}})
            of = {int(i): str(text) for i, text in mine["labels"].items()}
            lists = {str(name): [int(i) for i in some] for name, some in mine["lists"].items()}
            if not all(0 <= i < self._n for i in (*of, *(i for some in lists.values() for i in some))):
                raise ValueError(f"a latent outside of 0 to {self._n - 1}")
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no file of labels, or damaged: {error!s:.200}") from error
        self.of, self.lists = of, lists
        return kept
