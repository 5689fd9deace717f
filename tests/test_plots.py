"""Figures show the numbers they were given, and refuse what they cannot show."""
from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import pytest

pd = pytest.importorskip("pandas")
plt = pytest.importorskip("matplotlib.pyplot")

from kit import plots


def table(factor: float = 1.0) -> Any:
    """Effect = factor * layer * coefficient, plus what averages out over the two prompts."""
    rows = [
        (layer, c, prompt, factor * layer * c + (prompt - 0.5), c * c)
        for layer in (4, 10)
        for c in (-0.5, 0.25, 0.5)
        for prompt in (0, 1)
    ]
    return pd.DataFrame(rows, columns=["layer", "coefficient", "prompt", "effect", "kl"])


def grid(axis: Any) -> Any:
    return axis.images[0].get_array()


def test_heat_map_shows_the_mean_over_prompts_at_its_place() -> None:
    effect, kl = plots.heat_map(table()).axes
    assert [t.get_text() for t in effect.get_yticklabels()] == ["10", "4"]  # deep layers on top
    assert [t.get_text() for t in effect.get_xticklabels()] == ["-0.5", "+0.25", "+0.5"]
    assert grid(effect).tolist() == [[-5, 2.5, 5], [-2, 1, 2]]
    assert grid(kl).tolist() == [[0.25, 0.0625, 0.25]] * 2
    assert [t.get_text() for t in effect.texts] == ["-5.0", "2.5", "5.0", "-2.0", "1.0", "2.0"]
    assert kl.texts[1].get_text() == "0.06"
    assert "nats" in effect.get_title() and "KL" in kl.get_title()


def test_effect_colours_are_symmetric_and_cost_colours_are_not() -> None:
    effect, kl = plots.heat_map(table()).axes
    assert effect.images[0].get_clim() == (-5, 5)
    assert kl.images[0].get_clim() == (0.0625, 0.25)
    assert effect.images[0].cmap.name == "RdBu_r" and kl.images[0].cmap.name == "viridis"


def test_several_tables_share_their_colours() -> None:
    axes = plots.heat_map({"real": table(), "random": table(0.1)}, title="found").axes
    assert len(axes) == 4
    assert axes[0].images[0].get_clim() == axes[2].images[0].get_clim() == (-5, 5)
    assert axes[2].get_title().startswith("random")


def test_a_cell_that_was_not_measured_stays_empty() -> None:
    part = table()
    part = part[(part.layer != 4) | (part.coefficient != 0.25)]
    effect = plots.heat_map(part, ["effect"]).axes[0]
    assert len(effect.texts) == 5


def test_all_zero_effects_are_drawn() -> None:
    assert plots.heat_map(table().assign(effect=0.0)).axes[0].images[0].get_clim() == (-1, 1)


@pytest.mark.parametrize(
    ("given", "values", "names"),
    [
        (table(), ("effect", "colour"), "colour"),
        (table().iloc[:0], ("effect",), "0 rows"),
        ({}, ("effect",), "at least one"),
        (table(), (), "at least one"),
        (table(), "kl", "at least one"),
    ],
)
def test_heat_map_refuses(given: Any, values: Any, names: str) -> None:
    with pytest.raises(ValueError, match=names):
        plots.heat_map(given, values)


def test_curves_draw_lines_bands_and_chance() -> None:
    figure = plots.curves(range(3), {"mean": [0.5, 0.9, 1.0], "pca": [0.5, 0.8, 0.9]},
                          bands={"random": [[0.4, 0.6, 0.5], [0.5, 0.3, 0.7]]}, chance=0.5,
                          ylim=(0, 1), xlabel="layer", ylabel="AUROC", title="t")  # fmt: skip
    axis = figure.axes[0]
    drawn = {line.get_label(): list(line.get_ydata()) for line in axis.lines}
    assert drawn["mean"] == [0.5, 0.9, 1.0]
    corners = axis.collections[0].get_paths()[0].vertices
    assert corners[:, 1].min() == 0.3 and corners[:, 1].max() == 0.7
    assert {t.get_text() for t in axis.get_legend().get_texts()} == {"random", "mean", "pca"}
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("layer", "AUROC")
    assert axis.get_ylim() == (0, 1)
    assert plots.curves([0, 1], {"a": [5, 6]}).axes[0].get_ylim()[0] > 4


@pytest.mark.parametrize(
    "broken", [{"lines": {"a": [1.0]}}, {"lines": {}, "bands": {"a": [[1.0, 2.0]]}},
               {"lines": {}, "bands": {"a": [1.0, 2.0, 3.0]}}]
)  # fmt: skip
def test_curves_refuse_other_lengths(broken: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="'a'"):
        plots.curves(range(3), **broken)


def test_spread_shows_every_value_and_the_mean() -> None:
    axis = plots.spread({"real": [1.0, 2.0, 6.0], "random": [-1.0, 1.0]}, xlabel="nats").axes[0]
    dots = [line for line in axis.lines if line.get_marker() == "."]
    assert sorted(dots[0].get_xdata()) == [1.0, 2.0, 6.0]
    bars = [line for line in axis.lines if line.get_linewidth() == 3]
    assert [bar.get_xdata()[0] for bar in bars] == [3.0, 0.0]
    assert axis.get_ylim()[0] > axis.get_ylim()[1]  # the first group is on top


@pytest.mark.parametrize("groups", [{}, {"a": []}])
def test_spread_refuses_what_is_empty(groups: Any) -> None:
    with pytest.raises(ValueError, match="groups"):
        plots.spread(groups)


def test_figures_are_small_closed_and_alike() -> None:
    def png() -> bytes:
        file = io.BytesIO()
        plots.heat_map({"a": table(), "b": table()}).savefig(file, metadata={"Software": None})
        return file.getvalue()

    assert png() == png()
    assert len(png()) < 60_000
    assert plt.get_fignums() == []


def test_import_brings_no_matplotlib() -> None:
    code = "import sys, kit.plots; sys.exit('matplotlib' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
