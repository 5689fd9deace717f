"""Latents in a table, and which of them come first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd


def strongest(value: Tensor, n: int) -> Tensor:
    """Places of the n largest of ``value [m]``, largest first; only those above zero."""
    order = value.argsort(descending=True, stable=True)[:n]
    return order[value[order] > 0]


def table(**columns: Tensor | Sequence[Any]) -> pd.DataFrame:
    """Columns side by side, tensors as plain numbers."""
    import pandas as pd

    return pd.DataFrame({name: x.tolist() if isinstance(x, Tensor) else list(x) for name, x in columns.items()})
