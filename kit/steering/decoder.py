"""Forward passes of the decode loop: a batch of rows over one prompt, cached, forked, reused.

Three savings, none of which changes a logit by more than rounding: rows are computed once up to
the first steered block and fork there; unsteered rows of the prompt are computed once and kept for
the next run; steering that starts late in the prompt reuses the unsteered prefix before it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kit.base.threads import fitted
from kit.models.bridge import runtime
from kit.models.hook_points import Hooks, hooks_left, output_of, with_output
from kit.models.llama import Cache, Llama
from kit.models.paths import check_paths, difference, most, sample_tokens
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
        if self.bridged:
            check_paths(model)
        self.model = model
        self.module: Any = model.original_model if self.bridged else self.state.decoder
        self.cache = self._empty()
        self.text = tokens.expand(self.rows, -1)  # [rows, n], what was fed so far
        self.next: Tensor | None = None

    def feed(self, tokens: Tensor) -> None:
        """Give every row its next token ``[rows]``."""
        self.next = tokens[:, None]
        if self.cache is None:  # the whole text is passed again
            self.text = torch.cat([self.text, self.next], dim=1)

    def step(self, keep: int = 1) -> Tensor:
        """Logits ``[rows, d_vocab]`` of the last position, or ``[rows, keep, d_vocab]`` of the
        last ``keep`` (0: all)."""
        goes_on = self.next is not None and self.cache is not None
        width = 1 if goes_on else self.text.shape[1]
        with self.state.lock, fitted(self.rows * width), torch.inference_mode():
            if goes_on:
                assert self.next is not None
                logits = self._run(self.next, keep, list(range(self.rows)))
            elif self.next is not None or self.bridged or not self._forkable():
                logits = self._run(self.text, keep, list(range(self.rows)))
            elif keep == 1:
                logits = self._prompt()
            else:
                logits = self._fork(0, keep, list(range(self.rows)), None)
        return logits[:, -1] if keep == 1 else logits

    def _empty(self) -> Any:
        """A cache; None where the architecture takes none that this loop understands."""
        if isinstance(self.module, Llama):
            return self.module.cache()
        from transformers import DynamicCache

        if "past_key_values" not in _takes(type(self.module).forward):
            return None
        cache = DynamicCache(config=self.module.config)
        return cache if _plain_cache(cache) or self._how().cached else None

    def _forkable(self) -> bool:
        return self.cache is not None and _plain_cache(self.cache) and (self.rows == 1 or self._how().forks)

    def _how(self) -> How:
        """How this architecture decodes, tried out once: a ladder forks in the middle of a pass,
        which breaks what is shaped by the batch before the blocks (alibi, masks), and a cache may
        hold states of another kind."""
        return self.state.kept("decoding", lambda: _try(self.model))

    def _run(self, tokens: Tensor, keep: int, rows: Sequence[int]) -> Tensor:
        start = 0 if self.cache is None else self.cache.get_seq_length()
        index = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        seen = tokens.shape[1] - 1 if self.cache is None and self.next is not None else 0
        self.session.begin(index, self.prompt, rows, seen)
        with self.session.attached("bridge" if self.bridged else "decoder"):
            return self._forward(tokens, self.cache, keep)

    def _forward(self, tokens: Tensor, cache: Any, keep: int) -> Tensor:
        return _pass(self.module, tokens, cache, keep)

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
        with Hooks() as hooks:
            hooks.put(lambda: self.state.block(shared - 1).register_forward_hook(_widen(n)))
            logits = self._run(tokens, keep, rows)
        self._fill(_pairs(self.cache), n)
        return logits.expand(n, -1, -1)

    def _fill(self, pairs: Sequence[tuple[Tensor, Tensor]], rows: int) -> None:
        """Start the cache anew from keys and values of one row or of all."""
        self.cache = self._empty()
        for i, (k, v) in enumerate(pairs):
            self.cache.update(_wide(k, rows), _wide(v, rows), i)


@dataclass(frozen=True)
class How:
    """Whether an architecture goes on from a cache of keys and values, and whether its rows can
    fork at a block."""

    cached: bool
    forks: bool


@torch.inference_mode()
def _try(model: TransformerBridge) -> How:
    """Decode a few tokens in each way and compare with a plain pass."""
    from transformers import DynamicCache

    state = runtime(model)
    module, tokens = state.decoder, sample_tokens(model.cfg.d_vocab).to(model.cfg.device)[:, :5]

    def same(a: Tensor, b: Tensor) -> bool:
        return a.shape == b.shape and difference(a.float().cpu(), b.float().cpu(), model.cfg.dtype) <= most(model)

    def goes_on() -> bool:
        cache = DynamicCache(config=module.config)
        if _plain_cache(cache):
            return True
        _pass(module, tokens[:, :3], cache, 1)
        parts = [_pass(module, tokens[:, i : i + 1], cache, 1)[:, 0] for i in (3, 4)]
        return cache.get_seq_length() == 5 and same(torch.cat(parts), whole[0, 3:])

    def forks() -> bool:
        with Hooks() as hooks:
            hooks.put(lambda: state.block(model.cfg.n_layers // 2).register_forward_hook(_widen(2)))
            rows = _pass(module, tokens, None, 0)
        return same(rows[0], whole[0]) and same(rows[1], whole[0])

    whole = _pass(module, tokens, None, 0)  # [1, 5, d_vocab]
    return How(_holds(goes_on), _holds(forks))


def _holds(attempt: Callable[[], bool]) -> bool:
    try:
        return attempt()
    except Exception:  # whatever an architecture says to what it does not know
        return False


@lru_cache(maxsize=64)
def _takes(forward: Callable[..., Any]) -> frozenset[str]:
    """The names of what a pass takes: asked at every token, found once."""
    return frozenset(inspect.signature(forward).parameters)


def _pass(module: Any, tokens: Tensor, cache: Any, keep: int) -> Tensor:
    """Logits ``[rows, keep or n, d_vocab]``."""
    takes = _takes(type(module).forward)
    start = 0 if cache is None else cache.get_seq_length()
    # Bamba counts from 0 at every step unless it is told
    at = torch.arange(start, start + tokens.shape[1], device=tokens.device)[None]
    few = {"logits_to_keep": keep} if "logits_to_keep" in takes else {}
    # plain caching, whatever a config file says of use_cache
    held = {"past_key_values": cache, "use_cache": True} if cache is not None else {"use_cache": False}
    where = {"position_ids": at} if "position_ids" in takes else {}
    return module(input_ids=tokens, **held, **few, **where).logits[:, -keep:]


def _plain_cache(cache: Any) -> bool:
    """Only such can be cut and joined by rows (not sliding windows or states)."""
    if isinstance(cache, Cache):
        return True
    from transformers.cache_utils import DynamicLayer

    return all(type(layer) is DynamicLayer for layer in cache.layers)


def _pairs(cache: Any) -> KeyValues:
    return [(layer.keys, layer.values) for layer in cache.layers]


def _wide(tensor: Tensor, rows: int) -> Tensor:
    return tensor.expand(rows, *tensor.shape[1:])


def _widen(rows: int) -> Any:
    return lambda _module, _args, out: with_output(out, _wide(output_of(out), rows))
