"""Views for notebooks: thin widgets over controllers that know no widget.

Loaded one by one, so that the parts without ipywidgets can be used where it is not installed.
"""
from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "SteeringPanel": "panel",
    "TokenMask": "token_mask",
    "BlindRating": "rating",
    "FeatureGallery": "gallery",
    "FeatureBrowser": "browser",
    "PromptView": "prompt_view",
    "LinkBrowser": "links",
    "MatchBrowser": "matches",
    "TrainingView": "training_view",
    "RoomTable": "room_table",
    "Controller": "controller",
    "Request": "controller",
    "Arm": "controller",
    "Frame": "controller",
}

__all__ = [*_HOME]  # noqa: PLE0604 (the keys are names)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'kit.widgets' has no {name!r}; it has {', '.join(_HOME)}")
    value = getattr(import_module(f"kit.widgets.{_HOME[name]}"), name)
    globals()[name] = value  # the next access is an ordinary one
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
