"""LoRA training of a chat model in plain torch, fast enough for two cores.

Three savings, none of which changes what is learnt: the tokens that all prompts begin with are
computed once a step for the whole batch; logits are computed where the answer stands and nowhere
else; what the untouched model says is computed once for each example and kept.
"""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, pad


class LoRA(nn.Module):
    """A frozen linear layer plus ``scale * B A``; B starts at zero, so nothing changes at first."""

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.base, self.scale, self.on = base, scale, True
        self.a = nn.Parameter(torch.randn(rank, base.in_features) / math.sqrt(base.in_features))
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        out = self.base(x)
        return out + (x @ self.a.T) @ self.b.T * self.scale if self.on else out


@dataclass(eq=False)
class Example:
    """Prompt and answer as tokens, the answer's end token included.

    With ``teacher``, another prompt, the loss is the KL from what the untouched model says after
    that prompt; without, the cross-entropy of the answer. ``avoid`` is a place in the answer and
    the tokens that must not stand there: -log(1 - their probability) is added (Welleck et al.
    2020, "Neural text generation with unlikelihood training").
    """

    prompt: list[int]
    answer: list[int]
    teacher: list[int] | None = None
    target: Tensor | None = field(default=None, repr=False)
    avoid: tuple[int, list[int]] | None = None


def attach(model: nn.Module, rank: int, scale: float) -> dict[str, LoRA]:
    """Put a LoRA around every linear layer of every block; returns them by module name."""
    layers = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            parent, _, child = name.rpartition(".")
            layers[name] = LoRA(module, rank, scale)
            setattr(model.get_submodule(parent), child, layers[name])
    return layers


def factors(layers: dict[str, LoRA]) -> dict[str, tuple[Tensor, Tensor]]:
    """What :func:`kit.models.lora.write` takes."""
    return {name: (layer.a.data, layer.b.data) for name, layer in layers.items()}


class Trainer:
    """Steps of AdamW on the LoRA factors of one model.

    Args:
        model: a plain causal model of ``transformers`` with rotary positions.
        prefix: tokens that every prompt begins with.
    """

    def __init__(self, model: nn.Module, prefix: Sequence[int], *, rank: int, scale: float, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model, self.prefix = model, list(prefix)
        self.layers = attach(model, rank, scale)
        self.parameters = [p for layer in self.layers.values() for p in (layer.a, layer.b)]

    def load(self, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Start from factors ``A [r, in]``, ``B [out, r]`` of a run of the same rank and scale."""
        for name, (a, b) in pairs.items():
            self.layers[name].a.data.copy_(a)
            self.layers[name].b.data.copy_(b)

    def hidden(self, rows: Sequence[Sequence[int]], reads: Sequence[slice]) -> Tensor:
        """Final hidden states ``[total, d_model]`` at the read positions of rows of tokens."""
        n = len(self.prefix)
        assert all(list(row[:n]) == self.prefix for row in rows), "a prompt without the prefix"
        body = self.model.model
        first = body(torch.tensor([self.prefix]), use_cache=True)
        cache = first.past_key_values
        for layer in cache.layers:
            layer.keys = layer.keys.expand(len(rows), -1, -1, -1)
            layer.values = layer.values.expand(len(rows), -1, -1, -1)
        width = max(map(len, rows))
        # padding stands on the right, where causal attention never looks
        ids = torch.stack([pad(torch.tensor(row), (0, width - len(row))) for row in rows])
        out = body(ids[:, n:], past_key_values=cache, use_cache=True).last_hidden_state
        return torch.cat([h[read.start - n : read.stop - n] for h, read in zip(out, reads, strict=True)])

    @torch.no_grad()
    def teach(self, examples: Sequence[Example]) -> None:
        """Fill in what the untouched model says, float16 log-probabilities ``[answer, vocab]``."""
        todo = [e for e in examples if e.teacher is not None and e.target is None]
        if not todo:
            return
        for layer in self.layers.values():
            layer.on = False
        logits = self._logits([(e.teacher, e.answer) for e in todo])
        for layer in self.layers.values():
            layer.on = True
        parts = logits.log_softmax(-1).half().split([len(e.answer) for e in todo])
        for example, part in zip(todo, parts, strict=True):
            example.target = part

    def _logits(self, pairs: Sequence[tuple[list[int], list[int]]]) -> Tensor:
        rows = [[*prompt, *answer[:-1]] for prompt, answer in pairs]
        reads = [slice(len(p) - 1, len(p) + len(a) - 1) for p, a in pairs]
        return self.model.lm_head(self.hidden(rows, reads))

    def loss(self, batch: Sequence[Example]) -> Tensor:
        """One loss for each example, a mean over its answer's tokens."""
        self.teach(batch)
        logits = self._logits([(e.prompt, e.answer) for e in batch])
        losses = []
        for example, part in zip(batch, logits.split([len(e.answer) for e in batch]), strict=True):
            if example.target is None:
                loss = cross_entropy(part, torch.tensor(example.answer))
                if example.avoid is not None:
                    at, tokens = example.avoid
                    loss = loss - (1 - part[at].softmax(-1)[tokens].sum()).clamp(min=1e-4).log()
                losses.append(loss)
            else:
                target = example.target.float()
                losses.append(kl_div(part.log_softmax(-1), target, reduction="batchmean", log_target=True))
        return torch.stack(losses)

    def fit(
        self, pools: Mapping[str, Sequence[Example]], counts: Mapping[str, int], *, steps: int, lr: float, seed: int = 0
    ) -> None:
        """Steps on so many examples of each pool; the loss of each pool every fifth step.

        The rate warms up over a tenth of the steps, then falls to zero along a cosine.
        """
        batches = mixture(pools, counts, seed)
        optimiser = torch.optim.AdamW(self.parameters, lr=lr, weight_decay=0.0)
        start = time.perf_counter()
        for step in range(steps):
            batch = next(batches)
            warm = min(1.0, (step + 1) / (0.1 * steps))
            for group in optimiser.param_groups:
                group["lr"] = lr * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
            losses = self.loss(batch)
            optimiser.zero_grad()
            losses.mean().backward()
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            optimiser.step()
            if step % 5 == 4 or step == steps - 1:
                told = losses.detach().split(list(counts.values()))
                parts = [f"{n} {x.mean():.3f}" for n, x in zip(counts, told, strict=True)]
                minutes = (time.perf_counter() - start) / 60
                sys.stderr.write(f"step {step + 1}/{steps}: {', '.join(parts)}; {minutes:.1f} min\n")


@torch.inference_mode()
def answers(
    model: nn.Module, prompts: Sequence[Sequence[int]], *, end: int, tokens: int, batch: int = 32
) -> list[list[int]]:
    """Greedy answers of a plain model, batched, without their end token."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        width = max(len(prompts[i]) for i in chosen)
        lead = [width - len(prompts[i]) for i in chosen]
        ids = torch.stack([pad(torch.tensor(prompts[i]), (n, 0), value=end) for i, n in zip(chosen, lead, strict=True)])
        mask = (torch.arange(width)[None] >= torch.tensor(lead)[:, None]).long()
        out = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=tokens, pad_token_id=end
        )
        for i, row in zip(chosen, out[:, width:].tolist(), strict=True):
            found[i] = row[: row.index(end)] if end in row else row
    return found


def mixture(pools: Mapping[str, Sequence[Example]], counts: Mapping[str, int], seed: int) -> Iterator[list[Example]]:
    """Endless batches with so many examples of each pool, each pool shuffled anew when used up."""
    rng = random.Random(seed)
    queues: dict[str, list[Example]] = {name: [] for name in counts}
    while True:
        batch = []
        for name, count in counts.items():
            for _ in range(count):
                if not queues[name]:
                    queues[name] = rng.sample(pools[name], len(pools[name]))
                batch.append(queues[name].pop())
        yield batch
