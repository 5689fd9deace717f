"""Real JupyterLab and Voila in headless Chromium: drag, press, look.

Skipped without Chromium or Playwright; with KIT_REQUIRE_BROWSER=1 that is a failure instead.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest

ROOT = Path(__file__).parent.parent
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
SLOW = 240_000  # milliseconds; a busy machine with two cores loads torch and the model
LIVE = ROOT / "notebooks" / "03_live_steering.ipynb"
PANEL = ".kit-panel"

SMALL = """
import kit
from kit.widgets import SteeringPanel
model = kit.load_model()
pair = kit.contrast.fit(model, ["I am so happy", "What joy"], ["I am so sad", "What grief"], 14)
panel = SteeringPanel(model, pair, "How are you feeling today?", max_new_tokens=20)
panel
"""


def _chromium() -> str:
    """The path of Chromium; skips, or fails where a browser is required, if something is missing."""
    missing = []
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        missing.append("chromium (on Debian: apt install chromium)")
    for module in ("playwright", "jupyterlab", "ipywidgets"):
        try:
            __import__(module)
        except ImportError:
            missing.append(f"the Python package {module}")
    if missing:
        why = f"browser test needs {' and '.join(missing)}"
        if os.environ.get("KIT_REQUIRE_BROWSER") == "1":
            pytest.fail(why)
        pytest.skip(why)
    assert path is not None
    return path


_ALL_RUN = """() => {
  const cells = window.jupyterapp.shell.currentWidget.content.model.sharedModel.cells
    .map(c => c.toJSON()).filter(c => c.cell_type === 'code' && c.source.length);
  const error = cells.flatMap(c => c.outputs).find(o => o.output_type === 'error');
  return error ? error.evalue : cells.every(c => c.execution_count !== null);
}"""


_COUNTS = """async () => {
  const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
  const code = 'c = panel.controller; print(c.started, c.finished, c.cancelled); del c';
  const future = kernel.requestExecute({code, store_history: false});
  let out = '';
  future.onIOPub = m => { if (m.header.msg_type === 'stream') out += m.content.text };
  await future.done;
  return out;
}"""


class Page:
    """A page, the hosts that it asked and that answered, and what its panel shows."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.hosts: set[str] = set()
        self.asked: set[str] = set()
        self.blocked: set[str] = set()
        page.set_default_timeout(SLOW)
        page.on("request", lambda r: self.asked.add(urlparse(r.url).hostname or ""))
        page.on("requestfailed", self._failed)
        page.on("response", lambda r: self.hosts.add(urlparse(r.url).hostname or ""))
        page.on("websocket", lambda w: self.asked.add(urlparse(w.url).hostname or ""))

    def _failed(self, request: Any) -> None:
        if request.failure == "csp":  # the page's own policy: it never left the browser
            self.blocked.add(urlparse(request.url).hostname or "")

    def text(self, column: int) -> str:
        return self.page.locator(f"{PANEL} .kit-text").nth(column).inner_text().strip()

    def status(self) -> str:
        text = self.page.locator(PANEL).first.inner_text()
        found = re.search(r"^(done|generating|stopped|failed).*$", text, re.MULTILINE)
        return found.group(0) if found else ""

    def counts(self) -> tuple[int, int, int]:
        """Runs that the notebook's ``panel`` has started, finished and cancelled."""
        return tuple(map(int, self.page.evaluate(_COUNTS).split()))  # type: ignore[return-value]

    def readout(self) -> float:
        text = self.page.locator(f"{PANEL} .widget-readout").first.inner_text()
        return float(text.replace("\u2212", "-"))

    def steered_as_shown(self) -> float | None:
        """The coefficient in the heading of the steered text."""
        heading = self.page.locator(f"{PANEL} .kit-column").nth(1).inner_text().splitlines()[0]
        found = re.search(r"([+\u2212-]\d+\.\d\d)", heading)
        return float(found.group(1).replace("\u2212", "-")) if found else None

    def press(self, name: str) -> None:
        self.page.locator(PANEL).first.get_by_role("button", name=name, exact=True).click()

    def until(self, condition: Callable[[], Any], seconds: float = 120.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, (
                f"it did not happen; status {self.status()!r}, slider {self.readout()}, "
                f"text of {self.steered_as_shown()}"
            )
            time.sleep(0.05)

    def settled(self) -> bool:
        return self.status().startswith(("done", "stopped", "failed"))

    def handle(self) -> Any:
        return self.page.locator(f"{PANEL} .noUi-handle").first


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = _chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def lab(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """JupyterLab on a copy of the live notebook, all its cells run."""
    import nbformat

    if LIVE.exists():
        book = nbformat.read(LIVE, as_version=4)
    else:
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SMALL.strip())])
    with _run(browser, book, tmp_path_factory.mktemp("lab")) as page:
        yield page


@contextmanager
def _run(browser: Any, book: Any, folder: Path, height: int = 1000) -> Iterator[Page]:
    """A notebook in JupyterLab, at small size, all its cells run."""
    import nbformat

    from kit.cli.lab import server

    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(book, folder / "live.ipynb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", _search_path())
        patch.setenv("JUPYTERLAB_SETTINGS_DIR", str(folder / ".settings"))  # nobody's own theme
        patch.setenv("KIT_SMALL", "1")
        with server("--expose-app-in-browser", folder=folder) as running:
            page = Page(browser.new_page(viewport={"width": 1280, "height": height}))
            page.page.goto(f"{running.url}lab/tree/live.ipynb?token={running.token}&reset")
            _run_all(page)
            yield page
            page.page.close()


def _search_path() -> str:
    """PYTHONPATH for kernels: this checkout first."""
    rest = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(dict.fromkeys([str(ROOT), *filter(None, rest)]))


def _run_all(page: Page) -> None:
    """Run every cell, once the kernel is there; answers the question for a kernel, if it comes."""
    p = page.page
    kernel = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status"
    run = "{window.jupyterapp.commands.execute('notebook:run-all-cells'); 0}"
    p.wait_for_selector(".jp-Notebook")

    def idle() -> bool:
        if p.locator(".jp-Dialog button.jp-mod-accept").count():
            p.locator(".jp-Dialog button.jp-mod-accept").first.click()
        return p.evaluate(kernel) == "idle"

    page.until(idle)
    p.evaluate(run)
    time.sleep(2)
    if p.locator(".jp-Dialog button.jp-mod-accept").count():
        p.locator(".jp-Dialog button.jp-mod-accept").first.click()
        time.sleep(1)
        p.evaluate(run)
    p.wait_for_selector(PANEL)
    p.locator(PANEL).first.scroll_into_view_if_needed()
    # callbacks of widgets wait until the last cell has run
    page.until(lambda: p.evaluate(_ALL_RUN), 900)
    assert p.evaluate(_ALL_RUN) is True, p.evaluate(_ALL_RUN)


def test_the_slider_changes_the_steered_text_and_not_the_baseline(lab: Page) -> None:
    lab.press("Generate")
    lab.until(lambda: lab.status().startswith("done") and lab.text(0))
    baseline, steered = lab.text(0), lab.text(1)
    start = lab.readout()
    lab.handle().focus()
    for _ in range(4):
        lab.page.keyboard.press("ArrowRight")
    lab.until(lambda: lab.readout() > start)
    lab.until(lambda: lab.settled() and lab.steered_as_shown() == lab.readout())
    assert lab.text(1) != steered, "the steered text did not change"
    assert lab.text(0) == baseline, "the baseline changed"


def test_a_mouse_drag_moves_it_too(lab: Page) -> None:
    box = lab.handle().bounding_box()
    track = lab.page.locator(f"{PANEL} .noUi-base").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    before, baseline = lab.readout(), lab.text(0)
    target = track["x"] + track["width"] * 0.3
    lab.page.mouse.move(x, y)
    lab.page.mouse.down()
    for i in range(1, 11):
        lab.page.mouse.move(x + (target - x) * i / 10, y)
    lab.page.mouse.up()
    lab.until(lambda: lab.readout() < before)
    lab.until(lambda: lab.settled() and lab.steered_as_shown() == lab.readout())
    assert lab.text(0) == baseline


def test_stop_ends_a_run(lab: Page) -> None:
    tokens = lab.page.locator(f"{PANEL} input[type=number]").first
    shown = tokens.input_value()
    tokens.fill("400")
    tokens.press("Enter")
    before = lab.text(1)
    lab.press("Generate")
    lab.until(lambda: lab.status() == "generating" and lab.text(1) != before)  # it has begun
    lab.press("Stop")
    lab.until(lambda: lab.status().startswith("stopped"), 30)
    assert int(lab.status().split("·")[1].split()[0]) < 400
    text = lab.text(1)
    time.sleep(1)
    assert lab.text(1) == text, "text went on after Stop"
    lab.press("Generate")
    lab.press("Stop")  # a run that may not have begun ends too
    lab.until(lambda: lab.status().startswith("stopped"), 30)
    tokens.fill(shown)
    tokens.press("Enter")
    lab.until(lambda: lab.status().startswith("done"))


def test_thirty_moves_in_three_seconds_end_with_the_last_value(lab: Page) -> None:
    """One run finishes, with the value that the slider shows; all others were cancelled."""
    lab.until(lab.settled)
    started, finished, cancelled = lab.counts()
    lab.handle().focus()
    for i in range(30):
        lab.page.keyboard.press("ArrowLeft" if i < 10 else "ArrowRight")
        time.sleep(0.09)
    lab.until(lambda: lab.settled() and lab.steered_as_shown() == lab.readout())
    time.sleep(1.5)
    assert lab.status().startswith("done") and lab.steered_as_shown() == lab.readout()
    now = lab.counts()
    assert now[1] - finished == 1, "more than one run came to its end"
    assert now[0] - started == 1 + now[2] - cancelled, "a run is under way that nobody sees"


def test_the_panel_is_clean_and_has_its_receipt(lab: Page) -> None:
    text = lab.page.locator(PANEL).first.inner_text()
    assert "clean" in text and "decode steps" in text and "distinct-2" in text


def nameless(page: Page, view: str) -> list[str]:
    """Controls of a view that a screen reader would announce without a name."""
    tree = page.page.locator(view).first.aria_snapshot()
    roles = "slider|checkbox|combobox|listbox|spinbutton|textbox|button|region"
    return [line for line in tree.splitlines() if re.match(rf'\s*- ({roles})(?! ")', line)]


def test_every_control_has_a_name_for_screen_readers(lab: Page) -> None:
    _wait(lambda: not nameless(lab, PANEL))
    tree = lab.page.locator(PANEL).first.aria_snapshot()
    assert tree.startswith('- region "Steering panel"')
    assert re.search(r'slider "coefficient of \S+', tree), tree


def test_a_control_in_focus_shows_it(lab: Page) -> None:
    lab.handle().focus()
    lab.page.keyboard.press("Shift+Tab")
    lab.page.keyboard.press("Tab")
    width = "() => getComputedStyle(document.activeElement).outlineWidth"
    assert lab.page.evaluate("() => document.activeElement.className").startswith("noUi-handle")
    assert lab.page.evaluate(width) == "3px"


def test_freeze_leaves_plain_html_in_the_document(lab: Page) -> None:
    steered = lab.text(1)
    lab.press("Freeze")
    outputs = """() => JSON.stringify(
        window.jupyterapp.shell.currentWidget.content.model.sharedModel.cells
          .map(c => c.toJSON().outputs || []))"""
    lab.until(lambda: "aria-live" in lab.page.evaluate(outputs).replace("widget-view", ""), 30)
    assert steered.split()[0] in lab.page.evaluate(outputs)


def test_no_request_left_loopback(lab: Page) -> None:
    assert lab.asked <= {"127.0.0.1", ""}, lab.asked


TINY = """
import kit
from pathlib import Path
from tempfile import mkdtemp
from IPython.display import HTML, display
from ipywidgets import Tab
from tests import tiny
from kit.widgets import SteeringPanel
model = tiny.load(Path(mkdtemp()), "llama", chat=True)
vector = tiny.vector(model, 1)
"""
MADE = """
panel = SteeringPanel(model, vector, "How are you?", max_new_tokens=4)
panel.run()
panel
"""


def test_a_view_says_what_is_kept_and_whether_its_kernel_answers(browser: Any, tmp_path: Path) -> None:
    """Freeze in a cell's output, in a Tab, after the output was cleared; the cell again; a restart."""
    import nbformat

    cells = [TINY, MADE, "Tab([SteeringPanel(model, (), 'Hello')])", "panel"]
    with _run(
        browser, nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c.strip()) for c in cells]), tmp_path, 2600
    ) as page:
        p = page.page
        shown = p.locator(PANEL)
        assert shown.count() == 3
        do = "name => { window.jupyterapp.commands.execute(name); 0 }"
        saved = """() => JSON.stringify(window.jupyterapp.shell.currentWidget.content.model.sharedModel.cells
            .map(c => c.toJSON().outputs).flat().map(o => o.data || {}).filter(d => !(%r in d)))"""
        plain = saved % "application/vnd.jupyter.widget-view+json"

        def cell(n: int, then: str) -> None:
            p.evaluate("n => { window.jupyterapp.shell.currentWidget.content.activeCellIndex = n; 0 }", n)
            p.evaluate(do, then)

        def freeze(n: int) -> None:
            shown.nth(n).get_by_role("button", name="Freeze", exact=True).click()

        freeze(0)
        _wait(lambda: "it stays in the notebook" in shown.nth(0).inner_text())
        assert p.evaluate(plain).count("kit-frozen-") == 2, "in both cells that show it"
        freeze(1)
        _wait(lambda: "not kept" in shown.nth(1).inner_text())
        assert p.evaluate(plain).count("kit-frozen-") == 2
        cell(3, "notebook:clear-cell-output")
        _wait(lambda: shown.count() == 2)
        freeze(0)
        _wait(lambda: "Freezing" not in shown.nth(0).inner_text() and p.evaluate(plain).count("kit-frozen-") == 1)
        _wait(lambda: "it stays in the notebook" in shown.nth(0).inner_text())
        cell(1, "notebook:run-cell")
        _wait(lambda: shown.count() == 2 and "kit-frozen-" not in p.evaluate(plain))
        _wait(lambda: "done" in shown.nth(0).inner_text())
        gone = "() => [...document.querySelectorAll('.kit-panel')].map(e => getComputedStyle(e, '::before').content)"
        assert p.evaluate(gone) == ["none", "none"]
        p.evaluate("() => { window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart(); 0 }")
        _wait(lambda: all("No kernel answers" in what for what in p.evaluate(gone)))
        p.screenshot(path=str(tmp_path / "restarted.png"))
        cell(0, "notebook:run-cell")
        cell(1, "notebook:run-cell")
        _wait(lambda: p.evaluate(gone)[0] == "none" and "done" in shown.nth(0).inner_text())
        p.evaluate("() => { window.jupyterapp.shell.currentWidget.sessionContext.shutdown(); 0 }")
        _wait(lambda: all("No kernel answers" in what for what in p.evaluate(gone)))
        assert page.asked <= {"127.0.0.1", ""}, page.asked


HOSTILE = """
from tests.faults import markup, subjects
found = markup.outputs(markup.everything(subjects.make(Path(mkdtemp()))))
for name in dict.fromkeys(each.split(" ")[0] for each in found):
    display(HTML("".join(html for each, html in found.items() if each.split(" ")[0] == name)))
display(HTML('<p id="control">$x^2$ and \\(y^2\\)</p>'))
panel = SteeringPanel(model, [tiny.vector(model, 1, i, **{}) for i in range(1)], "How are you?", max_new_tokens=4)
"""
NAMED = """
from dataclasses import replace
names = ["\u05e9\u05de\u05d7", "\u202eevil", "\u2069\u202eevil", "plain"]
for name in names:
    run = kit.generate(model, "Hello", replace(vector, name=name), [0.5], max_new_tokens=3)
    view = SteeringPanel(model, replace(vector, name=name), "Hello", coefficients=[0.5], max_new_tokens=3)
    view.run()
    display(HTML(f'<div class="named">{view.frozen_html}</div>'), run)
"""
# for every figure of the text: where its letters stand, from left to right
_FIGURES = """() => [...document.querySelectorAll('.named')].flatMap(box => {
  const walk = document.createTreeWalker(box, NodeFilter.SHOW_TEXT), found = [];
  for (let node; (node = walk.nextNode());) for (const hit of node.data.matchAll(/\\+0\\.50|layer 1|[|]cv[|]/g)) {
    const at = [...hit[0]].map((_, i) => { const r = document.createRange();
      r.setStart(node, hit.index + i); r.setEnd(node, hit.index + i + 1); return r.getBoundingClientRect().left; });
    found.push([hit[0], at.every((x, i) => i === 0 || x > at[i - 1])]);
  }
  return found;
})"""


def test_a_page_typesets_none_of_our_texts_and_turns_no_figure_round(browser: Any, tmp_path: Path) -> None:
    import nbformat

    cells = [nbformat.v4.new_code_cell(c.strip()) for c in (TINY, HOSTILE, NAMED, "panel")]
    with _run(browser, nbformat.v4.new_notebook(cells=cells), tmp_path, 1400) as page:
        p = page.page
        _wait(lambda: p.locator("#control mjx-container").count() == 2)
        time.sleep(2)
        assert p.locator("mjx-container").count() == 2, "some of the kit's text was typeset"
        assert p.evaluate("() => window.kitx") is None
        figures = p.evaluate(_FIGURES)
        assert len(figures) >= 12 and all(straight for _, straight in figures), figures
        assert page.asked - page.blocked <= {"127.0.0.1", ""}, page.asked


GALLERY = """
import kit, torch
from kit.widgets import FeatureGallery, SteeringPanel
model = kit.load_model()
rng = torch.Generator().manual_seed(0)
vectors = [kit.SteeringVector(torch.randn(model.cfg.d_model, generator=rng), 10, f"f{i}",
                              metadata={"coefficient": 0.25}) for i in range(8)]
panel = SteeringPanel(model, (), "How are you?", max_new_tokens=4)
gallery = FeatureGallery(model, vectors, "How are you?", panel=panel, batch=4, page_size=6,
                         max_new_tokens=6)
"""


def test_the_gallery_streams_is_marked_and_is_dragged_from(browser: Any, tmp_path: Path) -> None:
    import nbformat

    cells = [nbformat.v4.new_code_cell(c) for c in (GALLERY.strip(), "gallery", "panel")]
    with _run(browser, nbformat.v4.new_notebook(cells=cells), tmp_path, 1400) as page:
        gallery = page.page.locator(".kit-gallery").first
        gallery.get_by_role("button", name="Generate", exact=True).click()
        _wait(lambda: "done in" in gallery.inner_text() and "8 of 8" in gallery.inner_text())
        cards = gallery.locator(".kit-card")
        assert cards.count() == 6 and all(cards.nth(i).locator(".kit-text").inner_text().strip() for i in range(6))
        assert "each steered by its own vector alone" in gallery.inner_text()
        name = cards.nth(2).locator("input[type=text]")
        name.fill("pies")
        name.press("Enter")
        cards.nth(2).get_by_role("button", name="star ").click()
        cards.nth(0).get_by_role("button", name="Hide").click()
        _wait(lambda: "1\u20136 of 7" in gallery.inner_text())
        gallery.locator("select").first.select_option(label="starred")
        _wait(lambda: cards.count() == 1)
        panel = page.page.locator(f"{PANEL}:not(.kit-gallery)").first
        field = page.page.locator(".kit-drop input").first
        field.scroll_into_view_if_needed()
        gallery.locator(".kit-rank a").first.drag_to(field)
        _wait(lambda: "pies" in panel.inner_text() and field.input_value() == "")
        assert page.asked <= {"127.0.0.1", ""}, page.asked


READ = ROOT / "notebooks" / "10_read_a_dictionary.ipynb"


def test_a_latent_is_found_read_tried_and_dragged(browser: Any, tmp_path: Path) -> None:
    """Notebook 10: sort, open a latent, type a text, ablated text, to the panel, drag its slider."""
    import nbformat

    with _run(browser, nbformat.read(READ, as_version=4), tmp_path, 1400) as page:
        p = page.page
        features = p.locator(".kit-browser").first
        features.scroll_into_view_if_needed()
        features.locator("select").first.select_option(label="density")
        shown = features.locator(".widget-select select option")
        _wait(lambda: "%" in shown.first.inner_text())
        second = shown.nth(1).inner_text().split()[0]
        features.locator(".widget-select select").select_option(index=1)
        title = features.locator(f"b:has-text('{second}')").first
        _wait(lambda: title.count() and title.is_visible())
        other = features.locator("[data-latent]").first
        number = other.get_attribute("data-latent")
        _wait(lambda: other.get_attribute("role") == "link")
        other.focus()
        p.keyboard.press("Enter")
        _wait(lambda: features.locator("input[type=number]").first.input_value() == number)
        features.locator("[data-latent]").first.click()
        _wait(lambda: features.locator("input[type=number]").first.input_value() != number)
        field = features.locator("textarea").first
        field.fill("The ship sailed across the ocean to a small island.")
        features.get_by_role("button", name="Read", exact=True).click()
        _wait(lambda: "on your text" in features.inner_text())
        features.get_by_role("button", name="Ablated text", exact=True).click()
        _wait(lambda: "gradient x activation" in features.inner_text())
        chosen = features.locator("input[type=number]").first.input_value()
        features.get_by_role("button", name="Steer with it", exact=True).click()
        panel = p.locator(f"{PANEL}:not(.kit-browser):not(.kit-prompt):not(.kit-matches)").first
        _wait(lambda: f"#{chosen}" in panel.inner_text())
        panel.scroll_into_view_if_needed()
        _wait(lambda: "done" in panel.inner_text())
        readouts = panel.locator(".widget-readout")
        before = readouts.all_inner_texts()
        track = panel.locator(".noUi-base").last.bounding_box()
        handle = panel.locator(".noUi-handle").last.bounding_box()
        p.mouse.move(handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2)
        p.mouse.down()
        p.mouse.move(track["x"] + track["width"] * 0.9, handle["y"] + 5, steps=8)
        p.mouse.up()
        _wait(lambda: readouts.all_inner_texts() != before)
        _wait(lambda: "done" in panel.inner_text())
        assert page.asked <= {"127.0.0.1", ""}, page.asked


def _wait(condition: Callable[[], Any], seconds: float = 180.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


def test_voila_serves_the_panel_alone(browser: Any, tmp_path: Path) -> None:
    pytest.importorskip("voila")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = os.environ | {"PYTHONPATH": _search_path()}
    env.pop("BROWSER", None)
    with (tmp_path / "voila.log").open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "kit", "app", f"--port={port}", "--no-browser"],
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            env=env,
            cwd=tmp_path,
            start_new_session=True,
        )
        try:
            page = Page(browser.new_page(viewport={"width": 1280, "height": 900}))
            _wait_for(port, process, tmp_path / "voila.log")
            page.page.goto(f"http://127.0.0.1:{port}/")
            page.page.wait_for_selector(f"{PANEL} .noUi-handle")
            page.press("Generate")
            page.until(lambda: page.status().startswith("done") and bool(page.text(1)))
            assert page.hosts <= {"127.0.0.1", ""}, page.hosts
            assert page.asked - page.blocked <= {"127.0.0.1", ""}, page.asked
            page.page.close()
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + 120
    while True:
        assert process.poll() is None, f"it ended: {log.read_text()[-2000:]}"
        try:  # a page that needs no kernel
            direct.open(f"http://127.0.0.1:{port}/voila/static/", timeout=2)
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            assert time.monotonic() < end, "no answer in time"
            time.sleep(0.2)
