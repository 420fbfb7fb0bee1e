"""scikit-learn's own tests of its linear models, as its wheel carries them, with our classes in place of theirs.

The installed files are rewritten into a folder of the caller's: after their imports come ours, of the same names.
Nothing of them is kept. `EXPECTED` says which tests fail for a reason; any other failure is a fault of ours.

    python tests/sklearn_suite.py [coordinate_descent sparse ridge logistic glm common]   # about ten minutes for all
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from xml.etree import ElementTree

import sklearn

from torchreg.linear import estimators

FILES = {
    "coordinate_descent": "tests/test_coordinate_descent.py",
    "sparse": "tests/test_sparse_coordinate_descent.py",
    "ridge": "tests/test_ridge.py",
    "logistic": "tests/test_logistic.py",
    "glm": "_glm/tests/test_glm.py",
    "common": "tests/test_common.py",
}
MORE = {"glm": "PoissonRegressor._get_loss = lambda self: HalfPoissonLoss()\n"}  # private; its data sets ask for it
FIXTURES = """
import pytest
@pytest.fixture
def global_random_seed():
    return 42
"""

SOLVER = "a solver's name, limits, messages or single steps: one solver serves all here"
WORDS = "a warning of scikit-learn's about its own changes to come, or about options that have no effect here"
PRIVATE = "a private name of scikit-learn's"
TOLERANCE = "tol bounds the duality gap, so that coefficients have about half as many digits"
SEVERAL = "without a penalty several coefficients reach the minimum, and which one is found is not promised"
EXPECTED = {
    # coordinate descent
    "test_enet_copy_X_False_check_input_False": "X is never overwritten",
    "test_check_input_false": "data are always checked",
    "test_overridden_gram_matrix": WORDS,
    "test_lassoCV_does_not_set_precompute*": PRIVATE,
    "test_*coordinate_descent*": SOLVER,
    "test_enet_nonfinite_params": "an error, which names no coordinate descent",
    "test_lasso_dual_gap": "a gap of 5e-15 is compared to 7 digits",
    "test_lasso_alpha_warning": "alpha = 0 is solved as any other",
    "test_uniform_targets": "predictions are theirs; the grid of a constant target goes down from 1",
    "test_1d_multioutput_enet_and_multitask_enet_cv": TOLERANCE,
    "test_elasticnet_precompute_incorrect_gram": "precompute has no effect",
    "test_warm_start_convergence*": SOLVER + "; to find that the start is the solution counts as one iteration",
    # ridge
    "test_ridge_regression[[]*": PRIVATE + ", solver_",
    "test_regularization_limits_ridge_gcv[[]*": WORDS,
    "test_ridge_fit_intercept_sparse_error*": SOLVER,
    "test_ridge_fit_intercept_sparse_sag*": SOLVER,
    "test_ridge_positive_error_test*": SOLVER,
    "test_lbfgs_solver_error": SOLVER,
    "test_n_iter": SOLVER,
    "test_*array_api*constraints*": PRIVATE,
    # logistic
    "test_check_solver_option*": SOLVER,
    "test_liblinear_dual_random_state": SOLVER,
    "test_liblinear_with_large_values": SOLVER,
    "test_large_sparse_matrix*": SOLVER,
    "test_newton_cholesky_fallback_to_lbfgs": SOLVER,
    "test_dtype_match*-liblinear]": SOLVER,
    "test_max_iter*": SOLVER,
    "test_warm_start_newton_solver*": SOLVER,
    "test_zero_max_iter*": "max_iter is at least 1: without a step there is no fit",
    "test_logistic_cv_multinomial_score*": PRIVATE,
    "test_logreg_predict_proba_multinomial": PRIVATE,
    "test_get_default_scorer": PRIVATE,
    "test_logistic_regression_callback*": "callbacks, which scikit-learn 1.9 tries out",
    "test_*warns*": WORDS,
    "test_penalty_deprecated*": WORDS,
    "test_l1_ratio_None_deprecated*": WORDS,
    "test_lr_penalty_l1ratio_incompatible[[]l1-0.0]": "the default of l1_ratio contradicts nothing",
    "test_LogisticRegressionCV_on_folds": TOLERANCE,
    # generalized linear models
    "test_glm_regression[[]*-newton-cholesky]": TOLERANCE,
    "test_glm_regression_[hv]stacked_X*-newton-cholesky]": TOLERANCE,
    "test_glm_regression_unpenalized[[]wide-*": SEVERAL,
    "test_glm_regression_unpenalized_hstacked_X*": SEVERAL,
    "test_glm_regression_unpenalized_vstacked_X[[]wide-*": SEVERAL,
    "test_warm_start[[]*-newton-cholesky]": TOLERANCE,
    "test_linalg_warning_with_newton_solver": SOLVER,
}


def rewritten(name: str, folder: Path) -> Path:
    """One installed file, with our classes for those of the same names that it imports."""
    source = (Path(sklearn.__file__).parent / "linear_model" / FILES[name]).read_text()
    imports = [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]
    known = {alias.asname or alias.name for node in imports for alias in node.names}
    ours = [each for each in estimators.__all__ if each in known]
    lines = source.splitlines(keepends=True)
    last = max(node.end_lineno or 0 for node in imports)
    lines.insert(last, f"from torchreg.linear import {', '.join(ours)}\n{MORE.get(name, '')}")
    (folder / "conftest.py").write_text(FIXTURES)
    path = folder / f"test_theirs_{name}.py"
    path.write_text("".join(lines))
    return path


def failures(names: Sequence[str], folder: Path, select: str = "") -> tuple[int, dict[str, str]]:
    """How many tests passed, and the first line of what each that failed said.

    Args:
        names: of `FILES`. folder: where the files are written. select: as pytest's ``-k``.
    """
    paths = [str(rewritten(name, folder)) for name in names]
    report = folder / "report.xml"
    options = ["-q", "--tb=short", "-c", os.devnull, f"--rootdir={folder}", "-p", "no:cacheprovider", "-k", select]
    command = [sys.executable, "-m", "pytest", *options, f"--junitxml={report}", *paths]
    environment = {**os.environ, "SCIPY_ARRAY_API": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert report.exists(), done.stdout + done.stderr
    passed, failed = 0, {}
    for case in ElementTree.parse(report).iter("testcase"):
        told = [part for part in case if part.tag in ("failure", "error")]
        if told:
            failed[case.get("name", "")] = (told[0].get("message") or "").splitlines()[0]
        elif not len(case):
            passed += 1
    return passed, failed


def unexpected(failed: dict[str, str]) -> dict[str, str]:
    """The failures for which `EXPECTED` has no reason."""
    return {test: told for test, told in failed.items() if not any(fnmatchcase(test, known) for known in EXPECTED)}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        total, found = failures(sys.argv[1:] or list(FILES), Path(directory))
    ours = unexpected(found)
    print(f"{total} passed, {len(found) - len(ours)} failed as expected, {len(ours)} failed:")
    print("\n".join(f"{test}: {told}" for test, told in ours.items()))
    sys.exit(bool(ours))
