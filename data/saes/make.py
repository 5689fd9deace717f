"""Train the shipped dictionaries again, and measure them.

    python data/saes/make.py harvest TEXTS CHATS WORK [CHUNKS]   activations of both copies
    python data/saes/make.py train WORK [NAME ...]               all runs of RUNS, or some
    python data/saes/make.py figures TEXTS [NAME ...]            measure what lies here
    python data/saes/make.py pages TEXTS OUT NAME ...            latents to be named blind, and a key

TEXTS is a file of one text a line, or of JSON lines with a "text" (.jsonl, .jsonl.gz), or the word
``nltk``, for the corpora of NLTK that ours are from (fetched once by nltk.download). CHATS is a
JSON list of objects with an "instruction". Of 41 texts the last one is held out: training never
sees it, and all figures are from there. WORK is a folder for tokens, activations (225 MB a chunk of
both copies) and checkpoints.

The two copies are the embedded model and the same with weights drawn anew: the control. Both read
the same rows. `harvest` and `train` may be stopped at any time and go on from there, and each may
run in several processes, which share the work: two with OMP_NUM_THREADS=1 suit two cores better
than one with two threads. `train` uses the chunks that both copies have when it first starts, and
writes them down in WORK/plan.json. With MALLOC_MMAP_THRESHOLD_=4294967296 and
MALLOC_TRIM_THRESHOLD_=8589934592 in the environment (glibc) a step takes a fifth less.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file, save_file

import kit
from kit.base.files import whole
from kit.data.corpora import NLTK
from kit.models.activations import capture
from kit.sae import Example, FeatureStore, Report, Site, Source, Training, evaluate, load, mcs, pack

HERE = Path(__file__).parent
RESID, MLP = Site(14), Site(15, "mlp_out")
# name: what it reads, widths, seed, of which model. All see the same batches in the same order, and
# none starts from the rows that another starts from.
RUNS: dict[str, tuple[Site, tuple[float, ...], int, str]] = {
    "wide": (RESID, (16,), 200, "trained"),  # first: it takes as long as the others together
    "resid": (RESID, (4, 1), 0, "trained"),  # seeds 0 and 1
    "resid-b": (RESID, (4,), 100, "trained"),
    "untrained": (RESID, (4,), 300, "untrained"),
    "mlp": (MLP, (4,), 400, "trained"),
}
BATCH, CONTEXT, ROWS, K, LR, PASSES = 2048, 128, 512, 32, 2e-3, 1
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
        with whole(file) as part:
            save_file({"rows": rows.to(torch.int32)}, part)
    return load_file(file)["rows"].long()


def stream(work: Path, model: Any, rows: torch.Tensor, which: str, *sites: Site, chunks: int | None = None) -> Source:
    """The activations of one copy of the model; a chunk that was harvested is read from its file."""
    of = Mixed if which == "untrained" else Source
    return of(model, rows, sites, batch=BATCH, rows=ROWS, chunks=chunks, cache=work / which)


class Mixed(Source):
    """A pass over all chunks at once, every batch drawn from all rows of text: 1.2 kB of memory a token.

    The untrained copy's stream at layer 14 is mostly the mean of the text so far (notebook 11
    measures it). Served chunk by chunk, a dictionary learns the chunk's 512 rows by heart and
    loses them to the next: explained variance climbs within each chunk, and falls at its end.
    """

    def harvest(self, number: int) -> tuple[dict[Site, torch.Tensor], torch.Tensor]:
        """A pass: activations in the model's dtype, shuffled, and each one's row of tokens."""
        parts = [self._cached(i)[1] for i in range(self.chunks)]
        row, found = torch.cat(parts), dict[Site, torch.Tensor]()
        place = torch.randperm(len(row), generator=torch.Generator().manual_seed(self.seed * 1_000_003 + number))
        for i, at in enumerate(place.split([len(part) for part in parts])):
            for site, some in self._cached(i)[0].items():
                found.setdefault(site, some.new_empty(len(row), some.shape[1]))[at] = some  # [tokens, width]
        return found, torch.empty_like(row).index_put((place,), row)

    def scales(self) -> dict[Site, tuple[torch.Tensor, float]]:
        """As for the other runs: of the first chunk."""
        kept, self._harvested = self._harvested, super().harvest(0)
        try:
            return super().scales()
        finally:
            self._harvested = kept

    def __next__(self) -> dict[Site, torch.Tensor]:
        """The next batch, float32."""
        return {site: some.float() for site, some in super().__next__().items()}


def harvest(source: str, talk: str, work: str, chunks: str = "") -> None:
    """Both copies, so many chunks each (default: all of the text)."""
    folder = Path(work)
    for which, sites in (("trained", (RESID, MLP)), ("untrained", (RESID,))):
        model = model_of(which)
        rows = tokens(folder, model, source, talk)
        made = stream(folder, model, rows, which, *sites, chunks=int(chunks) if chunks else None)
        (folder / which).mkdir(exist_ok=True)
        left = made.chunks - done(folder, which)
        start = time.monotonic()
        capture(model, rows[:16], [site.place for site in sites])
        each = (time.monotonic() - start) * ROWS / 16
        print(
            f"{which}: {left} of {made.chunks} chunks of {ROWS * CONTEXT:,} tokens to run; one takes this "
            f"process {each:.0f} s, all {each * left / 60:.0f} minutes, less if others share the work",
            flush=True,
        )
        made.fill()


def done(work: Path, which: str) -> int:
    """How many chunks lie there, from the first on."""
    n = 0
    while (work / which / f"chunk-{n:05d}.safetensors").is_file():
        n += 1
    return n


def train(work: str, *names: str) -> None:
    """Runs, all or some, one after another, each saved as soon as it is done; what is done, or is
    being trained by another process, is passed over."""
    if unknown := set(names) - set(RUNS):
        raise SystemExit(f"no run {', '.join(sorted(unknown))}: there are {', '.join(RUNS)}")
    for name in names or RUNS:
        place = Path(work) / "runs" / name
        place.mkdir(parents=True, exist_ok=True)
        if (place / "done").is_file():
            print(f"{name}: done before", flush=True)
            continue
        lock = FileLock(place / "lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            print(f"{name}: another process trains it", flush=True)
            continue
        with lock:
            one_run(Path(work), name, place)
            (place / "done").touch()
        lock.release()


def one_run(work: Path, name: str, place: Path) -> None:
    """Train one run's dictionaries, from its checkpoint if there is one, and save them."""
    site, widths, seed, which = RUNS[name]
    model, plan = model_of(which), work / "plan.json"
    if not plan.is_file():  # all runs keep to it, so that their budgets are the same
        n = min(done(work, "trained"), done(work, "untrained"))
        if not n:
            raise SystemExit(f"{work} holds no activations of both copies: harvest first")
        with whole(plan) as part:
            part.write_text(json.dumps({"chunks": n, "passes": PASSES}))
    told = json.loads(plan.read_text())
    source = stream(work, model, tokens(work, model), which, site, chunks=told["chunks"])
    batches = int(ROWS * (CONTEXT - 1) * 0.997) // BATCH  # of a chunk: a few tokens in a thousand are sinks
    steps = told["chunks"] * told["passes"] * batches
    run = Training(source, widths=widths, k=K, steps=steps, lr=LR, seed=seed)
    if (place / "training.json").is_file():
        run.restore(place)
    print(f"{name}: step {run.step} of {steps}, {told['chunks']} chunks, {told['passes']} passes", flush=True)
    reports: list[Report] = []
    start, first = time.monotonic(), run.step

    def watch(report: Report) -> None:
        reports.append(report)
        if report.step % 100 == 0 or report.step == first + 10:
            left = (time.monotonic() - start) / (report.step - first) * (steps - report.step)
            some = {key: round(f.explained_variance, 3) for key, f in report.figures.items()}
            print(f"{name}: step {report.step}, {left / 60:.1f} minutes left, EV {some}", flush=True)

    run.run(folder=place, watch=watch)
    if run.step < steps:
        raise SystemExit(f"{name}: stopped at step {run.step}: the same command goes on from there")
    for found in run.dictionaries():
        if reports:
            found.metadata["l0_training"] = reports[-1].figures[found.name].l0
        found.metadata["different_tokens"] = round(found.metadata["tokens"] / told["passes"])
        found.metadata["texts"] = "English of NLTK's " + ", ".join(NLTK) + "; Alpaca's instructions as chats"
        times = len(found) // model.cfg.d_model
        found.name = f"{site} {times}x" + {"resid-b": " b", "untrained": " untrained"}.get(name, "")
        print(found.save(HERE / found.name.replace(" ", "-"), torch.bfloat16), flush=True)


def here() -> list[str]:
    """Names of the dictionaries that lie here."""
    return sorted(p.parent.name for p in HERE.glob("*/cfg.json"))


def belongs(name: str) -> str:
    """Of which model a dictionary is."""
    return "untrained" if name.endswith("untrained") else "trained"


def figures(source: str, *only: str) -> None:
    """Held-out figures of everything here, or of some, written to figures.json as they come."""
    file, table = HERE / "figures.json", {}
    if file.is_file():
        table = json.loads(file.read_text(encoding="utf-8"))
    names = only or here()
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
    for name, t in sorted(table.items()):
        recovered = "none to recover" if t["ce_recovered"] is None else f"{t['ce_recovered']:.3f}"
        lines.append(
            f"| {name} | {t['latents']:,} | {t['ce_sae']:.2f} | {t['ce_zero']:.2f} "
            f"| {recovered} | {t['explained_variance']:.3f}, {t['explained_variance_all']:.3f} "
            f"| {t['l0']:.1f}, {t['l0_training'] or 0:.1f} | {t['dead']:.1%} |"
        )
    return "\n".join([*lines, *seeds()])


def seeds() -> list[str]:
    """How far two dictionaries of the same size agree: the mean over rows of one of the largest
    cosine in the other, beside random rows and what an untrained model gives."""
    rng, names = torch.Generator().manual_seed(0), here()
    lines = []
    for a, b in PAIRS:
        if a in names and b in names:
            x, y = load(HERE / a).rows, load(HERE / b).rows
            found, chance = mcs(x, y), mcs(x, torch.randn(y.shape, generator=rng))
            above = float((found.cosine > 0.9).float().mean())
            lines.append(f"| {a} | {b} | {found.mean:.3f} | {above:.1%} | {chance.mean:.3f} |")
    head = ["", "| of | in | MMCS | above 0.9 | random rows |", "|---|---|---|---|---|"]
    return head + lines if lines else []


# --- naming latents, blind to the dictionary -----------------------------------------------------


def pages(source: str, out: str, *names: str, latents: int = 50, rows: int = 400, least: int = 10) -> None:
    """Random latents of each dictionary as anonymous text files, in two parts: examples from the
    upper half of a latent's range, and from its whole range in equal steps. Name a latent from the
    first part, then say whether the name holds in the second; `key.json` says whose each is."""
    rng, drawn = torch.Generator().manual_seed(1), list[tuple[Any, ...]]()
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
                drawn.append((name, i, upper, whole))
    folder, key = Path(out), {}
    (folder / "upper").mkdir(parents=True, exist_ok=True)
    (folder / "whole").mkdir(parents=True, exist_ok=True)
    for at, page in enumerate(torch.randperm(len(drawn), generator=rng).tolist()):
        name, i, *parts = drawn[page]
        for part, found in zip(("upper", "whole"), parts, strict=True):
            lines = [line(model, e) for e in found]
            (folder / part / f"{at:03d}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        key[f"{at:03d}"] = [name, i]
    (folder / "key.json").write_text(json.dumps(key, indent=1) + "\n", encoding="utf-8")
    print(f"{len(key)} pages in {folder}")


def line(model: Any, e: Example) -> str:
    """An example as plain text: the token that it is about between two marks."""
    pieces = [model.tokenizer.decode([i]) for i in e.tokens.tolist()]
    pieces[e.at] = f"\u00ab{pieces[e.at]}\u00bb"
    return f"{e.value:8.2f}  " + "".join(pieces).replace("\n", "\u23ce")


if __name__ == "__main__":
    commands = {"harvest": (harvest, 3), "train": (train, 1), "figures": (figures, 1), "pages": (pages, 3)}
    chosen, given = sys.argv[1:2], sys.argv[2:]
    if not chosen or chosen[0] not in commands or len(given) < commands[chosen[0]][1]:
        raise SystemExit(__doc__)
    commands[chosen[0]][0](*given)  # type: ignore[operator]
