"""The zoo: tiny random models of many architectures, the kit against plain transformers.

``python -m tests.models.zoo`` prints a row for each architecture, ``... zoo llama falcon`` for some,
and ``--write`` writes ``docs/models.md``.

A check compares what the kit says of a model with what transformers alone says of the same folder,
read by hooks of its own. Its cell is ``ok`` where they are equal to float32 rounding; ``refused: ...``
where the kit raises an error that says why; ``WRONG: ...`` with the largest difference as a share of
the largest value; ``CRASH: ...`` for any other exception.
"""

from __future__ import annotations

import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from tokenizers import processors
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import kit
from kit.base.files import whole
from kit.models.activations import capture, residuals
from kit.models.bridge import runtime
from kit.models.hook_points import replaced
from kit.models.logit_lens import direct_attribution, logit_lens
from kit.models.sites import Site
from kit.models.tokens import pack, text_tokens
from kit.steering.generation import logits
from tests import tiny
from tests.models.zoo_kinds import LAYERS, WIDTH, ZOO, Kind

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
LIMIT = 2e-5  # of the largest value: rounding is at most a quarter of it, slips five hundred times it
TEXT = tiny.SENTENCES[1]


# --- a model, as a folder ---------------------------------------------------------------------


def words_of(kind: Kind) -> Any:
    """The tiny tokenizer, with what an architecture's own puts before a text."""
    words = tiny.tokenizer()
    before = {"bos": ["<bos>"], "eos": ["<eos>"], "two": ["<bos>", "<pad>"]}.get(kind.words, [])
    if before:
        ids = {token: words.convert_tokens_to_ids(token) for token in before}
        single = " ".join([*before, "$A"])
        words.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=list(ids.items())
        )
    if kind.words == "none":
        words.bos_token = None
    return words


def save(name: str, folder: Path) -> Path:
    """Write a random model and its tokenizer; every part of it matters."""
    kind, words = ZOO[name], words_of(ZOO[name])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(kind.config(len(words)), dtype=torch.float32)
    with torch.no_grad():
        for key, weight in model.state_dict().items():
            # norms that start at one, biases and gates that start at zero would hide slips
            if weight.is_floating_point() and weight.numel() > 1 and bool((weight == weight.flatten()[0]).all()):
                weight.add_(torch.randn_like(weight), alpha=0.3 if weight.dim() == 1 and "bias" not in key else 0.1)
            elif weight.is_floating_point() and weight.dim() > 1 and 0 < (size := float(weight.std())) < 0.1:
                weight.mul_(0.2 / size)  # configs that know no initializer_range
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@dataclass
class Specimen:
    """A model in the kit's hands, and the same folder in those of plain transformers."""

    kind: Kind
    folder: Path
    model: Any = field(init=False)
    plain: Any = field(init=False)
    _logits: dict[Any, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model = kit.load_model(str(self.folder), dtype="float32")
        self.plain = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()

    @cached_property
    def tokens(self) -> Tensor:
        return tiny.prompt(self.model, 10)

    @cached_property
    def blocks(self) -> nn.ModuleList:
        lists = [m for m in self.plain.modules() if isinstance(m, nn.ModuleList) and len(m) == LAYERS]
        return lists[0]

    def mlp(self, layer: int) -> nn.Module:
        """What adds the MLP's share to the stream: its output, silenced, leaves the rest."""
        assert self.kind.mlp is not None
        return self.blocks[layer].get_submodule(self.kind.mlp)

    def vector(self, layer: int) -> Any:
        return tiny.vector(self.model, layer, seed=layer)

    def step(self, layer: int, coefficient: float) -> Tensor:
        """What steering adds: ``coefficient`` times the vector in the kit's unit."""
        return coefficient * kit.residual_scale(self.model, layer) * self.vector(layer).direction

    def steered(self, layer: int, coefficient: float, tokens: Tensor | None = None) -> Tensor:
        """Logits of plain transformers, a hook on its block."""
        tokens = self.tokens if tokens is None else tokens
        key = (layer, coefficient, str(tokens.tolist()))
        if key not in self._logits:
            step = self.step(layer, coefficient)
            with changed(self.blocks[layer], lambda out: out + step):
                self._logits[key] = self.run(tokens)
        return self._logits[key]

    def run(self, tokens: Tensor, **options: Any) -> Tensor:
        with torch.inference_mode():
            return self.plain(input_ids=tokens, **options).logits.clone()

    def streams(self, tokens: Tensor) -> Tensor:
        """Plain transformers' residual stream after every block ``[layers, rows, pos, width]``."""
        kept: list[Tensor] = []
        with ExitStack() as stack:
            for block in self.blocks:
                stack.enter_context(changed(block, lambda out: kept.append(out.clone())))  # type: ignore[func-returns-value]
            self.run(tokens)
        return torch.stack(kept)

    def text(self, layer: int, coefficient: float | None, n: int) -> list[int]:
        """The greedy continuation of transformers' own ``generate``, up to an end token."""
        with ExitStack() as stack:
            if coefficient is not None:
                step = self.step(layer, coefficient)
                stack.enter_context(changed(self.blocks[layer], lambda out: out + step))
            out = self.plain.generate(
                self.tokens, attention_mask=torch.ones_like(self.tokens), do_sample=False, max_new_tokens=n
            )
        new = out[0, self.tokens.shape[1] :].tolist()
        return new[: new.index(1)] if 1 in new else new


@contextmanager
def changed(module: nn.Module, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """A plain forward hook on what a module gives; where it gives a tuple, on the first."""

    def hook(_module: nn.Module, _args: Any, out: Any) -> Any:
        several = isinstance(out, tuple | list)
        new = change(out[0] if several else out)
        return None if new is None else type(out)([new, *out[1:]]) if several else new

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


# --- checks -----------------------------------------------------------------------------------


class Different(Exception):
    """What the kit says is not what transformers says."""


def gap(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return float((found.detach() - expected).abs().max() / expected.abs().max())


def equal(what: str, found: Tensor, expected: Tensor) -> None:
    if found.shape != expected.shape:
        raise Different(f"{what} has shape {list(found.shape)}, not {list(expected.shape)}")
    if not (off := gap(found, expected)) <= LIMIT:
        raise Different(f"{what} off by {off:.1g}")


def check_logits(s: Specimen) -> None:
    equal("unsteered", logits(s.model, s.tokens)[0], s.run(s.tokens)[0])


def check_residuals(s: Specimen) -> None:
    found = residuals(s.model, [s.tokens], range(LAYERS), read=slice(0, None))  # [pos, layers, width]
    equal("the stream", found.transpose(0, 1), s.streams(s.tokens)[:, 0])


def check_generate(s: Specimen) -> None:
    """Steered by the decode loop, at every layer: logits, and the next tokens."""
    for layer in range(LAYERS):
        v = s.vector(layer)
        equal(f"layer {layer}", logits(s.model, s.tokens, v, [0.5])[0], s.steered(layer, 0.5)[0])
        found = kit.generate(s.model, s.tokens, v, [0.5], max_new_tokens=3).rows[0].tokens
        if found != (expected := s.text(layer, 0.5, 3)):
            raise Different(f"layer {layer} goes on with {found}, not {expected}")


def check_steer(s: Specimen) -> None:
    """Steered in a ``with`` block, at every layer; a coefficient of 0 changes nothing."""
    for layer in range(LAYERS):
        for c in (0.0, 0.5)[layer > 0 :]:
            with kit.steer(s.model, {s.vector(layer): c}):
                equal(f"layer {layer} at {c}", s.model(s.tokens)[0], s.steered(layer, c)[0])


def check_ladder(s: Specimen) -> None:
    rungs = [None, 0.4, -0.7, 0.0, 1.1]
    for layer in (0, LAYERS - 2):
        v = s.vector(layer)
        rows = logits(s.model, s.tokens, v, rungs)
        equal(f"layer {layer}", rows, torch.cat([s.steered(layer, c or 0.0) for c in rungs]))
    found = [row.tokens for row in kit.generate(s.model, s.tokens, v, rungs, max_new_tokens=4).rows]
    if found != (expected := [s.text(layer, c, 4) for c in rungs]):
        raise Different(f"texts {found}, not {expected}")
    for row, c in zip(found, rungs, strict=True):
        alone = kit.generate(s.model, s.tokens, v, [c], max_new_tokens=4).rows[0].tokens
        if row != alone:
            raise Different(f"the row of {c} is {row}, alone {alone}")


def check_text(s: Specimen) -> None:
    found = kit.generate(s.model, s.tokens, max_new_tokens=12).rows[0].tokens
    if found != (expected := s.text(0, None, 12)):
        raise Different(f"{found}, not {expected}")


def check_mlp_out(s: Specimen) -> None:
    """What the MLP's branch adds to the stream, read and changed."""
    sites = [Site(layer, "mlp_out") for layer in range(LAYERS)]
    capture(s.model, s.tokens, [sites[0].place])  # alone, so that a refusal names one layer
    found = capture(s.model, s.tokens, [site.place for site in sites])
    if s.kind.mlp is None:
        raise Different("there is no MLP here, and the kit reads one")
    base = s.streams(s.tokens)
    for layer in range(LAYERS):
        kept: list[Tensor] = []
        silenced = (lambda out: kept.append(out.clone())) if s.kind.normed_after else torch.zeros_like
        with changed(s.mlp(layer), silenced):
            rest = s.streams(s.tokens)[layer]
        added = kept[0] if kept else base[layer] - rest
        # a difference of streams is as rounded as they are
        off = gap(found[sites[layer].place], added)
        if not off * added.abs().max() <= LIMIT * base[layer].abs().max():
            raise Different(f"layer {layer} off by {off:.1g}")
    step = s.step(1, 0.5)
    place = s.mlp(1) if s.kind.normed_after else s.blocks[1]
    with replaced(s.model, sites[1], lambda out: out + step):
        after = runtime(s.model).decoder(s.tokens).logits
    with changed(place, lambda out: out + step):
        equal("with a change, logits", after, s.run(s.tokens))


def check_lens(s: Specimen) -> None:
    """The whole stream's attribution is the logits, a direction's logits are its share of them."""
    stream = s.streams(s.tokens)[-1, 0]  # [pos, width]
    ids, given = range(3, 103), s.run(s.tokens)[0]
    halves = stream * torch.linspace(0, 1, stream.shape[-1]), stream * torch.linspace(1, 0, stream.shape[-1])
    parts = [
        direct_attribution(s.model, torch.stack(pair), pair[0] + pair[1], ids) for pair in zip(*halves, strict=True)
    ]
    found = torch.stack(parts).sum(1)  # [pos, tokens]
    cap = getattr(s.plain.config, "final_logit_softcapping", None) or getattr(s.plain.config, "logits_soft_cap", None)
    uncapped = cap * torch.atanh(given.double() / cap).float() if cap else given
    # biases belong to no piece: what the same logit differs by between positions
    moved, expected = (x[1:] - x[:1] for x in (found, uncapped[:, 3:103]))
    equal("the whole stream", moved, expected)
    d = torch.randn(WIDTH, generator=torch.Generator().manual_seed(7))
    d = (d - d.mean()) / d.std(correction=0)
    with changed(s.blocks[-1], lambda out: torch.stack([d, -d]).expand_as(out[:1, :2])):
        ends = s.run(s.tokens[:, :2])[0]
    ends = cap * torch.atanh(ends.double() / cap).float() if cap else ends
    lens = logit_lens(s.model, d, n=ends.shape[-1], mads=float("inf"))
    order = torch.tensor([i for i, _ in lens.top])
    equal("a direction", torch.tensor([x for _, x in lens.top]), ((ends[0] - ends[1]) / 2)[order])


def check_batches(s: Specimen) -> None:
    """Texts of several lengths: by the kit's own batches, and padded by the caller on either side."""
    texts = [s.tokens[0, :n] for n in (10, 6, 8)]
    alone = [s.streams(text[None])[:, 0, -1] for text in texts]
    equal("texts", residuals(s.model, texts, range(LAYERS)), torch.stack(alone))
    for side in ("right", "left"):
        batch = torch.full((3, 10), 2)
        for row, text in zip(batch, texts, strict=True):
            row[slice(0, len(text)) if side == "right" else slice(10 - len(text), 10)] = text
        mask = (batch != 2).long()
        with kit.steer(s.model, {s.vector(1): 0.5}):
            found = s.model(batch, attention_mask=mask)
        found = found[mask.bool()]  # [tokens of all texts, d_vocab]
        if not any((least := gap(found, right)) <= LIMIT for right in readings(s, texts, batch, mask)):
            raise Different(f"padded {side} off by {least:.1g}")


def readings(s: Specimen, texts: Sequence[Tensor], batch: Tensor, mask: Tensor) -> Iterator[Tensor]:
    """Steered logits of padded texts: of each alone; and where transformers' own call reads them
    otherwise (a recurrent state goes through padding), what that gives: bare, with positions
    counted as its ``generate`` counts them, and then with the attention that the bridge asks for."""
    yield torch.cat([s.steered(1, 0.5, text[None])[0] for text in texts])
    step = s.step(1, 0.5) * mask[..., None]  # padding is not steered
    options = {"attention_mask": mask}
    with changed(s.blocks[1], lambda out: out + step):
        yield s.run(batch, **options)[mask.bool()]
        if "position_ids" in signature(s.plain.forward).parameters:
            options["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
            yield s.run(batch, **options)[mask.bool()]
            s.plain.set_attn_implementation("eager")
            yield s.run(batch, **options)[mask.bool()]


def check_bos(s: Specimen) -> None:
    """A text begins as the folder's own tokenizer lets it begin, and so does a packed row."""
    own = AutoTokenizer.from_pretrained(s.folder)(TEXT).input_ids
    if (found := text_tokens(s.model, TEXT)[0].tolist()) != own:
        raise Different(f"tokens begin {found[:3]}, not {own[:3]}")
    bare = AutoTokenizer.from_pretrained(s.folder)(TEXT, add_special_tokens=False).input_ids
    start = own[: len(own) - len(bare)]
    if (row := pack(s.model, [TEXT], 12)[0].tolist()) != own[:12]:
        raise Different(f"packed rows begin {row[:3]}, not {own[:3]} (of which {start} before the text)")


CHECKS: dict[str, Callable[[Specimen], None]] = {
    "logits": check_logits,
    "residuals": check_residuals,
    "kit.generate": check_generate,
    "kit.steer": check_steer,
    "ladder": check_ladder,
    "text": check_text,
    "mlp_out": check_mlp_out,
    "logit lens": check_lens,
    "batches": check_batches,
    "BOS": check_bos,
}


def outcome(what: Callable[[], Any]) -> str:
    """``ok``, ``refused: reason``, ``WRONG: size`` or ``CRASH: exception``."""
    try:
        what()
    except Different as difference:
        return f"WRONG: {difference}"
    except Exception as error:
        said = re.sub(r"\d+%", "some %", " ".join(str(error).split())[:200])  # rounded elsewhere, may be
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        if isinstance(error, ValueError | OSError | TypeError) and Path(kit.__file__).parent in Path(last).parents:
            return f"refused: {said}"
        return f"CRASH: {type(error).__name__}: {said} ({'/'.join(Path(last).parts[-2:])})"
    return "ok"


def row(name: str, folder: Path) -> dict[str, str]:
    """The cells of an architecture, by check; ``load`` alone where it does not load."""
    save(name, folder)
    found: list[Specimen] = []
    loaded = outcome(lambda: found.append(Specimen(ZOO[name], folder)))
    if not found:
        return {"load": loaded.replace(str(folder), "the folder")}
    return {what: outcome(lambda check=check: check(found[0])) for what, check in CHECKS.items()}


# --- the page ---------------------------------------------------------------------------------

HEAD = """# Models

<!-- Written by `python -m tests.models.zoo --write`; edit that module. -->

What the kit does on {models} architectures, each a tiny random model made from its transformers
config ({layers} blocks, {width} wide, float32) and compared with plain transformers on the same folder:

- *logits*: of a prompt, unsteered; *residuals*: the stream after every block;
- *kit.generate*, *kit.steer*: steered at every layer, against a plain forward hook on the block;
- *ladder*: several coefficients in one run, against single runs;
- *text*: the greedy continuation, against transformers' `generate`;
- *mlp_out*: what the MLP's branch adds to the stream, read and changed;
- *logit lens*: of the whole stream, against the logits, and of a direction;
- *batches*: texts of several lengths, padded right and left;
- *BOS*: what the folder's own tokenizer puts before a text.

`ok` is equal to float32 rounding; `refused` is an error that says why, listed below the table. Released
models of an architecture may use options that its tiny one does not: run `kit.check` on yours.

**{passed} of {models} pass every check; {partly} more pass all but what they refuse by name; {refused} are
refused by name when they are loaded.**

## Your own

```python
model = kit.load_model("my/folder")  # or a hub id
model = kit.load_model(hf, tokenizer=words)  # a transformers model that is in memory
model = kit.load_model(peft_model, tokenizer="my/base")  # its adapter merged, in a copy
```

- A model in memory stays as it is and shares its weights; compiled ones come without their wrapper, one in
  training mode is run in eval mode, which is said. Of a multimodal model the part that reads text is loaded.
- Weights that the file lacks, or that belong nowhere, are named; nothing is drawn at random. No package manager
  starts while a model loads, whatever a library asks for.
- TransformerLens computes attention anew, to show patterns. Where that gives another model, transformers' own
  attention runs in the bridge, which is said; where the bridge is wrong for another reason, `kit.steer` refuses,
  and `kit.generate`, which runs transformers' modules, goes on. `kit.check` has a row for it.

## Every architecture
"""


def lines(name: str, cells: dict[str, str]) -> tuple[str, list[str]]:
    """An architecture's row of the table, and a line for each thing that is not ``ok``."""
    short = [cells.get(what, cells.get("load", "")).partition(":")[0] for what in CHECKS]
    return (
        f"| {name} | {' | '.join(short)} |",
        [f"- {name}, {what}: {cell}" for what, cell in cells.items() if cell != "ok"],
    )


def verdict(cells: dict[str, str]) -> str:
    """``passed``, ``partly`` (some things are refused), ``refused`` (at loading) or ``fails``."""
    if not all(cell.startswith(("ok", "refused")) for cell in cells.values()):
        return "fails"
    return "refused" if "load" in cells else "passed" if set(cells.values()) == {"ok"} else "partly"


def page(table: dict[str, dict[str, str]]) -> str:
    """The whole of ``docs/models.md``."""
    kinds = [verdict(cells) for cells in table.values()]
    counts = {kind: kinds.count(kind) for kind in ("passed", "partly", "refused")}
    head = HEAD.format(models=len(table), layers=LAYERS, width=WIDTH, **counts)
    fails = kinds.count("fails")
    broken = [f"**{fails} fail.**", ""] if fails else []
    found = [lines(name, cells) for name, cells in table.items()]
    columns = [f"| architecture | {' | '.join(CHECKS)} |", "|---" * (len(CHECKS) + 1) + "|"]
    return "\n".join(
        [head, *broken, *columns, *[line for line, _ in found], "", *[line for _, more in found for line in more], ""]
    )


def main(arguments: Sequence[str]) -> int:
    """Print rows of the table, and write the page; see the module."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    wanted = [a.lower() for a in arguments if a != "--write"]
    if wanted and "--write" in arguments:
        raise SystemExit("--write takes no names: the page has every architecture")
    table: dict[str, dict[str, str]] = {}
    for name in ZOO:
        if not wanted or any(part in name.lower() for part in wanted):
            with tempfile.TemporaryDirectory() as folder:
                table[name] = row(name, Path(folder))
            line, more = lines(name, table[name])
            sys.stdout.write("\n".join([line, *more, ""]))
            sys.stdout.flush()
    if "--write" in arguments:
        with whole(PAGE) as partial:
            partial.write_text(page(table), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
