"""MCS, its controls, ablated latents and k-sparse probes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kit.base.directions import random_units
from kit.models.bridge import runtime
from kit.sae import Neighbours, Site, children, importance, mcs, mcs_table, pages, sparse_probe
from tests import tiny
from tests.sae.test_inspect import one_latent


def named(rows: torch.Tensor, name: str) -> Any:
    from sae_lens import StandardSAE, StandardSAEConfig

    from kit.sae import Dictionary

    sae = StandardSAE(StandardSAEConfig(d_in=rows.shape[1], d_sae=len(rows)))
    sae.W_dec.data = rows.clone()
    return Dictionary(sae, Site(1), name)


def test_rows_find_themselves_whatever_their_length_and_order() -> None:
    rows = random_units(20, 16, 1)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    found = mcs(rows, 3 * rows[order])
    assert torch.allclose(found.cosine, torch.ones(20), atol=1e-5)
    assert torch.equal(order[found.nearest], torch.arange(20)) and found.mean == pytest.approx(1)


def test_it_is_signed_and_directional() -> None:
    small, extra = random_units(6, 32, 1), random_units(40, 32, 2)
    large = torch.cat([small, extra])
    assert mcs(small, large).mean == pytest.approx(1, abs=1e-5)
    assert mcs(large, small).mean < 0.6
    assert float(mcs(small, -small).cosine.max()) < 0.6
    with pytest.raises(ValueError, match="rows of one width"):
        mcs(small, small[:, :5])


def test_the_table_stands_beside_its_controls() -> None:
    rows = random_units(80, 24, 3)
    widths = [named(rows[:n], f"x{n}") for n in (20, 40, 80)]
    untrained = [named(random_units(n, 24, n), f"u{n}") for n in (20, 40, 80)]
    table = mcs_table(widths, untrained)
    assert table.a.tolist() == ["x20", "x40"] and table.b.tolist() == ["x40", "x80"]
    assert table.mmcs.tolist() == pytest.approx([1, 1], abs=1e-5)
    assert table.found.tolist() == [1, 1] and table.untrained_found.tolist() == [0, 0]
    assert (table.random < 0.8).all() and (table.untrained < 0.8).all()
    assert "untrained" not in mcs_table(widths).columns
    with pytest.raises(ValueError, match="give two or more"):
        mcs_table(widths[:1])
    with pytest.raises(ValueError, match=r"give the sizes \[20, 40, 80\]"):
        mcs_table(widths, untrained[:2])


def test_taking_a_latent_out_costs_what_the_patched_model_says(llama: Any) -> None:
    tokens = torch.cat([tiny.prompt(llama, 10, s) for s in (1, 2)])
    latent = one_latent(torch.randn(48, generator=torch.Generator().manual_seed(6)), Site(1))
    got = importance(latent, llama, tokens, [0, 1])
    row = latent.rows[0]

    def patch(x: torch.Tensor, hook: Any) -> torch.Tensor:
        part = latent.encode(x)[..., :1] * row
        part[:, 0] = 0
        return x - part

    def loss(hooks: Any) -> float:
        log_p = llama.run_with_hooks(tokens, fwd_hooks=hooks)[:, :-1].log_softmax(-1)
        return -float(log_p.gather(-1, tokens[:, 1:, None]).mean())

    want = loss([("blocks.1.hook_out", patch)]) - loss([])
    assert float(got[0]) == pytest.approx(want, abs=1e-4) and abs(want) > 1e-3
    assert float(got[1]) == pytest.approx(0, abs=1e-6), "a latent that never fires costs nothing"


def test_a_sparse_probe_finds_the_features_that_matter() -> None:
    rng = torch.Generator().manual_seed(4)

    def draw(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.randint(0, 2, (n,), generator=rng)
        x = torch.randn(n, 30, generator=rng)
        x[:, 11] += 4 * y
        x[:, 3] -= 2 * y
        return x, y

    train, test = draw(400), draw(400)
    one, best = sparse_probe(train, test, 1)
    assert best == [11] and one > 0.93
    two, pair = sparse_probe(train, test, 2)
    assert sorted(pair) == [3, 11] and two >= one
    everything, all_of_them = sparse_probe(train, test, None)
    assert len(all_of_them) == 30 and everything > 0.95
    shuffled = (train[0], train[1][torch.randperm(400, generator=rng)])
    assert sparse_probe(shuffled, test, 1)[0] < 0.7
    for k in (0, 31, 1.5):
        with pytest.raises(ValueError, match="give 1 to 30"):
            sparse_probe(train, test, k)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one class only"):
        sparse_probe((train[0], torch.ones(400)), test, 1)


def test_children_are_the_latents_that_one_split_into() -> None:
    a = random_units(3, 64, 1)
    b = torch.cat([a[0] + 0.3 * random_units(2, 64, 2), a[2:] * 5, random_units(4, 64, 3)])
    assert children(a, b, 0.8) == [[0, 1], [], [2]]


def test_neighbours_here_elsewhere_and_in_what_they_say(llama: Any) -> None:
    rows = random_units(12, 48, 4)
    rows[5] = rows[2] + 0.1 * rows[5]
    here, there = named(rows, "here"), named(torch.cat([rows[7:9], rows[:2]]), "there")
    near = Neighbours(here, llama, [there])
    assert near.same(2, 1)[0] == (5, pytest.approx(float(torch.cosine_similarity(rows[2], rows[5], dim=0))))
    ((found, index, cosine),) = near.elsewhere(8)
    assert found is there and index == 1 and cosine == pytest.approx(1, abs=1e-5)
    # by brute force: angles between the changes of all log-odds
    unembed = runtime(llama).decoder.get_output_embeddings().weight.detach().float()
    gain = runtime(llama).decoder.model.norm.weight.detach()
    said = (rows * gain) @ unembed.T
    said = torch.nn.functional.normalize(said - said.mean(-1, keepdim=True), dim=-1)
    cosines = said @ said[3]
    cosines[3] = -2
    best, value = near.saying(3, 1)[0]
    assert best == int(cosines.argmax()) and value == pytest.approx(float(cosines.max()), abs=1e-3)
    with pytest.raises(ValueError, match="latent=12"):
        near.same(12)
    text = pages.neighbours(near, 2)
    assert "#5</span> (+" in text and "there #" in text
