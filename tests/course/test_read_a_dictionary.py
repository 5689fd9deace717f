"""Exercises of notebook 10: what they take, and what they say of their types."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from course import exercises


@pytest.mark.parametrize("kind", [tuple, list, np.array, torch.tensor])
def test_two_shares_are_right_as_any_pair_of_numbers(kind: type) -> None:
    hits = exercises.find("10.2").solution
    assert exercises.check("10.2", lambda fires, fits: kind(hits(fires, fits)))


@pytest.mark.parametrize("answer", [0.5, "ab", (0.5,), (0.5, 0.5, 0.5), torch.ones(2, 2)])
def test_what_is_no_pair_of_numbers_is_said_to_be_none(answer: object) -> None:
    said = str(exercises.check("10.2", lambda fires, fits: answer))
    assert "expected: two numbers" in said and "return both shares" in said


def test_a_histogram_of_numpy_is_right() -> None:
    def shares(values: torch.Tensor, bins: int) -> np.ndarray:
        numbers = values.numpy()
        return np.histogram(numbers, bins, (0, numbers.max()))[0] / len(numbers)

    assert exercises.check("10.1", shares)
    assert isinstance(exercises.mine("10.1")(torch.tensor([1.0, 2.0]), 2), torch.Tensor)


@pytest.mark.parametrize("id", ["10.1", "10.2", "10.3", "10.4"])
def test_tasks_name_types_and_no_hint_is_the_solution(id: str) -> None:
    exercise = exercises.find(id)
    assert "tensor" in exercise.stub or "list" in exercise.stub
    code = exercise.solution.__doc__ and exercises.solution(id, force=True).code
    last = code.strip().splitlines()[-1].removeprefix("    return ")
    assert all(last not in hint for hint in exercise.hints)
