"""Directions from contrast: exact where they can be, held out where they claim to be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import kit
from kit.models.activations import residuals
from kit.search.contrast import METHODS, HeadSteering, auroc, fit, fit_heads
from tests import tiny

UP = [
    f"the {word} boat crossed the bay"
    for word in ("small", "old", "red", "warm", "heavy", "quiet", "late", "round", "long", "dry")
]
DOWN = [
    f"a {word} clock stood in the shop"
    for word in ("small", "old", "red", "warm", "heavy", "quiet", "late", "round", "long", "dry")
]


def test_mean_is_the_difference_of_last_token_means(model: Any) -> None:
    layer = 2
    means = []
    for texts in (UP, DOWN):
        streams = [tiny.stream_after(model, layer, kit.text_tokens(model, t)) for t in texts]
        means.append(torch.stack([s[0, -1] for s in streams]).mean(0))
    difference = means[0] - means[1]
    vector = fit(model, UP, DOWN, layer)
    assert torch.allclose(vector.direction, difference / difference.norm(), atol=1e-4)
    assert vector.layer == layer and vector.fingerprint == kit.fingerprint(model)


@pytest.mark.parametrize(
    "read, tokens",
    [("last", slice(-1, None)), ("mean", slice(1, None)), (-2, slice(-2, -1)), (slice(-3, None), slice(-3, None))],
)
def test_reads_the_tokens_it_says(llama: Any, read: Any, tokens: slice) -> None:
    texts = [UP[0], UP[1] + " and back", DOWN[2] + " at noon every hour"]
    found = residuals(llama, texts, [1, 3], read)
    expected = []
    for text in texts:
        ids = kit.text_tokens(llama, text)
        both = torch.stack([tiny.stream_after(llama, i, ids)[0, tokens] for i in (1, 3)], dim=1)
        expected.append(both if isinstance(read, slice) else both.mean(0, keepdim=True))
    assert torch.allclose(found, torch.cat(expected), atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_methods_find_a_planted_direction(method: str) -> None:
    rng = torch.Generator().manual_seed(0)
    planted = torch.nn.functional.normalize(torch.randn(24, generator=rng), dim=0)
    topic = torch.randn(200, 24, generator=rng)  # shared by both sides of a pair
    noise = 0.1 * torch.randn(2, 200, 24, generator=rng)
    up, down = topic + planted + noise[0], topic - planted + noise[1]
    found = torch.nn.functional.normalize(METHODS[method](up, down), dim=0)
    # a probe weighs the topic's noise, which hides the mean difference's exact direction
    assert found @ planted > (0.9 if method == "probe" else 0.97)
    flipped = torch.nn.functional.normalize(METHODS[method](down, up), dim=0)
    assert flipped @ planted < -0.9  # the sign follows the labels


def test_pca_centres_each_pair_not_the_pool() -> None:
    rng = torch.Generator().manual_seed(1)
    planted, loud = torch.eye(8)[0], torch.eye(8)[1]
    # a topic that varies far more than the concept: pooled centring would return it
    topic = 50 * torch.randn(40, 1, generator=rng) * loud
    up, down = topic + planted, topic - planted
    assert torch.allclose(METHODS["pca"](up, down), planted, atol=1e-4)


def test_auroc_counts_pairs() -> None:
    up, down = torch.tensor([0.1, 0.5, 0.5, 0.9]), torch.tensor([0.5, 0.2, 0.0])
    slow = [1.0 if a > b else 0.5 if a == b else 0.0 for a in up for b in down]
    assert auroc(up, down) == pytest.approx(sum(slow) / len(slow))


@pytest.mark.parametrize("method", METHODS)
def test_auroc_is_held_out(llama: Any, method: str) -> None:
    """48 dimensions fit 40 arbitrary labels almost perfectly; held out they are chance."""
    rng = torch.Generator().manual_seed(3)
    texts = [torch.randint(3, 300, (9,), generator=rng) for _ in range(40)]
    vector = fit(llama, texts[:20], texts[20:], 2, method)
    seen = residuals(llama, texts, [2])[:, 0] @ vector.direction
    if method != "pca":  # the loudest component of noise need not follow the labels
        assert auroc(seen[:20], seen[20:]) > 0.85
    assert 0.2 < vector.metadata["auroc"] < 0.8


@pytest.mark.parametrize(
    "change, named",
    [
        ({"method": "svm"}, "method='svm'"),
        ({"layer": 9}, "layer=9"),
        ({"layer": -1}, "layer=-1"),
        ({"read": "first"}, "read='first'"),
        ({"positive": []}, r"positive=\[\]: give a list with at least one text"),
        ({"negative": "a text"}, "negative='a text': give a list"),
        ({"method": "pca", "negative": DOWN[:9]}, "needs pairs"),
        ({"read": 40}, "read=40"),
    ],
)
def test_fit_names_what_is_wrong(llama: Any, change: dict[str, Any], named: str) -> None:
    good = {"positive": UP, "negative": DOWN, "layer": 1}
    with pytest.raises(ValueError, match=named):
        fit(llama, **(good | change))


@pytest.mark.parametrize("method", METHODS)
def test_one_pair_is_enough(llama: Any, method: str) -> None:
    """Activation Addition: the difference of two texts' activations."""
    up, down = (tiny.stream_after(llama, 2, kit.text_tokens(llama, side[0]))[0, -1] for side in (UP, DOWN))
    vector = fit(llama, UP[:1], DOWN[:1], 2, method)
    if method == "probe":  # standardised: no coordinate counts for more than another
        assert vector.direction @ (up - down) > 0
    else:
        assert torch.allclose(vector.direction, (up - down) / (up - down).norm(), atol=1e-5)
    assert vector.metadata["auroc"] == "not held out: 1 pair" and vector.metadata["folds"] == 0
    assert vector.metadata["positive"] == vector.metadata["negative"] == 1
    uneven = fit(llama, UP[:1], DOWN[:3], 2, "mean")
    assert uneven.metadata["auroc"] == "not held out: 1 positive and 3 negative"


@pytest.mark.parametrize("n", [2, 3, 5])
def test_few_pairs_are_held_out_in_fewer_folds(llama: Any, n: int) -> None:
    """By hand: each fold is left out in turn, the rest gives the direction that judges it."""
    vector = fit(llama, UP[:n], DOWN[:n], 2)
    up, down = (residuals(llama, side[:n], [2])[:, 0] for side in (UP, DOWN))
    folds = min(4, n)
    order, scores = torch.randperm(n, generator=torch.Generator().manual_seed(0)), []
    for fold in range(folds):
        held = order[fold::folds]
        rest = torch.tensor([i for i in range(n) if i not in held.tolist()])
        line = up[rest].mean(0) - down[rest].mean(0)
        scores.append(auroc(up[held] @ line, down[held] @ line))
    assert vector.metadata["folds"] == folds
    assert vector.metadata["auroc"] == pytest.approx(sum(scores) / folds, abs=1e-4)


def test_sides_of_unlike_size_are_judged_where_a_fold_has_both(llama: Any) -> None:
    more = [f"a {a} clock stood in the {b}" for a in "abcdefgh" for b in "stuvwxyz"]
    vector = fit(llama, UP[:2], more, 2)
    assert 0 <= vector.metadata["auroc"] <= 1 and vector.metadata["folds"] == 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_texts_on_both_sides_are_no_contrast(dtype: str, tmp_path: Any) -> None:
    model = kit.load_model(str(tiny.save(tmp_path, "llama")), dtype=dtype)
    texts = [" and ".join([word] * (i + 1)) for i, word in enumerate(["boat", "clock", "bread", "rain"] * 5)]
    turned = [*texts[7:], *texts[:7]]
    up, down = residuals(model, texts, [2])[:, 0], residuals(model, turned, [2])[:, 0]
    assert float((up.mean(0) - down.mean(0)).norm()) < 0.01 * float(up.norm(dim=-1).mean())
    for method in METHODS:
        with pytest.raises(ValueError, match="positive and negative are the same at layer 2.*rounding"):
            fit(model, texts, turned, 2, method)
    with pytest.raises(ValueError, match="positive and negative are the same at layer 1.*rounding"):
        fit(model, UP, [f"{text} twice" for text in UP], 1, read=1)  # the words that differ come later
    with pytest.raises(ValueError, match="the same in every head chosen"):
        fit_heads(model, texts, turned, 1)
    small = fit(model, UP, [text.replace("boat", "boats") for text in UP], 1)
    assert 0 <= small.metadata["auroc"] <= 1


def test_heads_need_two_pairs_to_rank_by(llama: Any) -> None:
    with pytest.raises(ValueError, match="not held out: 1 pair: give two or more"):
        fit_heads(llama, UP[:1], DOWN[:1], 2)
    heads = fit_heads(llama, UP[:3], DOWN[:3], 2)
    assert heads.metadata["folds"] == 3 and heads.metadata["positive"] == 3
    assert set((heads.accuracy * 6).round().int().flatten().tolist()) <= set(range(7))


def test_numpy_numbers_say_layers_and_positions(llama: Any) -> None:
    n = np.int64(2)
    right, found = fit(llama, UP, DOWN, 2, read=-2), fit(llama, UP, DOWN, n, read=np.int32(-2))
    assert torch.equal(right.direction, found.direction) and type(found.layer) is int
    windows = (slice(-2, None), slice(np.int64(-2), None))
    one, two = (residuals(llama, UP, layers, w) for layers, w in zip(([1, 2], np.array([1, 2])), windows, strict=True))
    assert torch.equal(one, two)
    with kit.steer(llama, {right: 0.5}, np.int64(-1)) as receipt:
        llama(tiny.prompt(llama))
    assert receipt.entries[0].prompt_steered == [1]
    rows = kit.generate(llama, tiny.prompt(llama), right, [0.5], max_new_tokens=np.int64(2)).rows
    assert len(rows[0].tokens) == 2
    for bad in (np.float64(2), np.bool_(True), 2.0, torch.tensor(2)):
        with pytest.raises(ValueError, match="this model has layers 0 to 3"):
            fit(llama, UP, DOWN, bad)
        with pytest.raises(ValueError, match=r"positions=.*: use"):
            kit.generate(llama, "a", right, [0.5], positions=bad, max_new_tokens=1)
    with pytest.raises(ValueError, match=r"positions=slice\(1.5"):
        kit.generate(llama, "a", right, [0.5], positions=slice(1.5, None), max_new_tokens=1)


def test_heads_move_by_their_own_standard_deviation(model: Any) -> None:
    heads = fit_heads(model, UP, DOWN, top_k=5)
    tokens = tiny.prompt(model)
    layer = heads.heads[0][0]
    name = f"blocks.{layer}.attn.hook_z"
    first = min(la for la, _ in heads.heads)
    _, plain = model.run_with_cache(tokens, names_filter=[name])
    alone = HeadSteering(
        [h for h in heads.heads if h[0] == layer],
        heads.directions[[h[0] == layer for h in heads.heads]],
        [s for s, h in zip(heads.sigmas, heads.heads, strict=True) if h[0] == layer],
        heads.accuracy,
    )
    with kit.steer(model, {alone: 2.0}) as receipt:
        _, moved = model.run_with_cache(tokens, names_filter=[name])
    change = (moved[name] - plain[name]).reshape(1, 12, model.cfg.n_heads, -1)
    expected = torch.zeros_like(change)
    for (_, head), d, sigma in zip(alone.heads, alone.directions, alone.sigmas, strict=True):
        expected[:, :, head] += 2 * sigma * d
    assert torch.allclose(change, expected, atol=1e-4)
    assert receipt.entries[0].prompt_steered == [12] and first <= layer


def test_heads_steer_every_row_of_a_batch(llama: Any) -> None:
    """The published intervention edits row 0 only."""
    heads = fit_heads(llama, UP, DOWN, top_k=4)
    tokens = tiny.prompt(llama)
    ladder = kit.generate(llama, tokens, heads, [30.0, 30.0, None], max_new_tokens=6)
    alone = kit.generate(llama, tokens, heads, [30.0], max_new_tokens=6)
    assert ladder.rows[0].tokens == ladder.rows[1].tokens == alone.rows[0].tokens
    assert ladder.rows[2].tokens == kit.generate(llama, tokens, max_new_tokens=6).rows[0].tokens
    assert ladder.rows[2].tokens != ladder.rows[0].tokens


def test_heads_are_ranked_by_held_out_accuracy(llama: Any) -> None:
    heads = fit_heads(llama, UP, DOWN, top_k=3)
    assert heads.accuracy.shape == (4, 4)
    best = [float(heads.accuracy[at]) for at in heads.heads]
    assert best == sorted(best, reverse=True) and best[0] == float(heads.accuracy.max())
    rng = torch.Generator().manual_seed(4)
    noise = [torch.randint(3, 300, (9,), generator=rng) for _ in range(48)]
    chance = fit_heads(llama, noise[:24], noise[24:], top_k=1).accuracy
    assert 0.35 < float(chance.mean()) < 0.65
    with pytest.raises(ValueError, match="top_k=17: this model has 16 heads"):
        fit_heads(llama, UP, DOWN, top_k=17)
