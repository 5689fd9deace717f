"""Rank-one edits: exact algebra, the factor they are, and what is asked of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import kit
from kit.models.activations import capture
from kit.models.bridge import runtime
from kit.sae import pack
from kit.search.rome import PREFIXES, Fact, ask, contributions, key, rank_one_edit, second_moment, subject_end
from kit.steering.rank_one import Factor, export
from tests import tiny

FACT = Fact("A small {} crossed", "boat", " the", " rain")


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    return [sentence for _ in range(12) for sentence in tiny.SENTENCES]


@pytest.fixture
def moment(llama: Any, corpus: list[str]) -> torch.Tensor:
    return second_moment(llama, 1, corpus, context=20)


# --- a change of the MLP's matrix, as an intervention --------------------------------------------


def test_an_mlp_factor_is_a_change_of_the_matrix(model: Any) -> None:
    rng = torch.Generator().manual_seed(0)
    width = model.cfg.d_mlp
    factor = Factor(
        torch.randn(2, width, generator=rng), torch.randn(2, 48, generator=rng), (1, 2), 0.7, "f", site="mlp_out"
    )
    ids = tiny.prompt(model, 12)
    with kit.steer(model, {factor: 0.6}) as receipt:
        steered = model(ids)
    assert receipt.entries[0].layers == [1, 2] and receipt.entries[0].prompt_steered == [12]
    (run,) = [kit.generate(model, ids, factor, [0.6], max_new_tokens=4)]
    kept = []
    with torch.no_grad():
        for layer, a, b in zip((1, 2), factor.reads, factor.writes, strict=True):
            module = runtime(model).projection(layer, "mlp_out")
            change = 0.6 * 0.7 * torch.outer(b, a)
            kept.append((module, module.weight.clone()))
            module.weight += change.T if type(module).__name__ == "Conv1D" else change
    try:
        torch.testing.assert_close(model(ids), steered, rtol=1e-3, atol=1e-3)
        assert kit.generate(model, ids, max_new_tokens=4).texts == run.texts
    finally:
        with torch.no_grad():
            for module, weight in kept:
                module.weight.copy_(weight)


def test_mlp_factors_are_saved_and_exported(llama: Any, tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(0)

    def make(site: Any, width: int) -> Factor:
        read, write = torch.randn(1, width, generator=rng), torch.randn(1, 48, generator=rng)
        return Factor(read, write, (1,), 0.7, site, kit.fingerprint(llama), site=site)

    both = [make("mlp_out", llama.cfg.d_mlp), make("attn_out", 48)]
    again = Factor.load(both[0].save(tmp_path / "f.safetensors"))
    assert again.site == "mlp_out" and torch.equal(again.reads, both[0].reads)
    ids = tiny.prompt(llama, 12)
    folder = export(tmp_path / "lora", llama, both, [0.5, -0.3])
    with kit.steer(llama, {both[0]: 0.5, both[1]: -0.3}):
        steered = llama(ids)
    adapted = kit.load_model(llama.cfg.kit_folder, adapter=folder)
    torch.testing.assert_close(adapted(ids), steered, rtol=1e-3, atol=1e-3)


def test_sites_and_widths_that_do_not_fit(llama: Any) -> None:
    row = torch.ones(1, 48)
    with pytest.raises(ValueError, match=r"site='mlp_in': use 'attn_out', 'mlp_out'"):
        Factor(row, row, (1,), 1.0, "f", site="mlp_in")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"reads 48 numbers at 'mlp_out'; .* the 96 hidden units"):
        with kit.steer(llama, {Factor(row, row, (1,), 1.0, "f", site="mlp_out"): 1.0}):
            raise AssertionError("the block ran")


# --- keys and values -----------------------------------------------------------------------------


def test_the_subject_s_last_token(llama: Any) -> None:
    tokens, at = subject_end(llama, FACT, "Yes. ")
    told = llama.tokenizer.decode(tokens[0, : at + 1].tolist(), skip_special_tokens=True)
    assert told.strip() == "Yes. A small boat"
    with pytest.raises(ValueError, match="ends inside a token"):
        subject_end(llama, Fact("In {}e valley", "th", " a", " rain"))


def test_the_key_is_what_the_matrix_gets(llama: Any) -> None:
    tokens, at = subject_end(llama, FACT)
    got: list[torch.Tensor] = []
    hook = runtime(llama).projection(1, "mlp_out").register_forward_pre_hook(lambda _m, args: got.append(args[0]))
    try:
        runtime(llama).decoder(input_ids=tokens)
    finally:
        hook.remove()
    torch.testing.assert_close(key(llama, 1, FACT, [""]), got[0][0, at].float())


def test_the_second_moment_by_hand(llama: Any, corpus: list[str], moment: torch.Tensor) -> None:
    tokens = pack(llama, corpus, 20)
    keys = capture(llama, tokens, [(1, "neurons")])[1, "neurons"][:, 1:].flatten(0, 1).float()
    torch.testing.assert_close(moment, keys.T @ keys / len(keys), rtol=1e-3, atol=1e-5)


def test_an_edit_maps_the_key_to_the_value(llama: Any, moment: torch.Tensor) -> None:
    edit = rank_one_edit(llama, 1, FACT, moment, steps=80, lr=2.0, limit=60.0)
    assert edit.site == "mlp_out" and edit.layers == (1,)
    before, after = edit.metadata["p_before"], edit.metadata["p_value"]
    assert after > 5 * before, (before, after)
    k = key(llama, 1, FACT)
    # the smallest change in the metric of C: its reading direction is C^-1 k
    soft = moment + 0.01 * moment.diagonal().mean() * torch.eye(len(k))
    direction = torch.linalg.solve(soft, k)
    torch.testing.assert_close(edit.reads[0], direction / direction.norm(), rtol=1e-3, atol=1e-4)
    near = rank_one_edit(llama, 1, FACT, moment, steps=10, lr=2.0, limit=1.5)
    written = near.radius * (near.reads[0] @ k) * near.writes[0]
    limit = capture(llama, subject_end(llama, FACT)[0], [(1, "mlp_out")])[1, "mlp_out"]
    assert float(written.norm()) <= 1.501 * float(limit[0, subject_end(llama, FACT)[1]].norm())
    table = ask(llama, {"fact": [FACT.text]}, (FACT.answer, FACT.other), edit)
    plain = ask(llama, [FACT.text], (FACT.answer, FACT.other))
    assert table["second"].iloc[0] > 2 * plain["second"].iloc[0]
    half = ask(llama, [FACT.text], (FACT.answer, FACT.other), edit, 0.0)
    assert half["second"].iloc[0] == pytest.approx(plain["second"].iloc[0], rel=1e-4)


def test_keeping_the_essence_costs_nothing_where_it_weighs_nothing(llama: Any, moment: torch.Tensor) -> None:
    free = rank_one_edit(llama, 1, FACT, moment, steps=30, lr=2.0, limit=60.0, keep=0.0)
    bound = rank_one_edit(llama, 1, FACT, moment, steps=30, lr=2.0, limit=60.0, keep=50.0)
    assert free.metadata["p_value"] > bound.metadata["p_value"]


# --- what is asked of an edit --------------------------------------------------------------------


@pytest.mark.parametrize("edited", [False, True])
def test_contributions_add_up_to_the_logit_difference(model: Any, edited: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    edit = None
    if edited:
        edit = Factor(
            torch.randn(1, model.cfg.d_mlp, generator=rng),
            torch.randn(1, 48, generator=rng),
            (2,),
            2.0,
            "f",
            site="mlp_out",
        )
    table = contributions(model, FACT.text, (FACT.answer, FACT.other), edit)
    assert len(table) == 1 + 2 * model.cfg.n_layers
    ids = [model.tokenizer(a, add_special_tokens=False).input_ids[0] for a in (" the", " rain")]
    with kit.steer(model, {edit: 1.0} if edit else {}):
        logits = model(kit.text_tokens(model, FACT.text))[0, -1]
    norm = runtime(model).decoder.get_submodule(model.adapter.component_mapping["ln_final"].name)
    bias = getattr(norm, "bias", None)  # LayerNorm's own bias speaks for nobody
    head = runtime(model).decoder.get_output_embeddings().weight
    extra = 0.0 if bias is None else float((head[ids[0]] - head[ids[1]]) @ bias)
    assert table["value"].sum() == pytest.approx(float(logits[ids[0]] - logits[ids[1]]) - extra, rel=1e-3, abs=2e-3)
    plain = contributions(model, FACT.text, (FACT.answer, FACT.other))
    moved = (table["value"] - plain["value"]).abs() > 1e-5
    assert bool(moved.any()) == edited


@pytest.mark.parametrize(
    ("fact", "message"),
    [
        (("no place", "boat", " a", " b"), r"put \{\} where the subject stands"),
        (("{} {}", "boat", " a", " b"), r"put \{\} where the subject stands"),
        (("A {} is", " ", " a", " b"), "none of them may be empty"),
    ],
)
def test_facts_that_make_no_sense(fact: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Fact(*fact)


def test_bad_arguments(llama: Any, moment: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"moment has shape \[3, 3\]: give \[96, 96\]"):
        rank_one_edit(llama, 1, FACT, torch.eye(3))
    with pytest.raises(ValueError, match="start with the same token"):
        rank_one_edit(llama, 1, Fact("A {} is", "boat", " the", " the"), moment)
    with pytest.raises(ValueError, match="layer=9"):
        rank_one_edit(llama, 9, FACT, moment)
    assert PREFIXES[0] == "", "the prompt itself is among those that the value is fitted on"
