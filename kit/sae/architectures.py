"""The architectures of sae-lens that the kit trains: which settings each takes, and its classes."""

from __future__ import annotations

import math
from typing import Any, Literal

Architecture = Literal["batchtopk", "topk", "jumprelu", "gated", "standard", "matryoshka"]
# the coefficient that makes latents sparse, and its default, on activations of norm sqrt(width);
# the top-k family is told how many latents fire instead
COEFFICIENTS = {
    "jumprelu": ("l0_coefficient", 1.0),
    "gated": ("l1_coefficient", 1.0),
    "standard": ("l1_coefficient", 1.0),
}
ARCHITECTURES = ("batchtopk", "topk", "matryoshka", *COEFFICIENTS)


def classes(architecture: str) -> tuple[Any, Any]:
    """What is trained, and the class of its settings."""
    from sae_lens.registry import get_sae_training_class

    from kit.sae.sparse import SparseBatchTopK

    cls, of = get_sae_training_class("matryoshka_batchtopk" if architecture == "matryoshka" else architecture)
    return (SparseBatchTopK if architecture == "batchtopk" else cls), of


def options(architecture: str, d_sae: int, k: float, sparsity: float | None, steps: int) -> dict[str, Any]:
    """The settings of so many latents, trained for so many steps.

    Raises:
        ValueError: a k or a sparsity that the architecture cannot have.
    """
    if architecture in COEFFICIENTS:
        name, default = COEFFICIENTS[architecture]
        value = default if sparsity is None else sparsity
        if not 0 <= value < math.inf:
            raise ValueError(f"sparsity={sparsity!r}: give a number from 0 on")
        return {name: value, name.replace("coefficient", "warm_up_steps"): steps // 5}
    if sparsity is not None:
        raise ValueError(f"sparsity={sparsity!r}: {architecture} is told k, how many latents fire")
    if not 0 < k <= d_sae or (architecture == "topk" and k != int(k)):
        raise ValueError(
            f"k={k!r}: give a number above 0, at most the {d_sae} latents of the narrowest dictionary (whole for topk)"
        )
    found: dict[str, Any] = {"k": int(k) if architecture == "topk" else float(k)}
    if architecture != "topk":
        # the threshold of inference is a running mean: it must settle in short runs as well
        found["topk_threshold_lr"] = min(0.5, max(0.01, 20 / steps))
    if architecture == "matryoshka":
        found["matryoshka_widths"] = [max(1, d_sae >> n) for n in (4, 3, 2, 1)]
    return found
