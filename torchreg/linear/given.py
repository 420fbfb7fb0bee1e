"""The caller's data, validated: as it was given, and without the rows that do not count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchreg.linear.chunks import are_chunks
from torchreg.linear.datafits import Datafit
from torchreg.linear.designs.base import Design
from torchreg.linear.designs.inputs import as_design
from torchreg.linear.designs.tables import column_names
from torchreg.linear.rows import as_offset, as_target, given_weights, normalised


@dataclass(frozen=True)
class Given:
    """The rows of a data set.

    Attributes:
        design: X. target: prepared by the datafit. lift: the offset, or None.
        scores: weights of the rows as they were given, not normalised, (n,).
        names: of the columns, where X is a data frame that has some.
    """

    design: Design
    target: Tensor
    scores: Tensor
    lift: Tensor | None
    names: tuple[str, ...] | None = None

    @property
    def weights(self) -> Tensor:
        """Those of the rows, of sum 1, (n,)."""
        return normalised(self.scores)

    @property
    def counting(self) -> Tensor | None:
        """Numbers of the rows whose weight is not zero; None where that is all of them."""
        positive = self.scores / self.scores.max() > 0  # a weight that vanishes beside the largest counts as 0
        return None if bool(positive.all()) else positive.nonzero().flatten()

    def taken(self, rows: Tensor) -> Given:
        """Some of the rows."""
        lift = None if self.lift is None else self.lift[rows]
        return Given(self.design.subset(rows), self.target[rows], self.scores[rows], lift, self.names)


def given(
    X: Any, y: Any, datafit: Datafit, sample_weight: Any, offset: Any,  # noqa: N803
    device: torch.device | str | None,
) -> Given:  # fmt: skip
    """Validate all rows, those of weight 0 too.

    Raises:
        ValueError: if X is chunks of rows, shapes do not fit, something is not finite or y not of the datafit's form.
        TypeError: if the datafit's methods do not give a number for each row.
    """
    if are_chunks(X, y):
        raise ValueError(
            f"X is {type(X).__name__} and y {type(y).__name__}, but this fit requires y to be passed, and X as one "
            "array that holds all rows; fit_path alone takes chunks of rows."
        )
    design = as_design(X, device)
    target = datafit.prepare(as_target(y, design))
    if not datafit.quadratic:
        _check_rows(datafit, target)
    scores = given_weights(sample_weight, design)
    if not bool(scores.any()):
        raise ValueError("Sample weights must contain at least one non-zero number.")
    return Given(design, target, scores, as_offset(offset, design, datafit.outputs(target)), column_names(X))


def _check_rows(datafit: Datafit, target: Tensor) -> None:
    """Look at what the methods of a datafit give, which may be the caller's own."""
    outputs = datafit.outputs(target)
    eta = target.new_zeros(len(target) if outputs is None else (len(target), outputs))
    for method, shape, words in (
        (datafit.value, eta.shape[:1], "the loss of each row, neither summed nor averaged"),
        (datafit.grad, eta.shape, "the derivative of each row's loss, of eta's shape"),
    ):
        found = method(eta, target)
        if not isinstance(found, Tensor) or found.shape != shape:
            got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise TypeError(
                f"{type(datafit).__name__}.{method.__name__}(eta, y) must return {words}: a tensor of shape "
                f"{tuple(shape)}, got {got}."
            )
