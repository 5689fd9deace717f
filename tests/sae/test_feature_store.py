"""The store against brute force, and what it survives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kit.models.activations import capture
from kit.sae import (
    Dictionary,
    Directions,
    FeatureStore,
    Neurons,
    Site,
    Source,
    Training,
    entries,
    load,
    pack,
    read_prompt,
)
from tests import tiny

TEXTS = [sentence for _ in range(12) for sentence in tiny.SENTENCES]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny.load(tmp_path_factory.mktemp("store"), "llama")


@pytest.fixture(scope="module")
def dictionary(model: Any) -> Dictionary:
    source = Source(model, TEXTS, [Site(1)], batch=64, context=20, rows=16)
    run = Training(source, widths=[2], k=4, steps=40)
    run.run()
    found = run.dictionaries()[0]
    found.sae.threshold.data[7] = 1e9  # a dead latent
    return found


@pytest.fixture(scope="module")
def tokens(model: Any) -> torch.Tensor:
    return pack(model, TEXTS, 20)[:40]


@pytest.fixture(scope="module")
def dense(model: Any, dictionary: Dictionary, tokens: torch.Tensor) -> torch.Tensor:
    """``[rows, context, latents]``, by one pass over everything."""
    latents = dictionary.encode(capture(model, tokens, [(1, "resid")])[1, "resid"])
    latents[:, 0] = 0
    return latents


@pytest.fixture(scope="module")
def store(model: Any, dictionary: Dictionary, tokens: torch.Tensor) -> FeatureStore:
    return FeatureStore.build(dictionary, model, tokens)


def busiest(store: FeatureStore) -> int:
    return int(store.density().argmax())


def test_it_holds_every_activation(store: FeatureStore, dense: torch.Tensor) -> None:
    rebuilt = torch.zeros_like(dense).flatten(0, 1)
    for i in range(len(store)):
        where, value = store.entries(i)
        rebuilt[where, i] = value
        assert bool((where.diff() > 0).all())
    assert torch.allclose(rebuilt, dense.flatten(0, 1), atol=1e-4)


def test_densities_maxima_and_means(store: FeatureStore, dense: torch.Tensor) -> None:
    flat = dense[:, 1:].flatten(0, 1)
    on = flat > 0
    assert torch.allclose(store.density(), on.float().mean(0), atol=1e-6)
    assert torch.allclose(store.maxima(), flat.amax(0), atol=1e-4)
    assert torch.allclose(store.means(), flat.sum(0) / on.sum(0).clamp(min=1), atol=1e-4)
    assert float(store.density()[7]) == float(store.maxima()[7]) == float(store.means()[7]) == 0


def test_top_examples_are_the_best_of_each_row(store: FeatureStore, dense: torch.Tensor) -> None:
    i = busiest(store)
    want = dense[:, :, i].amax(1).sort(descending=True)
    found = store.top(i, 5)
    assert [e.value for e in found] == pytest.approx(want.values[:5].tolist(), abs=1e-4)
    assert len({e.row for e in found}) == 5
    for e in found:
        at = int(dense[e.row, :, i].argmax())
        first = max(0, at - 12)
        assert e.at == at - first
        assert e.tokens.tolist() == store.tokens[e.row, first : at + 7].tolist()
        assert torch.allclose(e.values, dense[e.row, first : at + 7, i], atol=1e-4)


def test_an_example_can_be_the_whole_row(store: FeatureStore, dense: torch.Tensor) -> None:
    i = busiest(store)
    place = int(store.entries(i)[0][0])
    whole = store.example(i, place, None)
    assert whole.row * 20 + whole.at == place and len(whole.tokens) == 20
    assert torch.allclose(whole.values, dense[whole.row, :, i], atol=1e-4)


def test_intervals_cut_the_range_in_equal_widths(store: FeatureStore) -> None:
    i = busiest(store)
    _, value = store.entries(i)
    found = store.intervals(i, bins=5, n=2)
    top = float(value.max())
    assert [low for low, *_ in found] == pytest.approx([top * k / 5 for k in (4, 3, 2, 1, 0)])
    assert sum(share for *_, share, _ in found) == pytest.approx(1)
    for low, high, share, some in found:
        inside = int(((value > low) & (value <= high * (1 + 1e-6))).sum())
        assert share == pytest.approx(inside / len(value))
        assert len(some) == min(2, inside)
        assert all(low < e.value <= high * (1 + 1e-6) for e in some)
    again = store.intervals(i, bins=5, n=2)
    assert [[e.row for e in b[-1]] for b in again] == [[e.row for e in b[-1]] for b in found]


def test_histogram_counts_every_firing(store: FeatureStore) -> None:
    i = busiest(store)
    counts, edges = store.histogram(i, 8)
    assert int(counts.sum()) == len(store.entries(i)[0]) and len(edges) == 9
    assert float(edges[-1]) == pytest.approx(float(store.maxima()[i]))


def test_by_token_against_a_loop(store: FeatureStore, dense: torch.Tensor) -> None:
    i = busiest(store)
    flat, ids = dense[:, 1:, i].flatten(), store.tokens[:, 1:].flatten()
    table = store.by_token(i, 5, least=1)
    total = {int(t): float(flat[ids == t].sum()) for t in ids.unique()}
    best = sorted(total, key=lambda t: -total[t])[:5]
    assert set(table.token) == set(best)
    for row in table.itertuples():
        mine = flat[ids == row.token]
        assert row.count == int((mine > 0).sum())
        assert row.share == pytest.approx(float((mine > 0).float().mean()))
        assert row.mean == pytest.approx(float(mine[mine > 0].mean()), rel=1e-4)


def test_together_against_a_loop(store: FeatureStore, dense: torch.Tensor) -> None:
    i = busiest(store)
    on = dense[:, 1:].flatten(0, 1) > 0
    table = store.together(i, 6)
    assert i not in set(table.latent) and len(table) == 6
    for row in table.itertuples():
        both = int((on[:, i] & on[:, row.latent]).sum())
        either = int((on[:, i] | on[:, row.latent]).sum())
        assert row.both == both and row.jaccard == pytest.approx(both / either)
        chance = float(on[:, row.latent].float().mean())
        assert row.lift == pytest.approx(both / int(on[:, i].sum()) / chance, rel=1e-4)
    others = [
        (on[:, i] & on[:, j]).sum() / (on[:, i] | on[:, j]).sum().clamp(min=1) for j in range(len(store)) if j != i
    ]
    assert table.jaccard[0] == pytest.approx(float(max(others)), rel=1e-5)


def test_all_latents_a_share_of_the_entries_at_a_time(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    i, whole = busiest(store), (store.maxima(), store.means())
    together = store.together(i, 6)
    monkeypatch.setattr("kit.sae.store._LOOK", 7)
    again = FeatureStore(store.dictionary, store.tokens, store.start, store.where, store.value)
    assert torch.equal(again.maxima(), whole[0]) and torch.allclose(again.means(), whole[1])
    assert again.together(i, 6).equals(together)


def test_which_latents_a_text_fires(model: Any, store: FeatureStore) -> None:
    text = tiny.SENTENCES[0]
    table = read_prompt(store, model, text).ranked(n=4)
    latents = store.dictionary.read(model, text)[1:].amax(0)
    for row in table.itertuples():
        assert row.activation == pytest.approx(float(latents[row.latent]), rel=1e-4)
    assert len(table) == 4 and table.activation.is_monotonic_decreasing


def test_a_dead_latent_has_an_empty_page(store: FeatureStore) -> None:
    assert store.top(7) == [] and store.intervals(7) == []
    assert int(store.histogram(7)[0].sum()) == 0
    assert len(store.by_token(7)) == len(store.together(7)) == 0


@pytest.mark.parametrize("latent", [-1, 96, 1.0, True])
def test_latents_that_are_not_there(store: FeatureStore, latent: Any) -> None:
    with pytest.raises(ValueError, match="has 0 to 95"):
        store.top(latent)


def test_a_file_is_the_same_store(
    model: Any, dictionary: Dictionary, tokens: torch.Tensor, store: FeatureStore, tmp_path: Path
) -> None:
    path = tmp_path / "deep" / "store.safetensors"
    mapped = FeatureStore.build(dictionary, model, tokens, path=path)
    for name in ("tokens", "start", "where", "value"):
        assert torch.equal(getattr(mapped, name), getattr(store, name))
    with pytest.raises(FileNotFoundError):
        FeatureStore.open(tmp_path / "no", dictionary, model)
    other = Dictionary(dictionary.sae, dictionary.site, "another", dictionary.fingerprint)
    with pytest.raises(ValueError, match="belongs to dictionary 'resid 1 x2', not 'another'"):
        FeatureStore.open(path, other, model)
    vector = tiny.vector(model, 1).save(tmp_path / "v.safetensors")
    with pytest.raises(ValueError, match="is no feature store"):
        FeatureStore.open(vector, dictionary, model)


def test_an_interrupt_keeps_the_rows_that_were_run(
    model: Any, dictionary: Dictionary, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, calls = dictionary.encode, []

    def stopped(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(x)

    monkeypatch.setattr(dictionary, "encode", stopped, raising=False)
    kept = FeatureStore.build(dictionary, model, tokens)
    assert len(kept.tokens) == 16 and int(kept.where.max()) < 16 * 20
    monkeypatch.setattr(dictionary, "encode", lambda _x: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt, match="before the first batch"):
        FeatureStore.build(dictionary, model, tokens)


def test_on_sinks_nothing_fires(dictionary: Any, model: Any, tokens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from kit.models import activations as module

    plain = module.capture

    def with_a_sink(m: Any, rows: torch.Tensor, places: Any) -> Any:
        kept = plain(m, rows, places)
        (x,) = kept.values()
        x[:, 3] *= 1000
        return kept

    monkeypatch.setattr(module, "capture", with_a_sink)
    found = FeatureStore.build(dictionary, model, tokens)
    assert len(found.where) and not bool((found.where % found.tokens.shape[1] == 3).any())


def test_a_store_where_nothing_fires(dictionary: Any, tokens: Any) -> None:
    none = torch.zeros(0)
    empty = FeatureStore(dictionary, tokens.int(), torch.zeros(len(dictionary) + 1).long(), none.int(), none)
    assert len(empty.together(3)) == 0 and not bool(empty.maxima().any())
    assert empty.top(3) == [] and empty.intervals(3) == []


def test_a_corpus_of_200_000_tokens(dictionary: Any, model: Any, tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(3)
    tokens = torch.randint(3, model.cfg.d_vocab, (1600, 128), generator=rng)
    found = FeatureStore.build(dictionary, model, tokens, path=tmp_path / "store.safetensors")
    assert found.n_tokens > 200_000 and len(found.where) == int(found.start[-1])
    busiest = int(found.density().argmax())
    row = 1234  # one row of many, by itself
    alone = FeatureStore.build(dictionary, model, tokens[row : row + 1])
    where, value = found.entries(busiest)
    inside = where // 128 == row
    mine, mine_value = alone.entries(busiest)
    assert torch.equal(where[inside] % 128, mine)
    assert torch.allclose(value[inside], mine_value, atol=1e-4)
    assert len(found.top(busiest, 10)) == 10 and len(found.together(busiest, 3)) == 3


def test_what_it_reads_is_what_it_counts(model: Any, store: FeatureStore) -> None:
    """A row of the corpus reads as the store holds it: nothing on the sink."""
    found = store.read(model, store.tokens[3].long())
    whole = torch.stack([store.example(i, 3 * store.tokens.shape[1], None).values for i in range(len(store))], 1)
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5)
    assert not found[0].any() and found.any()
    alone = store.read(model, store.tokens[3, :1].long())
    assert alone.shape == (1, len(store)) and alone.any(), "one token is all there is"


@pytest.mark.parametrize(
    ("part", "at", "value", "said"),
    [
        ("value", 3, float("nan"), "NaN"),
        ("value", -1, float("inf"), "infinity"),
        ("value", 0, -1.0, "negative"),
        ("where", 1, None, "does not rise"),  # twice at one place
    ],
)
@pytest.mark.parametrize("look", [2**22, 2])
def test_entries_that_no_build_makes_are_refused(
    store: FeatureStore,
    dictionary: Any,
    model: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    at: int,
    value: float | None,
    said: str,
    look: int,
) -> None:
    monkeypatch.setattr("kit.sae.store._LOOK", look)
    parts = {name: getattr(store, name).clone() for name in ("tokens", "start", "where", "value")}
    FeatureStore(dictionary, **parts).save(tmp_path / "s", model)
    FeatureStore.open(tmp_path / "s", dictionary, model)
    first = int(store.start[busiest(store)])
    parts[part][first + at if value is None else at] = parts[part][first] if value is None else value
    FeatureStore(dictionary, **parts).save(tmp_path / "s", model)
    with pytest.raises(ValueError, match=f"is damaged: .*{said}"):
        FeatureStore.open(tmp_path / "s", dictionary, model)


# --- whose it is ----------------------------------------------------------------------------------


def test_a_dictionary_of_the_same_name_and_other_weights_is_refused(
    model: Any, dictionary: Dictionary, tokens: torch.Tensor, store: FeatureStore, tmp_path: Path
) -> None:
    path = store.save(tmp_path / "store", model)
    again = load(dictionary.save(tmp_path / "sae"))
    assert again.digest == dictionary.digest and len(FeatureStore.open(path, again, model)) == len(store)
    for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"):
        other = load(tmp_path / "sae")
        with torch.no_grad():
            getattr(other.sae, name)[..., 3] += 0.5
        with pytest.raises(ValueError, match=rf"belongs to weights '{again.digest}', not '{other.digest}'"):
            FeatureStore.open(path, other, model)
    other = load(tmp_path / "sae")
    other.sae.cfg.apply_b_dec_to_input = not other.sae.cfg.apply_b_dec_to_input
    with pytest.raises(ValueError, match="belongs to weights"):
        FeatureStore.open(path, other, model)
    moved = Dictionary(dictionary.sae, Site(2), dictionary.name, dictionary.fingerprint)
    with pytest.raises(ValueError, match="belongs to weights"):
        FeatureStore.open(path, moved, model)


def test_other_latents_of_one_name_are_told_apart_too(model: Any, tokens: torch.Tensor, tmp_path: Path) -> None:
    vectors = [tiny.vector(model, 1, seed=i) for i in range(3)]
    kinds: list[list[Any]] = [
        [Neurons(model, 1, threshold) for threshold in (0.1, 0.2)],
        [Directions(vectors, model, tokens, density) for density in (0.1, 0.2)],
        [Directions(some, model, tokens) for some in (vectors, vectors[::-1])],
    ]
    for one, other in kinds:
        path = FeatureStore.build(one, model, tokens, path=tmp_path / "store").save(tmp_path / "copy", model)
        assert len(FeatureStore.open(path, one, model)) == len(one) == len(other)
        with pytest.raises(ValueError, match="belongs to weights"):
            FeatureStore.open(path, other, model)


# --- many entries ---------------------------------------------------------------------------------


@pytest.mark.parametrize("run", [1, 7, 40, 1000])
@pytest.mark.parametrize("mapped", [True, False])
def test_entries_that_are_merged_are_those_that_are_sorted_at_once(
    run: int, mapped: bool, model: Any, dictionary: Any, tokens: Any, store: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    path, names = tmp_path / "store" if mapped else None, ("tokens", "start", "where", "value")
    monkeypatch.setattr(entries, "RUN", run)
    merged = FeatureStore.build(dictionary, model, tokens, path=path)
    assert all(torch.equal(getattr(merged, name), getattr(store, name)) for name in names)
    again = FeatureStore.open(merged.save(tmp_path / "again", model), dictionary, model)
    assert all(torch.equal(getattr(again, name), getattr(store, name)) for name in names)
    assert {file.name for file in tmp_path.iterdir()} <= {"store", "again"}, "the scratch file is gone"


PEAK = """
import sys, torch
from pathlib import Path
from kit.sae import FeatureStore, Site, entries, store
from kit.sae.latents import Latents

class Dense(Latents):
    name, site, fingerprint, rows = "dense", Site(0), "x", torch.zeros(64, 4)
    def check(self, model): pass
    def activations(self, model, tokens): return torch.ones(*tokens.shape, 64)
    def encode(self, x): return x
    def before(self, x): return x

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024

store.fingerprint = lambda model: "x"
class model:
    tokenizer = None
    class cfg:
        device, d_vocab, n_ctx = "cpu", 9, 128
path = None if sys.argv[1] == "memory" else Path(sys.argv[1])
entries.RUN = 2**17
few = FeatureStore.build(Dense(), model, torch.zeros(96, 128, dtype=torch.int32), path=path)
before = peak()
many = FeatureStore.build(Dense(), model, torch.zeros(1000, 128, dtype=torch.int32), path=path)
assert len(many.where) == 1000 * 127 * 64
print((peak() - before) / (len(many.where) - len(few.where)))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it reads /proc")
@pytest.mark.parametrize("where", ["store", "memory"])
def test_a_build_takes_the_memory_of_its_result(where: str, tmp_path: Path) -> None:
    """Bytes of peak memory for each further entry, of which there are 8 million: those pages of mapped
    files that were written or looked at."""
    target = str(tmp_path / where) if where == "store" else where
    said = subprocess.run([sys.executable, "-c", PEAK, target], capture_output=True, text=True, timeout=300, check=True)
    assert float(said.stdout) < 24
