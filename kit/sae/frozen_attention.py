"""What lies between two places of a model, token by token: the blocks, with attention held."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kit.models.activations import Enough, capture
from kit.models.bridge import check_layer, runtime
from kit.models.hook_points import output_of, replaced
from kit.models.sites import Site

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class Between:
    """What lies between the stream after a block and a later site, as a function of one token.

    Attention, which alone carries anything from token to token, gives what it gave on the text
    that was read last: its patterns and its values are held.

    Attributes:
        stream: ``[rows, pos, d_model]``, after block ``layer``, of that text.
        target: ``[rows, pos, width]``, at the later site.
    """

    def __init__(self, model: TransformerBridge, layer: int, site: Site) -> None:
        """
        Raises:
            ValueError: a site that does not lie after the layer, or that the model lacks.
        """
        check_layer(model, layer)
        site.module(model)
        if site.layer <= layer:
            raise ValueError(f"target {site} does not lie after layer {layer}: take a later one")
        self.model, self.layer, self.site = model, layer, site
        self._state = runtime(model)
        self._state.head_mixer(site.layer)  # refuses an architecture whose attention is not known
        assert self._state.o_proj is not None
        path = self._state.o_proj.rpartition(".")[0]
        self._blocks = [self._state.block(i) for i in range(layer + 1, site.layer + 1)]
        self._attention = [block.get_submodule(path) for block in self._blocks]
        self._given: list[tuple[Any, ...]] = []
        self._held: list[Any] = []

    @torch.no_grad()
    def read(self, tokens: Tensor, *also: Site) -> list[Tensor]:
        """Run a text ``[rows, n]`` up to the site, and hold its attention.

        Returns:
            What further sites hold on it, ``[rows, n, width]`` each.
        """
        held: list[Any] = [None] * len(self._blocks)
        given: list[Any] = [None] * len(self._blocks)
        handles = [
            module.register_forward_hook(lambda _m, _a, out, i=i: held.__setitem__(i, out))
            for i, module in enumerate(self._attention)
        ] + [
            block.register_forward_pre_hook(
                lambda _m, args, kwargs, i=i: given.__setitem__(i, (args, kwargs)), with_kwargs=True
            )
            for i, block in enumerate(self._blocks)
        ]
        own = (self.layer, "resid"), self.site.place
        with self._state.lock:
            try:
                kept = capture(self.model, tokens, [*own, *(site.place for site in also)])
            finally:
                for handle in handles:
                    handle.remove()
        self._held, self._given = held, given
        self.stream, self.target = (kept[place] for place in own)
        return [kept[site.place] for site in also]

    def __call__(self, x: Tensor, at: Tensor) -> Tensor:
        """The site ``[n, width]``, float32, where tokens have the stream ``x [n, d_model]``;
        differentiable, and on x's device.

        Args:
            at: ``[n]``, which token each is: a flat place in the text that was read.
        """
        found: list[Tensor] = []

        def keep(out: Tensor) -> Tensor:
            found.append(out)
            raise Enough

        home, x = x.device, x.to(self.stream)[:, None]
        with self._state.lock, self._frozen(at), suppress(Enough), replaced(self.model, self.site, keep):
            for block, (args, kwargs) in zip(self._blocks, self._given, strict=True):
                rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
                x = output_of(block(x, *args[1:], **rest))
        return found[0][:, 0].float().to(home)

    @contextmanager
    def _frozen(self, at: Tensor) -> Iterator[None]:
        """Within the block, attention gives what it gave at these tokens."""
        before = [module.__dict__.get("forward") for module in self._attention]
        for module, out in zip(self._attention, self._held, strict=True):
            mixed = output_of(out).flatten(0, 1)[at][:, None]
            made = (mixed, *out[1:]) if isinstance(out, tuple) else mixed
            # straight into the module's own names: a bridge's hands what is set to its original
            module.__dict__["forward"] = lambda *_a, made=made, **_k: made
        try:
            yield
        finally:
            for module, forward in zip(self._attention, before, strict=True):
                if forward is None:
                    del module.__dict__["forward"]
                else:
                    module.__dict__["forward"] = forward
