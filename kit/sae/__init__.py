"""Sparse dictionaries (SAEs): train them, look into them, steer with them."""
from __future__ import annotations

from kit.sae.dictionary import Dictionary, load
from kit.sae.quality import Quality, evaluate
from kit.sae.site import Site
from kit.sae.source import Source, pack
from kit.sae.store import Example, FeatureStore
from kit.sae.training import Report, Training, explained_variance, train

__all__ = ["Dictionary", "Example", "FeatureStore", "Quality", "Report", "Site", "Source",
           "Training", "evaluate", "explained_variance", "load", "pack", "train"]
