"""All training paths of a cross-validation at once: the same strengths, one working set, one look at the data for all.

As in `L1Path`, a block of strengths is solved on a working set of columns, then all correlations of all folds come from
one product with the data. A column that any fold needs joins the set of all.

Source: Tibshirani et al., JRSS B 74, 2012 (sequential strong rule).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor

from torchreg.linear.folds import Fold
from torchreg.linear.frame import Coordinates, Frame
from torchreg.linear.lockstep.exchanges import Sides
from torchreg.linear.lockstep.fold_oracle import FoldOracle, fold_oracle
from torchreg.linear.lockstep.pivoting import BatchedPivots
from torchreg.linear.objective.entry_terms import columns, dual_scale, penalty_gap, violation
from torchreg.linear.pivoting.subproblem import Subproblem
from torchreg.linear.points import PathPoint, zero_intercept
from torchreg.linear.stations import stations
from torchreg.penalties import L1Form, Penalty

_KEEP = 0.95  # of its strength: a correlation predicted to reach it joins the working set
_SLACK = 1e-12  # of a correlation beyond its strength: less is rounding
_BLOCK = 8  # strengths for one pass over the data
_ROOM = 1 << 24  # entries of the correlations of a block: 128 MiB
_POOR = 1e-10  # of the target's energy: a gap above it is no certificate
_TOGETHER = 16  # folds of one lockstep: more would make a large set of columns, and as many Gram matrices of it


def lockstep_points(
    frame: Frame, folds: Sequence[Fold], penalty: Penalty, grid: list[float]
) -> Iterator[list[PathPoint] | None]:
    """For each fold the solutions at the strengths of the grid in the coordinates of X; None for a fold that was lost.

    Args:
        frame: least squares of one target.
        folds: row numbers on any device.
        penalty: of type L1, with a kink.
        grid: descending.
    """
    device = frame.raw.device
    for start in range(0, len(folds), _TOGETHER):
        group = tuple((train.to(device), test.to(device)) for train, test in folds[start : start + _TOGETHER])
        yield from _together(frame, group, penalty, grid)


def _together(
    frame: Frame, folds: tuple[Fold, ...], penalty: Penalty, grid: list[float]
) -> Iterator[list[PathPoint] | None]:
    oracle = fold_oracle(frame, folds)
    alphas, _ = stations(list(dict.fromkeys(grid)), grid[0])
    forms = [cast(L1Form, penalty.with_alpha(alpha).form(frame.problem.no_coef())) for alpha in alphas]
    path = LockstepPath(oracle, ridged=any(isinstance(form.l2, Tensor) or form.l2 != 0.0 for form in forms))
    found = dict(zip(alphas, path.points(alphas, forms), strict=False))  # shorter where all folds are lost
    for k, lost in enumerate(path.lost):
        mean, scale = (None if part is None else part[k] for part in (oracle.mean, oracle.scale))
        back = frame.coordinates.nested(Coordinates(mean, scale, oracle.shift[k]))
        yield None if lost else [back.outward(found[alpha][k]) for alpha in grid]


class LockstepPath:
    """Follows the paths of K folds, from the strongest penalty to the weakest.

    Args:
        oracle: the data.
        ridged: whether the penalty has a ridge.
    """

    def __init__(self, oracle: FoldOracle, *, ridged: bool) -> None:
        self._oracle, self._ridged = oracle, ridged
        cross = oracle.cross
        self._pivots = BatchedPivots(oracle.ranks, cross.shape[1], ridged, cross.device)
        self._chosen = torch.zeros_like(cross[0], dtype=torch.bool)
        self._slack = self._before = cross
        self._at = self._at_before = math.inf

    @property
    def lost(self) -> list[bool]:
        """For each fold whether it was given up; its points mean nothing then."""
        return self._pivots.lost

    def points(self, alphas: Sequence[float], forms: Sequence[L1Form]) -> Iterator[list[PathPoint]]:
        """The solutions of all folds, one list for each form; ends early where all folds are lost.

        Args:
            alphas: strengths, descending; only their ratios matter.
            forms: the penalty at each of them, each of type L1.
        """
        cross = self._oracle.cross
        free = columns(forms[0].l1, cross[0]) == 0.0
        self._add(free.expand(cross.shape[1]).nonzero().flatten())
        most = max(1, min(_BLOCK, _ROOM // max(1, cross.numel())))
        done, size = 0, 1
        while done < len(forms) and not all(self.lost):
            block = slice(done, min(done + size, len(forms)))
            accepted = self._block(alphas[block], forms[block])
            yield from accepted
            size = most if accepted else size
            done += len(accepted)

    def _add(self, new: Tensor) -> None:
        if len(new):
            self._pivots.append(self._oracle.append(new))
            self._chosen[new] = True

    def _block(self, alphas: Sequence[float], forms: Sequence[L1Form]) -> list[list[PathPoint]]:
        """Solve a block; the points before the first that is not optimal for some fold."""
        self._screen(alphas, forms)
        w, sides, rounds = self._solve(forms)
        g, squares = self._oracle.correlations(w)
        full = torch.zeros_like(g).index_copy_(2, self._oracle.chosen, w)
        slack = g - _table([form.l2 for form in forms], g) * full if self._ridged else g
        reach = slack if forms[0].lower == 0.0 else slack.abs()
        over = (reach > (1.0 + _SLACK) * _table([form.l1 for form in forms], g)) & ~self._chosen & self._pivots.alive
        gaps, violations = _certificates(forms, full, g, squares)
        good = self._judged(over.any(2).any(1), gaps)
        points = _points(self._oracle.chosen, w[:good], gaps, violations, 0.5 * squares, rounds)
        self._remember(slack[:good], alphas[:good])
        if good < len(forms):
            self._pivots.return_to(sides[good])
            self._add(over.any(1).any(0).nonzero().flatten())
        return points

    def _judged(self, spoilt: Tensor, gaps: Tensor) -> int:
        """How many points come before the first spoilt one; folds without a certificate for one of these are lost."""
        poor = ~(gaps <= _POOR * self._oracle.energy)
        verdicts = torch.cat([spoilt[:, None], poor], 1).tolist()
        for good, (over, *bad) in enumerate(verdicts):
            if over:
                return good
            for k, failed in enumerate(bad):
                if failed and not self.lost[k]:
                    self._pivots.drop(k)
        return len(verdicts)

    def _screen(self, alphas: Sequence[float], forms: Sequence[L1Form]) -> None:
        """Add the columns that some fold will need in the block, as far as one can tell."""
        span, last = self._at - self._at_before, self._slack
        if math.isfinite(span) and span != 0.0:
            last = last + (alphas[-1] - self._at) / span * (self._slack - self._before)
        needed = torch.zeros_like(self._chosen)
        for g, form in ((self._slack, forms[0]), (last, forms[-1])):
            size = g if form.lower == 0.0 else g.abs()
            needed |= ((size >= _KEEP * columns(form.l1, g[0])) & self._pivots.alive).any(0)
        self._add((needed & ~self._chosen).nonzero().flatten())

    def _solve(self, forms: Sequence[L1Form]) -> tuple[Tensor, list[Sides], list[int]]:
        """Coefficients over the set (batch, K, m); for each form the sides that the solver came to, and its rounds."""
        chosen = self._oracle.chosen
        c = self._oracle.cross[:, chosen]
        solutions, sides, rounds = [], [], []
        for form in forms:
            before = self._pivots.rounds
            l1, l2 = (columns(part, c[0]).expand(len(self._chosen))[chosen] for part in (form.l1, form.l2))
            solutions.append(self._pivots.solve(Subproblem(c, l1, l2, form.lower)))
            sides.append(self._pivots.sides)
            rounds.append(self._pivots.rounds - before)
        return torch.stack(solutions), sides, rounds

    def _remember(self, slack: Tensor, alphas: Sequence[float]) -> None:
        if len(alphas) > 1:
            self._before, self._at_before = slack[-2].clone(), alphas[-2]
        elif alphas:
            self._before, self._at_before = self._slack, self._at
        if alphas:
            self._slack, self._at = slack[-1].clone(), alphas[-1]


def _table(strengths: Sequence[float | Tensor], like: Tensor) -> Tensor:
    """One row a form, to broadcast with (batch, K, p)."""
    parts = [columns(strength, like[0, 0]).reshape(-1) for strength in strengths]
    return torch.stack(torch.broadcast_tensors(*parts))[:, None]


def _certificates(forms: Sequence[L1Form], w: Tensor, g: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Duality gaps and violations, (batch, K) each, of coefficients and correlations (batch, K, p)."""
    gaps, violations = [], []
    for form, coef, slope, square in zip(forms, w.mT, g.mT, squares, strict=True):
        scale = dual_scale(form, slope)
        gaps.append(0.5 * (1.0 - scale).square() * square + penalty_gap(form, coef, scale * slope))
        violations.append(violation(form, coef, slope))
    return torch.stack(gaps), torch.stack(violations)


def _points(
    chosen: Tensor, w: Tensor, gaps: Tensor, violations: Tensor, losses: Tensor, rounds: list[int]
) -> list[list[PathPoint]]:
    """Points of coefficients over the set, (batch, K, m): one list for each strength, one point for each fold."""
    alive = w != 0.0
    counts = alive.sum(2).flatten().tolist()
    indices = chosen[alive.nonzero()[:, 2]].split(counts)
    values, none = w[alive].split(counts), zero_intercept(w, None)
    return [
        [
            PathPoint(
                indices[b * w.shape[1] + k], values[b * w.shape[1] + k], none, gaps[b, k], violations[b, k],
                losses[b, k], rounds[b],
            )
            for k in range(w.shape[1])
        ]
        for b in range(len(w))
    ]  # fmt: skip
