"""What a bare penalty takes of an optimizer: its parameters with two or more dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from torchreg.penalties import Penalty
from torchreg.penalties.one_step import refuse_without_prox
from torchreg.training.attach import attach
from torchreg.training.term import Term
from torchreg.training.validation import refuse_group


def matrices(group: dict[str, Any], index: int) -> dict[str, Tensor]:
    """The parameters of a group that a bare penalty takes, by position."""
    return {f"group {index}, parameter {k}": p for k, p in enumerate(group["params"]) if p.dim() >= 2}


def all_matrices(base: Optimizer) -> dict[str, Tensor]:
    """The parameters of an optimizer that a bare penalty takes."""
    groups = enumerate(base.param_groups)
    return {name: p for index, group in groups for name, p in matrices(group, index).items()}


def bare_term(base: Optimizer, penalty: Penalty) -> Term:
    """A bare penalty attached to what it takes of an optimizer."""
    taken = all_matrices(base)
    if not taken:
        raise ValueError(
            "A bare penalty takes the optimizer's parameters with two or more dimensions, and there are none; "
            "choose parameters with attach(penalty, {name: parameter})."
        )
    term = attach(penalty, taken)
    term.bare = True
    return term


def joined_terms(base: Optimizer, terms: Sequence[Term | Penalty]) -> list[Term]:
    """The terms, with each bare penalty attached to what it takes of the optimizer."""
    if not terms:
        raise ValueError("A proximal step needs a term or a penalty, got none; use attach(L1(0.1), model).")
    for term in terms:
        if not isinstance(term, (Term, Penalty)):
            raise TypeError(f"Terms and penalties are stepped, got {type(term).__name__}; use attach(...).")
    for penalty in (p for t in terms for p in ([t] if isinstance(t, Penalty) else [part.penalty for part in t.parts])):
        refuse_without_prox(penalty)
    return [bare_term(base, t) if isinstance(t, Penalty) else t for t in terms]


def added_group(base: Optimizer, terms: Sequence[Term], group: dict[str, Any]) -> dict[str, Any]:
    """A group that may be added to an optimizer, as a dict of its own.

    Raises:
        TypeError: if its parameters are in no order.
        ValueError: if its options or a bare penalty of the terms do not fit it.
    """
    params = group["params"]
    if isinstance(params, (set, frozenset)):
        raise TypeError("add_param_group needs parameters in a fixed order, got a set; use a list.")
    group = {**group, "params": [params] if isinstance(params, Tensor) else list(params)}
    refuse_group({**base.defaults, **group})
    plain = [p[1] if isinstance(p, tuple) else p for p in group["params"]]
    found = matrices({"params": plain}, len(base.param_groups))
    for part in (term.parts[0] for term in terms if term.bare and found):
        attach(part.penalty, found)  # raises where the penalty does not fit
    return group
