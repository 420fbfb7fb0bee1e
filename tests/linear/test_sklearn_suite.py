"""A part of scikit-learn's own tests pass with our classes in place of theirs; `sklearn_suite` runs all of them."""

import pytest

pytest.importorskip("sklearn")
from sklearn_suite import failures, unexpected

# What users meet: classes missing from folds, no penalty, warm starts, dtypes, sparse input and coefficients, weights.
SELECTED = (
    "classes_missing or penalty_none or sparsify or dtype_match or large_sparse or warm_start_converge or sparse_coef "
    "or nan or passing_params or l1_ratio or no_routing or check_input or sparse_input or alphas_validation "
    "or test_sparse_enet_not_as_toy or test_same_output or lasso_zero or lasso_toy or single_feature "
    "or ridge_vs_lstsq or ridge_individual or ridge_shapes or sample_weights_validation or enet_toy_list"
)


@pytest.mark.slow
def test_scikit_learns_own_tests_pass(tmp_path):
    passed, failed = failures(["coordinate_descent", "sparse", "ridge", "logistic", "glm"], tmp_path, SELECTED)
    assert unexpected(failed) == {}
    assert passed > 100
