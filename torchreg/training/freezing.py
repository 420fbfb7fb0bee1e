"""freeze_zeros and thaw: the zeros of now for good, and back."""

from __future__ import annotations

from typing import Any

from torchreg.training.dense_copy import KEY as DENSE
from torchreg.training.held_zeros import SUPPORT
from torchreg.training.target_checks import refuse_constraints
from torchreg.training.term import Term
from torchreg.training.term_part import Owner


def freeze_zeros(term: Term) -> None:
    """Keep every weight that is zero now at zero, and train the others on without shrinkage.

    From the next step on the penalty's proximal map is no longer applied, and an entry that is exactly zero before it
    stays so and takes no momentum. What the penalty has taken from the weights that it keeps is thereby given back:
    the refit that removes the bias of L1, on the support that L1 has found. `thaw` ends it. It travels with the
    optimizer's checkpoints, in 1 byte an entry.

    Args:
        term: one that a `ProxOptimizer` or `attach_to` steps.

    Raises:
        TypeError: if it is no term.
        ValueError: if no optimizer steps it, a `TargetSparsity` moves it, which freezes by itself, or its penalty
            demands more than zeros, as `NonNegative` does.

    Example:
        >>> import torch
        >>> from torchreg import L1, ProxOptimizer, attach, freeze_zeros
        >>> w = torch.nn.Parameter(torch.tensor([0.2, 1.0]))
        >>> term = attach(L1(1.0), {"w": w})
        >>> opt = ProxOptimizer(torch.optim.SGD([w], lr=0.1), term)
        >>> def train(steps):
        ...     for _ in range(steps):
        ...         opt.zero_grad()
        ...         (w - torch.tensor([0.3, 2.0])).square().sum().backward()
        ...         opt.step()
        >>> train(100)
        >>> w.data  # 0.5 below the minimum, for L1's sake
        tensor([0.0000, 1.5000])
        >>> freeze_zeros(term)
        >>> train(100)
        >>> w.data
        tensor([0.0000, 2.0000])
    """
    _check("freeze_zeros", term)
    if term.control is not None and not term.frozen:
        raise ValueError(
            f"freeze_zeros: {term.control!r} decides which weights of this term are zero, and settles them by itself; "
            "give it an earlier freeze=, or end it with thaw(term) first."
        )
    refuse_constraints("freeze_zeros", term)
    term.hold(True)


def thaw(term: Term) -> None:
    """Let zeros move again and the penalty act: the end of `freeze_zeros`, or of a `TargetSparsity`.

    Raises:
        TypeError: if it is no term.
        ValueError: if no optimizer steps it.

    Example:
        >>> import torch
        >>> from torchreg import L1, ProxOptimizer, attach, freeze_zeros, thaw
        >>> w = torch.nn.Parameter(torch.tensor([0.0, 2.0]))
        >>> term = attach(L1(0.1), {"w": w})
        >>> opt = ProxOptimizer(torch.optim.SGD([w], lr=0.1), term)
        >>> freeze_zeros(term)
        >>> thaw(term)
        >>> w.grad = torch.tensor([-1.0, 0.0])
        >>> opt.step()
        >>> w.data
        tensor([0.0900, 1.9900])
    """
    state = _check("thaw", term).base.state
    if term.target is not None:
        term.target.release()
    term.hold(False)
    for p in term.parameters.values():
        for key in (DENSE, SUPPORT):
            if p in state:
                state[p].pop(key, None)


def _check(name: str, term: Any) -> Owner:
    if not isinstance(term, Term):
        raise TypeError(f"{name} takes a term, got {type(term).__name__}; use attach(L1(0.1), model).")
    if term.owner is None:
        raise ValueError(f"{name} needs a term that an optimizer steps; make ProxOptimizer(base, term) first.")
    return term.owner
