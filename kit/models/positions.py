"""The one token-position language: relative to the whole sequence, never to a cache's slice."""

from __future__ import annotations

import torch
from torch import Tensor

from kit.base.checks import is_whole

Positions = str | int | slice | Tensor
_NAMED = ("all", "prompt", "last_prompt", "generated")


def check_positions(positions: Positions) -> None:
    """Raise a ValueError that states the position language unless ``positions`` is in it."""
    if isinstance(positions, Tensor):
        good = positions.dtype == torch.bool and positions.dim() in (1, 2)
    elif isinstance(positions, str):
        good = positions in _NAMED
    elif isinstance(positions, slice):
        ends = (positions.start, positions.stop, positions.step)
        good = all(n is None or is_whole(n) for n in ends) and (positions.step is None or positions.step > 0)
    else:
        good = is_whole(positions)
    if not good:
        raise ValueError(
            f"positions={positions!r}: use {', '.join(map(repr, _NAMED))}, an int, a slice with a "
            "positive step (negative numbers count from the prompt's end), or a boolean mask "
            "[prompt] or [rows, prompt]"
        )


def select(positions: Positions, index: Tensor, prompt: int | Tensor) -> Tensor:
    """Which absolute positions are meant: the kit's one position language.

    Always relative to the whole sequence, never to the part that a KV cache lets through.

    Args:
        positions: ``"all"``; ``"prompt"``; ``"last_prompt"``; ``"generated"``, which starts AT the
            last prompt token, since that token produces the first generated one; an int; a slice;
            or a boolean mask over the sequence (beyond its end nothing is selected). Negative
            numbers count from the end of the prompt, so ``slice(-3, None)`` is the last three
            prompt tokens and all that follows.
        index: LongTensor ``[..., pos]`` of absolute positions, -1 where there is padding.
        prompt: length of the prompt, or LongTensor ``[rows, 1]`` of lengths.

    Returns:
        BoolTensor of the shape of ``index``; ``[rows, pos]`` for a mask with rows.

    >>> select(slice(-2, None), torch.arange(6), 4).int().tolist()
    [0, 0, 1, 1, 1, 1]
    >>> select("generated", torch.arange(6), 4).int().tolist()
    [0, 0, 0, 1, 1, 1]
    """
    check_positions(positions)
    real = index >= 0
    if isinstance(positions, Tensor):
        mask = positions.to(index.device)
        rows = {len(t) for t in (mask, index) if t.dim() == 2} - {1}
        if len(rows) > 1:
            raise ValueError(f"positions is a mask of {len(mask)} rows for a batch of {len(index)}")
        mask, index, real = (t.expand(max(rows, default=1), -1) if mask.dim() == 2 else t for t in (mask, index, real))
        mask = mask.expand(*index.shape[:-1], -1)
        inside = real & (index < mask.shape[-1])
        return inside & mask.gather(-1, index.clamp(0, mask.shape[-1] - 1))
    if isinstance(positions, str):
        named = {
            "all": real,
            "prompt": index < prompt,
            "last_prompt": index == prompt - 1,
            "generated": index >= prompt - 1,
        }
        return real & named[positions]

    def absolute(n: int) -> int | Tensor:
        return n if n >= 0 else prompt + n

    if is_whole(positions):
        return real & (index == absolute(positions))
    first = absolute(positions.start or 0)
    if isinstance(first, Tensor):
        first = first.clamp(min=0)
    else:
        first = max(first, 0)
    chosen = real & (index >= first) & ((index - first) % (positions.step or 1) == 0)
    return chosen if positions.stop is None else chosen & (index < absolute(positions.stop))
