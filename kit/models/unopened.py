"""A model whose TransformerLens bridge is made when something of the bridge is first asked for.

Importing transformers' models and TransformerLens and building the bridge takes most of the
seconds of a start, and steering, sweeping and the panel need none of it: they run the decoder. So
:func:`kit.load_model` gives the embedded model unopened. The first use of anything but what is
known here makes the bridge in place: the object becomes the ``TransformerBridge`` that it stands
for, as a module of :class:`importlib.util.LazyLoader` does. ``type(model)`` tells which it is.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

_LOCK = threading.RLock()
_class: Any = object.__dict__["__class__"]  # the slot itself, behind the property below


class Unopened:
    """Stands for a bridge; becomes it."""

    def __init__(self, make: Callable[[], Any], known: Mapping[str, Any]) -> None:
        """
        Args:
            make: gives the bridge.
            known: attributes of it that are there before it is made, by name.
        """
        vars(self).update(known, _make=make)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """What ``isinstance`` asks: who knows of the bridge's class has imported it."""
        lens = sys.modules.get("transformer_lens.model_bridge")
        return getattr(lens, "TransformerBridge", nn.Module)

    @property
    def hook_dict(self) -> Any:
        """The bridge's own."""
        return opened(self).hook_dict

    def __getattr__(self, name: str) -> Any:
        return getattr(opened(self), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(opened(self), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(opened(self), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return opened(self)(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return opened(self).__reduce_ex__(protocol)

    def __dir__(self) -> list[str]:
        return dir(opened(self))

    def __repr__(self) -> str:
        return repr(opened(self))


class Known:
    """Some attributes of a bridge's configuration; any other opens the bridge."""

    def __init__(self, known: Mapping[str, Any]) -> None:
        vars(self).update(known)

    def of(self, owner: Unopened) -> None:
        """Say which model's they are."""
        vars(self)["_owner"] = owner

    def __getattr__(self, name: str) -> Any:
        return getattr(opened(vars(self)["_owner"]).cfg, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(opened(vars(self)["_owner"]).cfg, name, value)

    def __repr__(self) -> str:
        return repr(opened(vars(self)["_owner"]).cfg)


def is_open(model: Any) -> bool:
    """Whether a model's bridge is there; asking does not make it."""
    return type(model) is not Unopened


def opened(model: Any) -> Any:
    """The same object, its bridge made."""
    if is_open(model):
        return model
    with _LOCK:
        if not is_open(model):
            bridge = vars(model)["_make"]()
            object.__setattr__(model, "__dict__", vars(bridge))  # one state, whoever holds the other object
            _class.__set__(model, type(bridge))
    return model
