"""The central abstraction: a penalty is a frozen function of one tensor with one knob, alpha."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self, cast

import torch
from torch import Tensor

from torchreg.functional.dtensor import Cut
from torchreg.functional.groups import Groups
from torchreg.functional.output_channels import by_output_channel
from torchreg.functional.reductions import narrowed, refuse_unreal, widened
from torchreg.functional.shrinkage import Scalar, ridge_step, scaled
from torchreg.penalties.alpha import NoConjugate, check_values, least_alpha, strength, zeros_decide
from torchreg.penalties.composition import form_of_sum, joint_step, ordered
from torchreg.penalties.normalised import is_normalised, refuse_several
from torchreg.penalties.sharded_value import whole_value
from torchreg.penalties.spec import canonical, describe, short
from torchreg.penalties.structure import Form, ProxForm
from torchreg.selection.selectors import Target, by_name

Grain = Literal["entry", "row", "tensor"]


class Penalty(ABC):
    """A penalty ``R(w)`` with strength ``alpha``: its value, its proximal map and what follows.

    A subclass of your own writes two methods, ``value`` and ``prox``; if it acts on each entry alone, derive from
    `Separable` and write ``phi`` and ``shrink``. The other methods have defaults that follow from these two; the
    built-in penalties replace a default only by a closed form that the tests prove equal to it.

    A penalty is never scaled by the number of samples or by the learning rate: losses are means.
    """

    alpha: Scalar
    prox_steps: ClassVar[Literal["entry", "tensor", "none"]] = "entry"  # what prox takes; "none": there is no prox
    fuses: ClassVar[bool] = False  # whether it depends on differences alone and falls as entries become equal

    @property
    def convex(self) -> bool:
        """Whether the penalty is known to be convex."""
        return False

    @property
    def ridge(self) -> Scalar | None:
        """``c`` if this is ``sum c w^2`` and nothing else, so that it folds into a sum."""
        return None

    @property
    def even(self) -> bool:
        """Whether it depends on ``|w|`` alone and does not fall with it."""
        return False

    @property
    def sublinear(self) -> bool:
        """Whether it is a weighted L1 norm, whose prox may come before that of a radial penalty."""
        return False

    @property
    def radial(self) -> bool:
        """Whether it depends on norms of groups alone."""
        return False

    @property
    def groups(self) -> Groups | None:
        """The groups that this penalty sets to zero together, None if it acts on entries."""
        return None

    @property
    def several(self) -> tuple[Penalty, ...]:
        """The terms of a sum that has no alpha of its own, since none of their strengths is 1; else empty."""
        return ()

    @property
    def grain(self) -> Grain:
        """On what its prox acts independently: each entry, each slice of dim 0, or the tensor."""
        return "tensor"

    def part(self, cut: Cut) -> Penalty | None:
        """This penalty of the part of a cut tensor that lies here, None where it needs the other parts too."""
        alone = self.grain == "entry" or (self.grain == "row" and cut.keeps_rows)
        return self if alone else None

    @abstractmethod
    def value(self, w: Tensor) -> Tensor:
        """``R(w)`` as a 0-d tensor of at least float32, differentiable, with gradient 0 at 0."""

    @abstractmethod
    def prox(self, w: Tensor, step: Scalar) -> Tensor:
        """``argmin_u R(u) + sum_i (u_i - w_i)^2 / (2 step_i)``, of w's shape and dtype.

        Args:
            w: any real floating tensor; half precision computes in float32.
            step: >= 0, a number or a tensor that broadcasts with ``w``; 0 changes nothing.
        """

    def prox_(self, tensors: Sequence[Tensor], steps: Sequence[Scalar]) -> None:
        """`prox` in place on each tensor, outside autograd."""
        with torch.no_grad():
            for w, step in zip(tensors, steps, strict=True):
                w.copy_(self.prox(w, step))

    def alpha_max(self, grad: Tensor, step: Scalar | None = None) -> Tensor:
        """The least alpha with ``prox(-step * grad, step) == 0``.

        Args:
            grad: gradient of the loss at ``w = 0``, of w's shape.
            step: needed only where the slope at 0 is infinite (L0).

        Returns:
            A 0-d tensor; inf where no alpha suffices (L2).
        """
        small = 2.0**-20 if step is None else step
        return least_alpha(lambda alpha: self.with_alpha(alpha).prox(-small * widened(grad), small), grad)

    def conjugate(self, z: Tensor) -> Tensor:
        """``R*(z) = sup_w <z, w> - R(w)``, a 0-d tensor, inf outside its domain.

        Raises:
            NoConjugate: where it is not known.
        """
        form = self.form(z)
        if isinstance(form, ProxForm):
            raise NoConjugate(f"{self} has no known convex conjugate; report the prox residual, not a duality gap.")
        return form.conjugate(widened(z))

    def form(self, w: Tensor) -> Form:
        """What a solver may know of this penalty on a tensor like ``w``."""
        return ProxForm(self)

    def check(self, w: Tensor) -> None:
        """Raise ValueError or TypeError if this penalty does not fit ``w``."""
        refuse_unreal(w)
        check_values(type(self).__name__, self.alpha)

    def with_alpha(self, alpha: Scalar) -> Self:
        """The same penalty with another strength: a new object, nothing is changed in place."""
        refuse_several(self)
        return self.replaced(alpha=strength(type(self).__name__, alpha))

    def replaced(self, **fields: Any) -> Self:
        """A copy with other fields, unchecked: for combinators, which check for themselves."""
        new = copy.copy(self)
        for name, value in fields.items():
            object.__setattr__(new, name, value)
        return new

    def spec(self) -> dict[str, Any]:
        """A canonical description in JSON types: floats as hex, tensors as shape, dtype, sha256."""
        return cast(dict[str, Any], describe(self))

    def __call__(self, target: Target) -> Tensor:
        """The penalty's value on a tensor, on the `weights` of modules, or on each of many tensors."""
        if isinstance(target, Tensor):
            return whole_value(self, target)
        named = by_name(target)
        if odd := [type(w).__name__ for w in named.values() if not isinstance(w, Tensor)]:
            raise TypeError(f"{self} acts on torch tensors, or on a module's, got {odd[0]}; use torch.as_tensor(w).")
        blocks = getattr(named, "transposed", {})
        values = [whole_value(by_output_channel(self, blocks.get(name)), w) for name, w in named.items()]
        if not values:
            raise ValueError(f"{self} was given no tensors; pass a model, a tensor or a non-empty collection.")
        return sum(values[1:], values[0])

    def __add__(self, other: Penalty) -> Sum:
        if not isinstance(other, Penalty):
            return NotImplemented
        return Sum((*_summands(self), *_summands(other)))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):  # scikit-learn's SelectFromModel asks a model's penalty so whether zeros decide
            return other == "l1" and zeros_decide(self)
        return isinstance(other, Penalty) and self.spec() == other.spec()

    def __hash__(self) -> int:
        return hash(canonical(self.spec()))

    def __repr__(self) -> str:
        fields = ", ".join(f"{k}={short(v)}" for k, v in vars(self).items() if k[:1] != "_" and v is not None)
        return f"{type(self).__name__}({fields})"


@dataclass(frozen=True, eq=False, repr=False)
class Sum(Penalty):
    """A sum of penalties whose prox is exact: ``alpha * (R_1(w) + R_2(w) + ...)``.

    Exact are any penalty + L2, and a group penalty + L1 (the sparse group lasso, Simon et al., JCGS 22,
    2013), with or without L2. At alpha = 0 it is no penalty, its constraints included.

    A sum has an alpha, to be set, scheduled or searched, where that is the strength of a term, which has strength 1
    (``L1(1.0) + L2(0.1)``), or of all together, as shares that add up to 1. ``L1(0.1) + L2(0.01)`` has several
    strengths and no alpha; ``Sum((L1(0.1) + L2(0.01),), alpha=2.0)`` multiplies it by a factor.

    Args:
        terms: the penalties, each with its own strength.
        alpha: multiplies the sum.

    Raises:
        NoExactProx: where the prox of the sum has no closed form.
        ValueError: for an alpha, here or in `with_alpha`, of a sum that has none.

    Example:
        >>> import torch
        >>> from torchreg import L1, Group, rows
        >>> penalty = Group(L1(1.0), by=rows, weights=1.0) + L1(0.5)
        >>> penalty.prox(torch.tensor([[3.5, -4.5], [0.9, 1.0]]), 1.0)
        tensor([[ 2.4000, -3.2000],
                [ 0.0000,  0.0000]])
    """

    terms: tuple[Penalty, ...]
    alpha: Scalar = 1.0
    _ordered: tuple[Penalty, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", tuple(self.terms))
        object.__setattr__(self, "alpha", strength("Sum", self.alpha))
        if not self.terms or not all(isinstance(t, Penalty) for t in self.terms):
            raise TypeError(f"Sum needs penalties, got {self.terms!r}; write L1(0.1) + L2(0.01).")
        object.__setattr__(self, "_ordered", ordered([t for t in self.terms if t.ridge is None]))
        if isinstance(self.alpha, Tensor) or self.alpha != 1.0:
            refuse_several(self)

    @property
    def several(self) -> tuple[Penalty, ...]:
        return () if is_normalised(self.terms) else self.terms

    @property
    def _ridges(self) -> list[Scalar]:
        return [t.ridge for t in self.terms if t.ridge is not None]

    @property
    def convex(self) -> bool:
        return all(t.convex for t in self.terms)

    @property
    def even(self) -> bool:
        return all(t.even for t in self.terms)

    @property
    def ridge(self) -> Scalar | None:
        return None if self._ordered else self.alpha * sum(self._ridges)

    @property
    def groups(self) -> Groups | None:
        return next((t.groups for t in self.terms if t.groups is not None), None)

    @property
    def grain(self) -> Grain:
        grains = {t.grain for t in self.terms}
        return "tensor" if "tensor" in grains else "row" if "row" in grains else "entry"

    def part(self, cut: Cut) -> Penalty | None:
        parts = [p for t in self.terms if (p := t.part(cut)) is not None]
        if len(parts) < len(self.terms):
            return None
        changed = any(p is not t for p, t in zip(parts, self.terms, strict=True))
        return Sum(tuple(parts), self.alpha) if changed else self

    def value(self, w: Tensor) -> Tensor:
        together = sum((t.value(w) for t in self.terms[1:]), self.terms[0].value(w))
        nothing = self.alpha == 0
        if isinstance(nothing, Tensor):
            return torch.where(nothing, torch.zeros_like(together), self.alpha * together)
        return torch.zeros_like(together) if nothing else self.alpha * together

    def prox(self, w: Tensor, step: Scalar) -> Tensor:
        x, rest = widened(w), scaled(self.alpha, joint_step(self, step))
        for ridge in self._ridges:
            factor, rest = ridge_step(rest, ridge)
            x = x * factor + 0.0
        for term in self._ordered:
            x = term.prox(x, rest)
        return narrowed(x, w)

    def form(self, w: Tensor) -> Form:
        return form_of_sum(self, [t.form(w) for t in self._ordered], self._ridges)

    def check(self, w: Tensor) -> None:
        check_values("Sum", self.alpha)
        for term in self.terms:
            term.check(w)

    def __repr__(self) -> str:
        parts, one = list(map(repr, self.terms)), isinstance(self.alpha, float) and self.alpha == 1.0
        if one and len(parts) > 1:
            return " + ".join(parts)
        return f"Sum(({', '.join(parts)}{',' * (len(parts) == 1)}), alpha={short(self.alpha)})"


def _summands(penalty: Penalty) -> tuple[Penalty, ...]:
    """The terms that ``+`` joins: a plain sum is taken apart, any other penalty is one term."""
    plain = isinstance(penalty, Sum) and isinstance(penalty.alpha, float) and penalty.alpha == 1.0
    return penalty.terms if plain else (penalty,)  # type: ignore[attr-defined]
