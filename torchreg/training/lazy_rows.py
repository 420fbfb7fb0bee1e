"""A proximal step of the rows that the gradient touches; all others keep every bit.

A row is a slice of dimension 0. Where a gradient is dense, untouched rows get a step of 0, at which every prox is the
identity; where it is sparse, the touched rows are taken out, stepped and put back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from torchreg.functional.dtensor import Cut, is_cut, whole
from torchreg.functional.shrinkage import Scalar
from torchreg.penalties import Penalty
from torchreg.training.group_steps import marked, prox_
from torchreg.training.sharded_step import Place
from torchreg.training.step_rules import ParamGroup, State, StepRule
from torchreg.training.term import Term

_TOUCHED = "touched"  # what is lent to a parameter's state for the time of a step


def all_lazy(terms: Sequence[Any]) -> bool:
    """Whether these are terms, and each takes only the rows that the gradient touches."""
    return bool(terms) and all(isinstance(t, Term) and all(part.lazy for part in t.parts) for t in terms)


def lazily(
    places: list[Place], group: Mapping[str, Any], penalty: Penalty, rule: StepRule
) -> tuple[list[Place], StepRule]:
    """Step the rows of sparse gradients; what is left, with a rule that is 0 in rows without a gradient."""
    left: list[Place] = []
    for p, state in places:
        if _is_sparse(p) and penalty.grain != "tensor" and rule.shape != "tensor":
            _step_rows(p, state, group, penalty, rule)
        else:
            left.append((p, {**state, _TOUCHED: _touched(p)}))
    return left, replace(rule, steps=_only_touched(rule), shape="entry" if rule.shape == "number" else rule.shape)


def _only_touched(rule: StepRule) -> Any:
    def steps(group: ParamGroup, states: Sequence[State], params: Sequence[Tensor]) -> list[Scalar]:
        found = rule.steps(group, states, params)
        return [_where(state[_TOUCHED], t, p) for state, t, p in zip(states, found, params, strict=True)]

    return steps


def _where(touched: Tensor, step: Scalar, p: Tensor) -> Tensor:
    if isinstance(step, Tensor):
        return torch.where(touched, step, torch.zeros_like(step))
    exact = torch.float32 if p.device.type == "mps" else torch.float64  # as precise as the number was
    return torch.where(touched, torch.full((), step, dtype=exact, device=p.device), 0.0).to(_dtype(p))


def _dtype(p: Tensor) -> torch.dtype:
    return torch.float64 if p.dtype is torch.float64 else torch.float32


def _is_sparse(p: Tensor) -> bool:
    return p.grad is not None and p.grad.layout is not torch.strided


def _rows(p: Tensor) -> Tensor:
    """The rows that a sparse gradient names, each once."""
    assert p.grad is not None
    index = p.grad.coalesce().indices()
    return index[0] if len(index) == 1 else index[0].unique()


def _touched(p: Tensor) -> Tensor:
    """Whether the row of each entry that lies here has a gradient; a NaN is one."""
    grad = p.grad
    assert grad is not None
    if _is_sparse(p):
        rows = torch.zeros(p.shape[0], dtype=torch.bool, device=p.device).index_fill_(0, _rows(p), True)
    else:
        if is_cut(grad):
            grad = grad.to_local() if Cut(grad).keeps_rows else whole(grad)  # type: ignore[attr-defined]
        rows = (grad != 0).flatten(1).any(1) if grad.dim() > 1 else grad != 0
    each = rows.reshape(rows.shape + (1,) * (p.dim() - 1))
    if is_cut(p) and not Cut(p).keeps_rows:
        return Cut(p).part(each)
    return each.expand((*rows.shape, *p.shape[1:]) if not is_cut(p) else p.to_local().shape).contiguous()  # type: ignore[attr-defined]


def _step_rows(p: Tensor, state: Mapping[str, Any], group: Mapping[str, Any], penalty: Penalty, rule: StepRule) -> None:
    rows = _rows(p)
    if not len(rows):
        return
    x = p[rows]
    shaped = {k: v for k, v in state.items() if isinstance(v, Tensor) and v.shape == p.shape}
    its = {k: v[rows] for k, v in shaped.items() if v.layout is torch.strided}  # SGD's buffer is sparse, and not used
    prox_(penalty, [x], marked(rule, penalty).steps(group, [{**state, **its}], [x]))
    p.index_copy_(0, rows, x)
