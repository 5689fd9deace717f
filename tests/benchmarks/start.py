"""``python -m tests.benchmarks.start [--kernels N]``: what a fresh kernel pays until it steers.

Prints what the imports cost, the seconds to a loaded model, without and with its bridge, and the
seconds until N kernels that start at once each have a steered token.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections import Counter
from statistics import median

from tests.benchmarks.ratios import Figure, seconds

_LOAD = "import kit; model = kit.load_model()"
_TOKEN = f"{_LOAD}; kit.generate(model, 'Hello', kit.data.vector('happy-sad'), [0.2], max_new_tokens=1)"
_LINE = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s*(\S+)")


def _python(code: str, *options: str) -> subprocess.Popen[str]:
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen([sys.executable, *options, "-c", code], env=env, stderr=subprocess.PIPE, text=True)


def _run(code: str, *options: str) -> str:
    child = _python(code, *options)
    _, told = child.communicate()
    assert child.returncode == 0, told[-2000:]
    return told


def imports(code: str) -> Counter[str]:
    """Seconds of importing each package, without what it imports of others."""
    found: Counter[str] = Counter()
    for microseconds, module in _LINE.findall(_run(code, "-X", "importtime")):
        found[module.partition(".")[0]] += int(microseconds) / 1e6
    return found


def both(pairs: int) -> tuple[list[float], list[float]]:
    """Seconds from nothing to a loaded model: as it comes, and with its bridge."""
    found: tuple[list[float], list[float]] = ([], [])
    for _ in range(pairs):
        found[0].append(seconds(lambda: _run(_LOAD)))
        found[1].append(seconds(lambda: _run(f"{_LOAD}; model.hook_dict")))
    return found


def figure(pairs: int) -> Figure:
    """The row of the speed table."""
    plain, bridged = both(pairs)
    what = "import kit and load_model in a fresh kernel: time over the same with the bridge"
    return Figure(what, "<= 0.5", "<= 0.4", [a / b for a, b in zip(plain, bridged, strict=True)])


def together(kernels: int) -> float:
    """Seconds until so many kernels that start at once have a steered token each."""

    def run() -> None:
        children = [_python(_TOKEN) for _ in range(kernels)]
        for child in children:
            _, told = child.communicate()
            assert child.returncode == 0, told[-2000:]

    return seconds(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernels", type=int, default=30, help="that start at once (default: 30; 0: none)")
    args = parser.parse_args()
    _run(_LOAD)  # files in memory
    plain, bridged = (imports(code) for code in (_TOKEN, f"{_LOAD}; model.hook_dict"))
    print(f"{'seconds of imports':<24}{'to a token':>12}{'with bridge':>13}")
    for name, much in bridged.most_common(14):
        print(f"{name:<24}{plain[name]:>12.2f}{much:>13.2f}")
    print(f"{'all':<24}{plain.total():>12.2f}{bridged.total():>13.2f}\n")
    to, over = both(5)
    print(f"import kit, load_model: {median(to):.1f} s; with the bridge {median(over):.1f} s")
    if args.kernels:
        print(f"{args.kernels} kernels at once: {together(args.kernels):.0f} s to a steered token in each")


if __name__ == "__main__":
    main()
