"""Two words change places in a stream: an intervention with receipts like any other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kit.base.directions import random_units
from kit.steering.intervention import Part

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False)
class Swap:
    """An exchange at one token; coefficient 1 is the whole of it, 2 the paper's double strength.

    Attributes:
        name, fingerprint: as of every intervention.
        steps: by layer what it adds there, ``[d_model]``, in activation units.
        position: of the token, to be given as ``positions``.
        tokens: the two words' ids.
    """

    name: str
    fingerprint: str | None
    steps: Mapping[int, Tensor] = field(repr=False)
    position: int = -1
    tokens: tuple[int, int] = (-1, -1)

    def parts(self, model: TransformerBridge) -> list[Part]:
        """One for each layer."""
        return [Part(at, "resid", step / step.norm(), float(step.norm())) for at, step in self.steps.items()]

    def random(self, seed: int = 0) -> Swap:
        """The control: steps of the same lengths in random directions."""
        steps = {at: step.norm() * random_units(1, len(step), seed)[0] for at, step in self.steps.items()}
        return Swap(f"random {seed}", self.fingerprint, steps, self.position, self.tokens)


def exchange(stream: Tensor, pair: Tensor) -> Tensor:
    """What to add to a stream ``[d_model]`` so that its coordinates along two directions
    ``[2, d_model]`` change places; what is at right angles to both stays."""
    coordinates = torch.linalg.lstsq(pair.T, stream[:, None]).solution[:, 0]  # [2], of the nearest point
    return (coordinates.flip(0) - coordinates) @ pair
