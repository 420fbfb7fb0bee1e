"""What the target is: a number, a class or a count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchreg.linear.datafits import Datafit, Logistic, Multinomial, Poisson, Quadratic

Array = NDArray[Any]
Metric = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class FitTask:
    """A target that can be fitted.

    Args:
        name: regression, classification or count.
        y: float64 numbers, or class numbers from 0, (n,).
        datafit: the loss of each row.
        loss: what pictures call the held-out loss.
        classes: labels in the order of their numbers; empty if there are none.
        metric: the held-out loss, as `fit_cv` takes it.
    """

    name: str
    y: Array
    datafit: Datafit
    loss: str
    classes: tuple[str, ...] = ()
    metric: Metric | None = None

    @property
    def described(self) -> str:
        """The task in words."""
        if len(self.classes) == 2:
            return f"classification, log odds of {self.classes[1]} against {self.classes[0]}"
        return f"{self.name}, classes {', '.join(self.classes)}" if self.classes else self.name


def task_of(name: str | None, y: Array, target: str) -> FitTask:
    """The task by its name, or by its target: text, booleans and two distinct values are classes.

    Args:
        name: regression, classification or count; None tells it from the target.
        y: numbers, booleans or text, (n,).
        target: what errors call it.

    Raises:
        ValueError: if the target does not fit the task, or is constant.
    """
    levels = np.unique(y)
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        raise ValueError(f"Infinite values in {target}; correct them.")
    if len(levels) == 1:
        kind = "has one class" if name == "classification" or not _numeric(y) else "is constant"
        raise ValueError(f"The target {target!r} {kind}, {levels[0]}: there is nothing to explain.")
    if name is None:
        name = "classification" if not _numeric(y) or len(levels) == 2 else "regression"
    return _MAKERS[name](y, target)


def _regression(y: Array, target: str) -> FitTask:
    return FitTask("regression", _numbers(y, target, "regression"), Quadratic(), "mean squared error")


def _count(y: Array, target: str) -> FitTask:
    counts = _numbers(y, target, "count")
    if counts.min() < 0:
        raise ValueError(f"Counts are >= 0, but {target!r} has {counts.min():g}; use --task regression.")
    return FitTask("count", counts, Poisson(), "mean Poisson deviance", metric=poisson_deviance)


def _classification(y: Array, target: str) -> FitTask:
    levels, numbers = np.unique(y, return_inverse=True)
    if len(levels) > max(2, len(y) // 2):
        raise ValueError(
            f"{target!r} has {len(levels)} distinct values in {len(y)} rows, too many for classes; use --task "
            "regression."
        )
    classes = tuple(str(level) for level in levels)
    datafit = Logistic() if len(levels) == 2 else Multinomial()
    return FitTask("classification", numbers.astype(np.int64), datafit, "mean log loss", classes)


_MAKERS = {"regression": _regression, "classification": _classification, "count": _count}


def poisson_deviance(y: Tensor, mean: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean of ``2 (y log(y / mean) - y + mean)``: the held-out loss of counts, 0 at best."""
    loss = 2.0 * (torch.xlogy(y, y) - torch.xlogy(y, mean) - y + mean)
    return (weights * loss).sum() / weights.sum()


def _numeric(y: Array) -> bool:
    return y.dtype.kind in "iuf"


def _numbers(y: Array, target: str, task: str) -> Array:
    if y.dtype.kind not in "iufb":
        odd = next(str(value) for value in y if not _is_number(str(value)))
        raise ValueError(
            f"--task {task} needs a numeric target, but {target!r} is text, such as {odd!r}; use --task classification."
        )
    return y.astype(np.float64)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
