"""What a search without labels makes longer: layers, features, prompts."""

from __future__ import annotations

from typing import Any

from kit.search import dct, melbo
from tests.benchmarks.growth.curves import Curve, best

_PROMPT = "How do you feel today?"
_R = 20.0  # a radius that is given: to measure one takes the same time for any number of features


def layers(model: Any, quick: bool) -> list[Curve]:
    """Blocks of the slice that is differentiated."""
    sizes = (1, 2, 4, 8) if quick else (1, 2, 4, 8, 16, model.cfg.n_layers - 1)
    return [
        Curve("DCT, 8 features", "layers", 1, best(lambda n: _dct(model, [_PROMPT], 0, n, 8), sizes)),
        Curve("MELBO, 8 vectors", "layers", 1, best(lambda n: _melbo(model, [_PROMPT], 0, n, 8), sizes)),
    ]


def features(model: Any, quick: bool) -> list[Curve]:
    """Directions that are searched at once, through two blocks."""
    sizes = (8, 16, 32, 64) if quick else (8, 16, 32, 64, 128)
    return [
        Curve("DCT", "features", 1, best(lambda n: _dct(model, [_PROMPT], 14, 16, n), sizes)),
        Curve("MELBO", "features", 1, best(lambda n: _melbo(model, [_PROMPT], 14, 16, n), sizes)),
    ]


def prompts(model: Any, quick: bool) -> list[Curve]:
    """Prompts over which the change is averaged, through two blocks."""
    sizes = (1, 2, 4, 8) if quick else (1, 2, 4, 8, 16)
    many = {n: [f"{_PROMPT} Count to {i:03d}." for i in range(n)] for n in sizes}
    return [
        Curve("DCT, 4 features", "prompts", 1, best(lambda n: _dct(model, many[n], 14, 16, 4), sizes)),
        Curve("MELBO, 4 vectors", "prompts", 1, best(lambda n: _melbo(model, many[n], 14, 16, 4), sizes)),
    ]


def _dct(model: Any, some: list[str], source: int, target: int, n: int) -> None:
    dct.fit(model, some, source, target, n_features=n, iterations=2, radius=_R)


def _melbo(model: Any, some: list[str], source: int, target: int, n: int) -> None:
    melbo.fit(model, some, source, target, n, steps=2, radius=_R)


CURVES = {"layers": layers, "features": features, "prompts": prompts}
