"""Displays hold the data they were given, draw on the axes they were given, and leave nothing open."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from torchreg import L1, L1L2, L2, MCP, Group, Towards, Weighted, whole

pytest.importorskip("matplotlib")
from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg

from torchreg.plots import BoundaryDisplay, GeometryDisplay, PathDisplay, WeightHistogramDisplay, panels
from torchreg.plots.style import spread

H = torch.tensor([[0.6, 0.3], [0.3, 1.2]], dtype=torch.float64)
CENTER = torch.tensor([0.4, 1.6], dtype=torch.float64)


@pytest.fixture(autouse=True)
def headless():
    plt.switch_backend("agg")
    yield
    plt.close("all")


def drawn(figure):
    """Draw every artist, and return the pixels; the canvas of a figure outside pyplot draws nothing by itself."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def linear(*rows):
    model = nn.Linear(2, len(rows))
    with torch.no_grad():
        model.weight.copy_(torch.tensor(rows))
        model.bias.zero_()
    return model


def points(n=60):
    X = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    return X, (X[:, 0] > 0).long()


MAKERS = {
    "boundary": lambda **ax: BoundaryDisplay.from_model(linear([-1.0, 0.0], [1.0, 0.0]), *points(), **ax),
    "geometry": lambda **ax: GeometryDisplay.from_quadratic(H, CENTER, L1(1.0), **ax),
    "histogram": lambda **ax: WeightHistogramDisplay.from_weights({"a": torch.tensor([0.0, 1.0, -2.0])}, **ax),
    "path": lambda **ax: PathDisplay.from_coefs([1.0, 0.1], np.eye(2), names=("a", "b"), **ax),
}
each_display = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@each_display
def test_draws_on_the_axes_that_are_given_and_opens_no_figure(make):
    figure, (ax,) = panels()
    display = make(ax=ax)
    assert plt.get_fignums() == []
    assert display.ax_ is ax
    assert display.figure_ is figure
    assert not np.array_equal(drawn(figure), drawn(panels()[0])), "it is not empty axes"


@each_display
def test_without_axes_it_makes_one_figure(make):
    display = make()
    assert len(plt.get_fignums()) == 1
    assert plt.gca() is display.ax_
    assert plt.gcf() is display.figure_


@each_display
def test_plot_returns_itself_and_draws_the_same_again(make):
    display = make(ax=panels()[1][0])
    ax = panels()[1][0]
    assert display.plot(ax) is display
    assert display.ax_ is ax


# --- boundaries


def test_boundary_lies_where_the_classifier_is_undecided():
    display = BoundaryDisplay.from_model(linear([-1.0, 2.0], [1.0, -2.0]), *points(), ax=panels()[1][0])
    (contour,) = display.boundaries_
    line = contour.get_paths()[0].vertices
    assert len(line) > 10
    assert np.abs(line[:, 0] - 2.0 * line[:, 1]).max() < 1e-4  # linear logits: exact but for float32


def test_boundary_colours_the_likeliest_class_and_is_white_where_two_are_equal():
    display = BoundaryDisplay.from_model(linear([-9.0, 0.0], [9.0, 0.0]), *points(), resolution=41, ax=panels()[1][0])
    image = display.image_.get_array()
    left, right = image[0, 0], image[0, -1]
    assert left[2] > left[0], "class 0 is blue"
    assert right[0] > right[2], "class 1 is vermillion"
    assert np.allclose(display.probabilities.sum(2), 1.0, atol=1e-6)
    undecided = np.abs(display.probabilities[..., 0] - 0.5) < 1e-6
    assert np.allclose(image[undecided], 1.0, atol=1e-5)


def test_boundary_has_a_scatter_per_class_and_a_line_per_class_beyond_two():
    X, _ = points()
    y = torch.arange(60) % 3
    display = BoundaryDisplay.from_model(linear([1.0, 0.0], [-1.0, 1.0], [-1.0, -1.0]), X, y, ax=panels()[1][0])
    assert len(display.points_) == len(display.boundaries_) == 3
    for k, scatter in enumerate(display.points_):
        assert np.array_equal(scatter.get_offsets(), X[y == k])


def test_one_logit_is_a_classifier_of_two_classes():
    X, y = points()
    one = BoundaryDisplay.from_model(lambda x: 3.0 * x[:, 0], X, y, ax=panels()[1][0])
    two = BoundaryDisplay.from_model(linear([0.0, 0.0], [3.0, 0.0]), X, y, ax=panels()[1][0])
    assert np.allclose(one.probabilities, two.probabilities, atol=1e-6)


def test_a_model_is_asked_in_evaluation_mode_and_left_as_it_was():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5), nn.Linear(2, 2))
    model[1].eval()
    before = model[0].running_mean.clone()
    displays = [BoundaryDisplay.from_model(model, *points(), ax=panels()[1][0]) for _ in range(2)]
    assert np.array_equal(displays[0].probabilities, displays[1].probabilities)
    assert torch.equal(model[0].running_mean, before)
    assert [m.training for m in model] == [True, False, True]


def test_boundary_needs_two_features():
    with pytest.raises(ValueError, match=r"\(n, 2\), got \(5, 3\)"):
        BoundaryDisplay.from_model(linear([1.0, 0.0]), torch.zeros(5, 3), torch.zeros(5))


# --- geometry

PENALTIES = {
    "L1": L1(1.0),
    "L2": L2(1.0),
    "L1L2": L1L2(1.5, l1_ratio=0.4),
    "norm": Group(L1(1.0), by=whole),
    "weighted": Weighted(L1(1.0), torch.tensor([0.3, 2.0], dtype=torch.float64)),
    "sum": L1(0.7) + L2(0.2),
    "towards": Towards(L1(1.0), torch.tensor([0.2, -0.5], dtype=torch.float64)),
}
each_penalty = pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES)


def loss(w):
    gap = torch.as_tensor(w) - CENTER
    return ((gap @ H) * gap).sum(-1) / 2


@each_penalty
def test_touching_point_is_the_constrained_minimiser(penalty):
    """Feasible with an active constraint, stationary for loss + multiplier * penalty, better than the boundary."""
    display = GeometryDisplay.from_quadratic(H, CENTER, penalty, budget=0.8, ax=panels()[1][0])
    w, multiplier = torch.as_tensor(display.solution), display.multiplier
    assert multiplier > 0
    assert float(penalty.value(w)) == pytest.approx(0.8, abs=1e-12)
    step = 0.5
    moved = penalty.prox(w - step * (H @ (w - CENTER)), step * multiplier)
    assert (moved - w).abs().max() < 1e-13
    boundary = torch.as_tensor(display.region)
    assert torch.allclose(torch.vmap(penalty.value)(boundary), torch.tensor(0.8, dtype=boundary.dtype), atol=1e-12)
    assert loss(w) <= loss(boundary).min() + 1e-12
    angle = (boundary - w).norm(dim=1).min()
    assert angle < 0.02, "the touching point lies on the drawn boundary, up to the spacing of its points"


@each_penalty
def test_the_thick_contour_passes_through_the_touching_point(penalty):
    display = GeometryDisplay.from_quadratic(H, CENTER, penalty, budget=0.8, ax=panels()[1][0])
    levels = [loss(line.get_xydata()) for line in display.contours_]
    assert all(torch.allclose(level, level[0], rtol=1e-12) for level in levels)
    assert float(levels[1][0]) == pytest.approx(float(loss(display.solution)), rel=1e-12)
    widths = [line.get_linewidth() for line in display.contours_]
    assert max(widths) == widths[1] > widths[0]


def test_l1_touches_at_a_corner_and_l2_does_not():
    l1, l2 = (GeometryDisplay.from_quadratic(H, CENTER, p, ax=panels()[1][0]) for p in (L1(1.0), L2(1.0)))
    assert l1.solution[0] == 0.0
    assert np.all(l2.solution != 0.0)


def test_the_artists_hold_the_data():
    display = GeometryDisplay.from_quadratic(H, CENTER, L1(1.0), ax=panels()[1][0])
    assert np.array_equal(display.region_.get_xy()[: len(display.region)], display.region)
    assert display.solution_.get_xydata().tolist() == [display.solution.tolist()]
    assert display.center_.get_xydata().tolist() == [CENTER.tolist()]
    corners = {(1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0)}
    for corner in corners:
        assert np.abs(display.region - corner).sum(1).min() < 1e-15, "corners are drawn exactly"


def test_a_minimum_inside_the_budget_is_the_solution():
    display = GeometryDisplay.from_quadratic(H, CENTER, L1(1.0), budget=5.0, ax=panels()[1][0])
    assert display.solution.tolist() == CENTER.tolist()
    assert display.multiplier == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"penalty": MCP(1.0)}, "convex penalty, got MCP"),
        ({"hessian": torch.eye(3)}, r"shape \(2, 2\)"),
        ({"center": torch.tensor([math.nan, 0.0])}, "finite center"),
        ({"hessian": torch.diag(torch.tensor([1.0, -1.0]))}, "positive definite"),
        ({"hessian": torch.tensor([[1.0, 0.5], [0.0, 1.0]])}, "symmetric"),
        ({"budget": 0.0}, "budget > 0, got 0.0"),
    ],
)
def test_geometry_refuses_what_has_no_picture(change, message):
    given = {"hessian": H, "center": CENTER, "penalty": L1(1.0), "budget": 1.0, **change}
    with pytest.raises(ValueError, match=message):
        GeometryDisplay.from_quadratic(given["hessian"], given["center"], given["penalty"], budget=given["budget"])


# --- paths


def path(zero=False):
    alphas = np.array([1.0, 0.1, 0.01] + [0.0] * zero)
    coefs = np.array([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0], [0.9, -0.3, 0.0], [1.0, -0.4, 0.2]])[: len(alphas)]
    return alphas, coefs


@pytest.mark.parametrize("zero", [False, True], ids=["positive", "with 0"])
def test_path_lines_hold_the_coefficients_in_order_of_alpha(zero):
    alphas, coefs = path(zero)
    display = PathDisplay.from_coefs(alphas, torch.as_tensor(coefs), names=("a", "b", "c"), ax=panels()[1][0])
    assert np.all(np.diff(display.alphas) > 0)
    for k, line in enumerate(display.lines_):
        assert np.array_equal(line.get_xdata(), alphas[::-1])
        assert np.array_equal(line.get_ydata(), coefs[::-1, k])
    assert [t.get_text() for t in display.labels_] == ["a", "b", "c"]
    assert display.ax_.get_xscale() == ("symlog" if zero else "log")


@pytest.mark.parametrize("zero", [False, True], ids=["positive", "with 0"])
def test_path_counts_stand_over_their_alphas(zero):
    display = PathDisplay.from_coefs(*path(zero), ax=panels()[1][0])
    drawn(display.figure_)
    shown = dict(zip(display.top_.get_xticks(), [t.get_text() for t in display.top_.get_xticklabels()], strict=True))
    assert {0.01, 1.0} <= set(shown)
    for alpha, count in shown.items():
        assert int(count) == np.count_nonzero(display.coefs[list(display.alphas).index(alpha)])
        below = display.ax_.transData.transform((alpha, 0.0))[0]
        assert display.top_.transData.transform((alpha, 0.0))[0] == pytest.approx(below)


def test_a_single_alpha_draws():
    display = PathDisplay.from_coefs([0.1], np.ones((1, 2)), names=("a", "b"), ax=panels()[1][0])
    drawn(display.figure_)
    assert [line.get_ydata().tolist() for line in display.lines_] == [[1.0], [1.0]]


@pytest.mark.parametrize(
    ("alphas", "coefs", "names", "message"),
    [
        ([1.0, 2.0], np.ones((3, 2)), None, "transpose"),
        ([1.0, 2.0], np.ones(2), None, r"\(n, features\)"),
        ([1.0, 2.0], np.ones((2, 3)), ("a",), "each of 3 features, got 1"),
        ([-1.0, 2.0], np.ones((2, 3)), None, "alphas >= 0"),
        ([0.0], np.ones((1, 3)), None, "one of them > 0"),
    ],
)
def test_path_refuses_what_does_not_fit(alphas, coefs, names, message):
    with pytest.raises(ValueError, match=message):
        PathDisplay.from_coefs(alphas, coefs, names=names)


def test_spread_keeps_order_and_distance_and_leaves_free_labels_alone():
    draw = np.random.default_rng(0)
    for _ in range(50):
        places = draw.normal(size=draw.integers(1, 12))
        moved = spread(places, 0.3)
        assert np.array_equal(np.argsort(moved), np.argsort(places))
        assert np.diff(np.sort(moved)).min(initial=np.inf) > 0.3 - 1e-9
        assert moved.mean() == pytest.approx(places.mean())
    assert spread(np.array([2.0, 0.0, 1.0]), 0.5).tolist() == [2.0, 0.0, 1.0]


# --- histograms


def sets():
    draw = torch.Generator().manual_seed(0)
    dense = torch.randn(40, 50, generator=draw)
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight[0] = -0.0
    return {"dense": dense, "sparse": {"a": dense * (dense > 1), "b": torch.zeros(7).half()}, "model": model}


@pytest.mark.parametrize("count", [1, 3], ids=["together", "panels"])
def test_bars_are_zeros_and_steps_are_the_rest(count):
    figure, axes = panels(count)
    display = WeightHistogramDisplay.from_weights(sets(), ax=axes if count > 1 else axes[0])
    drawn(figure)
    flat = {"dense": sets()["dense"], "sparse": torch.cat([w.reshape(-1).float() for w in sets()["sparse"].values()])}
    for name, w in flat.items():
        assert display.bars_[name].get_height() == int((w == 0).sum()) == display.zeros[name]
        assert display.steps_[name].get_data().values.sum() == int((w != 0).sum())
        assert np.array_equal(display.steps_[name].get_data().values, np.histogram(w[w != 0], display.edges)[0])
    assert display.bars_["model"].get_height() == 4, "of a module the weights count, -0.0 is zero, biases do not count"
    homes = [bar.axes for bar in display.bars_.values()]
    assert homes == (axes if count > 1 else axes * 3)


def test_bars_of_zeros_stand_apart_from_the_histogram_and_from_each_other():
    display = WeightHistogramDisplay.from_weights(sets(), ax=panels()[1][0])
    spans = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in display.bars_.values()]
    assert all(a[1] <= b[0] for a, b in pairwise(spans))
    assert spans[-1][1] < display.edges[0]


@pytest.mark.parametrize("w", [torch.zeros(5), torch.empty(0)], ids=["all zero", "empty"])
def test_sets_without_weights_to_bin_draw(w):
    display = WeightHistogramDisplay.from_weights({"w": w}, ax=panels()[1][0])
    drawn(display.figure_)
    assert display.bars_["w"].get_height() == w.numel()


def test_histogram_refuses_what_it_cannot_count():
    with pytest.raises(ValueError, match="no weights"):
        WeightHistogramDisplay.from_weights({})
    with pytest.raises(ValueError, match=r"infinity in \['bad'\]"):
        WeightHistogramDisplay.from_weights({"bad": torch.tensor([math.inf])})
    with pytest.raises(ValueError, match="need 1 or 3 axes, got 2"):
        WeightHistogramDisplay.from_weights(sets(), ax=panels(2)[1])


# --- style


def test_style_reaches_the_artists():
    assert PathDisplay.from_coefs(*path(), ax=panels()[1][0], linewidth=7.0).lines_[0].get_linewidth() == 7.0
    geometry = GeometryDisplay.from_quadratic(H, CENTER, L1(1.0), ax=panels()[1][0], color="black")
    assert {line.get_color() for line in geometry.contours_} == {"black"}
    histogram = WeightHistogramDisplay.from_weights(sets(), ax=panels()[1][0], linewidth=5.0)
    assert histogram.steps_["dense"].get_linewidth() == 5.0
    boundary = BoundaryDisplay.from_model(linear([-1.0, 0.0], [1.0, 0.0]), *points(), ax=panels()[1][0], s=99)
    assert boundary.points_[0].get_sizes().tolist() == [99]


def test_drawing_leaves_the_global_style_alone():
    before = dict(plt.rcParams)
    for make in MAKERS.values():
        make()
    assert dict(plt.rcParams) == before
