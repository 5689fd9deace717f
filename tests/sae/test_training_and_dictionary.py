"""Dictionaries: the source's batches, training on planted features, checkpoints, files."""

from __future__ import annotations

import os
import resource
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kit.models import activations
from kit.models.activations import capture
from kit.models.tokens import counted, text_tokens
from kit.sae import Dictionary, Site, Source, Training, evaluate, explained_variance, load, pack, train
from tests import tiny

TEXTS = [sentence for _ in range(12) for sentence in tiny.SENTENCES]
RESID, MLP = Site(1), Site(2, "mlp_out")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny.load(tmp_path_factory.mktemp("sae"), "llama")


def source(model: Any, **options: Any) -> Source:
    settings: dict[str, Any] = {"batch": 64, "context": 20, "rows": 16} | options
    return Source(model, TEXTS, settings.pop("sites", [RESID, MLP]), **settings)


# --- sites ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("blocks.3.hook_resid_post", Site(3)),
        ("blocks.3.hook_out", Site(3)),
        ("blocks.3.hook_resid_pre", Site(2)),
        ("blocks.3.hook_mlp_out", Site(3, "mlp_out")),
        ("blocks.3.mlp.hook_out", Site(3, "mlp_out")),
    ],
)
def test_hook_names_of_both_vocabularies(name: str, site: Site) -> None:
    assert Site.of(name) == site and Site.of(site.hook_name) == site


@pytest.mark.parametrize("name", ["blocks.0.hook_resid_pre", "blocks.1.attn.hook_z", "None", ""])
def test_other_hooks_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="hook_name="):
        Site.of(name)


@pytest.mark.parametrize("kind", ["gpt2", "neox", "llama"])
def test_sites_are_the_bridge_s_own(kind: str, tmp_path: Path) -> None:
    model = tiny.load(tmp_path, kind)
    tokens = tiny.prompt(model)
    kept = activations.capture(model, tokens, [RESID.place, MLP.place])
    names = {RESID: "blocks.1.hook_out", MLP: "blocks.2.mlp.hook_out"}
    _, cache = model.run_with_cache(tokens, names_filter=list(names.values()))
    for site, name in names.items():
        assert torch.allclose(kept[site.place], cache[name], atol=1e-5)


# --- the source ----------------------------------------------------------------------------------


def test_rows_hold_the_texts_one_after_another(model: Any) -> None:
    rows = pack(model, TEXTS, context=20)
    bos, eos = model.tokenizer.bos_token_id, model.tokenizer.eos_token_id
    start = int((rows[0] == bos).sum())
    assert rows.shape[1] == 20 and bool((rows[:, :start] == bos).all())
    stream = rows[:, start:].flatten().tolist()
    want = [t for text in TEXTS for t in (*model.tokenizer(text, add_special_tokens=False).input_ids, eos)]
    assert stream == want[: len(stream)] and len(want) - len(stream) < 20


def test_every_activation_is_served_once_and_is_the_model_s(model: Any) -> None:
    one = source(model, sink=float("inf"))
    per_chunk = 16 * 19 // 64
    seen = torch.cat([next(one)[RESID] for _ in range(per_chunk)])
    rows = one.tokens[one._deal[:16]]
    kept = activations.capture(model, rows, [RESID.place])[RESID.place][:, 1:].flatten(0, 1)
    gap = torch.cdist(seen.double(), kept.double())
    assert float(gap.min(1).values.max()) < 1e-3
    assert len(gap.argmin(1).unique()) > 0.9 * len(seen), "the same few rows were served again"
    assert one.rows_per_batch > 8, "a batch mixes many rows of text"


def test_sites_of_a_batch_belong_to_the_same_tokens(model: Any) -> None:
    batch = next(source(model, sink=float("inf")))
    rows = source(model).tokens
    kept = activations.capture(model, rows, [RESID.place, MLP.place])
    a, b = (kept[s.place][:, 1:].flatten(0, 1).float() for s in (RESID, MLP))
    at = torch.cdist(batch[RESID].double(), a.double()).argmin(1)
    assert torch.allclose(a[at], batch[RESID], atol=1e-3)
    assert torch.allclose(b[at], batch[MLP], atol=1e-3)


def test_sinks_are_left_out_and_counted(model: Any) -> None:
    plain, strict = source(model, sink=float("inf")), source(model, sink=1.2)
    norms = next(strict)[RESID].norm(dim=-1)
    whole = plain.harvest(0)[0][RESID].norm(dim=-1)
    assert strict.dropped > 0 and plain.dropped == 0
    assert float(norms.max()) <= 1.2 * float(whole.median()) < float(whole.max())


def test_a_pass_uses_every_chunk_and_the_next_one_another_order(model: Any) -> None:
    one = source(model)
    rows = [set(one.harvest(i)[1].tolist()) for i in range(2 * one.chunks)]
    first, second = rows[: one.chunks], rows[one.chunks :]
    assert sorted(map(sorted, first)) == sorted(map(sorted, second)) and first != second
    assert not first[0] & first[1]


def test_fewer_chunks_are_a_smaller_corpus(model: Any) -> None:
    one = source(model, chunks=1)
    rows = [set(one.harvest(i)[1].tolist()) for i in range(3)]
    assert rows[0] == rows[1] == rows[2] and len(rows[0]) == one.rows < len(one.tokens)
    with pytest.raises(ValueError, match="chunks=0: these texts make 1 to"):
        source(model, chunks=0)


def test_it_goes_on_with_the_very_next_batch(model: Any) -> None:
    one = source(model)
    for _ in range(6):
        next(one)
    other = source(model)
    other.load_state_dict(one.state_dict())
    assert torch.equal(next(one)[MLP], next(other)[MLP]) and other.served == one.served
    with pytest.raises(ValueError, match=r"seed=1: the source to go on from had 0"):
        source(model, seed=1).load_state_dict(one.state_dict())


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Models of the same sizes as the fixture's: another seed, and the same in bfloat16."""
    import kit

    folder = tmp_path_factory.mktemp("others")
    return {
        "seed": tiny.load(folder / "seed", "llama", seed=1),
        "dtype": kit.load_model(str(tiny.save(folder / "dtype", "llama")), dtype="bfloat16"),
    }


def elsewhere(model: Any, others: dict[str, Any]) -> list[tuple[str, Source]]:
    """Sources that make other activations, and what of them is another one's."""
    turned = pack(model, TEXTS, 20)[:, torch.randperm(20, generator=torch.Generator().manual_seed(0))]
    tall = pack(model, TEXTS, 20)
    tall = tall.reshape(-1, 40)  # the same tokens in rows of another length
    return [
        ("fingerprint", source(others["seed"])),
        ("dtype", source(others["dtype"])),
        ("tokens", Source(model, TEXTS[::-1], [RESID, MLP], batch=64, context=20, rows=16)),
        ("tokens", Source(model, turned, [RESID, MLP], batch=64, rows=16)),
        ("context", Source(model, tall, [RESID, MLP], batch=64, rows=16)),
        ("tokens|context", source(model, context=24)),
        ("sink", source(model, sink=3.0)),
        ("rows", source(model, rows=8)),
        ("seed", source(model, seed=1)),
    ]


def test_a_training_goes_on_with_its_own_model_and_texts_alone(model: Any, others: Any, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"widths": [1], "k": 4, "steps": 12}
    Training(source(model), **settings).save(tmp_path)
    wrong = [
        *elsewhere(model, others),
        ("chunks", source(model, chunks=1)),
        ("size", source(model, batch=32)),
        ("sites", source(model, sites=[RESID])),
    ]
    for name, stream in wrong:
        with pytest.raises(ValueError, match=rf"^({name})=.*: the source to go on from had "):
            Training(stream, **settings).restore(tmp_path)
    Training(source(model), **settings).restore(tmp_path)


def test_a_cache_is_of_one_model_dtype_and_text(model: Any, others: Any, tmp_path: Path) -> None:
    source(model, cache=tmp_path).fill()
    for name, stream in elsewhere(model, others):
        stream.cache = tmp_path
        for use in (lambda stream=stream: next(stream), lambda stream=stream: stream.fill()):
            with pytest.raises(ValueError, match=rf"made with other [a-z, ]*({name})"):
                use()
    next(source(model, cache=tmp_path))


def test_a_cache_holds_the_same_activations(model: Any, tmp_path: Path, monkeypatch: Any) -> None:
    plain, writing = source(model), source(model, cache=tmp_path)
    want = [next(plain)[RESID] for _ in range(8)]
    assert all(torch.equal(next(writing)[RESID], w) for w in want)
    monkeypatch.setattr(Source, "read_chunk", None)  # the model is not run again
    again = source(model, cache=tmp_path)
    assert all(torch.equal(next(again)[RESID], w) for w in want)
    with pytest.raises(ValueError, match="made with other sink"):
        next(source(model, cache=tmp_path, sink=3.0))
    with pytest.raises(ValueError, match="without resid 0"):
        next(source(model, cache=tmp_path, sites=[Site(0)]))


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"batch": 400}, "batch=400"),
        ({"sink": 0.5}, "sink=0.5"),
        ({"context": 1}, "context=1"),
        ({"context": 999}, "context=999"),
        ({"sites": []}, "sites is empty"),
        ({"sites": [Site(9)]}, "layer=9"),
    ],
)
def test_a_source_names_what_is_wrong(model: Any, options: Any, names: str) -> None:
    with pytest.raises(ValueError, match=names):
        source(model, **options)


# --- training ------------------------------------------------------------------------------------


class Planted:
    """A source of sparse combinations of known directions."""

    def __init__(self, n: int = 24, d: int = 48, batch: int = 512) -> None:
        rng = torch.Generator().manual_seed(3)
        self.true = torch.nn.functional.normalize(torch.randn(n, d, generator=rng), dim=-1)
        self.rng, self.batch, self.served, self.dropped, self.site = rng, batch, 0, 0, Site(1)
        self.device = torch.device("cpu")
        self.fingerprint: str | None = "f" * 16

    def __next__(self) -> dict[Site, torch.Tensor]:
        n = len(self.true)
        on = torch.rand(self.batch, n, generator=self.rng) < 3 / n
        size = 1 + torch.rand(self.batch, n, generator=self.rng)
        self.served += self.batch
        return {self.site: (on * size) @ self.true + 0.5}

    def scales(self) -> dict[Site, tuple[torch.Tensor, float]]:
        x = next(self)[self.site]
        return {self.site: (x.mean(0), x.shape[1] ** 0.5 / float(x.norm(dim=-1).mean()))}


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("batchtopk", {"k": 3}),
        ("topk", {"k": 3}),
        ("matryoshka", {"k": 3}),
        ("standard", {"sparsity": 0.5}),
        ("gated", {"sparsity": 0.5}),
        ("jumprelu", {"sparsity": 10.0}),
    ],
)
def test_planted_directions_are_found(architecture: Any, options: Any) -> None:
    planted: Any = Planted()
    run = Training(planted, widths=[1], architecture=architecture, steps=600, lr=3e-3, **options)
    run.run()
    (found,) = run.dictionaries()
    rows = torch.nn.functional.normalize(found.rows, dim=-1)
    cosines = (planted.true @ rows.T).max(-1).values
    assert int((cosines > 0.9).sum()) >= (20 if architecture == "jumprelu" else 24), cosines
    x = next(planted)[planted.site]
    assert float(explained_variance(x, found.decode(found.encode(x)))) > 0.8, "scale not folded"


def test_one_stream_trains_all_widths_and_sites(model: Any) -> None:
    run = Training(source(model), widths=[1, 2], k=4, steps=6)
    seen: list[Any] = []
    run.run(watch=seen.append)
    assert [str(d.site) for d in run.dictionaries()] == ["resid 1"] * 2 + ["mlp_out 2"] * 2
    assert [len(d) for d in run.dictionaries()] == [48, 96] * 2
    report = seen[-1]
    assert (report.step, report.steps, report.tokens) == (6, 6, 6 * 64)
    assert list(report.figures) == ["resid 1 x1", "resid 1 x2", "mlp_out 2 x1", "mlp_out 2 x2"]
    assert all(f.l0 == pytest.approx(4, abs=0.1) for f in report.figures.values())


def test_each_width_starts_from_rows_of_its_own(model: Any) -> None:
    run = Training(source(model, sites=[RESID]), widths=[1, 2], k=4, steps=6)
    narrow, wide = (torch.nn.functional.normalize(d.rows, dim=-1) for d in run.dictionaries())
    same = (narrow * wide[: len(narrow)]).sum(-1)
    assert float(same.abs().max()) < 0.8, "the wider one starts with the narrower one's rows"


def test_a_stopped_training_goes_on_to_the_same_curve(model: Any, tmp_path: Path) -> None:
    def curve(run: Training) -> list[float]:
        return [float(out.loss) for _ in range(5) for out in run.advance().values()]

    settings: dict[str, Any] = {"widths": [2], "k": 4, "steps": 12}
    whole = Training(source(model), **settings)
    first = curve(whole)
    whole.save(tmp_path)
    rest = curve(whole)
    other = Training(source(model), **settings)
    other.restore(tmp_path)
    assert other.step == 5 and curve(other) == pytest.approx(rest, rel=1e-5) != first
    with pytest.raises(ValueError, match=r"k=5: the checkpoint in .* was made with 4"):
        Training(source(model), **settings | {"k": 5}).restore(tmp_path)


@pytest.mark.parametrize("window", [1000, 2], ids=["all alive", "some dead"])
def test_sparse_steps_are_the_library_s(window: int) -> None:
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    from kit.sae.sparse import SparseBatchTopK

    torch.manual_seed(0)
    told = BatchTopKTrainingSAEConfig(d_in=24, d_sae=200, k=2.5)
    both: list[Any] = [BatchTopKTrainingSAE(told), SparseBatchTopK(told)]
    both[1].load_state_dict(both[0].state_dict())
    config = SAETrainerConfig(
        total_training_samples=640,
        train_batch_size_samples=64,
        lr=3e-3,
        lr_end=3e-3,
        dead_feature_window=window,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainers = [SAETrainer(config, sae, iter(())) for sae in both]
    planted, dead = Planted(n=30, d=24, batch=64), 0
    for _ in range(10):
        batch = next(planted)[planted.site]
        dense, sparse = (trainer.step(batch) for trainer in trainers)
        dead += int(trainers[0].dead_neurons.sum())
        assert {k: float(v) for k, v in sparse.losses.items()} == pytest.approx(
            {k: float(v) for k, v in dense.losses.items()}, rel=1e-4
        )
        assert torch.allclose(sparse.feature_acts, dense.feature_acts, atol=1e-5)
        assert torch.equal(*(trainer.n_forward_passes_since_fired for trainer in trainers))
    assert (dead > 0) == (window == 2)
    for a, b in zip(both[0].state_dict().values(), both[1].state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka"])
def test_a_short_run_fires_as_many_latents_in_inference(model: Any, architecture: Any) -> None:
    stream = source(model, sites=[RESID])
    run = Training(stream, widths=[2], architecture=architecture, k=4, steps=60)
    run.run()
    batch = next(stream)[RESID]  # with the library's own rate it would be 12 and more
    assert 3 < (run.dictionaries()[0].encode(batch) > 0).sum(-1).float().mean() < 6


def test_a_stop_waits_for_the_step_to_end(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever part of a step it comes in, the source and every optimiser have done the same steps."""
    for at in range(1, 4):
        run = Training(source(model), widths=[1], k=8, steps=20)
        calls = []

        def press(*_: Any) -> None:
            calls.append(1)
            if len(calls) == 3 + at:
                signal.raise_signal(signal.SIGINT)

        for n, trainer in enumerate(run.trainers.values()):
            real = trainer.step
            monkeypatch.setattr(trainer, "step", lambda x, real=real: (press(), real(x))[1])
        run.run(folder=tmp_path / str(at))
        assert 0 < run.step < 20
        again = Training(source(model), widths=[1], k=8, steps=20)
        again.restore(tmp_path / str(at))
        done = {again.source.served // 64, *(trainer.n_training_steps for trainer in again.trainers.values())}
        assert done == {again.step} == {run.step}


def test_half_a_checkpoint_is_none(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever file of it the disk has no room for, the last whole one stays."""
    run = Training(source(model), widths=[1], k=8, steps=20)
    run.advance()
    run.save(tmp_path)
    run.advance()
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    sizes = {file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()}
    real, full = os.rename, lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        for size in (*sorted(sizes), 0):
            if size:
                full(size // 2)
            else:  # only what comes after the weights, which is smaller than they, finds no room
                full(before[1])
                monkeypatch.setattr(os, "rename", lambda old, new: (real(old, new), full(50)))
            with pytest.raises(OSError, match=str(tmp_path)):
                run.save(tmp_path)
            again = Training(source(model), widths=[1], k=8, steps=20)
            again.restore(tmp_path)
            assert again.step == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    monkeypatch.undo()
    run.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "training.json"]


@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "b_dec", "threshold"])
def test_a_dictionary_s_file_without_numbers_is_refused(model: Any, tmp_path: Path, name: str) -> None:
    run = Training(source(model), widths=[1], k=8, steps=4)
    run.advance()
    path = run.dictionaries()[0].save(tmp_path) / "sae_weights.safetensors"
    for value in (torch.nan, torch.inf):
        weights = load_file(path)
        weights[name].view(-1)[2] = value
        save_file(weights, path)
        with pytest.raises(ValueError, match="holds NaN or infinity"):
            load(tmp_path)


@pytest.mark.parametrize(
    ("architecture", "start", "then"), [("batchtopk", 4, 2), ("topk", 4, 2), ("standard", 1.0, 30.0)]
)
def test_sparsity_changes_while_it_trains_and_is_resumed(
    model: Any, architecture: Any, start: float, then: float, tmp_path: Path
) -> None:
    told = {"sparsity": start} if architecture == "standard" else {"k": start}

    def fresh() -> Training:
        return Training(source(model, sites=[RESID]), widths=[2], architecture=architecture, steps=30, **told)

    run = fresh()
    assert run.sparsity == start
    run.run(stop=lambda: run.step == 10)
    run.sparsity = then
    (figures,) = run.report(run.advance()).figures.values()
    if architecture == "standard":
        (scheduler,) = next(iter(run.trainers.values())).coefficient_schedulers.values()
        assert scheduler.value == then  # past its warm-up of a fifth of the steps
    else:
        assert figures.l0 <= then + 0.05
    run.save(tmp_path)
    rest = [float(o.loss) for _ in range(4) for o in run.advance().values()]
    other = fresh()
    other.restore(tmp_path)
    assert other.sparsity == then and other.changes == [(10, then)]
    assert [float(o.loss) for _ in range(4) for o in other.advance().values()] == pytest.approx(rest, rel=1e-5)
    before = run.sparsity
    with pytest.raises(ValueError, match=r"=-1"):
        run.sparsity = -1
    assert run.sparsity == before


def test_train_from_texts_and_again_from_its_checkpoint(model: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "widths": [2],
        "k": 4,
        "tokens": 640,
        "batch": 64,
        "context": 20,
        "rows": 16,
        "folder": tmp_path,
    }
    (found,) = train(model, TEXTS, 1, **options)
    assert found.metadata["step"] == 10 and found.metadata["tokens"] == 640
    (again,) = train(model, TEXTS, 1, **options)  # already at its end: nothing is trained
    assert torch.equal(found.rows, again.rows)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"architecture": "sparse"}, "architecture='sparse'"),
        ({"widths": []}, "widths="),
        ({"widths": [0]}, "widths="),
        ({"k": 0}, "k=0"),
        ({"k": 1000}, "k=1000"),
        ({"k": 2.5, "architecture": "topk"}, r"k=2\.5"),
        ({"sparsity": 1.0}, r"sparsity=1\.0: batchtopk is told k"),
        ({"sparsity": -1.0, "architecture": "standard"}, r"sparsity=-1\.0"),
        ({"steps": 0}, "steps=0"),
        ({"lr": 0}, "lr=0"),
    ],
)
def test_training_names_what_is_wrong(model: Any, options: Any, names: str) -> None:
    with pytest.raises(ValueError, match=names):
        Training(source(model), **options)


# --- dictionaries and files ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(model: Any) -> Dictionary:
    run = Training(source(model, sites=[RESID]), widths=[2], k=4, steps=40)
    run.run()
    return run.dictionaries()[0]


def test_a_folder_is_the_same_dictionary(model: Any, trained: Dictionary, tmp_path: Path) -> None:
    back = load(trained.save(tmp_path), model=model)
    assert (back.name, back.site, back.fingerprint) == (trained.name, RESID, trained.fingerprint)
    assert back.metadata == trained.metadata
    x = torch.randn(7, 48)
    assert torch.equal(back.encode(x), trained.encode(x))
    from sae_lens import SAE

    plain = SAE.load_from_disk(tmp_path)  # anyone's sae-lens reads it
    assert torch.allclose(plain.encode(x), trained.encode(x))


def test_half_precision_on_disk_and_not_in_memory(trained: Dictionary, tmp_path: Path) -> None:
    trained.save(tmp_path / "half", torch.bfloat16)
    trained.save(tmp_path / "full")
    size = {p.parent.name: p.stat().st_size for p in tmp_path.rglob("*.safetensors")}
    assert size["half"] < 0.55 * size["full"]
    back = load(tmp_path / "half")
    assert trained.rows.dtype == back.rows.dtype == torch.float32
    assert torch.allclose(back.rows, trained.rows, atol=0.01, rtol=0.01)


def test_latents_of_a_text_and_a_latent_as_a_vector(model: Any, trained: Dictionary) -> None:
    text = TEXTS[0]
    latents = trained.read(model, text)
    n = text_tokens(model, text).shape[1]
    assert latents.shape == (n, 96) and bool((latents >= 0).all())
    assert trained.read(model, text_tokens(model, text)[0]).equal(latents)
    v = trained.vector(5)
    assert torch.allclose(v.direction, torch.nn.functional.normalize(trained.rows[5], dim=0))
    assert v.layer == 1 and v.metadata["row_norm"] == pytest.approx(float(trained.rows[5].norm()))
    for latent in (-1, 96, True, 1.0):
        with pytest.raises(ValueError, match="'resid 1 x2' has 0 to 95"):
            trained.vector(latent)  # type: ignore[arg-type]


def test_other_models_are_refused(model: Any, trained: Dictionary, tmp_path: Path) -> None:
    other = tiny.load(tmp_path / "a", "llama", seed=1)
    with pytest.raises(ValueError, match="belongs to model"):
        trained.read(other, "hello")
    with pytest.raises(ValueError, match="layer=9"):
        replace(trained, site=Site(9)).check(model)


def test_another_width_is_refused(model: Any) -> None:
    narrow: Any = Planted(n=4, d=32)
    narrow.fingerprint = None
    (found,) = Training(narrow, widths=[1], k=2, steps=1).dictionaries()
    with pytest.raises(ValueError, match="writes 32 dimensions at layer 1; this model has 48"):
        found.check(model)


def test_files_that_are_no_dictionary(trained: Dictionary, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"cfg\.json"):
        load(tmp_path / "nothing")
    trained.save(tmp_path / "odd")
    path = tmp_path / "odd" / "cfg.json"
    text = path.read_text()
    path.write_text(text.replace("hook_resid_post", "attn.hook_q"))
    with pytest.raises(ValueError, match="hook_name="):
        load(tmp_path / "odd")
    path.write_text(
        text.replace('"normalize_activations": "none"', '"normalize_activations": "expected_average_only_in"')
    )
    with pytest.raises(ValueError, match="normalize_activations="):
        load(tmp_path / "odd")


# --- quality -------------------------------------------------------------------------------------


def exact(site: Site, size: float = 1.0) -> Dictionary:
    """A dictionary that gives back ``size`` times what it reads: rows are the axes, both signs."""
    from sae_lens import StandardSAE, StandardSAEConfig

    sae = StandardSAE(StandardSAEConfig(d_in=48, d_sae=96))
    axes = torch.cat([torch.eye(48), -torch.eye(48)])
    sae.W_enc.data, sae.W_dec.data = axes.T.clone(), size * axes
    sae.b_enc.data.zero_()
    sae.b_dec.data.zero_()
    return Dictionary(sae, site, "exact")


@pytest.mark.parametrize("site", [RESID, MLP])
def test_a_perfect_dictionary_recovers_everything_and_an_empty_one_nothing(model: Any, site: Site) -> None:
    whole, none = (evaluate(exact(site, size), model, TEXTS, context=20, rows=12) for size in (1.0, 0.0))
    assert whole.ce_sae == pytest.approx(whole.ce_clean, abs=1e-5)
    assert abs(whole.kl) < 1e-5
    assert whole.explained_variance == pytest.approx(1, abs=1e-6)
    assert whole.l0 == pytest.approx(48, abs=0.1)
    assert none.ce_sae == pytest.approx(none.ce_zero, abs=1e-6)
    assert none.kl > 0 and none.explained_variance <= 0
    for got, want in ((whole, 1.0), (none, 0.0)):  # on a random model zeros may do no harm
        share = pytest.approx(want, abs=1e-4)
        assert got.ce_recovered == share if got.ce_zero > got.ce_clean else got.ce_recovered != share


def test_losses_are_those_of_the_patched_bridge(model: Any) -> None:
    """One row, by hand through the bridge's own hook point."""
    tokens = pack(model, TEXTS, 20)[:1]
    found = exact(RESID, 0.5)
    got = evaluate(found, model, tokens, sink=float("inf"))

    def patch(x: torch.Tensor, hook: Any) -> torch.Tensor:
        return torch.cat([x[:, :1], 0.5 * x[:, 1:]], dim=1)

    name = "blocks.1.hook_out"
    for hooks, want in (([], got.ce_clean), ([(name, patch)], got.ce_sae)):
        log_p = model.run_with_hooks(tokens, fwd_hooks=hooks)[0, 1:-1].log_softmax(-1)
        ce = -log_p.gather(1, tokens[0, 2:, None]).mean()
        assert want == pytest.approx(float(ce), abs=1e-4)
    assert got.tokens == 19 and got.sinks == 1 / 20


def test_sinks_are_measured_apart(model: Any) -> None:
    got = evaluate(exact(RESID, 0.5), model, TEXTS, context=20, rows=12, sink=1.1)
    plain = evaluate(exact(RESID, 0.5), model, TEXTS, context=20, rows=12, sink=float("inf"))
    assert 0.05 < got.sinks < 0.6 and plain.sinks == pytest.approx(1 / 20)  # each row's first
    assert got.explained_variance_all == pytest.approx(plain.explained_variance_all)
    x = capture(model, pack(model, TEXTS, 20)[:12], [RESID.place])[RESID.place].double()
    for found, some in ((got.explained_variance_all, x.flatten(0, 1)), (got.explained_variance, x[counted(x, 1.1)])):
        left = (0.5 * some).square().sum() / (some - some.mean(0)).square().sum()
        assert found == pytest.approx(1 - float(left), abs=1e-4)


def test_dead_latents_and_l0_against_brute_force(model: Any, trained: Dictionary) -> None:
    tokens = pack(model, TEXTS, 20)[:6]
    got = evaluate(trained, model, tokens, sink=float("inf"))
    on = torch.cat([trained.read(model, row)[1:] for row in tokens]) > 0
    assert got.l0 == pytest.approx(float(on.float().sum(1).mean()), rel=1e-5)
    assert got.dead == pytest.approx(float((~on.any(0)).float().mean()), abs=1e-6)
