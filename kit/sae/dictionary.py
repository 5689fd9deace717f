"""A sparse dictionary and where it belongs: sae-lens's SAE, bound to a site of a model."""
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kit.activations import capture
from kit.models import fingerprint, text_tokens
from kit.sae.site import Site
from kit.vectors import SteeringVector

if TYPE_CHECKING:
    from sae_lens import SAE
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(eq=False)
class Dictionary:
    """A trained SAE that knows its site.

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
        """How many latents it has."""
        return int(self.sae.cfg.d_sae)

    def __repr__(self) -> str:
        return f"Dictionary({self.name!r}, {len(self)} latents, {self.site})"

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

    def read(self, model: TransformerBridge, text: str | Tensor) -> Tensor:
        """Latents ``[n, latents]`` on every token of a text, or of tokens ``[n]``, ``[1, n]``.

        Raises:
            ValueError: another model than the one that it was trained on.
        """
        self.check(model)
        tokens = text_tokens(model, text) if isinstance(text, str) else text.reshape(1, -1)
        return self.encode(capture(model, tokens, [self.site.place])[self.site.place][0])

    def vector(self, latent: int, scale: float = 1.0, name: str | None = None) -> SteeringVector:
        """A latent's decoder row as a steering vector, in the residual stream after its layer.

        A row of a dictionary of MLP outputs is added there too, which is the same: the MLP's
        output is what the block adds last.

        Args:
            scale: how strongly the latent fires when the panel's slider should suggest it (its
                largest activation, say): kept as ``metadata["activation"]``.

        Raises:
            ValueError: no such latent, or one whose row is zero.
        """
        self.check_latent(latent)
        row = self.rows[latent]
        told = {"dictionary": self.name, "latent": latent, "row_norm": float(row.norm()),
                "activation": scale}  # fmt: skip
        return SteeringVector(row, self.site.layer, name or f"{self.name} #{latent}", "sae latent",
                              fingerprint=self.fingerprint, metadata=told)  # fmt: skip

    def check_latent(self, latent: int) -> None:
        """Raise a ValueError that gives the range unless ``latent`` is one of its latents."""
        if isinstance(latent, bool) or not isinstance(latent, int) or not 0 <= latent < len(self):
            raise ValueError(f"latent={latent!r}: this dictionary has 0 to {len(self) - 1}")

    def check(self, model: TransformerBridge) -> None:
        """Refuse a model that this dictionary does not fit.

        Raises:
            ValueError: names what does not fit: layer, width or fingerprint.
        """
        self.site.module(model)
        width, mark = int(self.sae.cfg.d_in), fingerprint(model)
        if width != model.cfg.d_model:
            raise ValueError(f"dictionary {self.name!r} reads {width} dimensions at {self.site}; "
                             f"this model has {model.cfg.d_model}")  # fmt: skip
        if self.fingerprint not in (None, mark):
            raise ValueError(
                f"dictionary {self.name!r} was trained on model {self.fingerprint}, this one is "
                f"{mark}: its latents would read another space"
            )

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

