"""A gallery's features as a folder of files, each of which loads alone too."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kit.base.files import JUNK
from kit.base.scratch import keep_new, scratch
from kit.steering.rank_one import Factor
from kit.steering.vectors import SteeringVector
from kit.widgets.gallery.features import Feature, Result, calibrated
from kit.widgets.panel import files
from kit.widgets.panel.arms import identity

_KEY = "gallery"  # of a saved vector's metadata


def save(all_of_them: Sequence[Feature], folder: str | Path) -> Path:
    """Write a set as a folder of vectors; each file also loads alone, as any vector.

    Names, marks, scores, coefficients and texts stand in each file's metadata under "gallery". A
    folder that exists is never written into: the set then goes to one with a number. All or
    nothing: the folder appears when it is whole.

    Returns:
        The folder.

    Raises:
        ValueError: nothing to save; TypeError: something that is neither vector nor factor.
    """
    if not str(folder).strip():
        raise ValueError("folder is empty: give the name of a folder for the set")
    if not all_of_them:
        raise ValueError("there is no feature to save: run the gallery, or show more of it, first")
    marked = [_marked(f) for f in sorted(all_of_them, key=lambda f: f.rank)]
    wanted = Path(os.path.abspath(Path(str(folder).strip()).expanduser()))
    wanted.parent.mkdir(parents=True, exist_ok=True)
    with scratch(wanted) as part:
        made = part / "set"
        made.mkdir()
        for vector in marked:
            files.save(vector, made)
        return keep_new(made, wanted.parent, wanted.name)


def _marked(f: Feature) -> SteeringVector | Factor:
    if not isinstance(f.vector, SteeringVector | Factor):
        raise TypeError(f"{f.name!r} is a {type(f.vector).__name__}: only vectors and factors are saved")
    r = f.result
    text = None if r is None else {"prompt": r.prompt, "coefficient": r.coefficient, "text": r.text, "kl": r.kl}
    about = {
        "rank": f.rank,
        "starred": f.starred,
        "hidden": f.hidden,
        "result": text,
        "coefficient": f.coefficient,
        "scores": f.scores,
        "first_name": f.vector.name,
    }
    metadata = {**f.vector.metadata, _KEY: json.loads(json.dumps(about))}
    return replace(f.vector, name=f.name, metadata=metadata)


def load(path: str | Path) -> list[Feature]:
    """Features of a folder that :func:`save` wrote, or of a folder or file of plain vectors.

    Raises:
        ValueError: no path, or a file that is no vector of this kit; FileNotFoundError: nothing
            there.
    """
    if not str(path).strip():
        raise ValueError("path is empty: give the folder of a saved set, or one vector's file")
    place = Path(str(path).strip()).expanduser()
    found = sorted(place.glob("*.safetensors")) if place.is_dir() else [place]
    if not found:
        raise FileNotFoundError(f"path={str(path)!r}: the folder holds no .safetensors file")
    read = [_read(files.read(file), i) for i, file in enumerate(found)]
    return sorted(read, key=lambda f: f.rank)


def _read(vector: SteeringVector | Factor, index: int) -> Feature:
    about = dict(vector.metadata)
    marks = about.pop(_KEY, None)
    if not isinstance(marks, dict):
        return Feature(vector, index + 1, calibrated(vector))
    try:
        r = marks["result"]
        coefficient = float(marks["coefficient"])
        if not math.isfinite(coefficient):
            raise ValueError(f"coefficient={coefficient}")
        return Feature(
            replace(vector, name=str(marks["first_name"]), metadata=about),
            int(marks["rank"]),
            coefficient,
            {str(k): float(v) for k, v in marks["scores"].items()},
            vector.name,
            bool(marks["starred"]),
            bool(marks["hidden"]),
            None
            if r is None
            else Result(str(r["prompt"]), _number(r["coefficient"]), str(r["text"]), _number(r["kl"])),
        )
    except (ValueError, *JUNK) as error:
        raise ValueError(f"{vector.name!r} has marks of a gallery that are damaged: {error}") from error


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def merge(ours: Sequence[Feature], read: Sequence[Feature]) -> tuple[list[Feature], int]:
    """Put a set that was read to what is there; returns all, and how many are new.

    A vector or factor that is there already (:func:`kit.widgets.panel.arms.identity`) takes the
    name, the marks, the coefficient and, if it has none, the scores and the text of the file.
    Nothing is dropped.
    """
    known = {identity(f.vector): f for f in ours}
    everything, last = list(ours), max((f.rank for f in ours), default=0)
    new = 0
    for f in read:
        mine = known.get(identity(f.vector))
        if mine is None:
            new += 1
            everything.append(replace(f, rank=last + new))
            continue
        mine.name, mine.starred, mine.hidden = f.name, f.starred, f.hidden
        mine.coefficient = f.coefficient
        mine.scores = mine.scores or f.scores
        mine.result = mine.result or f.result
    return everything, new
