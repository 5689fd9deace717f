"""What is fastest on this machine, measured once and kept: how long a waiting thread spins, and
which library multiplies so many rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from kit.base import threads
from kit.base.files import cache_dir, whole

# The products of eight blocks as wide as the embedded model's, of 113 MB, which no cache holds.
_WEIGHTS = """
import json, subprocess, sys, time
from statistics import median
import torch

shapes = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]
weights = [torch.full(shape, 0.01) for shape in 8 * shapes]

def step(multiply, rows, weights=weights):
    given = {width: torch.ones(rows, width, dtype=weights[0].dtype) for width in (576, 1536)}
    start = time.perf_counter()
    for weight in weights:
        multiply(given[weight.shape[1]], weight, None)
    return 1000 * (time.perf_counter() - start)
"""

# Nine rows on all threads, quiet and beside one busy core; without the kit, which would set what is
# to be compared.
_SPINNING = (
    _WEIGHTS
    + """
one = torch.ops.mkldnn._linear_pointwise if torch.backends.mkldnn.is_available() else None
multiply = (lambda x, w, b: one(x, w, b, "none", [], "")) if one else torch.nn.functional.linear

@torch.inference_mode()
def time_of(rounds=15):
    return median(step(multiply, 9) for _ in range(rounds))

time_of(1)
quiet = time_of()
with subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) as other:
    try:
        time.sleep(0.2)
        found = {"usual": torch.get_num_threads(), "quiet": quiet, "busy": time_of()}
    finally:
        other.kill()
print(json.dumps(found))
"""
)

# By each library in turn, for the rows that are compared, on one thread and on all; and one row in
# bfloat16.
_PRODUCTS = (
    _WEIGHTS
    + """
from kit.base import threads
from kit.models.fast_linear import ROWS, WAYS, ways

narrow = [weight.bfloat16() for weight in weights]

@torch.inference_mode()
def times(rounds=9):
    runs = [(way, rows) for rows in ROWS for way in ways()]
    found = [[step(WAYS[w], n) for w, n in runs] + [step(WAYS["torch"], 1, narrow)] for _ in range(rounds)]
    *each, half = [median(some) for some in zip(*found)]
    return {str(rows): {w: t for (w, n), t in zip(runs, each) if n == rows} for rows in ROWS}, half

usual = torch.get_num_threads()
with threads.fitted(9):  # which holds the BLAS of numpy to one thread
    torch.set_num_threads(usual)
    times(1)
    together, _ = times()
    torch.set_num_threads(1)
    alone, half = times()
print(json.dumps({"alone": alone, "together": together, "bfloat16": half}))
"""
)


def once() -> Mapping[str, Any]:
    """What is kept of this machine, measured first where nothing is; empty where others are busy.

    Processes that this one starts, or becomes, then wait in the way that was chosen.
    """
    import psutil

    if threads.kept() or threads.users() or threads.cores() == 1:
        return threads.kept()
    told: dict[str, Any] = {}
    for name, settings in threads.WAITING.items():
        if psutil.cpu_percent(0.3) > 20:
            return {}
        if not told:
            sys.stderr.write("measuring what is fastest on this machine (once, some seconds)\n")
        told[name] = _run(_SPINNING, settings)
    found = chosen(told)
    found |= fastest(_run(_PRODUCTS, threads.WAITING[found["waiting"]]), found["default"])
    with suppress(OSError), whole(cache_dir() / threads.KEPT) as part:  # a shared cache is for reading
        part.write_text(json.dumps(found, indent=1), encoding="utf-8")
    threads.kept.cache_clear()
    threads.prepare()
    return found


def chosen(told: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What to keep of the ways to wait: of those that are within a tenth of the fastest on a quiet
    machine the one that suffers least on a busy one.

    Args:
        told: by the names of `threads.WAITING` torch's ``usual`` count, and milliseconds of nine
            rows on all threads, ``quiet`` and ``busy`` (one core).
    """
    least = min(some["quiet"] for some in told.values())
    good = [name for name, some in told.items() if some["quiet"] <= 1.1 * least]
    best = min(good, key=lambda name: told[name]["busy"])
    return {"cores": threads.cores(), "waiting": best, "default": told[best]["usual"], "spinning": told}


def fastest(told: Mapping[str, Any], usual: int) -> dict[str, Any]:
    """What to keep of the libraries: the fastest for each number of rows, whether one row gains a
    fifth by more than one thread, and what it takes in bfloat16, of what it takes in float32.

    Args:
        told: milliseconds by rows and library, ``alone`` (one thread) and ``together`` (all); and
            of one row in ``bfloat16``, alone.
        usual: torch's own count of threads.
    """
    names = {side: " ".join(min(some, key=some.get) for some in told[side].values()) for side in ("alone", "together")}
    alone, together = (min(told[side]["1"].values()) for side in ("alone", "together"))
    return {
        "products": names,
        "one row": usual if together < 0.8 * alone else 1,
        "bfloat16": told["bfloat16"] / alone,
        "multiplying": told,
    }


def _run(code: str, settings: Mapping[str, str]) -> dict[str, Any]:
    env = {name: value for name, value in os.environ.items() if name not in threads.WAITS} | dict(settings)
    command = [sys.executable, "-c", code]
    return json.loads(subprocess.run(command, env=env, stdout=subprocess.PIPE, timeout=120, check=True).stdout)
