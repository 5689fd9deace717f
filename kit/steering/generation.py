"""The one decode loop: rows are coefficients, cached, streamed, stoppable, measured.

All rows of a ladder run as one batch with a coefficient of their own. Hooks exist only while a
forward pass runs, under the model's lock, so a stream that is stopped, abandoned or garbage
collected leaves nothing behind.

Rows that differ only in their steering share what is alike: one row is computed up to the first
steered block and position, then it forks into all of them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kit.base.checks import check_counts, is_number, plain
from kit.base.html import visible
from kit.base.threads import fitted
from kit.models.bridge import runtime
from kit.models.hook_points import hooks_left
from kit.models.positions import Positions
from kit.models.tokens import Text, prompt_tokens
from kit.steering.decoder import Decoder
from kit.steering.intervention import Intervention, Op, Rung, Session, Table
from kit.steering.results import Receipt, Row, TokenMeasure, label
from kit.steering.sampling import Pieces, Sampler, end_tokens, measure_tokens

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Coefficients = Sequence[float | Sequence[float | None] | None]


@dataclass(frozen=True)
class Step:
    """One decode step: for every row a token, the text it completes, and what it cost."""

    index: int
    tokens: list[int]
    pieces: list[str]
    done: list[bool]
    measures: list[TokenMeasure | None]
    receipt: Receipt


@dataclass
class Generation:
    """The rows of a finished (or stopped) run, in the order of its coefficients."""

    rows: list[Row]
    names: list[str]
    receipt: Receipt

    @property
    def texts(self) -> list[str]:
        """The new text of each row."""
        return [row.text for row in self.rows]

    def __str__(self) -> str:
        return "\n\n".join(f"[{label(row.coefficients, self.names)}] {visible(row.text)}" for row in self.rows)

    def _repr_html_(self) -> str:
        from kit.steering import render

        return render.ladder(self.rows, self.names, self.receipt)


def generate(
    model: TransformerBridge,
    prompt: Text,
    vectors: Intervention | Sequence[Intervention] = (),
    coefficients: Coefficients | float | None = None,
    *,
    positions: Positions = "all",
    op: Op = "add",
    max_new_tokens: int = 40,
    temperature: float = 0.0,
    seed: int = 0,
    measure: bool = False,
    stop_event: threading.Event | None = None,
) -> Generation:
    """Run :func:`stream` to its end: the same arguments, the same errors."""
    run = stream(
        model,
        prompt,
        vectors,
        coefficients,
        positions=positions,
        op=op,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        measure=measure,
        stop_event=stop_event,
    )
    return collect(run)


@dataclass
class Stream:
    """An iterator of :class:`Step`, with what is known before the first one."""

    steps: Iterator[Step]
    rows: list[Row]
    names: list[str]
    receipt: Receipt

    def __iter__(self) -> Iterator[Step]:
        return self.steps

    def __next__(self) -> Step:
        return next(self.steps)


def collect(run: Stream) -> Generation:
    """Exhaust a stream and return its rows."""
    for _ in run:
        pass
    return Generation(run.rows, run.names, run.receipt)


def stream(
    model: TransformerBridge,
    prompt: Text,
    vectors: Intervention | Sequence[Intervention] = (),
    coefficients: Coefficients | float | None = None,
    *,
    positions: Positions = "all",
    op: Op = "add",
    max_new_tokens: int = 40,
    temperature: float = 0.0,
    seed: int = 0,
    measure: bool = False,
    stop_event: threading.Event | None = None,
) -> Stream:
    """Decode a ladder of steered rows from one batched, cached loop.

    Args:
        prompt: a user message (put into the chat template; plain text for a model without one), or
            tokens ``[n]`` or ``[1, n]`` as :func:`kit.chat_tokens` and :func:`kit.text_tokens`
            make them.
        vectors: one intervention or several.
        coefficients: the rows. Each is None (unsteered), a number for all vectors, or a sequence
            with one number for each vector (None: off, which a number 0 is not when clamping).
            Default: one row at 1, or an unsteered one.
        positions, op: as in :func:`kit.steer`.
        max_new_tokens: at most so many tokens a row; a row ends early at the model's end token.
        temperature: 0 is greedy. Otherwise each row samples with its own generator of the same
            ``seed``: a row's text does not depend on what else is in the ladder.
        measure: add, for each steered row, an unsteered shadow that is fed the row's tokens, and
            report per token what steering cost (:class:`TokenMeasure`).
        stop_event: when set, the stream ends before the next forward pass.

    Returns:
        A :class:`Stream`; nothing has run yet, but every argument has been checked.

    Raises:
        ValueError: an empty prompt, one longer than the context, or an argument that makes no
            sense; TypeError: ``model`` is no ``TransformerBridge``.

    A hook that stands on the bridge (yours, or an enclosing :func:`kit.steer`) acts here too: the
    loop then runs through the bridge, more slowly, and the receipt names it.
    """
    runtime(model)  # refuses what is no bridge
    tokens = prompt_tokens(model, prompt)
    room = model.cfg.n_ctx - tokens.shape[1]
    check_counts(max_new_tokens=max_new_tokens)
    if max_new_tokens > room:
        raise ValueError(
            f"prompt of {tokens.shape[1]} tokens and max_new_tokens={max_new_tokens} exceed this "
            f"model's context of {model.cfg.n_ctx}"
        )
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature={temperature!r}: give 0 (greedy) or a positive number")
    vectors = list(vectors) if isinstance(vectors, Sequence) else [vectors]
    table = rows_of(vectors, coefficients)
    shadow_of = [i for i, row in enumerate(table) if row is not None] if measure else []
    with_shadows = [*table, *[None] * len(shadow_of)]
    positions = _with_shadows(positions, len(table), len(shadow_of))
    session = session_of(model, vectors, with_shadows, positions, op)
    session.receipt.other_hooks = hooks_left(model)
    rows = [Row(row, session.receipt.row(i)) for i, row in enumerate(table)]

    def steps() -> Iterator[Step]:
        pick = Sampler(len(table), temperature, seed)
        text = [Pieces(model.tokenizer) for _ in table]
        ends = end_tokens(model)
        done = [False] * len(table)
        decoder = Decoder(model, session, tokens, with_shadows)
        for index in range(max_new_tokens):
            if stop_event is not None and stop_event.is_set():
                return
            logits = decoder.step()
            with fitted(len(table)), torch.inference_mode():
                chosen = pick(logits[: len(table)])
                measures = measure_tokens(model, logits, chosen, shadow_of) if measure else {}
            pieces = []
            for i, token in enumerate(chosen.tolist()):
                piece = ""
                if not done[i]:
                    rows[i].receipt = session.receipt.row(i)
                    done[i] = token in ends
                    piece = "" if done[i] else text[i].add(token)
                    if not done[i]:
                        rows[i].tokens.append(token)
                        rows[i].pieces.append(piece)
                        if i in measures:
                            rows[i].measures.append(measures[i])
                pieces.append(piece)
            decoder.feed(torch.cat([chosen, chosen[shadow_of]]))
            yield Step(
                index,
                chosen.tolist(),
                pieces,
                list(done),
                [measures.get(i) for i in range(len(table))],
                session.receipt,
            )
            if all(done):
                return

    return Stream(steps(), rows, [v.name for v in vectors], session.receipt)


def logits(
    model: TransformerBridge,
    tokens: Text,
    vectors: Intervention | Sequence[Intervention] = (),
    coefficients: Coefficients | float | None = None,
    *,
    positions: Positions = "all",
    op: Op = "add",
    prompt_length: int | None = None,
    keep: int = 0,
) -> Tensor:
    """Logits of a given text for every row of a ladder, in one pass.

    Args:
        tokens: LongTensor ``[n]`` or ``[1, n]``.
        vectors, coefficients, positions, op: as in :func:`stream`.
        prompt_length: where the prompt ends within ``tokens`` (default: at their end).
        keep: only the last so many positions (0: all).

    Returns:
        float tensor ``[rows, n or keep, d_vocab]``.
    """
    tokens = prompt_tokens(model, tokens, any_end=True)
    vectors = list(vectors) if isinstance(vectors, Sequence) else [vectors]
    table = rows_of(vectors, coefficients)
    positions = _with_shadows(positions, len(table), 0)
    session = session_of(model, vectors, table, positions, op)
    return Decoder(model, session, tokens, table, prompt_length).step(keep=keep)


def rows_of(vectors: Sequence[Intervention], coefficients: Coefficients | float | None) -> list[Rung]:
    """Coefficients as a table: for each row None, or one number or None for each vector.

    Raises:
        ValueError: no rows, or a row that does not fit the vectors.
    """
    if coefficients is None:
        coefficients = [1.0] if vectors else [None]
    coefficients = plain(coefficients)
    if not isinstance(coefficients, Iterable):
        coefficients = [coefficients]
    table: list[Rung] = []
    for row in map(plain, coefficients):
        if row is None:
            table.append(None)
            continue
        numbers = list(map(plain, row)) if isinstance(row, Iterable) else [row] * len(vectors)
        if not vectors or len(numbers) != len(vectors):
            raise ValueError(
                f"coefficients has a row {row!r} for {len(vectors)} vectors: a row is None, a "
                "number, or one number for each vector"
            )
        if not all(n is None or is_number(n) for n in numbers):
            raise ValueError(f"coefficients has a row {row!r}: give finite numbers")
        table.append(tuple(None if n is None else float(n) for n in numbers))
    if not table:
        raise ValueError("coefficients=[]: give at least one row")
    return table


def _with_shadows(positions: Positions, rows: int, shadows: int) -> Positions:
    """A mask with rows must fit the ladder; its shadow rows are never steered."""
    if not isinstance(positions, Tensor) or positions.dim() != 2 or len(positions) == 1:
        return positions
    if len(positions) != rows:
        raise ValueError(f"positions is a mask of {len(positions)} rows for a ladder of {rows}")
    return torch.cat([positions, positions.new_zeros(shadows, positions.shape[1])])


def session_of(
    model: TransformerBridge, vectors: Sequence[Intervention], table: Table, positions: Positions, op: Op
) -> Session:
    """One :class:`kit.steering.intervention.Session` for a table of coefficients.

    Raises:
        ValueError: what is no intervention, one vector twice, or as for the session.
    """
    for vector in vectors:
        if not hasattr(vector, "parts"):
            raise ValueError(
                f"vectors holds a {type(vector).__name__}: give interventions (a SteeringVector, say), and "
                "their coefficients as coefficient(s)"
            )
    if len(set(map(id, vectors))) < len(vectors):
        raise ValueError("vectors holds one vector twice: give it once, with the sum")
    return Session(model, vectors, table, positions, op)
