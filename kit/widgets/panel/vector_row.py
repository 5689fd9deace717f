"""One vector of a panel: on or off, slider with its range shaded, remove."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape
from typing import Any

import ipywidgets as w

from kit.base.html import SAFE, inline, isolated
from kit.steering.dose import Dose
from kit.steering.intervention import Intervention
from kit.steering.render import NEAR
from kit.widgets import frame
from kit.widgets.panel.arms import signed


class VectorRow(w.HBox):
    """Checkbox, name and layer, slider in residual-scale units, "Find near range", remove.

    Attributes:
        on, slider, find, remove: its inputs; see also :meth:`on_change`.
        where: the layer where the vector acts, or how many they are.
        safe: the range that is shaded; None before one is known.
    """

    def __init__(self, vector: Intervention, layers: list[int], coefficient: float) -> None:
        """Args: ``layers`` where the vector acts."""
        self.vector = vector
        self.where = f"layer {layers[0]}" if len(layers) == 1 else f"{len(layers)} layers"
        self.safe: tuple[float, float] | None = None
        self._exact = self._known = 0.0
        self.on = w.Checkbox(
            True,
            indent=False,
            tooltip=f"{isolated(vector.name)} on or off",
            layout=w.Layout(width="22px", flex="0 0 auto"),
        )
        title = w.HTML(
            f'<div title="{inline(vector.name)}" style="white-space:nowrap;overflow:hidden;'
            f'text-overflow:ellipsis;font-size:14px"><b>{inline(vector.name)}</b> '
            f'<span style="opacity:.75;font-size:12px">{self.where}</span></div>',
            layout=w.Layout(width="220px", min_width="104px", flex="0 1 220px"),
        )
        self.slider = w.FloatSlider(
            value=0.0,
            min=-1.0,
            max=1.0,
            step=0.01,
            readout_format="+.2f",
            tooltip=f"coefficient of {isolated(vector.name)}",
            layout=w.Layout(flex="1 1 240px", min_width="150px"),
        )
        self._mark = f"kit-slider-{self.slider.model_id}"
        for name in ("kit-slider", self._mark):
            self.slider.add_class(name)
        self._shade = w.HTML(layout=w.Layout(width="0", flex="0 0 0", margin="0"))
        self._range = w.HTML(layout=w.Layout(width="144px", flex="0 0 144px", margin="2px"))
        self.find = frame.button(
            "Find near range", "144px", f"measure up to which coefficients the mean KL stays below {NEAR} nats a token"
        )
        self.remove = frame.button("×", "30px", f"remove {isolated(vector.name)}")
        self.remove.add_class("kit-icon")
        super().__init__(
            [self.on, title, self.slider, self._shade, self._range, self.find, self.remove],
            layout=w.Layout(align_items="center", width="100%"),
        )
        dose = Dose.of(vector)
        if dose.has_range:
            self.set_range(dose)
        else:
            self._range.layout.display = "none"
        self.set(coefficient)
        self._known = self.coefficient

    def on_change(self, act: Callable[[], None]) -> None:
        """Call ``act`` whenever the coefficient changes, or the vector is switched on or off."""

        def moved(_change: Any) -> None:
            if self.coefficient != self._known:
                self._known = self._exact = self.coefficient
                act()

        self.slider.observe(moved, "value")
        self.on.observe(lambda _change: act(), "value")

    @property
    def coefficient(self) -> float:
        """What the slider stands for: the number that was set, until a hand moves it away.

        A browser rounds a slider to its grid as soon as it draws it and reports that as a change.
        """
        value = self.slider.value
        near = abs(value - self._exact) < 0.6 * self.slider.step
        return self._exact if near else round(value, 6)

    @property
    def ends(self) -> tuple[float, float]:
        """The range of the slider."""
        return self.slider.min, self.slider.max

    def set(self, coefficient: float) -> None:
        """Move the slider, and widen its range when it ends before.

        Raises:
            ValueError: not a finite number.
        """
        if not math.isfinite(coefficient):
            raise ValueError(f"coefficient={coefficient!r}: it must be a finite number")
        if not self.slider.min <= coefficient <= self.slider.max:
            self._resize(abs(coefficient))
        self._exact = float(coefficient)
        self.slider.value = coefficient

    def set_range(self, dose: Dose) -> None:
        """Shade the range that was found, and fit the slider around it."""
        low, high = dose.low or 0.0, dose.high or 0.0
        self.safe = (low, high)
        half = math.ceil(10 * max(2 * abs(low), 2 * abs(high), 0.2)) / 10
        self._resize(max(half, abs(self.slider.value)))
        text, why = range_label(dose)
        self._range.value = (
            f'<div style="font-size:12px;opacity:.85;white-space:nowrap" title="{escape(why)}">{escape(text)}</div>'
        )
        self._range.layout.display, self.find.layout.display = "", "none"

    def _resize(self, half: float) -> None:
        with self.slider.hold_trait_notifications():
            self.slider.min, self.slider.max = -half, half
            self.slider.step = 0.01 if half <= 10 else half / 1000
        if self.safe:
            self._shade.value = _shaded(self._mark, self.safe, self.ends)


def _shaded(name: str, safe: tuple[float, float], ends: tuple[float, float]) -> str:
    """A style sheet that shades a range on the track of the slider of class ``name``.

    A band of the track's own box, so that it stays aligned however wide the slider is.
    """
    start, end = ends
    left = max(0.0, (safe[0] - start) / (end - start))
    right = max(0.0, (end - safe[1]) / (end - start))
    return (
        f"<style>.kit-panel .{name} .noUi-base::before {{content:''; position:absolute; "
        f"left:{left:.2%}; right:{right:.2%}; top:-7px; height:18px; border-radius:3px; "
        f"background:rgba({SAFE},.26); border:solid rgba({SAFE},.75); "
        "border-width:0 2px; box-sizing:border-box; pointer-events:none}</style>"
    )


def range_label(dose: Dose) -> tuple[str, str]:
    """What a range is called on screen, and why: a bound on distance, in the dose meter's words, or
    the radius of training (:func:`kit.search.features.vector`), which bounds none."""
    low, high = dose.low or 0.0, dose.high or 0.0
    ends = f"{signed(low)} to {signed(high)}"
    if dose.kind != "radius":
        target = NEAR if dose.target is None else dose.target
        word = "near" if target == NEAR else f"KL<{target:g}"
        return f"{word} {ends}", f"range in which the mean KL stays below {target:g} nats a token; read the text, too"
    if low == -high:
        ends = signed(high).replace("+", "±")
    if dose.target is None:
        return f"radius {ends}", "the norm at which it was trained"
    part = "half" if abs(dose.target - 0.5) < 0.05 else f"{dose.target:.2g} times"
    return f"radius {ends}", f"the norm where the non-linear part of the change is {part} the linear part"
