"""Latents as interventions: exact algebra against the patched stream."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import kit
from kit.sae import Latent, Site, combine
from tests import tiny
from tests.sae.test_inspect import one_latent


@pytest.fixture
def latent(llama: Any) -> Latent:
    read = torch.randn(48, generator=torch.Generator().manual_seed(1))
    dictionary = one_latent(read, Site(1))
    dictionary.fingerprint = kit.fingerprint(llama)
    return Latent(dictionary, 0, top=3.0)


def streams(model: Any, latent: Latent, c: float, op: str) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = tiny.prompt(model)
    before = tiny.stream_after(model, 1, tokens)
    with kit.steer(model, {latent: c}, op=op):
        return before, tiny.stream_after(model, 1, tokens)


def test_adding_is_so_many_times_the_row(llama: Any, latent: Latent) -> None:
    before, after = streams(llama, latent, 0.5, "add")
    want = before + 0.5 * 3.0 * latent.dictionary.rows[0]
    assert torch.allclose(after, want, atol=1e-3)


@pytest.mark.parametrize(("op", "c"), [("clamp", 2.0), ("clamp", 0.0), ("ablate", 1.0), ("ablate", 0.25)])
def test_clamping_and_ablating_change_the_latents_part_only(llama: Any, latent: Latent, op: str, c: float) -> None:
    before, after = streams(llama, latent, c, op)
    old = latent.dictionary.encode(before)[..., :1]
    assert bool((old > 0).any()) and bool((old == 0).any())
    new = torch.full_like(old, c * 3.0) if op == "clamp" else (1 - c) * old
    assert torch.allclose(after, before + (new - old) * latent.dictionary.rows[0], atol=1e-2)


def test_without_the_error_the_reconstruction_takes_its_place(llama: Any, latent: Latent) -> None:
    bare = Latent(latent.dictionary, 0, 3.0, keep_error=False)
    before, after = streams(llama, bare, 1.0, "ablate")
    values = latent.dictionary.encode(before)
    values[..., 0] = 0
    assert torch.allclose(after, latent.dictionary.decode(values), atol=1e-3)
    _, kept = streams(llama, latent, 1.0, "ablate")
    assert not torch.allclose(after, kept, atol=1.0)


def test_the_control_reads_the_same_and_writes_at_random(llama: Any, latent: Latent) -> None:
    other = latent.random(3)
    row = latent.dictionary.rows[0]
    assert float(other.writes.norm()) == pytest.approx(float(row.norm()))
    assert abs(float(torch.cosine_similarity(other.writes, row, dim=0))) < 0.6
    assert other.name == "random 3" and latent.random(3).writes.equal(other.writes)
    before, after = streams(llama, other, 1.0, "ablate")
    old = latent.dictionary.encode(before)[..., :1]
    assert torch.allclose(after, before - old * other.writes, atol=1e-2)
    bare = Latent(latent.dictionary, 0, 3.0, keep_error=False).random(3)
    _, swapped = streams(llama, bare, 2.0, "clamp")
    values = latent.dictionary.encode(before)
    values[..., 0] = 0
    assert torch.allclose(swapped, latent.dictionary.decode(values) + 6.0 * other.writes, atol=1e-2)


def test_rows_of_a_ladder_differ(llama: Any, latent: Latent) -> None:
    run = kit.generate(llama, tiny.prompt(llama), latent, [None, 0.0, 4.0], op="clamp", max_new_tokens=4)
    alone = kit.generate(llama, tiny.prompt(llama), latent, 4.0, op="clamp", max_new_tokens=4)
    assert run.texts[2] == alone.texts[0] and len(run.texts) == 3
    assert run.receipt.entries[0].name == "one #0"


def test_combined_rows_report_how_they_cancel(llama: Any) -> None:
    dictionary = one_latent(torch.eye(48)[0], Site(1))
    dictionary.sae.W_dec.data = torch.stack([torch.eye(48)[0], -torch.eye(48)[0] + torch.eye(48)[1]])
    a, b = Latent(dictionary, 0, 2.0), Latent(dictionary, 1, 1.0)
    v = combine({a: 1.0, b: 2.0})
    assert torch.allclose(v.direction, torch.eye(48)[1]) and v.layer == 1
    assert v.metadata["size"] == pytest.approx(2) and v.metadata["parts"] == pytest.approx([2, 8**0.5])
    assert v.metadata["cosines"][0][1] == pytest.approx(-(0.5**0.5))
    other = one_latent(torch.eye(48)[0], Site(1))
    with pytest.raises(ValueError, match="different dictionaries"):
        combine({a: 1.0, Latent(other, 0): 1.0})
    with pytest.raises(ValueError, match="latents is empty"):
        combine({})


def test_what_makes_no_latent_is_named(llama: Any, latent: Latent) -> None:
    for top in (0.0, -1.0, float("inf"), True):
        with pytest.raises(ValueError, match="top="):
            Latent(latent.dictionary, 0, top)
    with pytest.raises(ValueError, match="latent=5"):
        Latent(latent.dictionary, 5)
    mlp = one_latent(torch.ones(48), Site(1, "mlp_out"))
    with pytest.raises(ValueError, match=r"use dictionary\.vector\(index\)"):
        Latent(mlp, 0)
    assert mlp.vector(0).layer == 1
