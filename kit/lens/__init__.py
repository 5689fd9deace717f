"""The Jacobian lens (Gurnee et al. 2026): what a model is about to say, read and written."""

from kit.lens.difference import Difference, difference
from kit.lens.fitting import fit
from kit.lens.lens import Lens, Reading, Words
from kit.lens.swap import Swap

__all__ = ["Difference", "Lens", "Reading", "Swap", "Words", "difference", "fit"]
