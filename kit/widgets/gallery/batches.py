"""A gallery's run: features in batches, one request each, with an estimate. Knows no widget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from kit.widgets.gallery.features import Feature, Result
from kit.widgets.panel.controller import Arm, Frame, Request


@dataclass
class Batches:
    """Batches of features on their way.

    Attributes:
        request: what all batches share: everything but vectors and arms.
        factor: the multiplier of every calibrated coefficient.
        started: when, in seconds of the caller's clock.
        at: the batch that runs now; ``finished``: features of those before it.
    """

    request: Request
    factor: float
    batches: list[list[Feature]]
    started: float
    at: int = 0
    finished: int = 0

    @classmethod
    def plan(
        cls,
        request: Request,
        factor: float,
        pinned: Sequence[Feature],
        wanted: Sequence[Feature],
        size: int,
        started: float,
    ) -> Batches:
        """What a run has to do: whatever has no whole text under these settings, else everything.

        So a run goes on where it was stopped, and Generate on a gallery that is done does it again.

        Args:
            pinned: they join the first batch.
            wanted: in the order in which they should come.
            size: features in a batch.
        """
        run = cls(request, factor, [], started)
        todo = [f for f in wanted if not f.done(run.key(f))] or list(wanted)
        again = len(todo) == len(wanted)
        first = [f for f in pinned if again or not f.done(run.key(f))]
        batches = [todo[i : i + size] for i in range(0, len(todo), size)]
        run.batches = [[*first, *batches[0]], *batches[1:]] if batches else []
        return run

    @property
    def batch(self) -> list[Feature]:
        """The features of the request that runs now."""
        return self.batches[self.at] if self.at < len(self.batches) else []

    @property
    def total(self) -> int:
        """Features of all batches, without the pinned ones."""
        return sum(map(_features, self.batches))

    def push(self, f: Feature) -> float | None:
        """The coefficient that a feature acts at in this run; None: unsteered."""
        return None if f.vector is None else self.factor * f.coefficient

    def key(self, f: Feature) -> Any:
        """What the text of a feature depends on."""
        r = self.request
        return r.prompt, r.chat, r.max_new_tokens, r.measure, self.push(f), id(f.vector)

    def next_request(self) -> Request:
        """The request of the batch that is next: each row steered by its own vector alone."""
        vectors = [f.vector for f in self.batch if f.vector is not None]
        arms = [
            Arm(f.name, None if f.vector is None else tuple(self.push(f) if v is f.vector else None for v in vectors))
            for f in self.batch
        ]
        return replace(self.request, vectors=tuple(vectors), arms=tuple(arms))

    def take(self, frame: Frame) -> None:
        """Give the features of the present batch what a frame brought."""
        whole = frame.done and not frame.stopped and frame.error is None
        for f, row in zip(self.batch, frame.rows, strict=False):
            if row.tokens or whole:  # one that was stopped before its first keeps what it had
                kl = row.kl if f.vector is not None else None
                f.result = Result(self.request.prompt, self.push(f), row.text, kl, row, whole)
                f.key = self.key(f)
        if whole:
            self.finished += _features(self.batch)
            self.at += 1

    def share(self, frame: Frame | None) -> float:
        """How much is done, 0 to 1."""
        steps = 0.0
        if frame is not None and not frame.done:
            steps = frame.steps / self.request.max_new_tokens * _features(self.batch)
        return (self.finished + steps) / max(1, self.total)

    def left(self, frame: Frame | None, now: float) -> float | None:
        """Seconds that the rest may take; None before there is anything to go by."""
        share = self.share(frame)
        return (now - self.started) / share * (1 - share) if share > 0 else None


def _features(batch: Sequence[Feature]) -> int:
    return sum(f.rank > 0 for f in batch)
