"""A separable penalty with a strength of its own for every entry."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from numbers import Real

import torch
from torch import Tensor

from torchreg.functional.dtensor import Cut
from torchreg.functional.reductions import narrowed, widened
from torchreg.functional.shrinkage import Scalar, moves
from torchreg.penalties.base import Form, Penalty, ProxForm
from torchreg.penalties.separable import Separable
from torchreg.penalties.structure import L1Form
from torchreg.penalties.wrapped import Wrapped


class Weighing:
    """A separable penalty with one factor on its alpha per entry: finite, 0 or infinite.

    An infinite factor forces its entry to zero; it is kept apart, so that no penalty meets it.
    """

    def __init__(self, penalty: Separable, factors: Scalar) -> None:
        self.forced = factors == math.inf if isinstance(factors, Tensor) else math.isinf(factors)
        if isinstance(self.forced, Tensor) and isinstance(factors, Tensor):
            factors = torch.where(self.forced, torch.ones_like(factors), factors)
        self.penalty = penalty.replaced(alpha=penalty.alpha * (1.0 if self.forced is True else factors))

    def value(self, x: Tensor) -> Tensor:
        """The sum over the entries of ``x``; inf where a forced entry is not zero."""
        if self.forced is False:
            return self.penalty.phi(x).sum()
        broken, nothing = self.forced & (x != 0), torch.zeros_like(x)
        free = torch.where(self.forced, nothing, x) if isinstance(self.forced, Tensor) else nothing
        return self.penalty.phi(free).sum() + torch.where(broken.any(), math.inf, 0.0)

    def levels(self, l1: Scalar) -> Scalar:
        """``l1`` per entry, infinite where an entry is forced to zero."""
        if isinstance(self.forced, Tensor):
            return torch.where(self.forced, math.inf, l1)
        return math.inf if self.forced else l1

    def shrink(self, x: Tensor, step: Scalar) -> Tensor:
        """The proximal map of each entry."""
        shrunk = self.penalty.shrink(x, step)
        if self.forced is False:
            return shrunk
        pinned = (x == x) & self.forced & moves(step)  # a NaN stays
        return torch.where(pinned, torch.zeros_like(x), shrunk)


def factors_for(owner: str, weights: Tensor | float) -> Tensor | float:
    """``weights`` after checking that they are numbers >= 0, infinity included."""
    if isinstance(weights, Tensor):
        if not weights.is_floating_point():
            raise TypeError(f"{owner} needs floating-point weights, got {weights.dtype}; use weights.float().")
        bad = weights.isnan() | (weights < 0)
        if bool(bad.any()):
            raise ValueError(
                f"{owner} needs weights >= 0 (0 = unpenalised, inf = forced to zero), got {weights[bad][0].item()} "
                f"among {weights.numel()} weights."
            )
        return weights.detach().clone() if not weights.requires_grad else weights
    if isinstance(weights, bool) or not isinstance(weights, Real):
        given = type(weights).__name__
        raise TypeError(f"{owner} needs weights as a floating tensor or a number, got {given}; use torch.tensor(...).")
    if math.isnan(weights) or weights < 0:
        raise ValueError(f"{owner} needs weights >= 0 (0 = unpenalised, inf = forced to zero), got {weights}.")
    return float(weights)


@dataclass(frozen=True, eq=False, repr=False)
class Weighted(Wrapped):
    """A separable penalty with its own strength for every entry: the adaptive lasso, masks.

    ``R(w) = sum_i phi(w_i; weights_i * alpha)``: weights multiply alpha, not the value.

    Args:
        penalty: a separable penalty (L1, L2, L1L2, L0, MCP, SCAD or your own).
        weights: >= 0, a tensor that broadcasts with w or a number; 0 leaves an entry
            unpenalised, inf forces it to zero.

    Raises:
        TypeError: if ``penalty`` is not separable.
        ValueError: if a weight is negative or NaN.

    Source:
        Zou, JASA 101, 2006 (adaptive lasso).

    Example:
        >>> import torch
        >>> from torchreg import L1, Weighted
        >>> penalty = Weighted(L1(1.0), torch.tensor([0.0, 1.0, float("inf")]))
        >>> penalty.prox(torch.tensor([3.0, 3.0, 3.0]), 1.0)
        tensor([3., 2., 0.])
    """

    penalty: Separable
    weights: Tensor | float
    _finite: bool = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.penalty, Separable):
            raise TypeError(
                f"Weighted takes a separable penalty such as L1, got {self.penalty!r}; for groups use "
                "Group(..., weights=...), for a sum weight each term, and put NonNegative and Towards outside."
            )
        object.__setattr__(self, "weights", factors_for("Weighted", self.weights))
        object.__setattr__(self, "_finite", _is_finite(self.weights))

    @property
    def _weighing(self) -> Weighing:
        return Weighing(self.penalty, self.weights)

    @property
    def even(self) -> bool:
        return True

    @property
    def sublinear(self) -> bool:
        return self.penalty.sublinear

    @property
    def ridge(self) -> Scalar | None:
        inner = self.penalty.ridge
        return inner * self.weights if inner is not None and self._finite else None

    def part(self, cut: Cut) -> Penalty | None:
        weights = self.weights
        return self.replaced(weights=cut.part(weights)) if isinstance(weights, Tensor) and weights.dim() else self

    def value(self, w: Tensor) -> Tensor:
        return self._weighing.value(widened(w))

    def prox(self, w: Tensor, step: Scalar) -> Tensor:
        return narrowed(self._weighing.shrink(widened(w), step), w)

    def alpha_max(self, grad: Tensor, step: Scalar | None = None) -> Tensor:
        if step is None:
            self.penalty.alpha_max(grad)  # raises where it needs a step
        penalised = torch.as_tensor((self.weights > 0) & (self.weights < math.inf), device=grad.device)
        return Penalty.alpha_max(self, torch.where(penalised, grad, torch.zeros_like(grad)), step)

    def form(self, w: Tensor) -> Form:
        weighing = self._weighing
        form = weighing.penalty.form(w)
        return ProxForm(self) if not isinstance(form, L1Form) else replace(form, l1=weighing.levels(form.l1))

    def check(self, w: Tensor) -> None:
        self.penalty.check(w)
        check_fit("Weighted's weights", self.weights, w)


def check_fit(what: str, given: Tensor | float, w: Tensor) -> None:
    """Raise ValueError where a tensor does not broadcast to ``w`` or lies on another device."""
    if not isinstance(given, Tensor):
        return
    if not _broadcasts(given.shape, w.shape):
        raise ValueError(
            f"{what} of shape {tuple(given.shape)} do not fit a tensor of shape {tuple(w.shape)}; "
            "give one entry per weight, or a shape that broadcasts to it."
        )
    check_device(what, given, w)


def check_device(what: str, given: Tensor, w: Tensor) -> None:
    """Raise ValueError where a tensor lies on another device than ``w``."""
    if given.device != w.device:
        raise ValueError(
            f"{what} lie on {given.device}, the tensor on {w.device}; move them with .to({str(w.device)!r})."
        )


def _is_finite(weights: Tensor | float) -> bool:
    return bool(weights.isfinite().all()) if isinstance(weights, Tensor) else math.isfinite(weights)


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    """Whether a tensor of ``shape`` broadcasts to ``to``; torch.broadcast_shapes would import sympy."""
    matches = all(size in (1, wanted) for size, wanted in zip(reversed(shape), reversed(to), strict=False))
    return len(shape) <= len(to) and matches
