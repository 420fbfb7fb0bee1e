"""What a fit reports as iterations: all that it took, those at strengths on the way included."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from torchreg import L1, MCP, Group, NonNegative, labels
from torchreg.linear import Logistic, Poisson, SparseClassifier, fit_path
from torchreg.linear.stations import stations

X = torch.randn(150, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(150, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
CLASSES = (X[:, 0] - X[:, 1] + NOISE > 0).double()
COUNTS = (X[:, 0] / 2.0).exp().round()
BY = labels(torch.arange(12) // 3)
CASES = [
    (Logistic(), L1(1.0), CLASSES, 0.1),
    (Logistic(), Group(MCP(1.0), BY), CLASSES, 0.9),
    (Logistic(), Group(L1(1.0), BY), CLASSES, 0.5),
    (Poisson(), NonNegative(L1(1.0)), COUNTS, 0.1),
    (None, MCP(1.0), X[:, 0] - X[:, 1] + NOISE, 0.9),
]


@pytest.mark.parametrize(("datafit", "penalty", "y", "stride"), CASES, ids=lambda case: str(case)[:30])
def test_steps_on_the_way_count(datafit, penalty, y, stride):
    """A path whose strengths are those on the way says how many there are."""
    asked = {"datafit": datafit, "tol": 1e-10}
    far = fit_path(X, y, penalty, alphas=[0.05, 0.001], **asked)
    alphas, wanted = stations([0.05, 0.001], far.alpha_max, stride)
    assert not all(wanted)
    way = fit_path(X, y, penalty, alphas=alphas, **asked)
    ends = [k + 1 for k, kept in enumerate(wanted) if kept]
    expected = [int(way.n_iters[a:b].sum()) for a, b in zip([0, *ends], ends, strict=False)]
    assert far.n_iters.tolist() == expected
    assert min(expected) > 0
    assert torch.equal(far.coefs[-1], way.coefs[-1])


def test_an_estimator_reports_them_too():
    model = SparseClassifier(Group(MCP(0.01), BY)).fit(X.numpy(), CLASSES.numpy())
    path = fit_path(X, CLASSES, Group(MCP(1.0), BY), datafit=Logistic(), alphas=[0.01], tol=model.tol)
    assert np.max(model.n_iter_) == int(path.n_iters[0]) > 0
