"""Texts and chats as tokens, with exactly the special tokens that they should have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kit.models import templates
from kit.models.bridge import runtime

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def prompt_tokens(model: TransformerBridge, prompt: str | Tensor) -> Tensor:
    """A prompt as LongTensor ``[1, n]``: a chat message, plain text, or tokens as they are.

    Raises:
        ValueError: it is empty, has several rows, or holds anything but token ids of this model.
    """
    if isinstance(prompt, str):
        if not prompt.strip():
            raise ValueError("prompt='': the prompt is empty")
        return (chat_tokens if model.tokenizer.chat_template else text_tokens)(model, prompt)
    if not isinstance(prompt, Tensor):
        raise ValueError(f"prompt is a {type(prompt).__name__}: give a string or token tensor")
    ids = prompt.reshape(1, -1) if prompt.dim() == 1 else prompt
    if ids.dim() != 2 or len(ids) != 1 or ids.is_floating_point() or not ids.numel():
        raise ValueError(f"prompt is {prompt.dtype} {list(prompt.shape)}: give tokens [n] or [1, n]")
    if int(ids.min()) < 0 or int(ids.max()) >= model.cfg.d_vocab:
        raise ValueError(f"prompt holds token ids outside 0 to {model.cfg.d_vocab - 1}")
    if ids.shape[1] > model.cfg.n_ctx:
        raise ValueError(f"prompt has {ids.shape[1]} tokens, this model's context is {model.cfg.n_ctx}")
    return ids.to(model.cfg.device)


def chat_tokens(model: TransformerBridge, user: str, system: str | None = None) -> Tensor:
    """A user message in the model's chat template, up to where the answer starts.

    Args:
        user: the user's message.
        system: a system message; None leaves it to the template.

    Returns:
        LongTensor ``[1, n]`` with exactly the special tokens of the template: pass it on as
        tokens, since a template *string* would be given a second BOS.

    Raises:
        ValueError: an empty message, or a tokenizer without a chat template.
    """
    if not user.strip():
        raise ValueError("user='': the chat message is empty")
    tokenizer = runtime(model).tokenizer
    if not tokenizer.chat_template:
        raise ValueError(f"{model.cfg.model_name!r} has no chat template; use kit.text_tokens(model, text)")
    messages = [{"role": "user", "content": user}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    ids = templates.apply(tokenizer, messages, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    return ids.to(model.cfg.device)


def text_tokens(model: TransformerBridge, text: str) -> Tensor:
    """Plain text as LongTensor ``[1, n]``, begun as the model's own tokenizer begins it: with a
    BOS, with two tokens (GLM), or with none.

    Raises:
        ValueError: the text holds no token.
    """
    ids = runtime(model).tokenizer(text, add_special_tokens=False).input_ids
    if not ids:
        raise ValueError(f"text={text!r}: it holds no token")
    start = text_start(model)
    if ids[: len(start)] != start:  # a text that says them itself has them once
        ids = [*start, *ids]
    return torch.tensor([ids], device=model.cfg.device)


def text_start(model: TransformerBridge) -> list[int]:
    """The special tokens that the model's own tokenizer puts before a text."""
    words = runtime(model).tokenizer
    bare = words("a", add_special_tokens=False).input_ids
    full = words("a").input_ids
    return full[: next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)]


def pack(model: TransformerBridge, texts: Sequence[str], context: int = 128) -> Tensor:
    """Texts as rows of tokens ``[rows, context]``: one after another, cut where a row is full.

    A text ends with the model's end token. Every row starts as the model's own tokenizer begins a
    text. What does not fill the last row is left out.

    Raises:
        ValueError: no texts, a context that the model cannot hold, or too few tokens for one row.
    """
    if isinstance(texts, str) or not len(texts):
        raise ValueError(f"texts={texts!r:.60}: give a list with at least one text")
    longest = model.cfg.n_ctx
    if not 2 <= context <= longest:
        raise ValueError(f"context={context!r}: give 2 to {longest} tokens")
    words, start = runtime(model).tokenizer, text_start(model)
    end = [words.eos_token_id] if words.eos_token_id is not None else []
    # a tokenizer's answer takes far more memory than its tokens: a share of the texts at a time
    some = (words(list(texts[at : at + 1000]), add_special_tokens=False).input_ids for at in range(0, len(texts), 1000))
    stream = torch.cat(
        [torch.tensor([token for ids in found for token in (*ids, *end)], dtype=torch.long) for found in some]
    )
    width = context - len(start)
    rows = stream[: len(stream) // width * width].reshape(-1, width)
    if not len(rows):
        raise ValueError(f"texts hold {len(stream)} tokens: one row takes {width}; give more text")
    return torch.cat([torch.tensor(start, dtype=torch.long).expand(len(rows), -1), rows], 1).to(model.cfg.device)


def counted(x: Tensor, sink: float = 10.0) -> Tensor:
    """Which positions of activations ``[rows, pos, width]`` count: all but each row's first, and
    those whose norm exceeds ``sink`` times the row's median, ``[rows, pos]``.

    These attention sinks carry a hundred times the norm of others and no content: they would head
    every list and carry every mean away.
    """
    norm = x.float().norm(dim=-1)
    keep = norm <= sink * norm[:, 1:].median(dim=1, keepdim=True).values
    keep[:, 0] = False
    return keep
