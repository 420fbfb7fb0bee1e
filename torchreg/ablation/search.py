"""Search for the strength at which a metric has a wanted value, by bisection on log alpha."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from torchreg.ablation.bisection import MeasuredAlpha, crossing
from torchreg.ablation.executors.base import CellExecutor
from torchreg.ablation.results.ablation import Ablation
from torchreg.ablation.session import OnChange, Session
from torchreg.ablation.trials import Trials, checked_range, failure, mean, warn_of_test
from torchreg.ablation.user_function import Run, arguments
from torchreg.penalties import Penalty


@dataclass(frozen=True)
class SearchResult:
    """What a search has found.

    Attributes:
        alpha: of the trial whose metric is nearest to the target.
        value: the metric there, its mean over the seeds.
        converged: whether ``value`` is within ``tol`` of the target.
        sides: the two neighbouring trials, as (alpha, value), that have the target between them; the
            trial at ``alpha`` twice where the search has converged.
        trials: rows of the cells that it looked at, in the order of the trials.
        ablation: all rows of the directory.
    """

    alpha: float
    value: float
    converged: bool
    sides: tuple[MeasuredAlpha, MeasuredAlpha]
    trials: tuple[dict[str, Any], ...]
    ablation: Ablation


def search(
    run: Run,
    penalty: Penalty | Mapping[str, Penalty],
    target: Mapping[str, float],
    *,
    seeds: Iterable[int] = (0,),
    grid: Mapping[str, Iterable[Any]] | None = None,
    out: str | Path | None = None,
    alphas: tuple[float, float] | None = None,
    tol: float = 0.01,
    max_trials: int = 20,
    workers: int = 0,
    executor: Executor | CellExecutor | None = None,
    progress: bool = True,
    timeout: float | None = None,
    retries: int = 1,
    on_change: OnChange = "error",
) -> SearchResult:
    """Find the strength at which a metric, its mean over the seeds, has a wanted value.

    A trial runs one strength for all seeds. Its rows go into the ledger in ``out`` as `ablate`'s do: run the
    same line again to go on where it ended, with no trial run twice, and call `ablate` with the same ``out`` to look
    at more of the curve. The range is halved on the scale of log alpha between two strengths that have the target
    between them, so what is found is a crossing of it; where the metric goes up and down there may be
    others.

    Args:
        run: trains a model and returns its metrics; see `ablate`.
        penalty: one, or a dict of its name and it.
        target: the metric's name and the wanted value, such as ``{"sparsity": 0.9}``.
        seeds: a trial's runs.
        grid: further arguments of ``run``, each with one value, as ``{"width": [64]}``.
        out: the directory; None takes ``runs/`` and the function's name.
        alphas: the least and the largest strength, > 0. None begins at the penalty's own alpha and goes
            on by powers of ten until the target is passed.
        tol: how far from the target the mean may be, in the metric's unit.
        max_trials: strengths that are looked at, at most.
        workers: processes, as of `ablate`; only the seeds of one trial run at the same time.
        executor: where cells run instead, as of `ablate`.
        progress: a bar of the trials, where the output is a terminal.
        timeout: seconds for a cell, as of `ablate`.
        retries: how often a cell is run again whose process died.
        on_change: what to do if the source of ``run`` has changed, as of `ablate`.

    Returns:
        A `SearchResult`.

    Raises:
        ValueError: for a target or range out of bounds, or a metric that ``run`` does not return.
        RuntimeError: if the target is not between the values at the ends, which the message tells; if a
            cell fails or a mean is not finite. The rows stay.

    Warns:
        RuntimeWarning: if the metric jumps over the target, or ``max_trials`` were not enough.
        UserWarning: if the metric is of test data: what is chosen by it says too much of itself.

    Example:
        >>> import tempfile
        >>> from torchreg import L1
        >>> from torchreg.ablation import search
        >>> def run(penalty, seed):
        ...     return {"sparsity": 1.0 - 0.5 ** penalty.alpha}
        >>> with tempfile.TemporaryDirectory() as out:
        ...     found = search(run, L1(1.0), {"sparsity": 0.9}, out=out, tol=1e-3, progress=False)
        >>> found.converged, round(found.value, 2), len(found.trials)
        (True, 0.9, 10)
    """
    metric, wanted = _checked_target(target)
    if not tol >= 0.0:
        raise ValueError(f"tol must be >= 0, got {tol!r}.")
    if max_trials < 2:
        raise ValueError(f"max_trials must be >= 2, one on either side of the target, got {max_trials!r}.")
    trials = Trials.of(penalty, seeds, grid)
    span, start = (None if alphas is None else checked_range(alphas)), _start(trials, alphas)
    session = Session(
        run, arguments(run, trials.axes, len(trials.seeds)), out, workers=workers, executor=executor, timeout=timeout,
        retries=retries, on_change=on_change, progress=False,
    )  # fmt: skip
    warn_of_test([metric])
    with session, tqdm(total=max_trials, unit="trial", disable=None if progress else True) as bar:
        measured = _Measured(session, trials, metric, bar)
        low, high = crossing(measured, wanted, tol=tol, alphas=span, start=start, most=max_trials)
    return _result(low, high, target, tol, measured.keys, Ablation.load(session.path))


class _Measured:
    """The metric at a strength, as a function."""

    def __init__(self, session: Session, trials: Trials, metric: str, bar: tqdm[Any]) -> None:
        self._session, self._trials, self._metric, self._bar = session, trials, metric, bar
        (self._name,) = trials.penalties
        self.keys: list[str] = []

    def __call__(self, alpha: float) -> float:
        self._session.run(self._trials.plan(self._name, alpha))
        self.keys += self._trials.keys(self._name, alpha)
        rows = self._trials.rows(self._name, alpha, self._session.rows())
        if failed := failure(rows):
            raise RuntimeError(
                f"A cell failed at alpha={alpha:g}: {failed} The next call tries it again; to search elsewhere, give "
                "alphas=(low, high)."
            )
        value = mean(rows, self._metric)
        if not math.isfinite(value):
            raise RuntimeError(
                f"{self._metric} is {value} at alpha={alpha:g}, where a search cannot go on; keep it away from there "
                "by alphas=(low, high)."
            )
        self._bar.set_postfix({"alpha": f"{alpha:g}", self._metric: f"{value:.4g}"})
        self._bar.update()
        return value


def _checked_target(target: Mapping[str, float]) -> tuple[str, float]:
    if not isinstance(target, Mapping) or len(target) != 1:
        raise ValueError(f"target is one metric with its value, such as {{'sparsity': 0.9}}, got {target!r}.")
    ((metric, value),) = target.items()
    if not math.isfinite(value):
        raise ValueError(f"target must be a finite number, got {value!r} for {metric!r}.")
    return metric, float(value)


def _start(trials: Trials, alphas: tuple[float, float] | None) -> float:
    if len(trials.penalties) > 1:
        raise ValueError(f"search is of one penalty, got {', '.join(trials.penalties)}; search for each.")
    (penalty,) = trials.penalties.values()
    start = float(penalty.alpha)
    if alphas is None and not 0.0 < start < math.inf:
        raise ValueError(f"The search begins at the penalty's own alpha, got {start!r}; give one > 0, or alphas.")
    return start


def _result(
    low: MeasuredAlpha,
    high: MeasuredAlpha,
    target: Mapping[str, float],
    tol: float,
    keys: Iterable[str],
    ablation: Ablation,
) -> SearchResult:  # fmt: skip
    ((metric, wanted),) = target.items()
    alpha, value = min(low, high, key=lambda point: abs(point.value - wanted))
    converged = abs(value - wanted) <= tol
    if not converged:
        warnings.warn(
            f"{metric} goes from {low.value:.6g} at alpha={low.alpha:.6g} to {high.value:.6g} at alpha="
            f"{high.alpha:.6g}, past {wanted:g}, and nothing within tol={tol:g} of it was found; if it jumps there, "
            "take one of the two or average over more seeds, else raise max_trials.",
            RuntimeWarning,
            stacklevel=3,
        )
    found = {row["key"]: row for row in ablation.rows}
    return SearchResult(alpha, value, converged, (low, high), tuple(found[key] for key in keys), ablation)
