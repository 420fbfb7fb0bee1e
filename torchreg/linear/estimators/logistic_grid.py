"""Scores and coefficients of logistic regressions for each fold, share of L1 and C."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from torchreg.linear.estimators.arrays import Data
from torchreg.linear.estimators.classifier import Classifier, Labelled
from torchreg.linear.estimators.logistic import likelihood, strength
from torchreg.linear.estimators.penalised import entrywise
from torchreg.linear.estimators.scored import Ordered, Scorer, fit_in_order, knowing, scores_on, takes_weights
from torchreg.penalties import L1L2


@dataclass(frozen=True)
class Grid:
    """What cross-validation has found.

    Args:
        scores: (folds, shares, Cs).
        coefs: with the intercept last where there is one, (folds, shares, Cs, K, p + 1), K = 1 for two classes.
        iterations: (folds, shares, Cs).
        converged: whether each fit met the tolerance, (folds, shares, Cs).
    """

    scores: np.ndarray
    coefs: np.ndarray
    iterations: np.ndarray
    converged: np.ndarray

    def best(self) -> tuple[int, int]:
        """The share and the C with the best mean score; among equals the first C, then the first share."""
        mean = self.scores.mean(0).T
        place, share = np.unravel_index(mean.argmax(), mean.shape)
        return int(share), int(place)

    def best_of_folds(self) -> tuple[np.ndarray, np.ndarray]:
        """The share and the C with the best score, for each fold."""
        each = self.scores.swapaxes(1, 2)
        places, shares = np.unravel_index(each.reshape(len(each), -1).argmax(1), each.shape[1:])
        return shares, places

    def mean_coefs(self) -> np.ndarray:
        """The mean over the folds of the coefficients at each fold's best, (K, p + 1)."""
        shares, places = self.best_of_folds()
        return self.coefs[np.arange(len(self.coefs)), shares, places].mean(0)


def fitted_at(model: Any, problem: Labelled, data: Data, share: float) -> Ordered:
    """The models of all values of C, for the rows that have a weight in ``data``."""
    penalty = entrywise(L1L2(1.0, share), model, data, outputs=problem.outputs is not None)
    alphas = [strength(C, data.total) for C in model.Cs_]
    return fit_in_order(model, data, penalty, likelihood(len(problem.classes)), alphas)


def search_grid(model: Any, problem: Labelled, folds: Any, scorer: Scorer, params: dict[str, Any]) -> Grid:
    """Fit and score a model for each fold, share of L1 and C."""
    if not takes_weights(scorer):
        params = {name: value for name, value in params.items() if name != "sample_weight"}
    scorer = knowing(scorer, problem.classes)
    paths = [[fitted_at(model, problem, problem.data.only(train), s) for s in model.l1_ratios_] for train, _ in folds]
    scores = [
        [scores_on(model, problem.data, fitted, problem.labels, test, scorer, params) for fitted in row]
        for row, (_, test) in zip(paths, folds, strict=True)
    ]
    coefs = [[_coefficients(model, fitted) for fitted in row] for row in paths]
    iterations = [[fitted.path.n_iters.cpu().numpy()[fitted.places] for fitted in row] for row in paths]
    converged = [[fitted.converged for fitted in row] for row in paths]
    return Grid(np.array(scores), np.array(coefs), np.array(iterations), np.array(converged))


def _coefficients(model: Classifier, fitted: Ordered) -> np.ndarray:
    """(Cs, K, p + 1)."""
    parts = []
    for place in fitted.places:
        coef, intercept = model._rows(fitted.path.coef(int(place)), fitted.path.intercepts[int(place)])
        parts.append(torch.cat([coef, intercept[:, None]], 1) if model.fit_intercept else coef)
    return torch.stack(parts).cpu().numpy()


def legacy(values: np.ndarray, *, shares: bool) -> np.ndarray:
    """(folds, shares, Cs, ...) as before scikit-learn 1.10: (folds, Cs, shares, ...), or (folds, Cs, ...)."""
    swapped = values.swapaxes(1, 2)
    return swapped if shares else swapped[:, :, 0]
