"""What ``torchreg fit`` found: a point on a path, and the data that it was fitted to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchreg.cli.fit.data import FitTable
from torchreg.cli.fit.options import FitOptions
from torchreg.cli.fit.task import FitTask
from torchreg.linear.cv import CVPath
from torchreg.linear.path import Path

Array = NDArray[Any]


@dataclass(frozen=True)
class FitResult:
    """A fit of the command line.

    Args:
        options: what was asked for.
        table: the data.
        task: the target.
        path: fitted to all rows.
        index: the point of the path that was chosen.
        cv: the cross-validation that chose it, or None.
    """

    options: FitOptions
    table: FitTable
    task: FitTask
    path: Path
    index: int
    cv: CVPath | None = None

    @property
    def alpha(self) -> float:
        """The strength that was chosen."""
        return float(self.path.alphas[self.index])

    @property
    def coef(self) -> Array:
        """Coefficients on the scale of the file's columns, a column for each output, (p, K)."""
        return np.asarray(self.path.coef(self.index).cpu().numpy().reshape(len(self.table.names), -1))

    @property
    def intercept(self) -> Array:
        """The intercept of each output, (K,)."""
        return np.asarray(self.path.intercepts[self.index].cpu().numpy().reshape(-1))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the columns of coef: the classes, if there are more than two."""
        return self.task.classes if self.coef.shape[1] > 1 else ("coefficient",)

    @property
    def order(self) -> Array:
        """Features by the size of their coefficients, largest first, (p,)."""
        return np.argsort(-np.linalg.norm(self.coef, axis=1), kind="stable")

    @property
    def zeros(self) -> int:
        """Coefficients that are exactly zero."""
        return int((self.coef == 0).sum())

    def number(self, values: Any) -> float:
        """One of the path's numbers, at the point that was chosen."""
        return float(values[self.index])

    @property
    def gap_allowed(self) -> float:
        """The duality gap up to which a point has converged."""
        return self.path.tol * abs(self.path.null_objective)
