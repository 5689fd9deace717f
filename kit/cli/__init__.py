"""The ``kit`` command: one function a command, named after it.

Results go to standard output, progress and errors to standard error. Exit status: 0, 1 when
something is wrong (one line says what), 2 for a command line that is not understood.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from kit.cli import doctor, waiting
from kit.cli.lab import blocked, has_browser, server_options, trust
from kit.models import weights

KIT = Path(__file__).resolve().parents[1]
FIRST = Path("notebooks") / "00_start_here.ipynb"
# what a clone has beside the kit: these commands go to `python -m course`
COURSE = {
    "progress": "what you did with the exercises; the record is on this machine",
    "docs": "write the API reference as web pages that need no server",
    "workshop": "notebooks for students and instructors, pages, a handout",
    "room": "rehearse a workshop: N kernels on this machine, all steering at once",
    "hub": "serve a room of people from this host, as root",
    "table": "where in the exercises a room is, from what its learners share",
}
# Voila's page asks a CDN for an icon font that it also ships. A page that may only talk to its own
# server looks the same and needs no network.
_OWN_SERVER_ONLY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob: ws: wss:; frame-ancestors 'self'"
Command = Callable[[argparse.Namespace, list[str]], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    # of what comes after a course's command even --help is the course's
    given = list(sys.argv[1:] if argv is None else argv)
    if given and (given[0] in COURSE or given[0] == "doctor" and "--workshop" in " ".join(given)):
        return run(parser(), given[:1], given[1:])
    return run(parser(), given)


def parser() -> argparse.ArgumentParser:
    """The command line of ``kit``."""
    parser, add = parser_of("kit", "Steer a language model, live.")
    lab = add(_lab, "open the first notebook in JupyterLab", "jupyter lab")
    lab.add_argument(
        "--warm", action="store_true", help="fork kernels from one that has the model (Linux): many start at once"
    )
    add(_app, "serve the steering panel as a web page", "voila")
    add(_fetch, "download and convert the embedded model, or repair it; needs a network once")
    add(
        _doctor,
        "what works on this machine, and the command that mends the rest; with "
        "--workshop [FOLDER], of a room's machines",
        "the course",
    )
    for name, text in COURSE.items():
        add(_course, text, "the course", name)
    return parser


def parser_of(name: str, about: str) -> tuple[argparse.ArgumentParser, Callable[..., argparse.ArgumentParser]]:
    """A command line of commands, and what adds one to it: a function ``_name`` that takes the
    parsed and the further arguments and returns an exit status, and what it does in words."""
    parser = argparse.ArgumentParser(prog=name, description=about)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def add(run: Command, text: str, more: str = "", name: str = "") -> argparse.ArgumentParser:
        text += f"; further arguments go to {more}" if more else ""
        name = name or run.__name__.removeprefix("_")
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.set_defaults(run=run, takes_more=bool(more))
        return command

    return parser, add


def run(parser: argparse.ArgumentParser, argv: Sequence[str] | None, more: Sequence[str] = ()) -> int:
    """Run the command that a command line names; returns the exit status. ``more`` goes to it
    unread."""
    args, rest = parser.parse_known_args(argv)
    if rest and not args.takes_more:
        parser.error(f"{args.command} does not know {' '.join(rest)}")
    try:
        return args.run(args, [*rest, *more])
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        sys.stderr.write(f"kit {args.command}: {reason}\n")
        return 1


def _course(args: argparse.Namespace, rest: list[str]) -> int:
    if find_spec("course") is None:
        raise FileNotFoundError(
            f"`kit {args.command}` needs the course, which lies beside the kit "
            "in a clone of its repository: run it there"
        )
    return _become("course", args.command, *rest)


def _doctor(args: argparse.Namespace, rest: list[str]) -> int:
    if any(option.startswith("--workshop") for option in rest):
        return _course(args, rest)
    parser = argparse.ArgumentParser(prog="kit doctor", allow_abbrev=False)
    doctor.options(parser)
    return doctor.tell(parser.parse_args(rest))


def _fetch(_args: argparse.Namespace, _rest: list[str]) -> int:
    """Convert the model to the dtypes that are used here; replace a folder that is damaged."""
    wanted = _wanted()
    for dtype in dict.fromkeys(("bfloat16", *wanted)):
        status = weights.status(dtype)
        if status["present"] and not status["ok"]:
            sys.stderr.write(f"{status['path']} is damaged: making it again\n")
            shutil.rmtree(status["path"])
    for dtype in wanted:
        sys.stdout.write(f"{weights.fetch(dtype)}\n")
    waiting.once()
    return 0


def _wanted() -> list[str]:
    """What this machine computes in and, where the course is, what that computes in everywhere."""
    return list(dict.fromkeys((doctor.machine_dtype(), *["float32"] * (find_spec("course") is not None))))


def _lab(args: argparse.Namespace, arguments: list[str]) -> int:
    return _course(args, arguments) if args.warm else open_lab(arguments)


def open_lab(arguments: list[str]) -> int:
    """Become JupyterLab, at the first notebook unless the arguments name something else."""
    need("jupyterlab")
    named = [a for a in arguments if not a.startswith("-") and Path(a).exists()]
    target = [] if named else _open_first(_clone())
    _fetch_where_it_can_write()
    return _become("jupyterlab", *target, *server_options(), *arguments)


def _fetch_where_it_can_write() -> None:
    why, mend = blocked()
    if why:
        raise OSError(f"{why}: {mend}")
    for dtype in _wanted():
        weights.fetch(dtype)
    waiting.once()


def _app(_args: argparse.Namespace, arguments: list[str]) -> int:
    need("voila")
    notebook = KIT / "widgets" / "app.ipynb"
    if not notebook.is_file():
        raise FileNotFoundError(f"{notebook} is missing: install the kit again")
    _fetch_where_it_can_write()
    browser = [] if has_browser() else ["--no-browser"]
    return _become("voila", str(notebook), *app_options(), *browser, *arguments)


def app_options() -> list[str]:
    """What Voila is told: this machine only, no sources, no file but its own, no traceback.

    That a visitor's page cannot run code is Voila's own rule: of the kernel's messages it passes on
    those of widgets (``docs/security.md``, and a test holds it).
    """
    headers = {"headers": {"Content-Security-Policy": _OWN_SERVER_ONLY}}
    return [
        f"--Voila.tornado_settings={headers!r}",
        "--Voila.ip=127.0.0.1",
        "--VoilaConfiguration.strip_sources=True",
        "--VoilaConfiguration.show_tracebacks=False",
        "--VoilaConfiguration.file_allowlist=[]",
        "--VoilaConfiguration.file_denylist=['.*']",
    ]


def need(module: str) -> None:
    """Raises ModuleNotFoundError, with the command that installs it, where a module is missing."""
    if find_spec(module) is None:
        raise ModuleNotFoundError(f"{module} is not installed: {sys.executable} -m pip install {module}")


def _open_first(clone: Path) -> list[str]:
    """Trust the clone's notebooks; the options that open the first of them.

    By URL rather than by file name: the address that a server without a browser prints then leads
    to the notebook too, and the file list shows the whole clone.
    """
    trust((clone / FIRST).parent)
    return [f"--ServerApp.root_dir={clone}", f"--LabApp.default_url=/lab/tree/{FIRST.as_posix()}"]


def _clone() -> Path:
    """This folder if it has the first notebook, else the clone that kit lies in."""
    places = [Path.cwd(), KIT.parent]
    for place in places:
        if (place / FIRST).is_file():
            return place
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
