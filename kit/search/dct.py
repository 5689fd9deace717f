"""Deep Causal Transcoding: steering vectors as the features of what a stretch of a model computes.

The map from a vector added after one block to the change after a later one is described as
``delta(theta) ~ sum_l alpha_l sigma(<v_l, theta>) u_l`` with unit u, v and sigma(x) = x, x^2 or
e^x - 1 (Mack and Turner, "Deep Causal Transcoding", 2024). The published code computes something
else in three places; what that costs is shown in notebook 06, with steps of its own.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from kit.base.checks import check_counts
from kit.base.directions import orthogonal, random_units, repel, unit
from kit.base.progress import track
from kit.models.positions import Positions
from kit.search import radius as radii
from kit.search.features import DCT, strengths
from kit.search.layer_slice import LayerSlice, Prompts
from kit.search.maps import Map
from kit.search.parallel import alone, shared
from kit.search.radius import Radius, resolve

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Method = Literal["linear", "projected", "quadratic", "exponential"]
Orthogonalise = Literal["qr", "soft"] | None
METHODS = ("linear", "projected", "quadratic", "exponential")
Init = Literal["random", "jacobian"] | tuple[Tensor, Tensor]


def linear_radius(
    model: TransformerBridge,
    prompts: Prompts,
    source_layer: int,
    target_layer: int,
    ratio: float = 0.5,
    *,
    read: Positions = slice(-3, None),
    n_directions: int = 30,
    seed: int = 0,
) -> Radius:
    """The radius for these prompts and layers: see :func:`kit.search.radius.linear_radius`."""
    piece = LayerSlice(model, prompts, source_layer, target_layer, read=read)
    return radii.linear_radius(piece, ratio, n_directions=n_directions, seed=seed)


def fit(
    model: TransformerBridge,
    prompts: Prompts,
    source_layer: int,
    target_layer: int,
    *,
    read: Positions = slice(-3, None),
    method: Method = "exponential",
    n_features: int = 64,
    radius: float | str | Radius = "auto",
    orthogonalise: Orthogonalise = "qr",
    iterations: int = 10,
    init: Init = "random",
    n_projections: int | None = None,
    seed: int = 0,
) -> DCT:
    """Fit features to blocks ``source_layer + 1`` to ``target_layer`` on some prompts.

    Args:
        prompts, source_layer, target_layer, read: as for
            :class:`kit.search.layer_slice.LayerSlice`. The change is averaged over read-out
            positions and prompts before anything else.
        method, n_features, radius, orthogonalise, iterations, init, n_projections, seed: as for
            :func:`fit_map`.

    Returns:
        A :class:`kit.search.features.DCT`, strongest feature first.

    Raises:
        ValueError: layers, prompts, radius, method or number of features that make no sense.
    """
    return fit_map(
        LayerSlice(model, prompts, source_layer, target_layer, read=read),
        method=method,
        n_features=n_features,
        radius=radius,
        orthogonalise=orthogonalise,
        iterations=iterations,
        init=init,
        n_projections=n_projections,
        seed=seed,
    )


def fit_map(
    piece: Map,
    *,
    method: Method = "exponential",
    n_features: int = 64,
    radius: float | str | Radius = "auto",
    orthogonalise: Orthogonalise = "qr",
    iterations: int = 10,
    init: Init = "random",
    n_projections: int | None = None,
    seed: int = 0,
    steps: Steps | None = None,
) -> DCT:
    """Fit features to any differentiable map; :func:`fit` does it for a model's blocks.

    In a :func:`kit.search.parallel.group` all its processes share each pass.

    Args:
        method: ``"linear"``, the singular vectors of the exact Jacobian at 0; ``"projected"``, the
            leading ones by random projections (a randomised SVD: vector-Jacobian and
            Jacobian-vector products only); ``"quadratic"``, orthogonalised alternating least
            squares on the second derivatives at 0; ``"exponential"``, orthogonalised gradient
            iteration on the map itself at the radius.
        n_features: how many features.
        radius: the norm at which vectors act; activation units, or ``"auto"`` for
            :func:`kit.search.radius.linear_radius`.
        orthogonalise: of the input directions, before each iteration: ``"qr"``; ``"soft"``
            (:func:`kit.base.directions.repel`), which allows more features than dimensions; None.
            Where an iteration takes them is where they stay, so that some may meet: see
            :meth:`kit.search.features.DCT.duplicates`.
        iterations: of the iterative methods. A keyboard interrupt ends them early and keeps what
            the last whole one gave.
        init: ``"random"``; ``"jacobian"``, the projected features; or unit ``(V, U)``.
        n_projections: random projections of ``"projected"`` and of the Jacobian start (default
            n_features + 16).
        seed: of everything random.
        steps: a variant of the algorithm; default :class:`Steps` itself.

    Raises:
        ValueError: a radius, method, start or number that makes no sense, or a change that is not
            finite.
    """
    _check(piece, method, n_features, orthogonalise, iterations, n_projections)
    steps = Steps() if steps is None else steps
    piece = shared(piece)
    norm = resolve(piece, radius)
    projections = n_features + 16 if n_projections is None else n_projections
    history: list[float] = []
    r = norm.value
    if method in ("linear", "projected"):
        J = piece.jacobian() if method == "linear" else None
        V, U, stretch = steps.singular(piece, J, n_features, projections, r, seed)
        return _described(piece, method, V, U, norm, history, seed, r * stretch)
    V, U = _start(piece, init, n_features, projections, r, seed, steps)
    step = steps.quadratic if method == "quadratic" else steps.exponential
    with suppress(KeyboardInterrupt):
        for _ in track(range(iterations), "iterations", status=lambda: f"objective {history[-1]:.4g}"):
            found = step(piece, steps.orthogonalised(V) if orthogonalise == "qr" else V, U, r)
            if not math.isfinite(found.score):
                raise ValueError(
                    f"radius={r:.4g}: the change is not finite; lower the radius, or load the model in float32"
                )
            soft = orthogonalise == "soft"
            V, U = repel(found.V, found.strength) if soft else found.V, found.U
            history.append(found.score)
    if not history:
        raise KeyboardInterrupt("stopped before the first iteration was whole")
    # no last orthogonalisation, as published: half of its directions would stand for nothing, and
    # true features that are not quite orthogonal be bent (planted ones: cosine 0.92, not 0.97)
    return _described(piece, method, V, steps.last_outputs(U), norm, history, seed, None)


def _described(
    piece: Map,
    method: str,
    V: Tensor,
    U: Tensor | None,
    norm: Radius,
    history: list[float],
    seed: int,
    alpha: Tensor | None,
) -> DCT:
    """Signs, strengths and true changes of directions that were found.

    Args:
        U: None for those that V has now: each iteration's belong to the V that it started from.
    """
    r = norm.value
    changes = piece.delta(r * V)
    even = r * r / 2 * piece.second(V) if method == "quadratic" else changes
    U = unit(even) if U is None else U
    alpha = strengths(method, V, U, (even * U).sum(-1)) if alpha is None else alpha
    if method != "exponential":  # v and -v are the same feature: take the side that changes more
        other = piece.delta(-r * V)
        turn = (other.norm(dim=-1) > changes.norm(dim=-1))[:, None]
        V, changes = torch.where(turn, -V, V), torch.where(turn, other, changes)
        if method != "quadratic":
            U = torch.where(turn, -U, U)
    return DCT(alone(piece), method, V, U, alpha, changes, norm, history, seed)


def _check(
    piece: Map, method: str, m: int, orthogonalise: str | None, iterations: int, projections: int | None
) -> None:
    if method not in METHODS:
        raise ValueError(f"method={method!r}: use {', '.join(map(repr, METHODS))}")
    if orthogonalise not in ("qr", "soft", None):
        raise ValueError(f"orthogonalise={orthogonalise!r}: use 'qr', 'soft' or None")
    check_counts(n_features=m, iterations=iterations, n_projections=1 if projections is None else projections)
    if m > piece.d_model and (orthogonalise == "qr" or method in ("linear", "projected")):
        raise ValueError(
            f"n_features={m}: this space has {piece.d_model} dimensions, so no more directions can "
            "be orthogonal; lower it, or use orthogonalise='soft' with an iterative method"
        )


def _start(
    piece: Map, init: object, m: int, projections: int, r: float, seed: int, steps: Steps
) -> tuple[Tensor, Tensor]:
    if isinstance(init, tuple):
        V, U = (unit(torch.as_tensor(t).to(piece.origin)) for t in init)
        if V.shape != (m, piece.d_model) or U.shape != V.shape:
            raise ValueError(f"init holds {list(V.shape)} and {list(U.shape)}: give two tensors {[m, piece.d_model]}")
        return V, U
    if init == "random":
        V, U = (random_units(m, piece.d_model, seed + i) for i in (0, 1_000_003))
        return V.to(piece.origin), U.to(piece.origin)
    if init != "jacobian":
        raise ValueError(f"init={init!r}: use 'random', 'jacobian' or a pair of tensors")
    known = min(m, piece.d_model)
    V, _, _ = steps.singular(piece, None, known, projections, r, seed)
    if m > known:  # the rest, of more features than dimensions, starts at random
        V = torch.cat([V, random_units(m - known, piece.d_model, seed).to(V)])
    return V, unit(piece.delta(r * V))


@dataclass(frozen=True)
class Step:
    """One iteration's new directions, how strong a gradient each had, and the objective."""

    V: Tensor
    U: Tensor
    strength: Tensor
    score: float


class Steps:
    """What :func:`fit_map` does to directions at the radius r, a method each: a variant of the
    algorithm overrides the step in which it differs."""

    def orthogonalised(self, V: Tensor) -> Tensor:
        """Rows ``[m, d]`` before each iteration of ``orthogonalise="qr"``."""
        return orthogonal(V)

    def exponential(self, piece: Map, V: Tensor, U: Tensor, r: float) -> Step:
        """An iteration from V ``[m, d]``, with the outputs U ``[m, d]`` of the one before: uphill
        on the mean of ``|delta(R v)|``."""
        changes, grads = piece.vjp(r * V, None)
        return Step(unit(grads), unit(changes), r * grads.norm(dim=-1), float((changes * U).sum(-1).mean()))

    def quadratic(self, piece: Map, V: Tensor, U: Tensor, r: float) -> Step:
        """The same by the second derivatives at 0."""
        scale = r * r / 2
        outs = scale * piece.second(V)
        U = unit(outs)
        grads = scale * piece.second(V, U)
        return Step(unit(grads), U, grads.norm(dim=-1), float((outs * U).sum(-1).mean()))

    def singular(
        self, piece: Map, J: Tensor | None, m: int, projections: int, r: float, seed: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The leading m right and left singular vectors of the Jacobian at 0, and its values.

        Without J: a randomised SVD with two power iterations (Halko, Martinsson and Tropp, 2011).
        """
        if J is not None:
            U, S, Vh = torch.linalg.svd(J)
            return Vh[:m].contiguous(), U[:, :m].T.contiguous(), S[:m]
        p = min(max(projections, m), piece.d_model)
        basis = random_units(p, piece.d_model, seed).to(piece.origin)
        for _ in range(2):
            rows = orthogonal(pulled(piece, basis))  # [p, d], inputs
            image = piece.jvp(rows)  # [p, d], outputs
            basis = orthogonal(image)
        U, S, W = torch.linalg.svd(image.T, full_matrices=False)  # [d, p], [p], [p, p]
        return (W @ rows)[:m], U[:, :m].T.contiguous(), S[:m]

    def last_outputs(self, U: Tensor) -> Tensor | None:
        """The last iteration's U ``[m, d]`` where the result keeps it; None: those of the last
        V."""
        return None


def pulled(piece: Map, outputs: Tensor) -> Tensor:
    """J^T u for rows u ``[k, d]``, J the Jacobian at 0."""
    return piece.vjp(torch.zeros_like(outputs), outputs)[1]
