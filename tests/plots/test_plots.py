"""Figures show the numbers they were given, and refuse what they cannot show."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import pytest

from kit import plots

pd = pytest.importorskip("pandas")
plt = pytest.importorskip("matplotlib.pyplot")


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


def test_no_two_of_many_curves_look_alike() -> None:
    figure = plots.curves([0, 1], {str(i): [i, i + 1] for i in range(14)})
    looks = [(line.get_color(), line.get_marker(), line.get_linestyle()) for line in figure.axes[0].lines]
    assert len(looks) == len(set(looks)) == 14


def test_curves_draw_lines_bands_and_chance() -> None:
    figure = plots.curves(
        range(3),
        {"mean": [0.5, 0.9, 1.0], "pca": [0.5, 0.8, 0.9]},
        bands={"random": [[0.4, 0.6, 0.5], [0.5, 0.3, 0.7]]},
        chance=0.5,
        ylim=(0, 1),
        xlabel="layer",
        ylabel="AUROC",
        title="t",
    )
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
    "broken",
    [
        {"lines": {"a": [1.0]}},
        {"lines": {}, "bands": {"a": [[1.0, 2.0]]}},
        {"lines": {}, "bands": {"a": [1.0, 2.0, 3.0]}},
    ],
)
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


def test_intervals_show_value_and_bounds() -> None:
    axis = plots.intervals({"ours": (0.8, 0.6, 0.9), "random": (0.0, 0.0, 0.0)}).axes[0]
    _, *drawn = axis.lines
    assert [list(line.get_xdata()) for line in drawn] == [[0.6, 0.9], [0.8], [0.0, 0.0], [0.0]]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["ours", "random"]


@pytest.mark.parametrize("rows", [{}, {"a": (0.5, 0.6, 0.9)}, {"a": (0.5, 0.4)}])
def test_intervals_refuse_what_is_no_interval(rows: Any) -> None:
    with pytest.raises(ValueError, match=r"value, low, high"):
        plots.intervals(rows)


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


# sets of directions


def radius(**changes: Any) -> Any:
    from kit.search.radius import Radius

    curve = [(r, r / 20, [r / 30, r / 20, r / 15]) for r in (5.0, 10.0, 20.0)]
    return Radius(**{"value": 10.0, "coefficient": 0.2, "ratio": 0.5, "curve": curve} | changes)


def test_linear_radius_shows_curve_spread_and_choice() -> None:
    figure = plots.linear_radius(radius())
    axis = figure.axes[0]
    curve, *_, star = axis.lines
    assert curve.get_xydata().tolist() == [[5, 0.25], [10, 0.5], [20, 1.0]]
    assert star.get_xydata().tolist() == [[10, 0.5]] and star.get_marker() == "*"
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    corners = axis.collections[0].get_paths()[0].vertices
    assert corners[:, 1].min() == 5 / 30 and corners[:, 1].max() == 20 / 15
    marks = {tuple(line.get_xdata()) for line in axis.lines} | {tuple(line.get_ydata()) for line in axis.lines}
    assert (10.0, 10.0) in marks and (0.5, 0.5) in marks, "the radius and the ratio are marked"
    words = " ".join(t.get_text() for t in axis.get_legend().get_texts())
    assert "R = 10" in words and "0.2" in words and "3 random directions" in words
    (top,) = axis.child_axes
    figure.savefig(io.BytesIO())  # limits follow when it is drawn
    assert top.get_xlim() == pytest.approx([x * 0.02 for x in axis.get_xlim()])
    assert "residual scales" in top.get_xlabel()


def test_linear_radius_refuses_a_radius_without_a_curve() -> None:
    with pytest.raises(ValueError, match="not measured"):
        plots.linear_radius(radius(curve=[], ratio=float("nan")))


def test_history_draws_runs_of_any_length() -> None:
    from types import SimpleNamespace

    fit = SimpleNamespace(history=[1.0, 4.0, 5.0])
    axis = plots.history({"ours": fit, "theirs": [1.0, 2.0]}).axes[0]
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert drawn == {"ours": [[1, 1], [2, 4], [3, 5]], "theirs": [[1, 1], [2, 2]]}
    assert len({line.get_marker() for line in axis.lines}) == 2
    alone = plots.history([3.0, 2.0], ylabel="loss").axes[0]
    assert alone.get_legend() is None and alone.get_ylabel() == "loss"
    for broken in ({}, {"a": []}, []):
        with pytest.raises(ValueError, match="histories"):
            plots.history(broken)


def test_spectrum_sorts_and_shows_the_control() -> None:
    torch = pytest.importorskip("torch")
    axis = plots.spectrum(torch.tensor([1.0, 3.0, 2.0]), [0.5, 1.5, 0.7], ylabel="change").axes[0]
    assert [line.get_xydata().tolist() for line in axis.lines if line.get_marker() == "o"] == [[[1, 3], [2, 2], [3, 1]]]
    assert [line.get_ydata()[0] for line in axis.lines if line.get_linestyle() == "--"] == [0.7]
    band = axis.patches[0].get_extents().transformed(axis.transData.inverted())
    assert (band.y0, band.y1) == pytest.approx((0.5, 1.5))
    runs = plots.spectrum({"a": [2, 1], "b": [4, 3]}, [[0, 2], [1, 3]]).axes[0]
    corners = runs.collections[0].get_paths()[0].vertices.tolist()
    assert [1.0, 2.0] in corners and [1.0, 3.0] in corners and [2.0, 0.0] in corners
    assert {t.get_text() for t in runs.get_legend().get_texts()} == {"random directions", "a", "b"}
    for broken in ([], [[1.0]], [1.0, float("nan")], {}):
        with pytest.raises(ValueError, match="values"):
            plots.spectrum(broken)
    with pytest.raises(ValueError, match="control"):
        plots.spectrum([1.0], 3.0)


def test_cosines_show_what_is_alike() -> None:
    import math

    rows = [[1.0, 0.0], [-3.0, 3.0], [0.0, 2.0]]
    figure = plots.cosines(rows, ["a", "b", "c"])
    axis, half = figure.axes[0], math.sqrt(0.5)
    assert grid(axis).tolist() == [pytest.approx(r) for r in ([1, half, 0], [half, 1, half], [0, half, 1])]
    assert axis.images[0].get_clim() == (0, 1) and len(axis.texts) == 9
    assert f"mean |cosine| {2 * half / 3:.3f}" in axis.get_xlabel()
    assert f"random directions {math.sqrt(1 / math.pi):.3f}" in axis.get_xlabel()
    assert "0.71: a and b" in axis.get_xlabel()
    assert [t.get_text() for t in axis.get_xticklabels()] == ["a", "b", "c"]
    signed = plots.cosines(rows, signed=True).axes[0]
    assert grid(signed)[0][1] == pytest.approx(-half) and signed.images[0].get_clim() == (-1, 1)
    assert "-0.00" not in {t.get_text() for t in signed.texts}


def test_cosines_of_many_mark_the_alike_ones_without_numbers() -> None:
    torch = pytest.importorskip("torch")
    kit = pytest.importorskip("kit")
    V = torch.eye(40)
    V[7] = V[3] + 0.1 * V[7]
    axis = plots.cosines(V).axes[0]
    assert not axis.texts and axis.lines[0].get_xydata().tolist() == [[7, 3], [3, 7]]
    vectors = [kit.SteeringVector(row, 1, f"v{i}") for i, row in enumerate(V[:3])]
    assert grid(plots.cosines(vectors).axes[0]).tolist() == torch.eye(3).tolist()


@pytest.mark.parametrize(
    ("V", "labels", "what"),
    [
        ([[1.0, 2.0]], None, "1 directions"),
        ([[1.0, 2.0], [0.0, 0.0]], None, "1 of them zero"),
        ([[1.0, 2.0], [2.0, 1.0]], ["a"], "1 labels for 2"),
        ([1.0, 2.0], None, r"V has shape \[2\]"),
    ],
)
def test_cosines_refuse(V: Any, labels: Any, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        plots.cosines(V, labels)


def test_figures_of_directions_are_closed_and_alike() -> None:
    def png() -> bytes:
        file = io.BytesIO()
        plots.linear_radius(radius()).savefig(file, metadata={"Software": None})
        plots.cosines([[1.0, 0.0], [1.0, 1.0]]).savefig(file, metadata={"Software": None})
        plots.spectrum([2.0, 1.0], [0.5]).savefig(file, metadata={"Software": None})
        return file.getvalue()

    assert png() == png()
    assert plt.get_fignums() == []


# the theme


def drawn() -> dict[str, Any]:
    """A figure of each function of the kit, and one of plain matplotlib."""
    with plt.style.context("kit.plots.jupyter"):
        plain, axis = plt.subplots()
        axis.plot([1, 2], label="a")
        axis.set(title="t", xlabel="x", ylabel="y")
        axis.legend()
        plt.close(plain)
    return {
        "plain": plain,
        "heat_map": plots.heat_map(table(), title="found"),
        "curves": plots.curves([0, 1], {"a": [0, 1]}, bands={"b": [[0, 1], [1, 2]]}, chance=0.5, title="t"),
        "spread": plots.spread({"a": [1.0, 2.0]}),
        "intervals": plots.intervals({"a": (0.5, 0.2, 0.7)}),
        "linear_radius": plots.linear_radius(radius()),
        "history": plots.history({"a": [1.0, 2.0], "b": [2.0, 1.0]}),
        "spectrum": plots.spectrum([1.0, 2.0], [0.5, 0.7]),
        "cosines": plots.cosines([[1.0, 0.0], [1.0, 1.0]]),
    }


@pytest.mark.parametrize("name", list(drawn()))
def test_figures_have_no_ground_and_their_ink_reads_on_both_themes(name: str) -> None:
    from matplotlib import text
    from matplotlib.colors import to_rgb, to_rgba
    from matplotlib_inline.backend_inline import _fetch_figure_metadata

    def contrast(colour: Any, ground: str) -> float:
        def light(c: Any) -> float:
            parts = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in to_rgb(c)]
            return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

        low, high = sorted((light(colour), light(ground)))
        return (high + 0.05) / (low + 0.05)

    figure = drawn()[name]
    figure.savefig(io.BytesIO())  # which makes the ticks that are made late
    grounds = [figure.get_facecolor(), *(axis.get_facecolor() for axis in figure.axes)]
    assert all(to_rgba(ground)[3] == 0 for ground in grounds)
    words = [t for t in figure.findobj(text.Text) if t.get_text() and t.get_visible()]
    in_cells = [t for axis in figure.axes for t in axis.texts]  # they have the cell's colour behind them
    for t in set(words) - set(in_cells):
        assert min(contrast(t.get_color(), ground) for ground in ("white", "#111111")) > 3.8, t.get_text()
    assert _fetch_figure_metadata(figure) is None, "JupyterLab puts a slab behind it"


def test_the_theme_stays_in_the_figures_of_the_kit() -> None:
    before = dict(plt.rcParams)
    drawn()
    assert dict(plt.rcParams) == before
