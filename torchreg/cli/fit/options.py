"""What ``torchreg fit`` can be asked for, and its defaults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from torchreg.functional.groups import labels
from torchreg.penalties import L1, L1L2, L2, MCP, SCAD, Group, Penalty

TASKS = ("regression", "classification", "count")
RULES = ("min", "1se")
FOLDS = 5
_L1_RATIO = 0.5


@dataclass(frozen=True)
class PenaltyChoice:
    """A penalty to choose: its formula, and how to make it from the L1 share and each feature's group."""

    formula: str
    make: Callable[[float, Tensor], Penalty]


PENALTIES = {
    "lasso": PenaltyChoice("alpha sum |w|", lambda share, groups: L1(1.0)),
    "ridge": PenaltyChoice("alpha sum w^2", lambda share, groups: L2(1.0)),
    "enet": PenaltyChoice(
        "alpha sum (r |w| + (1 - r)/2 w^2), r = --l1-ratio", lambda share, groups: L1L2(1.0, l1_ratio=share)
    ),
    "mcp": PenaltyChoice(
        "minimax concave, gamma 3: large coefficients keep their size", lambda share, groups: MCP(1.0)
    ),
    "scad": PenaltyChoice("smoothly clipped, gamma 3.7: likewise", lambda share, groups: SCAD(1.0)),
    "group": PenaltyChoice(
        "alpha sum sqrt(size) ||w_g||, a group being what one column of the file became",
        lambda share, groups: Group(L1(1.0), by=labels(groups)),
    ),
}


@dataclass(frozen=True)
class FitOptions:
    """What the command line sets.

    Args:
        data: the CSV file.
        target: its column to explain.
        task: one of `TASKS`; None tells it from the target.
        penalty: one of `PENALTIES`.
        alpha: the penalty's strength; None chooses it by cross-validation.
        cv: folds; None for 5, where alpha is None.
        alphas: on the path.
        rule: which alpha cross-validation chooses, one of `RULES`.
        l1_ratio: share of L1 in enet; None for 0.5.
        features: columns to use; None for all others.
        drop: columns not to use.
        one_hot: whether text columns become columns of 0 and 1.
        standardize: whether the penalty sees features of variance 1.
        device: where to compute.
        out: folder for the results.
        sep: between the file's columns.
        weights: a column of row weights.
        seed: of the folds.

    Raises:
        ValueError: if options contradict each other.
    """

    data: Path
    target: str
    task: str | None = None
    penalty: str = "lasso"
    alpha: float | None = None
    cv: int | None = None
    alphas: int = 100
    rule: Literal["min", "1se"] | None = None
    l1_ratio: float | None = None
    features: tuple[str, ...] | None = None
    drop: tuple[str, ...] = ()
    one_hot: bool = False
    standardize: bool = False
    device: str = "cpu"
    out: Path = Path("torchreg-fit")
    sep: str = ","
    weights: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.l1_ratio is not None and self.penalty != "enet":
            raise ValueError(f"--l1-ratio is for --penalty enet, but the penalty is {self.penalty}.")
        if self.rule is not None and self.alpha is not None:
            raise ValueError("--rule chooses among cross-validated alphas; leave out --alpha or --rule.")
        if self.weights == self.target:
            raise ValueError(f"--weights and --target are the same column, {self.target!r}.")

    @property
    def folds(self) -> int | None:
        """Folds of the cross-validation, None where alpha is given."""
        return None if self.alpha is not None else self.cv or FOLDS

    @property
    def share(self) -> float:
        """The share of L1."""
        return _L1_RATIO if self.l1_ratio is None else self.l1_ratio

    @property
    def sparse(self) -> bool:
        """Whether the penalty sets coefficients to zero."""
        return self.penalty != "ridge" and (self.penalty != "enet" or self.share > 0)

    def penalty_for(self, groups: Tensor) -> Penalty:
        """The penalty, of alpha 1, for features of these groups, shape (p,)."""
        return PENALTIES[self.penalty].make(self.share, groups)
