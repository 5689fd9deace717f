"""Chat templates: programs that a model's folder brings along, run for a bounded number of steps.

They run in jinja's sandbox, from which they reach no file and no code, but which lets them loop for
ever and fill memory.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

MOST_STEPS = 50_000  # lines of a template's program; those of known models take hundreds a message
_MOST = 10**5  # a number in a template, and letters of a text that it builds beside the messages
_LONG = re.compile(r"\d{6,}")


def apply(tokenizer: Any, messages: Sequence[Any], **options: Any) -> Any:
    """``tokenizer.apply_chat_template(messages, ...)``, which ends.

    Raises:
        ValueError: the template takes too many steps, builds something huge or fails in another
            way than jinja's errors, which go through.
    """
    _check(str(options.get("chat_template") or tokenizer.chat_template))
    size = sum(len(str(message)) for message in messages)
    with _steps_at_most(MOST_STEPS * (1 + len(messages) // 10), _MOST + 100 * size):
        return tokenizer.apply_chat_template(messages, **options)


@lru_cache(maxsize=32)
def _check(template: str) -> None:
    """Refuse what takes for ever, or all memory, within one step of a program: powers, and numbers
    that no template needs."""
    from jinja2 import Environment, TemplateSyntaxError

    try:
        found = [(kind, value) for _, kind, value in Environment().lex(template)]
    except TemplateSyntaxError:
        return  # who renders it says so
    for kind, value in found:
        huge = kind == "integer" and int(value.replace("_", ""), 0) > _MOST
        wide = kind == "string" and ("%" in value or "{" in value) and _LONG.search(value)
        if huge or wide or (kind == "operator" and value == "**"):
            raise ValueError(f"the chat template holds {value!r:.40}, which could take all time or memory: not run")


@contextmanager
def _steps_at_most(most: int, size: int) -> Iterator[None]:
    left = most

    def enter(frame: Any, event: str, given: Any) -> Any:
        name = frame.f_code.co_filename
        return step if name == "<template>" or "jinja2" in name else None

    def step(frame: Any, event: str, given: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise _Endless(f"takes more than {most:,} steps: it may have no end")
        if frame.f_code.co_filename == "<template>" and any(_big(value, size) for value in frame.f_locals.values()):
            raise _Endless(f"builds a text or list beyond {size:,}, or a number beyond 64 bits")
        return step

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        yield
    except (_Endless, ArithmeticError, MemoryError, RecursionError) as error:
        said = error if isinstance(error, _Endless) else f"fails: {error!r:.200}"
        raise ValueError(f"the chat template {said}") from None
    finally:
        sys.settrace(before)


class _Endless(Exception):
    pass


def _big(value: Any, size: int) -> bool:
    if isinstance(value, int):
        return value.bit_length() > 64
    if isinstance(value, str | list | tuple):
        return len(value) > size
    if type(value).__name__.endswith("Namespace"):  # of {% set ns = namespace(...) %}
        return any(_big(each, size) for each in value._Namespace__attrs.values())
    return False
