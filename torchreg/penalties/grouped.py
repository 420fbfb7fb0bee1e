"""Group penalties: a penalty of the norm of each group, or a bound on their number, so that groups vanish whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from torchreg.functional.blocking import LONG, row_blocks
from torchreg.functional.dtensor import Cut
from torchreg.functional.groups import Groups
from torchreg.functional.reductions import narrowed, refuse_unreal, wide_dtype, widened
from torchreg.functional.shrinkage import Scalar, filled, moves, ridge_step
from torchreg.functional.torch_private import is_mapped
from torchreg.penalties.base import Form, Grain, Penalty, ProxForm
from torchreg.penalties.cardinality import Cardinality, projected, value_of_groups
from torchreg.penalties.diagonal_metric import norm_prox, radial_prox
from torchreg.penalties.separable import Separable
from torchreg.penalties.spec import short
from torchreg.penalties.structure import GroupForm, L1Form
from torchreg.penalties.weighted import Weighing, check_device, factors_for


@dataclass(frozen=True, eq=False, repr=False)
class Group(Penalty):
    """A penalty on the Euclidean norm of each group: rows, columns, filters or labels vanish whole.

    ``R(w) = sum_g phi(||w_g||; weights_g * alpha)``; with ``L1`` the group lasso. With one step
    for a group, ``prox`` scales it: ``w_g * shrink(||w_g||) / ||w_g||``. With a step per entry
    (an adaptive optimizer's) it solves the exact problem in that metric.

    With `TopK` or `NM` it keeps so many groups: in a proximal step those with the largest ``sum w_i^2 / step_i``.

    By default a group's strength is ``alpha * sqrt(group size)``, the usual choice; celer and
    skglm use weights=1.0.

    Args:
        penalty: a separable penalty of the norm, such as ``L1(alpha)`` or ``MCP(alpha)``, or ``TopK`` or ``NM``.
        by: ``rows``, ``columns``, ``filters``, ``heads(n)``, ``blocks(k)``, ``whole`` or ``labels(index)``.
        weights: factors on alpha, >= 0: None for sqrt(group size), a number, or one per group;
            0 leaves a group unpenalised, inf forces it to zero. TopK and NM take none.

    Raises:
        TypeError: if ``penalty`` is not separable, TopK or NM, or ``by`` is no grouper.
        ValueError: if a weight is negative or NaN, or given to TopK or NM; at attach, if the groups do not fit.

    Source:
        Yuan and Lin, JRSS B 68, 2006; in a diagonal metric: Deleu and Bengio, arXiv 2102.03869.

    Example:
        >>> import torch
        >>> from torchreg import L1, Group, rows
        >>> penalty = Group(L1(1.0), by=rows, weights=1.0)
        >>> penalty.prox(torch.tensor([[3.0, -4.0], [0.5, 0.5]]), 1.0)
        tensor([[ 2.4000, -3.2000],
                [ 0.0000,  0.0000]])
    """

    penalty: Separable | Cardinality
    by: Groups
    weights: Tensor | float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.penalty, (Separable, Cardinality)):
            raise TypeError(
                f"Group takes a separable penalty of the norm, such as L1 or MCP, or TopK or NM, got {self.penalty!r}; "
                "write NonNegative(Group(...)), Towards(Group(...), reference), Group(..., weights=...), or "
                "Group(L1(a), by) + L1(b) for the sparse group lasso."
            )
        if not isinstance(self.by, Groups):
            raise TypeError(
                f"Group needs by=rows, columns, filters, heads(n), blocks(k), whole or labels(index), got {self.by!r}."
            )
        if isinstance(self.penalty, Cardinality) and self.weights is not None:
            raise ValueError(
                f"Group({self.penalty!r}) compares what zeroing a group costs, which no weight changes, got weights="
                f"{short(self.weights)}; leave weights out."
            )
        if isinstance(self.weights, Tensor) and self.weights.dim() > 1:
            raise ValueError(f"Group needs one weight per group, shape (groups,), got {tuple(self.weights.shape)}.")
        if self.weights is not None:
            object.__setattr__(self, "weights", factors_for("Group", self.weights))

    @property
    def alpha(self) -> Scalar:  # type: ignore[override]
        return self.penalty.alpha

    def with_alpha(self, alpha: Scalar) -> Group:
        return self.replaced(penalty=self.penalty.with_alpha(alpha))

    @property
    def convex(self) -> bool:
        return self.penalty.convex

    @property
    def even(self) -> bool:
        return True

    @property
    def radial(self) -> bool:
        return True

    @property
    def several(self) -> tuple[Penalty, ...]:
        return self.penalty.several

    @property
    def groups(self) -> Groups | None:
        return self.by

    @property
    def grain(self) -> Grain:
        alone = self.penalty.grain == "entry" and not isinstance(self.weights, Tensor)
        return "row" if self.by.by_row and alone else "tensor"

    def part(self, cut: Cut) -> Penalty | None:
        if not isinstance(self.penalty, Cardinality) or not (self.by.by_row and cut.keeps_rows):
            return super().part(cut)
        inner = self.penalty.among(cut, self.by.count(cut.like))
        return None if inner is None else self.replaced(penalty=inner)

    def _factors(self, w: Tensor) -> Scalar:
        return self.by.sizes(w) ** 0.5 if self.weights is None else self.weights

    def _weighing(self, factors: Scalar) -> Weighing:
        return Weighing(cast(Separable, self.penalty), factors)

    def value(self, w: Tensor) -> Tensor:
        if isinstance(self.penalty, Cardinality):
            return value_of_groups(w, self.penalty, self.by)
        weighing = self._weighing(self._factors(w))
        return weighing.value(self.by.norms(w)).to(wide_dtype(w))

    def prox(self, w: Tensor, step: Scalar) -> Tensor:
        if isinstance(self.penalty, Cardinality):
            return projected(w, step, self.penalty, self.by)
        x = widened(w)
        if not w.numel():
            return w.clone()
        if isinstance(step, Tensor) and step.numel() > 1:
            still = is_mapped(w) and w.device.type == "cpu" and not torch.compiler.is_compiling()
            return narrowed(self._metric_prox(x, step.broadcast_to(x.shape), until_still=still), w)
        if isinstance(step, Tensor):
            step = step.reshape(())
        scale = self._scale(self.by.norms(w), self._factors(w), step)
        return narrowed(x * self.by.expand(scale.to(x.dtype), x), w)

    def _scale(self, norms: Tensor, factors: Scalar, step: Scalar) -> Tensor:
        """What each group is multiplied by; a group whose norm is NaN stays as it is."""
        shrunk = self._weighing(factors).shrink(norms, step)
        known, one = (norms > 0) & norms.isfinite(), torch.ones_like(norms)
        unknown = torch.where(moves(step) & (norms == 0), torch.zeros_like(norms), one)
        return torch.where(known, shrunk / torch.where(known, norms, one), unknown)

    def _metric_prox(self, x: Tensor, step: Tensor, *, until_still: bool = False) -> Tensor:
        per_group = x.new_zeros(self.by.count(x))
        weighing = self._weighing(self._factors(x))
        form = weighing.penalty.form(per_group)
        if isinstance(form, L1Form):
            rest: Scalar = step
            if isinstance(form.l2, Tensor) or form.l2:
                factor, rest = ridge_step(step, self.by.expand(per_group + form.l2 / 2.0, x))
                x = x * factor
            result = norm_prox(x, filled(rest, x), per_group + form.l1, self.by, until_still=until_still)
        else:
            result = radial_prox(x, step, weighing.penalty, self.by)
        if weighing.forced is False:
            return result
        forced = weighing.forced.to(x.dtype) if isinstance(weighing.forced, Tensor) else 1.0
        pinned = (self.by.expand(per_group + forced, x) > 0) & moves(step) & ~x.isnan()
        return torch.where(pinned, torch.zeros_like(x), result)

    def prox_(self, tensors: Sequence[Tensor], steps: Sequence[Scalar]) -> None:
        if isinstance(self.penalty, Cardinality):
            super().prox_(tensors, steps)
            return
        with torch.no_grad():
            for w, step in zip(tensors, steps, strict=True):
                if not w.numel():
                    continue
                if isinstance(step, Tensor) and step.numel() > 1:
                    still = w.device.type == "cpu" and not torch.compiler.is_compiling()
                    x = widened(w)
                    w.copy_(narrowed(self._metric_prox(x, step.broadcast_to(x.shape), until_still=still), w))
                elif self.grain == "row":
                    for block in row_blocks(w, LONG):
                        self._scale_(block, step)
                else:
                    self._scale_(w, step)

    def _scale_(self, w: Tensor, step: Scalar) -> None:
        scale = self.by.expand(self._scale(self.by.quick_norms(w), self._factors(w), step).to(wide_dtype(w)), w)
        for block in row_blocks(w) if scale.shape[:1] == (1,) else (w,):
            block.mul_(scale).add_(0.0)

    def alpha_max(self, grad: Tensor, step: Scalar | None = None) -> Tensor:
        norms = self.by.norms(grad).to(wide_dtype(grad))
        factors = torch.as_tensor(self._factors(grad), dtype=norms.dtype, device=norms.device).broadcast_to(norms.shape)
        free = (factors > 0) & factors.isfinite()
        if step is None:
            self.penalty.alpha_max(norms)  # raises where it needs a step
        if step is None and self.penalty.sublinear:
            ratio = torch.where(free, norms / torch.where(free, factors, torch.ones_like(factors)), 0.0)
            return ratio.max() if ratio.numel() else ratio.sum()
        penalised = torch.where(self.by.expand(free.to(grad.dtype), grad) > 0, grad, torch.zeros_like(grad))
        return Penalty.alpha_max(self, penalised, step)

    def form(self, w: Tensor) -> Form:
        if isinstance(self.penalty, Cardinality):
            return ProxForm(self)
        norms = torch.zeros(self.by.count(w), dtype=wide_dtype(w), device=w.device)
        weighing = self._weighing(self._factors(w))
        form = weighing.penalty.form(norms)
        if not isinstance(form, L1Form):
            return ProxForm(self)
        l2 = self.by.expand(norms + form.l2, w) if isinstance(form.l2, Tensor) else form.l2
        return GroupForm(self.by, norms + weighing.levels(form.l1), l2)

    def check(self, w: Tensor) -> None:
        self.by.check(w)
        count = self.by.count(w)
        if isinstance(self.penalty, Cardinality):
            refuse_unreal(w)
            self.penalty.check_count((count,), "groups")
            return
        self.penalty.check(w)
        if not isinstance(self.weights, Tensor):
            return
        if self.weights.numel() not in (1, count):
            raise ValueError(
                f"Group's weights of shape {tuple(self.weights.shape)} do not fit the {count} groups by {self.by!r} of "
                f"a tensor of shape {tuple(w.shape)}; give one weight per group."
            )
        check_device("Group's weights", self.weights, w)
