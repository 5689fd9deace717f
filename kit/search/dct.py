"""Deep Causal Transcoding: steering vectors as the factors of what a stretch of a model computes.

The map from a vector added after one block to the change after a later one is described as
``delta(theta) ~ sum_l alpha_l sigma(<v_l, theta>) u_l`` with unit u, v and sigma(x) = x, x^2 or
e^x - 1 (Mack and Turner, "Deep Causal Transcoding", 2024). The published code computes something
else in three places; each is kept behind a name in ``slips``, so that its cost can be shown.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from kit.base.directions import orthogonal, random_units, repel, unit
from kit.base.progress import track
from kit.models.positions import Positions
from kit.search.features import DCT, strengths
from kit.search.layer_slice import LayerSlice, Prompts
from kit.search.maps import Map
from kit.search.parallel import alone, shared
from kit.search.radius import Radius, radius, resolve

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


Method = Literal["linear", "projected", "quadratic", "exponential"]
Orthogonalise = Literal["qr", "soft"] | None
METHODS = ("linear", "projected", "quadratic", "exponential")
SLIPS = {
    "qr-signs": "QR may turn v into -v between two exponential iterations",
    "svd-columns": "columns of V^T are taken for right singular vectors",
    "no-second-derivative": "quadratic: J v is differentiated along v, on which J does not depend",
    "stale-u": "exponential: gradients are taken along the u of the iteration before (no mistake, "
    "but slower: with the newest u they climb the mean of |delta(R v)| itself)",
}


def calibrate(
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
    """The radius for these prompts and layers: see :func:`kit.search.radius.radius`."""
    piece = LayerSlice(model, prompts, source_layer, target_layer, read=read)
    return radius(piece, ratio, n_directions=n_directions, seed=seed)


def fit(
    model: TransformerBridge,
    prompts: Prompts,
    source_layer: int,
    target_layer: int,
    *,
    read: Positions = slice(-3, None),
    **options: object,
) -> DCT:
    """Fit factors to blocks ``source_layer + 1`` to ``target_layer`` on some prompts.

    Args:
        prompts, source_layer, target_layer, read: as for :class:`kit.search.layer_slice.LayerSlice`. The
            change is averaged over read-out positions and prompts before anything else.
        options: as for :func:`fit_map`.

    Returns:
        A :class:`kit.search.features.DCT`, strongest factor first.

    Raises:
        ValueError: layers, prompts, radius, method or number of features that make no sense.
    """
    piece = LayerSlice(model, prompts, source_layer, target_layer, read=read)
    return fit_map(piece, **options)  # type: ignore[arg-type]


def fit_map(
    piece: Map,
    *,
    method: Method = "exponential",
    n_features: int = 64,
    radius: float | str | Radius = "auto",
    orthogonalise: Orthogonalise = "qr",
    iterations: int = 10,
    init: Literal["random", "jacobian"] | tuple[Tensor, Tensor] = "random",
    n_projections: int | None = None,
    seed: int = 0,
    slips: Collection[str] = (),
) -> DCT:
    """Fit factors to any differentiable map; :func:`fit` does it for a model's blocks.

    In a :func:`kit.search.parallel.group` all its processes share each pass.

    Args:
        method: ``"linear"``, the singular vectors of the exact Jacobian at 0; ``"projected"``, the
            leading ones by random projections (a randomised SVD: vector-Jacobian and
            Jacobian-vector products only); ``"quadratic"``, orthogonalised alternating least
            squares on the second derivatives at 0; ``"exponential"``, orthogonalised gradient
            iteration on the map itself at the radius.
        n_features: how many factors.
        radius: the norm at which vectors act; activation units, or ``"auto"`` for
            :func:`kit.search.radius.radius`.
        orthogonalise: of the input directions, before each iteration: ``"qr"``; ``"soft"``
            (:func:`kit.base.directions.repel`), which allows more factors than dimensions; None. Where
            an iteration takes them is where they stay, so that some may meet: see
            :meth:`kit.search.features.DCT.duplicates`.
        iterations: of the iterative methods. A keyboard interrupt ends them early and keeps what
            the last whole one gave.
        init: ``"random"``; ``"jacobian"``, the projected factors; or unit ``(V, U)``.
        n_projections: random projections of ``"projected"`` and of the Jacobian start (default
            n_features + 16).
        seed: of everything random.
        slips: what the published code does otherwise, keys of :data:`SLIPS`.
    """
    _check(piece, method, n_features, orthogonalise, iterations, n_projections, slips)
    piece = shared(piece)
    norm = resolve(piece, radius)
    projections = n_features + 16 if n_projections is None else n_projections
    history: list[float] = []
    r = norm.value
    if method in ("linear", "projected"):
        J = piece.jacobian() if method == "linear" else None
        V, U, stretch = _singular(piece, J, n_features, projections, r, seed, slips)
        return _described(piece, method, V, U, norm, history, seed, r * stretch)
    V, U = _start(piece, init, n_features, projections, r, seed, slips)
    step = _quadratic_step if method == "quadratic" else _exponential_step
    with suppress(KeyboardInterrupt):
        for _ in track(range(iterations), "iterations", status=lambda: f"objective {history[-1]:.4g}"):
            found = step(piece, _apart(V, orthogonalise, slips), U, r, slips)
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
    # true factors that are not quite orthogonal would be bent (planted ones: cosine 0.92, not 0.97)
    return _described(piece, method, V, U if slips else None, norm, history, seed, None)


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
    if method != "exponential":  # v and -v are the same factor: take the side that changes more
        other = piece.delta(-r * V)
        turn = (other.norm(dim=-1) > changes.norm(dim=-1))[:, None]
        V, changes = torch.where(turn, -V, V), torch.where(turn, other, changes)
        if method != "quadratic":
            U = torch.where(turn, -U, U)
    return DCT(alone(piece), method, V, U, alpha, changes, norm, history, seed)


def _check(
    piece: Map,
    method: str,
    m: int,
    orthogonalise: str | None,
    iterations: int,
    projections: int | None,
    slips: Collection[str],
) -> None:
    if method not in METHODS:
        raise ValueError(f"method={method!r}: use {', '.join(map(repr, METHODS))}")
    if orthogonalise not in ("qr", "soft", None):
        raise ValueError(f"orthogonalise={orthogonalise!r}: use 'qr', 'soft' or None")
    counts = {"n_features": m, "iterations": iterations, "n_projections": projections}
    for name, n in counts.items():
        if n is None and name == "n_projections":
            continue
        if not isinstance(n, int) or isinstance(n, bool) or n < 1:
            raise ValueError(f"{name}={n!r}: give a whole number from 1 on")
    if m > piece.d_model and (orthogonalise == "qr" or method in ("linear", "projected")):
        raise ValueError(
            f"n_features={m}: this space has {piece.d_model} dimensions, so no more directions can "
            "be orthogonal; lower it, or use orthogonalise='soft' with an iterative method"
        )
    if isinstance(slips, str) or any(s not in SLIPS for s in slips):
        raise ValueError(f"slips={slips!r}: give a list of {', '.join(map(repr, SLIPS))}")


def _apart(V: Tensor, orthogonalise: Orthogonalise, slips: Collection[str]) -> Tensor:
    return orthogonal(V, "qr-signs" not in slips) if orthogonalise == "qr" else V


def _start(
    piece: Map, init: object, m: int, projections: int, r: float, seed: int, slips: Collection[str]
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
    V, _, _ = _singular(piece, None, known, projections, r, seed, slips)
    if m > known:  # the rest, of more factors than dimensions, starts at random
        V = torch.cat([V, random_units(m - known, piece.d_model, seed).to(V)])
    return V, unit(piece.delta(r * V))


def _singular(
    piece: Map, J: Tensor | None, m: int, projections: int, r: float, seed: int, slips: Collection[str]
) -> tuple[Tensor, Tensor, Tensor]:
    """The leading m right and left singular vectors of the Jacobian at 0, and its values.

    Without J: a randomised SVD with two power iterations (Halko, Martinsson and Tropp, 2011).
    """
    if "svd-columns" in slips:
        return _columns(piece, J, m, projections, r, seed)
    if J is not None:
        U, S, Vh = torch.linalg.svd(J)
        return Vh[:m].contiguous(), U[:, :m].T.contiguous(), S[:m]
    p = min(max(projections, m), piece.d_model)
    basis = random_units(p, piece.d_model, seed).to(piece.origin)
    for _ in range(2):
        rows = orthogonal(_pulled(piece, basis))
        image = piece.jvp(rows)
        basis = orthogonal(image)
    U, S, W = torch.linalg.svd(image.T, full_matrices=False)
    return (W @ rows)[:m], U[:, :m].T.contiguous(), S[:m]


def _columns(
    piece: Map, J: Tensor | None, m: int, projections: int, r: float, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What the published code takes for singular vectors: columns of V^T."""
    if J is None:
        J = _pulled(piece, random_units(projections, piece.d_model, seed).to(piece.origin))
        V = torch.linalg.svd(J)[2][:, :m].T.contiguous()
        U = unit(piece.delta(r * V))
    else:
        U, _, Vh = torch.linalg.svd(J)
        V, U = Vh[:, :m].T.contiguous(), U[:, :m].T.contiguous()
    return V, U, (piece.jvp(V) * U).sum(-1)


def _pulled(piece: Map, outputs: Tensor) -> Tensor:
    """J^T u for rows u ``[k, d]``, J the Jacobian at 0."""
    return piece.vjp(torch.zeros_like(outputs), outputs)[1]


@dataclass(frozen=True)
class _Step:
    """One iteration's new directions, how strong a gradient each had, and the objective."""

    V: Tensor
    U: Tensor
    strength: Tensor
    score: float


def _exponential_step(piece: Map, V: Tensor, U: Tensor, r: float, slips: Collection[str]) -> _Step:
    changes, grads = piece.vjp(r * V, U if "stale-u" in slips else None)
    score = float((changes * U).sum(-1).mean())
    return _Step(unit(grads), unit(changes), r * grads.norm(dim=-1), score)


def _quadratic_step(piece: Map, V: Tensor, U: Tensor, r: float, slips: Collection[str]) -> _Step:
    if "no-second-derivative" in slips:
        outs, grads = piece.jvp(V), _pulled(piece, U)
        return _Step(unit(grads), unit(outs), grads.norm(dim=-1), float((outs * U).sum(-1).mean()))
    scale = r * r / 2
    outs = scale * piece.second(V)
    U = unit(outs)
    grads = scale * piece.second(V, U)
    return _Step(unit(grads), U, grads.norm(dim=-1), float((outs * U).sum(-1).mean()))
