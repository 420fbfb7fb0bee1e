"""Averages of sparse weights are dense: their zeros are those of the last iterate."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Module

from torchreg.functional.dtensor import here
from torchreg.selection.selectors import matching
from torchreg.training.term import Term


@torch.no_grad()
def copy_zeros(term: Term, averaged: Module | Mapping[str, Tensor]) -> None:
    """Set to zero, in an average or a copy of a model, what is zero in the term's own weights.

    ``averaged_i = 0`` where ``w_i == 0``, else it stays. An average of iterates (`AveragedModel`, EMA, SWA) has a
    zero only where every iterate had one, hardly anywhere; the last iterate knows which weights the penalty
    rules out, the average has the better values for the others. Call it on the average before it is used or
    saved, at the end of training: early zeros are not settled.

    Args:
        term: whose weights' zeros to copy; `attach`ed to the model, so that it knows names.
        averaged: a model whose parameters have the same names (``module.`` before them is no part of a name), or a
            dict of tensors. It is changed in place.

    Raises:
        TypeError: if ``term`` is no term.
        ValueError: if a parameter of the term is not there, or has another shape; nothing has changed then.

    Example:
        >>> import torch
        >>> from torchreg import L1, attach, copy_zeros
        >>> w, mean = torch.tensor([0.0, 1.0]), torch.tensor([0.1, 0.9])
        >>> copy_zeros(attach(L1(0.1), {"w": w}), {"w": mean})
        >>> mean
        tensor([0.0000, 0.9000])
    """
    if not isinstance(term, Term):
        raise TypeError(f"copy_zeros takes the term whose zeros to copy, got {type(term).__name__}; use attach(...).")
    there = matching(averaged, "*") if isinstance(averaged, Module) else averaged
    for name, p in term.parameters.items():
        if name not in there or there[name].shape != p.shape:
            found = tuple(there[name].shape) if name in there else f"none, but {sorted(there)[:5]}"
            raise ValueError(
                f"copy_zeros needs {name!r} of shape {tuple(p.shape)} in the average, found {found}; attach the term "
                "to the model that is averaged, attach(penalty, model)."
            )
    for name, p in term.parameters.items():
        mean = here(there[name])
        mean.masked_fill_(here(p).to(mean.device) == 0, 0.0)
