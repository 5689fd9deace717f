"""kit.melbo on maps whose best directions are known, and on small models."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import kit
from kit.base.directions import random_units
from kit.search import melbo
from kit.search.layer_slice import LayerSlice
from tests import tiny

R = 4.0


def piece(model: Any, prompts: Any = None, **options: Any) -> LayerSlice:
    return LayerSlice(model, tiny.prompt(model) if prompts is None else prompts, 0, 2, **options)


def fit(on: LayerSlice, n: int = 3, **options: Any) -> Any:
    return melbo.fit_slice(on, n, **({"radius": R, "steps": 8} | options))


def off_diagonal(rows: Tensor) -> float:
    return float((rows @ rows.T - torch.eye(len(rows))).abs().max())


@pytest.mark.parametrize("together", [True, False])
def test_norm_and_angles_are_kept(model: Any, together: bool) -> None:
    found = fit(piece(model), together=together)
    assert torch.allclose(found.thetas.norm(dim=-1), torch.full((3,), R), rtol=1e-5)
    assert off_diagonal(found.V) < 1e-4
    assert list(found.alpha) == sorted(found.alpha, reverse=True)


@pytest.mark.parametrize("together", [True, False])
def test_the_search_beats_its_start_and_random_directions(llama: Any, together: bool) -> None:
    on = piece(llama)
    found = fit(on, together=together, steps=25)
    assert found.history[24] > 1.1 * found.history[0]
    control = on.delta(R * random_units(64, on.d_model, 9)).norm(dim=-1)
    assert found.changes.norm(dim=-1).max() > control.max()


def test_history_is_a_step_each_and_the_score_is_of_the_vector(llama: Any) -> None:
    on = piece(llama)
    assert len(fit(on).history) == 8
    found = fit(on, together=False)
    assert len(found.history) == 3 * 8
    again, _ = on.gradient(found.thetas, melbo.objective(2, 1))
    assert torch.allclose(again, found.alpha, rtol=1e-4)


@pytest.mark.parametrize(("power", "root"), [(2, 1), (2, 2), (4, 4), (4, 1), (1, 1)])
def test_the_objective_is_the_published_sum(llama: Any, power: float, root: float) -> None:
    prompts = [tiny.prompt(llama, n, seed=n)[0] for n in (12, 7)]
    on = piece(llama, prompts)
    thetas = R * random_units(2, on.d_model, 3)
    got, _ = on.gradient(thetas, melbo.objective(power, root))
    for k, theta in enumerate(thetas):
        total = 0.0
        for tokens in prompts:  # each alone, one token at a time
            alone = piece(llama, tokens)
            shift = alone.shift(theta[None])[0, 0]
            inner = sum(float(shift[t].norm()) ** power for t in range(len(tokens) - 3, len(tokens)))
            total += inner ** (1 / root)
        assert math.isclose(float(got[k]), total, rel_tol=1e-3)


def test_the_default_root_is_the_power_above_two(llama: Any) -> None:
    on = piece(llama)
    assert torch.equal(fit(on, power=4).V, fit(on, power=4, root=4).V)
    assert torch.equal(fit(on).V, fit(on, power=2, root=1).V)


def test_vectors_stay_apart_from_others_and_within_a_span(llama: Any) -> None:
    on = piece(llama)
    first = fit(on, 2)
    rest = fit(on, 2, apart_from=first.vectors())
    assert (rest.V @ first.V.T).abs().max() < 1e-4
    span = torch.randn(6, on.d_model, generator=torch.Generator().manual_seed(1))
    for together in (True, False):
        inside = fit(on, 3, span=span, apart_from=first.vectors(1), together=together)
        q = torch.linalg.qr(span.T)[0]
        assert torch.allclose(inside.V @ q @ q.T, inside.V, atol=1e-4)
        assert (inside.V @ first.V[0]).abs().max() < 1e-4
        assert off_diagonal(inside.V) < 1e-4


@pytest.mark.parametrize("together", [True, False])
def test_restarts_never_lose(llama: Any, together: bool) -> None:
    on = piece(llama)
    one = fit(on, 1, together=together)
    several = fit(on, 1, together=together, restarts=3)
    assert several.alpha[0] >= one.alpha[0] * 0.999


def test_a_seed_is_a_result(llama: Any) -> None:
    on = piece(llama)
    assert torch.equal(fit(on, seed=1).V, fit(on, seed=1).V)
    assert not torch.allclose(fit(on, seed=1).V, fit(on, seed=2).V)


def test_vectors_act_where_they_were_trained(llama: Any) -> None:
    found = melbo.fit(llama, tiny.prompt(llama), 0, 2, 2, radius=R, steps=3)
    vector = found.vectors(1)[0]
    assert vector.layer == 0
    assert vector.metadata["coefficient"] * kit.residual_scale(llama, 0) == pytest.approx(R)
    table = found.table(8)
    assert {"times_random", "p", "kl"} <= set(table) and len(table) == 2


class Stops(LayerSlice):
    """A slice on which somebody presses stop at a given evaluation."""

    at = 5
    seen = 0

    def gradient(self, *args: Any) -> Any:
        self.seen += 1
        if self.seen == self.at:
            raise KeyboardInterrupt
        return super().gradient(*args)


@pytest.mark.parametrize("together", [True, False])
def test_an_interrupt_keeps_what_there_is(llama: Any, together: bool) -> None:
    on = Stops(llama, tiny.prompt(llama), 0, 2)
    found = fit(on, together=together)
    assert len(found.history) == 4 and len(found) == (3 if together else 1)
    assert found.alpha.max() > 0


@pytest.mark.parametrize("together", [True, False])
def test_an_interrupt_before_any_score_goes_on(llama: Any, together: bool) -> None:
    on = Stops(llama, tiny.prompt(llama), 0, 2)
    on.at = 1
    with pytest.raises(KeyboardInterrupt, match="before there was any vector"):
        fit(on, together=together)


def test_the_best_step_is_kept_not_the_last(llama: Any) -> None:
    found = fit(piece(llama), rate=3.0, steps=12)  # leaps about
    assert float(found.alpha.mean()) == pytest.approx(max(found.history), rel=1e-4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n_vectors": 0}, "n_vectors=0"),
        ({"n_vectors": 49}, "n_vectors=49: only 48 orthogonal"),
        ({"steps": 0}, "steps=0"),
        ({"steps": True}, "steps=True"),
        ({"restarts": 1.5}, r"restarts=1\.5"),
        ({"power": 0}, "power=0"),
        ({"power": "2"}, "power='2'"),
        ({"root": -1}, "root=-1"),
        ({"rate": math.nan}, "rate=nan"),
        ({"radius": 0}, "radius=0"),
        ({"radius": "large"}, "radius='large'"),
        ({"span": torch.ones(2, 5)}, r"span has shape \[2, 5\]: give \[n, 48\]"),
        ({"span": torch.full((2, 48), torch.nan)}, "span holds NaN"),
        ({"span": torch.eye(48)[:2], "n_vectors": 3}, "only 2 orthogonal"),
    ],
)
def test_what_makes_no_sense_is_refused(llama: Any, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        melbo.fit_slice(piece(llama), **({"n_vectors": 2, "radius": R, "steps": 2} | change))


def test_a_vector_of_another_layer_is_refused(llama: Any) -> None:
    with pytest.raises(ValueError, match="at layer 1 with width 48; the search is at layer 0"):
        fit(piece(llama), apart_from=[tiny.vector(llama, 1)])
