"""The speed table: each row two things run in turn, or one thing run many times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any
from unittest.mock import patch

import torch

import kit
from kit.base import threads
from kit.models import load, weights
from kit.models.fast_linear import ROWS

_TOKENS = 32
_PROMPT = "Tell me about your favourite day of the week and say why you like it so much."


@dataclass(frozen=True)
class Figure:
    """One line of the table, with what it must reach, if anything; ``values`` are the pairs' ratios
    or the single runs (none: not run); ``quiet`` and ``busy`` say what a job took alone and with
    one core busy."""

    what: str
    must: str
    aim: str
    values: list[float]
    unit: str = ""
    quiet: str = ""
    busy: str = ""

    @property
    def shown(self) -> str:
        return f"{median(self.values):.2f}{self.unit}" if self.values else "not run"

    @property
    def spread(self) -> str:
        return f"{min(self.values):.2f} to {max(self.values):.2f}" if self.values else ""

    @property
    def held(self) -> bool:
        if not self.values or not self.must:
            return True
        sign, bound = self.must.split(" ")
        value = median(self.values)
        return value >= float(bound) if sign == ">=" else value <= float(bound)


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def after_first(make: Callable[[], Any]) -> float:
    """Seconds of a stream after its first token, which its prompt is in."""
    stream = make()
    next(stream)
    return seconds(lambda: list(stream))


def pairs_of(
    a: Callable[[], Any], b: Callable[[], Any], pairs: int, time: Callable[[Callable[[], Any]], float] = seconds
) -> list[float]:
    """time(a) / time(b), pair by pair, after a warm-up of both; the order alternates."""
    time(a), time(b)
    found = []
    for i in range(pairs):
        first, second = (a, b) if i % 2 == 0 else (b, a)
        times = time(first), time(second)
        found.append(times[0] / times[1] if i % 2 == 0 else times[1] / times[0])
    return found


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread, as if the user had said so, and numpy's BLAS."""
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threads.fitted(1):
            yield
    finally:
        torch.set_num_threads(usual)


@one_thread()
def alone(
    a: Callable[[], Any], b: Callable[[], Any], pairs: int, time: Callable[[Callable[[], Any]], float] = seconds
) -> list[float]:
    """:func:`pairs_of` on one thread."""
    return pairs_of(a, b, pairs, time)


def table(model: Any, pairs: int) -> list[Figure]:
    vector = kit.data.vector("happy-sad")
    tokens = kit.chat_tokens(model, _PROMPT)
    plain = _plain_transformers(model)
    step = vector.norm * kit.residual_scale(model, vector.layer) * vector.direction

    def kit_rows(coefficients: list[float]) -> Callable[[], Any]:
        return lambda: kit.generate(model, tokens, vector, coefficients, max_new_tokens=_TOKENS)

    def kit_steps(coefficients: list[float]) -> Callable[[], Any]:
        return lambda: kit.stream(model, tokens, vector, coefficients, max_new_tokens=_TOKENS)

    def transformers() -> None:
        plain.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=_TOKENS,
            min_new_tokens=_TOKENS,
            do_sample=False,
        )

    def bridge() -> None:
        name = f"blocks.{vector.layer}.hook_out"
        with model.hooks(fwd_hooks=[(name, lambda x, hook: x + 0.2 * step.to(x))]):
            model.generate(tokens, max_new_tokens=_TOKENS, do_sample=False, stop_at_eos=False, verbose=False)

    with no_end(model):
        ladder = [-0.4 + 0.1 * i for i in range(9)]
        one, nine = kit_rows([0.2]), kit_rows(ladder)
        one_step, nine_steps = kit_steps([0.2]), kit_steps(ladder)
        return [
            Figure(
                "steered decode, one row: speed over transformers generate",
                ">= 0.95",
                ">= 1.1",
                pairs_of(transformers, one, pairs),
            ),
            Figure(
                "steered decode: speed over TransformerBridge.generate",
                ">= 1.15",
                ">= 1.4",
                pairs_of(bridge, one, pairs),
            ),
            Figure(
                "ladder of 9: a step over one row's",
                "<= 1.3",
                "<= 1.2",
                pairs_of(nine_steps, one_step, pairs, after_first),
            ),
            Figure(
                "ladder of 9: a step over one row's, one thread",
                "<= 2.2",
                "<= 1.7",
                alone(nine_steps, one_step, pairs, after_first),
            ),
            Figure("ladder of 9 with its prompt of 48 tokens: time over one row's", "", "", pairs_of(nine, one, pairs)),
            Figure("the same, one thread", "", "", alone(nine, one, pairs)),
            Figure(
                "slider release to first token, 40-token prompt",
                "<= 300",
                "<= 150",
                first_tokens(model, vector, 5 * pairs),
                " ms",
            ),
            Figure(
                "load_model, warm, after imports", "<= 2", "<= 0.7", [_child()["seconds"] for _ in range(pairs)], " s"
            ),
            Figure("private memory a second kernel adds, of the model's size", "<= 0.5", "<= 0.1", [second_kernel()]),
        ]


class no_end:
    """Let every run go to its last token, so that all generate the same number."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __enter__(self) -> None:
        config = self.model.original_model.generation_config
        self.saved = config.eos_token_id, self.model.tokenizer.eos_token
        config.eos_token_id, self.model.tokenizer.eos_token = None, None

    def __exit__(self, *_: object) -> None:
        config = self.model.original_model.generation_config
        config.eos_token_id, self.model.tokenizer.eos_token = self.saved


def _plain_transformers(model: Any) -> Any:
    from transformers import AutoModelForCausalLM

    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    plain = AutoModelForCausalLM.from_pretrained(weights.fetch(dtype), dtype=dtype).eval()
    plain.generation_config.eos_token_id = None
    return plain


def libraries(model: Any, iteration: Callable[[], Any], pairs: int) -> list[Figure]:
    """What the choice of a library gives: time with torch's own for every product over time."""
    vector, tokens = kit.data.vector("happy-sad"), kit.chat_tokens(model, _PROMPT)
    own = {side: " ".join(["torch"] * len(ROWS)) for side in ("alone", "together")}
    plain = {**threads.kept(), "products": own}

    def with_own(job: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            with patch.object(threads, "kept", lambda: plain):
                return job()

        return run

    def row(count: int) -> Callable[[], Any]:
        return lambda: kit.generate(model, tokens, vector, [0.2] * count, max_new_tokens=_TOKENS)

    jobs = {"one row": row(1), "a ladder of 9": row(9), "an iteration of the exponential DCT": iteration}
    with no_end(model):
        return [
            Figure(f"{what}: time with torch's library over time", "", "", pairs_of(with_own(job), job, pairs))
            for what, job in jobs.items()
        ]


def halves(model: Any, pairs: int) -> Figure:
    """The row of bfloat16, not run where ``auto`` chooses float32."""
    found: list[float] = []
    if load.choose_dtype("cpu")[0] == torch.bfloat16:
        narrow, vector = kit.load_model(dtype="bfloat16"), kit.data.vector("happy-sad")
        tokens = kit.chat_tokens(model, _PROMPT)

        def one_of(model: Any) -> Callable[[], Any]:
            return lambda: kit.stream(model, tokens, vector, [0.2], max_new_tokens=_TOKENS)

        with no_end(model), no_end(narrow):
            found = pairs_of(one_of(narrow), one_of(model), pairs, after_first)
    return Figure("bfloat16 where `auto` chooses it: a token over float32's", "<= 1", "<= 0.8", found)


def first_tokens(model: Any, vector: Any, runs: int) -> list[float]:
    """Milliseconds from a new coefficient to the first token of both texts, panel settings."""
    tokens = kit.chat_tokens(model, "Please tell me how you are.")
    assert 30 <= tokens.shape[1] <= 50, tokens.shape
    found = []
    for i in range(runs + 2):
        c = 0.05 * (i % 7 + 1)
        run = kit.stream(model, tokens, vector, [None, c], measure=True)
        found.append(1000 * seconds(lambda run=run: next(run)))
    return found[2:]


_CHILD = """
import json, sys, time
import torch, transformers, transformer_lens.model_bridge
from transformers.models.llama import modeling_llama
import kit.steering.generation, kit.steering.vectors

def private():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return sum(int(l.split()[1]) for l in lines if l.startswith("Private_")) * 1024

before = private() if sys.platform == "linux" else 0
start = time.perf_counter()
model = kit.load_model()
seconds = time.perf_counter() - start
kit.generate(model, "Hello", max_new_tokens=2)
size = sum(p.numel() * p.element_size() for p in model.original_model.parameters())
after = private() if sys.platform == "linux" else 0
print(json.dumps({"seconds": seconds, "added": after - before, "size": size}), flush=True)
sys.stdin.readline()
"""


def _start() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stderr=subprocess.DEVNULL,
    )


def _child() -> dict[str, float]:
    child = _start()
    line = child.stdout.readline()  # type: ignore[union-attr]
    child.communicate("\n")
    return json.loads(line)


def second_kernel() -> float:
    """Private bytes that loading and using the model adds in a second process, over its size."""
    first = _start()
    first.stdout.readline()  # type: ignore[union-attr]
    second = _child()
    first.communicate("\n")
    return second["added"] / second["size"]
