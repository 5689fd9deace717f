"""A sparse dictionary and where it belongs: an SAE or transcoder of sae-lens, bound to a model."""
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kit.sae.latents import Latents
from kit.sae.site import Site

if TYPE_CHECKING:
    from sae_lens import SAE
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(eq=False, repr=False)
class Dictionary(Latents):
    """A trained SAE, or transcoder, that knows its site; see :class:`kit.sae.Latents`.

    Attributes:
        sae: sae-lens's model, in the form that inference uses (a BatchTopK SAE is a JumpReLU SAE
            by then, with one learnt threshold).
        site: where it reads, and what its decoder rows are added to.
        name: what it is called on panels and pages.
        fingerprint: of the model that it was trained on; None where a file does not say.
        metadata: what is known of its training.
    """

    sae: SAE[Any]
    site: Site
    name: str
    fingerprint: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.sae.cfg.d_sae)

    @property
    def rows(self) -> Tensor:
        """Decoder rows ``[latents, width]``, float32, as they are (not at norm 1)."""
        return self.sae.W_dec.detach().float()

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Latents ``[..., latents]``, float32, of activations ``[..., width]``."""
        flat = x.reshape(-1, x.shape[-1]).to(self.sae.W_dec)
        return self.sae.encode(flat).float().reshape(*x.shape[:-1], -1)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Activations ``[..., width]``, float32, of latents ``[..., latents]``."""
        flat = latents.reshape(-1, latents.shape[-1]).to(self.sae.W_dec)
        return self.sae.decode(flat).float().reshape(*latents.shape[:-1], -1)

    def before(self, x: Tensor) -> Tensor:
        """Pre-activations ``[n, latents]`` of activations ``[n, width]``, differentiable: also
        latents that do not fire have a gradient here."""
        sae = self.sae
        pre = sae.process_sae_in(x.to(sae.W_dec)) @ sae.W_enc
        if hasattr(sae, "r_mag"):  # gated: the magnitude path
            return pre * sae.r_mag.exp() + sae.b_mag
        return pre + sae.b_enc

    def check(self, model: TransformerBridge) -> None:
        super().check(model)
        width = int(self.sae.cfg.d_in)
        if width != model.cfg.d_model:
            raise ValueError(f"dictionary {self.name!r} reads {width} dimensions at {self.site}; "
                             f"this model has {model.cfg.d_model}")  # fmt: skip

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> Path:
        """Write it in sae-lens's format; anyone's sae-lens loads the folder.

        Args:
            dtype: ``torch.bfloat16`` halves the size.
        """
        sae = self.sae
        kept = sae.dtype
        for key, value in {"hook_name": self.site.hook_name, "kit_name": self.name,
                           "kit_fingerprint": self.fingerprint, "kit": self.metadata}.items():  # fmt: skip
            sae.cfg.metadata[key] = value
        try:
            sae.to(dtype)
            sae.save_model(folder)
        finally:
            sae.to(kept)
        return Path(folder)


def load(
    source: str | Path, sae_id: str | None = None, model: TransformerBridge | None = None
) -> Dictionary:
    """A dictionary from a folder, or from any release that sae-lens knows.

    Args:
        source: a folder in sae-lens's format, or the name of a release (then ``sae_id`` too; it is
            fetched from the hub once).
        model: what it is for; a mismatch is refused at once.

    Raises:
        FileNotFoundError: a path without a dictionary in it.
        ValueError: a hook or normalisation that the kit does not know, or as
            :meth:`Dictionary.check`.
    """
    from sae_lens import SAE

    if sae_id is None:
        folder = Path(source)
        if not (folder / "cfg.json").is_file():
            raise FileNotFoundError(f"{str(source)!r} holds no cfg.json: give a folder that an SAE "
                                    "was saved to, or a release and its sae_id")  # fmt: skip
        sae = SAE.load_from_disk(folder, dtype="float32")
    else:
        sae = SAE.from_pretrained(str(source), sae_id, device="cpu")
    told = sae.cfg.metadata
    if sae.cfg.normalize_activations not in ("none", "layer_norm"):
        raise ValueError(
            f"normalize_activations={sae.cfg.normalize_activations!r}: this file keeps a scale "
            "outside of its weights; fold it (fold_activation_norm_scaling_factor) and save again"
        )
    if sae.cfg.reshape_activations != "none" or told.get("hook_head_index") is not None:
        raise ValueError(f"hook_name={told.get('hook_name')!r}: it reads attention heads, which "
                         "the kit's dictionaries do not")  # fmt: skip
    name = told.get("kit_name") or sae_id or Path(source).name
    found = Dictionary(sae.eval(), Site.of(str(told.get("hook_name"))), str(name),
                       told.get("kit_fingerprint"), dict(told.get("kit") or {}))  # fmt: skip
    if model is not None:
        found.check(model)
    return found

