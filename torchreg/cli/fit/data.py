"""A CSV file as numbers; the one place that imports pandas, the extra ``pandas``."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchreg.cli.fit.options import FitOptions
from torchreg.text_table import printable

Array = NDArray[Any]
Frame = Any  # of pandas, which has no types

_SHOWN, _LETTERS = 8, 60  # names in an error, and letters of a value


@dataclass(frozen=True)
class FitTable:
    """The columns that a fit uses.

    Args:
        X: features, float64, (n, p).
        names: of the features, p.
        groups: which column of the file each feature comes from, integers, (p,).
        y: the target as it stands in the file: numbers, booleans or text, (n,).
        weights: of the rows, >= 0, (n,), or None.
    """

    X: Array
    names: tuple[str, ...]
    groups: Array
    y: Array
    weights: Array | None

    @property
    def deviations(self) -> Array:
        """The features' standard deviations, over weighted rows, (p,)."""
        centred = self.X - np.average(self.X, axis=0, weights=self.weights)
        return np.asarray(np.sqrt(np.average(centred**2, axis=0, weights=self.weights)))


def read_table(options: FitOptions) -> FitTable:
    """Read the file, choose the columns, refuse what cannot be fitted.

    Raises:
        ImportError: if pandas is missing.
        OSError: if the file cannot be read.
        ValueError: if a column is missing, has missing values, or is not numeric.
    """
    frame = _read(options)
    features = _chosen(frame, options)
    used = [*features, options.target, *([] if options.weights is None else [options.weights])]
    if not len(frame):
        raise ValueError(f"{options.data} has no rows.")
    _refuse_missing(frame, used)
    blocks = _encoded(frame, features, options)
    names = tuple(name for block in blocks for name in block)
    if not names:
        raise ValueError(f"{options.data} has no features left: each has one value, or was dropped.")
    X = np.column_stack([column for block in blocks for column in block.values()])  # noqa: N806
    _refuse_infinite(X, names)
    groups = np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])
    return FitTable(X, names, groups, _values(frame[options.target]), _weights(frame, options.weights))


def _pandas() -> Any:
    try:
        import pandas  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError(f"torchreg fit reads CSV files with pandas ({error}); pip install pandas.") from error
    return pandas


def _read(options: FitOptions) -> Frame:
    pandas = _pandas()
    if ".tar" in Path(options.data).suffixes[-2:]:  # its checksum lies behind the table, and is never reached
        raise ValueError(f"{options.data} is a tar archive, in which damage is not noticed; unpack it, or use gzip.")
    try:
        header = pandas.read_csv(options.data, sep=options.sep, header=None, nrows=1, dtype=str)
        with warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.ParserWarning)  # rows longer than the header
            frame = pandas.read_csv(options.data, sep=options.sep, low_memory=False, index_col=False)
    except (ImportError, MemoryError):
        raise
    except UnicodeDecodeError as error:
        raise ValueError(f"{options.data} is not a text file in UTF-8: {error}.") from None
    except pandas.errors.ParserWarning:
        raise ValueError(f"{options.data} has more values in its rows than names in its first; name each.") from None
    except (pandas.errors.ParserError, pandas.errors.EmptyDataError) as error:
        raise ValueError(
            f"{options.data} cannot be read: {str(error).strip()}; is --sep {options.sep!r} right?"
        ) from None
    except Exception as error:  # each format of archives has its own way to fail
        if getattr(error, "errno", None) is not None:
            raise
        raise ValueError(f"{options.data} cannot be read, damaged or not what its name says: {error}.") from None
    _refuse_twice([str(name) for name in header.iloc[0].dropna()])
    frame.columns = [printable(str(name)) for name in frame.columns]
    return frame


def _refuse_twice(names: list[str]) -> None:
    twice = next((name for k, name in enumerate(names) if name in names[:k]), None)
    if twice is not None:
        raise ValueError(f"Two columns are called {twice!r}, so that neither can be chosen; rename one in the file.")


def _chosen(frame: Frame, options: FitOptions) -> list[str]:
    """The columns that are features, after checking that all that are named exist."""
    columns = list(frame.columns)
    if len(columns) == 1:
        raise ValueError(f"{options.data} has one column, {columns[0]!r}; is --sep {options.sep!r} right?")
    roles = {"--target": [options.target], "--weights": [options.weights] if options.weights is not None else []}
    _refuse_unknown(columns, {**roles, "--features": options.features or (), "--drop": options.drop})
    taken = {name for names in roles.values() for name in names}
    clash = [name for name in (*(options.features or ()), *options.drop) if name in taken]
    if clash:
        raise ValueError(f"{clash[0]!r} is the target or the weights, so it is neither a feature nor to be dropped.")
    if options.features is not None:
        return list(dict.fromkeys(options.features))
    features = [name for name in columns if name not in taken | set(options.drop)]
    nameless = [name for name in features if name.startswith("Unnamed: ")]
    if nameless:
        raise ValueError(f"A column has no name; row numbers? Say --drop {_listed(nameless)}, or name it in the file.")
    return features


def _refuse_unknown(columns: Sequence[str], asked: dict[str, Iterable[str]]) -> None:
    for option, names in asked.items():
        for name in names:
            if name not in columns:
                near = difflib.get_close_matches(name, columns, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise ValueError(f"{option} {name!r} is not a column; {hint}The columns are {_listed(columns)}.")


def _refuse_missing(frame: Frame, used: list[str]) -> None:
    counts = {name: int(k) for name, k in frame[used].isna().sum().items() if k}
    if counts:
        some = ", ".join(f"{name} ({k})" for name, k in list(counts.items())[:_SHOWN])
        more = f" and {len(counts) - _SHOWN} more columns" if len(counts) > _SHOWN else ""
        raise ValueError(
            f"Missing values, of {len(frame)} rows: {some}{more}; fill them in, leave out their rows, or --drop the "
            "columns."
        )


def _refuse_infinite(X: Array, names: Sequence[str]) -> None:  # noqa: N803
    bad = [names[k] for k in np.flatnonzero(~np.isfinite(X).all(axis=0)).tolist()]
    if bad:
        raise ValueError(f"Infinite values in {_listed(bad)}; correct them, or --drop the columns.")


def _encoded(frame: Frame, features: list[str], options: FitOptions) -> list[dict[str, Array]]:
    """The features that each column of the file becomes, by name."""
    numeric = _pandas().api.types.is_numeric_dtype
    text = [name for name in features if not numeric(frame[name].dtype)]
    if text and not options.one_hot:
        some = ", ".join(f"{name} (such as {_odd(frame[name])!r})" for name in text[:_SHOWN])
        more = f" and {len(text) - _SHOWN} more" if len(text) > _SHOWN else ""
        raise ValueError(f"Not numeric: {some}{more}; say --one-hot to encode them, or --drop {_listed(text)}.")
    return [
        _one_hot(name, frame[name].astype(str).to_numpy()) if name in text
        else {name: frame[name].to_numpy(dtype=np.float64)}
        for name in features
    ]  # fmt: skip


def _odd(column: Frame) -> str:
    """The first value that is no number, cut where it is long."""
    row = int(np.argmax(_pandas().to_numeric(column, errors="coerce").isna().to_numpy()))
    return str(column.iloc[row])[:_LETTERS]


def _one_hot(name: str, values: Array) -> dict[str, Array]:
    """A column of 0 and 1 for each level; of two levels one column, since the other says the same; of one none."""
    levels = np.unique(values)
    if len(levels) == len(values) > 2:
        raise ValueError(
            f"Each of the {len(values)} rows has its own value of {name!r}, such as {levels[0]!r}: an identifier "
            f"explains nothing; --drop {_listed([name])}."
        )
    kept = levels if len(levels) > 2 else levels[1:]
    return {f"{name}={level}": (values == level).astype(np.float64) for level in kept}


def _values(column: Frame) -> Array:
    """Numbers and booleans as such, all else as text."""
    if _pandas().api.types.is_numeric_dtype(column.dtype):
        return np.array(column.to_numpy())
    return np.asarray(column.astype(str).to_numpy(), dtype=str)


def _weights(frame: Frame, name: str | None) -> Array | None:
    if name is None:
        return None
    if not _pandas().api.types.is_numeric_dtype(frame[name].dtype):
        raise ValueError(f"--weights {name!r} is not numeric, such as {_odd(frame[name])!r}.")
    weights = frame[name].to_numpy(dtype=np.float64)
    if not (np.isfinite(weights).all() and weights.min() >= 0 and weights.max() > 0):
        raise ValueError(f"--weights {name!r} must be finite, >= 0 and not all 0, got {weights.min():g} at the least.")
    return np.array(weights)  # pandas' own is not writable


def _listed(names: Sequence[str]) -> str:
    """Names as the command line takes them, comma between; some where there are many."""
    text = ",".join(names[:_SHOWN]) + (",..." if len(names) > _SHOWN else "")
    return f"'{text}'" if " " in text else text
