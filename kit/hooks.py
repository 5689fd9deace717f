"""The one intervention path.

An *intervention* is anything with ``name``, ``fingerprint`` and ``parts(model)``; a steering vector
has one :class:`Part`, a set of attention heads has several. Everything that steers (the ``with``
block here, the decode loop, the panel) goes through one :class:`Session`, which knows where in the
whole sequence it stands, changes the activation, and writes down what it did.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor

from kit.models import check_layer, fingerprint, runtime
from kit.positions import Positions, check_positions, select
from kit.receipts import Entry, Receipt

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Op = Literal["add", "ablate", "clamp"]
_OPS = ("add", "ablate", "clamp")


@dataclass(frozen=True, eq=False)
class Part:
    """A unit direction at one place: ``"resid"`` (a block's output) or ``"z"`` (heads, flat).

    ``scale`` turns a coefficient into activation units: coefficient 1 adds a step this long.
    """

    layer: int
    site: Literal["resid", "z"]
    direction: Tensor
    scale: float

    def change(self, activation: Tensor, coefficient: Tensor, op: Op) -> Tensor:
        """What to add to an activation ``[rows, pos, width]``; coefficient ``[rows, 1, 1]``."""
        d = self.direction.to(activation)
        if op == "add":
            return coefficient * self.scale * d
        along = (activation @ d).unsqueeze(-1)
        if op == "ablate":
            return -coefficient * along * d
        return (coefficient * self.scale - along) * d


class Intervention(Protocol):
    """What the panel and the decode loop know of a thing that steers."""

    name: str
    fingerprint: str | None

    def parts(self, model: TransformerBridge) -> Sequence[Part]:
        """Where it acts on this model, in activation units; raises ValueError if it cannot."""


@dataclass
class _Edit:
    part: Part
    rows: Tensor
    entry: Entry
    counts: bool  # an intervention of several parts is counted at its first


class Session:
    """Interventions on a batch of rows: attach it, tell it where it stands, run the model."""

    def __init__(
        self,
        model: TransformerBridge,
        coefficients: Mapping[Intervention, Tensor],
        positions: Positions,
        op: Op,
    ) -> None:
        """Validate everything before anything runs.

        Args:
            coefficients: for each intervention a float tensor ``[rows]`` (or ``[1]`` for all
                rows); NaN switches a row off.

        Raises:
            ValueError: unknown ``positions`` or ``op``, an infinite coefficient, or an
                intervention that does not fit the model.
        """
        check_positions(positions)
        if op not in _OPS:
            raise ValueError(f"op={op!r}: use {', '.join(map(repr, _OPS))}")
        self.model, self.positions, self.op = model, positions, op
        self.receipt = Receipt()
        self._edits: list[_Edit] = []
        for intervention, rows in coefficients.items():
            if rows.isinf().any():
                raise ValueError(f"coefficient={rows.tolist()} of {intervention.name!r}: infinite")
            parts = _parts(model, intervention)
            n = len(rows)
            entry = Entry(intervention.name, sorted({p.layer for p in parts}), op, [0] * n,
                          [0] * n, [[] for _ in range(n)])
            self.receipt.entries.append(entry)
            self._edits += [_Edit(p, rows, entry, i == 0) for i, p in enumerate(parts)]

    @property
    def untouched_blocks(self) -> int:
        """How many blocks, from the first on, compute the same in every row."""
        blocks = (e.part.layer + (e.part.site == "resid") for e in self._edits)
        return min(blocks, default=self.model.cfg.n_layers)

    def begin(
        self,
        index: Tensor,
        prompt: int | Tensor,
        rows: Sequence[int] | None = None,
        seen: int | Tensor = 0,
    ) -> None:
        """Say what the next forward pass computes.

        Args:
            index: its absolute positions, ``[pos]`` or ``[rows, pos]``; -1 is padding.
            prompt: where the prompt ends, a number or ``[rows, 1]``.
            rows: which rows it computes, when not all of them.
            seen: positions before this one (``[rows, 1]``: one a row) were counted by an earlier
                pass.
        """
        self._rows = rows
        self._mask = select(self._positions_of(rows), index, prompt)
        self._in_prompt = index < prompt
        self._fresh = index >= seen
        first = self._fresh.reshape(-1, index.shape[-1])[0]
        inside = self._in_prompt.reshape(-1, index.shape[-1])[0]
        self.receipt.prompt_positions += int((first & inside).sum())
        self.receipt.decode_steps += int((first & ~inside).sum())

    def _positions_of(self, rows: Sequence[int] | None) -> Positions:
        """The positions; a mask that tells rows apart is cut to those of this pass."""
        mask = self.positions
        if rows is None or not isinstance(mask, Tensor) or mask.dim() == 1 or len(mask) == 1:
            return mask
        return mask[list(rows)]

    def steer(self, edit: _Edit, activation: Tensor) -> Tensor:
        """The only place where an intervention changes an activation."""
        shape = activation.shape
        h = activation.flatten(2)  # the bridge shows heads as [rows, pos, head, d_head]
        rows = edit.rows if self._rows is None else edit.rows[self._rows]
        if len(rows) not in (1, len(h)):
            raise ValueError(
                f"coefficient has {len(rows)} rows, the batch has {len(h)}: give one number, or "
                "one for each row"
            )
        c = rows.to(h.device, h.dtype)[:, None, None]
        if self._mask.dim() == 2 and len(self._mask) not in (1, len(h)):
            raise ValueError(
                f"positions is a mask of {len(self._mask)} rows for a batch of {len(h)}"
            )
        mask = self._mask.to(h.device).expand(len(h), h.shape[1])[..., None] & ~c.isnan()
        change = torch.where(mask, edit.part.change(h, c.nan_to_num(), self.op), 0)
        self._count(edit, mask[..., 0], change.detach(), h.detach())
        return (h + change).reshape(shape)

    def _count(self, edit: _Edit, mask: Tensor, change: Tensor, before: Tensor) -> None:
        entry = edit.entry
        sizes = change.norm(dim=-1) / before.norm(dim=-1).clamp(min=1e-9)
        in_prompt = self._in_prompt.to(mask.device).expand(mask.shape)
        mask = mask & self._fresh.to(mask.device)
        rows = range(len(mask)) if self._rows is None else self._rows
        for _ in range(len(entry.ratios), max(rows) + 1):  # one coefficient for a whole batch
            entry.prompt_steered.append(0)
            entry.decode_steered.append(0)
            entry.ratios.append([])
        for at, i in enumerate(rows):
            entry.ratios[i] += sizes[at][mask[at]].tolist()
            if edit.counts:
                entry.prompt_steered[i] += int((mask[at] & in_prompt[at]).sum())
                entry.decode_steered[i] += int((mask[at] & ~in_prompt[at]).sum())

    @contextmanager
    def attached(self, to: Literal["decoder", "bridge"]) -> Iterator[None]:
        """Hooks on for the duration of the block, and off whatever happens in it."""
        attach = _on_bridge if to == "bridge" else _on_decoder
        with ExitStack() as stack:
            for edit in self._edits:
                stack.callback(attach(self.model, edit.part, partial(self.steer, edit)))
            yield


def _parts(model: TransformerBridge, intervention: Intervention) -> Sequence[Part]:
    name, mark = intervention.name, intervention.fingerprint
    if mark is not None and mark != fingerprint(model):
        raise ValueError(
            f"vector {name!r} was made on model {mark}, this one is {fingerprint(model)}; fit it "
            "again here, or drop the check with dataclasses.replace(vector, fingerprint=None)"
        )
    parts = intervention.parts(model)
    cfg = model.cfg
    widths = {"resid": cfg.d_model, "z": cfg.n_heads * cfg.d_head}
    for part in parts:
        check_layer(model, part.layer)
        if part.site not in widths:
            raise ValueError(f"site={part.site!r} of {name!r}: use {', '.join(map(repr, widths))}")
        if part.direction.numel() != widths[part.site]:
            raise ValueError(
                f"vector {name!r} has width {part.direction.numel()}; this model has "
                f"{widths[part.site]} at {part.site!r}"
            )
    return parts


def output_of(out: Any) -> Tensor:
    """The hidden states of a block's output, which some architectures wrap in a tuple."""
    return out[0] if isinstance(out, tuple) else out


def _on_decoder(
    model: TransformerBridge, part: Part, change: Callable[[Tensor], Tensor]
) -> Callable[[], None]:
    state = runtime(model)
    if part.site == "z":
        mixer = state.head_mixer(part.layer)
        handle = mixer.register_forward_pre_hook(lambda _m, args: (change(args[0]), *args[1:]))
        return handle.remove

    def after(_module: Any, _args: Any, out: Any) -> Any:
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    return state.block(part.layer).register_forward_hook(after).remove


_HOOK_NAMES = {"resid": "blocks.{}.hook_out", "z": "blocks.{}.attn.hook_z"}


def _on_bridge(
    model: TransformerBridge, part: Part, change: Callable[[Tensor], Tensor]
) -> Callable[[], None]:
    point = hook_points(model)[_HOOK_NAMES[part.site].format(part.layer)]
    # permanent: reset_hooks() in the middle of a with block must not unsteer it silently
    point.add_hook(lambda tensor, hook: change(tensor), is_permanent=True)
    mine = point.fwd_hooks[-1]

    def remove() -> None:
        mine.hook.remove()
        if mine in point.fwd_hooks:
            point.fwd_hooks.remove(mine)

    return remove


def hook_points(model: TransformerBridge) -> dict[str, Any]:
    """The bridge's hook points by name; kept, since ``hook_dict`` walks the model at each use."""
    cache = runtime(model).cache
    if "hook points" not in cache:
        cache["hook points"] = dict(model.hook_dict)
    return cache["hook points"]


def hooks_left(model: TransformerBridge) -> list[str]:
    """Names of the bridge's hook points that carry a hook, and of hooked decoder blocks."""
    state = runtime(model)
    points = hook_points(model).items()
    names = {point.name or name for name, point in points if point.has_hooks()}
    if state.shares_weights:
        names |= {
            f"decoder:{name}"
            for name, module in state.decoder.named_modules()
            if module._forward_hooks or module._forward_pre_hooks
        }
    return sorted(names)


def assert_clean(model: TransformerBridge) -> None:
    """Raise an AssertionError that names them if any hook is left on the model."""
    left = hooks_left(model)
    assert not left, f"hooks left on the model: {', '.join(left)}"


def as_rows(coefficient: float | Sequence[float] | Tensor) -> Tensor:
    """A coefficient as a float32 tensor ``[rows]``.

    Raises:
        ValueError: not a number or a flat sequence of numbers, or NaN.
    """
    try:
        rows = torch.as_tensor(coefficient, dtype=torch.float32).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"coefficient={coefficient!r}: give a number, or one for each row"
                         ) from error
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
        positions: see :func:`kit.positions.select`. The prompt is the first sequence that is run;
            one token more without a cache, or a pass with one, continues it; all else starts anew.
        op: ``"add"`` c * v; ``"ablate"`` c times the component along v (1 removes it);
            ``"clamp"`` sets the component along v to c.
        prompt_length: where the prompt ends, if not at the end of the first sequence that is run.

    Yields:
        The :class:`Receipt`, which fills while the block runs.

    Raises:
        ValueError: before anything runs, for a vector, coefficient, position or op that does not
            fit this model.

    Holds the model's lock, so a panel's worker waits until the block ends.
    """
    rows = {v: as_rows(c) for v, c in coefficients.items()}
    session = Session(model, rows, positions, op)
    state = runtime(model)
    tracker = _Tracker(session, prompt_length)
    with state.lock, session.attached("bridge"):
        handle = model.original_model.register_forward_pre_hook(tracker, with_kwargs=True)
        try:
            yield session.receipt
        finally:
            handle.remove()


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
