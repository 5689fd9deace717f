"""Texts, token rows and tokenizers' answers: each read as long as it is, anything else refused by name."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import GPTJConfig

import kit
from kit import sae
from kit.models import tokens as kit_tokens
from kit.models.activations import residuals
from kit.models.sites import Site
from kit.search import contrast
from kit.search.layer_slice import LayerSlice
from kit.search.rome import second_moment
from tests import tiny
from tests.steering.test_export import saved

UP = ["the small boat", "a red boat crossed the bay", "the old boat at noon", "a boat"]
DOWN = ["a small clock stood", "the red clock in the shop", "an old clock", "a late clock told a different time"]


@pytest.fixture
def pad_with(llama: Any) -> Any:
    """A function that makes another token the padding, for one test."""
    before = llama.tokenizer.pad_token

    def change(token: str) -> None:
        llama.tokenizer.pad_token = token

    yield change
    change(before)


def answer(model: Any, texts: list[str], side: str = "right", **options: Any) -> Any:
    """What the model's tokenizer says of texts, padded, as plain transformers users have it."""
    words = copy.deepcopy(model.tokenizer)
    words.padding_side = side
    return words(texts, return_tensors="pt", **{"padding": True} | options)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_tokenizers_answer_is_read_without_its_padding(llama: Any, side: str) -> None:
    right = contrast.fit(llama, UP, DOWN, 2)
    up, down = answer(llama, UP, side), answer(llama, DOWN, side)
    assert not up["attention_mask"].all()
    found = contrast.fit(llama, up, down, 2)
    assert torch.equal(found.direction, right.direction) and found.metadata == right.metadata
    assert torch.equal(
        contrast.fit_heads(llama, up, down, 3).directions, contrast.fit_heads(llama, UP, DOWN, 3).directions
    )
    for read in ("mean", -2, slice(1, None)):
        assert torch.equal(residuals(llama, up, [1], read), residuals(llama, UP, [1], read))
    piece, same = (LayerSlice(llama, texts, 0, 2, read=-1) for texts in (up, UP))
    assert torch.equal(piece.tokens, same.tokens) and torch.equal(piece.lengths, same.lengths)
    one = answer(llama, UP[:1], side, padding="max_length", max_length=30)
    assert kit.generate(llama, one, max_new_tokens=3).rows[0].tokens == (
        kit.generate(llama, UP[0], max_new_tokens=3).rows[0].tokens
    )


TAKERS: dict[str, Callable[[Any, Any], object]] = {
    "fit": lambda m, t: contrast.fit(m, t, DOWN, 1),
    "fit, other side": lambda m, t: contrast.fit(m, UP, t, 1),
    "heads": lambda m, t: contrast.fit_heads(m, t, DOWN, 2),
    "residuals": lambda m, t: residuals(m, t, [1]),
    "slice": lambda m, t: LayerSlice(m, t, 0, 2, read=-1),
}
PACKED: dict[str, Callable[[Any, Any], object]] = {
    "source": lambda m, t: sae.Source(m, t, [Site(1)], batch=4),
    "store": lambda m, t: sae.FeatureStore.build(sae.Neurons(m, 1), m, t),
    "second moment": lambda m, t: second_moment(m, 1, t),
    "directions": lambda m, t: sae.Directions([tiny.vector(m, 1)], m, t),
}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("taker", [*TAKERS, *PACKED])
@pytest.mark.parametrize("pad", ["<pad>", "<eos>"])
def test_padding_without_a_mask_is_refused(llama: Any, pad_with: Any, taker: str, side: str, pad: str) -> None:
    pad_with(pad)
    batch = answer(llama, UP, side)["input_ids"]
    forms: list[Any] = [batch, {"input_ids": batch}]
    if taker in TAKERS:
        forms += [list(batch), [batch[0], *UP[1:]], [{"input_ids": row} for row in batch]]
    for form in forms:
        with pytest.raises(ValueError, match=r"row 0 seems to be padded"):
            (TAKERS | PACKED)[taker](llama, form)


def test_a_batch_padded_to_one_length_is_refused_too(llama: Any) -> None:
    batch = answer(llama, UP)["input_ids"]
    wide = torch.nn.functional.pad(batch, (0, 1), value=2)
    assert bool((wide[:, -1] == 2).all())
    with pytest.raises(ValueError, match="positive: row 0 seems to be padded"):
        contrast.fit(llama, wide, DOWN, 1)
    with pytest.raises(ValueError, match="prompt: row 0 seems to be padded"):
        kit.generate(llama, wide[0], max_new_tokens=2)


def test_packed_rows_of_any_tokenizer_are_taken(llama: Any, pad_with: Any) -> None:
    """Rows are cut anywhere: some end in the end token of a text, which may be the padding token,
    as a BOS may; a few hold the end of an empty text too."""
    for pad in ("<pad>", "<eos>", "<bos>"):
        pad_with(pad)
        rows = sae.pack(llama, [*tiny.SENTENCES * 8, "", *tiny.SENTENCES], 16)
        ends = rows[:, -1] == 1
        assert bool(ends.any()) and not bool(ends.all())
        assert torch.equal(kit_tokens.packed(llama, rows), rows)
    rows = torch.randint(3, 200, (40, 16))
    rows[7, -2:] = rows[8, -1] = rows[9, 4] = rows[11, 0] = 1
    pad_with("<eos>")
    assert kit_tokens.packed(llama, rows) is rows


def test_one_end_token_is_a_texts_own(llama: Any, pad_with: Any) -> None:
    pad_with("<eos>")
    texts = [torch.tensor([0, 5, 6, 1]), torch.tensor([0, 9, 8, 7, 1]), "a boat"]
    assert residuals(llama, texts, [1]).shape == (3, 1, 48)


@pytest.mark.parametrize("pad", ["<pad>", "<bos>"])
def test_several_texts_in_one_place_are_refused(llama: Any, monkeypatch: Any, pad: str) -> None:
    two = torch.tensor([[0, 5, 6], [0, 7, 8]])
    for take in (
        lambda: residuals(llama, [two, "a boat"], [1]),
        lambda: contrast.fit(llama, [two], ["a boat"], 1),
        lambda: kit.generate(llama, two, max_new_tokens=1),
        lambda: sae.Neurons(llama, 1).read(llama, two),
        lambda: sae.ablated_text(sae.Neurons(llama, 1), llama, two, 0),
        lambda: residuals(llama, [{"input_ids": two}], [1]),
    ):
        with pytest.raises(ValueError, match=r"\[2, 3\]: give tokens \[n\] or \[1, n\]|holds 2 rows"):
            take()


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (float("nan"), r"texts\[1\] is a float, nan: give a string"),
        (np.float32("nan"), r"texts\[1\] is a float32"),
        (None, r"texts\[1\] is a NoneType, None"),
        (pd.NA, r"texts\[1\] is a NAType, <NA>"),
        (7, r"texts\[1\] is a int, 7"),
        ("", r"texts\[1\]: text='': it holds no token"),
        ({"role": "user", "content": "hi"}, r"texts\[1\] has \['content', 'role'\]"),
        ([{"role": "user", "content": "hi"}], r"texts\[1\] is a list, .*kit.chat_tokens"),
        (["a", "b"], r"texts\[1\] is a list"),
        ([5, 6], r"texts\[1\] is a list, \[5, 6\]: give a string or a token tensor"),
        (torch.tensor([5, 999]), r"texts\[1\] holds token ids outside 0 to 299"),
        (torch.tensor([-1, 4]), r"texts\[1\] holds token ids outside"),
        (torch.ones(3), r"texts\[1\] is torch.float32 \[3\]: give tokens"),
        (torch.ones(3, dtype=torch.bool), r"texts\[1\] is torch.bool \[3\]: give tokens"),
        ({"input_ids": [5, 6, 7], "attention_mask": [1, 0, 1]}, r"texts\[1\]: attention_mask of row 0 .* a hole"),
        ({"input_ids": [5, 6], "attention_mask": [0, 0]}, r"texts\[1\]: attention_mask of row 0 is empty"),
    ],
)
def test_what_is_no_text_is_named(llama: Any, bad: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        residuals(llama, ["a boat", bad], [1])
    with pytest.raises(ValueError, match=said.replace("texts", "negative")):
        contrast.fit(llama, UP, ["a boat", bad], 1)


def test_what_is_no_text_is_named_everywhere(llama: Any, chat: Any) -> None:
    for take, said in (
        (lambda: sae.pack(llama, ["a boat", None]), r"texts\[1\]=None: give a string"),
        (lambda: kit.text_tokens(llama, float("nan")), "text=nan: give a string"),
        (lambda: kit.chat_tokens(chat, None), "user=None: give a string"),
        (lambda: kit.chat_tokens(chat, "hi", system=3), "system=3: give a string"),
        (lambda: kit.generate(llama, [{"role": "user", "content": "hi"}]), "prompt is a list"),
        (lambda: LayerSlice(llama, ["a boat", None], 0, 2), r"prompts\[1\] is a NoneType"),
        (lambda: residuals(llama, pd.DataFrame({"a boat": ["x"]}), [1]), "give a list"),
        (lambda: residuals(llama, 3, [1]), "texts=3: give a list"),
        (lambda: residuals(llama, {"text": ["a"]}, [1]), r"texts has \['text'\]"),
    ):
        with pytest.raises(ValueError, match=said):
            take()


def test_tokens_in_other_forms(llama: Any) -> None:
    ids = kit.text_tokens(llama, "a small boat")[0]
    right = residuals(llama, ["a small boat"], [2])
    for form in (ids.int(), ids[None], {"input_ids": ids.tolist()}, {"input_ids": [ids.tolist()]}):
        assert torch.equal(residuals(llama, [form], [2]), right)
    assert torch.equal(residuals(llama, pd.Series(["a small boat"]), [2]), right)


def test_a_text_beyond_the_context(tiny_model: Any, tmp_path: Any) -> None:
    long = torch.randint(3, 300, (300,))
    rotary_table = saved(tmp_path, GPTJConfig(n_embd=48, n_layer=4, n_head=4, n_positions=256, rotary_dim=4))
    for model in (tiny_model("gpt2"), rotary_table):
        for take, name in (
            (lambda m: residuals(m, ["a boat", long], [1]), r"texts\[1\]"),
            (lambda m: contrast.fit(m, [long], ["a boat"], 1), r"positive\[0\]"),
            (lambda m: sae.Neurons(m, 1).read(m, long), "text"),
            (lambda m: sae.Source(m, long[None], [Site(1)], batch=4), "texts"),
        ):
            with pytest.raises(ValueError, match=f"{name} has 300 tokens, this model's context is 256"):
                take(model)
    llama = tiny_model("llama")
    with pytest.warns(UserWarning, match=r"texts\[0\] has 300 tokens, this model's context is 256"):
        assert residuals(llama, [long], [1]).shape == (1, 1, 48)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        residuals(llama, [long[:256]], [1])
    for prompt in (long, "boat " * 300):
        with pytest.raises(ValueError, match=r"prompts has|prompt has .* tokens, this model's context is 256"):
            LayerSlice(llama, prompt, 0, 2)


PARTS = (
    "{% for m in messages %}{{ m['role'] }}:{% for c in m['content'] %}{% if c['type'] == 'text' %}"
    "{{ c['text'] }}{% endif %}{% endfor %} / {% endfor %}model:"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
SILENT = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}model:"


def test_chat_templates(chat: Any, monkeypatch: Any) -> None:
    def set_to(template: str) -> None:
        monkeypatch.setattr(chat.tokenizer, "chat_template", template)

    def text(*said: str) -> str:
        return str(chat.tokenizer.decode(kit.chat_tokens(chat, *said)[0]))

    set_to(PARTS)  # given a string, this one says nothing of it
    assert text("Where is  the boat?") == "user:Where is  the boat? / model:"
    assert text("Hi", "Be brief.") == "system:Be brief. / user:Hi / model:"
    set_to(NO_SYSTEM + SILENT)
    assert text("Hi") == "Himodel:"
    with pytest.raises(ValueError, match=r"system='Be brief.': .* System role not supported; put it into the user's"):
        text("Hi", "Be brief.")
    set_to(SILENT)
    with pytest.raises(ValueError, match=r"system='Be brief.': this model's chat template leaves it out"):
        text("Hi", "Be brief.")
    for template in ("{{ '' }}", "model:", "{{ messages[0]['name'] + 'x' }}", "{% if %}"):
        set_to(template)
        for system in ((), ("Be brief.",)):
            with pytest.raises(
                ValueError, match=r"user='Hi': this model's chat template (leaves|refuses).*text_tokens"
            ):
                text("Hi", *system)
    with pytest.raises(ValueError, match="chat template"):
        kit.generate(chat, "Hi", max_new_tokens=1)
