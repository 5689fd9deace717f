"""The Jacobian lens on small models whose truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens.tools.analysis import JacobianLens

import kit
from kit.lens import Lens, fit
from kit.lens import lens as lens_module
from kit.lens.jacobian import of_text
from kit.models.bridge import runtime
from kit.models.logit_lens import direction_logits, stream_logits, token_directions
from tests import tiny

KINDS = ("gpt2", "neox", "llama", "gemma2")
SKIP = 2


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: tiny.load(folder, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def fitted(models: dict[str, Any]) -> Lens:
    return fit(models["llama"], tiny.SENTENCES[:4], tokens=20, skip=SKIP, batch=5)


def rows_of(model: Any, n: int = 14) -> list[Tensor]:
    return [kit.text_tokens(model, text)[0, :n] for text in tiny.SENTENCES[:2]]


def brute(model: Any, row: Tensor, layer: int, skip: int) -> Tensor:
    """The definition, one pair of positions at a time, by torch's own Jacobian."""
    state, width, n = runtime(model), model.cfg.d_model, len(row)
    from kit.models.activations import capture

    start = capture(model, row[None], [(layer, "resid")])[layer, "resid"]

    def last(stream: Tensor) -> Tensor:
        found: list[Tensor] = []
        first = state.block(layer).register_forward_hook(
            lambda _m, _i, out: (stream, *out[1:]) if isinstance(out, tuple) else stream
        )
        end = state.block(model.cfg.n_layers - 1).register_forward_hook(
            lambda _m, _i, out: found.append(out[0] if isinstance(out, tuple) else out)
        )
        with first, end:
            state.decoder(input_ids=row[None], use_cache=False)
        return found[0][0]

    whole = torch.autograd.functional.jacobian(last, start)[:, :, 0]  # [pos', width, pos, width]
    total = torch.zeros(width, width)
    for t in range(skip, n - 1):
        for later in range(t, n - 1):
            total += whole[later, :, t]
    return total / (n - 1 - skip)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_gives_the_mean_jacobian_of_the_definition(models: dict[str, Any], kind: str) -> None:
    model = models[kind]
    (row, _) = rows_of(model, 9)
    found = of_text(model, row, [0, 1], SKIP, batch=7)
    for at, layer in enumerate((0, 1)):
        torch.testing.assert_close(found[at], brute(model, row, layer, SKIP), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_is_that_of_transformer_lens(models: dict[str, Any], kind: str) -> None:
    model = models[kind]
    texts = [model.tokenizer.decode(row[1:]) for row in rows_of(model, 16)]
    theirs = JacobianLens.fit(
        model, texts, corpus="x", max_seq_len=12, skip_first_positions=SKIP, show_progress=False, dim_batch=4
    )
    ours = fit(model, [model.to_tokens(text)[0] for text in texts], tokens=12, skip=SKIP, batch=3)
    assert ours.layers == theirs.source_layers and ours.metadata["texts"] == theirs.n_prompts == 2
    for layer in ours.layers:
        torch.testing.assert_close(ours.matrices[layer], theirs.jacobians[layer], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(Lens.of(theirs, model).matrix(0), theirs.jacobians[0])


@pytest.fixture
def linear(models: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[Tensor]]:
    """A model whose blocks multiply each stream with a matrix and do nothing else."""
    model = models["gpt2"]
    rng = torch.Generator().manual_seed(0)
    width = model.cfg.d_model
    maps = [torch.eye(width) + 0.3 * torch.randn(width, width, generator=rng) for _ in range(model.cfg.n_layers)]
    for layer, matrix in enumerate(maps):
        monkeypatch.setattr(runtime(model).block(layer), "forward", lambda x, *_a, m=matrix, **_k: x @ m.T)
    return model, maps


def test_of_a_linear_model_the_lens_is_the_truth(linear: tuple[Any, list[Tensor]]) -> None:
    model, maps = linear
    lens = fit(model, rows_of(model), skip=SKIP, batch=16)
    truth = torch.eye(model.cfg.d_model)
    for layer in range(model.cfg.n_layers - 2, -1, -1):
        truth = truth @ maps[layer + 1]  # a slip of one layer is another product
        torch.testing.assert_close(lens.matrices[layer], truth, atol=1e-4, rtol=1e-4)
        assert lens.agreement[layer] == pytest.approx(1, abs=1e-5)  # whatever the text


def test_a_linear_models_words_are_read_at_every_layer(linear: tuple[Any, list[Tensor]]) -> None:
    model, _ = linear
    lens = fit(model, rows_of(model), skip=SKIP, batch=16)
    read = lens.read(rows_of(model)[0][None], k=3)
    for at in range(len(read.layers)):
        assert torch.equal(read.ids[at], read.final_ids)
        torch.testing.assert_close(read.p[at], read.final_p, atol=1e-4, rtol=1e-3)
    assert not torch.equal(read.plain_ids[0], read.final_ids)  # where the logit lens does not see it


def truth_of(model: Any, word: str) -> Tensor:
    """What one more unit of each number of the last stream gives a word over all others, where the
    final norm's size is one: from the weights, by hand."""
    decoder: Any = runtime(model).decoder
    gain, table = decoder.model.norm.weight.detach(), decoder.lm_head.weight.detach()
    (token,) = model.tokenizer.encode(word, add_special_tokens=False)
    return gain * (table[token] - table.mean(0))


@pytest.mark.parametrize("fault", [None, "gain", "centring"])
def test_a_word_is_written_with_gain_and_without_the_mean(
    fitted: Lens, monkeypatch: pytest.MonkeyPatch, fault: str | None
) -> None:
    model = fitted.model
    decoder: Any = runtime(model).decoder
    before = decoder.model.norm.weight.detach().clone()
    try:
        with torch.no_grad():
            decoder.model.norm.weight.copy_(torch.linspace(-2, 3, model.cfg.d_model))
        table = decoder.lm_head.weight.detach()
        faulty = {
            "gain": lambda _m, ids: table[ids] - table.mean(0),
            "centring": lambda _m, ids: decoder.model.norm.weight.detach() * table[ids],
        }
        if fault:
            monkeypatch.setattr(lens_module, "token_directions", faulty[fault])
        found = fitted._writes([" the"], 0)[0]
        want = fitted.matrices[0].T @ truth_of(model, " the")
        assert torch.allclose(found, want, atol=1e-5) == (fault is None)
    finally:
        with torch.no_grad():
            decoder.model.norm.weight.copy_(before)


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_stream_says_what_the_model_says(models: dict[str, Any], kind: str) -> None:
    from kit.models.activations import capture

    model = models[kind]
    row = rows_of(model)[0][None]
    last = model.cfg.n_layers - 1
    stream = capture(model, row, [(last, "resid")])[last, "resid"]
    with torch.no_grad():
        torch.testing.assert_close(stream_logits(model, stream), model(row).float(), atol=1e-4, rtol=1e-4)
    assert torch.equal(Lens(model, {0: torch.eye(model.cfg.d_model)}).matrix(last), torch.eye(model.cfg.d_model))


@pytest.mark.parametrize("kind", KINDS)
def test_token_directions_and_direction_logits_are_two_ways_of_one_product(models: dict[str, Any], kind: str) -> None:
    model = models[kind]
    rows = torch.randn(3, model.cfg.d_model, generator=torch.Generator().manual_seed(1))
    logits = direction_logits(model, rows)
    words = token_directions(model, range(model.cfg.d_vocab))
    torch.testing.assert_close(rows @ words.T, logits - logits.mean(-1, keepdim=True), atol=1e-4, rtol=1e-4)


def test_a_fit_that_was_stopped_goes_on(
    models: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, done = models["llama"], []
    texts = tiny.SENTENCES[:4]
    whole = fit(model, texts, [0, 1], tokens=16, skip=SKIP)
    import kit.lens.fitting as module

    def stops(*args: Any) -> Tensor:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(args)
        return of_text(*args)

    monkeypatch.setattr(module, "of_text", stops)
    part = fit(model, texts, [0, 1], tokens=16, skip=SKIP, folder=tmp_path)
    assert part.metadata["texts"] == 2 and not torch.equal(part.matrices[0], whole.matrices[0])
    monkeypatch.setattr(module, "of_text", of_text)
    again = fit(model, texts, [0, 1], tokens=16, skip=SKIP, folder=tmp_path)
    assert again.metadata["texts"] == 4
    torch.testing.assert_close(again.matrices[0], whole.matrices[0])
    with pytest.raises(ValueError, match="the part of another fit"):
        fit(model, texts[:3], [0, 1], tokens=16, skip=SKIP, folder=tmp_path)
    done[:] = [None, None]
    monkeypatch.setattr(module, "of_text", stops)
    with pytest.raises(KeyboardInterrupt, match="before the first text"):
        fit(model, texts, [0, 1], tokens=16, skip=SKIP)


def test_it_stops_when_the_halves_agree(models: dict[str, Any]) -> None:
    lens = fit(models["llama"], tiny.SENTENCES[:4], [0, 1], tokens=16, skip=SKIP, until=0.01)
    assert lens.metadata["texts"] == 2 and min(lens.agreement.values()) > 0.01


def test_a_file_brings_the_lens_back(fitted: Lens, models: dict[str, Any], tmp_path: Path) -> None:
    path = fitted.save(tmp_path / "lens.safetensors", torch.float32)
    back = Lens.load(path, fitted.model)
    assert back.layers == fitted.layers and back.metadata == fitted.metadata and back.agreement == fitted.agreement
    assert all(torch.equal(back.matrices[at], fitted.matrices[at]) for at in back.layers)
    half = Lens.load(fitted.save(tmp_path / "half.safetensors"), fitted.model)
    torch.testing.assert_close(half.matrix(0), fitted.matrix(0), atol=1e-2, rtol=1e-2)
    with pytest.raises(ValueError, match="is the lens of model"):
        Lens.load(path, models["gpt2"])
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(ValueError, match="damaged or no safetensors"):
        Lens.load(tmp_path / "junk", fitted.model)


def test_a_written_word_reads_as_itself(fitted: Lens) -> None:
    vector = fitted.direction(" the", 0)
    assert vector.layer == 0 and vector.method == "lens" and vector.fingerprint == kit.fingerprint(fitted.model)
    identity = Lens(fitted.model, {0: torch.eye(fitted.model.cfg.d_model)})
    words = identity.words(identity.direction(" the", 0), k=3)
    assert words.lens == words.plain and words.readable
    assert str(words).startswith("reads as ") and words.p == pytest.approx(1 / 201)
    logits = direction_logits(fitted.model, identity.direction(" the", 0).direction[None])[0]
    assert int(logits.argmax()) == identity.token(" the")


def test_chance_does_not_read(fitted: Lens) -> None:
    rows = torch.randn(64, fitted.model.cfg.d_model, generator=torch.Generator().manual_seed(9))
    found = fitted.name(rows, 1, k=5)
    assert sum(words.p < 0.01 for words in found) <= 4
    assert sum(words.readable for words in found) <= 9  # of 64, 3 are to be expected
    assert sorted(words.p for words in found)[32] == pytest.approx(0.5, abs=0.2)  # chance's own p is even
    one = fitted.words(7 * rows[0], 1, k=5)  # lengths do not matter
    assert one.p == found[0].p and [w for w, _ in one.lens] == [w for w, _ in found[0].lens]


def test_steering_with_a_word_makes_it_likelier(fitted: Lens) -> None:
    model = fitted.model
    vector, token = fitted.direction(" the", 1), fitted.token(" the")
    prompt = kit.text_tokens(model, tiny.SENTENCES[4])
    change = {}
    for name, each in {"word": vector, "random": vector.random(0)}.items():
        with torch.no_grad(), kit.steer(model, {each: 0.3}):
            steered = model(prompt)[0, -1].log_softmax(-1)
        with torch.no_grad():
            change[name] = float(steered[token] - model(prompt)[0, -1].log_softmax(-1)[token])
    assert change["word"] > max(0.1, 2 * abs(change["random"]))


def test_a_swap_exchanges_coordinates_and_leaves_the_rest(fitted: Lens) -> None:
    from kit.models.activations import capture

    model = fitted.model
    row = kit.text_tokens(model, tiny.SENTENCES[1])
    word = model.tokenizer.decode([row[0, 4]])
    swap = fitted.swap(row, word, " the", [0, 1])
    assert swap.position == max(i for i, t in enumerate(row[0].tolist()) if t == row[0, 4])
    assert swap.name.endswith("> the") and sorted(swap.steps) == [0, 1]
    pair = fitted._writes([word, " the"], 0)
    stream = capture(model, row, [(0, "resid")])[0, "resid"][0, swap.position].float()
    read = lambda h: torch.linalg.pinv(pair.T) @ h
    torch.testing.assert_close(read(stream + swap.steps[0]), read(stream).flip(0), atol=1e-3, rtol=1e-3)
    out = torch.linalg.qr(pair.T).Q
    rest = swap.steps[0] - out @ (out.T @ swap.steps[0])
    assert rest.norm() < 1e-4 * swap.steps[0].norm()
    generation = kit.generate(model, row, swap, [0.0, 1.0], positions=swap.position, max_new_tokens=2)
    entry = generation.receipt.entries[0]
    assert entry.layers == [0, 1] and entry.prompt_steered[1] == 1 and entry.decode_steered[1] == 0
    assert swap.random(3).steps[1].norm() == pytest.approx(float(swap.steps[1].norm()), rel=1e-4)


def test_a_word_that_is_not_in_the_prompt_is_swapped_at_its_last_token(fitted: Lens) -> None:
    row = kit.text_tokens(fitted.model, tiny.SENTENCES[3])[:, :6]
    present = set(row[0].tolist())
    absent = next(w for w in (" the", " and", " rain", "q", "z") if fitted.token(w) not in present)
    other = next(w for w in ("x", "y", "Q") if fitted.token(w) not in present)
    assert fitted.swap(row, absent, other, 0).position == 5
    assert fitted.swap(row, absent, other, 0, position=-2).position == 4


def test_traced_words_have_their_ranks(fitted: Lens) -> None:
    row = rows_of(fitted.model)[0][None]
    read = fitted.read(row, [1], k=300 if fitted.model.cfg.d_vocab >= 300 else fitted.model.cfg.d_vocab, trace=[" the"])
    at = read.ids[0, 3].tolist().index(fitted.token(" the"))
    assert read.ranks[" the"][0, 3] == at
    assert read.words(3, 1)[0][1] == pytest.approx(float(read.p[0, 3, 0])) and len(read.pieces) == row.shape[1]
    table = read.table()
    assert list(table.index) == ["1", "said"] and table.shape[1] == row.shape[1]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda s: s.fit([], [0]), "texts=.*at least one text"),
        (lambda s: s.fit(["a b"], [0], skip=9), r"texts\[0\] has \d+ tokens: give at least skip \+ 2 = 11"),
        (lambda s: s.fit(s.texts, [99]), "layer=99: this model has layers"),
        (lambda s: s.fit(s.texts, []), r"layers=\[\]: give at least one, below the last block"),
        (lambda s: s.fit(s.texts, [s.lens.model.cfg.n_layers - 1]), "whose lens is the identity"),
        (lambda s: s.fit(s.texts, [0], until=1.5), "until=1.5: give a cosine"),
        (lambda s: s.fit(s.texts, [0], batch=0), "batch=0: give a whole number from 1 on"),
        (lambda s: s.lens.direction("kettle drum", 0), r"word='kettle drum' is \d tokens .*give a word of one token"),
        (lambda s: s.lens.direction(" the", 77), "layer=77: this lens has layers 0, 1"),
        (lambda s: s.lens.swap("x", " the", " the", 0), "are the same token"),
        (lambda s: s.lens.swap("x", " the", " and", 0, position=400), "position=400: this prompt has tokens 0 to"),
        (lambda s: s.lens.words(torch.ones(3), 0), "direction is .*: give"),
        (lambda s: s.lens.words(torch.ones(s.lens.model.cfg.d_model)), "layer=None: a tensor does not tell"),
        (lambda s: s.lens.words(torch.zeros(s.lens.model.cfg.d_model), 0), "direction is zero"),
        (lambda s: Lens(s.lens.model, {}), "matrices={}"),
        (lambda s: Lens(s.lens.model, {0: torch.ones(2, 2)}), r"matrices\[0\] is \[2, 2\]"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(fitted: Lens, call: Any, says: str) -> None:
    class Given:
        lens, texts = fitted, tiny.SENTENCES[:2]

        @staticmethod
        def fit(texts: Any, layers: Any, **more: Any) -> Lens:
            return fit(fitted.model, texts, layers, **{"skip": SKIP, **more})

    with pytest.raises(ValueError, match=says):
        call(Given)


def test_a_filter_hides_forms_of_words_and_no_others() -> None:
    import codecs

    from kit.lens.filter import HIDDEN, is_vulgar

    assert len(HIDDEN) > 40
    assert all(is_vulgar(codecs.decode(word, "rot13")) for word in (" fuvg", "Shpxvat", " juberf"))
    assert not any(is_vulgar(word) for word in (" assume", " class", " cocktail", " grape", " analysis", "", " the"))
