"""kit.directions: sets of unit directions, kept apart hard (QR) or softly."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kit.base.directions import duplicates, orthogonal, random_units, repel, unit


def test_random_units_are_uniform_and_repeatable() -> None:
    rows = random_units(4000, 8, seed=3)
    assert rows.shape == (4000, 8)
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(4000))
    assert rows.equal(random_units(4000, 8, seed=3))
    assert not rows.equal(random_units(4000, 8, seed=4))
    assert float(rows.mean(0).abs().max()) < 0.03
    torch.testing.assert_close(rows.T @ rows / 4000, torch.eye(8) / 8, rtol=0, atol=0.015)


def test_random_units_leave_the_global_seed_alone() -> None:
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    random_units(5, 5)
    assert torch.randn(3).equal(expected)


def test_unit_leaves_zero_rows_and_normalises_blocks() -> None:
    rows = torch.tensor([[[3.0, 4.0], [0.0, 0.0]], [[0.0, -2.0], [1.0, 0.0]]])
    assert unit(rows).tolist() == [[[pytest.approx(0.6), pytest.approx(0.8)], [0, 0]], [[0, -1], [1, 0]]]


@given(st.integers(1, 12), st.integers(0, 8), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_orthogonal_is_gram_and_schmidt(m: int, more: int, seed: int) -> None:
    rows = random_units(m, m + more, seed)
    slow: list[Tensor] = []
    for row in rows.double():
        for other in slow:
            row = row - (row @ other) * other
        slow.append(row / row.norm())
    found = orthogonal(rows)
    torch.testing.assert_close(found.double(), torch.stack(slow), rtol=0, atol=2e-3)
    torch.testing.assert_close(found @ found.T, torch.eye(m), rtol=0, atol=1e-5)
    assert bool(((found * rows).sum(-1) > 0).all())


def test_signs_are_mended_only_where_asked() -> None:
    rows = random_units(6, 9, seed=1)
    kept, turned = orthogonal(rows), orthogonal(rows, fix_signs=False)
    assert turned.equal(torch.linalg.qr(rows.T).Q.T)
    assert not turned.equal(kept)
    torch.testing.assert_close(kept.abs(), turned.abs())
    assert orthogonal(-kept).allclose(-kept, atol=1e-6)


def test_orthogonal_needs_room() -> None:
    with pytest.raises(ValueError, match=r"n_features=5 in 4 dimensions.*'soft'"):
        orthogonal(random_units(5, 4))


def slow_repel(rows: Tensor, strength: Tensor, steps: int, temperature: float) -> Tensor:
    """The published formula, number by number."""
    for _ in range(steps):
        fresh = []
        for i in range(len(rows)):
            others = [j for j in range(len(rows)) if j != i]
            push = torch.stack([((rows[i] * rows[j]).sum() / temperature).exp() * strength[j] for j in others])
            push = push / push.sum()
            moved = rows[i] - sum(w * rows[j] for w, j in zip(push, others, strict=True))
            fresh.append(moved / moved.norm(dim=-1, keepdim=True))
        rows = torch.stack(fresh)
    return rows


@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 6)])
def test_repel_is_the_published_formula(shape: tuple[int, ...]) -> None:
    rng = torch.Generator().manual_seed(0)
    rows = unit(torch.randn(shape, generator=rng).double())
    strength = torch.rand(shape[0], generator=rng).double() * 10
    for steps, temperature in ((1, 1.0), (4, 0.5)):
        torch.testing.assert_close(
            repel(rows, strength, steps, temperature), slow_repel(rows, strength, steps, temperature)
        )


def test_repel_moves_the_weak_off_the_strong() -> None:
    strong, near = unit(torch.tensor([1.0, 0.0, 0.0])), unit(torch.tensor([1.0, 0.2, 0.0]))
    third = torch.tensor([0.0, 0.0, 1.0])
    rows = torch.stack([strong, near, third])
    found = repel(rows, torch.tensor([100.0, 0.01, 1.0]), steps=1)
    assert float(found[1] @ strong) < 0.2 < float(near @ strong)
    moved = 1 - (found * rows).sum(-1)
    assert float(moved[1]) > float(moved[0])


def test_repel_takes_more_rows_than_dimensions_and_a_zero_strength() -> None:
    rows = random_units(30, 8)
    found = repel(rows, torch.zeros(30))
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(30))
    assert repel(rows[:1], torch.ones(1)).equal(rows[:1])


def test_repel_never_takes_rows_to_zero() -> None:
    """Four factors of fourteen blocks: within two fits they met on one line."""
    same = unit(torch.ones(2, 5))
    torch.testing.assert_close(repel(same, torch.ones(2), 1), same)
    rows = unit(torch.randn(3, 14, 6, generator=torch.Generator().manual_seed(3)))
    rows = torch.cat([rows, -rows[:1] + 1e-4])
    found = repel(unit(rows), torch.tensor([400.0, 100.0, 250.0, 250.0]), 40)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(4, 14))


def test_duplicates_are_pairs_by_cosine() -> None:
    a, b = torch.eye(4)[0], torch.eye(4)[1]
    rows = torch.stack([a, b, 5 * a, -a, a + 0.1 * b])
    assert duplicates(rows, 0.9) == [(0, 2, 1.0), (0, 4, 0.995), (2, 4, 0.995)]
    assert duplicates(rows, 0.999) == [(0, 2, 1.0)]
    assert duplicates(torch.eye(4)) == []
