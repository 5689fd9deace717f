"""How long a waiting thread should spin on this machine, measured once and kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from kit.base import threads
from kit.base.files import cache_dir, whole

# Eight blocks as wide as the embedded model's, 113 MB, which no cache holds; one row and nine on
# one thread and on all, in turn: medians in milliseconds, alone and beside a program that keeps one
# core busy. Without the kit, which would set what is to be compared.
_CHILD = """
import json, subprocess, sys, time
from statistics import median
import torch
from torch.nn.functional import linear

usual = torch.get_num_threads()
wide = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]
blocks = [[torch.full(shape, 0.01) for shape in wide] for _ in range(8)]

def step(rows):
    x = torch.full((rows, 576), 0.01)
    for q, k, v, o, gate, up, down in blocks:
        linear(x, k), linear(x, v)
        x = 0.1 * linear(linear(x, q), o)
        x = 0.1 * linear(linear(x, gate) * linear(x, up), down)

@torch.inference_mode()
def times(rounds=9):
    found = {f"{rows} on {on}": [] for rows in (1, 9) for on in ("one", "all")}
    for _ in range(rounds):
        for name, taken in found.items():
            torch.set_num_threads(1 if name.endswith("one") else usual)
            step(int(name[0]))
            start = time.perf_counter()
            step(int(name[0]))
            taken.append(1000 * (time.perf_counter() - start))
    return {name: median(taken) for name, taken in found.items()}

times(1)
quiet = times()
with subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) as other:
    try:
        time.sleep(0.2)
        print(json.dumps({"usual": usual, "quiet": quiet, "busy": times()}))
    finally:
        other.kill()
"""
_BUSY = 0.4  # cores that others may use while it is measured


def once() -> Mapping[str, Any]:
    """What is kept of this machine, measured first where nothing is; empty where others are busy.

    Processes that this one starts, or becomes, then wait in the way that was chosen.
    """
    if threads.kept() or threads.users() or threads.cores() == 1:
        return threads.kept()
    told: dict[str, Any] = {}
    for name, settings in threads.WAITING.items():
        if _others() > _BUSY:
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


def chosen(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What to keep: of the ways that are within a tenth of the fastest on a quiet machine the one
    that suffers least on a busy one, and whether one row gains a fifth by more than one thread.

    Args:
        found: by the names of `threads.WAITING` what the child process told.
    """
    least = min(told["quiet"]["9 on all"] for told in found.values())
    good = [name for name, told in found.items() if told["quiet"]["9 on all"] <= 1.1 * least]
    best = min(good, key=lambda name: found[name]["busy"]["9 on all"])
    told = found[best]
    more = told["quiet"]["1 on all"] < 0.8 * told["quiet"]["1 on one"]
    return {
        "cores": threads.cores(),
        "waiting": best,
        "default": told["usual"],
        "one row": told["usual"] if more else 1,
        "milliseconds": found,
    }


def _others() -> float:
    load = threads.Load()
    load.free()
    time.sleep(0.3)
    load.free()
    return load.others


def _measured(settings: Mapping[str, str]) -> dict[str, Any]:
    env = {**{name: value for name, value in os.environ.items() if name not in threads.WAITS}, **settings}
    command = [sys.executable, "-c", _CHILD]
    return json.loads(subprocess.run(command, env=env, stdout=subprocess.PIPE, timeout=120, check=True).stdout)
