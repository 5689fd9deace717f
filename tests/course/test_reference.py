"""The API reference: every public name has words, every page is there and asks nobody."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import kit
from course.__main__ import main
from course.site import reference
from tests.test_browser import FLAGS, _chromium

ROOT = Path(__file__).resolve().parents[2]
Defined = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
ROLE = re.compile(r":(?:func|class|meth|mod|attr|data|exc|obj|ref):")


# --- docstrings -------------------------------------------------------------------------------


def trees() -> dict[str, ast.Module]:
    """Of every module but those with the course's exercises: a solution is shown as it stands,
    under a title that says what it does; and those of the hub, whose methods JupyterHub names."""
    both = [*(ROOT / "kit").rglob("*.py"), *(ROOT / "course").rglob("*.py")]
    files = [f for f in both if not re.fullmatch(r"nb\d\d|seats|settings|slips", f.stem)]
    named = {".".join(f.relative_to(ROOT).with_suffix("").parts): f for f in sorted(files)}
    return {name.removesuffix(".__init__"): ast.parse(file.read_text(encoding="utf-8")) for name, file in named.items()}


def public(body: list[ast.stmt]) -> Iterator[Defined]:
    for node in body:
        if isinstance(node, Defined) and not node.name.startswith("_"):
            yield node


def missing(modules: dict[str, ast.Module]) -> list[str]:
    """Public names without a docstring; a method may have that of a base class in kit."""
    classes = {node.name: node for tree in modules.values() for node in tree.body if isinstance(node, ast.ClassDef)}

    def said(owner: ast.ClassDef, method: str) -> bool:
        found = [node for node in public(owner.body) if node.name == method]
        bases = [ast.unparse(base).rpartition(".")[2] for base in owner.bases]
        return any(map(ast.get_docstring, found)) or any(
            said(classes[base], method) for base in bases if base in classes
        )

    found = [name for name, tree in modules.items() if not ast.get_docstring(tree)]
    for name, tree in modules.items():
        for node in public(tree.body):
            if not ast.get_docstring(node):
                found.append(f"{name}.{node.name}")
            if isinstance(node, ast.ClassDef):
                found += [
                    f"{name}.{node.name}.{method.name}" for method in public(node.body) if not said(node, method.name)
                ]
    return found


def test_every_public_name_says_what_it_is() -> None:
    assert missing(trees()) == []


def test_a_missing_docstring_is_found_and_an_inherited_one_counts() -> None:
    code = '''"""A module."""
class A:
    """A."""
    def f(self):
        "F."
    def g(self): ...
class B(A):
    """B."""
    def f(self): ...
    def _h(self): ...
def k(): ...
'''
    assert missing({"m": ast.parse(code)}) == ["m.A.g", "m.k"]


# --- the pages --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference as the command writes it, in a process of its own: pdoc brings names that are
    for type checkers into the modules that it reads."""
    out = tmp_path_factory.mktemp("reference") / "pages"
    done = subprocess.run(
        [sys.executable, "-m", "kit", "docs", "--out", out],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0 and "pdoc" not in done.stderr, done.stderr
    assert done.stdout == f"{out / 'index.html'}\n"
    return out


def page(pages: Path, module: str) -> str:
    return (pages / f"{module.replace('.', '/')}.html").read_text(encoding="utf-8")


def anchors(module: str, tree: ast.Module) -> set[str]:
    """What a page must have: the names that the module hands out, and its own methods."""
    names = {node.name: node for node in public(tree.body)}
    handed = getattr(import_module(module), "__all__", names)
    found = set(handed)
    classes = [names[n] for n in found & names.keys() if isinstance(names[n], ast.ClassDef)]
    return found | {f"{c.name}.{method.name}" for c in classes for method in public(c.body)}


def test_every_public_name_of_every_module_is_there(pages: Path) -> None:
    parsed = trees()
    for module in ["kit", *kit._MODULES.values()]:
        there = set(re.findall(r'\bid="([\w.]+)"', page(pages, module)))
        wanted = anchors(module, parsed[module])
        assert not wanted - there, (module, wanted - there)
    assert {"load_model", "generate", "SteeringVector", "dct"} <= anchors("kit", parsed["kit"])
    for home in kit._MODULES.values():
        assert f'<a href="{home.replace(".", "/")}.html">{home}</a>' in page(pages, "kit").replace("../", "")
    assert "SteeringPanel" in anchors("kit.widgets", parsed["kit.widgets"])


def test_whatever_a_notebook_imports_from_has_a_page() -> None:
    used: set[str] = set()
    for notebook in sorted((ROOT / "notebooks").glob("[0-9][0-9]*.ipynb")):
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            code = "".join(cell["source"]) if cell["cell_type"] == "code" else ""
            for home, names in re.findall(
                r"^\s*from ((?:kit|course)[\w.]*) import (\([^)]*|[^#\n]*)", code, re.MULTILINE
            ):
                for name in re.findall(r"\w+", names):
                    # a package's module counts, as in ``from course.studies import words``
                    inner = (ROOT / home.replace(".", "/") / f"{name}.py").is_file()
                    used.add(f"{home}.{name}" if inner else home)
    assert {"kit.sae", "kit.widgets"} <= used <= set(reference.modules())


def test_pages_show_no_markup_of_docstrings(pages: Path) -> None:
    files = [*pages.rglob("*.html"), pages / "search.js"]
    assert len(files) == len(reference.modules()) + 2
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert not ROLE.search(text), (file, ROLE.search(text))
        prose = re.sub(r"<(script|style)>.*?</\1>", "", text, flags=re.DOTALL)
        assert "``" not in prose or file.suffix == ".js", file
    text = page(pages, "kit.search.contrast")
    assert "<h6" in text and "Raises:" in text and "<code>" in text


def test_pages_ask_nobody_and_search_works_without_a_server(pages: Path) -> None:
    chromium = _chromium()
    from playwright.sync_api import sync_playwright

    asked: list[str] = []
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=FLAGS)
        tab = browser.new_page()
        tab.set_default_timeout(240_000)
        tab.on("request", lambda request: asked.append(request.url))
        for file in ("kit/sae.html", "kit/widgets.html", "index.html"):
            tab.goto((pages / file).as_uri())
        tab.get_by_role("link", name="kit", exact=True).click()
        tab.wait_for_url("**/kit.html")
        tab.get_by_role("searchbox").fill("residual_scale")
        tab.wait_for_selector("section.search-result a[href*='kit/models/activations.html#residual_scale']")
        browser.close()
    assert (pages / "search.js").as_uri() in asked
    assert not [url for url in asked if not url.startswith((pages.as_uri(), "data:"))]


# --- writing it -------------------------------------------------------------------------------


def written(folder: Path, text: str) -> None:
    (folder / "index.html").write_text(text)
    (folder / "search.js").write_text("")


def test_an_older_reference_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "deep" / "docs"
    monkeypatch.setattr(reference, "_write", lambda folder: written(folder, "first"))
    assert reference.build(out) == out / "index.html"
    (out / "gone.html").write_text("a module that there was")

    def fails(folder: Path) -> None:
        written(folder, "half")
        raise OSError("disk full")

    monkeypatch.setattr(reference, "_write", fails)
    with pytest.raises(OSError, match="disk full"):
        reference.build(out)
    assert (out / "index.html").read_text() == "first" and (out / "gone.html").is_file()
    monkeypatch.setattr(reference, "_write", lambda folder: written(folder, "second"))
    reference.build(out)
    assert sorted(f.name for f in out.iterdir()) == ["index.html", "search.js"]
    assert (out / "index.html").read_text() == "second"
    assert [f.name for f in out.parent.iterdir()] == ["docs"]  # nothing is left beside it


def test_other_peoples_folders_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "letter.txt").write_text("dear all")
    for place in (tmp_path, tmp_path / "letter.txt"):
        assert main(["docs", "--out", str(place)]) == 1
        err = capsys.readouterr().err
        assert err.startswith(f"kit docs: out='{place}' holds something else")
        assert err.count("\n") == 1
    assert (tmp_path / "letter.txt").read_text() == "dear all"


def test_without_pdoc_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pdoc is not installed: .*pip install pdoc=="):
        reference.build("nowhere")
