"""Forward passes of the decode loop: a batch of rows over one prompt, cached, forked, reused.

Three savings, none of which changes a logit by more than rounding: rows are computed once up to
the first steered block and fork there; unsteered rows of the prompt are computed once and kept for
the next run; steering that starts late in the prompt reuses the unsteered prefix before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kit.models.bridge import runtime
from kit.models.hook_points import hooks_left
from kit.models.positions import select
from kit.steering.intervention import Session, Table

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_KEEP_PROMPT = 512  # tokens: the longest prompt whose unsteered cache is kept for the next run
KeyValues = list[tuple[Tensor, Tensor]]  # of each layer, [rows, heads, pos, d_head]


@dataclass(frozen=True, eq=False)
class Plain:
    """An unsteered prompt, one row: tokens ``[1, n]``, its cache, logits ``[1, 1, d_vocab]``."""

    tokens: Tensor
    pairs: KeyValues
    logits: Tensor


class Decoder:
    """``step()`` gives logits for what was fed, the prompt at first; ``feed(tokens)`` goes on."""

    def __init__(
        self, model: TransformerBridge, session: Session, tokens: Tensor, table: Table, prompt_length: int | None = None
    ) -> None:
        """Prepare a run; computes nothing.

        Args:
            session: the interventions, with a coefficient for each row.
            tokens: the prompt ``[1, n]``.
            table: the rows; None is unsteered.
            prompt_length: where the prompt ends within ``tokens``; default at their end.
        """
        self.state, self.session, self.tokens = runtime(model), session, tokens
        self.steered = [i for i, row in enumerate(table) if row is not None]
        self.rows = len(table)
        self.prompt = tokens.shape[1] if prompt_length is None else prompt_length
        # a hook on the bridge (the user's, or an enclosing kit.steer) must act: run through it
        self.bridged = bool(hooks_left(model)) or not self.state.shares_weights
        self.module = model.original_model if self.bridged else self.state.decoder
        self.cache = self._empty()
        self.next: Tensor | None = None

    def feed(self, tokens: Tensor) -> None:
        """Give every row its next token ``[rows]``."""
        self.next = tokens[:, None]

    def step(self, keep: int = 1) -> Tensor:
        """Logits ``[rows, d_vocab]`` of the last position, or ``[rows, keep, d_vocab]`` of the
        last ``keep`` (0: all)."""
        with self.state.lock, torch.inference_mode():
            if self.next is not None:
                logits = self._run(self.next, keep, list(range(self.rows)))
            elif self.bridged or not self._forkable():
                logits = self._run(self.tokens.expand(self.rows, -1), keep, list(range(self.rows)))
            elif keep == 1:
                logits = self._prompt()
            else:
                logits = self._fork(0, keep, list(range(self.rows)), None)
        return logits[:, -1] if keep == 1 else logits

    def _empty(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self.module.config)

    def _forkable(self) -> bool:
        """Only plain caches can be cut and joined by rows (not sliding windows or states)."""
        from transformers.cache_utils import DynamicLayer

        return all(type(layer) is DynamicLayer for layer in self.cache.layers)

    def _run(self, tokens: Tensor, keep: int, rows: Sequence[int]) -> Tensor:
        start = self.cache.get_seq_length()
        index = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        self.session.begin(index, self.prompt, rows)
        with self.session.attached("bridge" if self.bridged else "decoder"):
            return self._forward(tokens, self.cache, keep)

    def _forward(self, tokens: Tensor, cache: Any, keep: int) -> Tensor:
        # plain caching, whatever a config file says of use_cache
        return self.module(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=keep).logits

    def _prompt(self) -> Tensor:
        """The prompt, for all rows: unsteered once, steered from where they differ."""
        start = self._first_steered()
        plain: Plain | None = self.state.known("prompt")
        if plain is not None and not torch.equal(plain.tokens, self.tokens):
            plain = None
        if plain is None and (start or len(self.steered) < self.rows):
            plain = self._plain()
        if not self.steered or start == self.tokens.shape[1]:
            assert plain is not None
            self.session.receipt.prompt_positions += start
            self._fill(plain.pairs, self.rows)
            return plain.logits.expand(self.rows, -1, -1)  # [rows, 1, d_vocab]
        start = min(start, self.tokens.shape[1] - 1)
        self.session.receipt.prompt_positions += start
        logits = self._fork(start, 1, self.steered, plain.pairs if plain else None)
        if plain is None or len(self.steered) == self.rows:
            return logits
        # row 0 of the joined batch is the unsteered one
        source = torch.zeros(self.rows, dtype=torch.long, device=logits.device)
        source[self.steered] = torch.arange(1, len(self.steered) + 1, device=logits.device)
        joined = [  # [1 + steered, heads, pos, d_head] -> [rows, heads, pos, d_head]
            (torch.cat([k, new_k])[source], torch.cat([v, new_v])[source])
            for (k, v), (new_k, new_v) in zip(plain.pairs, _pairs(self.cache), strict=True)
        ]
        self._fill(joined, self.rows)
        return torch.cat([plain.logits, logits])[source]  # [1 + steered, 1, d_vocab] -> [rows, 1, d_vocab]

    def _first_steered(self) -> int:
        width = self.tokens.shape[1]
        index = torch.arange(width, device=self.tokens.device)
        chosen = select(self.session.positions, index, self.prompt).reshape(-1, width).any(0)
        return int(chosen.long().argmax()) if self.steered and bool(chosen.any()) else width

    def _plain(self) -> Plain:
        """The unsteered prompt, one row; kept for the next run with the same prompt."""
        cache = self._empty()
        logits = self._forward(self.tokens, cache, 1)
        plain = Plain(self.tokens, _pairs(cache), logits)
        return self.state.keep("prompt", plain) if self.tokens.shape[1] <= _KEEP_PROMPT else plain

    def _fork(self, start: int, keep: int, rows: Sequence[int], plain: KeyValues | None) -> Tensor:
        """One row up to the first steered block, ``rows`` from there on; fills the cache."""
        shared, n = self.session.untouched_blocks, len(rows)
        if start:
            assert plain is not None
            for i, (k, v) in enumerate(plain):
                wide = 1 if i < shared else n
                self.cache.update(*(_wide(t[:, :, :start], wide) for t in (k, v)), i)
        tokens = self.tokens[:, start:]
        if shared == 0 or n == 1:
            return self._run(tokens.expand(n, -1), keep, rows)
        with ExitStack() as stack:
            block = self.state.block(shared - 1)
            stack.callback(block.register_forward_hook(_widen(n)).remove)
            logits = self._run(tokens, keep, rows)
        self._fill(_pairs(self.cache), n)
        return logits.expand(n, -1, -1)

    def _fill(self, pairs: Sequence[tuple[Tensor, Tensor]], rows: int) -> None:
        """Start the cache anew from keys and values of one row or of all."""
        self.cache = self._empty()
        for i, (k, v) in enumerate(pairs):
            self.cache.update(_wide(k, rows), _wide(v, rows), i)


def _pairs(cache: Any) -> KeyValues:
    return [(layer.keys, layer.values) for layer in cache.layers]


def _wide(tensor: Tensor, rows: int) -> Tensor:
    return tensor.expand(rows, *tensor.shape[1:])


def _widen(rows: int) -> Any:
    def hook(_module: Any, _args: Any, out: Any) -> Any:
        if isinstance(out, tuple):
            return (_wide(out[0], rows), *out[1:])
        return _wide(out, rows)

    return hook
