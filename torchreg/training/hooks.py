"""The proximal step as hooks on an optimizer, and what torch's hooks make of a state dict."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer

from torchreg.training.checkpoint import KEY, Renewal, restore, saved_parts, tell
from torchreg.training.common_step import Copies, copies_for
from torchreg.training.control import Mode, begin, check_controls, done, proximal_half, settle
from torchreg.training.effective_step import Metric, check_metric, rule_for
from torchreg.training.param_positions import ParamPositions, attached_terms
from torchreg.training.partial_load import matched
from torchreg.training.rollback import Rollback
from torchreg.training.step_checks import StepChecks
from torchreg.training.term import Term


def through(hooks: Mapping[int, Any], optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A state dict as hooks leave it, which may change it or return another."""
    for hook in hooks.values():
        changed = hook(optimizer, state)
        state = state if changed is None else changed
    return state


def written(base: Optimizer, terms: list[Term], state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state dict, with the strengths of what is attached to it and of other terms."""
    return {**state, KEY: saved_parts([*attached_terms(base), *terms])}


def read(
    base: Optimizer, terms: list[Term], state: dict[str, Any], *, strict: bool
) -> tuple[dict[str, Any], list[Renewal], list[str]]:
    """The base's part of such a state dict, and `matched` of the rest; nothing is changed yet."""
    parts = state.get(KEY, {"parts": []})["parts"]
    bare = {key: value for key, value in state.items() if key != KEY}
    return matched(base, [*attached_terms(base), *terms], bare, parts, strict=strict)


class Attachment:
    """What `attach_to` returns: the terms, and `remove` to take the proximal step off again.

    Attributes:
        base: the optimizer.
        terms: the terms that it steps.
        metric: how the threshold follows from the optimizer's step.
        mode: how zeros are decided, as of `ProxOptimizer`.
    """

    def __init__(
        self, base: Optimizer, terms: list[Term], metric: Metric, foreach: bool | None, mode: Mode = "prox"
    ) -> None:
        self.base, self.terms, self.metric, self.foreach, self.mode = base, terms, metric, foreach, mode
        self.positions = ParamPositions(base, terms)
        self._checks = StepChecks(self.positions.slots, base)
        check_metric(base, metric)
        check_controls(terms, mode, masters=False)
        self._before: Copies = []
        self._renewed: tuple[list[Renewal], list[str]] = ([], [])
        self._handles = _registered(base, self)
        for term in terms:
            term.own(self)
        if "__getstate__" not in vars(base):
            base.__getstate__ = self._told(base.__getstate__)  # type: ignore[method-assign]

    def prox(self) -> None:
        """The proximal step of the parameters that the optimizer has just stepped."""
        proximal_half(self)

    def remove(self) -> None:
        """Take the hooks off the optimizer and let the terms go; weights and strengths stay as they are."""
        for handle in self._handles:
            handle.remove()
        if not attached_terms(self.base):
            vars(self.base).pop("__getstate__", None)
        for term in self.terms:
            term.disown(self)

    def before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """The hook: finds parameters that have moved, before anything is stepped."""
        self.positions.ready(self)
        self._checks.before(self.positions.slots, self.base)
        self._before = copies_for(self.positions.slots, self.base, rule_for(self.base, self.metric))
        begin(self)

    def after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """The hook: what `ProxOptimizer` does after the base's step."""
        self.positions.refuse_sparse()
        self.prox()
        done(self)
        for term in self.terms:
            term.stepped(optimizer)

    def save(self, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        """The hook: the state dict with the strengths of all that is attached, as `ProxOptimizer` writes it."""
        return written(self.base, [], state)

    def before_load(self, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        """The hook: refuses other terms' strengths before anything has changed; the first one serves all."""
        settle(self)
        state, renewed, told = read(self.base, [], state, strict=True)
        self._renewed, self._rollback = (renewed, told), Rollback(self.base, attached_terms(self.base))
        return state

    def after_load(self, optimizer: Optimizer) -> None:
        """The hook: takes the strengths."""
        with self._rollback:
            differences = restore(*self._renewed)
        self._renewed = ([], [])
        tell(differences)

    def _told(self, getstate: Callable[[], Any]) -> Callable[[], Any]:
        def told() -> Any:
            warnings.warn(
                f"A copy or pickle of this {type(self.base).__name__} has no proximal step: torch leaves hooks behind. "
                "Call attach_to on the copy with terms of its own, or use ProxOptimizer, which is copied whole.",
                stacklevel=2,
            )
            return getstate()

        return told

    def __repr__(self) -> str:
        listed = "\n".join(repr(term) for term in self.terms)
        return f"attached to {type(self.base).__name__}, metric={self.metric!r}\npenalised:\n{listed}"


def _registered(base: Optimizer, attachment: Attachment) -> list[Any]:
    return [
        base.register_step_pre_hook(attachment.before_step),
        base.register_step_post_hook(attachment.after_step),
        base.register_state_dict_post_hook(attachment.save),
        base.register_load_state_dict_pre_hook(attachment.before_load),
        base.register_load_state_dict_post_hook(attachment.after_load),
    ]
