"""A feature store's entries on their way: found token by token, kept latent by latent.

To sort all of them at once takes some sixty bytes for each. Here they are sorted a run at a time;
runs lie in a scratch file and are merged a group of latents at a time, so that memory holds a run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

RUN = 2**21  # entries that are sorted at once


class Entries:
    """Takes entries in the order of their places, gives them in that of their latents.

    Attributes:
        count: ``[latents]``, how many there are of each.
    """

    def __init__(self, latents: int, folder: Path | None = None) -> None:
        """Args: ``folder``, for scratch files, if there must be any (default: the system's)."""
        self.count = torch.zeros(latents, dtype=torch.long)
        self._folder, self._held = folder, list[tuple[Tensor, Tensor, Tensor]]()
        self._file: Any = None
        self._runs: list[list[int]] = []  # where in the file a run's counts, places and values begin

    def add(self, which: Tensor, where: Tensor, value: Tensor) -> None:
        """Latents, places (beyond all before) and activations, ``[n]`` each."""
        self.count += torch.bincount(which, minlength=len(self.count))
        self._held.append((which.int(), where.int(), value.float()))
        if sum(len(part[0]) for part in self._held) >= RUN:
            self._spill()

    def _sorted(self) -> tuple[Tensor, Tensor, Tensor]:
        """What is held, and then no more: how many of each latent, places, values, by latent."""
        which, where, value = (torch.cat(part) for part in zip(*self._held, strict=True))
        self._held.clear()
        order = which.argsort(stable=True)
        return torch.bincount(which, minlength=len(self.count)).int(), where[order], value[order]

    def _spill(self) -> None:
        self._file = self._file or tempfile.TemporaryFile(dir=self._folder)
        self._runs.append([])
        for part in self._sorted():
            self._runs[-1].append(self._file.seek(0, 2))
            self._file.write(part.numpy().tobytes())

    def merged(self) -> tuple[Tensor, Tensor]:
        """Places, int32, and activations, float32, ``[entries]``: latent by latent, and by place
        within one. Once. Of several runs they are mapped from files that go with them."""
        if not self._runs:
            return self._sorted()[1:]
        if self._held:
            self._spill()
        with tempfile.TemporaryFile(dir=self._folder) as a, tempfile.TemporaryFile(dir=self._folder) as b:
            for place, number in self._pieces():
                a.write(place.numpy().tobytes())
                b.write(number.numpy().tobytes())
            self._file.close()
            where, value = (np.memmap(file, kind, "c") for file, kind in ((a, np.int32), (b, np.float32)))
            return torch.from_numpy(where), torch.from_numpy(value)

    def _pieces(self) -> Iterator[tuple[Tensor, Tensor]]:
        for a, b in self._groups():
            counts, places, values = [], [], []
            for run in self._runs:
                counts.append(self._read(np.int32, run[0] + 4 * a, b - a))
                n = int(counts[-1].sum())
                places.append(self._read(np.int32, run[1], n))
                values.append(self._read(np.float32, run[2], n))
                run[1:] = run[1] + 4 * n, run[2] + 4 * n
                if b - a == 1:  # of one latent, later runs come later
                    yield places.pop(), values.pop()
            if places:
                latent = torch.arange(b - a).repeat(len(counts)).repeat_interleave(torch.cat(counts))
                order = latent.argsort(stable=True)
                yield torch.cat(places)[order], torch.cat(values)[order]

    def _read(self, kind: Any, at: int, n: int) -> Tensor:
        self._file.seek(at)
        return torch.from_numpy(np.fromfile(self._file, kind, n))

    def _groups(self) -> Iterator[tuple[int, int]]:
        """Neighbouring latents with no more than a run's entries together, or one alone."""
        first, held = 0, 0
        for i, n in enumerate(self.count.tolist()):
            if i > first and held + n > RUN:
                yield first, i
                first, held = i, 0
            held += n
        yield first, len(self.count)
