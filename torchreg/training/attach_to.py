"""attach_to: the proximal step as a hook on the raw optimizer, for trainers that insist on it."""

from __future__ import annotations

from torch.optim import Optimizer

from torchreg.penalties import Penalty
from torchreg.training.bare_terms import joined_terms
from torchreg.training.control import Mode
from torchreg.training.effective_step import Metric
from torchreg.training.hooks import Attachment
from torchreg.training.lazy_rows import all_lazy
from torchreg.training.optimizer import ProxOptimizer
from torchreg.training.term import Term
from torchreg.training.validation import refuse_base

_HOOKS = (
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)


def attach_to(
    optimizer: Optimizer,
    *terms: Term | Penalty,
    metric: Metric = "auto",
    foreach: bool | None = None,
    mode: Mode = "prox",
) -> Attachment:
    """Let an optimizer take the proximal step after each of its own: `ProxOptimizer` as a hook.

    The steps are those of ``ProxOptimizer(optimizer, *terms)`` bit for bit, and so are the state dicts; param_groups
    may be edited likewise. Use it where a trainer needs the very optimizer that it made. What a hook cannot do: torch
    leaves hooks behind when an optimizer is copied or pickled (a warning tells then), post-hooks registered before
    this one see weights without the proximal step, and there are neither masters nor ``skip_nonfinite``. Call it
    again for terms over other parameters, and ``remove`` for those that go; checkpoints hold them all.

    Args:
        optimizer: a torch optimizer. Attach before Accelerate's ``prepare``, or to its ``.optimizer``.
        terms: what `attach` made, or bare penalties, which take every parameter with two or more dimensions.
        metric: as of `ProxOptimizer`.
        foreach: as of `ProxOptimizer`.
        mode: as of `ProxOptimizer`.

    Returns:
        An `Attachment`, with ``terms`` and ``remove()``. The optimizer keeps it alive.

    Raises:
        TypeError: if ``optimizer`` is no optimizer or takes no hooks, or a term neither a Term nor a Penalty.
        ValueError: if the optimizer is not supported, or a parameter is not its own or is penalised twice, by what
            was attached before too. Nothing has changed then.

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
    refuse_base(optimizer, ProxOptimizer, lazy=all_lazy(terms))
    missing = [hooks for hooks in _HOOKS if not hasattr(optimizer, hooks)]
    if missing:
        raise TypeError(
            f"{type(optimizer).__name__} has no {missing[0]}: it wraps another optimizer and takes no hooks. Attach "
            " to the optimizer inside (.optimizer), before accelerator.prepare for one, or wrap it in "
            "ProxOptimizer(..., metric=...)."
        )
    return Attachment(optimizer, joined_terms(optimizer, terms), metric, foreach, mode)
