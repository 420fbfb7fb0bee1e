"""One path follower for all solvers on working sets: what it screens, and in what order it solves, changes no solution.

Two points whose gaps are below 1e-9 of the null model's objective have objectives that are no farther apart.
"""

import numpy as np
import pytest
import torch

from torchreg import L1, L1L2, Group, NonNegative, labels
from torchreg.linear import Logistic, Multinomial, Poisson, fit_path
from torchreg.linear.groupwise.path import GroupLeastSquares
from torchreg.linear.l1.least_squares import PivotLeastSquares
from torchreg.linear.solvers.path_following import PathFollower
from torchreg.linear.solvers.prox_newton import ProxNewton

DRAWS = np.random.default_rng(7)
X = DRAWS.standard_normal((50, 80)) + 0.7 * DRAWS.standard_normal((50, 1))
ETA = X[:, :4].sum(1) - X[:, 4:6].sum(1) + DRAWS.standard_normal(50)
Y = {
    None: ETA,
    Logistic: (ETA > 0.0).astype(float),
    Poisson: np.floor(np.exp(ETA.clip(max=3.0))),
    Multinomial: np.digitize(ETA, [-1.0, 1.0]),
}
GROUPS = Group(L1(1.0), labels(torch.arange(80) // 4))
CASES = {
    "lasso": (None, L1(1.0), PivotLeastSquares),
    "elastic net": (None, L1L2(1.0, 0.6), PivotLeastSquares),
    "groups": (None, GROUPS, GroupLeastSquares),
    "logistic": (Logistic, L1(1.0), ProxNewton),
    "signed logistic": (Logistic, NonNegative(L1(1.0)), ProxNewton),
    "poisson": (Poisson, L1L2(1.0, 0.6), ProxNewton),
    "logistic groups": (Logistic, GROUPS, ProxNewton),
    "softmax": (Multinomial, L1(1.0), ProxNewton),
}
TOL = 1e-9


def fitted(case, alphas=12, **options):
    datafit, penalty, _ = CASES[case]
    path = fit_path(X, Y[datafit], penalty, datafit=datafit and datafit(), alphas=alphas, eps=0.05, tol=TOL, **options)
    assert bool(path.converged.all())
    return path


def assert_same(path, other):
    assert bool(((path.objectives - other.objectives).abs() <= TOL * path.null_objective).all())


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("keep", [0.5, 10.0], ids=["nearly all joins", "nothing joins before it is needed"])
def test_screening_decides_on_time_alone(case, keep, monkeypatch):
    wanted = fitted(case)
    init = CASES[case][2].__init__

    def changed(self, *args, **options):
        init(self, *args, **options)
        self.keep = keep

    monkeypatch.setattr(CASES[case][2], "__init__", changed)
    assert_same(fitted(case), wanted)


@pytest.mark.parametrize("case", list(CASES))
def test_a_strength_alone_has_the_point_of_the_path(case):
    path = fitted(case)
    for k in (3, 11):
        alone = fitted(case, alphas=[float(path.alphas[k])])
        assert abs(float(alone.objectives[0] - path.objectives[k])) <= TOL * path.null_objective


@pytest.mark.parametrize("case", list(CASES))
def test_blocks_are_as_good_as_single_strengths(case, monkeypatch):
    wanted = fitted(case, alphas=25)
    rest, seen = PathFollower._rest, []

    def single(self, alphas, penalties):
        self._solver.block = 1
        for point in rest(self, alphas, penalties):
            seen.append(point)
            yield point

    monkeypatch.setattr(PathFollower, "_rest", single)
    assert_same(fitted(case, alphas=25), wanted)
    assert len(seen) >= 25


@pytest.mark.parametrize("case", ["logistic", "poisson", "logistic groups", "softmax"])
def test_more_steps_than_are_allowed_are_not_taken(case):
    datafit, penalty, _ = CASES[case]
    null = fitted(case, alphas=1)
    init = (torch.ones_like(null.coef(0)), null.intercepts[0])  # from anywhere: no strengths on the way
    path = fit_path(X, Y[datafit], penalty, datafit=datafit(), alphas=[0.05], tol=1e-14, max_iter=1, init=init)
    assert not bool(path.converged.any())
    assert path.n_iters.tolist() == [1]
