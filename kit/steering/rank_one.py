"""Factor: rank-1 changes of output matrices of attention or MLPs, an intervention that travels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from kit.base.checks import is_number, is_whole, plain
from kit.base.directions import unit
from kit.base.files import as_json, opened, parse, parse_object, shapes_at_most, whole
from kit.models.bridge import fingerprint, runtime, unwrapped
from kit.steering.intervention import Part

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_FORMAT = "steering-kit-factor/1"
_CONVENTIONS = {
    "attn_out": "block `layers[i]`, counted from 0: the matrix [d_model, heads] that mixes the heads' "
    "outputs gains coefficient * radius * outer(writes[i], reads[i])",
    "mlp_out": "block `layers[i]`, counted from 0: the matrix [d_model, d_mlp] that makes the MLP's output "
    "gains coefficient * radius * outer(writes[i], reads[i])",
}


@dataclass(frozen=True, eq=False)
class Factor:
    """A rank-1 change of an output matrix, of attention or of the MLP, in each layer of a band.

    At coefficient c layer ``layers[i]`` computes with ``W + c * radius * b a^T``, where a is
    ``reads[i]`` and b is ``writes[i]``: it writes a step along b that is as long as what the matrix
    gets (the heads' outputs, the hidden units) reaches along a. It can only be added; in
    :func:`kit.steer`, :func:`kit.generate` and the panel it is an intervention like any other.

    Attributes:
        reads: float32 ``[layers, n_heads * d_head]`` or ``[layers, d_mlp]``, on the CPU, unit rows.
        writes: float32 ``[layers, d_model]`` on the CPU, unit rows.
        layers: block indices, rising.
        radius: what coefficient 1 stands for; a norm (spectral and Frobenius) of the change of
            each matrix, not a length in the residual stream.
        site: ``"attn_out"``, attention's output matrix, or ``"mlp_out"``, the MLP's.
        name, fingerprint, metadata: as of a :class:`kit.SteeringVector`.

    Raises:
        ValueError: rows that are not finite or are zero, a shape, layer, radius or site that makes
            no sense.
    """

    reads: Tensor = field(repr=False)
    writes: Tensor = field(repr=False)
    layers: tuple[int, ...]
    radius: float
    name: str
    fingerprint: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    site: Literal["attn_out", "mlp_out"] = "attn_out"

    def __post_init__(self) -> None:
        if self.site not in _CONVENTIONS:
            raise ValueError(f"site={self.site!r}: use {', '.join(map(repr, _CONVENTIONS))}")
        layers = list(self.layers)
        plain = all(is_whole(n) and n >= 0 for n in layers)
        if not layers or not plain or layers != sorted(set(layers)):
            raise ValueError(f"layers={layers}: give rising block indices from 0 on")
        if not is_number(self.radius) or not self.radius > 0:
            raise ValueError(f"radius={self.radius!r}: it must be positive and finite")
        for name in ("reads", "writes"):
            rows = torch.as_tensor(getattr(self, name)).detach().to("cpu", torch.float32)
            if rows.dim() != 2 or len(rows) != len(layers) or not rows.shape[1]:
                raise ValueError(
                    f"{name} of {self.name!r} has shape {list(rows.shape)}: give "
                    f"[{len(layers)}, width], one row a layer"
                )
            if not rows.isfinite().all() or not rows.any(-1).all():
                raise ValueError(f"{name} of {self.name!r}: a row is zero or not finite")
            size = rows.norm(dim=-1, keepdim=True)
            keep = (size - 1).abs() < 1e-6  # so copies and files keep every bit
            object.__setattr__(self, name, torch.where(keep, rows, unit(rows)).contiguous())
        object.__setattr__(self, "layers", tuple(map(int, layers)))

    def parts(self, model: TransformerBridge) -> list[Part]:
        """One :class:`kit.steering.intervention.Part` a layer, on what the matrix gives."""
        return [
            Part(layer, self.site, b, self.radius, a)
            for layer, a, b in zip(self.layers, self.reads, self.writes, strict=True)
        ]

    def random(self, seed: int = 0, *, same_reads: bool = False) -> Factor:
        """The control: random unit blocks in the same layers, at the same radius.

        Args:
            same_reads: keep what is read and draw what is written. Random reads catch little of
                the heads' outputs, so the plain control moves the stream far less than a trained
                factor; with this one every step is as long as the factor's own.
        """
        rng = torch.Generator().manual_seed(seed)
        reads = torch.randn(self.reads.shape, generator=rng)
        writes = torch.randn(self.writes.shape, generator=rng)
        return replace(
            self,
            reads=self.reads if same_reads else reads,
            writes=writes,
            name=f"random {seed}",
            metadata={"control of": self.name, "seed": seed, "same reads": same_reads},
        )

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file with everything that :meth:`load` and a reader need."""
        from safetensors.torch import save_file

        about = {
            "format": _FORMAT,
            "name": self.name,
            "layers": json.dumps(self.layers),
            "radius": repr(float(self.radius)),
            "fingerprint": self.fingerprint or "",
            "convention": _CONVENTIONS[self.site],
            "site": self.site,
            "metadata": as_json(dict(self.metadata), "metadata"),
        }
        with whole(path) as part:
            save_file({"reads": self.reads, "writes": self.writes}, part, metadata=about)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Factor:
        """Read what :meth:`save` wrote, bit for bit.

        Raises:
            ValueError: not a safetensors file, a damaged one, or one that holds something else.
        """
        with opened(path, _FORMAT, "factor") as (file, about):
            shapes_at_most(path, {"reads": 2, "writes": 2})
            site = about.get("site", "attn_out")
            return cls(
                file.get_tensor("reads"),
                file.get_tensor("writes"),
                tuple(parse(about["layers"], f"{path}: layers")),
                float(about["radius"]),
                about["name"],
                about["fingerprint"] or None,
                parse_object(about["metadata"], f"{path}: metadata"),
                "mlp_out" if site == "mlp" else site,  # type: ignore[arg-type]  # as older files say
            )


def export(
    path: str | Path,
    model: TransformerBridge,
    factors: Factor | Sequence[Factor],
    coefficients: float | Sequence[float] = 1.0,
    *,
    base: str | None = None,
) -> Path:
    """Write factors as one LoRA adapter in the PEFT format, of as high a rank as there are factors.

    The base model with the adapter computes what steering with the factors at these coefficients
    does, at every position. Layers that a factor leaves alone are filled with zeros.

    Args:
        path: the folder.
        coefficients: one for all factors, or one for each.
        base: what the config calls the base model (default: its name).

    Raises:
        ValueError: no factors, factors of another model, or coefficients that are not finite or
            not as many.
    """
    from transformers.pytorch_utils import Conv1D

    from kit.models import lora
    from kit.steering.generation import session_of

    factors = [factors] if isinstance(factors, Factor) else list(factors)
    coefficients = plain(coefficients)
    if isinstance(coefficients, int | float):
        coefficients = [coefficients] * len(factors)
    if not factors or len(coefficients) != len(factors):
        raise ValueError(
            f"{len(coefficients)} coefficients for {len(factors)} factors: give at "
            "least one factor, and a coefficient for each"
        )
    session_of(model, factors, [tuple(coefficients)], "all", "add")  # refuses what does not fit
    state = runtime(model)
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for layer, site in sorted({(layer, f.site) for f in factors for layer in f.layers}):
        here = [(i, f) for i, f in enumerate(factors) if f.site == site]
        a = torch.zeros(len(factors), here[0][1].reads.shape[1])
        b = torch.zeros(here[0][1].writes.shape[1], len(factors))
        for i, factor in here:
            if layer in factor.layers:
                at = factor.layers.index(layer)
                a[i], b[:, i] = factor.reads[at], coefficients[i] * factor.radius * factor.writes[at]
        pairs[f"{state.blocks}.{layer}.{state.projection_path(site)}"] = (a, b)
    turned = isinstance(unwrapped(state.projection(factors[0].layers[0], factors[0].site)), Conv1D)
    name = base or str(model.cfg.model_name or fingerprint(model))
    return lora.write(path, pairs, base=name, fan_in_fan_out=turned)
