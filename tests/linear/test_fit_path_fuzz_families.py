"""fit_path on drawn problems of every loss and of groups, judged as `test_fit_path_fuzz` judges least squares with L1.

A minimum has to exist: columns are unpenalised in least squares alone, and each class has a row of weight 1.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from helpers import QUICK
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from linear_oracle import Blocks, Entries, Judge, Logistic, Multinomial, Poisson, Quadratic

from torchreg import L1, L1L2, Group, NonNegative, Weighted, labels
from torchreg.linear import datafits, fit_path

TOL = 1e-9
EPS = np.finfo(float).eps
LOSSES = {
    "quadratic": (datafits.Quadratic(), Quadratic(), 1),
    "tasks": (datafits.Quadratic(), Quadratic(), 3),
    "logistic": (datafits.Logistic(), Logistic(), 1),
    "poisson": (datafits.Poisson(), Poisson(), 1),
    "multinomial": (datafits.Multinomial(), Multinomial(), 3),
}
SHARES = [2.0, 1.0, 1.0 - 1e-9, 0.9, 0.5, 0.5, 0.1, 0.01, 1e-3]
FACTORS = [0.0, 0.5, 1.0, 1.0, 2.0, np.inf]


@dataclass(frozen=True)
class Net:
    """An elastic net with a factor for each column."""

    factors: np.ndarray
    ratio: float
    lower: float

    def penalty(self, outputs):
        net = Weighted(L1L2(1.0, self.ratio), torch.tensor(self._spread(outputs)))
        return net if self.lower else NonNegative(net)

    def at(self, alpha, outputs):
        factors = self._spread(outputs)
        finite = np.where(np.isinf(factors), 0.0, factors)
        return Entries(np.where(np.isinf(factors), np.inf, alpha * self.ratio * finite),
                       alpha * (1.0 - self.ratio) * finite, self.lower)  # fmt: skip

    def of_columns(self):
        return self.factors

    def _spread(self, outputs):
        return self.factors if outputs == 1 else np.repeat(self.factors[:, None], outputs, 1)


@dataclass(frozen=True)
class Groups:
    """The group lasso with a factor for each group of columns, and ``inner`` times L1 beside it."""

    index: np.ndarray
    factors: np.ndarray
    inner: float

    def penalty(self, outputs):
        del outputs  # labels of rows are those of all entries in them
        group = Group(L1(1.0), by=labels(torch.tensor(self.index)), weights=torch.tensor(self.factors))
        return group + L1(self.inner) if self.inner else group

    def at(self, alpha, outputs):
        index = self.index if outputs == 1 else np.repeat(self.index[:, None], outputs, 1)
        strengths = np.where(np.isinf(self.factors), np.inf, alpha * np.where(np.isinf(self.factors), 0, self.factors))
        return Blocks(index, strengths, self.inner * alpha)

    def of_columns(self):
        return np.maximum(self.factors[self.index], self.inner)


@dataclass(frozen=True)
class Drawn:
    loss: str
    X: np.ndarray
    y: np.ndarray
    weights: np.ndarray
    penalised: Net | Groups
    fit_intercept: bool
    standardize: bool
    shares: list[float]

    @property
    def is_exact(self):
        """Whether the engine converges in few iterations however the columns are; proximal gradient does not."""
        return isinstance(self.penalised, Net) or self.loss in ("quadratic", "tasks")

    def fit(self):
        """At shares of alpha_max, or of 1 where there is none."""
        datafit, _, outputs = LOSSES[self.loss]
        penalty = self.penalised.penalty(outputs)
        options = {
            "datafit": datafit, "sample_weight": self.weights, "fit_intercept": self.fit_intercept,
            "standardize": self.standardize, "tol": TOL, "max_iter": None if self.is_exact else 1000,
        }  # fmt: skip
        top = fit_path(self.X, self.y, penalty, alphas=[1.0], **options).alpha_max
        top = top if 0.0 < top < np.inf else 1.0
        return fit_path(self.X, self.y, penalty, alphas=[s * top for s in self.shares], **options)

    def judged(self, path):
        """The judge of the problem as it is penalised, and the coefficients there."""
        y = np.eye(3)[self.y.astype(int)] if self.loss == "multinomial" else self.y
        judge = Judge(self.X, y, LOSSES[self.loss][1], weights=self.weights, fit_intercept=self.fit_intercept)
        scale = np.ones(self.X.shape[1])
        if self.standardize:
            judge, scale = judge.standardised()
        coefs = path.coefs.numpy()
        return judge, coefs * scale.astype(float).reshape(-1, *[1] * (coefs.ndim - 2))


@st.composite
def strengths(draw, loss, p):
    free = loss in ("quadratic", "tasks")  # columns may be: of other losses, whose minimum need not exist then, none is
    if draw(st.booleans()):
        factors = draw(st.just(np.ones(p)) | arrays(float, p, elements=st.sampled_from(FACTORS)))
        ratio, lower = draw(st.sampled_from([1.0, 1.0, 0.3, 0.0])), draw(st.sampled_from([-np.inf, 0.0]))
        if lower == 0.0 or not free:  # free and bounded: a dual is feasible at the solution alone
            factors = np.where(factors == 0.0, 1.0, factors)
        return Net(factors, ratio, lower)
    index = draw(arrays(int, p, elements=st.integers(0, 2)))
    factors = draw(st.just(np.ones(3)) | arrays(float, 3, elements=st.sampled_from(FACTORS)))
    if not free:
        factors = np.where(factors == 0.0, 1.0, factors)
    return Groups(index, factors[: index.max() + 1], draw(st.sampled_from([0.0, 0.0, 0.5])))


def answers(draw, loss, n):
    """Of n rows, each class among the first."""
    if loss == "tasks":
        return draw(arrays(float, (n, 3), elements=st.integers(-3, 3).map(float)))
    least, most = {"quadratic": (-3, 3), "logistic": (0, 1), "poisson": (0, 6), "multinomial": (0, 2)}[loss]
    y = draw(arrays(float, n, elements=st.integers(least, most).map(float)))
    if loss != "quadratic":
        y[: min(most, 2) + 1] = np.arange(min(most, 2) + 1)
    return y


@st.composite
def drawn(draw, loss):
    n, p = draw(st.integers(3, 9)), draw(st.integers(1, 7))
    X = draw(arrays(float, (n, p), elements=st.sampled_from([-2.0, -1.0, 0.0, 0.0, 1.0, 1.0, 3.0])))
    copies = draw(st.lists(st.integers(0, p - 1), min_size=0, max_size=3))
    X = np.hstack([X, X[:, copies] * draw(st.sampled_from([1.0, -1.0, 2.0, 1e-2]))])
    X, y = X + draw(st.sampled_from([0.0, 0.0, 0.1, 10.0])), answers(draw, loss, n)
    weights = draw(st.just(np.ones(n)) | arrays(float, n, elements=st.sampled_from([0.0, 1.0, 2.0, 0.1])))
    weights[:3] = 1.0
    penalised = draw(strengths(loss, X.shape[1]))
    return Drawn(
        loss, X, y, weights, penalised,
        fit_intercept=draw(st.booleans()),
        standardize=draw(st.sampled_from([False, False, True])),
        shares=draw(st.lists(st.sampled_from(SHARES), min_size=1, max_size=4)),
    )  # fmt: skip


@pytest.mark.parametrize("loss", LOSSES)
def test_every_point_is_optimal(loss):
    @settings(QUICK, max_examples=20)
    @given(drawn(loss))
    def judged(problem):
        every_point_is_optimal(problem)

    judged()


def every_point_is_optimal(problem):
    path, outputs = problem.fit(), LOSSES[problem.loss][2]
    judge, coefs = problem.judged(path)
    loss, _ = judge.null()
    factors, tall = problem.penalised.of_columns(), np.abs(judge.X).max(0).astype(float)
    for k, alpha in enumerate(path.alphas.tolist()):
        penalty, intercept, coef = problem.penalised.at(alpha, outputs), path.intercepts[k].numpy(), coefs[k]
        # numbers that cancel in the predictor, and what their rounding leaves of gaps
        width = float(np.abs(coef).reshape(len(tall), -1).T.dot(tall).max())
        rounding = 1e-12 * loss + 100 * EPS * max(np.abs(coef).sum() * tall.max(), 1.0) * max(width, 1.0)
        gap = judge.gap(penalty, coef, intercept)
        assert gap <= TOL * loss + rounding or not path.converged[k]
        assert judge.objective(penalty, coef, intercept) == pytest.approx(float(path.objectives[k]), abs=rounding)
        assert path.converged[k] or not problem.is_exact
        assert not coef[np.isinf(factors)].any()
        if path.alpha_max < np.inf and alpha >= path.alpha_max > 0.0:
            assert not coef[factors > 0.0].any()
        if isinstance(problem.penalised, Net):
            assert (coef >= problem.penalised.lower).all()
