"""A JupyterHub for a room of thirty on one host: ``sudo make hub``, or steering-hub.service.

README.md says what to do with it and which ``KIT_HUB_*`` variables it reads. It listens on
loopback, lets nobody in who has no seat, and starts each server as a unix user of its own.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # for `course`

from course import DTYPE
from course.room import cgroups, seats, settings, slips
from course.room.behind_server import TASKS
from kit.base import threads

host = settings.read()
c = get_config()

if os.geteuid() != 0:
    raise PermissionError(f"user {os.geteuid()}: each seat runs as its own unix user, so root must start the hub")
settings.make_folders(host)
if reason := settings.closed_to_others(settings.needed_by_seats(host.cache)):
    raise PermissionError(
        f"{reason}: put the clone into /opt/steering-kit, make its environment there with the "
        "system's Python, and keep KIT_CACHE where every user may read"
    )

# --- where it listens ---------------------------------------------------------------------------

proxy = Path(sys.prefix, "hub-proxy/node_modules/configurable-http-proxy/bin")
node = shutil.which("node", path=f"{os.environ['PATH']}{os.pathsep}{Path(sys.prefix, 'bin')}")
if node is None or not (proxy / "configurable-http-proxy").is_file():
    raise FileNotFoundError(f"the proxy is not in {proxy}: run `make hub` once in the clone")
c.JupyterHub.bind_url = host.url
c.JupyterHub.ssl_cert, c.JupyterHub.ssl_key = host.cert, host.key
c.JupyterHub.hub_bind_url = f"http://127.0.0.1:{host.port + 81}"
c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{host.port + 1}"
c.ConfigurableHTTPProxy.command = [node, str(proxy / "configurable-http-proxy")]
c.ConfigurableHTTPProxy.pid_file = str(host.private / "proxy.pid")

# --- secrets: made at the first start, in a folder of root --------------------------------------

database = host.private / "jupyterhub.sqlite"
os.close(os.open(database, os.O_CREAT | os.O_RDWR, 0o600))
database.chmod(0o600)
c.JupyterHub.db_url = f"sqlite:///{database}"
c.JupyterHub.cookie_secret_file = str(host.private / "cookie_secret")

# --- who may come in ----------------------------------------------------------------------------

c.JupyterHub.authenticator_class = seats.SeatAuthenticator
c.SeatAuthenticator.private = str(host.private)
c.SeatAuthenticator.count = host.seats
c.SeatAuthenticator.username_pattern = slips.NAME.pattern
# With each request, also with a token, also for another's server: is it the present slip?
c.SeatAuthenticator.auth_refresh_age = 1  # second
c.SeatAuthenticator.auth_refresh_strict = c.SeatAuthenticator.refresh_pre_spawn = True

# --- what runs at a seat ------------------------------------------------------------------------

c.Spawner.cmd = [sys.executable, str(ROOT / "course" / "room" / "seat_server.py")]
c.Spawner.default_url = "/lab/tree/notebooks/00_start_here.ipynb"
c.Spawner.disable_user_config = True  # a server's own door is not its user's to open
c.Spawner.environment = {
    "KIT_CACHE": str(host.cache),
    "KIT_HUB_NOTEBOOKS": str(ROOT / "notebooks"),
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "KIT_DTYPE": DTYPE,  # one for all seats, whatever CPUs they have
    "TOKENIZERS_PARALLELISM": "false",
}
# what the instructor's table reads; one dtype for all; how threads wait, where a seat has several
for name in ("KIT_TABLE", "KIT_DTYPE", *threads.WAITS):
    if given := os.environ.get(name):
        c.Spawner.environment[name] = given
c.Spawner.mem_limit = host.memory or None
c.Spawner.cpu_limit = host.cpus or None
c.Spawner.poll_interval = 10  # seconds until the hub sees that a server died
c.Spawner.start_timeout = 180
c.Spawner.http_timeout = 120

if Path("/run/systemd/system").is_dir():
    c.JupyterHub.spawner_class = seats.SystemdSeat
    c.SystemdSeat.prefix = host.prefix
    c.SystemdSeat.username_template = host.prefix + "{USERNAME}"
    c.SystemdSeat.unit_name_template = host.prefix + "{USERNAME}"
    c.SystemdSeat.default_shell = "/bin/bash"
    c.SystemdSeat.isolate_tmp = True
    c.SystemdSeat.isolate_devices = True
    c.SystemdSeat.disable_user_sudo = True
    c.SystemdSeat.readonly_paths = [str(host.cache), str(ROOT)]
    # Equal weights: when all press at once, each gets its share of the cores.
    # A kernel that meets the memory limit ends alone, not the unit with it.
    c.SystemdSeat.unit_extra_properties = {
        "CPUWeight": "100",
        "TasksMax": str(TASKS),
        "MemorySwapMax": "0",
        "OOMPolicy": "continue",
        "UMask": "0077",
    }
else:
    c.JupyterHub.spawner_class = seats.LocalSeat
    c.LocalSeat.prefix = host.prefix
    if host.memory or host.cpus:
        cgroups.find()  # better no hub than limits that do not hold

# --- thirty at once -----------------------------------------------------------------------------

c.JupyterHub.concurrent_spawn_limit = 8  # the others queue; their page says so
c.JupyterHub.active_server_limit = host.seats + 5
c.JupyterHub.allow_named_servers = False
c.JupyterHub.load_roles = [
    {  # sees who is here, starts and stops servers; opens nobody's files, makes nobody an admin
        "name": "instructor",
        "scopes": ["admin-ui", "list:users", "read:users", "servers"],
        "users": [slips.INSTRUCTOR],
    },
    {
        "name": "idle-culler",
        "scopes": ["list:users", "read:users:activity", "read:servers", "delete:servers"],
        "services": ["idle-culler"],
    },
]
c.JupyterHub.services = [
    {
        "name": "idle-culler",
        "command": [sys.executable, "-m", "jupyterhub_idle_culler", f"--timeout={host.idle}"],
        "user": "nobody",
    }
]

own = host.private / "local_config.py"
if own.is_file():  # of root, in root's folder: another authenticator, another limit
    load_subconfig(str(own))
