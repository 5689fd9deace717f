"""Fit a lens to a corpus: the mean of many texts' Jacobians, text by text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kit.base.checks import check_counts, is_number
from kit.base.files import opened, shapes_at_most, whole
from kit.base.progress import to_the_end, track
from kit.base.scratch import drop_parts
from kit.base.shards import digest
from kit.lens.jacobian import of_text
from kit.lens.lens import Lens
from kit.models.bridge import check_layer, fingerprint
from kit.models.tokens import Text, text_rows

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_FORMAT = "steering-kit-lens-part/1"
_FILE = "lens-part.safetensors"
SKIP = 16  # positions at the front, of which the first is a sink; as the published lenses


def fit(
    model: TransformerBridge,
    texts: Sequence[Text],
    layers: Sequence[int] | None = None,
    *,
    tokens: int = 128,
    skip: int = SKIP,
    batch: int = 8,
    until: float | None = None,
    folder: str | Path | None = None,
    name: str = "",
) -> Lens:
    """Fit the Jacobian lens of Gurnee et al. (2026, *Verbalizable Representations Form a Global
    Workspace in Language Models*): for each layer the mean over texts and positions of how the
    stream before the final norm follows the stream there, at the same and at later positions.

    A text costs one forward pass of ``batch`` copies and ``d_model / batch`` backward passes, in
    which all layers share. Stopped (the stop button, an interrupt), it gives the lens of the texts
    that are done; with a folder the same call goes on from there.

    Args:
        texts: plain texts or tokens, as :func:`kit.models.tokens.text_rows` takes. The order counts
            for ``until`` alone.
        layers: blocks after which to fit; None for all but the last, whose lens is the identity.
        tokens: of each text so many are read from its front.
        skip: so many positions at the front do not count, nor does the last one.
        batch: how many rows of a Jacobian a backward pass makes; more take more memory.
        until: stop when the lenses of every second text agree so well: the middle layer's cosine
            between them, from 0 to 1. None reads all texts.
        folder: where to keep what is done after each text.
        name: of the corpus, for the lens's card.

    Returns:
        A :class:`Lens` of this model, whose ``agreement`` is the halves' cosine by layer.

    Raises:
        ValueError: no texts, a text with fewer than ``skip + 2`` tokens, a layer that is the last
            or that the model lacks, or a folder with the part of another fit.
        KeyboardInterrupt: stopped before the first text was whole.
    """
    check_counts(tokens=tokens, batch=batch)
    check_counts(0, skip=skip)
    if until is not None and not (is_number(until) and 0 < until < 1):
        raise ValueError(f"until={until!r}: give a cosine between 0 and 1, or None")
    last = model.cfg.n_layers - 1
    layers = sorted(set(range(last) if layers is None else layers))
    for layer in layers:
        check_layer(model, layer)
    if not layers or last in layers:
        raise ValueError(f"layers={layers}: give at least one, below the last block {last}, whose lens is the identity")
    rows = [row[:tokens] for row in text_rows(model, texts)]
    for i, row in enumerate(rows):
        if len(row) < skip + 2:
            raise ValueError(f"texts[{i}] has {len(row)} tokens: give at least skip + 2 = {skip + 2}")
    settings = {"model": fingerprint(model), "layers": layers, "rows": dict(enumerate(rows)), "skip": skip}
    part = _Part.load(folder, digest(settings), len(layers), model.cfg.d_model)
    with suppress(KeyboardInterrupt):
        for i in track(range(part.done, len(rows)), "texts", status=part.told):
            found = of_text(model, rows[i], layers, skip, min(batch, model.cfg.d_model))
            with to_the_end():
                part.add(found)
                part.save(folder)
            if until is not None and part.agreement().median() >= until:
                break
    if not part.done:
        raise KeyboardInterrupt("stopped before the first text was whole")
    about = {"corpus": name, "texts": part.done, "tokens": tokens, "skip": skip}
    return Lens(
        model,
        dict(zip(layers, part.sums.sum(0) / part.done, strict=True)),
        agreement=dict(zip(layers, part.agreement().tolist(), strict=True)),
        metadata=about,
    )


@dataclass
class _Part:
    """What is done: sums over the even and over the odd texts ``[2, layers, d_model, d_model]``."""

    digest: str
    sums: Tensor = field(repr=False)
    done: int = 0

    @classmethod
    def load(cls, folder: str | Path | None, digest: str, n_layers: int, width: int) -> _Part:
        fresh = cls(digest, torch.zeros(2, n_layers, width, width))
        if folder is None:
            return fresh
        drop_parts(folder)
        if not (file := Path(folder) / _FILE).is_file():
            return fresh
        with opened(file, _FORMAT, "part of a lens") as (stored, about):
            shapes_at_most(file, {"sums": 4})
            told = json.loads(about["part"])
            if told["digest"] != digest:
                raise ValueError(f"folder={str(folder)!r}: it holds the part of another fit; give another folder")
            sums = stored.get_tensor("sums")
        if sums.shape != fresh.sums.shape:
            raise ValueError(f"{file} holds sums of shape {list(sums.shape)}, not {list(fresh.sums.shape)}")
        return cls(digest, sums, int(told["done"]))

    def add(self, found: Tensor) -> None:
        self.sums[self.done % 2] += found
        self.done += 1

    def save(self, folder: str | Path | None) -> None:
        if folder is None:
            return
        from safetensors.torch import save_file

        Path(folder).mkdir(parents=True, exist_ok=True)
        about: dict[str, Any] = {"digest": self.digest, "done": self.done}
        with whole(Path(folder) / _FILE) as part:
            save_file({"sums": self.sums}, part, metadata={"format": _FORMAT, "part": json.dumps(about)})

    def agreement(self) -> Tensor:
        """Cosine ``[layers]`` between the two halves' Jacobians; NaN while one half has no text."""
        even, odd = self.sums.flatten(2)
        size = even.norm(dim=-1) * odd.norm(dim=-1)
        return torch.where(size > 0, (even * odd).sum(-1) / size, float("nan"))

    def told(self) -> str:
        return f"halves agree to {self.agreement().median():.3f}" if self.done > 1 else ""
