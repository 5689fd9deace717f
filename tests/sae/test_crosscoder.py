"""Crosscoders and meta-SAEs: planted truth, files, two models side by side, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kit.base.directions import unit
from kit.lens import Lens
from kit.models import activations
from kit.models.activations import capture
from kit.models.tokens import counted
from kit.sae import Directions, FeatureStore, Site, ablated_text
from kit.sae import crosscoders as cc
from kit.sae.crosscoders.losses import PairedBatchTopK, PairedStandard, norms
from kit.sae.crosscoders.training import CrosscoderTraining
from kit.sae.sections import both_models
from kit.sae.steered_latent import Latent
from kit.widgets import FeatureBrowser, SteeringPanel
from tests import tiny

TEXTS = [sentence for _ in range(12) for sentence in tiny.SENTENCES]
SITE = Site(1)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model and a copy of which one matrix was changed."""
    models = [tiny.load(tmp_path_factory.mktemp(name), "llama") for name in "ab"]
    from kit.models.bridge import runtime

    weight = runtime(models[1]).port(1, "neurons")[0].weight
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    weight.data += 0.3 * noise * weight.std()
    return tuple(models)


def source(pair: Any, **options: Any) -> cc.PairedSource:
    settings: dict[str, Any] = {"batch": 64, "context": 20, "rows": 16} | options
    return cc.PairedSource(pair, TEXTS, SITE, **settings)


class Planted:
    """Two models with 24 directions in common, and 6 of its own each."""

    def __init__(self, d: int = 48, batch: int = 512) -> None:
        rng = torch.Generator().manual_seed(3)
        self.rows = unit(torch.randn(36, 2, d, generator=rng))
        self.rows[24:30, 1] = 0  # of the first model only
        self.rows[30:, 0] = 0
        self.rng, self.batch, self.served, self.dropped, self.site = rng, batch, 0, 0, SITE
        self.device = torch.device("cpu")
        self.fingerprint, self.factors = "planted", torch.ones(2)

    def __next__(self) -> Any:
        on = torch.rand(self.batch, 36, generator=self.rng) < 3 / 36
        size = on * (1 + torch.rand(self.batch, 36, generator=self.rng))
        self.served += self.batch
        return {self.site: torch.einsum("nl,lmd->nmd", size, self.rows).flatten(1)}

    def scales(self) -> Any:
        x = next(self)[self.site]
        return {self.site: (x.mean(0), x.shape[1] ** 0.5 / float(x.norm(dim=-1).mean()))}


class _Training(CrosscoderTraining):
    def crosscoder(self, name: str | None = None) -> cc.Crosscoder:
        planted = self.source
        planted.models = ()  # type: ignore[attr-defined]
        return super().crosscoder(name)


# --- planted truth -------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["batchtopk", "standard"])
def trained(request: pytest.FixtureRequest) -> tuple[Planted, cc.Crosscoder]:
    planted: Any = Planted()
    options: Any = {"k": 2.8, "lr": 2e-3}
    if request.param == "standard":
        options = {"sparsity": 0.6, "lr": 3e-3}
    run = _Training(planted, widths=[64 / 96], architecture=request.param, steps=1200, **options)
    run.run()
    return planted, run.crosscoder()


def test_shared_and_exclusive_directions_are_found(trained: Any) -> None:
    planted, found = trained
    x = next(planted)[SITE]
    alive = found.encode(next(planted)[SITE]).amax(0) > 0
    r = found.relative_norm
    for at, low, high in ((slice(0, 24), 0.3, 0.7), (slice(24, 30), -1, 0.1), (slice(30, 36), 0.9, 2)):
        true = unit(planted.rows[at].flatten(1))
        on = alive & (r > low) & (r <= high)
        cosine = (true @ unit(found.decoder[on].flatten(1)).T).max(1).values
        # all of them here; another machine's order of summation may merge a pair
        assert int((cosine > 0.9).sum()) >= len(true) - len(true) // 6, (at, cosine)
    made = found.decode(found.encode(x)).flatten(1)
    assert float(1 - (x - made).square().sum() / (x - x.mean(0)).square().sum()) > 0.9
    assert torch.allclose(found.decoder.norm(dim=-1).sum(-1), torch.ones(64), atol=1e-5)


def test_the_penalty_s_artefact(trained: Any) -> None:
    """With the penalty more latents than the planted six look exclusive to a model; BatchTopK has
    just those."""
    planted, found = trained
    alive = found.encode(next(planted)[SITE]).amax(0) > 0
    r = found.relative_norm[alive]
    exclusive = int((r < 0.1).sum()), int((r > 0.9).sum())
    if found.metadata["architecture"] == "batchtopk":
        assert all(5 <= n <= 7 for n in exclusive), exclusive
    else:
        assert sum(exclusive) > 14, exclusive


def test_dedicated_latents_find_what_one_model_has() -> None:
    planted: Any = Planted()
    run = _Training(
        planted, dedicated=(8, 9), dedicated_k=0.9, difference=1, widths=[64 / 96], steps=1200, k=2.8, lr=2e-3
    )
    run.run()
    found = run.crosscoder()
    assert found.metadata["dedicated"] == [8, 9]
    r = found.relative_norm
    assert bool((r[:8] == 0).all()) and bool((r[8:17] == 1).all()), "exactly, to the end"
    assert bool(((r > 0) & (r < 1))[17:].all())
    assert not found.encoder[:8, 1].any() and not found.encoder[8:17, 0].any()
    for at, mine, like in ((slice(24, 30), slice(0, 8), r < 0.1), (slice(30, 36), slice(8, 17), r > 0.9)):
        true = unit(planted.rows[at].flatten(1))
        found_by = [
            int(((true @ unit(found.decoder[on].flatten(1)).T).max(1).values > 0.9).sum()) for on in (mine, like)
        ]
        assert found_by[0] >= 2 and found_by[1] >= 5, "free latents may be quicker"
    for bad in ((-1, 0), (40, 25)):
        with pytest.raises(ValueError, match=r"at most the 64 latents"):
            _Training(planted, dedicated=bad, dedicated_k=1, widths=[64 / 96], steps=2, k=2)


def test_losses_weigh_by_the_sum_of_norms() -> None:
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput
    from sae_lens.saes.standard_sae import StandardTrainingSAEConfig

    torch.manual_seed(0)
    x = torch.randn(7, 12)
    dense = PairedStandard(StandardTrainingSAEConfig(d_in=12, d_sae=9))
    f = dense.encode(x)
    told: Any = TrainStepInput(
        sae_in=x, coefficients={"l1": 2.0}, dead_neuron_mask=None, n_training_steps=0, is_logging_step=False
    )
    loss = dense.calculate_aux_loss(told, f, f, x)["l1_loss"]
    rows = dense.W_dec
    size = torch.stack([row[:6].norm() + row[6:].norm() for row in rows])
    assert torch.allclose(norms(rows), size) and torch.allclose(loss, 2 * (f * size).sum(-1).mean())
    sparse = PairedBatchTopK(BatchTopKTrainingSAEConfig(d_in=12, d_sae=9, k=2))
    sparse.W_dec.data[0] *= 50  # whoever writes most, times how much, is kept
    told.coefficients, told.dead_neuron_mask = {}, torch.zeros(9, dtype=torch.bool)
    out = sparse.training_forward_pass(told)
    pre = (sparse.process_sae_in(x) @ sparse.W_enc + sparse.b_enc) * norms(sparse.W_dec)
    best = pre.clamp(min=0).flatten().topk(14).indices
    assert torch.equal(out.feature_acts.flatten().nonzero()[:, 0], best.sort().values)


# --- two models ----------------------------------------------------------------------------------


def test_batches_hold_both_models_on_the_same_tokens(pair: Any) -> None:
    stream = source(pair)
    batch, row = stream.harvest(0)
    halves = batch[SITE].unflatten(-1, (2, -1))
    torch.testing.assert_close(halves.norm(dim=-1).mean(0), torch.full((2,), 48**0.5))
    plain = torch.cat([capture(m, stream.tokens, [SITE.place])[SITE.place] for m in pair], -1)
    wanted = (plain.unflatten(-1, (2, -1)) * stream.factors[:, None]).flatten(-2)  # type: ignore[index]
    for i in (0, 7, 100):
        distance = (wanted[row[i], 1:] - batch[SITE][i]).norm(dim=-1)
        assert float(distance.min()) < 1e-4, "not an activation of its own row of text"


def test_every_chunk_is_new_until_all_were_served(pair: Any) -> None:
    stream = source(pair, rows=8, batch=32)
    seen = torch.cat([stream.harvest(i)[1].unique() for i in range(stream.chunks)])
    assert len(seen.unique()) == len(seen) == 8 * stream.chunks, "a row came twice, or never"


def test_a_sink_of_either_model_is_left_out(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = activations.capture

    def with_a_sink(m: Any, rows: torch.Tensor, places: Any) -> Any:
        kept = plain(m, rows, places)
        (x,) = kept.values()
        x[:, 3 if m is pair[0] else 5] *= 1000
        return kept

    monkeypatch.setattr(activations, "capture", with_a_sink)
    stream = source(pair)
    batch, row = stream.harvest(0)
    assert stream.dropped == 2 * 16 and len(row) == 16 * (19 - 2)
    assert float(batch[SITE].abs().max()) < 100


def test_a_stopped_training_goes_on_to_the_same_curve(pair: Any, tmp_path: Path) -> None:
    def curve(run: CrosscoderTraining) -> list[float]:
        return [float(out.loss.detach()) for _ in range(8) for out in run.advance().values()]

    settings: dict[str, Any] = {"widths": [1], "k": 4, "steps": 24, "dedicated": (2, 3), "dedicated_k": 1}
    whole = CrosscoderTraining(source(pair, rows=8, batch=32), **settings)
    curve(whole)
    whole.save(tmp_path)
    rest = curve(whole)
    other = CrosscoderTraining(source(pair, rows=8, batch=32), **settings)
    other.restore(tmp_path)
    assert curve(other) == pytest.approx(rest, rel=1e-5)
    norm = other.crosscoder().relative_norm
    assert norm[:5].tolist() == [0, 0, 1, 1, 1] and bool(((norm > 0) & (norm < 1))[5:].all())
    with pytest.raises(ValueError, match="was made with"):
        CrosscoderTraining(source(pair, rows=8, batch=32), widths=[1], k=4, steps=24).restore(tmp_path)
    wrong = {"fingerprint": source(pair[::-1], rows=8, batch=32), "sink": source(pair, rows=8, batch=32, sink=3.0)}
    for name, stream in wrong.items():
        with pytest.raises(ValueError, match=rf"{name}=.*: the source to go on from had "):
            CrosscoderTraining(stream, **settings).restore(tmp_path)


@pytest.fixture(scope="module")
def real(pair: Any) -> cc.Crosscoder:
    run = CrosscoderTraining(source(pair), widths=[1], k=6, steps=150, lr=3e-3)
    run.run()
    return run.crosscoder("two")


def test_it_is_what_was_trained(pair: Any, real: cc.Crosscoder) -> None:
    run = CrosscoderTraining(source(pair), widths=[1], k=6, steps=40, lr=3e-3)
    run.run()
    found, (sae,) = run.crosscoder(), [t.sae for t in run.trainers.values()]
    (scale,) = [t.activation_scaler.scaling_factor for t in run.trainers.values()]
    x = next(run.source)[SITE]  # already times the source's factors
    both = (x.unflatten(-1, (2, -1)) / run.source.factors[:, None]).flatten(-2)  # type: ignore[attr-defined]
    pre = ((x * scale - sae.b_dec * sae.cfg.apply_b_dec_to_input) @ sae.W_enc + sae.b_enc).detach()
    torch.testing.assert_close(found.before(both), pre * norms(sae.W_dec).detach(), rtol=1e-3, atol=1e-3)
    f = found.encode(both)
    theirs = (f / norms(sae.W_dec)) @ sae.W_dec + sae.b_dec
    mine = (found.decode(f) * found.factors[:, None]).flatten(-2)
    torch.testing.assert_close(mine, theirs.detach(), rtol=1e-3, atol=1e-3)
    tokens = source(pair).tokens
    quality = cc.evaluate(real, pair, tokens)
    assert min(quality.explained_variance) > 0.4 and 3 < quality.l0 < 12, quality


def test_files_come_back(pair: Any, real: cc.Crosscoder, tmp_path: Path) -> None:
    found = cc.Crosscoder.load(real.save(tmp_path / "c.safetensors"), pair)
    for name in cc.model._NAMES:
        assert torch.equal(getattr(found, name), getattr(real, name))
    assert (found.name, found.site, found.fingerprints) == ("two", SITE, real.fingerprints)
    assert found.metadata["k"] == 6
    half = cc.Crosscoder.load(real.save(tmp_path / "h.safetensors", torch.bfloat16))
    assert torch.allclose(half.decoder, real.decoder, atol=1e-2)
    with pytest.raises(ValueError, match="swap them"):
        cc.Crosscoder.load(tmp_path / "c.safetensors", pair[::-1])
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    with pytest.raises(ValueError, match="damaged or no safetensors"):
        cc.Crosscoder.load(tmp_path / "junk.safetensors")


def test_latents_go_to_stores_and_panels(pair: Any, real: cc.Crosscoder) -> None:
    latents = cc.PairedLatents(real, pair)
    tokens = source(pair).tokens[:20]
    store = FeatureStore.build(latents, pair[1], tokens)
    both = torch.cat([capture(m, tokens, [SITE.place])[SITE.place] for m in pair], -1)
    i = int(store.density().argmax())
    where, value = store.entries(i)
    torch.testing.assert_close(value, real.encode(both).flatten(0, 1)[where, i])
    vector = real.vector(i)
    assert vector.fingerprint == real.fingerprints[1] and vector.layer == 1
    torch.testing.assert_close(vector.direction, unit(real.rows(1)[i]))
    with pytest.raises(ValueError, match="side by side"):
        latents.encode(torch.zeros(1, 48))
    with pytest.raises(ValueError, match="which=2"):
        real.vector(i, 2)


def test_what_each_model_contributes_adds_up(pair: Any, real: cc.Crosscoder) -> None:
    latents, tokens = cc.PairedLatents(real, pair), source(pair).tokens[:3]
    parts = latents.contributions(5, tokens)
    assert parts.shape == (2, *tokens.shape)
    both = latents.activations(pair[1], tokens)
    pre = latents.before(both.flatten(0, 1))[:, 5].view(tokens.shape)
    torch.testing.assert_close(parts.sum(0) + real.bias[5], pre, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="latent=-1"):
        latents.contributions(-1, tokens)
    with pytest.raises(ValueError, match="models=None"):
        cc.PairedLatents(real, None).contributions(5, tokens)


def test_ablated_text_follows_both_models(pair: Any, real: cc.Crosscoder) -> None:
    """Gradient x activation is that of the two models' embeddings, added: finite differences."""
    latents, ids = cc.PairedLatents(real, pair), source(pair).tokens[0, :6]
    i = int(latents.read(pair[1], ids)[-1].argmax())
    found = ablated_text(latents, pair[1], ids, i)
    assert float(found.value) == pytest.approx(float(latents.read(pair[1], ids)[-1, i]))
    without = latents.read(pair[1], torch.cat([ids[:2], ids[3:]]))[-1, i]
    assert float(found.change[2]) == pytest.approx(float(without) - found.value, abs=1e-4)

    tables = [m.original_model.get_input_embeddings().weight for m in pair]

    def pre() -> float:
        return float(latents.before(latents.activations(pair[1], ids[None])[:, -1])[0, i])

    here, step = int(ids[3]), 1e-2
    assert (ids == here).sum() == 1
    values = []
    for sign in (1, -1):
        kept = [t[here].clone() for t in tables]
        try:
            with torch.no_grad():
                for t in tables:
                    t[here] *= 1 + sign * step
            values.append(pre())
        finally:
            with torch.no_grad():
                for t, old in zip(tables, kept, strict=True):
                    t[here] = old
    slope = (values[0] - values[1]) / (2 * step)
    assert float(found.gradient[3]) == pytest.approx(slope, rel=0.03, abs=2e-3)


def test_a_browser_shows_both_models_and_steers_one(pair: Any, real: cc.Crosscoder, tmp_path: Path) -> None:
    tokens = source(pair).tokens[:20]
    latents = cc.PairedLatents(real, pair)
    store = FeatureStore.build(latents, pair[1], tokens)
    panel = SteeringPanel(pair[1], [], "The kettle", max_new_tokens=4, chat=False)
    first, second = (Lens(model, {real.site.layer: torch.eye(model.cfg.d_model)}) for model in pair)
    figures = {"norm": real.relative_norm}
    FeatureBrowser(store, pair[1], lens=second, labels=None).close()  # of either model
    with pytest.raises(ValueError, match="lens: it is of another model"):
        FeatureBrowser(store, pair[1], lens=Lens(tiny.load(tmp_path, "llama"), first.matrices), labels=None)
    browser = FeatureBrowser(
        store, pair[1], panel=panel, figures=figures, lens=first, more=lambda i: both_models(store, i, n=2)
    )
    browser.sort_by("norm")
    browser.show(browser.listed[0])
    html = browser._page.value
    assert html.count("first model") == html.count("second model") == 2 and "reads as" in html
    assert f"relative norm {float(real.relative_norm[browser.latent]):.2f}" in html
    assert html.count("<div") == html.count("</div>") and html.count("<span") == html.count("</span>")
    try:
        name = browser.to_panel()
        panel.run(timeout=60)
        (row,) = panel._vectors.children
        assert row.vector.name == name
        torch.testing.assert_close(row.vector.direction, real.vector(browser.latent).direction)
    finally:
        panel.close()
    with pytest.raises(ValueError, match="reads two models"):
        Latent(latents, 0).parts(pair[1])  # type: ignore[arg-type]
    dead = int(store.density().argmin())
    if store.density()[dead] == 0:
        assert "never fires" in both_models(store, dead)
    with pytest.raises(ValueError, match="crosscoder's PairedLatents"):
        both_models(FeatureStore.build(Directions([real.vector(0)], pair[1], tokens), pair[1], tokens), 0)


def test_latent_scaling_is_least_squares(pair: Any, real: cc.Crosscoder) -> None:
    tokens = source(pair).tokens[:24]
    found = cc.latent_scaling(real, pair, tokens)
    both = torch.cat([capture(m, tokens, [SITE.place])[SITE.place] for m in pair], -1)
    halves = both.unflatten(-1, (2, -1))
    keep = counted(halves[..., 0, :]) & counted(halves[..., 1, :])
    f, x = real.encode(both)[keep], halves[keep] * real.factors[:, None]
    made = torch.einsum("nl,lmd->nmd", f, real.decoder)
    i = int(f.sum(0).argmax())
    basis = torch.einsum("n,d->nd", f[:, i], real.decoder[i, 1]).flatten()[:, None]
    without = x - made - real.offset + torch.einsum("n,md->nmd", f[:, i], real.decoder[i])
    for mine, y in ((found.error, without), (found.reconstruction, made)):
        for m in (0, 1):
            wanted = torch.linalg.lstsq(basis, y[:, m].reshape(-1, 1)).solution
            assert float(mine[i, m]) == pytest.approx(float(wanted), rel=1e-2, abs=1e-3)
    assert int(found.fired[i]) == int((f[:, i] > 0).sum())
    table = cc.summary(real, found)
    assert table["latents"].sum() == len(real)
    with pytest.raises(ValueError, match="of='all'"):
        found.ratio("all")


def test_pairs_that_do_not_fit(pair: Any, tmp_path: Path, tiny_model: Any) -> None:
    deep = tiny.load(tmp_path / "deep", "llama", num_hidden_layers=5)
    wide = tiny.load(tmp_path / "wide", "llama", hidden_size=64)
    with pytest.raises(ValueError, match=r"differ in their depths \(n_layers 4 and 5\)"):
        cc.check_pair((pair[0], deep))
    with pytest.raises(ValueError, match=r"differ in their widths \(d_model 48 and 64\)"):
        cc.check_pair((pair[0], wide))
    with pytest.raises(ValueError, match="same weights"):
        cc.check_pair((pair[0], pair[0]))
    with pytest.raises(ValueError, match="has 1 entries"):
        cc.check_pair((pair[0],))  # type: ignore[arg-type]


def test_other_tokenizers_are_refused(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        type(pair[1].tokenizer), "get_vocab", lambda self: {} if self is pair[1].tokenizer else {"a": 0}
    )
    with pytest.raises(ValueError, match="different tokenizers"):
        cc.check_pair(pair)
