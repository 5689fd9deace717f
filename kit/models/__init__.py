"""Models: loaded, read as tokens and activations, and the places at which they can be changed."""

from __future__ import annotations

from kit.models.bridge import Runtime, check_layer, fingerprint, runtime

__all__ = ["Runtime", "check_layer", "fingerprint", "runtime"]
