"""Data frames: names are kept and asked for, and what is no number is named by column and row."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from torchreg import L1
from torchreg.linear import Fit, Lasso, Path, fit_cv, fit_path, refit, solve
from torchreg.linear.designs.tables import column_names, table_numbers

pd = pytest.importorskip("pandas")

VALUES = np.random.default_rng(0).normal(size=(30, 3))
Y = VALUES[:, 0] - VALUES[:, 1]
NAMES = ("age", "dose", "weight")
FRAME = pd.DataFrame(VALUES, columns=list(NAMES))
ASKED = {"alphas": [0.2, 0.05]}


class Duck:
    """What pandas and polars frames have in common with each other: polars' side of it."""

    def __init__(self, **columns) -> None:
        self._columns = {name: np.asarray(column) for name, column in columns.items()}
        self.columns, self.dtypes = list(columns), [column.dtype for column in self._columns.values()]
        self.shape = (len(next(iter(self._columns.values()))), len(columns))

    def get_columns(self):
        return list(self._columns.values())

    def __array__(self, dtype=None, copy=None):
        return np.column_stack(self.get_columns()).astype(dtype)


def with_column(column) -> pd.DataFrame:
    return FRAME.assign(dose=column)


def test_a_frame_is_fitted_as_its_numbers():
    path, expected = fit_path(FRAME, Y, L1(1.0), **ASKED), fit_path(VALUES, Y, L1(1.0), **ASKED)
    torch.testing.assert_close(path.coefs, expected.coefs)
    assert (path.feature_names, expected.feature_names) == (NAMES, None)
    assert path.at(0.1).feature_names == NAMES
    for found in (path.predict(FRAME), path.predict(VALUES)):
        torch.testing.assert_close(found, expected.predict(VALUES))
    torch.testing.assert_close(
        expected.predict(FRAME), expected.predict(VALUES)
    )  # fitted without names: none are asked for
    duck = Duck(**{name: VALUES[:, k] for k, name in enumerate(NAMES)})
    torch.testing.assert_close(fit_path(duck, Y, L1(1.0), **ASKED).predict(FRAME), path.predict(FRAME))
    torch.testing.assert_close(solve(FRAME, Y, L1(0.1)).coef, solve(VALUES, Y, L1(0.1)).coef)


def test_columns_of_several_types_of_a_frame_that_gives_only_an_array():
    class Bare:
        columns, dtypes, shape = list(NAMES), [object] * 3, VALUES.shape

        def __array__(self, dtype=None, copy=None):
            return VALUES.astype(dtype)

    assert np.array_equal(table_numbers(Bare()), VALUES)
    assert column_names(Bare()) == NAMES


def doors() -> dict[str, object]:
    """All that predicts, of the same fit."""
    path, cv = fit_path(FRAME, Y, L1(1.0), **ASKED), fit_cv(FRAME, pd.Series(Y), L1(1.0), cv=3, **ASKED)
    relaxed = refit(path, FRAME, Y)
    doors = {"path": path, "at": path.at(0.2), "between": path.at(0.1), "refit": relaxed, "cv": cv.best}
    weights = (np.arange(30) > 4).astype(float)
    doors["weighted"] = fit_path(FRAME, Y, L1(1.0), sample_weight=weights, **ASKED)
    return doors | {"pickled": pickle.loads(pickle.dumps(path))}


@pytest.mark.parametrize("door", ["path", "at", "between", "refit", "cv", "weighted", "pickled"])
def test_columns_of_another_order_or_name_are_refused_as_scikit_learn_does(door):
    fitted = doors()[door]
    assert isinstance(fitted, Path | Fit)
    theirs = Lasso(0.1).fit(FRAME, Y)
    turned, renamed = FRAME[["weight", "age", "dose"]], FRAME.rename(columns={"dose": "mass"})
    for call in (fitted.predict, fitted.decision, theirs.predict):
        with pytest.raises(ValueError, match="must be in the same order"):
            call(turned)
        with pytest.raises(ValueError, match=r"unseen at fit time:\n- mass\nFeature names seen at .* missing:\n- dose"):
            call(renamed)
        with pytest.raises(ValueError, match="missing:\n- weight"):
            call(FRAME[["age", "dose"]])
    torch.testing.assert_close(fitted.predict(turned[list(fitted.feature_names)]), fitted.predict(FRAME))


DATES = pd.date_range("2020-01-01", periods=30)
BAD = {
    "missing": (np.where(np.arange(30) == 7, np.nan, 1.0), "contains NaN: column 'dose' .* row 7"),
    "None": ([1.0] * 7 + [None] * 23, "contains NaN: column 'dose' .* row 7"),
    "NA": (pd.array([1] * 7 + [None] * 23, dtype="Int64"), "contains NaN: column 'dose' .* row 7"),
    "infinite": (np.where(np.arange(30) == 7, np.inf, 1.0), "contains infinity .* column 'dose', row 7"),
    "text": (["1.5"] * 7 + ["high"] * 23, "Column 'dose' of X holds text, such as '1.5' in row 0"),
    "text among numbers": ([1.5] * 7 + ["high"] * 23, "Column 'dose' of X holds text, such as 'high' in row 7"),
    "categories": (pd.Categorical(["low", "high"] * 15), "Column 'dose' of X holds text, such as 'low' in row 0"),
    "dates": (DATES, "Column 'dose' of X holds dates"),
    "dates of a zone": (DATES.tz_localize("UTC"), "Column 'dose' of X holds a Timestamp in row 0"),
    "spans": (DATES - DATES[0], "Column 'dose' of X holds spans of time"),
    "lists": ([[1.0]] * 30, "Column 'dose' of X holds a list in row 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_number_is_named(case):
    column, words = BAD[case]
    bad, path = with_column(column), fit_path(FRAME, Y, L1(1.0), **ASKED)
    for call in (
        lambda: fit_path(bad, Y, L1(1.0), **ASKED),
        lambda: fit_cv(bad, Y, L1(1.0), **ASKED),
        lambda: solve(bad, Y, L1(0.1)),
        lambda: path.predict(bad),
    ):
        with pytest.raises(ValueError, match=words):
            call()


@pytest.mark.parametrize(
    "column",
    [
        pd.array([1, 2] * 15, dtype="Int64"),
        pd.array([1.5, 2.0] * 15, dtype="Float64"),
        [True, False] * 15,
        pd.array([True, False] * 15, dtype="boolean"),
        np.array([1.5, 2] * 15, dtype=object),
        np.arange(30, dtype=np.int8),
        np.arange(30, dtype=np.float32),
        pd.arrays.SparseArray([0.0, 1.5] * 15),
        pd.Categorical([1, 2] * 15),
    ],
    ids=["Int64", "Float64", "bool", "boolean", "object", "int8", "float32", "sparse", "numeric categories"],
)
def test_numbers_of_every_type_are_taken(column):
    numbers = VALUES.copy()
    numbers[:, 1] = np.asarray(column, dtype=float)
    np.testing.assert_array_equal(table_numbers(with_column(column)), numbers)
    expected = fit_path(numbers, Y, L1(1.0), **ASKED)
    torch.testing.assert_close(fit_path(with_column(column), Y, L1(1.0), **ASKED).coefs, expected.coefs)


def test_numbers_of_one_type_are_shared():
    assert np.shares_memory(table_numbers(FRAME), FRAME.to_numpy())


def test_names():
    assert column_names(VALUES) is None
    assert column_names(pd.DataFrame(VALUES)) is None
    with pytest.raises(TypeError, match="string names, but X has a column 3"):
        column_names(FRAME.rename(columns={"dose": 3}))
    twice = FRAME.set_axis(["age", "dose", "dose"], axis=1)
    expected = fit_path(FRAME, Y, L1(1.0), **ASKED)
    torch.testing.assert_close(fit_path(twice, Y, L1(1.0), **ASKED).coefs, expected.coefs)
    twice.iloc[2, 2] = np.nan
    with pytest.raises(ValueError, match=r"column 'dose' .* row 2"):
        table_numbers(twice)


def test_polars():
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame(dict(zip(NAMES, VALUES.T, strict=True)))
    path = fit_path(frame, Y, L1(1.0), **ASKED)
    assert path.feature_names == NAMES
    torch.testing.assert_close(path.predict(frame), path.predict(FRAME))
    with pytest.raises(ValueError, match="must be in the same order"):
        path.predict(frame[["weight", "age", "dose"]])
    for column, words in (
        ([1] * 7 + [None] * 23, "column 'dose' .* row 7"),
        (["high"] * 30, "'dose' of X holds text"),
        (list(DATES.to_pydatetime()), "'dose' of X holds dates"),
    ):
        with pytest.raises(ValueError, match=words):
            path.predict(frame.with_columns(pl.Series("dose", column)))
