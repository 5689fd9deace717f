"""What a run really steered, written down by the hook that did it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Entry:
    """What one intervention did, counted inside the hook: per row, positions and sizes."""

    name: str
    layers: list[int]
    op: str
    prompt_steered: list[int]
    decode_steered: list[int]
    ratios: list[list[float]]


@dataclass
class Receipt:
    """What a run really steered. ``str(receipt)`` is what the panel shows.

    Attributes:
        entries: one for each intervention.
        prompt_positions: tokens of the prompt (of the first row).
        decode_steps: forward passes after the prompt's. n new tokens need n - 1 of them, since the
            prompt's own pass produces the first.
        other_hooks: names of hooks on the model that the kit did not set.
    """

    entries: list[Entry] = field(default_factory=list)
    prompt_positions: int = 0
    decode_steps: int = 0
    other_hooks: list[str] = field(default_factory=list)

    def row(self, row: int) -> Receipt:
        """The same receipt with the numbers of one batch row."""
        entries = [
            Entry(e.name, e.layers, e.op, [e.prompt_steered[i]], [e.decode_steered[i]], [e.ratios[i]])
            for e in self.entries
            for i in [min(row, len(e.ratios) - 1)]
        ]
        return Receipt(entries, self.prompt_positions, self.decode_steps, self.other_hooks)

    def __str__(self) -> str:
        lines = []
        for e in self.entries:
            layers = ", ".join(map(str, sorted(set(e.layers))))
            sizes = [sorted(r)[len(r) // 2] for r in e.ratios if r]
            size = (
                " to ".join(f"{s:.2f}" for s in sorted({round(min(sizes), 2), round(max(sizes), 2)})) if sizes else "0"
            )
            lines.append(
                f"{e.name} · layer{'s' * (', ' in layers)} {layers} · {e.op} · "
                f"{max(e.prompt_steered)}/{self.prompt_positions} prompt positions · "
                f"{max(e.decode_steered)}/{self.decode_steps} decode steps · |cv|/|h| = {size}"
            )
        if not lines:
            lines.append(
                f"nothing steered · {self.prompt_positions} prompt positions · {self.decode_steps} decode steps"
            )
        if self.other_hooks:
            lines.append(f"also hooked: {', '.join(self.other_hooks)}")
        return "\n".join(lines)
