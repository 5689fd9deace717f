"""What lies between two places of a model, token by token: the blocks, with attention held."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kit.models.activations import Enough, capture
from kit.models.bridge import check_layer, runtime
from kit.models.hook_points import Hooks, output_of, replaced
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
        # refuses an architecture whose attention is not known
        self._attention = self._state.projection_path("attn_out").rpartition(".")[0]
        self._blocks = [self._state.block(i) for i in range(layer + 1, site.layer + 1)]
        self._given: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}  # what each block got
        self._held: dict[int, Any] = {}  # what its attention gave

    @torch.no_grad()
    def read(self, tokens: Tensor, *also: Site) -> list[Tensor]:
        """Run a text ``[rows, n]`` up to the site, and hold its attention.

        Returns:
            What further sites hold on it, ``[rows, n, width]`` each.
        """
        own = (self.layer, "resid"), self.site.place
        with self._state.lock, Hooks() as hooks:
            for i, block in enumerate(self._blocks):

                def given(_module: nn.Module, args: Any, kwargs: Any, i: int = i) -> None:
                    self._given[i] = args, kwargs

                def held(_module: nn.Module, _args: Any, out: Any, i: int = i) -> None:
                    self._held[i] = out

                hooks.put(partial(block.register_forward_pre_hook, given, with_kwargs=True))
                hooks.put(partial(block.get_submodule(self._attention).register_forward_hook, held))
            kept = capture(self.model, tokens, [*own, *(site.place for site in also)])
        self.stream, self.target = (kept[place] for place in own)
        return [kept[site.place] for site in also]

    def __call__(self, x: Tensor, at: Tensor) -> Tensor:
        """The site ``[n, width]``, float32, where tokens have the stream ``x [n, d_model]``;
        differentiable, and on x's device.

        Args:
            at: ``[n]``, which token each is: a flat place in the text that was read.
        """
        home, x = x.device, x.to(self.stream)[:, None]  # [n, 1, d_model]: each token is a text of one
        with self._frozen(at):
            return self._through(x)[:, 0].float().to(home)

    @torch.no_grad()
    def live(self, stream: Tensor) -> Tensor:
        """The site ``[n, pos, width]`` of whole rows whose stream is ``[n, pos, d_model]``, with
        attention as it will be: after a text of one row, as long as these, was read."""
        return self._through(stream.to(self.stream))

    def _through(self, x: Tensor) -> Tensor:
        found: list[Tensor] = []

        def keep(out: Tensor) -> Tensor:
            found.append(out)
            raise Enough

        with self._state.lock, suppress(Enough), replaced(self.model, self.site, keep):
            for i, block in enumerate(self._blocks):
                args, kwargs = self._given[i]
                rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
                x = output_of(block(x, *args[1:], **rest))
        return found[0]

    @contextmanager
    def _frozen(self, at: Tensor) -> Iterator[None]:
        """Within the block, attention gives what it gave at these tokens."""
        with self._state.lock, Hooks() as hooks:
            for i, block in enumerate(self._blocks):
                out = self._held[i]
                mixed = output_of(out).flatten(0, 1)[at][:, None]  # [rows, pos, d] -> [n, 1, d]
                made = (mixed, *out[1:]) if isinstance(out, tuple) else mixed
                hooks.put(partial(self._stand_in, block, _Given(made)))
            yield

    def _stand_in(self, block: nn.Module, given: nn.Module) -> Callable[[], None]:
        own = block.get_submodule(self._attention)
        block.set_submodule(self._attention, given)
        return partial(block.set_submodule, self._attention, own)


class _Given(nn.Module):
    """Stands where a module was, and gives what it is told, whatever it gets."""

    def __init__(self, out: Any) -> None:
        super().__init__()
        self.out = out

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        return self.out
