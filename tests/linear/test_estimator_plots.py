"""PathDisplay.from_estimator on real estimators, those without an alpha_max_ too."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
from sklearn import linear_model

from torchreg import L1, L2
from torchreg.linear import (
    GroupLasso,
    Lasso,
    LogisticRegression,
    MultiTaskLasso,
    PoissonRegressor,
    Ridge,
    SparseRegressor,
    fit_cv,
    fit_path,
)
from torchreg.plots import CVDisplay, PathDisplay, panels

N, P = 60, 6
DRAW = np.random.default_rng(0)
X = DRAW.standard_normal((N, P))
ETA = X[:, :2] @ [1.0, -0.5]
Y = ETA + DRAW.standard_normal(N)
TWO = np.where(ETA + DRAW.logistic(size=N) > 0, "yes", "no")
TARGETS = np.stack([Y, DRAW.standard_normal(N)], 1)

AROUND = {
    "Ridge": (Ridge(), Y, 1.0),
    "Ridge of two targets": (Ridge(alpha=3.0), TARGETS, 3.0),
    "LogisticRegression": (LogisticRegression(), TWO, 1.0 / N),
    "PoissonRegressor": (PoissonRegressor(), DRAW.poisson(np.exp(ETA)), 1.0),
    "SparseRegressor with L2": (SparseRegressor(L2(0.2)), Y, 0.2),
}
DOWN = {
    "Lasso": (Lasso(0.1), Y),
    "GroupLasso": (GroupLasso(0.1, groups=2), Y),
    "MultiTaskLasso": (MultiTaskLasso(0.1), TARGETS),
    "LogisticRegression with L1": (LogisticRegression(C=0.5, l1_ratio=1.0), TWO),
}


def drawn(estimator, target):
    before = estimator.get_params()
    display = PathDisplay.from_estimator(estimator, X, target, ax=panels()[1][0])
    assert estimator.get_params() == before
    assert not hasattr(estimator, "coef_"), "a copy is fitted"
    return display


@pytest.mark.parametrize(("estimator", "target", "own"), AROUND.values(), ids=AROUND)
def test_a_penalty_without_alpha_max_is_drawn_around_the_estimators_own_alpha(estimator, target, own):
    display = drawn(estimator, target)
    np.testing.assert_allclose(display.alphas[[0, -1]], [own / 1e3, own * 1e3], rtol=1e-12)
    assert display.chosen_.get_xdata() == [own, own]
    assert (display.nonzeros == P).all()
    sizes = np.linalg.norm(display.coefs, axis=1)
    assert (np.diff(sizes) < 0).all(), "more penalty, smaller coefficients"


@pytest.mark.parametrize(("estimator", "target"), DOWN.values(), ids=DOWN)
def test_a_penalty_with_alpha_max_is_drawn_from_there_down(estimator, target):
    display = drawn(estimator, target)
    top = estimator.fit(X, target).alpha_max_
    np.testing.assert_allclose(display.alphas[[0, -1]], [top / 1e3, top], rtol=1e-12)
    assert display.nonzeros[-1] <= 1 < display.nonzeros[0]  # 1 where C = 1 / (alpha n) rounds to less than alpha_max
    del estimator.coef_


@pytest.mark.parametrize("estimator", [Ridge(alpha=0.0), LogisticRegression(C=np.inf)], ids=["alpha 0", "C inf"])
def test_without_a_penalty_the_path_surrounds_1(estimator):
    target = Y if isinstance(estimator, Ridge) else TWO
    np.testing.assert_allclose(drawn(estimator, target).alphas[[0, -1]], [1e-3, 1e3], rtol=1e-12)


def test_an_alpha_for_each_target_and_a_path_of_zeros_are_refused():
    with pytest.raises(ValueError, match="Ridge has one alpha for each target; set alpha to one number"):
        PathDisplay.from_estimator(Ridge(alpha=[1.0, 2.0]), X, TARGETS)
    with pytest.raises(ValueError, match=r"Lasso has alpha_max_ = 0\.0"):
        PathDisplay.from_estimator(Lasso(0.1), X, np.ones(N))


def test_what_is_no_path_is_named_and_what_to_draw_instead():
    path, folds = fit_path(X, Y, L1(1.0), alphas=3), fit_cv(X, Y, L1(1.0), alphas=3)
    with pytest.raises(TypeError, match=r"takes what fit_path returns, got CVPath; draw its path: CVPath\.path"):
        PathDisplay.from_path(folds)
    with pytest.raises(TypeError, match="takes what fit_path returns, got Lasso; an estimator is drawn by"):
        PathDisplay.from_path(Lasso())
    with pytest.raises(TypeError, match="takes what fit_cv returns, got Path; a path without folds"):
        CVDisplay.from_path(path)
    with pytest.raises(ValueError, match=r"sklearn\.linear_model\S*Lasso has no alpha_max_.*estimator of torchreg"):
        PathDisplay.from_estimator(linear_model.Lasso(0.1), X, Y)
