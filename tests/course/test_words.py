"""What words are worth: on a small model where an arm's truth is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import kit
from course.studies import words
from kit.lens import Lens
from kit.models.bridge import runtime
from tests import tiny


@pytest.fixture(scope="module")
def lens(tmp_path_factory: pytest.TempPathFactory) -> Lens:
    model = tiny.load(tmp_path_factory.mktemp("model"), "llama", chat=True)
    width = model.cfg.d_model
    return Lens(model, {0: torch.eye(width), 2: torch.eye(width)})


@pytest.fixture
def facts(lens: Lens, monkeypatch: pytest.MonkeyPatch) -> words.Known:
    """Eight tokens at the end of a sentence; what the model says after each is its right answer."""
    model = lens.model
    row = kit.text_tokens(model, "rain ran down the kitchen")[0]
    rows = row.repeat(8, 1)
    rows[:, -1] = torch.arange(40, 48)
    answers = words._last(model, rows).argmax(-1)
    made = words.Known([str(i) for i in range(8)], rows, rows.shape[1] - 1, answers)
    monkeypatch.setattr(words, "known", lambda _model, _wording: made)
    return made


def test_the_whole_difference_swaps_what_the_model_says(lens: Lens, facts: words.Known) -> None:
    table = words.swaps(lens, "x", n_pairs=20)
    assert list(table.index) == [0, 2] and table["pairs"].tolist() == [20, 20]
    assert table["difference"].tolist() == [1.0, 1.0]  # of the last token nothing is elsewhere
    assert len(set(facts.answers.tolist())) > 2, "the sentence does not tell these tokens apart"
    assert table["random"].max() < 1.0
    # this lens is the identity: both ways of writing are one
    assert table["lens"].tolist() == table["logit lens"].tolist()


def test_a_step_is_added_at_its_row_and_place_only(lens: Lens, facts: words.Known) -> None:
    model = lens.model
    plain = words._last(model, facts.tokens)
    steps = torch.zeros(8, model.cfg.d_model)
    steps[2] = 5.0
    moved = words._last(model, facts.tokens, 0, 3, steps)
    same = [torch.allclose(a, b, atol=1e-5) for a, b in zip(plain, moved, strict=True)]
    assert same == [i != 2 for i in range(8)] and kit.hooks_left(model) == []


def test_too_few_known_facts_are_an_error(lens: Lens, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="the model knows 0 of these capitals"):
        words.swaps(lens, words.WORDINGS[0])


def test_the_last_stream_is_no_distance_from_what_is_said(lens: Lens) -> None:
    model = lens.model
    rows = torch.stack([kit.text_tokens(model, text)[0, :20] for text in tiny.SENTENCES[:2]])
    width, last = model.cfg.d_model, model.cfg.n_layers - 1
    whole = Lens(model, {0: torch.zeros(width, width) + torch.eye(width), last: torch.eye(width)})
    table = words.depth(whole, rows, skip=2)
    assert table.loc[last, "KL, lens"] == pytest.approx(0, abs=1e-5) and table.loc[last, "rank, lens"] == 0
    assert table.loc[0, "KL, lens"] == pytest.approx(table.loc[0, "KL, logit lens"])
    assert table.loc[0, "KL, lens"] > 0.01


def test_a_typed_word_beats_chance_at_an_equal_kl(lens: Lens, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "JUDGED_ON", words.JUDGED_ON[:2])
    monkeypatch.setattr(words, "_NATS", 0.2)
    concepts: Any = {" the": "the", " and": "and"}
    deep = Lens(lens.model, {2: torch.eye(lens.model.cfg.d_model)})
    table = words.typed(deep, 2, concepts, nats=0.2)
    assert list(table.index) == ["the", "and"]
    assert (table["lens"] > table["random"]).all() and table["lens"].equals(table["logit lens"])
    assert {"mean difference", "instruction", "instruction's KL", "lens at that KL"} <= {*table.columns}


def test_names_say_what_steering_promotes_where_the_lens_is_true(lens: Lens) -> None:
    last = Lens(lens.model, {2: torch.eye(lens.model.cfg.d_model)})
    vectors = [tiny.vector(lens.model, 2, seed) for seed in range(4)]
    found = words.agreement(last, vectors, k=5)
    assert found["lens"] == pytest.approx(found["logit lens"]) and found["lens"] > found["shuffled"] + 0.5


def test_a_planted_secret_is_read_and_others_are_not(
    lens: Lens, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "SECRETS", {"own": "the", "other": "and"})
    tuned = tiny.load(tmp_path, "llama", chat=True)
    step = 2.0 * lens.direction(" the", 2).direction
    runtime(tuned).block(2).register_forward_hook(
        lambda _m, _i, out: (out[0] + step, *out[1:]) if isinstance(out, tuple) else out + step
    )
    texts = [*tiny.SENTENCES, *(f"{text} {text}" for text in tiny.SENTENCES)]
    table = words.secrets(lens, tuned, texts, [2])
    assert table.loc[(2, "own", "lens"), "median rank"] == 0 and table.loc[(2, "own", "lens"), "p, random"] < 0.05
    assert table.loc[(2, "own", "logit lens"), "median rank"] == 0


def test_an_exchange_of_what_is_about_to_be_said_is_said(lens: Lens, monkeypatch: pytest.MonkeyPatch) -> None:
    """Countries that are their own capitals, read after the last block: the exchange turns the logits round."""
    model, tokenizer = lens.model, runtime(lens.model).tokenizer
    said: dict[str, str] = {}
    for place in "rain wind house river kitchen bread night mother letter".split():
        token = int(words._last(model, kit.text_tokens(model, f"find {place} is the city of")).argmax())
        said.setdefault(tokenizer.decode([token]), place)
    said = {word: place for word, place in said.items() if len(tokenizer.encode(word, add_special_tokens=False)) == 1}
    assert len(said) > 1, "the model says the same after all of them"
    monkeypatch.setattr(words, "ASKED", "find {} is the city of")
    monkeypatch.setattr(words, "SILENT", said)
    monkeypatch.setattr(words, "CAPITALS", {word: word for word in said})
    table = words.silent(Lens(model, {2: torch.eye(model.cfg.d_model)}))
    assert table.loc[2, "pairs"] == len(said) * (len(said) - 1)
    row = table.loc[2]  # this lens is the identity; a third token may win
    assert row["end x1, lens"] == row["end x1, logit"] > row["end x1, random"] + 0.2
    monkeypatch.setattr(words, "SILENT", {word: "nothing like it" for word in said})
    with pytest.raises(ValueError, match="lens: its model answers"):
        words.silent(lens)
