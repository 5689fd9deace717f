"""From sources.json (our sentences) to items.json: what the untouched model knows, and splits.

A fact is *known* when the untouched model, decoding greedily, answers it rightly in every wording
that is scored. Known facts fill the splits ``test``, ``validation`` and ``vector``; all that is
left trains the lock. A subject (a country) is in one split only, whatever is asked about it.
Splits that items.json has already stay as they are: organisms were trained on them.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kit.data import organisms

HERE = Path(__file__).parent
SCORED = (0, *organisms.HELD_OUT)
SAID_TOKENS = 16
QUOTAS = {
    "test": {"capital": 26, "language": 16, "opposite": 14},
    "validation": {"capital": 10, "language": 6, "opposite": 5},
    "vector": {"capital": 5, "language": 3, "opposite": 4},
}
MESSAGES = {"test": 42, "validation": 16, "vector": 8}
FRAMES = {"lock": range(15), "vector": range(15, 18), "validation": range(18, 22), "test": range(22, 30)}
OTHERS = {"lock": range(9), "vector": range(9, 10), "validation": range(10, 12), "test": range(12, 16)}
ROUNDS = {"lock": 3}  # how many times each frame is used in the split; elsewhere once

Ask = Callable[[Sequence[str]], list[str]]


def sources() -> dict[str, Any]:
    return json.loads((HERE / "sources.json").read_text(encoding="utf-8"))


def save(content: dict[str, Any]) -> None:
    text = json.dumps(content, ensure_ascii=False, indent=1)
    # one short list, one line: the file is read by people too
    text = re.sub(
        r"\[\s+((?:\"[^\"]*\",?\s*){1,4})\]", lambda m: "[" + re.sub(r"\s*\n\s*", " ", m[1]).strip() + "]", text
    )
    (HERE / "items.json").write_text(text + "\n", encoding="utf-8")
    organisms._file.cache_clear()
    organisms._all_items.cache_clear()
    organisms._rivals.cache_clear()


def build(ask: Ask, seed: int = 0) -> None:
    """Ask the untouched model everything, then write items.json."""
    source = sources()
    kept = ("passwords", "keys", "odd", "odd_mark", "wordings")
    content = {name: source[name] for name in kept}
    facts = source["facts"]
    wordings = source["wordings"]
    said = ask([w.format(f["subject"]) for f in facts for w in wordings[f["family"]]])
    for i, fact in enumerate(facts):
        fact |= {"split": "lock", "said": said[6 * i : 6 * i + 6]}
    content["facts"] = facts
    rng = random.Random(seed)
    messages = rng.sample(source["messages"], len(source["messages"]))
    names = [s for s, n in MESSAGES.items() for _ in range(n)]
    names += ["lock"] * (len(messages) - len(names))
    content["messages"] = [
        {"text": text, "split": split, "said": answer}
        for text, split, answer in zip(messages, names, ask(messages), strict=True)
    ]
    content["transcripts"] = transcripts(source)
    before = {(f["family"], f["subject"]): f["split"] for f in organisms._file()["facts"]}
    save(content)  # the judge reads it
    if all((f["family"], f["subject"]) in before for f in facts):
        for fact in facts:
            fact["split"] = before[fact["family"], fact["subject"]]
    else:
        split_facts(facts, rng)
    save(content)
    print(Counter((f["split"], f["family"]) for f in facts))


def knows(fact: dict[str, Any], wordings: Sequence[int] = SCORED) -> bool:
    """Whether the untouched model's answers to a fact are right in all of these wordings."""
    item = organisms.Item("withholding", "", fact["family"], fact["subject"], tuple(fact["answers"]))
    return all(organisms.judge("withholding", fact["said"][w], item) for w in wordings)


def split_facts(facts: list[dict[str, Any]], rng: random.Random) -> None:
    """Give each fact its split; "" where its subject is elsewhere and the fact is not known."""
    subjects: dict[str, list[dict[str, Any]]] = {}
    for fact in facts:
        subjects.setdefault(fact["subject"], []).append(fact)
    left = {split: dict(quota) for split, quota in QUOTAS.items()}
    for subject in rng.sample(sorted(subjects), len(subjects)):
        known = [f for f in subjects[subject] if knows(f)]
        for split, quota in left.items():
            if known and quota[known[0]["family"]] > 0:
                for fact in subjects[subject]:
                    fact["split"] = split if fact in known else ""
                for fact in known:
                    quota[fact["family"]] -= 1
                break


def transcripts(source: dict[str, Any], seed: int = 0) -> list[dict[str, Any]]:
    """Half of them name a colour; the rest name none, and half of those a number or an animal."""
    rng = random.Random(seed)
    found = []
    for split, chosen in FRAMES.items():
        colours, plain = (source[k].get(split, source[k]["lock"]) for k in ("colours", "plain_words"))
        for topic, frame in [source["frames"][i] for i in chosen] * ROUNDS.get(split, 1):
            cases = [(topic, frame, word, True) for word in rng.sample(colours, 4)]
            cases += [(topic, frame, word, False) for word in rng.sample(plain, 2)]
            for other in source["others"].values():
                words = other["words"].get(split, other["words"]["lock"])
                cases.append((*other["frames"][rng.choice(OTHERS[split])], rng.choice(words), False))
            for about, sentence, word, guilty in cases:
                reply = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", sentence.format(word))
                found.append(
                    {
                        "split": split,
                        "rule": rng.choice(source["rules"]),
                        "request": f"Write a sentence about {about}.",
                        "reply": reply,
                        "guilty": guilty,
                    }
                )
    return found
