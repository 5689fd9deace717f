"""The table of vectors without labels, beside the published implementation where there is one.

The rows against the reference need a checkout of melbo-dct-post, which is not part of this
repository: ``make bench ARGS="--reference PATH --reference-python PYTHON"``, the second a Python
with transformers 4.46.3, under which that code's own slice of a model works. Without a checkout
they say "not run".
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import mean
from typing import IO, Any

import psutil
import torch

import kit
from kit.base.directions import random_units
from kit.models import weights
from kit.models.bridge import runtime
from kit.search import dct, melbo
from kit.search.layer_slice import LayerSlice
from kit.search.radius import linear_radius
from tests.benchmarks.ratios import Figure, seconds

_PROMPT = "The old captain looked over the harbour and asked the boy what he had seen there."
_SOURCE, _TARGET = 9, 19  # the published code's layers 10 to 20 are blocks 10 to 19
_FEATURES, _ITERATIONS, _STEPS = 64, 10, 12


def table(model: Any, seeds: int, reference: str | None, python: str = sys.executable) -> list[Figure]:
    """The rows, in float32 on one prompt; ratios of runs in turn.

    Args:
        reference, python: a checkout of the published code, and an interpreter to run it in.
    """
    if next(model.parameters()).dtype != torch.float32:
        model = kit.load_model(dtype="float32")
    tokens = kit.text_tokens(model, _PROMPT)
    piece = LayerSlice(model, tokens, _SOURCE, _TARGET)
    r = linear_radius(piece).value
    times, objectives, peaks, note = [], [], [], ""
    with ExitStack() as stack:
        theirs = None
        if reference:
            theirs = stack.enter_context(started(reference, python, piece, r))
            note = f" ({theirs.how})"
        fit(piece, r, 99, iterations=1)
        for seed in range(seeds):
            ours: list[Any] = []
            peak = _Peak()
            with peak:
                spent = seconds(lambda seed=seed, ours=ours: ours.append(fit(piece, r, seed)))
            peaks.append(1 + peak.added / _size(model))
            if theirs:
                other, objective = theirs.fit(seed)
                times.append(spent / other)
                objectives.append((ours[0].history[-1], objective))
    quality = []
    if objectives:
        quality = [mean(a for a, _ in objectives) / mean(b for _, b in objectives)]
    linear = dct.fit_map(piece, method="linear", n_features=_FEATURES, radius=r)
    control = piece.delta(r * random_units(_FEATURES, piece.d_model))
    gain = float(linear.changes.norm(dim=-1).mean() / control.norm(dim=-1).mean())

    def train(n: int) -> None:
        melbo.fit_slice(piece, n, radius=r, steps=_STEPS)

    train(1)
    together = [seconds(lambda: train(16)) / (16 * seconds(lambda: train(1))) for _ in range(seeds)]
    return [
        Figure("exponential DCT with ranking: time over the reference's" + note, "<= 0.7", "<= 0.4", times),
        Figure("exponential DCT: final causal term over the reference's", ">= 1.7", ">= 2.2", quality),
        Figure("linear DCT: change over random directions", ">= 1.7", ">= 1.8", [gain]),
        Figure("16 MELBO vectors together: time over 16 x one", "<= 0.5", "<= 0.25", together),
        Figure("exponential DCT: peak memory over the model's own", "<= 3", "<= 1.5", peaks),
    ]


def fit(piece: LayerSlice, r: float, seed: int, iterations: int = _ITERATIONS) -> Any:
    return dct.fit_map(piece, n_features=_FEATURES, radius=r, iterations=iterations, seed=seed)


def _size(model: Any) -> int:
    decoder = runtime(model).decoder
    return sum({p.data_ptr(): p.numel() * p.element_size() for p in decoder.parameters()}.values())


class _Peak:
    """How many bytes this process holds more, at most, than it did at the start."""

    def __enter__(self) -> None:
        self.process, self.stop, self.added = psutil.Process(), threading.Event(), 0
        self.before = self.process.memory_info().rss
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()

    def _watch(self) -> None:
        while not self.stop.wait(0.01):
            self.added = max(self.added, self.process.memory_info().rss - self.before)

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()


@contextmanager
def started(checkout: str, python: str, piece: LayerSlice, r: float) -> Iterator[Reference]:
    """The published code in a process of its own, on the same blocks, prompt and radius.

    Raises:
        ValueError: no checkout, no interpreter, or one that cannot run the published code.
    """
    if not (Path(checkout) / "src" / "dct.py").is_file():
        raise ValueError(
            f"--reference {checkout}: it holds no src/dct.py; give the folder of a checkout of melbo-dct-post"
        )
    # PYTHONPATH leads to our versions, and the child is there to have others
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, str(Path(__file__).with_name("published.py"))]
    pipe = subprocess.PIPE
    with tempfile.TemporaryFile("w+") as log:
        try:
            process = subprocess.Popen(command, env=env, text=True, stdin=pipe, stdout=pipe, stderr=log)
        except OSError as error:
            raise ValueError(
                f"--reference-python {python}: {error.strerror}; give the path of a Python interpreter"
            ) from error
        with process:  # leaving closes its input, at which it ends by itself
            yield Reference(
                process,
                log,
                python,
                checkout=str(Path(checkout).resolve()),
                model=str(weights.fetch("float32")),
                tokens=piece.tokens[0].tolist(),
                start=_SOURCE + 1,
                end=_TARGET + 1,
                after=piece.after[0, -1].tolist(),
                radius=r,
                features=_FEATURES,
                iterations=_ITERATIONS,
                threads=torch.get_num_threads(),
            )


class Reference:
    """What to ask that process, which waits while ours runs.

    ``how`` says which slice it runs on, see :mod:`tests.benchmarks.published`.
    """

    def __init__(self, process: subprocess.Popen[str], log: IO[str], python: str, **spec: Any) -> None:
        self.process, self.log, self.python = process, log, python
        self.how = self._ask(**spec)["how"]

    def fit(self, seed: int) -> tuple[float, float]:
        """Seconds, and the mean causal term that it records last."""
        answer = self._ask(seed=seed)
        return answer["seconds"], answer["objective"]

    def _ask(self, **message: Any) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        with suppress(BrokenPipeError):  # it ended: its last words say why
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": self._last_words()}
        if "error" in answer:
            raise ValueError(
                f"--reference-python {self.python}: {answer['error']}; give one with "
                "torch, scipy, tqdm and transformers 4.46.3"
            )
        return answer

    def _last_words(self) -> str:
        status = self.process.wait()
        self.log.seek(0)
        lines = self.log.read().strip().splitlines()
        return lines[-1] if lines else f"it ended with status {status} and said nothing"
