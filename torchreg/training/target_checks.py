"""What a TargetSparsity is given, looked at before anything has changed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from numbers import Real
from typing import TYPE_CHECKING, Any, cast, get_args

import torch
from torch import Tensor

from torchreg.functional.dtensor import Cut, here, is_cut
from torchreg.functional.reductions import wide_dtype
from torchreg.penalties import Penalty
from torchreg.penalties.alpha import zeros_decide
from torchreg.penalties.cardinality import ranks
from torchreg.training.pruning import Method
from torchreg.training.term import Term
from torchreg.training.units import units_of

if TYPE_CHECKING:
    pass

_WEAK, _MOVED = 1e-20, 1e-3  # a strength that moves a weight of 1 by no more than rounding, unless it constrains it


def share_of(share: float, number: int) -> int:
    """``ceil(share * number)``, of whose share the decimal digits count: 55 are 0.55 of 100."""
    return math.ceil(Fraction(repr(share)) * number)


def check_shares(sparsity: Any, steps: Any, begin: Any, end: Any, freeze: Any) -> None:
    """Raise unless these are a share of zeros, and a ramp that lies within the training."""
    if isinstance(sparsity, bool) or not isinstance(sparsity, Real) or not 0.0 < float(sparsity) <= 1.0:
        raise ValueError(
            f"TargetSparsity needs the share of zeros, above 0 and at most 1, got {sparsity!r}; 0.9 for 90 %."
        )
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"TargetSparsity needs steps as an int, got {steps!r}; count optimizer steps, not epochs.")
    shares = {"begin": begin, "end": end, "freeze": freeze}
    for name, share in shares.items():
        if isinstance(share, bool) or not isinstance(share, Real) or not 0.0 <= float(share) <= 1.0:
            raise ValueError(f"TargetSparsity needs {name} as a share of steps, from 0 to 1, got {share!r}.")
    if not begin < end <= freeze:
        raise ValueError(
            f"TargetSparsity needs begin < end <= freeze, got {begin}, {end}, {freeze}: zeros rise from begin to end, "
            "and stay from freeze on."
        )
    if steps < 1 or round(end * steps) <= round(begin * steps):
        raise ValueError(
            f"TargetSparsity's ramp from {begin} to {end} of steps={steps} has no optimizer step; give more steps, or "
            "a longer ramp."
        )


def check_choice(name: str, value: Any, allowed: Sequence[str]) -> None:
    """Raise unless a word is one of those that are known."""
    if value not in allowed:
        raise ValueError(f"TargetSparsity needs {name} as one of {list(allowed)}, got {value!r}.")


def chosen_method(term: Term, method: Any) -> Method:
    """The method that was asked for, or that serves the term's zeros best."""
    check_choice("method", method, ("auto", *get_args(Method)))
    if method != "auto":
        return cast("Method", method)
    grouped = term.together is None and any(part.penalty.groups is not None for part in term.parts)
    return "feedback" if grouped and has_one_alpha(term) else "projection"


def check_every(every: Any, ramp: int) -> None:
    """Raise unless None, or a number of steps that is no more than the ramp has."""
    if every is None:
        return
    if isinstance(every, bool) or not isinstance(every, int) or not 1 <= every <= ramp:
        raise ValueError(f"TargetSparsity needs every as an int from 1 to the ramp's {ramp} steps, got {every!r}.")


def check_term(term: Any) -> None:
    """Raise unless this is a term that a target can move."""
    if not isinstance(term, Term):
        raise TypeError(f"TargetSparsity moves a term, got {type(term).__name__}; use attach(L1(0.0), model).")
    owner = term.owner
    if owner is None:
        raise ValueError(
            "TargetSparsity needs a term that an optimizer steps, and none does; make ProxOptimizer(base, term) first."
        )
    for other in (term.scheduler, term.control):
        if other is not None and not (term.target is not None and term.target.is_of_another(owner)):
            raise ValueError(
                f"This term is moved by {other!r} already, and a term takes one; attach another term, thaw(term) to "
                "end a target or freeze_zeros, or leave the PenaltyScheduler out."
            )
    if not sum(p.numel() for p in term.parameters.values()):
        raise ValueError("TargetSparsity needs weights to make zero, and this term's parameters have no entries.")
    for part in term.parts:
        if not zeros_decide(part.penalty):
            raise ValueError(
                f"TargetSparsity needs a penalty that makes zeros, got {part.penalty!r}; attach L1(0.0), or a Group, "
                "and leave the L2 to the optimizer's weight_decay."
            )
    refuse_constraints("TargetSparsity", term)
    if frozen := [name for name, p in term.parameters.items() if not p.requires_grad]:
        raise ValueError(
            f"TargetSparsity cannot prune what is not trained: {frozen[:3]}, {len(frozen)} in all, are frozen; attach "
            "without them, or unfreeze them."
        )
    if lazy := [name for part in term.parts if part.lazy for name in part.parameters]:
        raise ValueError(
            f"{lazy[:3]} are attached with lazy=True, and TargetSparsity weighs all rows against each other at each "
            "step; attach without it."
        )


def check_layers(term: Term, share: float, scope: str) -> None:
    """Raise where units over all parameters cannot have that share of zeros and each layer one that is left."""
    for units in units_of(term):
        if units.layers is None:
            continue
        numbers = [(units.number, units.layers.number)] if scope == "global" else [(n, 1) for n in units.numbers]
        for number, least in numbers:
            if (kept := number - share_of(share, number)) < least:
                most = math.floor(1000.0 * (number - least) / number) / 1000.0
                raise ValueError(
                    f"TargetSparsity at {share:g} would leave {kept} of {number} units, but each of {least} layer(s) "
                    f"needs one, without which the net would be dead; ask for {most:g} at most."
                )


def refuse_lost(target: Any, present: Mapping[str, Tensor], names: Sequence[str]) -> None:
    """Raise ValueError where parameters were frozen, or are gone, while a target moves their zeros."""
    if frozen := [name for name, p in present.items() if not p.requires_grad]:
        raise ValueError(
            f"{frozen[:3]}, {len(frozen)} in all, were frozen while {target!r} moves them: it weighs all weights of "
            f"its term until step {target.freezes}. Unfreeze them, or attach without them."
        )
    if gone := [name for name in names if name not in present]:
        raise ValueError(
            f"{gone[:3]}, {len(gone)} in all, are no longer there while {target!r} moves them: it weighs all weights "
            f"of its term until step {target.freezes}. End it with thaw(term), and make it anew."
        )


def told_difference(mine: dict[str, Any], saved: dict[str, Any]) -> str:
    """What makes a target another one than that of a checkpoint; "" where nothing does."""
    other = [key for key in mine if key != "history" and mine[key] != saved.get(key)]
    if not other:
        return ""
    told = {key: saved.get(key) for key in other} if saved else "no target"
    now = {key: mine[key] for key in other}
    return (
        f"The checkpoint is of another target: it has {told}, this one {now}. Make the "
        "target of the checkpoint before load_state_dict, or drop its 'torchreg' entry to begin anew."
    )


def refuse_constraints(what: str, term: Term) -> None:
    """Raise ValueError where a penalty demands more than zeros, which it no longer would once it does not act."""
    for part in term.parts:
        for name, p in part.parameters.items():
            if _demands(part.penalty, p):
                raise ValueError(
                    f"{what} trains the kept weights without the proximal step, so {part.penalty!r} would not hold for "
                    f"{name!r} any longer: signs, bounds, patterns, or entries forced to zero. Attach L1(0.0) or a "
                    "Group of it instead, or leave those parameters out."
                )


def _demands(penalty: Penalty, p: Tensor) -> bool:
    """Whether a penalty moves weights of either sign however weak it is, or is a constraint but on their number."""
    if penalty.several == (penalty,):
        return not (ranks(penalty) and penalty.grain == "tensor")
    if penalty.several:
        return any(_demands(term, p) for term in penalty.several)
    part = penalty.part(Cut(p)) if is_cut(p) else penalty
    if part is None or p.is_meta:
        return False
    one = torch.ones_like(here(p), dtype=wide_dtype(p), requires_grad=False)
    weak = part.with_alpha(_WEAK)
    return any(bool(((weak.prox(x, 1.0) - x).abs() > _MOVED).any()) for x in (one, -one))


def has_one_alpha(term: Term) -> bool:
    """Whether all of a term's penalties have one strength, which a bound on the non-zeros has not."""
    try:
        return term.alpha is not None
    except ValueError:
        return False


def check_shrinkage(term: Term, method: str, asked: Any) -> None:
    """Raise unless this is a share of gradients by which "projection" can shrink a term's weights."""
    if isinstance(asked, bool) or not isinstance(asked, Real) or not 0.0 <= float(asked) < math.inf:
        raise ValueError(f"TargetSparsity needs shrinkage as a number >= 0, got {asked!r}; 0.2 of gradients' size.")
    entries = term.together is None and all(part.penalty.grain == "entry" for part in term.parts)
    if asked and not (method == "projection" and entries and has_one_alpha(term)):
        raise ValueError(
            f"shrinkage={asked!r} is of method='projection', for penalties of entries with one alpha, and this is "
            f"{method!r} of {[part.penalty for part in term.parts][:3]}; leave it out, or attach L1(0.0)."
        )


def own_alpha(term: Term) -> Tensor | float:
    """The term's alpha at 0, as a tensor that is filled on the device; a number where there are several devices."""
    if not has_one_alpha(term):
        raise ValueError(
            "TargetSparsity's method='feedback' moves the one alpha of a term, and this term has several or none; use "
            "method='projection', or attach a term for each strength."
        )
    devices = {here(p).device for p in term.parameters.values()}
    if len(devices) > 1:
        term.turn(0.0)
        return 0.0
    device = devices.pop()
    alpha = torch.zeros((), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    term.alpha = alpha
    return alpha
