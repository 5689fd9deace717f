"""Any device, any dtype: two pretended cards give the numbers of one machine; half precision too.

No card is at hand where these run. :mod:`tests.pretend` stands in for two: real numbers, with
CUDA's rules on what may meet. What it cannot show is speed, and kernels of CUDA itself.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import kit
from kit import sae
from kit.models.activations import residuals
from kit.models.logit_lens import said_by
from kit.models.tokens import counted
from kit.sae import links
from kit.sae.ablation import ablated_text
from kit.sae.compare import importance
from kit.sae.crosscoders import model as crosscoder
from kit.sae.crosscoders import quality as paired_quality
from kit.sae.crosscoders.training import CrosscoderTraining, PairedSource
from kit.sae.latents import Directions, Neurons
from kit.sae.prompt import read_prompt
from kit.sae.steered_latent import Latent
from kit.search import contrast, cpe, dct, melbo, optimise, rome
from kit.search.jacobians import jacobians
from kit.search.layer_slice import LayerSlice
from kit.steering.generation import logits
from tests import pretend, tiny

TEXTS = list(tiny.SENTENCES)
CARD = pretend.CARDS
SAE = {"widths": (1,), "k": 4, "tokens": 640, "batch": 64, "context": 16, "rows": 16}


def ladder(model: Any, vectors: Any, rows: Any, **options: Any) -> list[list[int]]:
    run = kit.generate(model, tiny.prompt(model), vectors, rows, max_new_tokens=5, **options)
    return [row.tokens for row in run.rows]


# What the kit does with a model, each as plain numbers and tensors on the host.


def generating(model: Any, _other: Any) -> list[Any]:
    early, late = tiny.vector(model, 1), tiny.vector(model, 3, 1)
    run = kit.generate(
        model, tiny.prompt(model), [early, late], [None, 0.5, [0.2, None]], max_new_tokens=5, measure=True
    )
    return [
        [row.tokens for row in run.rows],
        [row.kl for row in run.rows[1:]],
        [row.receipt.entries[0].ratios[0][:3] for row in run.rows[1:]],
        ladder(model, early, [None, 0.5], temperature=1.0),
        ladder(model, early, [None, 0.5], positions=slice(-3, None)),
        ladder(model, [early, late], [0.5], op="clamp"),
        ladder(model, late, [0.5], op="ablate"),
        ladder(model, tiny.HeadShift([0, 3]), [None, 0.5]),
        logits(model, tiny.prompt(model), [early, late], [None, 0.5, -0.5]),
    ]


def steering(model: Any, _other: Any) -> list[Any]:
    mask = torch.zeros(2, 12, dtype=torch.bool)
    mask[0, 3] = mask[1, 5] = True
    both = tiny.prompt(model).expand(2, -1)
    with torch.no_grad():
        with kit.steer(model, {tiny.vector(model, 1): 0.5, tiny.vector(model, 3, 3): 0.2}):
            found = [model("The kettle hummed")]
        with kit.steer(model, {tiny.vector(model, 2): [0.5, -0.5]}, positions=mask):
            found.append(model(both.to(model.cfg.device)))
    return found


def reading(model: Any, _other: Any) -> list[Any]:
    v = tiny.vector(model, 2)
    table = kit.sweep(model, v, TEXTS[:1], coefficients=[0.3], targets=(" a", " b"), max_new_tokens=3)
    check = kit.check(model, v, "The kettle hummed", controls=2, max_new_tokens=3)
    heads = contrast.fit_heads(model, TEXTS * 2, [t[::-1] for t in TEXTS * 2], top_k=2)
    return [
        kit.fingerprint(model),
        [kit.residual_scale(model, i) for i in range(4)],
        *(residuals(model, TEXTS, range(4), site=site) for site in ("resid", "z", "mlp_out")),
        residuals(model, [tiny.prompt(model), TEXTS[0]], [3], "mean"),
        table.select_dtypes("number").to_numpy().flatten().tolist(),
        [row.ok for row in check.rows],
        heads.directions,
    ]


def differentiating(model: Any, _other: Any) -> list[Any]:
    prompts = [tiny.prompt(model), tiny.prompt(model, 9, 1)]
    found = []
    for source, target, where in ((1, 3, "all"), (0, 2, slice(-4, None)), (2, 3, "all")):
        piece = LayerSlice(model, prompts, source, target, positions=where)
        rng = torch.Generator().manual_seed(0)
        thetas = torch.randn(3, piece.d_model, generator=rng).to(piece.origin)
        found += [
            piece.delta(thetas),
            piece.vjp(thetas, None)[1],
            piece.jvp(thetas),
            piece.second(thetas),
            piece.second(thetas, thetas),
            piece.kl(thetas),
        ]
    return found


def searching(model: Any, _other: Any) -> list[Any]:
    prompt = tiny.prompt(model)
    piece = LayerSlice(model, prompt, 1, 3)
    some = melbo.fit_slice(piece, 2, radius=3.0, steps=4)
    fitted = dct.fit_map(piece, n_features=4, radius="auto")
    factors = cpe.fit(model, prompt, [1, 2], 3, n_factors=2, radius=0.5, iterations=3)
    tangents = jacobians(model, prompt, [0, 2], "last", n=4)
    one = optimise.fit(model, prompt, " window", 2, steps=3, penalty="kl")
    return [
        torch.stack([v.direction for v in [*some.vectors(), *fitted.vectors(), one]]),
        torch.stack([f.reads for f in factors.factors]),
        factors.table().to_numpy().tolist(),
        ladder(model, factors.factors[0], [None, 1.0]),
        tangents.table().to_numpy().tolist(),
        tangents.spectrum(0),
        tangents.overlaps(2).to_numpy().tolist(),
    ]


def nats(change: Any) -> Any:
    """A difference of two losses, which float32 keeps to a few millionths: to be within 1e-5."""
    return change + 1e-2


def dictionaries(model: Any, _other: Any) -> list[Any]:
    (found,) = sae.train(model, TEXTS * 40, 1, **SAE)
    store = sae.FeatureStore.build(found, model, TEXTS * 4, context=16)
    gone = ablated_text(found, model, tiny.prompt(model)[0], 3)
    quality = sae.evaluate(found, model, TEXTS * 2, context=16)
    latent = Latent(found, 2, top=2.0)
    return [
        found.rows,
        store.value,
        [quality.ce_sae, quality.explained_variance, quality.kl],
        gone.change,
        gone.gradient,
        nats(importance(found, model, tiny.prompt(model), range(8))),
        read_prompt(store, model, TEXTS[0], answers=(" a", " b")).attribution,
        [t for t, _ in sae.logit_lens(model, found.rows[0]).top],
        said_by(model),
        *(ladder(model, latent, [None, 1.0], op=op) for op in ("add", "clamp", "ablate")),
    ]


def linking(model: Any, _other: Any) -> list[Any]:
    (a,), (b,) = (sae.train(model, TEXTS * 40, layer, site, **SAE) for layer, site in ((0, "resid"), (2, "mlp_out")))
    probes = Directions([tiny.vector(model, 2, i) for i in range(3)], model, TEXTS, 0.1)
    units = Neurons(model, 3, 0.5)
    tokens = tiny.prompt(model)
    found = [
        links.links(a, b, model, TEXTS[:3], method=method, context=16).score for method in ("gradient", "ablation")
    ]
    found += [links.links(a, t, model, TEXTS[:2], context=16).score for t in (probes, units)]
    return [
        *found,
        links.ablated(a, b, model, tokens, [0, 1]),
        links.weight_links(a, b, model),
        probes.read(model, TEXTS[0]),
    ]


def editing(model: Any, _other: Any) -> list[Any]:
    fact = rome.Fact("The {} is", "kettle", " loud", " door")
    moment = rome.second_moment(model, 2, TEXTS * 2, context=16)
    edit = rome.rank_one_edit(model, 2, fact, moment, steps=3)
    says = rome.contributions(model, "The kettle", (" loud", " door"), edit)
    asked = rome.ask(model, ["The kettle is"], (" loud", " door"), edit)
    return [edit.reads, edit.writes, says["value"].tolist(), asked["second"].tolist()]


def crossing(model: Any, other: Any) -> list[Any]:
    """The first model is spread over the cards, the second is on the host."""
    pair = model, other
    source = PairedSource(pair, TEXTS * 40, sae.Site(1), batch=64, context=16, rows=16)
    run = CrosscoderTraining(source, widths=(1,), k=6, steps=10, dedicated=(4, 4), dedicated_k=1.0, difference=0.5)
    run.run()
    found, tokens = run.crosscoder(), source.tokens[:4]
    latents = crosscoder.PairedLatents(found, pair, 0)
    store = sae.FeatureStore.build(latents, model, tokens)
    return [
        found.decoder,
        paired_quality.evaluate(found, pair, tokens).explained_variance,
        paired_quality.latent_scaling(found, pair, tokens).error,
        store.value,
        latents.contributions(0, tokens[:1]),
    ]


ENGINES = (generating, steering, reading, differentiating, searching, dictionaries, linking, editing, crossing)
CASES = [(kind, engine) for kind in ("llama", "gpt2", "neox") for engine in ENGINES]


def same(a: Any, b: Any, close: float, at: str = "") -> None:
    if isinstance(a, list | tuple):
        assert len(a) == len(b), at
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, close, f"{at}[{i}]")
    elif isinstance(a, Tensor):
        a, b = a.detach().cpu().double(), b.detach().cpu().double()
        assert torch.allclose(a, b, atol=close * float(a.abs().max()), rtol=close), at
    elif isinstance(a, float):
        assert b == pytest.approx(a, rel=close, abs=close, nan_ok=True), at
    else:
        assert a == b, at


@pytest.mark.parametrize(("kind", "engine"), CASES, ids=lambda x: getattr(x, "__name__", x))
def test_two_cards_give_the_numbers_of_one_machine(kind: str, engine: Callable[..., Any], tiny_model: Any) -> None:
    whole, other = tiny_model(kind), tiny_model("chat")
    want = engine(whole, other)
    with pretend.two_cards(whole.cfg.kit_folder, kind, dtype="float32") as model:
        assert {str(p.device) for p in model.parameters()} == {"cpu:0", "cpu:1"}
        same(want, engine(model, other), 1e-3)
    assert not kit.hooks_left(model)


def test_the_pretended_cards_refuse_what_cuda_refuses() -> None:
    with pretend.Cards(), pretend._Made():
        a, b, host = torch.ones(2, 2).to(CARD[0]), torch.ones(2, 2).to(CARD[1]), torch.ones(2, 2)
        for mixed in (
            lambda: a + b,
            lambda: a @ host,
            lambda: torch.cat([a, host]),
            lambda: host[a > 0],
            lambda: torch.stack([a[0], b[0]]),
            lambda: torch.where(host > 0, a, 0),
        ):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()
        with pytest.raises(RuntimeError, match="generator"):
            torch.randn(2, generator=torch.Generator(), device=CARD[0])
        with pytest.raises(TypeError, match="numpy"):
            a.numpy()
        moved = a + b.to(a) + torch.tensor(2.0) + a[torch.tensor([0, 1])]
        assert moved.device == CARD[0] and moved.tolist() == [[5.0, 5.0]] * 2
        assert moved.cpu().device == host.device and type(moved.cpu()) is Tensor


# What accelerate itself does here, where there is no card.


def test_device_map_through_accelerate(llama: Any) -> None:
    model = kit.load_model(llama.cfg.kit_folder, device_map="auto", dtype="float32")
    assert {str(p.device) for p in model.parameters()} == {"cpu"}
    v, tokens = tiny.vector(llama, 1), tiny.prompt(llama)
    same(logits(llama, tokens, v, [0.5]), logits(model, tokens, v, [0.5]), 1e-5)


def test_what_a_device_map_cannot_do(llama: Any, tmp_path: Path, monkeypatch: Any) -> None:
    folder = llama.cfg.kit_folder
    parts = {"model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu", "model.rotary_emb": "cpu"}
    half = parts | {f"model.layers.{i}": "cpu" if i < 2 else "disk" for i in range(4)}
    monkeypatch.chdir(tmp_path)  # where the offloaded weights would go
    with pytest.raises(ValueError, match=r"leaves weights on disk: the model does not fit"):
        kit.load_model(folder, device_map=half, dtype="float32")
    with pytest.raises(OSError, match="'nobody/no-such-7b' is not on this machine"):
        kit.load_model("nobody/no-such-7b", device_map="auto", dtype="bfloat16")
    with pytest.raises(ValueError, match="untrained=0 with device_map='auto'"):
        kit.load_model(folder, device_map="auto", untrained=0)
    there = importlib.util.find_spec
    monkeypatch.setattr("kit.models.weights.find_spec", lambda name: None if name == "accelerate" else there(name))
    with pytest.raises(ImportError, match="device_map='auto' needs accelerate: pip install"):
        kit.load_model(folder, device_map="auto")


def test_a_mixed_map_is_refused() -> None:
    from kit.models.weights import check_placement

    class Loaded:
        hf_device_map = {"model": 0, "lm_head": "cpu"}

    with pytest.raises(ValueError, match="device_map='auto' leaves weights on cpu: the model"):
        check_placement(Loaded(), "auto")


# Half precision.

HALVES = ("bfloat16", "float16")
ROUGH = {"bfloat16": 2**-8, "float16": 2**-11}  # a rounding


@pytest.fixture(params=HALVES)
def half(request: pytest.FixtureRequest, llama: Any) -> Any:
    return kit.load_model(llama.cfg.kit_folder, dtype=request.param)


def near(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).norm() / a.float().norm())


def test_engines_in_half_precision(half: Any, llama: Any) -> None:
    """Some tens of roundings lie between an embedding and a logit, one after another."""
    unit = ROUGH[str(half.cfg.dtype).removeprefix("torch.")]
    tokens = tiny.prompt(llama)
    for op in ("add", "clamp", "ablate"):
        want, found = (logits(m, tokens, tiny.vector(m, 1), [None, 0.5], op=op) for m in (llama, half))
        assert near(want, found) < 16 * unit
    want, found = (residuals(m, TEXTS, range(4)) for m in (llama, half))
    assert found.dtype == torch.float32 and near(want, found) < 16 * unit
    pieces = [LayerSlice(m, tokens, 1, 3) for m in (llama, half)]
    thetas = 3 * torch.randn(3, 48, generator=torch.Generator().manual_seed(0))
    for make in (LayerSlice.delta, LayerSlice.jvp, lambda p, t: p.vjp(t, None)[1]):
        want, found = (make(p, thetas) for p in pieces)
        assert found.dtype == torch.float32 and near(want, found) < 64 * unit
    spectra = [jacobians(m, tokens, [1], "last", n=4).spectrum(1) for m in (llama, half)]
    assert near(*spectra) < 32 * unit


def test_what_is_ablated_is_gone(half: Any) -> None:
    """A product in half precision keeps eight bits of what it should remove."""
    tokens, v = tiny.prompt(half), tiny.vector(half, 1)
    with kit.steer(half, {v: 1.0}, op="ablate"):
        after = tiny.stream_after(half, 1, tokens)
    d, unit = v.direction, ROUGH[str(half.cfg.dtype).removeprefix("torch.")]
    left = (after.float() @ d).abs() / after.float().norm(dim=-1)
    # the stream itself is rounded once, at random: not along d
    assert float(left.max()) < unit / 2


def test_a_stream_whose_norm_float16_cannot_hold(tmp_path: Path) -> None:
    """Coordinates of some ten thousand are fine, their norm and its square are not."""
    folder = tiny.save(tmp_path, "llama")
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"] *= 0.9 * 65504 / tensors["model.embed_tokens.weight"].abs().max()
    save_file(tensors, file, metadata={"format": "pt"})
    full, half = (kit.load_model(str(folder), dtype=kind) for kind in ("float32", "float16"))
    tokens = tiny.prompt(full)
    assert kit.residual_scale(full, 1) > 65504
    assert kit.residual_scale(half, 1) == pytest.approx(kit.residual_scale(full, 1), rel=1e-2)
    for op in ("add", "ablate", "clamp"):
        runs = [kit.generate(m, tokens, tiny.vector(m, 1), [0.1], op=op, max_new_tokens=3) for m in (full, half)]
        told = [run.receipt.entries[0].ratios[0] for run in runs]
        assert told[1] == pytest.approx(told[0], rel=3e-2) and min(told[1]) > 0
    counts = [counted(torch.full((1, 4, 48), 6e4, dtype=kind)).tolist() for kind in (torch.float32, torch.float16)]
    assert counts[0] == counts[1] == [[False, True, True, True]]


def test_dictionaries_in_half_precision(half: Any, llama: Any) -> None:
    found = [sae.train(m, TEXTS * 40, 1, **SAE)[0] for m in (llama, half)]
    assert found[1].rows.dtype == torch.float32
    figures = [sae.evaluate(d, m, TEXTS, context=16) for d, m in zip(found, (llama, half), strict=True)]
    assert figures[1].explained_variance == pytest.approx(figures[0].explained_variance, abs=0.02)
    assert figures[1].ce_sae == pytest.approx(figures[0].ce_sae, abs=0.05)


_MEMORY = """
import json, resource, sys
import torch, transformer_lens.model_bridge, transformers.models.llama.modeling_llama
import kit
from kit import models
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
model = kit.load_model(sys.argv[1], **json.loads(sys.argv[2]))
size = sum({p.data_ptr(): p.numel() * p.element_size() for p in model.parameters()}.values())
model(torch.arange(3, 11)[None])
print(json.dumps([size, peak() - before, sorted({str(p.dtype) for p in model.parameters()})]))
"""


@pytest.mark.parametrize("how", [{}, {"device_map": "auto"}], ids=["plain", "device_map"])
def test_loading_in_bfloat16_makes_no_second_copy(how: dict[str, Any], tmp_path: Path) -> None:
    sizes = {
        "hidden_size": 768,
        "num_hidden_layers": 10,
        "intermediate_size": 3072,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
    }
    folder = tiny.save(tmp_path, "llama", dtype="bfloat16", **sizes)
    # saved in bfloat16, as hub models are
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    save_file({n: t.bfloat16() for n, t in load_file(file).items()}, file, {"format": "pt"})
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY, str(folder), json.dumps({"dtype": "bfloat16", **how})],
        capture_output=True,
        text=True,
        check=True,
    )
    size, grown, dtypes = json.loads(done.stdout.splitlines()[-1])
    assert dtypes == ["torch.bfloat16"] and size > 180e6
    assert grown < 1.5 * size, (grown, size)  # a second copy would be 2, float32 beside it 3
