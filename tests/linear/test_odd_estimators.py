"""Estimators in unusual but legal use: no intercept, data frames, sparse layouts, absent devices, odd parameters."""

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
from estimator_catalog import CASES, P, X, Y, two, y
from numpy.testing import assert_allclose
from sklearn.base import clone

from torchreg import L1, Group, rows
from torchreg.linear.estimators import (
    ElasticNet,
    Lasso,
    LogisticRegression,
    LogisticRegressionCV,
    MultiTaskLasso,
    Ridge,
    RidgeCV,
    SparseRegressor,
)

SEVERAL = [Lasso(0.1), ElasticNet(0.1), Ridge(), MultiTaskLasso(0.1), SparseRegressor(Group(L1(0.1), by=rows))]


@pytest.mark.parametrize("model", SEVERAL, ids=[type(model).__name__ for model in SEVERAL])
def test_a_warm_start_of_several_targets_without_an_intercept(model):
    model = clone(model).set_params(fit_intercept=False, warm_start=True, tol=1e-10).fit(X, Y)
    before = model.coef_.copy()
    assert_allclose(model.fit(X, Y).coef_, before, rtol=0, atol=1e-5)  # the root of the tolerance


@pytest.mark.parametrize(("model", "target"), [(Lasso(0.1), y), (LogisticRegression(C=0.5), two)])
def test_coefficients_that_the_caller_sets_are_a_start(model, target):
    want = clone(model).set_params(tol=1e-10).fit(X, target).coef_
    started = clone(model).set_params(tol=1e-10, warm_start=True)
    started.coef_ = np.zeros_like(want)
    assert_allclose(started.fit(X, target).coef_, want, rtol=0, atol=1e-5)  # the root of the tolerance


@pytest.mark.parametrize("scoring", ["accuracy", "r2"])
def test_named_columns_are_scored_without_a_warning(scoring):
    frame = pytest.importorskip("pandas").DataFrame(X, columns=list("abcdef"))
    model, target = (LogisticRegressionCV(Cs=2, cv=2), two) if scoring == "accuracy" else (RidgeCV(cv=2), y)
    model = model.set_params(scoring=scoring).fit(frame, target)
    assert model.feature_names_in_.tolist() == list("abcdef")
    assert_allclose(model.coef_, clone(model).fit(X, target).coef_, rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Sparse BSR tensor support", "ignore:Sparse CSR tensor support")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_a_layout_that_is_not_taken_is_named():
    with pytest.raises(TypeError, match=r"CSR, CSC or COO layout, got torch.sparse_bsr; use X.to_dense\(\)"):
        Lasso().fit(torch.from_numpy(X).to_sparse_bsr((2, 2)), y)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="a device of this name may be there")
@pytest.mark.parametrize("name", CASES)
def test_a_device_that_is_not_there_is_named_by_each_estimator(name):
    model, target = CASES[name]
    model = clone(model).set_params(device="cuda")
    if "penalty_weights" in model.get_params():
        model.set_params(penalty_weights=np.ones(P))
    with pytest.raises(RuntimeError, match="device 'cuda' is not there; available: cpu"):
        model.fit(X, target)
