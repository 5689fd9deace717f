"""The table of vectors without labels, beside the published implementation where there is one.

The rows against the reference need a checkout of melbo-dct-post, which is not part of this
repository: ``make bench ARGS="--reference PATH"``. Without it they say "not run".
"""
from __future__ import annotations

import importlib.util
import io
import threading
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from statistics import mean
from typing import Any

import psutil
import torch
from torch import Tensor, nn

import kit
from kit import dct, melbo, weights
from kit.calibration import radius
from kit.directions import random_units
from kit.models import runtime
from kit.slices import LayerSlice
from tests.benchmarks.ratios import Figure, seconds

_PROMPT = "The old captain looked over the harbour and asked the boy what he had seen there."
_SOURCE, _TARGET = 9, 19  # the published code's layers 10 to 20 are blocks 10 to 19
_FEATURES, _ITERATIONS, _STEPS = 64, 10, 12


def table(model: Any, seeds: int, reference: str | None) -> list[Figure]:
    """The rows, in float32 on one prompt; ratios of runs in turn."""
    if next(model.parameters()).dtype != torch.float32:
        model = kit.load_model(dtype="float32")
    tokens = kit.text_tokens(model, _PROMPT)
    piece = LayerSlice(model, tokens, _SOURCE, _TARGET)
    r = radius(piece).value
    times, objectives, peaks = [], [], []
    theirs = Reference(Path(reference), tokens, r) if reference else None
    fit(piece, r, 99, iterations=1)
    for seed in range(seeds):
        ours: list[Any] = []
        peak = _Peak()
        with peak:
            spent = seconds(lambda seed=seed, ours=ours: ours.append(fit(piece, r, seed)))
        peaks.append(1 + peak.added / _size(model))
        if theirs:
            found: list[float] = []
            other = seconds(lambda seed=seed, found=found: found.append(theirs.fit(seed)))
            times.append(spent / other)
            objectives.append((ours[0].history[-1], found[0]))
    quality = [mean(a for a, _ in objectives) / mean(b for _, b in objectives)] if theirs else []
    linear = dct.fit_map(piece, method="linear", n_features=_FEATURES, radius=r)
    control = piece.delta(r * random_units(_FEATURES, piece.d_model))
    gain = float(linear.changes.norm(dim=-1).mean() / control.norm(dim=-1).mean())

    def train(n: int) -> None:
        melbo.fit_slice(piece, n, radius=r, steps=_STEPS)

    train(1)
    together = [seconds(lambda: train(16)) / (16 * seconds(lambda: train(1)))
                for _ in range(seeds)]  # fmt: skip
    note = f" ({theirs.how})" if theirs else ""
    return [
        Figure("exponential DCT: time over the reference's" + note, "<= 0.7", "<= 0.4", times),
        Figure("exponential DCT: final causal term over the reference's", ">= 1.7", ">= 2.2",
               quality),
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


class Reference:
    """The published fit on the same weights, blocks, prompt and radius.

    ``how`` says which slice it runs on: its own, or where this version of transformers does not
    bear that one, a plain loop over the same blocks (which spares it work that its own does).
    """

    def __init__(self, checkout: Path, tokens: Tensor, r: float) -> None:
        from transformers import AutoModelForCausalLM

        spec = importlib.util.spec_from_file_location("reference", checkout / "src" / "dct.py")
        if spec is None or spec.loader is None or not (checkout / "src" / "dct.py").exists():
            raise ValueError(f"--reference {checkout}: it holds no src/dct.py")
        self.code, self.r = importlib.util.module_from_spec(spec), r
        spec.loader.exec_module(self.code)
        hf = AutoModelForCausalLM.from_pretrained(
            weights.fetch("float32"), dtype=torch.float32, attn_implementation="eager"
        ).eval().requires_grad_(False)
        s, t = _SOURCE + 1, _TARGET + 1
        with torch.no_grad():
            stream = hf(tokens, output_hidden_states=True, use_cache=False).hidden_states
        self.x, y = stream[s], stream[t]
        self.how = "its own slice"
        piece = self.code.SlicedModel(hf, start_layer=s, end_layer=t, layers_name="model.layers")
        try:
            self._check(piece, y)
        except Exception:  # noqa: BLE001  (whatever a newer transformers says)
            hf.model.layers, hf.config.num_hidden_layers = piece.layers, len(piece.layers)
            for i, layer in enumerate(piece.layers):
                layer.self_attn.layer_idx = i
            piece, self.how = _Loop(hf, self.x, s, t), "a plain loop over the blocks"
            self._check(piece, y)
        self.change = self.code.DeltaActivations(piece)
        with torch.no_grad():
            self.y = piece(self.x)

    def _check(self, piece: nn.Module, y: Tensor) -> None:
        with torch.no_grad():
            torch.testing.assert_close(piece(self.x), y, rtol=1e-3, atol=1e-2)
        out = torch.func.vmap(lambda v: torch.func.vjp(lambda a: piece(self.x + a), v)[0])
        out(torch.zeros(2, self.x.shape[-1]))

    def fit(self, seed: int) -> float:
        """The mean causal term that it records last."""
        torch.manual_seed(seed)
        run = self.code.ExponentialDCT(num_factors=_FEATURES)
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            run.fit(self.change, self.x, self.y, init="random", input_scale=self.r,
                    max_iters=_ITERATIONS)  # fmt: skip
        return run.objective_values[-1]


class _Loop(nn.Module):
    def __init__(self, hf: Any, x: Tensor, s: int, t: int) -> None:
        super().__init__()
        self.model, self.blocks = hf, list(hf.model.layers[s:t])
        n = x.shape[1]
        self.rotary = hf.model.rotary_emb(x, torch.arange(n)[None])
        self.mask = torch.full((n, n), torch.finfo(x.dtype).min).triu(1)[None, None]

    def forward(self, h: Tensor) -> Tensor:
        for block in self.blocks:
            out = block(h, attention_mask=self.mask, position_embeddings=self.rotary)
            h = out[0] if isinstance(out, tuple) else out
        return h
