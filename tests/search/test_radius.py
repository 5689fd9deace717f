"""kit.search.radius: the radius at which a map stops being linear."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import kit
from kit.base.directions import random_units
from kit.search import dct, radius
from kit.search.layer_slice import LayerSlice
from kit.search.maps import Map
from tests import tiny

D = 24


def bent(power: float, size: float = 1.0) -> Map:
    """Linear, plus a part along another direction that grows as |theta|^power."""
    linear = torch.randn(D, D, generator=torch.Generator().manual_seed(0))

    def function(thetas: Tensor) -> Tensor:
        straight = thetas @ linear.T
        length = thetas.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        # as long as the linear part at |theta| = 1 / size
        return straight + straight.roll(1, -1) * (size * length).pow(power - 1)

    return Map(function, D)


@pytest.mark.parametrize("power", [2, 3, 5])
@pytest.mark.parametrize("ratio", [0.05, 0.5, 2.0])
@pytest.mark.parametrize("size", [0.4, 3.0])
def test_a_known_root_is_found(power: int, ratio: float, size: float) -> None:
    found = radius.linear_radius(bent(power, size), ratio, tolerance=0.001, bracket=(1e-3, 1e3))
    true = ratio ** (1 / (power - 1)) / size
    assert found.value == pytest.approx(true, rel=0.001)
    assert found.ratio == pytest.approx(ratio, rel=0.001)
    assert float(found) == found.value == found.coefficient  # a plain map's unit is 1
    assert len(found.curve) <= 15


def test_the_ratio_is_hit_within_the_tolerance_by_default(llama: Any) -> None:
    piece = LayerSlice(llama, [tiny.prompt(llama, n) for n in (7, 11)], 0, 2)
    J = piece.jacobian()
    for ratio in (0.2, 0.5):
        found = radius.linear_radius(piece, ratio)
        v = random_units(30, piece.d_model, seed=0)  # the published ratio, written out
        linear = found.value * v @ J.T
        rest = piece.delta(found.value * v) - linear
        true = math.sqrt(float((rest.norm(dim=-1) / linear.norm(dim=-1)).square().mean()))
        assert true == pytest.approx(found.ratio, rel=1e-3)
        assert true == pytest.approx(ratio, rel=0.02)
        assert found.coefficient == pytest.approx(found.value / kit.residual_scale(llama, 0))


def test_the_curve_holds_every_radius_and_every_direction() -> None:
    found = radius.linear_radius(bent(3), 0.5, n_directions=7)
    radii = [r for r, _, _ in found.curve]
    assert radii == sorted(radii)
    assert found.value in radii
    for r, mean, each in found.curve:
        assert len(each) == 7
        assert mean == pytest.approx(math.sqrt(sum(x * x for x in each) / 7), rel=1e-5)
        assert mean == pytest.approx(r**2, rel=1e-3)


def test_seed_and_number_of_directions_count(llama: Any) -> None:
    row = tiny.prompt(llama)
    found = [dct.linear_radius(llama, row, 0, 2, seed=s, n_directions=4).value for s in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert found[2] == pytest.approx(found[0], rel=0.5)


def test_linear_radius_through_a_model_is_the_slices(llama: Any) -> None:
    rows = [tiny.prompt(llama, n) for n in (7, 11)]
    piece = LayerSlice(llama, rows, 1, 3, read=slice(-2, None))
    direct = radius.linear_radius(piece, 0.3, n_directions=5, seed=2)
    found = dct.linear_radius(llama, rows, 1, 3, 0.3, read=slice(-2, None), n_directions=5, seed=2)
    assert found == direct


def test_the_root_may_lie_at_either_end_of_the_first_guess() -> None:
    for size in (1e-3, 0.05, 1.0, 10.0, 300.0):  # the search starts at a tenth of the unit
        found = radius.linear_radius(bent(2, size), 0.5, bracket=(1e-5, 1e5))
        assert found.value == pytest.approx(0.5 / size, rel=0.011)


@pytest.mark.parametrize("bracket", [(0.002, 8.0), (0.05, 0.2), (0.2, 0.9), (1.0, 3.0)])
def test_a_linear_map_has_no_root(bracket: tuple[float, float]) -> None:
    linear = Map(lambda thetas: thetas @ torch.diag(torch.arange(1.0, D + 1)), D)
    with pytest.raises(ValueError, match=r"ratio=0\.5: within bracket=.*a linear map stays near 0"):
        radius.linear_radius(linear, bracket=bracket)


@pytest.mark.parametrize("bracket", [(0.001, 0.3), (0.6, 8.0), (0.6, 0.7)])
def test_a_bracket_without_a_root_says_what_it_met(bracket: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="widen the bracket") as error:
        radius.linear_radius(bent(2), 0.5, bracket=bracket)
    end = bracket[1] if bracket[1] < 0.5 else bracket[0]
    assert f"{end:.3g}" in str(error.value)
    assert str(bracket) in str(error.value)


def test_a_ratio_that_jumps_is_named() -> None:
    def function(thetas: Tensor) -> Tensor:
        return thetas * torch.where(thetas.norm(dim=-1, keepdim=True) > 0.4, 3.0, 1.0)

    with pytest.raises(ValueError, match=r"jumps from 0 to .* at radius 0\.[34]"):
        radius.linear_radius(Map(function, D))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ratio": 0}, "ratio=0"),
        ({"ratio": -1.0}, "ratio=-1.0"),
        ({"ratio": math.nan}, "ratio=nan"),
        ({"ratio": math.inf}, "ratio=inf"),
        ({"bracket": (1.0, 0.5)}, r"bracket=\(1.0, 0.5\)"),
        ({"bracket": (0.0, 1.0)}, "bracket"),
        ({"bracket": (0.1, math.inf)}, "bracket"),
        ({"tolerance": 0.0}, "tolerance=0.0"),
        ({"n_directions": 0}, "n_directions=0"),
        ({"n_directions": 2.5}, "n_directions=2.5"),
        ({"n_directions": True}, "n_directions=True"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        radius.linear_radius(bent(2), **options)


def test_a_map_without_a_linear_part_is_named() -> None:
    with pytest.raises(ValueError, match="J v = 0"):
        radius.linear_radius(Map(torch.square, D))


def test_numbers_that_are_not_finite_are_named() -> None:
    with pytest.raises(ValueError, match="derivative at 0 is not finite"):
        radius.linear_radius(Map(torch.sqrt, D))
    cliff = Map(lambda t: t / (t.norm(dim=-1, keepdim=True) < 0.3), D)
    with pytest.raises(ValueError, match=r"at radius 0\.4 .*is not finite"):
        radius.linear_radius(cliff)


def test_resolve_takes_auto_a_number_or_a_radius() -> None:
    piece = bent(2)
    auto = radius.resolve(piece, "auto")
    assert auto.value == pytest.approx(0.5, rel=0.011)
    assert radius.resolve(piece, auto) is auto
    for number in (2, 2.0, np.float32(2.0), np.float64(2.0)):
        found = radius.resolve(piece, number)
        assert (found.value, found.coefficient, found.curve) == (2.0, 2.0, [])
        assert math.isnan(found.ratio)
    for wrong in (0, -1.0, math.nan, math.inf, True, "big", None, (1.0,)):
        with pytest.raises(ValueError, match=r"radius=.*positive norm in activation units"):
            radius.resolve(piece, wrong)  # type: ignore[arg-type]


def test_a_radius_draws_its_curve() -> None:
    figure = radius.linear_radius(bent(2)).plot()
    assert figure.axes
