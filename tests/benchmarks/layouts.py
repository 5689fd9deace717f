"""``python -m tests.benchmarks.layouts``: what libraries and layouts of the weights give.

Milliseconds of all matrices of the embedded model, each by itself, float32, one thread, for some
numbers of rows: as they are stored by each library; turned over (``[in, out]`` in memory) by torch
and oneDNN; and as oneDNN rearranges them for itself; and the arithmetic that a large product
reaches. The last two layouts are copies, made here only.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import kit
from kit.base import threads
from kit.models.bridge import runtime
from kit.models.fast_linear import WAYS, ways
from tests.benchmarks.ratios import seconds

_ROWS = (1, 2, 3, 9)


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)
    with threads.fitted(1):  # numpy too
        _compare()


def _compare() -> None:
    decoder: Any = runtime(kit.load_model(dtype="float32")).decoder
    stored = [m.weight.detach() for m in decoder.modules() if isinstance(m, nn.Linear)]
    turned = [weight.t().contiguous().t() for weight in stored]
    moved = sum(weight.numel() for weight in stored)
    widths = [weight.shape[1] for weight in stored]
    heads = [*ways(), "turned torch", "turned oneDNN", "rearranged"]
    print(f"{'rows':>4}" + "".join(f"{name:>15}" for name in heads) + "  ms")
    for rows in _ROWS:
        given = {width: torch.randn(rows, width) for width in set(widths)}
        rearranged = [torch.ops.mkldnn._reorder_linear_weight(weight, rows) for weight in stored]
        each: list[tuple[Callable[..., Tensor], list[Any]]] = [
            *((WAYS[name], stored) for name in ways()),
            (WAYS["torch"], turned),
            (WAYS["oneDNN"], turned),
            (WAYS["oneDNN"], rearranged),
        ]

        def run(multiply: Callable[..., Tensor], weights: list[Any], given: dict[int, Tensor] = given) -> None:
            for width, weight in zip(widths, weights, strict=True):
                multiply(given[width], weight, None)

        found = [[1000 * seconds(lambda way=way: run(*way)) for way in each] for _ in range(12)]
        print(f"{rows:>4}" + "".join(f"{median(times):>15.1f}" for times in zip(*found, strict=True)), flush=True)
        del rearranged
    large = torch.randn(1024, 1024)
    best = min(seconds(lambda: large @ large) for _ in range(20))
    print(
        f"a product of 1024 x 1024: {2 * 1024**3 / best / 1e9:.0f} GFLOP/s; nine rows of these: {18 * moved / 1e9:.1f} GFLOP"
    )


if __name__ == "__main__":
    main()
