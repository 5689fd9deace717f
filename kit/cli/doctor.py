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
from dataclasses import asdict, dataclass
from functools import partial
from html import escape
from importlib import metadata
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

from kit import __version__
from kit.base.progress import cores
from kit.cli.pins import interpreter, pins, pip_install, reinstall
from kit.models.load import _device_dtype, model_dtype

# The packages that kit imports itself: pyproject.toml's dependencies.
DIRECT = (
    "torch",
    "transformers",
    "transformer-lens",
    "numpy",
    "sae-lens",
    "safetensors",
    "gguf",
    "pandas",
    "scikit-learn",
    "matplotlib",
    "circuitsvis",
    "jupyterlab",
    "ipywidgets",
    "anywidget",
    "filelock",
    "packaging",
    "platformdirs",
    "psutil",
)
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
        cell = "padding:2px 10px;text-align:left;vertical-align:top"
        rows = []
        for check in self.checks:
            fix = f"<br><code>{escape(check.fix)}</code>" if check.fix else ""
            word = f'<b style="color:{_COLOURS[check.word]}">{check.word}</b>'
            columns = (word, escape(check.name), escape(check.detail) + fix)
            rows.append("".join(f'<td style="{cell}">{text}</td>' for text in columns))
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table>{body}</table><p>{escape(self.summary)}</p>"


def run(
    quick: bool = False, *, more: Iterable[Check] = (), show: Callable[[Check], None] | None = None
) -> DoctorReport:
    """Examine this machine.

    Args:
        quick: start no server and load no model (two seconds instead of about twenty).
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
    if args.json:
        report = run(args.quick, more=more)
        sys.stdout.write(json.dumps(report.as_dict(), indent=1) + "\n")
    else:  # the slow rows come last; show the others meanwhile
        report = run(args.quick, more=more, show=lambda check: print(check, flush=True))
        print(report.summary)
    return 0 if report.ok else 1


def _checks(quick: bool) -> Iterator[Check]:
    lab = pip_install("jupyterlab", "ipywidgets")
    # name, what it looks at, modules it cannot do without, the command to try when it raises
    table: list[tuple[str, Callable[[], Check], tuple[str, ...], str]] = [
        ("Python", _python_version, (), "make clean && make lab PYTHON=python3.12"),
        *((name, partial(_package, name), _version_needs(name), pip_install(name)) for name in DIRECT),
        ("other packages", _other_packages, ("packaging",), reinstall()),
        ("memory", _memory, ("psutil",), pip_install("psutil")),
        ("cores", _cores, (), "unset OMP_NUM_THREADS"),
        ("dtype", _dtype, ("torch",), "unset KIT_DTYPE" if os.environ.get("KIT_DTYPE") else pip_install("torch")),
        ("model", _model, ("platformdirs",), f"{interpreter()} -m kit fetch"),
        ("widgets", _widgets, ("ipywidgets", "jupyterlab"), lab),
    ]
    if not quick:
        table += [
            ("JupyterLab starts", _lab_starts, ("jupyterlab",), lab),
            ("steered token", _steered_token, ("torch", "transformer_lens"), pip_install("torch")),
        ]
    broken: set[str] = set()
    for name, look, needs, fix in table:
        check = _guarded(name, look, needs, fix, broken)
        if check.ok is False:
            broken.add(name)
        yield check


def _guarded(name: str, look: Callable[[], Check], needs: tuple[str, ...], fix: str, broken: set[str]) -> Check:
    absent = [module for module in needs if find_spec(module) is None]
    rests_on = {"model": ("dtype",), "steered token": ("dtype", "model")}.get(name, ())
    absent += [f"the {row}" for row in rests_on if row in broken]
    if absent:
        return Check(name, None, f"not tried: needs {', '.join(absent)}")
    try:
        return look()
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        return Check(name, False, f"{type(error).__name__}: {text}", fix)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _version_needs(name: str) -> tuple[str, ...]:
    return () if name == "packaging" else ("packaging",)  # it reads the pins


def _python_version() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < (3, 10):
        fix = "make clean && make lab PYTHON=python3.12"
        return Check("Python", False, f"{version}; the kit needs 3.10 or newer", fix)
    isolated = sys.prefix != sys.base_prefix or "CONDA_PREFIX" in os.environ
    return Check("Python", True, version + ("" if isolated else ", not in an environment"))


def _package(name: str) -> Check:
    version = _installed(name)
    if version is None:
        return Check(name, False, "not installed", pip_install(name))
    pin = pins().get(name)
    if pin is None:
        return Check(name, None, f"{version}; constraints.txt pins no version")
    if version.split("+")[0] != pin:  # +cpu and +cu130 are builds of one version
        return Check(name, False, f"{version}; the kit is tested with {pin}", pip_install(name))
    return Check(name, True, version)


def _other_packages() -> Check:
    known = {name: pin for name, pin in pins().items() if name not in DIRECT}
    found = {name: version for name in known if (version := _installed(name))}
    other = [f"{n} {v} (pin {known[n]})" for n, v in found.items() if v.split("+")[0] != known[n]]
    if not other:
        return Check("other packages", True, f"{len(found)} at their pinned versions")
    more = f" and {len(other) - 4} more" if len(other) > 4 else ""
    other[4:] = []
    return Check("other packages", None, f"not as pinned: {', '.join(other)}{more}", reinstall())


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


def _cores() -> Check:
    count = cores()
    if find_spec("torch") is None:
        return Check("cores", True, str(count))
    import torch

    threads = torch.get_num_threads()
    detail = f"{count}; torch uses {threads}"
    fix = f"export OMP_NUM_THREADS={count}" if threads > count else ""
    return Check("cores", None if fix else True, detail, fix)


def _dtype() -> Check:
    device, dtype, reason = _device_dtype()
    return Check("dtype", True, f"{dtype} on {device}: {reason}".removeprefix("torch."))


def _model() -> Check:
    from kit.models import weights

    dtype = model_dtype() if find_spec("torch") else "bfloat16"
    status = weights.status(dtype)
    fix = f"{interpreter()} -m kit fetch"
    if not status["present"]:
        return Check("model", False, f"{weights.EMBEDDED} is not here yet ({dtype})", fix)
    digest = status["sha256"][:12]
    if not status["ok"]:
        return Check("model", False, f"{weights.EMBEDDED}: damaged, sha256 {digest}", fix)
    return Check("model", True, f"{weights.EMBEDDED}, {dtype}, sha256 {digest}")


def _widgets() -> Check:
    from kit.cli import lab as labcheck

    ok, detail = labcheck.widgets()
    fix = pip_install("ipywidgets", "jupyterlab-widgets")
    return Check("widgets", ok, detail, "" if ok else fix)


def _lab_starts() -> Check:
    from kit.cli import lab as labcheck

    with labcheck.server() as lab:
        quiet = lab.asks_nobody()
        detail = f"in {lab.seconds:.1f} s"
    if quiet:
        return Check("JupyterLab starts", True, f"{detail}; it asks for no news and no updates")
    return Check("JupyterLab starts", None, f"{detail}; it asks for news or updates", reinstall())


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
    if left := kit.hooks_left(model):
        raise RuntimeError(f"hooks left on the model after generating: {', '.join(left)}")
    took = f"libraries and model {loaded - start:.1f} s, first token {end - loaded:.1f} s"
    return Check("steered token", True, f"{run.rows[0].text!r}; {took}; model clean again")
