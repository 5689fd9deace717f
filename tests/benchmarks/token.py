"""``python -m tests.benchmarks.token [--dtype DTYPE] [--rows N]``: where a token's time goes.

One thread. Each part is run by itself, in turn with the others, and the medians are compared with
the least that memory allows: the bytes of all weights over the bandwidth that this machine shows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import nn

import kit
from kit.models.bridge import runtime
from tests.benchmarks.ratios import _PROMPT, Figure, no_end, one_thread, seconds


def parts(model: Any, rows: int = 1, steps: int = 25) -> dict[str, list[float]]:
    """Milliseconds of each part, of a pass, of a step, and of reading all weights once."""
    state = runtime(model)
    decoder: Any = state.decoder
    head = decoder.lm_head
    weights = {p.data_ptr(): p for p in decoder.parameters()}
    moved = sum(p.numel() * p.element_size() for p in weights.values())
    block = torch.ones(256 * 2**20 // 4)
    dtype = head.weight.dtype
    shape = decoder.shape
    given, wide, inner = (
        torch.randn(rows, 1, width).to(dtype) for width in (shape.d_model, shape.n_heads * shape.d_head, shape.d_mlp)
    )
    tokens = kit.chat_tokens(model, _PROMPT)
    cache = decoder.cache()
    decoder(input_ids=tokens.expand(rows, -1), past_key_values=cache)
    last = tokens[:, -1:].expand(rows, -1)
    vector = kit.data.vector("happy-sad")

    def multiply() -> None:  # as the decoder does
        for block in decoder.model.layers:
            attention, mlp = block.self_attn, block.mlp
            attention.joined(given, [(attention.q_proj.weight, attention.k_proj.weight), (attention.v_proj.weight,)])
            attention.o_proj(wide)
            mlp.joined(given, [(mlp.gate_proj.weight,), (mlp.up_proj.weight,)])
            mlp.down_proj(inner)

    def attend() -> None:
        for layer in cache.layers:
            q = layer.keys[:, :1, -1:].expand(-1, shape.n_heads, -1, -1)
            nn.functional.scaled_dot_product_attention(q, layer.keys, layer.values, enable_gqa=True)

    stream = kit.stream(model, tokens, vector, [0.2] * rows, max_new_tokens=steps + 2)
    next(stream)
    runs: dict[str, Callable[[], Any]] = {
        "reading as many bytes": block.sum,
        "matrices of the blocks": multiply,
        "unembedding": lambda: head(given),
        "attention": attend,
        "a pass": lambda: decoder(input_ids=last, past_key_values=cache, logits_to_keep=1),
        "a step": lambda: next(stream),
    }
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(steps):
        for name, run in runs.items():
            found[name].append(1000 * seconds(run))
    share = moved / (block.numel() * 4)
    found["reading as many bytes"] = [t * share for t in found["reading as many bytes"]]
    return found


@torch.inference_mode()
def measure(model: Any, rows: int = 1) -> dict[str, list[float]]:
    """:func:`parts` on one thread."""
    with one_thread(), no_end(model):
        return parts(model, rows)


def figure(found: dict[str, list[float]]) -> Figure:
    """The row of the speed table: the bandwidth limit over a token."""
    ratios = [a / b for a, b in zip(found["reading as many bytes"], found["a step"], strict=True)]
    return Figure("a token, one thread: share of the memory's limit", ">= 0.5", ">= 0.65", ratios)


def table(found: dict[str, list[float]]) -> str:
    """Lines of a Markdown table; what no part accounts for is told by difference."""
    ms = {name: median(times) for name, times in found.items()}
    ms["norms, rotations, sums, Python"] = ms["a pass"] - sum(
        ms[name] for name in ("matrices of the blocks", "unembedding", "attention")
    )
    ms["steering, sampling, text"] = ms["a step"] - ms["a pass"]
    order = (
        "reading as many bytes",
        "matrices of the blocks",
        "unembedding",
        "attention",
        "norms, rotations, sums, Python",
        "steering, sampling, text",
        "a step",
    )
    lines = ["| part | ms | of a step |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {ms[name]:.1f} | {ms[name] / ms['a step']:.0%} |" for name in order)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="auto", help="of the model (default: auto)")
    parser.add_argument("--rows", type=int, default=1, help="rows of the ladder (default: 1)")
    args = parser.parse_args()
    model = kit.load_model(dtype=args.dtype)
    print(table(measure(model, args.rows)))


if __name__ == "__main__":
    main()
