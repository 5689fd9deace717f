"""What a reader of the notebooks makes longer: a ladder, a prompt, a talk, a room."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

import kit
from kit.models.bridge import runtime
from tests.benchmarks.growth.curves import Curve, exponent
from tests.benchmarks.ratios import seconds

_TURN = ("Tell me a little more about the garden and what grows there in spring.", "There are roses and old pears.")


def _first_and_step(model: Any, jobs: dict[int, tuple[Any, Any, Sequence[float]]]) -> list[dict[int, float]]:
    """Seconds to the first token and of a step after it, by size; the least of those of three runs."""
    first, step = {n: [] for n in jobs}, {n: [] for n in jobs}  # type: ignore[var-annotated]
    for _ in range(3):
        for n, (tokens, vectors, coefficients) in jobs.items():
            run = kit.stream(model, tokens, vectors, coefficients, max_new_tokens=7)
            first[n].append(seconds(partial(next, run)))
            step[n] += [seconds(partial(next, run)) for _ in range(5)]
    return [{n: min(some) for n, some in found.items()} for found in (first, step)]


def _arithmetic(model: Any, lengths: dict[int, int]) -> tuple[float, float]:
    """Exponents for a prompt of so many tokens at each size: of its first token, which multiplies
    each with every weight of the blocks and with the tokens before it; and of a step, which reads
    the weights and what is kept of the tokens."""
    cfg = model.cfg
    weights = sum(p.numel() for i in range(cfg.n_layers) for p in runtime(model).block(i).parameters())
    width = cfg.n_layers * cfg.n_heads * cfg.d_head
    read = weights + cfg.d_vocab * cfg.d_model
    return (
        exponent({n: weights * m + width * m * m for n, m in lengths.items()}),
        exponent({n: read + 2 * cfg.n_layers * cfg.n_key_value_heads * cfg.d_head * m for n, m in lengths.items()}),
    )


def _text(model: Any, n: int) -> Any:
    return kit.text_tokens(model, " ".join(kit.data.neutral_texts() * 8))[:, :n]


def coefficients(model: Any, quick: bool) -> list[Curve]:
    """Rows of a ladder."""
    short, vector = _text(model, 40), kit.data.vector("happy-sad")
    sizes = (1, 2, 4, 8, 16) if quick else (1, 2, 4, 8, 16, 32)
    first, step = _first_and_step(model, {n: (short, vector, [0.01 * i for i in range(n)]) for n in sizes})
    return [
        Curve("a step of all rows", "coefficients", 1, step),
        Curve("first tokens, 40-token prompt", "coefficients", 1, first),
    ]


def prompt(model: Any, quick: bool) -> list[Curve]:
    """Tokens of a prompt."""
    sizes = (16, 64, 256, 512) if quick else (16, 64, 256, 512, 1024, 2048)
    text, vector = _text(model, max(sizes)), kit.data.vector("happy-sad")
    first, step = _first_and_step(model, {n: (text[:, :n], vector, [0.2]) for n in sizes})
    reading, stepping = _arithmetic(model, {n: n for n in sizes})
    return [Curve("first token", "prompt tokens", reading, first), Curve("a step", "prompt tokens", stepping, step)]


def turns(model: Any, quick: bool) -> list[Curve]:
    """Turns of a talk: each is answered by reading the whole talk again."""
    said = [{"role": "user", "content": _TURN[0]}, {"role": "assistant", "content": _TURN[1]}]
    vector, jobs = kit.data.vector("happy-sad"), {}
    for n in (1, 2, 4, 8) if quick else (1, 2, 4, 8, 16, 32):
        shown = model.tokenizer.apply_chat_template(
            [*said * (n - 1), said[0]], add_generation_prompt=True, tokenize=False
        )
        ids = model.tokenizer(shown, add_special_tokens=False).input_ids
        jobs[n] = (torch.tensor([ids]), vector, [0.2])
    first, step = _first_and_step(model, jobs)
    reading, stepping = _arithmetic(model, {n: job[0].shape[1] for n, job in jobs.items()})
    return [Curve("first token of the next answer", "turns", reading, first), Curve("a step", "turns", stepping, step)]


def vectors(model: Any, quick: bool) -> list[Curve]:
    """Vectors that act at once, each at a layer of its own."""
    vector, short = kit.data.vector("happy-sad"), _text(model, 40)
    sizes = (1, 2, 4, 8) if quick else (1, 2, 4, 8, 16, 28)
    many = {n: [vector.at(1 + i) for i in range(n)] for n in sizes}
    _, step = _first_and_step(model, {n: (short, some, [0.02]) for n, some in many.items()})
    return [Curve("a step", "vectors", 0, step)]


_KERNEL = """
import time, kit
from statistics import median
model = kit.load_model()
run = kit.stream(model, "Hello there", kit.data.vector("happy-sad"), [0.2], max_new_tokens=27)
next(run)
print("ready", flush=True); input()
times = []
for _ in range(25):
    start = time.perf_counter(); next(run); times.append(time.perf_counter() - start)
print(median(times), flush=True)
"""


def kernels(_model: Any, quick: bool) -> list[Curve]:
    """Participants: kernels that steer at once, as seats of a hub do, each with a model."""
    found = {n: _kernels(n) for n in ((1, 2, 4) if quick else (1, 2, 4, 8))}
    return [
        Curve("a step, all at work", "kernels", 1, {n: t for n, (t, _) in found.items()}),
        Curve("memory of all together", "kernels", 1, {n: m for n, (_, m) in found.items()}, "bytes"),
        Curve("memory of each", "kernels", 0, {n: m / n for n, (_, m) in found.items()}, "bytes"),
    ]


def _kernels(n: int) -> tuple[float, float]:
    """Seconds a step, and bytes of all of them: a page that several share counts once."""
    env = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // n))}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", _KERNEL],
            stdin=subprocess.PIPE,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=env,
        )
        for _ in range(n)
    ]
    for child in children:
        child.stdout.readline()  # type: ignore[union-attr]
    held = sum(_share(child.pid) for child in children)
    for child in children:
        child.stdin.write("\n")  # type: ignore[union-attr]
        child.stdin.flush()  # type: ignore[union-attr]
    times = [float(child.stdout.readline()) for child in children]  # type: ignore[union-attr]
    for child in children:
        child.communicate()
    return median(times), held


def _share(pid: int) -> float:
    """Bytes of a process, of shared pages its part; without /proc all of them."""
    file = Path(f"/proc/{pid}/smaps_rollup")
    if not file.exists():
        import psutil

        return float(psutil.Process(pid).memory_info().rss)
    return 1024.0 * next(int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith("Pss:"))


CURVES = {"coefficients": coefficients, "prompt": prompt, "turns": turns, "vectors": vectors, "kernels": kernels}
