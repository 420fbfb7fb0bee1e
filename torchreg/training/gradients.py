"""What gradients hold: their entries, and whether all are finite."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from torchreg.functional.dtensor import Cut, here, is_cut
from torchreg.training.cuda_graphs import is_capturing
from torchreg.training.parameter_names import names_in
from torchreg.training.term import Term


@dataclass(frozen=True)
class Skipped:
    """The steps that were skipped because gradients held NaN or inf.

    Attributes:
        steps: how many.
        parameters: in how many of them each parameter's gradient did, by name: that of its term, or
            that given to the optimizer (``Adam(model.named_parameters())``), else its position, which follows
            where several have one name: "weight (group 0, parameter 2)".
    """

    steps: int = 0
    parameters: dict[str, int] = field(default_factory=dict)

    def plus(self, names: Iterable[str]) -> Skipped:
        """This count with one step more."""
        more = {name: self.parameters.get(name, 0) + 1 for name in names}
        return Skipped(self.steps + 1, {**self.parameters, **more})


def entries(p: Tensor) -> Tensor:
    """The gradient of a parameter that has one; of a sparse gradient the entries that it holds."""
    assert p.grad is not None
    return p.grad if p.grad.layout is torch.strided else p.grad.coalesce().values()


def not_finite(optimizer: Optimizer, terms: list[Term]) -> list[str]:
    """The names of the parameters whose gradients hold NaN or inf; reads a device once, if there are none.

    Raises:
        RuntimeError: within a compiled or captured step, which cannot decide this on the host.
    """
    if torch.compiler.is_compiling() or is_capturing():
        raise RuntimeError(
            "skip_nonfinite=True decides on the host whether to step, which a compiled or captured step cannot; use "
            "torch.amp.GradScaler, or compile opt.prox alone."
        )
    found = _named(optimizer, terms)
    return [] if _all_finite(list(found.values())) else [n for n, g in found.items() if not _all_finite([g])]


def _all_finite(gradients: list[Tensor]) -> bool:
    """Whether all entries are, those on other processes included; one answer for all that share parts."""
    if not gradients:
        return True
    empty = torch.zeros(1, device=gradients[0].device)  # as of a process that holds no entry of any
    largest = get_total_norm([part for g in gradients if (part := here(g)).numel()] or [empty], math.inf)
    bad = (~largest.isfinite()).float()
    cuts = [Cut(g) for g in gradients if is_cut(g)]
    for cut in {(cut.like.device_mesh, cut.like.placements): cut for cut in cuts}.values():
        bad = cut.largest(bad)
    return not bool(bad)


def warn_of_skips(names: list[str]) -> None:
    """Say once that a step was skipped."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    warnings.warn(
        f"A step was skipped: the gradients of {', '.join(names[:3])}{more} hold NaN or inf. Later skips are not "
        "told; opt.skipped counts them. Lower the learning rate or clip gradients if there are many.",
        stacklevel=5,
    )


def _named(optimizer: Optimizer, terms: list[Term]) -> dict[str, Tensor]:
    """The gradients that an optimizer is about to use, by name."""
    named = zip(names_in(optimizer, terms), optimizer.param_groups, strict=True)
    pairs = [pair for names, group in named for pair in zip(names, group["params"], strict=True)]
    return {name: entries(p) for name, p in pairs if p.grad is not None}
