"""Out to serving: a steered model as an ordinary checkpoint, for engines that know no hooks.

A vector that is added to the residual stream after a block, at every position, is the same as a
bias of the block's last matrix, the MLP's output projection: the residual stream gains
``W x + b`` instead of ``W x``. So a model with vectors folded into these biases is a plain
``transformers`` checkpoint, and any engine that reads the biases of its architecture serves the
steered model, without hooks, adapters or another kernel. For llama.cpp, which can add vectors
itself, see :mod:`kit.steering.gguf`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kit.base.checks import is_number
from kit.base.scratch import as_umask, scratch
from kit.models.bridge import fingerprint, runtime
from kit.steering.generation import session_of
from kit.steering.intervention import Intervention

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_ROUGH = 0.02  # share of a step that may be lost to rounding


def export_bias(
    folder: str | Path,
    model: TransformerBridge,
    coefficients: Mapping[Intervention, float],
    *,
    dtype: str | torch.dtype | None = None,
) -> Path:
    """Write the model with vectors baked in, as a folder that ``transformers`` loads.

    Its logits are those of ``kit.steer(model, coefficients, positions="all")`` up to rounding: the
    vectors act at every position, BOS included, in every request, and cannot be switched off.

    Args:
        folder: where to; it must not exist yet, and appears whole or not at all.
        coefficients: vector -> coefficient, as for :func:`kit.steer`. Anything that adds to the
            residual stream will do (steering vectors, SAE latents).
        dtype: of the weights that are written; default the model's.

    Returns:
        The folder: ``config.json``, safetensors, the tokenizer, and a ``README.md`` that says what
        was baked in.

    Raises:
        ValueError: an architecture without such a bias (the text names those that have one, and
            what else is possible), an intervention that does more than add to the stream, a
            coefficient that makes no sense, or a dtype in which the bias would not be what it is.
        FileExistsError: the folder is there already.

    GPT-2 and GPT-NeoX have the bias, and the vector is added to it. Llama has the switch
    ``mlp_bias``; the two further biases that come with it are zero. Qwen2 and Mistral, which have
    no switch, compute what Llama computes with biases at ``q``, ``k`` and ``v`` (Qwen2) or none
    (Mistral), and are written as ``LlamaForCausalLM``.
    """
    from transformers import AutoModelForCausalLM

    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"folder={str(folder)!r} is there already: give a new one")
    steps = _steps(model, coefficients)
    config, bias = _layout(model.original_model.config)
    kind = model.original_model.dtype if dtype is None else dtype
    if isinstance(kind, str):
        kind = getattr(torch, kind, None)
    if kind not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype={dtype or kind!r}: use 'float32', 'bfloat16' or 'float16'")
    with torch.device("meta"):
        served = AutoModelForCausalLM.from_config(config, dtype=kind)
    tensors = _tensors(runtime(model).decoder, served, kind)
    lost = 0.0
    for layer, step in steps.items():
        name = bias.format(layer)
        before = tensors[name]
        after = (before.float() + step).to(kind)
        left = (after.float() - before.float() - step).norm() / step.norm()
        if not float(left) < _ROUGH:
            raise ValueError(
                f"dtype={str(kind).removeprefix('torch.')!r} would change the step at "
                f"layer {layer} by {float(left):.2g} of its length: use 'float32'"
            )
        tensors[name], lost = after, max(lost, float(left))
    served.load_state_dict(tensors, assign=True)
    served.tie_weights()
    served.generation_config = model.original_model.generation_config
    card = _card(model, coefficients, steps, kind, bias, lost)
    _whole(folder, lambda tmp: _write(tmp, served, model, card))
    return folder


def _steps(model: TransformerBridge, coefficients: Mapping[Intervention, float]) -> dict[int, Tensor]:
    """What is added after each block, float32 ``[d_model]``."""
    if not coefficients:
        raise ValueError("coefficients={}: give at least one vector and its coefficient")
    for v, c in coefficients.items():
        if not is_number(c):
            raise ValueError(f"coefficient={c!r} of {v.name!r}: give one finite number")
    session_of(model, list(coefficients), [tuple(coefficients.values())], "all", "add")
    steps: dict[int, Tensor] = {}
    for v, c in coefficients.items():
        for part in v.parts(model):
            if part.site != "resid" or part.read is not None:
                raise ValueError(
                    f"{v.name!r} acts at {part.site!r}, which no bias does: give "
                    "vectors of the residual stream; kit.rank_one.export writes "
                    "factors as a LoRA adapter"
                )
            step = c * part.scale * part.direction.float().cpu()
            steps[part.layer] = steps.get(part.layer, torch.zeros_like(step)) + step
    found = {layer: step for layer, step in steps.items() if bool(step.any())}
    if not found:
        raise ValueError("coefficients add up to nothing: there is no step to bake in")
    return found


def _layout(config: Any) -> tuple[Any, str]:
    """The config of the model that is written, and the name of its bias in layer ``{}``."""
    from transformers import LlamaConfig

    told, kind = config.to_dict(), config.model_type
    if kind in ("gpt2", "gpt_neox"):
        end = "transformer.h.{}.mlp.c_proj.bias" if kind == "gpt2" else ("gpt_neox.layers.{}.mlp.dense_4h_to_h.bias")
        return type(config)(**told), end
    window = told.get("sliding_window") if told.get("use_sliding_window", True) else None
    sliding = "sliding_attention" in (told.get("layer_types") or [])
    if kind in ("llama", "qwen2", "mistral") and not window and not sliding:
        if kind == "qwen2":
            told["attention_bias"] = True
        known = set(LlamaConfig().to_dict()) - {"model_type", "architectures", "dtype"}
        kept = {name: value for name, value in told.items() if name in known}
        return LlamaConfig(**kept | {"mlp_bias": True}), "model.layers.{}.mlp.down_proj.bias"
    why = " with a sliding window" if kind in ("qwen2", "mistral") else ""
    raise ValueError(
        f"model_type={kind!r}{why}: its MLP's output has no bias that a config switches on; that "
        "works for gpt2, gpt_neox, llama, and qwen2 and mistral without a sliding window. For "
        "llama.cpp, kit.vectors.save_gguf writes the vector by itself"
    )


def _tensors(decoder: nn.Module, served: nn.Module, kind: torch.dtype) -> dict[str, Tensor]:
    """Every tensor that the written model needs, on the CPU; biases that it alone has are zero."""
    have = {name.replace("._original_component", ""): t for name, t in decoder.state_dict().items()}
    found = {}
    for name, like in served.state_dict().items():
        if name in have:
            found[name] = have[name].detach().to("cpu", kind)
        elif name.endswith(".bias") and ("mlp." in name or "self_attn.o_proj" in name):
            found[name] = torch.zeros(like.shape, dtype=kind)
        else:
            raise ValueError(f"the model has no {name!r}, which its config asks for")
        if found[name].shape != like.shape:
            raise ValueError(f"{name!r} has shape {list(found[name].shape)}, its config asks for {list(like.shape)}")
    return found


def _card(
    model: TransformerBridge,
    coefficients: Mapping[Intervention, float],
    steps: Mapping[int, Tensor],
    kind: torch.dtype,
    bias: str,
    lost: float,
) -> str:
    rows = [
        f"| {_cell(v.name)} | {c:+g} | {', '.join(str(p.layer) for p in v.parts(model))} |"
        for v, c in coefficients.items()
    ]
    added = [f"| `{bias.format(layer)}` | {float(step.norm()):.4g} |" for layer, step in steps.items()]
    return "\n".join(
        [
            "# A model with steering vectors baked in",
            "",
            f"Base model: {_cell(str(model.cfg.model_name))} (fingerprint {fingerprint(model)}), "
            f"written in {str(kind).removeprefix('torch.')}.",
            "",
            "The vectors below are folded into biases of the MLPs' output projections. They act at "
            "every position of every text, the BOS included, and cannot be switched off; all other "
            "weights are the base model's. Its licence and its limits hold here too.",
            "",
            "| Vector | Coefficient | After blocks |",
            "|---|---|---|",
            *rows,
            "",
            "| Tensor | Length of what was added |",
            "|---|---|",
            *added,
            "",
            f"At most {lost:.1e} of a step was lost to rounding.",
            "",
        ]
    )


def _cell(text: str) -> str:
    """Text as one line of a table that can hold no markup."""
    plain = " ".join(text.split())
    return "".join(f"\\{ch}" if ch in "\\`*_[]<>|#" else ch for ch in plain)


def _write(folder: Path, served: nn.Module, model: TransformerBridge, card: str) -> None:
    served.save_pretrained(folder)  # type: ignore[operator]
    runtime(model).tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")
    _for_both_majors(folder)


def _for_both_majors(folder: Path) -> None:
    """Say in the words of transformers 4 too what 5 writes in its own, which 4 overlooks or, of the
    tokenizer's class, does not know: the rotary base would be its default, without a word."""
    for name in ("config.json", "tokenizer_config.json"):
        file = folder / name
        told = json.loads(file.read_text(encoding="utf-8"))
        rope = told.get("rope_parameters")
        if rope:
            neox = told["model_type"] == "gpt_neox"
            told["rotary_emb_base" if neox else "rope_theta"] = rope["rope_theta"]
            if neox:
                told["rotary_pct"] = rope.get("partial_rotary_factor", 1.0)
            if rope.get("rope_type", "default") != "default":
                told["rope_scaling"] = rope
        if told.get("tokenizer_class") == "TokenizersBackend":
            told["tokenizer_class"] = "PreTrainedTokenizerFast"
        if isinstance(told.get("extra_special_tokens"), list):
            told["additional_special_tokens"] = told.pop("extra_special_tokens")
        file.write_text(json.dumps(told, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _whole(folder: Path, write: Callable[[Path], None]) -> None:
    """Fill a temporary folder beside it, then rename: half a model must not look like one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with scratch(folder) as tmp:
        write(tmp)
        as_umask(tmp)
        tmp.chmod(0o755)
        tmp.rename(folder)
