"""Dictionaries of sae-lens in the one form that the kit reads: ``x = sum(a_i row_i) + b``.

Every a is from 0 on and read from one token. Options that only write this in another way are folded
into the weights; what stands on no list here is refused by its name, a later sae-lens's too.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kit.base.files import read_json
from kit.models.sites import Site

if TYPE_CHECKING:
    from sae_lens import SAE

TAKEN = ("standard", "gated", "jumprelu", "topk", "transcoder", "jumprelu_transcoder")
TRAINED = ("standard", "gated", "jumprelu", "topk", "batchtopk", "matryoshka_batchtopk")
_FREE = ("architecture", "metadata", "d_in", "d_sae", "d_out", "k", "dtype", "device")
_VALUES: dict[str, tuple[Any, ...]] = {
    "apply_b_dec_to_input": (True, False),
    "rescale_acts_by_decoder_norm": (True, False),
    "normalize_activations": ("none",),
    "reshape_activations": ("none",),
}
_WHY = {
    "skip_transcoder": "it adds a matrix times what it reads",
    "jumprelu_skip_transcoder": "it adds a matrix times what it reads",
    "abstopk": "its latents fall below zero",
    "temporal": "it reads other tokens too",
    "matching_pursuit": "it finds each latent in what those before have left",
    "layer_norm": "what a latent writes then depends on the token's norm, and no row says it",
    "constant_norm_rescale": "what a latent writes then depends on the token's norm, and no row says it",
    "expected_average_only_in": "this file keeps a scale outside of its weights; fold it "
    "(fold_activation_norm_scaling_factor) and save again",
    "covariance_whitening": "this file keeps a matrix outside of its weights; fold it "
    "(fold_activation_whitening) and save again",
    "hook_z": "it reads attention heads, which the kit's dictionaries do not",
}
# ways to load a model that change nothing where a dictionary reads
_SAME = {"center_unembed", "fold_value_biases", "refactor_factored_attn_matrices", "dtype", "torch_dtype", "device"}
_SAME |= {"device_map", "n_devices", "move_to_device", "low_cpu_mem_usage", "attn_implementation"}


def read(folder: Path, told: dict[str, Any]) -> SAE[Any]:
    """The SAE in a folder; of a checkpoint of sae-lens's trainer, what it saves at its end.

    Args:
        told: what ``cfg.json`` holds.

    Raises:
        ValueError: an architecture or option that is not known; sae-lens's own errors for damage.
    """
    from sae_lens import SAE
    from sae_lens.loading.pretrained_sae_loaders import LLM_METADATA_KEYS, handle_config_defaulting
    from sae_lens.registry import get_sae_class, get_sae_training_class

    name = told.get("architecture", "standard")
    _check_architecture(name, {*TAKEN, *TRAINED})
    now = handle_config_defaulting(told)
    if now is not told:  # of before 6.0: only what the library reads is left, and some is lost
        act, more = told.get("activation_fn_str", told.get("activation_fn", "relu")), told.get("activation_fn_kwargs")
        k = (more or {}).get("k")
        if act not in ("relu", "topk") or (act == "topk" and k is None) or set(more or ()) - {"k"}:
            raise ValueError(
                f"activation_fn={act!r:.60} with {more!r:.60}: the kit takes 'relu', and 'topk' with its k"
            )
    name = now["architecture"]
    own = {f.name for f in fields(get_sae_class(name)[1])} if name in TAKEN else set[str]()
    training = {f.name for f in fields(get_sae_training_class(name)[1])} - own if name in TRAINED else set[str]()
    if name in TAKEN and not training & set(now):
        _check_options(now, own, LLM_METADATA_KEYS)
        if name == "topk" and now.get("k") is None:  # the library would take 100
            raise ValueError(f"k={now.get('k')!r}: a topk dictionary must say how many latents fire")
        return SAE.load_from_disk(folder, dtype="float32")
    scaler = folder / "activation_scaler.json"
    scale = read_json(scaler)["scaling_factor"] if scaler.is_file() else None
    if scale is not None and not 0 < scale < math.inf:
        raise ValueError(f"{scaler}: scaling_factor={scale!r:.60}: expected a number above 0")
    folded = {"normalize_activations"} if scale is not None else set[str]()
    _check_options(now, own | training, LLM_METADATA_KEYS | training - set(_VALUES) | folded)
    return inference(get_sae_training_class(name)[0].load_from_disk(folder, dtype="float32"), scale)


def inference(trained: Any, scale: float | None) -> SAE[Any]:
    """What a ``TrainingSAE`` is in inference; its weights are changed on the way.

    Args:
        scale: that activations were multiplied with in training; None for none.
    """
    from sae_lens import SAE

    if scale is not None:
        trained.fold_activation_norm_scaling_factor(scale)
    weights = trained.state_dict()
    trained.process_state_dict_for_saving_inference(weights)
    # on the meta device no weights are drawn, which these replace
    sae: Any = SAE.from_dict(trained.cfg.get_inference_sae_cfg_dict() | {"device": "meta"})
    sae.load_state_dict(weights, assign=True)
    sae.cfg.device = "cpu"
    return sae.eval()


def _check_architecture(name: Any, taken: Collection[str] = TAKEN) -> None:
    if str(name) not in taken:
        why = _WHY.get(str(name), "the kit does not know it")
        raise ValueError(f"architecture={name!r:.60}: {why}; the kit takes sums of rows: {', '.join(TAKEN)}")


def _check_options(options: Mapping[str, Any], known: Collection[str], free: Collection[str] = ()) -> None:
    """Refuse names that are not known, and values that are not: all of ``free`` names are."""
    for name, value in options.items():
        if name in free or name in _FREE:
            continue
        if name not in known or name not in _VALUES:
            raise ValueError(f"{name}={value!r:.60}: the kit does not know this option, nor what it does to latents")
        if value not in _VALUES[name]:
            good = f"the kit takes {' or '.join(map(repr, _VALUES[name]))}"
            raise ValueError(f"{name}={value!r:.60}: {_WHY.get(str(value), good)}")


@torch.no_grad()
def plain(sae: SAE[Any], site: Site) -> None:
    """Bring an SAE that reads at a site to the plain form, in place; twice is once.

    Raises:
        ValueError: names what is not of this form.
    """
    cfg: Any = sae.cfg
    _check_architecture(cfg.architecture())
    _check_options({f.name: getattr(cfg, f.name) for f in fields(cfg)}, _VALUES)
    if hasattr(cfg, "k") and not (type(cfg.k) is int and 1 <= cfg.k <= cfg.d_sae):
        raise ValueError(f"k={cfg.k!r:.60}: expected a whole number from 1 to d_sae={cfg.d_sae}")
    if getattr(cfg, "rescale_acts_by_decoder_norm", False):
        sae.fold_W_dec_norm()
        cfg.rescale_acts_by_decoder_norm = False
    _check_metadata(cfg.metadata, site)
    if centred(sae, site):
        _take_the_mean_off(sae)


def _check_metadata(told: Any, site: Site) -> None:
    """Refuse heads, rows that belong to another layer, and models that the kit's are not."""
    for name in ("hook_head_index", "hook_head_index_out"):
        if told[name] is not None:
            raise ValueError(f"{name}={told[name]!r:.60}: {_WHY['hook_z']}")
    out = told.hook_name if told.hook_name_out is None else told.hook_name_out
    if out != told.hook_name and (Site.of(str(out)).layer != site.layer or Site.of(str(out)).kind == "neurons"):
        raise ValueError(f"hook_name_out={out!r:.60}: the kit writes into the stream after layer {site.layer}")
    for name, value in dict(told.model_from_pretrained_kwargs or {}).items():
        shows = name not in _SAME and name != "center_writing_weights" and (name != "fold_ln" or site.kind == "mlp_in")
        if shows and value is not False:
            raise ValueError(
                f"{name}={value!r:.60} in model_from_pretrained_kwargs: it was trained on a model that was changed "
                "so, and the kit's is not; where yours is, take this out of cfg.json"
            )


def centred(sae: SAE[Any], site: Site) -> bool:
    """Whether it was trained on activations less their mean over coordinates: of a model whose
    writing weights were centred, which LayerNorms do not notice."""
    told = sae.cfg.metadata.model_from_pretrained_kwargs or {}
    return bool(told.get("center_writing_weights")) and site.kind in ("resid", "mlp_out")


def _take_the_mean_off(sae: Any) -> None:
    """``encode(x)`` is then what it was of ``x - x.mean()``."""
    mean = sae.W_enc.mean(0)
    if float(mean.abs().max()) <= 1e-6 * float(sae.W_enc.abs().max()):
        return  # it was done before
    sae.W_enc.sub_(mean)
    shift = mean * sae.b_dec.sum() * sae.cfg.apply_b_dec_to_input  # the bias kept its own mean
    if sae.cfg.architecture() == "gated":
        sae.b_gate.sub_(shift)
        sae.b_mag.sub_(shift * sae.r_mag.exp())
    else:
        sae.b_enc.sub_(shift)
