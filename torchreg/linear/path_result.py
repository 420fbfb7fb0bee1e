"""A fitted path: every solution with its certificate, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from torchreg.linear.criteria import Criterion, information
from torchreg.linear.datafits import Datafit
from torchreg.linear.new_rows import new_rows
from torchreg.linear.points import PathPoint
from torchreg.penalties import Penalty


@dataclass(frozen=True, eq=False)
class Fit:
    """One point of a path.

    Attributes:
        alpha: its strength. coef: (p,) or (p, K). intercept: 0-d or (K,).
        dual_gap: absolute; nan where no conjugate is known. violation: distance from optimality.
        objective: mean loss + penalty. n_iter: iterations. converged: whether the tolerance was met.
        datafit: the loss. feature_names: as the path's.

    Example:
        >>> import torch
        >>> from torchreg import L1
        >>> from torchreg.linear import fit_path
        >>> X = torch.eye(3).repeat(2, 1)
        >>> fit = fit_path(X, 3.0 * X[:, 0], L1(1.0), alphas=[0.5], fit_intercept=False).at(0.5)
        >>> print(fit.coef, fit.converged)
        tensor([1.5000, 0.0000, 0.0000], dtype=torch.float64) True
        >>> fit.predict(torch.eye(3)[:1])
        tensor([1.5000], dtype=torch.float64)
    """

    alpha: float
    coef: Tensor
    intercept: Tensor
    dual_gap: float
    violation: float
    objective: float
    n_iter: int
    converged: bool
    datafit: Datafit
    feature_names: tuple[str, ...] | None = None

    def decision(self, X: Any) -> Tensor:  # noqa: N803
        """The linear predictor ``X coef + intercept``, (n,) or (n, K), float64; an offset is yours to add.

        Args:
            X: (n, p), as for `fit_path`.

        Raises:
            ValueError: if X is not finite, not a table of numbers, has not p columns, or has others by name.
        """
        rows = new_rows(X, self.coef.device, len(self.coef), self.feature_names)
        return rows.times(self.coef) + self.intercept

    def predict(self, X: Any) -> Tensor:  # noqa: N803
        """The mean response, (n,) or (n, K): the chance of class 1 for `Logistic`, the mean count for `Poisson`."""
        return self.datafit.predict(self.decision(X))


@dataclass(frozen=True, eq=False)
class Path:
    """Solutions for descending strengths, as `fit_path` returns them.

    A path holds results alone and none of the data; `refit` takes them anew.

    Attributes:
        alphas: (a,), float64, descending.
        intercepts: (a,) or (a, K).
        dual_gaps: objective minus a lower bound of the minimum, absolute, (a,); nan without a conjugate.
        violations: distances from optimality, (a,).
        objectives: mean loss + penalty, (a,). losses: the mean loss alone, (a,).
        n_iters: iterations since the strength before, (a,). converged: gap <= tol * null_objective, (a,); where there
            is no gap, the violation <= tol * the null model's largest gradient.
        null_objective: the loss with all coefficients zero, above the least that any predictor could have.
        null_slope: the largest gradient with all coefficients zero.
        alpha_max: the least strength with all penalised coefficients zero; inf where there is none.
        tol: the tolerance that was asked for.
        datafit, penalty: what was fitted; the penalty's own alpha plays no role.
        n_samples, n_features: shape of X. n_weighted: rows whose weight is not zero; of chunks, all.
        fit_intercept, standardize: as asked for.
        feature_names: of the columns, where X was a data frame with names; frames to predict must have the same.

    Source:
        The gap: Fenchel's inequality (Rockafellar, Convex Analysis, 1970, theorem 23.5) at a dual point that is the
        residual, scaled (El Ghaoui, Viallon and Rabbani, Pacific J. Optim. 8, 2012).

    Example:
        >>> import torch
        >>> from torchreg import L1
        >>> from torchreg.linear import fit_path
        >>> X = torch.eye(4).repeat(2, 1)
        >>> y = X @ torch.tensor([3.0, -2.0, 0.0, 0.0])
        >>> path = fit_path(X, y, L1(1.0), alphas=[0.5, 0.25], fit_intercept=False)
        >>> print(path.alpha_max, path.n_nonzero.tolist(), path.converged.tolist())
        0.75 [1, 2] [True, True]
        >>> path.at(0.375).coef  # between two strengths: the line between their solutions
        tensor([ 1.5000, -0.5000,  0.0000,  0.0000], dtype=torch.float64)
    """

    alphas: Tensor
    intercepts: Tensor
    dual_gaps: Tensor
    violations: Tensor
    objectives: Tensor
    losses: Tensor
    n_iters: Tensor
    converged: Tensor
    null_objective: float
    null_slope: float
    alpha_max: float
    tol: float
    datafit: Datafit
    penalty: Penalty
    n_samples: int
    n_features: int
    n_weighted: int
    fit_intercept: bool
    standardize: bool
    _points: tuple[PathPoint, ...] = field(repr=False)
    feature_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.alphas)

    @property
    def coefs(self) -> Tensor:
        """All coefficients, (a, p) or (a, p, K); stored sparse, made dense anew at each access."""
        return torch.stack([self.coef(k) for k in range(len(self))])

    def coef(self, k: int) -> Tensor:
        """The coefficients at ``alphas[k]``, (p,) or (p, K)."""
        return self._points[k].dense(self.n_features)

    @property
    def n_nonzero(self) -> Tensor:
        """Features with a coefficient that is not zero, (a,)."""
        return torch.tensor([len(p.index) for p in self._points], device=self.alphas.device)

    def at(self, alpha: float) -> Fit:
        """The solution at ``alpha``; between two strengths of the path, the line between theirs.

        Raises:
            ValueError: if ``alpha`` lies outside of the path.
        """
        wanted = float(alpha)
        high, low = float(self.alphas[0]), float(self.alphas[-1])
        slack = 1e-12 * high
        if not low - slack <= wanted <= high + slack:
            raise ValueError(
                f"The path runs from alpha = {high:g} to {low:g}, got {alpha!r}; fit it with alphas=[..., {wanted:g}]."
            )
        k = int((self.alphas - wanted).abs().argmin())
        if abs(float(self.alphas[k]) - wanted) <= slack:
            return self._fit(k)
        after = int((self.alphas >= wanted).sum())
        return self._between(after - 1, after, wanted)

    def _fit(self, k: int) -> Fit:
        return Fit(
            float(self.alphas[k]), self.coef(k), self.intercepts[k], float(self.dual_gaps[k]),
            float(self.violations[k]), float(self.objectives[k]), int(self.n_iters[k]), bool(self.converged[k]),
            self.datafit, self.feature_names,
        )  # fmt: skip

    def _between(self, before: int, after: int, alpha: float) -> Fit:
        """On the line between two neighbours: exact for least squares with L1 unless a coefficient enters or leaves."""
        first, second = self._fit(before), self._fit(after)
        share = (first.alpha - alpha) / (first.alpha - second.alpha)
        return replace(
            first,
            alpha=alpha,
            coef=torch.lerp(first.coef, second.coef, share),
            intercept=torch.lerp(first.intercept, second.intercept, share),
            dual_gap=math.nan, violation=math.nan, objective=math.nan, n_iter=0, converged=False,
        )  # fmt: skip

    def predict(self, X: Any, alpha: float | None = None) -> Tensor:  # noqa: N803
        """The mean response for every strength, (a, n) or (a, n, K), or for one, (n,) or (n, K)."""
        if alpha is not None:
            return self.at(alpha).predict(X)
        return self.datafit.predict(self.decision(X))

    def decision(self, X: Any) -> Tensor:  # noqa: N803
        """The linear predictor for every strength, (a, n) or (a, n, K)."""
        design = new_rows(X, self.intercepts.device, self.n_features, self.feature_names)
        if self.intercepts.dim() == 1:
            return design.times(self.coefs.T).T + self.intercepts[:, None]
        return torch.stack([design.times(c) + b for c, b in zip(self.coefs, self.intercepts, strict=True)])

    @property
    def relax(self) -> NoReturn:
        """No longer there; the error says what to do."""
        raise AttributeError(
            "A path holds no data to be fitted again: instead of path.relax() call torchreg.linear.refit(path, X, y), "
            "with the sample_weight and offset of the fit, where it had any."
        )

    def criterion(self, kind: Criterion = "bic", *, gamma: float = 1.0) -> Tensor:
        """An information criterion of each point; the least is the best.

        ``2 n loss + price``, for least squares with K outputs ``n K log(2 loss / K) + price``: the outputs share one
        variance, which is profiled out, and ``loss`` is their sum. The price is ``2 df`` (aic), ``log(n) df`` (bic) or
        ``log(n) df + 2 gamma log(binomial(p K, df))`` (ebic).

        df is the number of coefficients that are not zero, and n that of the rows with a weight (of chunks, all rows).
        That df is right for L1, whose shrinkage pays for its choice, weighted or not, and after `refit` only if the
        support was not chosen by y. It is more than the degrees of freedom of what shrinks further (L2, L1L2, Group,
        SLOPE, Nuclear), and a guess for concave penalties. Least squares without residuals has -inf.

        Args:
            kind: "aic", "bic" or "ebic".
            gamma: >= 0, of ebic alone; 0 is bic.

        Shapes:
            returns: (a,), float64.

        Raises:
            ValueError: if ``kind`` or ``gamma`` is another, or the datafit is no likelihood.

        Source:
            Zou, Hastie and Tibshirani, Annals of Statistics 35, 2007 (df of the lasso); Chen and Chen, Biometrika
            95, 2008 (ebic).
        """
        df = torch.stack([point.values.count_nonzero() for point in self._points]).double()
        of = {"rows": self.n_weighted, "features": self.n_features, "outputs": self.intercepts[0].numel()}
        return information(self.losses, df, self.datafit, kind, gamma, **of)

    def to_numpy(self) -> dict[str, np.ndarray[Any, Any]]:
        """The arrays of the path by name, ``coefs`` included."""
        names = ("alphas", "coefs", "intercepts", "dual_gaps", "violations", "objectives", "n_iters", "n_nonzero")
        return {name: getattr(self, name).cpu().numpy() for name in (*names, "converged")}


def summary(points: Sequence[PathPoint], objectives: Tensor) -> dict[str, Any]:
    """The columns of a path from its points."""
    return {
        "intercepts": torch.stack([p.intercept for p in points]),
        "dual_gaps": torch.stack([p.gap for p in points]),
        "violations": torch.stack([p.violation for p in points]),
        "losses": torch.stack([p.loss for p in points]),
        "objectives": objectives,
        "n_iters": torch.tensor([p.n_iter for p in points], device=objectives.device),
    }


def is_converged(gaps: Tensor, violations: Tensor, *, gap: float, violation: float) -> Tensor:
    """Whether each point is as near to the minimum as asked for; without a gap, as near to being stationary."""
    return torch.where(gaps.isfinite(), gaps <= gap, violations <= violation)
