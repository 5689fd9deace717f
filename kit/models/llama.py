"""Llama as a decoder of our own: what a token costs is reading the weights, and little else.

The module tree has the names and the call of transformers' ``LlamaForCausalLM``, so that hooks,
slices and exports need not know which of the two they meet; :mod:`kit.models.paths` compares them.
It imports neither transformers nor TransformerLens, which take seconds, it spends half as many
operations on a block, and it keeps keys and values in buffers with room for the next ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kit.models import mapped
from kit.models.fast_linear import Joined, product

_ROOM = 64  # positions by which a cache grows


@dataclass(frozen=True)
class Shape:
    """What a config file says of a Llama."""

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_mlp: int
    d_vocab: int
    n_ctx: int
    eps: float
    rope_theta: float
    tied: bool


def shape_of(config: Mapping[str, Any]) -> Shape | None:
    """The shape that a config file of transformers names; None for what is no plain Llama."""
    rope = config.get("rope_parameters") or {}
    plain = (
        config.get("model_type") == "llama"
        and config.get("hidden_act") == "silu"
        and not config.get("attention_bias")
        and not config.get("mlp_bias")
        and rope.get("rope_type") == "default"
        and rope.get("partial_rotary_factor", 1.0) == 1.0
    )
    if not plain:
        return None
    heads = config["num_attention_heads"]
    return Shape(
        n_layers=config["num_hidden_layers"],
        d_model=config["hidden_size"],
        n_heads=heads,
        n_kv_heads=config.get("num_key_value_heads") or heads,
        d_head=config.get("head_dim") or config["hidden_size"] // heads,
        d_mlp=config["intermediate_size"],
        d_vocab=config["vocab_size"],
        n_ctx=config["max_position_embeddings"],
        eps=config["rms_norm_eps"],
        rope_theta=rope["rope_theta"],
        tied=bool(config.get("tie_word_embeddings")),
    )


class Layer:
    """Keys and values of one layer, ``[rows, heads, pos, d_head]`` each, in buffers with room."""

    def __init__(self) -> None:
        self.n = 0
        self._held: tuple[Tensor, Tensor] | None = None

    @property
    def keys(self) -> Tensor:
        """Those of all positions so far."""
        assert self._held is not None
        return self._held[0].narrow(2, 0, self.n)

    @property
    def values(self) -> Tensor:
        """Those of all positions so far."""
        assert self._held is not None
        return self._held[1].narrow(2, 0, self.n)

    def add(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values ``[rows, heads, new, d_head]``; returns all."""
        n, more = self.n + keys.shape[2], (keys, values)
        if self._held is None or n > self._held[0].shape[2]:
            room = n + _ROOM - n % _ROOM
            wide = tuple(new.new_empty(*new.shape[:2], room, new.shape[3]) for new in more)
            if self.n:
                wide[0][:, :, : self.n], wide[1][:, :, : self.n] = self.keys, self.values
            self._held = wide[0], wide[1]
        for held, new in zip(self._held, more, strict=True):
            held.narrow(2, self.n, n - self.n).copy_(new)
        self.n = n
        return self.keys, self.values


class Cache:
    """Keys and values of all layers, with the calls of transformers' ``DynamicCache``."""

    def __init__(self, n_layers: int) -> None:
        self.layers = [Layer() for _ in range(n_layers)]

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Append to one layer; returns all that it holds."""
        return self.layers[layer].add(keys, values)

    def get_seq_length(self) -> int:
        """Positions so far."""
        return self.layers[0].n


class Turn(NamedTuple):
    """What every block is given beside the stream: the rotation, ``[1 or rows, 1, pos, d_head]``
    each (the sine of what a coordinate gets from its pair, so negative in the first half), and what
    a position may see (None: all that is before it)."""

    cos: Tensor
    sin: Tensor
    mask: Tensor | None


class Norm(nn.Module):
    """Root mean square norm with a gain."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps, self.share = torch.tensor(eps, device="cpu"), 1 / width

    def forward(self, x: Tensor) -> Tensor:
        """``[..., width]``, in the dtype of x."""
        wide = x if x.dtype == torch.float32 else x.float()
        # eps + mean of the squares in the fewest steps: as a number, or by `mean`, each costs more
        mean = torch.add(self.eps, wide.square().sum(-1, keepdim=True), alpha=self.share)
        wide = wide * mean.rsqrt()
        return self.weight * (wide if x.dtype == torch.float32 else wide.to(x.dtype))


class Projection(nn.Linear):
    """A matrix without a bias."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__(width, out, bias=False)

    def reset_parameters(self) -> None:
        """Nothing: weights come from elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        """``[..., width]`` to ``[..., out]``."""
        return product(x, self.weight)


class Attention(nn.Module):
    """Causal attention with rotary positions; several queries share a key."""

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        self.layer, self.d_head = layer, shape.d_head
        wide, narrow = shape.n_heads * shape.d_head, shape.n_kv_heads * shape.d_head
        self.q_proj = Projection(shape.d_model, wide)
        self.k_proj = Projection(shape.d_model, narrow)
        self.v_proj = Projection(shape.d_model, narrow)
        self.o_proj = Projection(wide, shape.d_model)
        self.joined, self.grouped = Joined(), wide != narrow

    def forward(self, x: Tensor, turn: Turn, cache: Any = None) -> Tensor:
        """``[rows, pos, d_model]``, of the normed stream as wide."""
        made = self.joined(x, [(self.q_proj.weight, self.k_proj.weight), (self.v_proj.weight,)])
        qk, v = (t.view(*x.shape[:2], -1, self.d_head).transpose(1, 2) for t in made)  # [rows, heads, pos, d_head]
        q, k = _turned(qk, turn).split([qk.shape[1] - v.shape[1], v.shape[1]], 1)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        z = nn.functional.scaled_dot_product_attention(
            q, k, v, turn.mask, is_causal=turn.mask is None and q.shape[2] > 1, enable_gqa=self.grouped
        )
        return self.o_proj(z.transpose(1, 2).flatten(2))


def _turned(x: Tensor, turn: Turn) -> Tensor:
    # the first half of a head's coordinates pairs with the second
    return torch.addcmul(x * turn.cos, x.roll(x.shape[-1] // 2, -1), turn.sin)


class MLP(nn.Module):
    """A gated MLP."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = Projection(shape.d_model, shape.d_mlp)
        self.up_proj = Projection(shape.d_model, shape.d_mlp)
        self.down_proj = Projection(shape.d_mlp, shape.d_model)
        self.joined = Joined()

    def forward(self, x: Tensor) -> Tensor:
        """``[..., d_model]``, of the normed stream as wide."""
        gate, up = self.joined(x, [(self.gate_proj.weight,), (self.up_proj.weight,)])
        return self.down_proj(nn.functional.silu(gate) * up)


class Block(nn.Module):
    """Attention, then the MLP, each added to the stream."""

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(shape, layer)
        self.mlp = MLP(shape)
        self.input_layernorm = Norm(shape.d_model, shape.eps)
        self.post_attention_layernorm = Norm(shape.d_model, shape.eps)

    def forward(self, hidden_states: Tensor, turn: Turn, cache: Any = None) -> Tensor:
        """The stream ``[rows, pos, d_model]`` after this block."""
        x = hidden_states
        x = x + self.self_attn(self.input_layernorm(x), turn, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class _Stack(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        # given one, it draws none, for which torch would import its compiler
        self.embed_tokens = nn.Embedding(
            shape.d_vocab, shape.d_model, _weight=torch.empty(shape.d_vocab, shape.d_model)
        )
        self.layers = nn.ModuleList(Block(shape, i) for i in range(shape.n_layers))
        self.norm = Norm(shape.d_model, shape.eps)


class Answer(NamedTuple):
    """What a pass gives."""

    logits: Tensor


class Llama(nn.Module):
    """The decoder; its weights are put in by :func:`share`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        with torch.device("meta"):
            self.model = _Stack(shape)
            self.lm_head = Projection(shape.d_model, shape.d_vocab)
        if shape.tied:
            self.lm_head.weight = self.model.embed_tokens.weight
        # on the CPU: one of two devices may round another way
        rates = 1.0 / shape.rope_theta ** (torch.arange(0, shape.d_head, 2).float() / shape.d_head)
        self._rates = torch.cat([-rates, rates])  # [d_head], radians a position

    def get_input_embeddings(self) -> nn.Module:
        """As transformers calls it."""
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        """As transformers calls it."""
        return self.lm_head

    def cache(self) -> Cache:
        """An empty one for a run."""
        return Cache(self.shape.n_layers)

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
    ) -> Answer:
        """Logits ``[rows, logits_to_keep or pos, d_vocab]``.

        Args:
            input_ids: LongTensor ``[rows, pos]``; or inputs_embeds: ``[rows, pos, d_model]``.
            position_ids: ``[1 or rows, pos]``; default: on from the cache.
            past_key_values: what :meth:`cache` gave, or None; use_cache: not read.
        """
        x = self.model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        turn = self._turn(x, 0 if past_key_values is None else past_key_values.get_seq_length(), position_ids)
        for block in self.model.layers:
            x = block(x, turn, past_key_values)
        return Answer(self.lm_head(self.model.norm(x)[:, -logits_to_keep:]))

    def _turn(self, x: Tensor, start: int, position_ids: Tensor | None) -> Turn:
        n = x.shape[1]
        mask = None
        if start and n > 1:  # the new positions see all of the old ones, and what is before them
            mask = torch.ones(n, start + n, dtype=torch.bool, device=x.device).tril(start)
        at = torch.arange(start, start + n, device=x.device)[None] if position_ids is None else position_ids
        angle = at[:, None, :, None].float() * self._rates.to(x.device)  # [1 or rows, 1, pos, d_head]
        return Turn(angle.cos().to(x.dtype), angle.sin().to(x.dtype), mask)


def share(source: nn.Module, target: nn.Module) -> None:
    """Give one module tree the parameters of another, by name: no weight is copied."""
    for name, weight in source.named_parameters(remove_duplicate=False):
        path, _, leaf = name.rpartition(".")
        target.get_submodule(path)._parameters[leaf] = weight


def over(hf: nn.Module) -> Llama | None:
    """A decoder over the weights of transformers' own module tree; None for what is no plain Llama:
    another form of it, quantised, hooked or changed in memory."""
    if type(hf).__name__ != "LlamaForCausalLM":
        return None
    config: Any = hf.config
    shape = shape_of(config.to_dict())
    for module in hf.modules():
        own = type(module) in (nn.Linear, nn.Embedding) or type(module).__name__ == "LlamaRMSNorm"
        if (
            (module._parameters and not own)
            or module._forward_hooks
            or module._forward_pre_hooks
            or "forward" in vars(module)
        ):
            return None
    if shape is None:
        return None
    twin = Llama(shape)
    share(hf, twin)
    whole = not any(weight.is_meta for weight in twin.parameters())
    return twin.eval() if whole else None


def stored(folder: Path, device: torch.device | None = None) -> Llama:
    """The decoder of a folder, its weights mapped from the file where they stay on the CPU.

    Raises:
        OSError: the folder holds no such file, or not this model's weights.
    """
    shape = shape_of(json.loads((folder / "config.json").read_text()))
    assert shape is not None, folder
    model = Llama(shape)
    wanted = dict(model.named_parameters())
    found = mapped.read(folder / "model.safetensors", device)
    if {n: t.shape for n, t in found.items()} != {n: p.shape for n, p in wanted.items()}:
        raise OSError(f"{folder} holds other weights than this model's: run `kit fetch` again")
    for name, weight in found.items():
        path, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(path), leaf, nn.Parameter(weight, requires_grad=False))
    if shape.tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.eval()
