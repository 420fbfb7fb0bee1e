"""Exact minimisers of small penalised quadratics, by exchanging all columns that violate optimality at once.

    minimise  w' (G + diag(l2)) w / 2 - c' w + sum_j l1_j |w_j|,  w >= 0 where asked

For an active set and signs the tableau gives coefficients and correlations in one product. Columns with a
coefficient of the wrong sign, or a correlation beyond l1, change sides together (block principal pivoting), which
from a neighbouring solution takes one or two exchanges. A column that is a combination of active ones enters only
in exchange for the first of them that its growth brings to zero, as in the simplex method. If the number of
violations stops falling, only the worst quarter change. If that cycles, the way from the last solution to this one is
followed from kink to kink (as least angle regression follows a path). What rounding leaves wrong descends from the last
solution. Where the tableau's ridge is a little larger than the one asked for, proximal point steps take the difference
off.

Source: Kim and Park, AISTATS 2010 (block pivoting for L1); Osborne, Presnell and Turlach, IMA J. Numer. Anal. 20, 2000
(homotopy); Rockafellar, SIAM J. Control Optim. 14, 1976 (proximal point).
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchreg.linear.pivoting.descent import descended
from torchreg.linear.pivoting.exchanges import Exchanges
from torchreg.linear.pivoting.limits import ASTRAY, DEPENDENT, ROUNDING, SLACK, SPARE
from torchreg.linear.pivoting.subproblem import Subproblem, kinks, misfit

_BLOCK_ROUNDS = 25
_KINKS = 10  # exchanges on the way from one solution to the next, for each column, before giving up
_RESIDUAL = 1e-14  # of the active equations, relative to the largest correlation
_POOR = 1e-9  # a residual above this means that the tableau is no inverse any more
_REPAIRS = 3
_CLOSE = 1.15  # ridges within this factor converge by proximal point steps: 13 % error a step at most
_PROXIMAL_STEPS = 100


class PivotSolver(Exchanges):
    """Solves subproblems over one growing set of columns, each from the solution of the one before.

    Args:
        device: where to compute.
        limit: no more columns than this will ever come.
        rank: no more columns than this are independent.

    Attributes:
        rounds: products with the tableau so far.
        fallbacks: how often the exchanges had to be helped.
    """

    def __init__(self, device: torch.device, limit: int, rank: int) -> None:
        super().__init__(device, limit, rank)
        self.w = torch.zeros(0, dtype=torch.float64, device=device)
        self.rounds = 0
        self.fallbacks = 0
        self._flat = True  # whether it has no ridge
        self._settled = True  # whether block pivoting has found the last signs
        self._anchor = (self.w, self.signs)

    def append(self, gram: Tensor, l2: Tensor | None) -> None:
        """New columns: their Gram matrix with all columns (size + k, k), and their ridge (k,), None for none."""
        none = gram.new_zeros(gram.shape[1])
        self._flat = self._flat and l2 is None
        self.tableau.append(gram, none if l2 is None else l2)
        self.signs, self.w = torch.cat([self.signs, none]), torch.cat([self.w, none])
        w, signs = (torch.cat([part, none]) for part in self._anchor)
        self._anchor = (w, signs)

    def begin(self, w: Tensor) -> None:
        """Start from these coefficients over the present columns, (size,)."""
        self.w, self.signs = w.clone(), w.sign()
        self._anchor = (self.w, self.signs.clone())
        self.tableau.active.copy_(w != 0.0)
        self.tableau.rebuild()

    def replace(self, gram: Tensor, l2: Tensor | None) -> None:
        """Another Gram matrix over the same columns; active set, signs and coefficients stay."""
        self.tableau.rebuild(gram, torch.zeros_like(self.tableau.ridge) if l2 is None else l2)
        self._flat = l2 is None

    def solve(self, problem: Subproblem) -> Tensor:
        """Coefficients, (size,).

        The correlations of active columns equal ``l1 * sign`` to rounding; the caller's certificate judges the result.
        """
        if not self.tableau.size:
            return self.w
        start = self._anchor[0]
        self._approach(problem.l2)
        for fresh in (False, True):
            if fresh:  # a tableau that many exchanges have worn out, made anew
                self.fallbacks += 1
                self.begin(start)
            self._settled = True
            self._proximal_point(problem)
            g = self._correlations(problem)
            if self._settled and self._is_exact(problem, g):
                return self.w
            g, residual = self._refine(problem)
            if residual <= _POOR and misfit(problem, self.tableau.active, self.signs, self.w, g) <= _POOR:
                return self._without_rounding(problem)
        return self._last_resort(problem, start)

    def _without_rounding(self, problem: Subproblem) -> Tensor:
        """The coefficients, exactly zero where refinement has left rounding of what a worn tableau took for more."""
        for _ in range(self.tableau.size):
            size = self.w.abs() - ROUNDING * problem.scale * self.tableau.table.diagonal()
            closed = self.tableau.active & ((problem.l1 > 0.0) | (problem.lower == 0.0))
            size = torch.where(closed, size, torch.inf)
            least = size.argmin()
            if not size[least] <= 0.0:
                break
            self._pivot(least[None])
            self.w[least] = 0.0
            self._refine(problem)
        return self.w

    def _last_resort(self, problem: Subproblem, start: Tensor) -> Tensor:
        """Descent from the last solution, never worse than it: for matrices that are singular to rounding."""
        gram = self.tableau.gram
        bounded = torch.full_like(problem.c, problem.lower == 0.0, dtype=torch.bool)
        self.begin(descended(gram + torch.diag(problem.ridge), problem.c, problem.l1, bounded, start))
        return self.w

    def _correlations(self, problem: Subproblem) -> Tensor:
        """By the matrix itself, not by the tableau."""
        g = problem.c - self.tableau.gram @ self.w
        return g if problem.l2 is None else g - problem.l2 * self.w

    def _approach(self, l2: Tensor | None) -> None:
        """Rebuild the tableau where its ridge is too far from the one asked for, or below it."""
        if self._flat and l2 is None:
            return
        ridge = self.tableau.ridge
        wanted = torch.zeros_like(ridge) if l2 is None else l2
        near = (ridge >= wanted) & (ridge <= _CLOSE * wanted)
        if not bool(near.all()):
            self.tableau.rebuild(ridge=wanted)
            self._flat = l2 is None

    def _proximal_point(self, problem: Subproblem) -> None:
        """Solve with the tableau's ridge, and take off what it has too much."""
        if self._flat and problem.l2 is None:
            self.w = self._exchange(problem, problem.c)
            return
        excess = self.tableau.ridge if problem.l2 is None else self.tableau.ridge - problem.l2
        extra = bool((excess != 0).any())
        for _ in range(_PROXIMAL_STEPS):
            before = self.w
            self.w = self._exchange(problem, problem.c + excess * before if extra else problem.c)
            if not extra or not float((excess * (self.w - before)).abs().max()) > _RESIDUAL * problem.scale:
                return

    def _point(self, c: Tensor, l1: Tensor) -> Tensor:
        """The tableau's product: coefficients of active columns, losses of correlation of the others."""
        self.rounds += 1
        active = self.tableau.active
        return self.tableau.table @ torch.where(active, c - l1 * self.signs, 0.0)

    def _exchange(self, problem: Subproblem, c: Tensor) -> Tensor:
        """Block pivoting, then its fallbacks; the coefficients."""
        for attempt in (self._blocks, self._follow):
            w = attempt(problem, c)
            if w is not None:
                self._anchor = (w, self.signs.clone())
                return w
            self.fallbacks += 1
            self._settled = False
        return torch.where(self.tableau.active, self._point(c, problem.l1), 0.0)

    def _violation(self, product: Tensor, problem: Subproblem, c: Tensor) -> tuple[Tensor, Tensor]:
        """How far each column is from optimal on its side (> 0: it must change), and the correlations."""
        active, g = self.tableau.active, c - product
        size = g if problem.lower == 0.0 else g.abs()
        rounding = ROUNDING * (problem.scale if c is problem.c else c.abs().max())
        entering = size - (1.0 + SLACK) * problem.l1 - rounding
        leaving = rounding * self.tableau.table.diagonal() - product * self.signs  # zero is as good as what is rounding
        if problem.lower != 0.0:
            leaving = torch.where(problem.l1 > 0.0, leaving, -1.0)  # unpenalised columns stay
        return torch.where(active, leaving, entering), g

    def _blocks(self, problem: Subproblem, c: Tensor, rounds: int = _BLOCK_ROUNDS) -> Tensor | None:
        fewest, spare = self.tableau.size + 1, SPARE
        for _ in range(rounds):
            product = self._point(c, problem.l1)
            excess, g = self._violation(product, problem, c)
            chosen = (excess > 0).nonzero().flatten()
            count = len(chosen)
            if count == 0:
                return torch.where(self.tableau.active, product, 0.0)
            if count < fewest:
                fewest, spare = count, SPARE
            elif count > ASTRAY * max(fewest, ASTRAY):
                return None
            elif spare:
                spare -= 1
            else:
                chosen = chosen[excess[chosen].topk(max(1, count // 4)).indices]
            if not self._change(chosen, product, excess, g, problem):
                return torch.where(self.tableau.active, product, 0.0)
        return None

    def _follow(self, problem: Subproblem, c: Tensor) -> Tensor | None:
        """From the linear part for which the last solution is optimal to the one asked for, kink by kink."""
        w, signs = self._anchor
        self.begin(w)
        self.signs.copy_(torch.where(w == 0.0, self.signs, signs))
        pull = self.tableau.gram @ w + self.tableau.ridge * w
        bound = problem.l1 if problem.lower == 0.0 else None
        g = torch.minimum(c - pull, problem.l1) if bound is not None else (c - pull).clamp(-problem.l1, problem.l1)
        origin = pull + torch.where(self.tableau.active, problem.l1 * self.signs, g)
        way, t, here = c - origin, 0.0, 0
        for _ in range(_KINKS * self.tableau.size):
            base, slope = self._lines(origin, way, problem.l1)
            leaving, reaching = kinks(problem, self.tableau.active, self.signs, t, base, slope, origin, way)
            first = torch.minimum(leaving.min(), reaching.min())
            if not float(first) < 1.0:
                return torch.where(self.tableau.active, base + slope, 0.0)
            here = here + 1 if float(first) == t else 0
            if here > self.tableau.size:  # in circles
                return None
            t = float(first)
            self._pass(
                leaving.argmin() if leaving.min() <= reaching.min() else reaching.argmin(),
                way - slope,
                base + t * slope,
                problem,
            )
        return None

    def _lines(self, origin: Tensor, way: Tensor, l1: Tensor) -> tuple[Tensor, Tensor]:
        """The tableau's product along the way: at its origin, and its slope."""
        self.rounds += 1
        active = self.tableau.active
        sides = torch.stack([torch.where(active, origin - l1 * self.signs, 0.0), torch.where(active, way, 0.0)], 1)
        base, slope = (self.tableau.table @ sides).unbind(1)
        return base, slope

    def _pass(self, column: Tensor, rate: Tensor, product: Tensor, problem: Subproblem) -> None:
        """Exchange the column that has come to a kink."""
        if not self.tableau.active[column]:
            self.signs[column] = rate[column].sign()
            entry = self.tableau.table[column, column]
            if not entry > DEPENDENT * self.tableau.gram[column, column]:
                self._swap(column, product, problem)
                return
        self._pivot(column[None])

    def _is_exact(self, problem: Subproblem, g: Tensor) -> bool:
        """Whether correlations that are right to rounding confirm the signs: then nothing needs refinement."""
        reach = g if problem.lower == 0.0 else g.abs()
        off = torch.where(self.tableau.active, (g - problem.l1 * self.signs).abs(), reach - problem.l1)
        fair = problem.l1 @ self.w.abs() <= problem.c @ self.w  # no saddle of a matrix that is but rounding
        return bool((off.max() <= _RESIDUAL * problem.scale) & fair)

    def _refine(self, problem: Subproblem) -> tuple[Tensor, float]:
        """Newton's correction of the active equations by the true matrix; correlations and relative residual."""
        active, scale = self.tableau.active, problem.scale or 1.0
        for repair in range(_REPAIRS + 1):
            g = self._correlations(problem)
            residual = torch.where(active, g - problem.l1 * self.signs, 0.0)
            worst = float(residual.abs().max()) / scale
            if not worst > _RESIDUAL or repair == _REPAIRS:
                break
            self.w = self.w + torch.where(active, self.tableau.table @ residual, 0.0)
        return g, worst if worst == worst else torch.inf
