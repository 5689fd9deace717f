"""What tests/search/test_parallel.py starts twice: ``python -m tests.parallel_worker FOLDER [nodes]``.

The jobs are functions, so that the test runs the very same ones in its own process.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import kit
from kit.base import shards
from kit.base.files import whole
from kit.cli import harvest
from kit.models.bridge import runtime
from kit.sae import Site, Source
from kit.search import dct, melbo, parallel
from kit.search.layer_slice import LayerSlice
from kit.search.maps import Map
from kit.steering.sweep import sweep
from tests import tiny

TEXTS = [sentence for _ in range(12) for sentence in tiny.SENTENCES]


def load(folder: Path) -> Any:
    torch.set_num_threads(1)
    return kit.load_model(str(folder / "model"), dtype="float32", device="cpu")


def source(model: Any, cache: Path | None) -> Source:
    return Source(model, TEXTS, [Site(1), Site(2, "mlp_out")], batch=16, context=20, rows=8, cache=cache)


def table(model: Any, folder: Path | None) -> Any:
    prompts = [tiny.prompt(model, n, seed=n) for n in (6, 9, 7)]
    return sweep(
        model,
        tiny.vector(model, 1),
        prompts,
        [1, 2],
        [-0.5, 0.5],
        max_new_tokens=4,
        targets=(" warm", " late"),
        shards=folder,
    )


def slice_of(model: Any, seed: int = 0) -> LayerSlice:
    """Three prompts, two thetas a pass: five vectors are three passes."""
    prompts = [tiny.prompt(model, n, seed=n + seed)[0] for n in (40, 35, 33)]
    return LayerSlice(model, prompts, 0, 2)


def restarts(model: Any, folder: Path | None) -> Any:
    return melbo.fit_slice(slice_of(model), 2, radius=3.0, steps=4, restarts=4, shards=folder)


def fits(model: Any) -> dict[str, Tensor]:
    """Every kind of pass: gradients, both products, second derivatives, plain changes."""
    piece, found = slice_of(model), {}
    for together in (True, False):
        got = melbo.fit_slice(piece, 5 if together else 2, steps=3, together=together, restarts=3, radius=3.0)
        found |= {f"melbo {together} V": got.V, f"melbo {together} alpha": got.alpha}
    for method in ("projected", "quadratic", "exponential"):
        fit = dct.fit_map(piece, method=method, n_features=5, iterations=1, radius=3.0, n_projections=6)
        found |= {f"{method} V": fit.V, f"{method} U": fit.U, f"{method} alpha": fit.alpha}
        assert fit.piece is piece
    return found


def logged(function: Callable[..., Any], log: Path) -> Callable[..., Any]:
    """The function, with a line in a file for each call: which process, and what it was given."""

    def call(*args: Any) -> Any:
        with log.open("a") as file:
            file.write(f"{os.getpid()} {args[-1]}\n")
        return function(*args)

    return call


def everything(folder: Path) -> None:
    """All that can be shared; this process's results go to files of its own."""
    model, rank = load(folder), int(os.environ["RANK"])
    if rank:
        killed(model, folder)  # before there are threads, which a fork would lose
    for split in ("rows", "prompts"):
        with parallel.group(split, timeout=120) as team:
            assert team.rank == rank and team.first == (rank == 0)
            save_file(fits(model), folder / f"{split}-{rank}.safetensors")
            team.wait()
    Source._write = logged(Source._write, folder / "chunks.log")  # type: ignore[method-assign]
    source(model, folder / "cache").fill()
    table(model, folder / "sweep").to_json(folder / f"table-{rank}.json", double_precision=15)
    found = restarts(model, folder / "restarts")
    save_file({"V": found.V, "alpha": found.alpha}, folder / f"restarts-{rank}.safetensors")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what the launcher sends when a peer dies
    apart(folder, rank, model)
    lost(folder, rank)
    (folder / "end").touch()


def killed(model: Any, folder: Path) -> None:
    """For each kind of shard: a process that is killed while it writes its third one."""
    jobs = {
        "cache": lambda at: source(model, at).fill(),
        "sweep": lambda at: table(model, at),
        "restarts": lambda at: restarts(model, at),
    }
    for name, job in jobs.items():
        child = os.fork()
        if not child:
            shards.os.replace = _kill_at_the_third()  # type: ignore[attr-defined]
            job(folder / f"killed-{name}")
            os._exit(1)  # it should not have come to its end
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def _kill_at_the_third() -> Callable[[Path, Path], None]:
    whole, done = os.replace, []

    def replace(part: Path, file: Path) -> None:
        done.append(file)
        if len(done) == 3:
            part.write_bytes(part.read_bytes()[:50])
            os.kill(os.getpid(), signal.SIGKILL)
        whole(part, file)

    return replace


def apart(folder: Path, rank: int, model: Any) -> None:
    """Fits of which the second process has other prompts, and then other weights; what each said."""
    for way in ("prompts", "data", "weights"):
        weight = runtime(model).block(1).get_submodule("mlp.down_proj").weight
        if rank and way == "weights":
            with torch.no_grad():
                weight.mul_(1.2)
        elif rank and way == "data":
            weight.data.mul_(1.2)  # which no version counts: the fingerprint stays
        piece = slice_of(model, seed=rank if way == "prompts" else 0)
        for fit in (
            lambda piece=piece: dct.fit_map(piece, n_features=2, iterations=1, radius=3.0),
            lambda piece=piece: melbo.fit_slice(piece, 2, radius=3.0, steps=1),
        ):
            try:
                with parallel.group(timeout=30):
                    fit()
            except parallel.PeerLost as error:
                with (folder / f"{way}-{rank}.txt").open("a") as said:
                    said.write(f"{error}\n")


def lost(folder: Path, rank: int) -> None:
    """Three groups, each of which loses the second process in another way; what each said."""
    piece = Map(lambda x: x + x.square(), 8, step=1)
    for way in ("other", "silent", "dead"):
        try:
            with parallel.group(timeout=30 if way != "silent" else 2) as team:
                team.wait()
                if rank and way == "silent":
                    time.sleep(4)
                elif rank and way == "dead":
                    os.kill(os.getpid(), signal.SIGKILL)
                else:
                    n = 3 + (rank if way == "other" else 0)
                    dct.fit_map(piece, n_features=n, iterations=2, radius=0.1)
        except parallel.PeerLost as error:
            (folder / f"{way}-{rank}.txt").write_text(str(error))


def nodes(folder: Path) -> None:
    """What two launchers, as of two machines, share: a fit, and a harvest by its command."""
    with parallel.group(timeout=60) as team:
        found = melbo.fit_slice(slice_of(load(folder)), 4, steps=2, radius=3.0)
        told = {"V": found.V, "node": torch.tensor(int(os.environ["GROUP_RANK"]))}
        save_file(told, folder / f"node-{team.rank}.safetensors")
        team.wait()
    log = folder / "nodes.log"
    write = logged(Source._write, log)

    def both(*args: Any) -> None:
        write(*args)
        until = time.monotonic() + 30  # the other one may be slower to begin
        while len({line.split()[0] for line in log.read_text().splitlines()}) < 2 and time.monotonic() < until:
            time.sleep(0.01)

    Source._write = both  # type: ignore[method-assign]
    assert harvest.main(command(folder, folder / "nodes")) == 0


def command(folder: Path, out: Path) -> list[str]:
    """The arguments of a harvest of what :func:`source` reads at its first site."""
    corpus = folder / "corpus.txt"
    if not corpus.exists():
        with whole(corpus) as part:
            part.write_text("\n\n".join(TEXTS), encoding="utf-8")
    given = {"model": folder / "model", "texts": corpus, "out": out, "dtype": "float32"}
    sizes = {"layer": 1, "context": 20, "rows": 8}
    return [str(x) for name, value in {**given, **sizes}.items() for x in (f"--{name}", value)]


if __name__ == "__main__":
    (nodes if sys.argv[2:] else everything)(Path(sys.argv[1]))
