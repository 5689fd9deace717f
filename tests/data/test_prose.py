"""Text of corpora that were cut into words, put right; and rows to look at latents on."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import kit
from kit.data import tidy
from kit.data.corpora import NLTK


@pytest.mark.parametrize(
    ("given", "right"),
    [
        ("`` I do n't know ( yet ) '' , he said .", '"I don\'t know (yet)", he said.'),
        ("She 's here ; we 'll see . The end", "She's here; we'll see. The end"),
        ("It rained ;; we stayed . Why ? ?", "It rained; we stayed. Why?"),
        ('He saw " Hedwig " , and left .', 'He saw "Hedwig", and left.'),
        ("a film . it 's long , and i 'm tired .", "A film. It's long, and I'm tired."),
        ('" why ? " she said . yes ! so', '"Why?" she said. Yes! So'),
        ("shot in l. a. by the u.s. army", "Shot in L. A. by the U.S. army"),
        ("see x . com for more . i will", "See x.com for more. I will"),
    ],
)
def test_what_is_put_right(given: str, right: str) -> None:
    assert tidy(given) == right and tidy(right) == right


@pytest.mark.parametrize(
    "text",
    [
        "Mr. Smith's 6'' pipe... and then? \"No!!!\" he cried.",
        "def f(x):\n    return [x, -x]  # iPhone".replace("    ", " ").replace("  ", " "),
        "He left . . . and came back",
        'One " alone stays where it is',
        "",
        "日本語。 Ünïcode, i.e. this.",
    ],
)
def test_what_is_left_alone(text: str) -> None:
    assert tidy(text) == text


def test_capitals_come_only_where_there_were_none() -> None:
    assert tidy("the One. the two") == "the One. the two"
    assert tidy("the one. the two, i think") == "The one. The two, I think"


def test_the_course_s_own_texts_need_next_to_nothing() -> None:
    texts = kit.data.texts()[:100]
    apart = sum(tidy(t).split() != t.split() for t in texts)
    assert apart <= 5


# --- rows to look at -------------------------------------------------------------------------------


def test_rows_from_a_file(tmp_path: Any, tiny_model: Any) -> None:
    model, file = tiny_model("llama"), tmp_path / "a.jsonl"
    file.write_text("\n".join(json.dumps({"text": f"the cat sat on the mat {i}. " * 9}) for i in range(40)))
    rows = kit.data.browsing(model, file, tokens=200, context=20)
    assert rows.shape == (10, 20) and rows.dtype == torch.long
    assert torch.equal(rows, kit.data.browsing(model, file, tokens=200, context=20))
    every = kit.data.browsing(model, file, tokens=10**9, context=20)
    assert len(every) > 100 and torch.equal(every[:10], rows)
    with pytest.raises(ValueError, match="tokens=19: a row alone has 20"):
        kit.data.browsing(model, file, tokens=19, context=20)


def test_nltk_s_corpora_are_used_where_they_are(monkeypatch: pytest.MonkeyPatch, tiny_model: Any) -> None:
    nltk, model = pytest.importorskip("nltk"), tiny_model("llama")

    class Corpus:
        def fileids(self) -> list[str]:
            return ["x"]

        def words(self, _i: str) -> list[str]:
            return "The dog did n't see the cat .".split() * 50

        def raw(self, _i: str) -> str:
            return "the king of the world . " * 50

    def never(*_args: Any, **_more: Any) -> bool:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(nltk, "download", never)
    monkeypatch.setattr(nltk.data, "path", [])
    shipped = kit.data.browsing(model, context=20, tokens=4000)  # none is here: what the kit ships
    monkeypatch.setattr(nltk.data, "find", lambda _place: "here")
    monkeypatch.setattr(nltk, "corpus", type("C", (), {n: Corpus() for n in NLTK}))
    found = kit.data.browsing(model, context=20, tokens=4000)
    assert len(shipped) == 200 and not torch.equal(shipped[:10], found[:10])
    assert torch.equal(found, kit.data.browsing(model, "nltk", context=20, tokens=4000))
    assert kit.data.corpus("nltk")[0].startswith("The dog didn't see the cat. The")
