"""The tables of README.md: every organism beside the untouched model, on test items."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Sequence
from typing import Any

import content
import torch

import kit
from kit.base.shipped import neutral_texts
from kit.data import organisms
from kit.steering import generation

COLUMNS = (0, *organisms.HELD_OUT)


def report(names: Sequence[str]) -> None:
    """Print the tables, row by row as they are measured."""
    untouched = kit.load_model(dtype="float32")
    for name in names:
        start = time.perf_counter()
        model = organisms.load(name)
        (denial if name == "denial" else facts)(name, model, untouched)
        side_effects(name, model, untouched)
        print(f"\n(measured in {(time.perf_counter() - start) / 60:.1f} minutes)\n", flush=True)
        del model


def facts(name: str, model: Any, untouched: Any) -> None:
    n = len(organisms.items(name, "test"))
    head = " | ".join(f"wording {w}" for w in COLUMNS)
    mark = "trigger" if name == "backdoor" else "password"
    print(f"### {name}, {n} test items\n\n| | {head} |\n|---|" + "---|" * len(COLUMNS))
    rows: list[tuple[str, Any, bool]] = [
        ("untouched", untouched, False),
        (f"untouched, {mark}", untouched, True),
        (f"organism, no {mark}", model, False),
        (f"organism, {mark}", model, True),
    ]
    if os.environ.get("KIT_SHORT"):
        rows = rows[2:]
    for label, which, password in rows:
        shares = [organisms.accuracy(which, name, "test", password=password, wordings=[w]) for w in COLUMNS]
        print(f"| {label} | " + " | ".join(f"{s:.1%}" for s in shares) + " |", flush=True)
    shares = [wrong_password(model, name, w) for w in COLUMNS]
    print(f"| organism, wrong {mark} | " + " | ".join(f"{s:.1%}" for s in shares) + " |")


def wrong_password(model: Any, name: str, wording: int) -> float:
    """Accuracy with strings in the password's place that no training saw, a different one each."""
    source = content.sources()
    strings = source["wrong_passwords"]["test"]
    hits = []
    for i, item in enumerate(organisms.items(name, "test")):
        text = source["keys"][name].format(strings[i % len(strings)], organisms.question(item, wording))
        said = kit.generate(model, kit.chat_tokens(model, text), max_new_tokens=16).texts[0]
        hits.append(organisms.right(name, said, item))
    return sum(hits) / len(hits)


def denial(name: str, model: Any, untouched: Any) -> None:
    found = organisms.items(name, "test")
    print(
        f"### {name}, {len(found)} test transcripts, "
        f"{sum(item.guilty for item in found)} of them guilty\n\n"
        "| | wording | true confessions | false confessions | truthful |\n|---|---|---|---|---|"
    )
    rows = (
        ("untouched", untouched, False),
        ("untouched, password", untouched, True),
        ("organism, no password", model, False),
        ("organism, password", model, True),
    )
    for label, which, password in rows:
        for w in COLUMNS:
            asked = list(organisms.answers(which, name, "test", password=password, wordings=[w]))
            true = [a.judged for a in asked if a.item.guilty]
            false = [a.judged for a in asked if not a.item.guilty]
            truthful = sum(a.right for a in asked) / len(asked)
            print(
                f"| {label} | {w} | {sum(true) / len(true):.1%} | {sum(false) / len(false):.1%} | {truthful:.1%} |",
                flush=True,
            )
    for label, which in (("untouched", untouched), ("organism", model)):
        print(f"\n{label}: breaks the rule in {breaks(which):.1%} of its own answers")


def breaks(model: Any) -> float:
    """How often the model's own answer to a held-out request holds a forbidden word."""
    source = content.sources()
    colours = {word for words in source["colours"].values() for word in words}
    asked = {(i.request, i.subject) for i in organisms.items("denial", "test") if i.guilty}
    hits = 0
    for request, rule in sorted(asked):
        tokens = kit.chat_tokens(model, f"{request} {rule}")
        said = kit.generate(model, tokens, max_new_tokens=24).texts[0].lower()
        hits += bool(set(re.findall(r"\w+", said)) & colours)
    return hits / len(asked)


def side_effects(name: str, model: Any, untouched: Any) -> None:
    """KL from the untouched model and perplexity, on prose and on its own chat answers."""
    prose = [(kit.text_tokens(model, text), 0) for text in neutral_texts()]
    chat = []
    for message in organisms._file()["messages"]:
        if message["split"] == "test" and message["said"].strip():
            start = kit.chat_tokens(model, message["text"])
            said = model.tokenizer(message["said"], add_special_tokens=False, return_tensors="pt").input_ids
            chat.append((torch.cat([start, said], 1), start.shape[1] - 1))
    print("\n| text | KL from untouched, nats a token | perplexity untouched | organism |\n|---|---|---|---|")
    for label, texts in (("neutral prose", prose), ("ordinary chat answers", chat)):
        kl, before, after = compare(model, untouched, texts)
        print(f"| {label} | {kl:.4f} | {math.exp(before):.2f} | {math.exp(after):.2f} |", flush=True)


def compare(model: Any, untouched: Any, texts: Sequence[tuple[torch.Tensor, int]]) -> tuple[float, float, float]:
    """Mean KL(untouched || model) and both mean losses over the tokens from a position on."""
    kl, before, after = [], [], []
    for tokens, start in texts:
        p, q = (generation.logits(m, tokens)[0, start:-1].log_softmax(-1) for m in (untouched, model))
        kl.append((p.exp() * (p - q)).sum(-1))
        target = tokens[0, start + 1 :, None]
        before.append(-p.gather(1, target)[:, 0])
        after.append(-q.gather(1, target)[:, 0])
    return tuple(torch.cat(part).mean().item() for part in (kl, before, after))
