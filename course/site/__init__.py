"""The course on paper and as pages: what is printed and shown for a room of people.

`course_map` reads the map of the course from the notebooks, `drawing` draws it, `editions` makes a
student and an instructor edition, `gallery` a web site without scripts, `handout` one printed page,
`build` all of them (``kit workshop``). `reference` makes the API reference (``kit docs``).
"""
