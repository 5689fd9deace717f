"""The command that trains the shipped dictionaries, whole, on two tiny models: stopped, and gone on with."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from kit.sae import Site, Training, load
from tests import tiny

MAKE = Path(__file__).parents[2] / "data" / "saes" / "make.py"


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Any) -> Any:
    """The script, with tiny models, tiny sizes, and a folder of its own to write to."""
    spec = importlib.util.spec_from_file_location("make_dictionaries", MAKE)
    assert spec is not None and spec.loader is not None
    found: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    models = {"trained": tiny_model("chat"), "untrained": tiny_model("llama")}
    resid, mlp = Site(1), Site(1, "mlp_out")
    sizes = {
        **{"HERE": tmp_path / "here", "RESID": resid, "MLP": mlp, "BATCH": 32, "CONTEXT": 20, "ROWS": 8, "K": 4},
        **{"CHATS": 30, "PASSES": 2, "HELD_OUT_ROWS": 4, "model_of": models.__getitem__},
        "RUNS": {
            "resid": (resid, (4, 1), 0, "trained"),
            "resid-b": (resid, (4,), 100, "trained"),
            "mlp": (mlp, (4,), 0, "trained"),
            "untrained": (resid, (4,), 0, "untrained"),
        },
        "PAIRS": (("resid-1-4x", "resid-1-4x-b"), ("resid-1-4x", "resid-1-16x")),
    }
    for name, value in sizes.items():
        monkeypatch.setattr(found, name, value)
    (tmp_path / "here").mkdir()
    return found


def test_from_texts_to_the_card(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    texts, chats, work = tmp_path / "texts.jsonl", tmp_path / "chats.json", tmp_path / "work"
    some = [" ".join(tiny.SENTENCES[i:] + tiny.SENTENCES[:i]) for i in range(len(tiny.SENTENCES))] * 12
    texts.write_text("\n".join(json.dumps({"text": text}) for text in some))
    chats.write_text(json.dumps([{"instruction": f"{sentence} {i}"} for i, sentence in enumerate(some[:40])]))
    told = tuple(map(str, (texts, chats, work)))

    with pytest.raises(SystemExit, match="no activations of both copies: harvest first"):
        make.train(str(work), "resid")
    make.harvest(*told, "3")
    chunk = work / "trained" / "chunk-00001.safetensors"
    before, kept = chunk.stat().st_mtime_ns, (work / "trained" / "chunk-00000.safetensors").stat().st_mtime_ns
    chunk.unlink()  # a process was killed at it
    make.harvest(*told, "3")
    assert chunk.stat().st_mtime_ns > before and "trained: 2 of 3 chunks" in capsys.readouterr().out
    assert (work / "trained" / "chunk-00000.safetensors").stat().st_mtime_ns == kept

    advance, steps = Training.advance, []

    def stopped(run: Training) -> Any:
        steps.append(run.step)
        if len(steps) == 8:
            raise KeyboardInterrupt
        return advance(run)

    monkeypatch.setattr(Training, "advance", stopped)
    with pytest.raises(SystemExit, match="resid: stopped at step 7: the same command goes on"):
        make.train(str(work), "resid")
    assert not make.here()
    make.train(str(work))
    assert steps[8] == 7, "it went on where it had stopped"
    names = ["mlp_out-1-4x", "resid-1-1x", "resid-1-4x", "resid-1-4x-b", "resid-1-4x-untrained"]
    assert make.here() == names
    make.train(str(work))
    assert capsys.readouterr().out.count(": done before") == 4
    with pytest.raises(SystemExit, match="no run nothing: there are resid, resid-b, mlp, untrained"):
        make.train(str(work), "nothing")

    both = [load(make.HERE / name, model=make.model_of("trained")) for name in ("resid-1-4x", "resid-1-4x-b")]
    assert [d.name for d in both] == ["resid 1 4x", "resid 1 4x b"]
    assert not torch.equal(both[0].rows, both[1].rows)
    assert both[0].metadata["tokens"] == both[1].metadata["tokens"] == 2 * both[0].metadata["different_tokens"]

    make.figures(str(texts))
    table = json.loads((make.HERE / "figures.json").read_text())
    assert sorted(table) == names and all(t["tokens"] > 0 for t in table.values())
    shown = capsys.readouterr().out
    assert "| resid-1-4x | resid-1-4x-b |" in shown and "| resid-1-4x-untrained | 192 |" in shown

    out = tmp_path / "pages"
    monkeypatch.setattr(make.pages, "__kwdefaults__", {"latents": 5, "rows": 12, "least": 2})
    make.pages(str(texts), str(out), "resid-1-4x", "resid-1-4x-untrained")
    key = json.loads((out / "key.json").read_text())
    assert len(key) == 10 and {name for name, _ in key.values()} == {"resid-1-4x", "resid-1-4x-untrained"}
    for part in ("upper", "whole"):
        written = [(out / part / f"{page}.txt").read_text() for page in key]
        assert all("\u00ab" in text and "resid" not in text for text in written)
    shutil.rmtree(out)
