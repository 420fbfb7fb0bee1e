"""An independent judge of linear fits: objective, distance from optimality and duality gap, by textbook formulas.

numpy alone and no code of the library. It computes in numpy's long double (64 bits of mantissa on x86), so that what
it says of a float64 solution is not its own rounding: where primal and dual agree to 1e-16, their difference counts.
Primal and dual (Fenchel and Rockafellar), for weights s that add up to 1, offset o and eta = X w + b + o:

    P(w, b) = sum_i s_i f_i(eta_i) + R(w)
    D(u)    = sum_i s_i (o_i u_i - f_i*(u_i)) - R*(-X' (s u)),      sum_i s_i u_i = 0 where there is an intercept

The dual point is a multiple of the loss's gradient at the best intercept and the best unpenalised coefficients: the
largest multiple <= 1 at which D is finite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

LONG = np.longdouble
EPS = float(np.finfo(LONG).eps)
_NEWTON = 60  # steps for intercept and unpenalised coefficients: quadratic convergence needs ten, from far away more
_HALVINGS = 80  # of the interval of dual scales: more than the mantissa has bits
_ROUNDING = 32 * EPS  # by how much a bound that holds with equality may be missed


class Quadratic:
    def value(self, eta, y):
        return ((eta - y) ** 2).sum(1) / 2

    def grad(self, eta, y):
        return eta - y

    def hessian(self, eta, y):
        return np.broadcast_to(np.eye(eta.shape[1]), (*eta.shape, eta.shape[1]))

    def conjugate(self, u, y):
        return (u**2 / 2 + u * y).sum(1)


class Logistic:
    """y in {0, 1}."""

    def value(self, eta, y):
        return (np.logaddexp(0, eta) - y * eta).sum(1)

    def grad(self, eta, y):
        return 1 / (1 + np.exp(-eta)) - y

    def hessian(self, eta, y):
        small = np.exp(-np.abs(eta))
        return (small / (1 + small) ** 2)[:, :, None]

    def conjugate(self, u, y):
        q = (u + y).sum(1)  # the chance of class 1
        return _xlogx(q) + _xlogx(1 - q)


class Poisson:
    def value(self, eta, y):
        return (np.exp(eta) - y * eta).sum(1)

    def grad(self, eta, y):
        return np.exp(eta) - y

    def hessian(self, eta, y):
        return np.exp(eta)[:, :, None]

    def conjugate(self, u, y):
        mean = (u + y).sum(1)
        return _xlogx(mean) - mean


class Multinomial:
    """y one-hot."""

    def value(self, eta, y):
        top = eta.max(1)
        return np.log(np.exp(eta - top[:, None]).sum(1)) + top - (y * eta).sum(1)

    def grad(self, eta, y):
        return self._chances(eta) - y

    def hessian(self, eta, y):
        q = self._chances(eta)
        return q[:, :, None] * np.eye(q.shape[1]) - q[:, :, None] * q[:, None, :]

    def conjugate(self, u, y):
        q = u + y  # a chance for each class
        inside = np.abs(q.sum(1) - 1) <= _ROUNDING * q.shape[1]
        return np.where(inside, _xlogx(q).sum(1), math.inf)

    def _chances(self, eta):
        raised = np.exp(eta - eta.max(1, keepdims=True))
        return raised / raised.sum(1, keepdims=True)


class Huber:
    def __init__(self, delta=1.35):
        self.delta = LONG(delta)

    def value(self, eta, y):
        r, d = np.abs(eta - y), self.delta
        return np.where(r <= d, r**2 / 2, d * r - d**2 / 2).sum(1)

    def grad(self, eta, y):
        return np.clip(eta - y, -self.delta, self.delta)

    def hessian(self, eta, y):
        return (np.abs(eta - y) <= self.delta).astype(LONG)[:, :, None]

    def conjugate(self, u, y):
        inside = np.abs(u) <= self.delta * (1 + _ROUNDING)
        return np.where(inside, u**2 / 2 + u * y, math.inf).sum(1)


class SquaredHinge:
    """y in {0, 1}."""

    def value(self, eta, y):
        return (np.maximum(0, 1 - (2 * y - 1) * eta) ** 2 / 2).sum(1)

    def grad(self, eta, y):
        return -(2 * y - 1) * np.maximum(0, 1 - (2 * y - 1) * eta)

    def hessian(self, eta, y):
        return ((2 * y - 1) * eta < 1).astype(LONG)[:, :, None]

    def conjugate(self, u, y):
        v = (2 * y - 1) * u
        return np.where(v <= 0, v**2 / 2 + v, math.inf).sum(1)


@dataclass(frozen=True)
class Entries:
    """``sum_j l1_j |w_j| + l2_j / 2 w_j^2``, w >= lower (-inf or 0); l1 = inf forbids an entry."""

    l1: object
    l2: object = 0.0
    lower: float = -math.inf

    def value(self, w):
        l1, l2 = self._strengths(w)
        if (w < self.lower).any() or (w[np.isinf(l1)] != 0).any():
            return LONG(math.inf)
        finite = np.where(np.isinf(l1), 0, l1)
        return (finite * np.abs(w) + l2 / 2 * w**2).sum()

    def conjugate(self, z):
        l1, l2 = self._strengths(z)
        over = (z if self.lower == 0 else np.abs(z)) - l1
        slack = _ROUNDING * np.where(np.isinf(l1), 0, l1)
        over = np.where(over <= slack, 0, over)
        return np.where(l2 > 0, over**2 / (2 * np.where(l2 > 0, l2, 1)), np.where(over > 0, math.inf, 0)).sum()

    def violation(self, w, g):
        l1, l2 = self._strengths(w)
        at_zero = np.maximum((g if self.lower == 0 else np.abs(g)) - l1, 0)
        elsewhere = np.abs(g - np.where(np.isinf(l1), 0, l1) * np.sign(w) - l2 * w)
        return np.where(w == 0, at_zero, elsewhere).max(initial=0)

    def scale(self, z):
        """The largest s <= 1 with a finite conjugate at s z, the free entries left out."""
        l1, l2 = self._strengths(z)
        size = np.where((l2 == 0) & (l1 > 0), z if self.lower == 0 else np.abs(z), 0)
        over = size > l1
        return (l1[over] / size[over]).min(initial=1)

    def free(self, p):
        """The columns that no entry of is penalised."""
        l1, l2 = self._strengths(np.zeros((p, *np.shape(self.l1)[1:]), LONG))
        return ((l1 == 0) & (l2 == 0) & (self.lower != 0)).reshape(p, -1).all(1)

    def settled(self, z, rounding):
        """Entries unpenalised but >= 0 ask for z <= 0, which float64 meets to rounding; and the sum of what is over."""
        l1, l2 = self._strengths(z)
        over = np.where((self.lower == 0) & (l1 == 0) & (l2 == 0) & (z <= rounding), np.maximum(z, 0), 0)
        return z - over, float(over.sum())

    def _strengths(self, w):
        return (np.broadcast_to(np.asarray(part, LONG), w.shape) for part in (self.l1, self.l2))


@dataclass(frozen=True)
class Blocks:
    """``sum_g l1_g ||w_g|| + inner |w|_1 + l2 / 2 |w|^2``; ``labels`` gives the group of each entry of w.

    l1 = inf forbids a group; one of strength 0 has to be of whole rows.
    """

    labels: np.ndarray
    l1: np.ndarray
    inner: float = 0.0
    l2: float = 0.0

    def value(self, w):
        norms = self._norms(w)
        return (
            (np.where(norms > 0, self.l1, 0) * norms).sum() + self.inner * np.abs(w).sum() + self.l2 / 2 * (w**2).sum()
        )

    def conjugate(self, z):
        over = self._norms(self._soft(z)) - self.l1 * (1 + _ROUNDING)
        if self.l2 > 0:
            return (np.maximum(over, 0) ** 2).sum() / (2 * self.l2)
        return LONG(math.inf if (over > 0).any() else 0)

    def violation(self, w, g):
        norms, worst = self._norms(w), LONG(0)
        for group, norm in enumerate(norms):
            mine = self.labels == group
            part, slope = w[mine], g[mine]
            if norm == 0:
                away = np.sqrt((self._soft(slope) ** 2).sum()) - self.l1[group]
                worst = max(worst, away)
                continue
            rest = slope - self.l1[group] * part / norm - self.l2 * part
            inner = np.where(part == 0, np.maximum(np.abs(rest) - self.inner, 0), rest - self.inner * np.sign(part))
            worst = max(worst, np.sqrt((inner**2).sum()))
        return worst

    def scale(self, z):
        return _largest(lambda s: np.isfinite(self.conjugate(s * z)))

    def free(self, p):
        """The rows that no group penalises."""
        unpenalised = (self.l1 == 0) & (self.inner == 0) & (self.l2 == 0)
        return unpenalised[self.labels].reshape(p, -1).all(1)

    def settled(self, z, rounding):
        del rounding
        return z, 0.0

    def _soft(self, z):
        return np.sign(z) * np.maximum(np.abs(z) - LONG(self.inner), 0)

    def _norms(self, w):
        squares = np.zeros(len(self.l1), LONG)
        np.add.at(squares, self.labels.ravel(), (w**2).ravel())
        return np.sqrt(squares)


@dataclass(frozen=True)
class Judge:
    """One problem. y as the loss takes it; weights and offset as the caller gave them, or None.

    With an intercept the columns are seen centred, and so is the target of least squares: that changes no solution
    and keeps the judge's rounding small where means are large.
    """

    X: object
    y: object
    loss: object = Quadratic()
    weights: object = None
    offset: object = None
    fit_intercept: bool = True

    def __post_init__(self):
        X, y = _long(self.X), _long(self.y)
        s = np.ones(len(X), LONG) if self.weights is None else _long(self.weights)
        s, y = s / s.sum(), y.reshape(len(X), -1)
        lift = np.zeros_like(y) if self.offset is None else _long(self.offset).reshape(y.shape)
        mean, shift = np.zeros(X.shape[1], LONG), np.zeros(y.shape[1], LONG)
        if self.fit_intercept:
            mean = s @ X
        if isinstance(self.loss, Quadratic):
            y, lift = y - lift, np.zeros_like(y)
            shift = s @ y if self.fit_intercept else shift
        known = {"_s": s, "_x": X - mean, "_target": y - shift, "_lift": lift, "_mean": mean, "_shift": shift}
        known["_size"] = np.abs(X)
        for name, value in known.items():
            object.__setattr__(self, name, value)

    def standardised(self):
        """The same problem in columns divided by their weighted deviation (constant ones by 1), and these."""
        X = _long(self.X)
        mean = self._s @ X
        spread = np.sqrt(self._s @ (X - mean) ** 2)
        spread = np.where(spread <= 1e-15 * np.abs(mean), 1, spread)
        return replace(self, X=X / spread), spread

    def objective(self, penalty, coef, intercept=0.0):
        """Mean loss + penalty."""
        return float(self._primal(penalty, coef, intercept))

    def mean_loss(self, coef, intercept=0.0):
        return float(self._value(self._eta(coef, intercept)))

    def null(self):
        """With all coefficients zero: the mean loss above its least, ``-f*(0)``, and the steepest gradient."""
        eta = self._refitted(self._eta(self._no_coef(), 0.0))
        losses = self.loss.value(eta, self._target) + self.loss.conjugate(0 * eta, self._target)
        slope = self._gradient(self.loss.grad(eta, self._target), self._no_coef())
        return float(self._s @ losses), float(np.abs(slope).max())

    def violation(self, penalty, coef, intercept=0.0):
        """Distance of minus the gradient, at the best intercept, from the subdifferential: the largest."""
        eta = self._refitted(self._eta(coef, intercept))
        return float(penalty.violation(_long(coef), -self._gradient(self.loss.grad(eta, self._target), coef)))

    def intercept_loss(self, coef, intercept):
        """How much less the mean loss is at the best intercept, and how far away that is."""
        eta = self._eta(coef, intercept)
        best = self._refitted(eta)
        less = self._s @ (self.loss.value(eta, self._target) - self.loss.value(best, self._target))
        return float(less), float(np.abs(eta - best).max())

    def best_intercept(self, coef):
        eta = self._eta(coef, 0.0)
        best = (self._refitted(eta) - eta)[0].astype(float)
        return best if np.ndim(self.y) == 2 else float(best[0])

    def gap(self, penalty, coef, intercept=0.0):
        """``P(coef, intercept) - D(u)``, never less than P minus its minimum."""
        eta = self._refitted(self._eta(coef, intercept), penalty.free(len(self._mean)))
        u = self.loss.grad(eta, self._target)
        z = -self._gradient(u, coef)
        z[penalty.free(len(z))] = 0  # to rounding, as the refit has left them
        z, owed = penalty.settled(z, 1e-12 * self.null()[1])
        s = penalty.scale(z)
        s = s * _largest(lambda t: np.isfinite(self._s @ self.loss.conjugate(t * s * u, self._target)))
        dual = self._s @ ((self._lift * s * u).sum(1) - self.loss.conjugate(s * u, self._target))
        return (
            float(self._primal(penalty, coef, intercept) - (dual - penalty.conjugate(s * z)))
            + owed * np.abs(coef).max()
        )

    def alpha_max(self, factors):
        """The least alpha at which L1 strengths ``alpha * factors`` (p,) leave no penalised coefficient."""
        eta = self._refitted(self._eta(self._no_coef(), 0.0), factors == 0)
        size = np.abs(self._gradient(self.loss.grad(eta, self._target), self._no_coef()))
        held = (factors > 0) & np.isfinite(factors)
        return float((size[held].reshape(held.sum(), -1).max(1) / factors[held]).max(initial=0))

    def _no_coef(self):
        p, K = self._x.shape[1], self._target.shape[1]
        return np.zeros((p, K) if np.ndim(self.y) == 2 else p, LONG)

    def _eta(self, coef, intercept):
        w = _long(coef).reshape(self._x.shape[1], -1)
        return self._x @ w + (_long(intercept).reshape(-1) + self._mean @ w - self._shift) + self._lift

    def _primal(self, penalty, coef, intercept):
        return self._value(self._eta(coef, intercept)) + penalty.value(_long(coef))

    def _gradient(self, rows, coef):
        weighted = self._s[:, None] * rows
        pull = self._x.T @ weighted
        noise = 64 * EPS * (self._size.T @ np.abs(weighted))  # of sums that are zero: constant columns
        return np.where(np.abs(pull) <= noise, 0, pull).reshape(np.shape(coef))

    def _refitted(self, eta, free=None):
        """``eta`` at the best intercept and best coefficients of the columns ``free``, by Newton's method."""
        A = [np.ones((len(eta), 1), LONG)] * self.fit_intercept
        A = np.hstack([*A, self._x[:, free] if free is not None else self._x[:, :0]])
        size = np.sqrt(self._s @ A**2)
        A = A[:, size > 0] / size[size > 0]
        if not A.shape[1]:
            return eta

        def slope_at(eta):
            return A.T @ (self._s[:, None] * self.loss.grad(eta, self._target))

        best = eta
        for _ in range(_NEWTON):
            slope = slope_at(eta)
            second = self._s[:, None, None] * self.loss.hessian(eta, self._target)
            H = np.einsum("ia,ikl,ib->akbl", A, second, A).reshape(slope.size, -1).astype(float)
            H = H + np.diag(np.diag(H) < 1e-9)  # 1 bounds the curvature of losses that have flat parts
            step = A @ np.linalg.lstsq(H, slope.astype(float).ravel(), rcond=1e-13)[0].reshape(slope.shape)
            now, steep = self._value(eta), np.abs(slope).max()
            tried = (eta - step / 2**k for k in range(60))
            eta = next((m for m in tried if self._value(m) < now or np.abs(slope_at(m)).max() <= steep / 2), None)
            if eta is None:
                break
            best = eta
        return best

    def _value(self, eta):
        return self._s @ self.loss.value(eta, self._target)


def certify(path, judge, penalty_at, *, gap=1e-9, rounding=1e-12, violations=True):
    """Assert of every point of a path that its gap is small and that what it reports of itself is true.

    Args:
        path: has to_numpy().
        judge: of the same problem.
        penalty_at: alpha -> Entries or Blocks.
        gap: allowed, relative to the null model's loss.
        rounding: of reported objectives, gaps and violations, relative to the null model's.
        violations: whether the reported ones are distances from the subdifferential (not prox residuals).

    Returns:
        The largest relative gap.
    """
    found, (loss, slope) = path.to_numpy(), judge.null()
    worst = 0.0
    for k, alpha in enumerate(found["alphas"]):
        penalty, coef, intercept = penalty_at(float(alpha)), found["coefs"][k], found["intercepts"][k]
        where = f"alpha {alpha:.6g}, number {k}"
        mine = judge.gap(penalty, coef, intercept)
        objective, violation = judge.objective(penalty, coef, intercept), judge.violation(penalty, coef, intercept)
        assert -rounding * loss <= mine <= gap * loss, f"{where}: gap {mine / loss:.1e} of the null loss"
        assert abs(found["dual_gaps"][k] - mine) <= rounding * loss + 1e-6 * mine, f"{where}: reported gap"
        assert abs(found["objectives"][k] - objective) <= rounding * abs(loss), f"{where}: reported objective"
        if violations:
            assert abs(found["violations"][k] - violation) <= rounding * slope + 1e-6 * violation, f"{where}: violation"
        assert judge.intercept_loss(coef, intercept)[0] <= max(rounding, gap) * loss, f"{where}: intercept"
        worst = max(worst, mine / loss if loss else 0.0)
    return worst


def _long(x):
    return np.asarray(x).astype(LONG)


def _xlogx(q):
    """``q log q``, 0 at 0, inf below."""
    inside = np.where(q > 0, q, 1)
    return np.where(q >= 0, inside * np.log(inside), math.inf)


def _largest(finite):
    """The largest s <= 1 for which ``finite(s)``; the set of them is an interval from 0."""
    if finite(LONG(1)):
        return LONG(1)
    low, high = LONG(0), LONG(1)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if finite(middle) else (low, middle)
    return low
