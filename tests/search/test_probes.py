"""Statements that balance what is not truth, and probes on planted and real activations."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from kit.data.statements import _NUMBERS, TOPICS, statements
from kit.search import probes
from kit.search.probes import Statement, across_layers


@pytest.mark.parametrize("topic", TOPICS)
def test_words_alone_say_nothing(topic: str) -> None:
    found = statements(topic)
    assert sum(s.true for s in found) * 2 == len(found)
    assert all(sum(s.true for s in found if s.subject == name) == 1 for name in {s.subject for s in found})
    texts = {
        truth: Counter(w for s in found if s.true is truth for w in s.text.lower().split()) for truth in (True, False)
    }
    if topic == "larger":  # which of the two comes first is the question; the words are the same
        letters = {
            t: Counter("".join(c for w in words.elements() for c in w if c.isalpha())) for t, words in texts.items()
        }
        assert letters[True] == letters[False]
    else:
        assert texts[True] == texts[False]
    assert len({s.text for s in found}) == len(found)


@pytest.mark.parametrize("topic", TOPICS)
def test_negation_turns_truth_and_leaves_the_rest(topic: str) -> None:
    plain, negated = statements(topic), statements(topic, negated=True)
    assert [s.text for s in negated] == [s.text.replace(" is ", " is not ", 1) for s in plain]
    assert [s.true for s in negated] == [not s.true for s in plain]
    assert all(s.negated for s in negated)
    assert statements(topic) == plain and statements(topic, seed=1) != plain


def test_known_facts() -> None:
    by_text = {s.text: s.true for s in statements("capital") + statements("opposite")}
    assert by_text["The capital of France is Paris."] is True
    assert by_text['The opposite of "hot" is "cold".'] is True
    for s in statements("larger"):
        words = s.text.rstrip(".").lower().split(" is larger than ")
        first, second = ([n.lower() for n in _NUMBERS].index(w) for w in words)
        assert (first > second) is s.true
    with pytest.raises(ValueError, match="topic='weather'"):
        statements("weather")


def planted(n: int, flip: bool = False) -> list[Statement]:
    """True where the last word is "tea"."""
    return [
        Statement(f"subject {i} {'tea' if t else 'rain'}", t != flip, "planted", str(i))
        for i in range(n)
        for t in (True, False)
    ]


def test_a_planted_truth_is_found_and_its_opposite_told(llama: Any) -> None:
    table = across_layers(llama, planted(12), {"same": planted(6), "turned": planted(6, True)}, layers=[0, 2])
    assert list(table.columns) == ["method", "layer", "test", "auroc", "accuracy", "low", "high"]
    assert len(table) == 2 * 2 * 3
    by = table.set_index(["method", "layer", "test"])
    for method in ("mean", "probe"):
        for layer in (0, 2):
            assert by.loc[(method, layer, "held out"), "auroc"] > 0.99
            assert by.loc[(method, layer, "same"), "auroc"] > 0.99
            assert by.loc[(method, layer, "same"), "accuracy"] > 0.95
            assert by.loc[(method, layer, "turned"), "auroc"] < 0.01
    assert (table["low"] <= table["high"]).all()
    held = table[table["test"] == "held out"]
    assert (held["low"] < 0.95).all(), "shuffled labels must not do as well"


def test_accuracy_is_of_the_threshold_midway(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.tensor([[0.0], [1.0], [4.0], [5.0]])
    label = torch.tensor([False, False, True, True])
    area, accuracy = probes._judged(probes._fitted("mean", x, label), x + 2.0, label)
    assert (area, accuracy) == (1.0, 0.75), "all moved up: 1 + 2 lies above the middle, 2.5"


def test_what_cannot_be_probed_is_said(llama: Any) -> None:
    some = planted(12)
    with pytest.raises(ValueError, match="layer=9"):
        across_layers(llama, some, {}, layers=[9])
    with pytest.raises(ValueError, match="method='svm'"):
        across_layers(llama, some, {}, layers=[0], methods=["svm"])
    with pytest.raises(ValueError, match="one needs true and false statements; it has 12"):
        across_layers(llama, some, {"one": [s for s in some if s.true]}, layers=[0])
    with pytest.raises(ValueError, match="train has 3 subjects: give 8"):
        across_layers(llama, planted(3), {}, layers=[0])
    with pytest.raises(ValueError, match="controls=0"):
        across_layers(llama, some, {}, layers=[0], controls=0)
