"""Steer a language model and see what it does to it.

Every public name below is loaded when it is first used: ``import kit`` brings in neither torch nor
anything else that is slow, because thirty kernels that start at once all pay for what it brings.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from kit.base import threads

__version__ = "0.1.0"

_NAMES = {  # functions and classes, and the modules that define them
    "load_model": "kit.models.load",
    "chat_tokens": "kit.models.tokens",
    "text_tokens": "kit.models.tokens",
    "residual_scale": "kit.models.activations",
    "fingerprint": "kit.models.bridge",
    "hooks_left": "kit.models.hook_points",
    "assert_clean": "kit.models.hook_points",
    "SteeringVector": "kit.steering.vectors",
    "steer": "kit.steering.context",
    "Receipt": "kit.steering.results",
    "generate": "kit.steering.generation",
    "stream": "kit.steering.generation",
    "Generation": "kit.steering.generation",
    "sweep": "kit.steering.sweep",
    "calibrate": "kit.steering.sweep",
    "check": "kit.steering.check",
    "catch_up": "course.catch_up",
}
_FOLDERS = {  # modules, by the folder in which they are
    "kit.base": "directions progress threads",
    "kit": "base data lens models plots sae search steering widgets",
    "kit.models": "activations hook_points logit_lens lora positions sites tokens weights",
    "kit.steering": "context export generation intervention rank_one render sampling vectors",
    "kit.search": "contrast cpe dct features jacobians layer_slice maps melbo optimise "
    "parallel probes radius rome statistics",
    "kit.sae": "crosscoders frozen_attention links meta_sae",
    "kit.data": "organisms",
    "kit.cli": "doctor estimates",
    "course": "exercises",
    "course.studies": "elicitation locality multiplicity rank recovery",
}
_MODULES = {name: f"{home}.{name}" for home, names in _FOLDERS.items() for name in names.split()}

__all__ = [*_NAMES, *_MODULES]


def __getattr__(name: str) -> Any:
    home = _NAMES.get(name) or _MODULES.get(name)
    if home is None:
        raise AttributeError(f"module 'kit' has no attribute {name!r}; it has {', '.join(__all__)}")
    if home.startswith("course") and find_spec("course") is None:
        raise ModuleNotFoundError(
            f"kit.{name} belongs to the course, which lies beside the kit in a clone of its "
            "repository: run the notebook there (`kit lab`), or put the clone on PYTHONPATH"
        )
    module = import_module(home)
    if name in _MODULES:
        return module
    value = getattr(module, name)
    globals()[name] = value  # the next access is an ordinary one
    return value


threads.prepare()  # before torch is loaded: it reads the environment once


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
