"""From a gallery to a panel: by a button, or by dragging a rank into a field of the panel.

The drag needs no script: a card's rank is a link, browsers drop a link's address into any text
field, and the address says which feature it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ipywidgets as w

from kit.widgets.gallery.card import dropped

if TYPE_CHECKING:
    from kit.steering.intervention import Intervention
    from kit.widgets.panel.panel import SteeringPanel


def put(panel: SteeringPanel, vector: Intervention, coefficient: float) -> str:
    """Put a vector on a panel at a coefficient, and run the panel.

    A vector that is there already, whatever its name, gets that coefficient.

    Returns:
        The name that it has on the panel.

    Raises:
        ValueError: it does not fit the panel's model.
    """
    there = [row for row in panel._vectors.children if _same(row.vector, vector)]
    if there:
        there[0].on.value = True
        panel.set(there[0].vector.name, coefficient)
    else:
        panel.add(vector, coefficient)
    panel.run(wait=False)
    return str((there or panel._vectors.children)[-1].vector.name)


def drop_field(panel: SteeringPanel, on_drop: Callable[[int], None]) -> w.Text:
    """A field below the panel's vectors; ``on_drop`` gets the rank that was dropped into it."""
    field = w.Text(
        placeholder="drop the rank of a gallery's card here", layout=w.Layout(width="auto", max_width="320px")
    )
    field.add_class("kit-drop")
    rows = list(panel.children)
    rows.insert(rows.index(panel._vectors) + 1, field)
    panel.children = tuple(rows)

    def changed(change: Any) -> None:
        rank = dropped(change["new"])
        if rank is not None:
            field.value = ""
            on_drop(rank)

    field.observe(changed, "value")
    return field


def _same(a: Any, b: Any) -> bool:
    """Whether two vectors steer alike, whatever they are called."""
    if not hasattr(a, "direction") or not hasattr(b, "direction"):
        return a is b
    return (a.layer, a.norm) == (b.layer, b.norm) and bool((a.direction == b.direction).all())
