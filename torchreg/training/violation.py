"""How far penalised weights are from a stationary point of loss + penalty."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from torchreg.functional.dtensor import Cut, any_entry, is_cut, read, whole
from torchreg.functional.reductions import wide
from torchreg.functional.shrinkage import Scalar
from torchreg.penalties import Penalty
from torchreg.penalties.one_step import takes_one_step
from torchreg.training.common_step import common
from torchreg.training.effective_step import rule_for
from torchreg.training.gradients import entries
from torchreg.training.joint_groups import flat, joined_steps
from torchreg.training.one_shape import of_one_shape
from torchreg.training.optimizer import ProxOptimizer
from torchreg.training.sharded_step import part_of_step, whole_step
from torchreg.training.step_rules import StepRule
from torchreg.training.term import Term

_LIMIT = 2.0**-10  # stands for a learning rate of 0, where the residual's limit is wanted


def violation(*terms: Term, model: Module | None = None, optimizer: Optimizer | None = None) -> float:
    """The prox residual: 0 exactly at a stationary point of loss + penalty, for any optimizer and penalty.

    ``max |w - prox(w - t g, t)| / t``, in units of the gradient ``g``, over the entries of all
    penalised parameters; under a group penalty over the groups, by their norms, of `coupled` ones over all
    tensors. ``t`` is the effective step of the optimizer: what a proximal step would still move, divided by the
    step. For ``L1(alpha)`` it is ``max(|g| - alpha, 0)`` at a zero and at most ``|g + alpha sign(w)|`` elsewhere.

    The gradients are those that the parameters hold now, so call it between ``loss.backward()`` and
    ``opt.step()``, which moves the weights away from them, with the loss of all the data: of a
    mini-batch it measures the noise. They must be the loss's own, without a penalty added, and unscaled.
    A base's ``weight_decay`` is not part of loss + penalty; write it as L2.

    Args:
        terms: what `attach` made, or ``*opt.terms``.
        model: to include the model's other trainable parameters, by ``|g|``: then 0 means that the whole
            model is stationary. Without it only penalised parameters are looked at.
        optimizer: whose effective step to use for terms that no `ProxOptimizer` owns; an owner's is
            always used. Without either, t = 1.

    Returns:
        A number; it waits for the device. Parameters that are cut over processes (FSDP2) are gathered one
        by one: every process must call it, and gets the same.

    Raises:
        RuntimeError: if a penalised parameter that is trained has no gradient.
        TypeError: if something is no Term.
        ValueError: if there is no term, or no effective step is known for the optimizer.

    Notes:
        Computed in float64 where the device has it. A learning rate of 0, as at the end of a
        schedule, counts as 2^-10. A parameter that Adam or its like has not stepped yet has no metric;
        the learning rate is its step. A ``t`` that exceeds the concavity of MCP or SCAD certifies less:
        there prox is a hard threshold.

    Source:
        The gradient mapping of Nesterov, "Gradient methods for minimizing composite functions", Math.
        Program. 140, 2013, in a diagonal metric.

    Example:
        >>> import torch
        >>> from torchreg import L1, attach, violation
        >>> w = torch.nn.Parameter(torch.tensor([0.0, 2.0]))
        >>> term = attach(L1(0.5), {"w": w})
        >>> w.grad = torch.tensor([0.3, -0.5])  # inside [-0.5, 0.5] at the zero, -0.5 sign(w) elsewhere
        >>> violation(term)
        0.0
        >>> w.grad = torch.tensor([0.75, -0.5])
        >>> violation(term)
        0.25
    """
    _check(terms)
    trained = {n: p for term in terms for n, p in term.parameters.items() if p.requires_grad}
    others = _others(model, terms)
    _refuse_missing({**trained, **others})
    present = [any_entry(entries(p)) for p in {**trained, **others}.values()]
    worst = [found for term in terms for found in _residuals(term, optimizer)]
    worst += [_largest(whole(entries(p))) for p in others.values()]
    found = read([*present, *worst])
    _warn_of_zeros(found[: len(present)])
    return torch.tensor(found[len(present) :], dtype=torch.float64).max().item()  # keeps a NaN, unlike Python's max


def _check(terms: tuple[Any, ...]) -> None:
    for term in terms:
        if not isinstance(term, Term):
            raise TypeError(
                f"violation takes terms, got {type(term).__name__}; use attach(L1(0.1), model) or opt.terms."
            )
    if not any(p.requires_grad for term in terms for p in term.parameters.values()):
        raise ValueError("violation needs a term whose parameters require a gradient; give it *opt.terms, say.")


def _others(model: Module | None, terms: tuple[Term, ...]) -> dict[str, Tensor]:
    """The model's trainable parameters that no term penalises."""
    penalised = {id(p) for term in terms for p in term.parameters.values()}
    named = [] if model is None else model.named_parameters()
    return {f"{n} (unpenalised)": p for n, p in named if p.requires_grad and id(p) not in penalised}


def _refuse_missing(parameters: Mapping[str, Tensor]) -> None:
    missing = [name for name, p in parameters.items() if p.grad is None]
    if missing:
        raise RuntimeError(
            f"violation needs the gradients of the loss, and {missing[:3]} have none; call loss.backward() first, and "
            "zero_grad() after it."
        )


def _warn_of_zeros(present: list[float]) -> None:
    if not any(present):
        warnings.warn(
            "Every gradient is zero, so the violation is that of the penalty alone; call loss.backward() before it if "
            "zero_grad(set_to_none=False) left these zeros.",
            stacklevel=3,
        )


def _stepped(term: Term, optimizer: Optimizer | None) -> Iterator[tuple[Tensor, Penalty, Scalar]]:
    """Each trained parameter of a term with its penalty and its effective step."""
    base, rule = _metric(term.owner, optimizer)
    groups = {id(p): group for group in base.param_groups for p in group["params"]} if base is not None else {}
    for part in term.parts:
        for p in (p for p in part.parameters.values() if p.requires_grad):
            yield p, part.penalty, _step(p, groups.get(id(p)), base, rule)


def _residuals(term: Term, optimizer: Optimizer | None) -> list[Tensor]:
    """The residual of each parameter, or of groups that go over all of them, of which those not trained stay."""
    stepped = list(_stepped(term, optimizer))
    if term.together is None:
        kinds = [_kind(step, p) for p, _, step in stepped]
        sets = of_one_shape([p for p, _, _ in stepped], [penalty for _, penalty, _ in stepped], kinds)
        return [worst for at in sets for worst in _worst_of([stepped[k] for k in at])]
    trained = {id(p): t for p, _, t in stepped}
    params = term.together.parameters
    steps = joined_steps(params, [trained.get(id(p), 0.0) for p in params])
    grads = [_gradient(p) if id(p) in trained else torch.zeros_like(p.detach()) for p in params]
    moved = _residual(wide(flat(params).detach()), flat(grads), term.together.penalty, steps)
    units = term.together.units(params)
    parts = units.parted(moved)
    norms = units.sizes(parts)
    alone = units.spread(torch.zeros_like(norms, dtype=torch.bool), parts)  # entries of no group
    return [
        _largest(norms.clamp(min=0.0)),
        *(_largest(torch.where(m, x, 0.0)) for m, x in zip(alone, parts, strict=True)),
    ]


def _kind(step: Scalar, p: Tensor) -> Any:
    """What has to be the same of the steps of tensors that are stacked."""
    return step if not isinstance(step, Tensor) else "entry" if step.shape == p.shape and p.dim() else id(step)


def _worst_of(stepped: list[tuple[Tensor, Penalty, Scalar]]) -> list[Tensor]:
    """The largest residual of each of these parameters, which are of one shape and have one penalty."""
    p, penalty, step = stepped[0]

    def worst(w: Tensor, g: Tensor, t: Scalar) -> Tensor:
        return _largest_of(_residual(w, g, penalty, t), penalty)

    if len(stepped) == 1:
        return [worst(wide(whole(p)), _gradient(p), step)]
    w, g = torch.stack([wide(whole(p)) for p, _, _ in stepped]), torch.stack([_gradient(p) for p, _, _ in stepped])
    each = _kind(step, p) == "entry"
    t: Any = torch.stack([t for _, _, t in stepped if isinstance(t, Tensor)]) if each else step
    return list(torch.vmap(worst, in_dims=(0, 0, 0 if each else None))(w, g, t).unbind())


def _gradient(p: Tensor) -> Tensor:
    assert p.grad is not None
    return wide(whole(p.grad if p.grad.layout is torch.strided else p.grad.to_dense()))


def _metric(owner: Any, optimizer: Optimizer | None) -> tuple[Optimizer | None, StepRule | None]:
    if owner is None and isinstance(optimizer, ProxOptimizer):
        owner = optimizer
    if owner is not None:
        return owner.base, rule_for(owner.base, owner.metric)
    return optimizer, None if optimizer is None else rule_for(optimizer, "auto")


def _step(p: Tensor, group: Mapping[str, Any] | None, base: Optimizer | None, rule: StepRule | None) -> Scalar:
    if base is None or rule is None:
        return 1.0
    if group is None:
        raise ValueError(
            f"A penalised parameter of shape {tuple(p.shape)} is none of the {type(base).__name__}'s; give the "
            "optimizer that steps it, or none for t = 1."
        )
    group = {**group, "lr": _positive(group.get("lr", 1.0))}
    if rule.shape != "number" and not base.state.get(p):
        return group["lr"]
    step = part_of_step(p, base.state.get(p, {}), group, rule)
    return whole_step(Cut(p), step) if is_cut(p) else step


def _positive(lr: Scalar) -> Scalar:
    return torch.where(lr == 0, _LIMIT, lr) if isinstance(lr, Tensor) else lr or _LIMIT


@torch.no_grad()
def _residual(w: Tensor, g: Tensor, penalty: Penalty, step: Scalar) -> Tensor:
    t = wide(step) if isinstance(step, Tensor) else step
    t = common(t) if isinstance(t, Tensor) and takes_one_step(penalty) else t  # any step > 0 tells a stationary point
    moved = w - penalty.prox(w - t * g, t)
    return torch.where(moved == 0, 0.0, moved / t)  # also where nothing may move, the step being 0


def _largest_of(moved: Tensor, penalty: Penalty) -> Tensor:
    return _largest(moved if penalty.groups is None else penalty.groups.norms(moved))


def _largest(x: Tensor) -> Tensor:
    return x.abs().max() if x.numel() else x.new_zeros(())
