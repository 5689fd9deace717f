"""Values to plain JSON and tensors, and back: what a checkpoint may hold, and nothing else.

No pickle and no code: a file can only name the classes listed here, which are built by their
constructors from fields that are checked in the same way. Everything comes back with the same bits.
A value that belongs to the notebook and cannot be stored (a model, a `kit.slices.LayerSlice`)
is written as the name that stands for it, and has to be there when the value is read.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kit.checkpoints.tables import write_table

if TYPE_CHECKING:
    import pandas as pd

DEPTH, NODES, DIMENSIONS = 32, 200_000, 6
# Dataclasses of the kit that are what their fields say.
CLASSES = {
    name: f"kit.{module}"
    for module, names in {
        "attribution": "Links", "calibration": "Radius", "candidates": "Candidates",
        "contrast": "HeadSteering", "cpe": "CPE", "edits": "Fact", "elicitation": "Choice Setting",
        "evaluation": "Calibration", "factors": "DCT Features", "generation": "Row",
        "jacobians": "Jacobians", "meta": "Codes", "multiplicity": "Comparison",
        "organisms": "Answer Item", "probes": "Statement", "rank_one": "Factor",
        "sae.compare": "Match", "sae.latent": "Latent", "sae.paired_quality": "Scaling",
        "sae.quality": "Quality", "sae.site": "Site", "sampling": "TokenMeasure",
        "vectors": "SteeringVector",
    }.items() for name in names.split()
}  # fmt: skip
DTYPES = {str(d).removeprefix("torch."): d for d in (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool)}  # fmt: skip


class CannotStore(TypeError):
    """A value, or a part of it, is of a kind that a checkpoint does not hold."""


class Writer:
    """Turns values into JSON and tensors.

    Args:
        names: ``id(value) -> name`` of what a value may refer to by name.
        prefix: of the tensors' keys.

    Attributes:
        tensors: by the keys that the JSON mentions; leans: names that were referred to.
    """

    def __init__(self, names: Mapping[int, str], prefix: str = "") -> None:
        self.names, self.prefix = names, prefix
        self.tensors: dict[str, Tensor] = {}
        self.leans: set[str] = set()

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
        if kind is float:
            return x if math.isfinite(x) else {"float": repr(x)}
        if kind in (list, tuple, set, frozenset):
            items = sorted(x, key=repr) if kind in (set, frozenset) else x
            return {kind.__name__: [self.value(item, down) for item in items]}
        if kind is dict:
            for key in x:
                _check_key(key)
            return {"dict": [[self.value(k, down), self.value(v, down)] for k, v in x.items()]}
        if kind in (range, slice):
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
        if id(x) in self.names:
            self.leans.add(self.names[id(x)])
            return {"name": self.names[id(x)]}
        if (kind.__module__, kind.__name__) == ("kit.band", "Band"):
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
        build = getattr(self, f"of_{kind}", None)
        if build is None or (len(node) > 1 and kind != "kit"):
            raise ValueError(f"no value is of the kind {kind!r}")
        return build(node if kind == "kit" else body, depth + 1)

    def items(self, body: Any, depth: int) -> list[Any]:
        """The values of a list."""
        if not isinstance(body, list):
            raise ValueError(f"a {type(body).__name__} stands where a list should")
        return [self.value(item, depth) for item in body]

    of_list = items

    def of_tuple(self, body: Any, depth: int) -> tuple[Any, ...]:
        """A tuple."""
        return tuple(self.items(body, depth))

    def of_set(self, body: Any, depth: int) -> set[Any]:
        """A set."""
        return set(self.items(body, depth))

    def of_frozenset(self, body: Any, depth: int) -> frozenset[Any]:
        """A frozenset."""
        return frozenset(self.items(body, depth))

    def of_range(self, body: Any, depth: int) -> range:
        """A range."""
        return range(*self.items(body, depth))

    def of_slice(self, body: Any, depth: int) -> slice:
        """A slice."""
        return slice(*self.items(body, depth))

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
            raise ValueError(f"{body!r} is no tensor that a checkpoint holds")
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
        if not isinstance(name, str) or name not in CLASSES or not isinstance(stored, dict) or (
            len(node) != 2
        ):
            raise ValueError(f"{name!r} is no class that a checkpoint holds")
        cls = getattr(import_module(CLASSES[name]), name)
        known = {f.name for f in fields(cls) if f.init}
        if set(stored) != known:
            raise ValueError(f"{name} has the fields {sorted(known)}, stored are {sorted(stored)}")
        return cls(**{key: self.value(value, depth) for key, value in stored.items()})

    def of_band(self, body: Any, depth: int) -> Any:
        """A `kit.band.Band`."""
        from kit.band import Band

        keys = {"model", "prompts", "layers", "target", "last"}
        if not isinstance(body, dict) or set(body) != keys:
            raise ValueError("that is no band of layers")
        got = {key: self.value(value, depth) for key, value in body.items()}
        return Band(got["model"], got["prompts"], got["layers"], got["target"],
                    read=slice(-got["last"], None))  # fmt: skip

    def of_frame(self, body: Any, depth: int) -> pd.DataFrame:
        """A DataFrame."""
        from kit.checkpoints import tables

        return tables.frame(self, body, depth)

    def of_series(self, body: Any, depth: int) -> pd.Series:
        """A Series."""
        from kit.checkpoints import tables

        return tables.series(self, body, depth)

    def of_array(self, body: Any, depth: int) -> Any:
        """A numpy array."""
        return self.tensor(body).numpy()

    def of_scalar(self, body: Any, depth: int) -> Any:
        """A scalar of numpy."""
        return self.tensor(body).numpy()[()]


def _band_fields(band: Any) -> dict[str, Any]:
    """What a :class:`kit.band.Band` is built from; it reads the last positions of its prompts."""
    piece = band.piece
    lengths = piece.lengths.tolist()
    read = (piece.weights > 0).sum(1).tolist()
    ends = all(bool((w[n - r : n] > 0).all())
               for w, n, r in zip(piece.weights, lengths, read, strict=True))  # fmt: skip
    if len(set(read)) != 1 or not ends:
        raise CannotStore("a kit.band.Band that does not read the end of its prompts")
    prompts = [row[:n].clone() for row, n in zip(piece.tokens, lengths, strict=True)]
    return {"model": band.model, "prompts": prompts, "layers": list(band.layers),
            "target": band.target, "last": read[0]}  # fmt: skip
