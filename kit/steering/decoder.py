"""Forward passes of the decode loop: a batch of rows over one prompt, cached, forked, reused.

Three savings, none of which changes a logit by more than rounding: rows are computed once up to
the first steered block and fork there; unsteered rows of the prompt are computed once and kept for
the next run; steering that starts late in the prompt reuses the unsteered prefix before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kit.models.bridge import runtime
from kit.models.hook_points import hooks_left
from kit.models.positions import select
from kit.steering.intervention import Session

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


_KEEP_PROMPT = 512  # tokens: the longest prompt whose unsteered cache is kept for the next run
KeyValues = list[tuple[Tensor, Tensor]]


class Decoder:
    """``step()`` gives logits for what was fed, the prompt at first; ``feed(tokens)`` goes on."""

    def __init__(
        self,
        model: TransformerBridge,
        session: Session,
        tokens: Tensor,
        table: Sequence[tuple[float | None, ...] | None],
        prompt_length: int | None = None,
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
        kept = self.state.cache.get("prompt")
        known = kept is not None and torch.equal(kept[0], self.tokens) and kept[3] == self._edits_of_weights()
        if not known and (start or len(self.steered) < self.rows):
            kept, known = self._plain(), True
        if not self.steered or start == self.tokens.shape[1]:
            assert kept is not None
            self.session.receipt.prompt_positions += start
            self._fill(kept[1], self.rows)
            return kept[2].expand(self.rows, -1, -1)
        start = min(start, self.tokens.shape[1] - 1)
        self.session.receipt.prompt_positions += start
        logits = self._fork(start, 1, self.steered, kept[1] if known else None)
        if len(self.steered) == self.rows:
            return logits
        # row 0 of the joined batch is the unsteered one
        source = torch.zeros(self.rows, dtype=torch.long, device=logits.device)
        source[self.steered] = torch.arange(1, len(self.steered) + 1, device=logits.device)
        joined = [
            tuple(torch.cat([a, b])[source] for a, b in zip(plain, steered, strict=True))
            for plain, steered in zip(kept[1], _pairs(self.cache), strict=True)
        ]
        self._fill(joined, self.rows)
        return torch.cat([kept[2], logits])[source]

    def _first_steered(self) -> int:
        width = self.tokens.shape[1]
        index = torch.arange(width, device=self.tokens.device)
        chosen = select(self.session.positions, index, self.prompt).reshape(-1, width).any(0)
        return int(chosen.long().argmax()) if self.steered and bool(chosen.any()) else width

    def _edits_of_weights(self) -> int:
        """A number that changes when a weight is changed in place (not through ``.data``)."""
        return sum(weight._version for weight in self.module.parameters())

    def _plain(self) -> tuple[Tensor, KeyValues, Tensor, int]:
        """The unsteered prompt, one row; kept for the next run with the same prompt."""
        cache = self._empty()
        logits = self._forward(self.tokens, cache, 1)
        kept = (self.tokens, _pairs(cache), logits, self._edits_of_weights())
        if self.tokens.shape[1] <= _KEEP_PROMPT:
            self.state.cache["prompt"] = kept
        return kept

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
