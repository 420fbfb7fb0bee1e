"""Optimizers of many models of one structure as one, over parameters stacked along a new first dimension.

1. Base optimizers whose update of an entry depends on that entry alone act on stacked tensors as on each.
2. The effective steps of the stacked parameters are then those of each model, stacked.
3. The proximal map is that of one model, mapped over the first dimension by `torch.vmap`, each with its own strength.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop

from torchreg.functional.reductions import wide_dtype
from torchreg.functional.shrinkage import Scalar
from torchreg.penalties import Penalty
from torchreg.training.common_step import anew, is_common
from torchreg.training.effective_step import rule_for
from torchreg.training.group_steps import marked, settled
from torchreg.training.step_rules import StepRule

_ENTRYWISE = (SGD, Adam, AdamW, NAdam, RAdam, RMSprop, Adagrad, Adamax, Adadelta)
_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
_ALONE = "train its models one by one, by ablate"


@dataclass(frozen=True)
class _Site:
    """A stacked parameter that is penalised.

    Attributes:
        param: the parameter of every model.
        group: the number of its param group.
        penalty: of one model.
        alphas: the strength in each model; None where the penalty is the same in all.
    """

    param: Parameter
    group: int
    penalty: Penalty
    alphas: Tensor | None


class StackedOptimizer:
    """One optimizer for many models: the base's step on stacked parameters, then each model's own proximal step.

    Args:
        optimizers: a `ProxOptimizer` for each model, none of which has made a step; alike but for the strengths.

    Attributes:
        base: the base optimizer, of the same class and options, over the stacked parameters.
        stacks: by the id of a parameter of the first model, that parameter of all, stacked.

    Raises:
        ValueError: for what cannot be stacked: optimizers that differ, bases whose update joins entries, and
            modes of `ProxOptimizer` that look at all parameters at once.

    Example:
        >>> from torchreg import L1, ProxOptimizer, attach
        >>> weights = [Parameter(torch.tensor([1.0, 0.2])) for _ in range(2)]
        >>> alphas = (0.5, 3.0)
        >>> first, second = (
        ...     ProxOptimizer(torch.optim.SGD([w], lr=1.0), attach(L1(a), {"w": w})) for w, a in zip(weights, alphas)
        ... )
        >>> both = first.stacked([second])
        >>> stack = both.stacks[id(weights[0])]
        >>> stack.grad = torch.zeros(2, 2)
        >>> both.step()
        >>> stack.detach()
        tensor([[0.5000, 0.0000],
                [0.0000, 0.0000]])
    """

    def __init__(self, optimizers: Sequence[Any]) -> None:
        first = optimizers[0]
        _refuse(first)
        options = [_options(optimizer) for optimizer in optimizers]
        for other, found in zip(optimizers[1:], options[1:], strict=True):
            _refuse(other)
            _refuse_difference((first, options[0]), (other, found))
        groups = []
        for k, option in enumerate(options[0]):
            each = zip(*(optimizer.param_groups[k]["params"] for optimizer in optimizers), strict=True)
            groups.append({**option, "params": [_stack(ps) for ps in each]})
        self.base: Optimizer = type(first.base)(groups)
        self.stacks: dict[int, Parameter] = {
            id(p): stack
            for mine, theirs in zip(self.base.param_groups, first.param_groups, strict=True)
            for stack, p in zip(mine["params"], theirs["params"], strict=True)
        }
        self._rule = rule_for(first.base, first.metric)
        self._sites = self._found(optimizers)

    def _found(self, optimizers: Sequence[Any]) -> list[_Site]:
        each = [_penalties(optimizer) for optimizer in optimizers]
        if odd := next((places for places in each if places.keys() != each[0].keys()), None):
            raise ValueError(
                f"Models that are trained together have the same parameters penalised; one has {len(each[0])} of them "
                f"penalised, another {len(odd)}, or others. Attach by name or module, not by value."
            )
        sites = []
        for group, position in each[0]:
            param = self.base.param_groups[group]["params"][position]
            penalty, alphas = _joined([places[group, position] for places in each])
            told = None if alphas is None else torch.tensor(alphas, dtype=wide_dtype(param), device=param.device)
            sites.append(_Site(param, group, penalty, told))
        return sites

    def step(self) -> None:
        """The base's step, then the proximal step of every model."""
        with torch.no_grad():
            common = [is_common(site.penalty, self._rule) for site in self._sites]
            pairs = zip(self._sites, common, strict=True)
            before = [site.param.detach().clone() if one else None for site, one in pairs]
            self.base.step()
            for site, copy in zip(self._sites, before, strict=True):
                self._shrink(site, copy)

    def _shrink(self, site: _Site, before: Tensor | None) -> None:
        p, state = site.param, self.base.state.get(site.param, {})
        if p.grad is None or not p.numel():
            return
        rule = marked(self._rule, site.penalty)
        (step,) = rule.steps(self.base.param_groups[site.group], [state], [p])
        if before is None:
            step = settled(site.penalty, p, step, stacked=True)
        p.copy_(_each(site.penalty, site.alphas, p, before, step))


def _each(penalty: Penalty, alphas: Tensor | None, p: Tensor, before: Tensor | None, step: Scalar) -> Tensor:
    """The proximal map of every model's parameter, at its own strength."""
    entries = isinstance(step, Tensor) and step.shape == p.shape

    def one(w: Tensor, alpha: Tensor | None, start: Tensor | None, own: Any) -> Tensor:
        at = penalty if alpha is None else penalty.with_alpha(alpha)
        t = step if own is None else own
        if start is not None and own is not None and w.numel() > 1:
            moved, t = anew(w, start, own)
            w = moved.to(w.dtype)
        return at.prox(w, t)

    given = (p, alphas, before, step if entries else None)
    return torch.vmap(one, in_dims=tuple(None if x is None else 0 for x in given))(*given)


def _stack(params: Sequence[Tensor]) -> Parameter:
    return Parameter(torch.stack([p.detach() for p in params]), requires_grad=params[0].requires_grad)


def _options(optimizer: Any) -> list[dict[str, Any]]:
    """The options of each param group, as those of a new optimizer."""
    kept = [{k: v for k, v in g.items() if k not in ("params", "param_names")} for g in optimizer.param_groups]
    return [{k: v.clone() if isinstance(v, Tensor) else v for k, v in group.items()} for group in kept]


def _penalties(optimizer: Any) -> dict[tuple[int, int], Penalty]:
    """The penalty of each trained parameter, by its group and its position there."""
    slots = optimizer.positions.slots
    return {(slot.group, k): slot.part.penalty for slot in slots for k in slot.positions}


def _joined(penalties: Sequence[Penalty]) -> tuple[Penalty, list[float] | None]:
    """One penalty, and its strength in each model."""
    first = penalties[0]
    if first.several or any(p.several for p in penalties):
        same = all(p == first for p in penalties)
        kind, alphas = first, None
    else:
        kind = first.with_alpha(1.0)
        same = all(p.with_alpha(1.0) == kind for p in penalties)
        alphas = [float(p.alpha) for p in penalties]
    if not same:
        raise ValueError(
            f"Models that are trained together have penalties that differ in alpha alone, got {first} and "
            f"{next(p for p in penalties if p != first)} for one parameter; {_ALONE}."
        )
    return kind, alphas


def _refuse(optimizer: Any) -> None:
    """Raise ValueError for what does not act on each entry of a stacked parameter as on the model's own."""
    base = optimizer.base
    rule: StepRule = rule_for(base, optimizer.metric)
    parts = [part for term in optimizer.terms for part in term.parts]
    hooked = any(getattr(o, name, None) for o in (base, optimizer) for name in _HOOKS)
    held = any(t.control is not None or t.together is not None or t.scheduler is not None for t in optimizer.terms)
    reasons = {
        f"{type(base).__name__} (whose update of an entry may depend on others)": type(base) not in _ENTRYWISE,
        "a metric that is a function of the whole parameter": rule.shape == "tensor",
        f"mode={optimizer.mode!r}": optimizer.mode != "prox",
        "masters=True": optimizer.masters,
        "fused=True": bool(optimizer.fused),
        "skip_nonfinite=True (which would skip the step of all)": optimizer.skip_nonfinite,
        "lazy terms": any(part.lazy for part in parts),
        "terms with a scheduler, a target or frozen zeros, or of groups over several parameters": held,
        "hooks on its steps": hooked,
        "steps made already": any(float(state.get("step", 1.0)) for state in base.state.values()),
    }
    if found := [what for what, holds in reasons.items() if holds]:
        raise ValueError(
            f"A ProxOptimizer with {'; with '.join(found)} cannot step many models at once. Use one of "
            f"{', '.join(kind.__name__ for kind in _ENTRYWISE)} without these, or {_ALONE}."
        )


def _refuse_difference(one: tuple[Any, list[dict[str, Any]]], other: tuple[Any, list[dict[str, Any]]]) -> None:
    """Raise ValueError where two optimizers differ in more than strengths."""
    (first, mine), (second, theirs) = one, other
    counts = [[len(group["params"]) for group in optimizer.param_groups] for optimizer in (first, second)]
    if type(first.base) is not type(second.base) or first.metric != second.metric or counts[0] != counts[1]:
        raise ValueError(
            f"Models that are trained together have one kind of optimizer, got {type(first.base).__name__} and "
            f"{type(second.base).__name__} over groups of {counts[0]} and {counts[1]} parameters, metric "
            f"{first.metric!r} and {second.metric!r}; {_ALONE}."
        )
    for k, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        if odd := [name for name in a if name not in b or not _equal(a[name], b[name])]:
            raise ValueError(
                f"Models that are trained together have one {odd[0]}, got {a[odd[0]]!r} and {b.get(odd[0])!r} in "
                f"param group {k}; make it an ablation of its own for each value, or {_ALONE}."
            )


def _equal(a: Any, b: Any) -> bool:
    same = a == b
    return bool(same.all()) if isinstance(same, Tensor) else bool(same)
