"""The table of the lens: what a fit costs against its own arithmetic, and a read against a pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import kit
from kit.models.bridge import runtime
from tests.benchmarks.dictionaries import tokens
from tests.benchmarks.ratios import Figure, pairs_of

_LAYER, _FIT_TOKENS, _BATCH, _READ_TOKENS = 14, 32, 32, 40


def table(model: Any, pairs: int) -> list[Figure]:
    """The rows; each layer more that is read costs two unembeddings of the prompt, by either lens."""
    row = tokens(model, 1)[0]
    lens = kit.data.lens(model)
    prompt = row[None, :_READ_TOKENS]
    read = pairs_of(lambda: lens.read(prompt, [_LAYER]), lambda: forward(model, prompt), pairs)
    what = "a lens, one text: time over forward and backward of a batch, d_model / batch times"
    return [
        Figure(what, "<= 1.5", "<= 1", fitting(model, row, max(1, pairs // 3))),
        Figure("read a layer of a 40-token prompt by both lenses: time over a forward pass", "<= 1.5", "<= 1.2", read),
    ]


@torch.no_grad()
def forward(model: Any, rows: Tensor) -> None:
    runtime(model).decoder(input_ids=rows, use_cache=False)


def fitting(model: Any, row: Tensor, pairs: int) -> list[float]:
    """All layers of one text; the other side does the passes that the definition asks for."""
    decoder, row = runtime(model).decoder, row[:_FIT_TOKENS]
    copies = row.expand(_BATCH, -1)

    def by_definition() -> None:
        for _ in range(model.cfg.d_model // _BATCH):
            with torch.enable_grad():
                embedded = decoder.get_input_embeddings()(copies).detach().requires_grad_()
                decoder(inputs_embeds=embedded, use_cache=False, logits_to_keep=1).logits.sum().backward()

    return pairs_of(lambda: kit.lens.fit(model, [row], batch=_BATCH), by_definition, pairs)
