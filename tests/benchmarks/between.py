"""The table of links and crosscoders: all-pairs attribution, two models in one training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import kit
from kit.data import organisms
from kit.models.bridge import runtime
from kit.sae import Site, Source, Training
from kit.sae.crosscoders import PairedSource
from kit.sae.crosscoders.training import CrosscoderTraining
from kit.sae.links import links
from tests.benchmarks.dictionaries import tokens
from tests.benchmarks.ratios import Figure, pairs_of

_SITE, _K, _BATCH, _ROWS, _STEPS, _WIDTH = Site(14), 32, 2048, 128, 7, 2


def table(model: Any, pairs: int) -> list[Figure]:
    """The rows; of training every third pair."""
    rows = tokens(model, _ROWS)
    return [
        Figure(
            "links of all pairs, 4x by 4x: time over forward and backward of the batch",
            "<= 3",
            "<= 1.5",
            attributing(model, rows[:2], pairs),
        ),
        Figure(
            "train a crosscoder: tokens/s over two separate SAEs of its width",
            ">= 0.8",
            ">= 1",
            crossing(model, rows, max(1, pairs // 3)),
        ),
    ]


def attributing(model: Any, rows: Tensor, pairs: int) -> list[float]:
    source, target = (kit.data.dictionary(n, model) for n in ("resid-14-4x", "mlp_out-15-4x"))
    decoder = runtime(model).decoder

    def both_ways() -> None:
        for row in rows.split(1):  # as links reads them
            with torch.enable_grad():
                embedded = decoder.get_input_embeddings()(row).detach().requires_grad_()
                logits = decoder(inputs_embeds=embedded, use_cache=False).logits
                torch.nn.functional.cross_entropy(logits[0, :-1].float(), row[0, 1:]).backward()

    return pairs_of(lambda: links(source, target, model, rows), both_ways, pairs)


def crossing(model: Any, rows: Tensor, pairs: int) -> list[float]:
    """The whole of each: the models' passes and the steps."""
    other = organisms.load("withholding")
    settings: dict[str, Any] = {"widths": [_WIDTH], "k": _K, "steps": _STEPS}

    def apart() -> None:
        for each in (model, other):
            Training(Source(each, rows, [_SITE], batch=_BATCH, rows=_ROWS), **settings).run()

    def together() -> None:
        source = PairedSource((model, other), rows, _SITE, batch=_BATCH, rows=_ROWS)
        # a crosscoder's width counts both models' coordinates
        CrosscoderTraining(source, **settings | {"widths": [_WIDTH / 2]}).run()

    return pairs_of(apart, together, pairs)
