"""A stretch of a model as a function: what is added after one block -> what changes after another.

Everything that looks for vectors without labels (MELBO, Deep Causal Transcoding, CPE)
differentiates this one function, so it stands alone here: captured once, replayed block by block,
exact.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kit.base.checks import is_whole
from kit.base.divergence import kl
from kit.base.threads import fitted
from kit.models.activations import capture, residual_scale
from kit.models.bridge import check_layer, fingerprint, runtime
from kit.models.hook_points import Hooks, output_of
from kit.models.positions import Positions, check_positions, select
from kit.models.tokens import Text, text_rows
from kit.search.maps import Map

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Prompts = Text | Sequence[Text]
Objective = Callable[[Tensor, Tensor], Tensor]
_TOKENS = 320  # a pass: enough for matrices at full speed, little enough to stay in the caches


class LayerSlice(Map):
    """Blocks ``source + 1`` to ``target`` of a model, run on a given residual stream.

    ``theta`` is added to the residual stream after block ``source`` (``blocks.{source}.hook_out``,
    where a :class:`kit.SteeringVector` of that layer acts) and the residual stream is read after
    block ``target``. Thetas and changes are in activation units.

    Attributes:
        source, target: block indices.
        tokens: LongTensor ``[prompts, pos]``, padded on the right; ``lengths`` of each prompt.
        weights: float ``[prompts, pos]``, the share of each position in the mean that
            :meth:`delta` takes; 0 where nothing is read. They add up to 1.
        before, after: the unsteered residual stream after the two blocks, ``[prompts, pos, d]``.

    Raises:
        ValueError: ``source`` is not below ``target``, a layer that the model lacks, no prompts, a
            prompt shorter than the read-out window, or a model whose activations are not finite.

    Exact: the replay gives the numbers of the full model, whatever masks and rotary embeddings its
    architecture hands to its blocks. Right padding needs no mask in a causal model.
    """

    def __init__(
        self,
        model: TransformerBridge,
        prompts: Prompts,
        source: int,
        target: int,
        *,
        read: Positions = slice(-3, None),
        positions: Positions = "all",
    ) -> None:
        """Run the prompts once and keep what the blocks need.

        Args:
            prompts: one or several; each a user message (put into the chat template where there is
                one) or tokens ``[n]``, ``[1, n]``; a tensor ``[prompts, n]`` is several.
            read: the positions over which the change is averaged, see
                :func:`kit.models.positions.select`.
            positions: where theta is added, in the same language.
        """
        for layer in (source, target):
            check_layer(model, layer)
        if source >= target:
            raise ValueError(f"source={source}, target={target}: the source layer must lie below the target")
        _check_language(read=read, positions=positions)
        self.model, self.source, self.target = model, source, target
        self._state = runtime(model)
        self.lock = self._state.lock
        rows = text_rows(model, prompts, "prompts", prompts=True)
        self.lengths = torch.tensor([len(r) for r in rows], device=rows[0].device)
        self.tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        index = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        real = index < self.lengths[:, None]
        index = torch.where(real, index, -1)
        chosen = select(read, index, self.lengths[:, None])
        self._check_window(read, chosen)
        self._capture()
        # of a model on several devices, each block's stream is where that block is
        self.weights = (chosen / chosen.sum(-1, keepdim=True) / len(rows)).to(self.after.device)
        steered = select(positions, index, self.lengths[:, None])
        everywhere = bool((steered | ~real).all())
        self._steered = None if everywhere else steered[..., None].to(self.before.device)
        self.d_model = self.before.shape[-1]
        self.origin = torch.zeros_like(self.before[0, 0], dtype=torch.float32)
        self.step = max(1, _TOKENS // self.tokens.numel())

    @property
    def unit(self) -> float:  # type: ignore[override]
        """The residual scale at the source layer."""
        return residual_scale(self.model, self.source)

    @property
    def n_prompts(self) -> int:
        """Number of prompts."""
        return len(self.tokens)

    def _check_window(self, read: Positions, chosen: Tensor) -> None:
        first = read.start if isinstance(read, slice) else read
        needs = -first if is_whole(first) and first < 0 else 1
        for i, (n, row) in enumerate(zip(self.lengths.tolist(), chosen, strict=True)):
            if n < needs or not bool(row.any()):
                raise ValueError(
                    f"read={read!r}: prompt {i} has {n} tokens, shorter than the read-out window; "
                    "give a longer prompt or read fewer positions"
                )

    @torch.no_grad()
    def _capture(self) -> None:
        """Keep the stream at both ends, and what the blocks between them are given beside it."""
        ends = (self.source, "resid"), (self.target, "resid")
        kept = capture(self.model, self.tokens, ends)
        self.before, self.after = kept[ends[0]], kept[ends[1]]
        for layer, stream in ((self.source, self.before), (self.target, self.after)):
            if not bool(stream.isfinite().all()):
                raise ValueError(
                    f"the residual stream after block {layer} holds NaN or infinity on these "
                    "prompts: the model itself is broken, or its dtype overflows"
                )
        self._blocks = [self._state.block(i) for i in range(self.source + 1, self.target + 1)]
        self._given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def keep(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            beside = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            self._given.append((args[1:], beside))

        widest = int(self.lengths.argmax())
        with self.lock, Hooks() as hooks:
            for block in self._blocks:
                hooks.put(partial(block.register_forward_pre_hook, keep, with_kwargs=True))
            # one row alone: what it hands to the blocks then fits a batch of any size
            self._state.clean(input_ids=self.tokens[widest : widest + 1], use_cache=False, logits_to_keep=1)

    def part(self, prompts: slice) -> LayerSlice:
        """The same slice on some of its prompts, with their shares of the mean: what parts answer
        adds up to what the whole does."""
        some = copy.copy(self)
        some.tokens, some.lengths, some.weights = self.tokens[prompts], self.lengths[prompts], self.weights[prompts]
        some.before, some.after = self.before[prompts], self.after[prompts]
        if self._steered is not None:
            some._steered = self._steered[prompts]
        some.step = max(1, _TOKENS // some.tokens.numel())
        return some

    def settings(self) -> dict[str, Any]:
        """What makes this slice the slice that it is, for :func:`kit.base.shards.digest`."""
        return {
            "model": (fingerprint(self.model), str(self.before.dtype)),
            "layers": (self.source, self.target),
            "tokens": self.tokens,
            "lengths": self.lengths,
            "read": self.weights > 0,
            "steered": self._steered,
        }

    def replay(self, stream: Tensor) -> Tensor:
        """The residual stream after ``target`` from the one after ``source``.

        Args:
            stream: ``[rows, pos, d_model]``, ``pos`` as wide as ``tokens``.
        """
        for block, (args, kwargs) in zip(self._blocks, self._given, strict=True):
            stream = output_of(block(stream, *args, **kwargs))
        return stream

    def shift(self, thetas: Tensor) -> Tensor:
        """What thetas ``[k, d_model]`` change: float32 ``[k, prompts, pos, d_model]``, where
        ``after`` is, differentiable.

        One pass over k times as many rows as there are prompts: keep k small, or use
        :meth:`delta`, :meth:`vjp` and :meth:`gradient`, which cut and hold the model's lock.
        """
        add = thetas[:, None, None, :].to(self.before)  # [k, 1, 1, d]
        if self._steered is not None:
            add = torch.where(self._steered, add, 0)  # [k, prompts, pos, d]
        rows = (self.before + add).flatten(0, 1)  # [k * prompts, pos, d]: all prompts of the first theta, then ...
        shifted = self.replay(rows).unflatten(0, (len(thetas), -1))  # [k, prompts, pos, d]
        return shifted.float() - self.after.float()

    def mean(self, shift: Tensor) -> Tensor:
        """The mean over read-out positions, then prompts: ``[..., prompts, pos, d]`` to
        ``[..., d]``."""
        return torch.einsum("...npd,np->...d", shift, self.weights)  # n prompts, p positions

    def change(self, thetas: Tensor) -> Tensor:
        """Mean change at the target for each row of ``thetas`` ``[n, d]``: ``[n, d]``."""
        return self.mean(self.shift(thetas)).to(self.origin.device)

    def gradient(self, thetas: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
        """Scores ``[k]`` of thetas ``[k, d_model]``, and their gradients ``[k, d_model]``.

        Args:
            objective: from ``shift(thetas[some])`` and the mask ``[prompts, pos]`` of what is
                read to a score for each of them, each of which depends on its own row alone.
        """
        scores, grads = [], []
        for at in self.cuts(thetas):
            leaf = thetas[at].detach().requires_grad_()
            with self.lock, fitted(2), torch.enable_grad():
                score = objective(self.shift(leaf), self.weights > 0)
                grads.append(torch.autograd.grad(score.sum(), leaf)[0])
            scores.append(score.detach().to(thetas.device))
        return torch.cat(scores), torch.cat(grads)

    @torch.no_grad()
    def logits(self, thetas: Tensor | None) -> Tensor:
        """Logits after each prompt's last token, ``[k, prompts, d_vocab]``, by the whole model.

        Args:
            thetas: ``[k, d_model]``; None is the unsteered model (k = 1).
        """
        thetas = self.origin[None] if thetas is None else thetas
        each = range(self.n_prompts)
        return torch.cat([torch.stack([self._logits(i, thetas[at]) for i in each], dim=1) for at in self.cuts(thetas)])

    def _logits(self, prompt: int, add: Tensor) -> Tensor:
        n = int(self.lengths[prompt])
        where = None if self._steered is None else self._steered[prompt, :n, 0]
        tokens = self.tokens[prompt : prompt + 1, :n]
        return steered_logits(self.model, tokens, self.source, add, where)[:, -1]

    def kl(self, thetas: Tensor) -> Tensor:
        """KL(steered || unsteered) of the token after each prompt, nats, mean over prompts: ``[k]``
        for thetas ``[k, d_model]``."""
        plain = self.logits(None).log_softmax(-1)  # [1, prompts, d_vocab]
        return torch.cat([kl(self.logits(thetas[at]).log_softmax(-1), plain).mean(-1) for at in self.cuts(thetas)])


def _check_language(**given: Positions) -> None:
    for name, value in given.items():
        try:
            check_positions(value)
        except ValueError as error:
            raise ValueError(str(error).replace("positions", name, 1)) from None


def steered_logits(
    model: TransformerBridge, tokens: Tensor, layer: int, thetas: Tensor, where: Tensor | None = None, keep: int = 1
) -> Tensor:
    """Logits of the whole model with thetas added after one block, differentiable in them.

    Args:
        tokens: one sequence ``[1, n]``; blocks up to ``layer`` run for it once.
        thetas: ``[k, d_model]``, a row each.
        where: boolean ``[n]``, the positions that are steered; default all.
        keep: how many positions, from the end.

    Returns:
        float32 ``[k, keep, d_vocab]``.
    """
    state = runtime(model)

    def fork(_module: Any, _args: Any, out: Any) -> Any:
        stream = output_of(out)  # [1, n, d]
        mask = 1.0 if where is None else where.to(stream)[:, None]  # [n, 1]
        steered = stream + thetas[:, None].to(stream) * mask  # [k, n, d]: from here on a row for each theta
        return (steered, *out[1:]) if isinstance(out, tuple) else steered

    with state.lock, fitted(tokens.numel()), Hooks() as hooks:
        hooks.put(lambda: state.block(layer).register_forward_hook(fork))
        return state.clean(input_ids=tokens, use_cache=False, logits_to_keep=keep).logits.float()


class Differential(Map):
    """What :mod:`kit.search.melbo` and :mod:`kit.search.dct` climb where one set of prompts answers
    and another does not.

    With something to confess in the loud prompts and nothing in the quiet ones this is the
    "truth serum" that a comment under Mack and Turner's post on DCT (2024) proposes: vectors that
    change what the model does when it has something to hide, and little otherwise.

    * MELBO then maximises ``score(loud) - weight * score(quiet)``;
    * exponential DCT iterates on the gradient of
      ``|delta_loud(R v)| - weight * |delta_quiet(R v)|`` (its output directions, ranking and
      changes are those of the loud prompts);
    * the linear and quadratic methods do not apply: Jacobians of the two sets do not add up.

    Attributes:
        loud, quiet, weight: as given; the map's values, and all but its gradients, are the loud
            slice's.

    Raises:
        ValueError: the slices differ in model or layers, or a weight that is no number from 0 on.
    """

    def __init__(self, loud: LayerSlice, quiet: LayerSlice, weight: float = 1.0) -> None:
        """Args: ``weight``, how much a change on the quiet prompts counts against one on the loud
        ones; 0 is the loud slice alone."""
        if loud.model is not quiet.model or (loud.source, loud.target) != (quiet.source, quiet.target):
            raise ValueError(
                f"loud covers layers {loud.source} to {loud.target}, quiet {quiet.source} to "
                f"{quiet.target}: both must be slices of one model between the same layers"
            )
        if not 0 <= weight < math.inf:
            raise ValueError(f"weight={weight!r}: give a number from 0 on")
        super().__init__(loud.change, loud.d_model, step=loud.step)
        self.loud, self.quiet, self.weight = loud, quiet, weight
        self.source, self.origin, self.lock = loud.source, loud.origin, loud.lock

    @property
    def unit(self) -> float:  # type: ignore[override]
        """The residual scale at the source layer."""
        return self.loud.unit

    def gradient(self, thetas: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
        """``objective`` on the loud prompts less ``weight`` times that on the quiet ones."""
        loud, up = self.loud.gradient(thetas, objective)
        quiet, down = self.quiet.gradient(thetas, objective)
        return loud - self.weight * quiet, up - self.weight * down

    def vjp(self, thetas: Tensor, outputs: Tensor | None) -> tuple[Tensor, Tensor]:
        """Changes on the loud prompts, and the gradient of ``<outputs, delta_loud> - weight *
        |delta_quiet|``."""
        changes, up = self.loud.vjp(thetas, outputs)
        down = self.quiet.gradient(thetas, lambda shift, _read: self.quiet.mean(shift).norm(dim=-1))
        return changes, up - self.weight * down[1]

    def settings(self) -> dict[str, Any]:
        """What makes this map the map that it is, as of a slice."""
        return {"loud": self.loud.settings(), "quiet": self.quiet.settings(), "weight": self.weight}

    def selectivity(self, thetas: Tensor) -> Tensor:
        """``|delta_loud| / |delta_quiet|`` of thetas ``[k, d_model]``: ``[k]``."""
        loud, quiet = (s.delta(thetas).norm(dim=-1) for s in (self.loud, self.quiet))
        return loud / quiet.clamp(min=1e-9)


def slice_behind(piece: Map) -> LayerSlice:
    """The model's blocks that a map was made of; of a :class:`Differential` those of the loud
    prompts.

    Raises:
        ValueError: another map.
    """
    found = piece.loud if isinstance(piece, Differential) else piece
    if not isinstance(found, LayerSlice):
        raise ValueError(
            f"piece is a {type(piece).__name__}: only the directions of a LayerSlice have a model to steer"
        )
    return found
