"""Small real things to do harm to: tiny models, a dictionary, a store, a crosscoder, vectors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import kit
from kit.models.bridge import runtime
from kit.sae import Dictionary, FeatureStore, Site, Source, Training
from kit.sae.crosscoders import Crosscoder, PairedSource
from kit.sae.crosscoders.training import CrosscoderTraining
from kit.steering.rank_one import Factor
from tests import tiny

TEXTS = [sentence for _ in range(8) for sentence in tiny.SENTENCES]


@dataclass(frozen=True)
class Subjects:
    """What the faults happen to; ``other`` is ``model`` with one matrix changed."""

    model: Any
    other: Any
    folder: Path

    @property
    def pair(self) -> tuple[Any, Any]:
        return self.model, self.other

    def source(self, **options: Any) -> Source:
        told: dict[str, Any] = {"batch": 32, "context": 20, "rows": 8} | options
        return Source(self.model, TEXTS, [Site(1)], **told)

    def training(self, steps: int = 12, **options: Any) -> Training:
        return Training(self.source(**options), widths=[1], k=4, steps=steps)

    def paired(self, steps: int = 12) -> CrosscoderTraining:
        source = PairedSource(self.pair, TEXTS, Site(1), batch=32, context=20, rows=8)
        return CrosscoderTraining(source, widths=[1], k=4, steps=steps)

    def vector(self, name: str = "a vector", seed: int = 0, **about: Any) -> kit.SteeringVector:
        rng = torch.Generator().manual_seed(seed)
        return kit.SteeringVector(torch.randn(48, generator=rng), 1, name, metadata=about)

    def factor(self, name: str = "a factor", seed: int = 1) -> Factor:
        rng = torch.Generator().manual_seed(seed)
        return Factor(torch.randn(2, 48, generator=rng), torch.randn(2, 48, generator=rng), (1, 2), 3.0, name)


def make(folder: Path) -> Subjects:
    """Two tiny models that differ in one matrix; ``folder/one`` holds the first."""
    models = [tiny.load(folder / name, "llama", chat=True) for name in ("one", "two")]
    weight = runtime(models[1]).port(1, "neurons")[0].weight
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    weight.data += 0.3 * noise * weight.std()
    return Subjects(*models, folder)


def trained(subjects: Subjects) -> tuple[Dictionary, FeatureStore, Crosscoder]:
    """A dictionary, its store and a crosscoder after a few steps."""
    run = subjects.training()
    run.run()
    (found,) = run.dictionaries()
    pair = subjects.paired()
    pair.run()
    return found, FeatureStore.build(found, subjects.model, TEXTS, context=20), pair.crosscoder()
