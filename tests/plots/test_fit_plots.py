"""Pictures of fitted paths and of cross-validations: what is drawn, where it stands, what it is called."""

import time
from io import BytesIO
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
from matplotlib import pyplot as plt
from matplotlib.text import Text

from torchreg import L1
from torchreg.linear.cv import fit_cv
from torchreg.plots import CVDisplay, PathDisplay, panels
from torchreg.plots.style import FAINT, PALETTE


@pytest.fixture(autouse=True)
def headless():
    plt.switch_backend("agg")
    yield
    plt.close("all")


def path(features=5, points=12, outputs=None, seed=0):
    """What fit_path returns, in its documented attributes: alphas fall, feature 1 stays zero."""
    draw = np.random.default_rng(seed)
    shape = (points, features) if outputs is None else (points, features, outputs)
    coefs = np.cumsum(draw.normal(size=shape), axis=0)
    entry = draw.integers(0, points, features).reshape(-1, *[1] * (len(shape) - 2))
    coefs = coefs * (np.arange(points).reshape(-1, *[1] * (len(shape) - 1)) >= entry)
    coefs[:, 1] = 0.0
    return SimpleNamespace(
        alphas=torch.logspace(0.0, -2.0, points, dtype=torch.float64), coefs=torch.as_tensor(coefs),
        n_nonzero=torch.as_tensor((coefs != 0).reshape(points, -1).sum(1)),
    )  # fmt: skip


def cv_path(points=12, folds=4, seed=0):
    draw = np.random.default_rng(seed)
    full = path(points=points)
    losses = 2.0 + np.linspace(1.0, -1.0, points) ** 2 + draw.normal(scale=0.1, size=(folds, points))
    mean, se = losses.mean(0), losses.std(0, ddof=1) / np.sqrt(folds)
    best = mean.argmin()
    return SimpleNamespace(
        path=full, losses=torch.as_tensor(losses), mean=torch.as_tensor(mean), se=torch.as_tensor(se),
        alpha_min=float(full.alphas[best]), alpha_1se=float(full.alphas[np.argmax(mean <= mean[best] + se[best])]),
    )  # fmt: skip


def estimator(**attributes):
    return type("LassoCV", (), {})() if not attributes else SimpleNamespace(**attributes)


MAKERS = {
    "path": lambda **ax: PathDisplay.from_path(path(), names="abcde", chosen=0.1, **ax),
    "many": lambda **ax: PathDisplay.from_path(path(60), x="norm", **ax),
    "cv": lambda **ax: CVDisplay.from_path(cv_path(), folds=True, **ax),
    "estimator": lambda **ax: PathDisplay.from_estimator(estimator(path_=path(), alpha_=0.1), **ax),
    "estimator's cv": lambda **ax: CVDisplay.from_estimator(estimator(path_=cv_path()), error="bars", **ax),
}
each_display = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@each_display
def test_draws_on_the_axes_that_are_given_and_opens_no_figure(make):
    figure, (ax,) = panels()
    display = make(ax=ax)
    assert plt.get_fignums() == []
    assert display.ax_ is ax
    assert display.figure_ is figure
    figure.draw_without_rendering()


@each_display
def test_without_axes_it_makes_one_figure_and_draws_again_elsewhere(make):
    display = make()
    assert plt.gcf() is display.figure_
    assert plt.gca() is display.ax_
    ax = panels()[1][0]
    assert display.plot(ax) is display
    assert display.ax_ is ax
    assert len(plt.get_fignums()) == 1


# --- paths


def test_the_curves_of_features_that_are_ever_non_zero():
    given = path()
    display = PathDisplay.from_path(given, names=("a", "b", "c", "d", "e"), ax=panels()[1][0])
    coefs = given.coefs.numpy()[::-1]
    assert display.names == ("a", "c", "d", "e")
    assert [text.get_text() for text in display.labels_] == ["a", "c", "d", "e"]
    for line, k in zip(display.lines_, (0, 2, 3, 4), strict=True):
        assert np.array_equal(line.get_xdata(), given.alphas.numpy()[::-1])
        assert np.array_equal(line.get_ydata(), coefs[:, k])
    assert display.ax_.get_xscale() == "log"
    assert np.array_equal(display.nonzeros, given.n_nonzero.numpy()[::-1])


def test_against_the_norm_the_curves_end_at_the_right_under_the_same_counts():
    given = path()
    display = PathDisplay.from_path(given, names="abcde", x="norm", ax=panels()[1][0])
    display.figure_.draw_without_rendering()
    norms = given.coefs.abs().sum(1).numpy()[::-1]
    for line in display.lines_:
        assert np.array_equal(line.get_xdata(), norms)
    assert display.ax_.get_xscale() == "linear"
    assert "norm" in display.ax_.get_xlabel()
    counts = dict(zip(norms, display.nonzeros, strict=True))
    shown = zip(display.top_.get_xticks(), display.top_.get_xticklabels(), strict=True)
    assert all(int(text.get_text()) == counts[place] for place, text in shown)
    assert display.top_.get_xlim() == display.ax_.get_xlim()
    assert all(Text.get_window_extent(text).x0 > display.ax_.transData.transform((norms[0], 0))[0]
               for text in display.labels_)  # fmt: skip


@pytest.mark.parametrize("names", [None, "abcdefghijkl"], ids=["none", "names"])
def test_names_that_are_not_given_are_not_invented(names):
    display = PathDisplay.from_path(path(12), names=names, ax=panels()[1][0])
    assert (display.labels_ == []) == (names is None)


def test_several_outputs_are_drawn_as_norms_or_one_by_one():
    given = path(outputs=3)
    norms = PathDisplay.from_path(given, ax=panels()[1][0])
    expected = given.coefs.norm(dim=2).numpy()[::-1][:, [0, 2, 3, 4]]
    assert np.allclose([line.get_ydata() for line in norms.lines_], expected.T, atol=0, rtol=1e-14)
    assert "norm" in norms.ax_.get_ylabel()
    assert norms.top_.get_xlabel() == "non-zero features"
    assert norms.nonzeros.max() <= 4
    one = PathDisplay.from_path(given, output=1, ax=panels()[1][0])
    assert np.array_equal(one.lines_[1].get_ydata(), given.coefs.numpy()[::-1, 2, 1])
    assert "output 1" in one.ax_.get_ylabel()


def test_scale_multiplies_each_feature():
    given, factors = path(), torch.tensor([1.0, 1.0, 10.0, 0.5, 2.0])
    display = PathDisplay.from_path(given, scale=factors, ax=panels()[1][0])
    for line, k in zip(display.lines_, (0, 2, 3, 4), strict=True):
        assert np.array_equal(line.get_ydata(), given.coefs.numpy()[::-1, k] * float(factors[k]))
    assert "scaled" in display.ax_.get_ylabel()


def test_what_the_engine_returns_is_drawn():
    X = torch.randn(50, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = 3.0 * X[:, 0] - X[:, 3]
    fitted = fit_cv(X, y, L1(1.0), alphas=12, cv=4)
    display = PathDisplay.from_path(fitted.path, names="abcdefgh", chosen=fitted.alpha, ax=panels()[1][0])
    ever = (fitted.path.coefs != 0).any(0).nonzero().flatten().tolist()
    assert display.names == tuple("abcdefgh"[k] for k in ever)
    assert np.array_equal(display.nonzeros, fitted.path.n_nonzero.numpy()[::-1])
    losses = CVDisplay.from_path(fitted, ax=panels()[1][0])
    assert np.array_equal(losses.line_.get_ydata(), fitted.mean.numpy()[::-1])
    assert losses.alpha_1se_.get_xdata() == [fitted.alpha_1se, fitted.alpha_1se]
    assert np.array_equal(losses.nonzeros, display.nonzeros)


@pytest.mark.parametrize("x", ["alpha", "norm"])
def test_the_chosen_alpha_stands_where_its_coefficients_are(x):
    given = path()
    alpha = float(given.alphas[4])
    display = PathDisplay.from_path(given, chosen=alpha, x=x, ax=panels()[1][0])
    place = alpha if x == "alpha" else float(given.coefs[4].abs().sum())
    assert display.chosen_.get_xdata() == pytest.approx([place, place])
    assert any(text.get_text() == f"alpha = {alpha:.3g}" for text in display.ax_.texts)


def test_of_many_curves_the_largest_stand_out_and_the_rest_is_one_collection():
    given = path(200, points=30)
    names = [f"feature {k}" for k in range(200)]
    display = PathDisplay.from_path(given, names=names, ax=panels()[1][0])
    last = given.coefs[-1].abs()
    largest = sorted(torch.topk(last, 10).indices.tolist())
    assert [text.get_text() for text in display.labels_] == [names[k] for k in largest]
    for line, k in zip(display.lines_, largest, strict=True):
        assert np.array_equal(line.get_ydata(), given.coefs.numpy()[::-1, k])
    ever = (given.coefs != 0).any(0).nonzero().flatten().tolist()
    rest = [k for k in ever if k not in largest]
    drawn = display.rest_.get_segments()
    assert len(drawn) == len(rest)
    for curve, k in zip(drawn, rest, strict=True):
        assert np.array_equal(curve, np.stack([given.alphas.numpy()[::-1], given.coefs.numpy()[::-1, k]], 1))
    low, high = display.ax_.get_ylim()
    assert low < float(given.coefs.min()) < float(given.coefs.max()) < high
    everything = PathDisplay.from_path(given, names=names, largest=None, ax=panels()[1][0])
    assert (len(everything.lines_), everything.rest_, everything.labels_) == (len(ever), None, [])


def test_of_many_curves_those_stand_out_that_are_large_at_the_chosen_alpha():
    given = path(200, points=30)
    display = PathDisplay.from_path(given, chosen=float(given.alphas[12]), names=range(200), ax=panels()[1][0])
    largest = sorted(torch.topk(given.coefs[12].abs(), 10).indices.tolist())
    assert [int(text.get_text()) for text in display.labels_] == largest


def test_thousands_of_features_are_drawn_fast():
    given = path(20_000, points=100)
    start = time.perf_counter()
    display = PathDisplay.from_path(given, ax=panels()[1][0])
    display.figure_.savefig(BytesIO())
    assert len(display.rest_.get_segments()) > 10_000
    assert time.perf_counter() - start < 20.0  # about 2 s here; a line for each would take 30 s


def test_a_path_of_zeros_draws():
    zeros = SimpleNamespace(alphas=torch.tensor([1.0, 0.5]), coefs=torch.zeros(2, 3))
    for x in ("alpha", "norm"):
        display = PathDisplay.from_path(zeros, names="abc", x=x, ax=panels()[1][0])
        display.figure_.draw_without_rendering()
        assert display.lines_ == display.labels_ == []


def boxes(texts):
    """Of the texts alone, without the lines that join them to curves."""
    return [Text.get_window_extent(text) for text in texts if text.get_text()]


@pytest.mark.parametrize("x", ["alpha", "norm"])
@pytest.mark.parametrize("size", [(6.0, 4.0), (4.0, 3.0)], ids=str)
@pytest.mark.parametrize(("features", "length"), [(21, 3), (8, 40), (120, 24)])
def test_no_two_labels_overlap(features, length, size, x):
    figure, (ax,) = panels(size=size)
    given = path(features, points=60)
    names = [f"{k} {'name' * 10}"[:length] for k in range(features)]
    display = PathDisplay.from_path(given, names=names, x=x, ax=ax)
    figure.draw_without_rendering()
    assert display.labels_
    for a, b in combinations(boxes(display.labels_), 2):
        assert not a.overlaps(b)
    for a, b in combinations(boxes(display.top_.get_xticklabels()), 2):
        assert not a.overlaps(b)
    frame = ax.get_window_extent()
    for box in boxes(display.labels_):
        assert frame.x0 <= box.x0
        assert box.x1 <= frame.x1
        assert frame.y0 - 2 <= box.y0
        assert box.y1 <= frame.y1 + 2
    inside = [t for t in ax.get_xticks() if display.places.min() * 0.99 <= t <= display.places.max() * 1.01]
    assert len(inside) == len(ax.get_xticks()), "no tick stands under the names"


def test_crowded_names_and_uneven_alphas_do_not_overlap():
    """All curves end at the top, and alphas stand close together at both ends of the axis."""
    figure, (ax,) = panels()
    alphas = np.concatenate([np.geomspace(1e-3, 1.3e-3, 20), [0.02, 0.03], np.geomspace(0.8, 1.0, 20)])
    coefs = np.linspace(1000.0, 1001.0, 19) * np.linspace(1.0, 0.0, 42)[:, None]
    fitted = SimpleNamespace(alphas=alphas, coefs=np.c_[coefs, np.full((42, 1), -1.0)])
    display = PathDisplay.from_path(fitted, names=[f"name {k}" for k in range(20)], ax=ax)
    figure.draw_without_rendering()
    assert len(display.labels_) == 20
    for texts in (display.labels_, display.top_.get_xticklabels()):
        for a, b in combinations(boxes(texts), 2):
            assert not a.overlaps(b)
    assert {alphas.min(), alphas.max()} <= set(display.top_.get_xticks())


def test_curves_differ_in_grey_by_dashes():
    lines = PathDisplay.from_path(path(20), ax=panels()[1][0]).lines_
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(lines)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": "ab"}, "each of 5 features, got 2"),
        ({"x": "time"}, "x='alpha' or x='norm', got 'time'"),
        ({"output": 1}, "output=1, but the path has 1"),
        ({"scale": torch.ones(3)}, "scale for each of 5 features"),
    ],
)
def test_path_refuses_what_does_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        PathDisplay.from_path(path(), **options)


def test_from_coefs_takes_the_norm_too():
    display = PathDisplay.from_coefs([0.1, 1.0], np.array([[3.0, -1.0], [1.0, 0.0]]), x="norm", ax=panels()[1][0])
    assert display.lines_[0].get_xdata().tolist() == [4.0, 1.0]


# --- estimators


class Shrunk:
    """An estimator whose coefficients are known: soft thresholds of (3, -2, 0)."""

    def __init__(self, alpha=1.5):
        self.alpha = alpha

    def get_params(self, deep=True):
        return {"alpha": self.alpha}

    def set_params(self, alpha):
        self.alpha = alpha
        return self

    def fit(self, X, y):
        centre = np.array([3.0, -2.0, 0.0])
        self.coef_ = np.sign(centre) * np.maximum(np.abs(centre) - self.alpha, 0.0)
        self.alpha_max_ = 3.0
        return self


def test_an_estimator_without_a_path_is_fitted_along_its_alphas():
    mine = Shrunk()
    table = SimpleNamespace(columns=["left", "right", "none"])
    display = PathDisplay.from_estimator(mine, table, np.zeros(2), ax=panels()[1][0])
    assert vars(mine) == {"alpha": 1.5}, "the caller's estimator stays as it was"
    assert display.names == ("left", "right")
    alphas = display.alphas
    assert alphas[-1] == pytest.approx(3.0)
    assert np.allclose(display.lines_[0].get_ydata(), 3.0 - alphas)
    assert np.allclose(display.lines_[1].get_ydata(), -np.maximum(2.0 - alphas, 0.0))
    assert display.chosen_.get_xdata() == [1.5, 1.5]


class Inverse(Shrunk):
    """The same in scikit-learn's C, as a classifier: coefficients of shape (1, p)."""

    def __init__(self):
        super().__init__()
        self.C = 1.0

    def get_params(self, deep=True):
        return {"C": self.C, "warm_start": False}

    def set_params(self, C=1.0, warm_start=True):
        self.C = C
        return self

    def fit(self, X, y):
        self.alpha = 1.0 / (self.C * len(y))
        super().fit(X, y)
        self.coef_ = self.coef_[None]
        return self


def test_an_inverse_strength_is_drawn_against_alpha():
    display = PathDisplay.from_estimator(Inverse(), np.zeros((4, 3)), np.zeros(4), ax=panels()[1][0])
    assert np.allclose(display.lines_[0].get_ydata(), 3.0 - display.alphas)
    assert display.chosen_.get_xdata() == [0.25, 0.25]


def test_an_estimators_own_path_names_and_alpha():
    fitted = estimator(path_=cv_path(), alpha_=0.1, feature_names_in_=np.array(list("abcde")))
    display = PathDisplay.from_estimator(fitted, ax=panels()[1][0])
    assert display.names == ("a", "c", "d", "e")
    assert display.chosen_.get_xdata() == [0.1, 0.1]
    fitted.path_.alpha = 0.2  # in the path's units, which those of alpha_ need not be
    assert PathDisplay.from_estimator(fitted, ax=panels()[1][0]).chosen_.get_xdata() == [0.2, 0.2]
    assert PathDisplay.from_estimator(fitted, chosen=0.5, ax=panels()[1][0]).chosen_.get_xdata() == [0.5, 0.5]


def test_estimators_without_what_is_needed_are_refused():
    with pytest.raises(ValueError, match="pass X and y"):
        PathDisplay.from_estimator(Shrunk())
    with pytest.raises(ValueError, match="LassoCV holds no cross-validation"):
        CVDisplay.from_estimator(estimator())
    with pytest.raises(ValueError, match="no cross-validation"):
        CVDisplay.from_estimator(estimator(path_=path()))


# --- cross-validation


def test_the_mean_its_error_and_the_two_alphas():
    given = cv_path()
    display = CVDisplay.from_path(given, loss="mean squared error", ax=panels()[1][0])
    alphas, mean, se = (v.numpy()[::-1] for v in (given.path.alphas, given.mean, given.se))
    assert np.array_equal(display.line_.get_xdata(), alphas)
    assert np.array_equal(display.line_.get_ydata(), mean)
    corners = display.error_.get_paths()[0].vertices
    for alpha, middle, half in zip(alphas, mean, se, strict=True):
        heights = corners[corners[:, 0] == alpha, 1]
        assert heights.min() == pytest.approx(middle - half)
        assert heights.max() == pytest.approx(middle + half)
    for line, alpha in ((display.alpha_min_, given.alpha_min), (display.alpha_1se_, given.alpha_1se)):
        assert line.get_xdata() == [alpha, alpha]
        assert f"alpha = {alpha:.3g}" in line.get_label()
    heights = [mean[alphas == a][0] for a in (given.alpha_min, given.alpha_1se)]
    assert np.allclose(display.points_.get_offsets(), [[given.alpha_min, heights[0]], [given.alpha_1se, heights[1]]])
    assert display.alpha_min_.get_linestyle() != display.alpha_1se_.get_linestyle()
    assert display.ax_.get_ylabel() == "mean squared error"
    assert display.ax_.get_xlabel() == "alpha"
    assert display.ax_.get_xscale() == "log"
    assert [t.get_text() for t in display.legend_.get_texts()][:2] == ["mean", "± 1 standard error"]
    assert display.folds_ is None


def test_counts_of_the_full_fit_stand_over_their_alphas():
    given = cv_path()
    display = CVDisplay.from_path(given, ax=panels()[1][0])
    counts = dict(zip(given.path.alphas.tolist(), given.path.n_nonzero.tolist(), strict=True))
    shown = list(zip(display.top_.get_xticks(), display.top_.get_xticklabels(), strict=True))
    assert len(shown) > 3
    assert all(int(text.get_text()) == counts[place] for place, text in shown)
    assert display.top_.get_xlim() == display.ax_.get_xlim()


def test_bars_and_folds():
    given = cv_path()
    display = CVDisplay.from_path(given, folds=True, error="bars", ax=panels()[1][0])
    (bars,) = display.error_[2]
    ends = np.array(bars.get_segments())[:, :, 1]
    mean, se = given.mean.numpy()[::-1], given.se.numpy()[::-1]
    assert np.allclose(ends, np.stack([mean - se, mean + se], 1))
    drawn = display.folds_.get_segments()
    assert np.array_equal(np.array(drawn)[:, :, 1], given.losses.numpy()[:, ::-1])
    assert "4 folds" in [t.get_text() for t in display.legend_.get_texts()]


def test_losses_that_explode_leave_the_least_mean_visible():
    given = cv_path()
    given.mean[-3:] *= 1e6
    given.mean[-1] = torch.inf
    display = CVDisplay.from_path(given, ax=panels()[1][0])
    display.figure_.draw_without_rendering()
    low, high = display.ax_.get_ylim()
    assert low < given.mean.min() < given.mean[0] < high < 100.0


def test_flat_losses_and_one_alpha_draw():
    alone, flat = cv_path(points=1), cv_path()
    flat.mean[:], flat.se[:] = 1.0, 0.0
    for given in (alone, flat):
        display = CVDisplay.from_path(given, ax=panels()[1][0])
        display.figure_.draw_without_rendering()
        (low, high), (left, right) = display.ax_.get_ylim(), display.ax_.get_xlim()
        assert low < given.mean.min() <= given.mean.max() < high
        assert left != right
        assert np.isfinite([low, high, left, right]).all()


def test_cv_refuses_what_it_cannot_draw():
    with pytest.raises(ValueError, match="error='band' or error='bars', got 'box'"):
        CVDisplay.from_path(cv_path(), error="box")
    given = cv_path()
    given.path.alphas[:] = 0.0
    with pytest.raises(ValueError, match="one of them > 0"):
        CVDisplay.from_path(given)


def test_style_reaches_the_curves_and_the_global_style_stays():
    before = dict(plt.rcParams)
    assert CVDisplay.from_path(cv_path(), ax=panels()[1][0], color="red").line_.get_color() == "red"
    assert PathDisplay.from_path(path(), ax=panels()[1][0], linewidth=7.0).lines_[0].get_linewidth() == 7.0
    assert dict(plt.rcParams) == before


def test_the_mean_stands_out_in_grey():
    """The mean and the folds differ by more than colour: in lightness."""
    luminance = [np.dot(plt.matplotlib.colors.to_rgb(c), (0.2126, 0.7152, 0.0722)) for c in (PALETTE[0], FAINT)]
    assert luminance[1] - luminance[0] > 0.3
