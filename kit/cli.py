"""The ``kit`` command: one function a command, named after it.

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
from collections.abc import Callable, Sequence
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
    if rest and not args.takes_more:
        parser.error(f"{args.command} does not know {' '.join(rest)}")
    try:
        return args.run(args, rest)
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 (a user gets one line, not a traceback)
        reason = " ".join(str(error).split()) or type(error).__name__
        sys.stderr.write(f"kit {args.command}: {reason}\n")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kit", description="Steer a language model, live.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def add(run: Callable[..., int], text: str, more: str = "") -> argparse.ArgumentParser:
        text += f"; further arguments go to {more}" if more else ""
        name = run.__name__.removeprefix("_")
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.set_defaults(run=run, takes_more=bool(more))
        return command

    lab = add(_lab, "open the first notebook in JupyterLab", "jupyter lab")
    lab.add_argument("--warm", action="store_true",
                     help="fork kernels from one that has the model (Linux): many start at once")
    add(_app, "serve the steering panel as a web page", "voila")
    add(_fetch, "download and convert the embedded model, or repair it; needs a network once")
    doctor = add(_doctor, "what works on this machine, and the command that mends the rest")
    doctor.add_argument("--json", action="store_true", help="print the table as JSON")
    doctor.add_argument("--quick", action="store_true", help="start no server and load no model")
    doctor.add_argument(
        "--workshop", nargs="?", const="", metavar="FOLDER", help="judge every machine of a room "
        "by its `kit doctor --json` in FOLDER; without one, this machine as the room's host")
    progress = add(_progress, "what you did with the exercises; the record is on this machine")
    progress.add_argument("--json", action="store_true", help="print it as JSON")
    progress.add_argument("--reset", nargs="?", const="", metavar="ID",
                          help="forget exercise ID (01.2), or all of them")
    docs = add(_docs, "write the API reference as web pages that need no server")
    docs.add_argument("--out", default="build/docs", help="the folder (default: %(default)s)")
    workshop = add(_workshop, "notebooks for students and instructors, a gallery, a handout")
    workshop.add_argument("names", nargs="*", metavar="NOTEBOOK", help="03 or a file; default: all")
    workshop.add_argument("--out", default="build/workshop", type=Path, help="folder to make")
    workshop.add_argument("--repository", default="", metavar="URL", help="for Colab and links.md")
    workshop.add_argument("--branch", default="main", help="of the repository, with student/ in it")
    workshop.add_argument("--address", default="", metavar="URL", help="the room's, on the handout")
    room = add(_room, "rehearse a workshop: N kernels on this machine, all steering at once")
    room.add_argument("--kernels", type=int, default=30, metavar="N", help="how many (30)")
    room.add_argument("--notebook", type=Path, help="a notebook with a panel (the first)")
    room.add_argument("--cells", type=int, metavar="N", help="run only its first N code cells")
    room.add_argument("--warm", action="store_true", help="fork the kernels from a warm one (Linux)")
    room.add_argument("--json", action="store_true", help="print the figures as JSON")
    add(_hub, "serve a room of people from this host, as root", "jupyterhub")
    table = add(_table, "where in the exercises a room is, from what its learners share")
    table.add_argument("folder", help="the folder that learners share with (KIT_TABLE)")
    table.add_argument("--notebook", metavar="NN", help="one notebook alone (02)")
    return parser


def _doctor(args: argparse.Namespace, _rest: list[str]) -> int:
    from kit import doctor
    from kit.workshop import machines

    if args.workshop:
        return _machines(args.workshop, args.json)
    more = machines.host() if args.workshop is not None else ()
    if args.json:
        report = doctor.run(args.quick, more=more)
        sys.stdout.write(json.dumps(report.as_dict(), indent=1) + "\n")
    else:  # the slow rows come last; show the others meanwhile
        report = doctor.run(args.quick, more=more, show=lambda check: print(check, flush=True))
        print(report.summary)
    return 0 if report.ok else 1


def _machines(folder: str, as_json: bool) -> int:
    from kit.workshop import machines

    found = machines.machines(folder)
    if as_json:
        sys.stdout.write(json.dumps([vars(machine) for machine in found], indent=1) + "\n")
    else:
        print(*found, machines.summary(found), sep="\n")
    return 0 if all(machine.ok for machine in found) else 1


def _progress(args: argparse.Namespace, _rest: list[str]) -> int:
    from kit.exercises import summary

    if args.reset is not None:
        print(summary.forget(args.reset))
    elif args.json:
        sys.stdout.write(json.dumps(summary.summary(), indent=1) + "\n")
    else:
        print(summary.text())
    return 0


def _table(args: argparse.Namespace, _rest: list[str]) -> int:
    from kit.workshop.table import read_room

    print(read_room(args.folder).text(args.notebook))
    return 0


def _fetch(_args: argparse.Namespace, _rest: list[str]) -> int:
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


def _docs(args: argparse.Namespace, _rest: list[str]) -> int:
    from kit import reference

    sys.stdout.write(f"{reference.build(args.out)}\n")
    return 0


def _workshop(args: argparse.Namespace, _rest: list[str]) -> int:
    from kit.workshop.build import build

    said = build(args.out, args.names, repository=args.repository, branch=args.branch,
                 address=args.address)
    sys.stdout.write("\n".join(said) + "\n")
    return 0


def _lab(args: argparse.Namespace, arguments: list[str]) -> int:
    from kit import weights
    from kit.doctor import model_dtype

    _need("jupyterlab")
    if args.warm:
        from kit.workshop import warm_kernels

        warm_kernels.switch_on()
    named = [a for a in arguments if not a.startswith("-") and Path(a).exists()]
    target = [] if named else _open_first()
    if weights.cached(model_dtype()) is None:
        weights.fetch(model_dtype())
    return _become("jupyterlab", *target, *server_options(), *arguments)


def _app(_args: argparse.Namespace, arguments: list[str]) -> int:
    from kit import weights
    from kit.doctor import model_dtype

    _need("voila")
    notebook = Path(__file__).parent / "widgets" / "app.ipynb"
    if not notebook.is_file():
        raise FileNotFoundError(f"{notebook} is missing: install the kit again")
    weights.fetch(model_dtype())
    browser = [] if has_browser() else ["--no-browser"]
    return _become("voila", str(notebook), *app_options(), *browser, *arguments)


def app_options() -> list[str]:
    """What Voila is told: this machine only, no sources, no file but its own, no traceback.

    That a visitor's page cannot run code is Voila's own rule: of the kernel's messages it passes on
    those of widgets (``docs/security.md``, and a test holds it).
    """
    headers = {"headers": {"Content-Security-Policy": _OWN_SERVER_ONLY}}
    return [f"--Voila.tornado_settings={headers!r}", "--Voila.ip=127.0.0.1",
            "--VoilaConfiguration.strip_sources=True", "--VoilaConfiguration.show_tracebacks=False",
            "--VoilaConfiguration.file_allowlist=[]",
            "--VoilaConfiguration.file_denylist=['.*']"]  # fmt: skip


def _room(args: argparse.Namespace, _rest: list[str]) -> int:
    from kit.workshop import room

    return room.main(args.kernels, args.notebook, args.cells, args.warm, args.json)


def _hub(_args: argparse.Namespace, arguments: list[str]) -> int:
    _need("jupyterhub")
    clone = Path(__file__).resolve().parent.parent
    if not (clone / "workshop" / "jupyterhub_config.py").is_file():
        raise FileNotFoundError(f"no {clone / 'workshop'}: run `kit hub` from a clone")
    os.chdir(clone)  # where `python -m` finds the package
    return _become("workshop", *arguments)


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
