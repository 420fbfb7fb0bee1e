"""A term: one penalty bound to parameters of a model, the only mutable holder in the library."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from torchreg.penalties import Penalty
from torchreg.penalties.spec import canonical
from torchreg.penalties.whole import whole_value
from torchreg.select import weights
from torchreg.shrinkage import Scalar
from torchreg.text_table import text_table
from torchreg.training.checkpoint import renewals, restore, strengths

PenaltyFor = Callable[[str, Tensor], Penalty]
Target = Module | Mapping[str, Tensor] | Iterable[Tensor] | Tensor


class Part:
    """Parameters of a term that share one penalty."""

    lazy = False  # of parts that were pickled without it

    def __init__(self, penalty: Penalty, parameters: dict[str, Tensor], lazy: bool = False) -> None:
        self.penalty = penalty
        self.parameters = parameters
        self.lazy = lazy

    def turn(self, alpha: float) -> None:
        """Set the strength; a tensor is filled in place, since whoever made or compiled it goes on turning it."""
        renewed = self.penalty.with_alpha(alpha)  # raises for a value out of range
        if isinstance(self.penalty.alpha, Tensor):
            self.penalty.alpha.detach().fill_(alpha)
        else:
            self.penalty = renewed


class Term:
    """Penalties bound to named parameters; made by `attach`.

    ``term()`` is the penalty's value, to add to a loss. Once a `ProxOptimizer` owns the term, the
    value is detached: it can be logged, and cannot be counted twice. ``term.alpha`` can be read
    and assigned; ``print(term)`` is a table of what is penalised.

    Trainers that put other tensors into the optimizer (FSDP2 in Accelerate) are followed where an
    optimizer owns the term; attach to the model as it is trained otherwise, after ``fully_shard``.
    Where parameters are cut over processes, ``term()`` is the value of the whole, on each of them.

    `torch.distributed.checkpoint` keeps of an optimizer what torch's own keep, without the strengths:
    give it the term as well, ``dcp.save({"model": ..., "optimizer": ..., "term": term})``.

    Attributes:
        scheduler: the `PenaltyScheduler` that moves the strength, or None.
    """

    def __init__(self, parts: list[Part]) -> None:
        self._parts = parts
        self.scheduler: Any = None
        self._owner: weakref.ref[Any] | None = None

    @property
    def parts(self) -> list[Part]:
        """The penalties, each with its parameters as they stand in the owner now."""
        if self.owner is not None:
            self.owner.renew_parts()
        return self._parts

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The penalised parameters by name."""
        return {name: p for part in self.parts for name, p in part.parameters.items()}

    @property
    def penalties(self) -> dict[str, Penalty]:
        """The penalty of each parameter, by the parameter's name."""
        return {name: part.penalty for part in self.parts for name in part.parameters}

    def __call__(self) -> Tensor:
        """The sum of the penalties' values, a 0-d tensor; detached once an optimizer owns the term."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.owner is None):
            values = [whole_value(part.penalty, p) for part in self.parts for p in part.parameters.values()]
            return sum(values[1:], values[0])

    @property
    def alpha(self) -> Scalar:
        """The strength that all the term's penalties share.

        Raises:
            ValueError: if they have several; attach one term per strength to change them.
        """
        return self._common_alpha()

    @alpha.setter
    def alpha(self, alpha: Scalar) -> None:
        self._common_alpha()
        renewed = [part.penalty.with_alpha(alpha) for part in self._parts]
        for part, penalty in zip(self._parts, renewed, strict=True):
            part.penalty = penalty

    def _common_alpha(self) -> Scalar:
        first = self._parts[0].penalty.alpha
        alphas = [part.penalty.alpha for part in self._parts]
        if not all(a is first or (not isinstance(a, Tensor) and a == first) for a in alphas):
            raise ValueError(
                f"This term has several alphas, {sorted({float(a) for a in alphas})}; attach one term per strength "
                "to read or change them, or read term.penalties."
            )
        return first

    @property
    def owner(self) -> Any:
        """The optimizer that steps this term's proximal map, or None."""
        return None if self._owner is None else self._owner()

    def own(self, optimizer: Any) -> None:
        """Claim this term for an optimizer.

        Raises:
            ValueError: if another optimizer holds it.
        """
        if self.owner not in (None, optimizer):
            raise ValueError(
                f"A term is already owned by another optimizer, {type(self.owner).__name__}; one parameter takes one "
                "proximal step. Attach a second term, or drop the first optimizer."
            )
        self._owner = weakref.ref(optimizer)

    def disown(self, optimizer: Any) -> None:
        """Let go of the optimizer that claimed this term."""
        if self.owner is optimizer:
            self._owner = None

    def stepped(self, optimizer: Any) -> None:
        """Called by the optimizer after each step that it has made, for the scheduler to count."""
        if self.scheduler is not None:
            self.scheduler.stepped(optimizer)

    def turn(self, alpha: float) -> None:
        """Set the strength of every part; a tensor is filled in place."""
        for part in self._parts:
            part.turn(alpha)

    def state_dict(self) -> dict[str, Any]:
        """Kinds, strengths, names of parameters and steps of a schedule, as plain data."""
        return {"parts": [{**part, "alpha": float(part["alpha"])} for part in strengths([self])]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the strengths and the schedule's count of a saved term; a warning says where a strength changes.

        Raises:
            ValueError: if it penalised other parameters, or by other penalties; nothing has changed then.
        """
        restore(renewals([self], state_dict["parts"]), [])

    def __getstate__(self) -> dict[str, Any]:
        return {"parts": self.parts, "scheduler": self.scheduler}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._parts, self.scheduler, self._owner = state["parts"], state["scheduler"], None

    def __repr__(self) -> str:
        rows = [
            (name, str(tuple(p.shape)), repr(part.penalty), f"{float(part.penalty.alpha):g}")
            for part in self.parts
            for name, p in part.parameters.items()
        ]
        return text_table(("name", "shape", "penalty", "alpha"), rows)


def attach(penalty: Penalty | PenaltyFor, target: Target, *, lazy: bool = False) -> Term:
    """Bind a penalty to parameters.

    Args:
        penalty: a Penalty, or a function (name, parameter) -> Penalty for one per parameter.
        target: a module (then its `weights`), a selector's result or another dict of named
            parameters, one parameter, or several.
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
    if not callable(penalty) or isinstance(penalty, type):
        raise TypeError(
            f"attach needs a penalty such as L1(0.1), or a function (name, parameter) -> penalty, got {penalty!r}."
        )
    parts: dict[object, Part] = {}
    for name, p in _named(target).items():
        chosen = penalty if isinstance(penalty, Penalty) else penalty(name, p)
        _check(chosen, name, p)
        parts.setdefault(_key(chosen), Part(chosen, {}, lazy)).parameters[name] = p
    return Term(list(parts.values()))


def _key(penalty: Penalty) -> object:
    """Equal for penalties that may be stepped together; cheap where a spec would hash tensors."""
    ours = type(penalty).__module__.startswith("torchreg.")  # a user's own may differ where no spec sees it
    plain = ours and penalty.grain == "entry" and isinstance(penalty.alpha, float)
    return canonical(penalty.spec()) if plain else id(penalty)


def _named(target: Target) -> dict[str, Tensor]:
    if isinstance(target, Module):
        return dict(weights(target))
    if isinstance(target, Tensor):
        named = {"parameter": target}
    elif isinstance(target, Mapping):
        named = dict(target)
    else:
        named = {str(k): p for k, p in enumerate(target)}
    if not named:
        raise ValueError("attach was given no parameters; choose some with weights(model) or matching(model, pattern).")
    once: dict[int, str] = {}
    for name, p in named.items():
        if not isinstance(p, Tensor):
            raise TypeError(
                f"attach needs parameters, got {type(p).__name__} for {name!r}; pass a dict name -> parameter."
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
    try:
        penalty.check(p)
    except (TypeError, ValueError) as error:
        raise type(error)(f"Parameter {name!r} of shape {tuple(p.shape)}: {error}") from None
