"""What a spec is written with: `Wrong`, and helpers that turn an answer's faults into one."""

from __future__ import annotations

import linecache
import traceback
from collections.abc import Iterable
from typing import Any


class Wrong(Exception):
    """What a spec raises: what arrived, what was expected, and the likely cause."""

    def __init__(self, *, arrived: str, expected: str, likely: str) -> None:
        super().__init__(f"arrived:  {arrived}\nexpected: {expected}\nlikely:   {likely}")


def describe(value: Any) -> str:
    """A value in a few words: tensors by dtype, shape and first numbers."""
    try:
        if hasattr(value, "detach") and hasattr(value, "flatten"):
            first = ", ".join(f"{number:.4g}" for number in value.detach().flatten()[:4].tolist())
            more = ", ..." if value.numel() > 4 else ""
            return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}: {first}{more}"
        if callable(value):
            return f"the function {getattr(value, '__name__', type(value).__name__)}"
        text = repr(value)
        return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
    except Exception:  # an answer may be anything, also an object whose repr is broken
        return f"a {type(value).__name__}"


def as_tensor(value: Any) -> Any:
    """A list, an array or a number as a tensor, float32 if it is of floats; all else as it is."""
    import torch

    if isinstance(value, torch.Tensor | str | bytes):
        return value
    try:
        found = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return value
    return found.float() if found.is_floating_point() else found


def apart(got: Any, want: Any, *, rtol: float, atol: float) -> tuple[str, str]:
    """`got` and `want` in a few words; of tensors of one shape, the first entries that differ."""
    if not hasattr(got, "isclose") or got.shape != want.shape or not got.dim():
        return describe(got), describe(want)
    a, b = got.detach().double(), want.detach().double()
    off = (~a.isclose(b, rtol=rtol, atol=atol)).nonzero().tolist()
    first = [tuple(place) for place in off[:3]]

    def told(x: Any) -> str:
        entries = ", ".join(f"{list(at)} is {float(x[at]):.4g}" for at in first)
        return f"{describe(x).partition(':')[0]}: {entries}{', ...' if len(off) > 3 else ''}"

    return f"{told(got)} ({len(off)} of {got.numel()} entries differ)", told(want)


def call(answer: Any, *args: Any, likely: str = "") -> Any:
    """Call the learner's function; turn what goes wrong inside it into `Wrong`.

    `likely` is the cause to name when it raises. The error of a stub passes through.
    """
    if not callable(answer):
        likely = "the function was called: pass its name, without parentheses"
        raise Wrong(arrived=describe(answer), expected="a function", likely=likely)
    try:
        result = answer(*args)
    except Exception as error:
        if is_stub(error):
            raise
        expected = f"a result for {'; '.join(describe(arg) for arg in args)}"
        likely = likely or "read the line that is named; print the shapes just before it"
        raise Wrong(arrived=describe_error(error), expected=expected, likely=likely) from error
    if result is None or result is Ellipsis:
        likely = "there is no return statement"
        raise Wrong(arrived=repr(result), expected="a result", likely=likely)
    return result


def compare(got: Any, want: Any, known: Iterable[tuple[str, Any]] = (), *, atol: float = 1e-4) -> None:
    """Raise `Wrong` unless tensor `got` equals `want` in type, shape and values.

    `want` is a tensor or what makes one, and so is `got`: right numbers in a list or an array are
    right, and `Exercise.usable` makes tensors of them for later cells. `known` pairs a likely cause
    with what that mistake gives.
    """
    import torch

    want = torch.as_tensor(want)
    plain = not isinstance(got, torch.Tensor)
    got = as_tensor(got)

    def same(other: Any) -> bool:
        other = torch.as_tensor(other)
        close = got.shape == other.shape
        return close and torch.allclose(got.double(), other.double(), rtol=1e-3, atol=atol)

    def wrong(likely: str) -> Wrong:
        arrived, expected = apart(got, want, rtol=1e-3, atol=atol)
        return Wrong(arrived=arrived, expected=expected, likely=likely)

    if not isinstance(got, torch.Tensor) or (plain and not got.dim() and want.dim()):
        raise wrong(f"return a tensor of shape {list(want.shape)}: no .item(), no text, no ragged list")
    if not plain and not got.is_floating_point():
        raise wrong("the result was rounded or compared: keep floating-point numbers")
    if same(want):
        return
    for cause, other in known:
        if same(other):
            raise wrong(cause)
    if got.shape != want.shape:
        raise wrong("a dimension was dropped, added or swapped: print the shape after each step")
    if not got.isfinite().all():
        raise wrong("a division by zero, or the logarithm of zero, gave nan or inf")
    off = (got.double() - want.double()).abs().max().item()
    raise wrong(f"the shape is right, the formula is not (largest difference {off:.3g})")


def _last_frame(error: BaseException) -> tuple[Any, int] | None:
    frames = list(traceback.walk_tb(error.__traceback__))
    return frames[-1] if frames else None


def is_stub(error: BaseException) -> bool:
    """Was this raised by an unwritten answer?

    PyTorch raises NotImplementedError too ("not implemented for 'Half'"); a stub names it itself.
    """
    last = _last_frame(error)
    named = last is not None and "NotImplementedError" in last[0].f_code.co_names
    return isinstance(error, NotImplementedError) and named


def describe_error(error: BaseException) -> str:
    """Type and first line of an error, and the line of code that raised it."""
    text = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}".rstrip(": ")
    last = _last_frame(error)
    if last is None:
        return text
    code = last[0].f_code  # the file is left out: a notebook cell has no name worth reading
    line = linecache.getline(code.co_filename, last[1]).strip()
    return f"{text}, in {code.co_name}" + (f": {line}" if line else "")
