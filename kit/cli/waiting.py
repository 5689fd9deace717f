"""How long a waiting thread should spin on this machine, measured once and kept."""

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
# Without the kit, which would set what is to be compared.
_CHILD = """
import json, subprocess, sys, time
from statistics import median
import torch

usual = torch.get_num_threads()
shapes = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]
weights = [torch.full(shape, 0.01) for shape in 8 * shapes]

def step(rows, count, weights=weights):
    torch.set_num_threads(count)
    given = {width: torch.ones(rows, width, dtype=weights[0].dtype) for width in (576, 1536)}
    start = time.perf_counter()
    for weight in weights:
        torch.nn.functional.linear(given[weight.shape[1]], weight)
    return 1000 * (time.perf_counter() - start)

@torch.inference_mode()
def half():  # bfloat16 over float32, one row
    narrow = [weight.bfloat16() for weight in weights]
    return median(step(1, 1, narrow) / step(1, 1) for _ in range(5))

@torch.inference_mode()
def times(rounds=15):
    found = [[step(rows, count) for rows in (1, 9) for count in (1, usual)] for _ in range(rounds)]
    return [median(some) for some in zip(*found)]

times(1)
quiet = times()
with subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) as other:
    try:
        time.sleep(0.2)
        found = {"usual": usual, "quiet": quiet, "busy": times()}
    finally:
        other.kill()
print(json.dumps({**found, "bfloat16": half()}))
"""


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
            sys.stderr.write("measuring how this machine's threads should wait (once, some seconds)\n")
        told[name] = _measured(settings)
    found = chosen(told)
    with suppress(OSError), whole(cache_dir() / threads.KEPT) as part:  # a shared cache is for reading
        part.write_text(json.dumps(found, indent=1), encoding="utf-8")
    threads.kept.cache_clear()
    threads.prepare()
    return found


def chosen(told: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What to keep: of the ways that are within a tenth of the fastest on a quiet machine the one
    that suffers least on a busy one, whether one row gains a fifth by more than one thread, and
    what it takes in bfloat16, of what it takes in float32.

    Args:
        told: by the names of `threads.WAITING` torch's ``usual`` count, and milliseconds ``quiet``
            and ``busy`` (one core) of one row on one thread and on all, and of nine rows; and
            ``bfloat16``, of one row on one thread over float32's.
    """
    least = min(some["quiet"][3] for some in told.values())
    good = [name for name, some in told.items() if some["quiet"][3] <= 1.1 * least]
    best = min(good, key=lambda name: told[name]["busy"][3])
    usual, (alone, together, *_) = told[best]["usual"], told[best]["quiet"]
    found = {"cores": threads.cores(), "waiting": best, "default": usual, "milliseconds": told}
    return {**found, "one row": usual if together < 0.8 * alone else 1, "bfloat16": told[best]["bfloat16"]}


def _measured(settings: Mapping[str, str]) -> dict[str, Any]:
    env = {**{name: value for name, value in os.environ.items() if name not in threads.WAITS}, **settings}
    command = [sys.executable, "-c", _CHILD]
    return json.loads(subprocess.run(command, env=env, stdout=subprocess.PIPE, timeout=120, check=True).stdout)
