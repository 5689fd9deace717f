"""One fit on several processes: each computes a share of every pass, and all hold the result.

``torchrun`` or ``accelerate launch`` start a script several times; inside :func:`group` the copies
share what :mod:`kit.search.melbo` and :mod:`kit.search.dct` compute. Work that needs no sum at
every step (harvests, sweeps, restarts) is shared through files instead: :mod:`kit.base.shards`.

Messages are a few megabytes a pass and go through gloo, on GPUs too: two processes may then share a
GPU, and a peer that dies is noticed at once.

Of accelerate (1.15, tried on two processes), ``gather_object`` is the call below, without its
errors, on one group for all that keeps the first timeout (3 s where 60 are asked for later);
``gather`` aborts where shapes differ; ``split_between_processes`` cuts through whole batches.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

import torch
from torch import Tensor

from kit.base.checks import check_positive
from kit.base.directions import unit
from kit.base.progress import processes
from kit.base.shards import digest
from kit.search.layer_slice import Differential, LayerSlice, Objective
from kit.search.maps import Map

Split = Literal["rows", "prompts"]
Call = Callable[[Any, Tensor, Tensor | None], Sequence[Tensor]]
_FAR = 0.02  # of its norm: more than one stream differs by on unlike machines, in bfloat16 too
_TEAMS: list[Team] = []  # the one that this process is in


class PeerLost(RuntimeError):
    """Another process died, did not answer in time, or went another way."""


@dataclass
class Team:
    """The processes of one :func:`group`.

    Attributes:
        rank: which of them this is, from 0; size: how many there are.
        split: what they share out, see :func:`group`.
        timeout: seconds that one waits for the others.
    """

    rank: int
    size: int
    split: Split = "rows"
    timeout: float = 300.0
    _group: Any = field(default=None, repr=False)

    @property
    def first(self) -> bool:
        """Whether this process is the one that saves and prints."""
        return self.rank == 0

    def gather(self, found: Sequence[Tensor], n: int, what: str) -> list[Sequence[Tensor]]:
        """What every process found, in their order: float32 on the CPU.

        Args:
            found: this process's tensors; none where it has nothing to say.
            n: how many rows all of them work on; what: the name of the step. All must be at the
                same.

        Raises:
            PeerLost: a process died, is late, or is at another step.
        """
        import torch.distributed as dist

        mine = (what, n, [x.detach().to("cpu", torch.float32) for x in found])
        told: list[Any] = [mine] * self.size
        try:
            if self.size > 1:
                dist.all_gather_object(told, mine, group=self._group)
        except RuntimeError as error:
            raise PeerLost(
                f"process {self.rank} of {self.size} lost another one, which died or did not answer within "
                f"{self.timeout:g} s ({_short(error)}): look for its error above, and start the job again"
            ) from error
        if any((its_step, its_n) != (what, n) for its_step, its_n, _ in told):
            raise PeerLost(
                f"process {self.rank} of {self.size} is at {what!r} with {n} rows and another one "
                "elsewhere: give all of them the same script, weights, arguments and data, and stop all or none"
            )
        return [parts for _, _, parts in told]

    def wait(self) -> None:
        """Until all processes are here; raises as :meth:`gather`."""
        self.gather([], 0, "wait")


@contextmanager
def group(split: Split = "rows", timeout: float = 300.0) -> Iterator[Team]:
    """Within the block the fits of :mod:`kit.search.melbo` and :mod:`kit.search.dct` share their
    work among all processes of the job; every process gets the whole result.

    All must run the same script on the same data. With one process it changes nothing.

    Args:
        split: ``"rows"``, each process takes some of the vectors of a pass: results equal those of
            one process bit by bit where a pass is whole batches for each of them, and else to the
            precision of the model's dtype. ``"prompts"``, each takes some of the prompts and what
            they say is added up: it takes a share of the memory of a pass; sums differ in their
            last bits.
        timeout: seconds that one waits for the others, loading the model included.

    Raises:
        PeerLost: the others did not come, or, within the block, one of them was lost.
        ValueError: arguments that make no sense, or a group within a group.
    """
    if split not in ("rows", "prompts"):
        raise ValueError(f"split={split!r}: use 'rows' or 'prompts'")
    check_positive(timeout=timeout)
    if _TEAMS:
        raise ValueError(f"split={split!r}: a group() within group(); leave the first one before")
    rank, size = processes()
    with _connected(rank, size, timeout) as link:
        _TEAMS.append(Team(rank, size, split, timeout, link))
        try:
            yield _TEAMS[0]
        finally:
            _TEAMS.clear()


@contextmanager
def _connected(rank: int, size: int, timeout: float) -> Iterator[Any]:
    """A gloo group of its own for each block.

    What is under it, ours or another library's, stays until the process ends: one that is taken
    down and made again finds the addresses of the first in the launcher's store.
    """
    import torch.distributed as dist

    if size == 1:
        yield None
        return
    wait = timedelta(seconds=timeout)
    try:
        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=wait)
        link = dist.new_group(backend="gloo", timeout=wait)
    except (RuntimeError, ValueError) as error:  # ValueError: no address in the environment
        raise PeerLost(
            f"process {rank} of {size} did not find the others within {timeout:g} s ({_short(error)}): "
            "start all of them with one torchrun or accelerate launch command"
        ) from error
    try:
        yield link
    finally:
        with suppress(RuntimeError):  # of a group whose peers are gone
            dist.destroy_process_group(link)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def device() -> str:
    """The device of this process: ``"cpu"``, or one of the machine's GPUs, dealt out in turn."""
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"


def shared(piece: Map) -> Map:
    """A map whose passes are shared among the processes of the group; the map itself outside one.

    Raises:
        ValueError: prompts that cannot be shared. PeerLost: a process whose model or prompts are
            others.
    """
    if not _TEAMS or _TEAMS[0].size == 1:
        return piece
    found = (_Rows if _TEAMS[0].split == "rows" else _Prompts)(piece, _TEAMS[0])
    if isinstance(piece, LayerSlice | Differential):
        slices = [piece] if isinstance(piece, LayerSlice) else [piece.loud, piece.quiet]
        # a fingerprint is of a sample of the weights, and kept: what they compute is compared too
        some = [part.mean(part.after.float()) for part in slices]
        told = _TEAMS[0].gather(some, 0, f"a model and prompts with the digest {digest(piece.settings())}")
        if any(
            float((a - b).norm()) > _FAR * float(b.norm())
            for parts in told
            for a, b in zip(parts, told[0], strict=True)
        ):
            raise PeerLost(f"process {found.team.rank} has other weights than another: load one model in all of them")
    return found


def alone(piece: Map) -> Map:
    """The map itself, of one that is shared."""
    return piece.piece if isinstance(piece, _Shared) else piece


class _Shared(Map):
    """A map that answers like its own, with every process computing a share of the answer."""

    def __init__(self, piece: Map, team: Team) -> None:
        self.piece, self.team = piece, team
        self.d_model, self.step, self.origin = piece.d_model, piece.step, piece.origin

    @property
    def unit(self) -> float:  # type: ignore[override]
        return self.piece.unit

    def _answer(self, what: str, thetas: Tensor, outputs: Tensor | None, call: Call) -> list[Tensor]:
        """What ``call`` gives of the map, thetas ``[k, d]`` and outputs ``[k, d]`` or None, with
        all processes at work."""
        raise NotImplementedError

    def change(self, thetas: Tensor) -> Tensor:
        raise NotImplementedError("a shared map has no derivatives by autograd: use vjp")

    def delta(self, thetas: Tensor) -> Tensor:
        return self._answer("delta", thetas, None, lambda piece, rows, _: [piece.delta(rows)])[0]

    def vjp(self, thetas: Tensor, outputs: Tensor | None) -> tuple[Tensor, Tensor]:
        values, grads = self._answer("vjp", thetas, outputs, lambda piece, rows, out: piece.vjp(rows, out))
        return values, grads

    def jvp(self, tangents: Tensor, theta: Tensor | None = None) -> Tensor:
        return self._answer("jvp", tangents, None, lambda piece, rows, _: [piece.jvp(rows, theta)])[0]

    def second(self, v: Tensor, u: Tensor | None = None) -> Tensor:
        return self._answer("second", v, u, lambda piece, rows, out: [piece.second(rows, out)])[0]

    def gradient(self, thetas: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
        scores, grads = self._answer("gradient", thetas, None, lambda piece, rows, _: piece.gradient(rows, objective))
        return scores, grads


class _Rows(_Shared):
    """Each process takes some of the rows of every call, in whole batches where they suffice."""

    def _answer(self, what: str, thetas: Tensor, outputs: Tensor | None, call: Call) -> list[Tensor]:
        at = spans(len(thetas), self.team.size, self.step)[self.team.rank]
        mine = None if outputs is None else outputs[at]
        found = call(self.piece, thetas[at], mine) if at.start < at.stop else ()
        told = [parts for parts in self.team.gather(found, len(thetas), what) if parts]
        return [torch.cat(parts).to(thetas) for parts in zip(*told, strict=True)]


class _Prompts(_Shared):
    """Each process takes some of the prompts; what they say is added up in their order."""

    def __init__(self, piece: Map, team: Team) -> None:
        super().__init__(piece, team)
        if isinstance(piece, Differential):
            raise ValueError("split='prompts': what loud and quiet prompts answer does not add up; use split='rows'")
        if not isinstance(piece, LayerSlice):
            raise ValueError("split='prompts': this map has no prompts; use split='rows'")
        n = piece.n_prompts
        if n < team.size:
            raise ValueError(
                f"split='prompts': {n} prompts for {team.size} processes; use split='rows', or fewer processes"
            )
        self._part = piece.part(spans(n, team.size)[team.rank])

    def _answer(self, what: str, thetas: Tensor, outputs: Tensor | None, call: Call) -> list[Tensor]:
        told = self.team.gather(call(self._part, thetas, outputs), len(thetas), what)
        return [torch.stack(parts).to(thetas).sum(0) for parts in zip(*told, strict=True)]

    def vjp(self, thetas: Tensor, outputs: Tensor | None) -> tuple[Tensor, Tensor]:
        # whose direction is that of the whole sum, which no process knows before
        return super().vjp(thetas, unit(self.delta(thetas)) if outputs is None else outputs)


def spans(n: int, size: int, step: int = 1) -> list[slice]:
    """``n`` items in order for each of ``size`` processes: as even as whole batches of ``step``
    allow, and of single items where there are fewer batches than processes."""
    step = step if -(-n // step) >= size else 1
    batches = -(-n // step)
    ends = [min(n, step * (batches * i // size)) for i in range(size + 1)]
    return [slice(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]
