"""Reading activations of many texts: the one place that captures, whoever needs them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kit.base.checks import is_whole
from kit.base.shipped import neutral_texts
from kit.base.threads import fitted
from kit.models.bridge import check_layer, runtime
from kit.models.hook_points import Hooks, output_of
from kit.models.positions import select
from kit.models.sites import SITES
from kit.models.tokens import Text, text_rows

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Read = str | int | slice
Place = tuple[int, str]  # a layer and a site
_READS = "'last', 'mean', an int or a slice of token positions"


class Enough(Exception):
    """Ends a pass whose remaining blocks nobody needs."""


def residuals(
    model: TransformerBridge,
    texts: Sequence[Text] | Text,
    layers: Iterable[int],
    read: Read = "last",
    *,
    site: str = "resid",
    batch_size: int = 16,
) -> Tensor:
    """Activations of texts at some layers, read at chosen tokens.

    Args:
        texts: plain texts or tokens (of a chat, say), as :func:`kit.models.tokens.text_rows` takes.
        layers: block indices; their order is kept.
        read: ``"last"`` token, ``"mean"`` over all tokens but the first (the attention sink), or
            an int or slice of token positions in the kit's position language (negative numbers
            count from a text's end); a slice gives a row for each token.
        site: where in the block, of :mod:`kit.models.sites`.
        batch_size: texts a forward pass.

    Returns:
        float32 ``[texts, layers, width]``; for a slice ``[tokens of all texts, layers, width]``.

    Raises:
        ValueError: no texts, a layer that the model lacks, or an unknown ``read`` or ``site``.
    """
    return of_rows(model, text_rows(model, texts), layers, read, site=site, batch_size=batch_size)


def of_rows(
    model: TransformerBridge,
    tokens: Sequence[Tensor],
    layers: Iterable[int],
    read: Read = "last",
    *,
    site: str = "resid",
    batch_size: int = 16,
) -> Tensor:
    """As :func:`residuals`, for what :func:`kit.models.tokens.text_rows` made of the texts."""
    layers = list(layers)
    for layer in layers:
        check_layer(model, layer)
    if not (read in ("last", "mean") if isinstance(read, str) else is_whole(read) or isinstance(read, slice)):
        raise ValueError(f"read={read!r}: use {_READS}")
    if site not in SITES:
        raise ValueError(f"site={site!r}: use {', '.join(map(repr, SITES))}")
    # texts of like length share a batch, so that little is computed on padding
    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
    found: dict[int, Tensor] = {}
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch, lengths = _pad([tokens[i] for i in rows])
        kept = capture(model, batch, [(layer, site) for layer in layers])
        stream = torch.stack([kept[layer, site].cpu().float() for layer in layers], dim=2)
        chosen = _chosen(read, batch.shape[1], lengths)
        for row, i in enumerate(rows):
            picked = stream[row, chosen[row]]
            if not len(picked):
                raise ValueError(f"read={read!r}: text {i} has {lengths[row].item()} tokens, none is read")
            found[i] = picked if isinstance(read, slice) else picked.mean(dim=0, keepdim=True)
    return torch.cat([found[i] for i in range(len(tokens))])


def _chosen(read: Read, width: int, lengths: Tensor) -> Tensor:
    index = torch.arange(width).expand(len(lengths), width)
    index = torch.where(index < lengths[:, None], index, -1)
    if read == "mean":
        # one lone token is its own mean; else the sink at the front is left out
        return select("prompt", index, lengths[:, None]) & ((index > 0) | (lengths[:, None] == 1))
    return select(-1 if read == "last" else read, index, lengths[:, None])


def _pad(tokens: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Right padding needs no mask: in a causal model it cannot reach the tokens before it."""
    return (nn.utils.rnn.pad_sequence(tokens, batch_first=True), torch.tensor([len(t) for t in tokens]))


@torch.no_grad()
def capture(model: TransformerBridge, tokens: Tensor, places: Iterable[Place]) -> dict[Place, Tensor]:
    """Activations ``[rows, pos, width]`` at some places of one pass, which stops at the last one;
    each in the model's dtype, on the device where its block is.

    Args:
        tokens: ``[rows, n]``, every row as long as it is.
        places: pairs of a layer and a site, as for :func:`residuals`.
    """
    state = runtime(model)
    places = set(places)
    kept: dict[Place, Tensor] = {}

    def keep(place: Place, _module: nn.Module, args: Any, *out: Any) -> None:
        activation = output_of(out[0] if out else args)
        factor = state.scale(place[1])
        # a copy: Falcon adds attention's output into the MLP's in place
        kept[place] = activation.detach().clone() if factor == 1 else activation.detach() * factor
        if len(kept) == len(places):
            raise Enough

    with state.lock, fitted(tokens.numel()), Hooks() as hooks, suppress(Enough):
        for place in places:
            module, enters = state.port(*place)
            put = module.register_forward_pre_hook if enters else module.register_forward_hook
            hooks.put(partial(put, partial(keep, place)))
        state.clean(input_ids=tokens.to(model.cfg.device), use_cache=False)
    return kept


def side_by_side(models: Sequence[TransformerBridge], tokens: Tensor, place: Place) -> Tensor:
    """Activations of one or more models on the same tokens at one place, side by side:
    ``[rows, pos, models * width]``, where the first model has them."""
    found = [capture(model, tokens, [place])[place] for model in models]
    return torch.cat([x.to(found[0].device) for x in found], dim=-1)


def residual_scale(model: TransformerBridge, layer: int) -> float:
    """Median norm of the residual stream after block ``layer`` on neutral text: the unit.

    The median over all positions but the first, since the first (BOS or whatever stands there)
    is an attention sink: on the embedded model its norm is about 150 times the rest, and a mean
    would measure that one position. Measured once per model, for every layer in one pass.

    Raises:
        ValueError: ``layer`` is not a layer of this model.
    """
    check_layer(model, layer)

    state = runtime(model)

    def make() -> list[float]:
        outer, state.steered = state.steered, ""  # the unit is the clean model's, wherever it is asked for
        try:
            stream = residuals(model, neutral_texts()[:6], range(model.cfg.n_layers), read=slice(1, None))
        finally:
            state.steered = outer
        return stream.norm(dim=-1).median(dim=0).values.tolist()

    scale = state.kept("scales", make)[layer]
    if not scale > 0 or scale == float("inf"):
        raise ValueError(f"the residual stream after layer {layer} has median norm {scale}")
    return scale
