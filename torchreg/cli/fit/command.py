"""Fit a penalised linear model to a CSV file: a coefficient table, pictures, a certificate.

It minimises mean loss + penalty over the coefficients; the intercept is not penalised. Without
--alpha the strength is chosen by cross-validation. Coefficients are on the scale of the file's
columns, with --standardize too. Those that are zero are exactly zero.

  torchreg fit diabetes.csv --target progression --standardize
  torchreg fit titanic.csv --target survived --drop name,ticket --one-hot --penalty group --rule 1se
  torchreg fit visits.csv --target visits --task count --penalty l1l2 --l1-ratio 0.8 --cv 10
  torchreg fit genes.csv --target response --alpha 0.1 --device cuda --out run1

Written to --out, over its own files of an earlier run:
  coefficients.csv  intercept and coefficients, largest first
  path.png          coefficients against alpha
  cv.png            held-out loss against alpha, where cross-validation chose it
  fit.json          options, versions, the data's sha256, alpha, objective, duality gap
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from torchreg.cli import terminal
from torchreg.cli.fit.data import Array, FitTable, read_table
from torchreg.cli.fit.files import check_folder, write_files
from torchreg.cli.fit.options import FitOptions
from torchreg.cli.fit.report import coefficient_table, result_lines, start_lines
from torchreg.cli.fit.result import FitResult
from torchreg.cli.fit.task import FitTask, task_of
from torchreg.linear.cv import CVPath, fit_cv
from torchreg.linear.path import Path, fit_path
from torchreg.linear.spans import ends_around
from torchreg.penalties import L1, Penalty

_EPS = 1e-3  # the path's least alpha, as a share of alpha_max


def run(options: FitOptions, say: Callable[[str], None] = terminal.say) -> FitResult:
    """Read, fit, print and write.

    Raises:
        ImportError: if pandas is missing.
        OSError: if a file cannot be read or written.
        ValueError: if the data cannot be fitted; the message says why.
    """
    table = read_table(options)
    task = task_of(options.task, table.y, options.target)
    _check_folds(options, len(task.y))
    check_folder(options)
    for line in start_lines(options, table, task):
        say(line)
    result = fitted(options, table, task)
    for line in (*result_lines(result), "", *coefficient_table(result), ""):
        say(line)
    for line in write_files(result):
        say(line)
    return result


def fitted(options: FitOptions, table: FitTable, task: FitTask) -> FitResult:
    """The path, and the point on it that is asked for or that cross-validation chooses."""
    fit = _Fit(options, table, task)
    if options.alpha is not None:
        path = fit.path(fit.penalty, _grid(*fit.ends(), options.alphas, options.alpha), progress=sys.stderr.isatty())
        return FitResult(options, table, task, path, int((path.alphas - options.alpha).abs().argmin()))
    cv = fit.cv(options.alphas if options.sparse else _grid(*fit.ends(), options.alphas))
    return FitResult(options, table, task, cv.path, cv.index, cv)


@dataclass(frozen=True)
class _Fit:
    """`fit_path` and `fit_cv` with what the command line says."""

    options: FitOptions
    table: FitTable
    task: FitTask

    @property
    def penalty(self) -> Penalty:
        return self.options.penalty_for(torch.as_tensor(self.table.groups, device=self.options.device))

    @property
    def _common(self) -> dict[str, Any]:
        return {
            "datafit": self.task.datafit,
            "sample_weight": self.table.weights,
            "standardize": self.options.standardize,
            "device": self.options.device,
        }

    def path(self, penalty: Penalty, alphas: int | list[float], *, progress: bool = False) -> Path:
        return fit_path(self.table.X, self.task.y, penalty, alphas=alphas, progress=progress, **self._common)

    def cv(self, alphas: int | list[float]) -> CVPath:
        return fit_cv(
            self.table.X, self.task.y, self.penalty, alphas=alphas, eps=_EPS, cv=self.folds(),
            rule=self.options.rule or "min", metric=self.task.metric, progress=sys.stderr.isatty(), **self._common,
        )  # fmt: skip

    def folds(self) -> list[tuple[Array, Array]]:
        """(train, test) rows of each fold, drawn at random; each fold has its share of each class."""
        count, rows = self.options.folds or 0, np.random.default_rng(self.options.seed).permutation(len(self.task.y))
        if self.task.classes:
            rows = rows[np.argsort(self.task.y[rows], kind="stable")]
        return [(np.delete(rows, np.s_[k::count]), rows[k::count]) for k in range(count)]

    def ends(self) -> tuple[float, float]:
        """The largest and the least alpha of a path; ridge has no alpha_max, so its path surrounds the lasso's."""
        if self.options.sparse:
            top = self.path(self.penalty, 1).alpha_max or 1.0
            return top, _EPS * top
        return ends_around(self.path(L1(1.0), 1).alpha_max or 1.0)


def _grid(top: float, least: float, count: int, alpha: float | None = None) -> list[float]:
    """Geometric alphas, with one that is asked for among them."""
    asked = [] if alpha is None else [alpha]
    positive = [a for a in asked if a > 0]
    grid = np.geomspace(max([top, *positive]), min([least, *positive]), count).tolist()
    return sorted({*grid, *asked}, reverse=True)


def _check_folds(options: FitOptions, rows: int) -> None:
    if options.folds is not None and not 2 <= options.folds <= rows:
        raise ValueError(f"--cv must be between 2 and the number of rows, {rows}, got {options.folds}.")
