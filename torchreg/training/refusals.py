"""What a proximal step cannot follow, refused with a reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer, SparseAdam

from torchreg.training.term import Term


def refuse_base(base: Any, *others: type[Optimizer], terms: Sequence[Any] = ()) -> None:
    """Raise unless a proximal step of these terms can follow this optimizer's; ``others`` are refused as well."""
    if not isinstance(base, Optimizer):
        raise TypeError(f"A proximal step follows that of a torch.optim.Optimizer, got {type(base).__name__}.")
    lazy = bool(terms) and all(isinstance(t, Term) and all(part.lazy for part in t.parts) for t in terms)
    if isinstance(base, SparseAdam) and not lazy:
        raise ValueError(
            "A proximal step can follow SparseAdam in the rows that it steps alone: attach(penalty, embedding, "
            "lazy=True). For every row use Adam and sparse=False, or add penalty(model) to the loss."
        )
    if isinstance(base, (LBFGS, *others)):
        raise ValueError(
            f"A proximal step cannot follow {type(base).__name__}: it has no diagonal metric for dense weights; use "
            "Adam, or SGD, with all terms in one ProxOptimizer, or add penalty(model) to the loss."
        )
    for group in base.param_groups:
        refuse_group(group)


def refuse_group(group: dict[str, Any]) -> None:
    """Raise ValueError for options under which the update is no descent by a known step."""
    for flag, remedy in (("maximize", "minimise the negative"), ("differentiable", "use differentiable=False")):
        if group.get(flag):
            raise ValueError(f"A proximal step cannot follow an optimizer with {flag}=True; {remedy}.")
    if group.get("momentum", 0.0) >= 1.0:
        raise ValueError(
            f"A proximal step needs momentum < 1, got {group['momentum']}: the step lr / (1 - momentum) ends."
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
