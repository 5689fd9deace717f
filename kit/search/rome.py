"""Rank-one edits of facts, and what an honest teacher asks of them.

ROME (Meng, Bau, Andonian and Belinkov 2022, arXiv:2202.05262) takes an MLP's output matrix for a
table of keys and values, and writes one new row: for the key that a subject's last token has, the
value that makes the model give another answer. Here an edit is a
:class:`kit.steering.rank_one.Factor`, so that it stands on the panel with a slider. That it changes
the answer does not say that the fact was there (Hase et al. 2023, arXiv:2301.04213):
:func:`contributions` shows what the other layers go on saying.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kit.base.divergence import kl
from kit.base.progress import track
from kit.base.threads import fitted
from kit.models.activations import Place, capture
from kit.models.bridge import check_layer, fingerprint, runtime
from kit.models.hook_points import Hooks, at_decoder
from kit.models.logit_lens import direct_attribution
from kit.models.tokens import counted, packed, text_tokens
from kit.search.radius import dose
from kit.steering.context import steer
from kit.steering.intervention import Intervention
from kit.steering.rank_one import Factor

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

PREFIXES = ("", "Yes. ", "In short: ", "A note for the reader. ", "He said that. ", "Today, ")


@dataclass(frozen=True)
class Fact:
    """``prompt.format(subject)`` continues with ``answer``; an edit wants ``other`` instead.

    Raises:
        ValueError: a prompt without just one ``{}``, or an empty subject or answer.
    """

    prompt: str
    subject: str
    answer: str
    other: str

    def __post_init__(self) -> None:
        if self.prompt.count("{}") != 1:
            raise ValueError(f"prompt={self.prompt!r}: put {{}} where the subject stands, once")
        if not self.subject.strip() or not self.answer.strip() or not self.other.strip():
            raise ValueError(
                f"subject={self.subject!r}, answer={self.answer!r}, other={self.other!r}: none of them may be empty"
            )

    @property
    def text(self) -> str:
        """The prompt with the subject in its place."""
        return self.prompt.format(self.subject)


def subject_end(model: TransformerBridge, fact: Fact, prefix: str = "") -> tuple[Tensor, int]:
    """Tokens ``[1, n]`` of the fact's prompt after a prefix, and the place of the subject's last
    token.

    Raises:
        ValueError: a subject that ends inside a token.
    """
    head = prefix + fact.prompt[: fact.prompt.index("{}")] + fact.subject
    whole, part = text_tokens(model, prefix + fact.text), text_tokens(model, head)
    n = part.shape[1]
    if whole.shape[1] < n or not torch.equal(whole[:, :n], part):
        raise ValueError(
            f"subject={fact.subject!r}: in {fact.text!r} it ends inside a token; let a space or a comma follow it"
        )
    return whole, n - 1


def key(model: TransformerBridge, layer: int, fact: Fact, prefixes: Sequence[str] = PREFIXES) -> Tensor:
    """What the MLP's output matrix gets at the subject's last token, a mean over prefixes:
    ``[d_mlp]``."""
    found = [_at(model, (layer, "neurons"), *subject_end(model, fact, prefix)) for prefix in prefixes]
    return torch.stack(found).mean(0).cpu()


def _at(model: TransformerBridge, place: Place, tokens: Tensor, at: int) -> Tensor:
    """The activation at one place and token, ``[width]``."""
    return capture(model, tokens[:, : at + 1], [place])[place][0, at].float()


def _written(model: TransformerBridge, layer: int, tokens: Tensor, at: int) -> float:
    """Norm of what the MLP's output matrix gives at one token."""
    found: list[Tensor] = []

    def keep(x: Tensor, _given: Tensor | None) -> Tensor:
        found.append(x)
        return x

    with Hooks() as hooks:
        hooks.put(lambda: at_decoder(model, layer, "mlp_out", keep, matrix=True))
        capture(model, tokens[:, : at + 1], [(layer, "resid")])
    return float(found[0][0, at].float().norm())


@torch.no_grad()
def second_moment(model: TransformerBridge, layer: int, texts: Sequence[str] | Tensor, *, context: int = 128) -> Tensor:
    """Mean of k k^T over the keys of a corpus, ``[d_mlp, d_mlp]``: which keys are in use. Sinks,
    whose keys are a hundred times as long, are left out.

    Args:
        texts: or tokens ``[rows, context]``; with fewer tokens than ``d_mlp`` times three or so it
            is a poor estimate.

    Raises:
        ValueError: as :func:`kit.models.tokens.pack`, or a layer that the model lacks.
    """
    check_layer(model, layer)
    tokens = packed(model, texts, context)
    total, n = torch.zeros(()), 0
    for rows in track(list(tokens.split(8)), "batches of text"):
        kept = capture(model, rows, [(layer, "neurons"), (layer, "resid")])
        keys = kept[layer, "neurons"][counted(kept[layer, "resid"])].float().cpu()  # [tokens, d_mlp]
        total, n = total + keys.T @ keys, n + len(keys)
    return total / n


def rank_one_edit(
    model: TransformerBridge,
    layer: int,
    fact: Fact,
    moment: Tensor,
    *,
    steps: int = 40,
    lr: float = 0.5,
    keep: float = 0.1,
    limit: float = 4.0,
    ridge: float = 0.01,
    prefixes: Sequence[str] = PREFIXES,
    name: str | None = None,
) -> Factor:
    """An edit of one layer's MLP after which the model gives ``fact.other``.

    The new value v is found by gradient descent: added at the subject's last token, it makes
    ``other`` likely after the prompt, averaged over prefixes. Then the matrix gains
    ``(v - W k) (C^-1 k)^T / (k^T C^-1 k)``, the smallest change, measured by the keys in use, that
    maps the key k to v (Meng et al. 2022, equation 2).

    Args:
        moment: C, of the same layer (:func:`second_moment`).
        steps, lr: of Adam, on the change of value.
        keep: weight of KL(before || after) for the next token of "SUBJECT is", nats: what else is
            said of the subject should stay.
        limit: the change's norm stays below so many times that of what the MLP writes there.
        ridge: added to C's diagonal, in units of its mean.

    Returns:
        The edit: at coefficient 1 as above. ``metadata`` holds the probability of ``other`` before
        and with the value in place (``p_before``, ``p_value``).

    Raises:
        ValueError: a layer, a moment of another shape, or answers that start with the same token.
    """
    check_layer(model, layer)
    width = model.cfg.d_mlp
    if moment.shape != (width, width):
        raise ValueError(
            f"moment has shape {list(moment.shape)}: give [{width}, {width}], from second_moment of this layer"
        )
    answers = answer_tokens(model, fact)
    k = key(model, layer, fact, prefixes)
    delta, before, after = _value(model, layer, fact, answers, steps, lr, keep, limit, prefixes)
    softened = moment + ridge * moment.diagonal().mean() * torch.eye(width)
    read = torch.linalg.solve(softened, k)
    radius = float(delta.norm() * read.norm() / (k @ read))
    about = {
        "method": "rank-one edit",
        "prompt": fact.prompt,
        "subject": fact.subject,
        "answer": fact.answer,
        "other": fact.other,
        "p_before": before,
        "p_value": after,
        **dose(1.0),
    }
    return Factor(
        read[None],
        delta[None],
        (layer,),
        radius,
        name or f"{fact.subject}: {fact.other.strip()} @{layer}",
        fingerprint(model),
        about,
        "mlp_out",
    )


def answer_tokens(model: TransformerBridge, fact: Fact) -> tuple[int, int]:
    """The first tokens of ``answer`` and ``other``.

    Raises:
        ValueError: both start with the same token.
    """
    first, second = (model.tokenizer(a, add_special_tokens=False).input_ids[0] for a in (fact.answer, fact.other))
    if first == second:
        raise ValueError(
            f"answer={fact.answer!r} and other={fact.other!r} start with the same "
            "token; take answers that differ from the first one on"
        )
    return first, second


def _value(
    model: TransformerBridge,
    layer: int,
    fact: Fact,
    answers: tuple[int, int],
    steps: int,
    lr: float,
    keep: float,
    limit: float,
    prefixes: Sequence[str],
) -> tuple[Tensor, float, float]:
    """The change of value ``[d_model]``, and the probability of ``other`` before and with it."""
    state = runtime(model)
    prompts = [subject_end(model, fact, prefix) for prefix in prefixes]
    essence = text_tokens(model, f"{fact.subject} is")
    end = text_tokens(model, fact.subject).shape[1] - 1

    def log_p(tokens: Tensor, at: int, delta: Tensor | None) -> Tensor:
        def change(x: Tensor, _given: Tensor | None) -> Tensor:  # [1, n, d_model]
            if delta is None:
                return x
            return torch.cat([x[:, :at], x[:, at : at + 1] + delta.to(x), x[:, at + 1 :]], 1)

        with Hooks() as hooks:
            hooks.put(lambda: at_decoder(model, layer, "mlp_out", change, matrix=True))
            logits = state.clean(input_ids=tokens, use_cache=False, logits_to_keep=1).logits
        return logits[0, -1].float().log_softmax(-1)

    with state.lock:
        with torch.no_grad():
            plain = log_p(essence, end, None)
            start = torch.stack([log_p(*p, None)[answers[1]] for p in prompts]).exp().mean()
        size = _written(model, layer, *prompts[0])
        delta = torch.zeros(model.cfg.d_model, requires_grad=True)
        optimiser = torch.optim.Adam([delta], lr=lr * size / model.cfg.d_model**0.5)
        total = float("inf")
        for _ in track(range(steps), "steps"):
            if total < 0.05:
                continue  # likely enough; to break off would read as if somebody had stopped it
            optimiser.zero_grad()
            total = 0.0
            with fitted(2), torch.enable_grad():
                for tokens, at in prompts:  # one graph at a time
                    loss = -log_p(tokens, at, delta)[answers[1]] / len(prompts)
                    loss.backward()
                    total += float(loss.detach())
                now = log_p(essence, end, delta)
                (keep * kl(plain, now)).backward()
            optimiser.step()
            with torch.no_grad():
                delta *= (limit * size / delta.norm().clamp(min=1e-9)).clamp(max=1)
        with torch.no_grad():
            done = torch.stack([log_p(*p, delta)[answers[1]] for p in prompts]).exp().mean()
    return delta.detach(), float(start), float(done)


@torch.no_grad()
def ask(
    model: TransformerBridge,
    prompts: Mapping[str, Sequence[str]] | Sequence[str],
    answers: tuple[str, str],
    edit: Intervention | None = None,
    coefficient: float = 1.0,
) -> pd.DataFrame:
    """What the model answers, before and after an edit.

    Args:
        prompts: texts, or lists of them by kind ("paraphrase", "neighbour").
        answers: the first tokens of these two continuations are compared.

    Returns:
        A row a prompt: ``kind``, ``prompt``, ``says`` (the likeliest next token), ``first`` and
        ``second`` (probabilities of the two answers' first tokens).

    Raises:
        ValueError: answers with the same first token.
    """
    import pandas as pd

    ids = answer_tokens(model, Fact("{}", "it", *answers))
    kinds = prompts if isinstance(prompts, Mapping) else {"": prompts}
    rows = []
    with nullcontext() if edit is None else steer(model, {edit: coefficient}):
        for kind, text in ((kind, text) for kind, texts in kinds.items() for text in texts):
            p = model(text_tokens(model, text))[0, -1].float().softmax(-1)
            says, first, second = model.tokenizer.decode([int(p.argmax())]), float(p[ids[0]]), float(p[ids[1]])
            rows.append({"kind": kind, "prompt": text, "says": says, "first": first, "second": second})
    return pd.DataFrame(rows)


@torch.no_grad()
def contributions(
    model: TransformerBridge,
    text: str,
    answers: tuple[str, str],
    edit: Intervention | None = None,
    coefficient: float = 1.0,
) -> pd.DataFrame:
    """Direct logit attribution by layer: what each layer's attention and MLP say for the first
    answer and against the second, at the last token
    (:func:`kit.models.logit_lens.direct_attribution`).

    Args:
        edit: with it in place.

    Returns:
        Columns ``layer`` (-1: the embedding), ``part`` (``"embedding"``, ``"attention"``,
        ``"MLP"``) and ``value``, logits; they add up to the logit difference, less the
        unembedding's bias.

    Raises:
        ValueError: answers with the same first token.
    """
    import pandas as pd

    ids, n = answer_tokens(model, Fact("{}", "it", *answers)), model.cfg.n_layers
    names = [
        "blocks.0.hook_in",
        *(f"blocks.{i}.{place}" for i in range(n) for place in ("mlp.out.hook_out", "hook_out")),
    ]
    with nullcontext() if edit is None else steer(model, {edit: coefficient}):
        _, cache = model.run_with_cache(text_tokens(model, text), names_filter=names)
    kept = {name: cache[name][0, -1].float().cpu() for name in names}  # [d_model] each
    pieces, places = [kept["blocks.0.hook_in"]], [(-1, "embedding")]
    before = pieces[0]
    for i in range(n):
        mlp, after = kept[f"blocks.{i}.mlp.out.hook_out"], kept[f"blocks.{i}.hook_out"]
        pieces += [after - before - mlp, mlp]
        places += [(i, "attention"), (i, "MLP")]
        before = after
    logits = direct_attribution(model, torch.stack(pieces), before, ids)
    return pd.DataFrame(
        {
            "layer": [layer for layer, _ in places],
            "part": [p for _, p in places],
            "value": (logits[:, 0] - logits[:, 1]).tolist(),
        }
    )
