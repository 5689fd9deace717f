"""The Jacobian family: what each layer passes on to the next, and to the last.

The singular vectors of a model's Jacobians are the simplest vectors without labels (Ramesh, Choi
and LeCun, 2018, for image generators): no radius, no iteration, only the tangent at zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from kit import plots
from kit.base.checks import is_whole
from kit.base.directions import random_units
from kit.base.progress import track
from kit.models.activations import residual_scale
from kit.models.positions import Positions
from kit.search.dct import fit_map
from kit.search.features import DCT
from kit.search.layer_slice import LayerSlice, Prompts, slice_behind
from kit.search.radius import Radius
from kit.search.statistics import basis, checked, participation, spectrum_rank

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from transformer_lens.model_bridge import TransformerBridge

Side = Literal["input", "output"]


def overlap(a: Tensor, b: Tensor) -> float:
    """How much of the smaller span lies in the larger: mean squared cosine of the principal angles
    between the spans of rows ``[k, d]`` and ``[n, d]``.

    1 where one contains the other, 0 where they are orthogonal; about ``max(k, n) / d`` by chance.
    """
    first, second = (basis(checked(rows)) for rows in (a, b))
    return float((first @ second.T).square().sum() / min(len(first), len(second)))


@dataclass(frozen=True)
class Jacobians:
    """Singular vectors of the Jacobians of several stretches of one model.

    Attributes:
        parts: by source layer, a :class:`kit.search.features.DCT` of the linear kind: ``V`` right
            and ``U`` left singular vectors, ``vectors()`` for the panel.
        random: by source layer, the root mean square of ``|J v|`` over random unit v, which is the
            root mean square of *all* singular values.
        exact: whether the whole spectrum is there, or its head by random projections.
    """

    parts: dict[int, DCT] = field(repr=False)
    random: dict[int, float] = field(repr=False)
    exact: bool = True

    def spectrum(self, layer: int) -> Tensor:
        """Singular values ``[n]``, falling, of the stretch that starts after this block."""
        part = self._part(layer)
        return part.alpha.abs() / part.radius.value

    def table(self) -> pd.DataFrame:
        """A row a stretch.

        Returns:
            Columns ``target``, ``top`` (largest singular value: the most that a short vector can
            grow), ``random`` (what a random one grows by), ``energy`` (share of the squared
            spectrum in the n values found, by that estimate), ``effective_rank`` and
            ``participation_ratio`` of the n values.
        """
        import pandas as pd

        rows = {}
        for layer, part in self.parts.items():
            s, d = self.spectrum(layer), part.V.shape[1]
            rows[layer] = {
                "target": slice_behind(part.piece).target,
                "n": len(s),
                "top": float(s[0]),
                "random": self.random[layer],
                "energy": min(1.0, float(s.square().sum()) / (d * self.random[layer] ** 2)),
                "effective_rank": spectrum_rank(s),
                "participation_ratio": participation(s),
            }
        table = pd.DataFrame.from_dict(rows, orient="index").astype({"target": int, "n": int})
        table.index.name = "source"
        return table

    def leading(self, layer: int, k: int, side: Side = "input") -> Tensor:
        """The k leading singular vectors ``[k, d]`` of one stretch, where vectors go in or come
        out."""
        if side not in ("input", "output"):
            raise ValueError(f"side={side!r}: use 'input' or 'output'")
        part = self._part(layer)
        if not 2 <= k <= len(part):
            raise ValueError(f"k={k!r}: there are {len(part)} singular vectors; give 2 to that")
        return (part.V if side == "input" else part.U)[:k]

    def overlaps(
        self, k: int = 16, rows: Side = "input", columns: Side = "input", other: Jacobians | Tensor | None = None
    ) -> pd.DataFrame:
        """:func:`overlap` of the leading k-dimensional spaces of every two stretches.

        Args:
            rows, columns: which side of each. ``"output"`` against ``"input"``, one layer on, says
                whether what leaves one stretch strongest is what the next one listens to.
            other: what the columns are: this family, another, or directions ``[n, d]`` (a DCT's V).

        Returns:
            Layers by layers; by chance an entry is about k / d_model.
        """
        import pandas as pd

        against = (
            {"directions": other}
            if isinstance(other, Tensor)
            else {layer: (other or self).leading(layer, k, columns) for layer in (other or self).parts}
        )
        grid = {
            layer: {name: overlap(self.leading(layer, k, rows), b) for name, b in against.items()}
            for layer in self.parts
        }
        return pd.DataFrame.from_dict(grid, orient="index")

    def plot(self, title: str = "") -> Figure:
        """Singular values of every stretch, each over its largest, by rank."""
        spectra = {layer: self.spectrum(layer) for layer in self.parts}
        n = min(len(s) for s in spectra.values())
        ranks = sorted({round(n ** (i / 24)) for i in range(25)})
        lines = {
            f"{layer} to {slice_behind(self.parts[layer].piece).target}": [float(s[r - 1] / s[0]) for r in ranks]
            for layer, s in spectra.items()
        }
        return plots.curves(
            ranks, lines, ylim=(0, 1.02), xlabel="rank of the singular value", ylabel="over the largest", title=title
        )

    def _part(self, layer: int) -> DCT:
        if layer not in self.parts:
            raise ValueError(f"layer={layer!r}: these Jacobians start after {list(self.parts)}")
        return self.parts[layer]


def jacobians(
    model: TransformerBridge,
    prompts: Prompts,
    layers: Sequence[int],
    to: Literal["next", "last"] | int = "next",
    *,
    n: int = 64,
    exact: bool | None = None,
    coefficient: float = 0.2,
    read: Positions = slice(-3, None),
    seed: int = 0,
) -> Jacobians:
    """Singular vectors of the Jacobians from some layers to the next one, or to the last.

    Args:
        prompts, read: as for :class:`kit.search.layer_slice.LayerSlice`: a Jacobian is of the
            change averaged over read-out positions and prompts, by a vector added at every
            position.
        layers: source layers.
        to: ``"next"``, ``"last"`` (the last block's output, before the final norm), or a layer.
        n: singular vectors to keep where the Jacobian is not exact.
        exact: all d_model of them, by d_model forward-mode passes; False: the leading n by random
            projections (about 4 (n + 16) passes). None: exact for ``"next"``, which is cheap.
        coefficient: the norm, in residual scales, at which ``parts[layer].vectors()`` steer.

    Raises:
        ValueError: layers or prompts that make no sense (a source at or above its target too).
    """
    if not is_whole(to) and to not in ("next", "last"):
        raise ValueError(f"to={to!r}: use 'next', 'last' or a layer")
    if not len(layers):
        raise ValueError("layers is empty: give source layers")
    exact = to == "next" if exact is None else exact
    last = model.cfg.n_layers - 1
    parts, random = {}, {}
    for layer in track(layers, "Jacobians"):
        target = layer + 1 if to == "next" else last if to == "last" else to
        piece = LayerSlice(model, prompts, layer, target, read=read)
        scale = residual_scale(model, layer)
        norm = Radius(coefficient * scale, coefficient, float("nan"), [])
        parts[layer] = fit_map(
            piece,
            method="linear" if exact else "projected",
            radius=norm,
            n_features=piece.d_model if exact else n,
            seed=seed,
        )
        grown = piece.jvp(random_units(32, piece.d_model, seed + 1).to(piece.origin))
        random[layer] = float(grown.square().sum(-1).mean().sqrt())
        if exact:  # known, so not estimated
            s = parts[layer].alpha / norm.value
            random[layer] = float((s.square().sum() / piece.d_model).sqrt())
    return Jacobians(parts, random, exact)
