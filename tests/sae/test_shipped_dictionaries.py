"""What lies in data/saes and data/texts: it loads, it fits, and the card tells the truth."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import kit
from kit.data.corpora import NLTK
from kit.sae import Site, evaluate, pack

HERE = Path(__file__).parents[2] / "data" / "saes"
NAMES = ("resid-14-1x", "resid-14-4x", "resid-14-4x-b", "resid-14-16x", "mlp_out-15-4x")
UNTRAINED = "resid-14-4x-untrained"  # the control, of a copy of the model with weights drawn anew
FIGURES = json.loads((HERE / "figures.json").read_text(encoding="utf-8"))


def test_all_of_them_are_there_and_small() -> None:
    names = kit.data.dictionary_names()
    assert {*NAMES, UNTRAINED} == set(names)
    size = sum(p.stat().st_size for p in HERE.rglob("*") if p.is_file())
    assert size < 60e6, f"{size / 1e6:.1f} MB"
    with pytest.raises(ValueError, match=r"name='resid-14-x4': the shipped dictionaries are mlp_"):
        kit.data.dictionary("resid-14-x4")


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_and_fits_its_model(name: str, smol: Any) -> None:
    found = kit.data.dictionary(name, smol)
    kind, layer, width = name.split("-")[:3]
    assert found.site == Site(int(layer), kind)  # type: ignore[arg-type]
    assert len(found) == int(width[:-1]) * smol.cfg.d_model
    assert found.sae.W_dec.dtype == torch.float32 and found.fingerprint is not None


def test_the_control_fits_the_untrained_copy_and_no_other(smol: Any) -> None:
    with pytest.raises(ValueError, match="model"):
        kit.data.dictionary(UNTRAINED, smol)
    copy = kit.load_model(dtype="float32", untrained=0)
    found = kit.data.dictionary(UNTRAINED, copy)
    rows = pack(copy, kit.data.texts()[:12], 128)[:6]
    on = evaluate(found, copy, rows)
    assert on.explained_variance > 0.5 and 20 < on.l0 < 50, "a control that was trained badly proves too much"
    told = FIGURES[UNTRAINED]
    assert told["explained_variance"] > 0.6 and told["dead"] < 0.3 and told["l0"] == pytest.approx(32, rel=0.1)
    assert told["trained_on"] == FIGURES["resid-14-4x"]["trained_on"], "the same budget"


@pytest.mark.parametrize("name", NAMES)
def test_figures_hold_the_floors(name: str) -> None:
    told = FIGURES[name]
    assert told["ce_clean"] < told["ce_sae"] < told["ce_zero"]
    if name.startswith("resid-14-4x"):  # what was asked of it
        assert told["ce_recovered"] >= 0.97 and told["ce_sae"] - told["ce_clean"] <= 0.25
    assert told["dead"] <= 0.1 or name == "resid-14-16x"  # on 8,000 tokens, which rare latents may not meet
    assert told["l0"] == pytest.approx(32, rel=0.2) and told["l0_training"] == pytest.approx(32, abs=0.1)


def test_the_card_has_every_figure() -> None:
    card = (HERE / "README.md").read_text(encoding="utf-8")
    for name, told in FIGURES.items():
        row = next(line for line in card.splitlines() if line.startswith(f"| {name} "))
        for figure in (f"{told['latents']:,}", f"{told['explained_variance']:.3f}", f"{told['l0']:.1f}"):
            assert figure in row, (name, figure)


def test_the_texts_are_many_and_plain() -> None:
    texts = kit.data.texts()
    assert len(texts) > 300 and all(isinstance(t, str) and t for t in texts)
    assert sum(map(len, texts)) > 150_000


def test_a_dictionary_does_as_well_on_our_own_texts(smol: Any) -> None:
    """The machinery end to end on the real model: a few hundred tokens, wide bounds."""
    rows = pack(smol, kit.data.texts()[:12], 128)[:6]
    found = evaluate(kit.data.dictionary("resid-14-4x", smol), smol, rows)
    assert found.ce_recovered > 0.9 and found.explained_variance > 0.6 and 15 < found.l0 < 60


# --- texts of one's own --------------------------------------------------------------------------


def test_a_corpus_is_read_from_lines_and_json(tmp_path: Any) -> None:
    plain, packed = tmp_path / "a.txt", tmp_path / "b.jsonl.gz"
    plain.write_text("first line\n\n  second: \u00fcber  \n", encoding="utf-8")
    assert kit.data.corpus(plain) == ["first line", "second: \u00fcber"]
    with gzip.open(packed, "wt", encoding="utf-8") as file:
        file.write('{"text": "one\\ntwo"}\n{"text": "three"}\n')
    assert kit.data.corpus(str(packed)) == ["one\ntwo", "three"]
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="it holds no text"):
        kit.data.corpus(tmp_path / "empty.txt")
    with pytest.raises(FileNotFoundError, match="a file of texts, or 'nltk'"):
        kit.data.corpus(tmp_path / "nothing.txt")


def test_nltk_s_corpora_are_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    nltk = pytest.importorskip("nltk")
    asked: list[str] = []

    class Corpus:
        def fileids(self) -> list[str]:
            return ["x"]

        def words(self, _i: str) -> list[str]:
            return ["a", "word"]

        def raw(self, _i: str) -> str:
            return "a text"

    monkeypatch.setattr(nltk, "download", lambda name, quiet: asked.append(name) or True)
    monkeypatch.setattr(nltk.data, "path", [])  # none is here
    monkeypatch.setattr(nltk, "corpus", type("C", (), {n: Corpus() for n in NLTK}))
    found = kit.data.corpus("nltk")
    assert asked == list(NLTK) and found[0] == "A word" and found[1:] == ["A text"] * 5
