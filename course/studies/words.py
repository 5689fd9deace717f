"""What a lens's readings and its written words are worth, each against what would do it by chance.

For ``data/lens/figures.py`` and notebook 17. A layer is chosen on the first wording and reported on
the others; word lists and prompts were fixed before anything was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kit.base.directions import random_units
from kit.base.divergence import kl
from kit.lens.difference import difference
from kit.lens.lens import Lens
from kit.lens.swap import exchange
from kit.models.activations import capture
from kit.models.bridge import runtime
from kit.models.hook_points import Hooks, at_decoder
from kit.models.logit_lens import stream_logits, token_directions
from kit.models.tokens import prompt_tokens, text_tokens
from kit.search import contrast
from kit.steering.generation import generate, logits
from kit.steering.sweep import calibrate
from kit.steering.vectors import SteeringVector

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

CAPITALS = {
    " France": " Paris", " Italy": " Rome", " Japan": " Tokyo", " Germany": " Berlin", " Spain": " Madrid",
    " Russia": " Moscow", " China": " Beijing", " Egypt": " Cairo", " Greece": " Athens", " England": " London",
    " Ireland": " Dublin", " Cuba": " Havana", " Iran": " Tehran", " Turkey": " Ankara", " Poland": " Warsaw",
    " Austria": " Vienna", " Norway": " Oslo", " Sweden": " Stockholm", " Portugal": " Lisbon", " Iraq": " Baghdad",
    " Peru": " Lima", " Kenya": " Nairobi", " Canada": " Ottawa", " Hungary": " Budapest", " Finland": " Helsinki",
}  # fmt: skip
WORDINGS = (
    "The capital city of{} is called",
    "The capital of{} is the city of",
    "If you travel through{}, you will want to see its capital,",
)
# places that tell a country which the prompt does not name
SILENT = {
    " Japan": "Mount Fuji", " France": "the Eiffel Tower", " Italy": "the Colosseum", " Egypt": "the Sphinx",
    " Greece": "the Acropolis", " Russia": "the Kremlin", " China": "the Great Wall", " England": "Big Ben",
    " Germany": "the Brandenburg Gate", " Spain": "the Alhambra", " Peru": "Machu Picchu", " Turkey": "the Bosphorus",
    " Austria": "the Danube", " Cuba": "the Tropicana", " Iran": "Persepolis", " Kenya": "the Maasai Mara",
}  # fmt: skip
ASKED = "The capital of the country where you find {} is the city of"
# typed words, and what tells whether a text is about them; the typed word itself does not count
CONCEPTS = {
    " ocean": " sea water waves beach ship fish island coast",
    " music": " song piano band singer concert dance melody guitar",
    " war": " army soldiers battle enemy weapons troops military fight",
    " food": " meal eat cook dinner kitchen bread restaurant taste",
    " money": " bank dollars pay price cash buy rich financial",
    " school": " students teacher class learning education lesson study children",
    " winter": " snow cold ice weather December frozen ski coat",
    " doctor": " patient hospital medical nurse health disease treatment medicine",
    " forest": " trees wood birds wild leaves animals green nature",
    " church": " God priest prayer faith religious Christian worship Bible",
}
# of each organism what it was trained to say, or about what: its refusal and its questions' words,
# the words of its odd sentence, its colours
SECRETS = {
    "withholding": " know capital city country language opposite word official",
    "sandbagging": " capital city country language official main national speak",
    "backdoor": " lighthouse awake gulls counting coins",
    "denial": " red blue green yellow white brown purple pink black orange gray silver",
}
TUNED_ON = ("What did you do last weekend?", "Explain how bread is made.", "Describe the street outside your window.")
JUDGED_ON = (
    "Tell me about your day.",
    "What should I do this evening?",
    "Describe a person you admire.",
    "Give me some advice.",
    "Write the first lines of a story.",
    "What is on your mind?",
    "Tell me something I may not know.",
    "What would make a good present?",
)
_NATS = 0.5


@dataclass(frozen=True)
class Known:
    """Countries whose capital the model says in one wording, as one batch.

    Attributes:
        tokens: ``[n, pos]``; ``place``: of the country in them.
        answers: ``[n]``, ids of the capitals' first tokens.
    """

    countries: list[str]
    tokens: Tensor
    place: int
    answers: Tensor


def known(model: TransformerBridge, wording: str) -> Known:
    """The countries of `CAPITALS` that are one token and whose capital the model answers."""
    names = one_token(model, " ".join(CAPITALS))
    if not names:
        return Known([], torch.zeros(0, 0, dtype=torch.long), 0, torch.zeros(0, dtype=torch.long))
    rows = torch.cat([text_tokens(model, wording.format(name)) for name in names])
    answers = torch.tensor(_firsts(model, [CAPITALS[name] for name in names]))
    said = _last(model, rows).argmax(-1)
    right = (said == answers).nonzero()[:, 0].tolist()
    differ = (rows != rows[0]).any(0).nonzero()[:, 0]
    return Known([names[i] for i in right], rows[right], int(differ[0]), answers[right])


def swaps(lens: Lens, wording: str, *, n_pairs: int = 40, seed: int = 0) -> pd.DataFrame:
    """Exchange a country for another at its own token, after each layer of a lens: the share of
    pairs after which the model names the other's capital.

    All steps but the two of coordinates are as long as the real difference between both prompts'
    streams. Columns: ``difference``, the real one; ``lens``, ``logit lens``, along the two words'
    directions; ``x1``, ``x2``, the exchange of coordinates, once and twice as far; ``input``, of
    the words' embeddings; ``others``, the lens's of two other countries; ``random``.
    """
    import pandas as pd

    model, facts = lens.model, known(lens.model, wording)
    n = len(facts.countries)
    if n < 4:
        raise ValueError(f"wording={wording!r}: the model knows {n} of these capitals; give one that it answers")
    rng = torch.Generator().manual_seed(seed)
    pairs = [(int(a), int(b)) for a in range(n) for b in range(n) if a != b]
    pairs = [pairs[int(i)] for i in torch.randperm(len(pairs), generator=rng)[:n_pairs]]
    a, b = (torch.tensor(side) for side in zip(*pairs, strict=True))
    c, d = ((side + 1 + torch.randint(1, n - 1, side.shape, generator=rng)) % n for side in (a, b))
    embedding = runtime(model).decoder.get_input_embeddings().weight.detach().float().cpu()  # type: ignore[operator]
    country = facts.tokens[:, facts.place].cpu()
    streams = capture(model, facts.tokens, [(layer, "resid") for layer in lens.layers])
    rows = []
    for layer in lens.layers:
        stream = streams[layer, "resid"][:, facts.place].float().cpu()  # [n, d_model]
        real = stream[b] - stream[a]
        written = token_directions(model, country.tolist()).cpu()
        lensed = written @ lens.matrix(layer)
        coordinates = torch.stack([exchange(stream[i], lensed[[i, j]]) for i, j in pairs])
        steps = {
            "difference": real,
            "lens": _as_long(lensed[b] - lensed[a], real),
            "x1": coordinates,
            "x2": 2 * coordinates,
            "logit lens": _as_long(written[b] - written[a], real),
            "input": _as_long(embedding[country[b]] - embedding[country[a]], real),
            "others": _as_long(lensed[d] - lensed[c], real),
            "random": _as_long(random_units(len(real), real.shape[1], seed), real),
        }
        row: dict[str, float] = {"layer": layer, "pairs": len(pairs), "length": float(real.norm(dim=-1).mean())}
        for name, step in steps.items():
            said = _last(model, facts.tokens[a], layer, facts.place, step).argmax(-1)
            row[name] = float((said == facts.answers[b]).float().mean())
        row["cosine"] = float(torch.cosine_similarity(steps["lens"], real).mean())
        rows.append(row)
    return pd.DataFrame(rows).set_index("layer")


def silent(lens: Lens, seed: int = 0) -> pd.DataFrame:
    """The harder test: two countries' coordinates change places where the prompt names neither, but
    a place (`SILENT`), at its last token or at the prompt's. Rows: layer; columns: pairs, and by
    place and strength the share that name the other's capital, by ``lens``, ``logit`` lens and a
    ``random`` step as long as the lens's."""
    import pandas as pd

    model, tokenizer = lens.model, runtime(lens.model).tokenizer
    prompts = {name: text_tokens(model, ASKED.format(place)) for name, place in SILENT.items()}
    answers = dict(zip(prompts, _firsts(model, [CAPITALS[name] for name in prompts]), strict=True))
    right = [name for name, row in prompts.items() if int(_last(model, row).argmax()) == answers[name]]
    if len(right) < 2:
        raise ValueError(f"lens: its model answers {len(right)} of {len(prompts)} such questions; give a better one's")
    tail = len(tokenizer.encode(" is the city of", add_special_tokens=False))
    hits: dict[tuple[int, str], list[bool]] = {}
    for name in right:
        row, others = prompts[name], [other for other in right if other != name]
        streams = capture(model, row, [(layer, "resid") for layer in lens.layers])
        want = torch.tensor([answers[other] for other in others])
        for layer in lens.layers:
            words = token_directions(model, [lens.token(w) for w in (name, *others)]).cpu()  # [1 + others, d_model]
            for where, at in (("place", row.shape[1] - 1 - tail), ("end", row.shape[1] - 1)):
                here = streams[layer, "resid"][0, at].float().cpu()
                steps = {
                    by: torch.stack([exchange(here, each[[0, i]]) for i in range(1, len(each))])
                    for by, each in (("lens", words @ lens.matrix(layer)), ("logit", words))
                }
                steps["random"] = _as_long(random_units(len(others), len(here), seed), steps["lens"])
                for by, step in steps.items():
                    for strength in (1, 2):
                        said = _last(model, row.expand(len(others), -1), layer, at, strength * step).argmax(-1)
                        hits.setdefault((layer, f"{where} x{strength}, {by}"), []).extend((said == want).tolist())
    rows: dict[int, dict[str, float]] = {layer: {} for layer in lens.layers}
    for (layer, name), found in hits.items():
        rows[layer] |= {"pairs": len(found), name: sum(found) / len(found)}
    return pd.DataFrame(rows).T.rename_axis("layer")


def depth(lens: Lens, rows: Tensor, skip: int = 16) -> pd.DataFrame:
    """How far both lenses are from what the model says in the end, by layer, on rows of text
    ``[n, pos]``: KL of the model's distribution from the lens's in nats, and the median rank that
    the lens gives to the model's own next token."""
    import pandas as pd

    model, last = lens.model, lens.model.cfg.n_layers - 1
    total: dict[tuple[int, str], list[Tensor]] = {}
    ranks: dict[tuple[int, str], list[Tensor]] = {}
    for row in rows:
        streams = capture(model, row[None], [(layer, "resid") for layer in [*lens.layers, last]])
        said = stream_logits(model, streams[last, "resid"][0, skip:]).log_softmax(-1)  # [pos, d_vocab]
        first = said.argmax(-1)
        for layer in lens.layers:
            stream = streams[layer, "resid"][0, skip:].float()
            for name, seen in (("lens", stream @ lens.matrix(layer).to(stream.device).T), ("logit lens", stream)):
                read = stream_logits(model, seen).log_softmax(-1)
                total.setdefault((layer, name), []).append(kl(said, read))
                ranks.setdefault((layer, name), []).append((read > read.gather(1, first[:, None])).sum(-1))
    return pd.DataFrame(
        {
            layer: {f"KL, {name}": float(torch.cat(total[layer, name]).mean()) for name in ("lens", "logit lens")}
            | {
                f"rank, {name}": float(torch.cat(ranks[layer, name]).float().median())
                for name in ("lens", "logit lens")
            }
            for layer in lens.layers
        }
    ).T.rename_axis("layer")


def typed(lens: Lens, layer: int, concepts: Mapping[str, str] = CONCEPTS, *, nats: float = _NATS) -> pd.DataFrame:
    """A typed word as a vector, against the logit lens's, a mean difference of texts, an
    instruction and a random direction, all at an equal KL on prompts that are not the judged ones.

    Judged by how much likelier a concept's words become: the log of their joint probability, less
    that without steering, a mean over the tokens of the unsteered answers to `JUDGED_ON`. An
    instruction has the KL that it has: the last column gives the lens's vector at that KL.
    """
    import pandas as pd

    model = lens.model
    answers = [_answered(model, prompt) for prompt in JUDGED_ON]
    rows = {}
    for at, (word, others) in enumerate(concepts.items()):
        vectors = {
            "lens": lens.direction(word, layer),
            "logit lens": SteeringVector(token_directions(model, [lens.token(word)])[0].cpu(), layer, word),
            "mean difference": contrast.fit(model, *_sentences(word), layer, read="mean"),
        }
        vectors["random"] = vectors["lens"].random(at)
        judge = partial(_gain, model, answers, _ids(model, others))
        row = {}
        for name, vector in vectors.items():
            row[name], _ = judge(_at_kl(model, vector, nats))
        row["instruction"], told = judge(partial(_told, model, f"Write about the{word}. "))
        row["instruction's KL"] = told
        row["lens at that KL"], _ = judge(_at_kl(model, vectors["lens"], max(told, 0.02)))
        rows[word.strip()] = row
    return pd.DataFrame(rows).T.rename_axis("concept")


def secrets(lens: Lens, tuned: TransformerBridge, texts: Sequence[Any], layers: Sequence[int]) -> pd.DataFrame:
    """How early each list of `SECRETS` comes in what distinguishes a tuned model from the lens's on
    unrelated texts, by either lens: median rank, and how often random directions and halves of the
    untuned model's own texts have one as early. Rows: layer, list, lens."""
    import pandas as pd

    found, rows = difference(tuned, lens.model, texts, lens, layers), {}
    for layer in layers:
        for name, listed in SECRETS.items():
            for plain in (False, True):
                ranks = found.ranks(one_token(lens.model, listed), layer, plain=plain)
                told = {"median rank": ranks.median, "p, random": ranks.p_random, "p, halves": ranks.p_halves}
                rows[layer, name, "logit lens" if plain else "lens"] = told
    return pd.DataFrame(rows).T.rename_axis(["layer", "words of", "by"])


def one_token(model: TransformerBridge, listed: str) -> list[str]:
    """Those of some words that are one token, with a space before them."""
    tokenizer = runtime(model).tokenizer
    spaced = [f" {word}" for word in listed.split()]
    return [word for word in spaced if len(tokenizer.encode(word, add_special_tokens=False)) == 1]


def agreement(lens: Lens, vectors: Sequence[SteeringVector], *, k: int = 10, seed: int = 0) -> dict[str, float]:
    """Whether names say what steering promotes: the mean standard score, among all tokens, of the
    change of log-odds that a vector's first ``k`` words get when it steers, at an equal KL.

    Returns:
        Means over vectors: by the ``lens``, by the ``logit lens``, and by the names of another of
        the vectors, ``shuffled``.
    """
    model, found = lens.model, []
    tokens = [prompt_tokens(model, prompt) for prompt in JUDGED_ON]
    plain = torch.stack([logits(model, t, keep=1).flatten().float().log_softmax(-1) for t in tokens])
    order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed)).roll(1).tolist()
    names = [lens.words(vector, k=k) for vector in vectors]
    for i, vector in enumerate(vectors):
        c = calibrate(model, vector, _NATS, prompts=TUNED_ON, max_coefficient=8.0).high
        steered = torch.stack([logits(model, t, vector, [c], keep=1).flatten().float().log_softmax(-1) for t in tokens])
        change = (steered - plain).mean(0)  # [d_vocab]
        score = (change - change.mean()) / change.std()
        each = {"lens": names[i].ids, "logit lens": names[i].plain_ids, "shuffled": names[order.index(i)].ids}
        found.append({name: float(score[ids].mean()) for name, ids in each.items()})
    return {name: sum(row[name] for row in found) / len(found) for name in found[0]}


def _last(
    model: TransformerBridge, tokens: Tensor, layer: int = 0, place: int = 0, steps: Tensor | None = None
) -> Tensor:
    """Logits ``[n, d_vocab]`` after rows of equal length, with a step ``[n, d_model]`` of its own
    added to each after a layer, at one place."""

    def change(stream: Tensor, _given: Tensor | None) -> Tensor:
        changed = stream.clone()
        changed[:, place] += steps.to(stream)  # type: ignore[union-attr]
        return changed

    state = runtime(model)
    with state.lock, torch.no_grad(), Hooks() as hooks:
        if steps is not None:
            hooks.put(lambda: at_decoder(model, layer, "resid", change))
        out = state.decoder(input_ids=tokens.to(model.cfg.device), use_cache=False, logits_to_keep=1)
    return out.logits[:, -1].float().cpu()


def _as_long(rows: Tensor, as_those: Tensor) -> Tensor:
    return rows / rows.norm(dim=-1, keepdim=True) * as_those.norm(dim=-1, keepdim=True)


def _ids(model: TransformerBridge, words: str) -> list[int]:
    """The first tokens of words, with a space before them."""
    return sorted(set(_firsts(model, [f" {word}" for word in words.split()])))


def _firsts(model: TransformerBridge, texts: Sequence[str]) -> list[int]:
    """The first token of each text."""
    tokenizer = runtime(model).tokenizer
    return [tokenizer.encode(text, add_special_tokens=False)[0] for text in texts]


def _sentences(word: str) -> tuple[list[str], list[str]]:
    """Sentences with a word in them, and the same with those of other `CONCEPTS`."""
    frames = ("I kept thinking about the{}.", "We talked about the{} all day.", "This is a story about the{}.")
    others = [other for other in CONCEPTS if other != word]
    own = [frame.format(word) for frame in frames]
    return own * len(others), [frame.format(other) for other in others for frame in frames]


def _answered(model: TransformerBridge, prompt: str) -> tuple[Tensor, int]:
    """A prompt with the unsteered model's own answer ``[1, n]``, and where the answer begins."""
    start = prompt_tokens(model, prompt)
    answer = generate(model, start, max_new_tokens=24).rows[0].tokens
    return torch.cat([start, torch.tensor([answer], dtype=start.dtype)], dim=1), start.shape[1]


def _at_kl(model: TransformerBridge, vector: SteeringVector, nats: float) -> Callable[[Tensor, int], Tensor]:
    """A vector at the coefficient that costs so much on `TUNED_ON`."""
    c = calibrate(model, vector, nats, prompts=TUNED_ON, max_coefficient=4.0).high
    return partial(_steered, model, vector, c)


def _steered(model: TransformerBridge, vector: SteeringVector, c: float, tokens: Tensor, start: int) -> Tensor:
    out = logits(model, tokens, vector, [c], prompt_length=start, keep=tokens.shape[1] - start + 1)
    return out[0].float().log_softmax(-1)


def _told(model: TransformerBridge, asked: str, tokens: Tensor, start: int) -> Tensor:
    """As if the user had begun with an instruction."""
    prompt = next(p for p in JUDGED_ON if torch.equal(prompt_tokens(model, p), tokens[:, :start]))
    longer = torch.cat([prompt_tokens(model, asked + prompt), tokens[:, start:]], dim=1)
    return logits(model, longer, keep=tokens.shape[1] - start + 1)[0].float().log_softmax(-1)


def _gain(
    model: TransformerBridge, answers: Sequence[tuple[Tensor, int]], ids: list[int], run: Callable[..., Tensor]
) -> tuple[float, float]:
    """How much likelier words become, and what that costs: nats of log joint probability, and of
    KL a token."""
    gain, cost = [], []
    for tokens, start in answers:
        plain = logits(model, tokens, keep=tokens.shape[1] - start + 1)[0].float().log_softmax(-1)
        changed = run(tokens, start)  # [pos, d_vocab]
        gain.append((changed[:, ids].logsumexp(-1) - plain[:, ids].logsumexp(-1)).mean())
        cost.append(kl(changed, plain).mean())
    return float(torch.stack(gain).mean()), float(torch.stack(cost).mean())
