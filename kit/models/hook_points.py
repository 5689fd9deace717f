"""Where a change is put on a model, and the proof that it came off again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from kit.base.progress import to_the_end
from kit.models.bridge import runtime
from kit.models.sites import MATRICES, SITES, Site
from kit.models.unopened import is_open, opened

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle
    from transformer_lens.model_bridge import TransformerBridge

# activation, and at an output matrix what it was made from -> activation
Change = Callable[[Tensor, Tensor | None], Tensor]


class Hooks:
    """What a block puts on modules; all of it is off when the block ends, also when somebody
    presses the stop button while it is put on or taken off.

    Without that a press between a hook and the note of it would leave a model steered for good.
    """

    _off: Sequence[Callable[[], None]] = ()

    def put(self, on: Callable[[], Callable[[], None] | RemovableHandle]) -> None:
        """Call ``on``, which puts something on and returns what takes it off."""
        with to_the_end():
            off = on()
            self._off = [*self._off, off if callable(off) else off.remove]

    def off(self) -> None:
        """Take everything off, the last first."""
        if self._off:
            with to_the_end():
                while self._off:
                    self._off[-1]()
                    self._off = self._off[:-1]

    def __enter__(self) -> Hooks:
        return self

    def __exit__(self, *_error: object) -> None:
        try:
            self.off()
        except KeyboardInterrupt:  # pressed before it was deaf to that
            self.off()
            raise

    __del__ = off  # pressed before __exit__ could do anything


def output_of(out: Any) -> Tensor:
    """The hidden states of a block's output, which some architectures wrap in a tuple or list."""
    return out[0] if isinstance(out, tuple | list) else out


def with_output(out: Any, hidden: Tensor) -> Any:
    """A block's output with other hidden states."""
    return type(out)([hidden, *out[1:]]) if isinstance(out, tuple | list) else hidden


def at_decoder(
    model: TransformerBridge, layer: int, site: str, change: Change, *, matrix: bool = False
) -> Callable[[], None]:
    """Put a change on a module of the decoder; returns what takes it off.

    Args:
        site: of :mod:`kit.models.sites`.
        change: gets the activation, and of a matrix also what it was made from, else None.
        matrix: at ``"attn_out"`` and ``"mlp_out"``: at what the output matrix gives, before a norm
            or factor behind it.
    """
    state = runtime(model)
    if matrix:
        module = state.projection(layer, site)
        return module.register_forward_hook(lambda _m, args, out: change(out, args[0])).remove
    module, enters = state.port(layer, site)
    factor = state.scale(site)

    def changed(x: Tensor) -> Tensor:
        return change(x, None) if factor == 1 else change(x * factor, None) / factor

    def after(_module: Any, _args: Any, out: Any) -> Any:
        return with_output(out, changed(output_of(out)))

    if enters:
        return module.register_forward_pre_hook(lambda _m, args: (changed(args[0]), *args[1:])).remove
    return module.register_forward_hook(after).remove


def at_bridge(
    model: TransformerBridge, layer: int, site: str, change: Change, *, matrix: bool = False
) -> Callable[[], None]:
    """The same on the bridge's hook points."""
    if not matrix:
        return _hook(model, SITES[site].format(layer), lambda out: change(out, None))
    given: Tensor | None = None  # what the matrix got in the pass that is running

    def read(z: Tensor) -> None:
        nonlocal given
        given = z

    name, hooks = MATRICES[site].format(layer), Hooks()
    hooks.put(lambda: _hook(model, f"{name}.hook_in", read))
    hooks.put(lambda: _hook(model, f"{name}.hook_out", lambda out: change(out, given)))
    return hooks.off


def _hook(model: TransformerBridge, name: str, change: Callable[[Tensor], Tensor | None]) -> Callable[[], None]:
    point = hook_points(model).get(name)
    if point is None:
        raise ValueError(f"this architecture has no hook point {name} on TransformerLens's bridge")
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
    opened(model)
    return runtime(model).kept("hook points", lambda: dict(model.hook_dict))


def hooks_left(model: TransformerBridge) -> list[str]:
    """Names of the bridge's hook points that carry a hook, and of hooked decoder blocks."""
    state = runtime(model)
    points = hook_points(model).items() if is_open(model) else ()
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
    with Hooks() as hooks:
        hooks.put(lambda: at_decoder(model, *site.place, lambda out, _given: change(out)))
        yield
