"""Files that others made: only ordinary ones are opened, and what is wrong with one is said."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import kit
from course import rules
from course.room import machines
from course.studies import recovery
from kit.base import files, shards
from kit.models import lora
from kit.steering import gguf
from kit.steering.rank_one import Factor
from kit.widgets.gallery import sets
from kit.widgets.panel import files as panel_files
from kit.widgets.panel.rating import Item, Ratings

pytestmark = pytest.mark.usefixtures("no_hang")
READERS: dict[str, Callable[[Path], Any]] = {
    "bytes": files.read_bytes,
    "text": files.read_text,
    "json": files.read_json,
    "header": files.header,
    "archive": lambda p: files.unpacked_at_most(p, 100),
    "vector": kit.SteeringVector.load,
    "factor": Factor.load,
    "vector of torch": lambda p: kit.SteeringVector.from_pt(p, 1),
    "control vector": gguf.read,
    "panel": panel_files.read,
    "set": sets.load,
    "adapter": lambda p: lora.read(p.parent),
    "ratings": lambda p: Ratings([Item("a", "0", False)], p),
    "notebook": rules.read,
    "records": recovery.read,
    "shard": lambda p: shards.read_rows(p, 2),
}


def ordinary_or(path: Path, what: str) -> Path:
    """A pipe that nobody writes to, a link to a device without an end, or a folder, at a path."""
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if what == "device" else path.with_name("nothing"))
    return path


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("what", ["pipe", "device", "folder", "link to nothing"])
def test_only_ordinary_files_are_opened(tmp_path: Path, reader: str, what: str) -> None:
    for name in (lora.CONFIG, lora.WEIGHTS):
        ordinary_or(tmp_path / name, what)
    path = ordinary_or(tmp_path / "it.safetensors", what)
    if reader == "set" and what == "folder":
        pytest.skip("a set is a folder")
    if what == "link to nothing" and reader in ("ratings", "records"):
        assert not getattr(READERS[reader](path), "answers", [])  # none yet
        return
    with pytest.raises(OSError):
        READERS[reader](path)


@pytest.mark.parametrize("what", ["pipe", "device", "folder"])
def test_a_machine_s_report_that_is_no_file_is_damaged(tmp_path: Path, what: str) -> None:
    ordinary_or(tmp_path / "one.json", what)
    (found,) = machines.machines(tmp_path)
    assert (found.name, found.word) == ("one", "damaged") and "ordinary file" in found.worst


def test_a_notebook_that_is_no_file_is_a_problem(tmp_path: Path) -> None:
    assert "ordinary file" in rules.problems(ordinary_or(tmp_path / "n.ipynb", "pipe"))[0]


def test_a_link_to_a_file_is_one(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1]")
    (tmp_path / "b.json").symlink_to(tmp_path / "a.json")
    assert files.read_json(tmp_path / "b.json") == [1]


def test_a_file_that_says_it_is_empty_is_not_read_without_end(tmp_path: Path) -> None:
    """Those of the kernel have the length 0 and content all the same."""
    told = Path("/proc/self/maps")
    if not told.is_file():
        pytest.skip("no /proc here")
    assert told.stat().st_size == 0 and len(files.read_bytes(told)) > 1000
    with pytest.raises(ValueError, match="goes on and on"):
        files.read_bytes(told, 1000)
    (tmp_path / "a").write_bytes(bytes(1001))
    for look in (files.read_bytes, files.size_at_most, files.unpacked_at_most):
        with pytest.raises(ValueError, match="is 0 MB long, at most 0 MB are read"):
            look(tmp_path / "a", 1000)


NOTEBOOK = '{"nbformat": 4, "nbformat_minor": 5, "metadata": {"kit": {}}, "cells": []}'


def test_what_an_editor_put_before_a_text_is_no_part_of_it(tmp_path: Path) -> None:
    for read, text in ((files.read_json, "{}"), (rules.read, NOTEBOOK), (recovery.read, "[]")):
        (tmp_path / "a").write_text(text, encoding="utf-8-sig")
        marked = read(tmp_path / "a")
        (tmp_path / "a").write_text(text, encoding="utf-8")
        assert read(tmp_path / "a") == marked


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("caf\u00e9".encode("latin-1"), "byte 0xe9 at 3"),
        ("text".encode("utf-16"), "UTF-16"),
        (b"\x80\x04\x95", "byte 0x80 at 0"),
    ],
)
def test_a_text_in_another_encoding_is_said_to_be(tmp_path: Path, raw: bytes, said: str) -> None:
    (tmp_path / "a").write_bytes(raw)
    for read in (files.read_json, recovery.read, rules.read, lambda p: Ratings([Item("a", "0", False)], p)):
        with pytest.raises(ValueError, match=f"{said}.*save it as UTF-8") as told:
            read(tmp_path / "a")
        assert str(tmp_path / "a") in str(told.value)


def test_a_key_that_stands_twice_is_found_in_no_time() -> None:
    keys = [f'"k{i}": 0' for i in range(200_000)]
    assert len(files.parse("{" + ",".join(keys) + "}", "it")) == 200_000
    start = time.process_time()
    with pytest.raises(ValueError, match="the key 'k199999' stands twice"):
        files.parse("{" + ",".join([*keys, keys[-1]]) + "}", "it")
    assert time.process_time() - start < 10  # comparing each with each takes an hour


def test_a_header_says_how_long_it_is_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "v.safetensors"
    about = {"format": "steering-kit-vector/1", "name": "x" * files.MOST_HEADER}
    save_file({"direction": torch.ones(4)}, path, about)
    for read in (files.header, kit.SteeringVector.load, panel_files.read):
        with pytest.raises(ValueError, match="its header claims"):
            read(path)


def test_a_vector_larger_than_any_is_not_read(tmp_path: Path) -> None:
    save_file({"direction": torch.ones(files.MOST_NUMBERS + 1, dtype=torch.float16)}, tmp_path / "big")
    with pytest.raises(ValueError, match=f"at most {files.MOST_NUMBERS} numbers"):
        files.shapes_at_most(tmp_path / "big", {"direction": 1})
    small = kit.SteeringVector(torch.ones(4), 1, "v").save(tmp_path / "v.safetensors")
    with safe_open(small, framework="pt") as file:
        about = file.metadata()
    save_file({"direction": torch.ones(files.MOST_NUMBERS + 1, dtype=torch.float16)}, small, about)
    with pytest.raises(ValueError, match=f"at most {files.MOST_NUMBERS} numbers"):
        kit.SteeringVector.load(small)


def test_ratings_are_not_written_over_something_else(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    for text in ("hello\n", "item\n", "a,b\n1,2\n", json.dumps({"a": 1})):
        path.write_text(text)
        with pytest.raises(ValueError, match="no CSV of ratings"):
            Ratings([Item("a", "0", False)], path)
    path.write_text("")
    assert Ratings([Item("a", "0", False)], path).answers == {}


@pytest.mark.parametrize("content", ['[{"a": 1}]', '[{"organism": 1, "arm": "melbo"}]', "{}", "[1]", '[{"arm": "x"}]'])
def test_what_is_no_list_of_records_is_said_to_be(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(ValueError, match="expected a list of records"):
        recovery.read(tmp_path / "r.json")
