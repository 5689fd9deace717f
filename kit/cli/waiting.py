"""How long a waiting thread should spin on this machine, measured once (``kit fetch``)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from kit.base import threads
from kit.base.files import cache_dir, whole

# Eight blocks as wide as the embedded model's, 113 MB, which no cache holds; one row and nine
# on one thread and on all, in turn: medians in milliseconds, alone and beside a program that keeps
# one core busy. It runs without the kit, which would set what is to be compared.
_CHILD = """
import json, subprocess, sys, time
from statistics import median
import torch
from torch.nn.functional import linear, silu

most = torch.get_num_threads()
wide = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]
blocks = [[torch.full(shape, 0.01) for shape in wide] for _ in range(8)]

def step(rows):
    x = torch.full((rows, 576), 0.01)
    for q, k, v, o, gate, up, down in blocks:
        linear(x, k), linear(x, v)
        x = 0.1 * linear(linear(x, q), o)
        x = 0.1 * linear(silu(linear(x, gate)) * linear(x, up), down)

@torch.inference_mode()
def times(rounds=9):
    found = {f"{rows} on {on}": [] for rows in (1, 9) for on in ("one", "all")}
    for _ in range(rounds):
        for name, taken in found.items():
            torch.set_num_threads(1 if name.endswith("one") else most)
            step(int(name[0]))
            start = time.perf_counter()
            step(int(name[0]))
            taken.append(1000 * (time.perf_counter() - start))
    return {name: median(taken) for name, taken in found.items()}

times(1)
quiet = times()
other = subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"])
try:
    time.sleep(0.2)
    print(json.dumps({"default": most, "quiet": quiet, "busy": times()}))
finally:
    other.kill()
"""
_BUSY = 0.4  # cores that others may use while it is measured
_WORSE, _BETTER = 1.1, 0.8  # a quiet machine's times may be so much worse; one row takes all threads if so much better


def once(say: Callable[[str], object] = lambda text: sys.stderr.write(text + "\n")) -> Mapping[str, Any]:
    """What is kept of this machine, measured first where nothing is; empty where others were busy.

    The processes that this one starts, or becomes, then wait in that way.
    """
    if not (kept := threads.kept()) and threads.cores() > 1 and not threads.users():
        load = threads.Load()
        load.free(), time.sleep(0.3), load.free()
        if load.others > _BUSY:
            return {}
        say("measuring how this machine's threads should wait (once, some seconds)")
        kept = chosen({name: _measured(env) for name, env in threads.WAITING.items()})
        with suppress(OSError):  # a shared cache that is for reading
            cache_dir().mkdir(parents=True, exist_ok=True)
            with whole(cache_dir() / threads.KEPT) as part:
                part.write_text(json.dumps(kept, indent=1), encoding="utf-8")
        threads.kept.cache_clear()
        threads.prepare()
    return kept


def chosen(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What to keep: of the ways that are nearly as fast as any when the machine is quiet the one
    that suffers least when it is not, and whether one row gains by more than one thread.

    Args:
        found: by the names of `threads.WAITING` what the child process told.
    """
    least = min(told["quiet"]["9 on all"] for told in found.values())
    good = [name for name, told in found.items() if told["quiet"]["9 on all"] <= _WORSE * least]
    best = min(good, key=lambda name: found[name]["busy"]["9 on all"])
    told = found[best]
    more = told["quiet"]["1 on all"] < _BETTER * told["quiet"]["1 on one"]
    return {
        "cores": threads.cores(),
        "waiting": best,
        "default": told["default"],
        "one row": told["default"] if more else 1,
        "milliseconds": {name: {how: told[how] for how in ("quiet", "busy")} for name, told in found.items()},
    }


def _measured(settings: Mapping[str, str]) -> dict[str, Any]:
    env = {name: value for name, value in os.environ.items() if name not in threads.WAITS} | settings
    done = subprocess.run(
        [sys.executable, "-c", _CHILD], env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120
    )
    if done.returncode:
        raise RuntimeError(f"the probe of threads ended: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}")
    return json.loads(done.stdout)
