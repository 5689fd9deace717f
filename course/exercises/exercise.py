"""One exercise: what is asked, and the stub and the wrong answers that its solution gives."""

from __future__ import annotations

import ast
import copy
import inspect
import linecache
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, wraps
from itertools import chain
from typing import Any

from course.exercises.specs import Wrong, as_tensor, call, compare, describe


@dataclass(frozen=True)
class Exercise:
    """One exercise. `solution` is shown by its source, so write it with `def`.

    `kind="function"`: the answer is a function, and so is `solution`. `kind="value"`: the answer is
    a value; `solution(**context)` computes it, and so does each wrong answer that is callable.
    `spec(answer, **context)` gets the keywords given to `check`; `example()` returns small
    stand-ins for them, used by tests. `wrong` pairs an answer that must be refused with words that
    the checker must then say: the likely cause, or a part of it.
    """

    id: str
    title: str
    stub: str
    solution: Callable[..., Any]
    spec: Callable[..., None]
    hints: tuple[str, str]
    wrong: list[tuple[str, Any]]
    moral: str = ""
    kind: str = "function"
    example: Callable[[], dict[str, Any]] = dict
    on_error: str = ""

    @classmethod
    def of(
        cls,
        solution: Callable[..., Any],
        *,
        id: str,
        title: str,
        spec: Callable[..., None],
        hints: tuple[str, str],
        wrong: Mapping[str, Any],
        moral: str,
        stub: str = "",
        example: Callable[[], dict[str, Any]] = dict,
        on_error: str = "",
    ) -> Exercise:
        """An exercise whose stub and wrong answers are made from its solution.

        Args:
            solution: its docstring is the task, and stands in the stub; learners who look at the
                solution see it without.
            wrong: likely causes, as the checker says them, each with what makes such an answer: a
                text, which the solution's last line returns instead; two texts, the second of which
                takes the place of the first wherever that stands in the solution's body; or the
                wrong answer itself.
            stub: the line to complete, where the answer is a value and not a function.
            on_error: the likely cause where the answer raises an error.
        """
        made = [(cause, changed(solution, change)) for cause, change in wrong.items()]
        kind = "value" if stub else "function"
        stub = stub or stub_of(solution)
        return cls(id, title, stub, solution, spec, hints, made, moral, kind, example, on_error)

    def answer(self, candidate: Any, context: Mapping[str, Any]) -> Any:
        """The answer that `candidate` (the solution or a wrong answer) stands for."""
        return candidate(**context) if self.kind == "value" and callable(candidate) else candidate

    def usable(self, answer: Any) -> Any:
        """An answer that passed, for later cells: where the solution gives a tensor, it does."""
        if self.kind != "function" or self.solution.__annotations__.get("return") != "torch.Tensor":
            return answer

        @wraps(answer)
        def as_the_solution(*args: Any, **kwargs: Any) -> Any:
            return as_tensor(answer(*args, **kwargs))

        return as_the_solution

    def known(self, *args: Any) -> Iterator[tuple[str, Any]]:
        """The likely cause of each wrong answer, and what it makes of copies of these arguments.

        Those that fail on them are left out.
        """
        for cause, candidate in self.wrong:
            try:
                result = candidate(*copy.deepcopy(args))
            except Exception:
                continue
            yield cause, result

    def cause(self, alike: Callable[[Any], bool], *args: Any, otherwise: str) -> str:
        """The cause of the first wrong answer whose result is `alike`, or `otherwise`."""
        return next((cause for cause, result in self.known(*args) if alike(result)), otherwise)

    def expect(
        self,
        answer: Any,
        *args: Any,
        want: Any,
        likely: str = "",
        number: bool = False,
        also: Mapping[str, Any] | None = None,
        atol: float = 1e-4,
    ) -> Any:
        """Call a learner's function with copies of `args`, and hold what it gives to `want`.

        Args:
            want: a tensor, or numbers that make one.
            likely: in place of `on_error`.
            number: a plain number will do in place of a tensor.
            also: further likely causes, and what each gives.
            atol: how far off the result may be.

        Returns:
            What the answer gave.

        Raises:
            Wrong: it is not `want`; the cause is that of the first wrong answer that gives it, too.
        """
        import torch

        got = call(answer, *copy.deepcopy(args), likely=likely or self.on_error)
        known = chain(self.known(*args), (also or {}).items())
        compare(torch.as_tensor(got).float() if number else got, want, known, atol=atol)
        return got

    def expect_number(
        self, answer: Any, *args: Any, want: float, unread: str, otherwise: str, likely: str = ""
    ) -> None:
        """As `expect`, for a plain number, and with the call as part of what is expected.

        Args:
            unread: the likely cause where the answer gives no number.
            otherwise: the one where it gives a number that is no known mistake.
        """
        got = call(answer, *copy.deepcopy(args), likely=likely or self.on_error)
        said = f"{self.solution.__name__}({', '.join(map(str, args))}) = {want:.3g}"
        try:
            number = float(got)
        except (TypeError, ValueError):
            raise Wrong(arrived=describe(got), expected=f"{said}, a number", likely=unread) from None
        if abs(number - want) < 1e-6:
            return
        cause = self.cause(lambda x: abs(number - x) < 1e-6, *args, otherwise=otherwise)
        raise Wrong(arrived=f"{number:.3g}", expected=said, likely=cause)


def source(exercise: Exercise) -> str:
    """The source text of the solution, without its docstring."""
    head, _, body = _parts(exercise.solution)
    return (head + body).strip()


def stub_of(solution: Callable[..., Any]) -> str:
    """The solution's name, arguments and docstring, and a line in the place of its body."""
    _, task, _ = _parts(solution)
    arguments = ", ".join(inspect.signature(solution).parameters)
    return f'def {solution.__name__}({arguments}):\n    {task}\n    raise NotImplementedError("your turn")\n'


def changed(solution: Callable[..., Any], change: Any) -> Any:
    """The solution with a change in its body, as `Exercise.of` describes; or `change` itself."""
    if not isinstance(change, str | tuple):
        return change
    name = solution.__name__
    head, _, body = _parts(solution)
    if isinstance(change, tuple):
        old, new = change
    else:
        old, new = body[body.rindex("return ") :], f"return {change}\n"
    assert old in body, f"the solution {name} has no {old!r}, which was to become {new!r}"
    code = head + body.replace(old, new)
    file = f"<{name} with {new!r} for {old!r}>"
    # This is where the line of an error and the source of a function are looked up.
    linecache.cache[file] = len(code), None, code.splitlines(keepends=True), file
    names = dict(solution.__globals__)
    exec(compile(code, file, "exec"), names)
    return names[name]


@cache
def _parts(function: Callable[..., Any]) -> tuple[str, str, str]:
    """Signature, docstring (as it is written) and body of a function, from its source."""
    text = textwrap.dedent(inspect.getsource(function))
    node = ast.parse(text).body[0]
    assert isinstance(node, ast.FunctionDef), f"{function} is not written with def"
    first = node.body[0]
    lines = text.splitlines(keepends=True)
    head = "".join(lines[: first.lineno - 1])
    if ast.get_docstring(node) is None:
        return head, "", "".join(lines[first.lineno - 1 :])
    return head, ast.get_source_segment(text, first) or "", "".join(lines[first.end_lineno :])
