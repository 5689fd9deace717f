"""A room of people: what is printed and shown for it, what it runs on, and how it goes.

`course` reads the map of the course from the notebooks, `drawing` draws it, `editions` makes a
student and an instructor edition, `gallery` a web site without scripts, `handout` one printed page,
`build` all of them (``kit workshop``). `room` rehearses with real kernels (``kit room``),
`warm_kernels` starts them fast, `machines` reads the reports of a room's machines, and `table`
shows which exercises it is stuck at.
"""
from __future__ import annotations
