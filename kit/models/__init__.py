"""Models: loaded, read as tokens and activations, and the places at which they can be changed."""

from __future__ import annotations

from typing import Any

__all__ = ["Runtime", "check_layer", "fingerprint", "runtime"]


def __getattr__(name: str) -> Any:
    """From the bridge, at their first use: the doctor needs the weights where torch is missing."""
    if name not in __all__:
        raise AttributeError(f"module 'kit.models' has no attribute {name!r}")
    from kit.models import bridge

    value = getattr(bridge, name)
    globals()[name] = value  # the next access is an ordinary one
    return value
