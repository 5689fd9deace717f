"""The seats of the room: names and hashed passwords in a file of root's, slips to print.

``python -m course.room.slips`` changes them while the hub runs; it looks at the file at each login.
Passwords are random (59 bits), so guessing one is hopeless and no lock-out is needed, with which a
neighbour could be locked out.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import json
import os
import re
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

INSTRUCTOR = "instructor"
NAME = re.compile(r"[a-z][a-z0-9-]{0,22}\Z")  # with the prefix: what useradd takes
_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"  # nothing that looks like something else on paper
_NOBODY = f"{bytes(16).hex()}:{bytes(64).hex()}"  # a salt, and a hash that no password has


@dataclass
class Seats:
    """Who has a seat, and whether the door is open to anyone but the instructor."""

    open: bool = True
    hashes: dict[str, str] = field(default_factory=dict)

    def admits(self, name: str) -> bool:
        return name in self.hashes and (self.open or name == INSTRUCTOR)

    def right(self, name: str, password: str) -> bool:
        """Whether this is the password of the seat (whether the door is open or not)."""
        salt, _, wanted = self.hashes.get(name, _NOBODY).partition(":")  # as much work for no seat
        return hmac.compare_digest(_hash(password, salt), wanted) and name in self.hashes

    def mark(self, name: str) -> str:
        """What stands for the slip that lets somebody in now: another after each ``renew``, and
        empty while the name is not admitted. The password does not follow from it."""
        return hashlib.sha256(self.hashes[name].encode()).hexdigest() if self.admits(name) else ""

    def renew(self, name: str) -> str:
        """A new password for a seat, which is made if it is missing; ValueError for a bad name."""
        if not NAME.match(name):
            raise ValueError(f"name={name!r}: give a letter, then letters a-z, digits or dashes, at most 23")
        letters = [secrets.choice(_ALPHABET) for _ in range(12)]
        password = "-".join("".join(letters[i : i + 4]) for i in (0, 4, 8))
        salt = secrets.token_hex(16)
        self.hashes[name] = f"{salt}:{_hash(password, salt)}"
        return password


def _hash(password: str, salt: str) -> str:
    text = password.encode(errors="replace")[:200]
    return hashlib.scrypt(text, salt=bytes.fromhex(salt), n=2**14, r=8, p=1).hex()


def load(private: Path) -> Seats:
    """The seats of a hub; none while the file is missing. ValueError for a damaged one."""
    file = private / "seats.json"
    if not file.exists():
        return Seats()
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return Seats(found["open"] is True, {str(k): str(v) for k, v in found["seats"].items()})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({error}): restore it, or take it away") from error


def prepare(private: Path, count: int) -> None:
    """The instructor's seat and ``seat01`` up to `count`: the missing ones are made, with slips."""
    names = [INSTRUCTOR, *(f"seat{n:02d}" for n in range(1, count + 1))]

    def change(seats: Seats) -> dict[str, str]:
        return {name: seats.renew(name) for name in names if name not in seats.hashes}

    _change(private, change)


def _change(private: Path, change: Callable[[Seats], dict[str, str]]) -> dict[str, str]:
    """Change the file under its lock; what `change` returns (new passwords) goes to slips.txt."""
    with FileLock(private / ".seats.lock", mode=0o600):
        seats = load(private)
        fresh = change(seats)
        if fresh:  # on paper first: a password that nobody knows opens nothing
            slips = private / "slips.txt"
            old = slips.read_text(encoding="utf-8").splitlines() if slips.exists() else []
            known = dict(line.split() for line in old if len(line.split()) == 2) | fresh
            lines = [f"{name}  {known[name]}\n" for name in sorted(known) if name in seats.hashes]
            _write(slips, "".join(lines))
        _write(private / "seats.json", json.dumps({"open": seats.open, "seats": seats.hashes}, indent=1))
    return fresh


def _write(file: Path, text: str) -> None:
    """Whole or not at all, and for its owner only: mkstemp makes files of mode 0600."""
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
        os.replace(name, file)
    except BaseException:
        os.unlink(name)
        raise


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns 1 with one line on stderr if something is wrong."""
    from course.room import settings

    parser = argparse.ArgumentParser(prog="python -m course.room.slips", description=__doc__)
    parser.add_argument("do", choices=("list", "add", "renew", "remove", "open", "close"))
    parser.add_argument("names", nargs="*", help="seats; for add, renew and remove")
    options = parser.parse_args(arguments)
    if bool(options.names) != (options.do in ("add", "renew", "remove")):
        parser.error(f"{options.do} takes {'no names' if options.names else 'at least one name'}")
    try:
        private = settings.read().private
        if not private.is_dir():
            raise ValueError(f"there is no {private}: start the hub once, or set KIT_HUB_HOME")
        return _do(private, options.do, options.names)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"slips: {error}\n")
        return 1


def _do(private: Path, do: str, names: Sequence[str]) -> int:
    def change(seats: Seats) -> dict[str, str]:
        if do == "add":
            return {name: seats.renew(name) for name in _all(names, seats, there=False)}
        if do == "renew":
            return {name: seats.renew(name) for name in _all(names, seats, there=True)}
        for name in _all(names, seats, there=True):
            del seats.hashes[name]
        if do in ("open", "close"):
            seats.open = do == "open"
        return {}

    fresh = {} if do == "list" else _change(private, change)
    for name, password in fresh.items():
        print(f"{name}  {password}")
    if not fresh:
        seats = load(private)
        there = sorted(seats.hashes)
        print(f"{'open' if seats.open else 'closed'}; {len(there)} seats: {', '.join(there)}")
    return 0


def _all(names: Iterable[str], seats: Seats, *, there: bool) -> list[str]:
    wrong = [name for name in names if (name in seats.hashes) is not there]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: {'no such seat' if there else 'already a seat'}")
    return list(names)


if __name__ == "__main__":
    raise SystemExit(main())
