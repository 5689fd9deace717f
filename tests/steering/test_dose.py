"""A dose is written into a vector's metadata and read from it in one place."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

import kit
from kit.steering.dose import Dose


@pytest.mark.parametrize(
    "dose",
    [
        Dose(),
        Dose(0.3),
        Dose(None, -0.2, 0.33, "kl", 0.5),
        Dose(0.17, -0.17, 0.17, "radius", 0.5),
        Dose(0.17, -0.17, 0.17, "radius"),  # given, not measured
        Dose(1.0, -1.0, 1.0, "largest activation"),
    ],
)
def test_what_is_written_is_read(dose: Dose) -> None:
    assert Dose.of(SimpleNamespace(metadata=dose.metadata())) == dose


def test_a_shipped_vector_says_its_range() -> None:
    dose = Dose.of(kit.data.vector("happy-sad"))
    assert (dose.low, dose.high, dose.kind, dose.target) == (-0.201, 0.334, "kl", 0.5)
    assert dose.coefficient is None and dose.has_range


@pytest.mark.parametrize("bad", ["0.3", math.nan, math.inf, True, None, [0.3]])
def test_what_makes_no_sense_counts_as_not_said(bad: Any) -> None:
    assert Dose.of(SimpleNamespace(metadata={"coefficient": bad})).coefficient is None
    for ends in ({"low": bad, "high": 1.0}, {"low": -1.0, "high": bad}, bad, {"low": 2.0, "high": 1.0}):
        assert not Dose.of(SimpleNamespace(metadata={"calibration": ends})).has_range
    assert Dose.of(object()) == Dose()
