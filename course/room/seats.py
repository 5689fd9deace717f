"""Who may sit down, and what runs there: the hub's authenticator and its two spawners.

A seat is a name, a password on a slip of paper and a unix account of its own, ``kit-NAME``. The
account is made when the seat's server first starts; a hub user is never another account of the
host, whatever the name. systemd keeps the seats where it runs; elsewhere `LocalSeat` does.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import secrets
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jupyterhub import orm
from jupyterhub.auth import Authenticator
from jupyterhub.spawner import LocalProcessSpawner, set_user_setuid
from jupyterhub.utils import maybe_future
from systemdspawner import SystemdSpawner
from tornado.ioloop import IOLoop, PeriodicCallback
from traitlets import Integer, Unicode

from course.room import slips
from course.room.behind_server import TASKS
from course.room.cgroups import Group, find

MARK = "steering-kit seat"  # in the accounts that the hub made, and in no other
SWEEP = 3  # seconds between two looks at the slips
_END_ALL = "import os; os.kill(-1, 9)"  # all that this user may signal


class SeatAuthenticator(Authenticator):
    """Closed to strangers: seats exist before anyone comes, each with a random password.

    Missing seats are made when the hub starts and written to ``slips.txt`` (mode 0600). There is no
    sign-up page.

    The mark of the slip that let a user in is kept as the user's ``cookie_id``, which every session
    cookie must match. Where the present slip is another one, or none, what the earlier one opened
    is ended: cookies, tokens, OAuth codes, the server and all that it started.
    """

    private = Unicode(help="folder of the seats' files, for root only", config=True)
    count = Integer(30, help="how many seats there are, next to the instructor's", config=True)
    any_allow_config = True  # check_allowed decides

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        slips.prepare(Path(self.private), self.count)
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._gone: set[str] = set()  # who has no slip now and nothing left to end
        if self.parent is not None:
            PeriodicCallback(self.sweep, 1000 * SWEEP).start()

    async def authenticate(self, handler: Any, data: dict[str, str]) -> str | None:
        name = self.normalize_username(data["username"].strip())
        seats = slips.load(Path(self.private))
        password = data["password"].strip()
        mark = seats.mark(name)
        if not await asyncio.to_thread(seats.right, name, password) or not mark:
            return None
        handler.user_from_username(name)  # so that there is one whom `settle` can mark
        await self.settle(name)
        return name if self._mark(name) == mark else None  # another slip by now

    def check_allowed(self, username: str, authentication: Any = None) -> bool:
        return bool(self._mark(username))

    async def refresh_user(self, user: Any, handler: Any = None, **kwargs: Any) -> bool:
        """Whether the user came with the present slip; asked at each request, whatever it shows."""
        return user.cookie_id == self._mark(user.name)

    def _mark(self, name: str) -> str:
        return slips.load(Path(self.private)).mark(name)

    async def sweep(self) -> None:
        """Begin to end what earlier slips opened; one slow server keeps no other waiting."""
        if "users" not in self.parent.tornado_settings:  # the hub is still starting
            return
        seats = slips.load(Path(self.private))
        for name, cookie in self.parent.db.query(orm.User.name, orm.User.cookie_id):
            mark = seats.mark(name)
            if cookie != mark and (mark or name not in self._gone) and not self._turns[name].locked():
                IOLoop.current().spawn_callback(self.settle, name)

    async def settle(self, name: str) -> None:
        """When this returns nobody is in with an earlier slip of a seat."""
        async with self._turns[name]:
            mark = self._mark(name)
            user = self.parent.users.get(name)
            if user is None or user.cookie_id == mark:
                return
            self._revoke(user, "")
            for spawner in list(user.spawners.values()):
                while spawner.pending:  # a start or stop can only be waited for
                    await asyncio.sleep(0.2)
                if spawner.ready:
                    spawner._stop_pending = True  # nobody else may begin
                    try:
                        await self.parent.proxy.delete_user(user, spawner.name)
                    finally:
                        await user.stop(spawner.name)
            self._revoke(user, mark)
            (self._gone.discard if mark else self._gone.add)(name)

    def _revoke(self, user: Any, mark: str) -> None:
        for row in (*user.orm_user.api_tokens, *user.orm_user.oauth_codes):
            self.parent.db.delete(row)
        user.orm_user.cookie_id = mark or secrets.token_hex(32)
        self.parent.db.commit()


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


class _Seat:
    """Starts with its account and nothing of an earlier server; ends with all of its processes."""

    prefix: Any
    user: Any

    async def start(self) -> Any:
        await account(self.user.name, self.prefix)
        await self.end_all()
        return await super().start()

    async def run_post_stop_hook(self) -> None:
        """Called for a server that the hub stops and for one that the hub finds dead."""
        await self.end_all()
        await maybe_future(super().run_post_stop_hook())

    async def end_all(self) -> None:
        """Kill every process of the account at once, so that none can fork out of the way.

        Kernels and what they start are sessions of their own, which signals to the server miss.
        """
        try:
            entry = pwd.getpwnam(self.prefix + self.user.name)
        except KeyError:
            return
        if entry.pw_gecos.split(",")[0] == MARK and entry.pw_uid != 0:
            ids = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": ()}
            command = [sys.executable, "-I", "-S", "-c", _END_ALL]
            await asyncio.to_thread(subprocess.run, command, stdin=subprocess.DEVNULL, cwd="/", check=True, **ids)


class SystemdSeat(_Seat, SystemdSpawner):
    """A transient systemd unit for each seat; limits and a private /tmp are systemd's."""

    prefix = Unicode("kit-", config=True)


class LocalSeat(_Seat, LocalProcessSpawner):
    """A process of the seat's account in a control group of its own."""

    prefix = Unicode("kit-", config=True)
    tasks = Integer(TASKS, help="processes and threads of one seat", config=True)
    group: Group | None = None

    async def end_all(self) -> None:
        await super().end_all()
        if self.group is not None:
            await asyncio.to_thread(self.group.remove)  # with those of another user id, too
            self.group = None

    def make_preexec_fn(self, name: str) -> Callable[[], None]:
        become = set_user_setuid(self.prefix + name)
        memory, cpus = int(self.mem_limit or 0), float(self.cpu_limit or 0)
        if memory or cpus:
            self.group = Group(self.prefix + name, memory=memory, cpus=cpus, tasks=self.tasks, places=find())
        group = self.group

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
