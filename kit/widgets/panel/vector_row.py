"""One vector of a panel: on or off, slider with the safe range shaded, remove."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape
from typing import Any

import ipywidgets as w

from kit.steering.intervention import Intervention
from kit.steering.render import STRONG
from kit.widgets import frame
from kit.widgets.panel.arms import signed


class VectorRow(w.HBox):
    """Checkbox, name and layer, slider in residual-scale units, "Find safe range", remove."""

    def __init__(
        self,
        vector: Intervention,
        layers: list[int],
        coefficient: float,
        *,
        on_change: Callable[[], None],
        on_remove: Callable[[VectorRow], None],
        on_calibrate: Callable[[VectorRow], None],
    ) -> None:
        """Args: ``layers`` where the vector acts; the callbacks get this row."""
        self.vector, self.layers = vector, layers
        self.safe: tuple[float, float] | None = None
        self._exact = self._known = 0.0
        self.on = w.Checkbox(
            True, indent=False, tooltip=f"{vector.name} on or off", layout=w.Layout(width="22px", flex="0 0 auto")
        )
        where = f"layer {layers[0]}" if len(layers) == 1 else f"{len(layers)} layers"
        title = w.HTML(
            f'<div title="{escape(vector.name)}" style="white-space:nowrap;overflow:hidden;'
            f'text-overflow:ellipsis;font-size:14px"><b>{escape(vector.name)}</b> '
            f'<span style="opacity:.75;font-size:12px">{where}</span></div>',
            layout=w.Layout(width="190px", min_width="104px", flex="0 1 190px"),
        )
        self.slider = w.FloatSlider(
            value=0.0,
            min=-1.0,
            max=1.0,
            step=0.01,
            readout_format="+.2f",
            tooltip=f"coefficient of {vector.name}",
            layout=w.Layout(flex="1 1 240px", min_width="150px"),
        )
        self.slider.add_class("kit-slider")
        self._mark = f"kit-slider-{self.slider.model_id}"
        self.slider.add_class(self._mark)
        self._shade = w.HTML(layout=w.Layout(width="0", flex="0 0 0", margin="0"))
        self._range = w.HTML(layout=w.Layout(width="144px", flex="0 0 144px", margin="2px"))
        self.find = w.Button(
            description="Find safe range",
            layout=w.Layout(width="144px", flex="0 0 144px"),
            tooltip=f"measure which coefficients cost {STRONG} nats a token",
        )
        self.remove = w.Button(
            description="×", tooltip=f"remove {vector.name}", layout=w.Layout(width="30px", flex="0 0 30px")
        )
        self.remove.add_class("kit-icon")
        super().__init__(
            [self.on, title, self.slider, self._shade, self._range, self.find, self.remove],
            layout=w.Layout(align_items="center", width="100%"),
        )
        found = getattr(vector, "metadata", {}).get("calibration")
        self.set_range(found) if usable(found) else self._no_range()
        self.set(coefficient)
        self._known = self.coefficient
        self.slider.observe(lambda _change: self._moved(on_change), "value")
        self.on.observe(lambda _change: on_change(), "value")
        self.remove.on_click(lambda _button: on_remove(self))
        self.find.on_click(lambda _button: on_calibrate(self))

    @property
    def coefficient(self) -> float:
        """What the slider stands for: the number that was set, until a hand moves it away.

        A browser rounds a slider to its grid as soon as it draws it and reports that as a change.
        """
        value = self.slider.value
        near = abs(value - self._exact) < 0.6 * self.slider.step
        return self._exact if near else round(value, 6)

    def _moved(self, on_change: Callable[[], None]) -> None:
        if self.coefficient != self._known:
            self._known = self._exact = self.coefficient
            on_change()

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

    def set_range(self, calibration: Any) -> None:
        """Shade the range that a calibration found, and fit the slider around it."""
        low, high = float(calibration["low"]), float(calibration["high"])
        self.safe = (low, high)
        half = math.ceil(10 * max(2 * abs(low), 2 * abs(high), 0.2)) / 10
        self._resize(max(half, abs(self.slider.value)))
        text, why = range_label(calibration)
        self._range.value = (
            f'<div style="font-size:12px;opacity:.85;white-space:nowrap" title="{escape(why)}">{text}</div>'
        )
        self._range.layout.display, self.find.layout.display = "", "none"

    def _resize(self, half: float) -> None:
        with self.slider.hold_trait_notifications():
            self.slider.min, self.slider.max = -half, half
            self.slider.step = 0.01 if half <= 10 else half / 1000
        if self.safe:
            self._shade.value = frame.safe_range(self._mark, *self.safe, self.ends)

    def _no_range(self) -> None:
        self._range.layout.display = "none"


def range_label(calibration: Any) -> tuple[str, str]:
    """What a range is called on screen, and why: a bound on cost, or the radius of training.

    ``kind="radius"`` (:func:`kit.search.features.vector`) says nothing about cost. Its ``ratio`` is the
    non-linear over the linear part of the change there (default 0.5); None: never calibrated.
    """
    low, high = float(calibration["low"]), float(calibration["high"])
    ends = f"{signed(low)} to {signed(high)}"
    if calibration.get("kind") != "radius":
        target = calibration.get("target_kl", STRONG)
        return f"safe {ends}", f"range in which the mean KL stays below {target:g} nats a token"
    if low == -high:
        ends = signed(high).replace("+", "±")
    ratio = calibration.get("ratio", 0.5)
    if ratio is None or not math.isfinite(ratio):
        return f"radius {ends}", "the norm at which it was trained; nobody calibrated it"
    part = "half" if abs(ratio - 0.5) < 0.05 else f"{ratio:.2g} times"
    return (f"calibrated {ends}", f"the norm where the non-linear part of the change is {part} the linear part")


def usable(calibration: Any) -> bool:
    """Whether metadata holds a range with numbers in it."""
    try:
        low, high = float(calibration["low"]), float(calibration["high"])
    except (TypeError, KeyError, ValueError):
        return False
    return math.isfinite(low) and math.isfinite(high) and low < high
