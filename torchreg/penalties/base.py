"""The central abstraction: a penalty is a frozen function of one tensor with one knob, alpha."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast

import torch
from torch import Tensor

from torchreg.functional.dtensor import Cut, here, is_cut, whole
from torchreg.functional.groups import Groups
from torchreg.functional.output_channels import by_output_channel
from torchreg.functional.reductions import refuse_unreal, widened
from torchreg.functional.shrinkage import Scalar
from torchreg.penalties.alpha import NoConjugate, check_values, least_alpha, strength, zeros_decide
from torchreg.penalties.spec import canonical, describe, short
from torchreg.penalties.structure import GroupForm, L1Form
from torchreg.selection.selectors import Target, by_name

if TYPE_CHECKING:
    from torchreg.penalties.sum import Sum

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
        """What its prox acts on independently: each entry, each slice of dim 0, or the tensor."""
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
        from torchreg.penalties.sum import added  # a child: the one import that points up

        return added(self, other) if isinstance(other, Penalty) else NotImplemented

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):  # scikit-learn's SelectFromModel asks a model's penalty so whether zeros decide
            return other == "l1" and zeros_decide(self)
        return isinstance(other, Penalty) and self.spec() == other.spec()

    def __hash__(self) -> int:
        return hash(canonical(self.spec()))

    def __repr__(self) -> str:
        fields = ", ".join(f"{k}={short(v)}" for k, v in vars(self).items() if k[:1] != "_" and v is not None)
        return f"{type(self).__name__}({fields})"


@dataclass(frozen=True)
class ProxForm:
    """Known by value and prox alone."""

    penalty: Penalty


Form = L1Form | GroupForm | ProxForm


def whole_value(penalty: Penalty, w: Tensor) -> Tensor:
    """The penalty's value of all of a tensor, the same plain 0-d tensor on each process that holds a part of it.

    Its gradient is that of the part that lies here, once: a mean over processes, as of the loss, leaves it as it is.
    """
    if not is_cut(w):
        return penalty.value(w)
    cut = Cut(w)
    part = penalty.part(cut)
    return penalty.value(whole(w)) if part is None else cut.sum(part.value(here(w)))


def refuse_several(penalty: Penalty) -> None:
    """Raise ValueError for a sum of several strengths, of which none is the sum's alpha, and for a constraint."""
    if len(penalty.several) == 1 and any(t is penalty.several[0] for t in penalty.several[0].several):
        raise ValueError(
            f"{penalty!r} is a constraint: it holds or not, and has no strength, alpha, to be set or searched. "
            "Another bound is another object; to compare bounds, make it in run(...) from an axis of ablate's grid."
        )
    if penalty.several:
        raise ValueError(
            f"{penalty!r} has several strengths and no alpha of its own: a number set for it would multiply them "
            f"all. {_advice(penalty.several)} A factor on the whole has to be named: Sum((penalty,), alpha=1.0)."
        )


def _advice(terms: Sequence[Penalty]) -> str:
    lead = next((t for t in terms if t.ridge is None), terms[0])
    strength = lead.alpha
    if lead.several or isinstance(strength, Tensor) or not strength:
        return "Give one of its terms strength 1, whose strength the sum's alpha then is."
    joined = " + ".join(repr(t if t.several else t.with_alpha(t.alpha / strength)) for t in terms)
    return f"Write ({joined}).with_alpha({strength:g}), whose alpha is the strength of {type(lead).__name__}."
