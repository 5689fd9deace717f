"""The one intervention path.

An *intervention* is anything with ``name``, ``fingerprint`` and ``parts(model)``; a steering vector
has one :class:`Part`, a set of attention heads has several. Everything that steers (the ``with``
block here, the decode loop, the panel) goes through one :class:`Session`, which knows where in the
whole sequence it stands, changes the activation, and writes down what it did.

Coefficients are a *table*: for each row None (unsteered), or for each intervention a number or None
(off, which a number 0 is not when clamping).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from kit.models.bridge import check_layer, fingerprint, runtime
from kit.models.hook_points import Hooks, at_bridge, at_decoder
from kit.models.positions import Positions, check_positions, select
from kit.steering.results import Entry, Receipt

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Op = Literal["add", "ablate", "clamp"]
OPS = ("add", "ablate", "clamp")
PartSite = Literal["resid", "z", "attn_out", "mlp_out"]
Rung = tuple[float | None, ...] | None
Table = Sequence[Rung]


@dataclass(frozen=True, eq=False)
class Part:
    """A unit direction at one place.

    Attributes:
        site: ``"resid"``, ``"z"``, ``"attn_out"`` or ``"mlp_out"``; see :mod:`kit.models.sites`.
        scale: turns a coefficient into activation units: coefficient 1 adds a step this long.
        read: at the last two, ``[n_heads * d_head]`` or ``[d_mlp]``: the step is as long as what
            the matrix gets reaches along it, which makes the part a rank-1 change of that matrix.
    """

    layer: int
    site: PartSite
    direction: Tensor
    scale: float
    read: Tensor | None = None

    def change(self, activation: Tensor, coefficient: Tensor, op: Op, given: Tensor | None = None) -> Tensor:
        """What to add to an activation ``[rows, pos, width]``, float32; coefficient
        ``[rows, 1, 1]``, float32."""
        # half precision keeps three digits of a product, and float16 ends at 65504
        d = self.direction.to(activation.device, torch.float32)
        if self.read is not None and given is not None:
            reach = given.float() @ self.read.to(given.device, torch.float32)
            return coefficient * self.scale * reach.unsqueeze(-1) * d
        if op == "add":
            return coefficient * self.scale * d
        along = (activation.float() @ d).unsqueeze(-1)
        if op == "ablate":
            return -coefficient * along * d
        return (coefficient * self.scale - along) * d


class Intervention(Protocol):
    """What the panel and the decode loop know of a thing that steers."""

    @property
    def name(self) -> str:
        """What panels and receipts call it."""

    @property
    def fingerprint(self) -> str | None:
        """Of the model it belongs to; None for any that it fits."""

    def parts(self, model: TransformerBridge) -> Sequence[Part]:
        """Where it acts on this model, in activation units; raises ValueError if it cannot."""


@dataclass
class _Edit:
    part: Part
    column: int  # of the table
    entry: Entry
    counts: bool  # an intervention of several parts is counted at its first


class Session:
    """Interventions on a batch of rows: attach it, tell it where it stands, run the model."""

    def __init__(
        self,
        model: TransformerBridge,
        interventions: Sequence[Intervention],
        table: Table,
        positions: Positions,
        op: Op,
    ) -> None:
        """Validate everything before anything runs.

        Args:
            table: a row of coefficients for each row of the batch, or one for all of them.

        Raises:
            ValueError: unknown ``positions`` or ``op``, an infinite coefficient, or an
                intervention that does not fit the model.
        """
        check_positions(positions)
        _check_op(op)
        self.model, self.positions, self.op = model, positions, op
        self.receipt = Receipt()
        self._edits: list[_Edit] = []
        numbers = [row or (None,) * len(interventions) for row in table]
        # [rows, interventions]: which are on, and their coefficients, 0 where they are off
        self._on = torch.tensor([[c is not None for c in row] for row in numbers])
        self._coefficients = torch.tensor([[c or 0.0 for c in row] for row in numbers])
        for column, intervention in enumerate(interventions):
            parts = check_fits(model, intervention, op)
            if self._coefficients[:, column].isinf().any():
                given = [row[column] for row in numbers]
                raise ValueError(f"coefficient={given} of {intervention.name!r}: infinite")
            n = len(table)
            layers = sorted({p.layer for p in parts})
            entry = Entry(intervention.name, layers, op, [0] * n, [0] * n, [[] for _ in range(n)])
            self.receipt.entries.append(entry)
            self._edits += [_Edit(p, column, entry, i == 0) for i, p in enumerate(parts)]

    @property
    def untouched_blocks(self) -> int:
        """How many blocks, from the first on, compute the same in every row."""
        blocks = (e.part.layer + (e.part.site == "resid") for e in self._edits)
        return min(blocks, default=self.model.cfg.n_layers)

    def begin(
        self, index: Tensor, prompt: int | Tensor, rows: Sequence[int] | None = None, seen: int | Tensor = 0
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

    def steer(self, edits: list[_Edit], activation: Tensor, given: Tensor | None = None) -> Tensor:
        """The only place where an activation changes; ``given`` is what it was made from."""
        h = activation.flatten(2)  # the bridge shows heads as [rows, pos, head, d_head]
        if self._mask.dim() == 2 and len(self._mask) not in (1, len(h)):
            raise ValueError(f"positions is a mask of {len(self._mask)} rows for a batch of {len(h)}")
        mask = self._mask.to(h.device).expand(len(h), h.shape[1])  # [rows, pos]
        columns = [edit.column for edit in edits]
        on = self._of_pass(self._on, len(h))[:, columns].to(h.device)  # [rows, edits]
        c = self._of_pass(self._coefficients, len(h))[:, columns].to(h.device)
        if self.op == "add" and all(edit.part.read is None for edit in edits):
            return self._added(edits, h, mask, on, c).reshape(activation.shape)
        given = None if given is None else given.flatten(2)
        return self._changed(edits, h, mask, on, c, given).reshape(activation.shape)

    def _added(self, edits: list[_Edit], h: Tensor, mask: Tensor, on: Tensor, c: Tensor) -> Tensor:
        """Many vectors added at one place, a gallery's 64 say, are one matrix product."""
        steps = c * c.new_tensor([edit.part.scale for edit in edits])  # [rows, edits]
        directions = torch.stack([edit.part.direction for edit in edits]).to(steps)  # [edits, width]
        change = (steps @ directions).to(h.dtype)[:, None] * mask[..., None]  # [rows, pos, width]
        size = _sizes(h)  # [rows, pos]
        for i, edit in enumerate(edits):
            self._count(edit, on[:, i], mask, steps[:, i].abs()[:, None] / size)
        return h + change

    def _changed(
        self, edits: list[_Edit], h: Tensor, mask: Tensor, on: Tensor, c: Tensor, given: Tensor | None
    ) -> Tensor:
        """One after the other: what one takes away the next does not find."""
        for i, edit in enumerate(edits):
            steered = (mask & on[:, i, None])[..., None]  # [rows, pos, 1]
            change = edit.part.change(h, c[:, i, None, None], self.op, given).float()  # [rows, pos, width]
            change = torch.where(steered, change, 0)
            self._count(edit, on[:, i], mask, change.detach().norm(dim=-1) / _sizes(h))
            h = h + change.to(h.dtype)
        return h

    def _of_pass(self, table: Tensor, n: int) -> Tensor:
        """The rows ``[n, interventions]`` of a table that this pass computes."""
        rows = table if self._rows is None else table[self._rows]
        if len(rows) not in (1, n):
            raise ValueError(
                f"coefficient has {len(rows)} rows, the batch has {n}: give one number, or one for each row"
            )
        return rows.expand(n, -1)

    def _count(self, edit: _Edit, on: Tensor, mask: Tensor, sizes: Tensor) -> None:
        """Write down what was done: rows ``[rows]`` that are on, positions, |change| / |h|."""
        entry = edit.entry
        in_prompt = self._in_prompt.to(mask.device).expand(mask.shape)
        mask = mask & self._fresh.to(mask.device)
        rows = range(len(mask)) if self._rows is None else self._rows
        for _ in range(len(entry.ratios), max(rows) + 1):  # one coefficient for a whole batch
            entry.prompt_steered.append(0)
            entry.decode_steered.append(0)
            entry.ratios.append([])
        for at in on.nonzero()[:, 0].tolist():
            i = rows[at]
            entry.ratios[i] += sizes[at][mask[at]].tolist()
            if edit.counts:
                entry.prompt_steered[i] += int((mask[at] & in_prompt[at]).sum())
                entry.decode_steered[i] += int((mask[at] & ~in_prompt[at]).sum())

    @contextmanager
    def attached(self, to: Literal["decoder", "bridge"]) -> Iterator[None]:
        """Hooks on for the duration of the block, and off whatever happens in it."""
        attach = at_bridge if to == "bridge" else at_decoder
        places: dict[tuple[int, str, bool], list[_Edit]] = {}
        for edit in self._edits:
            part = edit.part
            places.setdefault((part.layer, part.site, part.read is not None), []).append(edit)
        with Hooks() as hooks:
            for (layer, site, matrix), edits in places.items():
                hooks.put(partial(attach, self.model, layer, site, partial(self.steer, edits), matrix=matrix))
            yield


def _sizes(h: Tensor) -> Tensor:
    """Norms ``[rows, pos]`` of activations, no coarser than float32: a float16 norm may be infinite
    or 0."""
    kind = torch.promote_types(h.dtype, torch.float32)
    return torch.linalg.vector_norm(h.detach(), dim=-1, dtype=kind).clamp(min=1e-9)


def _check_op(op: Op) -> None:
    if op not in OPS:
        raise ValueError(f"op={op!r}: use {', '.join(map(repr, OPS))}")


def check_fits(model: TransformerBridge, intervention: Intervention, op: Op = "add") -> Sequence[Part]:
    """The parts of an intervention on a model, if it fits.

    Raises:
        ValueError: an unknown ``op`` or one that it cannot do, another model's fingerprint, or a
            layer, site or width that this model lacks.
    """
    _check_op(op)
    name, mark = intervention.name, intervention.fingerprint
    if mark is not None and mark != fingerprint(model):
        raise ValueError(
            f"vector {name!r} was made on model {mark}, this one is {fingerprint(model)}; fit it "
            "again here, or drop the check with dataclasses.replace(vector, fingerprint=None)"
        )
    parts = intervention.parts(model)
    cfg = model.cfg
    heads = cfg.n_heads * cfg.d_head
    widths = {"resid": cfg.d_model, "z": heads, "attn_out": cfg.d_model, "mlp_out": cfg.d_model}
    inputs = {
        "attn_out": (heads, f"{heads} outputs of this model's heads"),
        "mlp_out": (cfg.d_mlp, f"{cfg.d_mlp} hidden units of its MLPs"),
    }
    for part in parts:
        check_layer(model, part.layer)
        if part.site not in widths:
            raise ValueError(f"site={part.site!r} of {name!r}: use {', '.join(map(repr, widths))}")
        if part.direction.numel() != widths[part.site]:
            raise ValueError(
                f"vector {name!r} has width {part.direction.numel()}; this model has "
                f"{widths[part.site]} at {part.site!r}"
            )
        n, what = inputs.get(part.site, (0, "numbers that a matrix gets, at 'attn_out' or 'mlp_out'"))
        if part.read is not None and part.read.numel() != n:
            raise ValueError(
                f"{name!r} reads {part.read.numel()} numbers at {part.site!r}; what is read must be the {what}"
            )
        if part.read is not None:
            runtime(model).projection_path(part.site)  # refuses an architecture without that matrix
            if op != "add":
                raise ValueError(f"op={op!r}: {name!r} changes a weight matrix; it can only be added")
    return parts
