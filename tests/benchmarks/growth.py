"""How cost grows: ladder rows, prompt length, vectors and layers at once, kernels at once."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import kit
from tests.benchmarks.ratios import seconds

_OUT = Path(__file__).parent / "results"


def run(model: Any) -> str:
    """Measure, write ``growth.csv`` and ``growth.png``, and say where."""
    vector = kit.data.vector("happy-sad")
    text = kit.text_tokens(model, " ".join(kit.data.neutral_texts() * 4))
    rows: list[tuple[str, int, float]] = []

    def ms(tokens: Any, vectors: Any, coefficients: Any, n: int = 6) -> float:
        stream = kit.stream(model, tokens, vectors, coefficients, max_new_tokens=n + 1)
        next(stream)
        return 1000 * median(seconds(partial(next, stream)) for _ in range(n - 1))

    short = text[:, :40]
    for n in (1, 2, 4, 8, 16, 32):
        rows.append(("ladder rows", n, ms(short, vector, [0.01 * i for i in range(n)])))
    for n in (16, 64, 256, 512, 1024, 2048):
        rows.append(("prompt tokens", n, ms(text[:, :n], vector, [0.2])))
        first = kit.stream(model, text[:, 1 : n + 1], vector, [0.2], max_new_tokens=1)
        rows.append(("prompt tokens (first token)", n, 1000 * seconds(partial(next, first))))
    for n in (1, 2, 4, 8, 16):
        many = [vector.at(min(7 + i, model.cfg.n_layers - 1)) for i in range(n)]
        rows.append(("vectors, a layer each", n, ms(short, many, [0.02])))
    for n in (1, 2, 4, 8):
        rows.append(("kernels at once", n, _kernels(n)))
    _OUT.mkdir(exist_ok=True)
    with (_OUT / "growth.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("what", "n", "milliseconds a step"), *rows])
    _draw(rows)
    return f"{_OUT.name}/growth.csv and growth.png in {_OUT.parent.name}"


_KERNEL = """
import time, kit
from statistics import median
model = kit.load_model()
run = kit.stream(model, "Hello there", kit.data.vector("happy-sad"), [0.2], max_new_tokens=12)
next(run)
print("ready", flush=True); input()
times = []
for _ in range(10):
    start = time.perf_counter(); next(run); times.append(time.perf_counter() - start)
print(1000 * median(times), flush=True)
"""


def _kernels(n: int) -> float:
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
    for child in children:
        child.stdin.write("\n")  # type: ignore[union-attr]
        child.stdin.flush()  # type: ignore[union-attr]
    times = [float(child.stdout.readline()) for child in children]  # type: ignore[union-attr]
    for child in children:
        child.communicate()
    return median(times)


def _draw(rows: list[tuple[str, int, float]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(name for name, _, _ in rows))
    figure, axes = plt.subplots(1, len(names), figsize=(3.2 * len(names), 3), dpi=110)
    for axis, name in zip(axes, names, strict=True):
        points = [(n, y) for what, n, y in rows if what == name]
        axis.plot(*zip(*points, strict=True), marker="o", color="#30577a")
        axis.set(xscale="log", xlabel=name, ylabel="ms a step", ylim=(0, None))
        axis.set_xticks([n for n, _ in points], [str(n) for n, _ in points], rotation=45)
        axis.minorticks_off()
    figure.tight_layout()
    figure.savefig(_OUT / "growth.png")
