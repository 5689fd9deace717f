"""The published exponential DCT in a process of its own: JSON lines in, JSON lines out.

It stands alone on purpose: it imports torch, transformers and the checkout of melbo-dct-post (which
wants scipy and tqdm), never this package, so that it runs in an interpreter that holds the versions
which that code was written for (transformers 4.46.3), while ours runs in a current one.

The first line says what to fit and is answered with ``{"how": ...}``: which slice of the model it
runs on. Each further line ``{"seed": n}`` is answered with ``{"seconds": ..., "objective": ...}``.
A failure is answered with ``{"error": ...}`` and ends the process, as does the end of the input.
"""

from __future__ import annotations

import importlib.util
import io
import json
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

_OLD = int(transformers.__version__.split(".")[0]) < 5


def main() -> int:
    answers, sys.stdout = sys.stdout, sys.stderr  # what others print must not look like an answer

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    try:
        fit = prepared(json.loads(sys.stdin.readline()))
        answer(how=fit.how)
        for line in sys.stdin:
            spent, objective = fit(json.loads(line)["seed"])
            answer(seconds=spent, objective=objective)
    except Exception as error:
        answer(error=f"{type(error).__name__}: {error}")
        return 1
    return 0


def prepared(spec: dict[str, Any]) -> Fit:
    """The published code on its own slice, or where that fails here on a plain loop.

    Args:
        spec: ``checkout`` and ``model``, folders; ``tokens``, one prompt; ``start`` and ``end`` in
            the published code's count of layers; ``after``, the unsteered residual stream at
            ``end`` and the last token, as the other process has it; ``radius``, ``features``,
            ``iterations`` and ``threads``.
    """
    torch.set_num_threads(spec["threads"])
    code, hf = published(Path(spec["checkout"])), load(Path(spec["model"]))
    start, end = spec["start"], spec["end"]
    with torch.no_grad():
        tokens = torch.tensor([spec["tokens"]])
        stream = hf(tokens, output_hidden_states=True, use_cache=False).hidden_states
    x, y = stream[start], stream[end]
    off = float((y[0, -1] - torch.tensor(spec["after"])).abs().max() / y[0, -1].abs().max())
    if not off < 1e-3:
        raise ValueError(
            f"model {spec['model']}: transformers {transformers.__version__} computes "
            f"a residual stream that is off by {off:.1g} of its largest entry, where "
            "1e-3 is allowed; it may not read this config.json"
        )
    here = f"transformers {transformers.__version__}"
    own = code.SlicedModel(hf, start_layer=start, end_layer=end, layers_name="model.layers")
    try:
        return Fit(code, own, x, y, spec, f"its own slice, {here}")
    except Exception as error:
        sys.stderr.write(f"its own slice fails: {type(error).__name__}: {error}\n")
        # it changes the model while it runs, and a failure leaves it changed
        hf.model.layers, hf.config.num_hidden_layers = own.layers, len(own.layers)
        for i, layer in enumerate(own.layers):
            layer.self_attn.layer_idx = i
        return Fit(code, _Loop(hf, x, start, end), x, y, spec, f"a plain loop, {here}")


def published(checkout: Path) -> Any:
    """The module ``src/dct.py`` of a checkout."""
    spec = importlib.util.spec_from_file_location("reference", checkout / "src" / "dct.py")
    if spec is None or spec.loader is None:
        raise ValueError(f"checkout {checkout}: it holds no src/dct.py")
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    return code


def load(folder: Path) -> Any:
    """The model in float32, with the attention that :mod:`torch.func` can differentiate."""
    config = transformers.AutoConfig.from_pretrained(folder)
    rope = json.loads((folder / "config.json").read_text()).get("rope_parameters") or {}
    if _OLD and "rope_theta" in rope:  # transformers 5 writes it where older ones do not look
        config.rope_theta = rope["rope_theta"]
    dtype: dict[str, Any] = {"torch_dtype" if _OLD else "dtype": torch.float32}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, config=config, attn_implementation="eager", **dtype
    )
    return model.eval().requires_grad_(False)


class Fit:
    """The published fit on one slice, checked against the whole model and warmed up."""

    def __init__(self, code: Any, piece: nn.Module, x: Tensor, y: Tensor, spec: dict[str, Any], how: str) -> None:
        with torch.no_grad():
            self.y = piece(x)
        torch.testing.assert_close(self.y, y, rtol=1e-3, atol=1e-2)
        self.code, self.x, self.spec, self.how = code, x, spec, how
        self.change = code.DeltaActivations(piece)
        self(99, iterations=1)

    def __call__(self, seed: int, iterations: int | None = None) -> tuple[float, float]:
        """Seconds with the ranking (ours ranks as it fits), and the last mean causal term."""
        torch.manual_seed(seed)
        run = self.code.ExponentialDCT(num_factors=self.spec["features"])
        count = self.spec["iterations"] if iterations is None else iterations
        start = time.perf_counter()
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            run.fit(self.change, self.x, self.y, init="random", input_scale=self.spec["radius"], max_iters=count)
            run.rank(self.change, self.x, self.y)
        return time.perf_counter() - start, run.objective_values[-1]


class _Loop(nn.Module):
    """The same blocks without the rest of the model: spares the published code the norm, the block
    too many and the unembedding of every position, all of which its own slice computes."""

    def __init__(self, hf: Any, x: Tensor, start: int, end: int) -> None:
        super().__init__()
        self.model, self.blocks = hf, list(hf.model.layers[start:end])
        n = x.shape[1]
        self.rotary = hf.model.rotary_emb(x, torch.arange(n)[None])
        self.mask = torch.full((n, n), torch.finfo(x.dtype).min).triu(1)[None, None]

    def forward(self, h: Tensor) -> Tensor:
        for block in self.blocks:
            out = block(h, attention_mask=self.mask, position_embeddings=self.rotary)
            h = out[0] if isinstance(out, tuple) else out
        return h


if __name__ == "__main__":
    sys.exit(main())
