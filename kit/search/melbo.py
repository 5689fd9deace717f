"""MELBO: steering vectors that change a later layer as much as their norm allows.

Mack and Turner, "Mechanistically Eliciting Latent Behaviors in Language Models" (2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kit.base import shards as files
from kit.base.checks import check_counts, check_positive
from kit.base.directions import random_units, unit
from kit.base.files import header_at_most, whole
from kit.base.progress import track
from kit.models.positions import Positions
from kit.search.features import Features
from kit.search.layer_slice import Differential, LayerSlice, Objective, Prompts
from kit.search.parallel import shared
from kit.search.radius import Radius, resolve
from kit.search.statistics import basis
from kit.steering.vectors import SteeringVector

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def fit(
    model: TransformerBridge,
    prompts: Prompts,
    source_layer: int,
    target_layer: int,
    n_vectors: int = 16,
    *,
    read: Positions = slice(-3, None),
    radius: float | str | Radius = "auto",
    power: float = 2,
    root: float | None = None,
    steps: int = 60,
    rate: float = 0.1,
    together: bool = True,
    restarts: int = 1,
    apart_from: Sequence[SteeringVector] = (),
    span: Tensor | None = None,
    seed: int = 0,
    shards: str | Path | None = None,
) -> Features:
    """Search a model's blocks for vectors that change a later layer as much as possible.

    Args:
        prompts, source_layer, target_layer, read: as for
            :class:`kit.search.layer_slice.LayerSlice`; several prompts are all to be changed.
        n_vectors, radius, power, root, steps, rate, together, restarts, apart_from, span, seed,
            shards: as for :func:`fit_slice`.

    Raises:
        ValueError: layers, prompts or other arguments that make no sense.
    """
    return fit_slice(
        LayerSlice(model, prompts, source_layer, target_layer, read=read),
        n_vectors,
        radius=radius,
        power=power,
        root=root,
        steps=steps,
        rate=rate,
        together=together,
        restarts=restarts,
        apart_from=apart_from,
        span=span,
        seed=seed,
        shards=shards,
    )


def fit_slice(
    piece: LayerSlice | Differential,
    n_vectors: int = 16,
    *,
    radius: float | str | Radius = "auto",
    power: float = 2,
    root: float | None = None,
    steps: int = 60,
    rate: float = 0.1,
    together: bool = True,
    restarts: int = 1,
    apart_from: Sequence[SteeringVector] = (),
    span: Tensor | None = None,
    seed: int = 0,
    shards: str | Path | None = None,
) -> Features:
    """Maximise ``sum_prompts (sum_t |change_t|^power)^(1/root)`` over orthogonal vectors of norm R.

    Args:
        piece: the blocks, prompts and read-out positions t; or a
            :class:`kit.search.layer_slice.Differential`, loud on some prompts and quiet on others.
        radius: R in activation units, or ``"auto"`` (:func:`kit.search.radius.linear_radius`).
        power: 2, or 4 for effects on few tokens.
        root: default 1 for a power up to 2, else the power (the objective is flat at first
            otherwise).
        steps: of AMSGrad (Adam swings at large radii).
        rate: how far a step goes, as a share of R. The published 1e-3 a coordinate, in 5,120
            dimensions at R = 4, is 0.018, over 400 to 1,200 steps.
        together: all vectors in one batch, kept orthogonal to one another by the nearest
            orthonormal set after each step; False: one by one, each orthogonal to those before.
        restarts: from so many random starts; the best is kept.
        apart_from: vectors to stay orthogonal to.
        span: directions ``[n, d_model]`` in whose span to stay (an SAE's decoder rows, say).
        seed: of the starts.
        shards: a folder in which every restart leaves a file (``together=True`` only). All
            processes with the same arguments share the restarts, and a later call makes those
            that are missing. Without it the processes of a :func:`kit.search.parallel.group` share
            each pass.

    Returns:
        :class:`kit.search.features.Features`, strongest first; ``history`` is the mean objective a
        step. A keyboard interrupt ends the search and keeps what there is.

    Raises:
        ValueError: an argument that makes no sense; more vectors than there are dimensions.
    """
    check_counts(n_vectors=n_vectors, steps=steps, restarts=restarts)
    check_positive(power=power, rate=rate, root=1 if root is None else root)
    if shards is not None and not together:
        raise ValueError(
            "shards with together=False: restarts of one vector run as one batch, "
            "and the next vector waits for it; share passes in kit.parallel.group()"
        )
    within = _Within(piece, apart_from, span)
    if n_vectors > within.dimensions:
        raise ValueError(
            f"n_vectors={n_vectors}: only {within.dimensions} orthogonal directions are left in "
            f"{piece.d_model} dimensions; lower it, or widen span and apart_from"
        )
    on: Any = shared(piece) if shards is None else piece
    norm = resolve(on, radius)
    root = root if root is not None else (1 if power <= 2 else power)
    search = _Search(on, objective(power, root), norm.value, rate, steps, seed)
    if shards is not None:
        # the radius is measured: processes with other thread counts differ in its last digits
        given = {
            **piece.settings(),
            "radius": f"{norm.value:.5g}",
            "power": power,
            "root": root,
            "steps": steps,
            "rate": rate,
            "seed": seed,
            "vectors": n_vectors,
            **within.settings,
        }
        search.kept_sets(n_vectors, restarts, within, Path(shards), files.digest(given))
    elif together:
        search.sets(n_vectors, restarts, within)
    else:
        search.one_by_one(n_vectors, restarts, within)
    if not len(search.found):
        raise KeyboardInterrupt("stopped before there was any vector")
    V = unit(search.found)
    changes = on.delta(norm.value * V)
    return Features(piece, "melbo", V, unit(changes), search.scores, changes, norm, search.history, seed)


def objective(power: float, root: float) -> Objective:
    """What is climbed: for thetas' shifts the sum over prompts that :func:`fit_slice` states."""

    def score(shift: Tensor, read: Tensor) -> Tensor:
        # where nothing is read the change may be zero, and a root has no slope there
        size = torch.where(read, shift.square().sum(-1), 1.0).pow(power / 2) * read
        return size.sum(-1).pow(1 / root).sum(-1)

    return score


class _Within:
    """The directions that are allowed: inside a span, orthogonal to some vectors."""

    def __init__(
        self, piece: LayerSlice | Differential, apart_from: Sequence[SteeringVector], span: Tensor | None
    ) -> None:
        for v in apart_from:
            if v.layer != piece.source or len(v.direction) != piece.d_model:
                raise ValueError(
                    f"apart_from: {v.name!r} is at layer {v.layer} with width {len(v.direction)}; "
                    f"the search is at layer {piece.source} with width {piece.d_model}"
                )
        given = [v.direction for v in apart_from]
        self.settings = {"apart from": torch.stack(given) if given else None, "span": span}
        self._banned = basis(torch.stack(given).to(piece.origin)) if given else None
        self._span = None
        if span is not None:
            if span.dim() != 2 or span.shape[1] != piece.d_model:
                raise ValueError(f"span has shape {list(span.shape)}: give [n, {piece.d_model}]")
            if not bool(span.isfinite().all()):
                raise ValueError("span holds NaN or infinity: give finite directions")
            self._span = self._inside(basis(span.to(piece.origin)))
        banned = 0 if self._banned is None else len(self._banned)
        self.dimensions = piece.d_model - banned if self._span is None else len(self._span)

    def _inside(self, span: Tensor) -> Tensor:
        """What of an orthonormal span is orthogonal to the banned: their projections would not do,
        since they leave the span."""
        if self._banned is None:
            return span
        _, s, vh = torch.linalg.svd(span @ self._banned.T @ self._banned @ span.T)  # [n, n], n rows of the span
        return vh[s < 1e-5] @ span  # eigenvalues are squared cosines with the banned

    def __call__(self, rows: Tensor) -> Tensor:
        """Rows ``[k, d]`` projected onto what is allowed."""
        if self._span is not None:
            return rows @ self._span.T @ self._span  # [k, d] @ [d, n] @ [n, d]
        return rows if self._banned is None else rows - rows @ self._banned.T @ self._banned


class _Search:
    """Projected AMSGrad on thetas of one norm."""

    def __init__(self, piece: Any, goal: Objective, r: float, rate: float, steps: int, seed: int) -> None:
        self.piece, self.goal, self.r, self.steps, self.seed = piece, goal, r, steps, seed
        self.rate = rate * r / math.sqrt(piece.d_model)
        self.found = self.scores = torch.empty(0)
        self.history: list[float] = []

    def sets(self, m: int, restarts: int, within: _Within) -> None:
        """All together, as an orthogonal set; the set with the highest sum is kept."""
        with suppress(KeyboardInterrupt):
            for i in range(restarts):
                theta, scores, history = self._climb(m, within, i, together=True)
                if history:
                    self._keep(theta, scores, history)
                if len(history) < self.steps:
                    break  # interrupted

    def _keep(self, theta: Tensor, scores: Tensor, history: list[float]) -> None:
        if not len(self.found) or scores.sum() > self.scores.sum():
            self.found, self.scores, self.history = theta, scores, history

    def kept_sets(self, m: int, restarts: int, within: _Within, folder: Path, name: str) -> None:
        """As :meth:`sets`, with a file for each restart, which any process may make."""
        paths = [folder / f"melbo-{name}-{i:03d}.safetensors" for i in range(restarts)]

        def make(i: int) -> None:
            theta, scores, history = self._climb(m, within, i, together=True)
            if len(history) < self.steps:
                raise KeyboardInterrupt  # the next run makes it whole
            told = torch.tensor(history, dtype=torch.float64)
            parts = {"theta": theta.cpu(), "scores": scores.cpu(), "history": told}
            with whole(paths[i]) as part:
                save_file(parts, part)

        with suppress(KeyboardInterrupt):
            files.work(paths, make, "restarts")
        for path in filter(Path.is_file, paths):
            theta, scores, history = _restart(path, m, self.piece.d_model)
            self._keep(theta.to(self.piece.origin), scores.to(self.piece.origin), history.tolist())

    def one_by_one(self, m: int, restarts: int, within: _Within) -> None:
        """Each orthogonal to those before; its restarts run as one batch."""
        for i in range(m):
            found = basis(self.found) if i else None

            def allowed(rows: Tensor, found: Tensor | None = found) -> Tensor:
                rows = within(rows)
                return rows if found is None else rows - rows @ found.T @ found

            theta, scores, history = self._climb(restarts, allowed, i, together=False)
            if not history:
                break
            best = int(scores.argmax())
            self.found = torch.cat([self.found.to(theta), theta[best : best + 1]])
            self.scores = torch.cat([self.scores.to(scores), scores[best : best + 1]])
            self.history += history
            if len(history) < self.steps:
                break

    def _climb(
        self, k: int, allowed: Callable[[Tensor], Tensor], run: int, *, together: bool
    ) -> tuple[Tensor, Tensor, list[float]]:
        """The best of k thetas ``[k, d]``, their scores ``[k]``, and the mean score at each
        step."""
        arrange = nearest_orthonormal if together else unit
        start = random_units(k, self.piece.d_model, self.seed + 7919 * run).to(self.piece.origin)
        theta = self.r * arrange(allowed(start))
        best, scores = theta.clone(), theta.new_zeros(k)
        history: list[float] = []
        optimiser = torch.optim.AdamW([theta], lr=self.rate, betas=(0.9, 0.98), weight_decay=0, amsgrad=True)
        with suppress(KeyboardInterrupt):
            for _ in track(range(self.steps), "steps", status=lambda: f"objective {history[-1]:.4g}"):
                now, grads = self.piece.gradient(theta, self.goal)
                if not bool(now.isfinite().all() and grads.isfinite().all()):
                    raise ValueError(f"the objective is not finite at radius {self.r:.4g}: give a smaller radius")
                better = (now.sum() > scores.sum() if together else now > scores).expand(k)
                best = torch.where(better[:, None], theta, best)
                scores = torch.where(better, now, scores)
                history.append(float(now.mean()))
                theta.grad = -_tangent(allowed(grads), theta / self.r, together)
                optimiser.step()
                theta.copy_(self.r * arrange(allowed(theta)))
        return best, scores, history


def _restart(path: Path, m: int, width: int) -> list[Tensor]:
    """Thetas, scores and history of a file.

    Raises:
        ValueError: a damaged file.
    """
    try:
        header_at_most(path)
        with safe_open(path, "pt") as file:
            found = [file.get_tensor(name) for name in ("theta", "scores", "history")]
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"shard {path} is damaged ({error}): delete it and run again") from error
    if [list(t.shape) for t in found[:2]] != [[m, width], [m]]:
        raise ValueError(
            f"shard {path} is damaged (theta {list(found[0].shape)}, not {[m, width]}): delete it and run again"
        )
    return found


def _tangent(grads: Tensor, q: Tensor, together: bool) -> Tensor:
    """Gradients less what would leave the sphere, or the set of orthonormal sets."""
    inner = grads @ q.T
    if not together:
        return grads - inner.diagonal()[:, None] * q
    return grads - (inner + inner.T) / 2 @ q


def nearest_orthonormal(rows: Tensor) -> Tensor:
    """The orthonormal set closest to rows ``[m, d]`` (the polar factor): none is favoured."""
    u, _, vh = torch.linalg.svd(rows, full_matrices=False)
    return u @ vh
