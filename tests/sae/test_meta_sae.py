"""Dictionaries of dictionaries: planted atoms, the pursuit baseline, reading meta-latents."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kit.base.directions import random_units, unit
from kit.sae import Dictionary, FeatureStore, Site, meta_sae
from kit.sae.sections import tree
from tests import tiny


def dictionary(rows: torch.Tensor, name: str = "planted") -> Dictionary:
    from sae_lens import StandardSAE, StandardSAEConfig

    sae = StandardSAE(StandardSAEConfig(d_in=rows.shape[1], d_sae=len(rows), apply_b_dec_to_input=False))
    sae.W_dec.data, sae.W_enc.data = rows.clone(), unit(rows).T.contiguous()
    return Dictionary(sae, Site(1), name)


@pytest.fixture(scope="module")
def atoms() -> torch.Tensor:
    return random_units(20, 48, 0)


@pytest.fixture(scope="module")
def planted(atoms: torch.Tensor) -> tuple[Dictionary, torch.Tensor]:
    """300 rows, each made of two of 20 atoms, and of which."""
    rng = torch.Generator().manual_seed(1)
    which = torch.stack([torch.randperm(20, generator=rng)[:2] for _ in range(300)])
    share = 0.5 + torch.rand(300, 2, generator=rng)
    size = 0.5 + torch.rand(300, 1, generator=rng)  # rows are not of norm 1
    return dictionary(size * (share[..., None] * atoms[which]).sum(1)), which


@pytest.fixture(scope="module")
def trained(planted: Any) -> Dictionary:
    return meta_sae.train(planted[0], size=40, k=2, steps=1500, lr=3e-3, batch=256)


def test_planted_atoms_are_found(planted: Any, atoms: torch.Tensor, trained: Dictionary) -> None:
    latents, which = planted
    cosine, nearest = (atoms @ unit(trained.rows).T).max(1)
    assert int((cosine > 0.9).sum()) >= 18, cosine
    codes = meta_sae.decompose(trained, latents)
    assert codes.score() > 0.9 and trained.metadata["of"] == "planted"
    top = codes.code.topk(2).indices.sort().values
    right = (top == nearest[which].sort().values).all(1)
    assert float(right.float().mean()) > 0.75


def test_random_rows_have_no_atoms(trained: Dictionary) -> None:
    random = dictionary(random_units(300, 48, 5))
    found = meta_sae.decompose(meta_sae.train(random, size=40, k=2, steps=1500, lr=3e-3, batch=256), random)
    assert found.score() < 0.6


def test_weights_draw_rows_as_often_as_they_say(planted: Any) -> None:
    latents, _ = planted
    weight = torch.zeros(300)
    weight[:2] = torch.tensor([3.0, 1.0])
    rows = meta_sae.Rows(latents, weight=weight, batch=4000)
    batch = next(rows)[Site(1)]
    near = (batch @ unit(latents.rows[:2]).T).argmax(1)
    assert float((near == 0).float().mean()) == pytest.approx(0.75, abs=0.03)
    assert torch.allclose(batch.norm(dim=-1), torch.ones(4000), atol=1e-5)
    mean, scale = rows.scales()[Site(1)]
    torch.testing.assert_close(mean, (unit(latents.rows[:2]) * torch.tensor([[0.75], [0.25]])).sum(0))
    assert scale == pytest.approx(48**0.5)


def test_a_source_of_rows_goes_on_where_it_stood(planted: Any) -> None:
    first = meta_sae.Rows(planted[0], batch=16)
    for _ in range(3):
        next(first)
    state = first.state_dict()
    other = meta_sae.Rows(planted[0], batch=16)
    other.load_state_dict(state)
    assert torch.equal(next(first)[Site(1)], next(other)[Site(1)])
    with pytest.raises(ValueError, match="size=8: the source to go on from had 16"):
        meta_sae.Rows(planted[0], batch=8).load_state_dict(state)
    for latents, weight in (
        (dictionary(random_units(300, 48, 5)), None),
        (planted[0], torch.arange(1.0, 1.0 + len(planted[0]))),
    ):
        with pytest.raises(ValueError, match=r"rows=.*: the source to go on from had "):
            meta_sae.Rows(latents, weight=weight, batch=16).load_state_dict(state)


# --- the baseline --------------------------------------------------------------------------------


def test_pursuit_finds_what_rows_are_made_of(planted: Any, atoms: torch.Tensor) -> None:
    latents, which = planted
    found = meta_sae.pursue(latents, atoms, 2)
    assert float(found.r2.quantile(0.1)) > 0.999
    top = found.code.topk(2).indices.sort().values
    assert float((top == which.sort().values).all(1).float().mean()) > 0.9
    torch.testing.assert_close(found.best, (unit(latents.rows) @ atoms.T).max(1).values)


def test_pursuit_is_least_squares_on_its_atoms(planted: Any) -> None:
    x, a = unit(planted[0].rows[:20]), random_units(60, 48, 7)
    found = meta_sae.pursue(x, a, 3)
    assert bool((found.code >= 0).all()) and int((found.code > 0).sum(1).max()) <= 3
    for i in (0, 7, 19):
        on = found.code[i].nonzero()[:, 0]
        if len(on) < 3:
            continue  # a negative weight was left out
        weights = torch.linalg.lstsq(a[on].T, x[i]).solution
        torch.testing.assert_close(found.code[i, on], weights, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found.made[i], weights @ a[on], rtol=1e-3, atol=1e-4)
    more = [meta_sae.pursue(x, a, k).score() for k in (1, 2, 4, 8)]
    assert more == sorted(more), "more atoms explain less"


def test_pursuit_does_without_near_copies() -> None:
    x, a = random_units(30, 12, 1), random_units(40, 12, 2)
    plain, cosine = meta_sae.pursue(x, a, 3), x @ a.T
    found = meta_sae.pursue(x, a, 3, below=0.5)
    assert bool((plain.code[cosine >= 0.5] > 0).any()) and not bool(found.code[cosine >= 0.5].any())
    assert float(found.best.max()) < 0.5 and found.score() < plain.score()
    for i in (0, 11, 29):  # as if those atoms were not there
        kept = cosine[i] < 0.5
        torch.testing.assert_close(found.code[i, kept], meta_sae.pursue(x[i : i + 1], a[kept], 3).code[0])
    torch.testing.assert_close(meta_sae.pursue(x, a, 3, below=1.1).code, plain.code)


def test_score_and_r2_by_hand() -> None:
    rows = torch.tensor([[1.0, 0], [0, 1.0], [-1.0, 0], [0, -1.0]])
    codes = meta_sae.Codes(
        torch.zeros(4, 1), torch.stack([rows[0], 0 * rows[1], rows[2], 0 * rows[3]]), rows, torch.zeros(4)
    )
    assert codes.r2.tolist() == [1, 0, 1, 0] and codes.score() == pytest.approx(0.5)
    assert codes.score(torch.tensor([1.0, 0, 1, 0])) == pytest.approx(1)


# --- reading -------------------------------------------------------------------------------------


def test_meta_latents_are_read_on_text(planted: Any, trained: Dictionary, llama: Any) -> None:
    latents = planted[0]
    read = meta_sae.MetaLatents(trained, latents)
    x = torch.randn(5, 48)
    wanted = (latents.encode(x) * latents.rows.norm(dim=-1)) @ meta_sae.decompose(trained, latents).code
    torch.testing.assert_close(read.encode(x), wanted)
    i = int(read.code.sum(0).argmax())
    members = read.members(i, 5)
    assert [s for _, s in members] == sorted((s for _, s in members), reverse=True)
    assert members[0][0] == int(read.code[:, i].argmax())
    assert i in dict(read.parts(members[0][0]))
    ids = torch.cat([tiny.prompt(llama, 16, s) for s in range(4)])
    store = FeatureStore.build(read, llama, ids)
    assert len(store) == 40 and float(store.density().max()) > 0
    assert read.vector(i).layer == 1
    with pytest.raises(ValueError, match="latent=40"):
        read.members(40)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: meta_sae.train(d, size=0), "size=0: give 1 to 300"),
        (lambda d: meta_sae.Rows(d, weight=torch.zeros(300)), r"weight has shape \[300\]"),
        (lambda d: meta_sae.Rows(d, weight=torch.ones(3)), r"weight has shape \[3\]"),
        (lambda d: meta_sae.Rows(d, batch=0), "batch=0"),
        (lambda d: meta_sae.pursue(d, torch.ones(3, 5)), "rows have width 48 and atoms 5"),
        (lambda d: meta_sae.pursue(d, d, 0), "k=0: give 1 to 48"),
        (lambda d: meta_sae.pursue(d, d, 4, below=-1.0), "below=-1.0: a row is left 0 atoms, fewer than k=4"),
        (lambda d: meta_sae.decompose(dictionary(torch.ones(3, 5)), d), "meta has rows of width 5"),
    ],
)
def test_bad_arguments(planted: Any, call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(planted[0])


def test_a_tree_shows_parts_and_their_other_members(planted: Any, trained: Dictionary, llama: Any) -> None:
    latents = planted[0]
    read = meta_sae.MetaLatents(trained, latents)
    ids = torch.cat([tiny.prompt(llama, 16, s) for s in range(4)])
    store = FeatureStore.build(latents, llama, ids)
    i = 3
    html = tree(store, read, llama, i, parts=2, members=3)
    made = read.parts(i)
    assert f"{float(read.codes.r2[i]):.0%}" in html and f"{len(made)} meta-latents" in html
    assert html.count("<details") == min(2, len(made)) and html.count(" open") == 1
    for which, weight in made[:2]:
        assert f"meta-latent #{which}</b> weight {weight:.2f}" in html
        others = [m for m, _ in read.members(which, 4) if m != i][:3]
        assert all(f"<b>#{m}</b>" in html for m in others)
    assert f"<b>#{i}</b>" not in html, "a latent is no member beside itself"
    named = tree(store, read, llama, i, parts=2, reads=lambda row: f"<p>{float(row.norm()):.4f}</p>")
    assert all(f"</summary><p>{float(read.rows[which].norm()):.4f}</p>" in named for which, _ in made[:2])
    assert html.count("<div") == html.count("</div>") and "<script" not in html
    with pytest.raises(ValueError, match="latent=300"):
        tree(store, read, llama, 300)
    with pytest.raises(ValueError, match="give one of"):
        tree(FeatureStore.build(read, llama, ids), read, llama, i)
