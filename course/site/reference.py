"""The API reference: one static page for each public module, made from the docstrings by pdoc.

``kit docs`` (or ``make docs``) writes it. The pages need no server and ask no host for anything:
styles, icons and the search index lie in them or beside them. What is listed is what the course
and a reader's own code may import: ``kit``, the modules that it hands on or takes its names from,
each under the name of its home, and those of :data:`BESIDE`.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import kit
from course.site.output import replaced
from kit.base.progress import track
from kit.cli.pins import pip_install

# Modules that notebooks import from although no package hands on all that they hold.
BESIDE = (
    "course.exercises.patching",
    "course.exercises.published_dct",
    "course.runner",
    "course.studies.words",
    "kit.base.divergence",
    "kit.base.shipped",
    "kit.data.statements",
    "kit.sae.pages",
    "kit.sae.quality",
    "kit.sae.sections",
    "kit.sae.source",
)
INDEX = "index.html"
SEARCH = "search.js"


def modules() -> list[str]:
    """Full names of the modules that have a page, ``kit`` first."""
    return ["kit", *sorted({*kit._NAMES.values(), *kit._MODULES.values(), *BESIDE})]


def build(out: str | Path = Path("build") / "docs") -> Path:
    """Write the reference into a folder, whole or not at all; an older reference is replaced.

    Returns:
        The page to open.

    Raises:
        ModuleNotFoundError: pdoc is not installed; the text has the command.
        FileExistsError: ``out`` is a file, or a folder that holds something else.
    """
    if find_spec("pdoc") is None:
        raise ModuleNotFoundError(f"pdoc is not installed: {pip_install('pdoc')}")
    with replaced(out, SEARCH) as fresh:
        _write(fresh)
    return Path(out).resolve() / INDEX


def _write(folder: Path) -> None:
    from pdoc import doc, render

    # "google" reads Args and Raises, and the roles and double backticks of reStructuredText too.
    # The sources lie beside whoever builds this; on the pages they would be most of the bytes.
    version = f"steering-kit {kit.__version__}"
    render.configure(docformat="google", footer_text=version, show_source=False)
    with warnings.catch_warnings():
        # An alias of a type that is imported for checkers only stands on the page as written.
        warnings.filterwarnings("ignore", "Error parsing type annotation", UserWarning)
        # kit.dct is a name for kit.search.dct: the page of kit leads there, see below.
        warnings.filterwarnings("ignore", r"Found '\w+' in kit\.__all__", UserWarning)
        for name in ("kit", "kit.models", "kit.widgets"):  # pdoc reads a module's dictionary, not lazy names
            module = import_module(name)
            for public in module.__all__:
                getattr(module, public)
        pages = {name: doc.Module.from_name(name) for name in modules()}
        pages["kit"].members.update({name: pages[home] for name, home in kit._MODULES.items()})
        for name, page in track(pages.items(), "pages"):
            file = folder / f"{name.replace('.', '/')}.html"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(render.html_module(page, pages), encoding="utf-8")
        (folder / INDEX).write_text(render.html_index(pages), encoding="utf-8")
        (folder / SEARCH).write_text(render.search_index(pages), encoding="utf-8")
