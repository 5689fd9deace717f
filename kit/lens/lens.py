"""A fitted lens: reading streams and directions in words, writing words as directions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kit.base.checks import check_counts, is_whole
from kit.base.directions import random_units
from kit.base.files import as_json, opened, parse_object, shapes_at_most, whole
from kit.lens.reading import Reading, Words, ranks_of
from kit.lens.swap import Swap, exchange
from kit.models.activations import capture
from kit.models.bridge import check_layer, fingerprint, runtime
from kit.models.fast_linear import product
from kit.models.logit_lens import direction_logits, long_tokens, stream_logits, token_directions
from kit.models.tokens import Text, prompt_tokens
from kit.steering.vectors import SteeringVector

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.tools.analysis import JacobianLens

_FORMAT = "steering-kit-lens/1"
_CONTROLS = 200  # random directions that say what chance reads
_AT_ONCE = 8  # streams of a prompt whose logits are made together: the unembedding is read once


class Lens:
    """What a model is about to say, at each layer (Gurnee et al. 2026).

    With ``J`` the layer's mean Jacobian to the stream before the final norm, a stream ``h`` reads
    as ``unembed(norm(J h))`` and a word is written by ``J^T (gain * w)``, ``w`` its unembedding
    less the mean over the vocabulary. The logit lens (nostalgebraist 2020) is the case ``J = 1``.

    Attributes:
        model: it was fitted to.
        matrices: by layer float32 ``[d_model, d_model]``, on the CPU.
        agreement: by layer the cosine between the lenses of every second text.
        metadata: the corpus's name, how many texts and tokens; anything JSON can hold.
    """

    def __init__(
        self,
        model: TransformerBridge,
        matrices: Mapping[int, Tensor],
        *,
        agreement: Mapping[int, float] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Raises ValueError: no layer, one that the model lacks, or a matrix of another shape."""
        width = model.cfg.d_model
        if not matrices:
            raise ValueError("matrices={}: give at least one layer's")
        for layer, matrix in matrices.items():
            check_layer(model, layer)
            if matrix.shape != (width, width) or not matrix.isfinite().all():
                raise ValueError(f"matrices[{layer}] is {list(matrix.shape)}: give finite numbers [{width}, {width}]")
        self.model = model
        self.matrices = {layer: matrices[layer].detach().float().cpu() for layer in sorted(matrices)}
        self.agreement = dict(agreement or {})
        self.metadata = dict(metadata or {})
        self._chance: dict[int, Tensor] = {}

    @property
    def layers(self) -> list[int]:
        """The layers that were fitted, in order."""
        return list(self.matrices)

    def __repr__(self) -> str:
        what = ", ".join(f"{name}={value}" for name, value in self.metadata.items())
        return (
            f"Lens(layers {self.layers[0]} to {self.layers[-1]}, {len(self.layers)} of them{', ' * bool(what)}{what})"
        )

    def check(self, models: Sequence[TransformerBridge]) -> None:
        """Raises ValueError: it is of none of these models."""
        if not any(self.model is model for model in models):
            raise ValueError("lens: it is of another model than the models given")

    def save(self, path: str | Path, dtype: torch.dtype = torch.float16) -> Path:
        """Write one safetensors file, whole or not at all.

        Raises:
            ValueError: metadata that JSON cannot hold.
        """
        from safetensors.torch import save_file

        about = {
            "format": _FORMAT,
            "fingerprint": fingerprint(self.model),
            "agreement": json.dumps({str(layer): value for layer, value in self.agreement.items()}),
            "metadata": as_json(self.metadata, "metadata"),
        }
        stored = {f"J.{layer}": matrix.to(dtype) for layer, matrix in self.matrices.items()}
        with whole(path) as part:
            save_file(stored, part, metadata=about)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path, model: TransformerBridge) -> Lens:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: no file; ValueError: another model's lens, or a file that is damaged
                or holds something else.
        """
        with opened(path, _FORMAT, "lens") as (file, about):
            shapes_at_most(path, {name: 2 for name in file.keys()})
            mark = about["fingerprint"]
            matrices = {int(name.removeprefix("J.")): file.get_tensor(name) for name in file.keys()}
            agreement = {int(n): float(v) for n, v in json.loads(about["agreement"]).items()}
            metadata = parse_object(about["metadata"], "metadata")
        if mark != fingerprint(model):
            raise ValueError(f"{path} is the lens of model {mark}, this one is {fingerprint(model)}; fit it again here")
        return cls(model, matrices, agreement=agreement, metadata=metadata)

    @classmethod
    def of(cls, published: JacobianLens, model: TransformerBridge) -> Lens:
        """A lens that TransformerLens fitted or loaded (``JacobianLens.from_pretrained``, which
        fetches those that Neuronpedia publishes).

        Raises:
            ValueError: its width or layers are not this model's.
        """
        about = {"texts": published.n_prompts, **published.metadata}
        return cls(model, published.jacobians, metadata=about)

    def matrix(self, layer: int) -> Tensor:
        """A layer's Jacobian ``[d_model, d_model]``; the identity after the last block.

        Raises:
            ValueError: a layer that was not fitted; names those that were.
        """
        if layer == self.model.cfg.n_layers - 1:
            return torch.eye(self.model.cfg.d_model)
        if layer not in self.matrices:
            raise ValueError(f"layer={layer!r}: this lens has layers {', '.join(map(str, self.layers))}")
        return self.matrices[layer]

    def read(
        self, prompt: Text, layers: Sequence[int] | None = None, k: int = 5, *, trace: Sequence[str] = ()
    ) -> Reading:
        """What the model is about to say at every token and layer, beside the logit lens.

        Args:
            prompt: a chat message, or tokens as they are (:func:`kit.text_tokens`).
            layers: of this lens; None for all.
            k: how many words for each.
            trace: words (single tokens, ``" Paris"``) whose rank is told everywhere.

        Raises:
            ValueError: a prompt that is none, a layer without a lens, or a word of several tokens.
        """
        check_counts(k=k)
        layers = self.layers if layers is None else list(layers)
        matrices = [self.matrix(layer) for layer in layers]
        row = prompt_tokens(self.model, prompt)
        asked = [self.token(word) for word in trace]
        streams = capture(self.model, row, [(layer, "resid") for layer in {*layers, self.model.cfg.n_layers - 1}])
        end = streams[self.model.cfg.n_layers - 1, "resid"][0].float()  # [pos, d_model]
        seen = [streams[layer, "resid"][0].float() for layer in layers]
        carried = [product(stream, matrix.to(stream.device)) for stream, matrix in zip(seen, matrices, strict=True)]
        found = []
        for part in torch.stack([*carried, *seen, end]).split(_AT_ONCE):
            said = stream_logits(self.model, part)  # [streams, pos, d_vocab]
            top = said.topk(k, dim=-1)
            p = (top.values - said.logsumexp(-1, keepdim=True)).exp()
            found.append((top.indices.cpu(), p.cpu(), torch.stack([ranks_of(each, asked) for each in said])))
        ids, p, ranks = (torch.cat(part).split([len(layers), len(layers), 1]) for part in zip(*found, strict=True))
        return Reading(
            pieces=self.words_of(row[0].tolist()),
            layers=layers,
            ids=ids[0],
            p=p[0],
            plain_ids=ids[1],
            plain_p=p[1],
            final_ids=ids[2][0],
            final_p=p[2][0],
            ranks={word: ranks[0][..., i] for i, word in enumerate(trace)},
            plain_ranks={word: ranks[1][..., i] for i, word in enumerate(trace)},
            spell=self.words_of,
        )

    def words(self, direction: SteeringVector | Tensor, layer: int | None = None, k: int = 10) -> Words:
        """The words that a direction makes likelier, and whether chance reads as well; see
        :meth:`name` for many at once.

        Args:
            direction: a steering vector, or ``[d_model]``.
            layer: after which it acts; a vector's own where it has one.
        """
        rows, layer = self._rows(direction, layer)
        if len(rows) != 1:
            raise ValueError(f"direction is {list(rows.shape)}: give one, [{rows.shape[-1]}], or use .name for many")
        return self.name(rows, layer, k)[0]

    @torch.no_grad()
    def name(self, rows: Tensor, layer: int, k: int = 10) -> list[Words]:
        """Words for each of many directions: latents, features, factors, rows of a crosscoder.

        A word's score is its logit less the vocabulary's mean, over their standard deviation. The
        *peak*, the mean score of the first ``k``, is held against that of 200 random directions
        through the same lens: ``p`` is the share of all that peak at least as high.

        Args:
            rows: ``[n, d_model]``; their lengths do not matter.
            layer: after which they act.

        Returns:
            As many :class:`Words`.

        Raises:
            ValueError: rows of another width, of length 0, or a layer without a lens.
        """
        check_counts(k=k)
        rows, layer = self._rows(rows, layer)
        found = []
        chance = self._peaks_of_chance(layer, k)
        for part in rows.split(64):
            lensed, plain = self._scores(product(part, self.matrix(layer))), self._scores(part)
            for scores, logit in zip(lensed, plain, strict=True):
                top, other = scores.topk(k), logit.topk(k)
                peak = float(top.values.mean())
                p = (1 + int((chance >= peak).sum())) / (len(chance) + 1)
                (words, ids), (other_words, other_ids) = self._listed(top), self._listed(other)
                found.append(Words(words, other_words, peak, p, ids, other_ids))
        return found

    def name_vectors(self, vectors: Sequence[Any], k: int = 10) -> list[Words | None]:
        """Words for vectors of any layers; None where there is no direction, or no lens there."""
        found: list[Words | None] = [None] * len(vectors)
        for layer in {*self.layers, self.model.cfg.n_layers - 1}:
            some = [i for i, v in enumerate(vectors) if isinstance(v, SteeringVector) and v.layer == layer]
            rows = torch.stack([vectors[i].direction for i in some]) if some else None
            for i, words in zip(some, [] if rows is None else self.name(rows, layer, k), strict=True):
                found[i] = words
        return found

    def direction(self, word: str, layer: int) -> SteeringVector:
        """The vector that makes a word likelier: its row of the lens, a :class:`kit.SteeringVector`
        like any other.

        Args:
            word: one token, with its space: ``" ocean"``. From one word to another is the
                difference of two vectors.

        Raises:
            ValueError: a word of several tokens, or a layer without a lens.
        """
        step = self._writes([word], layer)[0]
        name = f"{word.strip() or repr(word)} @{layer}"
        return SteeringVector(step, layer, name, "lens", fingerprint=fingerprint(self.model))

    def typed(self, text: str, layer: int) -> SteeringVector:
        """What somebody typed, as a vector: ``"ocean"``, or ``"sad > happy"``, from one to another.

        A word stands for its token with a space before it, where it has one.

        Raises:
            ValueError: no word, more than two, one of several tokens, or a layer without a lens.
        """
        parts = [part.strip() for part in text.split(">")]
        if not all(parts) or len(parts) > 2:
            raise ValueError(f"text={text!r}: give a word, or two with > between: sad > happy")
        tokenizer = runtime(self.model).tokenizer
        spaced = [f" {part}" for part in parts]
        alone = [len(tokenizer.encode(word, add_special_tokens=False)) == 1 for word in spaced]
        words = [a if one else b for a, b, one in zip(spaced, parts, alone, strict=True)]
        vectors = [self.direction(word, layer) for word in words]
        if len(vectors) == 1:
            return vectors[0]
        difference = vectors[1] - vectors[0]
        name = f"{parts[0]} > {parts[1]} @{layer}"
        return SteeringVector(difference.direction, layer, name, "lens", fingerprint=difference.fingerprint)

    def swap(
        self, prompt: Text, old: str, new: str, layer: int | Sequence[int], *, position: int | None = None
    ) -> Swap:
        """Exchange what a prompt's stream says of two words, at one token: an intervention.

        The two coordinates of the stream along both words' directions change places; all else stays
        (the paper's patching in lens coordinates). They are read once, from the run without it: an
        exchange that reads live ones at several layers undoes itself.

        Args:
            prompt: on which it is read; give the same one to :func:`kit.generate`.
            layer: or several.
            position: of the token; None for the last one that is ``old``, else the prompt's last.

        Returns:
            A :class:`Swap`: ``kit.generate(model, prompt, swap, [1.0], positions=swap.position)``.

        Raises:
            ValueError: a word of several tokens, twice the same word, a layer without a lens, or a
                position that the prompt lacks.
        """
        row = prompt_tokens(self.model, prompt)
        if (a := self.token(old)) == (b := self.token(new)):
            raise ValueError(f"old={old!r} and new={new!r} are the same token {a}: there is nothing to exchange")
        layers = [layer] if is_whole(layer) else list(layer)
        if not layers:
            raise ValueError("layer=[]: give at least one")
        places = (row[0] == a).nonzero()[:, 0].tolist()
        at = (places[-1] if places else row.shape[1] - 1) if position is None else position
        if not is_whole(at) or not -row.shape[1] <= at < row.shape[1]:
            raise ValueError(f"position={position!r}: this prompt has tokens 0 to {row.shape[1] - 1}")
        at %= row.shape[1]
        streams = capture(self.model, row, [(layer, "resid") for layer in layers])
        steps = {
            layer: exchange(streams[layer, "resid"][0, at].float().cpu(), self._writes([old, new], layer))
            for layer in layers
        }
        return Swap(f"{old.strip()} > {new.strip()}", fingerprint(self.model), steps, at, (a, b))

    def token(self, word: str) -> int:
        """The id of a word that is one token.

        Raises:
            ValueError: it is several, or none; names its pieces, and a spelling that would do.
        """
        tokenizer = runtime(self.model).tokenizer
        ids = tokenizer.encode(word, add_special_tokens=False) if isinstance(word, str) else []
        if len(ids) == 1:
            return int(ids[0])
        turned = word[1:] if str(word).startswith(" ") else f" {word}"
        fits = isinstance(word, str) and len(tokenizer.encode(turned, add_special_tokens=False)) == 1
        advice = f"; {turned!r} is one" if fits else ""
        raise ValueError(f"word={word!r} is {len(ids)} tokens ({self.words_of(ids)}): give a word of one token{advice}")

    def words_of(self, ids: Sequence[int]) -> list[str]:
        """Tokens spelled, each by itself."""
        tokenizer = runtime(self.model).tokenizer
        return [tokenizer.decode([i]) for i in ids]

    def _writes(self, words: Sequence[str], layer: int) -> Tensor:
        """Rows ``[words, d_model]``: along them the stream after a layer says a word."""
        return token_directions(self.model, [self.token(w) for w in words]).cpu() @ self.matrix(layer)

    def _rows(self, direction: SteeringVector | Tensor, layer: int | None) -> tuple[Tensor, int]:
        if isinstance(direction, SteeringVector):
            layer = direction.layer if layer is None else layer
            direction = direction.direction
        if layer is None:
            raise ValueError("layer=None: a tensor does not tell after which layer it acts; give one")
        rows = direction.detach().float().cpu().reshape(-1, direction.shape[-1]) if direction.dim() else direction
        width = self.model.cfg.d_model
        if rows.dim() != 2 or rows.shape[-1] != width or not len(rows):
            raise ValueError(f"direction is {list(direction.shape)}: give [{width}] or [n, {width}]")
        if not bool(rows.any(-1).all()):
            raise ValueError("direction is zero: it says nothing")
        self.matrix(layer)
        return rows, layer

    def _scores(self, rows: Tensor) -> Tensor:
        """Standard scores of each token's logit ``[n, d_vocab]``; the lowest for rows of the table
        that are unusually long: few texts use those tokens."""
        logits = direction_logits(self.model, rows).cpu()
        scores = (logits - logits.mean(-1, keepdim=True)) / logits.std(-1, keepdim=True)
        scores[:, long_tokens(self.model).cpu()] = -float("inf")
        return scores

    def _listed(self, top: Any) -> tuple[list[tuple[str, float]], list[int]]:
        ids: list[int] = top.indices.tolist()
        return list(zip(self.words_of(ids), top.values.tolist(), strict=True)), ids

    def _peaks_of_chance(self, layer: int, k: int) -> Tensor:
        if layer not in self._chance:  # the first fifty scores of each, so that any k up to there is at hand
            rows = random_units(_CONTROLS, self.model.cfg.d_model, seed=0) @ self.matrix(layer).T
            most = min(50, self.model.cfg.d_vocab)
            self._chance[layer] = torch.cat([self._scores(part).topk(most).values for part in rows.split(64)])
        if k > self._chance[layer].shape[1]:
            raise ValueError(f"k={k}: at most {self._chance[layer].shape[1]}")
        return self._chance[layer][:, :k].mean(-1)
