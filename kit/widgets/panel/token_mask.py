"""A prompt drawn token by token: what a fit reads, and what steering changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import ipywidgets as w
import torch

from kit.models.bridge import runtime
from kit.models.positions import Positions, select
from kit.models.tokens import prompt_tokens
from kit.steering import render
from kit.widgets import frame

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Option = TypeVar("Option")
_LATER = 3  # generated tokens that are drawn after the prompt
_POSITIONS: dict[str, Positions] = {
    "all": "all",
    "prompt": "prompt",
    "last_prompt": "last_prompt",
    "generated": "generated",
    "0 (the first token)": 0,
    "slice(-3, None)": slice(-3, None),
    "slice(1, -1)": slice(1, -1),
}
_READS: dict[str, str | int | slice] = {"last": "last", "mean": "mean", "slice(-3, None)": slice(-3, None)}


class TokenMask(frame.View):
    """``TokenMask(model, "Hello")``: positions and read can be changed and the drawing follows.

    Attributes:
        read, steered: the masks as drawn, booleans for each prompt token and, for ``steered``,
            the first generated tokens.
    """

    def __init__(
        self,
        model: TransformerBridge,
        prompt: str | torch.Tensor,
        positions: Positions = "all",
        read: str | int | slice = "last",
    ) -> None:
        """Args as in :func:`kit.steer` and :func:`kit.search.contrast.fit`; the prompt as in
        :func:`kit.generate` (a chat message, or tokens)."""
        runtime(model)  # refuses what is no bridge
        ids = prompt_tokens(model, prompt)[0]
        super().__init__()
        self._pieces = [model.tokenizer.decode([t]) for t in ids.tolist()]
        self._positions, where = _with(_POSITIONS, positions)
        self._reads, what = _with(_READS, read)
        self.positions = frame.small(w.Dropdown, "steer at", "auto", options=list(self._positions), value=where)
        self.reading = frame.small(w.Dropdown, "read", "auto", options=list(self._reads), value=what)
        self._html = w.HTML()
        self._arrange("Token mask", frame.row(self.reading, self.positions), self._html)
        self.positions.observe(lambda _change: self._draw(), "value")
        self.reading.observe(lambda _change: self._draw(), "value")
        self._draw()

    def _draw(self) -> None:
        n = len(self._pieces)
        self.read = reads(self._reads[self.reading.value], n)
        chosen = self._positions[self.positions.value]
        self.steered = select(chosen, torch.arange(n + _LATER), n).reshape(-1, n + _LATER)[0]
        self.html = render.token_mask(
            [*self._pieces, *(f"new {i + 1}" for i in range(_LATER))],
            [*self.read.tolist(), *[False] * _LATER],
            self.steered.tolist(),
            n,
        )
        self._html.value = self.html

    @property
    def frozen_html(self) -> str:
        return self.html


def reads(read: str | int | slice, length: int) -> torch.Tensor:
    """Which tokens :func:`kit.models.activations.residuals` reads: BoolTensor ``[length]``.

    Raises:
        ValueError: an unknown ``read``.
    """
    index = torch.arange(length)
    if read == "last":
        return index == length - 1
    if read == "mean":  # all but the attention sink
        return index >= min(1, length - 1)
    if isinstance(read, str):
        raise ValueError(f"read={read!r}: use 'last', 'mean', an int or a slice")
    return select(read, index, length)


def _with(known: dict[str, Option], value: Option) -> tuple[dict[str, Option], str]:
    """The menu, with the given value in it, and the entry that is the value."""
    for name, option in known.items():
        if type(option) is type(value) and not isinstance(value, torch.Tensor) and option == value:
            return known, name
    name = "the mask given" if isinstance(value, torch.Tensor) else repr(value)
    return {**known, name: value}, name
