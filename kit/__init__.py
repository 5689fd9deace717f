"""Steer a language model and see what it does to it.

Every public name below is loaded when it is first used: ``import kit`` brings in neither torch nor
anything else that is slow, because thirty kernels that start at once all pay for what it brings.
"""
from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_NAMES = {
    "models": ("load_model", "chat_tokens", "text_tokens", "residual_scale", "fingerprint"),
    "vectors": ("SteeringVector",),
    "hooks": ("steer", "Receipt"),
    "attach": ("hooks_left", "assert_clean"),
    "generation": ("generate", "stream", "Generation"),
    "evaluation": ("sweep", "calibrate"),
    "selftest": ("check",),
    "checkpoints": ("catch_up",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
_MODULES = (
    "activations",
    "adapters",
    "attach",
    "attribution",
    "calibration",
    "candidates",
    "checkpoints",
    "contrast",
    "control_vectors",
    "costs",
    "cpe",
    "crosscoder",
    "data",
    "dct",
    "derivatives",
    "directions",
    "doctor",
    "edits",
    "elicitation",
    "estimates",
    "evaluation",
    "exercises",
    "factors",
    "generation",
    "harvest",
    "hooks",
    "jacobians",
    "locality",
    "melbo",
    "meta",
    "models",
    "multiplicity",
    "notebooks",
    "objectives",
    "optimise",
    "organisms",
    "parallel",
    "plots",
    "positions",
    "probes",
    "receipts",
    "recovery",
    "reference",
    "render",
    "sae",
    "selftest",
    "serving",
    "shards",
    "slices",
    "stability",
    "untrusted",
    "vectors",
    "weights",
    "widgets",
    "workshop",
)

__all__ = [*_HOME, *_MODULES]  # noqa: PLE0604 (the keys are names)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(f"kit.{_HOME[name]}"), name)
        globals()[name] = value  # the next access is an ordinary one
        return value
    if name in _MODULES:
        return import_module(f"kit.{name}")
    raise AttributeError(f"module 'kit' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
