"""Crosscoders: one dictionary for two models, and what it shows of the difference."""

from __future__ import annotations

from kit.sae.crosscoders.model import Crosscoder, PairedLatents, check_pair
from kit.sae.crosscoders.quality import SHARED, PairQuality, Scaling, evaluate, latent_scaling, summary
from kit.sae.crosscoders.training import CrosscoderTraining, PairedSource

__all__ = [
    "SHARED",
    "Crosscoder",
    "CrosscoderTraining",
    "PairQuality",
    "PairedLatents",
    "PairedSource",
    "Scaling",
    "check_pair",
    "evaluate",
    "latent_scaling",
    "summary",
]
