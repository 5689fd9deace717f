"""The Jacobian lens (Gurnee et al. 2026): what a model is about to say, read and written."""

from kit.lens.fitting import fit
from kit.lens.lens import Lens, Reading, Words
from kit.lens.swap import Swap

__all__ = ["Lens", "Reading", "Swap", "Words", "fit"]
