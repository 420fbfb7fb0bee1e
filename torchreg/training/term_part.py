"""The parameters of a term that share a penalty, and what their tensors are now."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

from torchreg.functional.shrinkage import Scalar
from torchreg.penalties import Penalty
from torchreg.training.placement import check_placement
from torchreg.training.validation import refuse_lazy


class Owner(Protocol):
    """An optimizer that steps terms, or what `attach_to` has put on one."""

    base: Optimizer
    metric: Any
    positions: Any  # a ParamPositions, which knows terms


class Part:
    """Parameters of a term that share one penalty.

    Attributes:
        penalty: the penalty.
        known: the parameters by name, as they were when last looked for.
        lazy: whether a proximal step takes only the rows whose gradient is not zero.
        together: the `JointGroups` of all of its term's parts, None where it has groups, or none, of its own.
    """

    lazy = False  # of parts that were pickled without it
    together: Any = None

    def __init__(self, penalty: Penalty, known: dict[str, Tensor], lazy: bool = False) -> None:
        self.penalty = penalty
        self.known = known
        self.lazy = lazy
        self._present: weakref.WeakMethod[Callable[[Part], dict[str, Tensor]]] | None = None

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The parameters by name, as they stand in the term's optimizer or model now."""
        present = None if self._present is None else self._present()
        return self.known if present is None else present(self)

    def follow(self, present: Callable[[Part], dict[str, Tensor]]) -> None:
        """Let a term's method say which tensors the parameters are, weakly; the first, not that of a shallow copy."""
        if self._present is None or self._present() is None:
            self._present = weakref.WeakMethod(present)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "known": self.parameters, "_present": None}

    def turn(self, alpha: float) -> None:
        """Set the strength; a tensor is filled in place, since whoever made or compiled it goes on turning it."""
        renewed = self.penalty.with_alpha(alpha)  # raises for a value out of range
        if isinstance(self.penalty.alpha, Tensor):
            self.penalty.alpha.detach().fill_(alpha)
        else:
            self.penalty = renewed


class AnyTerm(Protocol):
    """A `Term`, for what a term is made of and so cannot know its class."""

    parts: list[Part]
    scheduler: Any
    alpha: Scalar

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The penalised parameters by name."""

    @property
    def together(self) -> Any:
        """The `JointGroups` that go over all of its parameters, None where each has its own."""

    @property
    def target(self) -> Any:
        """The `TargetSparsity` that moves the term, or None."""

    @property
    def frozen(self) -> bool:
        """Whether its zeros are held."""

    def hold(self, frozen: bool) -> None:
        """Hold its zeros from the next step on, or no longer."""


def check_fit(penalty: Penalty, name: str, p: Tensor) -> None:
    """Raise, naming the parameter, unless a penalty fits it and lies where it lies."""
    refuse_lazy(name, p)
    try:
        penalty.check(p)
    except (TypeError, ValueError) as error:
        raise type(error)(f"Parameter {name!r} of shape {tuple(p.shape)}: {error}") from None
    check_placement(name, penalty, p)
