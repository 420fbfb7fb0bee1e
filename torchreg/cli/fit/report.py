"""What ``torchreg fit`` prints."""

from __future__ import annotations

import math

from torchreg.cli.fit.data import FitTable
from torchreg.cli.fit.options import FORMULAS, FitOptions
from torchreg.cli.fit.result import FitResult
from torchreg.cli.fit.task import FitTask
from torchreg.linear.cv import CVPath
from torchreg.text_table import text_table

_ROWS = 30  # of the printed table; the file has all
_UNITS = 10.0  # a larger ratio of standard deviations is worth a note


def start_lines(options: FitOptions, table: FitTable, task: FitTask) -> list[str]:
    """What is about to be fitted."""
    n, p = table.X.shape
    came = f" from {int(table.groups.max()) + 1} columns" if len(set(table.groups.tolist())) < p else ""
    choice = f"by {options.folds}-fold cross-validation, rule {options.rule or 'min'}" if options.folds else "as given"
    weights = "" if options.weights is None else f", rows weighted by {options.weights}"
    scale = ", features standardised" if options.standardize else ""
    lines = [
        f"data       {options.data}: {n} rows, {p} features{came}{weights}{scale}",
        f"target     {options.target}: {task.described}",
        f"penalty    {options.penalty}: {FORMULAS[options.penalty]}; alpha {choice}",
    ]
    return lines if options.standardize else [*lines, *_units(table)]


def _units(table: FitTable) -> list[str]:
    """A hint where the penalty would treat features by their units."""
    varied = table.deviations[table.deviations > 0]
    if not len(varied) or varied.max() < _UNITS * varied.min():
        return []
    span = f"from {varied.min():.2g} to {varied.max():.2g}"
    return [f"note       standard deviations of features go {span}; --standardize makes the penalty treat them alike"]


def result_lines(result: FitResult) -> list[str]:
    """Alpha, the held-out loss, and the certificate."""
    lines = [f"alpha      {result.alpha:.6g}{_landmarks(result)}"]
    if result.cv is not None:
        mean, se = result.number(result.cv.mean), result.number(result.cv.se)
        lines.append(f"held out   {result.task.loss} {mean:.5g} ± {se:.3g}{_null_loss(result)}")
        lines += _missed(result.cv, result.options)
    lines.append(f"objective  {result.number(result.path.objectives):.8g}; {_certificate(result)}")
    return lines


def _landmarks(result: FitResult) -> str:
    named = {} if result.cv is None else {"alpha_min": result.cv.alpha_min, "alpha_1se": result.cv.alpha_1se}
    named["alpha_max"] = result.path.alpha_max
    shown = ", ".join(f"{name} {float(value):.4g}" for name, value in named.items() if math.isfinite(value))
    return f" ({shown})" if shown else ""


def _null_loss(result: FitResult) -> str:
    """The loss at alpha_max, where all coefficients are zero."""
    if result.cv is None or not result.options.sparse:
        return ""
    return f", {float(result.cv.mean[0]):.5g} with all coefficients zero"


def _missed(cv: CVPath, options: FitOptions) -> list[str]:
    """How many fits to training rows did not converge, and the worst of them."""
    if not cv.missed:
        return []
    worst = max(cv.missed, key=lambda miss: miss.excess)
    place = f"fold {worst.fold + 1} at alpha {float(cv.alphas[worst.index]):.4g}"
    reached = f"{_reached(worst.dual_gap, worst.violation, options)}, {worst.allowed:.1e} allowed"
    return [
        f"folds      {len(cv.missed)} of {cv.converged.numel()} fits to training rows NOT CONVERGED, so their losses "
        f"are of no minimiser; the worst, {place}: {reached}; {_remedy(options)}"
    ]


def _certificate(result: FitResult) -> str:
    gap, violation = result.number(result.path.dual_gaps), result.number(result.path.violations)
    known = _reached(gap, violation, result.options)
    if math.isfinite(gap):
        known += f", {result.gap_allowed:.1e} allowed"
    return known if bool(result.path.converged[result.index]) else f"{known}: NOT CONVERGED; {_remedy(result.options)}"


def _reached(gap: float, violation: float, options: FitOptions) -> str:
    if math.isfinite(gap):
        return f"duality gap {gap:.1e}"
    return f"no duality gap is known for {options.penalty}; optimality violation {violation:.1e}"


def _remedy(options: FitOptions) -> str:
    return "try a larger --alpha" if options.standardize else "try --standardize, or a larger --alpha"


def coefficient_table(result: FitResult) -> list[str]:
    """The intercept and the coefficients that are not zero, largest first, and how many are zero."""
    kept = [int(j) for j in result.order if result.coef[j].any()]
    rows = [("(intercept)", *map(_number, result.intercept))]
    rows += [(result.table.names[j], *map(_number, result.coef[j])) for j in kept[:_ROWS]]
    lines = text_table(("feature", *(f" {name}" for name in result.outputs)), rows).splitlines()
    if len(kept) > _ROWS:
        lines.append(f"... and {len(kept) - _ROWS} more, in coefficients.csv")
    return [*lines, f"{result.zeros} of {result.coef.size} coefficients are exactly zero"]


def _number(value: float) -> str:
    return " 0" if value == 0 else f"{value: .6g}"
