"""Who may sit down, and what runs there: the hub's authenticator and its two spawners.

A seat is a name, a password on a slip of paper and a unix account of its own, ``kit-NAME``. The
account is made when the seat's server first starts; a hub user is never another account of the
host, whatever the name. systemd keeps the seats where it runs; elsewhere `LocalSeat` does.
"""

from __future__ import annotations

import asyncio
import os
import pwd
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jupyterhub.auth import Authenticator
from jupyterhub.spawner import LocalProcessSpawner, set_user_setuid
from systemdspawner import SystemdSpawner
from traitlets import Integer, Unicode

from course.room import slips
from course.room.cgroups import Group, find

MARK = "steering-kit seat"  # in the accounts that the hub made, and in no other


class SeatAuthenticator(Authenticator):
    """Closed to strangers: seats exist before anyone comes, each with a random password.

    Missing seats are made when the hub starts and written to ``slips.txt`` (mode 0600). There is no
    sign-up page.
    """

    private = Unicode(help="folder of the seats' files, for root only", config=True)
    count = Integer(30, help="how many seats there are, next to the instructor's", config=True)
    any_allow_config = True  # check_allowed decides

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        slips.prepare(Path(self.private), self.count)

    async def authenticate(self, handler: Any, data: dict[str, str]) -> str | None:
        name = self.normalize_username(data["username"].strip())
        seats = slips.load(Path(self.private))
        password = data["password"].strip()
        return name if await asyncio.to_thread(seats.right, name, password) else None

    def check_allowed(self, username: str, authentication: Any = None) -> bool:
        return slips.load(Path(self.private)).admits(username)

    async def refresh_user(self, user: Any, handler: Any = None, **kwargs: Any) -> bool:
        """Whoever lost the seat is logged out at the next request."""
        return self.check_allowed(user.name)


# --- accounts ---------------------------------------------------------------------------------

_one_at_a_time = asyncio.Lock()


async def account(name: str, prefix: str) -> pwd.struct_passwd:
    """The unix account of a seat, made if it is missing: no password, a home of mode 0700.

    Raises ValueError for a name that is none, or an account that the hub did not make;
    RuntimeError when useradd fails.
    """
    if not slips.NAME.match(name):
        raise ValueError(f"name={name!r}: give letters a-z, digits and dashes, at most 23")
    login = prefix + name
    async with _one_at_a_time:  # useradd locks the password file
        try:
            entry = pwd.getpwnam(login)
        except KeyError:
            command = [
                "useradd",
                "--create-home",
                "--user-group",
                "--shell",
                "/bin/bash",
                "--key",
                "HOME_MODE=0700",
                "--comment",
                MARK,
                login,
            ]
            done = await asyncio.create_subprocess_exec(
                *command, stderr=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.DEVNULL
            )
            _, said = await done.communicate()
            if done.returncode:
                reason = said.decode(errors="replace").strip()
                raise RuntimeError(f"useradd made no account {login}: {reason}") from None
            entry = pwd.getpwnam(login)
    if entry.pw_gecos.split(",")[0] != MARK or entry.pw_uid == 0:
        raise ValueError(f"name={name!r}: {login} is an account that the hub did not make")
    home = os.stat(entry.pw_dir, follow_symlinks=False)
    if home.st_uid != entry.pw_uid or home.st_mode & 0o077:
        raise ValueError(f"name={name!r}: {entry.pw_dir} is not private: give it mode 0700")
    return entry


# --- spawners ---------------------------------------------------------------------------------


class SystemdSeat(SystemdSpawner):
    """A transient systemd unit for each seat; limits and a private /tmp are systemd's."""

    prefix = Unicode("kit-", config=True)

    async def start(self) -> Any:
        await account(self.user.name, self.prefix)
        return await super().start()


class LocalSeat(LocalProcessSpawner):
    """A process of the seat's account in a control group of its own."""

    prefix = Unicode("kit-", config=True)
    tasks = Integer(512, help="processes and threads of one seat", config=True)
    group: Group | None = None

    async def start(self) -> Any:
        entry = await account(self.user.name, self.prefix)
        memory, cpus = int(self.mem_limit or 0), float(self.cpu_limit or 0)
        if memory or cpus:
            self.group = Group(entry.pw_name, memory=memory, cpus=cpus, tasks=self.tasks, places=find())
        return await super().start()

    async def stop(self, now: bool = False) -> None:
        await super().stop(now=now)
        if self.group is not None:
            await asyncio.to_thread(self.group.remove)  # kernels that outlive their server too
            self.group = None

    def make_preexec_fn(self, name: str) -> Callable[[], None]:
        become, group = set_user_setuid(self.prefix + name), self.group

        def before_the_server() -> None:  # still root
            if group is not None:
                group.enter()
            os.umask(0o077)
            become()

        return before_the_server

    def user_env(self, env: dict[str, str]) -> dict[str, str]:
        entry = pwd.getpwnam(self.prefix + self.user.name)
        own = {"USER": entry.pw_name, "HOME": entry.pw_dir, "SHELL": entry.pw_shell}
        return env | own
