"""The prerequisites as a picture: a layered graph in SVG, without a layout library.

A notebook stands one row below the lowest of those that it needs or that help it. Lines that pass
a row get a place in it; rows are ordered by the mean place of their neighbours, up and down a few
times, which keeps crossings few (Sugiyama, Tagawa and Toda 1981).
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from course.site.course_map import Lesson


BOX = (222, 46)  # width and height of a notebook
_ROW, _GAP, _PASS = 84, 22, 10  # distance of rows; between places; width of a line's place
_MARGIN = 10

Place = tuple[int, str]  # row, and a notebook's number or a line's name
Routes = dict[tuple[str, str], list[Place]]


def chart(lessons: Sequence[Lesson], linked: Set[str] = frozenset()) -> str:
    """The map as SVG.

    Args:
        lessons: in an order in which prerequisites come first; needs outside of them are ignored.
        linked: numbers whose boxes link to ``STEM.html``.
    """
    by_number = {lesson.number: lesson for lesson in lessons}
    rows, routes = _layers(by_number, _edges(by_number))
    x = _positions(rows, routes)
    width = max(x[p] + _width(p) / 2 for row in rows for p in row) + _MARGIN
    height = _ROW * (len(rows) - 1) + BOX[1] + 2 * _MARGIN
    lines = [_line(route, x, helps=edge in _helps(by_number)) for edge, route in routes.items()]
    boxes = [
        _box(by_number[name], x[(row, name)], row, linked)
        for row, places in enumerate(rows)
        for _, name in places
        if name in by_number
    ]
    return (
        f'<svg class="map" role="group" aria-label="What each notebook needs" width="{width:.0f}" '
        f'height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'xmlns="http://www.w3.org/2000/svg"><g aria-hidden="true">{"".join(lines)}</g>'
        f"{''.join(boxes)}</svg>"
    )


def _helps(lessons: dict[str, Lesson]) -> set[tuple[str, str]]:
    return {(a, b.number) for b in lessons.values() for a in b.helps if a in lessons}


def _edges(lessons: dict[str, Lesson]) -> list[tuple[str, str]]:
    """From what is needed to what needs it; a need that another one implies is left out."""
    needs = {n: {a for a in lesson.after if a in lessons} for n, lesson in lessons.items()}
    above: dict[str, set[str]] = {}
    for number in lessons:  # prerequisites come first
        above[number] = set().union(*(above[a] | {a} for a in needs[number]))
    direct = [(a, n) for n in lessons for a in sorted(needs[n]) if not any(a in above[b] for b in needs[n])]
    return direct + sorted(_helps(lessons) - set(direct))


def _layers(lessons: dict[str, Lesson], edges: list[tuple[str, str]]) -> tuple[list[list[Place]], Routes]:
    row: dict[str, int] = {}
    for number in lessons:
        row[number] = 1 + max((row[a] for a, b in edges if b == number), default=-1)
    rows: list[list[Place]] = [[] for _ in range(max(row.values()) + 1)]
    for number in lessons:
        rows[row[number]].append((row[number], number))
    routes = {}
    for a, b in edges:
        through = [(r, f"{a}-{b}") for r in range(row[a] + 1, row[b])]
        for place in through:
            rows[place[0]].append(place)
        routes[a, b] = [(row[a], a), *through, (row[b], b)]
    _order(rows, routes)
    return rows, routes


def _neighbours(routes: Routes, step: int) -> dict[Place, list[Place]]:
    """For each place those that it is joined to in the row above (step 1) or below (step -1)."""
    found: dict[Place, list[Place]] = {}
    for route in routes.values():
        for up, down in zip(route[:-1], route[1:], strict=True):
            here, other = (down, up) if step > 0 else (up, down)
            found.setdefault(here, []).append(other)
    return found


def _order(rows: list[list[Place]], routes: Routes) -> None:
    """Sort each row by its neighbours' mean place; keeps the order with the fewest crossings."""
    best, fewest = [list(row) for row in rows], _crossings(rows, routes)
    for sweep in range(12):
        step = 1 if sweep % 2 == 0 else -1
        beside = _neighbours(routes, step)
        for r in range(len(rows))[::step]:
            near = {p: i for q in (r - step,) if 0 <= q < len(rows) for i, p in enumerate(rows[q])}
            own = {p: i for i, p in enumerate(rows[r])}
            rows[r].sort(key=lambda p: _mean([near[o] for o in beside.get(p, [])], own[p]))
        if (now := _crossings(rows, routes)) < fewest:
            best, fewest = [list(row) for row in rows], now
    rows[:] = best


def _crossings(rows: list[list[Place]], routes: Routes) -> int:
    at = {place: i for row in rows for i, place in enumerate(row)}
    steps = [(up, down) for route in routes.values() for up, down in zip(route[:-1], route[1:], strict=True)]
    return sum(
        (at[a] - at[c]) * (at[b] - at[d]) < 0 for i, (a, b) in enumerate(steps) for c, d in steps[:i] if a[0] == c[0]
    )


def _mean(values: list[int], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _width(place: Place) -> int:
    return _PASS if "-" in place[1] else BOX[0]


def _positions(rows: list[list[Place]], routes: Routes) -> dict[Place, float]:
    """Middles of all places: close to their neighbours, without overlap, from the left margin."""
    x: dict[Place, float] = {}
    for row in rows:
        edge = 0.0
        for place in row:
            x[place] = edge + _width(place) / 2
            edge += _width(place) + _GAP
    both = [_neighbours(routes, 1), _neighbours(routes, -1)]
    for sweep in range(20):
        for row in rows[:: 1 if sweep % 2 == 0 else -1]:
            for place in row:
                near = both[sweep % 2].get(place, [])
                x[place] = sum(x[o] for o in near) / len(near) if near else x[place]
            _apart(row, x)
    shift = _MARGIN - min(x[p] - _width(p) / 2 for row in rows for p in row)
    return {place: value + shift for place, value in x.items()}


def _apart(row: list[Place], x: dict[Place, float]) -> None:
    """Push what overlaps to the right, then the whole row back by the mean of that."""
    wanted = dict(x)
    for one, two in zip(row[:-1], row[1:], strict=True):
        x[two] = max(x[two], x[one] + (_width(one) + _width(two)) / 2 + _GAP)
    back = sum(x[p] - wanted[p] for p in row) / len(row)
    for place in row:
        x[place] -= back


def _line(route: list[Place], x: dict[Place, float], *, helps: bool) -> str:
    def y(row: int, side: int) -> float:
        return _MARGIN + row * _ROW + (BOX[1] if side else 0)

    path = f"M{x[route[0]]:.0f} {y(route[0][0], 1):.0f}"
    for up, down in zip(route[:-1], route[1:], strict=True):
        start, end = y(up[0], 1), y(down[0], 0)
        middle = (start + end) / 2
        path += f"C{x[up]:.0f} {middle:.0f} {x[down]:.0f} {middle:.0f} {x[down]:.0f} {end:.0f}"
        if "-" in down[1]:
            path += f"V{y(down[0], 1):.0f}"
    tip, end = x[route[-1]], y(route[-1][0], 0)
    head = f"M{tip - 4:.0f} {end - 7:.0f}L{tip:.0f} {end:.0f}L{tip + 4:.0f} {end - 7:.0f}"
    return (
        f'<path class="{"helps" if helps else "needs"}" fill="none" d="{path}"/>'
        f'<path class="head" fill="none" d="{head}"/>'
    )


def _box(lesson: Lesson, x: float, row: int, linked: Set[str]) -> str:
    left, top = x - BOX[0] / 2, _MARGIN + row * _ROW
    name = escape(f"{lesson.number} {lesson.title}")
    told = escape(
        f"{lesson.number} {lesson.title}, {lesson.minutes} minutes, {lesson.seconds} "
        f"seconds for the machine, needs {lesson.needs}"
    )
    drawn = (
        f'<rect x="{left:.0f}" y="{top}" width="{BOX[0]}" height="{BOX[1]}" rx="6"/>'
        f'<text class="name" x="{x:.0f}" y="{top + 19}" text-anchor="middle">{name}</text>'
        f'<text class="time" x="{x:.0f}" y="{top + 37}" text-anchor="middle">'
        f"{lesson.minutes} min · {lesson.seconds} s</text>"
    )
    if lesson.number not in linked:
        return f'<g role="img" aria-label="{told}">{drawn}</g>'
    return f'<a href="{escape(lesson.path.stem)}.html" aria-label="{told}">{drawn}</a>'
