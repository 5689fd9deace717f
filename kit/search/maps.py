"""First and second derivatives of a map from ``[d]`` to ``[d]``, over many directions at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from kit.base.directions import unit
from kit.base.kernels import plain_kernels
from kit.base.threads import fitted


class Map:
    """A differentiable map of ``theta [d]``, zero at zero, that takes many thetas a call.

    :class:`kit.search.layer_slice.LayerSlice` is one, made of a model's blocks; :class:`Map` itself
    wraps any function, which is how the methods are tested on functions whose features are known.

    Attributes:
        d_model: the width d.
        step: how many thetas a pass takes.
        unit: the length that counts as 1 where radii are stated without units of activations.
        origin: zeros ``[d]``, float32, where the map computes.
        lock: held over each pass, never between two.
    """

    unit = 1.0
    lock: AbstractContextManager[Any] = nullcontext()

    def __init__(self, function: Callable[[Tensor], Tensor], d_model: int, *, step: int = 4096) -> None:
        """Args: ``function`` from ``[k, d]`` to ``[k, d]``, row by row."""
        self._function, self.d_model, self.step = function, d_model, step
        self.origin = torch.zeros(d_model)

    def change(self, thetas: Tensor) -> Tensor:
        """The map itself, ``[k, d]`` to ``[k, d]``, differentiable, in one pass."""
        return self._function(thetas)

    def delta(self, thetas: Tensor) -> Tensor:
        """The map at thetas ``[k, d]``: ``[k, d]``, in as many passes as memory asks for."""
        values = []
        for at in self.cuts(thetas):
            with self.lock, fitted(2), torch.no_grad():
                values.append(self.change(thetas[at]))
        return torch.cat(values)

    def vjp(self, thetas: Tensor, outputs: Tensor | None) -> tuple[Tensor, Tensor]:
        """The map at thetas ``[k, d]``, and its Jacobians there, transposed, times ``outputs``.

        Args:
            outputs: ``[k, d]``; None for the unit directions of the values themselves, which gives
                the gradient of each value's norm.

        Returns:
            Values ``[k, d]`` and vector-Jacobian products ``[k, d]``: one forward and one
            backward pass over the rows.
        """
        values, grads = [], []
        for at in self.cuts(thetas, outputs):
            leaf = thetas[at].detach().requires_grad_()
            with self.lock, fitted(2), torch.enable_grad():
                value = self.change(leaf)
                along = unit(value.detach()) if outputs is None else outputs[at]
                grads.append(torch.autograd.grad(value, leaf, along)[0])
            values.append(value.detach())
        return torch.cat(values), torch.cat(grads)

    def jvp(self, tangents: Tensor, theta: Tensor | None = None) -> Tensor:
        """The Jacobian at one ``theta [d]`` (default 0) times tangents ``[k, d]``: ``[k, d]``.

        Forward mode: theta runs once a pass, the tangents ride along.
        """
        at = self.origin if theta is None else theta
        return self._batched(lambda tangent: self._slope(at, tangent), tangents)

    def jacobian(self, theta: Tensor | None = None) -> Tensor:
        """The Jacobian at ``theta [d]`` (default 0): ``[d_out, d_in]``, exact."""
        return self.jvp(torch.eye(self.d_model).to(self.origin), theta).T.contiguous()

    def second(self, v: Tensor, u: Tensor | None = None) -> Tensor:
        """Second derivatives at 0.

        Args:
            v: directions ``[k, d]``.
            u: output directions ``[k, d]``, or None.

        Returns:
            ``[k, d]``: without ``u`` the second derivative along v twice, T2(., v, v); with it
            T2(u, v, .), the Hessian of ``u . map`` times v.
        """
        if u is None:

            def twice(along: Tensor) -> Tensor:
                return torch.func.jvp(lambda at: self._slope(at, along), (self.origin,), (along,))[1]

            return self._batched(twice, v)

        def hessian(along: Tensor, out: Tensor) -> Tensor:
            return torch.func.grad(lambda at: self._slope(at, along) @ out)(self.origin)

        return self._batched(hessian, v, u)

    def _slope(self, at: Tensor, along: Tensor) -> Tensor:
        return torch.func.jvp(lambda theta: self.change(theta[None])[0], (at,), (along,))[1]

    def _batched(self, function: Callable[..., Tensor], thetas: Tensor, outputs: Tensor | None = None) -> Tensor:
        """A function of one theta, and of one output where there are some, over rows of both."""
        rows = [thetas] if outputs is None else [thetas, outputs]
        out = []
        for at in self.cuts(thetas, outputs):
            with self.lock, fitted(2), torch.enable_grad(), plain_kernels():
                out.append(torch.func.vmap(function)(*(r[at] for r in rows)).detach())
        return torch.cat(out)

    def cuts(self, thetas: Tensor, outputs: Tensor | None = None) -> Iterator[slice]:
        """Slices of thetas ``[k, d]``, and of as many outputs ``[k, d]``, that one pass takes.

        Raises:
            ValueError: rows of another shape, or not as many of one kind as of the other.
        """
        for given in (thetas,) if outputs is None else (thetas, outputs):
            if given.dim() != 2 or given.shape[-1] != self.d_model or not len(given):
                raise ValueError(f"directions have shape {list(given.shape)}: give [k, {self.d_model}]")
        if outputs is not None and len(outputs) != len(thetas):
            raise ValueError(f"{len(outputs)} output directions for {len(thetas)} thetas: give one for each")
        yield from passes(len(thetas), self.step)


def passes(n: int, step: int) -> list[slice]:
    """Slices of n rows, ``step`` at a time."""
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]
