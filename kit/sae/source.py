"""Activations by the million: one pass of the model feeds every dictionary that reads from it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from kit.base import shards
from kit.base.files import header_at_most, junk, whole
from kit.base.scratch import drop_parts
from kit.base.threads import fitted
from kit.models.activations import capture
from kit.models.bridge import fingerprint
from kit.models.sites import Site
from kit.models.tokens import packed

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Batch = dict[Site, Tensor]


class Source:
    """Shuffled batches ``{site: [batch, width]}`` of activations, float32, without end.

    Rows of tokens are dealt into *chunks* at random. A chunk is run through the model (which stops
    at the highest site), its activations are shuffled and served, each once; then comes the next.
    So a batch mixes tokens of all rows of its chunk, nothing is served twice within a pass over the
    texts, and a source is resumed exactly, from two numbers. Each pass takes the chunks in a new
    order and shuffles them anew.

    Left out are the first position of every row, an attention sink, and every token whose norm at
    a site exceeds ``sink`` times the chunk's median there: a few tokens in a thousand with norms a
    hundred times the rest, which would swing the loss of a batch.

    Attributes:
        chunks: in a pass over the texts.
        chunk, at: where it stands: the chunk, of all passes, and the next batch in it.
        served, dropped: tokens so far.
        rows_per_batch: of how many different rows of text the last batch was made.
    """

    def __init__(
        self,
        model: TransformerBridge,
        texts: Sequence[str] | Tensor,
        sites: Sequence[Site],
        *,
        batch: int = 2048,
        context: int = 128,
        rows: int = 256,
        chunks: int | None = None,
        sink: float = 10.0,
        seed: int = 0,
        cache: str | Path | None = None,
    ) -> None:
        """Tokenises; runs nothing yet.

        Args:
            texts: a list, or tokens ``[rows, context]`` as :func:`pack` makes them.
            batch: activations in a batch; rows: of text in a chunk.
            chunks: of all texts, use only so many chunks, drawn at random, and begin again; where
                the model is slow, a few passes over less text are the better bargain.
            sink: how many times the median norm is too much; ``inf`` keeps every token.
            cache: a folder for the activations, a safetensors file for each chunk, memory-mapped
                when read; a later source with the same texts and settings runs no model for chunks
                that lie there.

        Raises:
            ValueError: as :func:`pack`; a site that the model lacks; a chunk that is too small for
                two batches; a cache of another model, other texts or other settings.
        """
        if not sites:
            raise ValueError("sites is empty: give at least one Site")
        for site in sites:
            site.module(model)
        tokens = packed(model, texts, context)
        if not sink > 1:
            raise ValueError(f"sink={sink!r}: give a number above 1; inf keeps every token")
        rows = min(rows, len(tokens))
        if not 1 <= batch <= rows * (tokens.shape[1] - 1) // 2:
            raise ValueError(
                f"batch={batch}: a chunk of {rows} rows holds {rows * (tokens.shape[1] - 1)} "
                "activations, and should give two batches or more; raise rows, or give more text"
            )
        self.model, self.tokens, self.sites = model, tokens, list(dict.fromkeys(sites))
        self.batch, self.rows, self.sink, self.seed = batch, rows, sink, seed
        self.chunks = max(1, len(tokens) // rows)
        if chunks is not None:
            if not 1 <= chunks <= self.chunks:
                raise ValueError(f"chunks={chunks!r}: these texts make 1 to {self.chunks} of {rows} rows")
            self.chunks = chunks
        self.cache = None if cache is None else Path(cache)
        if self.cache is not None:
            drop_parts(self.cache)
        dealt = torch.Generator().manual_seed(seed)
        self._deal = torch.randperm(len(tokens), generator=dealt)
        self._digest = hashlib.sha256(tokens.cpu().contiguous().numpy().data).hexdigest()[:16]
        self.chunk = self.at = self.served = self.dropped = self.rows_per_batch = 0
        self._harvested: tuple[Batch, Tensor] | None = None  # the chunk that it stands at

    @property
    def device(self) -> str:
        """Where dictionaries of it are trained: where the model gets its tokens. Batches are on
        the host, and a trainer moves each one."""
        return str(self.model.cfg.device)

    @property
    def _models(self) -> Sequence[TransformerBridge]:
        return [self.model]

    @property
    def fingerprint(self) -> str:
        """Of the model that activations are from; of both, where it reads two."""
        return " ".join(map(fingerprint, self._models))

    def scales(self) -> dict[Site, tuple[Tensor, float]]:
        """For each site the mean activation ``[width]``, and what brings the mean norm to
        sqrt(width), measured on the chunk that it stands at."""
        found, _ = self._current()
        return {
            site: (some.mean(0), some.shape[1] ** 0.5 / float(some.norm(dim=-1).mean())) for site, some in found.items()
        }

    def _current(self) -> tuple[Batch, Tensor]:
        if self._harvested is None:
            self._harvested = self.harvest(self.chunk)
        return self._harvested

    def __next__(self) -> Batch:
        """The next batch; runs the model when a chunk is used up."""
        found, row = self._current()
        while (self.at + 1) * self.batch > len(row):
            self.chunk, self.at, self._harvested = self.chunk + 1, 0, None
            found, row = self._current()
        at = slice(self.at * self.batch, (self.at + 1) * self.batch)
        self.at += 1
        self.served += self.batch
        self.rows_per_batch = len(row[at].unique())
        return {site: rows[at] for site, rows in found.items()}

    def harvest(self, number: int) -> tuple[Batch, Tensor]:
        """A chunk, counted over all passes: activations, shuffled, and each one's row of tokens."""
        which, at = divmod(number, self.chunks)
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 + which)
        chunk = int(torch.randperm(self.chunks, generator=rng)[at]) if which else at
        found, row = self.read_chunk(chunk) if self.cache is None else self._cached(chunk)
        shuffled = torch.randperm(len(row), generator=rng)
        return {site: some[shuffled].float() for site, some in found.items()}, row[shuffled]

    def read_chunk(self, chunk: int) -> tuple[Batch, Tensor]:
        """Run a chunk's rows through the model; activations in its dtype, without sinks."""
        order = self._deal[chunk * self.rows :][: self.rows]
        parts: dict[Site, list[Tensor]] = {site: [] for site in self.sites}
        for rows in order.split(16):
            with fitted(self.tokens[rows].numel()):
                kept = self._run(self.tokens[rows])
            for site in self.sites:
                parts[site].append(kept[site][:, 1:].cpu())
        found = {site: torch.cat(some).flatten(0, 1) for site, some in parts.items()}  # [rows * (n - 1), width]
        row = order.repeat_interleave(self.tokens.shape[1] - 1)
        good = torch.ones(len(row), dtype=torch.bool)
        for site, some in found.items():
            good &= self._usual(site, some)
        self.dropped += int((~good).sum())
        return {site: some[good] for site, some in found.items()}, row[good]

    def _run(self, tokens: Tensor) -> Batch:
        """Activations ``[rows, pos, width]`` of rows of tokens, at every site."""
        kept = capture(self.model, tokens, [site.place for site in self.sites])
        return {site: kept[site.place] for site in self.sites}

    def _usual(self, site: Site, some: Tensor) -> Tensor:
        """Which activations ``[n, width]`` are no sinks, ``[n]``."""
        norm = some.float().norm(dim=-1)
        if not bool(norm.isfinite().all()):
            raise ValueError(f"activations at {site} hold NaN or infinity: the model is broken, or its dtype overflows")
        return norm <= self.sink * norm.median()

    def fill(self) -> Path:
        """Write every chunk that the cache lacks; all processes that fill it share the work.

        An interrupt, or the death of a process, costs the chunk that it was at.

        Returns:
            The folder. A source with the same texts and settings reads from it and runs no model.

        Raises:
            ValueError: a source without ``cache``, or a folder of another model, other texts or
                other settings.
        """
        if self.cache is None:
            raise ValueError("cache=None: give the source a folder to fill")
        files = [self._file(chunk) for chunk in range(self.chunks)]
        for file in filter(Path.is_file, files):
            self._open(file)
        shards.work(files, self._write, "chunks")
        return self.cache

    def _file(self, chunk: int) -> Path:
        assert self.cache is not None
        return self.cache / f"chunk-{chunk:05d}.safetensors"

    def _write(self, chunk: int) -> None:
        found, row = self.read_chunk(chunk)
        with whole(self._file(chunk)) as part:
            save_file({**{str(s): a for s, a in found.items()}, "row": row}, part, self._mark)

    @property
    def _mark(self) -> dict[str, str]:
        return {
            "fingerprint": self.fingerprint,
            "tokens": self._digest,
            "sink": str(self.sink),
            "rows": str(self.rows),
            "seed": str(self.seed),
            "context": str(self.tokens.shape[1]),
            "dtype": " ".join(str(model.cfg.dtype) for model in self._models),
        }

    def _cached(self, chunk: int) -> tuple[Batch, Tensor]:
        file = self._file(chunk)
        if not file.is_file():
            shards.work([file], lambda _index: self._write(chunk), what="")
        opened = self._open(file)
        with junk(f"{file}: delete it, and it is made again. It"):
            found, row = {s: opened.get_tensor(str(s)) for s in self.sites}, opened.get_tensor("row")
            for site, some in found.items():
                if some.dim() != 2 or row.dim() != 1 or len(some) != len(row) or not len(row):
                    raise RuntimeError(f"{site} is {list(some.shape)}, its rows {list(row.shape)}")
                if not some.is_floating_point() or not bool(some.isfinite().all()):
                    raise RuntimeError(f"{site} is {some.dtype}, or holds NaN or infinity")
            if not 0 <= int(row.min()) <= int(row.max()) < len(self.tokens):
                raise RuntimeError("it names rows of text that there are not")
        return found, row

    def _open(self, file: Path) -> Any:
        """A chunk's file, after a look at whether it is this source's."""
        header_at_most(file)
        with junk(f"{file}: delete it, and it is made again. It"):
            opened = safe_open(file, "pt")
            told, mark = opened.metadata() or {}, self._mark
            other = [name for name in mark if told.get(name) != mark[name]]
            lacking = [str(s) for s in self.sites if str(s) not in opened.keys()]
        if other or lacking:
            raise ValueError(
                f"cache={str(self.cache)!r}: it was made with other "
                f"{', '.join(other) or 'sites, without ' + ', '.join(lacking)}; give another folder"
            )
        return opened

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, as numbers; see :meth:`load_state_dict`."""
        return {
            "chunk": self.chunk,
            "batch": self.at,
            "served": self.served,
            **self._mark,
            "size": self.batch,
            "chunks": self.chunks,
            "sites": list(map(str, self.sites)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another source of the same texts and settings stood.

        Raises:
            ValueError: another model or its dtype, other texts or settings, which would make other
                batches.
        """
        stands = ("chunk", "batch", "served")
        for name in stands:
            if not isinstance(state[name], int) or state[name] < 0:
                raise ValueError(f"{name}={state[name]!r:.40}: the source to go on from is damaged")
        refuse_others(Source.state_dict(self), state, but=stands)
        self.chunk, self.at, self.served = state["chunk"], state["batch"], state["served"]
        self._harvested = None


def refuse_others(mine: Mapping[str, Any], state: Mapping[str, Any], but: Sequence[str] = ()) -> None:
    """Raise a ValueError that names what a source to go on from had otherwise.

    Args:
        but: what may differ: where it stands.
    """
    for name, value in mine.items():
        if name not in but and state.get(name) != value:
            raise ValueError(f"{name}={value}: the source to go on from had {state.get(name)!s:.80}")
