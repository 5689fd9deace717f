"""``python -m tests.benchmarks.layouts``: what other layouts of the weights would give, and take.

Milliseconds of all matrices of the embedded model, float32, one thread, for some numbers of rows: as
they are stored, turned over (``[in, out]`` in memory), and as oneDNN rearranges them for itself; and
the arithmetic that a large product reaches. The last two layouts are copies, made here only.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import kit
from kit.models.bridge import runtime
from kit.models.fast_linear import product
from tests.benchmarks.ratios import seconds

_ROWS = (1, 2, 3, 9)


def _onednn(x: Tensor, weight: Any) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)
    decoder: Any = runtime(kit.load_model(dtype="float32")).decoder
    stored = [m.weight.detach() for m in decoder.modules() if isinstance(m, nn.Linear)]
    turned = [weight.t().contiguous().t() for weight in stored]
    moved = sum(weight.numel() for weight in stored)
    widths = [weight.shape[1] for weight in stored]
    print(f"{'rows':>4}{'as stored':>12}{'turned':>12}{'rearranged':>12}  ms")
    for rows in _ROWS:
        given = {width: torch.randn(rows, width) for width in set(widths)}
        rearranged = [torch.ops.mkldnn._reorder_linear_weight(weight, rows) for weight in stored]
        ways: list[tuple[Callable[[Tensor, Any], Tensor], list[Any]]] = [
            (product, stored),
            (nn.functional.linear, turned),
            (_onednn, rearranged),
        ]

        def run(
            multiply: Callable[[Tensor, Any], Tensor], weights: list[Any], given: dict[int, Tensor] = given
        ) -> None:
            for width, weight in zip(widths, weights, strict=True):
                multiply(given[width], weight)

        found = [[1000 * seconds(lambda way=way: run(*way)) for way in ways] for _ in range(12)]
        print(f"{rows:>4}" + "".join(f"{median(times):>12.1f}" for times in zip(*found, strict=True)), flush=True)
        del rearranged
    large = torch.randn(1024, 1024)
    best = min(seconds(lambda: large @ large) for _ in range(20))
    print(
        f"a product of 1024 x 1024: {2 * 1024**3 / best / 1e9:.0f} GFLOP/s; nine rows of these: {18 * moved / 1e9:.1f} GFLOP"
    )


if __name__ == "__main__":
    main()
