"""Every job of the kit that writes files: how to run it, look at what it left, and compare."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import kit
from course import runner
from course.studies import elicitation, recovery
from kit import sae as saes
from kit.data import organisms
from kit.models import lora, weights
from kit.sae import Dictionary, FeatureStore
from kit.sae.crosscoders.model import Crosscoder
from kit.steering.rank_one import Factor
from kit.steering.vectors import load_gguf
from kit.widgets.gallery import sets
from kit.widgets.gallery.features import Feature
from kit.widgets.panel.rating import Item, Ratings
from tests.faults import begins
from tests.faults.subjects import TEXTS, Subjects


@dataclass(frozen=True)
class Job:
    """A job that may be killed.

    Attributes:
        run: does it, or goes on with it, in a folder.
        look: what is half-written in the folder after a kill, a line each.
        result: of a run that came to its end, as tensors.
        stoppable: the stop button keeps what there is, and the next run goes on from it.
    """

    name: str
    run: Callable[[Path], Any]
    look: Callable[[Path], list[str]]
    result: Callable[[Path], dict[str, Tensor]]
    stoppable: bool = False


def jobs(subjects: Subjects, found: Dictionary, crosscoder: Crosscoder) -> list[Job]:
    """All of them, but for the notebook runner (:func:`notebook_job`)."""
    model = subjects.model
    store = FeatureStore.build(found, model, TEXTS, context=20)
    return [
        # a file that replaces an older one: readers find the one or the other
        _file("a vector", lambda p, n: subjects.vector(seed=n).save(p), lambda p: kit.SteeringVector.load(p).direction),
        _file("a factor", lambda p, n: subjects.factor(seed=n).save(p), lambda p: Factor.load(p).reads),
        _file(
            "a control vector",
            lambda p, n: subjects.vector(seed=n).to_gguf(p, model),
            lambda p: load_gguf(p, model)[0].direction,
        ),
        _file("a crosscoder", lambda p, n: crosscoder.save(p), lambda p: Crosscoder.load(p, subjects.pair).encoder),
        _file("a feature store", lambda p, n: store.save(p, model), lambda p: FeatureStore.open(p, found, model).value),
        # two files in a folder: without its config, which comes last, a folder is refused
        _file("a dictionary", lambda p, n: found.save(p), lambda p: saes.load(p).rows, "cfg.json"),
        _file("an adapter", _adapter, _read_adapter, lora.CONFIG),
        _sets(subjects),
        _ratings(),
        _records(),
        _conversion(),
        _training("training with snapshots", subjects.training),
        _training("crosscoder training", subjects.paired),
        _harvest(subjects),
        _build(subjects, found),
    ]


def _file(name: str, write: Callable[[Path, int], Any], read: Callable[[Path], Tensor], missing: str = "") -> Job:
    def run(home: Path) -> None:
        for n in (0, 1, 0, 1):
            write(home / "it", n)

    def look(home: Path) -> list[str]:
        place = home / "it"
        if not place.exists() or (missing and not (place / missing).exists()):
            return []
        try:
            found = read(place)
        except (ValueError, OSError) as error:
            return [f"half-written: {error}"]
        known = []
        for n in (0, 1):
            write(home / f"known-{n}", n)
            known.append(read(home / f"known-{n}"))
        return [] if any(torch.equal(found, one) for one in known) else ["neither old nor new"]

    return Job(f"saving {name}", run, look, lambda home: {"it": read(home / "it").contiguous()})


def _adapter(path: Path, n: int) -> None:
    factors = {"model.layers.1.mlp.up_proj": (torch.full((2, 48), n + 1.0), torch.ones(96, 2))}
    lora.write(path, factors, base="x")


def _read_adapter(path: Path) -> Tensor:
    return lora.read(path).delta("model.layers.1.mlp.up_proj")


def _sets(subjects: Subjects) -> Job:
    some = [Feature(subjects.vector(f"v{i}", i), i + 1, 0.5, {"a": 1.0}) for i in range(4)]

    def look(home: Path) -> list[str]:
        return [f"{p.name} holds {len(sets.load(p))} of 4" for p in home.glob("set*") if len(sets.load(p)) != 4]

    def result(home: Path) -> dict[str, Tensor]:
        last = max(home.glob("set*"))
        return {f.name: f.vector.direction for f in sets.load(last)}  # type: ignore[union-attr]

    return Job("saving a gallery's set", lambda home: sets.save(some, home / "set"), look, result)


def _ratings() -> Job:
    items = [Item(f"text {i}" * 20, "0.2", i % 2 == 0) for i in range(12)]

    def run(home: Path) -> None:
        ratings = Ratings(items, home / "ratings.csv")
        while ratings.current is not None:
            ratings.rate(1 + len(ratings.answers) % 5, ratings.current.steered)

    def look(home: Path) -> list[str]:
        found = Ratings(items, home / "ratings.csv")  # refuses a file that is cut
        order = [i.id for i in found.items]
        answered = [i for i in order if i in found.answers]
        return [] if answered == order[: len(answered)] else ["an answer is missing"]

    def result(home: Path) -> dict[str, Tensor]:
        found = Ratings(items, home / "ratings.csv")
        return {"scores": torch.tensor([found.answers[i.id].score for i in found.items])}

    return Job("rating texts", run, look, result)


def _records() -> Job:
    """The harness of the recovery table, with a stand-in for what takes hours."""

    def run(home: Path) -> None:
        organisms.load = lambda name: SimpleNamespace()  # type: ignore[assignment, misc]
        elicitation.baseline = lambda m, name: {"organism": name, "arm": "baseline", "seed": 0}
        elicitation.measure = lambda m, name, arm, seed, setting: {  # type: ignore[assignment, misc]
            "organism": name,
            "arm": arm,
            "seed": seed,
            "right": [seed] * 500,
        }
        wanted = [("baseline", 0, 1, "mean"), *(("melbo", seed, 1, "mean") for seed in range(6))]
        recovery._complete(home / "r.json", "withholding", wanted)

    def look(home: Path) -> list[str]:
        return [] if all("arm" in r for r in recovery.read(home / "r.json")) else ["half a record"]

    def result(home: Path) -> dict[str, Tensor]:
        return {"seeds": torch.tensor([r["seed"] for r in recovery.read(home / "r.json")])}

    return Job("measuring records", run, look, result)


def _conversion() -> Job:
    """``kit fetch`` with a stand-in for the download and the model."""
    content = torch.arange(4096.0).bfloat16()

    def convert(_gguf: Path, folder: Path) -> None:
        save_file({"w": content}, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps({"dtype": "bfloat16"}))

    def run(home: Path) -> None:
        os.environ["KIT_CACHE"] = str(home)
        weights._gguf = lambda scratch, say: scratch / "fake.gguf"
        weights._dequantise = convert  # type: ignore[assignment]
        weights.fetch("float32", say=lambda text: None)

    def look(home: Path) -> list[str]:
        os.environ["KIT_CACHE"] = str(home)
        return [
            f"{dtype} is there and damaged"
            for dtype in ("bfloat16", "float32")
            if (status := weights.status(dtype))["present"] and not status["ok"]
        ]

    def result(home: Path) -> dict[str, Tensor]:
        return load_file(home / weights.EMBEDDED / "float32" / "model.safetensors")

    return Job("kit fetch, the conversion", run, look, result)


def _training(name: str, make: Callable[[], Any]) -> Job:
    def at(home: Path) -> Any:
        run = make()
        if (home / "run" / "training.json").is_file():
            run.restore(home / "run")
        return run

    def look(home: Path) -> list[str]:
        try:
            run = at(home)
        except (ValueError, OSError) as error:
            return [f"half-written: {error}"]
        # a snapshot is of one step: optimiser, weights and source stand at the same place
        told = {t.n_training_steps for t in run.trainers.values()} | {run.source.served // 32}
        return [] if told == {run.step} else [f"a mixture of steps {sorted({run.step} | told)}"]

    def result(home: Path) -> dict[str, Tensor]:
        run = at(home)
        if run.step != run.steps:
            raise AssertionError(f"it ended at step {run.step}")
        return {k: v.detach().clone() for t in run.trainers.values() for k, v in t.sae.state_dict().items()}

    def run(home: Path) -> None:
        training = at(home)
        begins()
        training.run(folder=home / "run")

    return Job(name, run, look, result, True)


def _harvest(subjects: Subjects) -> Job:
    def every(home: Path) -> list[Any]:
        source = subjects.source(cache=home / "cache")
        return [source.harvest(n) for n in range(source.chunks)]

    def look(home: Path) -> list[str]:
        try:
            every(home)  # reads what lies there, makes the rest
        except (ValueError, OSError) as error:
            return [f"half-written: {error}"]
        return []

    def result(home: Path) -> dict[str, Tensor]:
        return {f"{n}": next(iter(found.values())) for n, (found, _) in enumerate(every(home))}

    return Job("harvest into a cache", every, look, result)


def _build(subjects: Subjects, found: Dictionary) -> Job:
    def run(home: Path) -> None:
        FeatureStore.build(found, subjects.model, TEXTS, context=20, path=home / "store")

    def look(home: Path) -> list[str]:
        if (home / "store").exists():
            FeatureStore.open(home / "store", found, subjects.model)
        return []

    def result(home: Path) -> dict[str, Tensor]:
        return {"value": FeatureStore.open(home / "store", found, subjects.model).value}

    return Job("building a feature store", run, look, result)


def notebook_job() -> Job:
    """The notebook runner; the file is the old one or the new one, never half of it."""
    from nbformat import v4, writes

    cells = [
        v4.new_markdown_cell("# Title"),
        v4.new_code_cell("import time; time.sleep(0.2); 1"),
        v4.new_code_cell("2"),
    ]
    old = writes(v4.new_notebook(cells=cells)) + "\n"

    def run(home: Path) -> None:
        if not (home / "n.ipynb").exists():
            (home / "n.part").write_text(old)
            (home / "n.part").replace(home / "n.ipynb")
        runner.refresh(home / "n.ipynb")

    def look(home: Path) -> list[str]:
        (home / "n.part").unlink(missing_ok=True)
        if not (home / "n.ipynb").exists():
            return []
        found = runner.read(home / "n.ipynb")
        counts = [c.execution_count for c in found.cells if c.cell_type == "code"]
        return [] if counts in ([None, None], [1, 2]) else [f"half-written: {counts}"]

    def result(home: Path) -> dict[str, Tensor]:
        found = runner.read(home / "n.ipynb")
        said = [int(c.outputs[0]["data"]["text/plain"]) for c in found.cells[1:]]
        return {"said": torch.tensor(said)}

    return Job("running a notebook", run, look, result)
