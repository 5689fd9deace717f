"""What works on this machine, and for everything that does not the command that mends it.

A workshop mails ``kit doctor`` to its participants the day before, so it runs wherever Python
does: with torch missing, with Jupyter missing, with a half-written model. A check never raises; an
exception becomes its row. A check whose ground another row already reports as broken says that it
was not tried, so that one fault is one FAIL.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from functools import partial
from html import escape
from importlib import import_module, metadata
from importlib.util import find_spec
from io import StringIO
from itertools import chain
from pathlib import Path

from kit import __version__
from kit.base import threads
from kit.base.html import CELL, PLAIN
from kit.cli import lab, waiting
from kit.cli.pins import interpreter, pins, pip_install, reinstall
from kit.models import weights

# The packages that kit imports itself: pyproject.toml's dependencies.
DIRECT = (
    "packaging torch transformers transformer-lens numpy sae-lens safetensors gguf pandas scikit-learn "
    "matplotlib circuitsvis jupyterlab ipywidgets anywidget filelock platformdirs psutil"
).split()
_GB = 2**30
_COLOURS = {"ok": "#1a7f37", "warn": "#9a6700", "FAIL": "#cf222e"}


@dataclass(frozen=True)
class Check:
    """One row: ``ok`` is True, False, or None for what deserves a look but stops nobody."""

    name: str
    ok: bool | None
    detail: str
    fix: str = ""

    @property
    def word(self) -> str:
        """How the table shows ``ok``: "ok", "warn" or "FAIL"."""
        return "warn" if self.ok is None else "ok" if self.ok else "FAIL"

    def __str__(self) -> str:
        row = f"{self.word:4}  {self.name:17} {self.detail}"
        return row + (f"\n      {'':17} -> {self.fix}" if self.fix else "")


@dataclass(frozen=True)
class DoctorReport:
    """All rows; ``ok`` when none of them is a FAIL. Shows itself as a table."""

    checks: tuple[Check, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether no row is a FAIL."""
        return all(check.ok is not False for check in self.checks)

    @property
    def summary(self) -> str:
        """The last line: ready or not, the rows by word, the seconds."""
        words = [check.word for check in self.checks]
        counts = ", ".join(f"{words.count(w)} {w}" for w in _COLOURS if w in words)
        verdict = "ready" if self.ok else "not ready: run what the arrows say"
        return f"{verdict} ({counts}; {self.seconds:.1f} s)"

    def as_dict(self) -> dict[str, object]:
        """The report as plain values, for JSON."""
        rows = [asdict(check) | {"word": check.word} for check in self.checks]
        return {"ok": self.ok, "seconds": round(self.seconds, 2), "kit": __version__, "checks": rows}

    def __str__(self) -> str:
        return "\n".join([*map(str, self.checks), self.summary])

    def _repr_html_(self) -> str:
        rows = ""
        for check in self.checks:
            word = f'<b style="color:{_COLOURS[check.word]}">{check.word}</b>'
            fix = f"<br><code>{escape(check.fix)}</code>" if check.fix else ""
            cells = (word, escape(check.name), escape(check.detail) + fix)
            rows += "<tr>" + "".join(f'<td style="{CELL}">{cell}</td>' for cell in cells) + "</tr>"
        return f'<div class="{PLAIN}"><table>{rows}</table><p>{escape(self.summary)}</p></div>'


def run(
    quick: bool = False, *, more: Iterable[Check] = (), show: Callable[[Check], None] | None = None
) -> DoctorReport:
    """Examine this machine.

    Args:
        quick: start no server and load no model (a third of the time).
        more: rows of somebody else's that come after these (``course.room.machines.host``).
        show: called with each row as soon as it is known.
    """
    start = time.perf_counter()
    done = []
    for check in chain(_checks(quick), more):
        done.append(check)
        if show:
            show(check)
    return DoctorReport(tuple(done), time.perf_counter() - start)


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``kit doctor`` to a command line."""
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    parser.add_argument("--quick", action="store_true", help="start no server and load no model")


def tell(args: argparse.Namespace, more: Iterable[Check] = ()) -> int:
    """Print the report that a command line asks for; returns the exit status."""
    # the slow rows come last; show the others meanwhile
    show = None if args.json else partial(print, flush=True)
    report = run(args.quick, more=more, show=show)
    print(json.dumps(report.as_dict(), indent=1) if args.json else report.summary)
    return 0 if report.ok else 1


def _checks(quick: bool) -> Iterator[Check]:
    jupyter, torch = pip_install("jupyterlab", "ipywidgets"), pip_install("torch")
    broken: set[str] = set()  # modules, and rows ("the ...")
    # name, what it looks at, the modules and rows ("the ...") that it cannot do without, the
    # command to try when it raises
    table: list[tuple[str, Callable[[], Check], tuple[str, ...], str]] = [
        ("Python", _python_version, (), "make clean && make lab PYTHON=python3.12"),
        ("packaging", partial(_package, "packaging", broken), (), pip_install("packaging")),  # it reads the pins
        *((name, partial(_package, name, broken), ("packaging",), pip_install(name)) for name in DIRECT[1:]),
        ("other packages", _other_packages, ("packaging",), reinstall()),
        ("disk", _disk, ("jupyter_core", "platformdirs"), 'export HOME="$(mktemp -d)"'),
        ("memory", _memory, ("psutil",), pip_install("psutil")),
        ("threads", partial(_threads, quick), ("psutil", "platformdirs"), "unset OMP_NUM_THREADS"),
        ("dtype", _dtype, ("torch",), "unset KIT_DTYPE" if os.environ.get("KIT_DTYPE") else torch),
        ("model", _model, ("platformdirs", "the dtype", "the disk"), f"{interpreter()} -m kit fetch"),
        ("widgets", _widgets, ("ipywidgets", "jupyterlab"), jupyter),
        ("JupyterLab starts", _lab_starts, ("jupyterlab", "psutil", "the disk"), jupyter),
        ("steered token", _steered_token, ("torch", "transformer_lens", "the dtype", "the disk", "the model"), torch),
    ]
    for name, look, needs, fix in table[:-2] if quick else table:
        absent = [n for n in needs if n in broken or (not n.startswith("the ") and find_spec(n) is None)]
        if absent:
            yield Check(name, None, f"not tried: needs {', '.join(absent)}")
            continue
        check = attempt(name, look, fix)
        if check.ok is False:
            broken.add(f"the {name}")
        yield check


def attempt(name: str, look: Callable[[], Check], fix: str) -> Check:
    """The row that a check gives; one that raises is a FAIL with ``fix``."""
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # some packages greet
            return look()
    except Exception as error:
        return Check(name, False, f"{type(error).__name__}: {plain(str(error))}", fix)


def plain(text: str, longest: int = 300) -> str:
    """One printable line, to go to a terminal, whatever a text holds."""
    line = " ".join(text.split())
    return "".join(c for c in line if c.isprintable())[:longest]


def _python_version() -> Check:
    isolated = sys.prefix != sys.base_prefix or "CONDA_PREFIX" in os.environ
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("Python", True, version + ("" if isolated else ", not in an environment"))


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _package(name: str, broken: set[str]) -> Check:
    version = _installed(name)
    if version is None:
        return Check(name, False, "not installed", pip_install(name))
    detail, mend, pin = version, "", pins()[name]
    if not _is_pin(version, pin):
        detail, mend = f"{version}; the kit is tested with {pin}", pip_install(name)
    module = name.replace("scikit-learn", "sklearn").replace("-", "_")
    try:
        import_module(module)
    except Exception as error:
        detail = f"{detail}; importing it fails: {type(error).__name__}: {plain(str(error))}"
        if broken and not mend:  # most likely for the same reason
            return Check(name, None, f"{detail}; mend what fails above first")
        missing = isinstance(error, ModuleNotFoundError) and error.name != module
        mend = mend or (reinstall() if missing else pip_install("--force-reinstall", "--no-deps", name))
        broken.add(module)
    return Check(name, not mend, detail, mend)


def _is_pin(version: str, pin: str) -> bool:
    return version.partition("+")[0] == pin  # +cpu and +cu130 are builds of one version


def _other_packages() -> Check:
    known = {name: pin for name, pin in pins().items() if name not in DIRECT}
    found = {name: version for name in known if (version := _installed(name))}
    off = [name for name, version in found.items() if not _is_pin(version, known[name])]
    if not off:
        return Check("other packages", True, f"{len(found)} at their pinned versions")
    named = ", ".join(f"{name} {found[name]} (pin {known[name]})" for name in off)
    return Check("other packages", None, f"not as pinned: {named}", pip_install(*off))


def memory() -> tuple[int, int]:
    """Bytes of memory that this machine, or the container it is, has, and how many are free."""
    import psutil

    found = psutil.virtual_memory()
    limit = Path("/sys/fs/cgroup/memory.max")  # a container may own less than the machine has
    text = limit.read_text().strip() if limit.is_file() else "max"
    total = found.total if text == "max" else min(found.total, int(text))
    return total, min(found.available, total)


def _memory() -> Check:
    total, free = memory()
    detail = f"{total / _GB:.1f} GB, {free / _GB:.1f} GB of it available"
    if total < 4 * _GB:
        return Check("memory", None, f"{detail}; 4 GB or more is comfortable")
    if free < 1.5 * _GB:
        return Check("memory", None, f"{detail}; close something: a notebook takes about 1 GB")
    return Check("memory", True, detail)


def _threads(quick: bool) -> Check:
    count, torch = threads.cores(), sys.modules.get("torch")  # whose own row tried
    if not torch or count == 1:
        return Check("threads", True, f"of {count} cores")
    if users := threads.users():
        fix = f"export OMP_NUM_THREADS={count}" if torch.get_num_threads() > count else ""
        return Check("threads", None if fix else True, f"of {count} cores, as you say: {users}", fix)
    found, late = threads.kept() if quick else waiting.once(), threads.too_late()
    how = f"waiting {found['waiting']}, as measured here" if found else "how they should wait is not measured yet"
    detail = f"of {count} cores those that are free, for one row {found.get('one row', 1)}; {how}"
    if found:
        from kit.models.fast_linear import way

        detail += f"; one row by {way(1, 1)}, nine by {way(9, count)}"
    return Check("threads", None if late else True, f"{detail}{late and '; '}{late}")


def _dtype() -> Check:
    import torch

    from kit.models.load import choose_dtype

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype, reason = choose_dtype(device)
    return Check("dtype", True, f"{dtype} on {device}: {reason}".removeprefix("torch."))


def machine_dtype() -> str:
    """In which the embedded model runs here; where torch does not, the one that it is kept in."""
    try:
        from kit.models.load import model_dtype
    except (ImportError, OSError):
        return "bfloat16"
    return model_dtype()


def _model() -> Check:
    dtype = machine_dtype()
    status = weights.status(dtype)
    fix = f"{interpreter()} -m kit fetch"
    if not status["present"]:
        return Check("model", False, f"{weights.EMBEDDED} is not here yet ({dtype})", fix)
    digest = status["sha256"][:12]
    if not status["ok"]:
        return Check("model", False, f"{weights.EMBEDDED}: damaged, sha256 {digest}", fix)
    return Check("model", True, f"{weights.EMBEDDED}, {dtype}, sha256 {digest}")


def _disk() -> Check:
    why, mend = lab.blocked()
    return Check("disk", not why, why or "what JupyterLab and the kit write to can be written", mend)


def _widgets() -> Check:
    ok, detail = lab.widgets()
    mend = f"{pip_install('ipywidgets', 'jupyterlab-widgets')} && jupyter labextension enable {lab.MANAGER}"
    return Check("widgets", ok, detail, "" if ok else mend)


def _lab_starts() -> Check:
    with lab.server() as running:
        quiet = running.asks_nobody()
    detail = f"in {running.seconds:.1f} s; it asks for {'no news and no updates' if quiet else 'news or updates'}"
    return Check("JupyterLab starts", quiet or None, detail, "" if quiet else reinstall())


def _steered_token() -> Check:
    import torch

    import kit

    start = time.perf_counter()
    model = kit.load_model()
    loaded = time.perf_counter()
    direction = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    vector = kit.SteeringVector(direction, model.cfg.n_layers // 2, "doctor")
    run = kit.generate(model, "Say hello.", vector, [0.5], max_new_tokens=1)
    end = time.perf_counter()
    kit.assert_clean(model)
    took = f"libraries and model {loaded - start:.1f} s, first token {end - loaded:.1f} s"
    return Check("steered token", True, f"{run.rows[0].text!r}; {took}; model clean again")
