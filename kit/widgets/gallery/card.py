"""One card of a gallery; it is bound to one feature after the other as pages turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets as w

from kit.base.html import isolated
from kit.widgets import frame
from kit.widgets.gallery.features import Feature


class FeatureCard(w.VBox):
    """Rank, name to edit, star, hide, "to panel"; below them what the gallery draws in ``body``."""

    def __init__(self, feature: Feature, panel: bool) -> None:
        """Args: ``panel``: whether there is a panel to add to."""
        self._drag = "; drag it to the panel's field" if panel else ""
        self.rank = w.HTML(layout=w.Layout(flex="0 0 auto"))
        self.rank.add_class("kit-rank")
        self.name = w.Text(
            continuous_update=False,
            tooltip="click to rename",
            layout=w.Layout(flex="1 1 60px", min_width="40px", width="auto"),
        )
        self.star = w.ToggleButton(description="☆", tooltip="star", layout=w.Layout(width="32px", flex="0 0 auto"))
        self.hide = w.ToggleButton(
            description="Hide",
            tooltip="hide this feature; the filter shows it again",
            layout=w.Layout(width="52px", flex="0 0 auto"),
        )
        self.add = frame.button("→ panel", "68px")
        self.add.layout.display = "" if panel else "none"
        head = w.HBox([self.rank, self.name, self.star, self.hide, self.add])
        head.add_class("kit-card-head")
        self.body = w.HTML()
        self.body.add_class("kit-card-body")
        super().__init__([head, self.body])
        self.add_class("kit-card")
        self.bind(feature)

    def on_change(self, control: w.Widget, act: Callable[[int, Any], None]) -> None:
        """Call ``act`` with the feature's rank and the new value, when a hand changed a control."""

        def changed(change: Any) -> None:
            if not self._quiet:
                act(self.feature.rank, change["new"])

        control.observe(changed, "value")

    def bind(self, feature: Feature) -> None:
        """Show another feature, or the same one after it changed."""
        self.feature, self._quiet = feature, True
        try:
            # a link drops its address into a text field, without a script; this one leads nowhere
            self.rank.value = (
                f'<a href="data:,{drag_mark(feature)}" draggable="true" title="rank '
                f'{feature.rank}{self._drag}">{feature.rank}</a>'
            )
            self.name.value = feature.name
            self.star.value, self.hide.value = feature.starred, feature.hidden
            self.star.tooltip = f"star {isolated(feature.name)}"
            self.star.description = "★" if feature.starred else "☆"
            self.hide.description = "Show" if feature.hidden else "Hide"
            self.add.tooltip = f"add to the panel at {feature.coefficient:+.3g}"
        finally:
            self._quiet = False


# A card's rank is a link. Browsers drop a link's address into any text field, without a script, and
# the address says which feature it is.


def drag_mark(feature: Feature) -> str:
    """What a dropped rank says: found again by :func:`dropped`."""
    return f"kit-feature-{feature.rank}"


def dropped(text: str) -> int | None:
    """The rank in what was dropped into a field; None when it is something else."""
    _, mark, rest = text.rpartition("kit-feature-")
    return int(rest) if mark and rest.strip().isdecimal() else None


def drop_field(on_drop: Callable[[int], None]) -> w.Text:
    """A field for a panel; ``on_drop`` gets the rank that was dropped into it."""
    field = w.Text(
        placeholder="drop the rank of a gallery's card here", layout=w.Layout(width="auto", max_width="320px")
    )
    field.add_class("kit-drop")

    def changed(change: Any) -> None:
        rank = dropped(change["new"])
        if rank is not None:
            field.value = ""
            on_drop(rank)

    field.observe(changed, "value")
    return field
