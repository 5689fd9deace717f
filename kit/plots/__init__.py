"""The course's few figures: maps, curves with control bands, dots by group, sets of directions.

Each function returns a closed matplotlib figure, which Jupyter shows once, as the value of a cell.
Colours are told apart by colour-blind readers (Okabe-Ito lines, viridis, blue-red for signs), and
every figure says the same without colour: numbers in cells, markers on lines, names on axes. They
follow a notebook's theme, light or dark; ``plt.style.use("kit.plots.jupyter")`` makes other figures
do so too.
"""

from __future__ import annotations

from kit.plots.fits import history, linear_radius, spectrum
from kit.plots.general import curves, intervals, spread
from kit.plots.maps import cosines, heat_map

__all__ = ["cosines", "curves", "heat_map", "history", "intervals", "linear_radius", "spectrum", "spread"]
