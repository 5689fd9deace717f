"""What lies beside a loaded model, and the few facts about it that steering needs.

:mod:`kit.models.load` alone imports ``transformer_lens``, when one is loaded. What it gives is a
``TransformerBridge``; beside it lives a *decoder*, the plain ``transformers`` module tree over the
same weight storage, which the decode loop runs because it costs about a third less a token.
"""

from __future__ import annotations

import hashlib
import re
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from kit.base.checks import is_whole

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Kept = TypeVar("Kept")
# what is found out about a model once, and kept
Fact = Literal["fingerprint", "hook points", "lens norms", "lens root", "prompt", "scales"]


@dataclass
class Runtime:
    """What the kit keeps beside a bridge: one per model, found by :func:`runtime`.

    Attributes:
        decoder: the plain module tree; ``shares_weights``: whether it is another than the bridge's.
        blocks, o_proj, mlp_path, up_proj, down_proj, mlp_norm: paths of its parts, those within a
            block relative to it; None where the architecture has no such part of its own.
        lock: held while hooks are on the model.
    """

    decoder: nn.Module
    blocks: str
    o_proj: str | None
    shares_weights: bool
    mlp_path: str | None = None
    up_proj: str | None = None
    down_proj: str | None = None
    mlp_norm: str | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)
    _facts: dict[Fact, Any] = field(default_factory=dict, repr=False)
    _edits: int = -1

    def known(self, fact: Fact) -> Any:
        """What is kept, None where there is nothing.

        Every fact may rest on the weights: a change of one in place (not through ``.data``) drops
        them all."""
        edits = sum(weight._version for weight in self.decoder.parameters())
        if edits != self._edits:
            self._facts.clear()
            self._edits = edits
        return self._facts.get(fact)

    def keep(self, fact: Fact, value: Kept) -> Kept:
        """Keep a value until a weight changes; returns it."""
        self._facts[fact] = value
        return value

    def kept(self, fact: Fact, make: Callable[[], Kept]) -> Kept:
        """What is kept, made where there is nothing."""
        found = self.known(fact)
        return self.keep(fact, make()) if found is None else found

    def forget(self, fact: Fact) -> None:
        """Drop what is kept, so that it is made anew."""
        self._facts.pop(fact, None)

    def block(self, layer: int) -> nn.Module:
        """The block with this index, counted from 0."""
        return self.decoder.get_submodule(f"{self.blocks}.{layer}")

    def head_mixer(self, layer: int) -> nn.Module:
        """The attention output projection of a layer; its input is the heads' outputs, flat."""
        return self.projection(layer, "attn_out")

    def projection_path(self, site: str) -> str:
        """Where in a block the matrix is that makes a site: ``"attn_out"`` from the heads' outputs,
        ``"mlp_out"`` from the MLP's hidden units."""
        path = {"attn_out": self.o_proj, "mlp_out": self.down_proj}[site]
        if path is None:
            what = "attention" if site == "attn_out" else "MLP"
            raise ValueError(f"this architecture has no separate {what} output projection")
        return path

    def has_projection(self, site: str) -> bool:
        """Whether :meth:`projection_path` has an answer."""
        return (self.o_proj if site == "attn_out" else self.down_proj) is not None

    def projection(self, layer: int, site: str) -> nn.Module:
        """The matrix of :meth:`projection_path` in a layer."""
        return self.decoder.get_submodule(f"{self.blocks}.{layer}.{self.projection_path(site)}")

    def mlp(self, layer: int) -> nn.Module:
        """The MLP of a layer."""
        if self.mlp_path is None:
            raise ValueError(f"layer={layer}: this architecture has no separate MLP")
        return self.decoder.get_submodule(f"{self.blocks}.{layer}.{self.mlp_path}")

    def mlp_matrices(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """A layer's MLP as weights: input matrix ``[d_model, hidden]`` (of a gated MLP the one that
        is gated, not the gate), output matrix ``[hidden, d_model]``, and the gain of the norm
        before it ``[d_model]``."""
        if self.up_proj is None or self.down_proj is None or self.mlp_norm is None:
            raise ValueError(f"layer={layer}: this architecture's MLP has no separate input and output projection")
        block = self.block(layer)
        up, down, norm = map(block.get_submodule, (self.up_proj, self.down_proj, self.mlp_norm))
        return matrix(up), matrix(down), norm_gain(norm)

    def port(self, layer: int, site: str) -> tuple[nn.Module, bool]:
        """The module at which a site is, and whether it is what goes in (else what comes out).

        Args:
            site: a kind of :class:`kit.models.sites.Site`.
        """
        match site:
            case "resid":
                return self.block(layer), False
            case "z":
                return self.head_mixer(layer), True
            case "attn_out":
                return self.head_mixer(layer), False
            case "neurons":
                return self.projection(layer, "mlp_out"), True
            case "mlp_in":
                return self.mlp(layer), True
            case "mlp_out":
                return self.mlp(layer), False
        raise ValueError(f"site={site!r}: no such place in a block")


def unwrapped(module: nn.Module) -> nn.Module:
    """The decoder's own module, whose class tells how to read it: a bridge stands around it where
    the model was spread over devices or loaded by others."""
    return getattr(module, "original_component", None) or module


def matrix(projection: nn.Module) -> Tensor:
    """A projection's weight as ``[in, out]``; GPT-2 keeps it so, others turned."""
    from transformers.pytorch_utils import Conv1D

    projection = unwrapped(projection)
    weight: Any = projection.weight
    return weight.detach() if isinstance(projection, Conv1D) else weight.detach().T


def norm_gain(norm: nn.Module) -> Tensor:
    """What a norm does to a vector of root mean square 1 (for LayerNorm: and mean 0), coordinate by
    coordinate, ``[width]``, float32."""
    norm = unwrapped(norm)
    weight = norm.get_parameter("weight").detach()
    if isinstance(norm, nn.LayerNorm):
        return weight.float()
    return norm(torch.ones_like(weight)[None])[0].float()  # some multiply by 1 + weight


_RUNTIMES: weakref.WeakKeyDictionary[Any, Runtime] = weakref.WeakKeyDictionary()


def runtime(model: TransformerBridge) -> Runtime:
    """The :class:`Runtime` of a bridge; made on first sight for bridges booted elsewhere.

    Raises:
        TypeError: ``model`` is not a ``TransformerBridge``.
    """
    if model in _RUNTIMES:
        return _RUNTIMES[model]
    if not (hasattr(model, "original_model") and hasattr(model, "hook_dict")):
        raise TypeError(f"model is a {type(model).__name__}; pass the TransformerBridge that kit.load_model returns")
    return register(model, None)


def register(bridge: TransformerBridge, decoder: nn.Module | None) -> Runtime:
    """Make the :class:`Runtime` of a bridge.

    Args:
        decoder: the plain module tree over the same weights; None to run the bridge's own.
    """
    blocks = bridge.adapter.component_mapping["blocks"]
    attention = blocks.submodules.get("attn")
    mixer = attention and attention.submodules.get("o")
    path = f"{attention.name}.{mixer.name}" if mixer else None
    mlp, norm = blocks.submodules.get("mlp"), blocks.submodules.get("ln2")
    up, down = (mlp and mlp.submodules.get(name) for name in ("in", "out"))
    _RUNTIMES[bridge] = Runtime(
        decoder or bridge.original_model,
        blocks.name,
        path,
        decoder is not None,
        mlp.name if mlp else None,
        f"{mlp.name}.{up.name}" if up else None,
        f"{mlp.name}.{down.name}" if down else None,
        norm.name if norm else None,
    )
    return _RUNTIMES[bridge]


def fingerprint(model: TransformerBridge) -> str:
    """Sixteen hex digits that tell models apart, the same in float32 and bfloat16.

    Hashes the architecture and a sample of every weight matrix, rounded to bfloat16. A vector
    file carries it, so that a vector is never applied to a model whose space it does not know.
    """
    state = runtime(model)

    def make() -> str:
        cfg = model.cfg
        digest = hashlib.sha256(f"{cfg.n_layers} {cfg.d_model} {cfg.d_vocab}".encode())
        for weight in _own_weights(state.decoder):
            sample = weight.detach().flatten()[:: max(1, weight.numel() // 16)][:16]
            rounded = sample.to("cpu", torch.bfloat16).contiguous()
            digest.update(rounded.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    return state.kept("fingerprint", make)


def _own_weights(module: nn.Module) -> Iterator[Tensor]:
    """Parameters less those that a bridge adds: split q, k and v beside a joint one, zero biases"""
    names = dict(module.named_parameters())
    for name, weight in names.items():
        joint = re.sub(r"\.[qkv]\.(_original_component\.\w+)$", r".qkv.\1", name)
        if (joint == name or joint not in names) and (weight.dim() > 1 or bool(weight.any())):
            yield weight


def check_layer(model: TransformerBridge, layer: int) -> None:
    """Raise a ValueError that gives the model's range unless ``layer`` is one of its blocks."""
    n = model.cfg.n_layers
    if not is_whole(layer) or not 0 <= layer < n:
        raise ValueError(f"layer={layer!r}: this model has layers 0 to {n - 1}")
