"""Tiny random models, saved the way real ones are and loaded through ``kit.load_model``.

Random weights make sharp tests of plumbing: nothing is nearly zero, no two positions are alike,
and a slip of one layer, row or position changes every number.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

KINDS = ("gpt2", "neox", "llama")  # gemma2, whose cache slides, has tests of its own
CONTEXT = 256
SENTENCES = (
    "The kettle hummed while rain ran down the kitchen window and nobody spoke of the letter.",
    "A small boat crossed the bay at noon, carrying lemons, rope and three quiet passengers.",
    "She counted the steps twice, wrote the number in a notebook and closed the heavy door.",
    "In the valley the trains are late, the bread is warm and the bells ring every hour.",
    "Twelve old clocks stood in the shop, and each of them told a different time.",
)
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}model: {% endif %}"
)


def tokenizer(*, chat: bool = False, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE of about 300 tokens; ``adds_bos`` as Llama's tokenizers do by themselves."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<bos>", "<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(SENTENCES, trainer)
    if adds_bos:
        bpe.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    if chat:
        fast.chat_template = TEMPLATE
    return fast


def config(kind: str, vocabulary: int, **changes: Any) -> Any:
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    shared = {"vocab_size": vocabulary, "initializer_range": 0.2, "tie_word_embeddings": False}
    shared |= ids | changes
    if kind == "gpt2":
        sizes = {"n_positions": CONTEXT, "n_embd": 48, "n_layer": 4, "n_head": 4}
        off = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
        return GPT2Config(**sizes, **off, **shared)
    sizes = {
        "hidden_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "max_position_embeddings": CONTEXT,
    }
    if kind == "neox":
        return GPTNeoXConfig(**sizes | shared)
    if kind == "llama":
        return LlamaConfig(**sizes | {"num_key_value_heads": 2} | shared)
    if kind == "gemma2":  # every second layer sees six tokens back: its cache is cut as it grows
        window = {"sliding_window": 6, "head_dim": 12, "query_pre_attn_scalar": 12}
        return Gemma2Config(**sizes, num_key_value_heads=2, **window, **shared)
    raise ValueError(f"kind={kind!r}")


def save(folder: Path, kind: str, *, seed: int = 0, chat: bool = False, **changes: Any) -> Path:
    """Write a random float32 model and its tokenizer to ``folder``."""
    words = tokenizer(chat=chat, adds_bos=kind == "llama")
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config(kind, len(words), **changes))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(0, 0.1)  # transformers starts biases at zero, which hides slips
    model.to(torch.float32).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def load(folder: Path, kind: str, **options: Any) -> Any:
    """Save a tiny model and load it with ``kit.load_model`` in float32."""
    import kit

    return kit.load_model(str(save(folder, kind, **options)), dtype="float32")


def vector(model: Any, layer: int, seed: int = 0, **fields: Any) -> Any:
    """A random steering vector that belongs to the model."""
    import kit

    direction = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(seed))
    mark = kit.fingerprint(model)
    return kit.SteeringVector(direction, layer, f"v{seed}@{layer}", fingerprint=mark, **fields)


class HeadShift:
    """An intervention on the heads' outputs: directions at the "z" site of some layers."""

    fingerprint = None

    def __init__(self, layers: list[int], scale: float = 3.0, seed: int = 5) -> None:
        self.name, self.layers, self.scale, self.seed = f"heads {layers}", layers, scale, seed

    def parts(self, model: Any) -> list[Any]:
        from kit.steering.intervention import Part

        rng = torch.Generator().manual_seed(self.seed)
        width = model.cfg.n_heads * model.cfg.d_head
        directions = [torch.randn(width, generator=rng) for _ in self.layers]
        return [Part(layer, "z", d / d.norm(), self.scale) for layer, d in zip(self.layers, directions, strict=True)]


def prompt(model: Any, n: int = 12, seed: int = 0) -> torch.Tensor:
    """A prompt of n tokens ``[1, n]``: the BOS and ordinary words."""
    rng = torch.Generator().manual_seed(seed)
    words = torch.randint(3, 300, (1, n - 1), generator=rng)
    return torch.cat([torch.zeros(1, 1, dtype=torch.long), words], dim=1)


def stream_after(model: Any, layer: int, tokens: torch.Tensor, **options: Any) -> torch.Tensor:
    """The residual stream after a block ``[rows, pos, d_model]``, read by the bridge's own cache.

    One hook later than any steering hook, so inside ``kit.steer`` it is the steered stream.
    """
    name = f"blocks.{layer}.hook_out"
    _, cache = model.run_with_cache(tokens, names_filter=[name], **options)
    return cache[name].detach().clone()


def greedy(model: Any, tokens: torch.Tensor, n: int) -> list[list[int]]:
    """The slowest decode there is: the whole text again for every token, through the bridge."""
    start = tokens.shape[1]
    for _ in range(n):
        tokens = torch.cat([tokens, model(tokens)[:, -1].argmax(-1, keepdim=True)], dim=1)
    return tokens[:, start:].tolist()
