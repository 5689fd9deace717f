"""Sets of unit directions ``[m, d]``: drawing them, and keeping them apart from one another."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def unit(rows: Tensor) -> Tensor:
    """Rows ``[..., d]`` at norm 1. A zero row stays zero."""
    return nn.functional.normalize(rows, dim=-1)


def random_units(m: int, d: int, seed: int = 0) -> Tensor:
    """``[m, d]`` unit directions, uniform on the sphere: the control of every claim."""
    rng = torch.Generator().manual_seed(seed)
    return unit(torch.randn(m, d, generator=rng))


def orthogonal(rows: Tensor, fix_signs: bool = True) -> Tensor:
    """Orthonormal rows that span what ``rows [m, d]`` span, row by row (QR).

    Args:
        fix_signs: Householder QR may hand back -v for v. An objective that is not symmetric, as
            the exponential one, then starts the next iteration on the wrong side. With True each
            row keeps a positive product with the one that it came from.

    Raises:
        ValueError: more rows than dimensions.
    """
    m, d = rows.shape
    if m > d:
        raise ValueError(
            f"n_features={m} in {d} dimensions: no more than {d} directions can be orthogonal; "
            "lower n_features, or use orthogonalise='soft'"
        )
    q, r = torch.linalg.qr(rows.T)
    if fix_signs:
        q = q * torch.where(r.diagonal() < 0, -1.0, 1.0)
    return q.T.contiguous()


def repel(rows: Tensor, strength: Tensor, steps: int = 10, temperature: float = 1.0) -> Tensor:
    """Soft orthogonalisation: each direction gives way to like ones, weak ones most.

    ``phi_i <- unit(phi_i - sum_j w_ij phi_j)``, w the softmax over j != i of ``<phi_i, phi_j> /
    temperature + log strength_j`` (the step of SOGI in Mack, Panickssery and Turner, 2026,
    arXiv:2606.29604). Allows more rows than dimensions.

    Args:
        rows: unit directions ``[m, d]``, or ``[m, blocks, d]``, each block at norm 1: then the
            products are summed over the blocks and every block is normalised by itself.
        strength: ``[m]``, how strong a gradient each has.
    """
    m = len(rows)
    if m < 2:
        return rows
    bias = strength.clamp(min=1e-30).log()
    own = torch.eye(m, dtype=torch.bool, device=rows.device)
    for _ in range(steps):
        flat = rows.flatten(1)
        alike = (flat @ flat.T / temperature + bias).masked_fill(own, -torch.inf)
        moved = rows - (alike.softmax(-1) @ flat).reshape(rows.shape)
        # a few rows may chase one another onto one line, where they would take each other to zero
        rows = torch.where(moved.norm(dim=-1, keepdim=True) > 1e-6, unit(moved), rows)
    return rows


def duplicates(rows: Tensor, above: float = 0.9) -> list[tuple[int, int, float]]:
    """Pairs (i, j, cosine), i < j, of rows ``[m, d]`` whose cosine exceeds ``above``."""
    cosines = (unit(rows) @ unit(rows).T).triu(1)
    found = (cosines > above).nonzero().tolist()
    return [(i, j, round(float(cosines[i, j]), 4)) for i, j in found]
