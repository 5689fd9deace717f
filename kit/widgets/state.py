"""What a panel says about a run: its settings, its progress, its frozen state."""
from __future__ import annotations

from collections.abc import Sequence

from kit import render
from kit.widgets.controller import Frame, Request


def settings(model: str, request: Request) -> list[tuple[str, str]]:
    """Name and value of whatever the texts of a run depend on."""
    system = [("system", request.system)] if request.system else []
    return [
        ("model", model), ("input", "chat" if request.chat else "raw text"), *system,
        ("positions", str(request.positions)), ("op", request.op),
        ("tokens", str(request.max_new_tokens)), ("temperature", f"{request.temperature:g}"),
        ("seed", str(request.seed)),
    ]


def frozen(model: str, frame: Frame, subtitles: Sequence[str], hooks: Sequence[str]) -> str:
    """A frame as HTML that needs no kernel."""
    titles = [arm.title for arm in frame.request.arms]
    return render.frozen(
        "Steering panel", frame.request.prompt, settings(model, frame.request),
        list(zip(titles, subtitles, frame.rows, strict=False)), frame.receipt, hooks,
    )


def status(word: str, frame: Frame | None = None) -> str:
    """``done · 40 tokens · 31/s · first after 0.12 s``"""
    numbers = ""
    if frame is not None and frame.steps:
        first = "" if frame.first_token is None else f" · first after {frame.first_token:.2f} s"
        numbers = f" · {frame.steps} tokens · {frame.tokens_per_second:.0f}/s{first}"
    return (f'<span role="status" style="font-size:12px;opacity:.8;font-variant-numeric:'
            f'tabular-nums;white-space:nowrap">{word}{numbers}</span>')
