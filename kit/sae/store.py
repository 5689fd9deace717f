"""Everything a dictionary did on a corpus, on disk: the ground of every feature page."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor

from kit.base.files import opened, whole
from kit.base.progress import to_the_end, track
from kit.base.threads import fitted
from kit.models.bridge import fingerprint
from kit.models.tokens import counted, one_text, packed
from kit.sae.entries import Entries
from kit.sae.latents import Latents
from kit.sae.tables import strongest, table

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

_FORMAT = "steering-kit-store/2"
_NAMES = ("tokens", "start", "where", "value")
_LOOK = 2**22  # entries that are looked at together


def _told(dictionary: Latents, model: TransformerBridge) -> dict[str, str]:
    """What a file says of whose it is."""
    return {
        "format": _FORMAT,
        "dictionary": dictionary.name,
        "latents": str(len(dictionary)),
        "weights": dictionary.digest,
        "fingerprint": fingerprint(model),
    }


@dataclass(frozen=True, eq=False)
class Example:
    """A piece of text and what one latent did on it.

    Attributes:
        tokens, values: ``[n]``; at: which of them the example is about.
        row: of the corpus, from which it was cut; first: where in the row it starts.
    """

    tokens: Tensor
    values: Tensor
    at: int
    row: int
    first: int

    @property
    def value(self) -> float:
        """Activation of the token that the example was chosen for."""
        return float(self.values[self.at])


class FeatureStore:
    """Every activation of every latent on a corpus: sparse, sorted by latent, memory-mapped.

    From it come top and uniform examples, histograms, densities and co-firing, each read when it
    is asked for. It takes 8 bytes for each latent that fires on a token (about 50 MB for 200,000
    tokens at L0 = 32), and while it is built, beyond two million, twice as much in scratch files.

    Attributes:
        dictionary: whose latents they are: an SAE's, or any :class:`kit.sae.Latents`.
        tokens: ``[rows, context]``, the corpus.
        start: ``[latents + 1]``: latent i has the entries ``start[i]`` to ``start[i + 1]``.
        where, value: ``[entries]``: the place in ``tokens``, flat and rising within a latent, and
            the activation there.
    """

    def __init__(self, dictionary: Latents, tokens: Tensor, start: Tensor, where: Tensor, value: Tensor) -> None:
        self.dictionary = dictionary
        self.tokens, self.start, self.where, self.value = tokens, start, where, value

    @classmethod
    @torch.no_grad()
    def build(
        cls,
        dictionary: Latents,
        model: TransformerBridge,
        texts: Sequence[str] | Tensor,
        *,
        context: int = 128,
        path: str | Path | None = None,
    ) -> FeatureStore:
        """Run a corpus through the model once, up to the dictionary's site.

        On attention sinks (:func:`kit.models.tokens.counted`) nothing counts as firing.

        Args:
            texts: or tokens ``[rows, context]``, as :func:`kit.sae.pack` makes them.
            path: a file to write it to; then it is read from there, mapped, not held in memory, and
                scratch files lie beside it.

        Returns:
            The store. A keyboard interrupt ends it early and keeps the rows that were run.

        Raises:
            ValueError: as :meth:`Latents.check` and :func:`kit.sae.pack`; 2^31 tokens or more.
        """
        dictionary.check(model)
        tokens = packed(model, texts, context).cpu()
        if tokens.numel() >= 2**31:
            raise ValueError(f"texts hold {tokens.numel():,} tokens: a store takes fewer than 2^31; build several")
        width, done = tokens.shape[1], 0
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        entries = Entries(len(dictionary), None if path is None else Path(path).parent)
        with suppress(KeyboardInterrupt):
            for rows in track(list(tokens.split(16)), "batches of text"):
                with fitted(rows.numel()):
                    x = dictionary.activations(model, rows.to(model.cfg.device))
                    # [rows, context, latents] -> [tokens, latents]
                    flat = (dictionary.encode(x) * counted(x)[..., None]).cpu().flatten(0, 1)
                    at, which = flat.nonzero(as_tuple=True)
                with to_the_end():
                    entries.add(which, at + done * width, flat[at, which])
                    done += len(rows)
        if not done:
            raise KeyboardInterrupt("stopped before the first batch was whole")
        start = torch.cat([torch.zeros(1, dtype=torch.long), entries.count.cumsum(0)])
        store = cls(dictionary, tokens[:done].int(), start, *entries.merged())
        return store if path is None else cls.open(store.save(path, model), dictionary, model)

    def save(self, path: str | Path, model: TransformerBridge) -> Path:
        """Write it to a file; see :meth:`open`."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as part:
            tensors = {name: getattr(self, name).contiguous() for name in _NAMES}
            save_file(tensors, part, _told(self.dictionary, model))
        return path

    @classmethod
    def open(cls, path: str | Path, dictionary: Latents, model: TransformerBridge) -> FeatureStore:
        """A store from its file, in milliseconds: it is mapped, and read where it is looked at.

        Raises:
            FileNotFoundError: no such file; ValueError: no store, or one of another dictionary or
                model.
        """
        with opened(path, _FORMAT, "feature store") as (file, told):
            for name, mine in _told(dictionary, model).items():
                if told[name] != mine:
                    more = ": it was trained anew, or changed; build the store again" if name == "weights" else ""
                    raise ValueError(f"{str(path)!r} belongs to {name} {told[name]!r}, not {mine!r}{more}")
            found = cls(dictionary, *(file.get_tensor(name) for name in _NAMES))
            found.check_parts(model.cfg.d_vocab)
            return found

    def check_parts(self, vocabulary: int) -> None:
        """Refuse parts that do not fit together, and tokens outside of a vocabulary of this size.

        Raises:
            ValueError: names the part.
        """
        what = f"the store of {self.dictionary.name!r} is damaged: "
        kinds = {
            "tokens": (torch.int32, torch.int64),
            "start": (torch.int64,),
            "where": (torch.int32,),
            "value": (torch.float32, torch.bfloat16, torch.float16),
        }
        for name, allowed in kinds.items():
            part = getattr(self, name)
            if part.dtype not in allowed or part.dim() != 1 + (name == "tokens"):
                raise ValueError(f"{what}{name} is {part.dtype} {list(part.shape)}")
        ends = [int(self.start[0]), int(self.start[-1])] if len(self.start) else []
        if (
            len(self.start) != len(self.dictionary) + 1
            or ends != [0, len(self.where)]
            or bool((self.start.diff() < 0).any())
            or len(self.where) != len(self.value)
            or self.tokens.shape[1] < 2
        ):
            raise ValueError(f"{what}start, where, value and tokens do not fit together")
        for name, most in (("tokens", vocabulary), ("where", self.tokens.numel())):
            low, high = getattr(self, name).aminmax() if getattr(self, name).numel() else (0, 0)
            if not 0 <= int(low) <= int(high) < max(most, 1):
                raise ValueError(f"{what}{name} has a value outside of 0 to {most - 1}")
        for at in range(0, len(self.where), _LOOK):  # never a mask as long as the store
            value, where = self.value[at : at + _LOOK], self.where[at : at + _LOOK + 1]
            if not 0 <= float(value.min()) <= float(value.max()) < torch.inf:  # false for NaN too
                raise ValueError(f"{what}value holds NaN, infinity or a negative number")
            falls = (where.diff() <= 0).nonzero()[:, 0] + at + 1
            if not bool(torch.isin(falls, self.start).all()):  # at another latent it begins anew
                raise ValueError(f"{what}where does not rise within a latent")

    def __len__(self) -> int:
        return len(self.start) - 1

    @property
    def n_tokens(self) -> int:
        """Tokens looked at: all but the first of each row (other sinks, a few in a thousand, are
        not taken off)."""
        return len(self.tokens) * (self.tokens.shape[1] - 1)

    def entries(self, latent: int) -> tuple[Tensor, Tensor]:
        """Where a latent fires, ``[n]`` flat places in ``tokens``, and how strongly, ``[n]``.

        Raises:
            ValueError: no such latent.
        """
        self.dictionary.check_latent(latent)
        at = slice(int(self.start[latent]), int(self.start[latent + 1]))
        return self.where[at].long(), self.value[at]

    # --- all latents at once ---

    def density(self) -> Tensor:
        """Share of tokens on which each latent fires, ``[latents]``."""
        return self.start.diff() / self.n_tokens

    def maxima(self) -> Tensor:
        """The largest activation of each latent, ``[latents]``; 0 where it never fires."""
        return self._reduced["amax"]

    def means(self) -> Tensor:
        """Mean activation where a latent fires, ``[latents]``; 0 where it never does."""
        return self._reduced["mean"]

    @cached_property
    def _reduced(self) -> dict[str, Tensor]:
        most, total = torch.zeros(len(self)), torch.zeros(len(self), dtype=torch.float64)
        for at in range(0, len(self.where), _LOOK):  # so that a larger corpus takes no more memory
            count, value = self.start.clamp(at, at + _LOOK).diff(), self.value[at : at + _LOOK].float()
            which = torch.arange(len(self)).repeat_interleave(count)
            most.scatter_reduce_(0, which, value, "amax")
            total.index_add_(0, which, value.double())
        return {"amax": most, "mean": (total / self.start.diff().clamp(min=1)).float()}

    # --- one latent ---

    def top(self, latent: int, n: int = 10, window: tuple[int, int] = (12, 6)) -> list[Example]:
        """Where it fires most, at most once in a row of text; see :meth:`example` for window."""
        where, value = self.entries(latent)
        best: dict[int, int] = {}  # of each row of text the place
        order = value.argsort(descending=True, stable=True)
        for place in map(int, where[order].numpy()):  # one after another: a list of all is long
            best.setdefault(place // self.tokens.shape[1], place)
            if len(best) == n:
                break
        return [self.example(latent, place, window) for place in best.values()]

    def intervals(
        self, latent: int, bins: int = 10, n: int = 3, seed: int = 0, window: tuple[int, int] = (12, 6)
    ) -> list[tuple[float, float, float, list[Example]]]:
        """Uniform examples: what it does over its whole range, not only at the top.

        Its range from 0 to the largest activation is cut into bins of equal width ("uniform
        activation examples" of the dictionary-learning posts), strongest first.

        Returns:
            For each bin: its lower and upper end, the share of firings in it, and up to n examples
            drawn from it at random.
        """
        where, value = self.entries(latent)
        if not len(value):
            return []
        edges = torch.linspace(0, float(value.max()), bins + 1)
        rng = torch.Generator().manual_seed(seed)
        found = []
        for low, high in reversed(list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))):
            inside = ((value > low) & (value <= high * (1 + 1e-6))).nonzero()[:, 0]
            drawn = inside[torch.randperm(len(inside), generator=rng)[:n]]
            some = [self.example(latent, int(where[i]), window) for i in drawn]
            found.append((low, high, len(inside) / len(value), some))
        return found

    def example(self, latent: int, place: int, window: tuple[int, int] | None = (12, 6)) -> Example:
        """The text around a flat place in ``tokens``: so many tokens before and after; None for
        the whole row."""
        where, value = self.entries(latent)
        width = self.tokens.shape[1]
        row, at = divmod(place, width)
        before, after = (width, width) if window is None else window
        first, last = max(0, at - before), min(width, at + after + 1)
        start = row * width + first
        a, b = torch.searchsorted(where, torch.tensor([start, row * width + last]))
        values = torch.zeros(last - first)
        values[where[a:b] - start] = value[a:b].float()
        return Example(self.tokens[row, first:last].long(), values, at - first, row, first)

    def whole(self, latent: int, e: Example) -> Example:
        """The row that an example was cut from."""
        return self.example(latent, e.row * self.tokens.shape[1] + e.first + e.at, None)

    def histogram(self, latent: int, bins: int = 40) -> tuple[Tensor, Tensor]:
        """How often it fires how strongly: counts ``[bins]`` and edges ``[bins + 1]``."""
        _, value = self.entries(latent)
        top = float(value.max()) if len(value) else 1.0
        return torch.histc(value.float(), bins, 0, top), torch.linspace(0, top, bins + 1)

    def by_token(self, latent: int, n: int = 10, least: int = 2) -> pd.DataFrame:
        """On which tokens it fires.

        Returns:
            Columns ``token`` (id), ``share`` (of this token's occurrences on which it fires),
            ``mean`` (activation there), ``count`` (of firings; ``least`` or more); by the
            activation summed over the corpus.
        """
        where, value = self.entries(latent)
        ids = self.tokens.flatten()[where].long()
        kinds, at = ids.unique(return_inverse=True)
        count = torch.bincount(at, minlength=len(kinds))
        total = torch.zeros(len(kinds)).index_add(0, at, value.float())
        seen = torch.bincount(self.tokens.flatten())
        seen -= torch.bincount(self.tokens[:, 0], minlength=len(seen))
        some = total.argsort(descending=True, stable=True)
        some = some[count[some] >= least][:n]
        mean = total / count.clamp(min=1)
        return table(token=kinds[some], share=(count / seen[kinds])[some], mean=mean[some], count=count[some])

    def together(self, latent: int, n: int = 10) -> pd.DataFrame:
        """Which other latents fire on the same tokens.

        Returns:
            Columns ``latent``, ``both`` (tokens), ``share`` (of this latent's tokens), ``lift``
            (how many times chance) and ``jaccard`` (both over either), by the last.
        """
        where, _ = self.entries(latent)
        here = torch.zeros(self.tokens.numel(), dtype=torch.bool)
        here[where] = True
        both = torch.zeros(len(self), dtype=torch.long)
        for at in range(0, len(self.where), _LOOK):
            hits = here[self.where[at : at + _LOOK]].cumsum(0, dtype=torch.int32)  # up to and with each entry
            both += torch.cat([hits.new_zeros(1), hits])[self.start.clamp(at, at + _LOOK) - at].diff()
        both[latent] = 0
        count = self.start.diff()
        jaccard = both / (count + len(where) - both).clamp(min=1)
        order = strongest(jaccard, n)
        share = both[order] / max(len(where), 1)
        lift = share / (count[order] / self.n_tokens)
        return table(latent=order, both=both[order], share=share, lift=lift, jaccard=jaccard[order])

    def read(self, model: TransformerBridge, text: str | Tensor) -> Tensor:
        """Latents ``[n, latents]`` on a text, or on tokens ``[n]``, as the store counts them: none
        on the first token and on other attention sinks, unless there is only one token.

        Raises:
            ValueError: as :meth:`Latents.check`.
        """
        latents = self.dictionary
        latents.check(model)
        tokens = one_text(model, text)[None]
        x = latents.activations(model, tokens.to(model.cfg.device))
        found = latents.encode(x)
        return (found * counted(x)[..., None] if tokens.shape[1] > 1 else found)[0].cpu()
