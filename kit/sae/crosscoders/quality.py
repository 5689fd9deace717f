"""Is what looks exclusive exclusive? Latent scaling, and other figures of a crosscoder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kit.base.progress import track
from kit.models.activations import side_by_side
from kit.models.tokens import counted, packed
from kit.sae.crosscoders.model import Crosscoder, Pair
from kit.sae.quality import Tally

if TYPE_CHECKING:
    import pandas as pd

SHARED = (0.3, 0.7)  # relative norms of latents that both models have


def _read(crosscoder: Crosscoder, models: Pair, tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Batch by batch, latents ``[n, latents]`` and both models' activations ``[n, 2, d_model]`` of
    the tokens that are sinks in neither."""
    for rows in track(list(packed(models[0], tokens, name="tokens").split(8)), "batches of text"):
        both = side_by_side(models, rows, crosscoder.site.place).cpu()  # where the sums are
        halves = both.unflatten(-1, (2, -1)).float()  # [rows, n, 2, d_model]
        keep = counted(halves[..., 0, :]) & counted(halves[..., 1, :])
        yield crosscoder.encode(both)[keep], halves[keep]


@dataclass(frozen=True, eq=False)
class Scaling:
    """How much of each latent is in each model; see :func:`latent_scaling`.

    Attributes:
        error, reconstruction: ``[latents, 2]``, the factor at which the latent, written along the
            second model's row, best explains what the first (column 0) and the second (1) hold.
        fired: ``[latents]``, tokens on which it fired.
    """

    error: Tensor
    reconstruction: Tensor
    fired: Tensor

    def ratio(self, of: str = "error") -> Tensor:
        """First model over second, ``[latents]``: near 0 where only the second has it, near 1
        where both do. NaN for latents that never fired or that the second does not have.

        ``"error"`` finds what the crosscoder shrank away in the first model ("complete
        shrinkage"); ``"reconstruction"`` finds what other latents write there instead
        ("latent decoupling").

        Raises:
            ValueError: an unknown ``of``.
        """
        if of not in ("error", "reconstruction"):
            raise ValueError(f"of={of!r}: use 'error' or 'reconstruction'")
        first, second = getattr(self, of).unbind(-1)
        return torch.where((self.fired > 0) & (second.abs() > 1e-6), first / second, float("nan"))


@torch.no_grad()
def latent_scaling(crosscoder: Crosscoder, models: Pair, tokens: Tensor) -> Scaling:
    """Are latents that look exclusive to the second model absent from the first?

    For latent j with activations f and the second model's row d: the b that minimises
    ``|Y - b f d|^2``, where Y is (error) what the crosscoder leaves of each model's activations
    without latent j, and (reconstruction) what it makes of them. Minder et al. 2025
    (arXiv:2504.02922), section 3.

    Args:
        tokens: ``[rows, n]``; the first position of each row, and sinks, are left out.

    Raises:
        ValueError: as :meth:`Crosscoder.check`.
    """
    crosscoder.check(models)
    d = crosscoder.decoder[:, 1]
    size = d.square().sum(-1)
    own = torch.einsum("lmd,ld->lm", crosscoder.decoder, d)  # what latent j itself writes along d
    along = torch.zeros(2, len(crosscoder), 2)
    power, fired = torch.zeros(len(crosscoder)), torch.zeros(len(crosscoder))
    for f, x in _read(crosscoder, models, tokens):
        x = x * crosscoder.factors[:, None]
        made = torch.einsum("nl,lmd->nmd", f, crosscoder.decoder)  # [n, 2, d_model]
        rest = x - made - crosscoder.offset
        power += f.square().sum(0)
        fired += (f > 0).sum(0)
        for i, y in enumerate((rest, made)):
            # each model along each row, times the latent, over all tokens: [latents, 2]
            along[i] += torch.einsum("nl,nml->lm", f, torch.einsum("nmd,ld->nml", y, d))
    along[0] += power[:, None] * own  # the error without latent j holds what j wrote
    factor = along / (size * power).clamp(min=1e-12)[:, None]
    return Scaling(factor[0], factor[1], fired)


@dataclass(frozen=True)
class PairQuality:
    """Figures of a crosscoder: explained variance of each model's activations, ``l0`` latents a
    token, ``dead`` the share that never fired here, ``tokens`` measured."""

    explained_variance: tuple[float, float]
    l0: float
    dead: float
    tokens: int


@torch.no_grad()
def evaluate(crosscoder: Crosscoder, models: Pair, tokens: Tensor) -> PairQuality:
    """Measure a crosscoder on rows of tokens ``[rows, n]``, sinks and first positions left out.

    Raises:
        ValueError: as :meth:`Crosscoder.check`.
    """
    crosscoder.check(models)
    tally = Tally(len(crosscoder))
    for f, x in _read(crosscoder, models, tokens):
        tally.add(x, crosscoder.decode(f), f)
    first, second = tally.explained_variance.tolist()
    return PairQuality((first, second), tally.l0, tally.dead, tally.tokens)


def summary(crosscoder: Crosscoder, scaling: Scaling | None = None) -> pd.DataFrame:
    """Latents by where they are: in the first model, in both, in the second.

    Returns:
        Rows ``first only`` (relative norm below 0.1), ``first``, ``shared`` (0.3 to 0.7),
        ``second``, ``second only`` (above 0.9); columns ``latents``, ``cosine`` (median, of the two
        rows) and, with a scaling, the medians ``error`` and ``reconstruction`` of its ratios.
    """
    import pandas as pd

    r = crosscoder.relative_norm
    edges = {
        "first only": (-1.0, 0.1),
        "first": (0.1, SHARED[0]),
        "shared": SHARED,
        "second": (SHARED[1], 0.9),
        "second only": (0.9, 2.0),
    }
    figures = {"cosine": crosscoder.cosine}
    if scaling is not None:
        figures |= {of: scaling.ratio(of) for of in ("error", "reconstruction")}
    table = {}
    for name, (low, high) in edges.items():
        on = (r > low) & (r <= high)
        medians = {what: float(x[on].nanmedian()) if on.any() else float("nan") for what, x in figures.items()}
        table[name] = {"latents": int(on.sum()), **medians}
    return pd.DataFrame.from_dict(table, orient="index")
