"""A term: penalties bound to parameters of a model, the only mutable holder in the library."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from torchreg.functional.shrinkage import Scalar
from torchreg.penalties import Penalty
from torchreg.penalties.base import refuse_several, whole_value
from torchreg.selection.selected import told
from torchreg.text_table import text_table
from torchreg.training.checkpoint import renewals, restore, strengths, tell
from torchreg.training.held_zeros import Held
from torchreg.training.joint_groups import JointGroups
from torchreg.training.model_names import ModelNames
from torchreg.training.placement import check_placement
from torchreg.training.term_part import Owner, Part, check_fit


class Term:
    """Penalties bound to named parameters; made by `attach`.

    ``term()`` is the penalty's value, to add to a loss. Once a `ProxOptimizer` owns the term, the
    value is detached: it can be logged, and cannot be counted twice. ``term.alpha`` can be read
    and assigned; ``print(term)`` is a table of what is penalised.

    Attached to a module, a term follows it: after ``load_state_dict(assign=True)``, where a head is replaced and after
    ``fully_shard`` it penalises what the module then has under the same names. Owned by an optimizer, it follows
    that: trainers may put other tensors into it (FSDP2 in Accelerate), you may edit its ``param_groups``. Attached
    to a dict and owned by none, it keeps the tensors that it was given; so does a copy, which follows no module.
    Where parameters are cut over processes, ``term()`` is the value of the whole, on each of them.

    Of optimizers made for one term, in a loop over learning rates say, the last takes it over. Two that both
    make steps are refused.

    `torch.distributed.checkpoint` keeps of an optimizer what torch's own keep, without the strengths:
    give it the term as well, ``dcp.save({"model": ..., "optimizer": ..., "term": term})``.

    Attributes:
        parts: the penalties, each with its parameters.
        bare: whether it was a bare penalty: it takes what its optimizer has with two or more dimensions.
        scheduler: the `PenaltyScheduler` that moves the strength, or the `TargetSparsity`, or None.
        control: what its parameters take in place of the plain proximal step (`torchreg.training.control`), or None.
        left_out: of the parameters that `weights` did not choose, name -> why.
    """

    def __init__(self, parts: list[Part], names: ModelNames | None = None) -> None:
        self.parts = parts
        self.bare = False
        self.scheduler: Any = None
        self.control: Any = None
        self._names = names
        self._owner: weakref.ref[Any] | None = None
        self.left_out: dict[str, str] = {}
        self._steps = False  # whether the owner has made one
        for part in parts:
            part.follow(self.present)

    def present(self, part: Part) -> dict[str, Tensor]:
        """A part's parameters as they stand in the owner, or else in the model, now; changes nothing."""
        owner = self.owner
        if owner is not None:
            present: dict[str, Tensor] = owner.positions.present(part)
            return present
        if self._names is None:
            return part.known
        found = self._names.present(part.known)
        for name, p in found.items():
            if p.shape != part.known[name].shape:
                check_fit(part.penalty, name, p)
        return found

    def in_model(self, name: str) -> Tensor | None:
        """What the model has under a name now, None where the term knows no model or that has no such name."""
        return None if self._names is None else self._names.tensor(name)

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The penalised parameters by name."""
        return {name: p for part in self.parts for name, p in part.parameters.items()}

    @property
    def together(self) -> JointGroups | None:
        """The groups that go over all of its parameters, None where each has its own."""
        found: JointGroups | None = self.parts[0].together if self.parts else None
        return found

    @property
    def penalties(self) -> dict[str, Penalty]:
        """The penalty of each parameter, by the parameter's name."""
        return {name: part.penalty for part in self.parts for name in part.parameters}

    def __call__(self) -> Tensor:
        """The sum of the penalties' values, a 0-d tensor; detached once an optimizer owns the term.

        Raises:
            RuntimeError: if no optimizer owns the term, and its module has lost a parameter.
        """
        alone = self.owner is None
        if alone and self._names is not None and not torch.compiler.is_compiling():
            for part in self.parts:
                self._names.refuse_lost(part.known)
        with torch.set_grad_enabled(torch.is_grad_enabled() and alone):
            if self.together is not None:
                return self.together.value()
            values = [whole_value(part.penalty, p) for part in self.parts for p in self.present(part).values()]
            return sum(values[1:], values[0]) if values else torch.zeros(())

    @property
    def alpha(self) -> Scalar:
        """The strength that all the term's penalties share.

        Raises:
            ValueError: if they have several: attach one term per strength to change them, and write a sum with a term
                of strength 1, ``L1(1.0) + L2(0.1)``, whose strength its alpha then is.
        """
        return self._common_alpha()

    @alpha.setter
    def alpha(self, alpha: Scalar) -> None:
        self._common_alpha()
        renewed = [part.penalty.with_alpha(alpha) for part in self.parts]
        for part, penalty in zip(self.parts, renewed, strict=True):
            for name, p in part.parameters.items():
                check_placement(name, penalty, p)
        for part, penalty in zip(self.parts, renewed, strict=True):
            part.penalty = penalty

    def _common_alpha(self) -> Scalar:
        for part in self.parts:
            refuse_several(part.penalty)
        first = self.parts[0].penalty.alpha
        alphas = [part.penalty.alpha for part in self.parts]
        if not all(a is first or (not isinstance(a, Tensor) and a == first) for a in alphas):
            raise ValueError(
                f"This term has several alphas, {sorted({float(a) for a in alphas})}; attach one term per strength "
                "to read or change them, or read term.penalties."
            )
        return first

    @property
    def owner(self) -> Owner | None:
        """The optimizer that steps this term's proximal map, or None."""
        return None if self._owner is None else self._owner()

    def own(self, optimizer: Owner) -> None:
        """Let an optimizer step this term from now on, in place of any other."""
        self._owner, self._steps = weakref.ref(optimizer), False

    def claim(self, optimizer: Owner) -> None:
        """Called by an optimizer before each of its steps.

        Raises:
            RuntimeError: if another one has made steps since it took the term over.
        """
        owner = self.owner
        if owner is not optimizer:
            if owner is not None and self._steps and owner.base is not optimizer.base:
                names = list(self.parameters)
                raise RuntimeError(
                    f"{names[:3]} ({len(names)} penalised) would be stepped by two optimizers: this "
                    f"{type(optimizer.base).__name__}, and a {type(owner.base).__name__} that took their term over and "
                    "has made steps since. Step with one of them, take the term back with add_term(term), or attach "
                    "a second term."
                )
            self.own(optimizer)
        self._steps = True

    def disown(self, optimizer: Any) -> None:
        """Let go of the optimizer that claimed this term."""
        if self.owner is optimizer:
            self._owner = None

    def stepped(self, optimizer: Any) -> None:
        """Called by the optimizer after each step that it has made, for the scheduler to count."""
        if self.scheduler is not None:
            self.scheduler.stepped(optimizer)

    @property
    def target(self) -> Any:
        """The `TargetSparsity` that moves the term, or None."""
        return self.scheduler if self.scheduler is not None and self.scheduler.target else None

    @property
    def frozen(self) -> bool:
        """Whether `freeze_zeros` holds the term's zeros."""
        return isinstance(self.control, Held)

    def hold(self, frozen: bool) -> None:
        """Hold the term's zeros from the next step on, or no longer."""
        if frozen != self.frozen:
            self.control = Held() if frozen else None

    def turn(self, alpha: float) -> None:
        """Set the strength of every part; a tensor is filled in place."""
        for part in self.parts:
            part.turn(alpha)

    def state_dict(self) -> dict[str, Any]:
        """Kinds, strengths, names of parameters and steps of a schedule, as plain data."""
        return {"parts": [{**part, "alpha": float(part["alpha"])} for part in strengths([self])]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the strengths and the schedule's count of a saved term; a warning says where a strength changes.

        Raises:
            ValueError: if it penalised other parameters, or by other penalties; nothing has changed then.
        """
        tell(restore(renewals([self], state_dict["parts"]), []))

    def __getstate__(self) -> dict[str, Any]:
        kept = ("parts", "bare", "scheduler", "control", "left_out")
        return {name: vars(self)[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Term.__init__(self, state["parts"])
        vars(self).update(state)

    def __repr__(self) -> str:
        rows = [
            (
                name,
                str(tuple(p.shape)),
                repr(part.penalty),
                "-" if part.penalty.several else f"{float(part.penalty.alpha):g}",
            )
            for part in self.parts
            for name, p in part.parameters.items()
        ]
        table = text_table(("name", "shape", "penalty", "alpha"), rows)
        return "\n".join([table, *told(self.left_out, ordinary=False)])
