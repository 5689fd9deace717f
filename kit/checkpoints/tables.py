"""Tables, series and NumPy's arrays for a checkpoint: columns of plain values."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from kit.checkpoints.values import Reader, Writer

_COLUMNS = ("float64", "float32", "int64", "int32", "int16", "int8", "uint8", "bool", "object",
            "str")  # fmt: skip


def write_table(way: Writer, x: Any, depth: int) -> Any:
    """JSON for something of pandas or NumPy; None for what a checkpoint does not hold."""
    import numpy as np
    import pandas as pd
    import torch

    from kit.checkpoints.values import DTYPES

    if type(x) is pd.DataFrame:
        parts = [_index_of(way, x.columns, depth), _index_of(way, x.index, depth),
                 [_column_of(way, x.iloc[:, i], depth) for i in range(x.shape[1])]]  # fmt: skip
        whole = parts[0] and parts[1] and all(parts[2])
        names = ("columns", "index", "data")
        return {"frame": dict(zip(names, parts, strict=True))} if whole else None
    if type(x) is pd.Series:
        index, data = _index_of(way, x.index, depth), _column_of(way, x, depth)
        name = way.value(x.name, depth)
        return {"series": {"name": name, "index": index, "data": data}} if index and data else None
    if isinstance(x, np.ndarray | np.generic) and x.dtype.name in DTYPES:
        kind = "array" if isinstance(x, np.ndarray) else "scalar"
        return {kind: way.tensor(torch.from_numpy(np.array(x)))["tensor"]}
    return None


def _column_of(way: Writer, x: Any, depth: int) -> Any:
    if str(x.dtype) not in _COLUMNS:
        return None
    return {"dtype": str(x.dtype), "values": [way.value(v, depth) for v in x.tolist()]}


def _index_of(way: Writer, x: Any, depth: int) -> Any:
    dtype = "multi" if x.nlevels > 1 else str(x.dtype)
    if dtype not in (*_COLUMNS, "multi"):
        return None
    return {"dtype": dtype, "names": [way.value(n, depth) for n in x.names],
            "values": [way.value(v, depth) for v in x.tolist()],
            "range": type(x).__name__ == "RangeIndex"}  # fmt: skip


def frame(way: Reader, body: Any, depth: int) -> pd.DataFrame:
    """The table. Raises ValueError where its parts do not fit together."""
    import pandas as pd

    parts = _parts(body, {"columns", "index", "data"})
    index = _index(way, parts["index"], depth)
    data = parts["data"] if isinstance(parts["data"], list) else [None]
    columns = {i: _column(way, c, index, depth) for i, c in enumerate(data)}
    found = pd.DataFrame(columns, index=index)
    found.columns = _index(way, parts["columns"], depth)  # a wrong number raises ValueError
    return found


def series(way: Reader, body: Any, depth: int) -> pd.Series:
    """The series. Raises ValueError where its parts do not fit together."""
    parts = _parts(body, {"name", "index", "data"})
    found = _column(way, parts["data"], _index(way, parts["index"], depth), depth)
    found.name = way.value(parts["name"], depth)
    return found


def _column(way: Reader, body: Any, index: Any, depth: int) -> pd.Series:
    import pandas as pd

    parts = _parts(body, {"dtype", "values"})
    values = way.items(parts["values"], depth)
    if parts["dtype"] not in _COLUMNS or len(values) != len(index):
        raise ValueError(f"a column of {parts['dtype']!r}, {len(values)} of {len(index)} rows")
    return pd.Series(values, index=index, dtype=parts["dtype"])


def _index(way: Reader, body: Any, depth: int) -> Any:
    import pandas as pd

    parts = _parts(body, {"dtype", "names", "values", "range"})
    names, values = (way.items(parts[k], depth) for k in ("names", "values"))
    if parts["dtype"] == "multi":
        return pd.MultiIndex.from_tuples(values, names=names)
    if parts["dtype"] not in _COLUMNS or len(names) != 1:
        raise ValueError(f"an index of {parts['dtype']!r} with names {names}")
    if parts["range"] is True:
        step = values[1] - values[0] if len(values) > 1 else 1
        start = values[0] if values else 0
        return pd.RangeIndex(start, start + step * len(values), step, name=names[0])
    return pd.Index(values, dtype=parts["dtype"], name=names[0])


def _parts(body: Any, keys: set[str]) -> dict[str, Any]:
    if not isinstance(body, dict) or set(body) != keys:
        raise ValueError(f"a table or a part of one does not have the parts {sorted(keys)}")
    return body
