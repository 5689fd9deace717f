"""The house keeps its floors: a folder imports only from floors below it, and nothing in a circle.

Imports inside functions and under TYPE_CHECKING count too. ``python -m tests.test_floors`` prints
lines by folder, circles, and how many files can be reached from the entry points.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLOORS = [  # low to high; what shares a floor never imports one another
    {"kit.base", "kit.plots"},
    {"kit.models"},
    {"kit.steering"},
    {"kit.search", "kit.sae", "kit.lens"},
    {"kit.data"},
    {"kit.widgets"},
    {"kit.cli"},
    {"course"},
]
LEVEL = {folder: level for level, floor in enumerate(FLOORS) for folder in floor}
ENTRIES = {
    "kit.generate": "kit.steering.generation",
    "kit.contrast.fit": "kit.search.contrast",
    "SteeringPanel": "kit.widgets.panel.panel",
    "kit.dct": "kit.search.dct",
}
MOST_REACHED = {"kit.generate": 25, "SteeringPanel": 52}
MOST_LINES = {"kit": 26_150, "kit and course": 38_700}
DOORS = {"kit", "kit.widgets"}  # load what they hand on by name, when it is asked for

Edge = tuple[str, str]


def modules(root: Path = ROOT) -> dict[str, str]:
    """Source of every module below ``kit`` and ``course``, by its name."""
    found = {}
    for top in ("kit", "course"):
        for path in sorted((root / top).rglob("*.py")):
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path.read_text(encoding="utf-8")
    return found


def imports(name: str, source: str, known: Iterable[str]) -> Iterator[str]:
    """The modules among ``known`` that a module names in its imports, wherever they stand."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            named = [each if each in known else node.module for each in inner]
        else:
            continue
        yield from (each for each in named if each in known and each != name)


def edges(sources: Mapping[str, str]) -> set[Edge]:
    """Who imports whom. The front doors hand names on unread; no module imports through them."""
    return {(name, other) for name, source in sources.items() for other in imports(name, source, sources)}


def folder(module: str) -> str:
    """``kit.search`` of ``kit.search.dct``; ``course`` of all of the course."""
    parts = module.split(".")
    return "course" if parts[0] == "course" else ".".join(parts[:2])


def against_the_floors(found: Iterable[Edge]) -> list[str]:
    """Imports that do not lead down."""
    wrong = []
    for a, b in sorted(found):
        one, other = folder(a), folder(b)
        if one == other or a in ("kit", "kit.__main__"):
            continue
        if one not in ("kit.cli", "course") if b == "kit" else LEVEL[one] <= LEVEL[other]:
            wrong.append(f"{a} imports {b}")
    return wrong


def circles(found: Iterable[Edge]) -> list[list[str]]:
    """Groups of modules that import one another in a circle (Tarjan 1972)."""
    below: dict[str, set[str]] = {}
    for a, b in found:
        below.setdefault(a, set()).add(b)
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(below.get(node, ())):
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            at = stack.index(node)
            group = sorted(stack[at:])
            del stack[at:]
            if len(group) > 1:
                groups.append(group)

    for node in sorted(below):
        if node not in index:
            visit(node)
    return groups


def reached(entry: str, found: Iterable[Edge]) -> set[str]:
    """A module and all that its imports lead to, packages that lie around them included."""
    below: dict[str, set[str]] = {}
    known: set[str] = set()
    for a, b in found:
        below.setdefault(a, set()).add(b)
        known |= {a, b}
    seen: set[str] = set()
    todo = [entry]
    while todo:
        name = todo.pop()
        if name in seen or name in DOORS:
            continue
        seen.add(name)
        parent = name.rpartition(".")[0]
        todo += [*below.get(name, ()), *([parent] if parent in known else [])]
    return seen


def lines(sources: Mapping[str, str]) -> dict[str, int]:
    """Lines by folder, and of ``kit`` and ``course`` whole."""
    count: dict[str, int] = {}
    for name, source in sources.items():
        for key in {folder(name), name.split(".")[0]}:
            count[key] = count.get(key, 0) + source.count("\n")
    return count


def test_every_import_leads_down() -> None:
    assert against_the_floors(edges(modules())) == []


def test_no_module_imports_itself_by_a_detour() -> None:
    assert circles(edges(modules())) == []


def test_an_import_up_and_a_circle_are_found_wherever_they_stand() -> None:
    sources = {
        "kit.base.low": "def f():\n    from kit.models import high\n",
        "kit.models.high": "if TYPE_CHECKING:\n    from kit.base.low import f\n",
        "kit.sae.a": "from kit.search import b\n",
        "kit.search.b": "",
    }
    found = edges(sources)
    assert against_the_floors(found) == ["kit.base.low imports kit.models.high", "kit.sae.a imports kit.search.b"]
    assert circles(found) == [["kit.base.low", "kit.models.high"]]
    assert reached("kit.base.low", found) == {"kit.base.low", "kit.models.high"}


def test_only_the_front_doors_load_modules_by_name() -> None:
    by_name = {
        name
        for name, source in modules().items()
        if name.startswith("kit") and re.search(r"\bimport_module\(|__import__\(", source)
    }
    assert by_name - {"kit.cli.doctor"} <= DOORS  # it tries packages, none of them the kit's


def test_what_the_entry_points_reach() -> None:
    found = edges(modules())
    counts = {entry: len(reached(module, found)) for entry, module in ENTRIES.items()}
    assert all(counts[entry] <= most for entry, most in MOST_REACHED.items()), counts


def test_the_kit_is_thin() -> None:
    count = lines(modules())
    assert count["kit"] <= MOST_LINES["kit"]
    assert count["kit"] + count["course"] <= MOST_LINES["kit and course"]


def test_directly_under_kit_stand_at_most_twelve_entries() -> None:
    entries = [p.name for p in (ROOT / "kit").iterdir() if p.name not in ("__pycache__", "_data")]
    assert len(entries) <= 12, sorted(entries)


def main() -> None:
    sources = modules()
    found = edges(sources)
    for name, n in sorted(lines(sources).items()):
        print(f"{n:7,}  {name}")
    longest = max(sources, key=lambda name: sources[name].count("\n"))
    print(f"longest: {longest}, {sources[longest].count(chr(10))} lines")
    print(f"circles: {circles(found)}")
    print(*against_the_floors(found), sep="\n")
    for entry, module in ENTRIES.items():
        files = reached(module, found)
        print(f"{entry} reaches {len(files)} files, {sum(sources[f].count(chr(10)) for f in files):,} lines")


if __name__ == "__main__":
    main()
