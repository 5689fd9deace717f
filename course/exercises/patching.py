"""What the checkers of patching exercises share: the score itself, and a toy model to test them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from course.exercises.specs import Wrong, describe

if TYPE_CHECKING:
    import torch


def shares_of(model: Any, clean: Any, corrupt: Any, name: str, places: list[Any]) -> list[float]:
    """Share of the clean answer that comes back for each place that is patched alone.

    Args:
        model: a bridge, or whatever has its ``run_with_hooks`` and ``run_with_cache``.
        clean, corrupt: tokens ``[1, n]``; the likeliest next tokens of the two are the answers.
        name: the hook point.
        places: indices into its activation, such as ``(0, 4)`` for row 0, position 4.
    """
    logits, cache = model.run_with_cache(clean, names_filter=[name])
    start = model.run_with_hooks(corrupt, fwd_hooks=[])
    good, bad = logits[0, -1].argmax(), start[0, -1].argmax()

    def gap(logits: torch.Tensor) -> float:
        return float(logits[0, -1, good] - logits[0, -1, bad])

    found = []
    for place in places:

        def patch(x: torch.Tensor, hook: Any, place: Any = place) -> torch.Tensor:
            x = x.clone()
            x[place] = cache[name][place]
            return x

        patched = model.run_with_hooks(corrupt, fwd_hooks=[(name, patch)])
        found.append((gap(patched) - gap(start)) / (gap(logits) - gap(start)))
    return found


def check_index(answer: Any, what: str, count: int) -> None:
    """Raise `Wrong` unless the answer is an index below `count`; `what` says of what."""
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < count:
        likely = f"counting starts at 0, and the answer is one whole number, the {what}'s"
        raise Wrong(arrived=describe(answer), expected=f"a {what}, 0 to {count - 1}", likely=likely)


class _Toy:
    """Four blocks that keep their input; in block 2, two of three heads move position 1 on."""

    cfg = SimpleNamespace(n_layers=4, n_heads=3)

    def run_with_hooks(self, tokens: torch.Tensor, fwd_hooks: Any) -> torch.Tensor:
        import torch

        hooks = dict(fwd_hooks)

        def at(name: str, x: torch.Tensor) -> torch.Tensor:
            return hooks[name](x, hook=None) if name in hooks else x

        resid = torch.nn.functional.one_hot(tokens, 4).float()  # [1, pos, d_model = d_vocab]
        for block in range(4):
            z = torch.zeros(*resid.shape[:2], 3, 4)
            if block == 2:
                z[:, -1, 0], z[:, -1, 1] = resid[:, 1], 3 * resid[:, 1]
            z = at(f"blocks.{block}.attn.hook_z", z)
            resid = at(f"blocks.{block}.hook_out", resid + z.sum(2))
        return resid

    def run_with_cache(self, tokens: torch.Tensor, names_filter: list[str]) -> Any:
        cache: dict[str, torch.Tensor] = {}

        def keep(name: str) -> Any:
            return name, lambda x, hook: cache.setdefault(name, x)

        return self.run_with_hooks(tokens, [keep(name) for name in names_filter]), cache


def toy(**more: Any) -> dict[str, Any]:
    """Keywords for a check: a toy model whose block 2, above all its head 1, moves the fact."""
    import torch

    clean, corrupt = torch.tensor([[0, 1, 3]]), torch.tensor([[0, 2, 3]])
    return {"model": _Toy(), "clean": clean, "corrupt": corrupt, **more}
