"""The ``kit`` command: ``kit doctor``, ``kit fetch``, ``kit lab``, ``kit app``.

Results go to standard output, progress and errors to standard error. Exit status: 0, 1 when
something is wrong (one line says what), 2 for a command line that is not understood.
"""
from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

FIRST = Path("notebooks") / "00_start_here.ipynb"
# Voila's page asks a CDN for an icon font that it also ships. A page that may only talk to its own
# server looks the same and needs no network.
_OWN_SERVER_ONLY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob: ws: wss:; frame-ancestors 'self'"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and args.command not in ("lab", "app"):
        parser.error(f"{args.command} does not know {' '.join(rest)}")
    try:
        if args.command == "doctor":
            return _doctor(as_json=args.json, quick=args.quick)
        if args.command == "fetch":
            return _fetch()
        return _lab(rest) if args.command == "lab" else _app(rest)
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 (a user gets one line, not a traceback)
        reason = " ".join(str(error).split()) or type(error).__name__
        sys.stderr.write(f"kit {args.command}: {reason}\n")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kit", description="Steer a language model, live.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, allow_abbrev=False)

    doctor = add("doctor", "what works on this machine, and the command that mends the rest")
    doctor.add_argument("--json", action="store_true", help="print the table as JSON")
    doctor.add_argument("--quick", action="store_true", help="start no server and load no model")
    add("fetch", "download and convert the embedded model, or repair it; needs a network once")
    add("lab", "open the first notebook in JupyterLab; further arguments go to jupyter lab")
    add("app", "serve the steering panel as a web page; further arguments go to voila")
    return parser


def _doctor(*, as_json: bool, quick: bool) -> int:
    from kit import doctor

    if as_json:
        report = doctor.run(quick)
        sys.stdout.write(json.dumps(report.as_dict(), indent=1) + "\n")
    else:  # the slow rows come last; show the others meanwhile
        report = doctor.run(quick, show=lambda check: print(check, flush=True))
        print(report.summary)
    return 0 if report.ok else 1


def _fetch() -> int:
    """Convert the model to the dtype that this machine uses; replace a folder that is damaged."""
    from kit import weights
    from kit.doctor import model_dtype

    for dtype in dict.fromkeys(("bfloat16", model_dtype())):
        status = weights.status(dtype)
        if status["present"] and not status["ok"]:
            sys.stderr.write(f"{status['path']} is damaged: making it again\n")
            shutil.rmtree(status["path"])
    sys.stdout.write(f"{weights.fetch(model_dtype())}\n")
    return 0


def _lab(arguments: list[str]) -> int:
    from kit import weights
    from kit.doctor import model_dtype

    _need("jupyterlab")
    named = [a for a in arguments if not a.startswith("-") and Path(a).exists()]
    target = [] if named else _open_first()
    if weights.cached(model_dtype()) is None:
        weights.fetch(model_dtype())
    return _become("jupyterlab", *target, *server_options(), *arguments)


def _app(arguments: list[str]) -> int:
    from kit import weights
    from kit.doctor import model_dtype

    _need("voila")
    notebook = Path(__file__).parent / "widgets" / "app.ipynb"
    if not notebook.is_file():
        raise FileNotFoundError(f"{notebook} is missing: install the kit again")
    weights.fetch(model_dtype())
    headers = {"headers": {"Content-Security-Policy": _OWN_SERVER_ONLY}}
    options = [f"--Voila.tornado_settings={headers!r}"]
    if not has_browser():
        options.append("--no-browser")
    return _become("voila", str(notebook), *options, *arguments)


def server_options() -> list[str]:
    """What ``jupyter lab`` needs here: no console browser, and a word for root in a container."""
    options = [] if has_browser() else ["--no-browser"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.append("--allow-root")
    return options


def has_browser() -> bool:
    """Whether opening a page can show one: on Linux that takes a display or ``$BROWSER``."""
    hints = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    return not sys.platform.startswith("linux") or any(os.environ.get(name) for name in hints)


def _need(module: str) -> None:
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise ModuleNotFoundError(
            f"{module} is not installed: {sys.executable} -m pip install {module}"
        )


def _open_first() -> list[str]:
    """Options that open the first notebook of this folder, else of the clone that kit lies in.

    By URL rather than by file name: the address that a server without a browser prints then leads
    to the notebook too, and the file list shows the whole clone.
    """
    places = [Path.cwd(), Path(__file__).resolve().parent.parent]
    for place in places:
        if (place / FIRST).is_file():
            url = f"/lab/tree/{FIRST.as_posix()}"
            return [f"--ServerApp.root_dir={place}", f"--LabApp.default_url={url}"]
    where = " nor in ".join(str(place) for place in dict.fromkeys(places))
    raise FileNotFoundError(
        f"no {FIRST.as_posix()} in {where}; run `kit lab` in a clone of the repository, "
        "or name a notebook or a folder: kit lab PATH"
    )


def _become(module: str, *arguments: str) -> int:
    command = [sys.executable, "-m", module, *arguments]
    if os.name == "nt":  # exec there returns to the prompt while the server runs on
        return subprocess.call(command)
    sys.stdout.flush()
    os.execv(command[0], command)


if __name__ == "__main__":
    raise SystemExit(main())
