"""A room of people on one host: its hub, rehearsals, machines, and where everybody is.

`hub` starts a JupyterHub that ``jupyterhub_config.py`` sets up from `settings`, `slips`, `seats`,
`cgroups`, `seat_server`. `rehearsal` runs real kernels side by side (``kit room``), `warm_kernels`
forks kernels from one that has the model (``kit lab --warm``). `machines` reads the reports of a
room's machines (``kit doctor --workshop``), `table` and `room_table` show where everybody is.
"""
