"""scikit-learn's own checks of an estimator, on every class, with none expected to fail."""

import pytest

pytest.importorskip("sklearn")
from estimator_catalog import CASES
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from torchreg.linear import estimators


def of_any_width(model):
    """The model as it takes any number of columns: in groups of one."""
    return clone(model).set_params(groups=None) if "groups" in model.get_params() else model


def test_every_estimator_is_in_the_catalogue():
    assert {type(model).__name__ for model, _ in CASES.values()} == set(estimators.__all__)


@parametrize_with_checks([of_any_width(model) for model, _ in CASES.values()])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # checks fit data of a few rows
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.DataConversionWarning")
def test_scikit_learn_accepts(estimator, check):
    check(estimator)
