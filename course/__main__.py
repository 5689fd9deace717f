"""``python -m course``: the commands of ``kit`` that belong to the course, one function each."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from kit.cli import parser_of, run


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser, add = parser_of("kit", "What makes the notebooks a course.")
    progress = add(_progress, "what you did with the exercises; the record is on this machine")
    progress.add_argument("--json", action="store_true", help="print it as JSON")
    progress.add_argument(
        "--reset", nargs="?", const="", metavar="ID", help="forget exercise ID (01.2), or all of them"
    )
    docs = add(_docs, "write the API reference as web pages that need no server")
    docs.add_argument("--out", default="build/docs", help="the folder (default: %(default)s)")
    workshop = add(_workshop, "notebooks for students and instructors, pages, a handout")
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
    _doctor_options(add(_doctor, "what works on the machines of a room"))
    return run(parser, argv)


def _progress(args: argparse.Namespace, _rest: list[str]) -> int:
    from course.exercises import summary

    if args.reset is not None:
        print(summary.forget(args.reset))
    elif args.json:
        sys.stdout.write(json.dumps(summary.summary(), indent=1) + "\n")
    else:
        print(summary.text())
    return 0


def _docs(args: argparse.Namespace, _rest: list[str]) -> int:
    from course.site import reference

    sys.stdout.write(f"{reference.build(args.out)}\n")
    return 0


def _workshop(args: argparse.Namespace, _rest: list[str]) -> int:
    from course.site.build import build

    said = build(args.out, args.names, repository=args.repository, branch=args.branch, address=args.address)
    sys.stdout.write("\n".join(said) + "\n")
    return 0


def _room(args: argparse.Namespace, _rest: list[str]) -> int:
    from course.room import rehearsal

    return rehearsal.main(args.kernels, args.notebook, args.cells, args.warm, args.json)


def _hub(_args: argparse.Namespace, arguments: list[str]) -> int:
    from course.room import hub

    return hub.main(arguments)


def _table(args: argparse.Namespace, _rest: list[str]) -> int:
    from course.room.table import read_room

    print(read_room(args.folder).text(args.notebook))
    return 0


def _doctor_options(parser: argparse.ArgumentParser) -> None:
    from kit.cli import doctor

    doctor.options(parser)
    parser.add_argument(
        "--workshop",
        nargs="?",
        const="",
        metavar="FOLDER",
        help="judge every machine of a room "
        "by its `kit doctor --json` in FOLDER; without one, this machine as the room's host",
    )


def _doctor(args: argparse.Namespace, _rest: list[str]) -> int:
    from course.room import machines
    from kit.cli import doctor

    if not args.workshop:
        return doctor.tell(args, machines.host() if args.workshop is not None else ())
    found = machines.machines(args.workshop)
    if args.json:
        sys.stdout.write(json.dumps([vars(machine) for machine in found], indent=1) + "\n")
    else:
        print(*found, machines.summary(found), sep="\n")
    return 0 if all(machine.ok for machine in found) else 1


if __name__ == "__main__":
    raise SystemExit(main())
