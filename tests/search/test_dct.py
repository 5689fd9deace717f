"""kit.dct on maps whose factors are known, and on small models."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import kit
from course.exercises.published_dct import Published
from kit.base.directions import orthogonal, random_units
from kit.search import dct, radius
from kit.search.features import DCT
from kit.search.layer_slice import LayerSlice
from kit.search.maps import Map
from tests import tiny

SIGMA: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "quadratic": torch.square,
    "exponential": torch.expm1,
}


class Planted(Map):
    """``sum_l strength_l sigma(<v_l, theta / R>) u_l`` with random unit u, v."""

    def __init__(
        self, d: int, n: int, sigma: str, seed: int = 0, strength: Any = 1.0, R: float = 1.0, apart: bool = False
    ) -> None:
        self.V, self.U = random_units(n, d, seed + 100), random_units(n, d, seed + 200)
        if apart:
            self.V = orthogonal(self.V)
        self.strength = torch.as_tensor(strength).expand(n)

        def function(thetas: Tensor) -> Tensor:
            return (SIGMA[sigma](thetas @ self.V.T / R) * self.strength) @ self.U

        super().__init__(function, d)


def mmcs(true: Tensor, found: Tensor) -> float:
    """Mean over true factors of the highest cosine with a found one."""
    return float((true @ found.T).max(-1).values.mean())


def soft_map(d: int = 20, seed: int = 0) -> Map:
    """Every derivative alive, no two directions alike."""
    rng = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(d, d, generator=rng) / math.sqrt(d) for _ in range(2))
    bias = torch.randn(d, generator=rng)
    return Map(lambda thetas: ((thetas @ a.T + bias).tanh() - bias.tanh()) @ b.T, d)


# Planted factors.


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_exponential_features_are_recovered(seed: int) -> None:
    truth = Planted(512, 32, "exponential", seed)
    found = dct.fit_map(truth, n_features=128, radius=2.0, init="jacobian", n_projections=32, seed=seed, iterations=20)
    assert mmcs(truth.V, found.V) >= 0.95
    assert mmcs(truth.U, found.U) >= 0.95
    slipped = dct.fit_map(
        truth,
        n_features=128,
        radius=2.0,
        init="jacobian",
        n_projections=32,
        seed=seed,
        iterations=20,
        steps=Published(["qr-signs", "svd-columns", "stale-u"]),
    )
    assert mmcs(truth.V, slipped.V) < 0.9
    assert slipped.history[-1] < found.history[-1] / 1.3
    soft = dct.fit_map(truth, n_features=128, radius=2.0, orthogonalise="soft", seed=seed)
    assert mmcs(truth.V, soft.V) >= 0.95


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_eight_of_eight_quadratic_factors_are_recovered(seed: int) -> None:
    truth = Planted(64, 8, "quadratic", seed)
    found = dct.fit_map(truth, method="quadratic", n_features=8, radius=1.0, seed=seed)
    assert float((truth.V @ found.V.T).abs().max(-1).values.min()) > 0.97
    assert float((truth.U @ found.U.T).max(-1).values.min()) > 0.9
    slipped = dct.fit_map(
        soft_map(64), method="quadratic", n_features=8, radius=1.0, seed=seed, steps=Published(["no-second-derivative"])
    )
    top = torch.linalg.svd(soft_map(64).jacobian())[2][:8]
    inside = slipped.V @ top.T  # subspace iteration on the Jacobian is what the slip makes of it
    assert float(inside.square().sum(-1).mean()) > 0.8


def test_orthogonal_quadratic_factors_come_out_exactly() -> None:
    strength = torch.linspace(2, 0.5, 8)
    truth = Planted(40, 8, "quadratic", strength=strength, R=3.0, apart=True)
    found = dct.fit_map(truth, method="quadratic", n_features=8, radius=3.0, iterations=80)
    cosines = found.V @ truth.V.T
    torch.testing.assert_close(cosines.abs(), torch.eye(8), rtol=0, atol=1e-3)
    torch.testing.assert_close(found.alpha, strength, rtol=1e-3, atol=1e-3)
    thetas = 3 * random_units(5, 40)
    torch.testing.assert_close(found.predict(thetas), truth.delta(thetas), rtol=1e-2, atol=1e-3)
    assert found.history[-1] == pytest.approx(float(strength.mean()), rel=1e-3)


def test_alpha_is_the_planted_strength() -> None:
    strength = torch.tensor([3.0, 2.0, 1.0, 0.5])
    truth = Planted(64, 4, "exponential", strength=strength, R=5.0)
    exact = dct.fit_map(
        truth, n_features=4, radius=5.0, init=(truth.V, truth.U), iterations=1, steps=Published(["svd-columns"])
    )
    assert exact.history == [
        pytest.approx(float((truth.delta(5 * orthogonal(truth.V)) * truth.U).sum(-1).mean()), rel=1e-5)
    ]
    planted = DCT(truth, "exponential", truth.V, truth.U, strength, truth.delta(5 * truth.V), dct.resolve(truth, 5.0))
    thetas = 5 * random_units(6, 64)
    torch.testing.assert_close(planted.predict(thetas), truth.delta(thetas))
    fitted = dct.strengths("exponential", truth.V, truth.U, (truth.delta(5 * truth.V) * truth.U).sum(-1))
    torch.testing.assert_close(fitted, strength, rtol=1e-3, atol=1e-3)
    found = dct.fit_map(truth, n_features=4, radius=5.0, iterations=40, init="jacobian")
    torch.testing.assert_close(found.alpha[:2], strength[:2], rtol=0.1, atol=0.1)
    assert mmcs(truth.V[:2], found.V) > 0.98  # the weak ones are bent by the strong


# Linear and projected.


def test_linear_is_the_svd_of_the_exact_jacobian() -> None:
    piece = soft_map()
    J = torch.stack(
        [
            torch.autograd.functional.jacobian(lambda t, i=i: piece.change(t[None])[0, i], torch.zeros(20))
            for i in range(20)
        ]
    )
    U, S, Vh = torch.linalg.svd(J)
    found = dct.fit_map(piece, method="linear", n_features=6, radius=0.5)
    torch.testing.assert_close(found.alpha, 0.5 * S[:6], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close((found.V * Vh[:6]).sum(-1).abs(), torch.ones(6))
    torch.testing.assert_close((found.U * U[:, :6].T).sum(-1).abs(), torch.ones(6))
    torch.testing.assert_close(found.V @ J.T, found.alpha[:, None] / 0.5 * found.U)  # signs agree
    thetas = random_units(3, 20)
    best = (thetas @ Vh[:6].T * S[:6]) @ U[:, :6].T
    torch.testing.assert_close(found.predict(thetas), best, rtol=1e-3, atol=1e-4)
    assert bool((found.changes.norm(dim=-1) >= piece.delta(-0.5 * found.V).norm(dim=-1)).all())


def test_projected_equals_linear_where_the_rank_is_low() -> None:
    truth = Planted(80, 10, "linear", strength=torch.linspace(3, 1, 10))
    linear = dct.fit_map(truth, method="linear", n_features=10, radius=1.0)
    for projections in (None, 12):
        found = dct.fit_map(truth, method="projected", n_features=10, radius=1.0, n_projections=projections)
        torch.testing.assert_close(found.alpha, linear.alpha, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close((found.V * linear.V).sum(-1).abs(), torch.ones(10))
        torch.testing.assert_close((found.U * linear.U).sum(-1), (found.V * linear.V).sum(-1))


def test_projected_leads_linear_closely_where_the_rank_is_full() -> None:
    piece = soft_map(200)
    linear = dct.fit_map(piece, method="linear", n_features=8, radius=1.0)
    found = dct.fit_map(piece, method="projected", n_features=8, radius=1.0)
    energy = [float((D.V @ piece.jacobian().T).square().sum()) for D in (found, linear)]
    assert 0.9 < energy[0] / energy[1] <= 1.0001


# The published iteration, written from its formulas (columns for rows, nothing shared with kit).


def published_exponential(piece: Map, V: Tensor, U: Tensor, R: float, n: int) -> tuple[Any, ...]:
    """V, U ``[d, m]``: QR as it comes, then both directions at once from the old U."""
    objective = []
    for _ in range(n):
        V = torch.linalg.qr(V)[0]
        leaf = (R * V).T.clone().requires_grad_()
        out = piece.change(leaf)
        (out * U.T).sum().backward()
        objective.append(float((out * U.T).sum(-1).mean()))
        V, U = normalize(R * leaf.grad.T, dim=0), normalize(out.detach().T, dim=0)
    return V, U, objective


@pytest.mark.parametrize("init", ["random", "jacobian"])
def test_the_slips_reproduce_the_published_iteration(init: Any) -> None:
    piece, R, m, d = soft_map(40), 1.5, 9, 40
    if init == "random":
        V, U = random_units(m, d, 5).T, random_units(m, d, 5 + 1_000_003).T
    else:
        J = torch.autograd.functional.jacobian(lambda t: piece.change(t[None])[0], torch.zeros(d))
        V = torch.linalg.svd(random_units(6, d, 5) @ J)[2][:, :m]  # columns, not rows
        U = normalize(piece.delta((R * V).T.contiguous()).T, dim=0)
    V, U, objective = published_exponential(piece, V, U, R, 10)
    found = dct.fit_map(
        piece,
        n_features=m,
        radius=R,
        init=init,
        n_projections=6,
        seed=5,
        steps=Published(["qr-signs", "svd-columns", "stale-u"]),
    )
    # single precision: the fifth digit depends on the order in which a machine sums
    assert found.history == pytest.approx(objective, abs=1e-4)
    K = (U.T @ U) * torch.expm1(V.T @ V)
    c = (piece.delta((R * V).T.contiguous()) * U.T).sum(-1)
    alpha = torch.linalg.solve(K, c)
    order = alpha.square().argsort(descending=True)
    torch.testing.assert_close(found.V, V.T[order], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.U, U.T[order], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.alpha, alpha[order], rtol=1e-3, atol=1e-4)
    mended = dct.fit_map(piece, n_features=m, radius=R, init=init, n_projections=6, seed=5)
    assert mended.history[-1] > 1.05 * found.history[-1]


def test_the_published_linear_fit_takes_columns() -> None:
    piece, d = soft_map(40), 40
    J = torch.autograd.functional.jacobian(lambda t: piece.change(t[None])[0], torch.zeros(d))
    V = torch.linalg.svd(J)[2][:, :7].T
    found = dct.fit_map(piece, method="linear", n_features=7, radius=1.0, steps=Published(["svd-columns"]))
    cosines = (found.V @ V.T).abs()
    torch.testing.assert_close(cosines.max(-1).values, torch.ones(7), rtol=1e-3, atol=1e-3)
    true = dct.fit_map(piece, method="linear", n_features=7, radius=1.0)
    assert float((found.V @ J.T).norm()) < 0.75 * float((true.V @ J.T).norm())


def test_the_published_quadratic_fit_never_sees_a_second_derivative() -> None:
    piece, d = soft_map(40), 40
    J = torch.autograd.functional.jacobian(lambda t: piece.change(t[None])[0], torch.zeros(d))
    V, U = random_units(5, d, 0).T, random_units(5, d, 1_000_003).T
    objective = []
    for _ in range(4):
        V = torch.linalg.qr(V)[0]
        objective.append(float(((J @ V) * U).sum(0).mean()))
        V, U = normalize(J.T @ U, dim=0), normalize(J @ V, dim=0)
    found = dct.fit_map(
        piece,
        method="quadratic",
        n_features=5,
        radius=1.0,
        iterations=4,
        steps=Published(["no-second-derivative", "qr-signs"]),
    )
    assert [f"{x:.4f}" for x in found.history] == [f"{x:.4f}" for x in objective]
    assert float((found.V @ V).abs().max(-1).values.min()) > 0.9999
    even = Planted(40, 5, "quadratic")
    silent = dct.fit_map(even, method="quadratic", n_features=5, radius=1.0, steps=Published(["no-second-derivative"]))
    assert silent.history == [0.0] * 10


# Switches.


def test_soft_orthogonalisation_allows_more_features_than_dimensions() -> None:
    truth = Planted(24, 30, "exponential", R=1.0)
    found = dct.fit_map(truth, n_features=60, radius=2.0, orthogonalise="soft")
    assert found.V.shape == (60, 24)
    start = dct.fit_map(truth, n_features=60, radius=2.0, orthogonalise="soft", init="jacobian")
    assert len(start) == 60
    free = dct.fit_map(truth, n_features=60, radius=2.0, orthogonalise=None)

    def spread(D: DCT) -> float:
        return float(torch.linalg.svdvals(D.V).square().square().sum())

    assert spread(found) < spread(free)  # without any, they crowd


def test_near_duplicates_are_reported() -> None:
    truth = Planted(24, 2, "exponential", strength=torch.tensor([2.0, 1.0]))
    found = dct.fit_map(truth, n_features=6, radius=3.0, orthogonalise=None, iterations=30)
    pairs = found.duplicates()
    assert pairs
    assert all(i < j and float(found.V[i] @ found.V[j]) > 0.9 for i, j, _ in pairs)
    assert bool(found.alpha.isfinite().all())
    assert dct.fit_map(soft_map(), method="linear", n_features=9, radius=1.0).duplicates() == []


def test_the_seed_decides_everything() -> None:
    a, b, c = (dct.fit_map(soft_map(), n_features=4, radius=1.0, seed=s) for s in (3, 3, 4))
    assert a.V.equal(b.V)
    assert a.alpha.equal(b.alpha)
    assert not a.V.allclose(c.V)
    assert a.seed == 3


def test_auto_is_the_linear_radius() -> None:
    piece = Planted(32, 8, "exponential")
    found = dct.fit_map(piece, n_features=4, radius="auto")
    assert found.radius == radius.linear_radius(piece)
    assert found.radius.ratio == pytest.approx(0.5, rel=0.02)
    again = dct.fit_map(piece, n_features=4, radius=found.radius)
    assert again.V.equal(found.V)


def test_factors_are_sorted_and_true() -> None:
    piece = soft_map()
    for method in dct.METHODS:
        found = dct.fit_map(piece, method=method, n_features=5, radius=1.2)  # type: ignore[arg-type]
        assert found.alpha.square().tolist() == sorted(found.alpha.square().tolist(), reverse=True)
        torch.testing.assert_close(found.V.norm(dim=-1), torch.ones(5))
        torch.testing.assert_close(found.U.norm(dim=-1), torch.ones(5))
        torch.testing.assert_close(found.changes, piece.delta(1.2 * found.V))
        torch.testing.assert_close(found.thetas, 1.2 * found.V)
        if method == "exponential":
            torch.testing.assert_close(found.U, normalize(found.changes, dim=-1))


# Ranking.


def test_ranking_by_alpha_change_and_target() -> None:
    found = dct.fit_map(soft_map(), n_features=6, radius=1.0)
    assert found.ranking() == list(range(6))
    sizes = found.changes.norm(dim=-1)
    assert found.ranking("change") == sizes.argsort(descending=True).tolist()
    target = torch.randn(20, generator=torch.Generator().manual_seed(0))
    assert found.scores(target).tolist() == [pytest.approx(float(c @ target), abs=1e-5) for c in found.changes]
    with pytest.raises(ValueError, match=r"by='size': use 'alpha', 'change', 'kl'"):
        found.scores("size")
    for needs_a_model in ("kl", torch.ones(7)):
        with pytest.raises(ValueError, match="have a model to steer"):
            found.scores(needs_a_model)
    with pytest.raises(ValueError, match="have a model to steer"):
        found.vectors()


def test_p_values_count_random_directions() -> None:
    truth = Planted(64, 4, "exponential", strength=4.0)
    found = dct.fit_map(truth, n_features=12, radius=2.0)
    table = found.table(n_random=99, seed=7)
    base = truth.delta(2.0 * random_units(99, 64, 7)).norm(dim=-1)
    for i, row in table.iterrows():
        size = float(found.changes[i].norm())
        above = int((base >= size).sum())
        assert row["p"] == pytest.approx((above + 1) / 100)
        assert row["times_random"] == pytest.approx(size / float(base.median()), rel=1e-4)
        assert row["nearest"] == pytest.approx(
            max(float(found.V[i] @ found.V[j]) for j in range(12) if j != i), abs=1e-5
        )
    assert (table["p"][:4] == 0.01).all()
    assert list(table.columns) == ["alpha", "change", "times_random", "p", "nearest"]


@pytest.fixture
def fitted(llama: Any) -> DCT:
    rows = [tiny.prompt(llama, n, seed=n) for n in (7, 10)]
    return dct.fit(llama, rows, 0, 2, n_features=4, radius=6.0, iterations=2)


def test_ranking_at_the_output(fitted: DCT, llama: Any) -> None:
    piece = fitted.piece
    assert isinstance(piece, LayerSlice)
    torch.testing.assert_close(fitted.scores("kl"), piece.kl(fitted.thetas))
    target = torch.zeros(llama.cfg.d_vocab)
    target[7], target[11] = 1, -1
    moved = piece.logits(fitted.thetas) - piece.logits(None)
    expected = (moved[..., 7] - moved[..., 11]).mean(-1)
    torch.testing.assert_close(fitted.scores(target), expected)
    assert fitted.ranking(target) == expected.argsort(descending=True).tolist()
    with pytest.raises(ValueError, match=r"by has shape \[5\]: give \[48\] or \[30"):
        fitted.scores(torch.ones(5))
    table = fitted.table(n_random=9)
    assert table["kl"].tolist() == pytest.approx(fitted.scores("kl").tolist())
    assert table["kl_p"].between(0.1, 1).all()


def test_vectors_steer_by_exactly_the_radius(fitted: DCT, llama: Any) -> None:
    vectors = fitted.vectors()
    assert [v.metadata["feature"] for v in vectors] == [0, 1, 2, 3]
    vector, row = vectors[1], tiny.prompt(llama)
    meta = vector.metadata
    assert (vector.layer, meta["source"], meta["target"], vector.norm) == (0, 0, 2, 1.0)
    assert meta["radius"] == 6.0
    assert meta["coefficient"] == pytest.approx(6.0 / kit.residual_scale(llama, 0))
    assert meta["alpha"] == pytest.approx(float(fitted.alpha[1]))
    assert meta["change"] == pytest.approx(float(fitted.changes[1].norm()))
    assert vector.fingerprint == kit.fingerprint(llama)
    plain = tiny.stream_after(llama, 0, row)
    with kit.steer(llama, {vector: meta["coefficient"]}):
        steered = tiny.stream_after(llama, 0, row)
    added = (6.0 * fitted.V[1]).expand_as(plain)
    torch.testing.assert_close(steered - plain, added, rtol=1e-5, atol=1e-5)
    # and so it changes the target layer as the fit says, on the prompts of the fit
    changes = []
    for n in (7, 10):
        tokens = tiny.prompt(llama, n, seed=n)
        with kit.steer(llama, {vector: meta["coefficient"]}):
            steered = tiny.stream_after(llama, 2, tokens)
        changes.append((steered - tiny.stream_after(llama, 2, tokens))[0, -3:].mean(0))
    torch.testing.assert_close(torch.stack(changes).mean(0), fitted.changes[1], rtol=1e-3, atol=1e-4)


def test_vectors_can_be_chosen(fitted: DCT, tmp_path: Any) -> None:
    assert [v.name for v in fitted.vectors(2)] == ["dct 0", "dct 1"]
    assert [v.metadata["feature"] for v in fitted.vectors([3, 1])] == [3, 1]
    assert len(fitted.vectors(99)) == 4
    for wrong in (0, -1, [4], [-1], []):
        with pytest.raises(ValueError, match="indices from 0 to 3"):
            fitted.vectors(wrong)
    vector = fitted.vectors(1)[0]
    loaded = kit.SteeringVector.load(vector.save(tmp_path / "v.safetensors"))
    assert loaded.metadata == vector.metadata
    assert loaded.direction.equal(vector.direction)


@pytest.mark.parametrize("method", dct.METHODS)
def test_every_method_runs_on_a_model(chat: Any, method: Any) -> None:
    found = dct.fit(
        chat, ["A small boat", "Twelve clocks"], 1, 2, method=method, n_features=5, radius=4.0, iterations=2
    )
    assert len(found) == 5
    assert bool(found.changes.isfinite().all())


def test_bfloat16_models_are_fitted_too(tmp_path: Any) -> None:
    model = kit.load_model(str(tiny.save(tmp_path, "llama")), dtype="bfloat16")
    for method in ("linear", "exponential", "quadratic"):
        found = dct.fit(model, tiny.prompt(model), 0, 1, method=method, n_features=3, radius=4.0, iterations=2)  # type: ignore[arg-type]
        assert found.V.dtype == torch.float32


# Interrupts and bad input.


class Stops(Map):
    """Soft map that is interrupted in its n-th pass."""

    def __init__(self, at: int) -> None:
        self.inner, self.left = soft_map(), at
        super().__init__(self._count, 20)

    def _count(self, thetas: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self.inner.change(thetas)


@pytest.mark.parametrize("orthogonalise", ["qr", "soft", None])
def test_an_interrupt_keeps_what_the_last_whole_iteration_gave(orthogonalise: Any) -> None:
    options = {"n_features": 4, "radius": 1.0, "orthogonalise": orthogonalise}
    found = dct.fit_map(Stops(at=4), **options)
    expected = dct.fit_map(soft_map(), iterations=3, **options)
    assert found.history == expected.history
    assert len(found.history) == 3
    for name in ("V", "U", "alpha", "changes"):
        assert getattr(found, name).equal(getattr(expected, name))


def test_an_interrupt_before_any_result_stays_one() -> None:
    with pytest.raises(KeyboardInterrupt, match="first iteration"):
        dct.fit_map(Stops(at=1), n_features=4, radius=1.0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "cubic"}, r"method='cubic': use 'linear'"),
        ({"orthogonalise": "svd"}, r"orthogonalise='svd': use 'qr', 'soft' or None"),
        ({"n_features": 0}, "n_features=0"),
        ({"n_features": 2.0}, "n_features=2.0"),
        ({"n_features": True}, "n_features=True"),
        ({"iterations": 0}, "iterations=0"),
        ({"n_projections": 0}, "n_projections=0"),
        ({"n_features": 21}, r"n_features=21: this space has 20 dimensions.*'soft'"),
        ({"n_features": 21, "method": "linear"}, "n_features=21"),
        ({"n_features": 21, "method": "projected", "orthogonalise": None}, "n_features=21"),
        ({"radius": 0}, "radius=0"),
        ({"radius": -2.0}, "radius=-2.0"),
        ({"radius": "large"}, "radius='large'"),
        ({"radius": math.nan}, "radius=nan"),
        ({"init": "zero"}, "init='zero': use 'random', 'jacobian'"),
        ({"init": (torch.ones(3, 20), torch.ones(4, 20))}, r"init holds \[3, 20\]"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        dct.fit_map(soft_map(), **({"n_features": 4, "radius": 1.0} | options))


@pytest.mark.parametrize(
    ("slips", "said"),
    [(["signs"], r"slips=\['signs'\]: give a list of 'qr-signs'"), ("qr-signs", "slips='qr-signs': give a list")],
)
def test_slips_that_nobody_published_are_refused(slips: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Published(slips)


def test_a_radius_without_a_root_stops_the_fit() -> None:
    with pytest.raises(ValueError, match=r"ratio=0\.5: within bracket"):
        dct.fit_map(Planted(20, 5, "linear", apart=True), n_features=2, radius="auto")


@pytest.mark.parametrize("method", ["quadratic", "exponential"])
def test_numbers_that_are_not_finite_stop_the_fit(method: Any) -> None:
    with pytest.raises(ValueError, match=r"radius=2: the change is not finite"):
        dct.fit_map(Map(lambda t: (t * torch.inf).square(), 20), method=method, n_features=2, radius=2.0)


def test_a_model_with_nan_a_short_prompt_and_swapped_layers_are_named(tmp_path: Any) -> None:
    model = tiny.load(tmp_path, "llama")
    with pytest.raises(ValueError, match="shorter than the read-out window"):
        dct.fit(model, torch.tensor([0, 5]), 0, 2, n_features=2)
    with pytest.raises(ValueError, match="source=2, target=1"):
        dct.linear_radius(model, tiny.prompt(model), 2, 1)
    with torch.no_grad():
        next(iter(model.parameters())).fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN or infinity"):
        dct.fit(model, tiny.prompt(model), 0, 2, n_features=2)


def test_the_objective_is_said_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    said = []

    def track(items: Any, what: str, total: Any = None, status: Any = str) -> Any:
        for item in items:
            yield item
            said.append(f"{what}: {status()}")

    monkeypatch.setattr(dct, "track", track)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = dct.fit_map(soft_map(), n_features=3, radius=1.0, iterations=2)
    assert said == [f"iterations: objective {x:.4g}" for x in found.history]
