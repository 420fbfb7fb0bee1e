"""TargetSparsity: train to a share of exact zeros."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from torchreg.functional.dtensor import here
from torchreg.training.control import sites_of
from torchreg.training.held_zeros import support
from torchreg.training.predictive_alpha import predictive_alpha, typical_gradient
from torchreg.training.pruning import Act, Method, Pruning
from torchreg.training.schedules import Schedule, cubic
from torchreg.training.step_count import StepCount
from torchreg.training.target_checks import (
    check_choice,
    check_every,
    check_layers,
    check_shares,
    check_shrinkage,
    check_term,
    chosen_method,
    has_one_alpha,
    own_alpha,
    refuse_lost,
    share_of,
    told_difference,
)
from torchreg.training.target_history import TargetHistory, TargetRecord
from torchreg.training.term import Term
from torchreg.training.units import units_of

Phase = Literal["dense", "ramp", "hold", "frozen"]
Scope = Literal["global", "parameter"]
_RECORDS = 100  # of the history, over all steps; also how often "feedback" and "magnitude" act
_HORIZON = 0.05  # of all steps, by which "feedback" looks ahead


class TargetSparsity(StepCount):
    """Trains a net to a given share of exact zeros, and keeps its accuracy: name the share, not a strength.

    The share of zeros rises along a ramp while the weights are trained on, from ``begin`` to ``end``; at ``freeze`` the
    zeros are settled, and the rest of the steps trains what is left. Shares are of exact zeros among the weights that
    the term penalises, or of zero groups, where its penalty has groups. From ``end`` on ("feedback": from ``freeze``
    on) the count is exact: ``ceil(sparsity * N)`` zeros of N, also after saving and loading.

    It counts the optimizer's steps by itself, as `PenaltyScheduler` does, and need not be called.

    Args:
        term: what `attach` made, once an optimizer steps it: make the ProxOptimizer, or call attach_to, first.
        sparsity: the share of zeros, in (0, 1]; its decimal digits count, so 55 are 0.55 of 100.
        steps: optimizer steps of the whole training, for which the learning rate's schedule is made too.
        begin: where the ramp begins, a share of ``steps``; nothing is pruned or shrunk before.
        end: where the ramp ends, a share of ``steps``.
        freeze: when the zeros are settled, a share of ``steps``. From then on zeros stay zero and take no momentum.
        method: how weights become zero.

            - "projection": each step keeps the weights for which ``w^2 / t`` is largest, with t the optimizer's
              `effective_step`, which is what zeroing a weight costs in the metric of the optimizer. The optimizer
              steps a dense copy, so a zero that is needed comes back; what it has there fades within a tenth of the
              steps. The copy is kept in the optimizer's state, 4 bytes an entry.
            - "feedback": the proximal step of the term's penalty, any that makes zeros, with alpha set every ``every``
              steps so that the wanted share is met 5 % of the steps ahead, and no larger than gradients hold; what is
              missing at ``freeze`` is made zero then. 1 byte an entry.
            - "magnitude": gradual magnitude pruning, the smallest ``|w|`` for good, for comparison. 1 byte an entry.
            - "auto": "feedback" for groups of one tensor, else "projection".
        scope: "global" weighs all of the term's weights against each other; "parameter" gives each the same share.
            Of `coupled` groups, whose share is of whole units, each layer keeps one at least, and "parameter" gives
            each layer the same share.
        every: steps from one selection, or setting of alpha, to the next; None for 1 with "projection", else a
            hundredth of ``steps``.
        shrinkage: of "projection" up to ``end``, where penalties are of entries with one alpha: each step the term's
            penalty shrinks the dense copy too, by an alpha that is this share of the median size of gradients, set
            each hundredth of ``steps``, and makes nothing zero. The term's own alpha acts nowhere. See Notes.
        schedule: the shape of the ramp: a function (start, end, steps, begin=...) -> schedule of the share, such as
            those of `torchreg.training.schedules`.

    Attributes:
        count: optimizer steps made.
        phase: of the next step: "dense", "ramp", "hold" or "frozen".
        mask: name -> bool tensor, True where a weight is trained and False where it is zero.
        history: a `TargetRecord` for each hundredth of ``steps``. Reading it waits for the device, training does not.

    Raises:
        TypeError: if ``term`` is no Term, or ``steps`` no int.
        ValueError: if a share is out of range or order, the ramp has no step, no optimizer steps the term or something
            else moves it, its penalty makes no zeros, or one of its parameters is frozen. Nothing has changed then.

    Notes:
        Where ``opt.step`` is compiled, or replayed as a CUDA graph, call `step` after it, before ``zero_grad``. A graph
        is for "projection" with ``every=1`` alone, and captured anew when ``phase`` has changed (written, not run). A
        parameter that never gets a gradient is not pruned, and the others make up for it. A weight that has met none
        but zeros (a dead input's) goes first; more weights than asked for that are zero by themselves stay so.
        ``term.alpha = ...`` holds until "feedback" sets it again. Groups count one each: "parameter" spares short ones.

        ``shrinkage`` of 0.1 to 0.4 serves where pruning costs much: of an autoencoder at 95 % zeros R2 .917 for .859.
        Where nets fit their data with few weights it takes accuracy: choose it on validation data, as ``method`` for a
        sparse truth. ``benchmarks/results/sparse_training.md`` has the figures, and those of other methods.

    Source:
        Zhu and Gupta, "To prune, or not to prune", 2017 (the ramp); Yun, Lozano and Yang, NeurIPS 2021 (the metric);
        Zhou et al., ICLR 2021 (the fading).

    Example:
        >>> import torch
        >>> from torchreg import L1, ProxOptimizer, TargetSparsity, attach, sparsity
        >>> model = torch.nn.Linear(20, 5)
        >>> term = attach(L1(1e-4), model)
        >>> opt = ProxOptimizer(torch.optim.AdamW(model.parameters()), term)
        >>> target = TargetSparsity(term, 0.9, steps=50)
        >>> for _ in range(50):
        ...     opt.zero_grad()
        ...     model(torch.randn(8, 20)).square().mean().backward()
        ...     opt.step()
        >>> print(target.phase, sparsity(term))
        frozen name    zeros  total  fraction
        weight  90     100    0.9000
        total   90     100    0.9000
    """

    target = True
    act: Act

    def __init__(
        self,
        term: Term,
        sparsity: float,
        *,
        steps: int,
        begin: float = 0.1,
        end: float = 0.6,
        freeze: float = 0.8,
        method: Method | Literal["auto"] = "auto",
        scope: Scope = "global",
        every: int | None = None,
        shrinkage: float = 0.0,
        schedule: Callable[..., Schedule] = cubic,
    ) -> None:
        check_shares(sparsity, steps, begin, end, freeze)
        check_term(term)
        self.method = chosen_method(term, method)
        check_choice("scope", scope, get_args(Scope))
        check_shrinkage(term, self.method, shrinkage)
        check_layers(term, float(sparsity), scope)
        self.term, self.sparsity, self.steps, self.scope = term, float(sparsity), steps, scope
        self._begin, self._end, self.freezes = (round(share * steps) for share in (begin, end, freeze))
        check_every(every, self._end - self._begin)
        often = 1 if self.method == "projection" else max(1, steps // _RECORDS)
        self.every = min(often, self._end - self._begin) if every is None else every
        self._ramp = schedule(0.0, self.sparsity, self._end - self._begin, begin=self._begin)
        self._history = TargetHistory()
        self._count_units()
        self._first = term.alpha if has_one_alpha(term) else None
        self.shrinkage = float(shrinkage)
        self._alpha = own_alpha(term) if self.method == "feedback" or self.shrinkage else None
        self._owner: Any = weakref.ref(term.owner)
        self._at(0)
        term.scheduler, term.control = self, Pruning(self)

    @property
    def phase(self) -> Phase:
        """What the next step is: "dense", "ramp", "hold" or "frozen"."""
        if self.count >= self.freezes:
            return "frozen"
        return "dense" if self.count < self._begin else "ramp" if self.count < self._end else "hold"

    @property
    def shrinks(self) -> bool:
        """Whether the next step shrinks the dense copy."""
        return self.shrinkage > 0.0 and self.count < self._end

    @property
    def last_alpha(self) -> float:
        """The strength that acts, 0.0 where none does; reading it waits for the device."""
        return 0.0 if self._alpha is None else float(self._alpha)

    @property
    def mask(self) -> dict[str, Tensor]:
        """The entries that are trained, of each parameter by name: False where it is zero."""
        by_weight = self.method == "feedback" and self.act != "hold"
        states = {} if self.term.owner is None or by_weight else self.term.owner.base.state
        known = {name: (p, support(states.get(p, {}))) for name, p in self.term.parameters.items()}
        return {name: p.detach() != 0 if kept is None else kept for name, (p, kept) in known.items()}

    @property
    def history(self) -> list[TargetRecord]:
        """What was asked and what was there, for each hundredth of the steps."""
        return self._history.records()

    def wanted(self, count: int) -> float:
        """The share of zeros that the schedule has after so many steps."""
        if count >= self._end:
            return self.sparsity
        return 0.0 if count <= self._begin else min(max(float(self._ramp(count)), 0.0), self.sparsity)

    def kept_of(self, number: int, *, known: bool = True) -> int | Tensor:
        """How many of so many units the next step keeps; a tensor, of numbers of its own, where a graph is made."""
        return number - share_of(self.wanted(self.count + 1), number) if known else self._kept[number]

    def is_of_another(self, owner: Any) -> bool:
        """Whether it was made for another optimizer than the one that has the term now."""
        return self._owner is not None and self._owner() is not owner

    def refuse_frozen(self, found: int) -> None:
        """Raise ValueError where parameters have been frozen, or are gone, while their zeros are not settled."""
        if found == len(self._names) or self.act == "hold":
            return
        refuse_lost(self, self.term.parameters, self._names)
        self._count_units()  # a bare penalty has taken more
        self._at(self.count)

    def release(self) -> None:
        """Let the term go, with the strength that it had before it was moved."""
        self.term.scheduler = self.term.control = None
        if self._alpha is not None and self._first is not None:
            self.term.alpha = self._first

    def _count_units(self) -> None:
        self._names = list(self.term.parameters)
        first = here(next(iter(self.term.parameters.values())))
        numbers = [number for units in units_of(self.term) for number in units.numbers]
        numbers = [sum(numbers)] if self.scope == "global" else numbers
        self._kept = {n: torch.zeros((), dtype=torch.int64, device=first.device) for n in numbers}

    def resume(self, count: int, alpha: Any, target: dict[str, Any]) -> str:
        """Go on from a saved count of the same target."""
        self._at(count)
        self._history = TargetHistory()  # the one before is put back where the load fails
        self._history.load(target["history"])
        self._set(alpha)
        return ""

    def differs(self, saved: dict[str, Any] | None) -> str:
        """What makes a saved target another one, or ""."""
        return told_difference(self.saved(), saved or {})

    def saved(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, beside the count and the strength."""
        fields = ("sparsity", "steps", "method", "scope", "every", "shrinkage", "freezes")
        config = {name: getattr(self, name) for name in fields}
        ramp = [self.wanted(self._begin + (self._end - self._begin) * k // 4) for k in range(5)]
        return {**config, "begin": self._begin, "end": self._end, "ramp": ramp, "history": self._history.saved()}

    def put_back(self, fields: dict[str, Any]) -> None:
        """Be what it was, after a load that failed."""
        super().put_back(fields)
        self._at(self.count)

    def _move(self, count: int) -> None:
        self._at(count)
        hundredth = count % max(1, self.steps // _RECORDS) == 0
        if self.act == "shrink" and count >= self._begin and (count - self._begin) % self.every == 0:
            horizon = max(1, round(_HORIZON * self.steps))
            share = self.wanted(min(count + horizon, self.freezes))
            self._set(predictive_alpha(sites_of(self.term), lambda n: share_of(share, n), horizon))
        elif self.shrinkage and (hundredth or count in (1, self._end)):
            self._set(typical_gradient(sites_of(self.term), self.shrinkage) if self.shrinks else 0.0)
        if count <= self.steps and (hundredth or count in (self.freezes, self.steps)):
            alpha = 0.0 if self._alpha is None or count > self.freezes else self._alpha
            self._history.add(count, self.wanted(count), self.term, alpha)

    def _at(self, count: int) -> None:
        """Be at a count, with what the next step does and how much it keeps."""
        self.count = count
        step = count + 1
        due = step in (self._end, self.freezes) or (step - self._begin - 1) % self.every == 0
        if step > self.freezes:
            self.act = "hold"
        elif step <= self._begin:
            self.act = "rest"
        elif self.method == "feedback":
            self.act = "select" if step == self.freezes else "shrink"
        else:
            self.act = "select" if due else "keep"
        for number, kept in self._kept.items():
            kept.fill_(self.kept_of(number))

    def _set(self, alpha: Tensor | float | None) -> None:
        if alpha is None or self._alpha is None:
            return
        alpha = torch.where(alpha.isfinite(), alpha, self._alpha) if isinstance(alpha, Tensor) else alpha
        if isinstance(self._alpha, Tensor):
            self._alpha.fill_(alpha)
            if self.term.alpha is not self._alpha:  # somebody has given it another
                self.term.alpha = self._alpha
        else:
            self._alpha = float(alpha)
            self.term.turn(self._alpha)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_owner": None}

    def __repr__(self) -> str:
        told = f"{self.sparsity:g}, steps={self.steps}, method={self.method!r}"
        return f"TargetSparsity({told}, count={self.count}, phase={self.phase!r})"
