"""sae-lens's architectures and options, one by one: the same numbers as its own, or refused by name."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY
from sae_lens.saes.sae import SAEMetadata

from kit.sae import Dictionary, FeatureStore, Site, evaluate, load
from tests import tiny

HOOK = "blocks.1.hook_resid_post"
TOPK = ("topk", "abstopk", "batchtopk", "matryoshka_batchtopk")
MORE: dict[str, dict[str, Any]] = {
    **{name: {"k": 5} for name in TOPK},
    "matryoshka_batchtopk": {"k": 5, "matryoshka_widths": [20, 80]},
    "temporal": {"n_heads": 1, "bottleneck_factor": 20, "tied_weights": False},
    **{
        f"{kind}transcoder": {"d_out": 48, "apply_b_dec_to_input": False}
        for kind in ("", "skip_", "jumprelu_", "jumprelu_skip_")
    },
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "b_dec at the input": {"apply_b_dec_to_input": True},
    "b_dec not at the input": {"apply_b_dec_to_input": False},
    "rescaled": {"rescale_acts_by_decoder_norm": True},
    "not rescaled": {"rescale_acts_by_decoder_norm": False},
    "centred": {"loaded": {"center_writing_weights": True}},
    "centred, b_dec not at the input": {"loaded": {"center_writing_weights": True}, "apply_b_dec_to_input": False},
    "loaded as the kit does": {"loaded": {"center_writing_weights": False, "fold_ln": False, "dtype": "bfloat16"}},
    "heads": {"reshape_activations": "hook_z", "hook": "blocks.1.attn.hook_z"},
    **{
        name: {"normalize_activations": name}
        for name in ("expected_average_only_in", "constant_norm_rescale", "layer_norm", "covariance_whitening")
    },
}
NOT_ROWS = ("skip_transcoder", "jumprelu_skip_transcoder", "abstopk", "temporal", "matching_pursuit")
# of the options: by which name each is refused
REFUSED = {name: name for name in list(OPTIONS)[-4:]} | {"heads": "hook_z"}


def made(kind: str, of: Any, cls: Any, loaded: Any = None, hook: str = HOOK, **options: Any) -> Any:
    """A random SAE, None where sae-lens itself has no such option."""
    told = SAEMetadata(hook_name=hook, **({"model_from_pretrained_kwargs": loaded} if loaded else {}))
    torch.manual_seed(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sae = cls(of(d_in=48, d_sae=80, metadata=told, **MORE.get(kind, {}) | options))
    except (TypeError, ValueError):
        return None
    with torch.no_grad():
        for weight in sae.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape))
        if hasattr(sae, "topk_threshold"):
            sae.topk_threshold.fill_(0.7)
    return sae


CASES = [
    pytest.param(kind, training, option, id=f"{kind}{' in training' * training}, {option}")
    for training, registry in enumerate((SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY))
    for kind in registry
    for option in OPTIONS
]


@pytest.mark.parametrize(("kind", "training", "option"), CASES)
def test_every_architecture_with_every_option(kind: str, training: int, option: str, tmp_path: Path) -> None:
    cls, of = (SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY)[training][kind]
    sae = made(kind, of, cls, **OPTIONS[option])
    if sae is None:  # as sae-lens would not save it: only the words of the file are there
        sae = made(kind, of, cls)
        words = {name: value for name, value in OPTIONS[option].items() if name not in ("hook", "loaded")}
    else:
        words = {}
    sae.save_model(tmp_path / "a")
    path = tmp_path / "a" / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | words))
    if kind in NOT_ROWS or words or option in REFUSED:
        name = kind if kind in NOT_ROWS else next(iter(words), REFUSED.get(option, ""))
        with pytest.raises(ValueError, match=name):
            load(tmp_path / "a")
        if not training and not words:  # nor by the constructor
            with pytest.raises(ValueError, match=REFUSED.get(option, kind) if kind not in NOT_ROWS else kind):
                Dictionary(sae, Site(1), "made")
        return
    if training:
        sae.save_inference_model(tmp_path / "b")
        sae = SAE.load_from_disk(tmp_path / "b")
    found = load(tmp_path / "a")
    x = torch.randn(40, 48) + 0.5
    theirs = x - x.mean(-1, keepdim=True) if "centred" in option else x
    with torch.no_grad():
        want, got = sae.encode(theirs), found.encode(x)
        assert (want > 0).any() and bool((got >= 0).all())
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.decode(got), sae.decode(want), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.decode(got), got @ found.rows + found.sae.b_dec, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.before(x)[got > 0], got[got > 0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.target(x), theirs)
        found.save(tmp_path / "again")
        again = load(tmp_path / "again")
        assert again.digest == found.digest and torch.equal(again.encode(x), got)
        assert again.sae.cfg.metadata.hook_name == HOOK


def saved(tmp_path: Path, kind: str = "standard", **metadata: Any) -> Path:
    """A folder of sae-lens's with these metadata."""
    cls, of = SAE_CLASS_REGISTRY[kind]
    made(kind, of, cls).save_model(tmp_path)
    path = tmp_path / "cfg.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"metadata": told["metadata"] | metadata}))
    return tmp_path


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / "cfg.json"
    told = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in told.items() if value is not Ellipsis}))


def test_an_option_that_nobody_knows_is_refused_by_its_name(tmp_path: Path) -> None:
    saved(tmp_path)
    for changes in ({"output_gain": 2.0}, {"output_gain": None}, {"architecture": "hypernet"}):
        with pytest.raises(ValueError, match=next(iter(changes))):
            rewrite(tmp_path, **changes)
            load(tmp_path)
    rewrite(tmp_path, architecture="standard", output_gain=...)
    rewrite(tmp_path, normalize_activations="rms")
    with pytest.raises(ValueError, match="normalize_activations='rms'"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"activation_fn_str": "tanh-relu"}, "activation_fn='tanh-relu'"),
        ({"activation_fn_str": "topk"}, "activation_fn='topk' with {}"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4, "signed": True}}, "signed"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations='layer_norm'"),
        ({"normalize_activations": True}, "normalize_activations='expected_average_only_in'"),
        ({"hook_head_index": 3}, "hook_head_index=3"),
    ],
)
def test_files_of_before_6_0_are_read_with_care(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    saved(tmp_path)
    rewrite(
        tmp_path, metadata=..., architecture=..., hook_point=HOOK, lr=0.1, l1_coefficient=3, activation_fn_str="relu"
    )
    assert load(tmp_path).site == Site(1)
    rewrite(tmp_path, activation_fn_str="topk", activation_fn_kwargs={"k": 4})
    assert int((load(tmp_path).encode(torch.randn(9, 48)) > 0).sum(-1).max()) <= 4
    rewrite(tmp_path, **{"activation_fn_str": "relu", "activation_fn_kwargs": {}} | changes)
    with pytest.raises(ValueError, match=said):
        load(tmp_path)


@pytest.mark.parametrize("k", [0, 81, 2.5, True, None, "4"])
def test_a_k_that_is_none(k: Any, tmp_path: Path) -> None:
    saved(tmp_path, "topk")
    rewrite(tmp_path, k=k)
    with pytest.raises(ValueError, match="k="):
        load(tmp_path)
    rewrite(tmp_path, k=...)
    with pytest.raises(ValueError, match="k=None: a topk dictionary"):
        load(tmp_path)


def test_a_checkpoint_keeps_its_scale_beside_it(tmp_path: Path) -> None:
    cls, of = SAE_TRAINING_CLASS_REGISTRY["batchtopk"]
    sae, x = made("batchtopk", of, cls, normalize_activations="expected_average_only_in"), torch.randn(30, 48)
    sae.save_model(tmp_path)
    (tmp_path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 0.5}))
    got = load(tmp_path).encode(x)
    sae.fold_activation_norm_scaling_factor(0.5)
    sae.save_inference_model(tmp_path / "end")
    assert torch.equal(got, SAE.load_from_disk(tmp_path / "end").encode(x))
    for bad in (0, -1.0, float("nan")):
        (tmp_path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": bad}))
        with pytest.raises(ValueError, match="scaling_factor="):
            load(tmp_path)


# --- where it reads, and in which model -----------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {kind: tiny.load(tmp_path_factory.mktemp(kind), kind) for kind in ("gpt2", "llama")}


@pytest.mark.parametrize("block", ["model.layers", "transformer.h", "gpt_neox.layers", "model.language_model.layers"])
def test_transformers_names_are_the_same_sites(block: str, models: Any, tmp_path: Path) -> None:
    found = load(saved(tmp_path, hook_name=f"{block}.2"), model=models["llama"])
    assert found.site == Site(2)
    assert load(saved(tmp_path, hook_name=f"{block}.2.mlp")).site == Site(2, "mlp_out")
    assert load(found.save(tmp_path / "again"), model=models["llama"]).site == Site(2)


@pytest.mark.parametrize(("kind", "block"), [("gpt2", "transformer.h"), ("llama", "model.layers")])
@pytest.mark.parametrize("part", ["", ".mlp"])
def test_what_comes_out_of_the_module_is_what_the_site_reads(
    kind: str, block: str, part: str, models: Any, tmp_path: Path
) -> None:
    from sae_lens.load_model import HookedProxyLM
    from transformers import AutoModelForCausalLM

    model, name = models[kind], f"{block}.2{part}"
    hf = AutoModelForCausalLM.from_pretrained(tiny.save(tmp_path / "hf", kind)).eval()
    tokens = tiny.prompt(model)
    _, theirs = HookedProxyLM(hf, model.tokenizer, [name]).run_with_cache(tokens, names_filter=[name])
    found = load(saved(tmp_path / "sae", hook_name=name), model=model)
    torch.testing.assert_close(found.activations(model, tokens), theirs[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["model.layers.2.self_attn", "model.norm", "model.embed_tokens", "vision_tower.encoder.layers.2", "layers"]
)
def test_other_modules_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hook_name="):
        load(saved(tmp_path, hook_name=name))


def test_a_module_that_is_no_site_of_this_model(models: Any, tmp_path: Path) -> None:
    found = load(saved(tmp_path, hook_name="model.layers.2.feed_forward"))
    for each in (found, load(found.save(tmp_path / "again"))):
        with pytest.raises(ValueError, match=r"'model.layers.2.feed_forward'; in this model"):
            each.check(models["llama"])


def test_a_centred_dictionary_is_for_models_with_layer_norms(models: Any, tmp_path: Path) -> None:
    folder = saved(tmp_path, model_from_pretrained_kwargs={"center_writing_weights": True})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of how to load the model, which cannot be followed here
        found = load(folder, model=models["gpt2"])
    with pytest.raises(ValueError, match="center_writing_weights"):
        found.check(models["llama"])


def test_a_centred_dictionary_is_measured_on_what_it_gives_back(models: Any) -> None:
    """A perfect one of the stream less its mean explains all of it, and loses nothing."""
    told = SAEMetadata(hook_name=HOOK, model_from_pretrained_kwargs={"center_writing_weights": True})
    cls, of = SAE_CLASS_REGISTRY["standard"]
    sae = cls(of(d_in=48, d_sae=96, metadata=told))
    axes = torch.cat([torch.eye(48), -torch.eye(48)])
    sae.W_enc.data, sae.W_dec.data = axes.T.clone(), axes.clone()
    tokens = torch.cat([tiny.prompt(models["gpt2"], 20, seed=i) for i in range(4)])
    found = evaluate(Dictionary(sae, Site(1), "exact"), models["gpt2"], tokens)
    assert found.explained_variance == pytest.approx(1, abs=1e-5)
    assert found.ce_sae == pytest.approx(found.ce_clean, abs=1e-3)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"model_from_pretrained_kwargs": {"revision": "step3000"}}, "revision='step3000'"),
        ({"model_from_pretrained_kwargs": {"fold_ln": True}, "hook_name": "blocks.1.mlp.hook_in"}, "fold_ln=True"),
        ({"hook_name_out": "blocks.2.hook_mlp_out"}, "hook_name_out='blocks.2.hook_mlp_out'"),
        ({"hook_name_out": "blocks.1.attn.hook_z"}, "hook_name='blocks.1.attn.hook_z'"),
        ({"hook_head_index_out": 0}, "hook_head_index_out=0"),
        ({"hook_name": None}, "no hook_name"),
    ],
)
def test_what_a_dictionary_asks_of_its_model_is_refused_by_name(metadata: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        load(saved(tmp_path, **metadata))


def test_a_store_of_a_folded_dictionary_opens_again(models: Any, tmp_path: Path) -> None:
    folder = saved(tmp_path / "sae", model_from_pretrained_kwargs={"center_writing_weights": True})
    model = models["gpt2"]
    tokens = torch.cat([tiny.prompt(model, 20, seed=i) for i in range(4)])
    FeatureStore.build(load(folder), model, tokens, path=tmp_path / "store")
    assert len(FeatureStore.open(tmp_path / "store", load(folder), model)) == 80
