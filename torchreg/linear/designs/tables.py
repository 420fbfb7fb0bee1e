"""Data frames as arrays of numbers: what is none is named by its column and row.

A frame is what has columns with names and types, as those of pandas and polars have; neither is imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

_SHOWN = 5  # names in a message
_REMEDY = "leave the column or the row out, or fill it in"


def is_table(X: Any) -> bool:  # noqa: N803
    """Whether X is a data frame."""
    return hasattr(X, "columns") and hasattr(X, "dtypes") and hasattr(X, "__array__")


def column_names(X: Any) -> tuple[str, ...] | None:  # noqa: N803
    """The names of a frame's columns; None for an array, and where none is a string, by scikit-learn's rule.

    Raises:
        TypeError: if some are strings and others are not.
    """
    if not is_table(X):
        return None
    names = list(X.columns)
    strings = [isinstance(name, str) for name in names]
    if any(strings) and not all(strings):
        other = names[strings.index(False)]
        raise TypeError(
            "Feature names are only supported if all input features have string names, but X has a column "
            f"{other!r} of type {type(other).__name__}; rename it: X.columns = [str(name) for name in X.columns]."
        )
    return tuple(names) if names and all(strings) else None


def table_numbers(X: Any) -> np.ndarray[Any, Any]:  # noqa: N803
    """The numbers of a frame, (n, p): its own memory where all columns are of one type that numpy has.

    Raises:
        ValueError: with the column and the row, counted from 0, of what is missing, infinite or no number.
    """
    whole = np.asarray(X) if _is_plain(X) else np.empty(0, object)
    if whole.dtype.kind in "biuf":
        if whole.dtype.kind == "f" and whole.size and not np.isfinite(whole.sum(dtype=np.float64)):
            for k, name in enumerate(X.columns):
                _check_finite(name, whole[:, k])
        return whole
    columns = [_numbers(name, column) for name, column in _columns(X)]
    return np.array(columns).T if columns else np.empty(X.shape)


def check_names(fitted: tuple[str, ...] | None, given: tuple[str, ...] | None) -> None:
    """Refuse columns of other names than at the fit, or of another order; scikit-learn's rule and words.

    Raises:
        ValueError: if names are new, missing or in another order; nothing is asked of an array, which has none.
    """
    if fitted is None or given is None or fitted == given:
        return
    new, gone = sorted(set(given) - set(fitted)), sorted(set(fitted) - set(given))
    lines = ["The feature names should match those that were passed during fit."]
    if new:
        lines += ["Feature names unseen at fit time:", *_listed(new)]
    if gone:
        lines += ["Feature names seen at fit time, yet now missing:", *_listed(gone)]
    if not (new or gone):
        lines += ["Feature names must be in the same order as they were in fit; give X[list(path.feature_names)]."]
    raise ValueError("\n".join(lines))


def _is_plain(X: Any) -> bool:  # noqa: N803
    """Whether the types of all columns promise numbers; missing ones may still make objects of them."""
    return all(str(kind).lower().startswith(("int", "uint", "float", "bool")) for kind in X.dtypes)


def _columns(X: Any) -> Iterator[tuple[Any, np.ndarray[Any, Any]]]:  # noqa: N803
    """Names and entries, in order; a name may occur twice."""
    if hasattr(X, "items"):
        pairs = X.items()
    else:
        columns = X.get_columns() if hasattr(X, "get_columns") else np.asarray(X, dtype=object).T
        pairs = zip(X.columns, columns, strict=True)
    return ((name, np.asarray(column)) for name, column in pairs)


def _numbers(name: Any, column: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """One column as float64."""
    if column.dtype.kind in "mM":
        kind = "dates" if column.dtype.kind == "M" else "spans of time"
        raise ValueError(
            f"Column {name!r} of X holds {kind} ({column.dtype}), but a fit takes numbers; make numbers of them, such "
            "as days since a first one, or leave the column out."
        )
    if column.dtype.kind in "biufc":
        numbers = column if column.dtype.kind == "c" else column.astype(np.float64)
    else:
        numbers = np.array([_number(name, row, entry) for row, entry in enumerate(column.tolist())], np.float64)
    _check_finite(name, numbers)
    return numbers


def _number(name: Any, row: int, entry: Any) -> float:
    if isinstance(entry, str | bytes):
        raise ValueError(
            f"Column {name!r} of X holds text, such as {entry!r} in row {row}, but a fit takes numbers; convert it, "
            "make a column of zeros and ones for each category, or leave the column out."
        )
    if entry is None or type(entry).__name__ in ("NAType", "NaTType"):
        raise ValueError(f"Input X contains NaN: column {name!r} has a missing value in row {row}; {_REMEDY}.")
    try:
        return float(entry)
    except (TypeError, ValueError):
        raise ValueError(
            f"Column {name!r} of X holds a {type(entry).__name__} in row {row}, {entry!r}, but a fit takes numbers; "
            "convert it, or leave the column out."
        ) from None


def _check_finite(name: Any, numbers: np.ndarray[Any, Any]) -> None:
    finite = np.isfinite(numbers)
    if finite.all():
        return
    row = int(np.argmin(finite))
    if np.isnan(numbers[row]):
        raise ValueError(f"Input X contains NaN: column {name!r} has a missing value in row {row}; {_REMEDY}.")
    raise ValueError(
        f"Input X contains infinity or a value too large for dtype({str(numbers.dtype)!r}): column {name!r}, row {row}"
        f"; {_REMEDY}."
    )


def _listed(names: list[str]) -> list[str]:
    more = ["- ..."] if len(names) > _SHOWN else []
    return [*(f"- {name}" for name in names[:_SHOWN]), *more]
