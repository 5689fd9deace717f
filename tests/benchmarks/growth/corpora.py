"""What more text, or a wider dictionary, makes longer: harvests, trainings, stores, pages.

More text goes through a tiny random model, each size in a process of its own: what is examined is
how time, memory and disk grow, not how large they are for a model that is used.
"""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

import kit
from kit import sae
from kit.cli import estimates
from kit.cli.timing import Estimate
from kit.models.activations import capture
from tests import tiny
from tests.benchmarks.growth.curves import Curve, best

_CONTEXT, _BATCH, _LATENTS, _K = 128, 4096, 192, 8


def dictionary(model: Any, rows: Tensor, layer: int, latents: int, k: int) -> sae.Dictionary:
    """Random directions, each above its threshold so often that k fire on a token of ``rows``."""
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig

    site, rng = sae.Site(layer), torch.Generator().manual_seed(0)
    x = capture(model, rows, [site.place])[site.place][:, 1:].flatten(0, 1).float()
    found = JumpReLUSAE(JumpReLUSAEConfig(d_in=x.shape[1], d_sae=latents, apply_b_dec_to_input=True))
    unit = torch.nn.functional.normalize(torch.randn(latents, x.shape[1], generator=rng), dim=-1)
    with torch.no_grad():
        found.W_dec.copy_(unit)
        found.W_enc.copy_(unit.T)
        found.b_dec.copy_(x.mean(0))
        found.threshold.copy_(((x - x.mean(0)) @ unit.T).topk(max(1, round(len(x) * k / latents)), dim=0).values[-1])
    return sae.Dictionary(found.eval(), site, f"random of {latents}")


def tokens(_model: Any, quick: bool) -> list[Curve]:
    """Tokens of a corpus that is harvested, trained on, made a store of and looked at."""
    sizes = (100_000, 300_000, 1_000_000) if quick else (100_000, 300_000, 1_000_000, 5_000_000)
    found = {n: corpus(n) for n in sizes}
    curves = []
    for i, job in enumerate(found[sizes[0]]):
        curves.append(Curve(job.what, "tokens", 1, {n: jobs[i].seconds for n, jobs in found.items()}))
        peaks = {n: float(jobs[i].peak) for n, jobs in found.items()}
        curves.append(Curve(f"{job.what}, the process's memory", "tokens", 0, peaks, "bytes"))
    return curves


def latents(model: Any, quick: bool) -> list[Curve]:
    """Latents of a dictionary that is trained and looked at, of which as many fire on a token."""
    rng = torch.Generator().manual_seed(0)
    rows = torch.randint(model.cfg.d_vocab, (64, _CONTEXT), generator=rng)
    sizes = [model.cfg.d_model * times for times in ((1, 2, 4) if quick else (1, 2, 4, 8, 16, 32))]
    stores, runs = {}, {}
    for n in sizes:
        stores[n] = sae.FeatureStore.build(dictionary(model, rows[:16], 2, n, 32), model, rows)
        source = sae.Source(model, rows, [sae.Site(2)], batch=512, rows=64)
        runs[n] = sae.Training(source, widths=[n / model.cfg.d_model], k=32, steps=100)
    busiest = {n: int(store.density().argmax()) for n, store in stores.items()}
    page = best(lambda n: sae.page(stores[n], model, busiest[n]), sizes, 6)
    return [
        Curve("a step of training", "latents", 1, best(lambda n: runs[n].advance(), sizes, 4)),
        Curve("a latent's page", "latents", 0, page),
    ]


@dataclass
class Job:
    """What one job took.

    Attributes:
        peak: bytes of the process at most, without files that are mapped; added: of those, what
            came with the job; disk: bytes taken at most, and kept: at the end.
        said: by an estimate before it: seconds, low, high, memory, disk.
    """

    what: str
    seconds: float
    peak: int
    added: int
    disk: int
    kept: int
    said: dict[str, float]


def corpus(n: int) -> list[Job]:
    """The jobs on so many tokens, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        disable_progress_bar()
        tiny.save(Path(folder) / "model", "llama", num_attention_heads=2, num_key_value_heads=1)
        command = [sys.executable, "-c", f"from {__name__} import child; child()", str(n), folder]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [Job(**told) for told in json.loads(done.stdout.splitlines()[-1])]


def _jobs(n: int, folder: Path) -> list[Job]:
    model = kit.load_model(str(folder / "model"), dtype="float32")
    rng = torch.Generator().manual_seed(0)
    rows = torch.randint(3, model.cfg.d_vocab, (n // _CONTEXT, _CONTEXT), generator=rng)
    rows[:, 0] = 0  # where this tokenizer begins a text
    cache, path = folder / "cache", folder / "store" / "store.safetensors"
    found = []

    def source(batch: int) -> sae.Source:
        return sae.Source(model, rows, [sae.Site(0)], batch=batch, cache=cache)

    def train() -> None:
        training = sae.Training(source(_BATCH), widths=(2,), k=_K, steps=max(1, n // _BATCH))
        training.run()

    def add(what: str, estimate: Estimate | None, job: Callable[[], Any], kept: Path) -> None:
        found.append(_measured(what, estimate, job, kept))

    add("harvest", estimates.filling(source(1), 1.0), lambda: source(1).fill(), cache)
    shape: Any = {"tokens": n, "widths": (2,), "batch": _BATCH, "k": _K, "cached": True}
    add("training", estimates.sae_training(model, 0, **shape), train, folder / "none")
    random = dictionary(model, rows[:64], 0, _LATENTS, _K)
    estimate = estimates.store(random, model, rows, path, 1.0)
    add("store", estimate, lambda: sae.FeatureStore.build(random, model, rows, path=path), path.parent)
    store = sae.FeatureStore.open(path, random, model)
    busiest = int(store.density().argmax())
    sae.page(store, model, int(store.density().argmin()))  # what the first page loads
    add("page", None, lambda: sae.page(store, model, busiest), folder / "none")
    add("all maxima", None, store.maxima, folder / "none")
    return found


def _measured(what: str, estimate: Estimate | None, job: Callable[[], Any], kept: Path) -> Job:
    gc.collect()
    kept.mkdir(exist_ok=True, parents=True)
    done, before, free = threading.Event(), _held(), shutil.disk_usage(kept).free
    top, least = before, free

    def watch() -> None:
        nonlocal top, least
        while not done.wait(0.005):
            top, least = max(top, _held()), min(least, shutil.disk_usage(kept).free)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    start = time.perf_counter()
    job()
    took = time.perf_counter() - start
    done.set()
    thread.join()
    said = {} if estimate is None else {"seconds": estimate.seconds, "low": estimate.low, "high": estimate.high}
    said |= {} if estimate is None else {"memory": estimate.memory_bytes, "disk": estimate.disk_bytes}
    size = sum(file.stat().st_size for file in kept.rglob("*") if file.is_file())
    return Job(what, took, top, top - before, free - least, size, said)


def _held() -> int:
    """Bytes of this process that no file is behind: mapped ones go when memory is short."""
    file = Path("/proc/self/status")
    if not file.exists():
        import psutil

        return int(psutil.Process().memory_info().rss)
    return 1024 * next(int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith("RssAnon"))


CURVES = {"tokens": tokens, "latents": latents}


def child() -> None:
    """The process of :func:`corpus`: its arguments are tokens and a folder with a model."""
    print(json.dumps([asdict(job) for job in _jobs(int(sys.argv[1]), Path(sys.argv[2]))]))
