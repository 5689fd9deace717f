"""An estimate before a long job: tokens, time, memory and disk, from a probe of a second or two.

Each function takes what the job itself would take, runs a little of it on the real model, and
extrapolates. Everything is measured on this machine as it is now; nothing is said of others.
"""

from __future__ import annotations

import copy
import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kit.base.checks import check_counts
from kit.base.directions import random_units
from kit.cli import doctor
from kit.cli.timing import Estimate, Line, line, memory
from kit.models.positions import Positions
from kit.models.sites import Kind, Site
from kit.models.tokens import counted, prompt_tokens
from kit.sae.architectures import Architecture
from kit.sae.entries import RUN
from kit.sae.source import Source
from kit.sae.training import Training
from kit.search.dct import METHODS, Method
from kit.search.layer_slice import LayerSlice, Prompts
from kit.search.melbo import nearest_orthonormal, objective
from kit.steering.sweep import Target, ladder

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from kit.sae.latents import Latents
    from kit.steering.vectors import SteeringVector

__all__ = ["Estimate", "dct", "filling", "harvest", "melbo", "sae_training", "store", "sweep"]
_PASS = 16  # rows of tokens that a harvest and a store run at a time
_RADII = 9  # that a calibration of the radius usually tries


def harvest(
    model: TransformerBridge,
    tokens: int,
    layer: int,
    site: Kind = "resid",
    *,
    context: int = 128,
    rows: int = 256,
    folder: str | Path = ".",
    budget: float = 2.0,
) -> Estimate:
    """Of :meth:`kit.sae.Source.fill` for so many tokens of text.

    Args:
        tokens: that the model reads.
        layer, site, context, rows: as for :class:`kit.sae.Source`.
        folder: where it would be written: its disk is looked at.
        budget: seconds for the probe, roughly.

    Raises:
        ValueError: a layer or site that the model lacks, or numbers below 1.
    """
    check_counts(tokens=tokens, context=context, rows=rows)
    start = time.perf_counter()
    source = _random_source(model, [Site(layer, site)], context)
    return _filled(source, tokens, rows, Path(folder), start, budget)


def filling(source: Source, budget: float = 2.0) -> Estimate:
    """Of :meth:`kit.sae.Source.fill` for a source that is there, as if nothing were filled yet."""
    start = time.perf_counter()
    tokens = source.chunks * source.rows * source.tokens.shape[1]
    folder = Path(".") if source.cache is None else source.cache
    return _filled(source, tokens, source.rows, folder, start, budget)


def _filled(source: Source, tokens: int, rows: int, folder: Path, start: float, budget: float) -> Estimate:
    context = source.tokens.shape[1]
    each = _harvest_line(source, budget)
    found, _ = _some(source, 2)
    token = sum(a.shape[1] * a.element_size() for a in found.values())  # bytes, at all sites
    kept = tokens * (context - 1) // context
    # a chunk's passes, put together, and without its sinks; the texts' tokens and their order
    peak = 3 * min(rows * (context - 1), kept) * token + 8 * tokens
    where = ", ".join(map(str, source.sites))
    seconds, disk = each.seconds(tokens / context, _PASS), kept * (token + 8)
    return _estimate(f"harvest of {where}", tokens, seconds, [each], source.model, start, peak, disk, folder)


def _random_source(model: TransformerBridge, sites: Sequence[Site], context: int) -> Source:
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.cfg.d_vocab, (_PASS, context), generator=rng)
    return Source(model, tokens.to(model.cfg.device), sites, batch=1, rows=_PASS)


def _some(source: Source, rows: int) -> tuple[dict[Site, Tensor], Tensor]:
    """What a chunk of so few rows gives."""
    small = copy.copy(source)
    small.rows = rows
    return small.read_chunk(0)


def _harvest_line(source: Source, budget: float) -> Line:
    """Seconds in rows of tokens."""
    return line(lambda n: _some(source, n), min(_PASS, len(source.tokens)), budget)


def store(
    dictionary: Latents, model: TransformerBridge, tokens: Tensor, path: str | Path | None = None, budget: float = 2.0
) -> Estimate:
    """Of :meth:`kit.sae.FeatureStore.build`, with tokens ``[rows, context]``.

    Raises:
        ValueError: as it does.
    """
    dictionary.check(model)
    start, some, n = time.perf_counter(), tokens[:_PASS].to(model.cfg.device), tokens.numel()

    def fired(rows: int) -> int:
        x = dictionary.activations(model, some[:rows])
        return int((dictionary.encode(x) * counted(x)[..., None]).count_nonzero())

    each, entries = line(fired, len(some), budget), fired(len(some)) * len(tokens) // len(some)
    peak = memory(lambda: fired(len(some))) + 95 * min(entries, RUN) + 4 * n  # a run as it is sorted
    disk = 16 * entries * (entries > RUN) + (8 * entries + 4 * n) * (path is not None)  # of several: scratch files
    seconds, what = each.seconds(len(tokens), _PASS), f"store of {dictionary.name}"
    return _estimate(what, n, seconds, [each], model, start, peak, disk, Path(path or ".").parent)


def sae_training(
    model: TransformerBridge,
    layer: int,
    site: Kind = "resid",
    *,
    tokens: int = 400_000,
    widths: Sequence[float] = (1, 2, 4, 8),
    batch: int = 2048,
    context: int = 128,
    rows: int = 256,
    architecture: Architecture = "batchtopk",
    k: float = 32,
    sparsity: float | None = None,
    cached: bool = False,
    budget: float = 2.0,
) -> Estimate:
    """Of :func:`kit.sae.train`.

    Args:
        tokens: activations to train on.
        cached: whether they lie in a filled folder; else the model makes them.
        batch, context, rows: as for :class:`kit.sae.Source`; widths, architecture, k, sparsity: as
            for :class:`kit.sae.Training`.

    Raises:
        ValueError: as these do, or numbers below 1.
    """
    check_counts(tokens=tokens, context=context, rows=rows, batch=batch)
    start = time.perf_counter()
    source = _random_source(model, [Site(layer, site)], context)
    read = Line(0.0, 0.0) if cached else _harvest_line(source, budget / 2)
    ((where, some),) = _some(source, 2)[0].items()
    noise, steps = _Noise(where, some.float()), max(1, tokens // batch)
    shape: Any = {"architecture": architecture, "k": k, "sparsity": sparsity}
    run = Training(noise, widths=widths, steps=steps, **shape)  # type: ignore[arg-type]
    unit = min(batch, 64)

    def step(n: int) -> None:
        noise.batch = n * unit
        run.advance()

    peak = memory(lambda: step(max(1, batch // unit)))  # the optimisers' moments with it
    each = line(step, max(1, batch // unit), budget / 2)
    # a chunk as it is read, and the copy that is served
    chunk = rows * (context - 1) * some.shape[1] * (3 * some.element_size() + 8)
    seconds = steps * each.seconds(batch / unit)
    # whole chunks are read, and what is left of one at the end is read too
    chunks = math.ceil(tokens / (rows * (context - 1)))
    seconds += chunks * read.seconds(rows, _PASS)
    what, note = f"training of {len(run.trainers)} dictionaries at {where}", "dead latents take longer"
    return _estimate(what, tokens, seconds, [each, read], model, start, peak + chunk, note=note)


class _Noise:
    """Stands for a source: a few activations in random order, again and again."""

    def __init__(self, site: Site, some: Tensor) -> None:
        self.site, self.some, self.batch, self.served = site, some, len(some), 0
        self.rng, self.device = torch.Generator().manual_seed(0), some.device

    def scales(self) -> dict[Site, tuple[Tensor, float]]:
        scale = self.some.shape[1] ** 0.5 / float(self.some.norm(dim=-1).mean())
        return {self.site: (self.some.mean(0), scale)}

    def __next__(self) -> dict[Site, Tensor]:
        at = torch.randint(len(self.some), (self.batch,), generator=self.rng)
        return {self.site: self.some[at]}


def melbo(
    model: TransformerBridge,
    prompts: Prompts,
    source_layer: int,
    target_layer: int,
    n_vectors: int = 16,
    *,
    steps: int = 60,
    restarts: int = 1,
    together: bool = True,
    radius: float | str = "auto",
    read: Positions = slice(-3, None),
    budget: float = 2.0,
) -> Estimate:
    """Of :func:`kit.search.melbo.fit` with the same arguments.

    Raises:
        ValueError: as it does.
    """
    check_counts(n_vectors=n_vectors, steps=steps, restarts=restarts)
    start = time.perf_counter()
    piece = LayerSlice(model, prompts, source_layer, target_layer, read=read)
    probe = _Probe(piece, time.perf_counter() - start, budget / (4 if radius == "auto" else 2))
    goal = objective(2, 1)
    calls, k = (restarts * steps, n_vectors) if together else (n_vectors * steps, restarts)
    probe.add(lambda v: piece.gradient(v, goal), calls, k)
    probe.add(piece.delta, 1, n_vectors)
    if radius == "auto":
        probe.calibration()
    if together:
        some = random_units(n_vectors, piece.d_model, 0)
        probe.seconds += calls * line(lambda _n: nearest_orthonormal(some), 1, 0.05).seconds(1)
    return probe.estimate(f"MELBO, {n_vectors} vectors", start)


def dct(
    model: TransformerBridge,
    prompts: Prompts,
    source_layer: int,
    target_layer: int,
    *,
    method: Method = "exponential",
    n_features: int = 64,
    iterations: int = 10,
    n_projections: int | None = None,
    radius: float | str = "auto",
    read: Positions = slice(-3, None),
    budget: float = 2.0,
) -> Estimate:
    """Of :func:`kit.search.dct.fit` with the same arguments (from a random start).

    Raises:
        ValueError: as it does.
    """
    check_counts(n_features=n_features, iterations=iterations)
    if method not in METHODS:
        raise ValueError(f"method={method!r}: use {', '.join(map(repr, METHODS))}")
    start = time.perf_counter()
    piece = LayerSlice(model, prompts, source_layer, target_layer, read=read)
    kinds = {"linear": 2, "projected": 3, "quadratic": 3, "exponential": 2}[method]
    probe = _Probe(piece, time.perf_counter() - start, budget / (kinds + 2 * (radius == "auto")))
    m, d = n_features, piece.d_model
    probe.add(piece.delta, 1 if method == "exponential" else 2, m)
    if method == "exponential":
        probe.add(lambda v: piece.vjp(v, None), iterations, m)
    elif method == "quadratic":
        probe.add(piece.second, iterations + 1, m)
        probe.add(lambda v: piece.second(v, v), iterations, m)
    elif method == "linear":
        probe.add(piece.jvp, 1, d)
        probe.seconds += _svd(d)
    else:
        p = min(max(m + 16 if n_projections is None else n_projections, m), d)
        probe.add(piece.jvp, 2, p)
        probe.add(lambda v: piece.vjp(torch.zeros_like(v), v), 2, p)
    if radius == "auto":
        probe.calibration()
    return probe.estimate(f"{method} DCT, {m} factors", start)


def _svd(d: int) -> float:
    """Seconds of the SVD of ``[d, d]``, from a smaller one: they grow with the cube."""
    n = min(d, 256)
    square = torch.randn(n, n, generator=torch.Generator().manual_seed(0))
    return line(lambda _n: torch.linalg.svd(square), 1, 0.1).seconds(1) * (d / n) ** 3


class _Probe:
    """Passes of a slice, timed one kind after another."""

    def __init__(self, piece: LayerSlice, before: float, budget: float) -> None:
        self.piece, self.seconds, self.budget = piece, before, budget
        self.lines: list[Line] = []
        self.rows = self.peak = 0

    def add(self, call: Callable[[Tensor], Any], calls: int, rows: int) -> None:
        """Count ``calls`` calls with ``rows`` directions each."""
        most, scale = min(rows, self.piece.step), 0.1 * self.piece.unit
        some = scale * random_units(most, self.piece.d_model, 0).to(self.piece.origin)
        needs = memory(lambda: call(some[:1]))
        found = line(lambda n: call(some[:n]), most, self.budget)
        self.lines.append(found)
        self.seconds += calls * found.seconds(rows, self.piece.step)
        self.rows += calls * rows
        self.peak = max(self.peak, needs * most)

    def calibration(self) -> None:
        """Count a measurement of the radius."""
        self.add(self.piece.jvp, 1, 30)
        self.add(self.piece.delta, _RADII, 30)

    def estimate(self, what: str, start: float) -> Estimate:
        """Tokens are those of the passes forward: a prompt is read once for each direction."""
        piece = self.piece
        where = f"{what}, layers {piece.source} to {piece.target}, {piece.n_prompts} prompts"
        tokens = self.rows * piece.tokens.numel()
        return _estimate(where, tokens, self.seconds, self.lines, piece.model, start, self.peak)


def sweep(
    model: TransformerBridge,
    vector: SteeringVector,
    prompts: Sequence[str | Tensor],
    layers: Sequence[int] | None = None,
    coefficients: Sequence[float] = (-0.6, -0.3, -0.15, 0.15, 0.3, 0.6),
    *,
    targets: Target | Sequence[Target] | None = None,
    judge: Callable[[str], float] | None = None,
    positions: Positions = "all",
    max_new_tokens: int = 16,
    budget: float = 2.0,
) -> Estimate:
    """Of :func:`kit.sweep` with the same arguments: a ladder on the prompt of middle length, at
    the layer in the middle, with fewer new tokens.

    Raises:
        ValueError: neither or both of ``targets`` and ``judge``, or empty lists.
    """
    check_counts(max_new_tokens=max_new_tokens)
    if (targets is None) == (judge is None):
        raise ValueError("give targets (continuations to compare) or judge (a function of a text)")
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError(f"prompts={prompts!r}: give a list with at least one prompt")
    if layers is not None and not len(layers):
        raise ValueError(f"layers={layers!r}: give at least one layer")
    start = time.perf_counter()
    order = sorted(range(len(prompts)), key=lambda i: prompt_tokens(model, prompts[i]).shape[1])
    middle = order[len(order) // 2]
    places = sorted([vector.layer] if layers is None else layers)
    v = vector.at(places[len(places) // 2])
    by: Any = judge
    if targets is not None:
        by = targets if isinstance(targets[0], str) else targets[middle]

    def some(n: int) -> None:
        ladder(model, v, prompts[middle], coefficients, by, positions, "add", n)

    peak = memory(lambda: some(1))
    each = line(some, max_new_tokens, budget)
    jobs = len(places) * len(prompts)
    tokens = jobs * (len(coefficients) + 1) * max_new_tokens
    what, note = f"sweep, {jobs} ladders of {len(coefficients) + 1} rows", "as if no answer ended early"
    seconds = jobs * each.seconds(max_new_tokens)
    return _estimate(what, tokens, seconds, [each], model, start, peak, note=note)


def _estimate(
    what: str,
    tokens: int,
    seconds: float,
    lines: Sequence[Line],
    model: TransformerBridge,
    start: float,
    peak: int,
    disk: int = 0,
    folder: Path = Path("."),
    note: str = "",
) -> Estimate:
    while not folder.exists():
        folder = folder.parent
    device = torch.device(model.cfg.device)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else doctor.memory()[1]
    return Estimate(
        what,
        tokens,
        seconds,
        max(each.spread for each in lines),
        peak,
        disk,
        free,
        shutil.disk_usage(folder).free,
        time.perf_counter() - start,
        note,
    )
