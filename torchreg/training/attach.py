"""Bind a penalty to parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.nn import Module

from torchreg.functional.output_channels import by_output_channel
from torchreg.penalties import Penalty
from torchreg.penalties.one_step import refuse_rows
from torchreg.penalties.spec import canonical
from torchreg.selection.selectors import Target, by_name
from torchreg.training.model_names import ModelNames
from torchreg.training.term import Term
from torchreg.training.term_part import Part, check_fit

PenaltyFor = Callable[[str, Tensor], Penalty]


def attach(penalty: Penalty | PenaltyFor, target: Target, *, lazy: bool = False) -> Term:
    """Bind a penalty to parameters.

    Args:
        penalty: a Penalty, or a function (name, parameter) -> Penalty for one per parameter.
        target: a module or several (then their `weights`), a selector's result or another dict of named
            parameters, one parameter, or several. Where modules or a selector's result name a transposed
            convolution, groups by `filters` are its output channels; of a bare tensor they are dimension 0.
        lazy: for embeddings: a proximal step shrinks only the rows (slices of dimension 0) whose gradient is
            not zero in that step. A row that no batch has touched keeps every bit, if the base leaves it
            alone too (no weight decay), and sparse gradients are allowed (SGD, Adagrad, SparseAdam). A row's
            strength is then alpha times the share of steps in which it appears.

    Returns:
        A `Term`: ``term()`` for the loss, or ``ProxOptimizer(base, term)`` for exact zeros.

    Raises:
        TypeError: if something is no penalty, or a parameter is not real floating-point.
        ValueError: if there is nothing to penalise, or a penalty does not fit a parameter.

    Example:
        >>> import torch
        >>> from torchreg import L1, attach
        >>> model = torch.nn.Linear(3, 1)
        >>> term = attach(L1(0.1), model)
        >>> print(term)
        name    shape   penalty        alpha
        weight  (1, 3)  L1(alpha=0.1)  0.1
        >>> term.alpha = 0.0
        >>> term().item()
        0.0
    """
    if isinstance(target, Penalty) or isinstance(penalty, Module):
        raise TypeError(
            f"attach takes the penalty first, attach(L1(0.1), model), got attach({type(penalty).__name__}, "
            f"{type(target).__name__})."
        )
    if not callable(penalty) or isinstance(penalty, type):
        raise TypeError(
            f"attach needs a penalty such as L1(0.1), or a function (name, parameter) -> penalty, got {penalty!r}."
        )
    parts: dict[object, Part] = {}
    named = _named(target)
    blocks = getattr(named, "transposed", {})
    for name, p in named.items():
        chosen = penalty if isinstance(penalty, Penalty) else penalty(name, p)
        bound = by_output_channel(chosen, blocks.get(name))
        _check(bound, name, p)
        refuse_rows(bound, lazy)
        key = (_key(chosen), None if bound is chosen else blocks.get(name))
        parts.setdefault(key, Part(bound, {}, lazy)).known[name] = p
    term = Term(list(parts.values()), ModelNames(target, named) if isinstance(target, Module) else None)
    term.left_out = dict(getattr(named, "left_out", {}))
    return term


def _key(penalty: Penalty) -> object:
    """Equal for penalties that may be stepped together; cheap where a spec would hash tensors."""
    ours = type(penalty).__module__.startswith("torchreg.")  # a user's own may differ where no spec sees it
    plain = ours and penalty.grain == "entry" and isinstance(penalty.alpha, float)
    return canonical(penalty.spec()) if plain else id(penalty)


def _named(target: Target) -> Mapping[str, Tensor]:
    named = by_name(target)
    if not named:
        raise ValueError("attach was given no parameters; choose some with weights(model) or matching(model, pattern).")
    once: dict[int, str] = {}
    for name, p in named.items():
        if not isinstance(p, Tensor):
            raise TypeError(
                f"attach needs parameters, got {type(p).__name__} for {name!r}; pass a dict name -> parameter, or "
                "modules alone for their weights."
            )
        if id(p) in once:
            raise ValueError(f"{name!r} and {once[id(p)]!r} are the same parameter; give it once.")
        once[id(p)] = name
    return named


def _check(penalty: Any, name: str, p: Tensor) -> None:
    if not isinstance(penalty, Penalty):
        raise TypeError(
            f"The function given to attach must return a Penalty for {name!r}, got {penalty!r}; leave a parameter out "
            "by leaving it out of the target."
        )
    if not p.is_leaf:
        raise TypeError(
            f"{name!r} is computed from other tensors (a parametrized weight, say); attach to the raw parameter, "
            "weights(model) finds it, or add penalty(tensor) to the loss."
        )
    if getattr(p, "_fsdp_flattened", False):
        raise TypeError(
            f"{name!r} is a slice of flattened parameters (FullyShardedDataParallel), whose shape and neighbours are "
            "lost; shard with torch.distributed.fsdp.fully_shard instead, and attach after it."
        )
    check_fit(penalty, name, p)
