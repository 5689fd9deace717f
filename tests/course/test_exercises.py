"""The exercises' checks are themselves checked: they accept what is right and refuse the rest."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from course import exercises
from course.exercises import Exercise, nb01
from course.exercises.specs import Wrong, call, compare, describe

IDS = sorted(exercises.registry())
SAMPLE = nb01.RECOVERY


@pytest.fixture(autouse=True)
def fresh_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exercises, "_PROGRESS", {})
    monkeypatch.setattr(exercises, "_PASSED", {})


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put one exercise in place of the registry."""

    def only(exercise: Exercise) -> Exercise:
        monkeypatch.setattr(exercises, "registry", lambda: {exercise.id: exercise})
        exercises._PROGRESS.clear()
        return exercise

    return only


def stub_answer(exercise: Exercise) -> tuple[str, Any]:
    """Run the stub as the notebook cell does; returns the name it binds last, and the value."""
    space: dict[str, Any] = {}
    exec("from __future__ import annotations\n" + exercise.stub, space)
    name = [name for name in space if name not in ("__builtins__", "annotations")][-1]
    return name, space[name]


def faults(exercise: Exercise) -> list[str]:
    """What is wrong with an exercise; empty for one that may be shipped."""
    found = []
    context = exercise.example()
    name, stub = stub_answer(exercise)

    def outcome(candidate: Any) -> exercises.Outcome:
        return exercises.check(exercise.id, exercise.answer(candidate, context), **context)

    passed = outcome(exercise.solution)
    if not passed:
        found.append(f"solution refused: {passed.message}")
    todo = exercises.check(exercise.id, stub, **context)
    if todo.passed or not todo.todo or "Your turn" not in repr(todo):
        found.append(f"stub is not 'your turn': {todo!r}")
    if len(exercise.wrong) < 2:
        found.append("fewer than two wrong answers")
    messages = []
    for label, candidate in exercise.wrong:
        result = outcome(candidate)
        if result.passed or result.todo:
            found.append(f"wrong answer not refused: {label}")
        elif not all(f"{part}:" in result.message for part in ("arrived", "expected", "likely")):
            found.append(f"message lacks a part: {label}")
        elif label not in result.message.rpartition("likely:")[2]:
            found.append(f"message does not say: {label}")
        messages.append(result.message)
    if len(set(messages)) < len(messages):
        found.append("two wrong answers get the same message")
    causes = [message.rpartition("likely:")[2] for message in messages]
    if len(set(causes)) < len(causes):
        found.append("two wrong answers get the same likely cause")
    if len(exercise.hints) != 2 or not all(hint.strip() for hint in exercise.hints):
        found.append("hints are not two")
    if exercise.kind not in ("function", "value"):
        found.append(f"kind {exercise.kind!r}")
    if exercise.kind == "function" and exercise.solution.__name__ != name:
        found.append(f"the stub binds {name}, the solution {exercise.solution.__name__}")
    if f"def {exercise.solution.__name__}(" not in exercises.source(exercise):
        found.append("the solution's source is not a def")
    return found


@pytest.mark.parametrize("id", IDS)
def test_exercise_is_sound(id: str) -> None:
    assert faults(exercises.find(id)) == []


@pytest.mark.parametrize("id", IDS)
def test_function_solution_takes_the_stubs_arguments(id: str) -> None:
    exercise = exercises.find(id)
    if exercise.kind == "function":
        stub = inspect.signature(stub_answer(exercise)[1])
        assert list(stub.parameters) == list(inspect.signature(exercise.solution).parameters)


@pytest.mark.parametrize("id", IDS)
def test_displayed_solution_is_code_that_passes(id: str) -> None:
    exercise = exercises.find(id)
    shown = exercises.solution(id, force=True).code
    space: dict[str, Any] = {"torch": torch}
    exec("from __future__ import annotations\n" + shown, space)
    answer = space[exercise.solution.__name__]
    context = exercise.example()
    assert exercises.check(id, exercise.answer(answer, context), **context)


@pytest.mark.parametrize("id", IDS)
def test_check_leaves_the_learners_random_numbers_alone(id: str) -> None:
    exercise = exercises.find(id)
    context = exercise.example()
    answer = exercise.answer(exercise.solution, context)
    before = torch.get_rng_state()
    exercises.check(id, answer, **context)
    assert torch.equal(before, torch.get_rng_state())


def test_notebook_01_has_its_exercises() -> None:
    assert {"01.1", "01.2", "01.3"} <= set(IDS)


def _accept_all(answer: Any) -> None:
    call(answer, torch.zeros(2), torch.ones(2), torch.zeros(2))


def _refuse_all(answer: Any) -> None:
    call(answer, torch.zeros(2), torch.ones(2), torch.zeros(2))
    raise Wrong(arrived="a", expected="b", likely="c")


def _no_stub_test(answer: Any) -> None:
    try:
        SAMPLE.spec(answer)
    except NotImplementedError:
        raise Wrong(arrived="a", expected="b", likely="c") from None


def _solved(patched: Any, clean: Any, corrupt: Any) -> Any:
    return (patched - corrupt) / (clean - corrupt)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"spec": _accept_all}, "wrong answer not refused"),
        ({"spec": _refuse_all}, "solution refused"),
        ({"spec": _refuse_all}, "same message"),
        ({"spec": _no_stub_test}, "stub is not"),
        ({"stub": "recovery = 3.0"}, "stub is not"),
        ({"wrong": SAMPLE.wrong[:1]}, "fewer than two"),
        ({"wrong": [*SAMPLE.wrong, ("right", SAMPLE.solution)]}, "not refused: right"),
        ({"wrong": [("a", SAMPLE.wrong[0][1])] * 2}, "same likely cause"),
        ({"wrong": [("not in the message", SAMPLE.wrong[0][1])]}, "does not say: not in the message"),
        ({"hints": ("one", " ")}, "hints are not two"),
        ({"hints": ("one",)}, "hints are not two"),
        ({"solution": _solved}, "the solution _solved"),
        ({"solution": SAMPLE.wrong[0][1]}, "solution refused"),
    ],
)
def test_an_unsound_exercise_is_noticed(register: Any, change: dict[str, Any], fault: str) -> None:
    broken = register(replace(SAMPLE, **change))
    assert any(fault in found for found in faults(broken))


# Each statement of nb01's specs that refuses something: the wrong answer that only it refuses.
EXTRA_WRONG = {
    "01.1": {
        "log-probabilities": lambda r, n, w: (n(r) @ w).log_softmax(-1),
        "only the last position": lambda r, n, w: n(r[-1]) @ w,
        "untransposed": lambda r, n, w: w @ n(r),
        "formula": lambda r, n, w: 2 * n(r) @ w,
        "no text": lambda r, n, w: str(n(r) @ w),
        "nan or inf": lambda r, n, w: n(r) @ w / 0,
        "no return": lambda r, n, w: None,
    },
    "01.2": {
        "clamped": lambda p, c, k: ((p - k) / (c - k)).clamp(0, 1),
        "divided by clean alone": lambda p, c, k: (p - k) / c,
        "no .item()": lambda p, c, k: ((p - k) / (c - k)).mean().item(),
        "dimension was dropped": lambda p, c, k: ((p - k) / (c - k)).mean(0),
        "rounded": lambda p, c, k: ((p - k) / (c - k)).round().long(),
    },
    "01.5": {
        "norm once": lambda r, d: r - (r @ d)[:, None] * d / d.norm(),
        "subtract it from resid": lambda r, d: (r @ d)[:, None] * d / d.norm() ** 2,
        "reflects": lambda r, d: r - 2 * (r @ d)[:, None] * d / d.norm() ** 2,
        "last dimension of 1": lambda r, d: r - (r @ d) * d,
    },
}


@pytest.mark.parametrize(("id", "cause"), [(id, cause) for id, causes in EXTRA_WRONG.items() for cause in causes])
def test_nb01_names_the_cause(id: str, cause: str) -> None:
    outcome = exercises.check(id, EXTRA_WRONG[id][cause])
    assert not outcome
    assert cause in outcome.message.rpartition("likely:")[2]


# --- the engine ----------------------------------------------------------------------------------


def test_unknown_id_lists_the_ids() -> None:
    for ask in (exercises.hint, exercises.solution, exercises.progress):
        with pytest.raises(KeyError, match=r"'99\.9'.*01\.1, 01\.2"):
            ask("99.9")
    with pytest.raises(exercises.UnknownExercise) as caught:
        exercises.check("99.9", None)
    assert str(caught.value).startswith("no exercise")


@pytest.mark.parametrize("answer", [None, ..., stub_answer(SAMPLE)[1], lambda *a: _raise_stub()])
def test_unwritten_answer_is_your_turn_and_no_try(answer: Any) -> None:
    outcome = exercises.check("01.2", answer)
    assert outcome.todo and not outcome and outcome.title.startswith("Your turn")
    assert exercises.progress("01.2").failed == 0


def _raise_stub() -> None:
    raise NotImplementedError("your turn")


class _Broken:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def _deep(*args: Any) -> Any:
    return _deep(*args)


@pytest.mark.parametrize(
    "answer",
    [
        0,
        "text",
        [],
        torch.ones(3),
        torch.tensor(True),
        object(),
        _Broken(),
        int,
        len,
        _deep,
        lambda: 1,
        lambda *a: _Broken(),
        lambda *a: "x",
        lambda *a: torch.ones(2, dtype=torch.cfloat),
        lambda *a: torch.empty(0),
        lambda *a: torch.ones(1, device="meta"),
        lambda *a: 1 / 0,
    ],
)
@pytest.mark.parametrize("id", IDS)
def test_no_answer_makes_check_raise(id: str, answer: Any) -> None:
    exercise = exercises.find(id)
    context = exercise.example()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcome = exercises.check(id, answer, **context)
    assert not outcome.passed
    assert "likely:" in outcome.message
    assert outcome.title.startswith("Not yet")


def test_an_error_inside_the_answer_names_the_line() -> None:
    def recovery(patched: Any, clean: Any, corrupt: Any) -> Any:
        return patched.no_such_method()

    message = exercises.check("01.2", recovery).message
    assert "AttributeError" in message
    assert "in recovery: return patched.no_such_method()" in message


def test_pytorchs_not_implemented_error_is_not_a_stub() -> None:
    def recovery(patched: Any, clean: Any, corrupt: Any) -> Any:
        return torch.empty(2, device="meta").cpu()

    with pytest.raises(NotImplementedError):
        recovery(None, None, None)
    outcome = exercises.check("01.2", recovery)
    assert not outcome.todo and "NotImplementedError" in outcome.message


def test_later_cells_use_the_answer_that_passed_else_the_solution() -> None:
    def answer(patched: Any, clean: Any, corrupt: Any) -> Any:
        return (patched - corrupt) / (clean - corrupt)

    assert exercises.mine(SAMPLE.id) is SAMPLE.solution
    assert exercises.check(SAMPLE.id, answer) and inspect.unwrap(exercises.mine(SAMPLE.id)) is answer
    assert not exercises.check(SAMPLE.id, lambda patched, clean, corrupt: patched)
    assert exercises.mine(SAMPLE.id) is SAMPLE.solution  # an answer that was changed for the worse is not used
    with pytest.raises(exercises.UnknownExercise, match="no exercise '01.9'"):
        exercises.mine("01.9")


def test_passing_the_result_instead_of_the_function_is_named() -> None:
    assert "without parentheses" in exercises.check("01.2", torch.ones(2)).message


def test_hints_come_one_by_one_then_the_solution_opens() -> None:
    first, second, third = (exercises.hint("01.1") for _ in range(3))
    one, two = nb01.LENS.hints
    assert one in first.message and two not in first.message and not first.code
    assert two in second.message and not second.code
    assert "solution('01.1')" in third.code
    assert "ln_final(resid) @ W_U" in exercises.solution("01.1").code


def test_solution_opens_after_three_tries() -> None:
    wrong = nb01.LENS.wrong[0][1]
    lefts = []
    for _ in range(3):
        lefts.append(exercises.solution("01.1").message)
        outcome = exercises.check("01.1", wrong)
    assert ["3 more tries" in lefts[0], "2 more tries" in lefts[1], "1 more try" in lefts[2]] == [True] * 3
    assert "solution('01.1')" in outcome.code
    assert "def logit_lens(" in exercises.solution("01.1").code
    assert "solution('01.1')" in exercises.hint("01.1").code
    assert not exercises.solution("01.2").code  # another exercise stays closed


def test_solution_opens_after_a_pass_or_by_force() -> None:
    assert "def logit_lens(" in exercises.solution("01.1", force=True).code
    assert not exercises.solution("01.1").code
    assert exercises.check("01.1", nb01.logit_lens)
    assert "def logit_lens(" in exercises.solution("01.1").code


def test_cards_are_escaped_html_and_plain_text() -> None:
    card = exercises.Outcome("<b>", "x < y & <script>", "a<b")
    shown = card._repr_html_()
    assert "<script>" not in shown and "x &lt; y &amp; &lt;script&gt;" in shown
    assert repr(card) == "<b>\nx < y & <script>\na<b"


def _largest(scores: dict[str, float]) -> str:
    return max(scores, key=lambda name: scores[name])


def _value_spec(answer: Any, *, scores: dict[str, float]) -> None:
    if answer != _largest(scores):
        raise Wrong(arrived=describe(answer), expected="the best layer", likely=f"not {answer}")


VALUE = Exercise(
    id="01.9",
    title="read a value",
    stub="best = ...",
    solution=_largest,
    spec=_value_spec,
    hints=("a", "b"),
    wrong=[("not a", "a"), ("not c", lambda scores: min(scores, key=scores.__getitem__))],
    kind="value",
    example=lambda: {"scores": {"a": 0.5, "b": 0.9, "c": 0.1}},
)


def _scaled(x: Any, rate: Any) -> Any:
    """Twice as much, and then some.

    x: a "quoted" number
    """
    more = rate * x  # the rate's own line
    return more + 1


SCALED = Exercise.of(
    _scaled,
    id="01.9",
    title="made from a solution",
    spec=lambda answer: SCALED.expect(answer, 3.0, 2, want=7.0, number=True),
    hints=("a", "b"),
    wrong={
        "one is missing": "more",
        "not scaled": ("rate * x", "x"),
        "negative": lambda x, rate: -x,
        "a division by nothing": "1 / 0",
    },
    on_error="a division by nothing",
    moral="",
)


def test_a_stub_and_wrong_answers_are_made_from_the_solution(register: Any) -> None:
    stub = 'def _scaled(x, rate):\n    """Twice as much, and then some.\n\n    x: a "quoted" number\n    """\n'
    assert SCALED.stub == stub + '    raise NotImplementedError("your turn")\n'
    register(SCALED)
    shown = exercises.solution("01.9", force=True).code
    assert '"""' not in shown and shown.endswith("    more = rate * x  # the rate's own line\n    return more + 1")
    assert {cause: answer(3.0, 2) for cause, answer in SCALED.wrong[:3]} == {
        "one is missing": 6.0,
        "not scaled": 4.0,
        "negative": -3.0,
    }
    assert faults(SCALED) == []
    assert inspect.getsource(SCALED.wrong[0][1]).endswith("    return more\n")


def test_a_wrong_answer_cannot_be_made_of_what_is_not_there() -> None:
    with pytest.raises(AssertionError, match="_scaled has no 'x / rate'"):
        Exercise.of(
            _scaled, id="01.9", title="", spec=SCALED.spec, hints=("", ""), wrong={"a": ("x / rate", "x")}, moral=""
        )


@pytest.mark.parametrize("id", IDS)
def test_what_learners_see_of_an_exercise_is_100_columns_wide(id: str) -> None:
    exercise = exercises.find(id)
    assert max(map(len, exercises.source(exercise).splitlines())) <= 100


def test_value_exercise_reads_its_context(register: Any) -> None:
    register(VALUE)
    assert faults(VALUE) == []
    assert exercises.check("01.9", "z", scores={"y": 1.0, "z": 2.0})


def test_missing_context_is_named_and_no_try(register: Any) -> None:
    register(VALUE)
    outcome = exercises.check("01.9", "a")
    assert not outcome and "scores" in outcome.message
    assert exercises.progress("01.9").failed == 0


def test_registry_refuses_foreign_and_double_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    for broken in ([SAMPLE, SAMPLE], [replace(SAMPLE, id="02.1")]):
        module = SimpleNamespace(EXERCISES=broken)
        monkeypatch.setattr(exercises.importlib, "import_module", lambda name, m=module: m)
        with pytest.raises(ValueError, match="foreign or used twice"):
            exercises.registry.__wrapped__()


def test_compare_accepts_equal_and_views_errors() -> None:
    compare(torch.ones(2), torch.ones(2))
    compare(torch.ones(2, dtype=torch.bfloat16), torch.ones(2))
    with pytest.raises(Wrong, match="largest difference 0.5"):
        compare(torch.ones(2), torch.tensor([1.0, 1.5]))


def test_right_numbers_are_right_in_a_list_or_an_array_and_later_cells_get_a_tensor() -> None:
    shares = exercises.find("10.1")
    kinds = {
        "list": lambda values, bins: shares.solution(values, bins).tolist(),
        "array": lambda values, bins: shares.solution(values, bins).double().numpy(),
        "tensor": lambda values, bins: shares.solution(values, bins),
    }
    for kind, answer in kinds.items():
        assert exercises.check("10.1", answer), kind
        found = exercises.mine("10.1")(torch.tensor([1.0, 2.0]), 2)
        assert isinstance(found, torch.Tensor) and found.tolist() == [0.0, 1.0] and found.dtype == torch.float32
    said = str(exercises.check("10.1", lambda values, bins: shares.solution(values, bins).flip(0).tolist()))
    assert "strongest first: turn it round" in said
    assert "no .item(), no text" in str(exercises.check("10.1", lambda values, bins: 0.5))


@pytest.mark.parametrize("id", ["12.1", "13.1"])
def test_what_arrived_and_what_was_expected_differ_in_what_is_printed(id: str) -> None:
    exercise = exercises.find(id)
    for _, answer in exercise.wrong:
        said = str(exercises.check(id, answer))
        arrived, expected = re.search(r"arrived: +(.*)\nexpected: +(.*)\n", said).groups()
        assert arrived.partition(" (")[0] != expected, said


def test_the_first_entries_that_differ_are_shown() -> None:
    want = torch.zeros(2, 5)
    got = want.clone()
    got[1, 3], got[1, 4] = 2.0, 1.0
    with pytest.raises(Wrong) as told:
        compare(got, want)
    assert "float32 [2, 5]: [1, 3] is 2, [1, 4] is 1 (2 of 10 entries differ)" in str(told.value)
    assert "float32 [2, 5]: [1, 3] is 0, [1, 4] is 0" in str(told.value)


def test_exercises_load_without_torch_so_they_store_no_tensors() -> None:
    code = "import sys, kit; kit.exercises.registry(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
