"""Views for notebooks: thin widgets over controllers that know no widget.

Loaded one by one, so that the parts without ipywidgets can be used where it is not installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "SteeringPanel": "panel.panel",
    "TokenMask": "panel.token_mask",
    "BlindRating": "panel.rating",
    "Controller": "panel.controller",
    "Request": "panel.controller",
    "Arm": "panel.controller",
    "Frame": "panel.controller",
    "FeatureGallery": "gallery.gallery",
    "FeatureBrowser": "latents.browser",
    "PromptView": "latents.prompt_view",
    "LinkBrowser": "latents.links",
    "MatchBrowser": "latents.matches",
    "TrainingView": "training.view",
    "LensView": "lens.view",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'kit.widgets' has no {name!r}; it has {', '.join(_HOME)}")
    value = getattr(import_module(f"kit.widgets.{_HOME[name]}"), name)
    globals()[name] = value  # the next access is an ordinary one
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
