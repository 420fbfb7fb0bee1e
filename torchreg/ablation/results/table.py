"""Named columns of results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torchreg.ablation.json_values import dumps
from torchreg.ablation.results.layout import as_text
from torchreg.ablation.results.spreadsheet import write_csv

Frame = Any  # of pandas, which has no types


@dataclass(frozen=True, eq=False, repr=False)
class Table:
    """Named columns; iteration gives each row as a dict, `print` shows the first hundred.

    Of a metric ``m`` a table of means has the columns ``m`` (the mean), ``m.low`` and ``m.high`` (the interval, NaN
    where there is none), ``m.se`` (standard error), ``m.n`` (how many values) and ``m.nan`` (how many of them are NaN).
    Printed, they are one column, ``0.93 [0.91, 0.95]``, or ``0.93 [-]`` without an interval; ``m.n`` and ``m.nan``
    appear where they say something. Files and data frames have them all.

    Args:
        columns: names, each once.
        rows: as many values each.

    Raises:
        ValueError: if a name is there twice, or a row has another length.

    Example:
        >>> from torchreg.ablation.results.table import Table
        >>> table = Table(("alpha", "loss", "loss.low", "loss.high"), ((0.1, 2.0, 1.5, 2.5),))
        >>> table
        alpha  loss
        0.1    2 [1.5, 2.5]
        >>> [row["loss.low"] for row in table]
        [1.5]
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def __post_init__(self) -> None:
        twice = [name for k, name in enumerate(self.columns) if name in self.columns[:k]]
        if twice:
            raise ValueError(
                f"Two columns of this table are called {twice[0]!r}: a metric or an axis bears the name of a count or "
                "an interval. Rename it in the function that is ablated; the ablation's own to_csv, to_jsonl and "
                "to_pandas have neither."
            )
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"Every row of a table needs {len(self.columns)} values, one for each of {self.columns}.")

    @classmethod
    def of(cls, columns: Iterable[tuple[str, Sequence[Any]]]) -> Self:
        """A table from pairs of a name and a column's values."""
        names, values = zip(*columns, strict=True)
        return cls(names, tuple(zip(*values, strict=True)))

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (dict(zip(self.columns, row, strict=True)) for row in self.rows)

    def __repr__(self) -> str:
        return as_text(self.columns, self.rows)

    def column(self, name: str) -> tuple[Any, ...]:
        """The values of one column.

        Raises:
            ValueError: if there is none of that name.
        """
        if name not in self.columns:
            raise ValueError(f"No column {name!r}; the columns are {', '.join(self.columns)}.")
        place = self.columns.index(name)
        return tuple(row[place] for row in self.rows)

    def to_csv(self, path: Path | str) -> None:
        """Write CSV in UTF-8: every digit, None as nothing, lists and dicts as JSON.

        A spreadsheet would take text that begins with ``= + - @`` or a tab for a formula and run it;
        such text gets an apostrophe before it. `to_jsonl` writes it as it is.
        """
        write_csv(path, self.columns, self.rows)

    def to_jsonl(self, path: Path | str) -> None:
        """Write one JSON object a line; NaN and the infinities, which JSON lacks, as ``{"$float": "nan"}``."""
        with Path(path).open("w", encoding="utf-8") as file:
            file.writelines(f"{dumps(row)}\n" for row in self)

    def to_pandas(self) -> Frame:
        """A pandas DataFrame.

        Raises:
            ImportError: if pandas is missing, the extra ``pandas``.
        """
        try:
            import pandas  # type: ignore[import-untyped]
        except ImportError as error:
            raise ImportError(
                f"A data frame needs pandas ({error}); pip install pandas. to_csv, to_jsonl and "
                "iteration do without it."
            ) from error
        return pandas.DataFrame(list(self.rows), columns=list(self.columns))
