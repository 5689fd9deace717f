"""Sparse dictionaries (SAEs): train them, look into them, steer with them."""

from __future__ import annotations

from kit.models.logit_lens import Ends, direct_attribution, logit_lens, long_tokens
from kit.models.sites import Site
from kit.models.tokens import pack
from kit.sae.ablation import Ablation, ablated_text
from kit.sae.compare import Match, Neighbours, children, importance, mcs, mcs_table, sparse_probe
from kit.sae.corpus_lens import CorpusLens
from kit.sae.dictionary import Dictionary, load
from kit.sae.latents import Directions, Latents, Neurons
from kit.sae.pages import page
from kit.sae.prompt import Reading, read_prompt
from kit.sae.quality import Quality, evaluate
from kit.sae.source import Source
from kit.sae.steered_latent import Latent, combine
from kit.sae.store import Example, FeatureStore
from kit.sae.training import Report, Training, explained_variance, train

__all__ = [
    "Ablation",
    "CorpusLens",
    "Dictionary",
    "Directions",
    "Example",
    "FeatureStore",
    "Latent",
    "Latents",
    "Ends",
    "Match",
    "Neighbours",
    "Neurons",
    "Quality",
    "Reading",
    "Report",
    "Site",
    "Source",
    "Training",
    "ablated_text",
    "children",
    "combine",
    "direct_attribution",
    "evaluate",
    "explained_variance",
    "importance",
    "load",
    "logit_lens",
    "long_tokens",
    "mcs",
    "mcs_table",
    "pack",
    "page",
    "read_prompt",
    "sparse_probe",
    "train",
]
