"""What lies in data/crosscoder: it loads, it fits its two models, and the card tells the truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import kit
from kit.data import organisms
from kit.sae import Site, pack
from kit.sae.crosscoders import PairedLatents, evaluate

HERE = Path(__file__).parents[2] / "data" / "crosscoder"
NAME = "withholding-14-x4"
FIGURES = json.loads((HERE / "figures.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tuned() -> Any:
    return organisms.load("withholding")


def test_it_is_there_and_small() -> None:
    assert kit.data.crosscoder_names() == [NAME]
    assert (HERE / f"{NAME}.safetensors").stat().st_size < 20e6
    with pytest.raises(ValueError, match=f"name='x': the shipped crosscoders are {NAME}"):
        kit.data.crosscoder("x")


def test_it_fits_its_models_in_their_order(smol: Any, tuned: Any) -> None:
    found = kit.data.crosscoder(NAME, (smol, tuned))
    assert found.site == Site(14) and len(found) == 4 * smol.cfg.d_model
    with pytest.raises(ValueError, match="swap them"):
        kit.data.crosscoder(NAME, (tuned, smol))


def test_dedicated_latents_are_of_one_model() -> None:
    found = kit.data.crosscoder(NAME)
    first, second = found.metadata["dedicated"]
    norm = found.relative_norm
    assert bool((norm[:first] == 0).all()) and bool((norm[first : first + second] == 1).all())
    shared = norm[first + second :]
    assert float(shared.min()) > 0.3 and float(shared.max()) < 0.7
    assert torch.allclose(found.decoder.norm(dim=-1).sum(-1), torch.ones(len(found)), atol=0.01)


def test_the_card_has_every_figure() -> None:
    card = (HERE / "README.md").read_text(encoding="utf-8")
    for name, told in FIGURES["where"].items():
        if told["latents"]:
            row = next(line for line in card.splitlines() if line.startswith(f"| {name} "))
            assert f"{told['latents']:,}" in row, name
            for figure in ("error", "reconstruction"):
                assert f"{told[figure]:.2f}" in row, (name, figure)
    quality = FIGURES["quality"]
    for part, name in (("text", "English"), ("chats", "chats"), ("quality", "both")):
        row = next(line for line in card.splitlines() if line.startswith(f"| {name}"))
        for figure in FIGURES[part]["explained_variance"]:
            assert f" {figure:.3f} " in row, name
        assert f" {FIGURES[part]['l0']:.1f} " in row, name
    assert f"{quality['l0']:.1f}" in card and f"{quality['dead']:.1%}" in card


def test_it_does_as_well_on_our_own_texts(smol: Any, tuned: Any) -> None:
    """The machinery end to end on the real models: a few hundred tokens, wide bounds."""
    models = (smol, tuned)
    found = kit.data.crosscoder(NAME, models)
    rows = pack(smol, kit.data.texts()[:12], 128)[:6]
    quality = evaluate(found, models, rows)
    assert min(quality.explained_variance) > 0.6 and 15 < quality.l0 < 60
    latents = PairedLatents(found, models).read(tuned, "The capital of France is")
    assert latents.shape[1] == len(found) and bool((latents > 0).any())
