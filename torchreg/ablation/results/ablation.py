"""`Ablation`: all rows of an ablation, and what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from torchreg.ablation.grid import COLUMNS
from torchreg.ablation.ledger import rows as ledger
from torchreg.ablation.results import choice, paired, status, summary
from torchreg.ablation.results.choice import Rule
from torchreg.ablation.results.metric_names import in_order
from torchreg.ablation.results.status import Status
from torchreg.ablation.results.table import Frame, Table

_BEFORE, _AFTER = ("penalty", "alpha", "seed"), ("seconds", "attempt", "error", "key")


@dataclass(frozen=True, eq=False, repr=False)
class Ablation:
    """Rows of an ablation, one for each cell that ran; made by `ablate` and by `Ablation.load`.

    Means are over rows whose status is "ok"; failed ones are counted beside them, as ``n_failed``. A metric that is NaN
    is a result: it makes its group's mean NaN, and is counted as ``<metric>.nan``. Metrics that are no numbers stay
    in the rows and have no mean. Rows of mode "path", which start where another strength ended, are never in one group
    with independent ones.

    Args:
        rows: a dict each: penalty, alpha, seed, the axes, mode, status, the metrics, seconds, attempt, error, key.
        axes: names of the grid's axes.
        metrics: names of the metrics of rows that are ok.
        dir: the directory that they are from.
        manifest: what that directory says of itself: grids, function, versions, sessions.

    Example:
        >>> from torchreg.ablation import Ablation
        >>> scores = {0.0: (0.90, 0.92, 0.91), 0.1: (0.94, 0.95, 0.96), 1.0: (0.94, 0.95, 0.95)}
        >>> rows = tuple(
        ...     {"penalty": "L1", "alpha": alpha, "seed": k, "mode": "independent", "status": "ok", "val_score": score}
        ...     for alpha, values in scores.items() for k, score in enumerate(values)
        ... )
        >>> ablation = Ablation(rows, axes=(), metrics=("val_score",))
        >>> ablation.summary()
        penalty  alpha  mode         n  n_failed  val_score
        L1       0      independent  3  0         0.91 [0.8852, 0.9348]
        L1       0.1    independent  3  0         0.95 [0.9252, 0.9748]
        L1       1      independent  3  0         0.9467 [0.9323, 0.961]
        >>> ablation.paired().column("val_score.diff.low")[0] > 0
        True
        >>> ablation.best("val_score").column("alpha"), ablation.best("val_score", rule="1se").column("alpha")
        ((0.1,), (1.0,))
    """

    rows: tuple[dict[str, Any], ...]
    axes: tuple[str, ...]
    metrics: tuple[str, ...]
    dir: Path | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, dir: Path | str) -> Self:
        """The ablation in a directory, finished or not; reading never changes it.

        Raises:
            FileNotFoundError: if there is none.
            LedgerError: if it cannot be read.
            ValueError: if a later version of torchreg wrote it.
        """
        rows, manifest = ledger.read(dir)
        axes = ledger.axes_of(manifest)
        layouts = dict.fromkeys(tuple(row) for row in rows if row["status"] == "ok")
        metrics = dict.fromkeys(name for layout in layouts for name in layout if name not in (*COLUMNS, *axes))
        return cls(tuple(rows), axes, tuple(metrics), Path(dir), manifest)

    def summary(self, by: Sequence[str] | None = None, ci: float = 0.95) -> Table:
        """Each numeric metric's mean over the rows of a group, with Student's interval.

        ``mean -+ t(ci, n - 1) s / sqrt(n)``, s with the divisor n - 1; no interval (NaN) for n < 2. It supposes that
        seeds are drawn independently and metrics are about normal; over other columns than the seed (``by="alpha"``
        with several penalties) rows are not alike, and an interval says little.

        Args:
            by: columns that the rows of a group share, of penalty, alpha, seed, mode and the axes; mode always
                counts. None for all but the seed.
            ci: confidence, in (0, 1).

        Returns:
            A row for each group, in ascending order: ``by``, n and n_failed, then for each metric the columns that
            `Table` names, those of validation data first, those of test data last.

        Raises:
            ValueError: for an unknown column, a confidence out of range, or an ablation without rows.
        """
        return summary.summary(self.rows, self.axes, self.metrics, by, ci)

    def paired(self, baseline_alpha: float = 0.0, ci: float = 0.95) -> Table:
        """Each metric's difference to the baseline strength on the same seed: the mean of pairs, with an interval.

        Pairs agree in seed, axes, mode and penalty, so that what a seed does to both cancels. With alpha = 0 all
        penalties are one function: where a penalty has no such rows of its own, independent rows of another serve.
        The column ``baseline`` names it. This is wrong for a penalty that constrains at alpha = 0 too, such as
        `NonNegative`; give each penalty its own baseline then.

        Args:
            baseline_alpha: the strength to compare with.
            ci: confidence of the intervals, in (0, 1).

        Returns:
            A row for each penalty, other alpha, point of the axes and mode: n pairs, n_failed of its own rows, and
            for each metric ``<metric>.diff`` with the columns that `Table` names.

        Raises:
            ValueError: if there is no pair at all; the message says what is there.
        """
        return paired.paired(self.rows, self.axes, self.metrics, float(baseline_alpha), ci)

    def best(self, metric: str, rule: Rule = "max") -> Table:
        """The best strength of each penalty (point of the axes, mode), best penalty first.

        "max" and "min" take the best mean, of equal ones the larger alpha. "1se" and "1se-min" take the largest alpha
        whose mean is within one standard error, that of the best mean, of it. A group with a NaN is never taken.

        Args:
            metric: by which to choose; of validation data.
            rule: "max" or "1se" where more is better, "min" or "1se-min" where less is.

        Returns:
            A row of `summary` for each choice, so that the test metrics at the choice stand beside it.

        Raises:
            ValueError: for an unknown metric or rule; if no mean is finite; for a 1se rule with one seed.

        Warns:
            UserWarning: if the metric is of test data (``test_*``), or a penalty has no finite mean.
        """
        table = self.summary()
        summary.checked_metric(table, metric, self.rows)
        return choice.best(table, self.axes, metric, rule)

    def pareto(self, *metrics: str, minimize: Sequence[str] = ()) -> Table:
        """The trade-offs worth having: means that no other mean beats in one metric without losing in another.

        Independent cells and those of paths have fronts of their own. Groups with a NaN are on none.

        Args:
            metrics: where more is better, unless they stand in ``minimize`` too.
            minimize: where less is better.

        Returns:
            The rows of `summary` that are on the front, best in the first metric first.

        Raises:
            ValueError: for an unknown metric, or fewer than two.
        """
        less = (minimize,) if isinstance(minimize, str) else tuple(minimize)
        names = tuple(dict.fromkeys((*metrics, *less)))
        if len(names) < 2:
            raise ValueError(f"A trade-off needs at least two metrics, got {names}; with one, see best().")
        table = self.summary()
        for name in names:
            summary.checked_metric(table, name, self.rows)
        return choice.pareto(table, names, less)

    def status(self) -> Status:
        """How many cells are done, have failed, and are missing."""
        return status.status(self.rows, self.axes, self.manifest)

    def curves(self) -> list[dict[str, Any]]:
        """The points that runs reported by ``cell.report``: penalty, alpha, seed, axes, mode, epoch and metrics.

        Raises:
            ValueError: if the ablation is of no directory.
        """
        if self.dir is None:
            raise ValueError("These rows are of no directory, so that they have no learning curves; see Ablation.load.")
        return ledger.curves(self.dir)

    def to_csv(self, path: Path | str) -> None:
        """Write all rows, by `Table.to_csv`."""
        self._table().to_csv(path)

    def to_jsonl(self, path: Path | str) -> None:
        """Write all rows, by `Table.to_jsonl`."""
        self._table().to_jsonl(path)

    def to_pandas(self) -> Frame:
        """All rows as a pandas DataFrame, by `Table.to_pandas`."""
        return self._table().to_pandas()

    def _table(self) -> Table:
        """The rows, metrics of validation data first, those of test data last."""
        columns = (*_BEFORE, *self.axes, "mode", "status", *in_order(self.metrics), *_AFTER)
        return Table(columns, tuple(tuple(map(row.get, columns)) for row in self.rows))

    def __repr__(self) -> str:
        penalties = ", ".join(sorted({row["penalty"] for row in self.rows})) or "none"
        alphas = sorted({row["alpha"] for row in self.rows})
        span = f": {alphas[0]:g} to {alphas[-1]:g}" if alphas else ""
        return "\n".join((
            f"Ablation{f' in {self.dir}' if self.dir else ''}: {self.status()}",
            f"penalties: {penalties}",
            f"alphas: {len(alphas)}{span}; seeds: {len({row['seed'] for row in self.rows})}",
            f"axes: {', '.join(self.axes) or 'none'}; metrics: {', '.join(in_order(self.metrics)) or 'none'}",
        ))  # fmt: skip
