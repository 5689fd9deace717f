"""The one vocabulary of sites: the places in a block at which a model is read or changed.

=============  ====================================================================
``"resid"``    the residual stream after the block
``"z"``        the heads' outputs before they are mixed, flat: ``n_heads * d_head``
``"attn_out"`` what mixing the heads gives, before it is added to the stream
``"mlp_in"``   what the MLP gets, after the norm
``"neurons"``  the MLP's hidden layer, which its output matrix gets
``"mlp_out"``  what the block adds to the stream for its MLP: after a norm or a
               factor where the architecture has one behind it
=============  ====================================================================

Vectors act at the first, heads at ``"z"``, rank-one changes of a matrix at ``"attn_out"`` and
``"mlp_out"``; dictionaries read any but ``"z"`` and ``"attn_out"``, under the names that other
libraries use (:class:`Site`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import nn

from kit.models.bridge import check_layer, runtime

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

SITES = {  # TransformerBridge's hook points
    "resid": "blocks.{}.hook_out",
    "z": "blocks.{}.attn.hook_z",
    "attn_out": "blocks.{}.attn.o.hook_out",
    "mlp_in": "blocks.{}.mlp.hook_in",
    "neurons": "blocks.{}.mlp.out.hook_in",
    "mlp_out": "blocks.{}.hook_mlp_out",
}
# the matrices that make the two outputs, by the same names: rank-one changes act at what they give
MATRICES = {"attn_out": "blocks.{}.attn.o", "mlp_out": "blocks.{}.mlp.out"}
Kind = Literal["resid", "mlp_in", "neurons", "mlp_out"]  # that a dictionary reads
_MODULE = r"(?:(?:model|transformer|gpt_neox|backbone|decoder|language_model|text_model)\.)+(?:layers|h|blocks)\.(\d+)"
# both vocabularies of TransformerLens: HookedTransformer's and TransformerBridge's
_NAMES = {
    r"blocks\.(\d+)\.(?:hook_resid_post|hook_out)": ("resid", 0),
    r"blocks\.(\d+)\.(?:hook_resid_pre|hook_in)": ("resid", -1),
    r"blocks\.(\d+)\.(?:hook_mlp_out|mlp\.hook_out)": ("mlp_out", 0),
    r"blocks\.(\d+)\.mlp\.hook_in": ("mlp_in", 0),
    r"blocks\.(\d+)\.mlp\.(?:hook_post|out\.hook_in)": ("neurons", 0),
    # what comes out of a module of transformers, by its path
    _MODULE: ("resid", 0),
    rf"{_MODULE}\.(?:mlp|ffn|feed_forward|block_sparse_moe)": ("mlp_out", 0),
}
_OWN = {"resid": "hook_resid_post", "mlp_in": "mlp.hook_in", "neurons": "mlp.hook_post", "mlp_out": "hook_mlp_out"}


@dataclass(frozen=True)
class Site:
    """Where a dictionary reads: a layer, and a site: all but ``"z"`` and ``"attn_out"``."""

    layer: int
    kind: Kind = "resid"

    def __post_init__(self) -> None:
        if self.kind not in _OWN:
            raise ValueError(f"site={self.kind!r}: use {', '.join(map(repr, _OWN))}")

    @classmethod
    def of(cls, hook_name: str) -> Site:
        """The site of a hook name, in either vocabulary of TransformerLens or as transformers names
        the module.

        Raises:
            ValueError: another hook, or the stream before the first block.
        """
        for pattern, (kind, shift) in _NAMES.items():
            if (found := re.fullmatch(pattern, hook_name)) and int(found[1]) + shift >= 0:
                return cls(int(found[1]) + shift, kind)  # type: ignore[arg-type]
        raise ValueError(
            f"hook_name={hook_name!r}: the kit reads blocks.N.hook_resid_post (or hook_out), "
            "blocks.N.hook_resid_pre with N from 1 on, blocks.N.hook_mlp_out (or mlp.hook_out), "
            "blocks.N.mlp.hook_in and blocks.N.mlp.hook_post; of transformers' names those of a block "
            "of the decoder, model.layers.N, and of its MLP, model.layers.N.mlp"
        )

    @property
    def hook_name(self) -> str:
        """The name that sae-lens's files carry."""
        return f"blocks.{self.layer}.{_OWN[self.kind]}"

    @property
    def place(self) -> tuple[int, str]:
        """What :func:`kit.models.activations.capture` takes."""
        return self.layer, self.kind

    def module(self, model: TransformerBridge) -> nn.Module:
        """The module of the decoder at which this is.

        Raises:
            ValueError: the model lacks the layer, or the site.
        """
        check_layer(model, self.layer)
        return runtime(model).port(self.layer, self.kind)[0]

    def __str__(self) -> str:
        return f"{self.kind} {self.layer}"
