"""Texts and chats as tokens, with exactly the special tokens that they should have."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kit.models import templates
from kit.models.bridge import runtime

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# of a tokenizer's whole answer the attention_mask says what is padding
Text = str | Tensor | Mapping[str, Any]


def prompt_tokens(model: TransformerBridge, prompt: Text, *, any_end: bool = False) -> Tensor:
    """A prompt as LongTensor ``[1, n]``: a chat message, plain text, or tokens as they are.

    Args:
        any_end: take tokens that end in padding too, as what a model wrote may.

    Raises:
        ValueError: it is empty, has several rows, is padded, exceeds the model's context or holds
            anything but token ids of this model.
    """
    ids = _read(model, prompt, "prompt", True)
    if not any_end:
        _check_padding(model, [prompt], [ids], "prompt")
    return ids[None]


def one_text(model: TransformerBridge, text: Text, name: str = "text") -> Tensor:
    """A plain text, or tokens ``[n]``, ``[1, n]``, as LongTensor ``[n]``.

    Raises:
        ValueError: it is something else, holds no token, is padded, or exceeds the context of a
            model that cannot count further.
    """
    ids = _read(model, text, name, False)
    _check_padding(model, [text], [ids], name)
    return ids


def text_rows(
    model: TransformerBridge, texts: Iterable[Text] | Mapping[str, Any], name: str = "texts", *, prompts: bool = False
) -> list[Tensor]:
    """Several texts as tokens, each a LongTensor ``[n]`` as long as it is.

    Args:
        texts: plain texts and tokens ``[n]``, ``[1, n]``; tokens ``[rows, n]``; or what a tokenizer
            gives of a list, whose ``attention_mask`` says what is padding.
        prompts: read as :func:`prompt_tokens` does, and one may stand alone; else as
            :func:`one_text`.

    Raises:
        ValueError: none, or as those two; names the one.
    """
    if prompts and (isinstance(texts, str) or isinstance(texts, Tensor) and texts.dim() == 1):
        return [prompt_tokens(model, texts)[0]]
    each: list[Any] = []
    if isinstance(texts, Mapping):
        each = _of_tokenizer(texts, name)
    elif isinstance(texts, Iterable) and not isinstance(texts, str) and not hasattr(texts, "columns"):
        each = list(texts)
    if not each:
        raise ValueError(f"{name}={texts!r:.60}: give a list with at least one {'prompt' if prompts else 'text'}")
    rows = [_read(model, text, f"{name}[{i}]", prompts) for i, text in enumerate(each)]
    _check_padding(model, [texts] * len(rows) if isinstance(texts, Mapping) else each, rows, name)
    return rows


def packed(
    model: TransformerBridge, texts: Sequence[str] | Tensor | Mapping[str, Any], context: int = 128, name: str = "texts"
) -> Tensor:
    """Rows of tokens ``[rows, n]`` as they are, or texts as :func:`pack` makes them.

    Raises:
        ValueError: rows with padding, what holds no token ids of this model, or as :func:`pack`.
    """
    if isinstance(texts, Mapping):
        rows = _of_tokenizer(texts, name)
        if len({len(row) for row in rows}) != 1:
            raise ValueError(f"{name}: its rows are padded or differ in length; give the texts, which are then packed")
        texts = torch.stack(rows)
    elif not isinstance(texts, Tensor):
        return pack(model, texts, context)
    _check_ids(model, texts, name, texts.dim() == 2, "texts, or tokens [rows, n]")
    check_context(model, texts.shape[1], name)
    row = _padded(model, texts, packed=True)
    if row is not None:
        raise ValueError(f"{name}: row {row} seems to be padded; give the texts, which are then packed")
    return texts


def check_context(model: TransformerBridge, n: int, name: str, goes_on: bool = True) -> None:
    """Refuse more tokens than a model's context where it has no positions for them; warn where it
    goes on, further than it was trained.

    Args:
        goes_on: False refuses them there too.

    Raises:
        ValueError: names what has n tokens.
    """
    if n <= model.cfg.n_ctx:
        return
    told = f"{name} has {n} tokens, this model's context is {model.cfg.n_ctx}"
    kind = model.cfg.positional_embedding_type
    computed = getattr(model.original_model.config.get_text_config(), "rope_parameters", None)
    if not goes_on or kind == "standard" or kind == "rotary" and not computed:  # both have a table of positions
        raise ValueError(f"{told}: give less text")
    warnings.warn(f"{told}: it was not trained on texts as long", stacklevel=3)


def _read(model: TransformerBridge, given: Any, name: str, prompt: bool) -> Tensor:
    if not isinstance(given, str):
        ids = _row(model, given, name)
    elif prompt and not given.strip():
        raise ValueError(f"{name}='': the prompt is empty")
    else:
        try:
            ids = (chat_tokens if prompt and model.tokenizer.chat_template else text_tokens)(model, given)[0]
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    check_context(model, len(ids), name, goes_on=not prompt)
    return ids


def _row(model: TransformerBridge, given: Any, name: str) -> Tensor:
    """Tokens of one text, however they are held, as LongTensor ``[n]``."""
    if isinstance(given, Mapping):
        rows = _of_tokenizer(given, name)
        if len(rows) != 1:
            raise ValueError(f"{name} holds {len(rows)} rows: give each text by itself")
        given = rows[0]
    if not isinstance(given, Tensor):
        raise ValueError(
            f"{name} is a {type(given).__name__}, {given!r:.40}: give a string or a token tensor, as of kit.chat_tokens"
        )
    one = given.dim() == 1 or given.dim() == 2 and len(given) == 1
    _check_ids(model, given, name, one, "tokens [n] or [1, n]")
    return given.reshape(-1).to(model.cfg.device, torch.long)


def _check_ids(model: TransformerBridge, ids: Tensor, name: str, fits: bool, wanted: str) -> None:
    if not fits or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool or not ids.numel():
        raise ValueError(f"{name} is {ids.dtype} {list(ids.shape)}: give {wanted}")
    low, high = ids.aminmax()
    if int(low) < 0 or int(high) >= model.cfg.d_vocab:
        raise ValueError(f"{name} holds token ids outside 0 to {model.cfg.d_vocab - 1}")


def _of_tokenizer(batch: Mapping[str, Any], name: str) -> list[Tensor]:
    """The rows ``[n]`` of a tokenizer's answer, without what its attention mask leaves out."""
    if "input_ids" not in batch:
        raise ValueError(
            f"{name} has {sorted(map(str, batch))}: give texts, tokens, or a tokenizer's answer with input_ids"
        )
    ids, masks = batch["input_ids"], batch.get("attention_mask")
    if len(ids) and torch.as_tensor(ids[0]).dim() == 0:  # of one text
        ids, masks = [ids], None if masks is None else [masks]
    rows = [torch.as_tensor(row) for row in ids]
    for i, mask in enumerate(() if masks is None else masks):
        at = torch.as_tensor(mask).nonzero()[:, 0].tolist()
        if not at or len(mask) != len(rows[i]) or at[-1] - at[0] + 1 != len(at):
            raise ValueError(f"{name}: attention_mask of row {i} is empty or has a hole; it must leave one text")
        rows[i] = rows[i][at[0] : at[-1] + 1]
    return rows


def _check_padding(model: TransformerBridge, given: Sequence[Any], rows: Sequence[Tensor], name: str) -> None:
    """Refuse padding among rows ``[n]`` that were given as tokens without an attention mask."""
    masked = [isinstance(text, Mapping) and text.get("attention_mask") is not None for text in given]
    which = [i for i, text in enumerate(given) if not isinstance(text, str) and not masked[i]]
    tokens = [rows[i] for i in which]
    batch = len(tokens) > 1 and len({len(row) for row in tokens}) == 1
    bad = _padded(model, torch.stack(tokens) if batch else tokens)
    if bad is not None:
        raise ValueError(
            f"{name}: row {which[bad]} seems to be padded, which the model would read as text; give each "
            "text as long as it is, or all that the tokenizer answers, its attention_mask included"
        )


def _padded(model: TransformerBridge, rows: Tensor | list[Tensor], packed: bool = False) -> int | None:
    """The first of rows ``[rows, n]``, or of several lengths, that begins or ends in padding.

    The padding token twice is that. Once it may be a BOS or a text's end, unless rows of a batch
    differ in it or the token is nothing else. Packed rows begin and end anywhere: there a few may
    hold the ends of two texts, of which the second is empty.
    """
    words = model.tokenizer
    pad = getattr(words, "pad_token_id", None)
    if pad is None or not len(rows):
        return None
    is_pad = [rows == pad] if isinstance(rows, Tensor) else [row == pad for row in rows]
    within = any(bool((some[..., 1:-1] & ~some[..., 2:]).any()) for some in is_pad)
    other = within or pad in (words.bos_token_id, words.eos_token_id)  # it has another use too
    for end in ("front", "back"):
        turned = [some if end == "front" else some.flip(-1) for some in is_pad]
        outer = turned[0] if isinstance(rows, Tensor) else nn.utils.rnn.pad_sequence(turned, batch_first=True)
        run = outer[:, :3].long().cumprod(-1).sum(-1)  # [rows], up to 3
        bad = run >= (3 if packed and other and end == "front" else 2)  # a BOS, then a text's end
        if isinstance(rows, Tensor) and not packed and not bool((run > 0).all()):
            bad |= run > 0
        if end == "back" and not other:
            bad |= run > 0
        if bool(bad.any()) and not (packed and other and float(bad.float().mean()) < 0.1):
            return int(bad.long().argmax())
    return None


def chat_tokens(model: TransformerBridge, user: str, system: str | None = None) -> Tensor:
    """A user message in the model's chat template, up to where the answer starts.

    Args:
        user: the user's message.
        system: a system message; None leaves it to the template.

    Returns:
        LongTensor ``[1, n]`` with exactly the special tokens of the template: pass it on as
        tokens, since a template *string* would be given a second BOS.

    Raises:
        ValueError: an empty message, a tokenizer without a chat template, or one that refuses a
            message or leaves out its words.
    """
    for name, text in (("user", user), ("system", "" if system is None else system)):
        if not isinstance(text, str):
            raise ValueError(f"{name}={text!r:.60}: give a string")
    if not user.strip():
        raise ValueError("user='': the chat message is empty")
    tokenizer, why = runtime(model).tokenizer, ""
    template = model.tokenizer.chat_template  # that may have been given another one
    if not template:
        raise ValueError(f"{model.cfg.model_name!r} has no chat template; use kit.text_tokens(model, text)")
    said = [("system", system)] * (system is not None) + [("user", user)]
    for wrap in (str, lambda text: [{"type": "text", "text": text}]):  # some templates want a list of parts
        messages = [{"role": role, "content": wrap(text)} for role, text in said]
        try:
            shown = templates.apply(
                tokenizer, messages, chat_template=template, add_generation_prompt=True, tokenize=False
            )
        except Exception as error:  # a template raises anything
            why = why or f"refuses it: {error!s:.200}"
            continue
        if all("".join(str(text).split()) in "".join(shown.split()) for _, text in said):
            ids = templates.apply(
                tokenizer,
                messages,
                chat_template=template,
                add_generation_prompt=True,
                return_tensors="pt",
                return_dict=False,
            )
            return ids.to(model.cfg.device)
        why = why or "leaves it out"
    if system is None:
        raise ValueError(f"user={user!r:.60}: this model's chat template {why}; use kit.text_tokens(model, text)")
    chat_tokens(model, user)  # raises where it is not the system message
    raise ValueError(f"system={system!r:.60}: this model's chat template {why}; put it into the user's message")


def text_tokens(model: TransformerBridge, text: str) -> Tensor:
    """Plain text as LongTensor ``[1, n]``, begun as the model's own tokenizer begins it: with a
    BOS, with two tokens (GLM), or with none.

    Raises:
        ValueError: no string, or one that holds no token.
    """
    if not isinstance(text, str):
        raise ValueError(f"text={text!r:.60}: give a string")
    ids = runtime(model).tokenizer(text, add_special_tokens=False).input_ids
    if not ids:
        raise ValueError(f"text={text!r}: it holds no token")
    start = text_start(model)
    if ids[: len(start)] != start:  # a text that says them itself has them once
        ids = [*start, *ids]
    return torch.tensor([ids], device=model.cfg.device)


def text_start(model: TransformerBridge) -> list[int]:
    """The special tokens that the model's own tokenizer puts before a text."""
    state = runtime(model)

    def make() -> list[int]:
        bare = state.tokenizer("a", add_special_tokens=False).input_ids
        full = state.tokenizer("a").input_ids
        return full[: next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)]

    return state.kept("text start", make)


def pack(model: TransformerBridge, texts: Sequence[str], context: int = 128) -> Tensor:
    """Texts as rows of tokens ``[rows, context]``: one after another, cut where a row is full.

    A text ends with the model's end token. Every row starts as the model's own tokenizer begins a
    text. What does not fill the last row is left out.

    Raises:
        ValueError: no texts, a context that the model cannot hold, or too few tokens for one row.
    """
    if isinstance(texts, str) or not len(texts):
        raise ValueError(f"texts={texts!r:.60}: give a list with at least one text")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"texts[{i}]={text!r:.60}: give a string")
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
