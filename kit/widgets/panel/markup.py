"""A panel's state as HTML. Every text passes ``html.escape``."""

from __future__ import annotations

from collections.abc import Sequence

from kit.steering import render
from kit.widgets.panel.controller import Frame


def frozen(model: str, frame: Frame, hooks: Sequence[str]) -> str:
    """A frame, and whatever its texts depend on, as HTML that needs no kernel."""
    request = frame.request
    settings = {
        "model": model,
        "input": "chat" if request.chat else "raw text",
        "system": request.system,
        "positions": str(request.positions),
        "op": request.op,
        "tokens": str(request.max_new_tokens),
        "temperature": f"{request.temperature:g}",
        "seed": str(request.seed),
    }
    about = [(name, value) for name, value in settings.items() if value]
    columns = [(arm.title, arm.subtitle, row) for arm, row in zip(request.arms, frame.rows, strict=False)]
    return render.frozen("Steering panel", request.prompt, about, columns, frame.receipt, hooks)


def status(word: str, frame: Frame | None = None) -> str:
    """``done · 40 tokens · 31/s · first after 0.12 s``"""
    numbers = ""
    if frame is not None and frame.steps:
        first = "" if frame.first_token is None else f" · first after {frame.first_token:.2f} s"
        numbers = f" · {frame.steps} tokens · {frame.tokens_per_second:.0f}/s{first}"
    return (
        f'<span role="status" style="font-size:12px;opacity:.8;font-variant-numeric:'
        f'tabular-nums;white-space:nowrap">{word}{numbers}</span>'
    )
