"""Loading a checkpoint whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from torch import Tensor
from torch.optim import Optimizer

from torchreg.training.term import Term
from torchreg.training.term_part import Part


class Rollback:
    """What loading may change; as a context manager it puts all back if its block raises, an interrupt included.

    Kept are references, not copies: torch loads into new groups and new states. A wrapper's inner optimizers are
    kept as well.
    """

    def __init__(self, base: Optimizer, terms: Iterable[Term]) -> None:
        terms = list(terms)
        self._optimizers = [_Kept(optimizer) for optimizer in _nested(base, [])]
        self._parts = [(part, part.penalty, _number(part)) for term in terms for part in term.parts]
        schedulers = [term.scheduler for term in terms if term.scheduler is not None]
        self._controls = [(term, term.control) for term in terms]
        self._schedulers = [(scheduler, dict(vars(scheduler))) for scheduler in schedulers]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.put_back()

    def put_back(self) -> None:
        """Undo what was loaded."""
        for kept in self._optimizers:
            kept.put_back()
        for part, penalty, number in self._parts:
            part.penalty = penalty
            if isinstance(penalty.alpha, Tensor):
                penalty.alpha.detach().fill_(number)
        for term, control in self._controls:
            term.control = control
        for scheduler, fields in self._schedulers:
            scheduler.put_back(fields)


class _Kept:
    """An optimizer's attributes, groups and states."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer, self._fields = optimizer, dict(vars(optimizer))
        self._groups, self._state = optimizer.param_groups, optimizer.state
        self._options = [(group, dict(group)) for group in self._groups]
        self._states = {p: (state, dict(state)) for p, state in self._state.items()}

    def put_back(self) -> None:
        vars(self._optimizer).update(self._fields)
        self._groups[:] = [_refilled(group, options) for group, options in self._options]
        states = {p: _refilled(state, entries) for p, (state, entries) in self._states.items()}
        _refilled(self._state, states)


def _refilled(old: Any, entries: dict[Any, Any]) -> Any:
    old.clear()
    old.update(entries)
    return old


def _nested(optimizer: Optimizer, seen: list[Optimizer]) -> list[Optimizer]:
    """An optimizer and those that it wraps."""
    if all(optimizer is not other for other in seen):
        seen.append(optimizer)
        for inner in vars(optimizer).values():
            if isinstance(inner, Optimizer):
                _nested(inner, seen)
    return seen


def _number(part: Part) -> Any:
    alpha = part.penalty.alpha
    return alpha.detach().clone() if isinstance(alpha, Tensor) else alpha
