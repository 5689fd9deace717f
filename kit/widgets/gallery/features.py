"""What a gallery holds: vectors with names, stars, scores and texts. Knows no widget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from kit.steering.dose import Dose
from kit.steering.intervention import Intervention
from kit.steering.results import Row
from kit.widgets.panel import arms

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

_COLUMNS = ["rank", "name", "score", "text", "kl", "starred", "hidden", "coefficient", "prompt", "calibrated"]
_DEFAULT = 0.3  # residual scales: for a vector that does not say how far it was trained to go
FILTERS = {"not hidden": "shown", "starred": "starred", "all": "all"}
SORTS = {"rank": "rank", "cost (KL)": "kl", "name": "name"}


@dataclass(frozen=True)
class Result:
    """One text: what it was asked, how far it was pushed, what came.

    Attributes:
        coefficient: in residual scales; None for the unsteered text.
        kl: mean KL to the unsteered model, nats a token; None unless measured.
        row: the tokens; None for a text that was read from a file.
        complete: whether it came to its end.
    """

    prompt: str
    coefficient: float | None
    text: str
    kl: float | None
    row: Row | None = None
    complete: bool = True


@dataclass(eq=False)
class Feature:
    """One vector of a gallery.

    Attributes:
        rank: 1 is the best.
        coefficient: the calibrated one, in residual scales.
        scores: by name; the first is the one that ranks.
        key: what the present text depends on; a text of another key is an earlier one.
        words: HTML of what it reads as; "" where no lens said.
    """

    vector: Intervention
    rank: int
    coefficient: float
    scores: dict[str, float] = field(default_factory=dict)
    name: str = ""
    starred: bool = False
    hidden: bool = False
    result: Result | None = None
    key: Any = None
    words: str = ""

    def __post_init__(self) -> None:
        self.name = self.name or self.vector.name

    def named(self) -> Any:
        """The vector under the name that the gallery gives it."""
        if self.name == self.vector.name:
            return self.vector
        return replace(self.vector, name=self.name)  # type: ignore[type-var]

    def done(self, key: Any) -> bool:
        """Whether its text for these settings is whole."""
        return self.key == key and self.result is not None and self.result.complete


def features(vectors: Any, scores: Any = None, coefficient: float | Sequence[float] | None = None) -> list[Feature]:
    """Ranked features of vectors.

    Args:
        vectors: interventions, one, or a fit with ``vectors()``.
        scores: a number for each vector, or several sets of them by name (a mapping or a table);
            the first set ranks, highest first. Default: the given order, with what the vectors'
            metadata say of ``alpha`` and ``change``.
        coefficient: one, or one for each. Default: ``metadata["coefficient"]``, else 0.3.

    Raises:
        ValueError: not a score or coefficient for each vector, or one that is no finite number
            (a score may be NaN: it ranks last).
    """
    if callable(getattr(vectors, "vectors", None)):
        vectors = vectors.vectors()
    found = list(vectors) if isinstance(vectors, Sequence) else [vectors]
    if coefficient is None:
        pushes = [calibrated(v) for v in found]
    else:
        pushes = _numbers(coefficient, "coefficient", len(found))
        if not all(map(math.isfinite, pushes)):
            raise ValueError(f"coefficient={coefficient!r}: numbers must be finite")
    if scores is None:
        known = [getattr(v, "metadata", {}) for v in found]
        sets = {
            name: [about[name] for about in known]
            for name in ("alpha", "change")
            if found and all(_is_number(about.get(name)) for about in known)
        }
        order = list(range(len(found)))
    else:
        given = dict(scores) if isinstance(scores, Mapping) or hasattr(scores, "columns") else {"score": scores}
        sets = {str(n): _numbers(s, f"scores[{str(n)!r}]", len(found)) for n, s in given.items()}
        if not sets:
            raise ValueError("scores={}: give at least one set, or None")
        first = next(iter(sets.values()))
        order = sorted(range(len(found)), key=lambda i: _last_if_nan(-first[i]))
    return [
        Feature(found[i], rank, pushes[i], {name: float(s[i]) for name, s in sets.items()})
        for rank, i in enumerate(order, 1)
    ]


def calibrated(vector: Any) -> float:
    """The coefficient at which a vector was trained, or 0.3 residual scales."""
    found = Dose.of(vector).coefficient
    return _DEFAULT if found is None else found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(values: Any, name: str, n: int) -> list[float]:
    values = values.tolist() if hasattr(values, "tolist") else values
    values = [values] * n if isinstance(values, int | float) and name == "coefficient" else values
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != n:
        raise ValueError(f"{name}={values!r}: give {n} numbers, one for each vector")
    try:
        return [float(v) for v in values]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}={values!r}: give numbers") from error


def _last_if_nan(value: float | None) -> tuple[bool, float]:
    missing = value is None or math.isnan(value)
    return missing, 0.0 if missing or value is None else value


def check(found: Sequence[Feature], model: TransformerBridge) -> None:
    """Raise a ValueError that names a vector which does not fit this model, or is there twice."""
    for f in found:
        arms.layers_of(model, f.vector)
    if len({id(f.vector) for f in found}) < len(found):
        raise ValueError("vectors holds one vector twice: give it once, with the sum")


def find(all_of_them: Sequence[Feature], which: str | int) -> Feature:
    """A feature by rank or name.

    Raises:
        ValueError: there is none; the text says what there is.
    """
    for f in all_of_them:
        if which in (f.rank, f.name):
            return f
    names = ", ".join(repr(f.name) for f in all_of_them[:8])
    raise ValueError(
        f"{which!r} is no feature here: give a rank from 1 to {len(all_of_them)}, or a name ({names}, ...)"
    )


def random_control(all_of_them: Sequence[Feature], seed: int) -> Feature | None:
    """A random direction of the best vector's layer and norm, at its coefficient."""
    best = next((f for f in all_of_them if hasattr(f.vector, "random")), None)
    if best is None:
        return None
    known: Any = best.vector
    vector = replace(known.random(seed), name=f"random direction (seed {seed})")
    return Feature(vector, 0, best.coefficient, name="Random direction")


def view(all_of_them: Sequence[Feature], keep: str, by: str) -> list[Feature]:
    """Those that a filter keeps (``"shown"``, ``"starred"``, ``"all"``), sorted.

    ``by`` is ``"rank"``, ``"kl"`` (cheapest first; unmeasured last) or ``"name"``.
    """
    kept = [f for f in all_of_them if keep == "all" or (f.starred if keep == "starred" else not f.hidden)]
    if by == "kl":
        return sorted(kept, key=lambda f: (_last_if_nan(f.result.kl if f.result else None), f.rank))
    if by == "name":
        return sorted(kept, key=lambda f: (f.name.casefold(), f.rank))
    return sorted(kept, key=lambda f: f.rank)


def table(all_of_them: Sequence[Feature]) -> pd.DataFrame:
    """A row for each feature by rank: name, scores, text, kl, coefficient, prompt, marks.

    ``score`` is the one that ranks (NaN without any); a vector's own coefficient is
    ``calibrated``, that of its text ``coefficient``.
    """
    import pandas as pd

    rows = []
    for f in sorted(all_of_them, key=lambda f: f.rank):
        r = f.result or Result("", math.nan, "", None)
        best = next(iter(f.scores.values()), math.nan)
        kl = math.nan if r.kl is None else r.kl
        marks = (f.starred, f.hidden, r.coefficient, r.prompt, f.coefficient)
        row = dict(zip(_COLUMNS, (f.rank, f.name, best, r.text, kl, *marks), strict=True))
        rows.append(row | {f"score {n}" if n in _COLUMNS else n: s for n, s in f.scores.items()})
    return pd.DataFrame(rows, columns=None if rows else _COLUMNS).set_index("rank")
