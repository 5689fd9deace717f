"""What lies beside a loaded model, and the few facts about it that steering needs.

:mod:`kit.models.load` alone imports ``transformer_lens``, when a bridge is made. What it gives is a
``TransformerBridge``; beside it lives a *decoder* over the same weight storage, which the decode
loop runs because it costs about a third less a token: that of :mod:`kit.models.llama`, or the plain
``transformers`` module tree.
"""

from __future__ import annotations

import hashlib
import re
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from kit.base.checks import is_whole
from kit.models.unopened import is_open

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Kept = TypeVar("Kept")
# what is found out about a model once, and kept
Fact = Literal[
    "decoding",
    "fingerprint",
    "hook points",
    "lens",
    "lens norms",
    "lens root",
    "paths",
    "prompt",
    "scales",
    "text start",
    "unsteered answers",
]


@dataclass
class Runtime:
    """What the kit keeps beside a bridge: one per model, found by :func:`runtime`.

    Attributes:
        decoder: the plain module tree; ``shares_weights``: whether it is another than the bridge's.
        tokenizer: the model's own, before TransformerLens gave it tokens.
        blocks: the path of the list of blocks.
        parts: of each part of a block that the architecture has, its path there: ``"o_proj"``,
            ``"mlp"``, ``"up_proj"``, ``"down_proj"``, ``"mlp_out"`` (whose output the block adds).
        mlp_norm: the path of the norm before the MLP; "" where it reads the stream itself.
        final_norm: the path of the norm before the unembedding, if there is one.
        mlp_scale: by which the block multiplies what the MLP gives before it adds it.
        lock: held while hooks are on the model.
        steered: by what an enclosing :func:`kit.steer` steers the bridge; "" outside of one.
    """

    decoder: nn.Module
    shares_weights: bool
    tokenizer: Any
    blocks: str
    parts: dict[str, str]
    mlp_norm: str | None = None
    final_norm: str | None = None
    mlp_scale: float = 1.0
    lock: threading.RLock = field(default_factory=threading.RLock)
    steered: str = ""
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

    @property
    def clean(self) -> nn.Module:
        """The decoder, for passes that read or change the model as it is.

        Raises:
            RuntimeError: inside ``with kit.steer(...)``: it steers the bridge, and this pass
                would silently go without.
        """
        if self.steered:
            raise RuntimeError(
                f"inside kit.steer with {self.steered}: this would read the model without it. Read it before or after "
                "the block, or steered: model.run_with_cache(tokens)"
            )
        return self.decoder

    def block(self, layer: int) -> nn.Module:
        """The block with this index, counted from 0."""
        return self.decoder.get_submodule(f"{self.blocks}.{layer}")

    def part(self, layer: int, name: str) -> nn.Module:
        """A part of a block; see ``parts``.

        Raises:
            ValueError: this architecture, or this layer of it, has none.
        """
        try:
            return self.block(layer).get_submodule(self.parts[name])
        except (KeyError, AttributeError):
            raise ValueError(f"layer={layer}: it has no {_PARTS[name]}") from None

    def has_projection(self, site: str) -> bool:
        """Whether one matrix makes a site: ``"attn_out"`` from the heads' outputs, ``"mlp_out"``
        from the MLP's hidden units."""
        return _MATRIX[site] in self.parts

    def projection_path(self, site: str) -> str:
        """Where in a block that matrix is."""
        if not self.has_projection(site):
            raise ValueError(f"site={site!r}: this architecture has no {_PARTS[_MATRIX[site]]}")
        return self.parts[_MATRIX[site]]

    def projection(self, layer: int, site: str) -> nn.Module:
        """That matrix in a layer."""
        return self.part(layer, _MATRIX[site])

    def mlp_matrices(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """A layer's MLP as weights: input matrix ``[d_model, hidden]`` (of a gated MLP the one that
        is gated, not the gate), output matrix ``[hidden, d_model]`` with what the block multiplies
        it by, and the gain of the norm before it ``[d_model]``."""
        up, down = (matrix(self.part(layer, name)) for name in ("up_proj", "down_proj"))
        if self.mlp_norm is None or self.part(layer, "mlp_out") not in self._plain_outputs(layer):
            raise ValueError(f"layer={layer}: this architecture's MLP is no product of matrices between two streams")
        gain = up.new_ones(len(up)).float()
        if self.mlp_norm:
            gain = norm_gain(self.block(layer).get_submodule(self.mlp_norm), len(up))
        return up, down * self.mlp_scale, gain

    def _plain_outputs(self, layer: int) -> list[nn.Module]:
        """Places of the MLP's output that no norm has changed."""
        return [self.part(layer, name) for name in ("mlp", "down_proj") if name in self.parts]

    def port(self, layer: int, site: str) -> tuple[nn.Module, bool]:
        """The module at which a site is, and whether it is what goes in (else what comes out).

        Args:
            site: a kind of :class:`kit.models.sites.Site`.
        """
        match site:
            case "resid":
                return self.block(layer), False
            case "z":
                return self.part(layer, "o_proj"), True
            case "attn_out":
                return self.part(layer, "o_proj"), False
            case "neurons":
                return self.part(layer, "down_proj"), True
            case "mlp_in":
                return self.part(layer, "mlp" if "mlp" in self.parts else "up_proj"), True
            case "mlp_out":
                return self.part(layer, "mlp_out"), False
        raise ValueError(f"site={site!r}: no such place in a block")

    def scale(self, site: str) -> float:
        """What turns the output of :meth:`port` into what the site is."""
        return self.mlp_scale if site == "mlp_out" else 1.0


_MATRIX = {"attn_out": "o_proj", "mlp_out": "down_proj"}
_PARTS = {
    "o_proj": "separate attention output projection",
    "mlp": "separate MLP",
    "up_proj": "MLP with a separate input projection",
    "down_proj": "MLP with a separate output projection",
    "mlp_out": "one place where the MLP's output is added",
}


def unwrapped(module: nn.Module) -> nn.Module:
    """The decoder's own module, whose class tells how to read it: a bridge stands around it where
    the model was spread over devices or loaded by others."""
    return getattr(module, "original_component", None) or module


def matrix(projection: nn.Module) -> Tensor:
    """A projection's weight as ``[in, out]``; GPT-2 keeps it so, others turned."""
    projection = unwrapped(projection)
    weight: Any = projection.weight
    # by its name: importing transformers.pytorch_utils takes seconds
    return weight.detach() if type(projection).__name__ == "Conv1D" else weight.detach().T


def norm_gain(norm: nn.Module, width: int) -> Tensor:
    """What a norm does to a vector of mean 0 and root mean square 1, coordinate by coordinate,
    ``[width]``, float32; measured, since some multiply by 1 + weight and some by nothing."""
    norm = unwrapped(norm)
    weight = next(norm.parameters(), torch.zeros(()))
    probe = torch.ones(width).index_fill(0, torch.arange(1, width, 2), -1.0)  # [width]
    if width % 2:
        probe[-3:] = torch.tensor([1.0, 1.0, -2.0])  # the mean of an odd number of signs is not 0
    large = (1000 * probe).to(weight.device, weight.dtype if weight.is_floating_point() else torch.float32)
    found = without_bias(norm, large)
    return found / (probe / probe.square().mean().sqrt()).to(found.device)


@torch.no_grad()
def without_bias(norm: nn.Module, row: Tensor) -> Tensor:
    """What a norm makes of a row ``[width]``, less its bias, float32: half the difference between
    that and what it makes of the row's negative."""
    pair = norm(torch.stack([row, -row])[None])[0].float()
    return (pair[0] - pair[1]) / 2


_RUNTIMES: weakref.WeakKeyDictionary[Any, Runtime] = weakref.WeakKeyDictionary()


def runtime(model: TransformerBridge) -> Runtime:
    """The :class:`Runtime` of a bridge; made on first sight for bridges booted elsewhere.

    Raises:
        TypeError: ``model`` is not a ``TransformerBridge``.
        ValueError: it is in training mode.
    """
    if not hasattr(type(model), "hook_dict"):  # a property that walks the model: not of the instance
        raise TypeError(f"model is a {type(model).__name__}; pass the TransformerBridge that kit.load_model returns")
    state = _RUNTIMES.get(model) or register(model, None)
    if state.decoder.training or (is_open(model) and model.original_model.training):
        raise ValueError("model is in training mode, where dropout changes every pass: call model.eval() first")
    return state


def register(bridge: TransformerBridge, decoder: nn.Module | None, tokenizer: Any = None) -> Runtime:
    """Make the :class:`Runtime` of a bridge.

    Args:
        decoder: the plain module tree over the same weights; None to run the bridge's own.
        tokenizer: the model's own; None for the bridge's.
    """
    blocks = bridge.adapter.component_mapping["blocks"]
    at = {name: found for name in ("attn", "mlp", "ln1", "ln2") if (found := blocks.submodules.get(name))}
    paths = {
        "o_proj": _path(at, "attn", "o"),
        "mlp": _path(at, "mlp"),
        "up_proj": _path(at, "mlp", "in"),
        "down_proj": _path(at, "mlp", "out"),
    }
    scale = getattr(blocks, "residual_contribution_scale", 1.0)
    if hasattr(blocks, "hook_mlp_out"):  # a hook point of its own, where the block multiplies
        paths["mlp_out"] = paths["mlp"]
    elif found := re.fullmatch(r"(\w+)(?:\.(out))?\.hook_out", blocks.hook_aliases.get("hook_mlp_out", "")):
        paths["mlp_out"] = _path(blocks.submodules, *filter(None, found.groups()))
    if hasattr((decoder or bridge.original_model).get_submodule(f"{blocks.name}.0"), "layer_scalar"):
        paths["mlp_out"] = None  # Gemma 4 scales the sum of everything
    # one norm for both where attention and MLP run side by side
    norm = at.get("ln2") or at.get("ln1")
    direct = getattr(blocks, "mlp_reads_resid_directly", False)
    final = bridge.adapter.component_mapping.get("ln_final")
    found = Runtime(
        decoder or bridge.original_model,
        decoder is not None,
        tokenizer if tokenizer is not None else bridge.tokenizer,
        blocks.name,
        {name: path for name, path in paths.items() if path},
        "" if direct else norm and norm.name,
        final.name if final else None,
        scale,
    )
    return hold(bridge, found)


# what `register` finds of Llama, for a bridge that is not made yet
LLAMA_PLACES: Any = {
    "parts": {
        "o_proj": "self_attn.o_proj",
        "mlp": "mlp",
        "up_proj": "mlp.up_proj",
        "down_proj": "mlp.down_proj",
        "mlp_out": "mlp",
    },
    "mlp_norm": "post_attention_layernorm",
    "final_norm": "model.norm",
}


def hold(bridge: Any, found: Runtime) -> Runtime:
    """Keep a model's :class:`Runtime`; returns it."""
    _RUNTIMES[bridge] = found
    return found


def _path(parts: Mapping[str, Any], name: str, inner: str | None = None) -> str | None:
    """Where a part is in its block, or one within it; None where there is none."""
    part = parts.get(name)
    within = part and inner and part.submodules.get(inner)
    if not part or (inner and not within):
        return None
    return ".".join(step.name for step in (part, within) if step and step.name) or None


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
