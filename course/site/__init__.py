"""The course on paper and as pages: what is printed and shown for a room of people.

`course_map` reads the map of the course from the notebooks, `editions` makes a student and an
instructor edition, `pages` a web site without scripts and one printed page, `build` all of them
(``kit workshop``). `reference` makes the API reference (``kit docs``).
"""
