"""Crosscoders: one dictionary for two models, which shows what the second has that the first lacks."""

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
