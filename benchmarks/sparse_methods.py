"""What a method of sparse training is, and torchreg's own. All start from the same net and AdamW.

A method says how it is tuned: by a strength, which is searched for each share of zeros, or by one of a few settings;
either way by the same number of trials on validation data. `TargetSparsity` runs as it is, and once more with its
method and shrinkage chosen as others choose their settings.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sparse_tasks import Task
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import AdamW, Optimizer

import torchreg
from torchreg import L1, MCP, Group, Groups, Penalty, PenaltyScheduler, ProxOptimizer, attach, columns, filters
from torchreg import schedules as schedule

BEGIN, FREEZE = 0.1, 0.8  # shares of the steps: where zeros begin, and where torchao and TargetSparsity fix them


@dataclass(frozen=True)
class Job:
    """One net to train.

    Attributes:
        model: at its start. weights: what is penalised, by name. by: groups to make zero, None for entries.
        steps, lr: of AdamW.
        target: share of zeros wanted; methods with a strength do not look at it.
        penalty: with the strength of this run. setting: of a method that has some.
    """

    model: nn.Module
    weights: dict[str, Parameter]
    by: Groups | None
    steps: int
    lr: float
    target: float
    penalty: Penalty
    setting: Mapping[str, Any]

    def base(self, **options: Any) -> Optimizer:
        """AdamW without decay over all parameters; options are those of the penalised weights' group."""
        mine = list(self.weights.values())
        rest = [p for p in self.model.parameters() if all(p is not w for w in mine)]
        groups = [{"params": mine, **options}, {"params": rest}]
        return AdamW([group for group in groups if group["params"]], lr=self.lr, weight_decay=0.0, fused=True)


class Training:
    """A method at work on a job: what it adds to the loss and to a step. This one trains the dense net."""

    def __init__(self, job: Job, optimizer: Optimizer | None = None) -> None:
        self.job = job
        self.optimizer = optimizer or job.base()

    def extra_loss(self, k: int) -> Tensor | float:
        """What is added to the loss of step k."""
        return 0.0

    def step(self, k: int) -> None:
        """Step k, once the gradients are there."""
        self.optimizer.step()

    def now(self) -> list[Tensor]:
        """The penalised weights as the net uses them."""
        return [w.detach() for w in self.job.weights.values()]


@dataclass(frozen=True)
class Method:
    """How a net is made sparse.

    Attributes:
        about: its name in the table.
        start: job -> training.
        ours: whether it is torchreg's; a change of the library makes its rows old.
        searched: whether a strength is searched for each share of zeros.
        settings: to choose from by validation; one needs no trial.
        penalty: (groups or None) -> the penalty whose strength is moved, or that is given to the method.
        alpha: the strength where none is searched; None takes the task's.
        search_from: where its search begins, in the task's alpha.
        fits: whether it differs from the other methods on a task.
        available: whether what it needs is installed.
    """

    about: str
    start: Callable[[Job], Training]
    ours: bool = False
    searched: bool = False
    settings: tuple[dict[str, Any], ...] = ({},)
    penalty: Callable[[Groups | None], Penalty] = field(default=lambda by: grouped(L1(1.0), by))
    alpha: float | None = 0.0
    search_from: float = 1.0
    fits: Callable[[Task], bool] = field(default=lambda task: True)
    available: Callable[[], bool] = field(default=lambda: True)


def has_groups(task: Task) -> bool:
    """Whether zeros of entries count, of weights that have groups too."""
    return task.by is None and task.only is None


def counts_groups(task: Task) -> bool:
    """Whether zeros of groups count."""
    return task.by is not None


def grouped(penalty: Penalty, by: Groups | None) -> Penalty:
    """A penalty of entries, or of groups' norms."""
    return penalty if by is None else Group(penalty, by=by)


def norms(w: Tensor, by: Groups | None) -> Tensor:
    """Size of each unit: of entries, in the shape of w, or of groups, one after the other."""
    return w.detach().abs() if by is None else by.norms(w.detach())


def zeros_of(weights: Iterable[Tensor], by: Groups | None) -> tuple[int, int]:
    """Units that are exactly zero, and units."""
    sizes = [norms(w, by) for w in weights]
    return sum(int((size == 0).sum()) for size in sizes), sum(size.numel() for size in sizes)


def spread(keep: Tensor, w: Tensor, by: Groups | None) -> Tensor:
    """A mask of units as one of entries."""
    return keep if by is None else by.expand(keep, w).expand_as(w)


def _constant(job: Job) -> Training:
    return Training(job, ProxOptimizer(job.base(), attach(job.penalty, job.weights)))


def _ramp(job: Job) -> Training:
    term = attach(job.penalty, job.weights)
    training = Training(job, ProxOptimizer(job.base(), term))
    alpha = float(job.penalty.alpha)
    PenaltyScheduler(term, schedule.cubic(0.0, alpha, max(1, job.steps // 2), begin=int(BEGIN * job.steps)))
    return training


def _columns(job: Job) -> Training:
    """Input units of matrices and filters of convolutions, so that no class is lost."""

    def penalty(name: str, w: Tensor) -> Penalty:
        return Group(L1(float(job.penalty.alpha)), by=filters if w.dim() > 2 else columns)

    return Training(job, ProxOptimizer(job.base(), attach(penalty, job.weights)))


def _dual_averaging(job: Job) -> Training:
    return Training(job, ProxOptimizer(job.base(), attach(job.penalty, job.weights), mode="dual_averaging"))


@dataclass(frozen=True)
class _Target:
    """`TargetSparsity` by one of its methods, with its defaults but for the setting."""

    method: str

    def __call__(self, job: Job) -> Training:
        term = attach(job.penalty, job.weights)
        training = Training(job, ProxOptimizer(job.base(), term))
        options = {"method": self.method, **job.setting}
        training.target = torchreg.TargetSparsity(term, job.target, steps=job.steps, **options)
        return training


def _has_target() -> bool:
    return hasattr(torchreg, "TargetSparsity")


def _has_dual_averaging() -> bool:
    return "mode" in inspect.signature(ProxOptimizer).parameters


def _target(method: str, **options: Any) -> Method:
    name = "TargetSparsity" if method == "auto" else f"TargetSparsity, {method}"
    return Method(name, _Target(method), ours=True, alpha=1e-4, available=_has_target, **options)


def counts_entries(task: Task) -> bool:
    """Whether zeros of entries count."""
    return task.by is None


_CHOICES = ({}, {"shrinkage": 0.1}, {"shrinkage": 0.4}, {"method": "feedback"})

OURS = {
    "dense": Method("dense", Training),
    "target": _target("auto"),
    "l1": Method("L1, constant", _constant, ours=True, searched=True),
    "target-projection": _target("projection"),
    "target-feedback": _target("feedback"),
    "target-magnitude": _target("magnitude"),
    "target-chosen": replace(
        _target("projection", settings=_CHOICES, fits=counts_entries), about="TargetSparsity, method chosen"
    ),
    "dual": Method("L1, dual averaging", _dual_averaging, ours=True, searched=True, available=_has_dual_averaging),
    "l1-ramp": Method("L1, ramp", _ramp, ours=True, searched=True),
    "mcp": Method("MCP, constant", _constant, ours=True, searched=True, penalty=lambda by: grouped(MCP(1.0), by)),
    "l1-entries": Method(
        "L1 of entries, constant", _constant, ours=True, searched=True, penalty=lambda by: L1(1.0), fits=counts_groups
    ),
    "group": Method(
        "group L1, constant", _columns, ours=True, searched=True, penalty=lambda by: Group(L1(1.0), by=columns),
        fits=has_groups,
    ),
}  # fmt: skip
