"""Objectives beyond "change much": loud on some prompts, quiet on others."""
from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from kit.slices import LayerSlice, Objective


class Differential(LayerSlice):
    """A slice that :mod:`kit.melbo` and :mod:`kit.dct` climb where one set of prompts answers and
    another does not.

    With something to confess in the loud prompts and nothing in the quiet ones this is the
    "truth serum" that Mack and Turner (2024) suggest and leave open: vectors that change what the
    model does when it has something to hide, and little otherwise.

    * MELBO then maximises ``score(loud) - weight * score(quiet)``;
    * exponential DCT iterates on the gradient of ``|delta_loud(R v)| - weight * |delta_quiet(R v)|``
      (its output directions, ranking and changes are those of the loud prompts);
    * the linear and quadratic methods do not apply: Jacobians of the two sets do not add up.

    Raises:
        ValueError: the slices differ in model or layers, or a weight that is no number from 0 on.
    """

    def __init__(self, loud: LayerSlice, quiet: LayerSlice, weight: float = 1.0) -> None:
        """Args: ``weight``, how much a change on the quiet prompts counts against one on the loud
        ones; 0 is the loud slice alone."""
        if loud.model is not quiet.model or (loud.source, loud.target) != (
            quiet.source, quiet.target,
        ):  # fmt: skip
            raise ValueError(
                f"loud covers layers {loud.source} to {loud.target}, quiet {quiet.source} to "
                f"{quiet.target}: both must be slices of one model between the same layers"
            )
        if not 0 <= weight < math.inf:
            raise ValueError(f"weight={weight!r}: give a number from 0 on")
        self.__dict__.update(loud.__dict__)  # in all but derivatives it is the loud slice
        self.loud, self.quiet, self.weight = loud, quiet, weight

    def gradient(self, thetas: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
        """``objective`` on the loud prompts less ``weight`` times that on the quiet ones."""
        loud, up = self.loud.gradient(thetas, objective)
        quiet, down = self.quiet.gradient(thetas, objective)
        return loud - self.weight * quiet, up - self.weight * down

    def vjp(self, thetas: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Changes on the loud prompts, and the gradient of ``<outputs, delta_loud> - weight *
        |delta_quiet|``."""
        changes, up = self.loud.vjp(thetas, outputs)
        down = self.quiet.gradient(thetas, lambda shift, _read: self.quiet.mean(shift).norm(dim=-1))
        return changes, up - self.weight * down[1]

    def part(self, prompts: slice) -> LayerSlice:
        raise ValueError("split='prompts': what loud and quiet prompts answer does not add up; use "
                         "split='rows'")  # fmt: skip

    def settings(self) -> dict[str, Any]:
        return {"loud": self.loud.settings(), "quiet": self.quiet.settings(),
                "weight": self.weight}  # fmt: skip

    def selectivity(self, thetas: Tensor) -> Tensor:
        """``|delta_loud| / |delta_quiet|`` of thetas ``[k, d_model]``: ``[k]``."""
        loud, quiet = (s.delta(thetas).norm(dim=-1) for s in (self.loud, self.quiet))
        return loud / quiet.clamp(min=1e-9)
