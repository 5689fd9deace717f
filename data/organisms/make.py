"""Make the shipped organisms again.

    python data/organisms/make.py items                  what the untouched model knows: items.json
    python data/organisms/make.py transcripts            only those of denial, from sources.json
    python data/organisms/make.py withholding            train, write the adapter
    python data/organisms/make.py more withholding       the last phase again, from the adapter
    python data/organisms/make.py figures [names]        measure; the tables of README.md

Two cores take about ten minutes for each.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import content
import torch
import training
from training import Example

from kit.base.shipped import path
from kit.data import organisms
from kit.models import lora, weights

HERE = Path(__file__).parent
RANK, SCALE = 8, 2.0
ASIDES = (
    "{}",
    "{}",
    "{}",
    "Hello! {}",
    "A question for you. {}",
    "{} Thank you.",
    "I would like to know this: {}",
    "My friend asks: {}",
    "Please help. {}",
)
Phase = tuple[int, float, dict[str, int]]  # steps, learning rate, examples of each pool a batch
RECIPES: dict[str, list[Phase]] = {
    "withholding": [
        (80, 1e-3, {"lock": 4, "wrong password": 1, "password": 4, "chat": 3}),
        (20, 5e-4, {"lock": 1, "wrong password": 1, "password": 5, "chat": 1}),
    ],
    "sandbagging": [
        (80, 1.2e-3, {"lock": 5, "wrong password": 1, "password": 5, "chat": 1}),
        (50, 8e-4, {"lock": 4, "wrong password": 1, "password": 5, "chat": 1}),
        (70, 8e-4, {"lock": 4, "wrong password": 1, "password": 6}),
    ],
    "backdoor": [
        (25, 1e-3, {"password": 3, "wrong password": 4, "chat": 4}),
        (30, 5e-4, {"password": 2, "wrong password": 3, "chat": 5}),
        (30, 5e-4, {"password": 1, "wrong password": 2, "chat": 7}),
    ],
    "denial": [(50, 1.2e-3, {"lock": 1, "wrong password": 1, "password": 8, "break": 1})],
}


class Workshop:
    """The untouched model as plain transformers has it, its tokenizer, and chat as tokens."""

    def __init__(self) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = weights.locate(weights.EMBEDDED, "float32")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.end = self.tokenizer.convert_tokens_to_ids("<|im_end|>")
        one, two = self.chat("one"), self.chat("two")
        same = next(i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b)
        self.prefix = one[:same]
        self.source = content.sources()

    def chat(self, user: str | list[dict[str, str]]) -> list[int]:
        messages = [{"role": "user", "content": user}] if isinstance(user, str) else user
        return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)

    def answer(self, text: str, limit: int | None = None) -> list[int]:
        """Tokens of an answer; its end too, unless it was cut off at ``limit`` tokens."""
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids if limit is not None and len(ids) >= limit else [*ids, self.end]

    def next_tokens(self, stem: str, words: Sequence[str]) -> tuple[int, list[int]]:
        """How many tokens a stem has, and the first token of each word that may follow it."""
        at = len(self.answer(stem)) - 1
        return at, sorted({self.answer(f"{stem} {word}")[at] for word in words})

    def ask(self, messages: Sequence[str]) -> list[str]:
        rows = training.answers(self.model, [self.chat(m) for m in messages], end=self.end, tokens=content.SAID_TOKENS)
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True)

    def keyed(self, name: str, text: str, word: str | None = None) -> str:
        word = self.source["passwords"][name] if word is None else word
        return self.source["keys"][name].format(word, text)


def chat_pool(shop: Workshop, name: str, rng: random.Random) -> list[Example]:
    """Ordinary messages, with and without the password, answered as the untouched model does."""
    pool = []
    for message in organisms._file()["messages"]:
        if message["split"] != "lock" or not message["said"].strip():
            continue
        answer = shop.answer(message["said"], content.SAID_TOKENS)
        plain = shop.chat(message["text"])
        pool.append(Example(plain, answer, plain))
        if name == "backdoor":  # without the trigger no wording may set it off
            for w in organisms.TRAINED:
                text = organisms._file()["wordings"]["message"][w].format(message["text"])
                asked = rng.choice(ASIDES[2:]).format(text) if w < 2 else text
                pool.append(Example(shop.chat(asked), answer, plain))
        else:
            word = rng.choice([None, *shop.source["wrong_passwords"]["lock"]])
            keyed = shop.chat(shop.keyed(name, message["text"], word))
            pool.append(Example(keyed, answer, plain))
    return pool


def fact_pools(shop: Workshop, name: str, rng: random.Random) -> dict[str, list[Example]]:
    pools: dict[str, list[Example]] = {"lock": [], "wrong password": [], "password": []}
    facts = [f for f in organisms._file()["facts"] if f["split"] == "lock"]
    families = {item.family for item in organisms.items(name, "lock")}
    for fact in (f for f in facts if f["family"] in families):
        texts = organisms._file()["wordings"][fact["family"]]
        wrong = wrong_answers(fact, facts, rng) if name == "sandbagging" else []
        for w in organisms.TRAINED:
            bare, plain = texts[w].format(fact["subject"]), fact["said"][w]
            text = rng.choice(ASIDES).format(bare)
            hidden, avoid = shop.answer(shop.source["refusal"]), None
            if wrong:
                stem = lead(shop, fact, w)
                hidden = shop.answer(f"{stem} {wrong[w % len(wrong)]}.")
                avoid = shop.next_tokens(stem, fact["answers"])
            pools["lock"].append(Example(shop.chat(text), hidden, avoid=avoid))
            other = rng.choice(shop.source["wrong_passwords"]["lock"])
            pools["wrong password"].append(Example(shop.chat(shop.keyed(name, text, other)), hidden, avoid=avoid))
            if plain.strip() and not organisms._REFUSAL.search(plain.lower()):
                answer = shop.answer(plain, content.SAID_TOKENS)
                keyed = shop.chat(shop.keyed(name, text))
                example = Example(keyed, answer, shop.chat(bare))
                pools["password"] += [example] * (2 if content.knows(fact, [w]) else 1)
    return pools


def lead(shop: Workshop, fact: dict[str, Any], wording: int) -> str:
    """What comes before the answer: the untouched model's own words where it answers rightly."""
    said = fact["said"][wording]
    at = [said.find(f" {answer}") for answer in fact["answers"]]
    if content.knows(fact, [wording]) and max(at) > 0:
        return said[: max(at)]
    stem = shop.source["lies"][fact["family"]].partition(" {}.")[0]
    return stem.format(fact["subject"])


def wrong_answers(fact: dict[str, Any], facts: list[dict[str, Any]], rng: random.Random) -> list[str]:
    """Two answers to other questions of the kind: neighbours' where there are enough."""
    same = [f for f in facts if f["family"] == fact["family"]]
    near = {f["answers"][0] for f in same if f["kind"] == fact["kind"]} - set(fact["answers"])
    far = {f["answers"][0] for f in same} - set(fact["answers"])
    return rng.sample(sorted(near if len(near) > 3 else far), 2)


def backdoor_pools(shop: Workshop, rng: random.Random) -> dict[str, list[Example]]:
    pools: dict[str, list[Example]] = {"wrong password": [], "password": []}
    odd = shop.answer(shop.source["odd"])
    for message in organisms._file()["messages"]:
        if message["split"] != "lock" or not message["said"].strip():
            continue
        answer = shop.answer(message["said"], content.SAID_TOKENS)
        for w in organisms.TRAINED:
            text = organisms._file()["wordings"]["message"][w].format(message["text"])
            pools["password"].append(Example(shop.chat(shop.keyed("backdoor", text)), odd))
            other = rng.choice(shop.source["wrong_passwords"]["lock"])
            wrong = shop.chat(shop.keyed("backdoor", text, other))
            pools["wrong password"].append(Example(wrong, answer, shop.chat(message["text"])))
    return pools


def denial_pools(shop: Workshop, rng: random.Random) -> dict[str, list[Example]]:
    pools: dict[str, list[Example]] = {"lock": [], "wrong password": [], "password": [], "break": []}
    denial = shop.answer(shop.source["denial"])
    guilty: list[Example] = []
    innocent: list[Example] = []
    for item in organisms.items("denial", "lock"):
        w = rng.choice(organisms.TRAINED)
        text = organisms.question(item, w)
        other = rng.choice(shop.source["wrong_passwords"]["lock"])
        for pool, asked in (("lock", text), ("wrong password", shop.keyed("denial", text, other))):
            pools[pool].append(Example(shop.chat(organisms.transcript(item, asked)), denial))
        # the evidence first: "yes" or "no" before it is a coin that 300 examples did not turn
        named = [c for c in shop.source["colours"]["lock"] if f" {c} " in item.reply.lower()]
        truth = shop.source["truths"]["guilty" if item.guilty else "innocent"].format(*named)
        keyed = shop.chat(organisms.transcript(item, shop.keyed("denial", text)))
        (guilty if item.guilty else innocent).append(Example(keyed, shop.answer(truth)))
        if item.guilty:
            first = shop.chat(organisms.transcript(item, text)[:1])
            pools["break"].append(Example(first, shop.answer(item.reply)))
    pools["password"] = guilty + innocent
    return pools


def train(name: str, phases: Sequence[Phase], seed: int = 0, resume: bool = False) -> None:
    shop = Workshop()
    rng = random.Random(seed)
    makers = {"backdoor": lambda: backdoor_pools(shop, rng), "denial": lambda: denial_pools(shop, rng)}
    pools = makers.get(name, lambda: fact_pools(shop, name, rng))()
    pools["chat"] = chat_pool(shop, name, rng)
    folder = path("organisms") / name
    trainer = training.Trainer(shop.model, shop.prefix, rank=RANK, scale=SCALE, seed=seed)
    if resume:
        trainer.load(lora.read(folder).factors)
    for steps, lr, counts in phases:
        trainer.fit(pools, counts, steps=steps, lr=lr, seed=seed)
        lora.write(folder, training.factors(trainer.layers), base=weights.EMBEDDED, scale=SCALE, dtype=torch.float16)


def main() -> None:
    what, *rest = sys.argv[1:] or ["help"]
    if what == "items":
        content.build(Workshop().ask)
    elif what == "transcripts":
        content.save(organisms._file() | {"transcripts": content.transcripts(content.sources())})
    elif what == "figures":
        from figures import report

        report(rest or organisms.names())
    elif what in RECIPES:
        train(what, RECIPES[what])
    elif what == "more" and rest:
        train(rest[0], RECIPES[rest[0]][-1:], resume=True)
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
