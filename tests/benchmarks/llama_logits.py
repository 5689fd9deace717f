"""llama.cpp's logits under control vectors, in a process of its own: files in, files out.

``PYTHON -m tests.benchmarks.llama_logits MODEL.gguf JOB.npz LOGITS.npy``, with llama-cpp-python 0.3.36
and numpy; it imports nothing of this package. The job has ``tokens`` [n] and ``steps`` [runs, floats],
each row as ``llama_set_adapter_cvec`` takes it: n_embd numbers for each layer, from layer 1. Written
are float32 logits [runs, n, vocabulary]. The last line printed is the version.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np

try:
    import llama_cpp as lib
except ImportError as error:
    sys.exit(f"llama_cpp cannot be imported by {sys.executable} ({error}): pip install llama-cpp-python==0.3.36")


_ERROR = 4  # GGML_LOG_LEVEL_ERROR


@lib.llama_log_callback
def _log(level: int, text: bytes, data: Any) -> None:
    if level == _ERROR:
        sys.stderr.write(text.decode(errors="replace"))


def main() -> int:
    path, job, out = sys.argv[1:]
    with np.load(job) as given:
        tokens, steps = given["tokens"].tolist(), given["steps"].astype(np.float32)
    lib.llama_log_set(_log, None)
    lib.llama_backend_init()
    options = lib.llama_model_default_params()
    options.n_gpu_layers = 0
    options.use_extra_bufts = False  # plain kernels: 0.3.36 crashed in its AMX ones
    model = lib.llama_model_load_from_file(path.encode(), options)
    if not model:
        raise OSError(f"llama.cpp does not load {path}")
    found = [run(model, tokens, step) for step in steps]
    np.save(out, np.stack(found))
    print(lib.__version__)
    return 0


def run(model: Any, tokens: list[int], step: np.ndarray) -> np.ndarray:
    """Logits [n, vocabulary]: the first half as a prompt, the rest token by token."""
    options = lib.llama_context_default_params()
    options.n_ctx = options.n_batch = options.n_ubatch = 256
    options.type_k = options.type_v = lib.GGML_TYPE_F32  # by default the cache is float16
    options.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    options.n_threads = options.n_threads_batch = 1
    context = lib.llama_init_from_model(model, options)
    width, layers = lib.llama_model_n_embd(model), lib.llama_model_n_layer(model)
    data = step.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if step.any() and lib.llama_set_adapter_cvec(context, data, len(step), width, 1, layers):
        raise ValueError(f"llama.cpp refuses a control vector of {len(step)} numbers")
    half, rows = len(tokens) // 2, []
    for start, end in [(0, half), *((i, i + 1) for i in range(half, len(tokens)))]:
        rows.append(decode(model, context, tokens[start:end], start))
    lib.llama_free(context)
    return np.concatenate(rows)


def decode(model: Any, context: Any, tokens: list[int], start: int) -> np.ndarray:
    batch = lib.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.logits[i] = token, start + i, 1
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
    if code := lib.llama_decode(context, batch):
        raise ValueError(f"llama_decode gives {code} for {len(tokens)} tokens at {start}")
    size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    flat = np.ctypeslib.as_array(lib.llama_get_logits(context), shape=(len(tokens) * size,))
    found = flat.reshape(len(tokens), size).copy()
    lib.llama_batch_free(batch)
    return found


if __name__ == "__main__":
    sys.exit(main())
