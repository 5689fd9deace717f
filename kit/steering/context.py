"""The ``with`` block: steer whatever runs the model, the user's own calls included."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kit.models.bridge import runtime
from kit.models.hook_points import Hooks
from kit.models.paths import check_paths
from kit.models.positions import Positions
from kit.steering.intervention import Intervention, Op, Session
from kit.steering.results import Receipt

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def as_rows(coefficient: float | Sequence[float] | Tensor) -> Tensor:
    """A coefficient as a float32 tensor ``[rows]``.

    Raises:
        ValueError: not a number or a flat sequence of numbers, or NaN.
    """
    try:
        if torch.as_tensor(coefficient).is_complex():
            raise ValueError(f"coefficient={coefficient!r} is complex")
        rows = torch.as_tensor(coefficient, dtype=torch.float32).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"coefficient={coefficient!r}: give a number, or one for each row") from error
    if rows.dim() > 1 or rows.numel() == 0 or rows.isnan().any():
        raise ValueError(f"coefficient={coefficient!r}: give a number, or one for each row")
    return rows.reshape(-1)


@contextmanager
def steer(
    model: TransformerBridge,
    coefficients: Mapping[Intervention, float | Sequence[float]],
    positions: Positions = "all",
    op: Op = "add",
    *,
    prompt_length: int | None = None,
) -> Iterator[Receipt]:
    """Steer every forward pass of the model inside a ``with`` block, cached decoding included.

    Args:
        coefficients: vector -> coefficient in units of :func:`kit.residual_scale`, or one number
            for each batch row.
        positions: see :func:`kit.models.positions.select`. The prompt is the first sequence that is
            run; one token more without a cache, or a pass with one, continues it; else it is new.
        op: ``"add"`` c * v; ``"ablate"`` c times the component along v (1 removes it);
            ``"clamp"`` sets the component along v to c.
        prompt_length: where the prompt ends, if not at the end of the first sequence that is run.

    Yields:
        The :class:`Receipt`, which fills while the block runs.

    Raises:
        ValueError: before anything runs, for a vector, coefficient, position or op that does not
            fit this model; or where the bridge computes another model than transformers
            (:mod:`kit.models.paths`).

    Holds the model's lock, so a panel's worker waits until the block ends.
    """
    columns = [as_rows(c) for c in coefficients.values()]
    long = max(map(len, columns), default=1)
    short = [len(column) for column in columns if len(column) not in (1, long)]
    if short:
        raise ValueError(f"coefficients have {short[0]} rows and {long} rows: give one number, or one for each row")
    table = list(zip(*(column.expand(long).tolist() for column in columns), strict=True)) or [()]
    session = Session(model, list(coefficients), table, positions, op)
    state = runtime(model)
    check_paths(model)
    tracker = _Tracker(session, prompt_length)
    with state.lock, session.attached("bridge"), Hooks() as hooks:
        hooks.put(lambda: model.original_model.register_forward_pre_hook(tracker, with_kwargs=True))
        outer = state.steered
        state.steered = ", ".join(v.name for v in coefficients) or outer
        try:
            yield session.receipt
        finally:
            state.steered = outer


class _Tracker:
    """Tells a session where each forward pass of a bridge stands in the whole sequence."""

    def __init__(self, session: Session, prompt_length: int | None) -> None:
        self.session, self.prompt_length = session, prompt_length
        self.before: Tensor | None = None
        self.prompt: int | Tensor | None = prompt_length

    def __call__(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = kwargs.get("input_ids", args[0] if args else None)
        if tokens is None:
            tokens = kwargs["inputs_embeds"][..., 0]
        cache = kwargs.get("past_key_values")
        if any(kwargs.get(name) is not None for name in ("cache_params", "state")) and self.session.positions != "all":
            raise ValueError(
                f"positions={self.session.positions!r}: the states of this architecture do not say how many tokens "
                "came before; use positions='all' or kit.generate"
            )
        past = int(cache.get_seq_length()) if cache is not None else 0
        width = past + tokens.shape[1]
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.dim() == 2 and not bool(mask.all()):
            real = mask[:, :width].bool()
            index = torch.where(real, real.long().cumsum(-1) - 1, -1)
            lengths: int | Tensor = real.sum(-1, keepdim=True)
        else:
            if mask is None and past == 0:
                self._refuse_hidden_padding(tokens)
            index, lengths = torch.arange(width, device=tokens.device), width
        seen: int | Tensor = 0
        if past == 0 and self._continues(tokens):
            seen = lengths - 1
        elif past == 0 or self.prompt is None:
            self.prompt = lengths if self.prompt_length is None else self.prompt_length
        assert self.prompt is not None  # the first pass says where it ends
        # only a pass without a cache can be passed again, one token longer
        self.before = tokens if cache is None else None
        self.session.begin(index[..., past:], self.prompt, seen=seen)

    def _refuse_hidden_padding(self, tokens: Tensor) -> None:
        """TransformerLens pads lists of strings on the right and then passes no mask."""
        pad = getattr(self.session.model.tokenizer, "pad_token_id", None)
        if len(tokens) < 2 or pad is None or self.session.positions in ("all", "prompt"):
            return
        ends = tokens[:, -1] == pad
        if bool(ends.any()) and not bool(ends.all()):
            raise ValueError(
                f"positions={self.session.positions!r}: some rows end in padding and no "
                "attention_mask says where; pass one, or padding_side='left', or tokens row by row"
            )

    def _continues(self, tokens: Tensor) -> bool:
        """Whether an uncached decode step passes the last sequence again, one token longer."""
        last = self.before
        if last is None or last.shape != (tokens.shape[0], tokens.shape[1] - 1):
            return False
        return bool(torch.equal(last, tokens[:, :-1]))
