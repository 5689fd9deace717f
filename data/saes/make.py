"""Train the shipped dictionaries again, and measure them.

    python data/saes/make.py harvest TEXTS CHATS WORK     run the model: activations, chunk by chunk
    python data/saes/make.py harvest TEXTS CHATS WORK untrained    of the untrained copy
    python data/saes/make.py train WORK NAME [CHUNKS [PASSES]]     one run of RUNS; writes its folders
    python data/saes/make.py figures TEXTS [NAME ...]     measure what lies here; writes figures.json
    python data/saes/make.py sheets TEXTS OUT NAME ...    latents to be named blind, and their key

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
from kit.sae import Example, FeatureStore, Site, Source, Training, evaluate, load, mcs, pack

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
PAIRS = (
    ("resid-14-4x", "resid-14-4x-b"),
    ("resid-14-1x", "resid-14-4x"),
    ("resid-14-4x", "resid-14-16x"),
    ("resid-14-4x-untrained", "resid-14-4x"),
)


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
        times = len(found) // model.cfg.d_model
        found.name = f"{site} {times}x" + {"resid-b": " b", "untrained": " untrained"}.get(name, "")
        print(found.save(HERE / found.name.replace(" ", "-"), torch.bfloat16), flush=True)


def belongs(name: str) -> str:
    """Of which model a dictionary is."""
    return "untrained" if name.endswith("untrained") else "trained"


def figures(source: str, *only: str) -> None:
    """Held-out figures of everything here, or of some, written to figures.json as they come."""
    file, table = HERE / "figures.json", {}
    if file.is_file():
        table = json.loads(file.read_text(encoding="utf-8"))
    names = only or tuple(kit.data.dictionary_names())
    for which in ("trained", "untrained"):
        some = [name for name in names if belongs(name) == which]
        if not some:
            continue
        model = model_of(which)
        rows = prose(model, source, True)[:HELD_OUT_ROWS]
        for name in some:
            found = load(HERE / name, model=model)
            told = {
                key: None if value != value else round(value, 5)  # NaN where zeros do no harm
                for key, value in asdict(evaluate(found, model, rows)).items()
            }
            more = {key: found.metadata.get(key) for key in ("l0_training", "different_tokens", "tokens")}
            table[name] = {"latents": len(found), **told, "trained_on": more.pop("tokens"), **more}
            file.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
            print(name, table[name], flush=True)
    print(card())


def card() -> str:
    """The tables of README.md."""
    table = json.loads((HERE / "figures.json").read_text(encoding="utf-8"))
    lines = ["| dictionary | latents | CE | zeros | recovered | EV | L0 | dead |", "|---|---|---|---|---|---|---|---|"]
    for name, t in table.items():
        recovered = "none to recover" if t["ce_recovered"] is None else f"{t['ce_recovered']:.3f}"
        lines.append(
            f"| {name} | {t['latents']:,} | {t['ce_sae']:.2f} | {t['ce_zero']:.2f} "
            f"| {recovered} | {t['explained_variance']:.3f}, {t['explained_variance_all']:.3f} "
            f"| {t['l0']:.1f}, {t['l0_training'] or 0:.1f} | {t['dead']:.1%} |"
        )
    return "\n".join([*lines, "", *seeds()])


def seeds() -> list[str]:
    """How far two dictionaries of the same size agree: the mean over rows of one of the largest
    cosine in the other, beside random rows and what an untrained model gives."""
    rng, here = torch.Generator().manual_seed(0), kit.data.dictionary_names()
    lines = ["| of | in | MMCS | above 0.9 | random rows |", "|---|---|---|---|---|"]
    for a, b in PAIRS:
        if a in here and b in here:
            x, y = load(HERE / a).rows, load(HERE / b).rows
            found, chance = mcs(x, y), mcs(x, torch.randn(y.shape, generator=rng))
            above = float((found.cosine > 0.9).float().mean())
            lines.append(f"| {a} | {b} | {found.mean:.3f} | {above:.1%} | {chance.mean:.3f} |")
    return lines


# --- naming latents, blind to the dictionary -----------------------------------------------------


def sheets(source: str, out: str, *names: str, latents: int = 50, rows: int = 400, least: int = 10) -> None:
    """Random latents of each dictionary as anonymous text files, in two parts: examples from the
    upper half of a latent's range, and from its whole range in equal steps. Name a latent from the
    first part, then say whether the name holds in the second; `key.json` says whose each is."""
    rng, pages = torch.Generator().manual_seed(1), []
    for which in ("trained", "untrained"):
        if not (some := [name for name in names if belongs(name) == which]):
            continue
        model = model_of(which)
        text = prose(model, source, True)[:rows]
        for name in some:
            store = FeatureStore.build(load(HERE / name, model=model), model, text)
            alive = (store.start.diff() >= least).nonzero()[:, 0]
            print(f"{name}: {len(alive)} of {len(store)} latents fire {least} times or more", flush=True)
            for i in alive[torch.randperm(len(alive), generator=rng)[:latents]].tolist():
                bins = store.intervals(i, bins=10, n=3)
                upper = [e for _, _, _, found in bins[:5] for e in found][:10]
                whole = [found[0] for _, _, _, found in bins if found]
                pages.append((name, i, upper, whole))
    folder, key = Path(out), {}
    (folder / "upper").mkdir(parents=True, exist_ok=True)
    (folder / "whole").mkdir(parents=True, exist_ok=True)
    for at, page in enumerate(torch.randperm(len(pages), generator=rng).tolist()):
        name, i, *parts = pages[page]
        for part, found in zip(("upper", "whole"), parts, strict=True):
            lines = [line(model, e) for e in found]
            (folder / part / f"{at:03d}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        key[f"{at:03d}"] = [name, i]
    (folder / "key.json").write_text(json.dumps(key, indent=1) + "\n", encoding="utf-8")
    print(f"{len(key)} sheets in {folder}")


def line(model: Any, e: Example) -> str:
    """An example as plain text: the token that it is about between two marks."""
    pieces = [model.tokenizer.decode([i]) for i in e.tokens.tolist()]
    pieces[e.at] = f"\u00ab{pieces[e.at]}\u00bb"
    return f"{e.value:8.2f}  " + "".join(pieces).replace("\n", "\u23ce")


if __name__ == "__main__":
    given = sys.argv[2:]
    if sys.argv[1:2] == ["harvest"] and len(given) in (3, 4):
        harvest(*given)
    elif sys.argv[1:2] == ["train"] and len(given) in (2, 3, 4):
        train(*given)
    elif sys.argv[1:2] == ["figures"] and given:
        figures(*given)
    elif sys.argv[1:2] == ["sheets"] and len(given) > 2:
        sheets(*given)
    else:
        raise SystemExit(__doc__)
