"""One printed page for the room: what the notebooks say of themselves, on a sheet of A4."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from course.site.gallery import page

if TYPE_CHECKING:
    from course.site.course_map import Lesson


def handout_page(lessons: Sequence[Lesson], address: str = "") -> str:
    """The handout as HTML that prints on one page of A4 (17 notebooks; fewer leave room).

    Args:
        address: where the room's notebooks are; a line to write on when empty.
    """
    where = escape(address) if address else '<span class="blank">&nbsp;</span>'
    if re.match(r"https?://", address):
        where = f'<a href="{where}">{where}</a>'
    rows = "".join(
        f'<tr><th scope="row">{item.number} {escape(item.title)}</th>'
        f"<td>{escape(item.question)}</td><td>{escape('; '.join(item.goals))}</td>"
        f"<td>{item.minutes} min</td><td>{escape(item.needs)}</td>"
        f"<td>{escape(exercise_ids(item))}</td></tr>"
        for item in lessons
    )
    body = f"""<h1>Steering a language model</h1>
<p><b>In this room:</b> {where}</p>
<p><b>On your own machine:</b> <code>make lab</code> sets everything up once and opens the first
notebook; <code>kit doctor</code> says what is wrong with a machine, and what mends it.</p>
<table><thead><tr><th scope="col">Notebook</th><th scope="col">Question</th>
<th scope="col">Goals</th><th scope="col">Time</th><th scope="col">Needs</th>
<th scope="col">Exercises</th></tr></thead><tbody>{rows}</tbody></table>
<p><b>Stuck?</b> <code>kit.exercises.hint("00.1")</code>, again for a second hint; after three tries
<code>kit.exercises.solution("00.1")</code> opens. <b>Late?</b> <code>kit.catch_up("05.3")</code>
starts notebook 05 at its third section. <b>No effect?</b> Read the receipt, then
<code>kit.hooks_left(model)</code>.</p>
<p class="small">Minutes are for a person. Everything runs offline, on a CPU.</p>"""
    return page("Steering a language model: the handout", body, kind="handout", style="handout.css")


def exercise_ids(lesson: Lesson) -> str:
    """``00.1 to 2`` for a run of ids, else all of them."""
    ids = sorted(lesson.exercises)
    if len(ids) < 2:
        return "".join(ids)
    places = [int(id.split(".")[1]) for id in ids]
    whole = places == list(range(places[0], places[0] + len(places)))
    return f"{ids[0]} to {ids[-1].split('.')[1]}" if whole else ", ".join(ids)
