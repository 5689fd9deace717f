"""Train the shipped dictionaries again, and measure them.

    python data/saes/make.py harvest TEXTS CHATS WORK     run the model: activations, chunk by chunk
    python data/saes/make.py harvest TEXTS CHATS WORK untrained    of the untrained copy
    python data/saes/make.py train WORK NAME              one run of RUNS; writes its folders
    python data/saes/make.py figures TEXTS                measure all here; writes figures.json
    python data/saes/make.py sheets WORK                  pages to be named blind, and their key

TEXTS is a file of one text a line, or of JSON lines with a "text" (.jsonl, .jsonl.gz), or the word
``nltk``, for the corpora of NLTK that ours are from (fetched once by nltk.download). CHATS is a
JSON list of objects with an "instruction". Of 41 texts the last one is held out: training never
sees it, and all figures are from there. WORK is a folder for tokens, activations (300 MB a chunk)
and checkpoints. Harvesting may be stopped at any time, by an interrupt or with the machine, and
goes on from there; several processes share the work (one thread each is best). Training uses the
chunks that lie there when it starts, and goes on from its checkpoint too.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import kit
from kit.data.corpora import NLTK
from kit.sae import Site, Source, Training, evaluate, load, pack

HERE = Path(__file__).parent
RESID, MLP = Site(14), Site(15, "mlp_out")
# name: what it reads, widths, seed, of which model. All see the same batches in the same order.
RUNS: dict[str, tuple[Site, tuple[float, ...], int, str]] = {
    "resid": (RESID, (4, 1), 0, "trained"),
    "resid-b": (RESID, (4,), 100, "trained"),
    "wide": (RESID, (16,), 0, "trained"),
    "mlp": (MLP, (4,), 0, "trained"),
    "untrained": (RESID, (4,), 0, "untrained"),
}
BATCH, CONTEXT, ROWS, K, LR, PASSES = 2048, 128, 512, 32, 2e-3, 3
CHATS = 6000
HELD_OUT_ROWS = 64


def model_of(which: str) -> Any:
    """The embedded model, or its untrained copy, in bfloat16."""
    return kit.load_model(dtype="bfloat16", untrained=0 if which == "untrained" else None)


def mixed(rows: torch.Tensor) -> torch.Tensor:
    """Rows of tokens in a random order."""
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]


def prose(model: Any, source: str, held_out: bool) -> torch.Tensor:
    """Rows of tokens of the corpus's prose, shuffled."""
    some = kit.data.split(kit.data.corpus(source))[held_out]
    return mixed(pack(model, [kit.data.tidy(text) for text in some], CONTEXT))


def chats(model: Any, file: str) -> torch.Tensor:
    """Rows of tokens of users' turns in the chat template, up to where the answer starts."""
    asked = [one["instruction"] for one in json.loads(Path(file).read_text(encoding="utf-8"))]
    asked, _ = kit.data.split(list(dict.fromkeys(asked))[:CHATS])
    stream = torch.cat([kit.chat_tokens(model, user)[0] for user in asked])
    return stream[: len(stream) // CONTEXT * CONTEXT].reshape(-1, CONTEXT)


def tokens(work: Path, model: Any, source: str = "", talk: str = "") -> torch.Tensor:
    """All rows to train on; tokenised once."""
    file = work / "rows.safetensors"
    if not file.is_file():
        work.mkdir(parents=True, exist_ok=True)
        rows = mixed(torch.cat([prose(model, source, False), chats(model, talk)]))
        save_file({"rows": rows.to(torch.int32)}, file)
    return load_file(file)["rows"].long()


def stream(work: Path, model: Any, rows: torch.Tensor, which: str, *sites: Site, chunks: int | None = None) -> Source:
    return Source(model, rows, sites, batch=BATCH, rows=ROWS, chunks=chunks, cache=work / which)


def harvest(source: str, talk: str, work: str, which: str = "trained") -> None:
    model = model_of(which)
    sites = (RESID, MLP) if which == "trained" else (RESID,)
    rows = tokens(Path(work), model, source, talk)
    print(f"{rows.numel():,} tokens", flush=True)
    (Path(work) / which).mkdir(exist_ok=True)
    stream(Path(work), model, rows, which, *sites).fill()


def done(work: Path, which: str) -> int:
    """How many chunks lie there, from the first on."""
    n = 0
    while (work / which / f"chunk-{n:05d}.safetensors").is_file():
        n += 1
    return n


def train(work: str, name: str, chunks: str = "", passes: str = "") -> None:
    site, widths, seed, which = RUNS[name]
    folder, model = Path(work), model_of(which)
    place = folder / "runs" / name
    plan = place / "plan.json"
    if not plan.is_file():  # what a run that goes on keeps to
        place.mkdir(parents=True, exist_ok=True)
        n = int(chunks or min(done(folder, w) for w in ("trained", "untrained")))
        plan.write_text(json.dumps({"chunks": n, "passes": float(passes or PASSES)}))
    told = json.loads(plan.read_text())
    source = stream(folder, model, tokens(folder, model), which, site, chunks=told["chunks"])
    steps = int(told["chunks"] * ROWS * (CONTEXT - 1) * told["passes"] * 0.99) // BATCH  # sinks are left out
    run = Training(source, widths=widths, k=K, steps=steps, lr=LR, seed=seed)
    if (place / "training.json").is_file():
        run.restore(place)
    reports: list[Any] = []
    run.run(folder=place, watch=lambda r: (reports.append(r), print(json.dumps(asdict(r)), flush=True)))
    if run.step < steps:
        raise SystemExit(f"stopped at step {run.step}: the same command goes on from there")
    for found in run.dictionaries():
        if reports:
            found.metadata["l0_training"] = reports[-1].figures[found.name].l0
        found.metadata["different_tokens"] = int(source.served / told["passes"])
        found.metadata["texts"] = "English of NLTK's " + ", ".join(NLTK) + "; Alpaca's instructions as chats"
        found.name += {"resid-b": " b", "untrained": " untrained"}.get(name, "")
        print(found.save(HERE / found.name.replace(" ", "-"), torch.bfloat16), flush=True)


if __name__ == "__main__":
    given = sys.argv[2:]
    if sys.argv[1:2] == ["harvest"] and len(given) in (3, 4):
        harvest(*given)
    elif sys.argv[1:2] == ["train"] and len(given) in (2, 3, 4):
        train(*given)
    else:
        raise SystemExit(__doc__)
