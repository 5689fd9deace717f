"""Kept files: values there and back, files that lie, and the shipped ones."""

from __future__ import annotations

import ast
import json
import math
from dataclasses import is_dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import kit
from course import runner
from course.catch_up import CatchUpError, files, making, running
from course.catch_up.__main__ import main
from course.catch_up.book import Book
from course.catch_up.files import FORMAT, Entry, Shelf, file_name, read, shipped, stale, stamp, write
from course.catch_up.running import catch_up
from course.catch_up.values import CLASSES, CannotStore, Reader, Writer
from course.studies.elicitation import Choice
from kit.search.radius import Radius
from tests.course.test_catch_up import book, shelf

# --- values -----------------------------------------------------------------------------------


def there_and_back(value: Any, **names: Any) -> Any:
    writer = Writer({id(v): k for k, v in names.items()})
    text = json.dumps(writer.value(value))
    return Reader(lambda key: writer.tensors[key], names).value(json.loads(text))


VALUES: list[Any] = [
    None,
    True,
    -3,
    10**30,
    0.1,
    math.inf,
    "a\u2028<b>",
    [1, [2.5, None]],
    (1, ("x",)),
    {1, 2},
    frozenset({"a"}),
    range(2, 9, 3),
    slice(-3, None),
    {"a": 1, 2: [3], (1, "b"): {}, None: 0},
    Radius(1.5, 0.25, 0.5, [(1.0, 0.5, [0.1, 0.2])]),
    Choice(1, 2, 3),
    {"rows": [Choice(0, 4, 1)], "r": Radius(1.0, 2.0, 3.0, [])},
]


@pytest.mark.parametrize("value", VALUES, ids=lambda v: type(v).__name__)
def test_plain_values_come_back_equal_and_of_their_type(value: Any) -> None:
    back = there_and_back(value)
    assert back == value and type(back) is type(value)


def test_not_a_number_comes_back() -> None:
    assert math.isnan(there_and_back(math.nan))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_come_back_with_every_bit(dtype: torch.dtype) -> None:
    value = (torch.randn(3, 4, generator=torch.Generator().manual_seed(0)) * 9).to(dtype)
    for one in (value, value.T, value[:0], value[0, 0]):
        back = there_and_back([one])[0]
        assert back.dtype == dtype and back.shape == one.shape and torch.equal(back, one)


def test_a_generator_goes_on_where_it_stood() -> None:
    rng = torch.Generator().manual_seed(3)
    torch.rand(7, generator=rng)
    back = there_and_back(rng)
    assert torch.equal(torch.rand(5, generator=back), torch.rand(5, generator=rng))


def test_tables_come_back() -> None:
    table = pd.DataFrame(
        {"n": [1, 2], "x": [0.5, math.nan], "s": ["a", None], "o": [[1], "b"], "b": [True, False]},
        index=pd.Index([3, 5], name="row"),
    )
    multi = table[["n", "x"]].set_axis(pd.MultiIndex.from_tuples([("a", 1), ("b", 2)]), axis=1)
    for one in (table, table.reset_index(), multi, pd.DataFrame({"a": []}), multi.T):
        pd.testing.assert_frame_equal(there_and_back(one), one)
    pd.testing.assert_series_equal(there_and_back(table["x"]), table["x"])
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    np.testing.assert_array_equal(there_and_back(array), array)
    scalar = there_and_back(np.float64(0.1))
    assert scalar == np.float64(0.1) and isinstance(scalar, np.float64)


def test_a_steering_vector_comes_back_with_every_bit() -> None:
    v = kit.SteeringVector(
        torch.randn(9, generator=torch.Generator().manual_seed(1)),
        3,
        "v",
        "melbo",
        1.5,
        "abc",
        {"score": 0.5, "list": [1]},
    )
    back = there_and_back(v)
    assert torch.equal(back.direction, v.direction)
    assert (back.layer, back.name, back.method, back.norm, back.fingerprint, back.metadata) == (
        v.layer,
        v.name,
        v.method,
        v.norm,
        v.fingerprint,
        v.metadata,
    )


def test_factors_of_a_band_come_back(llama: Any) -> None:
    from kit.search import cpe

    found = cpe.fit(llama, "one two three four", [1, 2], 3, n_factors=2, iterations=1, radius=1.0, read=slice(-2, None))
    back = there_and_back(found, model=llama)
    assert torch.equal(back.phi, found.phi) and back.band.model is llama
    assert torch.equal(back.band.piece.before, found.band.piece.before)
    assert torch.equal(back.band.piece.weights, found.band.piece.weights)
    assert torch.equal(back.factors[1].reads, found.factors[1].reads)


def test_what_cannot_be_stored_is_written_as_the_name_it_has() -> None:
    piece = object()
    assert there_and_back([piece, 1], piece=piece)[0] is piece
    with pytest.raises(CannotStore, match=r"builtins\.object"):
        there_and_back([piece])


class Odd(dict):  # type: ignore[type-arg]
    pass


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (Odd(), "Odd"),
        (lambda: 1, "function"),
        (Path("x"), "Path"),
        (b"x", "bytes"),
        ({Choice(1, 2, 3): 1}, "found by identity"),
        (torch.ones(1, requires_grad=True), "requires_grad"),
        (torch.nn.Parameter(torch.ones(1)), "Parameter"),
        (1 + 2j, "complex"),
        (pd.DataFrame({"t": pd.to_datetime(["2020-01-01"])}), "DataFrame, or a column of such"),
        (torch.ones(1, dtype=torch.complex64), "complex64"),
    ],
)
def test_other_kinds_are_refused(value: Any, why: str) -> None:
    with pytest.raises(CannotStore, match=why):
        there_and_back([value])


def test_what_is_nested_without_end_is_refused() -> None:
    nested: Any = []
    nested.append(nested)
    with pytest.raises(CannotStore, match="32 levels"):
        there_and_back(nested)


def test_every_class_is_a_dataclass_of_the_kit() -> None:
    for name, module in CLASSES.items():
        cls = getattr(import_module(module), name)
        assert is_dataclass(cls) and cls.__module__ == module, name


# --- files ------------------------------------------------------------------------------------

CELLS = (
    "import torch\nn = 3",
    ("x = torch.arange(n) + 1.5  # slow", True),
    ("y = x.tolist()", True),
    "## Here",
    "x, y, n",
)


@pytest.fixture
def made(tmp_path: Path) -> tuple[Book, Path]:
    """A notebook with two tagged cells, and its kept file."""
    of = book(*CELLS)
    path = tmp_path / file_name(of.name, small=False)
    making.make(of, path)
    return of, path


def test_a_kept_file_gives_what_the_cells_give_and_runs_none(
    made: tuple[Book, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    of, path = made
    ran: list[int] = []
    plain = running.Replay.run
    monkeypatch.setattr(running.Replay, "run", lambda self, cell: (ran.append(cell.number), plain(self, cell)))
    namespace: dict[str, Any] = {}
    card = catch_up(of, 1, namespace, shelf(of, path.parent))
    assert card.loaded == ("x", "y") and card.computed == ("torch", "n") and ran == [0]
    assert torch.equal(namespace["x"], torch.tensor([1.5, 2.5, 3.5]))
    assert namespace["y"] == [1.5, 2.5, 3.5] and namespace["n"] == 3


def test_of_a_tagged_cell_functions_and_imports_are_run(tmp_path: Path) -> None:
    slow = "import math as m\nfrom math import floor\nclass C:\n    k = 2\ndef f(i):\n    return i + a\na = b = [m.pi]"
    of = book("a = 0", (slow, True), "b.append(f([C.k]))", "## Here", "a")
    making.make(of, tmp_path / "77.safetensors")
    entries = read(tmp_path / "77.safetensors", of.name, small=False)
    assert [list(e.names) for e in entries.values()] == [["a", "b"]]
    namespace: dict[str, Any] = {}
    card = catch_up(of, 1, namespace, shelf(of, tmp_path))
    assert namespace["a"] == [math.pi, [2, math.pi]] and namespace["floor"] is math.floor
    assert namespace["a"] is namespace["b"] and card.loaded == ("a", "b")


def test_what_a_kept_value_shares_with_an_earlier_one_stays_shared(tmp_path: Path) -> None:
    of = book("a = {'n': [1]}\nt = [0]", ("b = {'of': a, 't': t}", True), "a['n'].append(2)", "## Here", "b")
    making.make(of, tmp_path / "77.safetensors")
    namespace: dict[str, Any] = {}
    assert catch_up(of, 1, namespace, shelf(of, tmp_path)).loaded == ("b",)
    assert namespace["b"]["of"] is namespace["a"] and namespace["b"] == {"of": {"n": [1, 2]}, "t": [0]}


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        (("a = [1]\nb = 0", ("c = a.append(2)", True)), "cell 1 is tagged and changes a, which it does not make"),
        (("import torch\nr = torch.Generator()", ("c = torch.rand(2, generator=r)", True)), "changes r, which"),
        (("a = [1]", ("a.append(2)", []), ("c = 1", True)), "cell 1 is tagged and changes a, which"),
        ((("c = 1\nf = open", True),), "cell 0: 'f' cannot be kept, it holds builtins.builtin_function"),
        ((("if len(''):\n    c = 1", True),), "cell 0: it ran, and 'c' is not there"),
        ((("c = 1 / 0", True),), "cell 0, which makes c, failed: ZeroDivisionError"),
    ],
)
def test_a_tag_that_would_lose_something_is_an_error(cells: Any, told: str, tmp_path: Path) -> None:
    path = tmp_path / "77.safetensors"
    with pytest.raises(CatchUpError, match=f"77_made_up, {told}" if told.startswith("cell") else told):
        making.make(book(*cells, "## Here", "c"), path)
    assert not path.exists()


def test_items_set_by_a_tagged_cell_are_kept(tmp_path: Path) -> None:
    of = book("a = {}", ("a['x'] = 1", True), ("for i in range(2):\n    a[i] = i", True), "## Here", "a")
    making.make(of, tmp_path / "77.safetensors")
    namespace: dict[str, Any] = {}
    card = catch_up(of, 1, namespace, shelf(of, tmp_path))
    assert namespace["a"] == {"x": 1, 0: 0, 1: 1} and card.loaded == ("a", "i")


def test_what_is_stored_already_is_not_made_again(made: tuple[Book, Path]) -> None:
    of, path = made
    entries = read(path, of.name, small=False)
    x, y = entries.values()
    tampered = {"tensor": "t"}, {"list": [7]}
    write(
        path, of.name, [replace(x, names={"x": tampered[0]}), replace(y, names={"y": tampered[1]})], TENSOR, small=False
    )
    making.make(of, path)
    namespace: dict[str, Any] = {}
    catch_up(of, 1, namespace, shelf(of, path.parent))
    assert namespace["y"] == [7] and torch.equal(namespace["x"], torch.zeros(2))


def test_no_half_written_file_is_left(made: tuple[Book, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    of, path = made
    before = path.read_bytes()
    assert [p.name for p in path.parent.iterdir()] == ["77.safetensors"]

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        making.make(of, path, max_mb=0)
    assert [p.name for p in path.parent.iterdir()] == ["77.safetensors"]
    assert path.read_bytes() == before


def changed(cell: int, old: str, new: str) -> Book:
    cells: list[Any] = list(CELLS)
    cells[cell] = (cells[cell][0].replace(old, new), True) if cell in (1, 2) else cells[cell].replace(old, new)
    assert cells[cell] != CELLS[cell]
    return book(*cells)


def test_changed_code_is_run_and_the_file_is_stale(made: tuple[Book, Path]) -> None:
    of, path = made
    assert stale(of, path) == []
    told = book(*CELLS[:4], "## More text", CELLS[4])
    assert stale(told, path) == []  # only code counts
    new = changed(1, "1.5", "2.5")
    namespace: dict[str, Any] = {}
    card = catch_up(new, 1, namespace, shelf(new, path.parent))
    assert card.loaded == () and namespace["y"] == [2.5, 3.5, 4.5]
    old = [line for line in stale(new, path) if " changed since " in line]
    assert [line.split(" changed since ")[1].split(" was")[0] for line in old] == ["x", "y"]
    assert "77.safetensors: cell 2 keeps y, which the file does not hold: run python -m" in stale(new, path)[-1]
    later = changed(2, "tolist()", "sum()")
    assert [line[:22] for line in stale(later, path)] == ["77.safetensors: cell 2"] * 2
    before = changed(0, "n = 3", "n = 3\nprint(n)")
    assert len(stale(before, path)) == 4  # any code before it may have made it


def test_imports_answers_checks_and_layout_change_no_hash(made: tuple[Book, Path]) -> None:
    of, path = made
    same = [
        changed(0, "import torch", "import json\nfrom os import (path,\n    sep)\nimport torch"),
        changed(0, "n = 3", "n = (3)  # three"),
        changed(1, "x = torch.arange(n) + 1.5  # slow", "from math import pi\nx = (torch.arange(\n n) + 1.5)"),
    ]
    for new in same:
        assert stale(new, path) == []
        assert catch_up(new, 1, {}, shelf(new, path.parent)).loaded == ("x", "y")
    function = "def f():\n    import {} as m\n    return m"
    assert len({digest(function.format(module)) for module in ("kit.activations", "kit.models.activations")}) == 1
    stub = "def step(x):\n    raise NotImplementedError\nexercises.check('99.1', step, n=n)"
    solved = "def step(x):\n    return x\nexercises.check('99.1', step)"
    assert digest(stub) == digest(solved) != digest("def step(x):\n    return x")
    assert len({digest(code) for code in ("", "'a'", "a", "1", "1.0", "None", "...", "a[1]", "a(1)", "f'{a}'")}) == 10


def digest(before: str) -> str:
    of = book(before, ("x = 1", True)) if before else book(("x = 1", True))
    return of.digest(of.kept[0])


def test_a_cell_of_which_nothing_is_kept_is_no_part_of_a_hash(made: tuple[Book, Path]) -> None:
    of, path = made
    shown = book(CELLS[0], ("print(n)", []), *CELLS[1:])
    assert stale(shown, path) == [] and len(stale(book(CELLS[0], "print(n)", *CELLS[1:]), path)) == 4


def test_the_file_can_be_stamped_for_code_that_makes_no_other_values(made: tuple[Book, Path]) -> None:
    of, path = made
    new = changed(1, "torch.arange(n)", "torch.arange(0, n)")
    assert stale(new, path)
    stamp(new, path)
    assert stale(new, path) == [] and stale(of, path) != []
    namespace: dict[str, Any] = {}
    assert catch_up(new, 1, namespace, shelf(new, path.parent)).loaded == ("x", "y")
    assert torch.equal(namespace["x"], torch.tensor([1.5, 2.5, 3.5]))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"77\.safetensors: cell 1 does not keep x, as the file has it: run"):
        stamp(changed(1, "x = ", "z = x = "), path)
    assert path.read_bytes() == before


def test_too_much_is_left_out_by_seconds_for_a_byte(tmp_path: Path) -> None:
    of = book("import torch", ("a = torch.zeros(1000)", True), ("b = a.sum()", True), "## Here", "a, b")
    said: list[str] = []
    making.make(of, tmp_path / "77.safetensors", max_mb=0.001, report=said.append)
    kept = read(tmp_path / "77.safetensors", of.name, small=False)
    assert [list(entry.names) for entry in kept.values()] == [["b"]]
    assert any("cell 1: a not stored" in line for line in said)


def test_this_hosts_own_file_comes_before_the_shipped_one(
    made: tuple[Book, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    of, path = made
    own = tmp_path_factory.mktemp("own")
    write(own / path.name, of.name, [entry(of, names={"x": -1})], {}, small=False)
    namespace: dict[str, Any] = {}
    catch_up(of, 1, namespace, shelf(of, path.parent, own))
    assert namespace["x"] == -1 and namespace["y"] == [1.5, 2.5, 3.5]


def entry(of: Book, **parts: Any) -> Entry:
    """An entry for the first tagged cell of a notebook."""
    cell = of.kept[0]
    parts = {"names": {"x": 1}, "models": {}} | parts
    return Entry(of.digest(cell), cell.number, parts["names"], parts["models"], 1.0)


ONE = (*CELLS[:2], *CELLS[3:])  # one tagged cell


TENSOR = {"t": torch.zeros(2)}
VECTOR = {
    "direction": {"tensor": "t"},
    "layer": 3,
    "name": "x",
    "method": "",
    "norm": 1.0,
    "fingerprint": None,
    "metadata": {"dict": []},
}
INDEX = {"dtype": "int64", "names": [None], "values": [0, 1], "range": False}
EVIL: dict[str, Any] = {
    "a class of Python": {"kit": "Popen", "fields": {"args": "true"}},
    "a class by its path": {"kit": "os.system", "fields": {}},
    "a class of no name": {"kit": ["Choice"], "fields": {}},
    "a class with too few fields": {"kit": "Choice", "fields": {"index": 1}},
    "a class with foreign fields": {"kit": "Choice", "fields": {"index": 1, "asked": 1, "right": 1, "__class__": 1}},
    "a vector that points nowhere": {"kit": "SteeringVector", "fields": VECTOR},
    "a vector that is text": {"kit": "SteeringVector", "fields": VECTOR | {"direction": "x"}},
    "a tensor that is not there": {"tensor": "no"},
    "a tensor of a number": {"tensor": 4},
    "an unknown kind": {"pickle": "gASV"},
    "a method of the reader": {"value": 1},
    "two kinds": {"list": [], "tuple": []},
    "a bare list": [1, 2],
    "a bare dict": {},
    "a dict of no pairs": {"dict": [[1]]},
    "a list for a key": {"dict": [[{"list": []}, 1]]},
    "a range of text": {"range": ["a", 1, 1]},
    "a name that is not there": {"name": "__builtins__"},
    "a number in words": {"float": "1e999"},
    "a ragged table": {"frame": {"columns": INDEX, "index": INDEX, "data": [{"dtype": "int64", "values": [1]}] * 2}},
    "a table with a column too many": {"frame": {"columns": INDEX, "index": INDEX, "data": []}},
    "a table of an odd type": {
        "series": {"name": None, "index": INDEX, "data": {"dtype": "category", "values": [1, 2]}}
    },
    "a generator's state of another size": {"generator": {"tensor": "t"}},
    "a band of nothing": {"band": {"model": 1}},
    "a band of numbers": {"band": {"model": 1, "prompts": 1, "layers": 1, "target": 1, "last": 1}},
}


@pytest.mark.parametrize("case", EVIL)
def test_a_file_that_lies_is_an_error_and_no_code(case: str, tmp_path: Path) -> None:
    of = book(*ONE)
    write(tmp_path / "77.safetensors", of.name, [entry(of, names={"x": EVIL[case]})], TENSOR, small=False)
    namespace: dict[str, Any] = {}
    with pytest.raises(ValueError, match=r"77\.safetensors is damaged"):
        catch_up(of, 1, namespace, shelf(of, tmp_path))
    assert "x" not in namespace


def test_a_deep_or_endless_value_is_refused(tmp_path: Path) -> None:
    of = book(*ONE)
    deep: Any = 1
    for _ in range(60):
        deep = {"list": [deep]}
    for value in (deep, {"list": [0] * 300_000}):
        write(tmp_path / "77.safetensors", of.name, [entry(of, names={"x": value})], {}, small=False)
        with pytest.raises(ValueError, match="deeper than 32 levels or has over 200,000 parts"):
            catch_up(of, 1, {}, shelf(of, tmp_path))


def test_a_file_cannot_lean_on_what_no_earlier_cell_makes(tmp_path: Path) -> None:
    of = book(*ONE)
    lie = entry(of, names={"x": {"name": "kit"}})
    write(tmp_path / "77.safetensors", of.name, [lie], {}, small=False)
    namespace: dict[str, Any] = {"kit": kit}
    with pytest.raises(ValueError, match="77.safetensors is damaged, cell 1: it refers to 'kit', which is not there"):
        catch_up(of, 1, namespace, shelf(of, tmp_path))
    assert "x" not in namespace


def test_files_of_another_kind_notebook_or_size_are_refused(made: tuple[Book, Path]) -> None:
    of, path = made
    with pytest.raises(ValueError, match="with KIT_SMALL=0, not of .77_"):
        read(path, "77_x", small=False)
    with pytest.raises(ValueError, match="not of '77_made_up' with KIT_SMALL=1"):
        read(path, of.name, small=True)
    whole = path.read_bytes()
    for n in (0, 7, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:n])
        with pytest.raises(ValueError, match="damaged or no safetensors file"):
            shelf(of, path.parent)
    save_file(TENSOR, str(path))
    with pytest.raises(ValueError, match="is no kept file of this kit"):
        shelf(of, path.parent)
    about = {"format": FORMAT, "notebook": of.name, "small": "0", "kit": "0"}
    save_file(TENSOR, str(path), metadata=about)
    with pytest.raises(ValueError, match="damaged"):
        shelf(of, path.parent)
    good = {"key": "a", "cell": 1, "names": {"x": 1}, "models": {}, "seconds": 1}
    save_file(TENSOR, str(path), metadata=about | {"entries": json.dumps([good])})
    assert list(shelf(of, path.parent).entries) == ["a"]
    bad = [
        good | {"names": {"__import__('os')": 1}},
        good | {"models": {"../x": "m"}},
        good | {"key": 1},
        good | {"models": {"m": 1}},
        good | {"more": 1},
        {"key": "a"},
        "a",
    ]
    for text in ("{", '{"a": 1}', "[" * 100_000, *(json.dumps([one]) for one in bad)):
        save_file(TENSOR, str(path), metadata=about | {"entries": text})
        with pytest.raises(ValueError, match=r"77\.safetensors is damaged"):
            shelf(of, path.parent)


@pytest.mark.parametrize(
    ("limit", "told"), [("MAX_MB", "a kept file has at most"), ("MAX_JSON_MB", "MB of text; at most")]
)
def test_a_file_that_is_too_large_is_refused(
    made: tuple[Book, Path], monkeypatch: pytest.MonkeyPatch, limit: str, told: str
) -> None:
    of, path = made
    monkeypatch.setattr(files, limit, 1e-4)
    with pytest.raises(ValueError, match=told):
        shelf(of, path.parent)


def test_values_of_another_model_are_not_used(tmp_path: Path, llama: Any) -> None:
    of = book("model = load()", ("x = model.cfg.d_model", True), "## Here", "x")
    namespace: dict[str, Any] = {"load": lambda: llama}
    for mark, loaded in ((kit.fingerprint(llama), True), ("0" * 16, False)):
        one = entry(of, names={"x": -1}, models={"model": mark})
        write(tmp_path / "77.safetensors", of.name, [one], {}, small=False)
        card = catch_up(of, 1, namespace, shelf(of, tmp_path))
        assert (namespace["x"] == -1) is loaded and (card.loaded == ("x",)) is loaded
        assert ("was made with model 0000000000000000 as 'model'" in card.message) is not loaded
    assert namespace["x"] == llama.cfg.d_model
    lie = entry(of, names={"x": -1}, models={"model": kit.fingerprint(llama)})
    write(tmp_path / "77.safetensors", of.name, [lie], {}, small=False)
    with pytest.raises(ValueError, match="damaged: 'model' is no model"):
        catch_up(of, 1, {"load": lambda: 3}, shelf(of, tmp_path))


# --- the shipped ones -------------------------------------------------------------------------

FILES = sorted(shipped().glob("*.safetensors"))


@pytest.mark.parametrize("path", runner.choose([]), ids=lambda p: p.stem)
def test_every_value_that_a_notebook_keeps_is_shipped(path: Path) -> None:
    of = Book.of(path)
    file = shipped() / file_name(of.name, small=False)
    assert file.is_file() is bool(of.kept)
    if not of.kept:
        return
    assert stale(of, file) == []
    found = Shelf(of, [shipped()], small=False)
    assert set(found.entries) == {of.digest(cell) for cell in of.kept}, "an entry that no section loads"
    for cell in of.kept:
        assert set(cell.kept or ()) == set(found.find(cell).names)  # type: ignore[union-attr]
    assert len(found.usable(10**6)) == sum(c.kept is not None for c in of.cells)


def test_shipped_kept_files_are_small() -> None:
    sizes = [path.stat().st_size / 1e6 for path in FILES]
    assert sizes and max(sizes) < 2.6 and sum(sizes) < 10


def test_a_shipped_file_stands_in_for_its_cells(smol: Any) -> None:
    """Section 4 of notebook 05, at full size, without its search."""
    of = Book.of(runner.choose(["05"])[0])
    found = Shelf(of, [shipped()], small=False)
    for s in (s for cell in of.cells for s in cell.body):  # the model that is loaded anyway
        if isinstance(s.node, ast.Assign) and ast.unparse(s.node.targets[0]) == "model":
            s.node.value = ast.copy_location(ast.Name("SMOL", ast.Load()), s.node.value)
    keys = {of.digest(cell): cell for cell in of.kept}
    found.entries = {key: entry for key, entry in zip(keys, found.entries.values(), strict=True)}
    space: dict[str, Any] = {"SMOL": smol}
    card = catch_up(of, 4, space, found)
    assert {"radius", "found", "n"} <= set(card.loaded) and {"model", "piece"} <= set(card.computed)
    assert "found" not in card.computed
    result = space["found"]
    assert result.piece is space["piece"] and result.V.shape == (8, 576)
    assert result.radius == space["radius"]
    moved = result.piece.delta(result.thetas[:1])[0]
    assert torch.nn.functional.cosine_similarity(moved, result.changes[0], dim=0) > 0.99


def test_the_command_looks_at_what_is_stored(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["05", "--check"]) == 0
    assert capsys.readouterr().out == "05.safetensors ok\n"
    with pytest.raises(SystemExit):
        main(["55"])


def test_the_command_stamps_what_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KIT_CACHE", str(tmp_path))
    of = Book.of(runner.choose(["03"])[0])
    one = entry(of, names={"prompts": {"list": []}})
    path = write(files.local() / "03.safetensors", of.name, [replace(one, key="old")], {}, small=False)
    assert main(["03", "--check", "--local"]) == 1
    assert main(["03", "--stamp", "--local"]) == 0 == main(["03", "--check", "--local"])
    assert capsys.readouterr().out.splitlines()[-2:] == ["03.safetensors ok"] * 2
    write(path, of.name, [replace(one, cell=1)], {}, small=False)
    assert main(["03", "--stamp", "--local"]) == 1
    assert "cell 1 does not keep prompts, as the file has it" in capsys.readouterr().out
