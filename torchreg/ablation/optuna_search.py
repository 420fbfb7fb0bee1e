"""Adaptive search with Optuna, whose trials are cells of a ledger."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from torchreg.ablation.executors.base import CellExecutor
from torchreg.ablation.grid import rounded
from torchreg.ablation.results.ablation import Ablation
from torchreg.ablation.session import OnChange, Session
from torchreg.ablation.trials import Trials, checked_range, failure, mean, warn_of_test
from torchreg.ablation.user_function import Run, arguments
from torchreg.penalties import Penalty

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import Trial

Choice = tuple[str, float]  # the penalty's name and its strength


def search_study(
    run: Run,
    penalties: Penalty | Iterable[Penalty] | Mapping[str, Penalty],
    study: Study,
    *,
    alphas: tuple[float, float],
    objectives: Sequence[str] = ("accuracy", "sparsity"),
    n_trials: int = 50,
    at_once: int = 1,
    seeds: Iterable[int] = (0,),
    grid: Mapping[str, Iterable[Any]] | None = None,
    out: str | Path | None = None,
    workers: int = 0,
    executor: Executor | CellExecutor | None = None,
    progress: bool = True,
    timeout: float | None = None,
    retries: int = 1,
    on_change: OnChange = "error",
) -> Ablation:
    """Let an Optuna study choose penalties and strengths, several objectives at a time.

    A trial has the parameters ``penalty`` (its name) and ``alpha`` (on a log scale), runs for all seeds, and has the
    objectives' means as its values. The rows go into the ledger in ``out``. What that ledger already has for every
    seed, from an earlier call or from `ablate`, becomes finished trials of the study first: a study in
    memory is as resumable as one in a database, and a coarse grid is a good start. A trial of which a cell fails or a
    mean is not finite is FAIL in the study.

    Args:
        run: trains a model and returns its metrics; see `ablate`.
        penalties: one, a list, or a dict of names, as of `ablate`.
        study: with a direction for each objective, such as
            ``optuna.create_study(directions=["maximize", "maximize"])``.
        alphas: the least and the largest strength, > 0. Rows outside are not told to the study.
        objectives: names of metrics.
        n_trials: different finished trials that the study shall have in the end, those it was given included. At
            most so many are asked for by a call, since a study may suggest what is known or fails.
        at_once: trials asked for together, to be run side by side by ``workers`` or an executor; the study
            learns from all of them afterwards.
        seeds: a trial's runs.
        grid: further arguments of ``run``, each with one value, as ``{"width": [64]}``.
        out: the directory; None takes ``runs/`` and the function's name.
        workers: processes, as of `ablate`.
        executor: where cells run instead, as of `ablate`.
        progress: a bar of the trials, where the output is a terminal.
        timeout: seconds for a cell, as of `ablate`.
        retries: how often a cell is run again whose process died.
        on_change: what to do if the source of ``run`` has changed, as of `ablate`.

    Returns:
        The `Ablation` in ``out``.

    Raises:
        ImportError: if Optuna is not installed.
        ValueError: if the study has other directions than objectives, or ``run`` does not return one of them.

    Warns:
        UserWarning: if an objective is of test data.
    """
    _imported()  # before anything is written
    span = checked_range(alphas)
    directions = len(study.directions)
    if directions != len(objectives):
        raise ValueError(
            f"The study has {directions} directions for the objectives {tuple(objectives)}; give one each."
        )
    if n_trials < 1 or at_once < 1:
        raise ValueError(f"n_trials and at_once must be >= 1, got {n_trials!r} and {at_once!r}.")
    trials = Trials.of(penalties, seeds, grid)
    session = Session(
        run, arguments(run, trials.axes, len(trials.seeds)), out, workers=workers, executor=executor, timeout=timeout,
        retries=retries, on_change=on_change, progress=False,
    )  # fmt: skip
    warn_of_test(objectives)
    with session, tqdm(total=n_trials, unit="trial", disable=None if progress else True) as bar:
        teller = _Teller(study, trials, tuple(objectives), span, session)
        teller.tell_ledger()
        asked = 0
        while asked < n_trials and (missing := n_trials - len(teller.known)) > 0:
            bar.update(len(teller.known) - bar.n)
            asked += teller.run_some(min(at_once, missing, n_trials - asked))
        bar.update(min(len(teller.known), n_trials) - bar.n)
    return Ablation.load(session.path)


class _Teller:
    """Stands between a study and a ledger.

    Attributes:
        known: choices of which the study has a finished trial.
    """

    def __init__(
        self, study: Study, trials: Trials, objectives: tuple[str, ...], alphas: tuple[float, float], session: Session
    ) -> None:
        self._optuna = _imported()
        self._study, self._trials, self._objectives, self._session = study, trials, objectives, session
        self._alphas = alphas
        distributions = self._optuna.distributions
        self._space = {
            "penalty": distributions.CategoricalDistribution(list(trials.penalties)),
            "alpha": distributions.FloatDistribution(*alphas, log=True),
        }
        complete = study.get_trials(deepcopy=False, states=(self._optuna.trial.TrialState.COMPLETE,))
        self.known = {_choice(trial) for trial in complete if self._space.keys() <= trial.params.keys()}

    def tell_ledger(self) -> None:
        """Add what the ledger has and the study has not."""
        low, high = self._alphas
        ledger = self._session.rows()
        for name, alpha in self._trials.finished(ledger):
            if (name, alpha) in self.known or not low <= alpha <= high:
                continue
            values = self._values((name, alpha), ledger)
            if values is not None:
                params = {"penalty": name, "alpha": alpha}
                self._study.add_trial(
                    self._optuna.trial.create_trial(params=params, distributions=self._space, values=values)
                )
                self.known.add((name, alpha))

    def run_some(self, count: int) -> int:
        """Ask for trials, run them, tell what came of them; returns how many."""
        asked = [self._study.ask(self._space) for _ in range(count)]
        try:
            self._session.run(*(self._trials.plan(*choice) for choice in dict.fromkeys(map(_choice, asked))))
            ledger = self._session.rows()
            while asked:
                self._tell(asked[-1], self._values(_choice(asked[-1]), ledger))
                asked.pop()
        finally:
            for trial in asked:  # nobody will come back to those that were not told
                self._tell(trial, None)
        return count

    def _tell(self, trial: Trial, values: list[float] | None) -> None:
        if values is None:
            self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(trial, values)
            self.known.add(_choice(trial))

    def _values(self, choice: Choice, ledger: Mapping[str, Any]) -> list[float] | None:
        """The objectives' means; None if a cell failed or one is not finite."""
        rows = self._trials.rows(*choice, ledger)
        if failure(rows):
            return None
        values = [mean(rows, metric) for metric in self._objectives]
        return values if all(map(math.isfinite, values)) else None


def _choice(trial: Any) -> Choice:
    return trial.params["penalty"], rounded(trial.params["alpha"])


def _imported() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ImportError("search_study needs Optuna, which is not installed; pip install optuna.") from error
    return optuna
