"""SteeringVector: what travels between methods, panels, files and programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from kit.base.checks import is_number, is_whole, plain
from kit.base.files import (
    MOST_NUMBERS,
    as_json,
    must_exist,
    opened,
    parse_object,
    shapes_at_most,
    unpacked_at_most,
    whole,
)
from kit.models.activations import residual_scale
from kit.models.bridge import check_layer, fingerprint
from kit.steering import gguf
from kit.steering.dose import moved, scaled
from kit.steering.intervention import Part

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_FORMAT = "steering-kit/1"
_MOST_PT = 4 * MOST_NUMBERS + 2**20  # bytes, of float32
_UNIT = "median residual norm over non-BOS positions"
_CONVENTION = "residual stream after block `layer`, counted from 0 (blocks.{layer}.hook_out)"


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """A direction in the residual stream after one block.

    Attributes:
        direction: float32 ``[d_model]`` on the CPU; stored with unit norm whatever is passed in.
        layer: the block after which it acts, ``blocks.{layer}.hook_out``.
        name: what panels and receipts call it.
        method: how it was found (``"mean"``, ``"pca"``, ``"melbo"``, ...).
        norm: its length in units of :func:`kit.residual_scale`; 1 unless vectors were combined.
            Coefficient c adds ``c * norm * residual_scale * direction``.
        fingerprint: of the model it belongs to, or None for any model of its width.
        metadata: provenance and scores, anything JSON can hold.

    Vectors of one layer form a linear space: ``a + b``, ``a - b``, ``2 * a``, ``-a``, ``a / 2``;
    steering with ``a + b`` at c equals steering with both at c. Coefficients in the metadata follow
    a factor; what was measured of another vector than the new one is left behind.

    Raises:
        ValueError: the direction is not a finite non-zero vector, or another field makes no sense.
    """

    direction: Tensor = field(repr=False)
    layer: int
    name: str
    method: str = "given"
    norm: float = 1.0
    fingerprint: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    __array_ufunc__: ClassVar[None] = None  # a number of numpy leaves arithmetic to the vector

    def __post_init__(self) -> None:
        d = torch.as_tensor(self.direction).detach().to("cpu", torch.float32)
        if d.dim() != 1 or d.numel() == 0:
            raise ValueError(f"direction has shape {list(d.shape)}; it must be [d_model]")
        if not d.isfinite().all():
            raise ValueError(f"direction of {self.name!r} holds NaN or infinity")
        if not d.any():
            raise ValueError(f"direction of {self.name!r} is zero: it points nowhere")
        if not is_whole(self.layer) or self.layer < 0:
            raise ValueError(f"layer={self.layer!r}: it must be a block index from 0 on")
        norm = plain(self.norm)
        if not is_number(norm) or not norm > 0:
            raise ValueError(f"norm={self.norm!r}: it must be positive and finite")
        if abs(float(d.norm()) - 1) < 1e-6:  # so copies and files keep every bit
            d = d.clone()
        else:  # by the largest first: the square of a very long or short one has no float32
            d = d / d.abs().max()
            d = d / d.norm()
        for name, value in (("direction", d), ("layer", int(self.layer)), ("norm", float(norm))):
            object.__setattr__(self, name, value)

    def parts(self, model: TransformerBridge) -> list[Part]:
        """Where it acts and how long a step of coefficient 1 is; see :class:`Part`."""
        scale = self.norm * residual_scale(model, self.layer)
        return [Part(self.layer, "resid", self.direction, scale)]

    def __add__(self, other: SteeringVector) -> SteeringVector:
        if not isinstance(other, SteeringVector):
            return NotImplemented
        if other.layer != self.layer or other.direction.shape != self.direction.shape:
            raise ValueError(
                f"{self.name!r} is at layer {self.layer} with width {len(self.direction)}, "
                f"{other.name!r} at layer {other.layer} with width {len(other.direction)}: only "
                "vectors of one layer add up; steer with both instead, or move one with .at(layer)"
            )
        marks = {self.fingerprint, other.fingerprint} - {None}
        if len(marks) > 1:
            raise ValueError(f"{self.name!r} and {other.name!r} belong to different models")
        total = self.norm * self.direction + other.norm * other.direction
        norm = float(total.norm())
        if norm < 1e-6 * (self.norm + other.norm):
            raise ValueError(f"{self.name!r} and {other.name!r} cancel: their sum is zero")
        name = f"{self.name} + {other.name}"
        mark = next(iter(marks), None)
        return SteeringVector(total, self.layer, name, "sum", norm, mark, {"terms": [self.name, other.name]})

    def __sub__(self, other: SteeringVector) -> SteeringVector:
        return self + -other if isinstance(other, SteeringVector) else NotImplemented

    def __mul__(self, factor: float) -> SteeringVector:
        factor = plain(factor)
        if not isinstance(factor, int | float) or isinstance(factor, bool):
            return NotImplemented
        if factor == 0 or not abs(factor) < float("inf"):
            raise ValueError(f"factor={factor!r}: a vector times that has no direction")
        sign = 1 if factor > 0 else -1
        shown = "-" if factor == -1 else f"{factor:g} "
        return replace(
            self,
            direction=sign * self.direction,
            norm=abs(factor) * self.norm,
            name=f"{shown}{self.name}",
            metadata=scaled(self.metadata, factor),
        )

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> SteeringVector:
        divisor = plain(divisor)
        return self * (1 / divisor) if isinstance(divisor, int | float) else NotImplemented

    def __neg__(self) -> SteeringVector:
        return self * -1

    def at(self, layer: int) -> SteeringVector:
        """The same direction at another layer (its unit becomes that layer's), without what was
        measured of it at its own."""
        about = self.metadata if layer == self.layer else moved(self.metadata)
        return replace(self, layer=layer, name=f"{self.name} @{layer}", metadata=about)

    def random(self, seed: int = 0) -> SteeringVector:
        """The control that every claim needs: a random direction of the same layer and norm."""
        rng = torch.Generator().manual_seed(seed)
        direction = torch.randn(len(self.direction), generator=rng)
        return replace(
            self,
            direction=direction,
            name=f"random {seed}",
            method="random",
            metadata={"control of": self.name, "seed": seed},
        )

    def cosine(self, other: SteeringVector) -> float:
        """Cosine similarity with another vector of the same width."""
        return float(self.direction @ other.direction)

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file with everything that :meth:`load` and a reader need."""
        from safetensors.torch import save_file

        about = {
            "format": _FORMAT,
            "name": self.name,
            "layer": str(self.layer),
            "method": self.method,
            "norm": repr(self.norm),
            "fingerprint": self.fingerprint or "",
            "layer_convention": _CONVENTION,
            "unit": _UNIT,
            "metadata": as_json(self.metadata, "metadata"),
        }
        with whole(path) as part:
            save_file({"direction": self.direction.contiguous()}, part, metadata=about)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> SteeringVector:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: not a safetensors file, a damaged one, or one that holds something else.
        """
        with opened(path, _FORMAT, "steering vector") as (file, about):
            shapes_at_most(path, {"direction": 1})
            return cls(
                file.get_tensor("direction"),
                int(about["layer"]),
                about["name"],
                about["method"],
                float(about["norm"]),
                about["fingerprint"] or None,
                parse_object(about["metadata"], f"{path}: metadata"),
            )

    def to_gguf(self, path: str | Path, model: TransformerBridge) -> Path:
        """Write a llama.cpp control vector; see :func:`save_gguf`."""
        return save_gguf(path, [self], model)

    @classmethod
    def from_gguf(cls, path: str | Path, model: TransformerBridge, layer: int | None = None) -> SteeringVector:
        """One layer of a llama.cpp or repeng control vector (see :mod:`kit.steering.gguf`).

        Raises:
            ValueError: the file holds several layers and ``layer`` names none of them, or the one
            asked for does not fit the model; the others may be anything.
        """
        steps = gguf.read(path)
        if layer is None and len(steps) == 1:
            layer = next(iter(steps))
        if layer is None or layer not in steps:
            raise ValueError(f"layer={layer!r}: {path} holds layers {sorted(steps)}")
        return _of_step(path, model, layer, steps[layer])

    @classmethod
    def from_pt(cls, path: str | Path, layer: int, name: str | None = None) -> SteeringVector:
        """A plain tensor ``[d_model]`` or ``[1, d_model]`` saved by torch; never unpickles code.

        Raises:
            ValueError: the file holds anything but one such tensor.
        """
        must_exist(path)
        try:
            unpacked_at_most(path, _MOST_PT)
            tensor = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # junk makes the unpickler raise anything
            raise ValueError(f"{path} holds no plain tensor: {error}") from error
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{path} holds a {type(tensor).__name__}, expected one tensor")
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not plain or tensor.numel() > MOST_NUMBERS:
            raise ValueError(
                f"{path} holds a tensor of shape {list(tensor.shape)}, expected one plain vector [d_model]"
            )
        return cls(
            tensor.squeeze(), layer, name or Path(path).stem, "imported", metadata={"imported from": Path(path).name}
        )


def save_gguf(path: str | Path, vectors: Sequence[SteeringVector], model: TransformerBridge) -> Path:
    """Write vectors of different layers as one control vector of llama.cpp (`kit.steering.gguf`).

    The file holds activations: each direction is multiplied by its norm and the residual scale.

    Raises:
        ValueError: no vectors, two of one layer, layer 0, or a layer that the model lacks.
    """
    layers = [v.layer for v in vectors]
    if not layers or len(set(layers)) < len(layers):
        raise ValueError(f"vectors are at layers {layers}: give at least one, one for each layer")
    for layer in layers:
        check_layer(model, layer)
    steps = {v.layer: v.norm * residual_scale(model, v.layer) * v.direction for v in vectors}
    return gguf.write(path, steps, model.original_model.config.model_type)


def load_gguf(path: str | Path, model: TransformerBridge) -> list[SteeringVector]:
    """Read a control vector of llama.cpp or repeng: one vector for each layer in the file.

    Raises:
        FileNotFoundError: no such file; ValueError: not a GGUF control vector, or one that does not
            fit the model.
    """
    return [_of_step(path, model, layer, step) for layer, step in gguf.read(path).items()]


def _of_step(path: str | Path, model: TransformerBridge, layer: int, step: Tensor) -> SteeringVector:
    check_layer(model, layer)
    if step.numel() != model.cfg.d_model:
        raise ValueError(f"{path} has width {step.numel()}, this model has d_model={model.cfg.d_model}")
    norm = float(step.norm()) / residual_scale(model, layer)
    about = {"imported from": Path(path).name}
    name = f"{Path(path).stem} @{layer}"
    return SteeringVector(step, layer, name, "imported", norm, fingerprint(model), about)
