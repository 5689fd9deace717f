"""A student and an instructor edition, made from the one source of a notebook.

Both keep the source's cells, in its order and under its ids. The student edition has

* no outputs, no execution counts, no widget states, and no talking points in its metadata;
* every reading of a result (cells tagged ``reading``) folded: a prediction is worth making only
  while the answer is not on the screen. What is folded is what stands before the cell's next
  heading or prediction; the summary says to run the cell above first;
* no quiz answers. They are for the discussion, and stand on the pages and here beside us.
  Hints and the offer of a solution after three tries stay: they are the learner's own choice;
* with a repository's address, one more cell in front that does nothing outside Colab.

The instructor edition adds cells tagged ``instructor`` and changes nothing: the plan behind the
header, and behind each check its solution (live code), the wrong answers that are likely with what
learners will read, hints and moral.
"""

from __future__ import annotations

import copy
import re
from datetime import datetime

from nbformat import NotebookNode, v4

from course import exercises
from course.exercises import Exercise
from course.site import colab
from course.site.course_map import Check, Lesson, Section, checks, parts
from course.site.output import render

ANSWERS = "*The answers stand on this notebook's page of the web site; discuss first.*"
FOLDED = "<details><summary>What to see here (run the cell above first)</summary>"
_QUIZ = re.compile(r"<details><summary>Answers</summary>.*?</details>", re.DOTALL)
_NEXT = re.compile(r"^(?=#|\*\*Predict first)", re.MULTILINE)
_EXERCISE = re.compile(r"(?:\(|\*)(?:easy|medium|hard), (\d+) minutes", re.IGNORECASE)
_LATER = ("On your own", "Further reading")  # for after the workshop
_PACE = 150  # words a minute, for a part whose cells run longer than it takes to read
SLOW = 5.0  # seconds from which a cell is worth starting early


# --- student --------------------------------------------------------------------------------------


def student(source: NotebookNode, lesson: Lesson, repository: str = "") -> NotebookNode:
    """The student edition; see above for what it leaves out.

    Raises:
        ValueError: an exercise's stub is not in the notebook, so an answer may stand there; or the
            repository's address cannot be one.
    """
    notebook = copy.deepcopy(source)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    for id, exercise in _exercises(lesson).items():
        if not any(exercise.stub.strip() in text for text in code):
            raise ValueError(f"{lesson.path.name}: no cell holds the stub of {id}: is it solved?")
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        else:
            cell.source = fold(cell.source) if "reading" in _tags(cell) else cell.source
            cell.source = _QUIZ.sub(lambda _: ANSWERS, cell.source)
    notebook.metadata.pop("widgets", None)
    kept = ("title", "question", "goals", "after", "helps", "human_minutes", "machine_seconds")
    notebook.metadata["kit"] = {k: v for k, v in source.metadata["kit"].items() if k in kept}
    notebook.metadata["kit"]["edition"] = "student"
    if repository:
        notebook.cells.insert(0, _cell("code", colab.cell(repository), "colab-0", "colab"))
    return notebook


def fold(text: str) -> str:
    """Markdown whose reading of a result is folded, up to the next heading or prediction."""
    found = _NEXT.search(text, 1)
    cut = found.start() if found else len(text)
    return f"{FOLDED}\n\n{text[:cut].strip()}\n\n</details>\n\n{text[cut:].strip()}".strip()


# --- instructor -----------------------------------------------------------------------------------


def instructor(source: NotebookNode, lesson: Lesson) -> NotebookNode:
    """The instructor edition: the source with its outputs, and what the teacher wants beside it."""
    notebook = copy.deepcopy(source)
    known, cells = _exercises(lesson), []
    for cell in notebook.cells:
        cells.append(cell)
        if "header" in _tags(cell):
            text = plan_text(source, lesson)
            cells.append(_cell("markdown", text, "instructor-plan", "instructor"))
        for check in checks(cell):
            name = f"instructor-{check.id.replace('.', '-')}"
            exercise = known[check.id]
            cells += [
                _cell("markdown", notes(exercise), f"{name}-notes", "instructor"),
                _cell("code", solution(exercise, check), f"{name}-solution", "instructor"),
            ]
    notebook.cells = cells
    notebook.metadata["kit"]["edition"] = "instructor"
    return notebook


def solution(exercise: Exercise, check: Check) -> str:
    """Code that puts the solution in the place of the learner's answer, and checks it."""
    given = f", {check.context}" if check.context else ""
    name = exercise.solution.__name__
    if exercise.kind == "value":
        put = f"{check.answer} = {name}({check.context})\n"
    else:
        put = f"{check.answer} = {name}\n" if check.answer != name else ""
    return (
        f"from __future__ import annotations\n\n{exercises.source(exercise)}\n\n\n"
        f'{put}kit.exercises.check("{check.id}", {check.answer}{given})'
    )


def notes(exercise: Exercise) -> str:
    """What a teacher wants to know beside an exercise, as Markdown."""
    return render("notes.md", exercise=exercise, wrong=wrong_answers(exercise)).strip()


def wrong_answers(exercise: Exercise) -> list[tuple[str, str]]:
    """The exercise's wrong answers, each with the message that a learner gets."""
    found, context = [], exercise.example()
    for label, candidate in exercise.wrong:
        try:
            exercise.spec(exercise.answer(candidate, context), **context)
        except exercises.Wrong as wrong:
            found.append((label, str(wrong)))
    return found


def plan(source: NotebookNode, lesson: Lesson) -> list[tuple[Section, int, float]]:
    """Each part with its minutes for a person, an estimate, and the seconds its cells took.

    The minutes add up to the header's. An exercise has the minutes that its line gives; the rest is
    shared out by the length of text and code, or by how long the cells run if that is longer. What
    is for later gets none.
    """
    own = parts(source, lesson.number)
    seconds = [sum(took(source.cells[i]) for i in part.code) for part in own]
    fixed = [sum(map(int, _EXERCISE.findall(part.text))) for part in own]
    size = [
        0 if part.title in _LATER else max(_words(source, part), _PACE / 60 * waits)
        for part, waits in zip(own, seconds, strict=True)
    ]
    scale = min(1.0, 0.8 * lesson.minutes / max(1, sum(fixed)))
    rest = lesson.minutes - scale * sum(fixed)
    exact = [scale * f + rest * n / max(1, sum(size)) for f, n in zip(fixed, size, strict=True)]
    minutes = [int(x) for x in exact]
    for i in sorted(range(len(own)), key=lambda i: minutes[i] - exact[i]):  # largest remainders
        minutes[i] += sum(minutes) < lesson.minutes
    return list(zip(own, minutes, seconds, strict=True))


def _words(source: NotebookNode, part: Section) -> int:
    code = (source.cells[i].source for i in part.code)
    return sum(len(text.split()) for text in (part.text, *code))


def took(cell: NotebookNode) -> float:
    """Seconds that a cell ran when its outputs were made; 0 where none are recorded."""
    times = cell.metadata.get("execution", {})
    try:
        start, end = (
            datetime.fromisoformat(times[key].replace("Z", "+00:00"))
            for key in ("iopub.status.busy", "iopub.status.idle")
        )
    except KeyError:
        return 0.0
    return (end - start).total_seconds()


def plan_text(source: NotebookNode, lesson: Lesson) -> str:
    """Plan, slow cells and talking points as Markdown."""
    rows = [
        (part, minutes, seconds, ", ".join(check.id for i in part.code for check in checks(source.cells[i])))
        for part, minutes, seconds in plan(source, lesson)
    ]
    slow = [(took(cell), _first_line(cell.source)) for cell in source.cells if took(cell) >= SLOW]
    return render("plan.md", lesson=lesson, rows=rows, slow=slow).strip()


def _first_line(code: str) -> str:
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith(("import ", "from "))]
    return (lines or code.splitlines())[0].replace("`", "'")[:70]


# --- shared ---------------------------------------------------------------------------------------


def _exercises(lesson: Lesson) -> dict[str, Exercise]:
    return {id: exercises.find(id) for id in lesson.exercises}


def _tags(cell: NotebookNode) -> list[str]:
    return list(cell.metadata.get("tags", []))


def _cell(kind: str, text: str, id: str, tag: str) -> NotebookNode:
    make = v4.new_code_cell if kind == "code" else v4.new_markdown_cell
    return make(text, id=id, metadata={"tags": [tag]})
