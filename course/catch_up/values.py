"""Values as a kept file holds them: JSON and tensors, there and back.

Plain values, tensors, tables of plain values, random number generators, and the classes of the kit
that are listed here; no pickle and no code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = ("float64", "float32", "int64", "int32", "int16", "int8", "uint8", "bool", "object", "str")


def write_table(way: Writer, x: Any, depth: int) -> Any:
    """JSON for something of pandas or NumPy; None for what a kept file does not hold."""
    import numpy as np
    import pandas as pd
    import torch

    if type(x) is pd.DataFrame:
        parts = [
            _index_of(way, x.columns, depth),
            _index_of(way, x.index, depth),
            [_column_of(way, x.iloc[:, i], depth) for i in range(x.shape[1])],
        ]
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
    return {
        "dtype": dtype,
        "names": [way.value(n, depth) for n in x.names],
        "values": [way.value(v, depth) for v in x.tolist()],
        "range": type(x).__name__ == "RangeIndex",
    }


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


DEPTH, NODES, DIMENSIONS = 32, 200_000, 6
_ITEMS: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
_SPANS: dict[str, Any] = {"range": range, "slice": slice}
# Dataclasses of the kit that are what their fields say.
CLASSES = {
    name: module
    for module, names in {
        "course.studies.elicitation": "Choice Setting",
        "course.studies.multiplicity": "Comparison",
        "course.studies.rank": "Candidates",
        "kit.data.organisms": "Answer Item",
        "kit.models.sites": "Site",
        "kit.sae.compare": "Match",
        "kit.sae.crosscoders.quality": "Scaling",
        "kit.sae.links": "Links",
        "kit.sae.meta_sae": "Codes",
        "kit.sae.quality": "Quality",
        "kit.sae.steered_latent": "Latent",
        "kit.search.contrast": "HeadSteering",
        "kit.search.cpe": "CPE",
        "kit.search.features": "DCT Features",
        "kit.search.jacobians": "Jacobians",
        "kit.search.probes": "Statement",
        "kit.search.radius": "Radius",
        "kit.search.rome": "Fact",
        "kit.steering.rank_one": "Factor",
        "kit.steering.results": "Row TokenMeasure",
        "kit.steering.sweep": "Calibration",
        "kit.steering.vectors": "SteeringVector",
    }.items()
    for name in names.split()
}
DTYPES = {
    str(d).removeprefix("torch."): d
    for d in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
}


class CannotStore(TypeError):
    """A value, or a part of it, is of a kind that a kept file does not hold."""


class Writer:
    """Turns values into JSON and tensors.

    Args:
        names: ``id(value) -> name`` of what a value may refer to by name.
        prefix: of the tensors' keys.

    Attributes:
        tensors: by the keys that the JSON mentions.
    """

    def __init__(self, names: Mapping[int, str], prefix: str = "") -> None:
        self.names, self.prefix = dict(names), prefix
        self.tensors: dict[str, Tensor] = {}

    def value(self, x: Any, depth: int = 0) -> Any:
        """JSON for a value.

        Raises:
            CannotStore: names the type that cannot be stored.
        """
        if depth > DEPTH:
            raise CannotStore(f"more than {DEPTH} levels deep")
        kind, down = type(x), depth + 1
        if x is None or kind in (bool, int, str):
            return x
        if id(x) in self.names:  # the same object, so that a change of the one is one of the other
            return {"name": self.names[id(x)]}
        if kind is float:
            return x if math.isfinite(x) else {"float": repr(x)}
        if kind in _ITEMS.values():
            items = sorted(x, key=repr) if kind in (set, frozenset) else x
            return {kind.__name__: [self.value(item, down) for item in items]}
        if kind is dict:
            for key in x:
                _check_key(key)
            return {"dict": [[self.value(k, down), self.value(v, down)] for k, v in x.items()]}
        if kind in _SPANS.values():
            return {kind.__name__: [self.value(v, down) for v in (x.start, x.stop, x.step)]}
        if isinstance(x, Tensor):
            return self.tensor(x)
        if kind is torch.Generator:  # where a stream of random numbers stands
            return {"generator": self.tensor(x.get_state())}
        if kind.__module__.startswith(("numpy", "pandas")):
            found = write_table(self, x, down)
            if found is None:
                raise CannotStore(f"a {kind.__module__}.{kind.__qualname__}, or a column of such")
            return found
        if CLASSES.get(kind.__name__) == kind.__module__:
            stored = {f.name: self.value(getattr(x, f.name), down) for f in fields(x) if f.init}
            return {"kit": kind.__name__, "fields": stored}
        if (kind.__module__, kind.__name__) == ("kit.search.rank_one_map", "RankOneMap"):
            return {"band": {k: self.value(v, down) for k, v in _band_fields(x).items()}}
        raise CannotStore(f"{kind.__module__}.{kind.__qualname__}")

    def tensor(self, x: Tensor) -> dict[str, str]:
        """Put a tensor aside; returns the name under which the file holds it."""
        if type(x) is not Tensor or x.requires_grad or x.is_sparse or x.device.type != "cpu":
            kind = type(x).__name__
            raise CannotStore(f"a {kind} on {x.device}, requires_grad={x.requires_grad}")
        if x.dtype not in DTYPES.values() or x.dim() > DIMENSIONS:
            raise CannotStore(f"a tensor of {x.dtype} with {x.dim()} dimensions")
        key = f"{self.prefix}t{len(self.tensors)}"
        self.tensors[key] = x.detach().clone(memory_format=torch.contiguous_format)
        return {"tensor": key}


def _check_key(key: Any) -> None:
    parts = key if type(key) is tuple else (key,)
    if not all(part is None or type(part) in (str, int, float, bool) for part in parts):
        raise CannotStore(f"a dict with a key of {type(key).__name__}: it is found by identity")


class Reader:
    """Turns them back.

    Args:
        tensor: of a key; names: what values may refer to by name.
    """

    def __init__(self, tensor: Callable[[str], Tensor], names: Mapping[str, Any]) -> None:
        self._tensor, self._names = tensor, names
        self._nodes = 0

    def value(self, node: Any, depth: int = 0) -> Any:
        """The value.

        Raises:
            ValueError: anything that :class:`Writer` does not write, too deep or too much of it.
        """
        self._nodes += 1
        if depth > DEPTH or self._nodes > NODES:
            raise ValueError(f"a value is deeper than {DEPTH} levels or has over {NODES:,} parts")
        if node is None or isinstance(node, bool | int | float | str):
            return node
        if not isinstance(node, dict) or not node:
            raise ValueError(f"a {type(node).__name__} stands where a value should")
        kind, body = next(iter(node.items()))
        if len(node) > 1 and kind != "kit":
            raise ValueError(f"a value is of the kinds {', '.join(node)}")
        if kind in _ITEMS:
            return _ITEMS[kind](self.items(body, depth + 1))
        if kind in _SPANS:
            return _SPANS[kind](*self.items(body, depth + 1))
        build = getattr(self, f"of_{kind}", None)
        if build is None:
            raise ValueError(f"no value is of the kind {kind!r}")
        return build(node if kind == "kit" else body, depth + 1)

    def items(self, body: Any, depth: int) -> list[Any]:
        """The values of a list."""
        if not isinstance(body, list):
            raise ValueError(f"a {type(body).__name__} stands where a list should")
        return [self.value(item, depth) for item in body]

    def of_float(self, body: Any, depth: int) -> float:
        """A float that JSON has no number for."""
        if body not in ("nan", "inf", "-inf"):
            raise ValueError(f"{body!r} is no number")
        return float(body)

    def of_dict(self, body: Any, depth: int) -> dict[Any, Any]:
        """A dict with keys of any kind."""
        pairs = body if isinstance(body, list) else [None]
        if not all(isinstance(p, list) and len(p) == 2 for p in pairs):
            raise ValueError("a dict is not a list of pairs")
        return {self.value(k, depth): self.value(v, depth) for k, v in pairs}

    def tensor(self, body: Any) -> Tensor:
        """A tensor of the file, by its name."""
        found = self._tensor(body) if isinstance(body, str) else None
        if found is None or found.dtype not in DTYPES.values() or found.dim() > DIMENSIONS:
            raise ValueError(f"{body!r} is no tensor that a kept file holds")
        return found

    def of_tensor(self, body: Any, depth: int) -> Tensor:
        """A tensor."""
        return self.tensor(body)

    def of_generator(self, body: Any, depth: int) -> torch.Generator:
        """A random number generator in the state in which it was."""
        state, rng = self.value(body, depth), torch.Generator()
        now = rng.get_state()
        if not isinstance(state, Tensor) or (state.dtype, state.shape) != (now.dtype, now.shape):
            raise ValueError("that is no state of a random number generator")
        return rng.set_state(state)

    def of_name(self, body: Any, depth: int) -> Any:
        """A name of the notebook: another value of its namespace."""
        if not isinstance(body, str) or body not in self._names:
            raise ValueError(f"it refers to {body!r}, which is not there")
        return self._names[body]

    def of_kit(self, node: Any, depth: int) -> Any:
        """An object of kit: one of the classes of the whitelist, field by field."""
        name, stored = node["kit"], node.get("fields")
        if not isinstance(name, str) or name not in CLASSES or not isinstance(stored, dict) or (len(node) != 2):
            raise ValueError(f"{name!r} is no class that a kept file holds")
        cls = getattr(import_module(CLASSES[name]), name)
        known = {f.name for f in fields(cls) if f.init}
        if set(stored) != known:
            raise ValueError(f"{name} has the fields {sorted(known)}, stored are {sorted(stored)}")
        return cls(**{key: self.value(value, depth) for key, value in stored.items()})

    def of_band(self, body: Any, depth: int) -> Any:
        """A `kit.search.rank_one_map.RankOneMap`."""
        from kit.search.rank_one_map import RankOneMap

        keys = {"model", "prompts", "layers", "target", "last"}
        if not isinstance(body, dict) or set(body) != keys:
            raise ValueError("that is no band of layers")
        got = {key: self.value(value, depth) for key, value in body.items()}
        return RankOneMap(got["model"], got["prompts"], got["layers"], got["target"], read=slice(-got["last"], None))

    def of_frame(self, body: Any, depth: int) -> pd.DataFrame:
        """A DataFrame."""
        return frame(self, body, depth)

    def of_series(self, body: Any, depth: int) -> pd.Series:
        """A Series."""
        return series(self, body, depth)

    def of_array(self, body: Any, depth: int) -> Any:
        """A numpy array."""
        return self.tensor(body).numpy()

    def of_scalar(self, body: Any, depth: int) -> Any:
        """A scalar of numpy."""
        return self.tensor(body).numpy()[()]


def _band_fields(band: Any) -> dict[str, Any]:
    """What a :class:`kit.search.rank_one_map.RankOneMap` is built from.

    It reads the last positions of its prompts. Raises `CannotStore` for another.
    """
    piece = band.piece
    lengths = piece.lengths.tolist()
    read = (piece.weights > 0).sum(1).tolist()
    ends = all(bool((w[n - r : n] > 0).all()) for w, n, r in zip(piece.weights, lengths, read, strict=True))
    if len(set(read)) != 1 or not ends:
        raise CannotStore("a band (RankOneMap) that does not read the end of its prompts")
    prompts = [row[:n].clone() for row, n in zip(piece.tokens, lengths, strict=True)]
    return {
        "model": band.model,
        "prompts": prompts,
        "layers": list(band.layers),
        "target": band.target,
        "last": read[0],
    }
