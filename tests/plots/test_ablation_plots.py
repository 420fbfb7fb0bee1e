"""Figures of ablations show what the summary says, whatever the user called things."""

import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from ablations import ALPHAS, EVIL, ablation, grid, row

pytest.importorskip("matplotlib")
from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from torchreg import L1
from torchreg.ablation import ablate
from torchreg.ablation.results.overview import Overview
from torchreg.plots import (
    Curve,
    CurvesDisplay,
    LayerSparsityDisplay,
    MetricDisplay,
    TradeoffDisplay,
    panels,
    svg,
)
from torchreg.plots.ablation_figures import figures, pictures
from torchreg.plots.style import INK

ABLATION = ablation(grid())
POSITIVE = ALPHAS[1:]


@pytest.fixture(autouse=True)
def headless():
    plt.switch_backend("agg")
    yield
    plt.close("all")


def axes(**size):
    return panels(**size)[1][0]


def summary(of, metric, penalty, column=""):
    return {r["alpha"]: r[f"{metric}{column}"] for r in of.summary() if r["penalty"] == penalty}


def texts(artist):
    """All that is written on a figure, once drawn."""
    FigureCanvasAgg(artist.figure_).draw()
    found = [t for t in artist.figure_.findobj(plt.Text) if t.get_visible() and t.get_text()]
    return {t.get_text(): t for t in found}


def told(points):
    """What `CurvesDisplay` asks of an ablation."""
    return SimpleNamespace(curves=lambda: points, axes=())


def point(alpha, seed, epoch, loss, penalty="L1"):
    return {"penalty": penalty, "alpha": alpha, "seed": seed, "mode": "independent", "epoch": epoch, "loss": loss}


# --- the protocol

MAKERS = {
    "metric": lambda **ax: MetricDisplay.from_ablation(ABLATION, "val_accuracy", **ax),
    "tradeoff": lambda **ax: TradeoffDisplay.from_ablation(ABLATION, "sparsity", "val_accuracy", **ax),
    "layers": lambda **ax: LayerSparsityDisplay.from_ablation(ABLATION, where={"penalty": "L1"}, **ax),
    "curves": lambda **ax: CurvesDisplay.from_ablation(
        told([point(a, 0, e, a + e) for a in ALPHAS for e in range(3)]), "loss", **ax
    ),
}
each_display = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@each_display
def test_draws_on_the_axes_that_are_given_and_opens_no_figure(make):
    figure, (ax,) = panels()
    display = make(ax=ax)
    assert plt.get_fignums() == []
    assert display.ax_ is ax
    assert display.figure_ is figure


@each_display
def test_without_axes_it_makes_one_figure(make):
    display = make()
    assert len(plt.get_fignums()) == 1
    assert plt.gcf() is display.figure_


@each_display
def test_plot_draws_the_same_again_from_the_data_alone(make):
    display = make(ax=axes())
    first, ax = svg(display.figure_), axes()
    assert display.plot(ax) is display
    assert display.ax_ is ax
    assert svg(display.figure_) == first


# --- a metric against alpha


@pytest.mark.parametrize("metric", ["val_accuracy", "sparsity"])
@pytest.mark.parametrize("penalty", ["L1", "MCP"])
def test_lines_are_the_means_and_bands_the_intervals(metric, penalty):
    display = MetricDisplay.from_ablation(ABLATION, metric, ax=axes())
    line = display.lines_[penalty]
    means = summary(ABLATION, metric, penalty)
    assert line.get_xdata().tolist() == list(POSITIVE)
    assert line.get_ydata().tolist() == [means[alpha] for alpha in POSITIVE]
    edge = {tuple(vertex) for vertex in display.bands_[penalty].get_paths()[0].vertices}
    for column in (".low", ".high"):
        ends = summary(ABLATION, metric, penalty, column)
        assert {(alpha, ends[alpha]) for alpha in POSITIVE} <= edge
    assert display.ax_.get_xscale() == "log"
    assert display.ax_.get_ylabel() == metric


def test_the_baseline_that_all_share_is_one_dashed_line_with_its_interval():
    display = MetricDisplay.from_ablation(ABLATION, "val_accuracy", ax=axes())
    (line,), (band,) = display.baselines_.values(), display.baseline_bands_.values()
    assert set(line.get_ydata()) == {summary(ABLATION, "val_accuracy", "L1")[0.0]}
    assert line.is_dashed()
    assert to_hex(line.get_color()) == INK
    low, high = (summary(ABLATION, "val_accuracy", "L1", end)[0.0] for end in (".low", ".high"))
    assert band.get_y() == low
    assert band.get_y() + band.get_height() == pytest.approx(high, rel=1e-15)
    assert "alpha = 0" in texts(display)
    assert "95 % interval, n = 3" in texts(display)


def test_baselines_that_differ_have_the_colour_of_their_line():
    rows = [row(name, a, s, val=k + a + 0.1 * s) for k, name in enumerate("ab") for a in (0.0, 1.0) for s in (0, 1)]
    display = MetricDisplay.from_ablation(ablation(rows), "val", ax=axes())
    assert display.baselines_["a"].get_color() == display.lines_["a"].get_color() != display.lines_["b"].get_color()
    assert set(display.baselines_["b"].get_ydata()) == {1.05}


def test_one_seed_has_a_line_and_no_band():
    display = MetricDisplay.from_ablation(ablation(grid(seeds=1)), "val_accuracy", ax=axes())
    assert np.isfinite(display.lines_["L1"].get_ydata()).all()
    assert not display.baseline_bands_
    assert not any(len(path.vertices) for path in display.bands_["L1"].get_paths())
    assert not [text for text in texts(display) if "interval" in text]


def test_an_interval_without_neighbours_is_a_whisker():
    rows = [row(alpha=a, seed=s, val=a + s) for a, seeds in ((0.1, 1), (1.0, 2), (10.0, 1)) for s in range(seeds)]
    display = MetricDisplay.from_ablation(ablation(rows), "val", ax=axes())
    ends = (summary(ablation(rows), "val", "L1", end)[1.0] for end in (".low", ".high"))
    assert [path.vertices.tolist() for path in display.whiskers_["L1"].get_paths()] == [[[1.0, end] for end in ends]]


def test_unlike_cells_have_lines_of_their_own():
    rows = [r for width in (8, 16) for r in grid(("L1",), axes={"width": width})]
    rows += grid(("L1",), axes={"width": 8}, mode="path")
    both = ablation(rows, ("width",))
    names = {"L1, width=8, mode=independent", "L1, width=16, mode=independent", "L1, width=8, mode=path"}
    assert set(MetricDisplay.from_ablation(both, "val_loss", ax=axes()).lines_) == names
    chosen = MetricDisplay.from_ablation(both, "val_loss", where={"width": 8, "mode": "path"}, ax=axes())
    assert list(chosen.lines_) == ["L1"]


def test_what_diverged_leaves_a_gap_and_spoils_no_axis():
    values = {1e-3: 1.0, 1e-2: math.inf, 1e-1: math.nan, 1.0: 2.0}
    rows = [row(alpha=a, seed=s, val=v + s) for a, v in values.items() for s in (0, 1)]
    display = MetricDisplay.from_ablation(ablation(rows), "val", ax=axes())
    assert np.isfinite(display.lines_["L1"].get_ydata()).tolist() == [True, False, False, True]
    texts(display)
    assert np.isfinite(display.ax_.get_ylim()).all()


def test_no_two_of_twenty_lines_look_alike():
    one, nan = np.ones(1), np.full(1, np.nan)
    display = MetricDisplay([Curve(f"{k}", one, k * one, nan, nan, one) for k in range(20)], metric="val").plot(axes())
    looks = {
        (x.get_color(), x.get_marker(), x._dash_pattern[1] and tuple(x._dash_pattern[1]))
        for x in display.lines_.values()
    }
    assert len(looks) == 20


def test_alphas_within_a_decade_are_named_themselves():
    rows = [row(alpha=a, val=a) for a in (0.2, 0.3, 0.5)]
    display = MetricDisplay.from_ablation(ablation(rows), "val", ax=axes())
    assert {"0.2", "0.3", "0.5"} <= set(texts(display))


# --- trade-offs


def test_points_are_the_means_and_rings_the_front():
    display = TradeoffDisplay.from_ablation(ABLATION, "sparsity", "val_accuracy", ax=axes())
    for name in ("L1", "MCP"):
        x, y = (summary(ABLATION, metric, name) for metric in ("sparsity", "val_accuracy"))
        assert display.lines_[name].get_xydata().tolist() == [[x[alpha], y[alpha]] for alpha in ALPHAS]
    front = {(r["sparsity"], r["val_accuracy"]) for r in ABLATION.pareto("sparsity", "val_accuracy")}
    assert {tuple(p) for p in display.front_.get_xydata()} == front


def test_less_is_better_where_the_caller_says_so():
    display = TradeoffDisplay.from_ablation(ABLATION, "sparsity", "val_loss", minimize=["val_loss"], ax=axes())
    front = {r["sparsity"] for r in ABLATION.pareto("sparsity", "val_accuracy")}
    assert set(display.front_.get_xdata()) == front, "val_loss is 1 - val_accuracy"


def test_intervals_of_both_metrics_are_bars():
    rows = [row(alpha=1.0, seed=s, a=float(s), b=2.0 * s) for s in range(3)]
    display = TradeoffDisplay.from_ablation(ablation(rows), "a", "b", ax=axes())
    _, _, (across, up) = display.bars_["L1"]
    ends = {metric: [summary(ablation(rows), metric, "L1", end)[1.0] for end in (".low", ".high")] for metric in "ab"}
    assert across.get_segments()[0][:, 0] == pytest.approx(ends["a"], rel=1e-14)
    assert up.get_segments()[0][:, 1] == pytest.approx(ends["b"], rel=1e-14)


# --- layers


def test_cells_are_the_means_over_seeds_and_alphas_ascend():
    rows = [row(alpha=a, seed=s, layers={"x": a / 2 + 0.1 * s, "y": 1.0}) for a in (1.0, 0.0) for s in (0, 1)]
    display = LayerSparsityDisplay.from_ablation(ablation(rows), ax=axes())
    assert display.alphas.tolist() == [0.0, 1.0]
    assert display.image_.get_array().data == pytest.approx(np.array([[5.0, 55.0], [100.0, 100.0]]))
    assert [t.get_text() for t in display.texts_] == ["5", "55", "100", "100"]
    assert {"x", "y", "0", "1", "alpha", "zeros, %"} <= set(texts(display))


def test_a_layer_that_is_missing_somewhere_is_no_zero():
    rows = [row(alpha=0.0, layers={"x": 0.0}), row(alpha=1.0, layers={"x": 0.5, "new": 1.0})]
    display = LayerSparsityDisplay.from_ablation(ablation(rows), ax=axes())
    assert display.image_.get_array().mask.tolist() == [[False, False], [True, False]]


def test_nearly_all_is_not_all_and_nearly_none_is_not_none():
    display = LayerSparsityDisplay(np.arange(4.0), ["x"], np.array([[0.0, 1e-6, 1 - 1e-6, 1.0]])).plot(axes())
    assert [t.get_text() for t in display.texts_] == ["0", "<1", ">99", "100"]


def test_numbers_and_names_make_way_where_there_is_no_room():
    display = LayerSparsityDisplay(np.arange(60.0), [f"layer {k}" for k in range(200)], np.zeros((200, 60))).plot(
        axes()
    )
    assert display.texts_ == []
    FigureCanvasAgg(display.figure_).draw()
    for names, side in ((display.ax_.get_yticklabels(), "height"), (display.ax_.get_xticklabels(), "width")):
        boxes = sorted(
            (text.get_window_extent() for text in names), key=lambda box: box.x0 if side == "width" else box.y0
        )
        low, high = ("x0", "x1") if side == "width" else ("y0", "y1")
        assert all(getattr(a, high) <= getattr(b, low) + 1.0 for a, b in pairwise(boxes)), side


@pytest.mark.parametrize("where", [None, {"penalty": "none such"}])
def test_a_heat_map_is_of_one_line(where):
    with pytest.raises(ValueError, match=r"choose one of them by where|no finished cells"):
        LayerSparsityDisplay.from_ablation(ABLATION, where=where, ax=axes())


# --- learning curves


def test_curves_are_means_over_seeds_at_epochs_that_all_seeds_have():
    points = [point(0.1, seed, epoch, 10.0 * seed + epoch) for seed, last in ((0, 4), (1, 3)) for epoch in range(last)]
    display = CurvesDisplay.from_ablation(told(points), "loss", ax=axes())
    (line,) = display.lines_
    assert line.get_xdata().tolist() == [0, 1, 2]
    assert line.get_ydata().tolist() == [5.0, 6.0, 7.0]


def test_curves_are_what_the_cells_of_an_ablation_reported(tmp_path):
    def run(penalty, seed, cell):
        for epoch in range(3):
            cell.report(epoch, loss=penalty.alpha + seed - epoch)
        return {"loss": penalty.alpha}

    of = ablate(run, L1(1.0), [0.0, 0.5], seeds=(0, 1), out=tmp_path / "a", progress=False)
    display = CurvesDisplay.from_ablation(of, "loss", ax=axes())
    assert [line.get_ydata().tolist() for line in display.lines_] == [[0.5, -0.5, -1.5], [1.0, 0.0, -1.0]]
    names = {picture.kind for picture in pictures(of, Overview.of(of))}
    assert names == {"Metrics against alpha", "Learning curves"}


def test_a_point_told_twice_counts_once():
    points = [point(0.1, 0, 0, 5.0), point(0.1, 0, 1, 4.0), point(0.1, 0, 0, 7.0)]
    (line,) = CurvesDisplay.from_ablation(told(points), "loss", ax=axes()).lines_
    assert line.get_ydata().tolist() == [7.0, 4.0]


def test_colours_ascend_with_alpha_and_zero_is_dashed():
    points = [point(a, 0, e, a + e) for a in (1.0, 0.0, 0.1, 10.0) for e in range(3)]
    display = CurvesDisplay.from_ablation(told(points), "loss", ax=axes())
    assert display.alphas.tolist() == [0.0, 0.1, 1.0, 10.0]
    assert [line.is_dashed() for line in display.lines_] == [True, False, False, False]
    light = [np.dot(line.get_color()[:3], [0.2126, 0.7152, 0.0722]) for line in display.lines_[1:]]
    assert light == sorted(light)
    assert {"0", "0.1", "1", "10", "alpha", "epoch"} <= set(texts(display))
    assert np.array_equal(display.bar_.cmap.colors, [line.get_color() for line in display.lines_])


# --- names from users


@pytest.mark.parametrize("name", [EVIL, "$x_1$", r"$\frac{", "_hidden", "a\nb\x00", "名前", "x" * 500, "\ud800"])
def test_a_name_is_drawn_as_it_is_whatever_it_is(name):
    rows = [row(name, a, s, **{name: a + s}, sparsity=a, layers={name: a}) for a in (0.0, 0.1) for s in (0, 1)]
    of = ablation(rows)
    shown = "".join(c if c.isprintable() else "�" for c in name)
    for display in (
        MetricDisplay.from_ablation(of, name, ax=axes()),
        TradeoffDisplay.from_ablation(of, "sparsity", name, ax=axes()),
        LayerSparsityDisplay.from_ablation(of, ax=axes()),
    ):
        picture = svg(display.figure_)
        assert b"<script" not in picture
        found = [t for t in display.figure_.findobj(plt.Text) if t.get_text().startswith(shown[:8])]
        assert found
        assert not any(t.get_parse_math() for t in found)
        assert len(name) > 32 or {t.get_text() for t in found} == {shown}


def test_names_of_files_are_plain_and_all_different():
    names = ["../../x", "X", "x", "a/b", "a b", "con:", ""]
    rows = [row(alpha=a, **dict.fromkeys(names, a)) for a in (0.1, 1.0)]
    found = figures(ablation(rows))
    assert len(found) == len(names)
    assert all(name and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-") for name in found)


# --- refusals


@pytest.mark.parametrize(
    "draw", [MetricDisplay.from_ablation, lambda of, m, **k: TradeoffDisplay.from_ablation(of, m, "sparsity", **k)]
)
def test_a_metric_without_a_mean_is_refused_by_name(draw):
    with pytest.raises(ValueError, match=r"'nope' is not there.*sparsity"):
        draw(ABLATION, "nope", ax=axes())
    with pytest.raises(ValueError, match="'layers' is no number"):
        draw(ABLATION, "layers", ax=axes())


def test_only_alpha_0_has_no_place_on_a_logarithmic_axis():
    with pytest.raises(ValueError, match="one of them > 0"):
        MetricDisplay.from_ablation(ablation(grid(alphas=(0.0,))), "val_loss", ax=axes())


@pytest.mark.parametrize(("where", "error"), [({"seed": 0}, "where has 'seed'"), ({"penalty": "x"}, "No cell has")])
def test_where_is_checked(where, error):
    with pytest.raises(ValueError, match=error):
        MetricDisplay.from_ablation(ABLATION, "val_loss", where=where, ax=axes())


def test_data_that_do_not_fit_are_refused():
    one = np.ones(1)
    with pytest.raises(ValueError, match="no curves of 'val'"):
        MetricDisplay([], metric="val")
    a, b = (Curve(name, one, one, one, one, one) for name in "ab")
    with pytest.raises(ValueError, match="same names and alphas"):
        TradeoffDisplay([a], [b], metrics=("x", "y"), front=np.empty((0, 2)))
    with pytest.raises(ValueError, match=r"shares of shape \(layers, alphas\)"):
        LayerSparsityDisplay(one, ["x"], np.zeros((2, 1)))
    with pytest.raises(ValueError, match="for each alpha"):
        CurvesDisplay(one, [], [], metric="loss")
    with pytest.raises(ValueError, match="no cells that reported 'loss'"):
        CurvesDisplay.from_ablation(told([]), "loss", ax=axes())
