"""attach_to: the proximal step as a hook on the raw optimizer, for trainers that insist on it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from torchreg.penalties import Penalty
from torchreg.training.amp import unless_skipped
from torchreg.training.by_name import matched
from torchreg.training.checkpoint import KEY, restore, saved_parts
from torchreg.training.clipping import as_clipped
from torchreg.training.effective_step import Metric, check_metric, rule_for
from torchreg.training.optimizer import ProxOptimizer
from torchreg.training.proximal_step import prox_step
from torchreg.training.refusals import refuse_base, refuse_sparse
from torchreg.training.slots import joined_terms, renew_parts, slots_of
from torchreg.training.term import Term

_HOOKS = (
    "_optimizer_step_post_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)


class Attachment:
    """What `attach_to` returns: the terms, and `remove` to take the proximal step off again.

    Attributes:
        base: the optimizer.
        terms: the terms that it steps.
        metric: how the threshold follows from the optimizer's step.
    """

    def __init__(self, base: Optimizer, terms: list[Term], metric: Metric, foreach: bool | None) -> None:
        self.base, self.terms, self.metric, self.foreach = base, terms, metric, foreach
        self._slots = slots_of(base, terms)
        check_metric(base, metric)
        for term in terms:
            if term.owner is not None:
                term.own(self)  # raises
        self._renewed: tuple[list[Any], list[str]] = ([], [])
        self._handles = _registered(base, self)
        for term in terms:
            term.own(self)
        base.__getstate__ = self._told(base.__getstate__)  # type: ignore[method-assign]

    def prox(self) -> None:
        """The proximal step of the parameters that the optimizer has just stepped."""
        rule = as_clipped(rule_for(self.base, self.metric), self.base, self.metric)
        prox_step(self.base, self._slots, unless_skipped(rule, self.base), self.foreach)

    def renew_parts(self) -> None:
        """Give each term's parts the tensors that stand in the optimizer now, as some trainers exchange them."""
        renew_parts(self._slots, self.base)

    def remove(self) -> None:
        """Take the hooks off the optimizer and let the terms go; weights and strengths stay as they are."""
        for handle in self._handles:
            handle.remove()
        vars(self.base).pop("__getstate__", None)
        for term in self.terms:
            term.disown(self)

    def after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """The hook: what `ProxOptimizer` does after the base's step."""
        for slot in self._slots:
            refuse_sparse([] if slot.part.lazy else slot.parameters(self.base))
        self.prox()
        for term in self.terms:
            term.stepped(optimizer)

    def save(self, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        """The hook: the state dict with the strengths, as `ProxOptimizer` writes it."""
        return {**state, KEY: saved_parts(self.terms)}

    def before_load(self, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        """The hook: refuses another term's strengths before anything has changed."""
        state = dict(state)
        parts = state.pop(KEY, {"parts": []})["parts"]
        state, renewed, told = matched(self.base, self.terms, state, parts, strict=True)
        self._renewed = (renewed, told)
        return state

    def after_load(self, optimizer: Optimizer) -> None:
        """The hook: takes the strengths."""
        restore(*self._renewed)
        self._renewed = ([], [])

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


def attach_to(
    optimizer: Optimizer, *terms: Term | Penalty, metric: Metric = "auto", foreach: bool | None = None
) -> Attachment:
    """Let an optimizer take the proximal step after each of its own: `ProxOptimizer` as a hook.

    The steps are those of ``ProxOptimizer(optimizer, *terms)`` bit for bit, and so are the state dicts. Use it
    where a trainer needs the very optimizer that it made. What a hook cannot do: torch leaves hooks behind when an
    optimizer is copied or pickled (a warning tells then), post-hooks registered before this one see weights
    without the proximal step, and there are neither masters nor ``skip_nonfinite``. A bare penalty takes the
    parameters that are there now, not those of groups added later.

    Args:
        optimizer: a torch optimizer. Attach before Accelerate's ``prepare``, or to its ``.optimizer``.
        terms: what `attach` made, or bare penalties, which take every parameter with two or more dimensions.
        metric: as of `ProxOptimizer`.
        foreach: as of `ProxOptimizer`.

    Returns:
        An `Attachment`, with ``terms`` and ``remove()``. The optimizer keeps it alive.

    Raises:
        TypeError: if ``optimizer`` is no optimizer or takes no hooks, or a term neither a Term nor a Penalty.
        ValueError: if the optimizer is not supported, a parameter is not its own or is penalised twice, or a
            term belongs to another optimizer. Nothing has changed then.

    Example:
        >>> import torch
        >>> from torchreg import L1, attach, attach_to
        >>> model = torch.nn.Linear(3, 1)
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> attachment = attach_to(sgd, attach(L1(100.0), model))
        >>> model(torch.ones(1, 3)).sum().backward()
        >>> sgd.step()
        >>> model.weight
        Parameter containing:
        tensor([[0., 0., 0.]], requires_grad=True)
    """
    refuse_base(optimizer, ProxOptimizer, terms=terms)
    missing = [hooks for hooks in _HOOKS if not hasattr(optimizer, hooks)]
    if missing:
        raise TypeError(
            f"{type(optimizer).__name__} has no {missing[0]}: it wraps another optimizer and takes no hooks. Attach "
            " to the optimizer inside (.optimizer), before accelerator.prepare for one, or wrap it in "
            "ProxOptimizer(..., metric=...)."
        )
    joined, _ = joined_terms(optimizer, terms)
    return Attachment(optimizer, joined, metric, foreach)


def _registered(base: Optimizer, attachment: Attachment) -> list[Any]:
    return [
        base.register_step_post_hook(attachment.after_step),
        base.register_state_dict_post_hook(attachment.save),
        base.register_load_state_dict_pre_hook(attachment.before_load),
        base.register_load_state_dict_post_hook(attachment.after_load),
    ]
