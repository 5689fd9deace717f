"""A stretch of a model as a function of rank-1 changes to a band of attention outputs.

What Causal Perturbation Elicitation (:mod:`kit.search.cpe`) differentiates: in every layer l of the
band the matrix that mixes the heads becomes ``W_O + R b a^T``, so that the attention's output gains
``R (z . a) b`` where z are the heads' outputs; the change is read after a later block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kit.base.checks import check_counts, is_whole
from kit.base.directions import random_units, unit
from kit.base.divergence import kl
from kit.base.kernels import plain_kernels
from kit.base.threads import fitted
from kit.models.bridge import check_layer, runtime
from kit.models.hook_points import Hooks
from kit.models.positions import Positions
from kit.search.layer_slice import LayerSlice, Prompts
from kit.search.maps import passes
from kit.search.radius import Radius, radius_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_SMALL = 0.01  # a radius at which the change is linear


class RankOneMap:
    """Blocks ``layers[0]`` to ``target``, changed in the layers of the band.

    A factor is a row of blocks ``phi [2 * layers, width]``: first what each layer reads (a, the
    first ``heads`` numbers), then what each writes (b, the first ``d_model``); the rest of a block
    is zero and stays so, since nothing depends on it.

    Attributes:
        layers: the band, rising; target: where the change is read.
        piece: the :class:`kit.search.layer_slice.LayerSlice` that is replayed, from before
            ``layers[0]``.
        heads: ``n_heads * d_head``.

    Raises:
        ValueError: no layers or one twice, layer 0 (there is no block before it whose output could
            be kept), a target that is not above the band, and as
            :class:`kit.search.layer_slice.LayerSlice`.
    """

    def __init__(
        self,
        model: TransformerBridge,
        prompts: Prompts,
        source_layers: Sequence[int],
        target_layer: int,
        *,
        read: Positions = slice(-3, None),
    ) -> None:
        """Args: as for :func:`kit.search.cpe.fit`."""
        self.layers = _layers(model, source_layers, target_layer)
        self.model, self.target = model, target_layer
        self._state = runtime(model)
        self._mixers = [self._state.projection(layer, "attn_out") for layer in self.layers]
        self.piece = LayerSlice(model, prompts, self.layers[0] - 1, target_layer, read=read)
        self.heads, self.d_model = model.cfg.n_heads * model.cfg.d_head, self.piece.d_model
        self.width = max(self.heads, self.d_model)

    def random(self, m: int, seed: int = 0) -> Tensor:
        """Factors whose blocks are uniform on their spheres: ``[m, 2 * layers, width]``."""
        n = len(self.layers)
        rng = torch.Generator().manual_seed(seed)
        noise = torch.randn(m, 2 * n, self.width, generator=rng)
        noise[:, :n, self.heads :] = 0
        noise[:, n:, self.d_model :] = 0
        return unit(noise).to(self.piece.origin)

    def split(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        """What factors read ``[m, layers, heads]`` and write ``[m, layers, d_model]``."""
        n = len(self.layers)
        return phi[:, :n, : self.heads], phi[:, n:, : self.d_model]

    @contextmanager
    def _changed(self, phi: Tensor, radius: float | Tensor) -> Iterator[None]:
        """The model with its rows changed: as many for each factor, one factor after another."""
        reads, writes = self.split(phi)
        lengths = radius * torch.ones_like(phi[:, 0, 0])  # [k]
        writes = lengths[:, None, None] * writes  # [k, layers, d_model]
        with self._state.lock, Hooks() as hooks:
            for mixer, a, b in zip(self._mixers, reads.unbind(1), writes.unbind(1), strict=True):
                hooks.put(partial(mixer.register_forward_hook, _rank_one(a, b)))
            yield

    def change(self, phi: Tensor, radius: float | Tensor) -> Tensor:
        """The mean change after the target, ``[k, d_model]``, of k factors in one pass.

        Args:
            radius: a number, or ``[k]``: one for each.
        """
        before = self.piece.before  # [prompts, pos, d]
        stream = before.expand(len(phi), *before.shape).flatten(0, 1)  # [k * prompts, pos, d]
        with self._changed(phi, radius):
            after = self.piece.replay(stream).unflatten(0, (len(phi), -1))  # [k, prompts, pos, d]
        mean = self.piece.mean(after.float() - self.piece.after.float())
        return mean.to(self.piece.origin.device)

    @torch.no_grad()
    def delta(self, phi: Tensor, radius: float) -> Tensor:
        """The same for any number of factors ``[m, 2 * layers, width]``, without gradients."""
        return torch.cat([self.change(phi[at], radius) for at in passes(len(phi), self.piece.step)])

    def slope(self, phi: Tensor) -> Tensor:
        """The derivative of the change by the radius, at radius 0: ``[m, d_model]``."""
        values = []
        for at in passes(len(phi), self.piece.step):
            zeros = torch.zeros_like(phi[at][:, 0, 0])
            # gradients enabled: the fused linear of inference has no derivative
            with fitted(2), torch.enable_grad(), plain_kernels():
                values.append(torch.func.jvp(partial(self.change, phi[at]), (zeros,), (torch.ones_like(zeros),))[1])
        return torch.cat(values)

    def gradient(self, phi: Tensor, outputs: Tensor, radius: float) -> tuple[Tensor, Tensor]:
        """The changes ``[m, d_model]``, and the gradients of ``<outputs_j, change_j>``.

        Args:
            outputs: ``[m, d_model]``.

        Returns:
            Gradients of phi's shape: one forward and one backward pass over the rows.
        """
        values, grads = [], []
        for at in passes(len(phi), self.piece.step):
            leaf = phi[at].detach().requires_grad_()
            with fitted(2), torch.enable_grad():
                value = self.change(leaf, radius)
                grads.append(torch.autograd.grad(value, leaf, outputs[at])[0])
            values.append(value.detach())
        return torch.cat(values), torch.cat(grads)

    def linear_radius(self, ratio: float = 0.5, *, n_factors: int = 16, seed: int = 0) -> Radius:
        """The radius at which a factor's change stops being linear: see
        :func:`kit.search.cpe.linear_radius`."""
        check_counts(n_factors=n_factors)
        aims = random_units(n_factors, self.d_model, seed).to(self.piece.origin)
        phi = unit(self.gradient(self.random(n_factors, seed), aims, _SMALL)[1])
        return radius_of(lambda r: self.delta(phi, r), self.slope(phi), 1.0, ratio, (0.002, 128.0))

    @torch.no_grad()
    def logits(self, phi: Tensor, radius: float) -> Tensor:
        """Logits after each prompt's last token by the whole model, ``[m, prompts, d_vocab]``."""
        tokens, lengths = self.piece.tokens, self.piece.lengths.tolist()
        parts = []
        for at in passes(len(phi), self.piece.step):
            k, each = len(phi[at]), []
            for row, n in zip(tokens, lengths, strict=True):
                with self._changed(phi[at], radius):  # a row of the same prompt for each factor
                    out = self._state.clean(input_ids=row[:n].expand(k, -1), use_cache=False, logits_to_keep=1)
                each.append(out.logits[:, -1].float())
            parts.append(torch.stack(each, dim=1))
        return torch.cat(parts)

    def kl(self, phi: Tensor, radius: float) -> Tensor:
        """KL(changed || unchanged) of the token after each prompt, nats, mean over prompts."""
        plain = self.piece.logits(None).log_softmax(-1)  # [1, prompts, d_vocab]
        return kl(self.logits(phi, radius).log_softmax(-1), plain).mean(-1)


def _rank_one(a: Tensor, b: Tensor) -> Any:
    """A hook that adds ``(z . a_k) b_k`` to the rows of factor k; a ``[k, heads]``."""

    def hook(_module: Any, args: Any, out: Tensor) -> Tensor:
        z = args[0].unflatten(0, (len(a), -1))  # [k, prompts, pos, heads]
        along = torch.einsum("kpth,kh->kpt", z, a.to(z))  # [k, prompts, pos]
        step = along[..., None] * b[:, None, None].to(z)  # [k, prompts, pos, d_model]
        return out + step.flatten(0, 1)  # [k * prompts, pos, d_model]

    return hook


def _layers(model: TransformerBridge, source_layers: Sequence[int], target_layer: int) -> tuple[int, ...]:
    layers = [source_layers] if is_whole(source_layers) else list(source_layers)
    for layer in (*layers, target_layer):
        check_layer(model, layer)
    if not layers or len(set(layers)) < len(layers):
        raise ValueError(f"source_layers={layers}: give at least one layer, each once")
    if min(layers) == 0:
        raise ValueError(f"source_layers={layers}: layer 0 has no block before it to start from; begin at 1")
    if max(layers) >= target_layer:
        raise ValueError(
            f"source_layers={layers}, target_layer={target_layer}: the target must lie above the whole band"
        )
    return tuple(sorted(layers))
