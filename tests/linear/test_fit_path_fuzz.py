"""fit_path on drawn problems: small integers, so that ties, duplicates and dependent columns are everywhere."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from helpers import F64, QUICK
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from linear_oracle import Entries, Judge
from test_fit_path_oracles import close, design, response

from torchreg import L1, L1L2, NonNegative
from torchreg.linear.path import fit_path

GAP = 1e-9  # of the null loss
EPS = np.finfo(float).eps
OFTEN = settings(QUICK, max_examples=250)


@dataclass(frozen=True)
class Drawn:
    X: np.ndarray
    y: np.ndarray
    weights: np.ndarray | None
    ratio: float
    lower: float
    fit_intercept: bool
    standardize: bool
    shares: list[float]

    @property
    def penalty(self):
        return L1L2(1.0, self.ratio) if self.lower else NonNegative(L1L2(1.0, self.ratio))

    def penalty_at(self, alpha):
        return Entries(alpha * self.ratio, alpha * (1.0 - self.ratio), self.lower)

    @property
    def options(self):
        return {
            "sample_weight": self.weights, "fit_intercept": self.fit_intercept, "standardize": self.standardize,
        }  # fmt: skip

    def fit(self):
        """At shares of alpha_max, or of 1 where there is none."""
        top = fit_path(self.X, self.y, self.penalty, alphas=[1.0], **self.options).alpha_max
        top = top if 0.0 < top < np.inf else 1.0
        return fit_path(self.X, self.y, self.penalty, alphas=[s * top for s in self.shares], **self.options)

    def judged(self, path):
        """The judge of the problem as it is penalised, and the coefficients there."""
        judge = Judge(self.X, self.y, weights=self.weights, fit_intercept=self.fit_intercept)
        scale = np.ones(self.X.shape[1])
        if self.standardize:
            judge, scale = judge.standardised()
        return judge, path.coefs.numpy() * scale.astype(float)


SHARES = [2.0, 1.0, 1.0 - 1e-9, 0.9, 0.5, 0.5, 0.1, 0.01, 1e-3, 1e-6, 0.0]


@st.composite
def drawn(draw):
    n, p = draw(st.integers(1, 9)), draw(st.integers(1, 8))
    X = draw(arrays(float, (n, p), elements=st.sampled_from([-2.0, -1.0, 0.0, 0.0, 1.0, 1.0, 3.0])))
    copies = draw(st.lists(st.integers(0, p - 1), min_size=0, max_size=4))
    X = np.hstack([X, X[:, copies] * draw(st.sampled_from([1.0, -1.0, 2.0, 1e-4, 1e4]))])
    y = draw(arrays(float, n, elements=st.integers(-3, 3).map(float)))
    counts = draw(st.none() | arrays(float, n, elements=st.sampled_from([0.0, 1.0, 1.0, 2.0, 0.1])))
    return Drawn(
        X=X + draw(st.sampled_from([0.0, 0.0, 0.1, 1e3])),
        y=y,
        weights=None if counts is None or not counts.any() else counts,
        ratio=draw(st.sampled_from([1.0, 1.0, 0.3, 1e-3])),
        lower=draw(st.sampled_from([-np.inf, -np.inf, 0.0])),
        fit_intercept=draw(st.booleans()),
        standardize=draw(st.sampled_from([False, False, True])),
        shares=draw(st.lists(st.sampled_from(SHARES), min_size=1, max_size=5)),
    )


@OFTEN
@given(drawn())
def test_every_point_is_optimal(problem):
    path = problem.fit()
    judge, coefs = problem.judged(path)
    loss, slope = judge.null()
    for k, alpha in enumerate(path.alphas.tolist()):
        penalty, intercept = problem.penalty_at(alpha), path.intercepts[k].numpy()
        gap, objective = judge.gap(penalty, coefs[k], intercept), judge.objective(penalty, coefs[k], intercept)
        # numbers that cancel in the predictor, and what their rounding leaves of gaps and correlations
        tall = np.abs(judge.X).max(0).astype(float)
        width, size = np.abs(coefs[k]) @ tall, tall.max()
        rounding = 1e-12 * loss + 100 * EPS * max(np.abs(coefs[k]).sum() * size, 1.0) * max(width, 1.0)
        assert gap <= GAP * loss + rounding
        assert gap == pytest.approx(float(path.dual_gaps[k]), abs=rounding)
        assert objective == pytest.approx(float(path.objectives[k]), abs=rounding)
        assert judge.violation(penalty, coefs[k], intercept) <= 1e-9 * slope + 100 * EPS * size * max(width, 1.0)
        assert path.converged[k]
        if path.alpha_max < np.inf and alpha >= path.alpha_max > 0.0:
            assert not coefs[k].any()


@OFTEN
@given(drawn())
def test_the_path_is_monotone(problem):
    """As alpha falls the minimum falls, its loss falls and its penalty grows, but for what gaps leave open.

    Of two points with gaps at most d, optimal for a > b: (a - b) (loss_b - loss_a) <= d (a + b).
    """
    path = problem.fit()
    judge, coefs = problem.judged(path)
    slack = float(path.dual_gaps.max()) + 1e-13 * judge.null()[0]
    alphas, objectives, losses = path.alphas.numpy(), path.objectives.numpy(), path.losses.numpy()
    sizes = [float(problem.penalty_at(1.0).value(c.astype(np.longdouble))) for c in coefs]
    assert (np.diff(objectives) <= slack).all()
    for k in range(len(alphas) - 1):
        a, b = alphas[k], alphas[k + 1]
        assert (a - b) * (losses[k + 1] - losses[k]) <= slack * (a + b)
        assert (a - b) * (sizes[k + 1] - sizes[k]) >= -2 * slack


@OFTEN
@given(drawn(), st.integers(0, 2**32 - 1))
def test_neither_the_start_nor_the_order_of_columns_changes_the_minimum(problem, seed):
    path = problem.fit()
    draws = np.random.default_rng(seed)
    order = draws.permutation(problem.X.shape[1])
    start = np.round(draws.standard_normal(len(order)))
    again = replace(problem, X=problem.X[:, order])
    options = {"alphas": path.alphas, **problem.options}
    loss = problem.judged(path)[0].null()[0]
    for other in (
        fit_path(again.X, problem.y, problem.penalty, **options),
        fit_path(problem.X, problem.y, problem.penalty, init=(start, 0.0), **options),
        fit_path(-problem.X, -problem.y, problem.penalty, **options),
    ):
        assert other.objectives.numpy() == pytest.approx(path.objectives.numpy(), abs=2 * GAP * loss)
    alone = fit_path(problem.X, problem.y, problem.penalty, alphas=[float(path.alphas[-1])], **problem.options)
    assert float(alone.objectives[0]) == pytest.approx(float(path.objectives[-1]), abs=2 * GAP * loss)


@settings(QUICK, max_examples=60)
@given(drawn(), st.integers(0, 2**32 - 1))
def test_float32_is_read_as_the_numbers_that_it_holds(problem, seed):
    X = (problem.X + 0.1 * np.random.default_rng(seed).standard_normal(problem.X.shape)).astype(np.float32)
    narrow, wide = replace(problem, X=X).fit(), replace(problem, X=X.astype(np.float64)).fit()
    loss = problem.judged(wide)[0].null()[0]
    assert narrow.alphas.numpy() == pytest.approx(wide.alphas.numpy(), rel=1e-12)
    assert narrow.objectives.numpy() == pytest.approx(wide.objectives.numpy(), abs=2 * GAP * loss)


@settings(QUICK, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.integers(2, 120), st.floats(0.0, 0.99))
def test_larger_designs(seed, n, p, rho):
    """Where the blocks of strengths and the growth of the working set matter."""
    X = design(n, p, seed, rho)
    y = X @ (np.random.default_rng(seed).standard_normal(p) * (np.arange(p) % 7 == 0))
    y = y + np.random.default_rng(seed + 1).standard_normal(n)
    path, judge = fit_path(X, y, L1(1.0), alphas=20, eps=1e-4), Judge(X, y)
    assert path.converged.all()
    for k in (0, 7, 13, 19):
        gap = judge.gap(Entries(float(path.alphas[k])), path.coef(k).numpy(), path.intercepts[k].numpy())
        assert gap <= GAP * judge.null()[0]
    assert (path.n_nonzero <= min(n - 1, p)).all()


@pytest.fixture
def threads():
    """To set their number, which is put back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(1500, 120), (150, 900)], ids=["tall", "wide"])
def test_the_number_of_threads_changes_rounding_alone(threads, shape):
    X = design(*shape, rho=0.8)
    y = response(X)
    paths = []
    for count in (1, 2):
        threads(count)
        paths.append(fit_path(X, y, L1(1.0), alphas=30))
    one, two = paths
    close(two.coefs, one.coefs, 1e-9)  # rounding of sums over the rows, times the condition
    close(two.objectives, one.objectives, 1e-12)
    assert torch.equal(one.n_nonzero, two.n_nonzero)
    assert one.coefs.dtype == F64
