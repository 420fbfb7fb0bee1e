"""What ``torchreg fit`` can be asked for, and its defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from torchreg.functional.groups import labels
from torchreg.penalties import Penalty, by_name

TASKS = ("regression", "classification", "count")
RULES = ("min", "1se")
FOLDS = 5
_L1_RATIO = 0.5


FORMULAS = {
    "l1": "alpha sum |w| (lasso)",
    "l2": "alpha sum w^2 (ridge)",
    "l1l2": "alpha sum (r |w| + (1 - r)/2 w^2), r = --l1-ratio (elastic net)",
    "mcp": "minimax concave, gamma 3: large coefficients keep their size",
    "scad": "smoothly clipped, gamma 3.7: likewise",
    "group": "alpha sum sqrt(size) ||w_g||, a group being what one column of the file became",
}


@dataclass(frozen=True)
class FitOptions:
    """What the command line sets.

    Args:
        data: the CSV file.
        target: its column to explain.
        task: one of `TASKS`; None tells it from the target.
        penalty: one of `FORMULAS`.
        alpha: the penalty's strength; None chooses it by cross-validation.
        cv: folds; None for 5, where alpha is None.
        alphas: on the path.
        rule: which alpha cross-validation chooses, one of `RULES`.
        l1_ratio: share of L1 in l1l2; None for 0.5.
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
    penalty: str = "l1"
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
        if self.l1_ratio is not None and self.penalty != "l1l2":
            raise ValueError(f"--l1-ratio is for --penalty l1l2, but the penalty is {self.penalty}.")
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
        return self.penalty != "l2" and (self.penalty != "l1l2" or self.share > 0)

    def penalty_for(self, groups: Tensor) -> Penalty:
        """The penalty, of alpha 1, for features of these groups, shape (p,)."""
        options: dict[str, dict[str, Any]] = {"l1l2": {"l1_ratio": self.share}, "group": {"by": labels(groups)}}
        return by_name(self.penalty, **options.get(self.penalty, {}))
