"""What a coefficient does and what it costs: preference, sweeps, calibration."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kit.base import shards as files
from kit.base.divergence import kl
from kit.base.progress import track
from kit.models.bridge import check_layer, fingerprint, runtime
from kit.models.hook_points import hooks_left
from kit.models.positions import Positions
from kit.models.tokens import prompt_tokens
from kit.steering.generation import Coefficients, generate, logits
from kit.steering.intervention import Intervention, Op
from kit.steering.vectors import SteeringVector

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

Target = tuple[str, str]
_COLUMNS = ["layer", "coefficient", "prompt", "effect", "kl", "perplexity", "distinct_2", "text"]
VectorByLayer = SteeringVector | Mapping[int, SteeringVector] | Callable[[int], SteeringVector]


def preference(
    model: TransformerBridge,
    prompt: str | Tensor,
    positive: str,
    negative: str,
    vectors: Intervention | Sequence[Intervention] = (),
    coefficients: Coefficients | float | None = None,
    *,
    positions: Positions = "all",
    op: Op = "add",
) -> list[float]:
    """log p(positive | prompt) - log p(negative | prompt) for every row, in nats.

    Args:
        prompt: as in :func:`kit.generate`; for plain text pass ``kit.text_tokens(model, text)``.
        positive, negative: continuations, with their leading space if they have one.
        vectors, coefficients, positions, op: as in :func:`kit.generate`.
    """
    tokens = prompt_tokens(model, prompt)
    up, down = (
        _continuation(model, tokens, text, vectors, coefficients, positions, op) for text in (positive, negative)
    )
    return (up - down).tolist()


def _continuation(
    model: TransformerBridge,
    tokens: Tensor,
    text: str,
    vectors: Intervention | Sequence[Intervention],
    coefficients: Coefficients | float | None,
    positions: Positions,
    op: Op,
) -> Tensor:
    ids = model.tokenizer(text, add_special_tokens=False).input_ids
    if not ids:
        raise ValueError(f"continuation {text!r} holds no token")
    more = torch.tensor([ids], device=tokens.device)
    # the last token of a continuation predicts nothing that is asked for
    text_ids = torch.cat([tokens, more[:, :-1]], dim=1)
    out = logits(
        model, text_ids, vectors, coefficients, positions=positions, op=op, prompt_length=tokens.shape[1], keep=len(ids)
    )
    log_p = out.reshape(len(out), len(ids), -1).float().log_softmax(-1)
    return log_p.gather(-1, more[..., None].expand(len(out), -1, 1)).sum(dim=(1, 2)).cpu()


def sweep(
    model: TransformerBridge,
    vector: VectorByLayer,
    prompts: Sequence[str | Tensor],
    layers: Sequence[int] | None = None,
    coefficients: Sequence[float] = (-0.6, -0.3, -0.15, 0.15, 0.3, 0.6),
    *,
    targets: Target | Sequence[Target] | None = None,
    judge: Callable[[str], float] | None = None,
    positions: Positions = "all",
    op: Op = "add",
    max_new_tokens: int = 16,
    shards: str | Path | None = None,
) -> pd.DataFrame:
    """Effect and cost of steering over layers, coefficients and prompts.

    Args:
        vector: one vector (moved to each layer), or a mapping or function from layer to vector,
            which is fairer: a direction found at one layer need not mean the same at another.
        layers: default: the vector's own.
        targets: a (positive, negative) pair of continuations for all prompts, or one for each;
            the effect is the shift of their log-probability difference against no steering.
        judge: instead of targets, a function from generated text to a number; the effect is that
            number minus the one for the unsteered text.
        shards: a folder in which each prompt at each layer leaves a file. All processes with the
            same arguments share the work and return the whole table, and a later call does what is
            missing. A judge is known there by its name only: another one needs another folder.

    Returns:
        A tidy table, a row for each prompt, layer and coefficient: ``layer, coefficient, prompt,
        effect, kl`` (nats a token), ``perplexity`` (under the unsteered model), ``distinct_2,
        text``. Interrupting the kernel returns the rows that are finished, with
        ``table.attrs["interrupted"]`` set.

    Raises:
        ValueError: neither or both of ``targets`` and ``judge``, empty lists, or a damaged shard.
    """
    import pandas as pd

    if (targets is None) == (judge is None):
        raise ValueError("give targets (continuations to compare) or judge (a function of a text)")
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError(f"prompts={prompts!r}: give a list with at least one prompt")
    if layers is None:
        if not isinstance(vector, SteeringVector):
            raise ValueError("layers=None: say which layers a mapping or function is asked for")
        layers = [vector.layer]
    for layer in layers:
        check_layer(model, layer)
    pairs: list[Target | None] = [None] * len(prompts)
    if targets is not None:
        same = isinstance(targets[0], str)
        pairs = [targets] * len(prompts) if same else list(targets)  # type: ignore[list-item, arg-type]
        if len(pairs) != len(prompts):
            raise ValueError(f"targets holds {len(pairs)} pairs for {len(prompts)} prompts")
    rows: list[tuple[Any, ...]] = []
    jobs = [(la, i) for la in layers for i in range(len(prompts))]

    def measured(layer: int, i: int) -> list[tuple[Any, ...]]:
        by: Any = pairs[i] or judge
        found = ladder(model, _vector_at(vector, layer), prompts[i], coefficients, by, positions, op, max_new_tokens)
        return [(layer, c, i, *figures) for c, figures in zip(coefficients, found, strict=True)]

    def file(layer: int, i: int) -> Path:
        v = _vector_at(vector, layer)
        told = {
            "kind": "sweep 1",
            "model": (fingerprint(model), str(model.cfg.dtype)),
            "layer": layer,
            "index": i,
            "prompt": prompt_tokens(model, prompts[i]),
            "direction": v.direction,
            "norm": v.norm,
            "coefficients": list(map(float, coefficients)),
            "targets": pairs[i],
            "judge": judge and files.named(judge, "judge"),
            "positions": positions,
            "op": op,
            "max_new_tokens": max_new_tokens,
        }
        return Path(shards or "") / f"sweep-{files.digest(told)}.json"

    paths = [] if shards is None else [file(*job) for job in jobs]
    interrupted = False
    try:
        if shards is None:
            for job in track(jobs, "runs"):
                rows += measured(*job)
        else:
            files.work(paths, lambda n: files.write_rows(paths[n], measured(*jobs[n])), "runs")
    except KeyboardInterrupt:
        interrupted = True
    for path in filter(Path.is_file, paths):
        rows += files.read_rows(path, len(_COLUMNS))
    table = pd.DataFrame(rows, columns=_COLUMNS)
    table.attrs["interrupted"] = interrupted
    return table


def ladder(
    model: TransformerBridge,
    vector: SteeringVector,
    prompt: str | Tensor,
    coefficients: Sequence[float],
    by: Target | Callable[[str], float],
    positions: Positions,
    op: Op,
    max_new_tokens: int,
) -> list[tuple[float, float | None, float | None, float, str]]:
    """One prompt of a sweep: effect, KL, perplexity, distinct-2 and text at each coefficient.

    Args:
        by: targets or a judge; the others as for :func:`sweep`.
    """
    rungs = [None, *coefficients]
    run = generate(
        model, prompt, vector, rungs, positions=positions, op=op, max_new_tokens=max_new_tokens, measure=True
    )
    if callable(by):
        effects = [float(by(text)) for text in run.texts]
    else:
        effects = preference(model, prompt, *by, vector, rungs, positions=positions, op=op)
    return [
        (effect - effects[0], row.kl, row.perplexity, row.distinct_2, row.text)
        for row, effect in list(zip(run.rows, effects, strict=True))[1:]
    ]


def _vector_at(vector: VectorByLayer, layer: int) -> SteeringVector:
    if isinstance(vector, SteeringVector):
        return vector if vector.layer == layer else vector.at(layer)
    found = vector(layer) if callable(vector) else vector[layer]
    if found.layer != layer:
        raise ValueError(f"the vector given for layer {layer} is at layer {found.layer}")
    return found


@dataclass(frozen=True)
class Calibration:
    """The range in which a vector costs at most a given KL.

    Attributes:
        low, high: the negative and the positive coefficient that cost ``target_kl``.
        target_kl: mean KL(steered || unsteered) in nats a token.
        curve: (coefficient, KL) of everything that was measured, in order.
    """

    low: float
    high: float
    target_kl: float
    curve: list[tuple[float, float]]


_PROMPTS = ("What did you do last weekend?", "Explain how bread is made.", "Describe the street outside your window.")


def calibrate(
    model: TransformerBridge,
    vector: Intervention,
    target_kl: float = 0.5,
    *,
    prompts: Sequence[str | Tensor] = _PROMPTS,
    positions: Positions = "all",
    op: Op = "add",
    max_coefficient: float = 2.0,
    max_new_tokens: int = 20,
    tolerance: float = 0.05,
) -> Calibration:
    """Find the coefficients, one on each side of zero, that cost a given KL.

    The KL is measured on the unsteered model's own greedy answers, averaged over the positions
    that predict them, so that every coefficient is measured on the same text.

    Args:
        target_kl: nats a token. At 0.5 text is usually still fluent; find out on your model.
        max_coefficient: how far to look.
        tolerance: relative error of the KL at which the search ends.

    Raises:
        ValueError: a target that is not positive, or not reached at ``max_coefficient``.
    """
    if not 0 < target_kl < float("inf"):
        raise ValueError(f"target_kl={target_kl!r}: give a positive number of nats a token")
    texts = [_answered(model, prompt_tokens(model, prompt), max_new_tokens) for prompt in prompts]
    curve: dict[float, float] = {}

    def measure(coefficients: Sequence[float]) -> None:
        total = torch.zeros(len(coefficients))
        for tokens, length in texts:
            keep = tokens.shape[1] - length + 1
            out = logits(
                model,
                tokens,
                vector,
                [None, *coefficients],
                positions=positions,
                op=op,
                prompt_length=length,
                keep=keep,
            )
            log_p = out.reshape(len(out), keep, -1).float().log_softmax(-1)
            nats = kl(log_p[1:], log_p[:1]).mean(-1)
            total += nats.nan_to_num(nan=math.inf, posinf=math.inf).cpu()
        curve.update(zip(coefficients, (total / len(texts)).tolist(), strict=True))

    first = [max_coefficient / 2**i for i in range(5, -1, -1)]
    measure([sign * c for sign in (-1, 1) for c in first])
    ends: dict[int, float] = {}
    for left in range(8, -1, -1):
        further = []  # both sides are measured together
        for sign in {-1, 1} - set(ends):
            points = sorted((abs(c), nats) for c, nats in curve.items() if c * sign > 0)
            good = [c for c, nats in points if abs(nats - target_kl) <= tolerance * target_kl]
            over = next((i for i, (_, nats) in enumerate(points) if nats > target_kl), None)
            if good:
                ends[sign] = sign * good[0]
            elif over is None:
                raise ValueError(
                    f"target_kl={target_kl}: at coefficient {sign * max_coefficient} the KL is "
                    f"only {points[-1][1]:.3g}; lower the target or raise max_coefficient"
                )
            elif left:
                (a, kl_a), (b, kl_b) = points[over - 1] if over else (0.0, 0.0), points[over]
                further.append(sign * _between(a, b, kl_a, kl_b, target_kl))
            else:
                ends[sign] = sign * min(points, key=lambda p: abs(p[1] - target_kl))[0]
        if further:
            measure(further)
    return Calibration(ends[-1], ends[1], target_kl, sorted(curve.items()))


def _answered(model: TransformerBridge, start: Tensor, max_new_tokens: int) -> tuple[Tensor, int]:
    """A prompt with the unsteered model's greedy answer ``[1, n + answer]``, and how long the
    prompt is. Made once: whoever compares vectors calibrates each of them on the same prompts."""
    # a hook of the user's, or an enclosing kit.steer, acts on an answer: that one is not kept
    kept = {} if hooks_left(model) else runtime(model).kept("unsteered answers", dict)
    key = max_new_tokens, *start[0].tolist()
    if key not in kept:
        kept[key] = generate(model, start, max_new_tokens=max_new_tokens).rows[0].tokens
    more = torch.tensor([kept[key]], dtype=start.dtype, device=start.device)
    return torch.cat([start, more], dim=1), start.shape[1]


def _between(a: float, b: float, kl_a: float, kl_b: float, target: float) -> float:
    """Where a KL that grows as a square reaches the target, kept off the ends of the bracket."""
    root = (math.sqrt(target) - math.sqrt(kl_a)) / (math.sqrt(min(kl_b, 1e6)) - math.sqrt(kl_a))
    return a + (b - a) * min(max(root, 0.1), 0.9)
