"""PenaltyScheduler: a strength that follows a schedule, one optimizer step after another."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from torchreg.training.schedules import Schedule
from torchreg.training.step_count import StepCount
from torchreg.training.term import Term

_SAME = 1e-6  # relative: a strength that was kept in float32 is the same one


class PenaltyScheduler(StepCount):
    """Moves a term's ``alpha`` along a schedule: before optimizer step k (from 0) it is ``schedule(k)``.

    It counts by itself: the optimizer tells it of each step that it has made. So batches whose
    gradients are only accumulated, steps that `torch.amp.GradScaler` or ``skip_nonfinite`` skips
    and the dummy step by which `torch.distributed.checkpoint` creates an optimizer's state do not
    count, wherever `step` is called, and it need not be called at all. A fused base skips on the
    device: the host does not wait to know, and such a step counts, as it does for torch's learning
    rate schedulers, beside which `step` may stand. It is needed only where no Python runs within a step: where
    ``opt.step`` is compiled, or replayed as a CUDA graph, call it after each step.

    The count and the strength travel with ``opt.state_dict()`` of the `ProxOptimizer` that owns the
    term, so make the scheduler before ``opt.load_state_dict``. `state_dict` is for trainers that
    keep each scheduler's own.

    Args:
        term: what `attach` made, with one alpha. A number is replaced at each step; a 0-d tensor is
            filled in place, so a compiled step is not compiled again and a captured one sees it.
        schedule: int -> float, from `torchreg.training.schedules` or your own. A lambda cannot be pickled.
        optimizer: whose steps to count, for a term that no ProxOptimizer owns (``loss + term()``).

    Attributes:
        count: optimizer steps made.
        last_alpha: ``schedule(count)``, a number for logs: reading it does not wait for a device.

    Raises:
        TypeError: if ``term`` is no Term or ``schedule`` no function.
        ValueError: if there is no optimizer whose steps it could count, or the term has several
            alphas; or the schedule gives something that is no strength.

    Notes:
        A term has one scheduler: a new one takes its place and counts from 0. ``term.alpha = ...``
        holds until the next step only. Copies and pickles of the optimizer have their own scheduler.

    Example:
        >>> import torch
        >>> from torchreg import L1, PenaltyScheduler, ProxOptimizer, attach, schedules
        >>> model = torch.nn.Linear(3, 1)
        >>> term = attach(L1(0.0), model)
        >>> opt = ProxOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), term)
        >>> ramp = PenaltyScheduler(term, schedules.linear(0.0, 100.0, steps=2))
        >>> for _ in range(3):
        ...     opt.zero_grad()
        ...     model(torch.ones(1, 3)).sum().backward()
        ...     opt.step()
        ...     print(ramp.count, ramp.last_alpha, int((model.weight == 0).sum()))
        1 50.0 0
        2 100.0 3
        3 100.0 3
    """

    def __init__(self, term: Term, schedule: Schedule, *, optimizer: Optimizer | None = None) -> None:
        _check(term, schedule, optimizer)
        self.term, self.schedule = term, schedule
        self._optimizer = optimizer if term.owner is None else None
        self._handle: Any = None
        self._move(0)
        if term.scheduler is not None:
            term.scheduler.release()
        term.scheduler = self
        self._listen()

    def release(self) -> None:
        """Stop listening to an optimizer that does not own the term."""
        if self._handle is not None:
            self._handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """The count and the strength; the schedule itself is code and is not kept."""
        return {"count": self.count, "alpha": self.last_alpha}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved count; warns where this schedule gives another strength there."""
        differs = self.resume(state_dict["count"], state_dict["alpha"])
        if differs:
            warnings.warn(differs, stacklevel=2)

    def resume(self, count: int, saved: float) -> str:
        """Go on from a count at which the strength was ``saved``; says so where this schedule has another."""
        self._move(count)
        if math.isclose(self.last_alpha, saved, rel_tol=_SAME):
            return ""
        return (
            f"The checkpoint was at alpha = {saved:g} after {count} steps, but {self.schedule!r} gives "
            f"alpha = {self.last_alpha:g} there, which is used."
        )

    def _move(self, count: int) -> None:
        alpha = float(self.schedule(count))
        try:
            _refuse_overflow(self.term, alpha)
            self.term.turn(alpha)
        except ValueError as error:
            raise ValueError(f"{self.schedule!r} gives alpha = {alpha:g} at step {count}: {error}") from None
        self.count, self.last_alpha = count, alpha

    def _listen(self) -> None:
        if self._optimizer is not None:
            self._handle = self._optimizer.register_step_post_hook(self._after_step)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self.term.owner is None:  # an owner that came later tells of its own steps
            self.stepped(optimizer)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_handle": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._listen()  # torch's optimizers leave their hooks behind when copied

    def __repr__(self) -> str:
        return f"PenaltyScheduler({self.schedule!r}, count={self.count}, last_alpha={self.last_alpha:g})"


def _check(term: Any, schedule: Any, optimizer: Any) -> None:
    if not isinstance(term, Term):
        raise TypeError(f"PenaltyScheduler moves a term, got {type(term).__name__}; use attach(L1(0.1), model).")
    if not callable(schedule) or isinstance(schedule, type):
        raise TypeError(
            f"PenaltyScheduler needs a function int -> float, got {schedule!r}; use schedules.linear(0.0, 0.1, 1000)."
        )
    owner = term.owner
    if owner is None and not isinstance(optimizer, Optimizer):
        raise ValueError(
            f"PenaltyScheduler counts an optimizer's steps, and none owns this term (optimizer={optimizer!r}); make "
            "the ProxOptimizer first, or give optimizer=... if the term is added to a loss."
        )
    if owner is not None and optimizer not in (None, owner):
        raise ValueError(
            f"This term is owned by a {type(owner).__name__}, whose steps are counted; leave optimizer= out."
        )
    if term.target is not None:
        raise ValueError(f"{term.target!r} moves this term already, and a term takes one; thaw(term) ends a target.")
    term.alpha  # noqa: B018  raises where the term has several


def _refuse_overflow(term: Term, alpha: float) -> None:
    """Raise ValueError where a tensor that is to be filled would hold an infinity."""
    if alpha <= torch.finfo(torch.float16).max or math.isinf(alpha):
        return
    for part in term.parts:
        held = part.penalty.alpha
        if isinstance(held, Tensor) and alpha > torch.finfo(held.dtype).max:
            raise ValueError(f"that is infinite in the {held.dtype} of the term's alpha; use a float32 tensor.")
