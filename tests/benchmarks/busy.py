"""The table of a busy machine: each job alone and beside a program that keeps one core busy."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import kit
from kit import sae
from kit.search import dct
from kit.search.layer_slice import LayerSlice
from tests.benchmarks import dictionaries, ratios, unlabelled
from tests.benchmarks.ratios import Figure, seconds

_STEPS = 16  # tokens
_BATCHES = 3  # of a chunk of activations
_FEATURES, _RADIUS = 32, 30.0  # of the DCT: what an iteration costs does not depend on the radius


def table(model: Any, pairs: int) -> list[Figure]:
    """The rows: time with one core busy over time without, pair by pair."""
    found = []
    with ratios.no_end(model):
        for (what, must), (job, times) in jobs(model).items():
            quiet, busy = in_turn(job, pairs)
            each = [f"{1000 * median(run) / times:.0f} ms" for run in (quiet, busy)]
            worse = [b / q for q, b in zip(quiet, busy, strict=True)]
            aim = "<= 1.1" if must < 2 else "<= 2"
            found.append(Figure(f"{what}: one core busy over quiet", f"<= {must}", aim, worse, "", *each))
    return found


def jobs(model: Any) -> dict[tuple[str, float], tuple[Callable[[], Any], int]]:
    """What runs, and how many steps it is, by its name and what it must reach."""
    vector = kit.data.vector("happy-sad")
    tokens, short = (kit.chat_tokens(model, text) for text in (ratios._PROMPT, "Please tell me how you are."))
    moved = iter(range(10**6))
    rows = dictionaries.tokens(model, 48)
    dictionary = dictionaries.untrained(model, rows[:16])
    source = sae.Source(model, rows, [dictionary.site], batch=1024, rows=32)
    training = sae.Training(source, widths=(4,), steps=10**6)

    def steps(coefficients: list[float]) -> Callable[[], Any]:
        return lambda: kit.generate(model, tokens, vector, coefficients, max_new_tokens=_STEPS)

    def slider() -> None:
        c = 0.05 * (next(moved) % 7 + 1)
        next(kit.stream(model, short, vector, [None, c], measure=True))

    def chunk() -> None:
        for _ in range(_BATCHES):
            training.advance()

    one, all_cores = 1.3, 2.2
    return {
        ("decode step, one row", one): (steps([0.2]), _STEPS),
        ("decode step, ladder of 9", all_cores): (steps([-0.4 + 0.1 * i for i in range(9)]), _STEPS),
        ("slider release to first token", all_cores): (slider, 1),
        ("exponential DCT, an iteration", all_cores): (iteration(model), 1),
        ("SAE training, a step with its harvest", all_cores): (chunk, _BATCHES),
        ("feature store, 16 rows of text", all_cores): (
            lambda: sae.FeatureStore.build(dictionary, model, rows[:16]),
            1,
        ),
    }


def iteration(model: Any) -> Callable[[], Any]:
    """One of the exponential DCT."""
    piece = LayerSlice(model, kit.text_tokens(model, unlabelled._PROMPT), unlabelled._SOURCE, unlabelled._TARGET)
    return lambda: dct.fit_map(piece, n_features=_FEATURES, radius=_RADIUS, iterations=1)


def in_turn(job: Callable[[], Any], pairs: int) -> tuple[list[float], list[float]]:
    """Seconds of a job quiet and beside the busy core, one after the other in changing order."""
    job(), job()
    quiet: list[float] = []
    busy: list[float] = []
    for i in range(pairs):
        for spins in (False, True) if i % 2 else (True, False):
            with spinning() if spins else settled():
                (busy if spins else quiet).append(seconds(job))
    return quiet, busy


@contextmanager
def spinning() -> Iterator[None]:
    """A process that keeps one core busy."""
    with subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) as other, settled():
        try:
            yield
        finally:
            other.kill()


@contextmanager
def settled() -> Iterator[None]:
    time.sleep(0.3)
    yield
