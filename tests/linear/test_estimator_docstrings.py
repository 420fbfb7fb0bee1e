"""Docstrings of estimators: each parameter and attribute has its text, from one table or from the class."""

import dataclasses
import inspect
import re

import numpy as np
import pytest

from torchreg.linear import estimators
from torchreg.linear.estimators.documentation import ARGUMENTS, documented

CLASSES = [getattr(estimators, name) for name in estimators.__all__]
each_class = pytest.mark.parametrize("made", CLASSES, ids=lambda made: made.__name__)
NUMBERS = np.random.default_rng(0)
X = NUMBERS.normal(size=(40, 4))
Y = X @ [2.0, 0.0, 0.0, -1.0] + NUMBERS.normal(size=40)


def section(made, name):
    """Names and texts, in order."""
    found = re.search(rf"^{name}:\n(.*?)\n\n", made.__doc__, re.MULTILINE | re.DOTALL).group(1)
    entries = re.split(r"^    (\w+(?:, \w+)*): ", found, flags=re.MULTILINE)[1:]
    return [(n, t) for names, t in zip(entries[::2], entries[1::2], strict=True) for n in names.split(", ")]


@each_class
def test_every_parameter_is_explained_once(made):
    names = [name for name, _ in section(made, "Args")]
    parameters = list(inspect.signature(made).parameters)
    assert sorted(names) == sorted(parameters)
    alone = [name for name in names if "without effect" not in dict(section(made, "Args"))[name]]
    assert alone == [name for name in parameters if name in alone]  # in the constructor's order
    assert all(len(line) <= 120 for line in made.__doc__.splitlines())
    assert [text for _, text in section(made, "Args") if not text.strip().endswith(".")] == []


@each_class
def test_sections_stand_in_their_order(made):
    heads = re.findall(r"^(\w+):$", made.__doc__, re.MULTILINE)
    assert heads == ["Args", "Attributes", "Raises", "Source", "Example"]
    assert inspect.getdoc(made) == made.__doc__.strip()


@pytest.mark.parametrize("made", [estimators.Lasso, estimators.LassoCV, estimators.RidgeCV], ids=lambda m: m.__name__)
def test_fitted_attributes_are_explained(made):
    fitted = {name for name in vars(made().fit(X, Y)) if name.endswith("_") and not name.startswith("_")}
    assert fitted <= {name for name, _ in section(made, "Attributes")}


@pytest.mark.parametrize("made", [estimators.SparseClassifier, estimators.SparseClassifierCV], ids=lambda m: m.__name__)
def test_fitted_attributes_of_classifiers_are_explained(made):
    from torchreg import L1

    fitted = vars(made(L1(0.1), **({"cv": 2, "alphas": 3} if hasattr(made, "cv") else {})).fit(X, Y > 0.0))
    named = {name for name, _ in section(made, "Attributes")}
    assert {name for name in fitted if name.endswith("_")} <= named


def test_texts_that_nobody_reads_are_none():
    used = {field.name for made in CLASSES for field in dataclasses.fields(made)}
    assert set(ARGUMENTS) <= used


def test_a_text_of_its_own_comes_before_the_tables():
    assert "one or one for each target" in dict(section(estimators.Ridge, "Args"))["alpha"]
    assert "as in `Lasso`" in dict(section(estimators.LassoCV, "Attributes"))["coef_"]


def test_what_is_not_explained_is_refused():
    with pytest.raises(TypeError, match="Bare says nothing of, or has no such parameter: unheard_of"):

        @documented
        @dataclasses.dataclass
        class Bare:
            """A class.

            Example:
                >>> 1
                1
            """

            unheard_of: int = 0

    with pytest.raises(TypeError, match="no such parameter: gone"):

        @documented
        @dataclasses.dataclass
        class Old:
            """A class.

            Args:
                gone: a parameter of former times.
            """

            tol: float = 0.0
