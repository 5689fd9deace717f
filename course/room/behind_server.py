"""``python -I -S behind_server.py COMMAND``: become a command that meets a seat's limits first.

Kernels and terminals run in this way. When the seat's memory is used up the system ends one of
them rather than the server, however small each is; and when they fork without end, the server still
has a reserve of processes. Neither needs a control group: a process hands both to its children.
"""

from __future__ import annotations

import os
import resource
import sys

TASKS = 512  # processes and threads of a seat, its server's among them
RESERVE = 64  # of these, for the server
BEHIND = [sys.executable, "-I", "-S", os.path.abspath(__file__)]


def main(command: list[str]) -> None:
    """Step back, then turn into the command."""
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    most = TASKS - RESERVE if hard == resource.RLIM_INFINITY else min(hard, TASKS - RESERVE)
    resource.setrlimit(resource.RLIMIT_NPROC, (most, most))  # counts all that the user runs
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
