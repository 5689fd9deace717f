"""What the kit ships, from contrast sets to crosscoders: plain files, read on demand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kit.base.shipped import contrast, contrast_names, neutral_texts, path, texts
from kit.data.corpora import browsing, corpus, split
from kit.data.prose import tidy

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from kit.lens import Lens
    from kit.sae import Dictionary
    from kit.sae.crosscoders import Crosscoder
    from kit.sae.crosscoders.model import Pair
    from kit.steering.vectors import SteeringVector

__all__ = [
    "browsing",
    "contrast",
    "contrast_names",
    "corpus",
    "crosscoder",
    "crosscoder_names",
    "dictionary",
    "dictionary_names",
    "lens",
    "neutral_texts",
    "path",
    "split",
    "texts",
    "tidy",
    "vector",
    "vector_names",
]


def dictionary_names() -> list[str]:
    """Names of the shipped dictionaries."""
    return sorted(p.parent.name for p in path("saes").glob("*/cfg.json"))


def dictionary(name: str, model: TransformerBridge | None = None) -> Dictionary:
    """A shipped dictionary, trained on the embedded model (see ``data/saes/README.md``).

    Args:
        model: refused where the dictionary does not fit it.

    Raises:
        ValueError: no dictionary of that name, or as :meth:`kit.sae.Latents.check`.
    """
    from kit.sae import load

    if name not in dictionary_names():
        raise ValueError(f"name={name!r}: the shipped dictionaries are {', '.join(dictionary_names())}")
    return load(path("saes", name), model=model)


def crosscoder_names() -> list[str]:
    """Names of the shipped crosscoders."""
    return sorted(p.stem for p in path("crosscoder").glob("*.safetensors"))


def crosscoder(name: str, models: Pair | None = None) -> Crosscoder:
    """A shipped crosscoder of the embedded model and a model organism (``data/crosscoder``).

    Args:
        models: the two; refused where it does not fit them.

    Raises:
        ValueError: no crosscoder of that name, or as :meth:`Crosscoder.check`.
    """
    from kit.sae.crosscoders.model import Crosscoder

    if name not in crosscoder_names():
        raise ValueError(f"name={name!r}: the shipped crosscoders are {', '.join(crosscoder_names())}")
    return Crosscoder.load(path("crosscoder", f"{name}.safetensors"), models)


def lens(model: TransformerBridge) -> Lens:
    """The shipped Jacobian lens of the embedded model (see ``data/lens/README.md``).

    Raises:
        ValueError: another model; fit one with :func:`kit.lens.fit`.
    """
    from kit.lens import Lens

    return Lens.load(path("lens", "smollm2-135m-instruct.safetensors"), model)


def vector_names() -> list[str]:
    """Names of the shipped steering vectors."""
    return sorted(p.stem for p in path("vectors").glob("*.safetensors"))


def vector(name: str) -> SteeringVector:
    """A shipped steering vector, fitted on the embedded model (see ``data/vectors/README.md``).

    Raises:
        ValueError: no vector of that name.
    """
    from kit.steering.vectors import SteeringVector

    if name not in vector_names():
        raise ValueError(f"name={name!r}: the shipped vectors are {', '.join(vector_names())}")
    return SteeringVector.load(path("vectors", f"{name}.safetensors"))
