"""How far two distributions over the vocabulary lie apart."""

from __future__ import annotations

from torch import Tensor


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) in nats over the last dimension: ``[..., d_vocab]`` twice gives ``[...]``.

    Args:
        log_p: log-probabilities, of the steered model say; ``log_q``: those it is held against.
    """
    return (log_p.exp() * (log_p - log_q)).sum(-1)
