"""Where a change is put on a model, and the proof that it came off again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from kit.models.bridge import runtime
from kit.models.sites import Site

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


Change = Callable[..., Tensor]
SITES = {
    "resid": "blocks.{}.hook_out",
    "z": "blocks.{}.attn.hook_z",
    "attn_out": "blocks.{}.attn.o.hook_out",
    "mlp": "blocks.{}.mlp.out.hook_out",
}
# what goes into the output projections, which parts there may read
_MADE_FROM = {"attn_out": "blocks.{}.attn.o.hook_in", "mlp": "blocks.{}.mlp.out.hook_in"}


def output_of(out: Any) -> Tensor:
    """The hidden states of a block's output, which some architectures wrap in a tuple."""
    return out[0] if isinstance(out, tuple) else out


def at_decoder(model: TransformerBridge, layer: int, site: str, change: Change) -> Callable[[], None]:
    """Put a change on a module of the decoder; returns what takes it off.

    Args:
        change: gets the activation, and at ``"attn_out"`` and ``"mlp"`` (what the output
            projection of the MLP gives) also what it was made from.
    """
    state = runtime(model)
    if site in _MADE_FROM:
        module = state.projection(layer, site)
        return module.register_forward_hook(lambda _m, args, out: change(out, args[0])).remove

    def after(_module: Any, _args: Any, out: Any) -> Any:
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    module, enters = state.port(layer, site)
    if enters:
        return module.register_forward_pre_hook(lambda _m, args: (change(args[0]), *args[1:])).remove
    return module.register_forward_hook(after).remove


def at_bridge(model: TransformerBridge, layer: int, site: str, change: Change) -> Callable[[], None]:
    """The same on the bridge's hook points."""
    if site not in _MADE_FROM:
        return _hook(model, SITES[site].format(layer), change)
    read: list[Tensor] = []  # what the projection got in the pass that is running
    off = [
        _hook(model, _MADE_FROM[site].format(layer), lambda z: read.__setitem__(slice(None), [z])),
        _hook(model, SITES[site].format(layer), lambda out: change(out, read[0])),
    ]

    def remove() -> None:
        for undo in off:
            undo()

    return remove


def _hook(model: TransformerBridge, name: str, change: Change) -> Callable[[], None]:
    point = hook_points(model)[name]
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


@contextmanager
def replaced(model: TransformerBridge, site: Site, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the block, what leaves a site is ``change`` of what would have."""
    remove = at_decoder(model, *site.place, change)
    try:
        yield
    finally:
        remove()
