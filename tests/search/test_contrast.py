"""Directions from contrast: exact where they can be, held out where they claim to be."""

from __future__ import annotations

from typing import Any

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
        ({"positive": UP[:3]}, "positive holds too few"),
        ({"negative": "a text"}, "negative holds too few"),
        ({"method": "pca", "negative": DOWN[:9]}, "needs pairs"),
        ({"read": 40}, "read=40"),
    ],
)
def test_fit_names_what_is_wrong(llama: Any, change: dict[str, Any], named: str) -> None:
    good = {"positive": UP, "negative": DOWN, "layer": 1}
    with pytest.raises(ValueError, match=named):
        fit(llama, **(good | change))


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
