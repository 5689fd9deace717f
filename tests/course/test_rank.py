"""Candidate directions by what they change: on maps known on paper, and on small models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("pandas")

from course.studies import rank
from course.studies.rank import rank_directions
from kit.base.directions import random_units
from kit.search.layer_slice import LayerSlice
from kit.search.maps import Map

EYE = torch.eye(12)
PROMPT = torch.arange(7)


# --- candidates -------------------------------------------------------------------------------


def stretch(values: Tensor) -> Map:
    return Map(lambda theta: theta * values, len(values))


def test_candidates_of_a_linear_map_rank_by_what_they_grow() -> None:
    piece = stretch(torch.tensor([1.0, 5.0, 2.0, 3.0]))
    found = rank_directions(piece, 3 * torch.eye(4), 2.0)
    assert found.table.index.tolist() == [1, 3, 2, 0]
    assert found.table["linear"].tolist() == pytest.approx([10, 6, 4, 2])
    assert found.table["change"].tolist() == pytest.approx([10, 6, 4, 2])
    assert found.rank_correlation == pytest.approx(1)
    torch.testing.assert_close(found.top(2), torch.eye(4)[[1, 3]])
    median = found.random["linear"].median()
    assert found.table["times_random"].iloc[0] == pytest.approx(10 / median)
    assert len(found.random) == 64
    control = 2 * random_units(64, 4, 0) * torch.tensor([1.0, 5.0, 2.0, 3.0])
    for name in ("linear", "change"):
        assert found.random[name].tolist() == pytest.approx(control.norm(dim=-1).tolist(), rel=1e-5)


def test_many_candidates_cost_the_jacobian_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank, "_CHUNK", 7)
    piece = stretch(torch.linspace(0.5, 3, 12))
    W = random_units(50, 12, 5)
    found = rank_directions(piece, W, 1.5, verify=10)
    exact = 1.5 * (W * torch.linspace(0.5, 3, 12)).norm(dim=-1)
    assert found.table["linear"].sort_index().tolist() == pytest.approx(exact.tolist(), rel=1e-5)
    measured = found.table["change"].notna()
    assert measured.iloc[:10].all()  # the best
    assert 10 < measured.sum() <= 20  # and some drawn
    assert measured.iloc[10:].any()


def curved() -> Map:
    """Axes 0 and 1 start steep and saturate, the others start flat and take off."""
    grow = torch.tensor([9.0, 8.0, 0.3, 0.2])
    return Map(
        lambda theta: torch.cat([torch.tanh(theta[:, :2] * grow[:2]), (5 * theta[:, 2:]).sinh() * grow[2:]], dim=-1), 4
    )


def test_where_the_map_bends_the_linear_rank_misleads() -> None:
    linear, true = (rank_directions(curved(), torch.eye(4), 1.0, by) for by in ("linear", "change"))
    assert linear.table.index.tolist() == [0, 1, 2, 3]
    assert true.table.index.tolist()[:2] == [2, 3]
    assert linear.rank_correlation < 0
    assert true.rank_correlation == pytest.approx(linear.rank_correlation)
    assert true.table["change"].notna().all()
    assert true.table["times_random"].iloc[0] == pytest.approx(
        true.table["change"].iloc[0] / true.random["change"].median()
    )


def test_the_rank_correlation_is_of_rows_drawn_not_of_the_best() -> None:
    steep = torch.linspace(0.5, 3, 12)
    piece = stretch(steep)
    W = random_units(400, 12, 5)
    assert rank_directions(piece, W, 1.0, verify=50).rank_correlation == pytest.approx(1)
    linear = rank_directions(piece, W, 1.0, verify=50).table["linear"]
    edge = float(linear.iloc[49])  # the best agree with the linear rank, all others contradict it
    two = Map(
        lambda theta: torch.where(
            (slope := (theta * steep).norm(dim=-1, keepdim=True)) > edge - 1e-6, theta * slope, theta / (9 * slope)
        ),
        12,
    )
    two.jvp = piece.jvp  # type: ignore[method-assign]
    assert rank_directions(two, W, 1.0, verify=50).rank_correlation < 0


def test_unembedding_rows_become_vectors(llama: Any) -> None:
    piece = LayerSlice(llama, PROMPT, 0, 2)
    W = random_units(60, piece.d_model, 4)
    found = rank_directions(piece, W, 0.2 * piece.unit, verify=5)
    J = piece.jacobian()
    assert found.table.index[0] == int((W @ J.T).norm(dim=-1).argmax())
    names = [f"token {i}" for i in range(60)]
    vectors = found.vectors(2, names)
    assert [v.name for v in vectors] == [names[i] for i in found.table.index[:2]]
    assert vectors[0].layer == 0
    assert vectors[0].metadata["coefficient"] == pytest.approx(0.2)
    with pytest.raises(ValueError, match="have a model to steer"):
        rank_directions(curved(), torch.eye(4), 1.0).vectors(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"W": torch.ones(3, 5)}, r"W has shape \[3, 5\]: give \[n, 4\]"),
        ({"W": torch.ones(1, 4)}, "n of 2 or more"),
        ({"W": torch.diag(torch.tensor([1.0, 0, 1, 0]))}, r"rows \[1, 3\] of W \(2 in all\)"),
        ({"W": torch.full((2, 4), torch.nan)}, "zero or not finite"),
        ({"by": "delta"}, "by='delta': use 'linear' or 'change'"),
        ({"verify": 1}, "verify=1"),
        ({"radius": -1.0}, "radius=-1.0"),
    ],
)
def test_candidates_that_cannot_be_ranked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rank_directions(curved(), **{"W": torch.eye(4), "radius": 1.0, **options})
