"""The decoder of our own against transformers' module tree, and the model whose bridge comes late."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import kit
from kit.models import llama, weights
from kit.models.bridge import LLAMA_PLACES, register, runtime
from kit.models.unopened import Unopened, is_open, opened

TOKENS = torch.randint(90, (2, 9), generator=torch.Generator().manual_seed(0))


def plain(**more: Any) -> Any:
    torch.manual_seed(0)
    shape = {
        "vocab_size": 96,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "max_position_embeddings": 256,
    }
    return LlamaForCausalLM(LlamaConfig(**(shape | more))).eval().requires_grad_(False)


def ours(hf: Any) -> llama.Llama:
    found = llama.over(hf)
    assert found is not None
    return found


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"tie_word_embeddings": True},
        {"num_key_value_heads": 6},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 37.0}},
        {"rms_norm_eps": 0.3},
    ],
)
def test_logits_are_those_of_transformers(more: dict[str, Any]) -> None:
    hf = plain(**more)
    with torch.no_grad():
        wanted = hf(input_ids=TOKENS, use_cache=False).logits
        torch.testing.assert_close(ours(hf)(input_ids=TOKENS).logits, wanted, atol=2e-6, rtol=0)
        embedded = hf.get_input_embeddings()(TOKENS)
        torch.testing.assert_close(
            ours(hf)(inputs_embeds=embedded, logits_to_keep=2).logits, wanted[:, -2:], atol=2e-6, rtol=0
        )
        shifted = hf(input_ids=TOKENS, position_ids=torch.arange(5, 14)[None], use_cache=False).logits
        at = torch.arange(5, 14)[None]
        torch.testing.assert_close(ours(hf)(input_ids=TOKENS, position_ids=at).logits, shifted, atol=2e-6, rtol=0)


@pytest.mark.parametrize("cuts", [[9], [1] * 9, [4, 5], [3, 1, 1, 4]])
def test_a_cache_goes_on_where_it_stopped(cuts: list[int]) -> None:
    hf = plain()
    decoder, found, at = ours(hf), [], 0
    with torch.no_grad():
        wanted = hf(input_ids=TOKENS, use_cache=False).logits
        cache = decoder.cache()
        for n in cuts:
            found.append(decoder(input_ids=TOKENS[:, at : at + n], past_key_values=cache).logits)
            at += n
            assert cache.get_seq_length() == at
    torch.testing.assert_close(torch.cat(found, dim=1), wanted, atol=2e-6, rtol=0)


def test_a_cache_outgrows_its_buffers_and_what_was_read_of_it_stays() -> None:
    layer, step = llama.Layer(), torch.arange(200.0).reshape(1, 1, 200, 1)
    kept = layer.add(step[:, :, :10], -step[:, :, :10])
    for at in range(10, 200):
        layer.add(step[:, :, at : at + 1], -step[:, :, at : at + 1])
    assert torch.equal(layer.keys, step) and torch.equal(layer.values, -step)
    assert torch.equal(kept[0], step[:, :, :10]) and torch.equal(kept[1], -step[:, :, :10])


def test_no_weight_is_copied_and_a_change_reaches_both() -> None:
    hf = plain(tie_word_embeddings=True)
    decoder = ours(hf)
    assert [name for name, _ in hf.named_parameters()] == [name for name, _ in decoder.named_parameters()]
    assert all(a is b for a, b in zip(hf.parameters(), decoder.parameters(), strict=True))
    before = decoder(input_ids=TOKENS).logits
    with torch.no_grad():
        hf.model.layers[1].mlp.down_proj.weight.mul_(3)
        assert not torch.allclose(decoder(input_ids=TOKENS).logits, before)


@pytest.mark.parametrize(
    "more",
    [
        {"attention_bias": True},
        {"mlp_bias": True},
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    ],
)
def test_other_forms_of_llama_keep_the_modules_of_transformers(more: dict[str, Any]) -> None:
    assert llama.over(plain(**more)) is None


def test_what_was_changed_in_memory_keeps_the_modules_of_transformers() -> None:
    class Other(torch.nn.Linear):
        """As a quantised one."""

    hooked, patched, exchanged = plain(), plain(), plain()
    hooked.model.layers[1].register_forward_hook(lambda _m, _i, out: out)
    patched.model.norm.forward = lambda x: x
    exchanged.model.layers[0].mlp.up_proj = Other(48, 80, bias=False)
    assert [llama.over(hf) for hf in (hooked, patched, exchanged)] == [None] * 3


def test_derivatives_of_every_kind_pass_through_a_block() -> None:
    from torch.func import jvp, vjp, vmap

    from kit.base.kernels import plain_kernels

    hf = plain()
    decoder, x = ours(hf), torch.randn(1, 5, 48)
    turn = decoder._turn(x, 0, None)
    rotary = hf.model.rotary_emb(x, torch.arange(5)[None])
    block, theirs = decoder.model.layers[1], hf.model.layers[1]

    def mine(x: torch.Tensor) -> torch.Tensor:
        return block(x, turn)

    def reference(x: torch.Tensor) -> torch.Tensor:
        mask = torch.full((5, 5), float("-inf")).triu(1)[None, None]
        return theirs(x, attention_mask=mask, position_embeddings=rotary)

    directions = torch.randn(4, 1, 5, 48)
    with plain_kernels():
        for f in (mine, reference):
            f.pushed = vmap(lambda v, f=f: jvp(f, (x,), (v,))[1])(directions)  # type: ignore[attr-defined]
            f.pulled = vmap(lambda v, f=f: vjp(f, x)[1](v)[0])(directions)  # type: ignore[attr-defined]
            f.second = jvp(lambda y, f=f: vjp(f, y)[1](directions[0])[0], (x,), (directions[1],))[1]  # type: ignore
    for name in ("pushed", "pulled", "second"):
        torch.testing.assert_close(getattr(mine, name), getattr(reference, name), atol=1e-5, rtol=1e-4)


def test_a_folder_with_other_weights_is_refused(tmp_path: Any) -> None:
    plain().save_pretrained(tmp_path)
    assert llama.stored(tmp_path).shape.d_head == 10
    plain(intermediate_size=64).config.save_pretrained(tmp_path)
    with pytest.raises(OSError, match="kit fetch"):
        llama.stored(tmp_path)


# The bridge that comes late.


def test_steering_needs_neither_transformer_lens_nor_the_models_of_transformers() -> None:
    code = """
import sys, kit
model = kit.load_model()
run = kit.generate(model, "How are you?", kit.data.vector("happy-sad"), [None, 0.2], max_new_tokens=3, measure=True)
kit.assert_clean(model)
heavy = ("transformer_lens", "transformers.modeling_utils", "torch._dynamo", "pandas", "scipy", "sklearn")
print([name for name in heavy if name in sys.modules], type(model).__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] Unopened"


def test_an_unopened_model_becomes_its_bridge_with_what_was_known_of_it() -> None:
    model: Any = kit.load_model(dtype="float32")
    known = {name: value for name, value in vars(vars(model)["cfg"]).items() if name != "_owner"}
    words, state = model.tokenizer, runtime(model)
    vector = kit.data.vector("happy-sad")
    before = kit.generate(model, "How are you?", vector, [None, 0.2], max_new_tokens=4)
    assert not is_open(model) and kit.hooks_left(model) == [] and kit.fingerprint(model)
    from transformer_lens.model_bridge import TransformerBridge

    assert isinstance(model, TransformerBridge) and isinstance(model, torch.nn.Module) and not is_open(model)
    assert opened(model) is model and type(model) is TransformerBridge
    assert {name: getattr(model.cfg, name) for name in known} == known
    assert model.tokenizer is words and runtime(model) is state
    again = kit.generate(model, "How are you?", vector, [None, 0.2], max_new_tokens=4)
    assert again.texts == before.texts
    found = register(model, state.decoder, state.tokenizer)
    try:
        assert dataclasses.replace(found, lock=state.lock, _facts={}, _edits=0) == dataclasses.replace(
            state, _facts={}, _edits=0
        )
        assert (found.parts, found.mlp_norm) == (LLAMA_PLACES["parts"], LLAMA_PLACES["mlp_norm"])
    finally:
        kit.models.bridge.hold(model, state)
    mine = {id(p) for p in state.decoder.parameters()}
    assert mine <= {id(p) for p in model.original_model.parameters()}  # which adds a bias of zeros
    assert not model.original_model.training and not any(p.requires_grad for p in model.parameters())
    hf = AutoModelForCausalLM.from_pretrained(weights.fetch("bfloat16"), dtype=model.cfg.dtype)
    with torch.no_grad():
        logits = [m(input_ids=TOKENS[:1]).logits for m in (hf, state.decoder, model.original_model)]
    for given in logits[1:]:
        torch.testing.assert_close(given, logits[0], atol=1e-3, rtol=1e-3)


class _Made:
    def __init__(self) -> None:
        self.cfg, self.inside = "cfg", "inside"

    def __call__(self, x: int) -> int:
        return x + 1


@pytest.mark.parametrize(
    "ask",
    [
        lambda m: m.inside == "inside",
        lambda m: m(1) == 2,
        lambda m: "inside" in dir(m),
        lambda m: "_Made" in repr(m),
        lambda m: setattr(m, "inside", 3) is None and m.inside == 3,
        lambda m: copy.copy(m).inside == "inside",
    ],
)
def test_whatever_is_asked_opens_it(ask: Any) -> None:
    model: Any = Unopened(_Made, {"cfg": "known"})
    assert model.cfg == "known" and not is_open(model)
    assert ask(model)
    assert is_open(model) and type(model) is _Made and model.cfg == "cfg"


def test_it_is_made_once_by_threads_that_ask_together_and_again_after_a_failure() -> None:
    made: list[int] = []
    start = threading.Barrier(4)

    def make() -> _Made:
        made.append(1)
        if len(made) == 1:
            raise OSError("no room")
        return _Made()

    model: Any = Unopened(make, {"cfg": "known"})
    with pytest.raises(OSError, match="no room"):
        model.inside
    assert not is_open(model)
    found: list[str] = []

    def ask() -> None:
        start.wait()
        found.append(model.inside)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["inside"] * 4 and len(made) == 2


def test_the_embedded_model_takes_a_tokenizer_of_the_users(tmp_path: Any) -> None:
    words = copy.deepcopy(runtime(kit.load_model()).tokenizer)
    words.save_pretrained(tmp_path)
    assert runtime(kit.load_model(tokenizer=words)).tokenizer is words
    assert runtime(kit.load_model(tokenizer=tmp_path)).tokenizer("a").input_ids == words("a").input_ids
    with pytest.raises(TypeError, match="tokenizer is a int"):
        kit.load_model(tokenizer=3)
