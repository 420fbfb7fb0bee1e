"""What a proximal step cannot follow, refused with a reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedParameter
from torch.optim import LBFGS, Optimizer, SparseAdam


def refuse_base(base: Any, *others: type[Optimizer], lazy: bool = False) -> None:
    """Raise unless a proximal step, or one of ``lazy`` terms, can follow this optimizer's; ``others`` are refused."""
    if not isinstance(base, Optimizer):
        raise TypeError(f"A proximal step follows that of a torch.optim.Optimizer, got {type(base).__name__}.")
    if isinstance(base, SparseAdam) and not lazy:
        raise ValueError(
            "A proximal step can follow SparseAdam in the rows that it steps alone: attach(penalty, embedding, "
            "lazy=True). For every row use Adam and sparse=False, or add penalty(model) to the loss."
        )
    if isinstance(base, (LBFGS, *others)):
        raise ValueError(
            f"A proximal step cannot follow {type(base).__name__}: it has no diagonal metric for dense weights; use "
            "Adam, or SGD, with all terms in one ProxOptimizer, or add penalty(model) to the loss. For a linear model, "
            "torchreg.linear.fit_path(X, y, penalty) solves to certified optimality, without steps to choose."
        )
    refuse_groups("Parameter group", base.param_groups)


def refuse_groups(what: str, groups: Sequence[Mapping[str, Any]]) -> None:
    """`refuse_group` of each, by its number: at the door, of a checkpoint, and of groups that were edited since."""
    for k, group in enumerate(groups):
        try:
            refuse_group(group)
        except ValueError as error:
            raise ValueError(f"{what} {k}: {error}") from None


def refuse_group(group: Mapping[str, Any]) -> None:
    """Raise ValueError for options under which the update is no descent by a known step."""
    for flag, remedy in (("maximize", "minimise the negative"), ("differentiable", "use differentiable=False")):
        if group.get(flag):
            raise ValueError(f"A proximal step cannot follow an optimizer with {flag}=True; {remedy}.")
    momentum = group.get("momentum", 0.0)
    if not isinstance(momentum, Tensor) and momentum >= 1.0:
        raise ValueError(f"A proximal step needs momentum < 1, got {momentum}: the step lr / (1 - momentum) ends.")


def refuse_state(name: str, p: Tensor, base: Optimizer, state: Mapping[str, Any] | None = None) -> None:
    """Raise ValueError where a state of torch's own optimizers is that of a parameter of another shape."""
    kept = base.state.get(p, {}) if state is None else state
    if is_torchs_own(base) and (misfit := misfits(kept, p)):
        raise ValueError(
            f"The optimizer's state of {name!r}, {misfit!r} of shape {tuple(kept[misfit].shape)}, is that of another "
            f"parameter: this one has shape {tuple(p.shape)}. Load with strict=False to take what fits; if you have "
            "resized the parameter, drop its state, optimizer.state.pop(parameter)."
        )


def is_torchs_own(base: Optimizer) -> bool:
    """Whether this is an optimizer of torch itself, whose states have their parameters' shapes."""
    return type(base).__module__.startswith("torch.optim")


def misfits(state: Mapping[str, Any], p: Tensor) -> str:
    """The entry of a state that has neither its parameter's shape nor that of a factor of it, as Adafactor's; or ""."""
    shaped = {key: x.shape for key, x in state.items() if isinstance(x, Tensor) and x.dim()}
    fits = {
        key: len(s) == p.dim() and all(a in (1, b) for a, b in zip(s, p.shape, strict=True))
        for key, s in shaped.items()
    }
    return next((key for key, fit in fits.items() if not fit), "")


def refuse_lazy(name: str, p: Tensor) -> None:
    """Raise ValueError for a parameter of a lazy module that has no shape yet."""
    if isinstance(p, UninitializedParameter):
        raise ValueError(
            f"{name!r} belongs to a lazy module and has no shape yet, so whether the penalty fits cannot be told; run "
            "one batch through the model, then attach."
        )


def refuse_sparse(parameters: Sequence[Tensor]) -> None:
    """Raise RuntimeError where a penalised parameter has a sparse gradient."""
    for p in parameters:
        if p.grad is not None and p.grad.layout is not torch.strided:
            raise RuntimeError(
                f"A penalised parameter of shape {tuple(p.shape)} has a sparse gradient ({p.grad.layout}), but "
                "a proximal step touches every entry; attach(..., lazy=True) steps the rows that the gradient has, "
                "with SGD, Adagrad or SparseAdam, else build its module with sparse=False."
            )
