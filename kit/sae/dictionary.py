"""A sparse dictionary and where it belongs: an SAE or transcoder of sae-lens, bound to a model."""

from __future__ import annotations

import math
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import Tensor

from kit.base.files import header, junk, must_exist, read_json
from kit.base.scratch import as_umask, locked, scratch
from kit.models.bridge import runtime
from kit.models.sites import Site
from kit.models.weights import offline, reaching
from kit.sae.latents import Latents
from kit.sae.plain import centred, plain, read

if TYPE_CHECKING:
    from sae_lens import SAE
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(eq=False, repr=False)
class Dictionary(Latents):
    """A trained SAE, or transcoder, that knows its site; see :class:`kit.sae.Latents`.

    What it makes of an activation is ``sum(latent * row) + bias``. sae-lens's options that write
    this in another way are folded into ``sae``, in place; a ValueError names what is not so.

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

    def __post_init__(self) -> None:
        plain(self.sae, self.site)

    def __len__(self) -> int:
        return int(self.sae.cfg.d_sae)

    @property
    def rows(self) -> Tensor:  # type: ignore[override]
        """Decoder rows ``[latents, width]``, float32, as they are (not at norm 1)."""
        return self.sae.W_dec.detach().float()

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1]).to(self.sae.W_dec)  # [..., width] -> [n, width]
        return self.sae.encode(flat).float().reshape(*x.shape[:-1], -1).to(x.device)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Activations ``[..., width]``, float32, of latents ``[..., latents]``."""
        flat = latents.reshape(-1, latents.shape[-1]).to(self.sae.W_dec)  # [..., latents] -> [n, latents]
        return self.sae.decode(flat).float().reshape(*latents.shape[:-1], -1).to(latents.device)

    def before(self, x: Tensor) -> Tensor:
        sae = self.sae
        pre = sae.process_sae_in(x.to(sae.W_dec)) @ sae.W_enc
        if sae.cfg.architecture() == "gated":  # the magnitude path
            return (pre * sae.r_mag.exp() + sae.b_mag).to(x.device)
        return (pre + sae.b_enc).to(x.device)

    def weights(self) -> dict[str, Any]:
        cfg: Any = self.sae.cfg
        options = cfg.architecture(), bool(cfg.apply_b_dec_to_input), getattr(cfg, "k", None)
        return {**self.sae.state_dict(), "options": options}

    def target(self, x: Tensor) -> Tensor:
        """What :meth:`decode` is to give back of activations ``[..., width]``: themselves, less
        their mean where it was trained on a model whose writing weights are centred."""
        return x - x.mean(-1, keepdim=True) if centred(self.sae, self.site) else x

    def check(self, model: TransformerBridge) -> None:
        super().check(model)
        told, state = self.sae.cfg.metadata, runtime(model)
        if centred(self.sae, self.site) and model.cfg.normalization_type not in ("LN", "LNPre"):
            raise ValueError(
                f"dictionary {self.name!r} was trained with center_writing_weights, which only a model "
                f"with LayerNorms does not notice; this one's norm is {model.cfg.normalization_type}"
            )
        path = str(told.kit_module or "").partition(f".{self.site.layer}.")[2]
        here = dict(state.block(self.site.layer).named_modules()).get(path)
        if path and here is not state.port(*self.site.place)[0]:
            raise ValueError(
                f"dictionary {self.name!r} reads what comes out of {told.kit_module!r}; in this model that is not "
                f"what {self.site} reads"
            )
        width = int(self.sae.cfg.d_in)
        if width != model.cfg.d_model:
            raise ValueError(
                f"dictionary {self.name!r} reads {width} dimensions at {self.site}; this model has {model.cfg.d_model}"
            )

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> Path:
        """Write it in sae-lens's format; anyone's sae-lens loads the folder.

        Args:
            dtype: ``torch.bfloat16`` halves the size.

        Raises:
            OSError: the folder cannot be written.
        """
        sae = self.sae
        kept = sae.dtype
        for key, value in {
            "hook_name": self.site.hook_name,
            "kit_name": self.name,
            "kit_fingerprint": self.fingerprint,
            "kit": self.metadata,
        }.items():
            sae.cfg.metadata[key] = value
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / "cfg.json"), scratch(folder / "cfg.json") as part:
            try:
                made = sae.to(dtype).save_model(part)
            finally:
                sae.to(kept)
            as_umask(part)
            # the config comes last, and never new weights under an old one: a folder without it
            # is not loaded
            (folder / "cfg.json").unlink(missing_ok=True)
            for file in made:
                file.replace(folder / file.name)
        return folder


def check_folder(folder: Path) -> dict[str, Any]:
    """Look at a folder in sae-lens's format before anything is built from it; returns its config.

    Raises:
        OSError: a file is missing; ValueError: the config is no JSON object of sensible numbers, or
            says another size than the weights have.
    """
    told, weights = read_json(folder / "cfg.json"), folder / "sae_weights.safetensors"
    if not isinstance(told, dict) or not isinstance(told.get("metadata", {}), dict):
        raise ValueError(f"{folder / 'cfg.json'}: expected a JSON object with an object 'metadata'")
    must_exist(weights)
    found, sizes = header(weights), (told.get("d_in"), told.get("d_sae"))
    if any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in sizes):
        raise ValueError(
            f"{folder}: d_in={sizes[0]!r:.40}, d_sae={sizes[1]!r:.40}: they must be whole numbers from 1 on"
        )
    shape = found.get("W_dec", ([], ""))[0]
    if len(shape) != 2 or shape[0] != sizes[1]:
        raise ValueError(
            f"{folder}: cfg.json says d_sae={sizes[1]!r:.40}, and the decoder in the weights has shape {shape}"
        )
    wide = 4 * sum(math.prod(each) for each, _ in found.values())
    if wide > psutil.virtual_memory().total:
        raise ValueError(f"{folder} takes {wide / 2**30:.1f} GB, more memory than this machine has")
    return told


def load(source: str | Path, sae_id: str | None = None, model: TransformerBridge | None = None) -> Dictionary:
    """A dictionary from a folder, or from any release that sae-lens knows.

    Args:
        source: a folder in sae-lens's format (a checkpoint of its trainer is read as what it would
            save for inference), or the name of a release (then ``sae_id`` too; it is fetched from
            the hub once).
        model: what it is for; a mismatch is refused at once.

    Raises:
        FileNotFoundError: a path without a dictionary in it.
        OSError: a release that is not on this machine, and that the hub does not give.
        ValueError: a damaged folder, one that does not fit into memory, a hook that the kit does
            not know, as :class:`Dictionary`, or as :meth:`Dictionary.check`.
    """
    with warnings.catch_warnings():  # of how to load the model, which the kit looks after
        warnings.filterwarnings("ignore", r"\s*This SAE has non-empty model_from_pretrained_kwargs")
        sae = _from_folder(Path(source)) if sae_id is None else _released(str(source), sae_id)
    told = sae.cfg.metadata
    if told.hook_name is None:
        raise ValueError(
            f"{str(source)!r}: its metadata have no hook_name, so that nothing says where it reads; "
            "a checkpoint of kit.sae.train is for its folder="
        )
    site = Site.of(str(told.hook_name))
    if not str(told.hook_name).startswith("blocks."):
        told.kit_module = str(told.hook_name)
    name = told.get("kit_name") or sae_id or Path(source).name
    more, mark = told.get("kit") or {}, told.get("kit_fingerprint")
    if not isinstance(more, dict):
        raise ValueError(f"{str(source)!r}: metadata kit={more!r:.80}: expected an object")
    if not all(bool(part.isfinite().all()) for part in sae.state_dict().values()):
        raise ValueError(f"{str(source)!r} holds NaN or infinity")
    made = Dictionary(sae.eval(), site, str(name), None if mark is None else str(mark), dict(more))
    if model is not None:
        made.check(model)
    return made


def _from_folder(folder: Path) -> SAE[Any]:
    if not (folder / "cfg.json").is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} holds no cfg.json: give a folder that an SAE was saved to, or a release and its sae_id"
        )
    found = check_folder(folder)
    with junk(str(folder)):
        return read(folder, found)


def _released(release: str, sae_id: str) -> SAE[Any]:
    """From the hub's cache, and only if it is not there from the hub."""
    from sae_lens import SAE

    with offline(), suppress(Exception):
        return SAE.from_pretrained(release, sae_id, device="cpu")
    with reaching(f"the dictionary {sae_id!r} of {release!r} is not on this machine and"):
        return SAE.from_pretrained(release, sae_id, device="cpu")
