"""Where a dictionary reads: a layer and a site, under the names that other libraries use."""
from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import nn

from kit.models import check_layer, runtime

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Kind = Literal["resid", "mlp_out"]
# both vocabularies of TransformerLens: HookedTransformer's and TransformerBridge's
_NAMES = {
    r"blocks\.(\d+)\.(?:hook_resid_post|hook_out)": ("resid", 0),
    r"blocks\.(\d+)\.(?:hook_resid_pre|hook_in)": ("resid", -1),
    r"blocks\.(\d+)\.(?:hook_mlp_out|mlp\.hook_out)": ("mlp_out", 0),
}


@dataclass(frozen=True)
class Site:
    """``"resid"``, the residual stream after block ``layer``, or ``"mlp_out"``, what its MLP adds."""

    layer: int
    kind: Kind = "resid"

    def __post_init__(self) -> None:
        if self.kind not in ("resid", "mlp_out"):
            raise ValueError(f"site={self.kind!r}: use 'resid' or 'mlp_out'")

    @classmethod
    def of(cls, hook_name: str) -> Site:
        """The site of a hook name, in either vocabulary of TransformerLens.

        Raises:
            ValueError: another hook, or the stream before the first block.
        """
        for pattern, (kind, shift) in _NAMES.items():
            if (found := re.fullmatch(pattern, hook_name)) and int(found[1]) + shift >= 0:
                return cls(int(found[1]) + shift, kind)  # type: ignore[arg-type]
        raise ValueError(
            f"hook_name={hook_name!r}: the kit reads blocks.N.hook_resid_post (or hook_out), "
            "blocks.N.hook_resid_pre with N from 1 on, and blocks.N.hook_mlp_out (or mlp.hook_out)"
        )

    @property
    def hook_name(self) -> str:
        """The name that sae-lens's files carry."""
        return f"blocks.{self.layer}.hook_" + ("resid_post" if self.kind == "resid" else "mlp_out")

    @property
    def place(self) -> tuple[int, str]:
        """What :func:`kit.activations.capture` takes."""
        return self.layer, self.kind

    def module(self, model: TransformerBridge) -> nn.Module:
        """The module of the decoder whose output this is."""
        check_layer(model, self.layer)
        return runtime(model).writer(self.layer, self.kind)

    def __str__(self) -> str:
        return f"{self.kind} {self.layer}"
